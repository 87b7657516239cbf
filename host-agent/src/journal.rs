//! The journal: every input and every action of the planner, in order, one JSON object a line.
//!
//! It is what a replay repeats (promise P7), what an experimenter measures from, and what explains a night in which
//! something went wrong. JSON, because it must still be readable by the next version of this program and by a
//! person with `jq`. Each file begins with the planner as it stood, so that a file can be replayed by itself.
//!
//! A journal that cannot be written (disk full) is given up with one warning: no VM suffers for it. It is begun anew as
//! soon as it can be written again; what was written before stays until then. A thread of its own writes it, and a disk
//! that hangs is like a full one as soon as too much waits for it.

mod writer;

use ballast_planner::{Action, Input, Planner, VmName};
use ballast_protocol::Micros;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::Duration;
use writer::Writer;

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

/// Writes a journal: what is written is with the kernel soon, and at the latest when this is dropped.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    max_size: u64,
    size: u64,
    /// Lines that the writer has not been handed.
    lines: Vec<u8>,
    /// Bytes that may wait for the disk.
    most: usize,
    /// Files begun.
    number: u64,
    /// Too much waited: what comes now is not in the file.
    is_dropping: bool,
    /// When it is tried again after a failure.
    retry: Micros,
    writer: Writer,
}

/// How long after a failure the next attempt is made. Each costs a snapshot of the planner, some KiB per VM.
const RETRY: Micros = Micros::secs(10);
/// How long a start waits for the first line to be written, to tell if it cannot be.
const BEGIN: Duration = Duration::from_secs(2);
/// Bytes that may wait for the disk: half a minute of a thousand VMs.
const MOST: usize = 16 << 20;
/// Lines are handed over when there are so many bytes of them.
const BATCH: usize = 1 << 16;

impl Journal {
    /// Begins a journal at `path`; what stood there becomes `<path>.1`. A full disk is waited for, and one that hangs: it is
    /// no reason to leave VMs without their host agent.
    ///
    /// # Errors
    /// The folder or file cannot be made for another reason.
    pub fn begin(path: &Path, max_size: u64, planner: &Planner, at: Micros) -> Result<Self, JournalError> {
        let io = |action| move |source| JournalError::Io { path: path.to_owned(), action, source };
        let mut journal = Self {
            path: path.to_owned(),
            max_size,
            size: 0,
            lines: Vec::new(),
            most: MOST,
            number: 1,
            is_dropping: false,
            retry: at + RETRY,
            writer: Writer::start(path).map_err(io("starting its thread"))?,
        };
        let first = first_line(planner, at).map_err(io("writing its first line"))?;
        journal.size = first.len() as u64;
        let (reply, begun) = sync_channel(1);
        journal.writer.begin(journal.number, first, false, Some(reply));
        match begun.recv_timeout(BEGIN) {
            Ok(Err(error)) if error.is_full() => warn(path, &crate::chain(&error)),
            Ok(Err(error)) => return Err(error),
            Ok(Ok(())) => {}
            Err(_) => warn(path, "its disk does not answer"),
        }
        Ok(journal)
    }

    /// Appends a record. A failure is warned of once and ends the journal, not the daemon.
    pub fn write(&mut self, record: &Record) {
        if self.has_failed() {
            return;
        }
        let before = self.lines.len();
        if let Err(error) = write_line(&mut self.lines, record) {
            self.lines.truncate(before);
            return self.give_up(&error.to_string());
        }
        self.size += (self.lines.len() - before) as u64;
        if self.lines.len() >= BATCH {
            self.flush();
        }
    }

    /// Hands everything to the writer; call when there is nothing else to do.
    pub fn flush(&mut self) {
        if self.lines.is_empty() {
            return;
        }
        let lines = std::mem::take(&mut self.lines);
        if self.has_failed() {
            return;
        }
        if self.writer.queued() > self.most {
            return self.give_up("its disk does not answer");
        }
        self.writer.lines(lines);
    }

    /// Another size at which it rotates, from the next record on.
    pub const fn resize(&mut self, max_size: u64) {
        self.max_size = max_size;
    }

    /// Begins a new file if this one is full, or could not be written a while ago. The planner must have no action left
    /// to hand out.
    pub fn rotate(&mut self, planner: &Planner, at: Micros) {
        let failed = self.has_failed();
        let due = if failed { at >= self.retry } else { self.size > self.max_size };
        if !due {
            if !failed {
                self.retry = at + RETRY;
            }
            return;
        }
        self.flush();
        let failed = self.has_failed();
        self.retry = at + RETRY;
        // A snapshot is not made for a disk that hangs.
        if self.writer.queued() > self.most {
            return self.give_up("its disk does not answer");
        }
        match first_line(planner, at) {
            Ok(first) => {
                self.size = first.len() as u64;
                self.number += 1;
                self.is_dropping = false;
                self.writer.begin(self.number, first, failed, None);
            }
            Err(error) => self.give_up(&error.to_string()),
        }
    }

    fn has_failed(&self) -> bool {
        self.is_dropping || self.writer.has_failed(self.number)
    }

