//! Decides how much memory each VM keeps. No I/O, no clock, no randomness, ordered maps only.
//!
//! ```text
//!   Input --handle(at)--> fleet (what is known, how old) --> law (what it would do) --> guard --> Action
//!                                                                                                   |
//!   production, replay and simulation differ only in who calls:  poll_action()  deadline()  <-------+
//! ```
//!
//! [`Planner::handle`] takes one [`Input`] and the time, [`Planner::poll_action`] hands out what is to be done, and
//! [`Planner::deadline`] says when to call with [`Input::Wake`] if nothing happens before. Inputs about VMs that the
//! planner does not know are no-ops, and so are spurious wakes. The same inputs give the same actions, byte for byte
//! (promise P7), which is why this is a crate of its own: the compiler and clippy check what it may not use.

#![forbid(unsafe_code)]

mod arbiter;
mod balloon;
mod config;
mod conformal;
mod decide;
mod demand;
mod event;
mod features;
mod fleet;
mod forecast;
mod foresight;
mod guard;
mod history;
mod pace;
mod policy;
mod pool;
mod ratio;
mod rule;
mod service;
mod status;
mod trust;

pub use config::{Class, VmSettings};
pub use conformal::{Calibration, Correction, score};
pub use event::{
    Action, Facts, Hold, Holding, HostMemory, HostNotice, Input, Notice, Reason, Statistics, Trouble, VmName,
    shortfall_text, source_name,
};
pub use features::{
    CANDIDATE, CANDIDATE_NAMES, FEATURES_VERSION, Features, HORIZON, Outcome, QUANTILES, SIZES, WINDOW, WINDOW_NAMES,
};
pub use fleet::{Agent, Counts, Leftover, Order, Sent, Stamped, Vm, Want};
pub use forecast::{Flaw, Forecast, Mode, Point, Said};
pub use foresight::{CurvePoint, ForecastStatus, Foreseen, JUDGED_EVERY};
pub use guard::BalloonTarget;
pub use pace::Pace;
pub use policy::{
    DrsSettings, HeadroomSettings, LawName, LawSettings, MomSettings, ProxmoxSettings, ThresholdSettings,
};
pub use pool::{HostStatus, Reservation, ReservationStatus, Taking};
pub use ratio::{ParseRatioError, Ratio};
pub use service::{ProbeWhy, Service, ServiceMode, ServiceSample, ServiceStatus};
pub use status::VmStatus;

use ballast_protocol::{Bytes, GuestMessage, Hello, Micros, Telemetry};
use policy::{Law, StatisticsLaw};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use trust::Verdict as Judgement;

/// The longest silence of an agent that is taken for life. The agent speaks at least three times as often.
pub const SILENCE: Micros = Micros::secs(3);
/// How often the balloon is read while it moves: a taking of 64 MiB lasts about 350 ms.
const WATCH_MOVING: Micros = Micros::millis(25);
/// How often while it rests: only a self-deflation can change it.
const WATCH_RESTING: Micros = Micros::secs(1);
/// An order has been followed when the balloon is this near: the driver works in units of 1 MiB.
const NEAR: Bytes = Bytes::mib(1);
/// A guest that gives less than 15 MiB/s for 4 s cannot give (ChromeOS's resource manager, same figures).
const STALL_RATE: u64 = 15 << 20;
const STALL_GRACE: Micros = Micros::secs(4);
/// What comes back, beyond the point where it stuck, when a guest could not give.
const STALL_RELIEF: Bytes = Bytes::mib(16);
/// After its agent has gone, a VM gets a sixteenth of its maximum back every five seconds: all within 80 s.
const DECAY_EVERY: Micros = Micros::secs(5);
const DECAY_SHARE: u64 = 16;
/// The balloon's own moves below this are rounding, not self-deflation.
const SELF_DEFLATION: Bytes = Bytes::mib(4);
/// A hypervisor that refused an order is not asked again by our own will for so long.
const RETRY: Micros = Micros::secs(1);
/// More rounds than any decision takes, see [`Planner::decide`].
const ROUNDS: usize = 16;
/// When a decision that did not come to an end is tried again.
const LATE: Micros = Micros::secs(1);
/// How long after an order has been followed the balloon still counts as having been moved by it.
const AT_REST: Micros = Micros::secs(2);

