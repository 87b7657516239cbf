//! One host, three real guests, and less memory than they need together: promise P2, and nobody is killed for it.
// The helpers of a test fail as the test does.
#![allow(clippy::unwrap_used)]

mod support;

use ballast_protocol::Bytes;
use ballast_tests::wire::End;
use ballast_tests::{HostAgent, Machine, bursting};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::{decisions, known, squeezed_below, wait_for};
use toml::Value;

const NAMES: [&str; 3] = ["red", "green", "blue"];
/// What each burst touches.
const BURST: u64 = 250;
/// A guest in its burst keeps about 400 MiB: 43 of kernel, 40 of programs, the burst and its headroom.
const PEAK: u64 = 400;
/// Two thirds of the peaks' sum.
const BUDGET: u64 = 3 * PEAK * 2 / 3;

/// What the daemon's own books say that all may keep, and what the hypervisors say that all keep.
fn sums(host: &HostAgent) -> (Bytes, Bytes) {
    let status = host.status().unwrap();
    let vms = status["vms"].as_array().unwrap();
    let sum = |field: &str| vms.iter().filter_map(|vm| vm[field].as_u64()).map(Bytes).sum::<Bytes>();
    (sum("target"), sum("actual"))
}

#[test]
fn three_guests_whose_peaks_are_half_again_the_budget_all_survive_within_it() {
    let _turn = bursting();
    let mut machines: Vec<Machine> = NAMES.iter().map(|name| Machine::builder(name).start().unwrap()).collect();
    let mut config = HostAgent::config(&machines.iter().collect::<Vec<_>>());
    let budget = toml::Table::from_iter([("budget".to_owned(), Value::from(format!("{BUDGET}MiB")))]);
    config.insert("host".into(), budget.into());
    let mut host = HostAgent::start(config).unwrap();
    for machine in &machines {
        machine.guest.start_agent(&["run"]).unwrap();
    }
    // They are found with all their memory, almost twice the budget: what is idle goes at once, from all of them.
    for machine in &mut machines {
        squeezed_below(machine, &host, Bytes::mib(280));
    }
    wait_for("the sum within the budget", &host, || (sums(&host).1 <= Bytes::mib(BUDGET)).then_some(()));

    // One burst follows the other without a pause: what the last one left must become the next one's while that grows.
    let (done, host_ref) = (AtomicBool::new(false), &host);
    let largest = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut largest = Bytes::ZERO;
            while !done.load(Ordering::Relaxed) {
                largest = largest.max(sums(host_ref).0);
                std::thread::sleep(Duration::from_millis(50));
            }
            largest
        });
        for round in 0..2 {
            for machine in &machines {
                let burst = machine.guest.burst(BURST).unwrap();
                println!("{} in round {round}: {BURST} MiB in {:.0} ms", machine.name(), burst.millis());
                if burst.end != End::Whole {
                    done.store(true, Ordering::Relaxed);
                    panic!("{}: {burst:?}\n{}\n{}", machine.name(), host_ref.log(), machine.guest.log());
                }
            }
        }
        done.store(true, Ordering::Relaxed);
        watcher.join().unwrap()
    });
    println!("the largest sum of targets was {largest} of {BUDGET} MiB");
    assert!(largest <= Bytes::mib(BUDGET), "P2: {largest} of {BUDGET} MiB");
    let mut reasons = String::new();
    for machine in &machines {
        assert_eq!(machine.guest.counters().unwrap().oom_kills(), 0, "{}", machine.guest.log());
        assert_eq!(known(&host, machine.name())["counts"]["oom_kills"], 0);
        reasons += &decisions(&host, machine.name());
    }
    assert!(reasons.contains("others need"), "nobody had to give: the budget was no constraint\n{reasons}");
    assert!(host.terminate().unwrap().success(), "{}", host.log());
}
