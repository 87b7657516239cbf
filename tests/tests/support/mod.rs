//! What the end-to-end tests share: waiting, status by VM, and a guest agent of the test's own.

// Each test file is a crate of its own and uses its share; its helpers fail as the test does.
#![allow(dead_code, clippy::unwrap_used)]

use ballast_protocol::{
    BalloonFeatures, Bytes, Capabilities, Counters, DEFAULT_PORT, Deframer, GuestMessage, Hello, HostMessage, Limited,
    MAX_FRAME, Micros, Telemetry, VERSION, Watermarks, Welcome, encode,
};
use ballast_tests::{HostAgent, Machine};
use serde_json::Value;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// For everything that must happen at all; other tests may use both cores meanwhile. A Debian that boots under emulation on
/// a machine with a load of 6 has its agent after more than a minute.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// Calls until there is something; fails with `what` and the host agent's log.
pub fn wait_for<T>(what: &str, host: &HostAgent, mut ask: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = ask() {
            return found;
        }
        if begin.elapsed() > PATIENCE {
            let status = host.command(&["status"]).unwrap_or_else(|e| format!("{e:#}"));
            panic!("waited in vain for {what}\n{status}\n{}", host.log());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The host agent's binary of this build's profile.
pub fn program() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("ballast-host")
}

/// A VM in `status --json`.
pub fn vm(host: &HostAgent, name: &str) -> Option<Value> {
    host.status().unwrap()["vms"].as_array().unwrap().iter().find(|v| v["name"] == name).cloned()
}

/// A VM that the daemon must know, once its hypervisor has answered.
pub fn known(host: &HostAgent, name: &str) -> Value {
    wait_for(&format!("VM {name}"), host, || vm(host, name))
}

/// Waits until a field of a VM's status has a value.
pub fn wait_field(host: &HostAgent, name: &str, field: &str, value: impl Into<Value>) {
    let value = value.into();
    wait_for(&format!("{name}: {field} = {value}"), host, || (vm(host, name)?[field] == value).then_some(()));
}

/// One of a VM's counters.
pub fn count(host: &HostAgent, name: &str, what: &str) -> u64 {
    known(host, name)["counts"][what].as_u64().unwrap_or_else(|| panic!("there is no counter {what}"))
}

/// All decisions that `explain` remembers, one a line.
pub fn decisions(host: &HostAgent, name: &str) -> String {
    let explained: Value = serde_json::from_str(&host.command(&["explain", name, "--json"]).unwrap()).unwrap();
    let texts = explained["decisions"].as_array().unwrap().iter();
    texts.map(|d| d["text"].as_str().unwrap().to_owned() + "\n").collect()
}

/// Waits until the pair has squeezed the guest below `size`.
pub fn squeezed_below(machine: &mut Machine, host: &HostAgent, size: Bytes) {
    wait_for(&format!("{} below {size}\n{}", machine.name(), machine.guest.log()), host, || {
        (machine.qmp.balloon().expect("QEMU answers while it lives") < size).then_some(())
    });
}

/// The guest agent's own status.
pub fn guest_status(machine: &Machine) -> Value {
    serde_json::from_str(&machine.guest.sh_ok("ballast-guest status --json").unwrap()).unwrap()
}

/// Asserts that this guest's agent has had one session since its start, and that it stands.
pub fn session_went_on(machine: &Machine) {
    let status = guest_status(machine);
    assert_eq!((&status["sessions"], &status["connected"]), (&1.into(), &true.into()), "{}", machine.guest.log());
}

/// A configuration in which some of the machines, built without a vsock device, are spoken for by the test itself.
/// The path of their hybrid vsock is a mere name: nothing but the host agent needs to be there.
pub fn config(machines: &[&Machine]) -> toml::Table {
    let mut config = HostAgent::config(machines);
    let vms = config.get_mut("vm").and_then(toml::Value::as_array_mut).unwrap();
    for (machine, vm) in machines.iter().zip(vms) {
        if machine.vsock.is_none() {
            let path = machine.folder().join("test").display().to_string();
            vm.as_table_mut().unwrap().insert("vsock".into(), path.into());
        }
    }
    config
}

/// Where a machine's guest arrives at the host agent, if not by the kernel's vsock device.
pub fn arrival(machine: &Machine) -> Option<PathBuf> {
    let hybrid = match &machine.vsock {
        None => machine.folder().join("test"),
        Some(vsock) => vsock.hybrid.clone()?,
    };
    Some(format!("{}_{DEFAULT_PORT}", hybrid.display()).into())
}

/// The test as a guest: whatever it wants to say, to the host agent's own socket, as the vsock daemon would.
pub struct FakeAgent {
    stream: UnixStream,
    deframer: Deframer,
    seq: u64,
    started: Instant,
}

impl FakeAgent {
    pub fn connect(machine: &Machine) -> Self {
        let path = arrival(machine).expect("a machine that the test speaks for has no vsock device");
        let stream = UnixStream::connect(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        stream.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        Self { stream, deframer: Deframer::default(), seq: 0, started: Instant::now() }
    }

    /// A session that stands.
    pub fn welcomed(machine: &Machine) -> (Self, Welcome) {
        let mut agent = Self::connect(machine);
        agent.say(&hello());
        match agent.next() {
            Some(HostMessage::Welcome(welcome)) => (agent, welcome),
            other => panic!("{other:?} instead of Welcome"),
        }
    }

    /// Writes bytes as they are; whether the other side still takes them.
    pub fn write(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    pub fn say(&mut self, message: &GuestMessage) -> bool {
        let mut buffer = [0; MAX_FRAME];
        let frame = encode(message, &mut buffer).unwrap();
        self.stream.write_all(frame).is_ok()
    }

    /// No more will be written; reading goes on.
    pub fn shut(&self) {
        self.stream.shutdown(std::net::Shutdown::Write).unwrap();
    }

    /// The guest's clock.
    pub fn now(&self) -> Micros {
        Micros::from_duration(self.started.elapsed()) + Micros::secs(100)
    }

    /// Sends a report, numbered and dated.
    pub fn report(&mut self, telemetry: Telemetry) -> bool {
        let telemetry = Telemetry { seq: self.seq, at: self.now(), ..telemetry };
        self.seq += 1;
        self.say(&GuestMessage::Telemetry(telemetry))
    }

    /// What the host says now, pings included; `Err`: it has closed.
    pub fn heard(&mut self) -> Result<Option<HostMessage>, ()> {
        loop {
            if let Some(message) = self.deframer.next_frame().unwrap() {
                return Ok(Some(message));
            }
            match self.stream.read(self.deframer.space()) {
                Ok(0) => return Err(()),
                Ok(n) => self.deframer.advance(n),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(None),
                // Closed with something of ours unread.
                Err(e) if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => return Err(()),
                Err(e) => panic!("{e}"),
            }
        }
    }

    /// The next word but pings; `None`: it has closed.
    pub fn next(&mut self) -> Option<HostMessage> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            match self.heard() {
                Err(()) => return None,
                Ok(None | Some(HostMessage::Ping(_))) => {}
                Ok(Some(message)) => return Some(message),
            }
        }
        panic!("the host neither answers nor closes");
    }

    /// Reports `telemetry` five times a second until `done`; what the host said meanwhile.
    pub fn report_until(&mut self, telemetry: &Telemetry, mut done: impl FnMut() -> bool) -> Vec<HostMessage> {
        let deadline = Instant::now() + PATIENCE;
        let mut said = Vec::new();
        while !done() {
            assert!(Instant::now() < deadline, "in vain; the host said {said:?}");
            assert!(self.report(telemetry.clone()), "the host has closed, having said {said:?}");
            let next = Instant::now() + Duration::from_millis(200);
            while Instant::now() < next {
                match self.heard() {
                    Ok(Some(HostMessage::Ping(_)) | None) => {}
                    Ok(Some(message)) => said.push(message),
                    Err(()) => panic!("the host closed, having said {said:?}"),
                }
            }
        }
        said
    }
}

pub fn hello() -> GuestMessage {
    let balloon = Some(BalloonFeatures { deflate_on_oom: true, free_page_reporting: false });
    GuestMessage::Hello(Hello {
        oldest: VERSION,
        newest: VERSION,
        agent: Limited::cut("the test"),
        kernel: Limited::cut("none"),
        boot_id: [7; 16],
        now: Micros::secs(100),
        capabilities: Capabilities { psi: true, balloon, ..Capabilities::default() },
    })
}

/// A sound report of a guest of 512 MiB with much to spare, whose balloon holds so much.
pub fn idle(ballooned: Bytes) -> Telemetry {
    let free = Bytes::mib(380) - ballooned;
    Telemetry {
        total: Bytes::mib(469),
        free,
        available: free,
        giveable: free,
        file: Bytes::mib(10),
        anon: Bytes::mib(10),
        watermarks: Watermarks { min: Bytes::mib(2), low: Bytes::mib(3), high: Bytes::mib(4) },
        ballooned: Some(ballooned),
        counters: Counters {
            refault_file: Some(0),
            alloc_stall: Some(1_000),
            major_fault: Some(1_000),
            oom_kill: Some(0),
            balloon_inflate: Some(0),
            ..Counters::default()
        },
        ..Telemetry::default()
    }
}

/// The sockets in a folder.
pub fn sockets_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    entries.filter(|p| std::os::unix::fs::FileTypeExt::is_socket(&p.metadata().unwrap().file_type())).collect()
}
