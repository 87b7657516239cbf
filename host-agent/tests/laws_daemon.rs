//! The daemon under other laws than ours, over two real QEMUs without an agent: it is restarted with one law after
//! another, shows which one rules and why it moved what, and each journal replays.

// The helpers of a test fail as the test does.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Dependant, initramfs, output, program, setup_file, wait_for};
use rustix::process::Signal;
use serde_json::Value;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const MIB: u64 = 1 << 20;

fn qemu(directory: &Path, name: &str) -> Dependant {
    Dependant::spawn(
        Command::new(program("qemu-system-x86_64"))
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-m", "192", "-M", "pc"])
            .arg("-kernel")
            .arg(setup_file("vmlinuz"))
            .arg("-initrd")
            .arg(directory.join("i.cpio"))
            .args(["-append", "quiet panic=-1", "-device", "virtio-balloon-pci,deflate-on-oom=on"])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", directory.join(name).display())),
    )
}

/// `ballast-host run` with a folder of its own.
struct Host {
    process: Dependant,
    config: PathBuf,
    folder: PathBuf,
}

impl Host {
    fn start(directory: &Path, law: &str, more: &str) -> Self {
        let folder = directory.join(law);
        std::fs::create_dir(&folder).unwrap();
        let (config, path) = (folder.join("host.toml"), folder.display());
        let vm = |name: &str| format!("[[vm]]\nname = \"{name}\"\nqmp = \"{}\"\n", directory.join(name).display());
        let text = format!(
            "[metrics]\nenabled = false\n[daemon]\nstate-dir = \"{path}\"\ncontrol-socket = \"{path}/control\"\n[law]\nname = \"{law}\"\n{more}\n{}{}\
             fixed-size = \"128MiB\"\n",
            vm("b"),
            vm("a"),
        );
        std::fs::write(&config, text).unwrap();
        let process = Dependant::spawn(Command::new(binary()).args(["run", "--config"]).arg(&config));
        wait_for("the daemon", || UnixStream::connect(folder.join("control")).ok());
        Self { process, config, folder }
    }

    fn ask(&self, what: &[&str]) -> Vec<u8> {
        output(Command::new(binary()).args(what).arg("--config").arg(&self.config))
    }

    fn status(&self) -> Value {
        serde_json::from_slice(&self.ask(&["status", "--json"])).unwrap()
    }

    /// What the two VMs keep, in MiB, once both are there.
    fn kept(&self) -> Option<[u64; 2]> {
        let status = self.status();
        let vms = status["vms"].as_array().unwrap();
        let kept = |name| vms.iter().find(|vm| vm["name"] == name)?["actual"].as_u64().map(|n| n / MIB);
        Some([kept("a")?, kept("b")?])
    }

    /// Ends it; its journal replays.
    fn stop(mut self) {
        self.process.signal(Signal::TERM);
        wait_for("its end", || (!self.folder.join("control").exists()).then_some(()));
        self.process.kill();
        let said = output(Command::new(binary()).arg("replay").arg(self.folder.join("journal")));
        let said = String::from_utf8(said).unwrap();
        assert!(said.contains("every decision is the same"), "{said}");
    }
}

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_ballast-host"))
}

#[test]
fn one_law_after_another_on_the_same_vms() {
    let directory = tempfile::Builder::new().prefix("bl").tempdir_in("/tmp").unwrap();
    let directory = directory.path();
    initramfs(directory);
    let _machines = [qemu(directory, "a"), qemu(directory, "b")];

    let host = Host::start(directory, "fixed", "");
    assert_eq!(host.status()["law"], "fixed");
    wait_for("a at its fixed size, b at all it has", || host.kept().filter(|k| *k == [128, 192]));
    let explained = String::from_utf8(host.ask(&["explain", "a"])).unwrap();
    assert!(explained.contains("take: 192 MiB -> 128 MiB: law fixed: its fixed-size is 128 MiB"), "{explained}");
    host.stop();

    // 320 of 320 MiB are used and 80 % wanted: 64 have to come from both, down to 10 of dead band.
    let host = Host::start(directory, "proxmox", "[host]\nbudget = \"320MiB\"");
    wait_for("the VMs within their goal", || host.kept().filter(|[a, b]| a + b <= 256 + 10));
    let (status, text) = (host.status(), String::from_utf8(host.ask(&["status"])).unwrap());
    assert_eq!(status["host"]["total"], 320 * MIB);
    assert!(text.contains("law proxmox: ") && text.contains(" of 320 MiB are available on the host"), "{text}");
    let explained = String::from_utf8(host.ask(&["explain", "b"])).unwrap();
    assert!(explained.contains("law proxmox: 320 MiB of the host's 320 MiB used, 80 % wanted"), "{explained}");
    host.stop();

    // And nothing more, not even back.
    let host = Host::start(directory, "static", "");
    let kept = wait_for("the VMs", || host.kept());
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(host.kept(), Some(kept));
    assert!(kept[0] + kept[1] <= 256 + 10, "{kept:?}");
    host.stop();
}
