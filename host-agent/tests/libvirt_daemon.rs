//! The daemon over a real libvirtd: it finds VMs, squeezes one without an agent by its balloon's statistics, hears the
//! agent of another, and loses none of them when libvirtd crashes.
#![cfg(feature = "libvirt")]
// The helpers of a test fail as the test does.
#![allow(clippy::unwrap_used)]

mod common;

use ballast_host::hypervisor::METADATA;
use ballast_protocol::{
    Capabilities, DEFAULT_PORT, GuestMessage, Hello, HostMessage, Limited, MAX_FRAME, Micros, VERSION, decode, encode,
};
use common::libvirtd::Libvirtd;
use common::{Dependant, initramfs, output, setup_file, wait_for};
use rustix::process::Signal;
use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 320 * MIB;
/// How long libvirtd is gone: longer than any deadline or pause of ours.
const GONE: Duration = Duration::from_secs(60);

fn domain(libvirtd: &Libvirtd, name: &str) -> String {
    let image = libvirtd.directory().join("i.cpio");
    let kernel = setup_file("vmlinuz").canonicalize().unwrap();
    format!(
        "<domain type='qemu'><name>{name}</name><memory unit='MiB'>320</memory><vcpu>1</vcpu>
        <os><type machine='pc'>hvm</type><kernel>{}</kernel><initrd>{}</initrd>
        <cmdline>quiet panic=-1</cmdline></os><features><acpi/></features><on_reboot>restart</on_reboot>
        <devices><emulator>/usr/bin/qemu-system-x86_64</emulator><memballoon model='virtio' autodeflate='on'/>
        <controller type='usb' model='none'/></devices></domain>",
        kernel.display(),
        image.display(),
    )
}

/// `ballast-host run`, as an operator starts it.
struct Host {
    process: Dependant,
    config: PathBuf,
}

impl Host {
    fn start(libvirtd: &Libvirtd) -> Self {
        let folder = libvirtd.directory().display();
        let config = libvirtd.directory().join("host.toml");
        // No AF_VSOCK on the machine that tests: the one agent arrives by the hybrid socket of its VM.
        let text = format!(
            "[metrics]\nenabled = false\n[daemon]\nstate-dir = \"{folder}/state\"\ncontrol-socket = \"{folder}/control\"\nvsock = false\n\
             [libvirt]\nuri = \"{}\"\n[[vm]]\nname = \"talks\"\nvsock = \"{folder}/vsock\"\n",
            libvirtd.uri()
        );
        std::fs::write(&config, text).unwrap();
        let process = Dependant::spawn(Command::new(binary()).args(["run", "--config"]).arg(&config));
        let host = Self { process, config };
        let control = libvirtd.directory().join("control");
        wait_for("the daemon", || UnixStream::connect(&control).ok());
        host
    }

    fn ask(&self, what: &[&str]) -> Vec<u8> {
        output(Command::new(binary()).args(what).arg("--config").arg(&self.config))
    }

    fn status(&self) -> Value {
        serde_json::from_slice(&self.ask(&["status", "--json"])).unwrap()
    }

    fn vm(&self, name: &str) -> Option<Value> {
        self.status()["vms"].as_array().unwrap().iter().find(|v| v["name"] == name).cloned()
    }

    fn hypervisor_error(&self) -> Value {
        self.status()["hypervisors"][0]["error"].clone()
    }
}

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_ballast-host"))
}

/// An agent that says Hello and is silent then; whether it was welcome.
fn agent(path: &Path) -> (UnixStream, HostMessage) {
    let mut stream = UnixStream::connect(path).unwrap();
    let hello = GuestMessage::Hello(Hello {
        oldest: VERSION,
        newest: VERSION,
        agent: Limited::cut("the test"),
        kernel: Limited::cut("none"),
        boot_id: [7; 16],
        now: Micros::secs(1),
        capabilities: Capabilities::default(),
    });
    let mut buffer = [0; MAX_FRAME];
    stream.write_all(encode(&hello, &mut buffer).unwrap()).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let payload = &mut buffer[..usize::from(u16::from_le_bytes(length))];
    stream.read_exact(payload).unwrap();
    let answer = decode(payload).unwrap();
    (stream, answer)
}

