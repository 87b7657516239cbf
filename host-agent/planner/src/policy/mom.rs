//! `mom`: oVirt's Memory Overcommitment Manager with its `balloon.rules`.
//!
//! ```text
//!   every 5 s a sample, every 10 s a decision on the averages of the last 10 samples
//!   host free < 20 %:  towards max(minimum, used + g x current), by at most 5 % of current
//!        g = 20 % x host free / 20 %,  or host free - 5 % (nothing or less) when host free is 5 % or less
//!   otherwise:         to max(1.05 x current, used + 20 % of current), at most the maximum
//!   a move of 0.25 % of current or less is dropped
//! ```
//!
//! `used` is what the VM keeps less what its driver calls free, so that page cache is in it. A guest that wants more
//! than it has while the host is short is left alone: nothing grows on a host under pressure.
//!
//! Decided here: the host's free memory is MemAvailable, not free + buffers + cached, because guests whose memory is
//! shared with a vhost-user daemon are in `Cached` and would count as free. The 5 s are those of the configuration
//! that oVirt ships. A guest without fresh statistics is skipped and its samples are forgotten; the others are ruled on
//! (there, one guest with a bad setting once stopped all ballooning). "used + 20 %" is 20 % of current, as in the
//! shrinking rule.

use super::fleet::{FleetLaw, Move, Seen, View};
use crate::event::VmName;
use crate::ratio::Ratio;
use ballast_protocol::{Bytes, Micros};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// `sample-history-length`.
const SAMPLES: usize = 10;

/// The published constants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MomSettings {
    /// From one sample to the next.
    pub sample: Micros,
    /// From one decision to the next.
    pub period: Micros,
    /// A host with less of its memory free is under pressure.
    pub pressure: Ratio,
    /// With this or less it is critical.
    pub critical: Ratio,
    /// What a guest is to have free while there is no pressure.
    pub guest_free: Ratio,
    /// A guest is moved by no more in one round.
    pub step: Ratio,
    /// A move as small as this is dropped.
    pub dead_band: Ratio,
}

impl Default for MomSettings {
    fn default() -> Self {
        Self {
            sample: Micros::secs(5),
            period: Micros::secs(10),
            pressure: Ratio::percent(20),
            critical: Ratio::percent(5),
            guest_free: Ratio::percent(20),
            step: Ratio::percent(5),
            dead_band: Ratio::basis_points(25),
        }
    }
}

/// The law and its samples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mom {
    settings: MomSettings,
    decides: Micros,
    /// The host's available memory.
    host: VecDeque<Bytes>,
    /// What each guest kept, and what of it was free.
    guests: BTreeMap<VmName, VecDeque<(Bytes, Bytes)>>,
}

impl Mom {
    /// With these constants.
    #[must_use]
    pub const fn new(settings: MomSettings) -> Self {
        Self { settings, decides: Micros::ZERO, host: VecDeque::new(), guests: BTreeMap::new() }
    }

    fn sample(&mut self, view: &View) {
        if let Some(host) = view.host {
            remember(&mut self.host, host.available);
        }
        let mut before = std::mem::take(&mut self.guests);
        for vm in &view.vms {
            if let Some(free) = vm.free {
                let mut samples = before.remove(&vm.name).unwrap_or_default();
                remember(&mut samples, (vm.kept, free));
                self.guests.insert(vm.name.clone(), samples);
            }
        }
    }

    /// What a guest is to keep when so much of the host is free, and why.
    fn target(&self, vm: &Seen, used: Bytes, host_free: Ratio) -> Option<(Bytes, String)> {
        let s = &self.settings;
        let current = vm.kept;
        let (keep, why) = if host_free < s.pressure {
            let (wanted, part) = if host_free <= s.critical {
                let less = s.critical.less(host_free);
                (used - less.of(current), format!("{less} less than it uses"))
            } else {
                let part = s.guest_free.scaled(host_free, s.pressure);
                (used + part.of(current), format!("{part} beyond what it uses"))
            };
            let keep = wanted.max(vm.min).max(current - s.step.of(current));
            if keep > current {
                return None;
            }
            (keep, format!("host {host_free} free, under {}: it may keep {part}, {used}", s.pressure))
        } else {
            let keep = (current + s.step.of(current)).max(used + s.guest_free.of(current)).min(vm.max);
            (keep, format!("host {host_free} free: back towards {} while it uses {used}", vm.max))
        };
        let change = (keep - current).max(current - keep);
        (change > s.dead_band.of(current)).then_some((keep, why))
    }
}

impl FleetLaw for Mom {
    fn round(&mut self, view: &View, at: Micros) -> Vec<Move> {
        self.sample(view);
        let Some(host) = view.host.filter(|_| at >= self.decides) else { return Vec::new() };
        self.decides = at + self.settings.period;
        let host_free = Ratio::between(average(self.host.iter().copied()), host.total);
        let decide = |vm: &Seen| {
            let samples = self.guests.get(&vm.name)?;
            let used = average(samples.iter().map(|s| s.0)) - average(samples.iter().map(|s| s.1));
            let (keep, why) = self.target(vm, used, host_free)?;
            Some(Move { vm: vm.name.clone(), keep, why })
        };
        view.vms.iter().filter_map(decide).collect()
    }

    fn pause(&self) -> Micros {
        self.settings.sample
    }
}

fn remember<T>(samples: &mut VecDeque<T>, new: T) {
    if samples.len() == SAMPLES {
        samples.pop_front();
    }
    samples.push_back(new);
}

