//! The only place where a VM becomes figures for a predictor, and where it is said what became of it: training replays
//! journals through here, and the daemon asks here while it runs.
//!
//! ```text
//!        window: the last seconds and minutes          horizon, 10 s
//!   ------------------------------------------|now|------------------------->
//!   Planner::features(now) -> Features        size           Planner::outcome(now + 10 s, since now) -> Outcome
//! ```
//! Features are made from what the planner has been told by then and from nothing else, so that none can see the
//! future. They are relative to the VM's maximum, rates in MiB a second on a logarithmic scale, so that VMs of all sizes
//! look alike. Floats are made here and end here: what a model says comes back as integers (see [`crate::Forecast`]).

use crate::event::VmName;
use crate::fleet::{Agent, Vm};
use crate::history::{Sample, WHOLE};
use crate::{Planner, guard};
use ballast_protocol::{Bytes, Micros};

/// Grows when any figure changes its meaning or its place: a model for another version is refused.
pub const FEATURES_VERSION: u32 = 2;
/// How far ahead is predicted: long enough for a taking to be felt, short enough to be undone.
pub const HORIZON: Micros = Micros::secs(10);
/// The quantiles of the loss that are predicted.
pub const QUANTILES: [f32; 4] = [0.5, 0.9, 0.95, 0.99];
/// Sizes that are asked about at a time.
pub const SIZES: usize = 16;
/// Figures of a window.
pub const WINDOW: usize = 29;
/// Figures of a candidate size.
pub const CANDIDATE: usize = 6;
/// A shorter history says nothing about rates.
const LEAST: Micros = Micros::secs(5);

/// What the figures of a window are. "Of" means: of the VM's maximum. A number of seconds is what they look back.
pub const WINDOW_NAMES: [&str; WINDOW] = [
    "slack",        // free above the low watermark, of
    "available",    // of
    "used",         // of
    "programs",     // anonymous and shared memory, of
    "cache",        // page cache, of
    "dirty",        // page cache to be written, of
    "swapped",      // of
    "committed",    // Committed_AS, of
    "ballooned",    // of
    "moved_10s",    // what it keeps less what it kept, of
    "growth_2s",    // of what is used, a second
    "growth_10s",   // the same
    "peak_10s",     // the most used less what is used now, of
    "peak_4min",    // the same
    "fastest",      // the fastest growth seen lately, of, a second
    "programs_10s", // growth, of, a second
    "cache_10s",    // growth, of, a second
    "stall_2s",     // part of the time in which tasks waited for memory (PSI some)
    "stall_10s",    // the same
    "io_10s",       // part of the time in which tasks waited for I/O
    "refaults_2s",  // page cache read again, ln(1 + MiB/s)
    "refaults_10s", // the same
    "swap_in_10s",  // ln(1 + MiB/s)
    "faults_10s",   // major faults, ln(1 + 1/s)
    "asked_10s",    // by demands, of
    "pending",      // demands that are not over, of
    "quiet",        // seconds without demand, trouble or growth: s / (s + 10)
    "service",      // what the network gives, to the VM's own baseline; 1 if nobody measured
    "answered",     // 1: what it asks for is given; 0: not now (a dry run, a hold, a law that hears no demands)
];

/// What the figures of a candidate size are. None falls when the size grows.
pub const CANDIDATE_NAMES: [&str; CANDIDATE] = [
    "size",          // of
    "above_needed",  // the size less what is used and what survival asks for, of
    "above_floor",   // the size less the guest's floor, of
    "above_kept",    // the size less what it keeps, of
    "log_to_needed", // ln(size / needed)
    "log_to_floor",  // ln(size / floor)
];

/// What a predictor is shown of one VM.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// See [`WINDOW_NAMES`].
    pub window: [f32; WINDOW],
    /// What the VM keeps.
    pub kept: Bytes,
    /// What it uses, with what the law of survival asks for.
    pub needed: Bytes,
    /// What it must not be ordered below: its own floor, its minimum, its leases.
    pub floor: Bytes,
    /// The most it may have.
    pub max: Bytes,
}

/// What became of a VM.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// 0 to 1: the part of the time in which tasks stalled for memory (PSI some), or of the service that two probes
    /// found lost while tasks stalled too, the larger. A process killed for want of memory is a total loss.
    pub loss: f32,
    /// The law saw trouble: stalls, swapping, refaults, kills.
    pub pressure: bool,
}

