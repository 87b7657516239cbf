//! The prober against real iperf3 servers, and against what is none, on loopback.
#![allow(clippy::unwrap_used)]

use ballast_host::clock::Clock;
use ballast_host::daemon::Event;
use ballast_host::prober::{Command, Prober, Settings, Target};
use ballast_planner::{Input, ServiceMode, ServiceSample, VmName};
use ballast_protocol::{Bytes, Micros};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(30);

/// iperf3 as a server on a free port; killed when dropped.
struct Server(Child, SocketAddr);

impl Server {
    fn start() -> Self {
        // Free a moment ago; another process would have to be quick.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let mut command = std::process::Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "iperf3", "-s", "-B", "127.0.0.1", "-p"]);
        let child = command.arg(address.port().to_string()).stdout(Stdio::null()).spawn().unwrap();
        let server = Self(child, address);
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(begun.elapsed() < PATIENCE, "iperf3 does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A prober of one VM that runs, and what it says.
struct Probing {
    commands: mpsc::UnboundedSender<Command>,
    events: mpsc::Receiver<Event>,
    task: tokio::task::JoinHandle<()>,
}

fn eager() -> Settings {
    // Twenty probes a second would be too many for anything but a test.
    let hour = Micros::secs(3_600);
    Settings {
        period: Micros::millis(300),
        time_per_hour: hour,
        traffic_per_hour: Bytes(1 << 45),
        ..Settings::default()
    }
}

fn web() -> VmName {
    VmName::from("web")
}

impl Probing {
    fn start(settings: Settings, service: SocketAddr) -> Self {
        let (commands, orders) = mpsc::unbounded_channel();
        let (sender, events) = mpsc::channel(64);
        let target = Target { vm: web(), service: Some(service), interface: Some("lo".to_owned()) };
        let prober = Prober::new(settings, &[target], orders, sender, Clock::start());
        commands.send(Command::Runs(web(), true)).unwrap();
        Self { commands, events, task: tokio::spawn(prober.run()) }
    }

    async fn event(&mut self) -> Event {
        tokio::time::timeout(PATIENCE, self.events.recv()).await.unwrap().unwrap()
    }

    /// The next sample of a probe.
    async fn sample(&mut self) -> ServiceSample {
        loop {
            match self.event().await {
                Event::Input(Input::Service { vm, sample }) if sample.mode != ServiceMode::Passive => {
                    assert_eq!(vm, web());
                    return sample;
                }
                _ => {}
            }
        }
    }

    /// What went wrong with the next probe.
    async fn problem(&mut self) -> String {
        loop {
            if let Event::Probed(status) = self.event().await {
                return status.problem.unwrap();
            }
        }
    }
}

/// Processes whose command line has all of these words.
fn processes(words: &[&str]) -> usize {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|p| std::fs::read(p.path().join("cmdline")).ok());
    let lines = lines.map(|l| String::from_utf8_lossy(&l).replace('\0', " "));
    lines.filter(|l| words.iter().all(|w| l.contains(w))).count()
}

#[tokio::test]
async fn a_real_server_is_measured_in_both_modes() {
    let server = Server::start();
    let mut probing = Probing::start(eager(), server.1);
    let (first, second) = (probing.sample().await, probing.sample().await);
    assert!(first.throughput > 10_000_000 && second.throughput > 10_000_000, "{first:?} {second:?}");
    assert!(second.retransmits.is_some() && second.rtt.is_some(), "{second:?}");
    assert!(second.duration < Micros::secs(5), "{second:?}");
    probing.task.abort();

    let limited = Settings { mode: ServiceMode::RateLimited, rate: 20_000_000, ..eager() };
    let mut probing = Probing::start(limited, server.1);
    let sample = probing.sample().await;
    assert_eq!(sample.mode, ServiceMode::RateLimited);
    assert!((10_000_000..40_000_000).contains(&sample.throughput), "{sample:?}");
}

#[tokio::test]
async fn a_server_that_comes_late_is_found() {
    let server = Server::start();
    let address = server.1;
    drop(server);
    let mut probing = Probing::start(eager(), address);
    let problem = probing.problem().await;
    let expected = format!("no iperf3 server at {address} (Connection refused)");
    assert!(problem.starts_with(&expected), "{problem}");
    let mut command = std::process::Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "iperf3", "-s", "-B", "127.0.0.1", "-p", &address.port().to_string()]);
    let _late = Server(command.stdout(Stdio::null()).spawn().unwrap(), address);
    probing.sample().await;
}

