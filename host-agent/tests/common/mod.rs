//! A real machine for the tests of the hypervisor backends: a stock kernel, busybox, and the balloon's driver.
//!
//! Smaller than the guest of the end-to-end tests on purpose: nothing of ours runs in it, so these tests need no image
//! and say something about the backends alone.

// Each test file is a crate of its own and uses its share.
#![allow(dead_code)]

pub mod fake;
pub mod libvirtd;
pub mod quiet;
pub mod schema;
pub mod script;

use ballast_host::hypervisor::{Event, What};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedReceiver;

/// A boot takes 3 s on a quiet machine under TCG, and 20 on one that compiles.
pub const LONG: Duration = Duration::from_secs(90);

/// A test that cannot run here says so; `scripts/test.sh` counts these lines.
pub fn skipped(why: &str) {
    // Not by `eprintln`: what a test that passes has printed so is not shown.
    std::io::stderr().write_all(format!("SKIPPED: {why}\n").as_bytes()).unwrap();
}

/// What `make setup` puts into the target folder.
pub fn setup_file(name: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    let file = target.join("guest").join(name);
    assert!(file.exists(), "{} is missing: run `make setup`", file.display());
    file
}

/// A program that `make setup` installs.
pub fn program(name: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let found = path.split(':').map(|d| Path::new(d).join(name)).find(|p| p.exists());
    found.unwrap_or_else(|| panic!("{name} is not installed: run `make setup`"))
}

/// Writes an initramfs into `directory` that loads the balloon driver and then sleeps for ever.
pub fn initramfs(directory: &Path) -> PathBuf {
    let tree = directory.join("tree");
    for d in ["bin", "dev", "proc", "m"] {
        std::fs::create_dir_all(tree.join(d)).unwrap();
    }
    std::fs::copy(program("busybox"), tree.join("bin/busybox")).unwrap();
    let mut order = Vec::new();
    for module in ["virtio_pci", "virtio_balloon"] {
        add_module(module, &tree.join("m"), &mut order);
    }
    let loads: String = order.iter().map(|m| format!("$b insmod /m/{m}.ko\n")).collect();
    let init = format!(
        "#!/bin/busybox sh\nb=/bin/busybox\n$b mount -t devtmpfs d /dev\n$b mount -t proc p /proc\n\
         exec >/dev/console 2>&1\n{loads}echo READY\nwhile :; do $b sleep 1000; done\n"
    );
    std::fs::write(tree.join("init"), init).unwrap();
    let image = directory.join("i.cpio");
    run(Command::new("sh")
        .current_dir(&tree)
        .arg("-c")
        .arg(format!("chmod 755 init && find . -mindepth 1 | cpio --quiet -o -H newc > {}", image.display())));
    image
}

/// Unpacks a module and what it depends on, in load order.
fn add_module(name: &str, into: &Path, order: &mut Vec<String>) {
    if order.iter().any(|m| m == name) {
        return;
    }
    let modules = setup_file("modules");
    let pattern = format!("{}.ko*", name.replace('_', "[-_]"));
    let found = output(Command::new("find").arg("-H").arg(&modules).args(["-name", &pattern]));
    let found = String::from_utf8(found).unwrap();
    // Not a file: built into this kernel.
    let Some(file) = found.lines().next().map(PathBuf::from) else { return };
    let copy = into.join(format!("{name}.ko"));
    let mut unpack = match file.extension().and_then(|e| e.to_str()) {
        Some("ko") => Command::new("cat"),
        Some("xz") => Command::new("xzcat"),
        Some("zst") => Command::new("zstdcat"),
        other => panic!("unknown compression {other:?}"),
    };
    let plain = output(unpack.arg(&file));
    std::fs::write(&copy, &plain).unwrap();
    // The `depends=` string of the .modinfo section.
    let begin = plain.windows(9).position(|w| w == b"\0depends=").map_or(plain.len(), |p| p + 9);
    let depends: Vec<u8> = plain[begin..].iter().copied().take_while(|b| *b != 0).collect();
    for dependency in String::from_utf8(depends).unwrap().split(',').filter(|d| !d.is_empty()) {
        add_module(&dependency.replace('-', "_"), into, order);
    }
    order.push(name.to_owned());
}

pub fn run(command: &mut Command) {
    output(command);
}

pub fn output(command: &mut Command) -> Vec<u8> {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A child that dies with this test, however it ends: by its drop, and by the kernel if the test is killed.
#[derive(Debug)]
pub struct Dependant(Child);

impl Dependant {
    pub fn spawn(command: &mut Command) -> Self {
        let mut wrapped = Command::new(program("setpriv"));
        wrapped.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            wrapped.env(key, value.unwrap_or_default());
        }
        Self(wrapped.stdin(Stdio::null()).spawn().unwrap_or_else(|e| panic!("{command:?}: {e}")))
    }

    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.0)
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// Until it has ended.
    pub fn wait(&mut self) {
        let _ = self.0.wait();
    }

    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Dependant {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Calls until there is something; fails with `what` after [`LONG`].
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(begin.elapsed() < LONG, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Takes events until the wanted one; returns those before it.
pub fn expect_event(events: &mut UnboundedReceiver<Event>, vm: &str, wanted: impl Fn(&What) -> bool, name: &str) {
    let mut seen = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < LONG {
        match events.try_recv() {
            Ok(event) if event.vm.0 == vm && wanted(&event.what) => return,
            Ok(event) => seen.push(event),
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    panic!("no event {name} for {vm}; seen: {seen:?}");
}

/// Median and the 99th of a hundred.
pub fn quantiles(mut spans: Vec<Duration>) -> (Duration, Duration) {
    spans.sort();
    (spans[spans.len() / 2], spans[spans.len() * 99 / 100])
}