/// Of ten figures at most; each is divided first, so that a hostile one cannot overflow the sum.
fn average(figures: impl ExactSizeIterator<Item = Bytes>) -> Bytes {
    let n = figures.len() as u64;
    figures.map(|f| f.share(1, n)).sum()
}

#[cfg(test)]
mod tests {
    use super::super::fleet::bench::*;
    use super::*;

    fn law() -> Mom {
        Mom::new(MomSettings::default())
    }

    /// One sample, hence averages equal to it. The guest keeps 400 of 1000 MiB, minimum 100.
    #[test]
    fn hand_worked_rounds() {
        // (what, host available of 10000, free in the guest, expected)
        type Case = (&'static str, u64, u64, &'static [(&'static str, u64)]);
        let cases: [Case; 10] = [
            // 15 % free, g = 15 %: used 100 + 60 = 160, but no further than 400 - 20 = 380.
            ("pressure, 5 % at once", 1500, 300, &[("a", 380)]),
            // 15 %: used 330 + 60 = 390, nearer than 380.
            ("pressure, less than 5 %", 1500, 70, &[("a", 390)]),
            // 15 %: used 380 + 60 = 440 > 400: a starving guest is not grown.
            ("a starving guest on a pressed host", 1500, 20, &[]),
            // 19.9 %: g = 19.9 %, used 319.8 + 79.6 = 399.4: 0.6 of 400 is 0.15 %, under 0.25 %. Free is whole MiB
            // here: 81 gives 319 + 79.6 = 398.6, 1.4 of 400 is 0.35 %.
            ("more than the dead band", 1990, 81, &[("a", 398)]),
            ("in the dead band", 1990, 80, &[]),
            // 5 %: critical, g = 0: used 390, nothing on top.
            ("critical", 500, 10, &[("a", 390)]),
            // 2 %: g = -3 %: used 400 - 12 = 388: it is forced to swap.
            ("below critical", 200, 0, &[("a", 388)]),
            // 20 % is no pressure: 1.05 x 400 = 420 > used 100 + 80.
            ("no pressure", 2000, 300, &[("a", 420)]),
            // used 380 + 80 = 460 > 420.
            ("no pressure, little free", 5000, 20, &[("a", 460)]),
            // The whole host is free; nothing else changes.
            ("idle host", 10_000, 300, &[("a", 420)]),
        ];
        for (name, available, free, expected) in cases {
            let view = View { host: host(10_000, available), vms: vec![seen("a", 400, free)] };
            assert_eq!(moves(&mut law(), &view, Micros::ZERO), expect(expected), "{name}");
        }
    }

    #[test]
    fn bounds() {
        // 1.05 x 980 = 1029, the maximum is 1000.
        let view = View { host: host(10_000, 5000), vms: vec![seen("a", 980, 500)] };
        assert_eq!(moves(&mut law(), &view, Micros::ZERO), expect(&[("a", 1000)]));
        // At its maximum there is nothing to grow.
        let view = View { host: host(10_000, 5000), vms: vec![seen("a", 1000, 500)] };
        assert_eq!(moves(&mut law(), &view, Micros::ZERO), []);
        // 10 % free, g = 10 %: used 2 + 10.2; minimum 100; 102 - 5.1 = 96.9. The minimum rules.
        let view = View { host: host(10_000, 1000), vms: vec![seen("a", 102, 100)] };
        assert_eq!(moves(&mut law(), &view, Micros::ZERO), expect(&[("a", 100)]));
    }

    #[test]
    fn a_decision_every_second_sample_on_averages() {
        let mut law = law();
        let view = |available, free| View { host: host(10_000, available), vms: vec![seen("a", 400, free)] };
        // 50 % free at first: 420.
        assert_eq!(moves(&mut law, &view(5000, 300), Micros::secs(0)), expect(&[("a", 420)]));
        assert_eq!(moves(&mut law, &view(1000, 300), Micros::secs(5)), [], "only sampled");
        // (50 + 10 + 10) / 3 = 23.3 %: no pressure yet on average. Used: 400 - (300 + 300 + 0) / 3 = 200: 420 again.
        assert_eq!(moves(&mut law, &view(1000, 0), Micros::secs(10)), expect(&[("a", 420)]));
        assert_eq!(moves(&mut law, &view(1000, 0), Micros::secs(15)), []);
        // (50 + 4 x 10) / 5 = 18 %, g = 18 %. Used 400 - 600 / 5 = 280, + 72 = 352: 380 by the 5 %.
        assert_eq!(moves(&mut law, &view(1000, 0), Micros::secs(20)), expect(&[("a", 380)]));
        // After ten more samples the first ones are forgotten: used 400 + 10 % x 400 > 400, no move.
        for i in 5..15 {
            moves(&mut law, &view(1000, 0), Micros::secs(5 * i));
        }
        assert_eq!(moves(&mut law, &view(1000, 0), Micros::secs(80)), []);
    }

    /// The incident that this law's users had: one guest's error stopped ballooning for all.
    #[test]
    fn a_silent_guest_is_skipped_and_stops_nobody() {
        let mut silent = seen("a", 400, 0);
        (silent.free, silent.available) = (None, None);
        let view = View { host: host(10_000, 1500), vms: vec![silent, seen("b", 400, 300)] };
        assert_eq!(moves(&mut law(), &view, Micros::ZERO), expect(&[("b", 380)]));
        assert_eq!(moves(&mut law(), &View { host: None, ..view }, Micros::ZERO), []);
    }
}
