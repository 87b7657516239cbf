//! Makes a model's 95 % quantile mean 95 %, for each VM, while it runs, and also after the guest's work has changed.
//!
//! ```text
//!   score = (loss - q95) / width         by how many widths a forecast was exceeded;  width = q95 - q50, at least 0.1 %
//!   bound = q95 + width x c              c: the (1 - a) quantile of the last 128 scores
//!   a    += 0.01 x (5 % - missed)        missed: the loss was above the bound
//! ```
//! Scores scaled by the model's own width and their conformal quantile: Romano, Patterson, Candès, "Conformalized quantile
//! regression", NeurIPS 2019, scaled as by Kivaranovic, Johnson and Leeb, AISTATS 2020. Adapting `a` by what was missed:
//! Gibbs and Candès, "Adaptive conformal inference under distribution shift", NeurIPS 2021, whose proposition 4.1 bounds
//! how far the share of misses can be from 5 % after so many outcomes, whatever the model says and whatever the guest does.
//!
//! Two things differ. `a` is bounded below by what the outcomes in flight can push it, and above, because an idle guest,
//! of which everything is right, would otherwise earn a credit of misses for hours; for the same reason it does not grow
//! where the bound is nothing already. Both can only make a bound cover more.
//!
//! *Pooled start*: a VM of which fewer than 64 outcomes are known does not get a lower correction than the median of the
//! others, which no minority of hostile guests can move beyond what honest ones say; and never a negative one. On a host
//! whose VMs are all new that is what the model brings along: what would have covered 95 % of the outcomes of workloads
//! held out of its training (split conformal prediction: Papadopoulos et al., ECML 2002).
//!
//! Integers throughout: losses are millionths, corrections thousandths of a width (promise P7).

use crate::history::WHOLE;
use crate::ratio::Ratio;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Scores that are remembered: at one every two seconds, four minutes.
pub const SCORES: usize = 128;
/// With so many of them a VM stands for itself. The 95 % quantile of fewer is one of the three largest.
const OWN: usize = 64;
/// What a width is never taken for less than, 0.1 %: a model that is sure of itself by less cannot be measured.
const NARROW: i64 = 1_000;
/// `a`, in millionths: the aim, a step for a miss, a step for none (0.01 x 95 % and 0.01 x 5 %), and the bounds. Eight
/// outcomes in flight can all be missed before the first is known.
const AIM: i32 = 50_000;
const MISSED: i32 = 9_500;
const COVERED: i32 = 500;
const LEAST: i32 = -100_000;
const MOST: i32 = 200_000;
/// Coverage is shown and judged over so many outcomes.
const LATELY: u32 = 64;
/// With more misses than this among them something is wrong: 3.2 are expected, and they come in bursts, because
/// horizons overlap.
const TOO_MANY: u32 = 10;
/// With this many or fewer it is well again.
const FEW: u32 = 6;

/// A correction, in thousandths of a width.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Correction(i32);

impl Correction {
    /// The model is taken at its word.
    pub const NONE: Self = Self(0);
    /// Nothing the model says is of use: anything may be lost.
    pub const HOPELESS: Self = Self(i32::MAX);

    /// What would have covered 95 % of outcomes whose scores were these: where a VM begins of which nothing is known. Never
    /// less than nothing.
    #[must_use]
    pub fn covering(mut scores: Vec<i32>) -> Self {
        scores.sort_unstable();
        let Some(last) = scores.last() else { return Self::NONE };
        Self(*scores.get(rank(scores.len(), AIM) - 1).unwrap_or(last)).max(Self::NONE)
    }

    /// The corrected 95 % quantile, in millionths.
    #[must_use]
    pub fn bound(self, half: u32, most: u32) -> u32 {
        if self == Self::HOPELESS {
            return WHOLE;
        }
        let bound = i64::from(most) + width(half, most) * i64::from(self.0) / 1_000;
        u32::try_from(bound.max(0)).unwrap_or(WHOLE).min(WHOLE)
    }
}

fn width(half: u32, most: u32) -> i64 {
    (i64::from(most) - i64::from(half)).max(NARROW)
}

