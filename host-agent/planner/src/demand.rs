//! Demands: memory that a guest is about to use. Each is answered at once, always (promise P5), and what is granted
//! is ordered in the same breath, all of it in one order.
//!
//! ```text
//!   wish = what the guest kept when it asked + what it asked for, at most its maximum
//! ```
//!
//! Because the wish is a size and not a step, a demand that is repeated, late or overtaken by another asks for
//! nothing twice.

use crate::event::{Reason, VmName};
use crate::fleet::{Agent, Lease, Vm};
use crate::{Action, Planner};
use ballast_protocol::{Bytes, Demand, Micros, Shortfall, Source, Verdict};

/// A guest may hold this many leases: more than there are jobs in one, and a bound on what it makes us remember.
const MOST_LEASES: usize = 1024;

impl Planner {
    pub(crate) fn demand(&mut self, at: Micros, name: &VmName, demand: &Demand) {
        let verdict = self.judge_demand(at, name, demand);
        self.actions.push_back(Action::Answer { vm: name.clone(), demand: demand.id, verdict });
    }

    fn judge_demand(&mut self, at: Micros, name: &VmName, demand: &Demand) -> Verdict {
        let is_ruled = self.is_ruled();
        let Some(vm) = self.vms.get_mut(name) else { return Verdict::Refused(Shortfall::NoBalloon) };
        *vm.counts.demands.entry(demand.source).or_default() += 1;
        let low = match (&vm.telemetry, &vm.agent) {
            (Some(telemetry), Agent::Alive { .. }) => telemetry.what.watermarks.low,
            _ => Bytes::ZERO,
        };
        vm.reactive.demanded(at, demand, low);
        vm.history.asked(demand.size.min(vm.max()));
        if !vm.facts.balloon || vm.actual.is_none() {
            return Verdict::Refused(Shortfall::NoBalloon);
        }
        if is_ruled || self.dry_run || vm.migrating {
            // That law hears no demands. The guest is told so, instead of waiting for memory that does not come.
            let why = if vm.kept() >= vm.max() { Shortfall::AtMaximum } else { Shortfall::Held };
            return Verdict::Refused(why);
        }
        let had = vm.kept_at(demand.ballooned).min(vm.max());
        let held = vm.held(at).map(|hold| hold.size.max(vm.guaranteed()));
        let most = held.unwrap_or(Bytes::MAX).min(vm.max());
        let wish = (had + demand.size).min(most).max(had.min(vm.max()));
        vm.reactive.needed(at, vm.aim, wish, vm.settings.returning);
        let hold = vm.settings.cool_down;
        self.pool.asked(at, wish - had);
        self.give(at, name, wish, Reason::Demand { id: demand.id, source: demand.source });
        let Some(vm) = self.vms.get_mut(name) else { return Verdict::Refused(Shortfall::NoBalloon) };
        // What it has been told it may keep now; the rest may come, and is not promised.
        let granted = wish.min(vm.aim);
        // What is on its way out is promised to nobody.
        let is_kept = granted >= wish.min(had);
        if demand.source == Source::Reserve && is_kept && matches!(vm.agent, Agent::Alive { .. }) {
            vm.lease(demand.id, Lease { keep: granted });
        }
        let why = if granted < wish {
            Shortfall::HostShort
        } else if held.is_some() {
            Shortfall::Held
        } else {
            Shortfall::AtMaximum
        };
        verdict(demand.size, granted - had, hold, why)
    }
}

impl Vm {
    /// A maximum that is lowered ends what was promised above it: other VMs may have that memory by the time it rises again.
    pub(crate) fn limit_leases(&mut self) {
        let most = self.max();
        for lease in self.leases.values_mut() {
            lease.keep = lease.keep.min(most);
        }
    }

    fn lease(&mut self, id: u64, lease: Lease) {
        self.leases.insert(id, lease);
        if self.leases.len() > MOST_LEASES {
            // The smallest guarantees nothing as long as the others last.
            let smallest = self.leases.iter().min_by_key(|(_, l)| l.keep).map(|(id, _)| *id);
            smallest.and_then(|id| self.leases.remove(&id));
        }
    }
}

fn verdict(asked: Bytes, size: Bytes, hold: Micros, why: Shortfall) -> Verdict {
    if size >= asked {
        Verdict::Granted { size, hold }
    } else if size > Bytes::ZERO {
        Verdict::Partly { size, hold, why }
    } else {
        Verdict::Refused(why)
    }
}
