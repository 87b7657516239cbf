//! What follows from what is known of a VM: one look decides whether anything is due, asks the law, has the guard judge,
//! and makes the order. All orders of our own law go through here.

use crate::event::{Action, Holding, Notice, Reason, VmName};
use crate::fleet::{Agent, Order, Sent, Stamped, Vm};
use crate::forecast::Said;
use crate::guard::BalloonTarget;
use crate::pace::Pace;
use crate::policy::{LawName, Policy, Proposal};
use crate::{
    DECAY_EVERY, DECAY_SHARE, LATE, NEAR, Planner, ROUNDS, SILENCE, STALL_GRACE, STALL_RATE, WATCH_MOVING,
    WATCH_RESTING, guard,
};
use ballast_protocol::{Bytes, Micros};

/// In a dry run a VM's next order is said this often at most: nothing comes of it, so that it is due all the time.
const SAID_AGAIN: Micros = Micros::secs(10);

/// Less than this of what a host cannot give whole is not given: balloons move by MiB.
const CRUMB: Bytes = Bytes::mib(1);

impl Planner {
    /// What follows from all that is known of a VM now.
    pub(crate) fn decide(&mut self, at: Micros, name: &VmName) {
        let helps = self.helps(at);
        self.with(name, |vm| {
            let answered = vm.is_answered(at, helps);
            vm.foresight.turn(at, answered);
        });
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
            && !vm.migrating
        {
            let patience = STALL_GRACE + Micros(order.shrinks_by().share(1_000_000, STALL_RATE).0);
            let due = order.at + patience;
            if at >= due {
                self.stalled(at, name);
                return None;
            }
            next = next.min(due);
        }

        let has_all = !vm.is_owed();
        if let Agent::Lost { next: due, hello, .. } = &mut vm.agent {
            let silent = hello.is_some();
            // Under another law nothing is given to it, and nothing is owed.
            let all_given = has_all || law != LawName::Ballast;
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
        if unwanted && vm.facts.balloon && vm.is_owed() && vm.actual.is_some() {
            let retry = vm.retry;
            if at >= retry {
                let reason = if vm.released { Reason::Release } else { Reason::Exempt };
                if self.give(at, name, Bytes::MAX, reason) {
                    return None;
                }
                // The host has no more for now.
                next = next.min(at + LATE);
            } else {
                next = next.min(retry);
            }
        }
        let vm = self.vms.get(name)?;

        if let Some(until) = vm.held(at).and_then(|hold| hold.until) {
            next = next.min(until);
        }
        let holding = self.propose(at, name).ok()?;
        next = next.min(self.ask_for_probe(at, name));
        if let Holding::CoolingDown(until)
        | Holding::Blocked(until)
        | Holding::Returning(until)
        | Holding::Fresh(until) = holding
        {
            next = next.min(until.max(at + Micros(1)));
        }
        if let Some(until) = self.vms.get(name).and_then(|vm| vm.foreseen_until(at)) {
            next = next.min(until);
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
        if vm.migrating {
            return Ok(Holding::Migrating);
        }
        if law != LawName::Ballast {
            return Ok(match guard::may_move(vm) {
                Err(why) => why,
                Ok(()) if vm.order.is_some() => Holding::Moving,
                Ok(()) => Holding::Ruled(law),
            });
        }
        let proposal = match (vm.held(at), &vm.agent) {
            (Some(hold), _) => held_at(vm, hold.size),
            (None, Agent::Alive { .. }) => vm.reactive.propose(vm, at),
            (None, Agent::Never) => vm.by_statistics.propose(vm, at),
            (None, Agent::Lost { .. }) => Proposal::Hold(Holding::Decaying),
        };
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
                if vm.actual.is_none() || !vm.facts.balloon {
                    return Ok(Holding::NoHypervisor);
                }
                if self.give(at, name, wish, reason) {
                    return Err(());
                }
                Ok(match self.vms.get(name) {
                    Some(vm) if vm.want.is_some() => Holding::HostShort,
                    Some(_) if self.dry_run => Holding::DryRun,
                    _ => Holding::Settled,
                })
            }
            Proposal::Take(wish, reason) => match guard::taking(vm, wish, at) {
                Err(holding) => Ok(holding),
                Ok(target) => {
                    if self.take(at, name, target, reason) {
                        Err(())
                    } else {
                        Ok(Holding::DryRun)
                    }
                }
            },
            Proposal::Reclaim(size, said) => match guard::may_take(vm, at) {
                Err(holding) => Ok(holding),
                Ok(()) if self.dry_run => Ok(Holding::DryRun),
                Ok(()) => {
                    self.ask_to_drop(at, name, size, said);
                    Ok(Holding::Reclaiming)
                }
            },
        }
    }

