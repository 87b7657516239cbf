//! A copy of the Debian image as a domain of the test's own libvirtd, in the shape that the shipped
//! `host-agent/packaging/domain.xml` recommends: the file itself is read, and every deviation from it is listed here.

use crate::common::libvirtd::Libvirtd;
use ballast_protocol::Bytes;
use ballast_tests::{HostAgent, Process, kernel_device, log_tail, paths};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};
use toml::Table;

pub const NAME: &str = "debian";
pub const MEMORY: Bytes = Bytes::mib(512);

/// A boot to the end takes 20 s under emulation on a quiet machine.
const BOOT: Duration = Duration::from_secs(120);
/// For one command, a burst included.
const COMMAND: Duration = Duration::from_secs(60);
/// The serial console's end, for whoever looks into a failure.
const TAIL: usize = 30;

/// The image; `None`, after a word about it that a test run does not swallow, where it has not been built.
pub fn image() -> Option<PathBuf> {
    let image = paths::guest("debian.qcow2");
    if image.exists() {
        return Some(image);
    }
    // Not by `eprintln`: what a test that passes has printed so is not shown.
    let word = format!("SKIPPED: {} is missing: run `make image-debian`\n", image.display());
    std::io::stderr().write_all(word.as_bytes()).unwrap();
    None
}

/// A domain with a disk of its own over the image. It ends with its libvirtd.
pub struct Vm {
    pub libvirtd: Libvirtd,
    /// Behind the vsock device while it runs, where the kernel has none.
    vsock: Option<Process>,
}

/// What a command in the guest said.
pub struct Said {
    pub status: i64,
    pub output: String,
}