/// The planner: all VMs, what is due when, and what is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planner {
    vms: BTreeMap<VmName, Vm>,
    /// At most one entry a VM.
    due: BTreeSet<(Micros, VmName)>,
    due_of: BTreeMap<VmName, Micros>,
    orders: u64,
    reclaims: u64,
    #[serde(default)]
    law: Law,
    /// When the law has its next round, if it has rounds.
    #[serde(default)]
    next_round: Option<Micros>,
    /// The host's memory.
    #[serde(default)]
    pool: pool::Pool,
    /// Orders are said and not given.
    #[serde(default)]
    dry_run: bool,
    #[serde(skip)]
    actions: VecDeque<Action>,
}

impl Planner {
    /// A planner that knows no VM.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The next thing to do; `None` when there is nothing more.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call with [`Input::Wake`] if nothing happens before.
    #[must_use]
    pub fn deadline(&self) -> Option<Micros> {
        let vm = self.due.first().map(|(at, _)| *at);
        vm.into_iter().chain(self.next_round).chain(self.pool.next()).min()
    }

    /// All VMs, by name.
    pub fn vms(&self) -> impl Iterator<Item = (&VmName, &Vm)> {
        self.vms.iter()
    }

    /// One VM.
    #[must_use]
    pub fn vm(&self, name: &VmName) -> Option<&Vm> {
        self.vms.get(name)
    }

    /// Something happened at `at`. Time may stand still between two calls; it must not go back (a smaller time is
    /// harmless: ages saturate at zero).
    pub fn handle(&mut self, at: Micros, input: Input) {
        self.step(at, input);
        self.look_at_pool(at);
    }

    fn step(&mut self, at: Micros, input: Input) {
        let vm = match input {
            Input::Wake => return self.wake(at),
            Input::Law { law } => return self.choose(at, law),
            Input::Pool { budget, reserve } => return self.set_pool(at, budget, reserve),
            Input::Host(host) => return self.set_host(at, host),
            Input::Reserve(reservation) => return self.reserve(reservation),
            Input::Unreserve { name } => return self.unreserve(&name),
            Input::Reclaim { size } => return self.reclaim(at, size),
            Input::Mode { dry_run } => return self.set_mode(at, dry_run),
            Input::Hold { vm, hold } => {
                self.with(&vm, |v| {
                    if hold.is_some() {
                        // What it wanted before is not what the operator wants.
                        v.want = None;
                        // Who orders a size by hand does not wait until the law dares again. What hurts is undone as ever.
                        v.blocked_until = v.blocked_until.min(at);
                    }
                    v.hold = hold;
                    v.reactive.disturb(at);
                });
                vm
            }
            Input::Vm { vm, facts, settings } => {
                self.appeared(at, &vm, facts, settings);
                vm
            }
            Input::VmGone { vm } => {
                self.vms.remove(&vm);
                self.schedule(&vm, None);
                self.pool.look_again();
                return;
            }
            Input::Running { vm, running } => {
                self.with(&vm, |v| v.runs(at, running));
                vm
            }
            Input::Migrating { vm, migrating } => {
                self.with(&vm, |v| v.migrates(at, migrating));
                vm
            }
            Input::Rebooted { vm } => {
                self.rebooted(at, &vm);
                vm
            }
            Input::Guest { vm, message } => {
                self.heard(at, &vm, message);
                vm
            }
            Input::AgentLost { vm, why } => {
                self.agent_lost(at, &vm, why);
                vm
            }
            Input::Balloon { vm, actual } => {
                self.balloon(at, &vm, actual);
                vm
            }
            Input::Statistics { vm, statistics } => {
                self.with(&vm, |v| v.statistics = Some(Stamped { at, what: statistics }));
                vm
            }
            Input::Ordered { vm, order, error } => {
                self.ordered(at, &vm, order, error);
                vm
            }
            Input::Release { vm } => {
                self.with(&vm, |v| v.released = true);
                vm
            }
            Input::Forecast { vm, forecast } => {
                self.foresee(at, &vm, forecast);
                self.decide(at, &vm);
                return self.expect(at, &vm);
            }
            Input::Service { vm, sample } => {
                self.service(at, &vm, sample);
                vm
            }
            Input::HypervisorLost { vm } => {
                self.with(&vm, |v| {
                    // What it kept last counts until it is found again.
                    v.facts.actual = v.kept();
                    v.actual = None;
                    v.order = None;
                });
                vm
            }
        };
        self.decide(at, &vm);
    }

