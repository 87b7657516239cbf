//! The law for guests without an agent: all there is are the balloon driver's statistics, seconds old.
//!
//! At that age no burst can be met in time; what protects the guest is distance. So a guest keeps a generous
//! margin (a quarter of its maximum, at least 128 MiB: Autopilot's tasks keep 23 % slack), it is approached by at
//! most 5 % of its size a round (the step of oVirt's MoM) every ten seconds, only free memory is taken, and
//! everything is given back in one order when half of the margin is gone.

use super::{Policy, Proposal};
use crate::event::{Holding, Reason};
use crate::fleet::Vm;
use ballast_protocol::{Bytes, Micros};
use serde::{Deserialize, Serialize};

/// The pace of takings.
const ROUND: Micros = Micros::secs(10);
/// After giving everything back, nothing is taken for a minute.
const REST: Micros = Micros::secs(60);

/// What the law remembers of one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatisticsLaw {
    next: Micros,
}

impl StatisticsLaw {
    /// A VM that has just been found.
    #[must_use]
    pub fn new(at: Micros) -> Self {
        Self { next: at + ROUND }
    }

    /// Something was taken.
    pub fn took(&mut self, at: Micros) {
        self.next = at + ROUND;
    }

    /// Something was given, or hurt.
    pub fn gave(&mut self, at: Micros) {
        self.next = at + REST;
    }

    /// What a guest without an agent keeps free.
    #[must_use]
    pub fn margin(vm: &Vm) -> Bytes {
        vm.max().share(1, 4).max(Bytes::mib(128))
    }
}

impl Policy for StatisticsLaw {
    fn propose(&self, vm: &Vm, at: Micros) -> Proposal {
        let Some(statistics) = vm.statistics.as_ref().map(|s| s.what) else {
            return Proposal::Hold(Holding::Stale);
        };
        let Some(free) = statistics.free else { return Proposal::Hold(Holding::Stale) };
        let margin = Self::margin(vm);
        // Without `available` (old drivers, Windows) free memory is all that is sure.
        let available = statistics.available.unwrap_or(free);
        if available < margin.share(1, 2) && vm.aim < vm.max() {
            return Proposal::Give(vm.max(), Reason::Refill);
        }
        if at < self.next {
            return Proposal::Hold(Holding::CoolingDown(self.next));
        }
        let spare = free.min(available) - margin;
        if spare < Bytes::mib(16) {
            return Proposal::Hold(Holding::Settled);
        }
        let step = spare.min(vm.aim.share(1, 20)).round_down(Bytes::mib(1));
        Proposal::Take(vm.aim - step, Reason::Spare(spare))
    }
}
