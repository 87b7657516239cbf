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

mod balloon;
mod config;
mod demand;
mod event;
mod fleet;
mod guard;
mod policy;
mod ratio;
mod rule;
mod service;
mod status;
mod trust;

pub use config::VmSettings;
pub use event::{
    Action, Facts, Holding, HostMemory, Input, Notice, Reason, Statistics, Trouble, VmName, shortfall_text, source_name,
};
pub use fleet::{Agent, Counts, Leftover, Order, Stamped, Vm};
pub use guard::BalloonTarget;
pub use policy::{
    DrsSettings, HeadroomSettings, LawName, LawSettings, MomSettings, ProxmoxSettings, ThresholdSettings,
};
pub use ratio::{ParseRatioError, Ratio};
pub use service::{ProbeWhy, Service, ServiceMode, ServiceSample, ServiceStatus};
pub use status::VmStatus;

use ballast_protocol::{Bytes, GuestMessage, Hello, Micros, Telemetry};
use policy::{Law, Policy, Proposal, StatisticsLaw};
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
    #[serde(default)]
    budget: Option<Bytes>,
    /// What the host's kernel says.
    #[serde(default)]
    host: Option<Stamped<HostMemory>>,
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
        vm.into_iter().chain(self.next_round).min()
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
        let vm = match input {
            Input::Wake => return self.wake(at),
            Input::Law { law, budget } => return self.choose(at, law, budget),
            Input::Host(host) => return self.host(at, host),
            Input::Vm { vm, facts, settings } => {
                self.appeared(at, &vm, facts, settings);
                vm
            }
            Input::VmGone { vm } => {
                self.vms.remove(&vm);
                self.schedule(&vm, None);
                return;
            }
            Input::Running { vm, running } => {
                self.with(&vm, |v| v.runs(at, running));
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
            Input::Service { vm, sample } => {
                self.service(at, &vm, sample);
                vm
            }
            Input::HypervisorLost { vm } => {
                self.with(&vm, |v| {
                    v.actual = None;
                    v.order = None;
                });
                vm
            }
        };
        self.decide(at, &vm);
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
                vm.settings = settings;
                let below_minimum = vm.aim < vm.guaranteed();
                let ran = vm.facts.running;
                vm.facts = Facts { deflate_on_oom: facts.deflate_on_oom.or(known_deflate), running: ran, ..facts };
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
        let hurt = vm.reactive.observe(at, &new, old.as_ref());
        let headroom = vm.reactive.headroom(vm);
        vm.reactive.seen(at, new.free - new.watermarks.low, headroom);
        if hurt.is_some() {
            vm.service.troubled(at);
        }
        let ballooned = new.ballooned;
        vm.telemetry = Some(Stamped { at, what: new });
        self.guests_figure(at, name, ballooned);
        let Some(vm) = self.vms.get_mut(name) else { return };
        let aim = vm.aim;
        if killed > 0 {
            vm.counts.oom_kills = vm.counts.oom_kills.saturating_add(killed);
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

    /// What follows from all that is known of a VM now.
    fn decide(&mut self, at: Micros, name: &VmName) {
        // Each round that is not the last gives an order or ends a wait, so that two or three do. The bound makes a
        // mistake in a law a late decision instead of a daemon that hangs.
        for _ in 0..ROUNDS {
            if let Some(next) = self.round(at, name) {
                self.schedule(name, (next < Micros::MAX).then_some(next));
                return;
            }
        }
        let late = at + LATE;
        self.schedule(name, (late < Micros::MAX).then_some(late));
    }

    /// One look at a VM. `None`: something changed, look again; otherwise when to look again.
    fn round(&mut self, at: Micros, name: &VmName) -> Option<Micros> {
        let law = self.law.name();
        let Some(vm) = self.vms.get_mut(name) else { return Some(Micros::MAX) };
        let mut next = Micros::MAX;

        if let Agent::Alive { heard, .. } = vm.agent
            && vm.facts.running
        {
            if at >= heard + SILENCE {
                self.silent(at, name, at - heard);
                return None;
            }
            next = next.min(heard + SILENCE);
        }

        if let Some(order) = &vm.order
            && vm.facts.running
        {
            let patience = STALL_GRACE + Micros(order.shrinks_by().share(1_000_000, STALL_RATE).0);
            let due = order.at + patience;
            if at >= due {
                self.stalled(at, name);
                return None;
            }
            next = next.min(due);
        }

        if let Agent::Lost { next: due, hello, .. } = &mut vm.agent {
            let silent = hello.is_some();
            // Under another law nothing is given to it, and nothing is owed.
            let all_given = vm.aim >= vm.facts.max.min(vm.settings.max) || law != LawName::Ballast;
            if all_given || !vm.facts.balloon {
                // All is given back: from here on it is a VM without an agent, unless its session still lives.
                if !silent {
                    vm.agent = Agent::Never;
                    vm.leases.clear();
                    vm.by_statistics.gave(at);
                }
            } else if vm.actual.is_some() {
                // Without its hypervisor nothing can be given; that it is back is an input.
                if at >= *due {
                    *due = at + DECAY_EVERY;
                    let wish = vm.aim + vm.max().share(1, DECAY_SHARE).max(NEAR);
                    self.give(at, name, wish, Reason::Decay);
                    return None;
                }
                next = next.min(*due);
            }
        }

        let missing = vm.facts.balloon && guard::lacks_deflate_on_oom(vm);
        let unsure = vm.facts.balloon && !matches!(vm.agent, Agent::Never) && !guard::deflates_on_oom(vm);
        if (missing || unsure) && !vm.told_no_deflate {
            vm.told_no_deflate = true;
            self.notice(name, Notice::NoDeflateOnOom);
        }
        let vm = self.vms.get(name)?;

        // A law that looks at all VMs would never think of one that it may not take from.
        let missing = missing || (law != LawName::Ballast && !guard::deflates_on_oom(vm));
        let left_alone = vm.settings.exempt || (missing && !vm.settings.allow_without_deflate_on_oom);
        let unwanted = vm.released || (left_alone && law != LawName::Static);
        if unwanted && vm.facts.balloon && vm.aim < vm.max() && vm.actual.is_some() {
            if at >= vm.retry {
                let reason = if vm.released { Reason::Release } else { Reason::Exempt };
                self.give(at, name, Bytes::MAX, reason);
                return None;
            }
            next = next.min(vm.retry);
        }

        let holding = self.propose(at, name).ok()?;
        next = next.min(self.ask_for_probe(at, name));
        if let Holding::CoolingDown(until) | Holding::Blocked(until) | Holding::Returning(until) = holding {
            next = next.min(until.max(at + Micros(1)));
        }
        if holding == Holding::Reclaiming {
            next = next.min(at + Micros::secs(1));
        }
        self.with(name, |vm| vm.holding = holding);
        Some(next)
    }

    /// Asks the law, and has the guard judge. `Err`: an order was given.
    fn propose(&mut self, at: Micros, name: &VmName) -> Result<Holding, ()> {
        let law = self.law.name();
        let Some(vm) = self.vms.get(name) else { return Ok(Holding::Settled) };
        if law != LawName::Ballast {
            return Ok(match guard::may_move(vm) {
                Err(why) => why,
                Ok(()) if vm.order.is_some() => Holding::Moving,
                Ok(()) => Holding::Ruled(law),
            });
        }
        let with_agent = matches!(vm.agent, Agent::Alive { .. });
        let mut proposal = match vm.agent {
            Agent::Alive { .. } => vm.reactive.propose(vm, at),
            Agent::Never => vm.by_statistics.propose(vm, at),
            Agent::Lost { .. } => Proposal::Hold(Holding::Decaying),
        };
        if let Proposal::Hold(Holding::Returning(_)) = proposal
            && self.is_crowded(at)
        {
            // What is kept for one guest's convenience is what another needs.
            self.with(name, |vm| vm.reactive.let_go());
            proposal = self.vms.get(name).map_or(proposal, |vm| vm.reactive.propose(vm, at));
        }
        let Some(vm) = self.vms.get(name) else { return Ok(Holding::Settled) };
        match proposal {
            // The guard's word is the better explanation where it would forbid taking anyway.
            Proposal::Hold(why) => Ok(match guard::may_take(vm, at) {
                Err(forbidden) if why != Holding::Reclaiming => forbidden,
                _ => why,
            }),
            Proposal::Give(wish, reason) => {
                if at < vm.retry {
                    return Ok(Holding::Blocked(vm.retry));
                }
                self.with(name, |vm| vm.reactive.needed(at, vm.aim, wish, vm.settings.returning));
                let Some(vm) = self.vms.get(name) else { return Ok(Holding::Settled) };
                if vm.actual.is_none() || !vm.facts.balloon || !self.give(at, name, wish, reason) {
                    return Ok(Holding::NoHypervisor);
                }
                Err(())
            }
            Proposal::Take(wish, reason) => match guard::taking(vm, wish, at) {
                Err(holding) => Ok(holding),
                Ok(target) => {
                    let (aim, size) = (vm.aim, vm.aim - target.bytes());
                    self.order(at, name, |_| Some(target), reason, false);
                    self.with(name, |vm| {
                        vm.counts.takings += 1;
                        vm.service.took();
                        if with_agent {
                            vm.reactive.took(at, size, aim);
                        } else {
                            vm.by_statistics.took(at);
                        }
                    });
                    Err(())
                }
            },
            Proposal::Reclaim(size) => match guard::may_take(vm, at) {
                Err(holding) => Ok(holding),
                Ok(()) => {
                    self.reclaims += 1;
                    let id = self.reclaims;
                    self.with(name, |vm| vm.reactive.reclaim_sent(at, id));
                    self.actions.push_back(Action::Reclaim { vm: name.clone(), id, size });
                    Ok(Holding::Reclaiming)
                }
            },
        }
    }

    /// Gives. Returns whether anything had to be ordered.
    pub(crate) fn give(&mut self, at: Micros, name: &VmName, wish: Bytes, reason: Reason) -> bool {
        let given = self.order(at, name, |vm| Some(guard::giving(vm, wish)), reason, false);
        if given {
            self.with(name, |vm| {
                vm.counts.givings += 1;
                vm.reactive.disturb(at);
                vm.by_statistics.gave(at);
            });
        }
        given
    }

    /// The one way to an order. `even_if_same`: also when the target is what the VM was told already.
    fn order(
        &mut self,
        at: Micros,
        name: &VmName,
        target: impl FnOnce(&Vm) -> Option<BalloonTarget>,
        reason: Reason,
        even_if_same: bool,
    ) -> bool {
        let Some(vm) = self.vms.get_mut(name) else { return false };
        if vm.actual.is_none() || !vm.facts.balloon {
            return false;
        }
        let Some(target) = target(vm) else { return false };
        // A giving that the guest never followed is worth repeating when somebody asks for it.
        let undelivered = vm.order.is_none() && vm.kept() + SELF_DEFLATION < vm.aim;
        if target.bytes() == vm.aim && !even_if_same && !undelivered {
            return false;
        }
        self.orders += 1;
        let from = vm.aim;
        vm.aim = target.bytes();
        vm.order = Some(Order { id: self.orders, at, from: vm.kept(), before: from, target, reason: reason.clone() });
        vm.last = Some(Stamped { at, what: (target.bytes(), reason.clone()) });
        self.actions.push_back(Action::Order { vm: name.clone(), order: self.orders, target, from, reason });
        self.watch(name);
        true
    }

    /// Sets how often the balloon is read, if that changed.
    fn watch(&mut self, name: &VmName) {
        let Some(vm) = self.vms.get_mut(name) else { return };
        let every = if vm.order.is_some() { WATCH_MOVING } else { WATCH_RESTING };
        if vm.watch != every {
            vm.watch = every;
            self.actions.push_back(Action::Watch { vm: name.clone(), every });
        }
    }
}

/// What a guest without an agent keeps free.
#[must_use]
pub fn statistics_margin(vm: &Vm) -> Bytes {
    StatisticsLaw::margin(vm)
}
