//! `drs`: the memory half of a decentralised resource scheduler, the project's second ancestor.
//!
//! ```text
//!   every 10 s:  used = kept - free,   load = average of kept - available (EWMA, alpha 0.1)
//!   load > 80 % of kept        ->  grows by 10 % of its maximum, or what room there is
//!   soft idle = resident - max(used, 200 MB),   hard idle = used - max(load, 200 MB)
//!   host pot under 10 %        ->  soft idle is reclaimed until it is 20 %, in proportion;
//!                                  if that does not bring it to 10 %, hard idle too, in proportion;
//!                                  if not even that does (overload), everybody is entitled to
//!                                  maximum x host / sum of maximums and loses what exceeds it
//! ```
//!
//! Out of scope: its publication of a host's state to etcd (CUSUM) and its migrations; they need more than one host.
//!
//! Decided here: the pot is what the host has available; resident is what the VM keeps, which is all that a host knows
//! of a VM that has touched its memory; load, what the guest cannot do without, is what it keeps less what its driver
//! calls available; alpha weighs the new figure, as is usual; 200 MB are MiB; growth comes out of the pot as far as
//! that goes, in proportion, and is counted against it before the pot is judged; a VM that grows is not reclaimed from
//! in the same round; in overload `host` is what all VMs keep and the pot holds, and who asks grows up to its
//! entitlement.

use super::fleet::{FleetLaw, Move, Seen, View, in_proportion};
use crate::event::VmName;
use crate::ratio::Ratio;
use ballast_protocol::{Bytes, Micros};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The published constants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DrsSettings {
    /// From one round to the next.
    pub period: Micros,
    /// The weight of the newest figure in the load.
    pub alpha: Ratio,
    /// A VM with more load than this part of what it keeps grows.
    pub loaded: Ratio,
    /// By this part of its maximum.
    pub step: Ratio,
    /// What no VM's idle memory is reckoned below.
    pub reserve: Bytes,
    /// Under this part of the host's memory the pot is low.
    pub low: Ratio,
    /// Up to this it is filled with soft idle memory.
    pub high: Ratio,
}

impl Default for DrsSettings {
    fn default() -> Self {
        Self {
            period: Micros::secs(10),
            alpha: Ratio::percent(10),
            loaded: Ratio::percent(80),
            step: Ratio::percent(10),
            reserve: Bytes::mib(200),
            low: Ratio::percent(10),
            high: Ratio::percent(20),
        }
    }
}

/// The law, and each VM's load.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drs {
    settings: DrsSettings,
    load: BTreeMap<VmName, Bytes>,
}

/// A VM with what follows from its statistics.
struct Judged<'a> {
    vm: &'a Seen,
    load: Bytes,
    soft: Bytes,
    hard: Bytes,
    /// What it grows by.
    grows: Bytes,
}

impl Drs {
    /// With these constants.
    #[must_use]
    pub const fn new(settings: DrsSettings) -> Self {
        Self { settings, load: BTreeMap::new() }
    }

    /// Takes the new figures in; VMs without them are forgotten.
    fn judge<'a>(&mut self, vms: &'a [Seen]) -> Vec<Judged<'a>> {
        let s = &self.settings;
        let mut loads = BTreeMap::new();
        let mut judged = Vec::new();
        for vm in vms {
            let (Some(used), Some(available)) = (vm.used(), vm.available) else { continue };
            let now = vm.kept - available;
            let load =
                self.load.get(&vm.name).map_or(now, |old| *old + s.alpha.of(now - *old) - s.alpha.of(*old - now));
            loads.insert(vm.name.clone(), load);
            let above_minimum = vm.kept - vm.min;
            let soft = (vm.kept - used.max(s.reserve)).min(above_minimum);
            let hard = (used - load.max(s.reserve)).min(above_minimum - soft);
            let is_loaded = load > s.loaded.of(vm.kept);
            let grows = if is_loaded { s.step.of(vm.max).min(vm.max - vm.kept) } else { Bytes::ZERO };
            judged.push(Judged { vm, load, soft, hard, grows });
        }
        self.load = loads;
        judged
    }

    /// What each VM that does not grow gives when the pot holds `pot`; `None`: not even all of that is enough.
    fn reclaimed(&self, judged: &[Judged<'_>], pot: Bytes, total: Bytes) -> Option<Vec<(Bytes, Bytes)>> {
        let (low, high) = (self.settings.low.of(total), self.settings.high.of(total));
        if pot >= low {
            return Some(vec![(Bytes::ZERO, Bytes::ZERO); judged.len()]);
        }
        let idle = |of: fn(&Judged<'_>) -> Bytes| {
            let of = |j: &Judged<'_>| if j.grows > Bytes::ZERO { Bytes::ZERO } else { of(j) };
            judged.iter().map(of).collect::<Vec<_>>()
        };
        let soft = in_proportion(high - pot, &idle(|j| j.soft));
        let filled = pot + soft.iter().copied().sum();
        let hard = in_proportion(low - filled, &idle(|j| j.hard));
        let enough = filled + hard.iter().copied().sum() >= low;
        enough.then(|| soft.into_iter().zip(hard).collect())
    }
}