#[tokio::test]
async fn a_server_that_answers_nothing_and_one_that_talks_nonsense_are_named() {
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = silent.local_addr().unwrap();
    let mut probing = Probing::start(eager(), address);
    let begun = Instant::now();
    let problem = probing.problem().await;
    assert!(problem.contains(&format!("the server at {address} accepts connections and answers nothing")), "{problem}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let port = address.port().to_string();
    assert_eq!(processes(&["iperf3", "-c", &port]), 0, "its client is gone");
    probing.task.abort();

    let rude = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = rude.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in rude.incoming().flatten() {
            let _ = (&stream).write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let problem = Probing::start(eager(), address).problem().await;
    assert!(problem.starts_with(&format!("iperf3 to {address} failed")), "{problem}");
}

fn script(folder: &Path, text: &str) -> std::path::PathBuf {
    let path = folder.join("iperf3");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[tokio::test]
async fn a_program_that_is_missing_or_talks_nonsense_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
    let missing = Settings { program: Some(folder.path().join("none")), ..eager() };
    let problem = Probing::start(missing, address).problem().await;
    assert!(problem.contains("install the package `iperf3`"), "{problem}");

    let nonsense = Settings { program: Some(script(folder.path(), "echo '{\"end\":' 7")), ..eager() };
    let problem = Probing::start(nonsense, address).problem().await;
    assert_eq!(problem, format!("iperf3 to {address} said something that is not its JSON: `{{\"end\": 7`"));
}

/// A client that ignores the request to end is killed, and none outlives the prober.
#[tokio::test]
async fn no_client_stays() {
    let folder = tempfile::tempdir().unwrap();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
    let program = script(folder.path(), "trap '' TERM\nwhile :; do sleep 0.05; done");
    let words = [program.to_str().unwrap()];
    let stubborn = Settings { program: Some(program.clone()), ..eager() };
    let mut probing = Probing::start(stubborn.clone(), address);
    assert!(probing.problem().await.contains("answers nothing"));
    let begun = Instant::now();
    while processes(&words) > 0 {
        assert!(begun.elapsed() < PATIENCE, "it was killed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Nothing but the prober's end ends the next.
    drop(probing.commands);
    probing.task.abort();

    let probing = Probing::start(stubborn, address);
    while processes(&words) == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    probing.task.abort();
    while processes(&words) > 0 {
        assert!(begun.elapsed() < PATIENCE, "it goes with its prober");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The cheap version: loopback is an interface like any other.
#[tokio::test]
async fn traffic_is_seen_by_the_interfaces_counters() {
    let server = Server::start();
    let closed = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let disabled = Settings { enabled: false, ..eager() };
    let mut probing = Probing::start(disabled, closed);
    let begun = Instant::now();
    let load = std::process::Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--", "iperf3", "-c", "127.0.0.1", "-t", "12", "-b", "100M", "-p"])
        .arg(server.1.port().to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let _load = Server(load, server.1);
    loop {
        let Event::Input(Input::Service { sample, .. }) = probing.event().await else { panic!("nothing is probed") };
        assert_eq!(sample.mode, ServiceMode::Passive);
        if sample.throughput > 50_000_000 {
            break;
        }
        assert!(begun.elapsed() < PATIENCE);
    }
}
