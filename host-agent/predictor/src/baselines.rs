//! What the network must beat: four simple predictors behind the same trait, fitted on the same rows and scored in the
//! same table.
//!
//! - [`Constant`]: the quantiles of all outcomes, whatever the window and the size.
//! - [`LastValue`]: the quantiles of outcomes after a window that had lost about as much.
//! - [`Linear`]: quantile regression (Koenker and Bassett 1978) and logistic regression.
//! - [`Boosting`]: gradient-boosted trees with pinball loss.
//!
//! None of them is held to fall with the size; crossed quantiles are put in order.

use crate::model::Scale;
use crate::scores::pinball;
use crate::train::{TrainError, columns, weights};
use crate::{Estimate, LEVELS, Predictor, QUANTILES, Query, Row, Schema};
use hessboost::config::{LeafEstimation, TrainingParams};
use hessboost::data::DMatrix;
use hessboost::model::{BoostedModel, Iterations};
use hessboost::objective::{Objective, Quantiles, RegLoss};
use hessboost::training::Trainer;
use std::num::NonZeroUsize;

/// Fits all of them. `valid` is what those that learn in rounds stop by.
pub(crate) fn fit_all(
    schema: &Schema,
    train: &[&Row],
    valid: &[&Row],
    seed: u64,
) -> Result<Vec<Box<dyn Predictor>>, TrainError> {
    let mut all: Vec<Box<dyn Predictor>> = vec![Box::new(Constant::fit(train))];
    if let Some(last) = LastValue::fit(schema, train) {
        all.push(Box::new(last));
    }
    all.push(Box::new(Linear::fit(train, valid)));
    all.push(Box::new(Boosting::fit(train, valid, seed).map_err(|e| TrainError::Boosting(e.to_string()))?));
    Ok(all)
}

/// Answers for queries whose columns are right, each from one row of columns.
fn answers(
    queries: &[Query<'_>],
    (window, candidate): (usize, usize),
    mut each: impl FnMut(&[f32], &[f32]) -> Estimate,
) -> Vec<Option<Vec<Estimate>>> {
    let answer = |q: &Query<'_>| {
        let sound = q.window.len() == window
            && q.candidates.len().is_multiple_of(candidate.max(1))
            && q.window.iter().chain(q.candidates).all(|v| v.is_finite());
        sound.then(|| q.candidates.chunks_exact(candidate.max(1)).map(|c| each(q.window, c)).collect())
    };
    queries.iter().map(answer).collect()
}

fn width(rows: &[&Row]) -> (usize, usize) {
    rows.first().map_or((0, 0), |row| (row.window.len(), row.candidate.len()))
}

/// Losses as probabilities are, and in order.
fn in_order(mut loss: [f32; LEVELS]) -> [f32; LEVELS] {
    let mut highest = 0.0_f32;
    for value in &mut loss {
        highest = highest.max(value.clamp(0.0, 1.0));
        *value = highest;
    }
    loss
}

/// The outcomes' quantiles and the part of them with pressure, by weight.
fn quantiles(outcomes: &mut [(f32, bool, f32)]) -> Estimate {
    outcomes.sort_by(|a, b| a.0.total_cmp(&b.0));
    let all: f64 = outcomes.iter().map(|o| f64::from(o.2)).sum();
    let mut estimate = Estimate::default();
    for (level, loss) in QUANTILES.iter().zip(&mut estimate.loss) {
        let mut below = 0.0;
        let reached = |o: &&(f32, bool, f32)| {
            below += f64::from(o.2);
            below >= f64::from(*level) * all
        };
        *loss = outcomes.iter().find(reached).or(outcomes.last()).map_or(0.0, |o| o.0);
    }
    let pressed: f64 = outcomes.iter().filter(|o| o.1).map(|o| f64::from(o.2)).sum();
    estimate.pressure = if all > 0.0 { (pressed / all) as f32 } else { 0.0 };
    estimate
}

