//! The pair on real guests: it takes what a guest does not use and gives it back before the guest misses it.
// The helpers of a test fail as the test does.
#![allow(clippy::unwrap_used)]

mod support;

use ballast_protocol::Bytes;
use ballast_tests::wire::{End, Touch};
use ballast_tests::{HostAgent, Machine, NOISE_FILE, bursting};
use serde_json::Value;
use std::process::Command;
use support::{
    PATIENCE, arrival, count, decisions, guest_status, known, program, session_went_on, sockets_in, squeezed_below,
    wait_field, wait_for,
};

/// A burst into less than it needs must not kill, stall for good or fail.
fn burst(machine: &mut Machine, host: &HostAgent, mib: u64) {
    squeezed_below(machine, host, Bytes::mib(200));
    let slack = machine.guest.counters().unwrap().available_mib();
    assert!(slack + 50 < mib, "a burst of {mib} MiB into {slack} MiB proves little");
    let burst = machine.guest.burst(mib).unwrap();
    println!("slack {slack} MiB, burst of {mib} MiB in {:.0} ms, {burst:?}", burst.millis());
    assert_eq!(burst.end, End::Whole, "{}\n{}", host.log(), machine.guest.log());
    assert_eq!(machine.guest.counters().unwrap().oom_kills(), 0, "{}", machine.guest.log());
}

/// P9 and P10 in one guest's life: squeezed, burst, host agent killed and restarted, squeezed, burst, drained.
#[test]
fn a_burst_beyond_the_slack_survives_also_after_the_host_agent_was_killed() {
    let _turn = bursting();
    let mut machine = Machine::builder("pair").start().unwrap();
    let mut host = HostAgent::start(HostAgent::config(&[&machine])).unwrap();
    machine.guest.start_agent(&["run"]).unwrap();

    burst(&mut machine, &host, 250);
    host.kill();
    assert!(host.status().is_err(), "a killed host agent answers");
    machine.guest.ping().unwrap();
    host.restart().unwrap();
    burst(&mut machine, &host, 250);
    assert!(host.terminate().unwrap().success(), "{}", host.log());
    assert!(machine.guest.agent().unwrap().alive, "{}", machine.guest.log());
}

/// One guest's day, and everything that tells of it: status, explain, lease, drain, replay (promises P5, P7, P10).
#[test]
fn an_idle_guest_shrinks_a_burst_survives_and_the_journal_tells_all_of_it() {
    let _turn = bursting();
    let mut machine = Machine::builder("day").start().unwrap();
    let mut host = HostAgent::start(HostAgent::config(&[&machine])).unwrap();
    machine.guest.start_agent(&["run"]).unwrap();
    burst(&mut machine, &host, 300);

    // What it says while it runs.
    let status = known(&host, "day");
    assert_eq!(status["max"], Bytes::mib(512).0);
    assert_eq!(
        (&status["agent"], &status["trusted"], &status["running"]),
        (&"alive".into(), &true.into(), &true.into())
    );
    assert!(
        status["counts"]["takings"].as_u64() > Some(0) && status["counts"]["givings"].as_u64() > Some(0),
        "{status}"
    );
    assert_eq!((&status["counts"]["oom_kills"], &status["counts"]["distrusted"]), (&0.into(), &0.into()), "{status}");
    let explained = host.command(&["explain", "day"]).unwrap();
    for part in ["day: told to keep", "at most 512 MiB", "free beyond the headroom", "demand", "granted"] {
        assert!(explained.contains(part), "{part} is missing:\n{explained}");
    }
    let unknown = host.command(&["explain", "night"]).unwrap_err().to_string();
    assert!(unknown.contains("no VM named `night`"), "{unknown}");
    let table = host.command(&["status"]).unwrap();
    assert!(table.contains("day") && table.contains("alive"), "{table}");

    // A lease: the command starts when the memory is there, and it ends with the command.
    squeezed_below(&mut machine, &host, Bytes::mib(200));
    let before = machine.guest.counters().unwrap().available_mib();
    assert!(before < 150, "{before} MiB are available: nothing has to be waited for");
    let need = "ballast-guest need 200M -- sh -c 'grep MemFree: /proc/meminfo; ballast-guest status --json'";
    let said = machine.guest.sh_ok(need).unwrap();
    let free: u64 = said.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(free >= 200 << 10, "{free} KiB free under a lease of 200 MiB: {said}");
    assert!(said.contains("\"leases\":1"), "{said}");
    wait_field(&host, "day", "leases", 0);
    assert_eq!(guest_status(&machine)["leases"], 0);
    assert_eq!(machine.guest.sh("ballast-guest need 200M -- sh -c 'exit 7'").unwrap().status, 7);
    let much = machine.guest.sh("ballast-guest need 2G -- true").unwrap();
    assert_eq!(much.status, 124, "{much:?}");

    // Drained: nothing left but the journal, which gives the same decisions byte for byte.
    session_went_on(&machine);
    let folder = host.config_path().parent().unwrap().to_owned();
    let arrival = arrival(&machine);
    assert!(arrival.as_ref().is_none_or(|a| a.exists()) && !sockets_in(&folder).is_empty());
    assert!(host.terminate().unwrap().success(), "{}", host.log());
    assert_eq!(sockets_in(&folder), Vec::<std::path::PathBuf>::new());
    assert!(arrival.is_none_or(|a| !a.exists()), "the agents' socket is left behind");
    assert!(machine.guest.agent().unwrap().alive);
    let (code, replayed) = replay(&host);
    assert_eq!((code, &replayed["difference"]), (Some(0), &Value::Null));
    assert!(replayed["orders"].as_u64() > Some(3) && replayed["inputs"].as_u64() > Some(50), "{replayed}");

    // And one that was tampered with does not.
    let journal = std::fs::read_to_string(host.journal_path()).unwrap();
    let order = journal.lines().find(|l| l.contains("\"Order\"") && l.contains("Spare")).expect("something was taken");
    let target = order.split("\"target\":").nth(1).unwrap().split([',', '}']).next().unwrap();
    let forged = order.replace(&format!("\"target\":{target}"), "\"target\":4096");
    assert_ne!(forged, order);
    std::fs::write(host.journal_path(), journal.replacen(order, &forged, 1)).unwrap();
    let (code, replayed) = replay(&host);
    assert_eq!(code, Some(1), "a forged journal replays: {replayed}");
    assert!(replayed["difference"]["journal"].as_str().unwrap().contains("4096"), "{replayed}");
}

