//! Unix sockets of our own, in directories that may belong to somebody else.
//!
//! Two daemons must never serve one socket, and a daemon that was killed leaves its file behind. Whether anybody listens is
//! found out by connecting. The directory is locked meanwhile, so that two daemons that start at the same moment cannot
//! both find nobody. But anybody who may read a directory can lock it, for ever: a lock that is not to be had in time is
//! done without, for a host without a daemon is worse than that moment.
//!
//! Whoever owns the directory can put another file in the place of the one just bound. So the file is opened once, known
//! to be ours, and given its mode and owner by that descriptor: what is put there afterwards keeps its own.

use rustix::fs::{AtFlags, Gid, OFlags, Uid, chownat};
use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};

/// Another daemon holds a directory's lock for the few system calls it takes to listen.
const LOCK_ATTEMPTS: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// A socket that cannot be had.
#[derive(Debug)]
pub(crate) enum BindError {
    /// Somebody listens there.
    Occupied,
    /// What is there is no socket.
    InTheWay,
    /// A step failed.
    Io { doing: &'static str, source: io::Error },
}

/// A socket that listens, and its directory.
#[derive(Debug)]
pub(crate) struct Bound {
    pub listener: UnixListener,
    pub file: SocketFile,
    pub directory: File,
    /// The directory is locked.
    pub is_locked: bool,
}

/// Whether a directory's lock is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waits {
    /// As long as another daemon may need it.
    Yes,
    /// Somebody kept one locked before: not again for each of 1,000 sockets.
    No,
}

/// The file of a socket, whatever becomes of its path.
#[derive(Debug)]
pub(crate) struct SocketFile(File);

/// Listens at `path`; who may connect is to be said by the file.
pub(crate) async fn bind(path: &Path, waits: Waits) -> Result<Bound, BindError> {
    let failed = |doing| move |source| BindError::Io { doing, source };
    let directory = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(failed("make its directory"))?;
    let directory = File::open(directory).map_err(failed("open its directory"))?;
    let is_locked = lock(&directory, waits).await.map_err(failed("lock its directory"))?;
    if !is_locked && waits == Waits::Yes {
        tracing::warn!(path = %path.display(), "its directory is locked by another process: bound without (`lslocks` \
            names it)");
    }

    match std::fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => return Err(BindError::InTheWay),
        Ok(_) => match UnixStream::connect(path).await.map_err(|e| e.kind()) {
            Err(io::ErrorKind::ConnectionRefused) => {
                std::fs::remove_file(path).map_err(failed("remove a dead daemon's socket"))?;
            }
            // Also when it cannot be connected for another reason: a full queue is a living daemon's.
            _ => return Err(BindError::Occupied),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed("look for it")(e)),
    }
    let listener = UnixListener::bind(path).map_err(failed("bind it"))?;
    let file = SocketFile::open(path).map_err(failed("find what was bound"))?;
    Ok(Bound { listener, file, directory, is_locked })
}

impl SocketFile {
    /// The socket at `path` that was bound just now.
    fn open(path: &Path) -> io::Result<Self> {
        let flags = (OFlags::PATH | OFlags::NOFOLLOW).bits();
        let file = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path)?;
        let metadata = file.metadata()?;
        // Another's socket can only get here by a second link.
        let ours = metadata.uid() == rustix::process::geteuid().as_raw() && metadata.nlink() == 1;
        if metadata.file_type().is_socket() && ours {
            Ok(Self(file))
        } else {
            Err(io::Error::other(
                "somebody put another file in its place; give it a directory that only root may write",
            ))
        }
    }

    pub fn metadata(&self) -> io::Result<Metadata> {
        self.0.metadata()
    }

    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        // By the descriptor: `fchmod` refuses one that was opened for nothing but its path (open(2), O_PATH).
        let path = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        std::fs::set_permissions(path, Permissions::from_mode(mode))
    }

    pub fn give_to(&self, user: Option<u32>, group: Option<u32>) -> io::Result<()> {
        let (user, group) = (user.map(Uid::from_raw), group.map(Gid::from_raw));
        Ok(chownat(&self.0, "", user, group, AtFlags::EMPTY_PATH)?)
    }
}

