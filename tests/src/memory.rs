//! Guest memory that the test owns: a memfd, which QEMU opens through `/proc`.
//!
//! It has no name that could be left behind, is not bound by the size of `/dev/shm`, its pages are counted apart
//! from QEMU's own memory, and a clone is made by copying what it holds.

use anyhow::{Context, Result};
use ballast_protocol::Bytes;
use rustix::fs::{MemfdFlags, SeekFrom};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};

const PAGE: usize = 4096;
const PIECE: usize = 1 << 20;

/// A memfd.
#[derive(Debug)]
pub struct Memory(File);

impl Memory {
    /// So much, none of it there yet.
    pub fn new(name: &str, size: Bytes) -> Result<Self> {
        let file = File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC).context("memfd_create")?);
        file.set_len(size.0)?;
        Ok(Self(file))
    }

    /// A path by which another process of the same user can open it.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Pages that are really there.
    pub fn resident(&self) -> Result<Bytes> {
        // st_blocks counts units of 512 bytes whatever the file system (stat(2)).
        Ok(Bytes(self.0.metadata()?.blocks() * 512))
    }

    /// A second one with the same content; pages of zeros are left out, as they read the same.
    pub fn duplicate(&self, name: &str) -> Result<Self> {
        let size = self.0.metadata()?.len();
        let copy = Self::new(name, Bytes(size))?;
        let mut buffer = vec![0; PIECE];
        let mut at = 0;
        while let Ok(start) = rustix::fs::seek(&self.0, SeekFrom::Data(at)) {
            let end = rustix::fs::seek(&self.0, SeekFrom::Hole(start))?;
            at = start;
            while at < end {
                let piece = &mut buffer[..PIECE.min((end - at) as usize)];
                self.0.read_exact_at(piece, at)?;
                for (page, offset) in piece.chunks(PAGE).zip((at..).step_by(PAGE)) {
                    if page.iter().any(|&b| b != 0) {
                        copy.0.write_all_at(page, offset)?;
                    }
                }
                at += piece.len() as u64;
            }
        }
        Ok(copy)
    }
}
