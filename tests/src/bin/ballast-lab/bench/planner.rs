//! What the planner costs for each input, with fleets of several sizes.
//!
//! The fleet is simulated: each guest uses a fixed part of its memory and does at once what it is told. It lives for
//! two simulated minutes before anything is timed, so that the planner has taken what it takes.

use super::Quantiles;
use ballast_planner::{Action, Facts, Input as In, Planner, VmName, VmSettings};
use ballast_protocol::{
    BalloonFeatures, Bytes, Capabilities, Counters, Demand, GuestMessage, Hello, Limited, Micros, OLDEST_VERSION,
    Reclaimed, Source, Telemetry, VERSION, Watermarks,
};
use serde::Serialize;
use std::time::Instant;

const FLEETS: [usize; 3] = [1, 100, 10_000];
/// Timed inputs of each kind; every VM of the largest fleet has two.
const SAMPLES: usize = 20_000;
/// Simulated seconds before the clock counts.
const SETTLING: u64 = 120;
const MAX: Bytes = Bytes::mib(512);
/// MemTotal of a Linux guest of 512 MiB (FACTS.md, section 0).
const TOTAL: Bytes = Bytes::mib(469);
const ANON: Bytes = Bytes::mib(100);
const FILE: Bytes = Bytes::mib(40);
const DEMAND: Bytes = Bytes::mib(64);

/// One kind of input with one fleet, microseconds.
#[derive(Debug, Serialize)]
pub struct Input {
    pub vms: usize,
    pub telemetry_us: Quantiles,
    pub demand_us: Quantiles,
}

pub fn measure() -> Vec<Input> {
    FLEETS.iter().map(|&vms| one(vms)).collect()
}

fn one(vms: usize) -> Input {
    let mut fleet = Fleet::new(vms);
    for _ in 0..SETTLING {
        for vm in 0..vms {
            fleet.report(vm);
        }
    }
    let telemetry = (0..SAMPLES).map(|n| fleet.report(n % vms)).collect();
    let demands = (0..SAMPLES).map(|n| fleet.demand(n % vms)).collect();
    let quantiles = |v| Quantiles::of(v).expect("there are samples");
    Input { vms, telemetry_us: quantiles(telemetry), demand_us: quantiles(demands) }
}

struct Fleet {
    planner: Planner,
    at: Micros,
    /// Name, what the guest keeps, messages so far.
    guests: Vec<(VmName, Bytes, u64)>,
}

impl Fleet {
    fn new(vms: usize) -> Self {
        let guests = (0..vms).map(|n| (VmName(format!("vm-{n:05}")), MAX, 0)).collect();
        let mut fleet = Self { planner: Planner::new(), at: Micros::secs(1), guests };
        for vm in 0..vms {
            fleet.found(vm);
            let balloon = Some(BalloonFeatures { deflate_on_oom: true, free_page_reporting: false });
            let hello = Hello {
                oldest: OLDEST_VERSION,
                newest: VERSION,
                agent: Limited::cut(env!("CARGO_PKG_VERSION")),
                kernel: Limited::cut("simulated"),
                boot_id: [1; 16],
                now: fleet.at,
                capabilities: Capabilities { psi: true, cgroup2: true, reclaim: true, absorber: false, balloon },
            };
            fleet.said(vm, GuestMessage::Hello(hello));
        }
        fleet
    }

    /// The hypervisor describes the VM as it stands now.
    fn found(&mut self, vm: usize) {
        let (name, actual, _) = &self.guests[vm];
        let facts = Facts { max: MAX, actual: *actual, running: true, balloon: true, deflate_on_oom: Some(true) };
        let input = In::Vm { vm: name.clone(), facts, settings: VmSettings::default() };
        self.tell(input);
    }

    fn report(&mut self, vm: usize) -> f64 {
        self.pass();
        let (_, kept, count) = self.guests[vm];
        let free = kept - (MAX - TOTAL) - ANON - FILE;
        let telemetry = Telemetry {
            seq: count,
            at: self.at,
            total: TOTAL,
            free,
            available: free + FILE,
            file: FILE,
            anon: ANON,
            watermarks: Watermarks { min: Bytes::mib(23), low: Bytes::mib(29), high: Bytes::mib(35) },
            giveable: free - Bytes::mib(35),
            ballooned: Some(MAX - kept),
            counters: Counters { alloc_stall: Some(0), oom_kill: Some(0), ..Counters::default() },
            ..Telemetry::default()
        };
        self.said(vm, GuestMessage::Telemetry(telemetry))
    }

    /// A demand, timed. Afterwards the VM is found as it was before, untimed, so that the next one is met as well.
    fn demand(&mut self, vm: usize) -> f64 {
        self.pass();
        let before = self.guests[vm].1;
        let demand = Demand {
            id: self.guests[vm].2,
            source: Source::Slack,
            size: DEMAND,
            sign: self.at,
            sent: self.at,
            within: Micros::millis(50),
            free: Bytes::mib(60),
            ballooned: Some(MAX - before),
        };
        let took = self.said(vm, GuestMessage::Demand(demand));
        assert!(self.guests[vm].1 > before, "a demand that the VM's maximum can satisfy was not met");
        self.guests[vm].1 = before;
        self.tell(In::HypervisorLost { vm: self.guests[vm].0.clone() });
        self.found(vm);
        took
    }

    /// Every VM speaks once in a simulated second.
    fn pass(&mut self) {
        self.at += Micros(1_000_000 / self.guests.len() as u64);
        if self.planner.deadline().is_some_and(|due| due <= self.at) {
            self.tell(In::Wake);
        }
    }

    fn said(&mut self, vm: usize, message: GuestMessage) -> f64 {
        self.guests[vm].2 += 1;
        let vm = self.guests[vm].0.clone();
        self.tell(In::Guest { vm, message })
    }

    /// Tells the planner and takes its actions, timed; then does them, untimed. Returns microseconds.
    fn tell(&mut self, input: In) -> f64 {
        let begun = Instant::now();
        self.planner.handle(self.at, input);
        let mut actions = Vec::new();
        while let Some(action) = self.planner.poll_action() {
            actions.push(action);
        }
        let took = begun.elapsed().as_nanos() as f64 / 1e3;
        for action in actions {
            self.act(action);
        }
        took
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Order { vm, order, target, .. } => {
                let index = self.guests.binary_search_by(|(name, ..)| name.cmp(&vm)).expect("names are in order");
                let actual = target.bytes();
                self.guests[index].1 = actual;
                self.tell(In::Ordered { vm: vm.clone(), order, error: None });
                self.tell(In::Balloon { vm, actual });
            }
            Action::Reclaim { vm, id, .. } => {
                let message = GuestMessage::Reclaimed(Reclaimed { id, size: Bytes::ZERO, exhausted: true });
                self.tell(In::Guest { vm, message });
            }
            Action::Answer { .. }
            | Action::Watch { .. }
            | Action::Probe { .. }
            | Action::Would { .. }
            | Action::Host(_)
            | Action::Notice { .. } => {}
        }
    }
}
