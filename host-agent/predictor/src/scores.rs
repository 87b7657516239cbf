//! How good predictions were: one table for the network and for what it is compared with.
//!
//! Workloads count alike, however many rows they have: the question is what a predictor does with a workload that it
//! has not seen, and a workload with many rows is still one.

use crate::{Calibrated, Estimate, LEVELS, Predictor, QUANTILES, Query, Row, calibrated};
use ballast_planner::Correction;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Instant;

/// How often the gain is drawn anew, and between which of the results its interval lies: 90 %.
const DRAWS: usize = 1000;
const OUTSIDE: usize = 50;

/// Scores of one predictor over some rows, or the means of such over workloads.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// How many rows.
    pub rows: u64,
    /// Pinball loss of each quantile, in parts of the horizon.
    pub pinball: [f64; LEVELS],
    /// Their mean: the figure that predictors are compared by.
    pub mean_pinball: f64,
    /// The part of outcomes at most as high as each quantile.
    pub coverage: [f64; LEVELS],
    /// Mean squared error of the probability of pressure.
    pub brier: f64,
    /// Logarithmic loss of the probability of pressure, nats.
    pub log_loss: f64,
}

/// One predictor's scores.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// The predictor.
    pub predictor: String,
    /// By workload, each while it was held out.
    pub workloads: BTreeMap<String, Score>,
    /// The mean over workloads.
    pub mean: Score,
    /// The same of the rows in which the host agent answered what the guest asked for, as it does in use...
    pub helped: Score,
    /// ...and of those in which nobody did.
    pub alone: Score,
    /// Its 95 % quantile after calibration, by workload.
    pub calibrated: BTreeMap<String, Calibrated>,
}

/// All predictors' scores on workloads that they had not seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// The network first, then what it is compared with.
    pub predictors: Vec<Scored>,
    /// The best of the others.
    pub best_baseline: String,
    /// By how much the network's mean pinball loss is lower than that one's: 0.1 is 10 %.
    pub gain: f64,
    /// Its 90 % interval, by drawing runs anew.
    pub gain_interval: (f64, f64),
}

/// How long predictions take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// One VM at 16 sizes, median, microseconds.
    pub one_median_us: f64,
    /// The same, 99th percentile.
    pub one_p99_us: f64,
    /// A thousand VMs at 16 sizes each, together, median, milliseconds.
    pub thousand_ms: f64,
}

/// How far an outcome is from a quantile, weighed by the side it is on.
pub(crate) fn pinball(level: f32, said: f32, seen: f32) -> f64 {
    let (level, error) = (f64::from(level), f64::from(seen) - f64::from(said));
    (level * error).max((level - 1.0) * error)
}

fn log_loss(said: f32, seen: bool) -> f64 {
    let p = f64::from(said).clamp(1e-6, 1.0 - 1e-6);
    if seen { -p.ln() } else { -(1.0 - p).ln() }
}

impl Score {
    /// Scores estimates of rows.
    pub(crate) fn of<'a>(pairs: impl Iterator<Item = (&'a Row, &'a Estimate)>) -> Self {
        let mut sum = Self::default();
        for (row, said) in pairs {
            sum.rows += 1;
            for (q, level) in QUANTILES.iter().enumerate() {
                sum.pinball[q] += pinball(*level, said.loss[q], row.loss);
                sum.coverage[q] += f64::from(u8::from(row.loss <= said.loss[q]));
            }
            sum.brier += (f64::from(said.pressure) - f64::from(u8::from(row.pressure))).powi(2);
            sum.log_loss += log_loss(said.pressure, row.pressure);
        }
        let rows = sum.rows;
        Self { rows, ..sum.divided(rows as f64) }
    }

    fn mean<'a>(scores: impl Iterator<Item = &'a Self>) -> Self {
        let (mut sum, mut count) = (Self::default(), 0_u32);
        for score in scores {
            count += 1;
            sum.rows += score.rows;
            for q in 0..LEVELS {
                sum.pinball[q] += score.pinball[q];
                sum.coverage[q] += score.coverage[q];
            }
            sum.brier += score.brier;
            sum.log_loss += score.log_loss;
        }
        let rows = sum.rows;
        Self { rows, ..sum.divided(f64::from(count)) }
    }

    fn divided(mut self, by: f64) -> Self {
        let by = by.max(1.0);
        for value in self.pinball.iter_mut().chain(&mut self.coverage) {
            *value /= by;
        }
        self.brier /= by;
        self.log_loss /= by;
        self.mean_pinball = self.pinball.iter().sum::<f64>() / LEVELS as f64;
        self
    }
}

