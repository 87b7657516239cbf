//! The guest's `ballast-testd`, spoken to over the second serial line.

use crate::children::log_tail;
use crate::network::iperf3_answer;
use crate::wire::{
    AgentState, Asked, Command, Counters, End, Executed, Failure, FileRead, Job, Peer, Reply, Request, Sample, Shell,
    Swarm, Touch, Touched, Worked,
};
use anyhow::{Context, Result, anyhow};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::marker::PhantomData;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

/// For what the guest does at once. Generous: two busy guests share two cores under emulation.
const PATIENCE: Duration = Duration::from_secs(20);
/// For a workload whose length nothing bounds but the guest's memory.
pub(crate) const WORK_PATIENCE: Duration = Duration::from_secs(120);
/// Lines of the console that an error quotes.
const TAIL: usize = 15;

type Waiting = Arc<Mutex<HashMap<u64, mpsc::Sender<Result<serde_json::Value, Failure>>>>>;

/// A handle that can be cloned and used from several threads.
#[derive(Clone, Debug)]
pub struct Guest {
    name: String,
    console: PathBuf,
    line: Arc<Mutex<UnixStream>>,
    waiting: Waiting,
    /// Told each time `ballast-testd` starts.
    ready: Arc<Mutex<mpsc::Receiver<()>>>,
    next: Arc<AtomicU64>,
    servers: Servers,
}

/// The answers to come of servers that were started, by their name.
type Servers = Arc<Mutex<BTreeMap<String, mpsc::Receiver<Result<serde_json::Value, Failure>>>>>;

/// An answer that is still to come.
#[derive(Debug)]
#[must_use]
pub struct Pending<T> {
    guest: Guest,
    id: u64,
    what: String,
    answer: mpsc::Receiver<Result<serde_json::Value, Failure>>,
    kind: PhantomData<T>,
}

impl<T: DeserializeOwned> Pending<T> {
    /// Waits for the answer.
    ///
    /// # Errors
    /// It does not come in time; the workload failed or was killed ([`Failure`] is the cause then).
    pub fn wait(self, patience: Duration) -> Result<T> {
        match self.answer.recv_timeout(patience) {
            Ok(Ok(value)) => serde_json::from_value(value).with_context(|| self.what.clone()),
            Ok(Err(failure)) => Err(anyhow!(failure).context(format!("guest {}: {}", self.guest.name, self.what))),
            Err(_) => {
                self.guest.waiting.lock().expect("no holder panics").remove(&self.id);
                Err(anyhow!(
                    "guest {}: no answer to {} after {patience:?}\n{}",
                    self.guest.name,
                    self.what,
                    self.guest.log()
                ))
            }
        }
    }

    /// The answer, if it has come.
    ///
    /// # Errors
    /// As [`Pending::wait`], and when QEMU is gone.
    pub fn poll(&self) -> Result<Option<T>> {
        self.within(Duration::ZERO)
    }

    /// The answer, if it comes in time.
    ///
    /// # Errors
    /// As [`Pending::wait`], and when QEMU is gone.
    pub fn within(&self, patience: Duration) -> Result<Option<T>> {
        match self.answer.recv_timeout(patience) {
            Ok(Ok(value)) => Ok(Some(serde_json::from_value(value).with_context(|| self.what.clone())?)),
            Ok(Err(failure)) => Err(anyhow!(failure).context(format!("guest {}: {}", self.guest.name, self.what))),
            Err(mpsc::RecvTimeoutError::Timeout) => Ok(None),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(anyhow!("guest {}: QEMU is gone", self.guest.name)),
        }
    }

    /// Its number, for [`Guest::cancel`].
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }
}

impl Pending<Touched> {
    /// Waits for the end of the workload; being killed is a result here, not an error.
    ///
    /// # Errors
    /// It does not come in time.
    pub fn outcome(self, patience: Duration) -> Result<Touched> {
        match self.wait(patience) {
            Ok(touched) => Ok(touched),
            Err(e) => match e.downcast_ref::<Failure>() {
                Some(&Failure::Killed { signal, oom_kills, started_us, ended_us }) => Ok(Touched {
                    started_us,
                    ended_us,
                    touched_mib: 0,
                    end: End::Killed { signal, oom_kills },
                    worst_us: 0,
                    p99_us: 0,
                    median_us: 0,
                }),
                _ => Err(e),
            },
        }
    }
}

