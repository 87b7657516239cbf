//! One VM of 512 MiB and its planner, told what happens step by step.
#![allow(dead_code, reason = "each test binary uses its own part")]

use ballast_planner::{Action, Facts, Holding, Input, Notice, Planner, Reason, VmName, VmSettings};
use ballast_protocol::{
    BalloonFeatures, Bytes, Capabilities, Counters, Demand, GuestMessage, Hello, Limited, Micros, Pressure, Source,
    Telemetry, Watermarks,
};

pub const MAX: Bytes = Bytes::mib(512);

/// A planner with one VM.
pub struct One {
    pub planner: Planner,
    pub now: Micros,
    pub facts: Facts,
    pub settings: VmSettings,
    pub report: Telemetry,
    /// The order that the hypervisor takes before anything else happens.
    sent: Option<u64>,
}

pub fn vm() -> VmName {
    VmName::from("a")
}

pub fn hello(deflate_on_oom: bool) -> Hello {
    Hello {
        oldest: 1,
        newest: 1,
        agent: Limited::cut("0.1.0"),
        kernel: Limited::cut("6.1.0"),
        boot_id: [0; 16],
        now: Micros::ZERO,
        capabilities: Capabilities {
            reclaim: true,
            balloon: Some(BalloonFeatures { deflate_on_oom, free_page_reporting: false }),
            ..Capabilities::default()
        },
    }
}

impl One {
    pub fn found(facts: Facts, settings: VmSettings) -> (Self, Vec<Action>) {
        let report = Telemetry {
            total: Bytes::mib(469),
            free: Bytes::mib(300),
            available: Bytes::mib(320),
            file: Bytes::mib(20),
            anon: Bytes::mib(60),
            watermarks: Watermarks { min: Bytes::mib(6), low: Bytes::mib(6), high: Bytes::mib(6) },
            giveable: Bytes::mib(290),
            ballooned: Some(MAX - facts.actual),
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
        let mut one = Self {
            planner: Planner::new(),
            now: Micros::secs(100),
            facts: facts.clone(),
            settings,
            report,
            sent: None,
        };
        let actions = one.described();
        one.balloon(facts.actual);
        (one, actions)
    }

    /// With an agent, all its memory, and an hour of quiet behind it.
    pub fn quiet() -> Self {
        Self::quiet_at(MAX)
    }

    pub fn quiet_at(actual: Bytes) -> Self {
        Self::quiet_with(actual, VmSettings::default())
    }

    /// One whose page cache is cold as soon as it does not grow.
    pub fn cold() -> Self {
        Self::quiet_with(MAX, VmSettings { cold_after: Micros::ZERO, ..VmSettings::default() })
    }

    fn quiet_with(actual: Bytes, settings: VmSettings) -> Self {
        let (mut one, _) = Self::found(facts(actual), settings);
        one.hello();
        one.wait(Micros::secs(2));
        one
    }

    /// Another one in the same state.
    pub fn twin(&self) -> Self {
        let Self { planner, now, facts, settings, report, sent } = self;
        let (planner, facts) = (planner.clone(), facts.clone());
        Self { planner, now: *now, facts, settings: settings.clone(), report: report.clone(), sent: *sent }
    }

    pub fn described(&mut self) -> Vec<Action> {
        let (facts, settings) = (self.facts.clone(), self.settings.clone());
        self.hand(Input::Vm { vm: vm(), facts, settings })
    }

    pub fn hand(&mut self, input: Input) -> Vec<Action> {
        if let Some(order) = self.sent.take()
            && !matches!(input, Input::Ordered { .. })
        {
            self.planner.handle(self.now, Input::Ordered { vm: vm(), order, error: None });
        }
        self.planner.handle(self.now, input);
        let actions: Vec<Action> = std::iter::from_fn(|| self.planner.poll_action()).collect();
        self.sent =
            actions.iter().rev().find_map(|a| if let Action::Order { order, .. } = a { Some(*order) } else { None });
        actions
    }

    /// The hypervisor does not answer the last order for now.
    pub fn unanswered(&mut self) -> u64 {
        self.sent.take().expect("something was ordered")
    }

    pub fn says(&mut self, message: GuestMessage) -> Vec<Action> {
        self.hand(Input::Guest { vm: vm(), message })
    }

    pub fn hello(&mut self) -> Vec<Action> {
        self.says(GuestMessage::Hello(hello(true)))
    }

    pub fn report(&mut self) -> Vec<Action> {
        self.report.at = self.now;
        let report = self.report.clone();
        self.says(GuestMessage::Telemetry(report))
    }

    pub fn balloon(&mut self, actual: Bytes) -> Vec<Action> {
        self.hand(Input::Balloon { vm: vm(), actual })
    }

    /// The guest does what it was told, and its next report shows it.
    pub fn follow(&mut self, target: Bytes) -> Vec<Action> {
        self.wait(Micros::millis(400));
        let before = MAX - self.report.ballooned.unwrap_or_default();
        self.report.free = self.report.free + target - before;
        self.report.giveable = self.report.giveable + target - before;
        self.report.ballooned = Some(MAX - target);
        self.balloon(target)
    }

    pub fn demand(&mut self, source: Source, size: Bytes) -> Vec<Action> {
        let demand = Demand {
            id: 1,
            source,
            size,
            sign: self.now,
            sent: self.now,
            within: Micros::millis(100),
            free: Bytes::mib(20),
            ballooned: self.report.ballooned,
        };
        self.says(GuestMessage::Demand(demand))
    }

    pub fn wait(&mut self, time: Micros) -> Vec<Action> {
        let end = self.now + time;
        let mut actions = Vec::new();
        while let Some(due) = self.planner.deadline().filter(|due| *due <= end) {
            assert!(due > self.now || due == end, "nothing is due in the past: {due} at {}", self.now);
            self.now = due.max(self.now);
            actions.extend(self.hand(Input::Wake));
        }
        self.now = end;
        actions
    }

    /// Waits with a report each second.
    pub fn idle(&mut self, seconds: u64) -> Vec<Action> {
        (0..seconds)
            .flat_map(|_| {
                let mut actions = self.wait(Micros::secs(1));
                actions.extend(self.report());
                actions
            })
            .collect()
    }

    pub fn holding(&self) -> Holding {
        self.planner.vm(&vm()).expect("known").holding.clone()
    }

    pub fn aim(&self) -> Bytes {
        self.planner.vm(&vm()).expect("known").aim
    }
}

pub fn facts(actual: Bytes) -> Facts {
    Facts { max: MAX, actual, running: true, balloon: true, deflate_on_oom: Some(true) }
}

pub fn orders(actions: &[Action]) -> Vec<(Bytes, Reason)> {
    let order = |a: &Action| match a {
        Action::Order { target, reason, .. } => Some((target.bytes(), reason.clone())),
        _ => None,
    };
    actions.iter().filter_map(order).collect()
}

pub fn notices(actions: &[Action]) -> Vec<Notice> {
    let notice = |a: &Action| match a {
        Action::Notice { notice, .. } => Some(notice.clone()),
        _ => None,
    };
    actions.iter().filter_map(notice).collect()
}

pub fn reclaims(actions: &[Action]) -> Vec<(u64, Bytes)> {
    let reclaim = |a: &Action| match a {
        Action::Reclaim { id, size, .. } => Some((*id, *size)),
        _ => None,
    };
    actions.iter().filter_map(reclaim).collect()
}