/// By how many thousandths of a width a forecast was exceeded.
#[must_use]
pub fn score(half: u32, most: u32, loss: u32) -> i32 {
    let score = (i64::from(loss) - i64::from(most)) * 1_000 / width(half, most);
    i32::try_from(score).unwrap_or(i32::MAX - 1)
}

/// Which of `n` scores, the smallest first, leaves `allowed` millionths above it: the ceil((n + 1)(1 - a))-th.
fn rank(n: usize, allowed: i32) -> usize {
    let share = i64::from(WHOLE as i32 - allowed);
    let rank = ((n as i64 + 1) * share + i64::from(WHOLE) - 1) / i64::from(WHOLE);
    usize::try_from(rank).unwrap_or(1).max(1)
}

/// How right the model has been of one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Calibration {
    /// Oldest first.
    scores: VecDeque<i32>,
    /// The share of misses that is allowed now, in millionths.
    allowed: i32,
    /// Until there are enough scores, the correction is at least this.
    start: Correction,
    /// Which of the last outcomes were missed, the newest in the lowest bit.
    last: u64,
    /// Too many were, and not yet few enough again.
    off: bool,
    judged: u64,
    missed: u64,
}

impl Default for Calibration {
    fn default() -> Self {
        Self {
            scores: VecDeque::new(),
            allowed: AIM,
            start: Correction::NONE,
            last: 0,
            off: false,
            judged: 0,
            missed: 0,
        }
    }
}

impl Calibration {
    /// One that begins there.
    #[must_use]
    pub fn beginning_with(start: Correction) -> Self {
        let mut new = Self::default();
        new.begin_with(start);
        new
    }

    /// It will not count for a while: what it has come to is where it will begin again. The scores themselves would be half a KiB
    /// for each VM.
    pub fn set_aside(&mut self) {
        self.start = self.correction().max(Correction::NONE);
        self.scores = VecDeque::new();
    }

    /// What others have learnt is where this VM begins.
    pub fn begin_with(&mut self, pooled: Correction) {
        if self.scores.len() < OWN {
            self.start = pooled.max(Correction::NONE);
        }
    }

    /// What the model's word has to be corrected by now.
    #[must_use]
    pub fn correction(&self) -> Correction {
        if self.allowed < 0 {
            return Correction::HOPELESS;
        }
        let n = self.scores.len();
        let own = n >= OWN;
        let mut sorted: Vec<i32> = self.scores.iter().copied().collect();
        sorted.sort_unstable();
        let found = match sorted.get(rank(n, self.allowed) - 1).or(sorted.last().filter(|_| !own)) {
            Some(score) => Correction(*score),
            None if own => return Correction::HOPELESS,
            None => Correction::NONE,
        };
        if own { found } else { found.max(self.start) }
    }

    /// What became of a forecast whose bound was `bound`. Returns whether it was missed.
    pub fn judge(&mut self, half: u32, most: u32, bound: u32, loss: u32) -> bool {
        let missed = loss > bound;
        if self.scores.len() == SCORES {
            self.scores.pop_front();
        }
        self.scores.push_back(score(half, most, loss));
        self.allowed = match missed {
            true => (self.allowed - MISSED).max(LEAST),
            false if bound > 0 || self.allowed < AIM => (self.allowed + COVERED).min(MOST),
            false => self.allowed,
        };
        self.last = self.last << 1 | u64::from(missed);
        self.judged += 1;
        self.missed += u64::from(missed);
        let misses = self.last.count_ones();
        self.off = misses > TOO_MANY || (self.off && misses > FEW);
        missed
    }

    /// Outcomes that are known.
    #[must_use]
    pub const fn judged(&self) -> u64 {
        self.judged
    }

    /// Those of them that were above their bound.
    #[must_use]
    pub const fn missed(&self) -> u64 {
        self.missed
    }

