//! `/proc/vmstat`: events since boot, and page counts that explain why free memory moved.
//!
//! 49 us a look under TCG: read when slack falls, to tell use from cache and from the balloon, never at poll rate.

use super::file::{ProcFile, Scratch, SensorError, lines, number};
use ballast_protocol::{Bytes, Counters, Pages};
use std::path::Path;

/// What the agent uses of `/proc/vmstat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Vmstat {
    /// Events since boot, as the wire carries them.
    pub counters: Counters,
    /// nr_file_pages - nr_shmem: page cache with a file behind it.
    pub file: Bytes,
    /// nr_inactive_file - nr_dirty - nr_writeback: cache that goes without effort.
    pub droppable: Bytes,
}

impl Vmstat {
    /// Reads the text of the file. What this kernel lacks stays `None`.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let mut c = Counters::default();
        let (mut cached, mut shmem, mut inactive, mut unwritten) = (0, 0, 0, 0u64);
        for line in lines(text) {
            let Some(space) = line.iter().position(|b| *b == b' ') else { continue };
            let Some(value) = number(&line[space + 1..]) else { continue };
            match &line[..space] {
                b"nr_file_pages" => cached = value,
                b"nr_shmem" => shmem = value,
                b"nr_inactive_file" => inactive = value,
                b"nr_dirty" | b"nr_writeback" => unwritten = unwritten.saturating_add(value),
                b"workingset_refault_file" => c.refault_file = Some(value),
                b"workingset_refault_anon" => c.refault_anon = Some(value),
                b"pgscan_direct" => c.scan_direct = Some(value),
                b"pgmajfault" => c.major_fault = Some(value),
                b"pswpin" => c.swap_in = Some(value),
                b"pswpout" => c.swap_out = Some(value),
                b"oom_kill" => c.oom_kill = Some(value),
                b"balloon_inflate" => c.balloon_inflate = Some(value),
                b"balloon_deflate" => c.balloon_deflate = Some(value),
                // One line per zone since Linux 4.8, a single `allocstall` before.
                key if key.starts_with(b"allocstall") => {
                    c.alloc_stall = Some(c.alloc_stall.unwrap_or(0).saturating_add(value));
                }
                _ => {}
            }
        }
        Self {
            counters: c,
            file: Bytes::from(Pages(cached)) - Bytes::from(Pages(shmem)),
            droppable: Bytes::from(Pages(inactive)) - Bytes::from(Pages(unwritten)),
        }
    }

    /// What the balloon holds by the guest's own count; `None` when this kernel does not count.
    #[must_use]
    pub fn ballooned(&self) -> Option<Bytes> {
        let (taken, given) = (self.counters.balloon_inflate?, self.counters.balloon_deflate?);
        Some(Bytes::from(Pages(taken.saturating_sub(given))))
    }
}

/// The open file.
#[derive(Debug)]
pub struct VmstatSensor(ProcFile);

impl VmstatSensor {
    /// Opens it; `None` when this kernel lacks it (`CONFIG_VM_EVENT_COUNTERS=n` keeps the file, so hardly ever).
    ///
    /// # Errors
    /// It is there and cannot be opened.
    pub fn open(root: &Path) -> Result<Option<Self>, SensorError> {
        Ok(ProcFile::open(root, "proc/vmstat")?.map(Self))
    }

    /// The counters now.
    ///
    /// # Errors
    /// The kernel refuses to read it.
    pub fn read(&self, scratch: &mut Scratch) -> Result<Vmstat, SensorError> {
        Ok(Vmstat::parse(self.0.read(scratch)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalls_are_summed_over_zones_and_absent_counters_stay_absent() {
        let v = Vmstat::parse(b"nr_file_pages 100\nnr_shmem 40\nnr_inactive_file 30\nnr_dirty 4\nnr_writeback 1\nallocstall_normal 3\nallocstall_movable 4\npgscan_direct 9\n");
        assert_eq!(v.counters.alloc_stall, Some(7));
        assert_eq!(v.counters.scan_direct, Some(9));
        assert_eq!(v.counters.oom_kill, None);
        assert_eq!((v.file, v.droppable), (Bytes(60 * 4096), Bytes(25 * 4096)));
        assert_eq!(v.ballooned(), None);
    }

    #[test]
    fn the_balloon_is_what_was_taken_less_what_was_given() {
        let v = Vmstat::parse(b"balloon_inflate 1000\nballoon_deflate 256\nballoon_migrate 0\n");
        assert_eq!(v.ballooned(), Some(Bytes(744 * 4096)));
        // Read between the two counters' updates: never a huge number.
        assert_eq!(Vmstat::parse(b"balloon_inflate 1\nballoon_deflate 2\n").ballooned(), Some(Bytes::ZERO));
    }
}
