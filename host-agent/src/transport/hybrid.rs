//! The Unix socket at which one VM's guest arrives: `<vsock>_<port>`, as Firecracker, Cloud Hypervisor and
//! vhost-device-vsock call it. Its directory often belongs to them.

use super::pace::Pace;
use super::{BREATHER, Error, Peer, Stream};
use crate::socket::{self, BindError, Bound, SocketFile, Waits};
use ballast_planner::VmName;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// One VM's socket. Dropping it closes it and removes the file.
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    /// Device and inode: the file that is ours, and not one that somebody put there since.
    identity: (u64, u64),
    /// Its directory was locked when it was bound.
    pub was_locked: bool,
    task: JoinHandle<()>,
}

impl Socket {
    pub async fn bind(
        vm: VmName,
        vsock: &Path,
        port: u32,
        waits: Waits,
        arrivals: mpsc::Sender<(Peer, Stream)>,
    ) -> Result<Self, Error> {
        let mut path = vsock.as_os_str().to_owned();
        path.push(format!("_{port}"));
        let path = PathBuf::from(path);
        let (listener, metadata, was_locked) = listen(&vm, vsock, &path, waits).await?;
        let identity = (metadata.dev(), metadata.ino());
        let task = tokio::spawn(accept(listener, vm, arrivals));
        Ok(Self { path, identity, was_locked, task })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.task.abort();
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.identity);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a socket file stays behind");
        }
    }
}

async fn listen(vm: &VmName, vsock: &Path, path: &Path, waits: Waits) -> Result<(UnixListener, Metadata, bool), Error> {
    let failed = |doing| move |source| Error::Hybrid { vm: vm.clone(), path: path.to_owned(), doing, source };
    let Bound { listener, file, directory, is_locked } = socket::bind(path, waits).await.map_err(|e| match e {
        BindError::Occupied => Error::Occupied { vm: vm.clone(), path: path.to_owned() },
        BindError::InTheWay => Error::InTheWay { vm: vm.clone(), path: path.to_owned() },
        BindError::Io { doing, source } => failed(doing)(source),
    })?;
    file.set_mode(0o600).map_err(failed("set its mode"))?;
    hand_over(vsock, &directory, &file).map_err(failed("give it to the owner of the VM's vsock"))?;
    let metadata = file.metadata().map_err(failed("look at it"))?;
    Ok((listener, metadata, is_locked))
}

/// Whoever connects is not the guest but what stands for it on the host: vhost-device-vsock, Firecracker, often as a
/// user of its own. Its own socket tells whose; before that exists, the directory it will appear in.
fn hand_over(vsock: &Path, directory: &File, file: &SocketFile) -> io::Result<()> {
    let owner = match std::fs::symlink_metadata(vsock) {
        Ok(socket) => socket,
        Err(e) if e.kind() == io::ErrorKind::NotFound => directory.metadata()?,
        Err(e) => return Err(e),
    };
    let now = file.metadata()?;
    if (owner.uid(), owner.gid()) == (now.uid(), now.gid()) {
        return Ok(());
    }
    file.give_to(Some(owner.uid()), Some(owner.gid()))
}

async fn accept(listener: UnixListener, vm: VmName, arrivals: mpsc::Sender<(Peer, Stream)>) {
    let mut pace = Pace::default();
    loop {
        // Who calls too often waits in the socket's own queue: it is this VM's alone.
        pace.take().await;
        match listener.accept().await {
            Ok((stream, _)) => {
                // The daemon has gone.
                if arrivals.send((Peer::Vm(vm.clone()), Stream::Unix(stream))).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%vm, %error, "cannot accept on hybrid vsock");
                tokio::time::sleep(BREATHER).await;
            }
        }
    }
}