    fn give_up(&mut self, error: &str) {
        if !self.has_failed() {
            warn(&self.path, error);
        }
        self.is_dropping = true;
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.flush();
    }
}

fn warn(path: &Path, error: &str) {
    tracing::warn!(
        path = %path.display(),
        error,
        "the journal cannot be written; nothing else suffers, and it goes on as soon as it can"
    );
}

fn first_line(planner: &Planner, at: Micros) -> std::io::Result<Vec<u8>> {
    let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let start = Record::Start { format: FORMAT, version, unix, at, planner: planner.clone() };
    let mut line = Vec::new();
    write_line(&mut line, &start)?;
    Ok(line)
}

fn write_line(lines: &mut Vec<u8>, record: &Record) -> std::io::Result<()> {
    serde_json::to_writer(&mut *lines, record)?;
    lines.push(b'\n');
    Ok(())
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

    /// Everything is with the kernel, or was tried.
    fn settle(journal: &mut Journal) {
        journal.flush();
        let begin = std::time::Instant::now();
        while journal.writer.queued() > 0 {
            assert!(begin.elapsed() < Duration::from_secs(20), "the writer hangs");
            std::thread::sleep(Duration::from_millis(1));
        }
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
        settle(&mut journal);
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
        settle(&mut journal);
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
        settle(&mut journal);
        journal.writer.put(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
        journal.rotate(&planner, Micros::secs(2));
        journal.write(&wake(2));
        settle(&mut journal);
        assert!(journal.has_failed());
        // The next file cannot be begun either: the old ones stay, and it is not tried at every input.
        let new = folder.path().join("journal.new");
        std::os::unix::fs::symlink("/dev/full", &new).unwrap();
        journal.rotate(&planner, Micros::secs(11));
        settle(&mut journal);
        assert!(new.exists(), "too early");
        journal.rotate(&planner, Micros::secs(12));
        settle(&mut journal);
        assert!(!new.exists() && journal.has_failed());
        assert_eq!(times(&path), (0, vec![1]));
        assert!(!folder.path().join("journal.1").exists());
        // And when there is room again, it goes on.
        for at in 21..=24 {
            journal.rotate(&planner, Micros::secs(at));
            journal.write(&wake(at));
        }
        settle(&mut journal);
        assert_eq!(times(&path), (22, vec![22, 23, 24]));
        assert_eq!(times(&folder.path().join("journal.1")), (0, vec![1]));
    }

    /// A pipe that nobody reads is a disk that hangs.
    #[test]
    fn a_disk_that_hangs_holds_up_nobody_and_the_journal_goes_on_when_it_answers() {
        let folder = tempfile::tempdir().unwrap();
        let (path, planner) = (folder.path().join("journal"), Planner::new());
        let mut journal = Journal::begin(&path, 1 << 30, &planner, Micros::ZERO).unwrap();
        journal.write(&wake(1));
        settle(&mut journal);
        journal.most = 1 << 18;
        let (reader, pipe) = std::io::pipe().unwrap();
        journal.writer.put(File::from(std::os::fd::OwnedFd::from(pipe)));
        let begun = std::time::Instant::now();
        let mut at = 2;
        while !journal.has_failed() {
            journal.rotate(&planner, Micros::secs(at));
            journal.write(&wake(at));
            at += 1;
            assert!(journal.writer.queued() < 1 << 20, "what waits is bounded");
        }
        // Nor is it tried again while as much waits.
        let waits = journal.writer.queued();
        journal.rotate(&planner, Micros::secs(at + 10));
        journal.write(&wake(at + 10));
        journal.flush();
        assert_eq!(journal.writer.queued(), waits);
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        let reader = std::thread::spawn(move || std::io::copy(&mut &reader, &mut std::io::sink()));
        settle(&mut journal);
        let again = at + 20;
        journal.rotate(&planner, Micros::secs(again));
        journal.write(&wake(again));
        drop(journal);
        assert!(reader.join().unwrap().unwrap() > 0);
        assert_eq!(times(&path), (again, vec![again]), "a file of its own, which begins with the planner");
        assert_eq!(times(&folder.path().join("journal.1")), (0, vec![1]));
    }

    #[test]
    fn what_was_written_is_there_when_it_ends_and_a_dead_disk_does_not_hold_up_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let (path, planner) = (folder.path().join("journal"), Planner::new());
        let mut journal = Journal::begin(&path, 1 << 30, &planner, Micros::ZERO).unwrap();
        (1..=20_000).for_each(|at| journal.write(&wake(at)));
        drop(journal);
        assert_eq!(times(&path), (0, (1..=20_000).collect()));
        let mut journal = Journal::begin(&path, 1 << 30, &planner, Micros::ZERO).unwrap();
        let (_reader, pipe) = std::io::pipe().unwrap();
        journal.writer.put(File::from(std::os::fd::OwnedFd::from(pipe)));
        (1..=20_000).for_each(|at| journal.write(&wake(at)));
        let begun = std::time::Instant::now();
        drop(journal);
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }
}
