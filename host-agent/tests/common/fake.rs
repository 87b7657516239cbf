//! A VM made of threads: a monitor that speaks QMP, a balloon that moves as fast as a real one under emulation, and a
//! guest agent that speaks the real protocol. For tests of what the daemon shows, which want many VMs and no QEMU.

use ballast_protocol::{
    BalloonFeatures, Bytes, Capabilities, Counters, Deframer, Demand, GuestMessage, Hello, HostMessage, Limited,
    MAX_FRAME, Micros, Pong, Pressure, Reclaimed, Relief, Source, Telemetry, Watermarks, encode,
};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

const TICK: Duration = Duration::from_millis(10);
/// A balloon inflates 170 to 200 and deflates 1,300 to 1,700 MiB/s under emulation.
const TAKES: Bytes = Bytes(180 << 20);
const GIVES: Bytes = Bytes(1400 << 20);
/// A process that touches memory, in bytes a second.
const TOUCHES: Bytes = Bytes(200 << 20);
/// What a guest's kernel has for itself, not in MemTotal.
const KERNEL: Bytes = Bytes::mib(40);
const CACHE: Bytes = Bytes::mib(16);
const LOW: Bytes = Bytes::mib(8);

/// What the threads share.
#[derive(Debug)]
struct State {
    max: Bytes,
    actual: Bytes,
    target: Bytes,
    /// What the guest's programs have touched, and what they want.
    used: Bytes,
    wanted: Bytes,
    stalled: Micros,
    killed: u64,
    stop: bool,
}

impl State {
    fn free(&self) -> Bytes {
        self.actual - KERNEL - CACHE - self.used
    }

    fn pass(&mut self, time: Duration) {
        let us = time.as_micros() as u64;
        let by = |rate: Bytes| rate.share(us, 1_000_000);
        // Only free memory goes into a balloon.
        let taken = (self.actual - self.target).min(by(TAKES)).min(self.free());
        self.actual = self.actual - taken + (self.target - self.actual).min(by(GIVES));
        let grown = (self.wanted - self.used).min(by(TOUCHES));
        if grown > Bytes::ZERO && self.free() < LOW {
            self.stalled += Micros(us);
        }
        self.used = self.used.min(self.wanted) + grown.min(self.free());
    }
}

/// The VM. Dropping it ends it: its sockets go with it.
#[derive(Debug)]
pub struct FakeVm {
    pub name: String,
    state: Arc<Mutex<State>>,
    qmp: PathBuf,
    vsock: PathBuf,
}

impl FakeVm {
    /// A VM of `max` whose sockets are in `directory`, with an agent or without.
    pub fn start(directory: &Path, file: &str, name: &str, max: Bytes, agent: bool) -> Self {
        let used = max.share(1, 8);
        let state =
            State { max, actual: max, target: max, used, wanted: used, stalled: Micros::ZERO, killed: 0, stop: false };
        let vm = Self {
            name: name.to_owned(),
            state: Arc::new(Mutex::new(state)),
            qmp: directory.join(format!("{file}.q")),
            vsock: directory.join(format!("{file}.v")),
        };
        let listener = UnixListener::bind(&vm.qmp).unwrap();
        let state = Arc::clone(&vm.state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, state) = (stream.unwrap(), Arc::clone(&state));
                if state.lock().unwrap().stop {
                    return;
                }
                std::thread::spawn(move || monitor(&stream, &state));
            }
        });
        let state = Arc::clone(&vm.state);
        std::thread::spawn(move || {
            let mut last = Instant::now();
            while !state.lock().unwrap().stop {
                std::thread::sleep(TICK);
                state.lock().unwrap().pass(last.elapsed());
                last = Instant::now();
            }
        });
        if agent {
            let (state, address) = (Arc::clone(&vm.state), PathBuf::from(format!("{}_9150", vm.vsock.display())));
            std::thread::spawn(move || {
                while !state.lock().unwrap().stop {
                    // Until the daemon listens, and again when it has gone.
                    let _ = UnixStream::connect(&address).and_then(|stream| Agent::new(stream, &state).run());
                    std::thread::sleep(Duration::from_millis(50));
                }
            });
        }
        vm
    }

    /// Its part of a configuration.
    pub fn config(&self) -> String {
        let mut table = toml::Table::new();
        table.insert("name".into(), self.name.clone().into());
        table.insert("qmp".into(), self.qmp.display().to_string().into());
        table.insert("vsock".into(), self.vsock.display().to_string().into());
        table.insert("cool-down".into(), "200ms".into());
        table.insert("cold-after".into(), "0s".into());
        format!("[[vm]]\n{table}")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// What its programs want from now on; they touch it as fast as they can.
    pub fn want(&self, size: Bytes) {
        self.state().wanted = size;
    }

    /// What it keeps.
    pub fn keeps(&self) -> Bytes {
        self.state().actual
    }

    /// The balloon lets go by itself.
    pub fn let_go(&self, size: Bytes) {
        let mut state = self.state();
        state.actual = (state.actual + size).min(state.max);
        state.target = state.actual;
    }

    /// The OOM killer strikes.
    pub fn kill_one(&self) {
        self.state().killed += 1;
    }
}

