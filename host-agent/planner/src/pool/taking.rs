//! Who gives what: the first of the pool's two phases.
//!
//! Idle memory of quiet guests goes first, for whatever it is wanted; idle memory of the others only for what somebody waits
//! for; and in a crunch what is free below the headroom, from whoever has more than its share.

use super::{LAST, LEAST_BURST, WORTH, WORTH_SENDING};
use crate::arbiter::{self, Claimant};
use crate::event::{Reason, VmName};
use crate::fleet::{Agent, Leftover, Order, Stamped, Vm};
use crate::policy::{Policy, Proposal};
use crate::{Planner, guard};
use ballast_protocol::{Bytes, Micros};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Something that would be taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taking {
    /// From whom.
    pub vm: VmName,
    /// What it keeps.
    pub from: Bytes,
    /// What it would keep.
    pub to: Bytes,
    /// For people.
    pub why: String,
}

/// What should be freed, by how badly.
#[derive(Clone, Copy, Debug)]
pub(super) struct Goal {
    /// Somebody waits for it.
    needed: Bytes,
    /// An operator wants it.
    reclaim: Bytes,
    /// It is to be ready for bursts.
    ready: Bytes,
    /// What the VMs may have together.
    limit: Bytes,
}

/// What is taken from whom, with the reason.
pub(super) struct Plan {
    takings: Vec<(VmName, Bytes, Reason)>,
    /// What of it is for other VMs; the rest is an operator's.
    others: Bytes,
    /// What nobody can give now.
    pub missing: Bytes,
    /// What nobody has to spare for bursts to come.
    pub unready: Bytes,
}

impl Planner {
    /// What should be freed: for wants, for what is above the limit, for an operator, and for bursts to come.
    pub(super) fn goal(&self, at: Micros, limit: Bytes) -> Goal {
        let charges = self.charges();
        let wanted: Bytes =
            self.vms.values().filter_map(|vm| vm.want.map(|want| want.size.min(vm.max()) - vm.charge())).sum();
        let on_its_way: Bytes = self.vms.values().filter(|vm| vm.order.is_some()).map(|vm| vm.kept() - vm.aim).sum();
        let room = self.room(at).unwrap_or_default();
        let missing = wanted - room + (charges - limit);
        let reclaim = self.pool.reclaim.map_or(Bytes::ZERO, |r| r.what);
        let ready = self.pool.burst_reserve(limit) - (room - wanted);
        Goal { needed: missing - on_its_way, reclaim, ready: ready - (on_its_way - missing), limit }
    }

