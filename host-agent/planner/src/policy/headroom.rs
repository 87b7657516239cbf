//! `headroom`: the host-driven ballooning of Hypeman.
//!
//! ```text
//!   every 2 s:  pressure begins at 10 % of the host available, or with PSI `some` avg10 over 0
//!               and ends at 15 % without that
//!   to reclaim = 15 % of the host - what is available     (PSI alone: what is reclaimed already)
//!   each VM:   floor = max(50 % of its maximum, 512 MiB), headroom = maximum - floor
//!              size  = maximum - its part of what is to be reclaimed, in proportion to headroom
//!              a change of less than 64 MiB is left, one of more than 256 MiB is cut; 5 s of rest after each
//! ```
//!
//! What is to be reclaimed counts from the *maximum* at every round, not from what is reclaimed already, and without
//! pressure it is nothing. So success gives back what it has won and the pressure returns; this is how it is published,
//! and rebuilt as it is. The guest is not asked for anything, and a VM of 512 MiB or less is never moved unless
//! `floor` is lowered.
//!
//! Decided here: the published watermarks, floor, step and rest as they are; with a configured budget for the host
//! there is no PSI (the machine's stalls are not the budget's). The guard takes nothing from a guest whose driver has
//! fallen silent (promise P3), which the published law would do. Its manual reclaim (`hold_for`, `dry_run`) is an
//! operator's command and no part of the law.

use super::fleet::{FleetLaw, Move, Seen, View, in_proportion};
use crate::event::{HostMemory, VmName};
use crate::ratio::Ratio;
use ballast_protocol::{Bytes, Micros};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The published constants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HeadroomSettings {
    /// From one round to the next.
    pub period: Micros,
    /// A host with this much of its memory available or less is under pressure.
    pub pressure: Ratio,
    /// With this much it has recovered.
    pub recovered: Ratio,
    /// A VM keeps this part of its maximum.
    pub floor_part: Ratio,
    /// And this much.
    pub floor: Bytes,
    /// A smaller change is left.
    pub least_step: Bytes,
    /// A larger one is cut.
    pub step: Bytes,
    /// A VM rests so long after each change.
    pub cool_down: Micros,
}

impl Default for HeadroomSettings {
    fn default() -> Self {
        Self {
            period: Micros::secs(2),
            pressure: Ratio::percent(10),
            recovered: Ratio::percent(15),
            floor_part: Ratio::percent(50),
            floor: Bytes::mib(512),
            least_step: Bytes::mib(64),
            step: Bytes::mib(256),
            cool_down: Micros::secs(5),
        }
    }
}

/// The law, and what it remembers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Headroom {
    settings: HeadroomSettings,
    pressed: bool,
    /// When each VM was last moved.
    moved: BTreeMap<VmName, Micros>,
}

impl Headroom {
    /// With these constants.
    #[must_use]
    pub const fn new(settings: HeadroomSettings) -> Self {
        Self { settings, pressed: false, moved: BTreeMap::new() }
    }

    fn floor(&self, vm: &Seen) -> Bytes {
        self.settings.floor.max(self.settings.floor_part.of(vm.max)).min(vm.max)
    }

    /// What all VMs together are to be short of their maximums.
    fn reclaim_of(&mut self, host: &HostMemory, vms: &[Seen]) -> Bytes {
        let available = Ratio::between(host.available, host.total);
        let stalls = host.psi_some_avg10.is_some_and(|psi| psi > Ratio::ZERO);
        self.pressed = if self.pressed {
            available < self.settings.recovered || stalls
        } else {
            available <= self.settings.pressure || stalls
        };
        let lack = self.settings.recovered.of(host.total) - host.available;
        match self.pressed {
            false => Bytes::ZERO,
            true if lack > Bytes::ZERO => lack,
            true if stalls => vms.iter().map(|vm| vm.max - vm.target).sum(),
            true => Bytes::ZERO,
        }
    }
}

impl FleetLaw for Headroom {
    fn round(&mut self, view: &View, at: Micros) -> Vec<Move> {
        let Some(host) = &view.host else { return Vec::new() };
        let all = self.reclaim_of(host, &view.vms);
        let headrooms: Vec<Bytes> = view.vms.iter().map(|vm| vm.max - self.floor(vm)).collect();
        self.moved.retain(|name, _| view.vms.iter().any(|vm| vm.name == *name));
        let mut moves = Vec::new();
        for (vm, part) in view.vms.iter().zip(in_proportion(all, &headrooms)) {
            let (wanted, step) = (vm.max - part, self.settings.step);
            let rests = self.moved.get(&vm.name).is_some_and(|last| at < *last + self.settings.cool_down);
            let change = (wanted - vm.target).max(vm.target - wanted);
            if rests || change == Bytes::ZERO || change < self.settings.least_step {
                continue;
            }
            let keep = wanted.min(vm.target + step).max(vm.target - step).max(self.floor(vm));
            self.moved.insert(vm.name.clone(), at);
            let state = if self.pressed { "under pressure" } else { "recovered" };
            let why = format!(
                "{} of the host's {} available, {state}: {all} to reclaim, {part} of it here, floor {}",
                host.available,
                host.total,
                self.floor(vm)
            );
            moves.push(Move { vm: vm.name.clone(), keep, why });
        }
        moves
    }

