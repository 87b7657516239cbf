//! What a process costs, by `/proc`.

use anyhow::{Context, Result};
use ballast_protocol::{Bytes, KiB};
use serde::Serialize;
use std::path::Path;
use std::time::{Duration, Instant};

/// What a process has at one moment.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Usage {
    /// `Rss` of smaps_rollup.
    pub resident: Bytes,
    /// `Pss`: what is shared with others counts in part.
    pub proportional: Bytes,
    /// Its threads.
    pub threads: usize,
    /// Its open file descriptors.
    pub files: usize,
}

impl Usage {
    /// Of a process now.
    ///
    /// # Errors
    /// It is gone, or may not be looked at.
    pub fn of(pid: u32) -> Result<Self> {
        let proc = Path::new("/proc").join(pid.to_string());
        let path = proc.join("smaps_rollup");
        let rollup = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let size = |key: &str| -> Result<Bytes> {
            let line = rollup.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
            let number = line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse().ok());
            Ok(KiB(number.with_context(|| format!("{} has no {key}", path.display()))?).into())
        };
        let count = |folder: &str| -> Result<usize> { Ok(std::fs::read_dir(proc.join(folder))?.count()) };
        Ok(Self { resident: size("Rss")?, proportional: size("Pss")?, threads: count("task")?, files: count("fd")? })
    }
}

/// A process's CPU time between two moments.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pid: u32,
    at: Instant,
    cpu: Duration,
}

impl Cost {
    /// Begins.
    ///
    /// # Errors
    /// There is no such process.
    pub fn begin(pid: u32) -> Result<Self> {
        Ok(Self { pid, at: Instant::now(), cpu: cpu(pid)? })
    }

    /// Per cent of one core since then.
    ///
    /// # Errors
    /// The process is gone.
    pub fn percent(&self) -> Result<f64> {
        let used = cpu(self.pid)?.saturating_sub(self.cpu);
        Ok(100.0 * used.as_secs_f64() / self.at.elapsed().as_secs_f64())
    }
}

/// User and system time (proc_pid_stat(5), fields 14 and 15).
fn cpu(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    // The name, field 2, may have spaces and parentheses in it.
    let (_, fields) = stat.rsplit_once(')').with_context(|| format!("{path}: no name"))?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |n: usize| -> Result<u64> { Ok(fields.get(n - 3).context("too short")?.parse()?) };
    let ticks = ticks(14)? + ticks(15)?;
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_can_be_looked_at() {
        let pid = std::process::id();
        let cost = Cost::begin(pid).expect("this process lives");
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(100) {
            std::hint::spin_loop();
        }
        let percent = cost.percent().expect("this process lives");
        assert!(percent > 5.0, "{percent}");
        let usage = Usage::of(pid).expect("this process lives");
        assert!(usage.resident >= usage.proportional && usage.threads >= 1 && usage.files >= 3, "{usage:?}");
        assert!(Usage::of(u32::MAX).is_err());
    }
}
