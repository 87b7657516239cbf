//! Several VMs whose hypervisors take every order, whose guests use what they are told to use and whose balloons follow by the
//! next report.

use ballast_planner::{Action, Facts, HostNotice, HostStatus, Input, Planner, Reason, Vm, VmName, VmSettings};
use ballast_protocol::{
    BalloonFeatures, Bytes, Capabilities, Counters, Demand, GuestMessage, Hello, Limited, Micros, Pressure, Source,
    Telemetry, Verdict, Watermarks,
};
use std::collections::BTreeMap;

/// What the kernel of each guest keeps for itself and its low watermark.
const KERNEL: Bytes = Bytes::mib(40);
const LOW: Bytes = Bytes::mib(6);

pub struct Guest {
    pub max: Bytes,
    pub kept: Bytes,
    /// Anonymous memory in use.
    pub used: Bytes,
    /// Page cache that could be dropped.
    pub cache: Bytes,
    /// Asked for and not yet touched.
    pub pending: Bytes,
    pub agent: bool,
    /// Its balloon does not move.
    pub stuck: bool,
    pub settings: VmSettings,
}

pub struct Many {
    pub planner: Planner,
    pub now: Micros,
    pub guests: BTreeMap<VmName, Guest>,
    pub said: Vec<Action>,
    demands: u64,
    /// Orders on their way to the hypervisor.
    sent: Vec<(VmName, u64)>,
}

pub fn m(n: u64) -> Bytes {
    Bytes::mib(n)
}

impl Many {
    /// A host with `budget` MiB and VMs of (name, maximum, kept, used) in MiB.
    pub fn with(budget: u64, vms: &[(&str, u64, u64, u64)]) -> Self {
        let mut many = Self {
            planner: Planner::new(),
            now: Micros::secs(100),
            guests: BTreeMap::new(),
            said: Vec::new(),
            demands: 0,
            sent: Vec::new(),
        };
        many.hand(Input::Pool { budget: Some(m(budget)), reserve: None });
        for (name, max, kept, used) in vms {
            many.add(name, *max, *kept, *used, VmSettings::default());
        }
        many
    }

    pub fn add(&mut self, name: &str, max: u64, kept: u64, used: u64, settings: VmSettings) {
        let guest = Guest {
            max: m(max),
            kept: m(kept),
            used: m(used),
            cache: Bytes::ZERO,
            pending: Bytes::ZERO,
            agent: true,
            stuck: false,
            settings,
        };
        self.guests.insert(VmName::from(name), guest);
        self.describe(name);
        self.hand(Input::Guest { vm: VmName::from(name), message: GuestMessage::Hello(hello()) });
        self.report(name);
    }

    /// The VM's facts and settings are said again.
    pub fn describe(&mut self, name: &str) -> Vec<Action> {
        let guest = &self.guests[&VmName::from(name)];
        let facts =
            Facts { max: guest.max, actual: guest.kept, running: true, balloon: true, deflate_on_oom: Some(true) };
        self.hand(Input::Vm { vm: VmName::from(name), facts, settings: guest.settings.clone() })
    }

    pub fn set(&mut self, name: &str, change: impl FnOnce(&mut VmSettings)) -> Vec<Action> {
        change(&mut self.guests.get_mut(&VmName::from(name)).expect("known").settings);
        self.describe(name)
    }

    pub fn guest(&mut self, name: &str) -> &mut Guest {
        self.guests.get_mut(&VmName::from(name)).expect("known")
    }

    pub fn hand(&mut self, input: Input) -> Vec<Action> {
        self.planner.handle(self.now, input);
        let actions: Vec<Action> = std::iter::from_fn(|| self.planner.poll_action()).collect();
        self.said.extend(actions.iter().cloned());
        self.sent.extend(actions.iter().filter_map(|a| match a {
            Action::Order { vm, order, .. } => Some((vm.clone(), *order)),
            _ => None,
        }));
        actions
    }

