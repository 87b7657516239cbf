//! What the daemon tells systemd, and when: a service manager of our own listens.

// The helpers of a test fail as the test does.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Dependant, LONG};
use rustix::process::Signal;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// What systemd would wait; the daemon is to speak twice in this time.
const WATCHDOG: Duration = Duration::from_secs(1);

struct Manager(UnixDatagram);

impl Manager {
    /// The lines of the next message; `None`: nothing came.
    fn hear(&self, within: Duration) -> Option<Vec<String>> {
        let mut text = [0; 1024];
        self.0.set_read_timeout(Some(within)).unwrap();
        let length = self.0.recv(&mut text).ok()?;
        Some(String::from_utf8(text[..length].to_vec()).unwrap().lines().map(str::to_owned).collect())
    }

    /// What came until `line` did, without it.
    fn hear_until(&self, line: &str) -> Vec<String> {
        let begin = Instant::now();
        let mut before = Vec::new();
        while begin.elapsed() < LONG {
            let Some(heard) = self.hear(LONG) else { break };
            if heard.iter().any(|l| l == line) {
                return before;
            }
            before.extend(heard);
        }
        panic!("`{line}` never came, but {before:?}");
    }
}

/// A QEMU that hangs up on everybody.
fn rude_qemu(path: &Path) {
    let monitor = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || monitor.incoming().for_each(drop));
}

fn start(folder: &Path, manager: &Path) -> Dependant {
    let (config, path) = (folder.join("host.toml"), folder.display());
    let text = format!(
        "[metrics]\nenabled = false\n[daemon]\nstate-dir = \"{path}\"\ncontrol-socket = \"{path}/control\"\n\
         [[vm]]\nname = \"a\"\nqmp = \"{path}/a.qmp\"\n"
    );
    std::fs::write(&config, text).unwrap();
    Dependant::spawn(
        Command::new(env!("CARGO_BIN_EXE_ballast-host"))
            .args(["run", "--config"])
            .arg(&config)
            .env("NOTIFY_SOCKET", manager)
            .env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string()),
    )
}

#[test]
fn systemd_hears_of_readiness_of_every_half_watchdog_and_of_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = Manager(UnixDatagram::bind(&path).unwrap());
    rude_qemu(&folder.path().join("a.qmp"));
    let daemon = start(folder.path(), &path);

    let before = manager.hear_until("READY=1");
    assert!(before.iter().any(|l| l.starts_with("STATUS=0 VMs")), "{before:?}");
    // Ready is a promise: whoever asks now is answered, although the VM's QEMU says nothing.
    UnixStream::connect(folder.path().join("control")).unwrap();

    // Long enough for one look for VMs, which is told in the status.
    let (begin, mut signs) = (Instant::now(), 0);
    let mut told = Vec::new();
    while begin.elapsed() < 7 * WATCHDOG {
        let Some(heard) = manager.hear(10 * WATCHDOG) else { panic!("systemd would have killed it: {told:?}") };
        signs += heard.iter().filter(|l| *l == "WATCHDOG=1").count();
        told.extend(heard);
    }
    assert!((7..=20).contains(&signs), "{signs} signs of life in {:?}", begin.elapsed());
    assert!(told.iter().any(|l| l == "STATUS=0 VMs, 0 with an agent, 1 hypervisors do not answer"), "{told:?}");

    daemon.signal(Signal::TERM);
    manager.hear_until("STOPPING=1");
}

/// The watchdog is the loop's, not a timer's of its own: a process that is stopped is silent.
#[test]
fn a_daemon_that_stands_still_gives_no_sign_of_life() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = Manager(UnixDatagram::bind(&path).unwrap());
    let daemon = start(folder.path(), &path);
    manager.hear_until("READY=1");
    daemon.signal(Signal::STOP);
    // What was under way when it stopped.
    while manager.hear(WATCHDOG / 10).is_some() {}
    assert_eq!(manager.hear(2 * WATCHDOG), None);
    daemon.signal(Signal::CONT);
    manager.hear_until("WATCHDOG=1");
}
