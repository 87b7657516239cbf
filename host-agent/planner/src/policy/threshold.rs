//! `threshold`: a libvirt memory scheduler, the project's first ancestor.
//!
//! ```text
//!   every round, with the threshold T of free memory:
//!   free < T and falling           ->  asks for 2 x (T - free)
//!   all that is asked is there     ->  everyone gets it;
//!                                      who has more than 2 x T free gives up 10 % of what is free
//!   it is not there (a crunch)     ->  who has more than T free is claimed from, for what is missing;
//!                                      then the host is read again and what it has is split almost equally
//! ```
//!
//! Decided here, because FIELD.md leaves it open: T is 100 MiB and a round 10 s; a crunch is more asked for than the
//! host has available; what is missing is claimed in proportion to what each has beyond T, all of it at once, since
//! slower claiming would only make this law worse; two seconds later the host is read again; "almost equally" is an
//! equal share for each, and what somebody does not need goes to the others. A VM without fresh statistics neither
//! asks nor gives.

use super::fleet::{FleetLaw, Move, Seen, View, in_proportion};
use crate::event::VmName;
use crate::ratio::Ratio;
use ballast_protocol::{Bytes, Micros};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// From a claim to the split: the driver gives 190 MiB/s (measured), the host is read every second.
const CLAIM: Micros = Micros::secs(2);

/// The constants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ThresholdSettings {
    /// From one round to the next.
    pub period: Micros,
    /// Less free memory than this is too little; more than twice this is spare.
    pub threshold: Bytes,
    /// The part of its free memory that a VM with spare memory gives up in a round.
    pub step: Ratio,
}

impl Default for ThresholdSettings {
    fn default() -> Self {
        Self { period: Micros::secs(10), threshold: Bytes::mib(100), step: Ratio::percent(10) }
    }
}

/// The law, and what it saw last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Threshold {
    settings: ThresholdSettings,
    /// Free memory at the last round.
    last: BTreeMap<VmName, Bytes>,
    /// What was asked for when memory had to be claimed first.
    owed: BTreeMap<VmName, Bytes>,
}

impl Threshold {
    /// With these constants.
    #[must_use]
    pub const fn new(settings: ThresholdSettings) -> Self {
        Self { settings, last: BTreeMap::new(), owed: BTreeMap::new() }
    }

    /// What a VM asks for; nothing while its free memory does not fall.
    fn asks(&self, vm: &Seen, free: Bytes) -> Bytes {
        let falling = self.last.get(&vm.name).is_some_and(|last| free < *last);
        let lacks = if falling { self.settings.threshold - free } else { Bytes::ZERO };
        (lacks + lacks).min(vm.max - vm.kept)
    }

    /// Second half of a crunch: what there is, to those who asked.
    fn split(&mut self, view: &View, available: Bytes) -> Vec<Move> {
        let owed = std::mem::take(&mut self.owed);
        let askers: Vec<(&Seen, Bytes)> =
            view.vms.iter().filter_map(|vm| Some((vm, (*owed.get(&vm.name)?).min(vm.max - vm.kept)))).collect();
        let parts = almost_equally(available, &askers.iter().map(|a| a.1).collect::<Vec<_>>());
        let give = |((vm, asked), part): (&(&Seen, Bytes), Bytes)| {
            (part > Bytes::ZERO).then(|| Move {
                vm: vm.name.clone(),
                keep: vm.kept + part,
                why: format!("{asked} asked for; {part} is its share of the {available} that the host has"),
            })
        };
        askers.iter().zip(parts).filter_map(give).collect()
    }
}

impl FleetLaw for Threshold {
    fn round(&mut self, view: &View, _: Micros) -> Vec<Move> {
        let Some(host) = view.host else { return Vec::new() };
        if !self.owed.is_empty() {
            return self.split(view, host.available);
        }
        let limit = self.settings.threshold;
        let told: Vec<(&Seen, Bytes)> = view.vms.iter().filter_map(|vm| Some((vm, vm.free?))).collect();
        let asked: Vec<Bytes> = told.iter().map(|(vm, free)| self.asks(vm, *free)).collect();
        self.last = told.iter().map(|(vm, free)| (vm.name.clone(), *free)).collect();
        let wanted: Bytes = asked.iter().copied().sum();

        if wanted > host.available {
            let spare: Vec<Bytes> = told.iter().map(|(vm, free)| (*free - limit).min(vm.kept - vm.min)).collect();
            let missing = wanted - host.available;
            self.owed =
                told.iter().zip(&asked).filter(|a| *a.1 > Bytes::ZERO).map(|a| (a.0.0.name.clone(), *a.1)).collect();
            let claim = |((vm, free), part): (&(&Seen, Bytes), Bytes)| {
                (part > Bytes::ZERO).then(|| Move {
                    vm: vm.name.clone(),
                    keep: vm.kept - part,
                    why: format!(
                        "{wanted} asked for, the host has {}: {part} of its {free} free is claimed, {limit} stays",
                        host.available
                    ),
                })
            };
            return told.iter().zip(in_proportion(missing, &spare)).filter_map(claim).collect();
        }
        let decide = |((vm, free), asked): (&(&Seen, Bytes), &Bytes)| {
            let (keep, why) = if *asked > Bytes::ZERO {
                (vm.kept + *asked, format!("{free} free and falling, under {limit}: twice the lack"))
            } else if *free > limit + limit {
                let part = self.settings.step.of(*free);
                (vm.kept - part, format!("{free} free, over twice {limit}: it gives up {}", self.settings.step))
            } else {
                return None;
            };
            Some(Move { vm: vm.name.clone(), keep, why })
        };
        told.iter().zip(&asked).filter_map(decide).collect()
    }