    /// The first phase: who gives what.
    pub(super) fn plan(&self, at: Micros, goal: Goal) -> Plan {
        let mut plan =
            Plan { takings: Vec::new(), others: goal.needed + goal.ready, missing: Bytes::ZERO, unready: Bytes::ZERO };
        let all = goal.needed + goal.reclaim + goal.ready;
        if all == Bytes::ZERO {
            return plan;
        }
        let now = goal.needed + goal.reclaim;
        let claimants = self.claimants(at);
        let calm = |c: &Claimant| self.vms.get(&c.name).is_some_and(|vm| vm.is_calm(at));
        let mut taken: BTreeMap<VmName, Bytes> = BTreeMap::new();
        // Idle memory of quiet guests first, for everything; for bursts to come not what is likely to return.
        let mut quiet: Vec<Claimant> = claimants.iter().filter(|c| calm(c)).cloned().collect();
        let mut came = Bytes::ZERO;
        for (i, size) in arbiter::tax(now, &quiet) {
            *taken.entry(quiet[i].name.clone()).or_default() += size;
            came += size;
            quiet[i].charge = quiet[i].charge - size;
        }
        let mut at_home = Bytes::ZERO;
        if goal.ready > Bytes::ZERO {
            let homes = self.homes(at, goal.limit, &claimants);
            for c in &claimants {
                at_home += homes.get(&c.name).map_or(Bytes::ZERO, |home| (*home).min(c.charge) - c.fullest);
            }
            for c in &mut quiet {
                c.fullest = c.fullest.max(homes.get(&c.name).copied().unwrap_or_default());
            }
            for (i, size) in arbiter::tax(goal.ready + (now - came), &quiet) {
                *taken.entry(quiet[i].name.clone()).or_default() += size;
                came += size;
            }
        }
        // For what is needed now, idle memory of the others.
        let busy: Vec<Claimant> = claimants.iter().filter(|c| !calm(c)).cloned().collect();
        for (i, size) in arbiter::tax(goal.needed - came, &busy) {
            *taken.entry(busy[i].name.clone()).or_default() += size;
            came += size;
        }
        // In a crunch also what is free below the headroom, from whoever has more than its share.
        plan.missing = goal.needed - came;
        if plan.missing > Bytes::ZERO {
            for (c, share) in claimants.iter().zip(arbiter::shares(goal.limit, &claimants)) {
                let above = c.charge - taken.get(&c.name).copied().unwrap_or_default() - share.max(c.lowest);
                let size = above.min(plan.missing);
                if size > Bytes::ZERO {
                    *taken.entry(c.name.clone()).or_default() += size;
                    plan.missing = plan.missing - size;
                }
            }
        }
        let reason = match goal {
            Goal { needed: Bytes::ZERO, ready: Bytes::ZERO, .. } => Reason::Reclaim,
            Goal { needed: Bytes::ZERO, ready, .. } => Reason::Needed(ready),
            Goal { needed, .. } => Reason::Needed(needed),
        };
        let worth = WORTH.min(all);
        plan.takings =
            taken.into_iter().filter(|t| t.1 >= worth).map(|(vm, size)| (vm, size, reason.clone())).collect();
        // What is free at home serves bursts too.
        let came: Bytes = plan.takings.iter().map(|(_, size, _)| *size).sum();
        plan.unready = goal.ready.min(all - came) - at_home;
        plan
    }

    pub(super) fn take_for_others(&mut self, at: Micros, plan: Plan) {
        let mut came = Bytes::ZERO;
        for (name, size, reason) in plan.takings {
            let Some(vm) = self.vms.get(&name) else { continue };
            let Ok(target) = guard::taking(vm, (vm.charge() - size).round_down(Bytes::mib(1)), at) else { continue };
            if self.take(at, &name, target, reason) {
                came += size;
            }
        }
        // Once: what was taken for the operator is not wanted again, also when others needed some at the same time.
        self.pool.reclaim = self
            .pool
            .reclaim
            .map(|r| Stamped { what: r.what - (came - plan.others), ..r })
            .filter(|r| r.what > Bytes::ZERO);
        if plan.missing > Bytes::ZERO {
            self.drop_cold_caches(at, plan.missing);
        }
    }

    /// What VMs whose needs return keep in between, as far as all of these fit into the limit: memory that each finds
    /// at home serves a burst sooner than any room beside it. Without such VMs, empty.
    fn homes(&self, at: Micros, limit: Bytes, claimants: &[Claimant]) -> BTreeMap<VmName, Bytes> {
        let levels: BTreeMap<&VmName, Bytes> =
            self.vms.iter().filter_map(|(name, vm)| Some((name, vm.returning(at)?.0.min(vm.max())))).collect();
        if levels.is_empty() {
            return BTreeMap::new();
        }
        let mut wishes = claimants.to_vec();
        for c in &mut wishes {
            c.fullest = c.fullest.max(levels.get(&c.name).copied().unwrap_or_default());
        }
        let shares = arbiter::shares(limit - limit.share(LEAST_BURST.0, LEAST_BURST.1), &wishes);
        let home = |(c, share): (Claimant, Bytes)| levels.get(&c.name).map(|level| (c.name.clone(), share.min(*level)));
        wishes.into_iter().zip(shares).filter_map(home).collect()
    }