impl FleetLaw for Drs {
    fn round(&mut self, view: &View, _: Micros) -> Vec<Move> {
        let mut judged = self.judge(&view.vms);
        let Some(host) = &view.host else { return Vec::new() };
        let asked: Vec<Bytes> = judged.iter().map(|j| j.grows).collect();
        let granted = in_proportion(host.available, &asked);
        for (j, granted) in judged.iter_mut().zip(granted) {
            j.grows = granted;
        }
        let pot = host.available - judged.iter().map(|j| j.grows).sum();
        let pot_text = format!("the host's pot is {pot} of {}", host.total);
        if let Some(given) = self.reclaimed(&judged, pot, host.total) {
            let move_of = |(j, (soft, hard)): (&Judged<'_>, (Bytes, Bytes))| {
                let (keep, why) = if j.grows > Bytes::ZERO {
                    (j.vm.kept + j.grows, format!("load {} of {}, over {}", j.load, j.vm.kept, self.settings.loaded))
                } else if soft + hard > Bytes::ZERO {
                    (j.vm.kept - soft - hard, format!("{pot_text}: {soft} soft and {hard} hard idle reclaimed"))
                } else {
                    return None;
                };
                Some(Move { vm: j.vm.name.clone(), keep, why })
            };
            return judged.iter().zip(given).filter_map(move_of).collect();
        }
        let there = host.available + judged.iter().map(|j| j.vm.kept).sum();
        let maximums: Bytes = judged.iter().map(|j| j.vm.max).sum();
        let move_of = |(j, asked): (&Judged<'_>, &Bytes)| {
            let entitled = j.vm.max.share(there.0, maximums.0).min(j.vm.max);
            let keep = if j.vm.kept > entitled { entitled } else { (j.vm.kept + *asked).min(entitled) };
            (keep != j.vm.kept).then(|| Move {
                vm: j.vm.name.clone(),
                keep,
                why: format!("{pot_text}, overload: entitled to {entitled} by its maximum"),
            })
        };
        judged.iter().zip(&asked).filter_map(move_of).collect()
    }

    fn pause(&self) -> Micros {
        self.settings.period
    }
}

#[cfg(test)]
mod tests {
    use super::super::fleet::bench::*;
    use super::*;

    fn law() -> Drs {
        Drs::new(DrsSettings::default())
    }

    /// `available` of what it keeps could be had.
    fn vm(name: &str, kept: u64, free: u64, available: u64) -> Seen {
        Seen { available: Some(M(available)), ..seen(name, kept, free) }
    }

