//! What makes the agent survive: its memory locked, the OOM killer told to pass it by.

use crate::log;
use crate::log::Chain;
use crate::sensors::file::{lines, number};
use ballast_protocol::{Bytes, KiB};
use rustix::mm::{MlockAllFlags, mlockall};
use std::path::Path;

/// Locks memory and sets `oom_score_adj` to -1000. What is refused (no root, no capability) is said, and the agent
/// runs on: a worse agent is better than none.
pub fn harden() {
    // ONFAULT: lock what is used, not every page of every thread's stack; that would be megabytes.
    if let Err(e) = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT) {
        log!(Warn, "memory cannot be locked, the agent may be slow when it matters: {e}");
    }
    if let Err(e) = std::fs::write("/proc/self/oom_score_adj", "-1000") {
        log!(Warn, "the OOM killer may choose the agent: cannot write /proc/self/oom_score_adj: {}", Chain(&e));
    }
}

/// This process' resident memory from `smaps_rollup`; `None` when this kernel lacks it. VmRSS of `/proc/self/status`
/// is batched per CPU and far off for so small a process (FACTS, section 3).
#[must_use]
pub fn resident(root: &Path) -> Option<Bytes> {
    let text = std::fs::read(root.join("proc/self/smaps_rollup")).ok()?;
    let kib = lines(&text).find_map(|line| line.strip_prefix(b"Rss:").and_then(number))?;
    Some(KiB(kib).into())
}
