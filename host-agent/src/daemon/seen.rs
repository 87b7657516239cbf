//! What the daemon shows of itself: see [`crate::metrics`].

use super::{Backend, Daemon};
use crate::metrics::{Seen, Snapshot};
use ballast_planner::{Action, Input, VmName, VmStatus};
use ballast_protocol::{GuestMessage, Micros};

impl Daemon {
    /// Everything at this moment, with what happened in so long a time before.
    pub(super) fn look(&self, marks: Option<Micros>) -> Snapshot {
        let at = self.clock.now();
        let vms = self.planner.vms().map(|(name, vm)| Seen {
            status: VmStatus::of(name, vm, at),
            stalled: vm.telemetry.as_ref().and_then(|t| t.what.memory_pressure).map(|p| p.some),
            totals: self.metrics.totals(name),
            probe: self.probed.get(name).cloned(),
        });
        Snapshot {
            at,
            started: self.started,
            law: self.planner.law(),
            dry_run: self.is_dry_run(),
            host: self.planner.host_status(at),
            hypervisors: self.backends.iter().map(Backend::status).collect(),
            waiting: self.config.vms.iter().filter(|v| self.planner.vm(&v.name).is_none()).count(),
            queue: self.inbox.len(),
            vms: vms.collect(),
            latencies: self.metrics.latencies(),
            marks: marks.map_or_else(Vec::new, |time| self.metrics.marks(at - time)),
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