/// `part` of `whole`, at most 4 times: a guest may say anything.
fn of(part: Bytes, whole: Bytes) -> f32 {
    let ratio = part.0 as f64 / whole.0.max(1) as f64;
    ratio.min(4.0) as f32
}

/// The difference of two sizes, of a third.
fn above(size: Bytes, base: Bytes, whole: Bytes) -> f32 {
    of(size - base, whole) - of(base - size, whole)
}

/// ln(a / b), from -4 to 4.
fn log(a: Bytes, b: Bytes) -> f32 {
    let ratio = a.0.max(1) as f64 / b.0.max(1) as f64;
    ratio.ln().clamp(-4.0, 4.0) as f32
}

impl Features {
    /// The figures of a candidate size; see [`CANDIDATE_NAMES`]. None falls when the size grows.
    #[must_use]
    pub fn candidate(&self, size: Bytes) -> [f32; CANDIDATE] {
        let Self { kept, needed, floor, max, .. } = *self;
        [
            of(size, max),
            above(size, needed, max),
            above(size, floor, max),
            above(size, kept, max),
            log(size, needed),
            log(size, floor),
        ]
    }

    /// The sizes to ask about, ascending and all different, from the floor to the maximum; nearer to each other at
    /// the floor, where a loss bends. Fewer than [`SIZES`] only if there is nothing between the two.
    #[must_use]
    pub fn sizes(&self) -> Vec<Bytes> {
        let last = SIZES as u64 - 1;
        let room = self.max - self.floor;
        let lowest = self.floor.min(self.max);
        let mut sizes: Vec<Bytes> = (0..=last).map(|i| lowest + room.share(i * i, last * last)).collect();
        sizes.dedup();
        sizes
    }
}

/// How two samples differ.
struct Stretch<'a> {
    from: &'a Sample,
    to: &'a Sample,
    max: Bytes,
}

impl Stretch<'_> {
    fn seconds(&self) -> f32 {
        // Never less than a tenth: two reports at once are no rate.
        ((self.to.at - self.from.at).secs_f64() as f32).max(0.1)
    }

    /// Growth in pages, of the maximum, a second.
    fn growth(&self, get: impl Fn(&Sample) -> u32) -> f32 {
        let (to, from) = (page(get(self.to)), page(get(self.from)));
        (above(to, from, self.max) / self.seconds()).clamp(-4.0, 4.0)
    }

    /// The part of the time that a stall counter grew.
    fn part(&self, get: impl Fn(&Sample) -> Micros) -> f32 {
        let stalled = (get(self.to) - get(self.from)).secs_f64() as f32;
        (stalled / self.seconds()).min(1.0)
    }

    /// Events a second, each of `weight`, as ln(1 + rate).
    fn rate(&self, get: impl Fn(&Sample) -> u32, weight: f32) -> f32 {
        let events = get(self.to).wrapping_sub(get(self.from)) as f32;
        (events * weight / self.seconds()).ln_1p()
    }
}

/// So many pages.
fn page(n: u32) -> Bytes {
    Bytes(u64::from(n) << 12)
}

/// MiB in a page.
const PAGE: f32 = 1.0 / 256.0;

impl Planner {
    /// What a predictor is shown of this VM now. `None`: it cannot be predicted, because its agent is gone, silent or not
    /// believed, its hypervisor away, its vCPUs stopped, or its history shorter than 5 s.
    #[must_use]
    pub fn features(&self, at: Micros, vm: &VmName) -> Option<Features> {
        self.vms.get(vm)?.features(at, self.helps(at))
    }

    /// Whether guests are given what they ask for: not in a dry run, by another's law, or by a host that had no more lately.
    pub(crate) fn helps(&self, at: Micros) -> bool {
        !self.dry_run && !self.is_ruled() && !self.pool.is_scarce(at)
    }

    /// What became of this VM from `since` to `at`, 18 s ago at most. `None`: nobody looked for long enough.
    #[must_use]
    pub fn outcome(&self, at: Micros, vm: &VmName, since: Micros) -> Option<Outcome> {
        let happened = self.vms.get(vm)?.history.happened(since, at)?;
        Some(Outcome { loss: happened.loss as f32 / WHOLE as f32, pressure: happened.pressure })
    }
}

impl Vm {
    /// Whether enough is known of it for a prediction that was made then.
    pub(crate) fn is_predictable(&self, at: Micros) -> bool {
        let fresh = self.telemetry.as_ref().is_some_and(|t| t.at + guard::FRESH >= at);
        let known = self.history.since().is_some_and(|since| at >= since + LEAST);
        let there = self.facts.running && self.facts.balloon && self.actual.is_some() && self.max() > Bytes::ZERO;
        fresh && known && there && self.trust.is_trusted() && matches!(self.agent, Agent::Alive { .. })
    }

