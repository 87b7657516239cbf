//! The journal: every input and every action of the planner, in order, one JSON object a line.
//!
//! It is what a replay repeats (promise P7), what an experimenter measures from, and what explains a night in which
//! something went wrong. JSON, because it must still be readable by the next version of this program and by a
//! person with `jq`. Each file begins with the planner as it stood, so that a file can be replayed by itself.
//!
//! A journal that cannot be written (disk full) is given up with one warning: no VM suffers for it.

use ballast_planner::{Action, Input, Planner, VmName};
use ballast_protocol::Micros;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
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

/// Writes a journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    max_size: u64,
    size: u64,
    /// `None` after a failure.
    file: Option<BufWriter<File>>,
}

impl Journal {
    /// Begins a journal at `path`; what stood there becomes `<path>.1`.
    ///
    /// # Errors
    /// The folder or file cannot be made.
    pub fn begin(path: &Path, max_size: u64, planner: &Planner, at: Micros) -> Result<Self, JournalError> {
        let mut journal = Self { path: path.to_owned(), max_size, size: 0, file: None };
        journal.open(planner, at)?;
        Ok(journal)
    }

    fn open(&mut self, planner: &Planner, at: Micros) -> Result<(), JournalError> {
        let io = |action| {
            let path = self.path.clone();
            move |source| JournalError::Io { path, action, source }
        };
        if let Some(parent) = self.path.parent() {
            std::fs::create_dir_all(parent).map_err(io("making its folder"))?;
        }
        if self.path.exists() {
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            std::fs::rename(&self.path, old).map_err(io("moving the old one aside"))?;
        }
        let file = OpenOptions::new().create_new(true).append(true).open(&self.path).map_err(io("creating it"))?;
        self.file = Some(BufWriter::with_capacity(1 << 16, file));
        self.size = 0;
        let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let version = env!("CARGO_PKG_VERSION").to_owned();
        self.write(&Record::Start { format: FORMAT, version, unix, at, planner: planner.clone() });
        Ok(())
    }

    /// Appends a record. A failure is warned of once and ends the journal, not the daemon.
    pub fn write(&mut self, record: &Record) {
        let Some(file) = &mut self.file else { return };
        let written = serde_json::to_vec(record).map_err(std::io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            self.size += line.len() as u64;
            file.write_all(&line)
        });
        self.give_up_on(written);
    }

    /// Hands everything to the kernel; call when there is nothing else to do.
    pub fn flush(&mut self) {
        let Some(file) = &mut self.file else { return };
        let flushed = file.flush();
        self.give_up_on(flushed);
    }

    /// Begins a new file if this one is full. The planner must have no action left to hand out.
    pub fn rotate(&mut self, planner: &Planner, at: Micros) {
        if self.file.is_some() && self.size > self.max_size {
            self.flush();
            if let Err(error) = self.open(planner, at) {
                tracing::warn!(error = %crate::chain(&error), "the journal cannot be rotated and ends here");
                self.file = None;
            }
        }
    }

    fn give_up_on(&mut self, result: std::io::Result<()>) {
        if let Err(error) = result {
            tracing::warn!(path = %self.path.display(), %error, "the journal cannot be written and ends here");
            self.file = None;
        }
    }
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
