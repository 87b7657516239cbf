//! A VM made of threads: a monitor that speaks QMP, whose balloon obeys at once, and an agent if one is wanted. For tests
//! of what the daemon does with orders and reports, not of what QEMU does with them.

use ballast_protocol::{
    BalloonFeatures, Bytes, Capabilities, Counters, DEFAULT_PORT, GuestMessage, Hello, HostMessage, Limited, MAX_FRAME,
    Micros, Pong, Pressure, Telemetry, VERSION, Watermarks, decode, encode,
};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// A VM. Its threads end with it.
#[derive(Debug)]
pub struct QuietVm {
    pub name: &'static str,
    folder: PathBuf,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    max: Bytes,
    kept: AtomicU64,
    used: Bytes,
    gone: AtomicBool,
}

impl Shared {
    fn kept(&self) -> Bytes {
        Bytes(self.kept.load(Ordering::SeqCst))
    }

    /// What the guest has in all: its kernel keeps a little for itself.
    fn total(&self) -> Bytes {
        self.max - Bytes::mib(16)
    }

    fn free(&self) -> Bytes {
        self.kept() - Bytes::mib(16) - self.used
    }
}

impl QuietVm {
    /// `used` of `max` is in use, whatever the balloon does.
    pub fn start(folder: &Path, name: &'static str, max: Bytes, used: Bytes) -> Self {
        let shared = Arc::new(Shared { max, kept: AtomicU64::new(max.0), used, gone: AtomicBool::new(false) });
        let vm = Self { name, folder: folder.to_owned(), shared };
        let listener = UnixListener::bind(vm.monitor()).unwrap();
        let shared = vm.shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = shared.clone();
                if shared.gone.load(Ordering::SeqCst) {
                    return;
                }
                std::thread::spawn(move || serve(&stream.unwrap(), &shared));
            }
        });
        vm
    }

    fn monitor(&self) -> PathBuf {
        self.folder.join(self.name)
    }

    /// Its table in the daemon's configuration.
    pub fn table(&self, more: &str) -> String {
        let (name, monitor) = (self.name, self.monitor());
        format!("[[vm]]\nname = \"{name}\"\nqmp = \"{0}\"\nvsock = \"{0}.v\"\n{more}\n", monitor.display())
    }

    /// What it keeps, in MiB.
    pub fn kept(&self) -> u64 {
        self.shared.kept().as_mib()
    }

    /// Starts an agent, which calls until it is welcome, reports five times a second and asks for nothing.
    pub fn agent(&self) {
        let path = self.folder.join(format!("{}.v_{DEFAULT_PORT}", self.name));
        let shared = self.shared.clone();
        std::thread::spawn(move || {
            while !shared.gone.load(Ordering::SeqCst) {
                if let Ok(stream) = UnixStream::connect(&path) {
                    // However it ends, the next session may go better.
                    let _ = report(stream, &shared);
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
    }
}

impl Drop for QuietVm {
    fn drop(&mut self) {
        self.shared.gone.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = UnixStream::connect(self.monitor());
        let _ = std::fs::remove_file(self.monitor());
    }
}

fn serve(stream: &UnixStream, vm: &Shared) {
    let mut writer = stream;
    let _ = writer.write_all(b"{\"QMP\":{}}\r\n");
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let command: Value = serde_json::from_str(&line).unwrap();
        let answer = match answer(&command, vm) {
            Some(value) => json!({ "return": value, "id": command["id"] }),
            None => json!({ "error": { "class": "CommandNotFound", "desc": line }, "id": command["id"] }),
        };
        if writer.write_all(format!("{answer}\r\n").as_bytes()).is_err() || vm.gone.load(Ordering::SeqCst) {
            return;
        }
    }
}

fn answer(command: &Value, vm: &Shared) -> Option<Value> {
    let arguments = &command["arguments"];
    Some(match command["execute"].as_str()? {
        "qmp_capabilities" | "qom-set" => json!({}),
        "query-status" => json!({ "running": true, "status": "running" }),
        "query-memory-size-summary" => json!({ "base-memory": vm.max.0 }),
        "query-uuid" => json!({ "UUID": "00000000-0000-0000-0000-000000000000" }),
        "query-balloon" => json!({ "actual": vm.kept().0 }),
        "balloon" => {
            vm.kept.store(arguments["value"].as_u64()?, Ordering::SeqCst);
            json!({})
        }
        "qom-list" if arguments["path"] == "/machine/peripheral" => {
            json!([{ "name": "b0", "type": "child<virtio-balloon-pci>" }])
        }
        "qom-list" => json!([]),
        "qom-get" => match arguments["property"].as_str()? {
            "deflate-on-oom" => json!(true),
            "free-page-reporting" => json!(false),
            "guest-stats-polling-interval" => json!(1),
            "guest-stats" => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
                let (total, free) = (vm.total().0, vm.free().0);
                json!({ "stats": { "stat-total-memory": total, "stat-free-memory": free,
                    "stat-available-memory": free }, "last-update": now })
            }
            _ => return None,
        },
        _ => return None,
    })
}

/// One session of the agent.
fn report(mut stream: UnixStream, vm: &Shared) -> std::io::Result<()> {
    let begun = Instant::now();
    let now = || Micros::secs(100) + Micros::from_duration(begun.elapsed());
    let mut buffer = [0; MAX_FRAME];
    let balloon = Some(BalloonFeatures { deflate_on_oom: true, free_page_reporting: false });
    let hello = Hello {
        oldest: VERSION,
        newest: VERSION,
        agent: Limited::cut("the test"),
        kernel: Limited::cut("none"),
        boot_id: [7; 16],
        now: now(),
        capabilities: Capabilities { balloon, ..Capabilities::default() },
    };
    stream.write_all(encode(&GuestMessage::Hello(hello), &mut buffer).unwrap())?;
    // Not the reports' period: a frame that is half read when the time is up would be lost.
    stream.set_read_timeout(Some(Duration::from_millis(10)))?;
    let (mut seq, mut next) = (0, Instant::now());
    while !vm.gone.load(Ordering::SeqCst) {
        let mut length = [0; 2];
        match stream.read(&mut length[..1]) {
            Ok(0) => return Ok(()),
            Ok(_) => {
                stream.set_read_timeout(None)?;
                stream.read_exact(&mut length[1..])?;
                let mut payload = vec![0; usize::from(u16::from_le_bytes(length))];
                stream.read_exact(&mut payload)?;
                stream.set_read_timeout(Some(Duration::from_millis(10)))?;
                if let Ok(HostMessage::Ping(ping)) = decode(&payload) {
                    let pong = Pong { seq: ping.seq, at: ping.at, received: now(), sent: now() };
                    stream.write_all(encode(&GuestMessage::Pong(pong), &mut buffer).unwrap())?;
                }
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(e) => return Err(e),
        }
        if Instant::now() >= next {
            next = Instant::now() + Duration::from_millis(200);
            let free = vm.free();
            let telemetry = Telemetry {
                seq,
                at: now(),
                total: vm.total(),
                free,
                available: free,
                anon: vm.used,
                watermarks: Watermarks { min: Bytes::mib(4), low: Bytes::mib(5), high: Bytes::mib(6) },
                giveable: free - Bytes::mib(8),
                ballooned: Some(vm.max - vm.kept()),
                memory_pressure: Some(Pressure::default()),
                counters: Counters { oom_kill: Some(0), alloc_stall: Some(0), ..Counters::default() },
                ..Telemetry::default()
            };
            seq += 1;
            stream.write_all(encode(&GuestMessage::Telemetry(telemetry), &mut buffer).unwrap())?;
        }
    }
    Ok(())
}