    fn report(&mut self, name: &str) {
        let name = VmName::from(name);
        let guest = &self.guests[&name];
        if !guest.agent {
            return;
        }
        let free = guest.kept - KERNEL - guest.used - guest.cache;
        let report = Telemetry {
            total: guest.max - KERNEL,
            free,
            available: free + guest.cache,
            file: guest.cache,
            anon: guest.used,
            watermarks: Watermarks { min: LOW, low: LOW, high: LOW },
            giveable: free + guest.cache - LOW,
            ballooned: Some(guest.max - guest.kept),
            pending: guest.pending,
            memory_pressure: Some(Pressure::default()),
            counters: Counters {
                oom_kill: Some(0),
                alloc_stall: Some(0),
                refault_file: Some(0),
                swap_in: Some(0),
                ..Counters::default()
            },
            ..Telemetry::default()
        };
        self.hand(Input::Guest { vm: name, message: GuestMessage::Telemetry(report) });
    }

    /// Time goes by in steps of 100 ms: balloons follow, guests report.
    pub fn run(&mut self, time: Micros) {
        let end = self.now + time;
        while self.now < end {
            self.now += Micros::millis(100);
            for (vm, order) in std::mem::take(&mut self.sent) {
                self.hand(Input::Ordered { vm, order, error: None });
            }
            let names: Vec<VmName> = self.guests.keys().cloned().collect();
            for name in &names {
                let target = self.target(&name.0);
                let guest = self.guests.get_mut(name).expect("known");
                if !guest.stuck {
                    guest.kept = target.max(KERNEL + guest.used).min(guest.max);
                }
                let kept = guest.kept;
                self.hand(Input::Balloon { vm: name.clone(), actual: kept });
                self.report(&name.0);
            }
            while self.planner.deadline().is_some_and(|due| due <= self.now) {
                self.hand(Input::Wake);
            }
        }
    }

    pub fn vm(&self, name: &str) -> &Vm {
        self.planner.vm(&VmName::from(name)).expect("known")
    }

    pub fn target(&self, name: &str) -> Bytes {
        self.vm(name).aim
    }

    /// What all VMs have been told they may keep, in MiB.
    pub fn sum(&self) -> u64 {
        self.planner.vms().map(|(_, vm)| vm.charge()).sum::<Bytes>().as_mib()
    }

    pub fn host(&self) -> HostStatus {
        self.planner.host_status(self.now).expect("there is a budget")
    }

    /// A guest asks for so many MiB: the verdict.
    pub fn ask(&mut self, name: &str, size: u64, source: Source) -> Verdict {
        self.demands += 1;
        let guest = &self.guests[&VmName::from(name)];
        let demand = Demand {
            id: self.demands,
            source,
            size: m(size),
            sign: self.now,
            sent: self.now,
            within: Micros::secs(1),
            free: guest.kept - KERNEL - guest.used,
            ballooned: Some(guest.max - guest.kept),
        };
        let said = self.hand(Input::Guest { vm: VmName::from(name), message: GuestMessage::Demand(demand) });
        let verdict =
            said.iter().find_map(|a| if let Action::Answer { verdict, .. } = a { Some(*verdict) } else { None });
        verdict.expect("whoever asks is answered")
    }

    pub fn notices(&self) -> Vec<HostNotice> {
        self.said
            .iter()
            .filter_map(|a| if let Action::Host(notice) = a { Some(notice.clone()) } else { None })
            .collect()
    }

    /// The orders since the last call: (VM, MiB, reason).
    pub fn orders(&mut self) -> Vec<(String, u64, Reason)> {
        let said = std::mem::take(&mut self.said);
        let order = |action| match action {
            Action::Order { vm, target, reason, .. } => Some((vm.0, target.bytes().as_mib(), reason)),
            _ => None,
        };
        said.into_iter().filter_map(order).collect()
    }
}

fn hello() -> Hello {
    Hello {
        oldest: 1,
        newest: 1,
        agent: Limited::cut("0.1.0"),
        kernel: Limited::cut("6.1.0"),
        boot_id: [0; 16],
        now: Micros::ZERO,
        capabilities: Capabilities {
            reclaim: true,
            balloon: Some(BalloonFeatures { deflate_on_oom: true, free_page_reporting: false }),
            ..Capabilities::default()
        },
    }
}