/// `replay --json` of a journal: its exit status and what it found.
fn replay(host: &HostAgent) -> (Option<i32>, Value) {
    let output = Command::new(program()).args(["replay", "--json"]).arg(host.journal_path()).output().unwrap();
    let replayed = serde_json::from_slice(&output.stdout);
    (output.status.code(), replayed.unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr))))
}

/// Page cache that nobody reads again comes back to the host, and a drain that releases gives all of it away again.
#[test]
fn page_cache_is_taken_back_and_on_exit_release_returns_everything() {
    let mut machine = Machine::builder("cache").disk().start().unwrap();
    let mut config = HostAgent::config(&[&machine]);
    config.insert("daemon".into(), toml::Table::from_iter([("on-exit".into(), "release".into())]).into());
    // Five minutes are long for a test.
    config.insert("defaults".into(), toml::Table::from_iter([("cold-after".into(), "5s".into())]).into());
    let mut host = HostAgent::start(config).unwrap();
    machine.guest.start_agent(&["run"]).unwrap();
    wait_field(&host, "cache", "agent", "alive");
    let before = machine.resident().unwrap();
    machine.guest.read(NOISE_FILE, 250).unwrap();
    let cached = machine.resident().unwrap();
    assert!(cached > before + Bytes::mib(150), "{before} resident before, {cached} with 250 MiB of page cache");
    let taken = wait_for("the page cache to be taken", &host, || {
        let resident = machine.resident().unwrap();
        (resident < cached - Bytes::mib(150)).then_some(resident)
    });
    println!("resident: {before} before, {cached} with the cache, {taken} after; {}", known(&host, "cache")["counts"]);
    assert!(decisions(&host, "cache").contains("cold page cache"), "{}", decisions(&host, "cache"));
    let counters = machine.guest.counters().unwrap();
    assert_eq!((counters.oom_kills(), count(&host, "cache", "stalled")), (0, 0));

    assert!(host.terminate().unwrap().success(), "{}", host.log());
    let full = machine.size();
    machine.wait_balloon(full, Bytes::mib(1), PATIENCE).unwrap();
}

/// SIGTERM in the middle of a burst: what was ordered is finished, and the guest lives on without a host agent.
#[test]
fn a_drain_in_the_middle_of_a_burst_harms_nobody() {
    let _turn = bursting();
    let mut machine = Machine::builder("drain").start().unwrap();
    let mut host = HostAgent::start(HostAgent::config(&[&machine])).unwrap();
    machine.guest.start_agent(&["run"]).unwrap();
    squeezed_below(&mut machine, &host, Bytes::mib(200));
    let first = count(&host, "drain", "givings");
    let burst = machine.guest.touch(Touch { mib: 250, ..Touch::default() }).unwrap();
    wait_for("the first giving", &host, || (count(&host, "drain", "givings") > first).then_some(()));
    assert!(host.terminate().unwrap().success(), "{}", host.log());
    let burst = burst.outcome(PATIENCE).unwrap();
    println!("{burst:?}");
    assert_eq!(burst.end, End::Whole, "{}\n{}", host.log(), machine.guest.log());
    assert_eq!(machine.guest.counters().unwrap().oom_kills(), 0);
}
