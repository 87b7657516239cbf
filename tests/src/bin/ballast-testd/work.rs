//! The workloads. Each runs in a process of its own and prints one line: `{"Ok": result}` or `{"Err": reason}`.

use crate::{exec, job, now_us};
use anyhow::{Context, Result, bail};
use ballast_tests::wire::{End, FileRead, Job, Peer, Request, Shell, Swarm, Touch, Touched};
use memmap2::MmapMut;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
const MIB: usize = 1 << 20;
/// No guest of ours is larger; a request beyond it is a mistake.
const MAX_MIB: u64 = 64 << 10;
const SLICE: &str = "/sys/fs/cgroup/workload.slice/cgroup.procs";
const SHELL_LIMIT: Duration = Duration::from_secs(60);
const SHELL_OUTPUT: usize = 8 << 10;
const PEER_PATIENCE: Duration = Duration::from_secs(5);
/// `nobody` on Debian.
const NOBODY: u32 = 65534;

/// Runs one workload and prints what became of it. `place`: what it has to itself, when it needs something.
pub fn main(request: &Request, place: &str) -> Result<()> {
    // A workload that starts others, and is killed, takes them with it.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    // The unprivileged half of a vsock test may change neither, and inherits both.
    if rustix::process::getuid().is_root() {
        // These only watch over what they start.
        let beside =
            matches!(request, Request::Sh { workload: false, .. } | Request::Exec(_) | Request::Job(Job::Swarm { .. }));
        fs::write("/proc/self/oom_score_adj", if beside { "-999" } else { "0" }).context("oom_score_adj")?;
        if !beside {
            fs::write(SLICE, "0").context(SLICE)?;
        }
    }
    say(&run(request, place).map_err(|e| format!("{e:#}")))
}

fn say(result: &Result<serde_json::Value, String>) -> Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, result)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

fn run(request: &Request, place: &str) -> Result<serde_json::Value> {
    Ok(match request {
        Request::Touch(order) => touch(order)?,
        Request::Probe { mib } => {
            drop(map(*mib)?);
            serde_json::Value::Null
        }
        Request::Read { path, mib } => serde_json::to_value(read(path, *mib)?)?,
        Request::Procs { count, mib } => serde_json::to_value(procs(*count, *mib)?)?,
        Request::CpuHogs { count, secs } => {
            cpu_hogs(*count, *secs);
            serde_json::Value::Null
        }
        Request::Job(job) => job::run(job, place)?.into(),
        Request::Exec(command) => serde_json::to_value(exec::run(command, place)?)?,
        Request::Sh { command, .. } => serde_json::to_value(shell(command)?)?,
        Request::VsockConnect { cid, port } => unprivileged(*cid, *port)?,
        other => bail!("{other:?} is no workload"),
    })
}

fn map(mib: u64) -> Result<MmapMut> {
    if mib == 0 || mib > MAX_MIB {
        bail!("{mib} MiB: 1 to {MAX_MIB} are possible");
    }
    Ok(MmapMut::map_anon(mib as usize * MIB)?)
}

/// Touches memory and times every MiB. All that the timing needs is allocated and touched before the first mapping,
/// so that what is measured is only the workload's own memory.
fn touch(order: &Touch) -> Result<serde_json::Value> {
    let chunk = order.chunk_mib.unwrap_or(order.mib).clamp(1, order.mib.max(1));
    let mut times = vec![u32::MAX; order.mib as usize];
    times.fill(0);
    let mut maps = Vec::with_capacity((order.mib / chunk + 1) as usize);
    let mut touched = 0;
    let mut end = End::Whole;
    let started_us = now_us();
    let started = Instant::now();
    while touched < order.mib {
        let mut piece = match map(chunk.min(order.mib - touched)) {
            Ok(piece) => piece,
            Err(e) => {
                end = End::Refused(format!("{e:#}"));
                break;
            }
        };
        for mib in piece.chunks_mut(MIB) {
            if let Some(rate) = order.rate_mib_s.filter(|&r| r > 0) {
                let due = Duration::from_micros(touched * 1_000_000 / rate);
                thread::sleep(due.saturating_sub(started.elapsed()));
            }
            let before = Instant::now();
            for page in mib.chunks_mut(PAGE) {
                page[0] = 1;
            }
            times[touched as usize] = u32::try_from(before.elapsed().as_micros()).unwrap_or(u32::MAX);
            touched += 1;
        }
        maps.push(piece);
    }
    let ended_us = now_us();
    let times = &mut times[..touched as usize];
    times.sort_unstable();
    let at = |share: f64| times.get(((times.len() as f64 * share) as usize).min(times.len().max(1) - 1)).copied();
    let [median_us, p99_us, worst_us] = [0.5, 0.99, 1.0].map(|share| u64::from(at(share).unwrap_or(0)));
    let result = Touched { started_us, ended_us, touched_mib: touched, end, worst_us, p99_us, median_us };
    let result = serde_json::to_value(result)?;
    if order.hold_ms > 0 {
        say(&Ok(result.clone()))?;
        thread::sleep(Duration::from_millis(order.hold_ms));
        std::process::exit(0);
    }
    Ok(result)
}

