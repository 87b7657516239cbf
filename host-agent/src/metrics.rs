//! What the daemon tells monitoring and the status page: counts and times that the planner does not keep.
//!
//! ```text
//!   daemon's task --counts--> Metrics --clone--> Snapshot --> text:  /metrics, for Prometheus
//!                                                         '-> page:  /events, for the status page
//! ```
//! The daemon's task owns the counts as it owns everything else, and hands out a copy when somebody asks. Whatever
//! takes time, making text of it, happens elsewhere: a scrape delays no demand. What is known of a VM is dropped with
//! the VM, so that the number of series is bounded by the VMs that are there. Latencies are not kept for each VM: a
//! histogram has sixteen series, and a slow VM shows in its own counters.

mod page;
mod past;
mod text;
mod trail;

pub use page::json;
pub use past::{EVERY, Past};
pub use text::{FORMAT, render};
pub use trail::{Mark, MarkKind};

use crate::control::HypervisorStatus;
use crate::prober::ProbeStatus;
use ballast_planner::{
    Action, HostStatus, LawName, Notice, Planner, Reason, Vm, VmName, VmStatus, shortfall_text, source_name,
};
use ballast_protocol::{Bytes, Demand, Micros, Relief, Shortfall, Verdict};
use prometheus::{Histogram, HistogramOpts};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use trail::Trail;

/// From a tenth of the fastest order measured (0.3 ms) to the seconds of a guest that has almost stopped.
const SECONDS: [f64; 13] = [0.0001, 0.000_25, 0.0005, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5];
/// Demands of one VM of which the answer and the relief are awaited. An agent sends 10/s for each of six sources.
const ASKED: usize = 64;
/// Orders that the hypervisor has not been asked for yet. A newer one may have taken an order's place: it stays here
/// until others push it out.
const UNISSUED: usize = 1024;
/// A relief is the guest's word: what it says beyond this is no measurement.
const LONGEST_RELIEF: Micros = Micros::secs(60);

/// Which way an order went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// The guest keeps less.
    Take,
    /// It keeps more, or the same.
    Give,
}

impl Direction {
    /// For labels.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Take => "take",
            Self::Give => "give",
        }
    }
}

/// What was counted of a VM. Counters only grow.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Orders, by direction and by the journal's name for their reason.
    pub orders: BTreeMap<(Direction, String), u64>,
    /// Orders that the hypervisor refused.
    pub orders_refused: u64,
    /// Demands granted in full, in part, and not at all.
    pub answers: [u64; 3],
    /// Why they were not granted in full, as [`SHORTFALLS`].
    pub shortfalls: [u64; SHORTFALLS.len()],
    /// Times that the agent was silent or gone.
    pub silences: u64,
}

/// The names of [`Totals::answers`].
pub const VERDICTS: [&str; 3] = ["granted", "partly", "refused"];

/// All reasons for which a demand is not granted in full.
pub const SHORTFALLS: [Shortfall; 5] =
    [Shortfall::AtMaximum, Shortfall::HostShort, Shortfall::NoBalloon, Shortfall::Held, Shortfall::Distrusted];

/// The variant's name, for labels.
#[must_use]
pub const fn shortfall_name(why: Shortfall) -> &'static str {
    match why {
        Shortfall::AtMaximum => "at_maximum",
        Shortfall::HostShort => "host_short",
        Shortfall::NoBalloon => "no_balloon",
        Shortfall::Held => "held",
        Shortfall::Distrusted => "distrusted",
    }
}

/// How long things take. A clone shows the same counts.
#[derive(Clone, Debug)]
pub struct Latencies {
    /// From a demand's frame to the call of the hypervisor.
    pub demand: Histogram,
    /// The hypervisor's call.
    pub call: Histogram,
    /// From the first sign in the guest to its first MiB, by the guest's clock.
    pub relief: Histogram,
    /// From an order to its end.
    pub settle: Histogram,
}

/// A demand whose answer or relief is awaited.
#[derive(Clone, Copy, Debug)]
struct Asked {
    demand: Demand,
    received: Micros,
}

/// Counts what happens. Owned by the daemon's task.
#[derive(Debug)]
pub struct Metrics {
    totals: BTreeMap<VmName, Totals>,
    asked: BTreeMap<VmName, VecDeque<Asked>>,
    /// Orders that answer a demand, and when that was received.
    unissued: BTreeMap<u64, Micros>,
    latencies: Latencies,
    trail: Trail,
    past: Past,
}