/// The same for every VM and size.
#[derive(Clone, Debug)]
pub struct Constant {
    width: (usize, usize),
    estimate: Estimate,
}

impl Constant {
    /// Fits it.
    #[must_use]
    pub fn fit(train: &[&Row]) -> Self {
        let mut outcomes: Vec<_> =
            train.iter().zip(weights(train)).map(|(row, weight)| (row.loss, row.pressure, weight)).collect();
        Self { width: width(train), estimate: quantiles(&mut outcomes) }
    }
}

impl Predictor for Constant {
    fn name(&self) -> &'static str {
        "constant"
    }

    fn estimate(&mut self, queries: &[Query<'_>]) -> Vec<Option<Vec<Estimate>>> {
        answers(queries, self.width, |_, _| self.estimate)
    }
}

/// What was lost goes on to be lost. Windows are sorted into bins by what they lost themselves, none being a bin of its
/// own, and each bin has its own quantiles.
#[derive(Clone, Debug)]
pub struct LastValue {
    width: (usize, usize),
    column: usize,
    /// Upper ends of the bins and what they say; the last has no end.
    bins: Vec<(f32, Estimate)>,
}

impl LastValue {
    /// The column that says what the last horizon lost.
    const COLUMN: &str = "stall_10s";
    /// Fewest rows that make a bin.
    const ROWS: usize = 20;
    /// Bins beside the one of windows that lost nothing.
    const BINS: usize = 4;

    /// Fits it. `None` when no column says what the window lost.
    #[must_use]
    pub fn fit(schema: &Schema, train: &[&Row]) -> Option<Self> {
        let column = schema.window.iter().position(|name| name == Self::COLUMN)?;
        let mut rows: Vec<(f32, (f32, bool, f32))> = train
            .iter()
            .zip(weights(train))
            .map(|(row, weight)| (row.window[column], (row.loss, row.pressure, weight)))
            .collect();
        rows.sort_by(|a, b| a.0.total_cmp(&b.0));
        let none = rows.partition_point(|r| r.0 <= 0.0);
        let step = ((rows.len() - none) / Self::BINS).max(Self::ROWS);
        let ends = [none].into_iter().chain((none + step..rows.len()).step_by(step)).chain([rows.len()]);
        let (mut bins, mut from) = (Vec::new(), 0);
        for end in ends {
            // A bin that is too small goes with the next; the last one takes what is left.
            if end - from < Self::ROWS && end < rows.len() || end == from {
                continue;
            }
            let mut outcomes: Vec<_> = rows[from..end].iter().map(|r| r.1).collect();
            bins.push((rows[end - 1].0, quantiles(&mut outcomes)));
            from = end;
        }
        Some(Self { width: width(train), column, bins })
    }
}

impl Predictor for LastValue {
    fn name(&self) -> &'static str {
        "last value"
    }

    fn estimate(&mut self, queries: &[Query<'_>]) -> Vec<Option<Vec<Estimate>>> {
        answers(queries, self.width, |window, _| {
            let bin = self.bins.iter().find(|(end, _)| window[self.column] <= *end).or(self.bins.last());
            bin.map_or_else(Estimate::default, |bin| bin.1)
        })
    }
}

/// Straight lines: one for each quantile, and one for the logarithm of the odds of pressure.
#[derive(Clone, Debug)]
pub struct Linear {
    width: (usize, usize),
    scale: Scale,
    /// For each output its bias, then a weight for each column.
    weights: Vec<Vec<f64>>,
}

impl Linear {
    const OUTPUTS: usize = LEVELS + 1;
    /// Steps over all rows.
    const STEPS: usize = 600;
    /// How often the held-out rows are looked at.
    const LOOK: usize = 20;
    const RATE: f64 = 0.02;
    /// L2, so that columns that say the same share their weight.
    const DECAY: f64 = 1e-4;

