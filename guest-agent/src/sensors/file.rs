//! One `/proc` or `/sys` file, opened once and read from its start again and again.
//!
//! Opening costs as much as reading (a path walk per look), and a guest that is dying may have no descriptor or
//! dentry left to open anything with: so files stay open, and the buffer is the caller's.

use rustix::io::{Errno, pread};
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A sensor that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SensorError {
    /// The file is there but cannot be opened or read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file was read and is not what this kernel interface looks like.
    #[error("{}: {what}", path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// What is missing or odd.
        what: &'static str,
    },
}

/// Room for `/proc/vmstat` (about 4 KiB) and most `/proc/zoneinfo`; grows once if a guest has many CPUs.
const BUFFER: usize = 16 << 10;

/// The buffer that all sensors read into, one after the other.
#[derive(Debug)]
pub struct Scratch(Vec<u8>);

impl Default for Scratch {
    fn default() -> Self {
        Self(vec![0; BUFFER])
    }
}

/// An open file of `/proc`, `/sys` or a captured tree.
#[derive(Debug)]
pub struct ProcFile {
    file: File,
    path: PathBuf,
}

impl ProcFile {
    /// Opens `relative` under `root`; `None` when this kernel lacks it.
    ///
    /// # Errors
    /// The file is there but cannot be opened.
    pub fn open(root: &Path, relative: &str) -> Result<Option<Self>, SensorError> {
        let path = root.join(relative);
        // A FIFO planted under a test root must not hang the agent; regular kernel files ignore O_NONBLOCK.
        let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        match File::options().read(true).custom_flags(flags).open(&path) {
            Ok(file) => Ok(Some(Self { file, path })),
            Err(e) if Self::means_absent(&e) => Ok(None),
            Err(source) => Err(SensorError::Read { path, source }),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file, to be polled.
    #[must_use]
    pub fn handle(&self) -> &File {
        &self.file
    }

    /// The whole file as it is now.
    ///
    /// # Errors
    /// The kernel refuses to read it.
    pub fn read<'b>(&self, scratch: &'b mut Scratch) -> Result<&'b [u8], SensorError> {
        let buffer = &mut scratch.0;
        let mut filled = 0;
        loop {
            if filled == buffer.len() {
                buffer.resize(buffer.len() * 2, 0);
            }
            match pread(&self.file, &mut buffer[filled..], filled as u64) {
                Ok(0) => return Ok(&scratch.0[..filled]),
                Ok(n) => filled += n,
                Err(Errno::INTR) => {}
                Err(e) => return Err(SensorError::Read { path: self.path.clone(), source: e.into() }),
            }
        }
    }

    /// An error of form about this file.
    #[must_use]
    pub fn odd(&self, what: &'static str) -> SensorError {
        SensorError::Format { path: self.path.clone(), what }
    }

    /// ENOENT: no such kernel feature. ENOTDIR and ENXIO: the tree is shaped otherwise. EOPNOTSUPP: PSI compiled
    /// in and switched off.
    fn means_absent(e: &std::io::Error) -> bool {
        const ABSENT: [Errno; 4] = [Errno::NOENT, Errno::NOTDIR, Errno::NXIO, Errno::OPNOTSUPP];
        e.raw_os_error().is_some_and(|code| ABSENT.iter().any(|a| a.raw_os_error() == code))
    }
}

/// The first unsigned number in `text`, skipping leading blanks; `None` when there is none.
#[must_use]
pub fn number(text: &[u8]) -> Option<u64> {
    let start = text.iter().position(|b| !b.is_ascii_whitespace())?;
    let mut value: u64 = 0;
    let mut any = false;
    for digit in text[start..].iter().take_while(|b| b.is_ascii_digit()) {
        value = value.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
        any = true;
    }
    any.then_some(value)
}

/// The lines of `text`, without their ends.
pub fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|b| *b == b'\n').filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_or_absent_and_never_wrap() {
        assert_eq!(number(b"   24684092 kB"), Some(24_684_092));
        assert_eq!(number(b"max"), None);
        assert_eq!(number(b""), None);
        assert_eq!(number(b"99999999999999999999999"), None);
    }

    #[test]
    fn a_missing_file_is_absent_and_a_present_one_is_read_again_from_its_start() {
        let dir = tempfile::tempdir().unwrap();
        assert!(ProcFile::open(dir.path(), "proc/nothing").unwrap().is_none());
        let path = dir.path().join("x");
        std::fs::write(&path, "one").unwrap();
        let file = ProcFile::open(dir.path(), "x").unwrap().unwrap();
        let mut scratch = Scratch::default();
        assert_eq!(file.read(&mut scratch).unwrap(), b"one");
        std::fs::write(&path, "another").unwrap();
        assert_eq!(file.read(&mut scratch).unwrap(), b"another");
    }

    #[test]
    fn a_file_larger_than_the_buffer_is_read_whole() {
        let dir = tempfile::tempdir().unwrap();
        let long = vec![b'7'; BUFFER * 3 + 5];
        std::fs::write(dir.path().join("long"), &long).unwrap();
        let file = ProcFile::open(dir.path(), "long").unwrap().unwrap();
        assert_eq!(file.read(&mut Scratch::default()).unwrap(), long);
    }
}