/// One VM in a [`Snapshot`].
#[derive(Clone, Debug)]
pub struct Seen {
    /// As it stands.
    pub status: VmStatus,
    /// The guest's tasks waited so long for memory since its boot (PSI `some`); `None`: not known.
    pub stalled: Option<Micros>,
    /// What was counted.
    pub totals: Totals,
    /// How it goes with its probes.
    pub probe: Option<ProbeStatus>,
}

impl Seen {
    /// How long the guest's tasks have waited for memory since its boot (PSI `some`).
    #[must_use]
    pub fn stalled(vm: &Vm) -> Option<Micros> {
        vm.telemetry.as_ref().and_then(|t| t.what.memory_pressure).map(|p| p.some)
    }

    /// What it keeps and cannot have without swapping.
    #[must_use]
    pub fn used(vm: &Vm) -> Option<Bytes> {
        let by_driver = || vm.statistics.and_then(|s| s.what.available);
        let available = vm.telemetry.as_ref().map(|t| t.what.available).or_else(by_driver)?;
        Some(vm.actual?.what - available)
    }
}

/// How much of it is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Figures of this moment.
    Figures,
    /// And what was ordered and demanded in so long a time before.
    Marks(Micros),
    /// And all that is remembered.
    All,
}

/// Everything that is shown, at one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// The daemon's clock.
    pub at: Micros,
    /// When that began, seconds since 1970.
    pub started: f64,
    /// The law that rules.
    pub law: LawName,
    /// Orders are said and not given.
    pub dry_run: bool,
    /// The host; `None`: nothing is known of it.
    pub host: Option<HostStatus>,
    /// The hypervisors.
    pub hypervisors: Vec<HypervisorStatus>,
    /// What waits for somebody to mend it.
    pub problems: Vec<String>,
    /// VMs that the configuration names and no hypervisor has.
    pub waiting: usize,
    /// Events that the daemon's task has not come to.
    pub queue: usize,
    /// All VMs, by name.
    pub vms: Vec<Seen>,
    /// How long things take.
    pub latencies: Latencies,
    /// What was ordered and demanded lately, oldest first.
    pub marks: Vec<Mark>,
    /// The last minutes, if they were asked for.
    pub past: Option<Past>,
}

impl Default for Metrics {
    fn default() -> Self {
        let histogram = |name: &str, help: &str| {
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(SECONDS.to_vec()))
                .expect("the name is valid and the buckets grow; a test renders it")
        };
        let latencies = Latencies {
            demand: histogram(
                "ballast_demand_order_seconds",
                "From the receipt of a demand to the call of the hypervisor that answers it.",
            ),
            call: histogram("ballast_hypervisor_order_seconds", "The hypervisor's call that sets a balloon."),
            relief: histogram(
                "ballast_demand_relief_seconds",
                "From the first sign of a demand in the guest to its first MiB, by the guest's word.",
            ),
            settle: histogram(
                "ballast_order_settle_seconds",
                "From an order to its end: followed, given up, or replaced by the next one.",
            ),
        };
        Self {
            totals: BTreeMap::new(),
            asked: BTreeMap::new(),
            unissued: BTreeMap::new(),
            latencies,
            trail: Trail::default(),
            past: Past::default(),
        }
    }
}

impl Metrics {
    /// A guest demands memory.
    pub fn demanded(&mut self, vm: &VmName, demand: &Demand, received: Micros) {
        let asked = self.asked.entry(vm.clone()).or_default();
        if asked.len() == ASKED {
            asked.pop_front();
        }
        asked.push_back(Asked { demand: *demand, received });
    }

    /// A guest got what it demanded. It is believed once for each demand, and not every figure.
    pub fn relieved(&mut self, vm: &VmName, relief: &Relief) {
        let Some(asked) = self.asked.get_mut(vm) else { return };
        let Some(place) = asked.iter().rposition(|a| a.demand.id == relief.id) else { return };
        asked.remove(place);
        if let Some(first) = relief.first_mib.filter(|f| *f >= relief.sign && *f - relief.sign <= LONGEST_RELIEF) {
            self.latencies.relief.observe((first - relief.sign).secs_f64());
        }
    }

