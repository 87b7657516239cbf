//! `ballast-testd`: the harness's hand inside a guest. Takes JSON lines from a serial line and answers each.
//!
//! It must go on answering while the guest dies of memory shortage, so it is locked into memory and exempt from the
//! OOM killer. Workloads are processes of their own (this binary again, `ballast-testd work <request>`), in the
//! cgroup `workload.slice` and as fit to be killed as any other; how they end is part of the result.

#![forbid(unsafe_code)]

mod agent;
mod counters;
mod exec;
mod job;
mod work;

use agent::Agent;
use anyhow::{Context, Result, bail};
use ballast_tests::wire::{Asked, Failure, Reply, Request};
use rustix::termios::OptionalActions;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

/// Threads here wait for a child or copy lines; the default of 2 MiB each would be locked into memory.
const STACK: usize = 128 << 10;
/// At most so many workloads at once; far above what any experiment starts.
const MAX_WORKLOADS: usize = 64;

/// Microseconds of CLOCK_MONOTONIC, which every process of the guest shares.
fn now_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["work", request] => work::main(&serde_json::from_str(request)?, ""),
        ["work", request, place] => work::main(&serde_json::from_str(request)?, place),
        [tty] => Daemon::serve(tty),
        _ => bail!("usage: ballast-testd TTY"),
    }
}

/// The serial line towards the harness; one whole line at a time.
#[derive(Clone)]
struct Line(Arc<Mutex<File>>);

impl Line {
    fn reply(&self, id: u64, result: Result<serde_json::Value, Failure>) {
        let mut text = serde_json::to_vec(&Reply { id, result }).expect("a reply has only string keys");
        text.push(b'\n');
        // A harness that is gone is nothing to die of.
        let _ = self.0.lock().expect("no holder of the line panics").write_all(&text);
    }
}

struct Daemon {
    line: Line,
    agent: Agent,
    /// Process ids of the workloads that run, by request.
    workloads: Arc<Mutex<BTreeMap<u64, u32>>>,
}

impl Daemon {
    fn serve(tty: &str) -> Result<()> {
        protect();
        let file = File::options().read(true).write(true).open(tty).with_context(|| tty.to_owned())?;
        let mut mode = rustix::termios::tcgetattr(&file)?;
        mode.make_raw();
        rustix::termios::tcsetattr(&file, OptionalActions::Now, &mode)?;
        let lines = BufReader::new(file.try_clone()?).lines();
        let mut daemon =
            Self { line: Line(Arc::new(Mutex::new(file))), agent: Agent::default(), workloads: Arc::default() };
        daemon.line.reply(0, Ok("ready".into()));
        for line in lines {
            let line = line?;
            match serde_json::from_str::<Asked>(&line) {
                Ok(asked) => daemon.handle(asked),
                Err(e) => daemon.line.reply(0, Err(Failure::Failed(format!("{e}: {line}")))),
            }
        }
        bail!("{tty} is closed")
    }

    fn handle(&mut self, Asked { id, request }: Asked) {
        let result = match request {
            Request::Ping => Ok(serde_json::Value::Null),
            Request::Clock => Ok(now_us().into()),
            Request::Sample => as_json(counters::sample(self.agent.pid())),
            Request::Counters => as_json(counters::read(self.agent.pid())),
            Request::StartAgent { args } => self.agent.start(&args).map(Into::into),
            Request::KillAgent { signal } => self.agent.kill(signal).map(Into::into),
            Request::Agent => as_json(self.agent.state()),
            Request::Cancel { id } => self.cancel(id).map(Into::into),
            workload => match self.start(id, &workload) {
                Ok(()) => return,
                Err(e) => Err(e),
            },
        };
        self.line.reply(id, result.map_err(|e| Failure::Failed(format!("{e:#}"))));
    }

    fn cancel(&self, id: u64) -> Result<()> {
        let pid = self.workloads.lock().expect("no holder panics").get(&id).copied();
        let pid = pid.with_context(|| format!("request {id} has no workload"))?;
        // Who watches over a command lives on, to tell what it said.
        if exec::cancel(id)? {
            return Ok(());
        }
        let pid = rustix::process::Pid::from_raw(pid as i32).context("a process id is positive")?;
        Ok(rustix::process::kill_process(pid, rustix::process::Signal::KILL)?)
    }

