//! The Debian image as its users have it: booted by its own boot loader under libvirt, in the domain that Ballast ships
//! as an example, its agent started by systemd.
//!
//! `cargo test -p ballast-tests --test debian -- --ignored --nocapture` measures what the agent costs that guest:
//! images/COST.md.
// The helpers of a test fail as the test does.
#![allow(clippy::unwrap_used)]

#[path = "../../../host-agent/tests/common/mod.rs"]
mod common;
mod cost;
#[path = "../support/mod.rs"]
mod support;
mod vm;

use ballast_protocol::Bytes;
use serde_json::Value;
use support::{count, known, wait_field, wait_for};
use toml::Table;
use vm::{NAME, Vm};

/// In one piece, and more than a squeezed guest has: `dd` allocates its block and reads zeros into all of it.
const BURST: Bytes = Bytes::mib(240);

#[test]
fn the_debian_image_boots_by_itself_and_survives_a_burst_under_libvirt() {
    let Some(image) = vm::image() else { return };
    let stamp = || image.metadata().map(|m| (m.len(), m.modified().unwrap())).unwrap();
    let before = stamp();
    let mut vm = Vm::define(&image);
    let folder = vm.libvirtd.directory().to_owned();
    vm.start();
    // Waits of 2 s between takings add up in a test, and five minutes for its page cache; and its free memory is taken although it
    // reports it to the host.
    let settings = [("cool-down", "500ms".into()), ("cold-after", "0s".into()), ("take-reported", true.into())];
    let settings = settings.map(|(key, value): (&str, toml::Value)| (key.to_owned(), value));
    let mut host = vm.host_agent(Table::from_iter(settings));

    wait_field(&host, NAME, "agent", "alive");
    vm.wait_boot();
    // The shape that domain.xml promises, as the doctor sees it on the running VM.
    let checks: Value = serde_json::from_str(&host.command(&["doctor", "--json"]).unwrap()).unwrap();
    for what in ["balloon", "deflate-on-oom", "statistics", "free page reporting", "agent"] {
        let name = format!("VM {NAME}: {what}");
        let check = checks.as_array().unwrap().iter().find(|c| c["name"] == name.as_str());
        assert_eq!(check.unwrap_or_else(|| panic!("no check `{name}`"))["state"], "ok", "{checks:#}");
    }

    // Squeezed until the burst is more than it has at hand.
    let squeezed = |status: &Value| status["slack"].as_u64().is_some_and(|slack| slack < BURST.0 / 2);
    wait_for("the guest to be squeezed", &host, || Some(known(&host, NAME)).filter(squeezed));
    let givings = count(&host, NAME, "givings");
    let burst = vm.sh(&format!("dd if=/dev/zero of=/dev/null bs={} count=1", BURST.0));
    assert_eq!(burst.status, 0, "{}\n{}\n{}", burst.output, host.log(), vm.log());
    assert!(count(&host, NAME, "givings") > givings, "it did not need the host\n{}", host.log());
    assert_eq!(vm.sh_ok("grep '^oom_kill ' /proc/vmstat").trim(), "oom_kill 0");
    let agent = vm.agent_status();
    assert_eq!((&agent["sessions"], &agent["connected"]), (&1.into(), &true.into()), "{agent}");

    // Nobody can log in, and systemd has nothing to complain about.
    let shadow = vm.sh_ok("cut -d: -f2 /etc/shadow | cut -c1 | sort -u | tr -d '\n'");
    assert!(shadow.chars().all(|c| "!*".contains(c)), "accounts begin with `{shadow}`");
    assert_eq!(vm.sh_ok("systemctl list-units --state=failed --plain --no-legend").trim(), "");

    vm.shut_down();
    wait_for("the VM to be forgotten", &host, || support::vm(&host, NAME).is_none().then_some(()));
    assert_eq!(vm.libvirtd.qemu(NAME), None);
    host.terminate().unwrap();
    drop(vm);
    assert!(!folder.exists(), "{} is left behind", folder.display());
    assert_eq!(stamp(), before, "the image was written to");
}
