//! VMs made of a script: a monitor that speaks QMP, a balloon that obeys at once, and an agent that reports.
//!
//! For what a real guest would add nothing to: many VMs at once, migrations that last as long as a test likes, memory that
//! comes and goes, statistics of drivers that no Linux has. The daemon they talk to is the real one.

use super::{Dependant, output, program, wait_for};
use ballast_protocol::{
    BalloonFeatures, Bytes, Capabilities, Counters, DEFAULT_PORT, Deframer, Demand, GuestMessage, Hello, HostMessage,
    Limited, MAX_FRAME, Micros, Source, Telemetry, VERSION, Watermarks, encode,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// What a kernel keeps for itself of 512 MiB, and its page cache and slack (FACTS.md, section 1).
const KERNEL: Bytes = Bytes::mib(43);
const CACHE: Bytes = Bytes::mib(20);
/// How often the agent reports: between the real one's 1 s when idle and 100 ms when busy.
const REPORT: Duration = Duration::from_millis(200);

/// A VM as it stands. Sizes are true: what the guest uses is not free, and cannot be taken.
#[derive(Debug)]
pub struct State {
    pub base: Bytes,
    pub plugged: Bytes,
    pub actual: Bytes,
    pub running: bool,
    pub status: &'static str,
    pub migration: Option<&'static str>,
    /// `guest-stats` as QEMU gives it; `None`: what is true.
    pub statistics: Option<Value>,
    /// What its programs would like to use, and what they do.
    pub wanted: Bytes,
    pub used: Bytes,
    /// All orders, each with the least that the guest could live on then.
    pub orders: Vec<(Bytes, Bytes)>,
    /// Times that the agent was welcomed.
    pub sessions: u64,
    clients: Vec<mpsc::UnboundedSender<String>>,
}

impl State {
    pub fn max(&self) -> Bytes {
        self.base + self.plugged
    }

    /// What the guest cannot live without.
    pub fn floor(&self) -> Bytes {
        self.used + KERNEL
    }

    fn ballooned(&self) -> Bytes {
        self.max() - self.actual
    }

    /// Programs take what they want as far as it is there.
    fn live(&mut self) {
        self.used = self.wanted.min(self.actual - KERNEL - CACHE);
    }

    fn free(&self) -> Bytes {
        self.actual - KERNEL - CACHE - self.used
    }
}

/// A VM. Dropping it ends it.
#[derive(Debug)]
pub struct FakeVm {
    pub name: String,
    folder: PathBuf,
    state: Arc<Mutex<State>>,
    _tasks: JoinSet<()>,
}

impl FakeVm {
    /// A VM whose monitor and vsock are in `folder`; must be called on a runtime.
    pub fn start(folder: &Path, name: &str, size: Bytes, with_agent: bool) -> Self {
        let state = Arc::new(Mutex::new(State {
            base: size,
            plugged: Bytes::ZERO,
            actual: size,
            running: true,
            status: "running",
            migration: None,
            statistics: None,
            wanted: Bytes::mib(20),
            used: Bytes::mib(20),
            orders: Vec::new(),
            sessions: 0,
            clients: Vec::new(),
        }));
        let mut tasks = JoinSet::new();
        let listener = UnixListener::bind(folder.join(format!("{name}.qmp"))).unwrap();
        tasks.spawn(monitor(listener, Arc::clone(&state)));
        if with_agent {
            let path = folder.join(format!("{name}.vsock_{DEFAULT_PORT}"));
            tasks.spawn(agent(path, Arc::clone(&state)));
        }
        Self { name: name.to_owned(), folder: folder.to_owned(), state, _tasks: tasks }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn actual(&self) -> Bytes {
        self.state().actual
    }

    /// How many orders there were.
    pub fn orders(&self) -> usize {
        self.state().orders.len()
    }

    /// QEMU tells all its clients.
    pub fn event(&self, name: &str, data: &Value) {
        let line = json!({ "event": name, "data": data, "timestamp": { "seconds": 0, "microseconds": 0 } }).to_string();
        self.state().clients.retain(|c| c.send(line.clone()).is_ok());
    }

    /// Its table in the daemon's file.
    pub fn table(&self, more: &str) -> String {
        let path = self.folder.display();
        format!("[[vm]]\nname = \"{0}\"\nqmp = \"{path}/{0}.qmp\"\nvsock = \"{path}/{0}.vsock\"\n{more}\n", self.name)
    }
}

async fn monitor(listener: UnixListener, state: Arc<Mutex<State>>) {
    let mut clients = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        clients.spawn(client(stream, Arc::clone(&state)));
    }
}

async fn client(stream: UnixStream, state: Arc<Mutex<State>>) {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    let (events, mut queue) = mpsc::unbounded_channel();
    if writer.write_all(b"{\"QMP\":{}}\r\n").await.is_err() {
        return;
    }
    loop {
        let mut answer = tokio::select! {
            line = lines.next_line() => {
                let Ok(Some(line)) = line else { return };
                let command: Value = serde_json::from_str(&line).unwrap();
                if command["execute"] == "qmp_capabilities" {
                    state.lock().unwrap().clients.push(events.clone());
                }
                let mut answer = carry_out(&command, &mut state.lock().unwrap());
                answer["id"] = command["id"].clone();
                answer.to_string()
            }
            Some(event) = queue.recv() => event,
        };
        answer.push_str("\r\n");
        if writer.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

fn carry_out(command: &Value, vm: &mut State) -> Value {
    let arguments = &command["arguments"];
    let result = match command["execute"].as_str().unwrap() {
        "qmp_capabilities" | "migrate-set-capabilities" | "qom-set" => json!({}),
        "query-status" => json!({ "running": vm.running, "status": vm.status }),
        "query-memory-size-summary" => json!({ "base-memory": vm.base.0, "plugged-memory": vm.plugged.0 }),
        "query-uuid" => json!({ "UUID": "00000000-0000-0000-0000-000000000000" }),
        "query-migrate" => vm.migration.map_or(json!({}), |status| json!({ "status": status })),
        "query-balloon" => json!({ "actual": vm.actual.0 }),
        "qom-list" if arguments["path"] == "/machine/peripheral" => {
            json!([{ "name": "b0", "type": "child<virtio-balloon-pci>" }])
        }
        "qom-list" => json!([]),
        "qom-get" => match arguments["property"].as_str().unwrap() {
            "guest-stats" => vm.statistics.clone().unwrap_or_else(|| statistics(vm)),
            "guest-stats-polling-interval" => json!(1),
            _ => json!(true),
        },
        "balloon" => {
            let keep = Bytes(arguments["value"].as_u64().unwrap());
            let floor = vm.floor();
            vm.orders.push((keep, floor));
            // A guest cannot give what it uses.
            vm.actual = keep.max(floor).min(vm.max());
            json!({})
        }
        _ => return json!({ "error": { "class": "CommandNotFound", "desc": "not in this script" } }),
    };
    json!({ "return": result })
}

fn statistics(vm: &State) -> Value {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let (total, free) = (vm.actual - KERNEL, vm.free());
    json!({
        "stats": { "stat-total-memory": total.0, "stat-free-memory": free.0, "stat-available-memory": free.0 },
        "last-update": now,
    })
}

/// Calls for ever, as the real one does.
async fn agent(path: PathBuf, state: Arc<Mutex<State>>) {
    let began = Instant::now();
    let clock = || Micros::secs(100) + Micros::from_duration(began.elapsed());
    loop {
        if let Ok(stream) = UnixStream::connect(&path).await {
            session(stream, &state, clock).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn session(mut stream: UnixStream, state: &Mutex<State>, clock: impl Fn() -> Micros) {
    let balloon = Some(BalloonFeatures { deflate_on_oom: true, free_page_reporting: false });
    let hello = GuestMessage::Hello(Hello {
        oldest: VERSION,
        newest: VERSION,
        agent: Limited::cut("a script"),
        kernel: Limited::cut("none"),
        boot_id: [7; 16],
        now: clock(),
        capabilities: Capabilities { psi: true, balloon, ..Capabilities::default() },
    });
    if !say(&mut stream, &hello).await {
        return;
    }
    let (mut deframer, mut sequence, mut demands) = (Deframer::default(), 0, 0);
    let mut reports = tokio::time::interval(REPORT);
    loop {
        let said = tokio::select! {
            read = stream.read(deframer.space()) => {
                match read {
                    Ok(0) | Err(_) => return,
                    Ok(n) => deframer.advance(n),
                }
                while let Some(message) = deframer.next_frame::<HostMessage>().unwrap() {
                    if matches!(message, HostMessage::Welcome(_)) {
                        state.lock().unwrap().sessions += 1;
                    }
                }
                continue;
            }
            _ = reports.tick() => {
                let mut vm = state.lock().unwrap();
                vm.live();
                let mut said = vec![GuestMessage::Telemetry(report(&vm, clock(), sequence))];
                sequence += 1;
                if vm.wanted > vm.used {
                    demands += 1;
                    said.push(GuestMessage::Demand(Demand {
                        id: demands,
                        source: Source::Slack,
                        size: vm.wanted - vm.used,
                        sign: clock(),
                        sent: clock(),
                        within: Micros::millis(100),
                        free: vm.free(),
                        ballooned: Some(vm.ballooned()),
                    }));
                }
                said
            }
        };
        for message in said {
            if !say(&mut stream, &message).await {
                return;
            }
        }
    }
}

fn report(vm: &State, at: Micros, seq: u64) -> Telemetry {
    Telemetry {
        seq,
        at,
        total: vm.max() - KERNEL,
        free: vm.free(),
        available: vm.free(),
        giveable: vm.free(),
        file: Bytes::mib(10),
        anon: vm.used,
        watermarks: Watermarks { min: Bytes::mib(2), low: Bytes::mib(3), high: Bytes::mib(4) },
        ballooned: Some(vm.ballooned()),
        counters: Counters {
            refault_file: Some(0),
            alloc_stall: Some(0),
            major_fault: Some(0),
            oom_kill: Some(0),
            balloon_inflate: Some(0),
            ..Counters::default()
        },
        ..Telemetry::default()
    }
}

async fn say(stream: &mut UnixStream, message: &GuestMessage) -> bool {
    let mut buffer = [0; MAX_FRAME];
    let frame = encode(message, &mut buffer).unwrap();
    stream.write_all(frame).await.is_ok()
}

/// `ballast-host run`, as an operator starts it, with its folder and its log.
#[derive(Debug)]
pub struct Host {
    process: Option<Dependant>,
    folder: PathBuf,
    /// Run before it, in a mount namespace of its own; $3 is the folder.
    before: Option<String>,
}

impl Host {
    /// Starts it in `folder` on a configuration to which the place of its state is added.
    pub fn start(folder: &Path, config: &str) -> Self {
        Self::prepared(folder, config, None)
    }

    /// The same, in a mount namespace of its own in which `mounts` are made first; `"$3"` is the folder.
    pub fn start_on(folder: &Path, config: &str, mounts: &str) -> Self {
        Self::prepared(folder, config, Some(mounts.to_owned()))
    }

    fn prepared(folder: &Path, config: &str, before: Option<String>) -> Self {
        let mut host = Self { process: None, folder: folder.to_owned(), before };
        host.configure(config);
        host.restart();
        host
    }

    /// Writes its file anew. What comes first in `config` may be keys of [daemon].
    pub fn configure(&self, config: &str) {
        let (path, here) = (self.folder.join("host.toml"), self.folder.display());
        let daemon = format!(
            "[metrics]\nenabled = false\n[daemon]\nstate-dir = \"{here}/state\"\ncontrol-socket = \"{here}/control\"\n"
        );
        std::fs::write(path, daemon + config).unwrap();
    }

    /// Kills it if it runs, and starts it on the same file and state.
    pub fn restart(&mut self) {
        self.process = None;
        let run = "exec \"$0\" run --config \"$1\" 2>>\"$2\"";
        let (mut command, script) = match &self.before {
            None => (Command::new("sh"), run.to_owned()),
            Some(before) => {
                let mut unshare = Command::new(program("unshare"));
                unshare.args(["--mount", "--", "sh"]);
                (unshare, format!("{before} && {run}"))
            }
        };
        command.args(["-c", &script]).arg(binary()).arg(self.folder.join("host.toml")).arg(self.folder.join("log"));
        command.arg(&self.folder).env("NO_COLOR", "1");
        self.process = Some(Dependant::spawn(&mut command));
        let control = self.folder.join("control");
        wait_for("the daemon", || std::os::unix::net::UnixStream::connect(&control).ok());
    }

    pub fn pid(&self) -> rustix::process::Pid {
        self.process.as_ref().expect("it runs").pid()
    }

    pub fn signal(&self, signal: Signal) {
        self.process.as_ref().expect("it runs").signal(signal);
    }

    /// Has it read its file again, and waits until it has; what it said about it.
    pub fn reload(&self) -> String {
        let read = |log: &str| log.matches("the configuration was read again").count();
        let before = self.log();
        self.signal(Signal::HUP);
        wait_for("the reload", || (read(&self.log()) > read(&before)).then_some(()));
        self.log()[before.len()..].to_owned()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap()
    }

    pub fn ask(&self, what: &[&str]) -> Vec<u8> {
        // Not by its file, which a test may have made wrong.
        output(Command::new(binary()).args(what).arg("--socket").arg(self.folder.join("control")))
    }

    pub fn status(&self) -> Value {
        serde_json::from_slice(&self.ask(&["status", "--json"])).unwrap()
    }

    pub fn vm(&self, name: &str) -> Option<Value> {
        self.status()["vms"].as_array().unwrap().iter().find(|v| v["name"] == name).cloned()
    }

    /// Waits until a field of a VM's status has a value.
    pub fn wait_field(&self, name: &str, field: &str, value: impl Into<Value>) {
        let value = value.into();
        wait_for(&format!("{name}: {field} = {value}"), || (self.vm(name)?[field] == value).then_some(()));
    }

    /// Ends it.
    pub fn end(&mut self) {
        self.signal(Signal::TERM);
        wait_for("its end", || (!self.folder.join("control").exists()).then_some(()));
        self.process = None;
    }

    /// Ends it; what it wrote down replays.
    pub fn stop(mut self) {
        self.end();
        let said = output(Command::new(binary()).arg("replay").arg(self.folder.join("state/journal")));
        let said = String::from_utf8(said).unwrap();
        assert!(said.contains("every decision is the same"), "{said}");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the daemon's log: {}", self.log());
        }
    }
}

fn binary() -> &'static Path {
    // Not `env!`: this module is compiled by the benchmark and the tests of the Debian image too, which do not call it.
    let Some(path) = option_env!("CARGO_BIN_EXE_ballast-host") else {
        panic!("cargo names it to its own package only")
    };
    Path::new(path)
}

/// A folder whose name leaves room in a socket's path.
pub fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("bf").tempdir_in("/tmp").unwrap()
}