impl Vm {
    /// Defines it, with a disk whose writes are kept apart from the image.
    pub fn define(image: &Path) -> Self {
        let vm = Self { libvirtd: Libvirtd::start(), vsock: None };
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]).arg(image.canonicalize().unwrap());
        assert!(create.arg(vm.disk()).status().expect("qemu-img: run `make setup`").success());
        let xml = vm.file("domain.xml");
        std::fs::write(&xml, vm.xml()).unwrap();
        // Against libvirt's schema too: it ignores elements that it does not know.
        let xml = xml.display().to_string();
        vm.try_virsh(&["define", "--validate", &xml]).unwrap();
        vm
    }

    /// The shipped domain with a smaller memory, this machine's means, and no network.
    fn xml(&self) -> String {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../host-agent/packaging/domain.xml");
        let mut xml = std::fs::read_to_string(shipped).unwrap();
        let mut replace = |from: &str, to: &str| {
            assert_eq!(xml.matches(from).count(), 1, "domain.xml has not exactly one `{from}`");
            xml = xml.replace(from, to);
        };
        let size = MEMORY.as_mib();
        replace("<domain type='kvm'>", "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>");
        replace("<name>ballast-example</name>", &format!("<name>{NAME}</name>"));
        replace("<memory unit='GiB'>4</memory>", &format!("<memory unit='MiB'>{size}</memory>"));
        replace("<ballast:min>512MiB</ballast:min>", "<ballast:min>64MiB</ballast:min>");
        replace("<ballast:max>4GiB</ballast:max>", &format!("<ballast:max>{size}MiB</ballast:max>"));
        replace("<cpu mode='host-passthrough' migratable='on'/>", "<cpu mode='maximum'/>");
        replace("/var/lib/libvirt/images/ballast-example.qcow2", &self.disk().display().to_string());
        replace(
            "    <interface type='network'>\n      <source network='default'/>\n      <model type='virtio'/>\n    \
             </interface>\n",
            "",
        );
        let console = format!("<serial type='file'><source path='{}'/></serial>", self.console().display());
        replace("<serial type='pty'/>", &console);
        replace("<console type='pty'/>", "");
        let current = format!("<currentMemory unit='MiB'>{size}</currentMemory>");
        if !kernel_device() {
            // The daemon maps the guest's memory; its device is one that libvirt does not know.
            let shared = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>";
            replace("<currentMemory unit='GiB'>4</currentMemory>", &format!("{current}{shared}"));
            replace("    <vsock model='virtio'>\n      <cid auto='yes'/>\n    </vsock>\n", "");
            let chardev = format!("socket,id=vsock,path={}", self.file("vhost").display());
            // QEMU makes this device before those of libvirt, which chooses their slots from the lowest.
            let args = ["-chardev", &chardev, "-device", "vhost-user-vsock-pci,chardev=vsock,bus=pcie.0,addr=0x1d"];
            let args: String = args.iter().map(|a| format!("<qemu:arg value='{a}'/>")).collect();
            replace("</domain>", &format!("<qemu:commandline>{args}</qemu:commandline></domain>"));
        } else {
            replace("<currentMemory unit='GiB'>4</currentMemory>", &current);
        }
        xml
    }

    fn file(&self, name: &str) -> PathBuf {
        self.libvirtd.directory().join(name)
    }

    fn console(&self) -> PathBuf {
        self.file("console")
    }

    fn disk(&self) -> PathBuf {
        self.file("disk.qcow2")
    }

    /// The end of its serial console.
    pub fn log(&self) -> String {
        log_tail(&self.console(), TAIL)
    }

    pub fn start(&mut self) {
        if !kernel_device() {
            self.vsock = Some(self.vsock_daemon());
        }
        self.try_virsh(&["start", NAME]).unwrap();
    }

    /// One for each start: vhost-device-vsock 0.3.0 does not outlive its VM in good order.
    fn vsock_daemon(&self) -> Process {
        let program = paths::required(paths::target().join("tools/bin/vhost-device-vsock"), "make setup").unwrap();
        let (socket, log) = (self.file("vhost"), self.file("vsock.log"));
        for old in [&socket, &self.file("vsock")] {
            let _ = std::fs::remove_file(old);
        }
        // The CID means nothing outside of this daemon.
        let vm = format!("guest-cid=3,socket={},uds-path={}", socket.display(), self.file("vsock").display());
        let daemon = Process::start(&program, &["--vm".into(), vm], &log).unwrap();
        let begun = Instant::now();
        while !socket.exists() {
            assert!(begun.elapsed() < COMMAND, "{}", log_tail(&log, TAIL));
            sleep(Duration::from_millis(5));
        }
        daemon
    }

    /// As an operator would, through the guest agent; waits until it is off.
    pub fn shut_down(&mut self) {
        self.try_virsh(&["shutdown", NAME, "--mode", "agent"]).unwrap();
        let begun = Instant::now();
        while self.libvirtd.virsh(&["domstate", NAME]).trim() != "shut off" {
            assert!(begun.elapsed() < BOOT, "it does not shut down\n{}", self.log());
            sleep(Duration::from_millis(100));
        }
        self.vsock = None;
    }

    /// Waits until commands can be run in the guest.
    pub fn wait_boot(&self) {
        let begun = Instant::now();
        while let Err(e) = self.try_virsh(&["qemu-agent-command", NAME, r#"{"execute":"guest-ping"}"#]) {
            assert!(begun.elapsed() < BOOT, "its guest agent does not answer: {e}\n{}", self.log());
            sleep(Duration::from_millis(200));
        }
    }

    /// Runs a shell command in the guest, as root.
    pub fn sh(&self, command: &str) -> Said {
        let arguments = json!({ "path": "/bin/sh", "arg": ["-c", command], "capture-output": true });
        let pid = self.guest_agent(&json!({ "execute": "guest-exec", "arguments": arguments }))["pid"].clone();
        let begun = Instant::now();
        let ended = loop {
            let ask = json!({ "execute": "guest-exec-status", "arguments": { "pid": pid } });
            let status = self.guest_agent(&ask);
            if status["exited"] == true {
                break status;
            }
            assert!(begun.elapsed() < COMMAND, "`{command}` does not end\n{}", self.log());
            sleep(Duration::from_millis(100));
        };
        let text = |field: &str| {
            let bytes = BASE64_STANDARD.decode(ended[field].as_str().unwrap_or_default()).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        // A signal in place of a status: as shells have it.
        let status = ended["exitcode"].as_i64().or_else(|| Some(128 + ended["signal"].as_i64()?));
        Said { status: status.expect("ended by itself or by a signal"), output: text("out-data") + &text("err-data") }
    }

    /// Runs a command that must succeed, and returns its output.
    pub fn sh_ok(&self, command: &str) -> String {
        let Said { status, output } = self.sh(command);
        assert_eq!(status, 0, "`{command}`: {output}\n{}", self.log());
        output
    }

    fn guest_agent(&self, command: &Value) -> Value {
        let answer = self.try_virsh(&["qemu-agent-command", NAME, &command.to_string()]);
        let answer = answer.unwrap_or_else(|e| panic!("{command}: {e}\n{}", self.log()));
        serde_json::from_str::<Value>(&answer).unwrap()["return"].clone()
    }

    /// `ballast-guest status` in the guest.
    pub fn agent_status(&self) -> Value {
        serde_json::from_str(&self.sh_ok("ballast-guest status --json")).unwrap()
    }

    /// `virsh`; what it said when it failed.
    pub fn try_virsh(&self, arguments: &[&str]) -> Result<String, String> {
        let mut virsh = Command::new("virsh");
        let Output { status, stdout, stderr } =
            virsh.arg("-q").arg("-c").arg(self.libvirtd.uri()).args(arguments).output().unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if status.success() { Ok(said(&stdout)) } else { Err(said(&stderr)) }
    }

    /// A host agent over it, and over nothing else of this machine.
    pub fn host_agent(&self, settings: Table) -> HostAgent {
        let mut config = HostAgent::config(&[]);
        config.insert("libvirt".into(), Table::from_iter([("uri".into(), self.libvirtd.uri().into())]).into());
        let mut vm = settings;
        vm.insert("name".into(), NAME.into());
        if !kernel_device() {
            vm.insert("vsock".into(), self.file("vsock").display().to_string().into());
            config.insert("daemon".into(), Table::from_iter([("vsock".into(), false.into())]).into());
        }
        config.insert("vm".into(), vec![toml::Value::from(vm)].into());
        HostAgent::start(config).unwrap()
    }
}
