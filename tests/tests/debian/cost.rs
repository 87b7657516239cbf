//! What the agent costs the Debian guest: the figures of images/COST.md that `ballast-lab bench` does not have, because
//! its guest has no systemd.
//!
//! ```text
//!   boots     two disks of the image, with the agent and without it, booted in turns
//!   running   no host agent; squeezed and idle; bursts
//! ```

use crate::support::{known, wait_for};
use crate::vm::{self, NAME, Vm};
use ballast_protocol::Bytes;
use ballast_tests::{HostAgent, paths};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use serde_json::Value;
use std::thread::sleep;
use std::time::{Duration, Instant};
use toml::Table as Settings;

/// Boots of each kind.
const BOOTS: usize = 5;
const SPAN: Duration = Duration::from_secs(60);
/// The balloon has come to rest when it has not moved for this long.
const REST: Duration = Duration::from_secs(8);
/// Every 5 s, more than the headroom of a squeezed guest.
const BURST: Bytes = Bytes::mib(150);

#[derive(Debug, Serialize)]
struct Cost {
    /// From the kernel's start to the end of systemd's start-up, seconds.
    boot_with_s: Vec<f64>,
    boot_without_s: Vec<f64>,
    /// From the kernel's start to the welcome by the host agent.
    session_s: Vec<f64>,
    running: Vec<Running>,
}

#[derive(Debug, Serialize)]
struct Running {
    state: &'static str,
    cpu_percent: f64,
    wakeups_s: f64,
    /// `None`: another session began meanwhile, and its count with it.
    wire_bytes_s: Option<f64>,
    resident: u64,
    /// Its share, where pages are shared with others.
    proportional: u64,
}

/// One look at the agent.
struct Look {
    uptime_s: f64,
    cpu_us: u64,
    wakeups: u64,
    resident: u64,
    proportional: u64,
    /// Sessions so far, and bytes in the last one.
    wire: (u64, u64),
}

#[test]
#[ignore = "a measurement of some minutes, for images/COST.md"]
fn what_the_agent_costs_a_debian_guest() {
    let Some(image) = vm::image() else { return };
    // Each has booted once: the first boot makes keys and journals.
    let prepared = |command: &str| {
        let mut vm = Vm::define(&image);
        vm.start();
        vm.wait_boot();
        vm.sh_ok(command);
        vm.shut_down();
        vm
    };
    let mut with = prepared("systemctl is-system-running --wait");
    let mut without =
        prepared("systemctl disable ballast-guest && rm /usr/lib/modules-load.d/ballast-guest.conf && sync");

    let mut cost = Cost { boot_with_s: vec![], boot_without_s: vec![], session_s: vec![], running: vec![] };
    let exempt = || Settings::from_iter([("exempt".into(), true.into())]);
    let hosts = [with.host_agent(exempt()), without.host_agent(exempt())];
    for _ in 0..BOOTS {
        with.start();
        cost.boot_with_s.push(booted(&with));
        let said = with.sh_ok("cut -d ' ' -f 1 /proc/uptime; ballast-guest status --json");
        let (uptime, status) = said.split_once('\n').unwrap();
        let status: Value = serde_json::from_str(status).unwrap();
        let session = status["session_us"].as_u64().expect("a session");
        cost.session_s.push(uptime.parse::<f64>().unwrap() - session as f64 / 1e6);
        with.shut_down();
        without.start();
        cost.boot_without_s.push(booted(&without));
        without.shut_down();
    }
    drop(hosts);
    drop(without);

    with.start();
    booted(&with);
    cost.running.push(running(&with, "no host agent", || sleep(SPAN)));
    let host = with.host_agent(Settings::from_iter([("take-reported".to_owned(), true.into())]));
    wait_for("the agent", &host, || (known(&host, NAME)["agent"] == "alive").then_some(()));
    come_to_rest(&host);
    cost.running.push(running(&with, "idle, squeezed", || sleep(SPAN)));
    let bursts = || {
        let begun = Instant::now();
        while begun.elapsed() < SPAN {
            with.sh_ok(&format!("dd if=/dev/zero of=/dev/null bs={} count=1 2>&1; sleep 5", BURST.0));
        }
    };
    cost.running.push(running(&with, "bursts of 150 MiB every 5 s", bursts));
    with.shut_down();

    println!("{}", tables(&cost));
    let folder = paths::target().join("debian");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("cost.json"), serde_json::to_vec_pretty(&cost).unwrap()).unwrap();
    // What the design allows in memory, whatever it does. Times are for people: this machine may be busy.
    assert!(cost.running.iter().all(|r| r.resident < 6 << 20), "{cost:?}");
}