impl Scores {
    /// Scores what each predictor said of every row; the network comes first. Also where its calibration begins.
    /// `answered`: the column of the window that says whether the guest is helped.
    pub(crate) fn of(
        rows: &[Row],
        answered: Option<usize>,
        said: &[(String, Vec<Estimate>)],
        seed: u64,
    ) -> (Self, Correction) {
        let (predictors, starts): (Vec<Scored>, Vec<Correction>) =
            said.iter().map(|(name, said)| scored(name, rows, answered, said)).unzip();
        let start = starts.first().copied().unwrap_or_default();
        let mean = |p: &Scored| p.mean.mean_pinball;
        let best = (1..predictors.len()).min_by(|a, b| mean(&predictors[*a]).total_cmp(&mean(&predictors[*b])));
        let Some(best) = best else { return (Self { predictors, ..Self::default() }, start) };
        let scores = Self {
            best_baseline: predictors[best].predictor.clone(),
            gain: gain(mean(&predictors[0]), mean(&predictors[best])),
            gain_interval: interval(rows, &said[0].1, &said[best].1, seed),
            predictors,
        };
        (scores, start)
    }

    /// The scores of the predictor of this name.
    #[must_use]
    pub fn named(&self, predictor: &str) -> Option<&Scored> {
        self.predictors.iter().find(|p| p.predictor == predictor)
    }
}

fn scored(name: &str, rows: &[Row], answered: Option<usize>, said: &[Estimate]) -> (Scored, Correction) {
    let by_workload = |of: &dyn Fn(&Row) -> bool| -> BTreeMap<String, Score> {
        let mut pairs = BTreeMap::<&str, Vec<(&Row, &Estimate)>>::new();
        for pair in rows.iter().zip(said).filter(|(row, _)| of(row)) {
            pairs.entry(&pair.0.workload).or_default().push(pair);
        }
        pairs.into_iter().map(|(name, pairs)| (name.to_owned(), Score::of(pairs.into_iter()))).collect()
    };
    let is_helped = |row: &Row| answered.is_some_and(|column| row.window[column] > 0.5);
    let workloads = by_workload(&|_| true);
    let (calibrated, start) = calibrated::by_workload(rows, said);
    let scored = Scored {
        predictor: name.to_owned(),
        mean: Score::mean(workloads.values()),
        helped: Score::mean(by_workload(&is_helped).values()),
        alone: Score::mean(by_workload(&|row| !is_helped(row)).values()),
        workloads,
        calibrated,
    };
    (scored, start)
}

fn gain(ours: f64, theirs: f64) -> f64 {
    if theirs > 0.0 { 1.0 - ours / theirs } else { 0.0 }
}

/// Where the gain lies when the runs of each workload are drawn anew: rows of one run resemble each other, so that runs
/// are what there are many of.
fn interval(rows: &[Row], ours: &[Estimate], theirs: &[Estimate], seed: u64) -> (f64, f64) {
    let mean = |said: &Estimate, seen: f32| {
        QUANTILES.iter().zip(said.loss).map(|(level, said)| pinball(*level, said, seen)).sum::<f64>() / LEVELS as f64
    };
    // Workload, run: rows and both sums.
    let mut sums = BTreeMap::<&str, BTreeMap<&str, (f64, f64, f64)>>::new();
    for ((row, ours), theirs) in rows.iter().zip(ours).zip(theirs) {
        let sum = sums.entry(&row.workload).or_default().entry(&row.run).or_default();
        *sum = (sum.0 + 1.0, sum.1 + mean(ours, row.loss), sum.2 + mean(theirs, row.loss));
    }
    let workloads: Vec<Vec<(f64, f64, f64)>> = sums.into_values().map(|w| w.into_values().collect()).collect();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut gains: Vec<f64> = (0..DRAWS)
        .map(|_| {
            let (mut ours, mut theirs) = (0.0, 0.0);
            for runs in &workloads {
                let (mut count, mut a, mut b) = (0.0, 0.0, 0.0);
                for _ in runs {
                    let run = runs[random.random_range(0..runs.len())];
                    (count, a, b) = (count + run.0, a + run.1, b + run.2);
                }
                (ours, theirs) = (ours + a / count, theirs + b / count);
            }
            gain(ours, theirs)
        })
        .collect();
    gains.sort_by(f64::total_cmp);
    (gains[OUTSIDE], gains[DRAWS - 1 - OUTSIDE])
}