    /// Fits it by Adam on all rows, and keeps the weights that are best on `valid`.
    #[must_use]
    pub fn fit(train: &[&Row], valid: &[&Row]) -> Self {
        let width = width(train);
        let inputs: Vec<Vec<f32>> = train.iter().map(|row| columns(row)).collect();
        let scale = Scale::of(inputs.iter().map(Vec::as_slice), width.0 + width.1);
        let scaled: Vec<Vec<f32>> = inputs.iter().map(|row| scaled(&scale, row)).collect();
        let importance = weights(train);
        let count = 1 + width.0 + width.1;
        let start = Constant::fit(train).estimate;
        let mut now = Self { width, scale, weights: vec![vec![0.0; count]; Self::OUTPUTS] };
        for (weights, loss) in now.weights.iter_mut().zip(start.loss) {
            weights[0] = f64::from(loss);
        }
        let (mut best, mut lowest) = (now.clone(), now.error(valid));
        let mut moments = vec![vec![(0.0_f64, 0.0_f64); count]; Self::OUTPUTS];
        for step in 1..=Self::STEPS {
            let mut slopes = vec![vec![0.0; count]; Self::OUTPUTS];
            for ((row, x), importance) in train.iter().zip(&scaled).zip(&importance) {
                for (output, slopes) in slopes.iter_mut().enumerate() {
                    let slope = now.slope(output, x, row) * f64::from(*importance) / train.len() as f64;
                    slopes[0] += slope;
                    slopes[1..].iter_mut().zip(x).for_each(|(sum, x)| *sum += slope * f64::from(*x));
                }
            }
            let rate = Self::RATE * 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / Self::STEPS as f64).cos());
            now.step(&slopes, &mut moments, rate, step);
            if step % Self::LOOK == 0 {
                let error = now.error(valid);
                if error < lowest {
                    (best, lowest) = (now.clone(), error);
                }
            }
        }
        best
    }

    fn value(&self, output: usize, x: &[f32]) -> f64 {
        let weights = &self.weights[output];
        weights[0] + weights[1..].iter().zip(x).map(|(w, x)| w * f64::from(*x)).sum::<f64>()
    }

    /// How the error of one row changes with an output.
    fn slope(&self, output: usize, x: &[f32], row: &Row) -> f64 {
        let value = self.value(output, x);
        match QUANTILES.get(output) {
            Some(level) if f64::from(row.loss) > value => -f64::from(*level),
            Some(level) => 1.0 - f64::from(*level),
            None => 1.0 / (1.0 + (-value).exp()) - f64::from(u8::from(row.pressure)),
        }
    }

    /// A step of Adam (Kingma and Ba 2015) with its usual constants.
    fn step(&mut self, slopes: &[Vec<f64>], moments: &mut [Vec<(f64, f64)>], rate: f64, step: usize) {
        let power = i32::try_from(step).unwrap_or(i32::MAX);
        let (first, second) = (1.0 - 0.9_f64.powi(power), 1.0 - 0.999_f64.powi(power));
        for ((weights, slopes), moments) in self.weights.iter_mut().zip(slopes).zip(moments) {
            for (i, (weight, (m, v))) in weights.iter_mut().zip(moments).enumerate() {
                let slope = slopes[i] + if i > 0 { Self::DECAY * *weight } else { 0.0 };
                *m = 0.9 * *m + 0.1 * slope;
                *v = 0.999 * *v + 0.001 * slope * slope;
                *weight -= rate * (*m / first) / ((*v / second).sqrt() + 1e-8);
            }
        }
    }

    fn error(&self, rows: &[&Row]) -> f64 {
        let importance = weights(rows);
        let error = |row: &Row| {
            let said = self.say(&columns(row));
            let levels = QUANTILES.iter().zip(said.loss).map(|(level, said)| pinball(*level, said, row.loss));
            levels.sum::<f64>() / LEVELS as f64
                + 0.05 * (f64::from(said.pressure) - f64::from(u8::from(row.pressure))).powi(2)
        };
        rows.iter().zip(importance).map(|(row, weight)| error(row) * f64::from(weight)).sum()
    }

    fn say(&self, row: &[f32]) -> Estimate {
        let x = scaled(&self.scale, row);
        let loss = std::array::from_fn(|q| self.value(q, &x) as f32);
        Estimate { loss: in_order(loss), pressure: (1.0 / (1.0 + (-self.value(LEVELS, &x)).exp())) as f32 }
    }
}

