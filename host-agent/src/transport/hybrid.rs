//! The Unix socket at which one VM's guest arrives: `<vsock>_<port>`, as Firecracker, Cloud Hypervisor and
//! vhost-device-vsock call it.
//!
//! Two daemons must never serve one VM, and a daemon that was killed leaves its socket file behind. Whether anybody
//! listens is found out by connecting. The directory is locked meanwhile, so that two daemons that start at the same
//! moment cannot both find nobody.

use super::pace::Pace;
use super::{BREATHER, Error, Peer, Stream};
use ballast_planner::VmName;
use std::fs::{DirBuilder, File, Metadata, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Another daemon holds a directory's lock for the few system calls it takes to listen.
const LOCK_ATTEMPTS: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// One VM's socket. Dropping it closes it and removes the file.
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    /// Device and inode: the file that is ours, and not one that somebody put there since.
    identity: (u64, u64),
    task: JoinHandle<()>,
}

impl Socket {
    pub async fn bind(
        vm: VmName,
        vsock: &Path,
        port: u32,
        arrivals: mpsc::Sender<(Peer, Stream)>,
    ) -> Result<Self, Error> {
        let mut path = vsock.as_os_str().to_owned();
        path.push(format!("_{port}"));
        let path = PathBuf::from(path);
        let (listener, metadata) = listen(&vm, vsock, &path).await?;
        let identity = (metadata.dev(), metadata.ino());
        let task = tokio::spawn(accept(listener, vm, arrivals));
        Ok(Self { path, identity, task })
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

async fn listen(vm: &VmName, vsock: &Path, path: &Path) -> Result<(UnixListener, Metadata), Error> {
    let failed = |doing| move |source| Error::Hybrid { vm: vm.clone(), path: path.to_owned(), doing, source };
    let directory = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(failed("make its directory"))?;
    let directory = File::open(directory).map_err(failed("open its directory"))?;
    lock(&directory).await.map_err(failed("lock its directory"))?;

    match std::fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => {
            return Err(Error::InTheWay { vm: vm.clone(), path: path.to_owned() });
        }
        Ok(_) => match UnixStream::connect(path).await.map_err(|e| e.kind()) {
            Err(io::ErrorKind::ConnectionRefused) => {
                std::fs::remove_file(path).map_err(failed("remove a dead daemon's socket"))?;
            }
            // Also when it cannot be connected for another reason: a full queue is a living daemon's.
            _ => return Err(Error::Occupied { vm: vm.clone(), path: path.to_owned() }),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed("look for it")(e)),
    }
    let listener = UnixListener::bind(path).map_err(failed("bind it"))?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed("set its mode"))?;
    hand_over(vsock, &directory, path).map_err(failed("give it to the owner of the VM's vsock"))?;
    let metadata = std::fs::symlink_metadata(path).map_err(failed("look at it"))?;
    Ok((listener, metadata))
}

async fn lock(directory: &File) -> io::Result<()> {
    for _ in 0..LOCK_ATTEMPTS {
        match directory.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(e)) => return Err(e),
            Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_PAUSE).await,
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "another process keeps it locked"))
}

/// Whoever connects is not the guest but what stands for it on the host: vhost-device-vsock, Firecracker, often as a
/// user of its own. Its own socket tells whose; before that exists, the directory it will appear in.
fn hand_over(vsock: &Path, directory: &File, path: &Path) -> io::Result<()> {
    let owner = match std::fs::symlink_metadata(vsock) {
        Ok(socket) => socket,
        Err(e) if e.kind() == io::ErrorKind::NotFound => directory.metadata()?,
        Err(e) => return Err(e),
    };
    let now = std::fs::symlink_metadata(path)?;
    if (owner.uid(), owner.gid()) == (now.uid(), now.gid()) {
        return Ok(());
    }
    chown(path, Some(owner.uid()), Some(owner.gid()))
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
