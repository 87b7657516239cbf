//! The laws of others at work: when a round is due, what they are shown, and what becomes of what they want.
//!
//! While one of them rules, the reactions of our own law are off: nothing is undone, refilled, or given to a silent
//! guest, a demand is answered with `Held`, and an order that a guest does not follow is counted and left standing.
//! What stays is what the hypervisor and the operator say: adoption, resets, `exempt`, minimum and maximum, and that
//! nothing is taken on stale statistics. Their newest order wins, also over one that is under way.

use crate::event::{HostMemory, Reason, VmName};
use crate::fleet::Vm;
use crate::policy::{Law, LawName, LawSettings, Move, Seen, View};
use crate::{Planner, SELF_DEFLATION, guard};
use ballast_protocol::{Bytes, Micros};

/// No law has shorter rounds, whatever its settings say: each may order every VM.
const SHORTEST_ROUND: Micros = Micros::millis(100);

impl Planner {
    /// Which law rules.
    #[must_use]
    pub const fn law(&self) -> LawName {
        self.law.name()
    }

    /// The host's memory: its budget and what the VMs leave of it, or what its kernel said lately.
    #[must_use]
    pub fn host_memory(&self, at: Micros) -> Option<HostMemory> {
        if let Some(total) = self.pool.budget() {
            let kept: Bytes = self.vms.values().map(Vm::kept).sum();
            return Some(HostMemory { total, available: total - kept, psi_some_avg10: None });
        }
        self.pool.host(at)
    }

    /// Another law than ours rules.
    pub(crate) const fn is_ruled(&self) -> bool {
        !matches!(self.law, Law::Ballast)
    }

    /// A law begins with a round's wait, ours with the rest that a VM just found has: no VM is moved by the change.
    pub(crate) fn choose(&mut self, at: Micros, law: LawSettings) {
        self.law = Law::new(law);
        self.next_round = self.law.in_rounds().map(|law| at + law.pause().max(SHORTEST_ROUND));
        self.pool.resume(at);
        for vm in self.vms.values_mut() {
            vm.reactive.disturb(at);
            vm.by_statistics.gave(at);
        }
        for vm in self.vms.keys().cloned().collect::<Vec<_>>() {
            self.decide(at, &vm);
        }
    }

    /// A round is due.
    pub(crate) fn rule(&mut self, at: Micros) {
        let view = self.view(at);
        let Some(law) = self.law.in_rounds() else { return self.next_round = None };
        let moves = law.round(&view, at);
        let next = at + law.pause().max(SHORTEST_ROUND);
        self.next_round = (next > at).then_some(next);
        for wanted in moves {
            self.carry(at, wanted);
        }
    }

    fn view(&self, at: Micros) -> View {
        let seen = |(name, vm): (&VmName, &Vm)| {
            guard::may_move(vm).ok()?;
            let statistics = vm.statistics.filter(|_| guard::has_fresh_statistics(vm, at)).map(|s| s.what);
            let free = statistics.and_then(|s| s.free).map(|free| free.min(vm.facts.max));
            let available = statistics.and_then(|s| s.available).map(|available| available.min(vm.facts.max));
            Some(Seen {
                name: name.clone(),
                min: vm.guaranteed(),
                max: vm.max(),
                target: vm.aim,
                kept: vm.kept(),
                free,
                available: available.or(free),
                shares: vm.settings.shares,
                fixed_size: vm.settings.fixed_size,
            })
        };
        View { host: self.host_memory(at), vms: self.vms.iter().filter_map(seen).collect() }
    }

    fn carry(&mut self, at: Micros, wanted: Move) {
        let law = self.law.name();
        let Some(vm) = self.vms.get(&wanted.vm).filter(|vm| at >= vm.retry) else { return };
        let Ok(target) = guard::by_law(vm, wanted.keep, at) else { return };
        let (before, size, kept) = (vm.aim, target.bytes(), vm.kept());
        // A guest that came to another size by itself, or never came to this one, is told again.
        let astray = vm.order.is_none() && (kept - size).max(size - kept) > SELF_DEFLATION;
        let reason = Reason::Law { law, why: wanted.why };
        if self.order(at, &wanted.vm, |_| Some(target), reason, astray) {
            let takes = size < before || (size == before && size < kept);
            self.with(&wanted.vm, |vm| {
                vm.counts.takings += u64::from(takes);
                vm.counts.givings += u64::from(!takes);
            });
            self.decide(at, &wanted.vm);
        }
    }
}
