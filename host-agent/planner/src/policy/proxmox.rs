//! `proxmox`: the automatic ballooning of Proxmox VE's statistics daemon.
//!
//! ```text
//!   every 10 s:   goal = 80 % of the host's memory - what is used on the host
//!   |goal| <= 10 MiB: nothing
//!   goal > 0:  the VMs that are short of free memory grow; only if none of them can, all do
//!   goal < 0:  the VMs with free memory shrink; only if none of them can, all do
//!   in a group: size = minimum + pool x shares / sum of shares, at most 100 MiB from where it is
//!               pool = what the group has above its minimums, and the goal
//! ```
//!
//! A VM has free memory when that exceeds 25 % of its minimum. What one VM of a group cannot take or give, because of
//! its bounds or its 100 MiB, is spread over the others again. A size of the pool may also lie *below* what a VM has
//! while the group grows; then it shrinks. Free memory is looked at for nothing else.
//!
//! Decided here: "used on the host" is total less available, as newer versions reckon it; `balloon_min` is our `min`;
//! a VM whose driver says nothing is taken for short of memory, as there.

use super::fleet::{FleetLaw, Move, Seen, View};
use crate::ratio::Ratio;
use ballast_protocol::{Bytes, Micros};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Spreading comes to an end when nothing changes; this bounds what rounding might do for ever.
const MOST_PASSES: usize = 100;

/// The published constants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProxmoxSettings {
    /// From one round to the next.
    pub period: Micros,
    /// The part of the host's memory that is to be used.
    pub goal: Ratio,
    /// A VM is moved by no more in one round.
    pub step: Bytes,
    /// A goal as small as this is reached.
    pub dead_band: Bytes,
    /// A VM with more than this part of its minimum free is not short.
    pub free: Ratio,
}

impl Default for ProxmoxSettings {
    fn default() -> Self {
        Self {
            period: Micros::secs(10),
            goal: Ratio::percent(80),
            step: Bytes::mib(100),
            dead_band: Bytes::mib(10),
            free: Ratio::percent(25),
        }
    }
}

/// The law. It remembers nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proxmox {
    settings: ProxmoxSettings,
}

impl Proxmox {
    /// With these constants.
    #[must_use]
    pub const fn new(settings: ProxmoxSettings) -> Self {
        Self { settings }
    }

    fn is_short(&self, vm: &Seen) -> bool {
        vm.kept < vm.min || vm.free.is_none_or(|free| free <= self.settings.free.of(vm.min))
    }
}

impl FleetLaw for Proxmox {
    fn round(&mut self, view: &View, _: Micros) -> Vec<Move> {
        let Some(host) = view.host else { return Vec::new() };
        let used = host.total - host.available;
        let goal = signed(self.settings.goal.of(host.total)) - signed(used);
        let dead_band = signed(self.settings.dead_band);
        if goal.abs() <= dead_band {
            return Vec::new();
        }
        // No share: not taken part.
        let all: Vec<&Seen> = view.vms.iter().filter(|vm| vm.shares > 0).collect();
        let first: Vec<&Seen> = all.iter().copied().filter(|vm| self.is_short(vm) == (goal > 0)).collect();
        let mut plan = BTreeMap::new();
        let rest = spread(&mut plan, &first, goal, signed(self.settings.step));
        if (goal > 0 && rest >= goal) || (goal < 0 && rest <= goal) {
            spread(&mut plan, &all, rest, signed(self.settings.step));
        }
        let verb = if goal > 0 { "to give" } else { "to take" };
        let goal = bytes(goal.abs());
        let move_of = |vm: &&Seen| {
            let keep = bytes(*plan.get(&vm.name)?);
            (keep != vm.kept).then(|| Move {
                vm: vm.name.clone(),
                keep,
                why: format!(
                    "{used} of the host's {} used, {} wanted: {goal} {verb} by shares, here {}; {} free",
                    host.total,
                    self.settings.goal,
                    vm.shares,
                    vm.free.map_or_else(|| "unknown".to_owned(), |free| free.to_string()),
                ),
            })
        };
        all.iter().filter_map(move_of).collect()
    }

    fn pause(&self) -> Micros {
        self.settings.period
    }
}

/// Plans the sizes of a group so that together they change by `wanted`; returns what could not be placed.
fn spread(plan: &mut BTreeMap<crate::VmName, i128>, group: &[&Seen], wanted: i128, step: i128) -> i128 {
    let mut rest = wanted;
    let mut out = BTreeSet::new();
    for _ in 0..MOST_PASSES {
        let members: Vec<&Seen> = group.iter().copied().filter(|vm| !out.contains(&vm.name)).collect();
        let planned = |plan: &BTreeMap<_, i128>, vm: &Seen| plan.get(&vm.name).copied().unwrap_or(signed(vm.kept));
        let pool: i128 = members.iter().map(|vm| planned(plan, vm) - signed(vm.min)).sum::<i128>() + rest;
        let shares: i128 = members.iter().map(|vm| i128::from(vm.shares)).sum();
        let mut changes = 0;
        let mut moved = false;
        for vm in members {
            let (kept, min, max) = (signed(vm.kept), signed(vm.min.min(vm.max)), signed(vm.max));
            let desired = (min + pool * i128::from(vm.shares) / shares).clamp(min, max);
            let new = if wanted > 0 && desired > kept {
                desired.min(kept + step)
            } else if desired < kept {
                desired.max(kept - step)
            } else {
                out.insert(vm.name.clone());
                continue;
            };
            let change = new - planned(plan, vm);
            plan.insert(vm.name.clone(), new);
            changes += change;
            moved |= change != 0;
        }
        rest -= changes;
        if rest == 0 || !moved {
            break;
        }
    }
    rest
}