/// One test, because starting a libvirtd and its guests is what takes time.
#[test]
fn the_daemon_over_libvirt_squeezes_without_an_agent_and_survives_libvirtd() {
    let mut libvirtd = Libvirtd::start();
    initramfs(libvirtd.directory());
    for name in ["quiet", "talks"] {
        libvirtd.define(name, &domain(&libvirtd, name));
    }
    libvirtd.virsh(&["start", "quiet"]);
    let mut host = Host::start(&libvirtd);

    // Found, with what its XML says; one that is off is waited for, and known as soon as it starts.
    let quiet = wait_for("the VM", || host.vm("quiet"));
    assert_eq!((&quiet["max"], &quiet["agent"]), (&SIZE.into(), &"never".into()), "{quiet}");
    assert_eq!((&quiet["deflate_on_oom"], &quiet["running"]), (&true.into(), &true.into()), "{quiet}");
    assert_eq!(host.status()["waiting"][0]["name"], "talks");
    assert_eq!(host.hypervisor_error(), Value::Null);
    libvirtd.virsh(&["start", "talks"]);
    wait_for("the VM that starts", || host.vm("talks"));
    assert_eq!(host.status()["waiting"], serde_json::json!([]));

    // Its agent calls.
    let socket = libvirtd.directory().join(format!("vsock_{DEFAULT_PORT}"));
    let (session, answer) = agent(&socket);
    assert!(matches!(answer, HostMessage::Welcome(_)), "{answer:?}");
    wait_for("the agent", || (host.vm("talks")?["agent"] == "alive").then_some(()));
    drop(session);
    wait_for("the agent's end", || (host.vm("talks")?["agent"] != "alive").then_some(()));

    // Paused: said at once, by libvirt's own event.
    libvirtd.virsh(&["suspend", "talks"]);
    wait_for("the pause", || (host.vm("talks")?["running"] == false).then_some(()));
    libvirtd.virsh(&["resume", "talks"]);
    wait_for("the end of the pause", || (host.vm("talks")?["running"] == true).then_some(()));

    // Without an agent the balloon's statistics are read, and what is free beyond a wide margin is taken.
    let quiet = wait_for("statistics", || host.vm("quiet").filter(|v| v["available"].is_u64()));
    assert!(quiet["available"].as_u64().unwrap() < SIZE, "{quiet}");
    wait_for("a taking", || (host.vm("quiet")?["actual"].as_u64()? < SIZE).then_some(()));
    let dommemstat = libvirtd.virsh(&["dommemstat", "quiet"]);
    let actual = dommemstat.lines().find_map(|l| l.strip_prefix("actual ")).unwrap().parse::<u64>().unwrap();
    assert!(actual << 10 < SIZE, "{dommemstat}");

    // libvirtd crashes: the daemon says so, forgets no VM, and goes on when it is back.
    libvirtd.kill();
    wait_for("the loss of libvirtd", || host.hypervisor_error().is_string().then_some(()));
    wait_for("its figures to be unknown", || host.vm("quiet")?["actual"].is_null().then_some(()));
    let (_session, answer) = agent(&socket);
    assert!(matches!(answer, HostMessage::Welcome(_)), "an agent is heard without libvirtd: {answer:?}");
    // A minute later all is as it was: nothing was ordered that could not be, and no VM was forgotten.
    let qemu = libvirtd.qemu("quiet");
    std::thread::sleep(GONE);
    assert!(host.hypervisor_error().is_string() && host.vm("talks").is_some() && host.vm("quiet").is_some());
    assert!(qemu.is_some() && libvirtd.qemu("quiet") == qemu);
    libvirtd.start_again();
    wait_for("libvirtd's return", || host.hypervisor_error().is_null().then_some(()));
    let back = wait_for("its VM", || host.vm("quiet").filter(|v| v["actual"].is_u64()));
    assert!(back["target"].as_u64().unwrap() < SIZE, "a jump after libvirtd's restart: {back}");

    // What its domain says of it counts, as soon as it is said, and a mistake in it changes nothing.
    let namespace = ["metadata", "quiet", METADATA, "--live"];
    let say = |libvirtd: &Libvirtd, text: &str| {
        libvirtd.virsh(&[&namespace[..], &["--key", "ballast", "--set", text]].concat());
    };
    let begun = std::time::Instant::now();
    say(&libvirtd, "<vm><min>200MiB</min><weight>300</weight><class>high</class></vm>");
    let min = |host: &Host| host.vm("quiet").unwrap()["min"].as_u64().unwrap();
    wait_for("the minimum by metadata", || (min(&host) == 200 * MIB).then_some(()));
    println!("metadata known after {:?}", begun.elapsed());
    let quiet = host.vm("quiet").unwrap();
    assert_eq!((&quiet["weight"], &quiet["class"]), (&300.into(), &"high".into()), "{quiet}");
    let problem = |host: &Host| host.status()["problems"][0].as_str().map(str::to_owned);
    say(&libvirtd, "<vm><min>a lot</min><weight>400</weight></vm>");
    let said = wait_for("the mistake to be told", || problem(&host));
    for part in [
        "VM `quiet`: the <metadata> of its domain is not used: <min>: `a lot` is not a memory size",
        "virsh metadata quiet https://ballast.dev/domain/1 --edit --key ballast",
        "until then what it said before holds",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let explained = String::from_utf8(host.ask(&["explain", "quiet"])).unwrap();
    assert!(explained.contains("<metadata> of its domain is not used"), "{explained}");
    // Long enough for a regular look.
    std::thread::sleep(Duration::from_secs(6));
    let quiet = host.vm("quiet").unwrap();
    assert_eq!((min(&host), &quiet["weight"], &quiet["class"]), (200 * MIB, &300.into(), &"high".into()), "{quiet}");
    libvirtd.virsh(&[&namespace[..], &["--remove"]].concat());
    wait_for("the settings without metadata", || (min(&host) == 64 * MIB).then_some(()));
    assert_eq!(problem(&host), None);

    // One whose metadata was never right is left alone: it has all its memory until that is corrected.
    libvirtd.virsh(&["destroy", "talks"]);
    wait_for("the VM to be forgotten", || host.vm("talks").is_none().then_some(()));
    let set = ["metadata", "talks", METADATA, "--config", "--key", "ballast", "--set"];
    libvirtd.virsh(&[&set[..], &["<vm><min>200MiB</min><exmpt>true</exmpt></vm>"]].concat());
    libvirtd.virsh(&["start", "talks"]);
    let talks = wait_for("hands off", || {
        host.vm("talks").filter(|v| v["holding"].as_str().is_some_and(|why| why.contains("exempt")))
    });
    assert_eq!(talks["target"], SIZE, "{talks}");
    assert!(problem(&host).is_some_and(|p| p.contains("did you mean `exempt`?") && p.contains("hands off")));
    let live = ["metadata", "talks", METADATA, "--live", "--key", "ballast", "--set"];
    libvirtd.virsh(&[&live[..], &["<vm><min>200MiB</min></vm>"]].concat());
    wait_for("the minimum", || (host.vm("talks")?["min"] == 200 * MIB).then_some(()));
    assert_eq!(problem(&host), None);

    // Saved: gone. Restored: found as it was.
    let kept = host.vm("quiet").unwrap()["actual"].as_u64().unwrap();
    let state = libvirtd.directory().join("saved").display().to_string();
    libvirtd.virsh(&["save", "quiet", &state]);
    wait_for("the VM that is saved to be forgotten", || host.vm("quiet").is_none().then_some(()));
    libvirtd.virsh(&["restore", &state]);
    let restored = wait_for("the VM that is restored", || host.vm("quiet").filter(|v| v["actual"].is_u64()));
    assert!(restored["actual"].as_u64().unwrap() <= kept + 8 * MIB, "{kept}, then {restored}");
    wait_for("its statistics", || host.vm("quiet")?["available"].is_u64().then_some(()));

    // Stopped: forgotten.
    libvirtd.virsh(&["destroy", "quiet"]);
    wait_for("the VM to be forgotten", || host.vm("quiet").is_none().then_some(()));
    assert!(host.vm("talks").is_some());

    // Drained.
    host.process.signal(Signal::TERM);
    wait_for("the end of the daemon", || (!libvirtd.directory().join("control").exists()).then_some(()));
    wait_for("the agents' socket to go", || (!socket.exists()).then_some(()));
    host.process.kill();
}