/// What a predictor says of rows, each at the size it had. What it does not answer counts as certain loss: silence must
/// not pay.
pub(crate) fn estimates(predictor: &mut dyn Predictor, rows: &[&Row]) -> Vec<Estimate> {
    let queries: Vec<Query<'_>> =
        rows.iter().map(|row| Query { window: &row.window, candidates: &row.candidate }).collect();
    let worst = Estimate { loss: [1.0; LEVELS], pressure: 1.0 };
    let answer = |a: Option<Vec<Estimate>>| a.and_then(|a| a.first().copied()).unwrap_or(worst);
    predictor.estimate(&queries).into_iter().map(answer).collect()
}

impl Timing {
    /// Measures a predictor on windows and candidates that were really seen.
    pub(crate) fn of(predictor: &mut dyn Predictor, rows: &[Row]) -> Self {
        const SIZES: usize = 16;
        let candidates: Vec<Vec<f32>> = (0..rows.len().min(1000))
            .map(|i| (0..SIZES).flat_map(|k| rows[(i + k) % rows.len()].candidate.iter().copied()).collect())
            .collect();
        let query = |i: usize| {
            let at = i % candidates.len();
            Query { window: &rows[at].window, candidates: &candidates[at] }
        };
        let mut measure = |queries: &[Query<'_>]| {
            let begin = Instant::now();
            std::hint::black_box(predictor.estimate(std::hint::black_box(queries)));
            begin.elapsed().as_secs_f64()
        };
        let thousand: Vec<Query<'_>> = (0..1000).map(query).collect();
        let mut one: Vec<f64> = (0..5000).map(|i| measure(&[query(i)])).collect();
        let mut all: Vec<f64> = (0..20).map(|_| measure(&thousand)).collect();
        one.sort_by(f64::total_cmp);
        all.sort_by(f64::total_cmp);
        Self {
            one_median_us: one[one.len() / 2] * 1e6,
            one_p99_us: one[one.len() * 99 / 100] * 1e6,
            thousand_ms: all[all.len() / 2] * 1e3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(workload: &str, loss: f32, pressure: bool) -> Row {
        Row {
            run: workload.into(),
            workload: workload.into(),
            guest: String::new(),
            at_s: 0.0,
            window: vec![],
            candidate: vec![],
            size_mib: 0,
            loss,
            pressure,
        }
    }

    #[test]
    fn pinball_weighs_the_sides() {
        assert!((pinball(0.9, 0.2, 0.3) - 0.09).abs() < 1e-6);
        assert!((pinball(0.9, 0.3, 0.2) - 0.01).abs() < 1e-6);
    }

    #[test]
    fn workloads_count_alike_whatever_their_rows() {
        let mut rows = vec![row("small", 1.0, true)];
        rows.extend((0..9).map(|_| row("large", 0.0, false)));
        let nothing = vec![Estimate::default(); 10];
        let right: Vec<Estimate> = rows
            .iter()
            .map(|r| Estimate { loss: [r.loss; LEVELS], pressure: f32::from(u8::from(r.pressure)) })
            .collect();
        let (scores, _) = Scores::of(&rows, None, &[("ours".into(), right), ("nothing".into(), nothing)], 1);
        let nothing = scores.named("nothing").unwrap();
        assert_eq!(nothing.workloads["large"].mean_pinball, 0.0);
        assert!((nothing.workloads["small"].pinball[1] - 0.9).abs() < 1e-6);
        assert!((nothing.mean.pinball[1] - 0.45).abs() < 1e-6);
        assert_eq!(nothing.mean.coverage, [0.5; LEVELS]);
        assert!((nothing.mean.brier - 0.5).abs() < 1e-9);
        assert_eq!(nothing.mean.rows, 10);
        assert_eq!((scores.gain, scores.gain_interval, scores.best_baseline.as_str()), (1.0, (1.0, 1.0), "nothing"));
    }
}