impl Guest {
    /// Attaches to the serial line's socket; `console` is quoted in errors.
    pub(crate) fn attach(name: &str, socket: &Path, console: &Path) -> Result<Self> {
        let line = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
        let waiting = Waiting::default();
        let (told, ready) = mpsc::channel();
        let reader = BufReader::new(line.try_clone()?);
        let inbox = Arc::clone(&waiting);
        // Ends when QEMU closes its end, at the latest when the machine is dropped.
        std::thread::spawn(move || {
            for text in reader.split(b'\n').map_while(Result::ok) {
                // Noise before ballast-testd has the line in its hands is no reply.
                let Ok(reply) = serde_json::from_slice::<Reply>(&text) else { continue };
                if reply.id == 0 {
                    let _ = told.send(());
                } else if let Some(asker) = inbox.lock().expect("no holder panics").remove(&reply.id) {
                    let _ = asker.send(reply.result);
                }
            }
            inbox.lock().expect("no holder panics").clear();
        });
        Ok(Self {
            name: name.to_owned(),
            console: console.to_owned(),
            line: Arc::new(Mutex::new(line)),
            waiting,
            ready: Arc::new(Mutex::new(ready)),
            next: Arc::new(AtomicU64::new(1)),
            servers: Servers::default(),
        })
    }

    /// The machine's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The end of the guest's console.
    #[must_use]
    pub fn log(&self) -> String {
        log_tail(&self.console, TAIL)
    }

    /// Waits until `ballast-testd` says that it has started: after a boot, and after each reboot.
    ///
    /// # Errors
    /// The guest does not boot in time, or QEMU is gone.
    pub fn wait_boot(&self, patience: Duration) -> Result<()> {
        let ready = self.ready.lock().expect("no holder panics");
        ready.recv_timeout(patience).map_err(|e| {
            let how = match e {
                mpsc::RecvTimeoutError::Timeout => format!("did not boot in {patience:?}"),
                mpsc::RecvTimeoutError::Disconnected => "did not boot: QEMU ended".to_owned(),
            };
            anyhow!("guest {} {how}\n{}", self.name, self.log())
        })
    }

