//! The arm `cgroup`: each QEMU is limited by a cgroup of the host, as the project's ancestors restricted memory.
//!
//! By `cgroups-rs`, on v2 or v1 as the host has it. Guarded, because on a hybrid host the crate picks v1 whatever is
//! asked, and without a cgroup mount it panics (FACTS, section 4): the mounts are looked at first, and what was set is
//! read back. A limit without swap is no law: at the limit the host kills QEMU. So it needs swap on the host and says so.

use anyhow::{Context, Result, bail};
use ballast_protocol::Bytes;
use cgroups_rs::CgroupPid;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::{Cgroup, hierarchies};
use std::fs;
use std::path::Path;

const PREFIX: &str = "ballast-lab-";

/// Limits that end with this.
pub struct Limits(Vec<(Cgroup, CgroupPid)>);

impl std::fmt::Debug for Limits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Limits").field(&self.0.len()).finish()
    }
}

impl Limits {
    /// Limits each process to so much.
    ///
    /// # Errors
    /// The host has no memory controller or no swap, or refuses.
    pub fn new(processes: &[(u32, Bytes)]) -> Result<Self> {
        possible()?;
        let mut limits = Self(Vec::new());
        for (pid, size) in processes {
            let name = format!("{PREFIX}{}-{pid}", std::process::id());
            let limit = i64::try_from(size.0).context("a limit fits")?;
            // Only memory: on v1 a fresh cpuset takes no task before it is given CPUs.
            let only = Some(vec!["memory".to_owned()]);
            let group = Cgroup::new_with_specified_controllers(hierarchies::auto(), &name, only);
            let group = group.with_context(|| format!("cgroup {name} cannot be made"))?;
            let pid = CgroupPid::from(u64::from(*pid));
            limits.0.push((group, pid));
            let group = &limits.0.last().expect("it has just been pushed").0;
            let memory: &MemController = group.controller_of().context("the cgroup has no memory controller")?;
            memory.set_limit(limit).with_context(|| format!("cgroup {name}: limit {size}"))?;
            group.add_task_by_tgid(pid).with_context(|| format!("cgroup {name}"))?;
            let set = memory.memory_stat().limit_in_bytes;
            // Kernels round to pages.
            if set.abs_diff(limit) > 4096 {
                bail!("cgroup {name}: asked for a limit of {limit} bytes, got {set}");
            }
        }
        Ok(limits)
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        for (group, pid) in &self.0 {
            // Back to where everybody is: a group with tasks cannot be removed. QEMU may be gone already.
            let _ = group.remove_task_by_tgid(*pid);
            let _ = group.delete();
        }
    }
}

fn possible() -> Result<()> {
    let v1 = Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists();
    let v2 = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
        .is_ok_and(|c| c.split_whitespace().any(|c| c == "memory"));
    if !v1 && !v2 {
        bail!("this host has no cgroup memory controller at /sys/fs/cgroup: the arm `cgroup` cannot be run");
    }
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    if swaps.lines().count() < 2 {
        bail!("this host has no swap: at its limit QEMU would be killed; the arm `cgroup` needs some (swapon)");
    }
    Ok(())
}
