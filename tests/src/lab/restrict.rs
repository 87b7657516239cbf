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
use std::time::Duration;

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
        Self::set(processes)
    }

    fn set(processes: &[(u32, Bytes)]) -> Result<Self> {
        remove_left(false);
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

/// Removes the groups of owners that are no more, and with `own` those of this process, whose processes have been killed: a group
/// that is left behind holds nothing, but is seen by everybody.
pub fn remove_left(own: bool) {
    let mine = std::process::id();
    for base in ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"] {
        for entry in fs::read_dir(base).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let owner = name.strip_prefix(PREFIX).and_then(|n| n.split('-').next()?.parse::<u32>().ok());
            let Some(owner) = owner else { continue };
            if (own && owner == mine) || !Path::new(&format!("/proc/{owner}")).exists() {
                // It takes a moment until a killed process has left it.
                let _ = (0..100).any(|_| {
                    fs::remove_dir(entry.path()).map_err(|_| std::thread::sleep(Duration::from_millis(20))).is_ok()
                });
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    struct Sleeper(Child);

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// The cgroup of a process that is ours, if it is in one.
    fn group_of(pid: u32) -> Option<String> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        text.lines().find(|l| l.contains(PREFIX)).map(|l| l.rsplit(':').next().unwrap().to_owned())
    }

    #[test]
    fn a_limit_is_set_on_this_host_and_goes_with_its_owner() {
        if let Err(why) = possible().map(drop)
            && !why.to_string().contains("swap")
        {
            // Containers without the memory controller: said, so that nobody takes this for a test.
            println!("SKIPPED: {why}");
            return;
        }
        let sleeper = Sleeper(Command::new("sleep").arg("60").spawn().unwrap());
        let limits = match Limits::set(&[(sleeper.0.id(), Bytes::mib(64))]) {
            Ok(limits) => limits,
            Err(why) if !rustix::process::getuid().is_root() => return println!("SKIPPED: {why:#}"),
            Err(why) => panic!("{why:#}"),
        };
        let group = group_of(sleeper.0.id()).expect("it is in a group of ours");
        let name = group.rsplit('/').next().unwrap().to_owned();
        drop(limits);
        assert_eq!(group_of(sleeper.0.id()), None, "it is back where it was");
        for root in ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"] {
            assert!(!Path::new(root).join(&name).exists(), "{root}/{name} is left");
        }
        // Of an owner that was killed the next one removes what is left.
        let mut owner = Command::new("true").spawn().unwrap();
        owner.wait().unwrap();
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let left = if v1.exists() { v1 } else { Path::new("/sys/fs/cgroup") }.join(format!("{PREFIX}{}-1", owner.id()));
        fs::create_dir(&left).unwrap();
        remove_left(false);
        assert!(!left.exists(), "{} is left", left.display());
    }

    #[test]
    fn without_swap_the_arm_is_refused_with_the_reason() {
        if fs::read_to_string("/proc/swaps").unwrap().lines().count() < 2 {
            let why = Limits::new(&[]).unwrap_err().to_string();
            assert!(why.contains("swap") || why.contains("memory controller"), "{why}");
        }
    }
}