    /// Enough outcomes are known for this VM to stand for itself.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.scores.len() >= OWN
    }

    /// The part of the last 64 outcomes, or of all if there are fewer, that were within their bounds.
    #[must_use]
    pub fn coverage(&self) -> Option<Ratio> {
        let known = u32::try_from(self.judged).unwrap_or(LATELY).min(LATELY);
        let covered = known - self.last.count_ones().min(known);
        (known > 0).then(|| Ratio::millionths_of(u64::from(covered), u64::from(known)))
    }

    /// Too many outcomes were missed lately.
    #[must_use]
    pub const fn is_off(&self) -> bool {
        self.off
    }
}

/// The median of what VMs that stand for themselves have come to; the upper one of two. `None`: there are none.
#[must_use]
pub fn pooled<'a>(all: impl Iterator<Item = &'a Calibration>) -> Option<Correction> {
    let mut known: Vec<Correction> = all.filter(|c| c.is_own()).map(Calibration::correction).collect();
    known.sort_unstable();
    known.get(known.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SplitMix64 (Steele, Lea, Flood 2014), as in the simulated guests.
    struct Dice(u64);

    impl Dice {
        /// From 0 to a million.
        fn roll(&mut self) -> u32 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) % 1_000_001) as u32
        }

        /// A loss of a guest whose work is so heavy: skewed, with a mean of a fifth of `heavy`.
        fn loss(&mut self, heavy: u32) -> u32 {
            let u = u64::from(self.roll());
            let skewed = u * u / 1_000_000 * u / 1_000_000 * u / 1_000_000;
            (skewed * u64::from(heavy) / 1_000_000) as u32
        }
    }

    /// How heavy the work is at a moment, and what the model says then: (half, 95 %).
    type Stream = fn(u64) -> (u32, (u32, u32));

    /// The share of 2,000 outcomes from `from` on that are covered, in millionths, when each is known five later.
    fn coverage(stream: Stream, from: u64, seed: u64) -> u64 {
        let (mut c, mut dice) = (Calibration::default(), Dice(seed));
        let mut flying: VecDeque<(u32, u32, u32, u32)> = VecDeque::new();
        let (mut covered, mut n) = (0, 0);
        for at in 0..from + 2_000 {
            let (heavy, (half, most)) = stream(at);
            let bound = c.correction().bound(half, most);
            let loss = dice.loss(heavy);
            flying.push_back((half, most, bound, loss));
            if at >= from {
                n += 1;
                covered += u64::from(loss <= bound);
            }
            if flying.len() > 5 {
                let (half, most, bound, loss) = flying.pop_front().unwrap();
                c.judge(half, most, bound, loss);
            }
        }
        covered * 1_000_000 / n
    }

    /// Whatever the model says, right, far too low, far too high, or without meaning, and whatever the guest does.
    #[test]
    fn the_95_percent_quantile_covers_93_to_97_percent_over_any_long_stretch() {
        // The quantiles of the skewed loss are 0.0625 and 0.815 of `heavy`.
        let streams: [(&str, Stream); 8] = [
            ("right", |_| (300_000, (18_750, 244_000))),
            ("a tenth of it", |_| (300_000, (1_875, 24_400))),
            ("three times too much", |_| (300_000, (56_000, 733_000))),
            ("nothing at all", |_| (300_000, (0, 0))),
            ("work becomes ten times heavier", |at| (if at < 1_000 { 30_000 } else { 300_000 }, (1_875, 24_400))),
            ("work becomes ten times lighter", |at| (if at < 1_000 { 300_000 } else { 30_000 }, (18_750, 244_000))),
            ("work in phases of ten minutes that the model half sees", |at| {
                let busy = at / 300 % 2 == 1;
                (if busy { 400_000 } else { 40_000 }, if busy { (9_000, 100_000) } else { (4_000, 50_000) })
            }),
            // The quantile of the last 128 scores alone is always late here.
            ("work that grows twentyfold in thirteen minutes, again and again, unseen", |at| {
                let step = (at % 400) as u32;
                (20_000 + step * step * step / 170, (1_875, 24_400))
            }),
        ];
        for (name, stream) in streams {
            for seed in 1..=8 {
                for from in [0, 1_000, 1_500] {
                    let share = coverage(stream, from, seed);
                    assert!((930_000..=970_000).contains(&share), "{name}, seed {seed}, from {from}: {share}");
                }
            }
        }
    }

    #[test]
    fn a_model_that_is_right_of_an_idle_guest_earns_no_credit() {
        let mut c = Calibration::default();
        for _ in 0..10_000 {
            let bound = c.correction().bound(0, 0);
            assert!(!c.judge(0, 0, bound, 0));
        }
        assert_eq!((c.correction(), c.coverage()), (Correction::NONE, Some(Ratio::WHOLE)));
        // It begins to work: after four missed outcomes in flight the fifth minute is no worse than any other.
        let mut missed = 0;
        for _ in 0..100 {
            let bound = c.correction().bound(0, 0);
            missed += u32::from(c.judge(0, 0, bound, 200_000));
        }
        assert!(missed <= 7, "{missed}");
    }

    #[test]
    fn too_many_misses_are_noticed_and_forgiven_later() {
        let mut c = Calibration::default();
        for _ in 0..11 {
            // Bounds of long ago.
            c.judge(0, 0, 0, 500_000);
        }
        assert!(c.is_off());
        assert_eq!(c.correction().bound(0, 0), WHOLE, "nothing it says is of use for now");
        for _ in 0..64 {
            c.judge(0, 0, WHOLE, 0);
        }
        assert!(!c.is_off());
    }

    #[test]
    fn a_new_vm_begins_where_most_others_are_and_hostile_ones_cannot_move_that() {
        let learnt = |loss: u32| {
            let mut c = Calibration::default();
            for _ in 0..200 {
                let bound = c.correction().bound(10_000, 20_000);
                c.judge(10_000, 20_000, bound, loss);
            }
            c
        };
        // Honest VMs lose 4 %, two widths above what the model says; hostile ones claim everything, or nothing.
        let (honest, wild, meek) = (learnt(40_000), learnt(WHOLE), learnt(0));
        let start = pooled([&honest, &wild, &honest, &meek, &honest].into_iter()).unwrap();
        assert_eq!(start.bound(10_000, 20_000), 40_000);
        let mut new = Calibration::default();
        new.begin_with(start);
        assert_eq!(new.correction(), start);
        // A pool of flatterers gives no credit.
        let mut flattered = Calibration::default();
        flattered.begin_with(pooled([&meek].into_iter()).unwrap());
        assert_eq!(flattered.correction(), Correction::NONE);
        // After 64 outcomes of its own it stands for itself.
        for _ in 0..OWN {
            let bound = new.correction().bound(10_000, 20_000);
            new.judge(10_000, 20_000, bound, 15_000);
        }
        assert_eq!(new.correction().bound(10_000, 20_000), 15_000);
        assert_eq!(pooled(std::iter::empty()), None);
    }

    #[test]
    fn what_was_set_aside_goes_on_where_it_was_but_never_below_the_models_word() {
        let seen = |loss: u32| {
            let mut calibration = Calibration::default();
            for _ in 0..OWN {
                let bound = calibration.correction().bound(0, 10_000);
                calibration.judge(0, 10_000, bound, loss);
            }
            let before = calibration.correction();
            calibration.set_aside();
            assert!(!calibration.is_own() && calibration.judged() == OWN as u64);
            (before, calibration.correction())
        };
        let (hopeful, kept) = seen(15_000);
        assert!(hopeful > Correction::NONE && kept == hopeful, "{hopeful:?} {kept:?}");
        let (careful, kept) = seen(1_000);
        assert!(careful < Correction::NONE && kept == Correction::NONE, "{careful:?} {kept:?}");
    }

    #[test]
    fn nothing_overflows() {
        let mut c = Calibration::default();
        for (half, most, loss) in [(0, 0, u32::MAX), (u32::MAX, 0, 0), (0, u32::MAX, 0), (u32::MAX, u32::MAX, u32::MAX)]
        {
            for _ in 0..200 {
                let bound = c.correction().bound(half, most);
                c.judge(half, most, bound, loss);
            }
        }
        assert!(c.correction().bound(u32::MAX, u32::MAX) <= WHOLE);
    }
}