    fn start(&self, id: u64, request: &Request) -> Result<()> {
        let mut running = self.workloads.lock().expect("no holder panics");
        if running.len() >= MAX_WORKLOADS {
            bail!("{MAX_WORKLOADS} workloads run already");
        }
        let started_us = now_us();
        let kills_before = counters::oom_kills();
        let place = Place::make(id, request)?;
        let mut command = Command::new("/proc/self/exe");
        command.arg("work").arg(serde_json::to_string(request)?).arg(place.path());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start itself")?;
        running.insert(id, child.id());
        let (line, workloads) = (self.line.clone(), Arc::clone(&self.workloads));
        // Memory that is held on is reported when it is touched; all else when its process is gone and its memory
        // is free again.
        let early = matches!(request, Request::Touch(touch) if touch.hold_ms > 0);
        let wait = move || {
            let mut said = String::new();
            let mut answered = false;
            if let Some(out) = child.stdout.take() {
                let mut out = BufReader::new(out);
                let _ = out.read_line(&mut said);
                if early && said.ends_with('\n') {
                    line.reply(id, parse(&said));
                    answered = true;
                }
                let _ = out.read_to_string(&mut String::new());
            }
            let status = child.wait();
            workloads.lock().expect("no holder panics").remove(&id);
            if answered {
                return;
            }
            let oom_kills = counters::oom_kills().saturating_sub(kills_before);
            let result = match (status, place) {
                (Ok(status), Place::Job(path)) => match parse(&said) {
                    Err(Failure::Failed(e)) if status.signal().is_none() => Err(Failure::Failed(e)),
                    why => job::outcome(&path, status, oom_kills, why.map_or_else(|_| String::new(), text))
                        .and_then(as_json)
                        .map_err(|e| Failure::Failed(format!("{e:#}"))),
                },
                (Ok(status), place) => {
                    if let Place::Group(group) = place {
                        exec::end(&group);
                    }
                    match status.signal() {
                        Some(signal) => Err(Failure::Killed { signal, oom_kills, started_us, ended_us: now_us() }),
                        None => parse(&said),
                    }
                }
                (Err(e), _) => Err(Failure::Failed(format!("cannot wait for the workload: {e}"))),
            };
            line.reply(id, result);
        };
        thread::Builder::new().stack_size(STACK).spawn(wait).context("cannot watch the workload")?;
        Ok(())
    }
}

/// What a workload has to itself, made before it starts and removed when it has ended, however it did.
enum Place {
    None,
    /// The file of a job's times.
    Job(String),
    /// The control group of a command.
    Group(String),
}

impl Place {
    fn make(id: u64, request: &Request) -> Result<Self> {
        Ok(match request {
            Request::Job(job) => {
                let path = format!("/run/job-{id}");
                job::prepare(job, &path)?;
                Self::Job(path)
            }
            Request::Exec(_) => Self::Group(exec::group(id)?),
            _ => Self::None,
        })
    }

    fn path(&self) -> &str {
        match self {
            Self::None => "",
            Self::Job(path) | Self::Group(path) => path,
        }
    }
}

fn text(value: serde_json::Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn parse(said: &str) -> Result<serde_json::Value, Failure> {
    match serde_json::from_str(said) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(Failure::Failed(e)),
        Err(_) => Err(Failure::Failed(format!("the workload ended without a result: `{said}`"))),
    }
}

fn as_json<T: serde::Serialize>(value: T) -> Result<serde_json::Value> {
    Ok(serde_json::to_value(value)?)
}

/// Out of the OOM killer's and of reclaim's reach.
fn protect() {
    if let Err(e) = std::fs::write("/proc/self/oom_score_adj", "-1000") {
        eprintln!("ballast-testd: oom_score_adj: {e}");
    }
    let flags =
        rustix::mm::MlockAllFlags::CURRENT | rustix::mm::MlockAllFlags::FUTURE | rustix::mm::MlockAllFlags::ONFAULT;
    if let Err(e) = rustix::mm::mlockall(flags) {
        eprintln!("ballast-testd: mlockall: {e}");
    }
}