/// Whether the lock was to be had.
async fn lock(directory: &File, waits: Waits) -> io::Result<bool> {
    let attempts = if waits == Waits::Yes { LOCK_ATTEMPTS } else { 1 };
    for attempt in 1..=attempts {
        match directory.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::Error(e)) => return Err(e),
            Err(TryLockError::WouldBlock) if attempt == attempts => {}
            Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_PAUSE).await,
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[tokio::test]
    async fn a_file_that_is_put_in_the_sockets_place_keeps_its_owner_and_mode() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved, target) =
            (folder.path().join("s"), folder.path().join("moved"), folder.path().join("target"));
        std::fs::write(&target, "root's own").unwrap();
        std::fs::set_permissions(&target, Permissions::from_mode(0o640)).unwrap();
        let before = std::fs::metadata(&target).unwrap();
        // After it was found to be ours.
        let bound = bind(&path, Waits::Yes).await.unwrap();
        std::fs::rename(&path, &moved).unwrap();
        symlink(&target, &path).unwrap();
        bound.file.set_mode(0o600).unwrap();
        assert_eq!((mode(&target), mode(&moved)), (0o640, 0o600));
        if rustix::process::geteuid().is_root() {
            bound.file.give_to(Some(65534), Some(65534)).unwrap();
            let after = std::fs::metadata(&target).unwrap();
            assert_eq!((after.uid(), after.gid()), (before.uid(), before.gid()));
            assert_eq!(std::fs::metadata(&moved).unwrap().uid(), 65534);
        }
        // Before: a link, a file, and another socket's second name.
        for put in [|t: &Path, p: &Path| symlink(t, p), |t: &Path, p: &Path| std::fs::hard_link(t, p)] {
            for what in [&target, &moved] {
                std::fs::remove_file(&path).unwrap();
                put(what, &path).unwrap();
                let error = SocketFile::open(&path).unwrap_err().to_string();
                assert!(error.contains("another file in its place"), "{error}");
            }
        }
        assert_eq!(mode(&target), 0o640);
    }

    #[tokio::test]
    async fn a_listener_whose_queue_is_full_lives() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let living = std::os::unix::net::UnixListener::bind(&path).unwrap();
        rustix::net::listen(&living, 0).unwrap();
        let mut waiting = Vec::new();
        while let Ok(stream) = tokio::time::timeout(Duration::from_secs(5), UnixStream::connect(&path)).await.unwrap() {
            waiting.push(stream);
            assert!(waiting.len() < 100, "its queue is never full");
        }
        assert!(matches!(bind(&path, Waits::Yes).await, Err(BindError::Occupied)));
        drop((living, waiting));
        bind(&path, Waits::Yes).await.unwrap();
    }

    /// `flock /run/ballast sleep inf`, as nobody.
    #[tokio::test]
    async fn a_directory_that_somebody_keeps_locked_is_done_without() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("first"), folder.path().join("second"));
        let theirs = File::open(folder.path()).unwrap();
        theirs.lock().unwrap();
        let begin = std::time::Instant::now();
        let bound = bind(&first, Waits::Yes).await.unwrap();
        assert!(!bound.is_locked && begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        assert!(
            matches!(bind(&first, Waits::No).await, Err(BindError::Occupied)),
            "whoever listens is found all the same"
        );
        let begin = std::time::Instant::now();
        assert!(!bind(&second, Waits::No).await.unwrap().is_locked);
        assert!(begin.elapsed() < LOCK_PAUSE * LOCK_ATTEMPTS / 2, "{:?}", begin.elapsed());
        drop(theirs);
        let third = bind(&folder.path().join("third"), Waits::Yes).await.unwrap();
        assert!(third.is_locked);
    }
}
