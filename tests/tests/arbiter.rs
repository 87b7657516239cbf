//! One host, three real guests, and less memory than they need together: promise P2, and nobody is killed for it.
// The helpers of a test fail as the test does.
#![allow(clippy::unwrap_used)]

mod support;

use ballast_host::journal::{self, Record};
use ballast_planner::{Action, Input, Reason};
use ballast_protocol::Bytes;
use ballast_tests::wire::End;
use ballast_tests::{HostAgent, Machine, bursting};
use std::collections::BTreeMap;
use std::path::Path;
use support::{known, squeezed_below, wait_for};
use toml::Value;

const NAMES: [&str; 3] = ["red", "green", "blue"];
/// What each burst touches.
const BURST: u64 = 250;
/// A guest in its burst keeps about 400 MiB: 43 of kernel, 40 of programs, the burst and its headroom.
const PEAK: u64 = 400;
/// Two thirds of the peaks' sum.
const BUDGET: u64 = 3 * PEAK * 2 / 3;

/// What the hypervisors say that all keep.
fn kept(host: &HostAgent) -> Bytes {
    let status = host.status().unwrap();
    status["vms"].as_array().unwrap().iter().filter_map(|vm| vm["actual"].as_u64()).map(Bytes).sum()
}

/// P2 by the journal: no order that gives takes the sum of all targets above the budget. Not counted is what nobody here
/// decides: VMs as they are found, balloons that let go by themselves, and what a VM still keeps of what was to be taken
/// (leaving it that gives it nothing). The budget must have been a constraint: somebody gave because others needed it.
fn no_order_gives_more_than_there_is(journal: &Path) {
    let (mut told, mut kept) = (BTreeMap::new(), BTreeMap::new());
    let (mut given, mut needed) = (0, 0);
    for record in journal::read(journal).unwrap() {
        let (vm, target, from, reason) = match record.unwrap() {
            Record::Input { input: Input::Balloon { vm, actual }, .. } => {
                kept.insert(vm, actual);
                continue;
            }
            Record::Action { action: Action::Order { vm, target, from, reason, .. }, .. } => (vm, target, from, reason),
            _ => continue,
        };
        told.insert(vm.clone(), target.bytes());
        needed += usize::from(matches!(reason, Reason::Needed(_)));
        let sum: Bytes = told.values().copied().sum();
        let had = from.max(kept.get(&vm).copied().unwrap_or_default());
        if target.bytes() > had && !matches!(reason, Reason::Adopted | Reason::SelfDeflated) {
            given += 1;
            assert!(sum <= Bytes::mib(BUDGET), "P2: {vm} from {from} to {}: {sum} in all: {reason}", target.bytes());
        }
    }
    assert!(given >= 6, "six bursts in squeezed guests, and {given} orders that gave");
    assert!(needed > 0, "nobody had to give: the budget was no constraint");
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
    wait_for("the sum within the budget", &host, || (kept(&host) <= Bytes::mib(BUDGET)).then_some(()));

    // One burst follows the other without a pause: what the last one left must become the next one's while that grows.
    for round in 0..2 {
        for machine in &machines {
            let burst = machine.guest.burst(BURST).unwrap();
            println!("{} in round {round}: {BURST} MiB in {:.0} ms", machine.name(), burst.millis());
            assert_eq!(burst.end, End::Whole, "{}: {burst:?}\n{}\n{}", machine.name(), host.log(), machine.guest.log());
        }
    }
    for machine in &machines {
        assert_eq!(machine.guest.counters().unwrap().oom_kills(), 0, "{}", machine.guest.log());
        assert_eq!(known(&host, machine.name())["counts"]["oom_kills"], 0);
    }
    assert!(host.terminate().unwrap().success(), "{}", host.log());
    no_order_gives_more_than_there_is(&host.journal_path());
}