    /// Asks, and leaves the answer for later.
    ///
    /// # Errors
    /// QEMU is gone.
    pub fn ask<T: DeserializeOwned>(&self, request: Request) -> Result<Pending<T>> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let what = format!("{request:?}");
        let mut text = serde_json::to_vec(&Asked { id, request })?;
        text.push(b'\n');
        let (asker, answer) = mpsc::channel();
        self.waiting.lock().expect("no holder panics").insert(id, asker);
        let sent = self.line.lock().expect("no holder panics").write_all(&text);
        sent.with_context(|| format!("guest {}: {what}: QEMU is gone\n{}", self.name, self.log()))?;
        Ok(Pending { guest: self.clone(), id, what, answer, kind: PhantomData })
    }

    fn now<T: DeserializeOwned>(&self, request: Request) -> Result<T> {
        self.ask(request)?.wait(PATIENCE)
    }

    /// Whether `ballast-testd` answers.
    ///
    /// # Errors
    /// It does not.
    pub fn ping(&self) -> Result<()> {
        self.now(Request::Ping)
    }

    /// CLOCK_MONOTONIC of the guest in microseconds, with the harness's moments before and after.
    ///
    /// # Errors
    /// No answer.
    pub fn clock(&self) -> Result<(Instant, u64, Instant)> {
        let before = Instant::now();
        Ok((before, self.now(Request::Clock)?, Instant::now()))
    }

    /// How fast its clock runs: 1 is right.
    ///
    /// # Errors
    /// It does not answer.
    pub fn clock_rate(&self) -> Result<f64> {
        let middle = |(before, _, after): &(Instant, u64, Instant)| *before + (*after - *before) / 2;
        let first = self.clock()?;
        std::thread::sleep(Duration::from_millis(300));
        let second = self.clock()?;
        let here = middle(&second) - middle(&first);
        Ok(second.1.saturating_sub(first.1) as f64 / 1e6 / here.as_secs_f64())
    }

    /// The guest's counters.
    ///
    /// # Errors
    /// No answer.
    pub fn counters(&self) -> Result<Counters> {
        self.now(Request::Counters)
    }

    /// The few counters that the lab looks at while a guest works.
    ///
    /// # Errors
    /// No answer.
    pub fn sample(&self) -> Result<Sample> {
        self.now(Request::Sample)
    }

    /// Starts a job; that it was killed or refused memory is in its answer.
    ///
    /// # Errors
    /// QEMU is gone.
    pub fn job(&self, job: Job) -> Result<Pending<Worked>> {
        self.ask(Request::Job(job))
    }

    /// Starts a command in `workload.slice`; see [`Command`]. A server is started so too: when its answer comes, it is
    /// gone, and [`Guest::cancel`] ends it.
    ///
    /// # Errors
    /// QEMU is gone.
    pub fn exec(&self, command: Command) -> Result<Pending<Executed>> {
        self.ask(Request::Exec(command))
    }

    /// Starts a command that is to run for ever, unless one of that name runs; whether it was started.
    ///
    /// # Errors
    /// QEMU is gone.
    pub fn serve(&self, name: &str, command: Command) -> Result<bool> {
        if self.server_lives(name) {
            return Ok(false);
        }
        let pending = self.exec(command)?;
        self.servers.lock().expect("no holder panics").insert(name.to_owned(), pending.answer);
        Ok(true)
    }

    /// Whether the server of that name runs. Asks nothing of the guest.
    #[must_use]
    pub fn server_lives(&self, name: &str) -> bool {
        let servers = self.servers.lock().expect("no holder panics");
        servers.get(name).is_some_and(|end| matches!(end.try_recv(), Err(mpsc::TryRecvError::Empty)))
    }

    /// Starts a touch of memory.
    ///
    /// # Errors
    /// QEMU is gone.
    pub fn touch(&self, touch: Touch) -> Result<Pending<Touched>> {
        self.ask(Request::Touch(touch))
    }

    /// Touches so many MiB as fast as possible, waits for the end. A kill or a refusal is a result.
    ///
    /// # Errors
    /// The guest does not answer.
    pub fn burst(&self, mib: u64) -> Result<Touched> {
        self.touch(Touch { mib, ..Touch::default() })?.outcome(WORK_PATIENCE)
    }

    /// Grows by `mib` at a rate in pieces of 4 MiB, as a program with many allocations does; waits for the end.
    ///
    /// # Errors
    /// The guest does not answer.
    pub fn ramp(&self, mib: u64, rate_mib_s: u64) -> Result<Touched> {
        let touch = Touch { mib, rate_mib_s: Some(rate_mib_s), chunk_mib: Some(4), hold_ms: 0 };
        self.touch(touch)?.outcome(WORK_PATIENCE + Duration::from_secs(mib / rate_mib_s.max(1)))
    }

    /// Touches so many MiB and keeps them until cancelled; returns the request's number once all is touched.
    ///
    /// # Errors
    /// Not everything could be touched.
    pub fn hold(&self, mib: u64) -> Result<u64> {
        let pending = self.touch(Touch { mib, hold_ms: 3_600_000, ..Touch::default() })?;
        let id = pending.id();
        match pending.wait(WORK_PATIENCE)?.end {
            End::Whole => Ok(id),
            end => Err(anyhow!("guest {}: holding {mib} MiB: {end:?}\n{}", self.name, self.log())),
        }
    }

    /// Kills the workload of a request.
    ///
    /// # Errors
    /// It has none.
    pub fn cancel(&self, id: u64) -> Result<()> {
        self.now(Request::Cancel { id })
    }

    /// Whether one mapping of so many MiB is granted; the reason when not. Nothing is touched.
    ///
    /// # Errors
    /// The guest does not answer.
    pub fn probe(&self, mib: u64) -> Result<std::result::Result<(), String>> {
        match self.now::<()>(Request::Probe { mib }) {
            Ok(()) => Ok(Ok(())),
            Err(e) => match e.downcast_ref::<Failure>() {
                Some(Failure::Failed(reason)) => Ok(Err(reason.clone())),
                _ => Err(e),
            },
        }
    }

    /// Reads so many MiB of a file or device (of [`crate::NOISE_FILE`], for one) through the page cache.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self, path: &str, mib: u64) -> Result<FileRead> {
        self.ask(Request::Read { path: path.to_owned(), mib })?.wait(WORK_PATIENCE)
    }

    /// Starts so many processes of `mib` MiB each that are alive at once.
    ///
    /// # Errors
    /// The process that starts them failed or was killed.
    pub fn procs(&self, count: u32, mib: u64) -> Result<Swarm> {
        self.ask(Request::Procs { count, mib })?.wait(WORK_PATIENCE)
    }

    /// Computes on so many threads for so long, in the background.
    ///
    /// # Errors
    /// QEMU is gone.
    pub fn cpu_hogs(&self, count: u32, secs: u32) -> Result<Pending<()>> {
        self.ask(Request::CpuHogs { count, secs })
    }

    /// Runs a shell command beside `ballast-testd`, safe from the OOM killer.
    ///
    /// # Errors
    /// The guest does not answer; the command's own failure is in the result.
    pub fn sh(&self, command: &str) -> Result<Shell> {
        self.ask(Request::Sh { command: command.to_owned(), workload: false })?.wait(WORK_PATIENCE)
    }

    /// Runs a shell command that must succeed, and returns its output.
    ///
    /// # Errors
    /// It fails.
    pub fn sh_ok(&self, command: &str) -> Result<String> {
        let Shell { status, output } = self.sh(command)?;
        match status {
            0 => Ok(output),
            _ => Err(anyhow!("guest {}: `{command}` ended with {status}: {output}\n{}", self.name, self.log())),
        }
    }

    /// Starts the real iperf3 as a server on a port, as fit to be killed as any workload; a machine must have been
    /// built with a network. One server serves one client at a time.
    ///
    /// # Errors
    /// It does not listen.
    pub fn iperf3_server(&self, port: u16) -> Result<()> {
        // /proc/net/tcp: local address and port in hexadecimal, state 0A is LISTEN (proc(5)).
        let command = format!(
            "iperf3 -s -D -p {port} && n=0 && until grep -q ':{port:04X} [0-9A-F:]* 0A' /proc/net/tcp /proc/net/tcp6; do \
             n=$((n+1)); [ $n -lt 500 ] || exit 1; usleep 10000; done"
        );
        let Shell { status, output } =
            self.ask::<Shell>(Request::Sh { command, workload: true })?.wait(WORK_PATIENCE)?;
        match status {
            0 => Ok(()),
            _ => Err(anyhow!("guest {}: iperf3 -s ended with {status}: {output}\n{}", self.name, self.log())),
        }
    }

    /// Runs the real iperf3 in the guest as a client, with `-J` and, for a short answer, `-i 0`; returns what it says.
    ///
    /// # Errors
    /// It fails; in its own words.
    pub fn iperf3(&self, args: &[&str]) -> Result<serde_json::Value> {
        // Indented, a run of some seconds would not fit into an answer.
        let command = format!("iperf3 -J -i 0 {} | tr -d '\\t\\n'", args.join(" "));
        let said = self.ask::<Shell>(Request::Sh { command, workload: true })?.wait(WORK_PATIENCE)?;
        iperf3_answer(said.output.as_bytes()).with_context(|| format!("guest {}: iperf3 {}", self.name, args.join(" ")))
    }

    /// Connects by AF_VSOCK from an ordinary source port as `nobody`.
    ///
    /// # Errors
    /// No connection.
    pub fn vsock_connect_unprivileged(&self, cid: u32, port: u32) -> Result<Peer> {
        self.now(Request::VsockConnect { cid, port })
    }

    /// Starts the guest agent; returns its process id.
    ///
    /// # Errors
    /// It runs already, or is not in the image.
    pub fn start_agent(&self, args: &[&str]) -> Result<u32> {
        self.now(Request::StartAgent { args: args.iter().map(|&a| a.to_owned()).collect() })
    }

    /// Sends the agent a signal (9: at once).
    ///
    /// # Errors
    /// None runs.
    pub fn kill_agent(&self, signal: i32) -> Result<()> {
        self.now(Request::KillAgent { signal })
    }

    /// Whether the agent lives, and how it ended.
    ///
    /// # Errors
    /// The guest does not answer.
    pub fn agent(&self) -> Result<AgentState> {
        self.now(Request::Agent)
    }
}