    /// The planner wants something done. `known`: the VM it is about, after the decision.
    pub fn decided(&mut self, at: Micros, action: &Action, known: Option<&Vm>) {
        match action {
            Action::Order { vm, order, target, from, reason, .. } => {
                let direction = if target.bytes() < *from { Direction::Take } else { Direction::Give };
                let totals = self.totals.entry(vm.clone()).or_default();
                *totals.orders.entry((direction, variant(reason))).or_default() += 1;
                if let Reason::Demand { id, .. } = reason
                    && let Some(asked) = self.asked.get(vm).and_then(|a| a.iter().rev().find(|a| a.demand.id == *id))
                {
                    if self.unissued.len() == UNISSUED {
                        self.unissued.pop_first();
                    }
                    self.unissued.insert(*order, asked.received);
                }
                self.ended(at, vm, known);
                self.trail.ordered(at, vm, (*from, target.bytes()), reason, known);
            }
            Action::Would { vm, target, from, reason } => self.trail.would(at, vm, (*from, target.bytes()), reason),
            Action::Answer { vm, demand, verdict } => {
                let totals = self.totals.entry(vm.clone()).or_default();
                let (place, why) = match verdict {
                    Verdict::Granted { .. } => (0, None),
                    Verdict::Partly { why, .. } => (1, Some(*why)),
                    Verdict::Refused(why) => (2, Some(*why)),
                };
                totals.answers[place] += 1;
                if let Some(place) = why.and_then(|why| SHORTFALLS.iter().position(|s| *s == why)) {
                    totals.shortfalls[place] += 1;
                }
                let asked = self.asked.get(vm).and_then(|a| a.iter().rev().find(|a| a.demand.id == *demand));
                if let Some(Asked { demand, .. }) = asked {
                    let why = why.map_or(String::new(), |w| format!(": {}", shortfall_text(w)));
                    let text = format!("{}, {}{why}", source_name(demand.source), VERDICTS[place]);
                    self.trail.demanded(at, vm, demand.size, text);
                }
            }
            Action::Notice { vm, notice } => {
                let totals = self.totals.entry(vm.clone()).or_default();
                match notice {
                    Notice::OrderRefused(_) => totals.orders_refused += 1,
                    Notice::AgentSilent(_) => totals.silences += 1,
                    _ => {}
                }
            }
            // What follows an order's end, whatever ended it.
            Action::Watch { vm, .. } => self.ended(at, vm, known),
            _ => {}
        }
    }

    /// An order may have come to its end.
    pub fn ended(&mut self, at: Micros, vm: &VmName, known: Option<&Vm>) {
        if let Some(took) = self.trail.ended(at, vm, known) {
            self.latencies.settle.observe(took.secs_f64());
        }
    }

    /// The hypervisor was asked for an order at `at`.
    pub fn issued(&mut self, order: u64, at: Micros, took: Micros) {
        self.latencies.call.observe(took.secs_f64());
        if let Some(received) = self.unissued.remove(&order) {
            self.latencies.demand.observe((at - received).secs_f64());
        }
    }

    /// A VM has gone, and all its series with it.
    pub fn gone(&mut self, at: Micros, vm: &VmName) {
        self.ended(at, vm, None);
        self.totals.remove(vm);
        self.asked.remove(vm);
    }

    /// A look at all VMs, every [`EVERY`].
    pub fn look(&mut self, at: Micros, planner: &Planner) {
        self.past.look(at, planner);
    }

    /// What was counted of a VM.
    #[must_use]
    pub fn totals(&self, vm: &VmName) -> Totals {
        self.totals.get(vm).cloned().unwrap_or_default()
    }

    /// How long things take.
    #[must_use]
    pub fn latencies(&self) -> Latencies {
        self.latencies.clone()
    }

    /// The last minutes.
    #[must_use]
    pub const fn past(&self) -> &Past {
        &self.past
    }

    /// What was ordered and demanded since then, as far as it is remembered, oldest first.
    #[must_use]
    pub fn marks(&self, since: Micros) -> Vec<Mark> {
        self.trail.marks(since)
    }
}