    fn set_mode(&mut self, at: Micros, dry_run: bool) {
        self.dry_run = dry_run;
        for vm in self.vms.values_mut() {
            vm.would = None;
            vm.reactive.disturb(at);
        }
        for vm in self.vms.keys().cloned().collect::<Vec<_>>() {
            self.decide(at, &vm);
        }
    }

    fn with(&mut self, name: &VmName, change: impl FnOnce(&mut Vm)) {
        if let Some(vm) = self.vms.get_mut(name) {
            change(vm);
        }
    }

    fn wake(&mut self, at: Micros) {
        // Taken first: at the end of time whatever is due again is due now, and this must come to an end.
        let due: Vec<VmName> = self.due.iter().take_while(|(due, _)| *due <= at).map(|(_, vm)| vm.clone()).collect();
        for vm in due {
            self.schedule(&vm, None);
            self.decide(at, &vm);
        }
        if self.next_round.is_some_and(|due| due <= at) {
            self.rule(at);
        }
    }

    fn schedule(&mut self, vm: &VmName, at: Option<Micros>) {
        if let Some(old) = self.due_of.remove(vm) {
            self.due.remove(&(old, vm.clone()));
        }
        if let Some(at) = at {
            self.due.insert((at, vm.clone()));
            self.due_of.insert(vm.clone(), at);
        }
    }

    fn notice(&mut self, vm: &VmName, notice: Notice) {
        self.actions.push_back(Action::Notice { vm: vm.clone(), notice });
    }

    /// A VM is there, or is described anew.
    fn appeared(&mut self, at: Micros, name: &VmName, facts: Facts, settings: VmSettings) {
        let actual = facts.actual;
        let is_ruled = self.is_ruled();
        match self.vms.get_mut(name) {
            Some(vm) => {
                let settings_changed = vm.settings != settings;
                let running = facts.running;
                // With memory plugged or unplugged, what was ordered before means something else.
                let resized = vm.facts.max != facts.max && vm.order.is_none();
                let known_deflate = vm.facts.deflate_on_oom;
                if settings.cold_after > vm.settings.cold_after {
                    vm.reactive.cache_unknown(at, settings.cold_after);
                }
                vm.settings = settings;
                if vm.settings.predictor == Mode::Off {
                    vm.foresight = foresight::Foresight::default();
                }
                let below_minimum = vm.aim < vm.guaranteed();
                let ran = vm.facts.running;
                vm.facts = Facts { deflate_on_oom: facts.deflate_on_oom.or(known_deflate), running: ran, ..facts };
                vm.limit_leases();
                if running != ran {
                    vm.runs(at, running);
                }
                if resized {
                    vm.actual = None;
                }
                self.balloon(at, name, actual);
                if settings_changed && (below_minimum || !is_ruled) {
                    self.give(at, name, Bytes::ZERO, Reason::Settings);
                }
            }
            None => {
                self.vms.insert(name.clone(), Vm::new(facts, settings, at));
                self.adopt(at, name, actual);
                self.pool.look_again();
            }
        }
        self.watch(name);
    }

    /// The guest said something.
    fn heard(&mut self, at: Micros, name: &VmName, message: GuestMessage) {
        let known = self.hears(at, name, &message);
        if let GuestMessage::Demand(demand) = &message {
            // Whoever asks is answered (promise P5), known or not: giving needs no trust.
            self.demand(at, name, demand);
        }
        if !known {
            return;
        }
        let Some(vm) = self.vms.get_mut(name) else { return };
        match message {
            GuestMessage::Hello(hello) => self.hello(at, name, hello),
            GuestMessage::Telemetry(telemetry) => self.telemetry(at, name, telemetry),
            GuestMessage::Withdraw { id } => {
                vm.leases.remove(&id);
            }
            GuestMessage::Relief(relief) => vm.reactive.relieved(&relief),
            GuestMessage::Reclaimed(answer) => vm.reactive.reclaimed(at, &answer),
            // A demand has been answered above; the session turns the second into clock figures and the third into the end of the session.
            GuestMessage::Demand(_) | GuestMessage::Pong(_) | GuestMessage::Goodbye(_) => {}
        }
    }