impl Drop for FakeVm {
    fn drop(&mut self) {
        self.state().stop = true;
        // So that the listener's thread sees it.
        let _ = UnixStream::connect(&self.qmp);
        let _ = std::fs::remove_file(&self.qmp);
    }
}

fn monitor(stream: &UnixStream, state: &Mutex<State>) {
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let mut reader = BufReader::new(stream);
    let _ = writer.write_all(b"{\"QMP\":{}}\r\n");
    let mut line = String::new();
    loop {
        if state.lock().unwrap().stop {
            return;
        }
        match reader.read_line(&mut line) {
            // A line that is not complete stays.
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(_) | Ok(0) => return,
            Ok(_) => {}
        }
        let command: Value = serde_json::from_str(&line).unwrap();
        line.clear();
        let reply = answer(&command, &mut state.lock().unwrap());
        let reply = match reply {
            Some(reply) => json!({ "return": reply, "id": command["id"] }),
            None => json!({ "error": { "class": "GenericError", "desc": "no such property" }, "id": command["id"] }),
        };
        if writeln!(writer, "{reply}\r").is_err() {
            return;
        }
    }
}

fn answer(command: &Value, state: &mut State) -> Option<Value> {
    let arguments = &command["arguments"];
    Some(match command["execute"].as_str()? {
        "query-status" => json!({ "running": true }),
        "query-memory-size-summary" => json!({ "base-memory": state.max.0 }),
        "query-uuid" => json!({ "UUID": "00000000-0000-0000-0000-000000000000" }),
        "query-balloon" => json!({ "actual": state.actual.0 }),
        "balloon" => {
            state.target = Bytes(arguments["value"].as_u64()?);
            json!({})
        }
        "qom-list" if arguments["path"] == "/machine/peripheral" => {
            json!([{ "name": "balloon0", "type": "child<virtio-balloon-pci>" }])
        }
        "qom-list" => json!([]),
        "qom-get" => match arguments["property"].as_str()? {
            "deflate-on-oom" => json!(true),
            "guest-stats-polling-interval" => json!(1),
            "guest-stats" => {
                let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
                let free = state.free();
                json!({ "stats": { "stat-total-memory": (state.max - KERNEL).0, "stat-free-memory": free.0,
                    "stat-available-memory": (free + CACHE).0 }, "last-update": now })
            }
            _ => return None,
        },
        "qmp_capabilities" => json!({}),
        _ => return None,
    })
}

struct Agent<'a> {
    stream: UnixStream,
    state: &'a Mutex<State>,
    deframer: Deframer,
    began: Instant,
    reports: u64,
    demands: u64,
    /// The last demand: number, first sign, what the guest kept then, when it was answered.
    open: Option<(u64, Micros, Bytes, Option<Micros>)>,
}

impl<'a> Agent<'a> {
    fn new(stream: UnixStream, state: &'a Mutex<State>) -> Self {
        let deframer = Deframer::default();
        Self { stream, state, deframer, began: Instant::now(), reports: 0, demands: 0, open: None }
    }

    fn now(&self) -> Micros {
        Micros::secs(1) + Micros::from_duration(self.began.elapsed())
    }