/// The journal's name of an enum's variant, for labels: there are as many as the type has, whatever a guest says.
fn variant(value: &impl Serialize) -> String {
    use serde_json::Value;
    let name = match serde_json::to_value(value) {
        Ok(Value::String(name)) => name,
        Ok(Value::Object(map)) => map.into_iter().next().map(|(name, _)| name).unwrap_or_default(),
        _ => String::new(),
    };
    let mut label = String::with_capacity(name.len() + 2);
    for c in name.chars() {
        if c.is_ascii_uppercase() && !label.is_empty() {
            label.push('_');
        }
        label.push(c.to_ascii_lowercase());
    }
    label
}

#[cfg(test)]
mod tests {
    use super::*;
    use ballast_planner::Trouble;
    use ballast_protocol::Source;

    fn demand(id: u64) -> Demand {
        Demand {
            id,
            source: Source::Slack,
            size: Bytes::mib(10),
            sign: Micros::ZERO,
            sent: Micros::ZERO,
            within: Micros::secs(1),
            free: Bytes::ZERO,
            ballooned: None,
        }
    }

    #[test]
    fn a_label_is_the_variant_and_never_what_is_in_it() {
        assert_eq!(variant(&Reason::SelfDeflated), "self_deflated");
        assert_eq!(variant(&Reason::Undo(Trouble::OomKill)), "undo");
        assert_eq!(variant(&Reason::Law { law: LawName::Mom, why: "\"evil\n".into() }), "law");
    }

    #[test]
    fn every_shortfall_is_counted_under_its_variant_s_name() {
        let mut metrics = Metrics::default();
        let vm = VmName::from("web");
        for (n, why) in SHORTFALLS.into_iter().enumerate() {
            assert_eq!(variant(&why), shortfall_name(why));
            for _ in 0..=n {
                let verdict = Verdict::Refused(why);
                metrics.decided(Micros::ZERO, &Action::Answer { vm: vm.clone(), demand: 1, verdict }, None);
            }
        }
        assert_eq!(metrics.totals(&vm).shortfalls, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_relief_counts_once_for_a_demand_and_only_when_it_can_be_true() {
        let mut metrics = Metrics::default();
        let vm = VmName::from("web");
        let relief = |id, first: u64| Relief {
            id,
            sign: Micros::millis(1000),
            answered: Micros::millis(1001),
            first_mib: Some(Micros::millis(first)),
        };
        metrics.relieved(&vm, &relief(1, 1010));
        for id in 1..=4 {
            metrics.demanded(&vm, &demand(id), Micros::ZERO);
        }
        metrics.relieved(&vm, &relief(1, 1010));
        metrics.relieved(&vm, &relief(1, 1010));
        metrics.relieved(&vm, &relief(2, 500));
        metrics.relieved(&vm, &relief(3, 1_000_000));
        assert_eq!(metrics.latencies.relief.get_sample_count(), 1);
        assert!((metrics.latencies.relief.get_sample_sum() - 0.01).abs() < 1e-9);
    }

    #[test]
    fn what_a_guest_makes_us_remember_is_bounded_and_goes_with_it() {
        let mut metrics = Metrics::default();
        let vm = VmName::from("web");
        for id in 0..10_000 {
            metrics.demanded(&vm, &demand(id), Micros::ZERO);
        }
        assert_eq!(metrics.asked[&vm].len(), ASKED);
        metrics.decided(
            Micros::ZERO,
            &Action::Notice { vm: vm.clone(), notice: Notice::AgentSilent(String::new()) },
            None,
        );
        assert_eq!(metrics.totals(&vm).silences, 1);
        metrics.gone(Micros::ZERO, &vm);
        assert!(metrics.asked.is_empty() && metrics.totals.is_empty());
    }

    #[test]
    fn an_order_that_is_issued_twice_or_never_asked_for_is_timed_once() {
        let mut metrics = Metrics::default();
        metrics.unissued.insert(7, Micros::millis(100));
        metrics.issued(7, Micros::millis(102), Micros::millis(1));
        metrics.issued(7, Micros::millis(103), Micros::millis(1));
        metrics.issued(8, Micros::millis(104), Micros::millis(1));
        assert_eq!((metrics.latencies.demand.get_sample_count(), metrics.latencies.call.get_sample_count()), (1, 3));
        assert!((metrics.latencies.demand.get_sample_sum() - 0.002).abs() < 1e-9);
    }
}