    fn pause(&self) -> Micros {
        self.settings.period
    }
}

#[cfg(test)]
mod tests {
    use super::super::fleet::bench::*;
    use super::*;

    /// A VM of `max` MiB that has been told to keep `target`.
    fn vm(name: &str, max: u64, target: u64) -> Seen {
        Seen { max: M(max), ..seen(name, target, 0) }
    }

    fn law() -> Headroom {
        Headroom::new(HeadroomSettings::default())
    }

    /// The host has 10000 MiB: pressure at 1000 available, recovered at 1500.
    #[test]
    fn hand_worked_rounds() {
        type Case = (&'static str, u64, Vec<Seen>, &'static [(&'static str, u64)]);
        let cases: Vec<Case> = vec![
            ("nothing to do", 1001, vec![vm("a", 2000, 2000)], &[]),
            // 1500 - 1000 = 500 to reclaim; the only headroom is 1000: 1500 wanted, by 256 at once.
            ("pressure begins at 10 % exactly", 1000, vec![vm("a", 2000, 2000)], &[("a", 1744)]),
            // 600 to reclaim; headrooms 1000 and 2000: 200 and 400, the latter cut to 256.
            ("in proportion", 900, vec![vm("a", 2000, 2000), vm("b", 4000, 4000)], &[("a", 1800), ("b", 3744)]),
            // 1500 to reclaim, headroom 1000: floor 1000. From 1100 it is 100 to the floor.
            ("the floor of half", 0, vec![vm("a", 2000, 1100)], &[("a", 1000)]),
            // Half of 600 is 300, the floor 512: headroom 88.
            ("the floor of 512 MiB", 0, vec![vm("a", 600, 600)], &[("a", 512)]),
            ("a VM of 512 MiB is never moved", 0, vec![vm("a", 512, 512)], &[]),
            // 540 to reclaim, in proportion to 1000 and 100: 490.9 and 49.1, the latter under 64.
            ("a change under 64 MiB is left", 960, vec![vm("a", 2000, 1900), vm("b", 612, 612)], &[("a", 1644)]),
            // No pressure: all comes back, by 256 at once.
            ("recovered", 5000, vec![vm("a", 2000, 1500)], &[("a", 1756)]),
            ("recovered, the last bit", 5000, vec![vm("a", 2000, 1900)], &[("a", 2000)]),
        ];
        for (name, available, vms, expected) in cases {
            let view = View { host: host(10_000, available), vms };
            assert_eq!(moves(&mut law(), &view, Micros::ZERO), expect(expected), "{name}");
        }
    }

    #[test]
    fn pressure_lasts_until_fifteen_percent() {
        let view = |available, target| View { host: host(10_000, available), vms: vec![vm("a", 2000, target)] };
        let mut law = law();
        assert_eq!(moves(&mut law, &view(1200, 2000), Micros::secs(0)), [], "12 % is no pressure by itself");
        assert_eq!(moves(&mut law, &view(900, 2000), Micros::secs(2)), expect(&[("a", 1744)]));
        // Still under pressure at 12 %, but 300 are to be reclaimed in all: 1700, and 44 is too small a change.
        assert_eq!(moves(&mut law, &view(1200, 1744), Micros::secs(10)), []);
        // At 14 %: 100 in all, hence 1900: it gives back what it has won.
        assert_eq!(moves(&mut law, &view(1400, 1744), Micros::secs(20)), expect(&[("a", 1900)]));
        // 15 %: recovered; 1900 to 2000.
        assert_eq!(moves(&mut law, &view(1500, 1900), Micros::secs(30)), expect(&[("a", 2000)]));
        assert_eq!(moves(&mut law, &view(1200, 2000), Micros::secs(40)), [], "and 12 % is no pressure again");
    }

    #[test]
    fn five_seconds_of_rest_after_a_move() {
        let view = |target| View { host: host(10_000, 500), vms: vec![vm("a", 2000, target)] };
        let mut law = law();
        assert_eq!(moves(&mut law, &view(2000), Micros::secs(0)), expect(&[("a", 1744)]));
        assert_eq!(moves(&mut law, &view(1744), Micros::secs(4)), []);
        assert_eq!(moves(&mut law, &view(1744), Micros::secs(5)), expect(&[("a", 1488)]));
    }

    #[test]
    fn stalls_are_pressure_but_reclaim_nothing_more() {
        let stalled = |target| View {
            host: Some(HostMemory {
                psi_some_avg10: Some(Ratio::basis_points(1)),
                ..host(10_000, 5000).expect("some")
            }),
            vms: vec![vm("a", 2000, target)],
        };
        let mut law = law();
        // Half of the host is available: as much as is reclaimed already, 300, stays reclaimed.
        assert_eq!(moves(&mut law, &stalled(1700), Micros::ZERO), []);
        assert!(law.pressed);
        let calm = View { host: host(10_000, 5000), ..stalled(1700) };
        assert_eq!(moves(&mut law, &calm, Micros::secs(2)), expect(&[("a", 1956)]));
        assert_eq!(moves(&mut law, &View { host: None, ..calm }, Micros::secs(20)), []);
    }
}
