//! Commands that run long: the servers and loaders of the lab. Each has a control group of its own below
//! `workload.slice`, because that is the only hold on a server that made itself a daemon: whatever the command
//! started ends with it.

use crate::{STACK, counters};
use anyhow::{Context, Result, bail};
use ballast_tests::wire::{Command, Executed};
use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

const SLICE: &str = "/sys/fs/cgroup/workload.slice";
const OUTPUT: usize = 64 << 10;
const DAY: u32 = 86_400;
/// For processes that were killed to be gone: they may have much memory to give back.
const GONE: Duration = Duration::from_secs(20);
const ENTERED: Duration = Duration::from_secs(2);
/// The shell itself moves into its group, and is fit to be killed from then on; `$0` is the group, `$1` the command.
const ENTER: &str = "echo 0 >/proc/self/oom_score_adj && echo 0 >\"$0/cgroup.procs\" && exec";

fn path(id: u64) -> String {
    format!("{SLICE}/exec-{id}")
}

/// Makes the group for the command of a request.
pub fn group(id: u64) -> Result<String> {
    let path = path(id);
    fs::create_dir(&path).with_context(|| path.clone())?;
    Ok(path)
}

/// Kills the command of a request with all it started; false when the request has no group.
pub fn cancel(id: u64) -> Result<bool> {
    let group = path(id);
    // It enters its group as soon as its shell runs.
    let deadline = Instant::now() + ENTERED;
    while fs::read_to_string(format!("{group}/cgroup.procs")).is_ok_and(|procs| procs.is_empty()) {
        if Instant::now() > deadline {
            bail!("the command of request {id} does not start");
        }
        thread::sleep(Duration::from_millis(2));
    }
    if !Path::new(&group).exists() {
        return Ok(false);
    }
    fs::write(format!("{group}/cgroup.kill"), "1").with_context(|| format!("cannot kill {group}"))?;
    Ok(true)
}

/// Kills what is left in a group, waits until it is gone, and removes the group.
pub fn end(group: &str) {
    let _ = fs::write(format!("{group}/cgroup.kill"), "1");
    let deadline = Instant::now() + GONE;
    // A group with processes in it cannot be removed.
    while Path::new(group).exists() && fs::remove_dir(group).is_err() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(2));
    }
}

/// Runs a command to its end, or to the end of its time.
pub fn run(command: &Command, group: &str) -> Result<Executed> {
    let kills_before = counters::oom_kills();
    let begun = Instant::now();
    let (mut output, end) = std::io::pipe()?;
    let enter = if command.chroot { "chroot /w /bin/sh -c \"$1\"" } else { "/bin/sh -c \"$1\"" };
    let mut child = std::process::Command::new("/bin/sh")
        .args(["-c", &format!("{ENTER} {enter}"), group, &command.command])
        .env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .env("HOME", "/tmp")
        .stdin(Stdio::null())
        .stdout(end.try_clone()?)
        .stderr(end)
        .spawn()
        .context("/bin/sh")?;
    let overdue = Arc::new(AtomicBool::new(false));
    let (done, ended) = channel::<()>();
    let (late, kill) = (Arc::clone(&overdue), format!("{group}/cgroup.kill"));
    let limit = Duration::from_secs(command.secs.min(DAY).into());
    let watch = move || {
        if ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            late.store(true, Ordering::Relaxed);
            let _ = fs::write(kill, "1");
        }
    };
    let guard = thread::Builder::new().stack_size(STACK).spawn(watch).context("cannot watch the time")?;
    let read = move || {
        let mut kept = Vec::new();
        let mut piece = [0; 4096];
        while let Ok(n @ 1..) = output.read(&mut piece) {
            kept.extend_from_slice(&piece[..n]);
            let excess = kept.len().saturating_sub(OUTPUT);
            kept.drain(..excess);
        }
        kept
    };
    let reader = thread::Builder::new().stack_size(STACK).spawn(read).context("cannot read its output")?;
    let status = child.wait()?;
    let took_us = begun.elapsed().as_micros() as u64;
    // A server that it left running would hold its output open for ever.
    self::end(group);
    let output = reader.join().expect("it has nothing to panic of");
    drop(done);
    let _ = guard.join();
    Ok(Executed {
        status: status.code(),
        signal: status.signal(),
        overdue: overdue.load(Ordering::Relaxed),
        oom_kills: counters::oom_kills().saturating_sub(kills_before),
        took_us,
        output: String::from_utf8_lossy(&output).into_owned(),
    })
}