    /// What it uses by its last report, with what lies below the low watermark.
    pub(crate) fn used(&self) -> Option<Bytes> {
        let report = &self.telemetry.as_ref()?.what;
        Some(self.kept_at(report.ballooned) - (report.free - report.watermarks.low))
    }

    /// Whether it is given what it asks for, where others are.
    pub(crate) fn is_answered(&self, at: Micros, helps: bool) -> bool {
        helps && !self.migrating && self.held(at).is_none()
    }

    fn features(&self, at: Micros, helps: bool) -> Option<Features> {
        if !self.is_predictable(at) {
            return None;
        }
        let report = &self.telemetry.as_ref()?.what;
        let (max, kept) = (self.max(), self.kept_at(report.ballooned));
        let history = &self.history;
        let to = history.newest()?;
        let short = Stretch { from: history.before(Micros::secs(2))?, to, max };
        let long = Stretch { from: history.before(HORIZON)?, to, max };
        let quiet = (at - self.reactive.unquiet()).secs_f64() as f32;
        let percent = self.service.probed(at).unwrap_or(100);
        let window = [
            of(report.free - report.watermarks.low, max),
            of(report.available, max),
            of(page(to.used), max),
            of(report.anon + report.shmem, max),
            of(report.file, max),
            of(report.dirty, max),
            of(report.swap_total - report.swap_free, max),
            of(report.committed, max),
            of(self.facts.max - kept, max),
            above(page(to.kept), page(long.from.kept), max),
            short.growth(|s| s.used),
            long.growth(|s| s.used),
            of(page(history.peak(HORIZON) - to.used), max),
            of(page(history.long_peak().saturating_sub(to.used)), max),
            of(self.reactive.rate(), max),
            long.growth(|s| s.programs),
            long.growth(|s| s.cache),
            short.part(|s| s.some),
            long.part(|s| s.some),
            long.part(|s| s.io),
            short.rate(|s| s.refaults, PAGE),
            long.rate(|s| s.refaults, PAGE),
            long.rate(|s| s.swapped_in, PAGE),
            long.rate(|s| s.faults, 1.0),
            of(page(to.asked.wrapping_sub(long.from.asked)), max),
            of(report.pending, max),
            quiet / (quiet + 10.0),
            percent.min(400) as f32 / 100.0,
            f32::from(u8::from(self.is_answered(at, helps))),
        ];
        let floor = self.floor().unwrap_or_default().max(self.guaranteed()).min(max);
        let needed = self.used()? + self.reactive.survival().min(max.share(1, 4));
        Some(Features { window, kept, needed, floor, max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: Features = Features {
        window: [0.0; WINDOW],
        kept: Bytes::mib(300),
        needed: Bytes::mib(200),
        floor: Bytes::mib(100),
        max: Bytes::mib(512),
    };

    #[test]
    fn no_figure_of_a_candidate_falls_when_it_grows() {
        for shown in [SHOWN, Features { needed: Bytes::ZERO, floor: Bytes::ZERO, ..SHOWN }] {
            let mut last = [f32::NEG_INFINITY; CANDIDATE];
            for mib in 0..3_000 {
                let now = shown.candidate(Bytes::mib(mib));
                assert!(now.iter().zip(last).all(|(now, last)| *now >= last), "{mib}: {now:?} after {last:?}");
                assert!(now.iter().all(|f| f.is_finite()));
                last = now;
            }
        }
    }

    #[test]
    fn sizes_ascend_from_the_floor_to_the_maximum() {
        let sizes = SHOWN.sizes();
        assert_eq!((sizes.len(), sizes[0], sizes[SIZES - 1]), (SIZES, SHOWN.floor, SHOWN.max));
        assert!(sizes.is_sorted_by(|a, b| a < b), "{sizes:?}");
        assert!(sizes[1] - sizes[0] < Bytes::mib(2) && sizes[SIZES - 1] - sizes[SIZES - 2] > Bytes::mib(50));
        assert_eq!(Features { floor: SHOWN.max, ..SHOWN }.sizes(), [SHOWN.max]);
        assert_eq!(Features { floor: Bytes::MAX, ..SHOWN }.sizes(), [SHOWN.max]);
    }
}