    /// Has a guest drop cold page cache.
    pub(crate) fn ask_to_drop(&mut self, at: Micros, name: &VmName, size: Bytes, said: Option<Said>) {
        self.reclaims += 1;
        let id = self.reclaims;
        self.with(name, |vm| vm.reactive.reclaim_sent(at, id));
        self.actions.push_back(Action::Reclaim { vm: name.clone(), id, size, said });
    }

    /// Takes. Returns whether anything had to be ordered.
    pub(crate) fn take(&mut self, at: Micros, name: &VmName, target: BalloonTarget, reason: Reason) -> bool {
        let Some(aim) = self.vms.get(name).map(|vm| vm.aim) else { return false };
        let taken = self.order(at, name, |_| Some(target), reason, false);
        if taken {
            self.with(name, |vm| {
                vm.counts.takings += 1;
                vm.service.took();
                if matches!(vm.agent, Agent::Alive { .. }) {
                    vm.reactive.took(at, aim - target.bytes(), aim);
                } else {
                    vm.by_statistics.took(at);
                }
            });
        }
        taken
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

    /// The one way to an order. What the host cannot afford is left out. `even_if_same`: also when the target is what
    /// the VM was told already.
    pub(crate) fn order(
        &mut self,
        at: Micros,
        name: &VmName,
        target: impl FnOnce(&Vm) -> Option<BalloonTarget>,
        reason: Reason,
        even_if_same: bool,
    ) -> bool {
        let Some(vm) = self.vms.get(name) else { return false };
        if vm.actual.is_none() || !vm.facts.balloon || vm.migrating {
            return false;
        }
        let Some(mut target) = target(vm) else { return false };
        if !self.is_ruled() {
            let affordable = self.afford(at, name, target.bytes(), &reason);
            if affordable < target.bytes() {
                let Some(vm) = self.vms.get(name) else { return false };
                let cut = guard::giving(vm, affordable);
                // What is left of the room is shared anew each time: its crumbs would be an order a byte.
                target = if cut.bytes() < vm.aim + CRUMB { guard::giving(vm, vm.aim) } else { cut };
            }
        }
        let Some(vm) = self.vms.get_mut(name) else { return false };
        if self.dry_run {
            let news = vm.would.is_none_or(|said| said.what != target.bytes() && at >= said.at + SAID_AGAIN);
            if news && target.bytes() != vm.aim {
                vm.would = Some(Stamped { at, what: target.bytes() });
                self.actions.push_back(Action::Would { vm: name.clone(), target, from: vm.aim, reason });
            }
            return false;
        }
        // A giving that the guest never followed is worth repeating when somebody asks for it.
        let undelivered = vm.is_undelivered();
        let gives = target.bytes() > vm.kept() && target.bytes() >= vm.aim;
        let pace = gives.then(|| Pace::of(vm, target.bytes(), &reason)).flatten();
        let hurries = gives && vm.order.as_ref().and_then(|o| o.pace).is_some_and(|slow| slow.is_overtaken(pace));
        if target.bytes() == vm.aim && !even_if_same && !undelivered && !hurries {
            return false;
        }
        self.orders += 1;
        let from = vm.aim;
        vm.aim = target.bytes();
        vm.foresight.moved(vm.aim);
        vm.sent = Some(Sent { id: self.orders, stands: vm.sent.map_or(from, |sent| sent.stands.max(from)) });
        vm.order =
            Some(Order { id: self.orders, at, from: vm.kept(), before: from, target, pace, reason: reason.clone() });
        vm.last = Some(Stamped { at, what: (target.bytes(), reason.clone()) });
        self.actions.push_back(Action::Order { vm: name.clone(), order: self.orders, target, from, pace, reason });
        self.granted(name, target.bytes() - from, target.bytes());
        self.watch(name);
        true
    }

    /// Sets how often the balloon is read, if that changed.
    pub(crate) fn watch(&mut self, name: &VmName) {
        let Some(vm) = self.vms.get_mut(name) else { return };
        let every = if vm.order.is_some() { WATCH_MOVING } else { WATCH_RESTING };
        if vm.watch != every {
            vm.watch = every;
            self.actions.push_back(Action::Watch { vm: name.clone(), every });
        }
    }
}

/// What an operator's hold comes to.
fn held_at(vm: &Vm, size: Bytes) -> Proposal {
    let size = size.min(vm.max()).max(vm.guaranteed());
    if size < vm.aim {
        Proposal::Take(size, Reason::Held)
    } else if size > vm.aim {
        Proposal::Give(size, Reason::Held)
    } else {
        Proposal::Hold(Holding::Held)
    }
}
