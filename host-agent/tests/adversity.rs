//! A daemon in adversity: killed in the middle of a crunch, called by all agents at once, without a disk for its journal.
//! No VM below its guarantee, nothing lost, and a clear word. Over VMs made of a script.
// The helpers of a test fail as the test does.
#![allow(clippy::unwrap_used)]

mod common;

use ballast_protocol::Bytes;
use common::script::{FakeVm, Host, folder};
use common::{output, program, wait_for};
use rustix::process::Signal;
use std::process::Command;
use std::time::{Duration, Instant};

const SIZE: Bytes = Bytes::mib(512);
const LEAST: Bytes = Bytes::mib(128);

/// Every order of every VM left it its guarantee and what it used at that moment.
fn nobody_was_harmed(vms: &[FakeVm], host: &Host) {
    for vm in vms {
        let state = vm.state();
        for (keep, floor) in &state.orders {
            assert!(*keep >= LEAST, "{} was to keep {keep}\n{}", vm.name, host.log());
            // The report that an order rests on is up to a report's interval old, and a step takes 64 MiB at most.
            assert!(*keep + Bytes::mib(64) >= *floor, "{} was to keep {keep} of {floor}\n{}", vm.name, host.log());
        }
    }
}

fn kept(vms: &[FakeVm]) -> Bytes {
    vms.iter().map(FakeVm::actual).sum()
}

/// An upgrade is a restart: the daemon is ended in the middle of it, and killed in the middle of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarted_in_the_middle_of_a_crunch() {
    let folder = folder();
    let vms: Vec<FakeVm> = (0..6).map(|n| FakeVm::start(folder.path(), &format!("vm{n}"), SIZE, true)).collect();
    let budget = Bytes::mib(1_700);
    let tables: String = vms.iter().map(|vm| vm.table("min = \"128MiB\"\ncool-down = \"200ms\"")).collect();
    let mut host = Host::start(folder.path(), &("[host]\nbudget = \"1700MiB\"\n".to_owned() + &tables));
    // 3 GiB are there and 1.7 may be kept: everybody gives first.
    wait_for("the fleet within the budget", || (kept(&vms) <= budget).then_some(()));
    // Then all want more than there is.
    for vm in &vms {
        vm.state().wanted = Bytes::mib(400);
    }
    wait_for("the crunch", || {
        let short = host.status()["vms"].as_array().unwrap().iter().filter(|v| v["want"].is_u64()).count();
        (short > 0).then_some(())
    });
    for round in 0..4 {
        let before: Vec<Bytes> = vms.iter().map(FakeVm::actual).collect();
        if round % 2 == 0 {
            // In full flight, the way a crash does it.
            host.restart();
        } else {
            host.signal(Signal::TERM);
            wait_for("its end", || (!folder.path().join("control").exists()).then_some(()));
            host.restart();
        }
        wait_for("all agents", || {
            let status = host.status();
            let alive = status["vms"].as_array().unwrap().iter().filter(|v| v["agent"] == "alive").count();
            (alive == vms.len()).then_some(())
        });
        // Found as they were: who wants more has lost nothing.
        for (vm, before) in vms.iter().zip(before).filter(|(vm, _)| vm.state().wanted > Bytes::mib(20)) {
            assert!(
                vm.actual() + Bytes::mib(64) >= before,
                "{}: {before}, then {}\n{}",
                vm.name,
                vm.actual(),
                host.log()
            );
        }
        assert!(kept(&vms) <= budget, "{} of {budget}\n{}", kept(&vms), host.log());
        // Somebody leaves and somebody else may have it.
        vms[round].state().wanted = Bytes::mib(20);
        std::thread::sleep(Duration::from_secs(1));
    }
    let rest = &vms[4..];
    wait_for("those who still want it to have all they want", || {
        rest.iter().all(|vm| vm.state().used == Bytes::mib(400)).then_some(())
    });
    assert!(kept(&vms) <= budget, "{} of {budget}\n{}", kept(&vms), host.log());
    nobody_was_harmed(&vms, &host);
    host.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_that_reconnects_all_at_once() {
    const FLEET: usize = 60;
    let folder = folder();
    let vms: Vec<FakeVm> = (0..FLEET).map(|n| FakeVm::start(folder.path(), &format!("vm{n}"), SIZE, true)).collect();
    let tables: String = vms.iter().map(|vm| vm.table("min = \"128MiB\"")).collect();
    let mut host = Host::start(folder.path(), &tables);
    let all_alive = |host: &Host| {
        let status = host.status();
        let alive = status["vms"].as_array().unwrap().iter().filter(|v| v["agent"] == "alive").count();
        (alive == FLEET).then_some(())
    };
    wait_for("all agents", || all_alive(&host));
    wait_for("some takings", || vms.iter().all(|vm| vm.actual() < SIZE).then_some(()));
    for _ in 0..2 {
        let before: Vec<_> = vms
            .iter()
            .map(|vm| {
                let state = vm.state();
                (state.sessions, state.actual)
            })
            .collect();
        // Each calls again within 20 ms of the listener's return.
        host.restart();
        let begun = Instant::now();
        wait_for("all agents again", || all_alive(&host));
        println!("{FLEET} agents back after {:?}", begun.elapsed());
        for (vm, (sessions, actual)) in vms.iter().zip(before) {
            let state = vm.state();
            assert_eq!(state.sessions, sessions + 1, "{}: one call each\n{}", vm.name, host.log());
            assert!(state.actual + Bytes::mib(64) >= actual, "{}: {actual}, then {}", vm.name, state.actual);
        }
        assert!(!host.log().contains("second agent"), "{}", host.log());
    }
    nobody_was_harmed(&vms, &host);
    host.stop();
}