    fn pause(&self) -> Micros {
        if self.owed.is_empty() { self.settings.period } else { CLAIM.min(self.settings.period) }
    }
}

/// An equal share for each, and what somebody does not need goes to the others.
fn almost_equally(mut amount: Bytes, needs: &[Bytes]) -> Vec<Bytes> {
    let mut order: Vec<usize> = (0..needs.len()).collect();
    order.sort_by_key(|i| needs[*i]);
    let mut parts = vec![Bytes::ZERO; needs.len()];
    for (done, i) in order.into_iter().enumerate() {
        let part = needs[i].min(amount.share(1, (needs.len() - done) as u64));
        parts[i] = part;
        amount = amount - part;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::super::fleet::bench::*;
    use super::*;

    fn law() -> Threshold {
        Threshold::new(ThresholdSettings::default())
    }

    /// A round with this much free in a and b, after one in which they had `before`.
    fn second_round(available: u64, before: [u64; 2], now: [u64; 2]) -> (Threshold, Vec<(String, u64)>) {
        let view = |free: [u64; 2], available| View {
            host: host(10_000, available),
            vms: vec![seen("a", 500, free[0]), seen("b", 500, free[1])],
        };
        let mut law = law();
        moves(&mut law, &view(before, 5000), Micros::ZERO);
        let moves = moves(&mut law, &view(now, available), Micros::secs(10));
        (law, moves)
    }

    /// T is 100 MiB; both VMs keep 500 of 1000.
    #[test]
    fn hand_worked_rounds() {
        // (what, host available, before, now, expected)
        type Case = (&'static str, u64, [u64; 2], [u64; 2], &'static [(&'static str, u64)]);
        let cases: [Case; 9] = [
            // 10 % of 300 = 30.
            ("over 2T gives a tenth", 5000, [300, 150], [300, 150], &[("a", 470)]),
            ("2T exactly gives nothing", 5000, [200, 150], [200, 150], &[]),
            // Under T: gives nothing; steady: asks nothing.
            ("under T and steady", 5000, [60, 150], [60, 150], &[]),
            ("under T and rising", 5000, [50, 150], [60, 150], &[]),
            // 2 x (100 - 60) = 80.
            ("under T and falling", 5000, [70, 150], [60, 150], &[("a", 580)]),
            ("over T and falling", 5000, [190, 150], [120, 150], &[]),
            // 2 x 100 and 2 x 40: 280 asked, 280 there.
            ("everyone gets it", 280, [10, 70], [0, 60], &[("a", 700), ("b", 580)]),
            // a asks for 200, 150 there: 50 missing. b has 300 - 100 = 200 beyond T: 50 is claimed.
            ("crunch: what is missing is claimed", 150, [10, 300], [0, 300], &[("b", 450)]),
            // 200 missing, but b has only 80 beyond T, though that is under 2T.
            ("crunch: the allowance of 2T is void", 0, [10, 180], [0, 180], &[("b", 420)]),
        ];
        for (name, available, before, now, expected) in cases {
            assert_eq!(second_round(available, before, now).1, expect(expected), "{name}");
        }
    }

    #[test]
    fn a_crunch_is_split_almost_equally_after_the_host_was_read_again() {
        // a asks for 2 x 100 = 200, b for 2 x 20 = 40; 10 there, nobody has anything to spare.
        let (mut law, claimed) = second_round(10, [10, 90], [0, 80]);
        assert_eq!((claimed, law.pause()), (vec![], Micros::secs(2)));
        let view = |available| View { host: host(10_000, available), vms: vec![seen("a", 500, 0), seen("b", 500, 80)] };
        // 100 by now: 50 for each, b needs 40 only, so a gets 60.
        let mut again = law.clone();
        assert_eq!(moves(&mut again, &view(100), Micros::secs(12)), expect(&[("a", 560), ("b", 540)]));
        assert_eq!(again.pause(), Micros::secs(10), "the crunch is over");
        // 20 by now: 10 each.
        assert_eq!(moves(&mut law, &view(20), Micros::secs(12)), expect(&[("a", 510), ("b", 510)]));
    }

    #[test]
    fn who_says_nothing_neither_asks_nor_gives_and_stops_nobody() {
        let mut silent = seen("a", 500, 0);
        (silent.free, silent.available) = (None, None);
        let view = View { host: host(10_000, 5000), vms: vec![silent, seen("b", 500, 300)] };
        assert_eq!(moves(&mut law(), &view, Micros::ZERO), expect(&[("b", 470)]));
        assert_eq!(moves(&mut law(), &View { host: None, ..view }, Micros::ZERO), []);
    }

    #[test]
    fn nobody_asks_beyond_the_maximum_or_gives_below_the_minimum() {
        let mut law = law();
        let view =
            |free, kept_b| View { host: host(10_000, 0), vms: vec![seen("a", 950, free), seen("b", kept_b, 300)] };
        moves(&mut law, &view(60, 150), Micros::ZERO);
        // a asks for 2 x 50 = 100 but has 50 to its maximum; b has 200 beyond T but 50 above its minimum.
        assert_eq!(moves(&mut law, &view(50, 150), Micros::secs(10)), expect(&[("b", 100)]));
    }
}