fn signed(size: Bytes) -> i128 {
    i128::from(size.0)
}

fn bytes(size: i128) -> Bytes {
    Bytes(u64::try_from(size.max(0)).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::super::fleet::bench::*;
    use super::*;

    type Case = (&'static str, u64, Vec<Seen>, &'static [(&'static str, u64)]);

    fn shares(mut vm: Seen, shares: u32) -> Seen {
        vm.shares = shares;
        vm
    }

    /// The host has 10000 MiB throughout: 8000 are the goal. VMs have min 100 and max 1000; above 25 free is enough.
    #[test]
    fn hand_worked_rounds() {
        let cases: Vec<Case> = vec![
            // used 7990, goal +10: the dead band itself is nothing to do.
            ("dead band, above", 2010, vec![seen("a", 500, 10)], &[]),
            // used 8010, goal -10.
            ("dead band, below", 1990, vec![seen("a", 500, 300)], &[]),
            // used 7950, goal +50. Pool (500-100) + 50 = 450: 100 + 450 = 550.
            ("one grows by the goal", 2050, vec![seen("a", 500, 10)], &[("a", 550)]),
            // used 7000, goal +1000. Pool 1400: 1500, capped at 1000; no more than 100 at once.
            ("100 MiB a round at most", 3000, vec![seen("a", 500, 10)], &[("a", 600)]),
            // used 9000, goal -1000. Pool 400 - 1000 < 0: the minimum of 100, but 100 at once.
            ("and as much down", 1000, vec![seen("a", 500, 300)], &[("a", 400)]),
            // used 8060, goal -60: a has 300 free, b 20. Only a: pool 400 - 60 = 340: 440.
            ("who has free memory shrinks first", 1940, vec![seen("a", 500, 300), seen("b", 500, 20)], &[("a", 440)]),
            // used 7940, goal +60: only b grows: pool 460: 560.
            ("who has none grows first", 2060, vec![seen("a", 500, 300), seen("b", 500, 20)], &[("b", 560)]),
            // used 8060, goal -60, all are short: nobody in the first group, so all. Pool 800 - 60 = 740, 370 each: 470.
            (
                "nobody has free memory: everybody shrinks",
                1940,
                vec![seen("a", 500, 20), seen("b", 500, 20)],
                &[("a", 470), ("b", 470)],
            ),
            // used 7910, goal +90, both short. Pool 400 + 400 + 90 = 890; a has 2 of 3 shares: 100 + 593 -> capped at
            // 600; b: 100 + 296 = 396 < 500 shrinks, to 400 at most. Changes +100 - 100 = 0, rest 90. Again, pool 500 +
            // 300 + 90 = 890: the same. Nothing moves: done.
            (
                "shares pull apart",
                2090,
                vec![shares(seen("a", 500, 20), 2000), seen("b", 500, 20)],
                &[("a", 600), ("b", 400)],
            ),
            // used 8100, goal -100; a has no share and takes no part: pool 400 - 100 = 300: b to 400.
            ("no shares, no part", 1900, vec![shares(seen("a", 500, 300), 0), seen("b", 500, 300)], &[("b", 400)]),
            // used 8200, goal -200. a is at its minimum of 100 with 50 free, b keeps 500. Pool 0 + 400 - 200 = 200, 100
            // each: a would grow to 200 and drops out; b to 400 by its 100 at most (it wants 200).
            ("at the minimum nothing is left", 1800, vec![seen("a", 100, 50), seen("b", 500, 300)], &[("b", 400)]),
        ];
        for (name, available, vms, expected) in cases {
            let view = View { host: host(10_000, available), vms };
            let mut law = Proxmox::new(ProxmoxSettings::default());
            assert_eq!(moves(&mut law, &view, Micros::ZERO), expect(expected), "{name}");
        }
    }

    /// What one VM cannot take, because it reaches its maximum, goes to the other.
    #[test]
    fn what_one_cannot_take_is_spread_again() {
        // used 7850, goal +150, both short. a keeps 970 of 1000, b 500. Pool 870 + 400 + 150 = 1420, 710 each: 810. a
        // would shrink to 870; b grows to 600. Changes -100 + 100, rest 150; again pool 770 + 500 + 150: the same.
        let view = View { host: host(10_000, 2150), vms: vec![seen("a", 970, 20), seen("b", 500, 20)] };
        let mut law = Proxmox::new(ProxmoxSettings::default());
        assert_eq!(moves(&mut law, &view, Micros::ZERO), expect(&[("a", 870), ("b", 600)]));
        // used 7870, goal +130. a keeps 450, b 500, c 480. Pool 350 + 400 + 380 + 130 = 1260, 420 each: 520.
        let vms = vec![seen("a", 450, 20), seen("b", 500, 20), seen("c", 480, 20)];
        let view = View { host: host(10_000, 2130), vms };
        assert_eq!(moves(&mut law, &view, Micros::ZERO), expect(&[("a", 520), ("b", 520), ("c", 520)]));
    }

    #[test]
    fn a_silent_vm_counts_as_short_and_stops_nobody() {
        let mut silent = seen("a", 500, 0);
        (silent.free, silent.available) = (None, None);
        // goal -60: only b has free memory, pool 400 - 60: 440.
        let view = View { host: host(10_000, 1940), vms: vec![silent, seen("b", 500, 300)] };
        let mut law = Proxmox::new(ProxmoxSettings::default());
        assert_eq!(moves(&mut law, &view, Micros::ZERO), expect(&[("b", 440)]));
        assert_eq!(moves(&mut law, &View { host: None, ..view }, Micros::ZERO), [], "nothing is known of the host");
    }
}