fn scaled(scale: &Scale, row: &[f32]) -> Vec<f32> {
    let mut to = Vec::with_capacity(row.len());
    scale.apply(row, &mut to);
    to
}

impl Predictor for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn estimate(&mut self, queries: &[Query<'_>]) -> Vec<Option<Vec<Estimate>>> {
        answers(queries, self.width, |window, candidate| self.say(&[window, candidate].concat()))
    }
}

/// Gradient-boosted trees.
#[derive(Debug)]
pub struct Boosting {
    width: (usize, usize),
    loss: BoostedModel,
    pressure: BoostedModel,
}

impl Boosting {
    /// More rounds than any fit takes: the held-out workload stops it.
    const ROUNDS: usize = 600;
    const PATIENCE: NonZeroUsize = NonZeroUsize::new(40).expect("not zero");

    /// Fits it, and stops when `valid` gets no better.
    ///
    /// # Errors
    /// The crate refuses the data.
    pub fn fit(train: &[&Row], valid: &[&Row], seed: u64) -> hessboost::error::Result<Self> {
        let levels = Quantiles::new(QUANTILES.iter().map(|q| f64::from(*q)))?;
        let pressure = |row: &Row| f32::from(u8::from(row.pressure));
        // Each leaf says the quantile of its own rows: most losses are zero, and a step by slope and curvature never
        // quite gets there.
        let loss = Self::one(Objective::Quantile(levels), LeafEstimation::Exact, train, valid, |row| row.loss, seed)?;
        let logistic = Objective::BinaryLogistic(RegLoss::default());
        let pressure = Self::one(logistic, LeafEstimation::Newton, train, valid, pressure, seed)?;
        Ok(Self { width: width(train), loss, pressure })
    }

    fn one(
        objective: Objective,
        leaves: LeafEstimation,
        train: &[&Row],
        valid: &[&Row],
        label: impl Fn(&Row) -> f32,
        seed: u64,
    ) -> hessboost::error::Result<BoostedModel> {
        let table = |rows: &[&Row]| {
            let labels: Vec<f32> = rows.iter().map(|row| label(row)).collect();
            matrix(&rows.iter().flat_map(|row| columns(row)).collect::<Vec<f32>>(), rows.len())?
                .with_labels(&labels)?
                .with_weights(&weights(rows))
        };
        let params = TrainingParams::builder()
            .objective(objective)
            .leaf_estimation(leaves)
            .max_depth(4)
            .eta(0.05)
            .subsample(0.8)
            .colsample_bytree(0.8)
            .seed(seed)
            .build()?;
        let (train, valid) = (table(train)?, table(valid)?);
        let trainer = Trainer::new(&params, &train, Self::ROUNDS).eval(&valid, "valid");
        Ok(trainer.early_stopping_rounds(Self::PATIENCE).train()?.model)
    }
}

fn matrix(values: &[f32], rows: usize) -> hessboost::error::Result<DMatrix> {
    DMatrix::from_dense(values, rows, values.len() / rows.max(1))
}