    /// Any word is a sign of life, and ends a silence before anything else comes of it: a lease that ends one is a
    /// living agent's. Returns whether the guest may be listened to.
    fn hears(&mut self, at: Micros, name: &VmName, message: &GuestMessage) -> bool {
        let Some(vm) = self.vms.get_mut(name) else { return false };
        match &mut vm.agent {
            _ if matches!(message, GuestMessage::Hello(_)) => true,
            Agent::Alive { heard, .. } => {
                *heard = at;
                true
            }
            // Silent for too long, but its session lives after all.
            Agent::Lost { hello: hello @ Some(_), .. } => {
                if let Some(hello) = hello.take() {
                    vm.agent = Agent::Alive { hello, heard: at };
                    vm.reactive.greeted(at);
                }
                true
            }
            // The session ensures that Hello comes first; without it nothing is believed.
            Agent::Lost { .. } | Agent::Never => false,
        }
    }

    fn hello(&mut self, at: Micros, name: &VmName, hello: Hello) {
        self.with(name, |vm| {
            vm.agent = Agent::Alive { hello, heard: at };
            vm.telemetry = None;
            vm.forget_past();
            vm.leases.clear();
            vm.reactive.greeted(at);
        });
    }

    fn telemetry(&mut self, at: Micros, name: &VmName, new: Telemetry) {
        let is_ruled = self.is_ruled();
        let Some(vm) = self.vms.get_mut(name) else { return };
        let at_rest = vm.order.is_none() && at >= vm.settled + AT_REST && vm.leftover == Leftover::None;
        let was_trusted = vm.trust.is_trusted();
        let actual = vm.actual.filter(|_| at_rest).map(|a| a.what);
        let old = vm.telemetry.take().map(|t| t.what);
        match vm.trust.judge(&new, old.as_ref(), vm.facts.max, actual) {
            Judgement::Unsound(why) => {
                vm.counts.distrusted += 1;
                // The first of a row is news.
                if was_trusted {
                    self.notice(name, Notice::Distrusted(why));
                }
                return;
            }
            Judgement::SoundAgain => {
                self.actions.push_back(Action::Notice { vm: name.clone(), notice: Notice::TrustedAgain })
            }
            Judgement::Sound => {}
        }
        let killed = match (new.counters.oom_kill, old.as_ref().and_then(|o| o.counters.oom_kill)) {
            (Some(n), Some(o)) => n.saturating_sub(o),
            _ => 0,
        };
        let hurt = vm.reactive.observe(at, &new, old.as_ref(), vm.settings.cold_after);
        let headroom = vm.headroom(at);
        let kept = vm.kept_at(new.ballooned);
        vm.reactive.seen(at, kept, new.free - new.watermarks.low, headroom);
        if hurt.is_some() {
            vm.service.troubled(at);
            vm.history.troubled();
        }
        let ballooned = new.ballooned;
        vm.telemetry = Some(Stamped { at, what: new });
        vm.remember(at);
        vm.foresight.judge(at, &vm.history);
        self.guests_figure(at, name, ballooned);
        let Some(vm) = self.vms.get_mut(name) else { return };
        let aim = vm.aim;
        if killed > 0 {
            vm.counts.oom_kills = vm.counts.oom_kills.saturating_add(killed);
            vm.blame_forecast(at);
            vm.block(at);
            self.notice(name, Notice::OomKills(killed));
            if !is_ruled {
                self.give(at, name, Bytes::MAX, Reason::Killed);
            }
        } else if !is_ruled
            && let Some((trouble, blamed)) = hurt
            && blamed > Bytes::ZERO
        {
            vm.counts.undone += 1;
            vm.blame_forecast(at);
            vm.block(at);
            self.give(at, name, aim + blamed, Reason::Undo(trouble));
        }
    }

    fn agent_lost(&mut self, at: Micros, name: &VmName, why: String) {
        let Some(vm) = self.vms.get_mut(name) else { return };
        vm.leases.clear();
        match &mut vm.agent {
            Agent::Never => {}
            Agent::Lost { hello, .. } => *hello = None,
            Agent::Alive { .. } => {
                vm.agent = Agent::Lost { at, next: at, hello: None };
                self.notice(name, Notice::AgentSilent(why));
            }
        }
    }

    /// Nothing was heard for too long. The session may outlive this: then the next word ends it.
    fn silent(&mut self, at: Micros, name: &VmName, since: Micros) {
        let Some(vm) = self.vms.get_mut(name) else { return };
        if let Agent::Alive { hello, .. } = &vm.agent {
            vm.agent = Agent::Lost { at, next: at, hello: Some(hello.clone()) };
            self.notice(name, Notice::AgentSilent(format!("nothing heard for {since}")));
        }
    }
}

/// What a guest without an agent keeps free.
#[must_use]
pub fn statistics_margin(vm: &Vm) -> Bytes {
    StatisticsLaw::margin(vm)
}
