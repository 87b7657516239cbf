//! How fast a giving comes. A balloon deflates on a vCPU of the guest, before whoever waits for that vCPU: 64 MiB at
//! once take 45 ms of it under TCG, and with a single vCPU slow its programs down for twice as long (reckoned from the
//! rate below), in the middle of the very burst that they are for. What is not urgent therefore comes in pieces, of which
//! each costs a few milliseconds.
//!
//! ```text
//!   kept ----first, at once----> +16 MiB --piece--> --piece--> ... --> target      a piece each 10 ms
//! ```
//!
//! Pieces come at least twice as fast as the guest was ever seen to grow, so that what it has to spare grows too while
//! they come. A guest that hurts already (stalls, pressure, a killed process) gets everything at once.

use crate::event::Reason;
use crate::fleet::Vm;
use ballast_protocol::{Bytes, Micros, Source};
use serde::{Deserialize, Serialize};

/// The default of [`crate::VmSettings::pace`]. A guest deflates 1.4 GiB/s under TCG on one vCPU (measured), so that this
/// leaves seven tenths of the vCPU to whoever needs the memory.
pub const DEFAULT: Bytes = Bytes::mib(400);
/// What comes at once: with the headroom, what the fastest growth measured under TCG (240 MiB/s) uses in a third of
/// a second.
const FIRST: Bytes = Bytes::mib(16);

/// The pieces of one giving.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// The size to begin with.
    pub first: Bytes,
    /// Bytes a second from there on.
    pub rate: Bytes,
}

impl Pace {
    /// How long after a piece the next one comes.
    pub const EVERY: Micros = Micros::millis(10);

    /// The size after the next piece. At least a MiB, in which the driver counts.
    #[must_use]
    pub fn next(self, size: Bytes, target: Bytes) -> Bytes {
        (size + self.rate.share(Self::EVERY.0, 1_000_000).max(Bytes::mib(1))).min(target)
    }

    /// For an order of this size; `None`: at once.
    pub(crate) fn of(vm: &Vm, target: Bytes, reason: &Reason) -> Option<Self> {
        let patient = match reason {
            Reason::Demand { source, .. } => matches!(source, Source::Slack | Source::Committed | Source::Reserve),
            Reason::Refill | Reason::ForeseenNeed(_) | Reason::Room => true,
            _ => false,
        };
        // While pieces of an earlier order come, nobody here knows how many have.
        let sent = if vm.order.as_ref().is_some_and(|o| o.pace.is_some()) { vm.kept() } else { vm.aim.max(vm.kept()) };
        let rate = vm.settings.pace.max(vm.reactive.rate().share(2, 1));
        let pace = Self { first: sent + FIRST, rate };
        let worth = vm.settings.pace > Bytes::ZERO && pace.next(pace.first, Bytes::MAX) < target;
        (patient && worth).then_some(pace)
    }

    /// Whether this order comes so much faster that it is worth being given again.
    pub(crate) fn is_overtaken(self, by: Option<Self>) -> bool {
        by.is_none_or(|other| other.rate > self.rate + self.rate)
    }
}