impl Predictor for Boosting {
    fn name(&self) -> &'static str {
        "boosting"
    }

    fn estimate(&mut self, queries: &[Query<'_>]) -> Vec<Option<Vec<Estimate>>> {
        answers(queries, self.width, |window, candidate| {
            let row = [window, candidate].concat();
            let say = |model: &BoostedModel| {
                matrix(&row, 1).and_then(|row| model.predict(&row, Iterations::Best)).map(|p| p.into_vec())
            };
            // What cannot be said is the worst: silence must not pay.
            let loss = say(&self.loss).ok().and_then(|l| <[f32; LEVELS]>::try_from(l).ok()).unwrap_or([1.0; LEVELS]);
            let pressure = say(&self.pressure).ok().and_then(|p| p.first().copied()).unwrap_or(1.0);
            Estimate { loss: in_order(loss), pressure }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(of: impl Fn(usize) -> (f32, f32, f32)) -> Vec<Row> {
        let row = |i| {
            let (used, stall, loss) = of(i);
            Row {
                run: "r".into(),
                workload: "w".into(),
                guest: String::new(),
                at_s: 0.0,
                window: vec![used, stall],
                candidate: vec![(i % 7) as f32],
                size_mib: 0,
                loss,
                pressure: loss > 0.5,
            }
        };
        (0..400).map(row).collect()
    }

    fn said(predictor: &mut dyn Predictor, window: [f32; 2], candidate: f32) -> Estimate {
        let query = Query { window: &window, candidates: &[candidate] };
        predictor.estimate(&[query])[0].as_ref().unwrap()[0]
    }

    #[test]
    fn constant_has_the_quantiles() {
        let rows = rows(|i| (0.0, 0.0, i as f32 / 400.0));
        let rows: Vec<&Row> = rows.iter().collect();
        let said = said(&mut Constant::fit(&rows), [9.0, 9.0], 3.0);
        for (said, level) in said.loss.iter().zip(QUANTILES) {
            assert!((said - level).abs() < 0.01, "{said} {level}");
        }
        assert!((said.pressure - 0.5).abs() < 0.01);
    }

    #[test]
    fn last_value_tells_windows_that_lost_from_others() {
        let names = |n: &[&str]| n.iter().map(|s| (*s).to_owned()).collect();
        let schema = Schema { version: 1, window: names(&["used", "stall_10s"]), candidate: names(&["size"]) };
        let rows = rows(|i| if i % 4 == 0 { (0.0, 0.8, 0.8) } else { (0.0, 0.0, 0.0) });
        let rows: Vec<&Row> = rows.iter().collect();
        let mut last = LastValue::fit(&schema, &rows).unwrap();
        assert_eq!(said(&mut last, [0.0, 0.0], 0.0).loss, [0.0; LEVELS]);
        assert_eq!(said(&mut last, [0.0, 0.9], 0.0), Estimate { loss: [0.8; LEVELS], pressure: 1.0 });
        assert!(LastValue::fit(&Schema { window: names(&["used"]), ..schema }, &rows).is_none());
    }

    #[test]
    fn linear_and_boosting_find_what_depends_on_a_column() {
        let rows = rows(|i| ((i % 20) as f32, 0.0, (i % 20) as f32 / 20.0));
        let rows: Vec<&Row> = rows.iter().collect();
        let all: [&mut dyn Predictor; 2] =
            [&mut Linear::fit(&rows, &rows), &mut Boosting::fit(&rows, &rows, 1).unwrap()];
        for predictor in all {
            let (low, high) = (said(predictor, [2.0, 0.0], 1.0), said(predictor, [18.0, 0.0], 1.0));
            assert!(
                (low.loss[0] - 0.1).abs() < 0.08 && (high.loss[0] - 0.9).abs() < 0.08,
                "{} {low:?} {high:?}",
                predictor.name()
            );
            assert!(low.pressure < 0.2 && high.pressure > 0.8, "{} {low:?} {high:?}", predictor.name());
            assert!(low.loss.is_sorted() && high.loss.is_sorted());
        }
    }

    #[test]
    fn queries_that_do_not_fit_are_not_answered() {
        let rows = rows(|_| (0.0, 0.0, 0.0));
        let rows: Vec<&Row> = rows.iter().collect();
        let mut constant = Constant::fit(&rows);
        let short = Query { window: &[0.0], candidates: &[0.0] };
        let odd = Query { window: &[0.0, f32::NAN], candidates: &[0.0] };
        assert_eq!(constant.estimate(&[short, odd]), [None, None]);
    }
}
