//! What the daemon shows of itself: see [`crate::metrics`].

use super::Daemon;
use crate::metrics::{Depth, Seen, Snapshot};
use ballast_planner::{Action, Input, VmName, VmStatus};
use ballast_protocol::{GuestMessage, Micros};

impl Daemon {
    /// Everything at this moment.
    pub(super) fn look(&self, depth: Depth) -> Snapshot {
        let at = self.clock.now();
        let vms = self.planner.vms().map(|(name, vm)| Seen {
            status: VmStatus::of(name, vm, at),
            stalled: Seen::stalled(vm),
            totals: self.metrics.totals(name),
            probe: self.probed.get(name).cloned(),
        });
        Snapshot {
            at,
            started: self.started,
            law: self.planner.law(),
            dry_run: self.is_dry_run(),
            host: self.planner.host_status(at),
            hypervisors: self.backends.status(),
            problems: self.problems(),
            waiting: self.config.vms.iter().filter(|v| self.planner.vm(&v.name).is_none()).count(),
            queue: self.inbox.len(),
            vms: vms.collect(),
            latencies: self.metrics.latencies(),
            marks: match depth {
                Depth::Figures => Vec::new(),
                Depth::Marks(time) => self.metrics.marks(at - time),
                Depth::All => self.metrics.marks(Micros::ZERO),
            },
            past: (depth == Depth::All).then(|| self.metrics.past().clone()),
        }
    }

    /// What the planner wants done.
    pub(super) fn decided(&mut self, at: Micros, action: &Action) {
        let vm = match action {
            Action::Order { vm, .. }
            | Action::Would { vm, .. }
            | Action::Answer { vm, .. }
            | Action::Notice { vm, .. }
            | Action::Watch { vm, .. } => vm,
            _ => return,
        };
        self.metrics.decided(at, action, self.planner.vm(vm));
    }

    /// Before the planner hears it.
    pub(super) fn hear(&mut self, vm: &VmName, received: Micros, message: &GuestMessage) {
        match message {
            GuestMessage::Demand(demand) => self.metrics.demanded(vm, demand, received),
            GuestMessage::Relief(relief) => self.metrics.relieved(vm, relief),
            _ => {}
        }
    }

    /// A VM has gone, or its order may have ended without a word.
    pub(super) fn heard(&mut self, at: Micros, vm: &VmName) {
        match self.planner.vm(vm) {
            Some(known) => self.metrics.ended(at, vm, Some(known)),
            None => self.metrics.gone(at, vm),
        }
    }
}

/// The VM to call [`Daemon::heard`] with after this.
pub(super) fn quiet_end(input: &Input) -> Option<VmName> {
    match input {
        Input::VmGone { vm }
        | Input::Ordered { vm, error: Some(_), .. }
        | Input::HypervisorLost { vm }
        | Input::Rebooted { vm } => Some(vm.clone()),
        _ => None,
    }
}
