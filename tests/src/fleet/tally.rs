//! What the fleet has seen: counts, times, and promises that were broken.

use serde::Serialize;
use std::collections::BTreeMap;

/// Broken promises told in full; the rest is counted.
const TOLD: usize = 10;

/// What must never happen, as a guest and its hypervisor can see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Promise {
    /// P1: an order below the configured minimum.
    BelowMinimum,
    /// P1: a taking below the floor that the guest has stated.
    BelowFloor,
    /// An order above what the VM may have.
    AboveMaximum,
    /// P4: a second order came before the first was taken.
    TwoOrders,
    /// P4: a taking while the balloon was still on its way.
    TakenWhileMoving,
    /// P5: a demand without an answer.
    Unanswered,
    /// P5: a demand that was granted, and no order for it.
    NotOrdered,
    /// The host was silent for longer than it had promised.
    HostSilent,
}

/// Counts since the last reset, times in microseconds.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// VMs whose session stands now.
    pub connected: usize,
    /// Sessions that stood.
    pub sessions: u64,
    /// Sessions that the daemon refused.
    pub refused_sessions: u64,
    /// Reports written.
    pub reports: u64,
    /// Bursts begun.
    pub bursts: u64,
    /// Demands written.
    pub demands: u64,
    /// Of these, repeated in a new session.
    pub repeated: u64,
    /// Answers read.
    pub answers: u64,
    /// Of these, refusals, by the daemon's reason.
    pub refused: BTreeMap<&'static str, u64>,
    /// Of these, later than the guest had said that it lasts.
    pub late: u64,
    /// Demands that have no answer yet.
    pub open: usize,
    /// Balloon commands.
    pub orders: u64,
    /// Of these, takings.
    pub takings: u64,
    /// QMP commands of every kind.
    pub commands: u64,
    /// Looks at which a guest found neither free memory nor cache.
    pub stalls: u64,
    /// A demand was written to its first balloon command was read. What is not urgent comes in pieces, at the pace that the guest
    /// can use.
    pub order_us: Vec<u64>,
    /// To the command that gave all of it.
    pub whole_us: Vec<u64>,
    /// A demand was written to its answer was read.
    pub answer_us: Vec<u64>,
    /// How late the fleet's own timer was: a part of the two above that is not the daemon's.
    pub lag_us: Vec<u64>,
    /// Promises broken.
    pub broken: BTreeMap<Promise, u64>,
    /// The first of them, for people.
    pub told: Vec<String>,
}

impl Tally {
    pub(super) fn breaks(&mut self, promise: Promise, vm: &str, what: impl std::fmt::Display) {
        *self.broken.entry(promise).or_default() += 1;
        if self.told.len() < TOLD {
            self.told.push(format!("{vm}: {promise:?}: {what}"));
        }
    }

    /// Begins anew; what stands now stays.
    pub(super) fn reset(&mut self) {
        *self = Self { connected: self.connected, open: self.open, ..Self::default() };
    }
}

/// Of one quantity, by nearest rank.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Quantiles {
    /// The middle.
    pub p50: f64,
    /// 99 of 100 are at most this.
    pub p99: f64,
    /// The largest.
    pub max: f64,
    /// How many there are.
    pub samples: usize,
}

impl Quantiles {
    /// Milliseconds of microseconds; `None` of nothing.
    #[must_use]
    pub fn millis(micros: &[u64]) -> Option<Self> {
        let mut sorted = micros.to_vec();
        sorted.sort_unstable();
        let at = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100).max(1);
            sorted.get(rank - 1).map(|&us| us as f64 / 1e3)
        };
        Some(Self { p50: at(50)?, p99: at(99)?, max: at(100)?, samples: sorted.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::Quantiles;

    #[test]
    fn quantiles_are_nearest_ranks() {
        let all: Vec<u64> = (1..=200).rev().map(|ms| ms * 1000).collect();
        let q = Quantiles::millis(&all).expect("there are values");
        assert_eq!((q.p50, q.p99, q.max, q.samples), (100.0, 198.0, 200.0, 200));
        assert!(Quantiles::millis(&[]).is_none());
    }
}