    fn say(&mut self, message: &GuestMessage) -> std::io::Result<()> {
        let mut buffer = [0; MAX_FRAME];
        self.stream.write_all(encode(message, &mut buffer).unwrap())
    }

    fn run(mut self) -> std::io::Result<()> {
        self.stream.set_read_timeout(Some(TICK))?;
        let balloon = BalloonFeatures { deflate_on_oom: true, free_page_reporting: false };
        let hello = Hello {
            oldest: 1,
            newest: 1,
            agent: Limited::cut("0.1.0"),
            kernel: Limited::cut("6.1.0-fake"),
            boot_id: [7; 16],
            now: self.now(),
            capabilities: Capabilities { psi: true, balloon: Some(balloon), ..Capabilities::default() },
        };
        self.say(&GuestMessage::Hello(hello))?;
        let mut next_report = Instant::now();
        while !self.state.lock().unwrap().stop {
            match self.stream.read(self.deframer.space()) {
                Ok(0) => return Ok(()),
                Ok(count) => self.deframer.advance(count),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
            while let Some(message) = self.deframer.next_frame().unwrap() {
                self.hear(&message)?;
            }
            self.ask()?;
            if Instant::now() >= next_report {
                next_report = Instant::now() + Duration::from_millis(100);
                self.report()?;
            }
        }
        Ok(())
    }

    fn hear(&mut self, message: &HostMessage) -> std::io::Result<()> {
        match message {
            HostMessage::Ping(ping) => {
                let now = self.now();
                self.say(&GuestMessage::Pong(Pong { seq: ping.seq, at: ping.at, received: now, sent: now }))
            }
            HostMessage::Reclaim(reclaim) => {
                let reclaimed = Reclaimed { id: reclaim.id, size: Bytes::ZERO, exhausted: true };
                self.say(&GuestMessage::Reclaimed(reclaimed))
            }
            HostMessage::Answer(answer) => {
                let now = self.now();
                if let Some((id, .., answered)) = &mut self.open
                    && *id == answer.id
                {
                    *answered = Some(now);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Demands what the programs want and the guest has not, and tells when it came.
    fn ask(&mut self) -> std::io::Result<()> {
        let (missing, free, kept, max) = {
            let state = self.state.lock().unwrap();
            ((state.wanted - state.used) + Bytes::mib(16) - state.free(), state.free(), state.actual, state.max)
        };
        let now = self.now();
        if let Some((id, sign, before, answered)) = self.open {
            if now > sign + Micros::millis(300) {
                self.open = None;
            } else if let Some(answered) = answered.filter(|_| kept >= before + Bytes::mib(1)) {
                self.open = None;
                self.say(&GuestMessage::Relief(Relief { id, sign, answered, first_mib: Some(now) }))?;
            }
        } else if missing > Bytes::ZERO && kept < max {
            self.demands += 1;
            self.open = Some((self.demands, now, kept, None));
            self.say(&GuestMessage::Demand(Demand {
                id: self.demands,
                source: if self.demands.is_multiple_of(3) { Source::Committed } else { Source::Slack },
                size: missing,
                sign: now,
                sent: now,
                within: Micros::millis(50),
                free,
                ballooned: Some(max - kept),
            }))?;
        }
        Ok(())
    }

    fn report(&mut self) -> std::io::Result<()> {
        self.reports += 1;
        let telemetry = {
            let state = self.state.lock().unwrap();
            let free = state.free();
            Telemetry {
                seq: self.reports,
                at: self.now(),
                total: state.max - KERNEL,
                free,
                available: free + CACHE,
                file: CACHE,
                anon: state.used,
                committed: state.used,
                watermarks: Watermarks { min: LOW, low: LOW, high: LOW },
                giveable: free - LOW,
                ballooned: Some(state.max - state.actual),
                pending: state.wanted - state.used,
                memory_pressure: Some(Pressure { some: state.stalled, full: Micros::ZERO }),
                counters: Counters { oom_kill: Some(state.killed), ..Counters::default() },
                ..Telemetry::default()
            }
        };
        self.say(&GuestMessage::Telemetry(telemetry))
    }
}