/// Waits until systemd has started everything; how long the kernel has been running then, seconds.
fn booted(vm: &Vm) -> f64 {
    vm.wait_boot();
    vm.sh("systemctl is-system-running --wait");
    let finished = vm.sh_ok("systemctl show --property=FinishTimestampMonotonic --value");
    finished.trim().parse::<f64>().unwrap() / 1e6
}

fn come_to_rest(host: &HostAgent) {
    let (mut size, mut since) = (Value::Null, Instant::now());
    wait_for("the balloon to rest", host, || {
        let vm = known(host, NAME);
        if vm["actual"] != size {
            (size, since) = (vm["actual"].clone(), Instant::now());
        }
        (vm["actual"] != vm["max"] && since.elapsed() > REST).then_some(())
    });
}

fn running(vm: &Vm, state: &'static str, work: impl FnOnce()) -> Running {
    let before = look(vm);
    work();
    let after = look(vm);
    let seconds = after.uptime_s - before.uptime_s;
    Running {
        state,
        cpu_percent: (after.cpu_us - before.cpu_us) as f64 / 1e4 / seconds,
        wakeups_s: (after.wakeups - before.wakeups) as f64 / seconds,
        wire_bytes_s: (before.wire.0 == after.wire.0).then(|| (after.wire.1 - before.wire.1) as f64 / seconds),
        resident: after.resident,
        proportional: after.proportional,
    }
}

fn look(vm: &Vm) -> Look {
    // CPU time by the agent's own account: /proc has hundredths of a second only, and this kernel no schedstat.
    let said = vm.sh_ok(
        "p=/proc/$(systemctl show --property=MainPID --value ballast-guest); cut -d ' ' -f 1 /proc/uptime
        cat $p/task/*/status | awk '/^voluntary_ctxt_switches/ { n += $2 } END { print n }'
        awk '/^Rss:|^Pss:/ { print $2 }' $p/smaps_rollup
        ballast-guest status --json",
    );
    let lines: Vec<&str> = said.lines().collect();
    let number = |line: usize| lines[line].parse::<u64>().unwrap_or_else(|e| panic!("{e}: {said}"));
    let status: Value = serde_json::from_str(lines[4]).unwrap_or_else(|e| panic!("{e}: {said}"));
    let count = |field: &str| status[field].as_u64().unwrap_or_else(|| panic!("no {field}: {said}"));
    Look {
        uptime_s: lines[0].parse().unwrap(),
        cpu_us: count("cpu_us"),
        wakeups: number(1),
        resident: number(2) << 10,
        proportional: number(3) << 10,
        wire: (count("sessions"), count("sent_bytes") + count("received_bytes")),
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// In Markdown, so that the page can quote a run as it is.
fn tables(cost: &Cost) -> String {
    let mut boots = Table::new();
    boots.load_preset(presets::ASCII_MARKDOWN).set_header(["from the kernel's start, s", "median", "least", "most"]);
    for (name, values) in [
        ("systemd is through, with the agent", &cost.boot_with_s),
        ("systemd is through, without", &cost.boot_without_s),
        ("the agent's session stands", &cost.session_s),
    ] {
        let (least, most) = values.iter().fold((f64::MAX, f64::MIN), |(l, m), v| (v.min(l), v.max(m)));
        boots.add_row([name.to_owned()].into_iter().chain([median(values), least, most].map(|v| format!("{v:.2}"))));
    }
    let mut running = Table::new();
    running.load_preset(presets::ASCII_MARKDOWN);
    running.set_header(["the agent", "one CPU, %", "wakeups/s", "wire, bytes/s", "resident", "proportional"]);
    for r in &cost.running {
        running.add_row([
            r.state.to_owned(),
            format!("{:.2}", r.cpu_percent),
            format!("{:.1}", r.wakeups_s),
            r.wire_bytes_s.map_or_else(|| "session renewed".to_owned(), |bytes| format!("{bytes:.0}")),
            Bytes(r.resident).to_string(),
            Bytes(r.proportional).to_string(),
        ]);
    }
    for table in [&mut boots, &mut running] {
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!("{boots}\n\n{running}")
}