/// In a mount namespace of its own, on a disk of 2 MiB. Needs root.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_under_the_journal() {
    if !rustix::process::geteuid().is_root() {
        return common::skipped("only root may mount the small disk; run the tests as root");
    }
    let folder = folder();
    let path = folder.path();
    let vm = FakeVm::start(path, "a", SIZE, true);
    std::fs::create_dir(path.join("state")).unwrap();
    let mut host = Host::start_on(path, &vm.table(""), "mount -t tmpfs -o size=2m disk \"$3\"/state");
    // The namespace's own view of it.
    let state = format!("/proc/{}/root{}/state", host.pid().as_raw_nonzero(), path.display());
    host.wait_field("a", "agent", "alive");
    let fill =
        Command::new(program("dd")).args(["if=/dev/zero", "bs=4k", &format!("of={state}/ballast")]).output().unwrap();
    assert!(!fill.status.success(), "the disk is full now");
    wait_for("the warning", || host.log().contains("the journal cannot be written").then_some(()));
    // Nothing else suffers: it is taken from, and given what it asks for.
    wait_for("takings", || (vm.actual() < Bytes::mib(300)).then_some(()));
    vm.state().wanted = Bytes::mib(300);
    wait_for("what it wants", || (vm.state().used == Bytes::mib(300)).then_some(()));
    assert_eq!(host.log().matches("the journal cannot be written").count(), 1, "one warning:\n{}", host.log());
    // What an operator says is done, and that it will not last is said to whoever says it.
    let hold = ["hold", "a", "350M", "--for", "10m", "--reason", "a full disk", "--json"];
    let done: serde_json::Value = serde_json::from_slice(&host.ask(&hold)).unwrap();
    assert!(done["notes"].to_string().contains("a restart of the daemon ends it"), "{done}");
    wait_for("the hold", || (vm.actual() >= Bytes::mib(350)).then_some(()));
    host.ask(&["release", "a", "--json"]);
    // There is room again: it goes on by itself, and what it writes then replays.
    std::fs::remove_file(format!("{state}/ballast")).unwrap();
    wait_for("the journal to go on", || host.log().contains("the journal goes on").then_some(()));
    let hold = ["hold", "a", "400M", "--for", "1s", "--reason", "there is room", "--json"];
    let done: serde_json::Value = serde_json::from_slice(&host.ask(&hold)).unwrap();
    assert!(!done["notes"].to_string().contains("a restart of the daemon ends it"), "kept again: {done}");
    let journal = format!("{state}/journal");
    let orders = vm.orders();
    vm.state().wanted = Bytes::mib(20);
    wait_for("more orders", || (vm.orders() > orders).then_some(()));
    let said = String::from_utf8(output(Command::new(env!("CARGO_BIN_EXE_ballast-host")).args(["replay", &journal])));
    assert!(said.unwrap().contains("every decision is the same"));
    host.end();
}

/// A pipe that nobody reads is a disk that hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_hangs_under_the_journal() {
    let folder = folder();
    let path = folder.path();
    let vm = FakeVm::start(path, "a", SIZE, true);
    let (state, kept) = (path.join("state"), path.join("kept"));
    std::fs::create_dir(&state).unwrap();
    output(Command::new(program("mkfifo")).arg(state.join("journal.new")));
    let mut host = Host::start(path, &vm.table(""));
    host.wait_field("a", "agent", "alive");
    wait_for("takings", || (vm.actual() < Bytes::mib(300)).then_some(()));
    let orders = vm.orders();
    let asked = Instant::now();
    vm.state().wanted = Bytes::mib(300);
    wait_for("an order", || (vm.orders() > orders).then_some(()));
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}\n{}", asked.elapsed(), host.log());
    wait_for("what it wants", || (vm.state().used == Bytes::mib(300)).then_some(()));
    assert_eq!(host.log().matches("the journal cannot be written").count(), 1, "one warning:\n{}", host.log());
    // The disk answers: what waited is written, and replays from the first line on.
    let (from, mut to) = (state.join("journal.new"), std::fs::File::create(&kept).unwrap());
    let reader = std::thread::spawn(move || std::io::copy(&mut std::fs::File::open(from).unwrap(), &mut to));
    wait_for("its name", || state.join("journal").exists().then_some(()));
    host.end();
    assert!(reader.join().unwrap().unwrap() > 0);
    let replayed = output(Command::new(env!("CARGO_BIN_EXE_ballast-host")).arg("replay").arg(&kept));
    let said = String::from_utf8(replayed).unwrap();
    assert!(said.contains("every decision is the same"), "{said}");
}
