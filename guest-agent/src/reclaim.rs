//! Dropping cold page cache when the host asks for it, so that the balloon does not have to fight for it.
//!
//! `memory.reclaim` of the root cgroup (Linux 5.19) does exactly that. It blocks, so it runs on a thread of its own,
//! in small chunks; a demand, or free memory falling by somebody else's hand, stops it between two of them. It must
//! never swap: a guest with swap is asked for inactive file pages only, and where the kernel knows `swappiness=`
//! (6.9 and later) it is told 0.

use crate::sensors::meminfo::MeminfoSensor;
use crate::sensors::{Meminfo, Scratch, SensorError};
use ballast_protocol::{Bytes, Reclaim, Reclaimed};
use rustix::io::Errno;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// One write: about 10 ms of work under TCG, so that a stop is heard soon.
const CHUNK: Bytes = Bytes::mib(8);
/// Cache that is always left: the pages of the programs that run.
const KEPT: Bytes = Bytes::mib(16);

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ReclaimError {
    /// The file cannot be opened or written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What was freed cannot be measured.
    #[error("cannot measure the page cache")]
    Measure(#[from] SensorError),
}

/// Stops a running order. Clones stop the same.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Stops it before its next chunk.
    pub fn now(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What may be dropped now without swapping: with swap only what is inactive, for the kernel would rather swap than
/// take an active page; without swap all clean cache.
fn droppable(m: &Meminfo) -> Bytes {
    let cache = if m.swap_total > Bytes::ZERO { m.inactive_file } else { m.file() };
    cache - m.unwritten() - KEPT
}

/// Carries out `order`; blocks for as long as it takes.
///
/// # Errors
/// `memory.reclaim` cannot be written, or nothing can be measured.
pub fn carry_out(root: &Path, cgroups: &Path, order: Reclaim, stop: &Stop) -> Result<Reclaimed, ReclaimError> {
    let path = cgroups.join("memory.reclaim");
    let failed = |source| ReclaimError::Write { path: path.clone(), source };
    let mut file = File::options().write(true).open(&path).map_err(failed)?;
    let meminfo = MeminfoSensor::open(root)?;
    let mut scratch = Scratch::default();
    let mut knows_swappiness = true;
    let before = meminfo.read(&mut scratch)?;
    let mut asked = Bytes::ZERO;
    let mut exhausted = false;
    while !stop.is_set() && !exhausted {
        let now = meminfo.read(&mut scratch)?;
        // Linux 6.1 drops half as much again as it is asked for: what counts against the order is what went.
        let left = order.size - asked.max(before.file() - now.file());
        if left == Bytes::ZERO {
            break;
        }
        let chunk = CHUNK.min(left).min(droppable(&now)).round_down(Bytes(4096));
        if chunk == Bytes::ZERO {
            exhausted = true;
            break;
        }
        match write_chunk(&mut file, chunk, &mut knows_swappiness) {
            Ok(()) => asked += chunk,
            Err(e) if e.raw_os_error() == Some(Errno::AGAIN.raw_os_error()) => exhausted = true,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(failed(e)),
        }
    }
    let after = meminfo.read(&mut scratch)?;
    Ok(Reclaimed { id: order.id, size: before.file() - after.file(), exhausted })
}

fn write_chunk(file: &mut File, chunk: Bytes, knows_swappiness: &mut bool) -> std::io::Result<()> {
    if *knows_swappiness {
        match file.write(format!("{} swappiness=0", chunk.0).as_bytes()) {
            Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => *knows_swappiness = false,
            other => return other.map(drop),
        }
    }
    file.write(chunk.0.to_string().as_bytes()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(meminfo: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("proc")).unwrap();
        std::fs::write(dir.path().join("proc/meminfo"), meminfo).unwrap();
        std::fs::write(dir.path().join("memory.reclaim"), "").unwrap();
        dir
    }

    const CACHE: &str = "MemTotal: 512000 kB\nMemFree: 10000 kB\nCached: 204800 kB\nInactive(file): 40960 kB\n";

    #[test]
    fn with_swap_only_inactive_cache_may_go_and_without_all_but_a_rest() {
        let m = |extra: &str| Meminfo::parse(format!("{CACHE}{extra}").as_bytes()).unwrap();
        assert_eq!(droppable(&m("")), Bytes::mib(200 - 16));
        assert_eq!(droppable(&m("SwapTotal: 1024 kB\n")), Bytes::mib(40 - 16));
        assert_eq!(droppable(&m("Dirty: 204800 kB\n")), Bytes::ZERO);
    }

    #[test]
    fn an_order_is_carried_out_in_chunks_and_a_set_stop_carries_out_nothing() {
        let dir = tree(CACHE);
        let order = Reclaim { id: 7, size: Bytes::mib(20) };
        let done = carry_out(dir.path(), dir.path(), order, &Stop::default()).unwrap();
        assert_eq!(done, Reclaimed { id: 7, size: Bytes::ZERO, exhausted: false }, "nothing vanished from this tree");
        let written = std::fs::read_to_string(dir.path().join("memory.reclaim")).unwrap();
        let chunks: Vec<&str> = written.split(" swappiness=0").filter(|c| !c.is_empty()).collect();
        assert_eq!(chunks, ["8388608", "8388608", "4194304"]);

        let dir = tree(CACHE);
        let stop = Stop::default();
        stop.now();
        carry_out(dir.path(), dir.path(), order, &stop).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("memory.reclaim")).unwrap(), "");
    }

    #[test]
    fn nothing_to_drop_is_exhausted_and_a_missing_file_is_named() {
        let dir = tree("MemTotal: 512000 kB\nMemFree: 10000 kB\nCached: 10000 kB\n");
        let order = Reclaim { id: 1, size: Bytes::mib(20) };
        assert!(carry_out(dir.path(), dir.path(), order, &Stop::default()).unwrap().exhausted);
        std::fs::remove_file(dir.path().join("memory.reclaim")).unwrap();
        let error = carry_out(dir.path(), dir.path(), order, &Stop::default()).unwrap_err();
        assert!(error.to_string().contains("memory.reclaim"), "{error}");
    }
}