fn read(path: &str, mib: u64) -> Result<FileRead> {
    let mut file = File::open(path).with_context(|| path.to_owned())?;
    let mut buffer = vec![0; MIB];
    let started = Instant::now();
    let mut bytes = 0;
    while bytes < mib << 20 {
        let wanted = buffer.len().min(((mib << 20) - bytes) as usize);
        match file.read(&mut buffer[..wanted]).with_context(|| path.to_owned())? {
            0 => break,
            n => bytes += n as u64,
        }
    }
    Ok(FileRead { bytes, took_us: started.elapsed().as_micros() as u64 })
}

/// The children are all started before the first is waited for; each says one line when its memory is touched, and
/// holds it until it is killed.
fn procs(count: u32, mib: u64) -> Result<Swarm> {
    let order = Request::Touch(Touch { mib, hold_ms: 60_000, ..Touch::default() });
    let order = serde_json::to_string(&order)?;
    let begun = Instant::now();
    let mut children = Vec::new();
    for _ in 0..count.min(1_000) {
        let child = Command::new("/proc/self/exe").args(["work", &order]).stdout(Stdio::piped()).spawn();
        match child {
            Ok(child) => children.push(child),
            Err(_) => break,
        }
    }
    let started = children.len() as u32;
    let mut ready = 0;
    for child in &mut children {
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            let _ = BufReader::new(out).read_line(&mut line);
        }
        ready += u32::from(line.contains("Whole"));
    }
    let took_us = begun.elapsed().as_micros() as u64;
    let alive = children.iter_mut().filter_map(|c| c.try_wait().ok()).filter(Option::is_none).count() as u32;
    for child in &mut children {
        let _ = child.kill();
        let _ = child.wait();
    }
    Ok(Swarm { started, alive: alive.min(ready), took_us })
}

fn cpu_hogs(count: u32, secs: u32) {
    let end = Instant::now() + Duration::from_secs(secs.min(600).into());
    thread::scope(|scope| {
        for _ in 0..count.min(64) {
            scope.spawn(|| {
                while Instant::now() < end {
                    std::hint::spin_loop();
                }
            });
        }
    });
}

fn shell(command: &str) -> Result<Shell> {
    let (mut output, end) = std::io::pipe()?;
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(end.try_clone()?)
        .stderr(end)
        .process_group(0)
        .spawn()?;
    let group = rustix::process::Pid::from_raw(child.id() as i32).context("a process id is positive")?;
    let (done, ended) = std::sync::mpsc::channel::<()>();
    // Whatever it started goes with it.
    let guard = thread::spawn(move || {
        if ended.recv_timeout(SHELL_LIMIT) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    });
    let mut kept = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(n @ 1..) = output.read(&mut piece) {
        kept.extend_from_slice(&piece[..n]);
        let excess = kept.len().saturating_sub(SHELL_OUTPUT);
        kept.drain(..excess);
    }
    let status = child.wait()?;
    drop(done);
    let _ = guard.join();
    Ok(Shell { status: status.code().unwrap_or(-1), output: String::from_utf8_lossy(&kept).into_owned() })
}

/// Connects as `nobody`, which cannot bind a port below 1024; becoming `nobody` takes a fresh process.
fn unprivileged(cid: u32, port: u32) -> Result<serde_json::Value> {
    if !rustix::process::getuid().is_root() {
        return Ok(serde_json::to_value(connect(cid, port)?)?);
    }
    let request = serde_json::to_string(&Request::VsockConnect { cid, port })?;
    let output = Command::new("/proc/self/exe").args(["work", &request]).uid(NOBODY).gid(NOBODY).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let result: Result<serde_json::Value, String> = serde_json::from_str(&said)
        .with_context(|| format!("as nobody: {said} {}", String::from_utf8_lossy(&output.stderr)))?;
    result.map_err(anyhow::Error::msg)
}

fn connect(cid: u32, port: u32) -> Result<Peer> {
    let mut stream = vsock::VsockStream::connect_with_cid_port(cid, port).context("cannot connect")?;
    let source_port = stream.local_addr()?.port();
    stream.set_read_timeout(Some(PEER_PATIENCE))?;
    let mut received = Vec::new();
    let mut piece = [0; 1024];
    let closed = loop {
        match stream.read(&mut piece) {
            Ok(0) => break true,
            Ok(n) => received.extend_from_slice(&piece[..n]),
            Err(e) => break e.kind() == std::io::ErrorKind::ConnectionReset,
        }
        if received.len() >= 4096 {
            break false;
        }
    };
    Ok(Peer { source_port, received, closed })
}