    /// With nothing scarce, what returns to a VM again and again is given back to it before it asks.
    pub(super) fn send_home(&mut self, at: Micros, limit: Bytes) {
        let claimants = self.claimants(at);
        for (name, home) in self.homes(at, limit, &claimants) {
            let Some(vm) = self.vms.get(&name) else { continue };
            let ready = vm.order.is_none() && matches!(vm.agent, Agent::Alive { .. });
            let room = self.room(at).unwrap_or_default() - limit.share(LEAST_BURST.0, LEAST_BURST.1);
            let size = (home - vm.charge()).min(room);
            if ready && vm.held(at).is_none() && size >= WORTH_SENDING {
                let target = vm.charge() + size.round_down(Bytes::mib(1));
                self.give(at, &name, target, Reason::Returning);
            }
        }
    }

    /// Free memory did not suffice: guests drop what they have not used lately, and it is taken when it is free.
    fn drop_cold_caches(&mut self, at: Micros, missing: Bytes) {
        let mut missing = missing;
        for name in self.vms.keys().cloned().collect::<Vec<_>>() {
            if missing == Bytes::ZERO {
                return;
            }
            let Some(vm) = self.vms.get(&name) else { continue };
            if self.dry_run || guard::may_take(vm, at).is_err() || vm.want.is_some() {
                continue;
            }
            let Some(size) = vm.reactive.droppable(vm, at) else { continue };
            missing = missing - size;
            self.ask_to_drop(at, &name, size, None);
        }
    }

    pub(super) fn claimants(&self, at: Micros) -> Vec<Claimant> {
        self.vms.iter().map(|(name, vm)| vm.claimant(name, at)).collect()
    }

    /// What a [`crate::Input::Reclaim`] of `size` would take now, and from whom.
    #[must_use]
    pub fn plan_reclaim(&self, at: Micros, size: Bytes) -> Vec<Taking> {
        let limit = self.pool.limit(at).unwrap_or(Bytes::MAX);
        let goal = Goal { needed: Bytes::ZERO, reclaim: size, ready: Bytes::ZERO, limit };
        let taking = |(vm, size, reason): (VmName, Bytes, Reason)| {
            let found = self.vms.get(&vm)?;
            let target = guard::taking(found, (found.charge() - size).round_down(Bytes::mib(1)), at).ok()?;
            Some(Taking { vm, from: found.charge(), to: target.bytes(), why: reason.to_string() })
        };
        self.plan(at, goal).takings.into_iter().filter_map(taking).collect()
    }
}

impl Vm {
    /// Quiet for as long as its settings ask.
    fn is_calm(&self, at: Micros) -> bool {
        at >= self.reactive.unquiet() + self.settings.cool_down
    }

    /// What it has and needs. What cannot be taken from now counts as needed; only free memory ever is taken.
    fn claimant(&self, name: &VmName, at: Micros) -> Claimant {
        // What is being taken counts as gone here: nobody shall count on having it, and it is not taken twice.
        let charge = if self.order.as_ref().is_some_and(Order::is_taking) { self.aim } else { self.charge() };
        let (mut lowest, mut fullest) = (charge, charge);
        if guard::may_take(self, at).is_ok() && self.held(at).is_none() && self.leftover == Leftover::None {
            match (&self.agent, &self.telemetry) {
                (Agent::Alive { .. }, Some(telemetry)) => {
                    let slack = telemetry.what.free - telemetry.what.watermarks.low;
                    let floor = self.floor().unwrap_or(charge);
                    lowest = (charge - (slack - LAST)).max(self.guaranteed()).max(floor).min(charge);
                    // What was asked for and is not touched yet is no idle memory.
                    let spare = slack - self.headroom(at) - telemetry.what.pending;
                    fullest = if self.want.is_some() { charge } else { (charge - spare).max(lowest) };
                }
                // No more, and no sooner, than its law would.
                _ => {
                    if let Proposal::Take(target, _) = self.by_statistics.propose(self, at) {
                        lowest = target.max(self.guaranteed());
                        fullest = lowest;
                    }
                }
            }
        }
        let wish = self.want.map_or(Bytes::ZERO, |want| want.size.min(self.max()));
        Claimant {
            name: name.clone(),
            class: self.settings.class,
            weight: self.settings.weight,
            charge,
            lowest,
            fullest: fullest.max(wish),
        }
    }
}
