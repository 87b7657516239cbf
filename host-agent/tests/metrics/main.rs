//! What the daemon shows of itself: metrics, the status page and its log, over VMs made of threads.

// The helpers of a test fail as the test does.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod logs;
mod page;
mod prometheus;
mod scrape;

use ballast_host::config::Config;
use ballast_host::daemon::Daemon;
use ballast_protocol::Bytes;
use common::fake::FakeVm;
use common::wait_for;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

/// A name that breaks whatever does not escape it.
const HOSTILE: &str = "<img src=x onerror=\"document.title='owned'\">\\ {vm=\"\"}";

/// A directory whose name leaves room in a socket's path.
fn directory() -> TempDir {
    tempfile::Builder::new().prefix("bm").tempdir_in("/tmp").unwrap()
}

/// A daemon in this process.
struct Host {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    runtime: Option<Runtime>,
}

impl Host {
    fn start(directory: &Path, vms: &[&FakeVm], more: &str) -> Self {
        let config = config(directory, vms, &format!("[metrics]\nlisten = \"127.0.0.1:0\"\n{more}"));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let daemon = runtime.block_on(Daemon::start(config)).unwrap();
        let address = daemon.web().unwrap();
        let (stop, stopped) = oneshot::channel();
        runtime.spawn(daemon.run(async { drop(stopped.await) }));
        Self { address, stop: Some(stop), runtime: Some(runtime) }
    }

    fn get(&self, path: &str) -> Answer {
        get(self.address, path, &self.address.to_string())
    }

    /// `/metrics`, once it says what is wanted.
    fn scrape_until(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        wait_for(what, || Some(self.get("/metrics").body).filter(|text| wanted(text)))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(2));
        }
    }
}

fn config_text(directory: &Path, vms: &[&FakeVm], more: &str) -> String {
    let path = directory.display();
    let vms: String = vms.iter().map(|vm| vm.config()).collect();
    format!("{more}\n[daemon]\nstate-dir = \"{path}/state\"\ncontrol-socket = \"{path}/control\"\n{vms}")
}

fn config(directory: &Path, vms: &[&FakeVm], more: &str) -> Config {
    let text = config_text(directory, vms, more);
    Config::parse(Path::new("test.toml"), &text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

fn get(address: SocketAddr, path: &str, host: &str) -> Answer {
    let mut stream = connect(address, path, host);
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP: {text}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

fn connect(address: SocketAddr, path: &str, host: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // An answer to HTTP/1.0 is not cut into chunks.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n").unwrap();
    stream
}

/// A program that not everybody has: in the path, or where `make setup` puts it. `None`, with a word about it: skip.
fn tool(name: &str, mend: &str) -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path.split(':').map(PathBuf::from).chain([target.join("tools/bin")]);
    let found = folders.map(|folder| folder.join(name)).find(|file| file.exists());
    if found.is_none() {
        common::skipped(&format!("{name} is not installed; {mend}"));
    }
    found
}

/// Three VMs: one with a hostile name and an agent, one that will be moved, one without an agent.
fn three(directory: &Path) -> [FakeVm; 3] {
    [
        FakeVm::start(directory, "a", HOSTILE, Bytes::mib(512), true),
        FakeVm::start(directory, "b", "web", Bytes::mib(1024), true),
        FakeVm::start(directory, "c", "bare", Bytes::mib(256), false),
    ]
}

/// Has a VM taken from, and then wants much of it back.
fn burst(host: &Host, vm: &FakeVm) {
    wait_for("a taking", || (vm.keeps() < Bytes::mib(600)).then_some(()));
    vm.want(Bytes::mib(700));
    wait_for("the memory", || (vm.keeps() > Bytes::mib(700)).then_some(()));
    host.scrape_until("the relief", |text| figure(text, "ballast_demand_relief_seconds_count") >= 1.0);
}

/// The value of the first sample that begins like this; zero when there is none.
fn figure(text: &str, begin: &str) -> f64 {
    let line = text.lines().find(|l| l.starts_with(begin));
    line.and_then(|l| l.rsplit(' ').next()).map_or(0.0, |v| v.parse().unwrap())
}