    /// A first round each, so that load is what it is now. VMs have a maximum of 1000 and a minimum of 100.
    #[test]
    fn hand_worked_rounds() {
        // (what, host total, host available, VMs, expected)
        type Case = (&'static str, u64, u64, Vec<Seen>, &'static [(&'static str, u64)]);
        let cases: Vec<Case> = vec![
            ("enough of everything", 2000, 500, vec![vm("a", 500, 200, 300)], &[]),
            // Load 420 of 500 is 84 %: 10 % of 1000.
            ("loaded", 2000, 500, vec![vm("a", 500, 50, 80)], &[("a", 600)]),
            // Load 400 of 500 is 80 %, not over it.
            ("loaded by 80 % exactly", 2000, 500, vec![vm("a", 500, 50, 100)], &[]),
            ("no room beyond the maximum", 2000, 500, vec![vm("a", 960, 20, 30)], &[("a", 1000)]),
            // Pot 100 of 2000 is under 200; up to 400: 300 of soft idle. a: used 300, soft 200; b: used 200, soft 400;
            // in proportion 100 and 200.
            (
                "a low pot takes soft idle up to 20 %",
                2000,
                100,
                vec![vm("a", 500, 200, 300), vm("b", 600, 400, 450)],
                &[("a", 400), ("b", 400)],
            ),
            // Pot exactly 10 %.
            ("a pot of 10 % is not low", 2000, 200, vec![vm("a", 500, 200, 300)], &[]),
            // Used 120 counts as 200: soft idle 300 of 500, all of it is wanted (400 - 50 = 350). 50 + 300 is over 200.
            ("soft idle leaves 200 MB", 2000, 50, vec![vm("a", 500, 380, 400)], &[("a", 200)]),
            // Pot 100, up to 400: soft idle is 10: 110. Hard idle: used 690 - load 400 = 290; 200 - 110 = 90 of it.
            ("hard idle up to 10 %", 2000, 100, vec![vm("a", 700, 10, 300)], &[("a", 600)]),
            // a is loaded and gets 100 of the pot of 250: 150 left is low; 250 up to 400 from b, whose soft idle is 300.
            (
                "growth counts against the pot",
                2000,
                250,
                vec![vm("a", 500, 10, 20), vm("b", 600, 300, 320)],
                &[("a", 600), ("b", 350)],
            ),
            // Pot 0. a: soft 0, hard 900 - 890; b: soft 0, hard 190 - 200 = 0. 10 < 190: overload. There are 900 +
            // 190 + 0 = 1090, entitled 545 each: a falls to 545; b, loaded (180 of 190), asks for 100.
            (
                "overload: by entitlement",
                1900,
                0,
                vec![vm("a", 900, 0, 180), vm("b", 190, 0, 10)],
                &[("a", 545), ("b", 290)],
            ),
        ];
        for (name, total, available, vms, expected) in cases {
            let view = View { host: host(total, available), vms };
            assert_eq!(moves(&mut law(), &view, Micros::ZERO), expect(expected), "{name}");
        }
    }

    #[test]
    fn load_follows_by_a_tenth_a_round() {
        let mut law = law();
        let view = |available| View { host: host(10_000, 5000), vms: vec![vm("a", 500, 20, available)] };
        assert_eq!(moves(&mut law, &view(300), Micros::ZERO), [], "load 200");
        // 200 + 0.1 x (480 - 200) = 228, then 253.2, ...: 400 is passed after 480 - 280 x 0.9^n > 400, n = 12.
        for round in 1..12 {
            assert_eq!(moves(&mut law, &view(20), Micros::secs(10 * round)), [], "round {round}");
        }
        assert_eq!(moves(&mut law, &view(20), Micros::secs(120)), expect(&[("a", 600)]));
        // 480 - 280 x 0.9^12 = 400.9 is what it is now; with nothing in use it falls by a tenth: 360.8.
        assert_eq!(moves(&mut law, &view(500), Micros::secs(130)), []);
        assert_eq!(law.load[&VmName::from("a")].as_mib(), 360);
    }

    #[test]
    fn a_silent_vm_is_left_alone_and_stops_nobody() {
        let mut silent = seen("a", 500, 0);
        (silent.free, silent.available) = (None, None);
        let view = View { host: host(2000, 500), vms: vec![silent, vm("b", 500, 50, 80)] };
        assert_eq!(moves(&mut law(), &view, Micros::ZERO), expect(&[("b", 600)]));
        assert_eq!(moves(&mut law(), &View { host: None, ..view }, Micros::ZERO), []);
    }
}
