//! A real daemon over a simulated fleet: promises are counted where guests and hypervisors would feel them. Times have
//! generous bounds here; `ballast-lab fleet` measures them.
#![allow(clippy::unwrap_used)]

use ballast_tests::HostAgent;
use ballast_tests::fleet::{Fleet, Promise, Quantiles, Scrapes, Tally};
use std::time::{Duration, Instant};

const VMS: usize = 200;
/// A machine that compiles meanwhile delays 200 handshakes by seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// A hundred times what is asked of a quiet machine.
const ORDER_P99_MS: f64 = 1000.0;

/// No promise was broken; how long a host may be silent is a matter of the machine's load, and not asserted here.
fn assert_kept(tally: &Tally, log: &str) {
    let broken: Vec<_> = tally.broken.iter().filter(|(promise, _)| **promise != Promise::HostSilent).collect();
    assert!(broken.is_empty(), "{broken:?}\n{}\n{log}", tally.told.join("\n"));
}

/// All VMs with their sessions, and found by the daemon: a guest that is faster than its hypervisor is refused.
fn start(seed: u64) -> (Fleet, HostAgent) {
    let fleet = Fleet::start(VMS, seed).unwrap();
    let host = HostAgent::start(fleet.config()).unwrap();
    fleet.wait_for_sessions(PATIENCE).unwrap();
    let begun = Instant::now();
    while host.status().unwrap()["vms"].as_array().unwrap().len() < VMS {
        assert!(begun.elapsed() < PATIENCE, "{}", host.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    (fleet, host)
}

/// Bursts end, and whatever was asked then is answered.
fn come_to_rest(fleet: &Fleet) {
    fleet.burst(false);
    std::thread::sleep(Duration::from_secs(3));
}

#[test]
fn two_hundred_vms_are_served_and_no_promise_is_broken() {
    let (fleet, host) = start(1);
    fleet.burst(true);
    // Scraped meanwhile, as a fleet is.
    let scrapes = Scrapes::take(host.page().unwrap(), Duration::from_secs(10)).unwrap();
    assert!(scrapes.text.contains(&format!("\nballast_vms {VMS}\n")), "{}", scrapes.text);
    come_to_rest(&fleet);

    let tally = fleet.tally();
    assert_kept(&tally, &host.log());
    assert_eq!(tally.connected, VMS, "{}", host.log());
    // Two bursts at any time, each of three seconds at most, and a report a second of each VM.
    assert!(tally.bursts >= 6 && tally.demands > 0 && tally.reports >= 8 * VMS as u64, "{tally:?}");
    assert_eq!((tally.answers, tally.open), (tally.demands, 0), "{tally:?}");
    assert!(tally.refused.is_empty(), "the host has enough: {:?}", tally.refused);
    let order = Quantiles::millis(&tally.order_us).expect("demands were met");
    assert!(order.p99 < ORDER_P99_MS, "{order:?}");
    let status = host.status().unwrap();
    assert_eq!(status["vms"].as_array().unwrap().len(), VMS);
}

#[test]
fn a_fleet_that_reconnects_all_at_once_loses_nothing() {
    let (fleet, host) = start(2);
    fleet.burst(true);
    std::thread::sleep(Duration::from_secs(3));
    for _ in 0..2 {
        fleet.reconnect();
        fleet.wait_for_sessions(PATIENCE).unwrap();
        std::thread::sleep(Duration::from_secs(2));
    }
    come_to_rest(&fleet);

    let tally = fleet.tally();
    assert_kept(&tally, &host.log());
    assert_eq!(tally.connected, VMS);
    assert!(tally.sessions >= 3 * VMS as u64, "{tally:?}");
    assert!(tally.demands > 0 && tally.open == 0, "every demand was answered, also those of a lost session: {tally:?}");
    for vm in host.status().unwrap()["vms"].as_array().unwrap() {
        let size = |key: &str| vm[key].as_u64().unwrap();
        assert!(size("actual") >= size("min"), "below its guarantee: {vm}");
        assert_eq!(vm["agent"], "alive", "{vm}");
    }
}
