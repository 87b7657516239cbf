//! The journal: every input and every action of the planner, in order, one JSON object a line.
//!
//! It is what a replay repeats (promise P7), what an experimenter measures from, and what explains a night in which
//! something went wrong. JSON, because it must still be readable by the next version of this program and by a
//! person with `jq`. Each file begins with the planner as it stood, so that a file can be replayed by itself.
//!
//! A journal that cannot be written (disk full) is given up with one warning: no VM suffers for it. It is begun anew as
//! soon as it can be written again; what was written before stays until then.

use ballast_planner::{Action, Input, Planner, VmName};
use ballast_protocol::Micros;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Grows when the meaning of a line changes.
pub const FORMAT: u32 = 1;

/// One line.
#[allow(clippy::large_enum_variant)] // Read one at a time; only the first line of a file is large.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// The first line of a file.
    Start {
        /// [`FORMAT`].
        format: u32,
        /// The program that wrote it.
        version: String,
        /// Wall-clock time, seconds since 1970.
        unix: u64,
        /// The daemon's clock at that moment.
        at: Micros,
        /// The planner as it stood.
        planner: Planner,
    },
    /// What the planner was told.
    Input {
        /// When.
        at: Micros,
        /// What.
        input: Input,
    },
    /// What the planner wanted done.
    Action {
        /// When.
        at: Micros,
        /// What.
        action: Action,
    },
    /// A demand's frame was read.
    Received {
        /// When.
        at: Micros,
        /// Whose.
        vm: VmName,
        /// Which.
        demand: u64,
    },
    /// An order went to the hypervisor.
    Issued {
        /// When the call began.
        at: Micros,
        /// Whose.
        vm: VmName,
        /// Which.
        order: u64,
        /// How long the call took.
        took: Micros,
    },
    /// The guest's clock: guest time = host time + `offset` microseconds, within half of `round_trip`.
    Clock {
        /// When it was measured.
        at: Micros,
        /// Whose.
        vm: VmName,
        /// How far it is ahead.
        offset: i64,
        /// The round trip of the measurement.
        round_trip: Micros,
    },
}

