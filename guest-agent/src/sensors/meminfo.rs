//! `/proc/meminfo`: sizes. 22 us a look under TCG (FACTS: "cost of a look"), so not on the fast path.

use super::file::{ProcFile, Scratch, SensorError, lines, number};
use ballast_protocol::{Bytes, KiB};
use std::path::Path;

/// What the agent uses of `/proc/meminfo`. Fields as the kernel names them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Meminfo {
    /// MemTotal.
    pub total: Bytes,
    /// MemFree.
    pub free: Bytes,
    /// MemAvailable; `None` before Linux 3.14.
    pub available: Option<Bytes>,
    /// Buffers.
    pub buffers: Bytes,
    /// Cached; includes Shmem.
    pub cached: Bytes,
    /// Inactive(file): the cache that goes first.
    pub inactive_file: Bytes,
    /// Dirty.
    pub dirty: Bytes,
    /// Writeback.
    pub writeback: Bytes,
    /// AnonPages.
    pub anon: Bytes,
    /// Shmem.
    pub shmem: Bytes,
    /// Committed_AS.
    pub committed: Bytes,
    /// SwapTotal.
    pub swap_total: Bytes,
    /// SwapFree.
    pub swap_free: Bytes,
}

impl Meminfo {
    /// Reads the text of the file; `None` without MemTotal or MemFree.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let mut info = Self::default();
        let (mut total, mut free) = (None, None);
        for line in lines(text) {
            let Some(colon) = line.iter().position(|b| *b == b':') else { continue };
            let Some(value) = number(&line[colon + 1..]).map(|n| Bytes::from(KiB(n))) else { continue };
            match &line[..colon] {
                b"MemTotal" => total = Some(value),
                b"MemFree" => free = Some(value),
                b"MemAvailable" => info.available = Some(value),
                b"Buffers" => info.buffers = value,
                b"Cached" => info.cached = value,
                b"Inactive(file)" => info.inactive_file = value,
                b"Dirty" => info.dirty = value,
                b"Writeback" => info.writeback = value,
                b"AnonPages" => info.anon = value,
                b"Shmem" => info.shmem = value,
                b"Committed_AS" => info.committed = value,
                b"SwapTotal" => info.swap_total = value,
                b"SwapFree" => info.swap_free = value,
                _ => {}
            }
        }
        info.total = total?;
        info.free = free?;
        Some(info)
    }

    /// Page cache that has a file behind it: Cached + Buffers - Shmem.
    #[must_use]
    pub fn file(&self) -> Bytes {
        self.cached + self.buffers - self.shmem
    }

    /// Cache that must be written before it can go.
    #[must_use]
    pub fn unwritten(&self) -> Bytes {
        self.dirty + self.writeback
    }

    /// What this guest can give without swapping and without killing.
    ///
    /// MemAvailable is already free memory less the watermarks' reserve plus the half (or more) of cache and slab that
    /// can go (Linux `si_mem_available`); it counts dirty cache as if it were clean, so that part comes off here.
    /// Zero when the kernel does not say: a floor nobody stated is everything.
    #[must_use]
    pub fn giveable(&self) -> Bytes {
        self.available.unwrap_or(Bytes::ZERO) - self.unwritten()
    }

    /// What programs have touched: anonymous and shared memory, here or in swap.
    #[must_use]
    pub fn resident(&self) -> Bytes {
        self.anon + self.shmem + (self.swap_total - self.swap_free)
    }
}

/// The open file.
#[derive(Debug)]
pub struct MeminfoSensor(ProcFile);

impl MeminfoSensor {
    /// Opens it.
    ///
    /// # Errors
    /// `/proc/meminfo` is missing or cannot be read: nothing works without it.
    pub fn open(root: &Path) -> Result<Self, SensorError> {
        ProcFile::open(root, "proc/meminfo")?.map(Self).ok_or_else(|| SensorError::Format {
            path: root.join("proc/meminfo"),
            what: "is missing; is /proc mounted?",
        })
    }

    /// The sizes now.
    ///
    /// # Errors
    /// The file cannot be read, or is not meminfo.
    pub fn read(&self, scratch: &mut Scratch) -> Result<Meminfo, SensorError> {
        Meminfo::parse(self.0.read(scratch)?).ok_or_else(|| self.0.odd("has no MemTotal or MemFree line"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"MemTotal:         512000 kB\nMemFree:          100000 kB\nMemAvailable:     300000 kB\n\
        Buffers:            1000 kB\nCached:           200000 kB\nInactive(file):    90000 kB\nDirty:              5000 kB\n\
        Writeback:          1000 kB\nAnonPages:        120000 kB\nShmem:             20000 kB\nCommitted_AS:     400000 kB\n\
        SwapTotal:         50000 kB\nSwapFree:          40000 kB\nHugePages_Total:       0\n";

    #[test]
    fn sizes_become_bytes() {
        let m = Meminfo::parse(TEXT).unwrap();
        assert_eq!(m.total, Bytes(512_000 << 10));
        assert_eq!(m.file(), Bytes(181_000 << 10));
        assert_eq!(m.giveable(), Bytes(294_000 << 10));
        assert_eq!(m.resident(), Bytes(150_000 << 10));
    }

    #[test]
    fn without_memavailable_nothing_is_giveable() {
        let m = Meminfo::parse(b"MemTotal: 5 kB\nMemFree: 4 kB\n").unwrap();
        assert_eq!((m.available, m.giveable()), (None, Bytes::ZERO));
    }

    #[test]
    fn what_is_not_meminfo_is_refused() {
        assert_eq!(Meminfo::parse(b"some avg10=0.00\n"), None);
    }
}
