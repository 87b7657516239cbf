//! The arm `cgroup`: each QEMU is limited by a cgroup of the host, as the project's ancestors restricted memory.
//!
//! By `cgroups-rs`, on v2 or v1 as the host has it. Guarded, because on a hybrid host the crate picks v1 whatever is
//! asked, and without a cgroup mount it panics (FACTS, section 4): the mounts are looked at first, and what was set is
//! read back. A limit without swap is no law: at the limit the host kills QEMU. So it needs swap on the host and says so.
//!
//! A page is charged to the group of whoever touches it first, and stays there. What a clone is made of was written by the
//! lab. So QEMU is in its group before its guest is aged, which touches nearly all the rest; and no limit is set before
//! the group is seen to hold most of the guest.

use anyhow::{Context, Result, bail};
use ballast_protocol::Bytes;
use cgroups_rs::CgroupPid;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::{Cgroup, hierarchies};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const PREFIX: &str = "ballast-lab-";

/// Limits that end with this.
pub struct Limits(Vec<(Cgroup, CgroupPid)>);

impl std::fmt::Debug for Limits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Limits").field(&self.0.len()).finish()
    }
}

/// One limit.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// What the process may have.
    pub size: Bytes,
    /// What the host holds of its guest now.
    pub resident: Bytes,
}

impl Limits {
    /// A group for each process, without a limit yet.
    ///
    /// # Errors
    /// The host has no memory controller or no swap, or refuses.
    pub fn new(pids: &[u32]) -> Result<Self> {
        possible()?;
        Self::join(pids)
    }

    fn join(pids: &[u32]) -> Result<Self> {
        remove_left(false);
        let mut limits = Self(Vec::new());
        for pid in pids {
            let name = format!("{PREFIX}{}-{pid}", std::process::id());
            // Only memory: on v1 a fresh cpuset takes no task before it is given CPUs.
            let only = Some(vec!["memory".to_owned()]);
            let group = Cgroup::new_with_specified_controllers(hierarchies::auto(), &name, only);
            let group = group.with_context(|| format!("cgroup {name} cannot be made"))?;
            let pid = CgroupPid::from(u64::from(*pid));
            limits.0.push((group, pid));
            let group = &limits.0.last().expect("it has just been pushed").0;
            group.add_task_by_tgid(pid).with_context(|| format!("cgroup {name}"))?;
        }
        Ok(limits)
    }

    /// Limits each process, in the order in which they joined.
    ///
    /// # Errors
    /// Most of a guest is charged to somebody else, so that a limit would not be one; or the host refuses.
    pub fn set(&self, limits: &[Limit]) -> Result<()> {
        for ((group, pid), Limit { size, resident }) in self.0.iter().zip(limits) {
            let name = format!("{PREFIX}{}-{}", std::process::id(), pid.pid);
            let limit = i64::try_from(size.0).context("a limit fits")?;
            let memory: &MemController = group.controller_of().context("the cgroup has no memory controller")?;
            let charged = Bytes(memory.memory_stat().usage_in_bytes);
            if charged.0 < resident.0 / 2 {
                bail!(
                    "cgroup {name}: {charged} are charged to it of {resident} that its guest holds: a limit would not be one"
                );
            }
            memory.set_limit(limit).with_context(|| format!("cgroup {name}: limit {size}"))?;
            let set = memory.memory_stat().limit_in_bytes;
            // Kernels round to pages.
            if set.abs_diff(limit) > 4096 {
                bail!("cgroup {name}: asked for a limit of {limit} bytes, got {set}");
            }
        }
        Ok(())
    }
}

/// Where the kernel tells what is charged to a process's group, bytes. Shared memory that was swapped out still counts as the
/// file's own (`st_blocks`), and here it does not.
#[must_use]
pub fn charged_to(pid: u32) -> PathBuf {
    let name = format!("{PREFIX}{}-{pid}", std::process::id());
    let v1 = Path::new("/sys/fs/cgroup/memory").join(&name).join("memory.usage_in_bytes");
    if v1.exists() { v1 } else { Path::new("/sys/fs/cgroup").join(name).join("memory.current") }
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
    use crate::memory::Memory;
    use std::io::Write;
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    /// Not by a macro: the harness would keep that to itself.
    fn skipped(why: &str) {
        std::io::stderr().write_all(format!("SKIPPED: {why}\n").as_bytes()).unwrap();
    }

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

    /// A group for a process; `None`, and said so that nobody takes this for a test, where there can be none: in containers
    /// without the memory controller, and for others than root.
    fn join(pid: u32) -> Option<Limits> {
        if let Err(why) = possible()
            && !why.to_string().contains("swap")
        {
            skipped(&why.to_string());
            return None;
        }
        match Limits::join(&[pid]) {
            Ok(limits) => Some(limits),
            Err(why) if !rustix::process::getuid().is_root() => {
                skipped(&format!("{why:#}"));
                None
            }
            Err(why) => panic!("{why:#}"),
        }
    }

    /// A process that writes into shared memory of ours when it is told to, as QEMU does.
    fn writer(memory: &Memory) -> Sleeper {
        let script = format!("read go; head -c {} /dev/zero 1<>{}; read end", SHARED.0, memory.path());
        Sleeper(Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).spawn().unwrap())
    }

    fn write_all(writer: &mut Sleeper, memory: &Memory) {
        writeln!(writer.0.stdin.as_mut().unwrap(), "go").unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while memory.resident().unwrap() < SHARED {
            assert!(Instant::now() < deadline, "{} are there", memory.resident().unwrap());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    const SHARED: Bytes = Bytes::mib(64);

    #[test]
    fn what_was_touched_before_the_group_is_not_limited_and_that_is_said() {
        let memory = Memory::new("shared", SHARED).unwrap();
        let mut early = writer(&memory);
        write_all(&mut early, &memory);
        let Some(limits) = join(early.0.id()) else { return };
        let limit = Limit { size: Bytes::mib(48), resident: memory.resident().unwrap() };
        let why = limits.set(&[limit]).expect_err("its memory is charged to this test").to_string();
        assert!(why.contains("charged to it of 64 MiB"), "{why}");
        drop((limits, early, memory));

        let memory = Memory::new("shared", SHARED).unwrap();
        let mut late = writer(&memory);
        let Some(limits) = join(late.0.id()) else { return };
        write_all(&mut late, &memory);
        let charged = fs::read_to_string(charged_to(late.0.id())).unwrap().trim().parse().unwrap();
        assert!((SHARED..SHARED + Bytes::mib(64)).contains(&Bytes(charged)), "{charged} bytes");
        // Above what it has: below it the host would have to swap.
        limits.set(&[Limit { size: Bytes::mib(96), resident: memory.resident().unwrap() }]).unwrap();
    }

    #[test]
    fn a_limit_is_set_on_this_host_and_goes_with_its_owner() {
        let sleeper = Sleeper(Command::new("sleep").arg("60").spawn().unwrap());
        let Some(limits) = join(sleeper.0.id()) else { return };
        limits.set(&[Limit { size: Bytes::mib(64), resident: Bytes::ZERO }]).unwrap();
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
