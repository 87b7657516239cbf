//! The thread that writes: a disk that hangs must not hold up who decides.
//!
//! ```text
//!   Journal (the daemon's task) --Work--> thread --> file          at most `most` bytes wait, and what is added last
//!           <--- queued bytes, the file that failed --- thread
//! ```

use super::JournalError;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel};
use std::time::Duration;

/// How long the thread may take for what is left when the journal ends.
const FINISH: Duration = Duration::from_secs(2);

/// The thread, as the daemon's task sees it. Dropped, it waits until everything is written, but not for ever.
#[derive(Debug)]
pub(super) struct Writer {
    path: PathBuf,
    /// `None` only while dropping.
    work: Option<Sender<Work>>,
    told: Arc<Told>,
    ended: Receiver<()>,
}

#[derive(Debug, Default)]
struct Told {
    /// Bytes that wait.
    queued: AtomicUsize,
    /// The last file that could not be written, from 1.
    failed: AtomicU64,
}

pub(super) type Begun = Result<(), JournalError>;

#[derive(Debug)]
enum Work {
    /// A new file, which begins with these bytes.
    Begin { number: u64, first: Vec<u8>, resumes: bool, reply: Option<SyncSender<Begun>> },
    /// More of it.
    Lines(Vec<u8>),
    /// Another file instead of the one that is open.
    #[cfg(test)]
    Put(File),
}

impl Writer {
    pub fn start(path: &Path) -> std::io::Result<Self> {
        let (work, to_do) = channel();
        let (end, ended) = channel::<()>();
        let told = Arc::new(Told::default());
        let mut thread = Thread { path: path.to_owned(), told: Arc::clone(&told), file: None, number: 0 };
        std::thread::Builder::new().name("journal".into()).spawn(move || {
            for work in to_do {
                thread.work(work);
            }
            drop(end);
        })?;
        Ok(Self { path: path.to_owned(), work: Some(work), told, ended })
    }

    /// Begins file `number`. `resumes`: the one before failed, and everybody has been told.
    pub fn begin(&self, number: u64, first: Vec<u8>, resumes: bool, reply: Option<SyncSender<Begun>>) {
        let size = first.len();
        self.send(size, Work::Begin { number, first, resumes, reply });
    }

    pub fn lines(&self, lines: Vec<u8>) {
        self.send(lines.len(), Work::Lines(lines));
    }

    #[cfg(test)]
    pub fn put(&self, file: File) {
        self.send(0, Work::Put(file));
    }

    fn send(&self, size: usize, work: Work) {
        self.told.queued.fetch_add(size, Ordering::AcqRel);
        if let Some(to) = &self.work {
            // The thread ends only when this is dropped.
            let _ = to.send(work);
        }
    }

    /// Bytes that are not with the kernel yet.
    pub fn queued(&self) -> usize {
        self.told.queued.load(Ordering::Acquire)
    }

    /// Whether file `number` could not be written.
    pub fn has_failed(&self, number: u64) -> bool {
        self.told.failed.load(Ordering::Acquire) == number
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.work = None;
        if let Err(RecvTimeoutError::Timeout) = self.ended.recv_timeout(FINISH) {
            tracing::warn!(
                path = %self.path.display(),
                "the end of the journal is lost: its disk took nothing for {FINISH:?}"
            );
        }
    }
}

struct Thread {
    path: PathBuf,
    told: Arc<Told>,
    /// `None` after a failure.
    file: Option<File>,
    number: u64,
}

impl Thread {
    fn work(&mut self, work: Work) {
        let size = match work {
            Work::Begin { number, first, resumes, reply } => {
                self.begin(number, &first, resumes, reply);
                first.len()
            }
            Work::Lines(lines) => {
                if let Some(file) = &mut self.file
                    && let Err(error) = file.write_all(&lines)
                {
                    super::warn(&self.path, &error.to_string());
                    self.fail();
                }
                lines.len()
            }
            #[cfg(test)]
            Work::Put(file) => {
                self.file = Some(file);
                0
            }
        };
        self.told.queued.fetch_sub(size, Ordering::AcqRel);
    }

    fn begin(&mut self, number: u64, first: &[u8], resumes: bool, reply: Option<SyncSender<Begun>>) {
        self.number = number;
        let begun = self.open(first);
        if begun.is_err() {
            self.fail();
        }
        match (begun, reply) {
            // Whoever waited has been told that it takes long.
            (begun, Some(reply)) => drop(reply.try_send(begun)),
            (Ok(()), None) if resumes => tracing::info!(path = %self.path.display(), "the journal goes on"),
            (Err(error), None) if !resumes => super::warn(&self.path, &crate::chain(&error)),
            _ => {}
        }
    }

    fn fail(&mut self) {
        self.file = None;
        self.told.failed.store(self.number, Ordering::Release);
    }

    fn open(&mut self, first: &[u8]) -> Begun {
        let io = |action| {
            let path = self.path.clone();
            move |source| JournalError::Io { path, action, source }
        };
        if let Some(parent) = self.path.parent() {
            std::fs::create_dir_all(parent).map_err(io("making its folder"))?;
        }
        // The old one is moved aside when the new one has begun well, or a full disk would cost both.
        let beside = |ending: &str| {
            let mut path = self.path.clone().into_os_string();
            path.push(ending);
            PathBuf::from(path)
        };
        let new = beside(".new");
        let mut file =
            OpenOptions::new().create(true).write(true).truncate(true).open(&new).map_err(io("creating it"))?;
        file.write_all(first).map_err(|error| {
            // Best effort: half a line is worth nothing, and the next attempt overwrites it.
            let _ = std::fs::remove_file(&new);
            io("writing its first line")(error)
        })?;
        if self.path.exists() {
            std::fs::rename(&self.path, beside(".1")).map_err(io("moving the old one aside"))?;
        }
        std::fs::rename(&new, &self.path).map_err(io("giving it its name"))?;
        self.file = Some(file);
        Ok(())
    }
}