/// A journal that cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file.
    #[error("journal {path}: {action} failed")]
    Io {
        /// Which.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A line.
    #[error("journal {path}, line {line}: not a record of this version")]
    Line {
        /// Which.
        path: PathBuf,
        /// Which, from 1.
        line: usize,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The first line is missing or of another format.
    #[error("journal {path}: {problem}")]
    Format {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

impl JournalError {
    /// Whether there is no room for it now.
    fn is_full(&self) -> bool {
        let full = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded];
        matches!(self, Self::Io { source, .. } if full.contains(&source.kind()))
    }
}

/// Writes a journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    max_size: u64,
    size: u64,
    /// `None` after a failure.
    file: Option<BufWriter<File>>,
    /// When it is tried again after a failure.
    retry: Micros,
}

/// How long after a failure the next attempt is made. Each costs a snapshot of the planner, some KiB per VM.
const RETRY: Micros = Micros::secs(10);

impl Journal {
    /// Begins a journal at `path`; what stood there becomes `<path>.1`. A full disk is waited for: it is no reason to leave
    /// VMs without their host agent.
    ///
    /// # Errors
    /// The folder or file cannot be made for another reason.
    pub fn begin(path: &Path, max_size: u64, planner: &Planner, at: Micros) -> Result<Self, JournalError> {
        let mut journal = Self { path: path.to_owned(), max_size, size: 0, file: None, retry: Micros::ZERO };
        match journal.open(planner, at) {
            Err(error) if error.is_full() => {
                journal.warn(&crate::chain(&error));
                journal.retry = at + RETRY;
                Ok(journal)
            }
            begun => begun.map(|()| journal),
        }
    }

    fn open(&mut self, planner: &Planner, at: Micros) -> Result<(), JournalError> {
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
        let file = OpenOptions::new().create(true).write(true).truncate(true).open(&new).map_err(io("creating it"))?;
        let mut file = BufWriter::with_capacity(1 << 16, file);
        let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let start = Record::Start { format: FORMAT, version, unix, at, planner: planner.clone() };
        let begun = write_line(&mut file, &start).and_then(|size| file.flush().map(|()| size));
        self.size = begun.map_err(|error| {
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

    /// Appends a record. A failure is warned of once and ends the journal, not the daemon.
    pub fn write(&mut self, record: &Record) {
        let Some(file) = &mut self.file else { return };
        let written = write_line(file, record).map(|size| self.size += size);
        self.give_up_on(written);
    }

    /// Hands everything to the kernel; call when there is nothing else to do.
    pub fn flush(&mut self) {
        let Some(file) = &mut self.file else { return };
        let flushed = file.flush();
        self.give_up_on(flushed);
    }

    /// Another size at which it rotates, from the next record on.
    pub const fn resize(&mut self, max_size: u64) {
        self.max_size = max_size;
    }

    /// Begins a new file if this one is full, or could not be written a while ago. The planner must have no action left
    /// to hand out.
    pub fn rotate(&mut self, planner: &Planner, at: Micros) {
        let failed = self.file.is_none();
        let due = if failed { at >= self.retry } else { self.size > self.max_size };
        if !due {
            if !failed {
                self.retry = at + RETRY;
            }
            return;
        }
        self.flush();
        let failed = self.file.is_none();
        match self.open(planner, at) {
            Ok(()) if failed => tracing::info!(path = %self.path.display(), "the journal goes on"),
            Ok(()) => {}
            Err(error) => {
                if !failed {
                    self.warn(&crate::chain(&error));
                }
                (self.file, self.retry) = (None, at + RETRY);
            }
        }
    }

    fn give_up_on(&mut self, result: std::io::Result<()>) {
        if let Err(error) = result {
            self.warn(&error.to_string());
            self.file = None;
        }
    }

    fn warn(&self, error: &str) {
        tracing::warn!(
            path = %self.path.display(),
            error,
            "the journal cannot be written; nothing else suffers, and it goes on as soon as it can"
        );
    }
}

/// Appends a record; how long its line is.
fn write_line(file: &mut BufWriter<File>, record: &Record) -> std::io::Result<u64> {
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    file.write_all(&line)?;
    Ok(line.len() as u64)
}

/// Reads a journal, record by record.
///
/// # Errors
/// The file cannot be opened. Each line that cannot be read is an error of its own; the last line of a daemon that
/// was killed may be cut off, and is left out.
pub fn read(path: &Path) -> Result<impl Iterator<Item = Result<Record, JournalError>> + use<>, JournalError> {
    let file =
        File::open(path).map_err(|source| JournalError::Io { path: path.to_owned(), action: "opening", source })?;
    let path = path.to_owned();
    let mut reader = BufReader::new(file);
    let mut number = 0;
    let mut line = Vec::new();
    Ok(std::iter::from_fn(move || {
        line.clear();
        number += 1;
        match reader.read_until(b'\n', &mut line) {
            Err(source) => Some(Err(JournalError::Io { path: path.clone(), action: "reading", source })),
            Ok(0) => None,
            Ok(_) if line.last() != Some(&b'\n') => None,
            Ok(_) => Some(serde_json::from_slice(&line).map_err(|source| JournalError::Line {
                path: path.clone(),
                line: number,
                source,
            })),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wake(at: u64) -> Record {
        Record::Input { at: Micros::secs(at), input: Input::Wake }
    }

    /// What a file holds: the time of its start, and those of its inputs.
    fn times(path: &Path) -> (u64, Vec<u64>) {
        let mut start = None;
        let mut inputs = Vec::new();
        for record in read(path).unwrap() {
            match record.unwrap() {
                Record::Start { at, .. } => assert!(start.replace(at.0 / 1_000_000).is_none(), "one start a file"),
                Record::Input { at, .. } => inputs.push(at.0 / 1_000_000),
                _ => {}
            }
        }
        (start.unwrap(), inputs)
    }

    #[test]
    fn a_full_file_is_moved_aside_and_each_begins_with_the_planner() {
        let folder = tempfile::tempdir().unwrap();
        let (path, planner) = (folder.path().join("deep/journal"), Planner::new());
        let mut journal = Journal::begin(&path, 0, &planner, Micros::ZERO).unwrap();
        for at in 1..=3 {
            journal.rotate(&planner, Micros::secs(at));
            journal.write(&wake(at));
        }
        // Larger now: nothing is moved any more.
        journal.resize(1 << 20);
        journal.rotate(&planner, Micros::secs(4));
        journal.write(&wake(4));
        journal.flush();
        assert_eq!(times(&path), (3, vec![3, 4]));
        assert_eq!(times(&folder.path().join("deep/journal.1")), (2, vec![2]));
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 2, "nothing else stays behind");
        // The next daemon moves it aside too.
        drop(journal);
        let _next = Journal::begin(&path, 0, &planner, Micros::ZERO).unwrap();
        assert_eq!(times(&folder.path().join("deep/journal.1")), (3, vec![3, 4]));
    }

    /// `/dev/full` is a disk that is always full.
    #[test]
    fn a_daemon_starts_on_a_full_disk_but_not_without_a_place() {
        let folder = tempfile::tempdir().unwrap();
        let (path, planner) = (folder.path().join("journal"), Planner::new());
        let new = folder.path().join("journal.new");
        std::os::unix::fs::symlink("/dev/full", &new).unwrap();
        let mut journal = Journal::begin(&path, 1 << 20, &planner, Micros::ZERO).unwrap();
        journal.write(&wake(1));
        journal.rotate(&planner, Micros::secs(10));
        journal.write(&wake(10));
        journal.flush();
        assert_eq!(times(&path), (10, vec![10]));
        let error = Journal::begin(Path::new("/dev/null/journal"), 1, &planner, Micros::ZERO).unwrap_err();
        assert!(crate::chain(&error).contains("/dev/null/journal: making its folder failed: "), "{error}");
    }

    #[test]
    fn a_full_disk_costs_no_record_of_before_and_the_journal_goes_on_by_itself() {
        let folder = tempfile::tempdir().unwrap();
        let (path, planner) = (folder.path().join("journal"), Planner::new());
        let mut journal = Journal::begin(&path, 1 << 20, &planner, Micros::ZERO).unwrap();
        journal.rotate(&planner, Micros::secs(1));
        journal.write(&wake(1));
        journal.flush();
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        journal.file = Some(BufWriter::new(full));
        journal.rotate(&planner, Micros::secs(2));
        journal.write(&wake(2));
        journal.flush();
        assert!(journal.file.is_none());
        // The next file cannot be begun either: the old ones stay, and it is not tried at every input.
        let new = folder.path().join("journal.new");
        std::os::unix::fs::symlink("/dev/full", &new).unwrap();
        journal.rotate(&planner, Micros::secs(11));
        assert!(new.exists(), "too early");
        journal.rotate(&planner, Micros::secs(12));
        assert!(!new.exists() && journal.file.is_none());
        assert_eq!(times(&path), (0, vec![1]));
        assert!(!folder.path().join("journal.1").exists());
        // And when there is room again, it goes on.
        for at in 21..=24 {
            journal.rotate(&planner, Micros::secs(at));
            journal.write(&wake(at));
        }
        journal.flush();
        assert_eq!(times(&path), (22, vec![22, 23, 24]));
        assert_eq!(times(&folder.path().join("journal.1")), (0, vec![1]));
    }
}
