//! Training: every workload is held out once, and the network is scored on it beside its rivals.
//!
//! ```text
//!   workloads ── folds ──> for each: one part to score, the next to stop early by, the rest to learn from
//!                            └─ network (an ensemble) and baselines ── what they say of the part they did not see ──> scores
//!   all rows ── as many passes as the folds took, median ──> the model that is shipped
//! ```
//! Rows of one workload resemble each other, so that held-out *rows* would only show how well a predictor remembers.
//! The same seed gives the same file: all drawing is ours, and the backend sums in one order.

use crate::model::Scale;
use crate::network::{Shape, Units, matrix};
use crate::scores::{Timing, estimates};
use crate::{Dataset, Estimate, LEVELS, Model, ModelError, Network, Origin, QUANTILES, Row, Schema, Scores, baselines};
use ballast_planner::Correction;
use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::activation::softplus;
use burn::tensor::{Device, Tensor};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Instant;
use thiserror::Error;

/// How much the error of pressure counts beside the pinball loss, which is some ten times smaller.
const PRESSURE: f64 = 0.05;
/// Ids of a network's parameters begin at multiples of this.
const IDS: u64 = 16;

/// How to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Everything that is drawn comes from it.
    pub seed: u64,
    /// Into how many parts the workloads go, at most one for each.
    pub folds: usize,
    /// How many parts stop a training early, while one is held out to be scored on.
    pub stoppers: usize,
    /// Networks that are averaged, one at least.
    pub members: usize,
    /// Width of the layers.
    pub hidden: usize,
    /// Steps of a curve.
    pub steps: usize,
    /// Passes over the rows, at most.
    pub epochs: usize,
    /// Passes without improvement before it stops.
    pub patience: usize,
    /// Rows that are learned from at once.
    pub batch: usize,
    /// How far a step goes, at first.
    pub rate: f64,
    /// Decay of weights.
    pub decay: f32,
    /// The part of a window's columns that each row is learned without (taken for the mean), so that none is relied upon.
    pub dropout: f32,
}

/// Chosen on recorded rows (1657, of which 1520 ship; twelve workloads) by the mean pinball loss of three seeds, in thousandths: 15.5, as
/// that of three neighbours that were tried (six networks half as wide take twice as long to predict). What counts more is what none of them has: wide layers, hardly any decay and no dropout
/// were worse by a tenth on the first 946 rows; and one unit for all losses (17.1).
impl Default for Settings {
    fn default() -> Self {
        Self {
            seed: 1,
            folds: 12,
            stoppers: 3,
            members: 3,
            hidden: 24,
            steps: 8,
            epochs: 120,
            patience: 20,
            batch: 32,
            rate: 3e-3,
            decay: 2.0,
            dropout: 0.2,
        }
    }
}

/// A training that cannot be.
#[derive(Debug, Error)]
pub enum TrainError {
    /// There is nothing to hold out.
    #[error(
        "{found} workloads ({names}): three are needed, one to learn from, one to stop by and one to score on; \
         collect more"
    )]
    Workloads {
        /// How many there are.
        found: usize,
        /// Which.
        names: String,
    },
    /// A column is missing altogether.
    #[error("the dataset has no {0} columns")]
    Columns(&'static str),
    /// The trees' crate refuses the data.
    #[error("boosting: {0}")]
    Boosting(String),
    /// The model cannot be packed.
    #[error("model")]
    Model(#[from] ModelError),
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Parts that are done.
    pub done: u64,
    /// Of so many.
    pub total: u64,
    /// What is being done.
    pub doing: String,
}

/// How one network learned.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fit {
    /// The workloads that it was stopped by; none for the networks that are shipped.
    pub stopped_by: Vec<String>,
    /// The error after each pass: on what it learns from, and on what it is stopped by.
    pub epochs: Vec<(f64, Option<f64>)>,
    /// The pass whose weights were kept, from 1.
    pub best: usize,
}

/// What came of it.
#[derive(Debug)]
pub struct Trained {
    /// The model to ship.
    pub model: Model,
    /// The table.
    pub scores: Scores,
    /// What each predictor said of each row while its workload was held out; the network first.
    pub said: Vec<(String, Vec<Estimate>)>,
    /// How the networks learned, those of the folds and then those that are shipped.
    pub fits: Vec<Fit>,
    /// How long the model takes to predict.
    pub timing: Timing,
    /// How long it all took, seconds.
    pub took_s: f64,
}

impl Trained {
    /// What came out, in a sentence.
    #[must_use]
    pub fn finding(&self) -> String {
        let scores = &self.scores;
        let percent = |v: f64| format!("{:.0} %", v * 100.0);
        let (low, high) = scores.gain_interval;
        let interval = format!("{}; 90 % interval {} to {}", scores.best_baseline, percent(low), percent(high));
        if scores.gain > 0.0 {
            format!(
                "On workloads it has not seen, the network's pinball loss is {} lower than that of the best simple \
                 predictor ({interval}).",
                percent(scores.gain)
            )
        } else {
            format!(
                "On workloads it has not seen, the network's pinball loss is {} HIGHER than that of the best simple \
                 predictor ({interval}): it should not be shipped.",
                percent(-scores.gain)
            )
        }
    }
}

/// Trains a model and scores it and its rivals.
///
/// # Errors
/// There are too few workloads, or the data is refused.
pub fn train(data: &Dataset, settings: &Settings, progress: &mut dyn FnMut(&Progress)) -> Result<Trained, TrainError> {
    let begin = Instant::now();
    let folds = folds(data, settings)?;
    let schema = data.manifest.schema();
    let shape = Shape {
        window: schema.window.len(),
        candidate: schema.candidate.len(),
        hidden: settings.hidden,
        steps: settings.steps,
    };
    let mut state = State::new(settings, folds.len(), progress);
    let mut said: Vec<(String, Vec<Estimate>)> = Vec::new();
    for (i, fold) in folds.iter().enumerate() {
        // At least one part to learn from is left.
        let stoppers = settings.stoppers.clamp(1, folds.len() - 2);
        let next: Vec<String> = (1..=stoppers).flat_map(|n| folds[(i + n) % folds.len()].iter().cloned()).collect();
        let part = |of: &dyn Fn(&str) -> bool| -> Vec<&Row> { data.rows.iter().filter(|r| of(&r.workload)).collect() };
        let has = |fold: &[String], workload: &str| fold.iter().any(|w| w == workload);
        let train = part(&|w| !has(fold, w) && !has(&next, w));
        let valid = part(&|w| has(&next, w));
        let test = part(&|w| has(fold, w));
        state.doing = format!("holding out {}", fold.join(", "));
        let scales = scales(&train, shape);
        let units = units(&schema, &train);
        let (train_table, valid_table) = (Table::of(&train, &scales, units), Table::of(&valid, &scales, units));
        let members = (0..settings.members)
            .map(|m| {
                let seed = settings.seed.wrapping_add((i * settings.members + m) as u64 + 1);
                let ids = m as u64 * IDS;
                state.fit(&train_table, Some((&valid_table, next.as_slice())), shape, (seed, ids), settings.epochs)
            })
            .collect();
        let mut network =
            Model::new(schema.clone(), shape, scales, train_table.units, Origin::default(), Correction::NONE, members);
        keep(&mut said, "network", &data.rows, &test, estimates(&mut network, &test));
        for mut baseline in baselines::fit_all(&schema, &train, &valid, settings.seed)? {
            let answer = estimates(baseline.as_mut(), &test);
            keep(&mut said, baseline.name(), &data.rows, &test, answer);
        }
        state.part_done();
    }
    let mut bests: Vec<usize> = state.fits.iter().map(|f| f.best).collect();
    bests.sort_unstable();
    let epochs = bests[bests.len() / 2];
    let rows: Vec<&Row> = data.rows.iter().collect();
    let scales = scales(&rows, shape);
    let table = Table::of(&rows, &scales, units(&schema, &rows));
    "all workloads".clone_into(&mut state.doing);
    let members = (0..settings.members)
        .map(|m| state.fit(&table, None, shape, (settings.seed.wrapping_add(1000 + m as u64), m as u64 * IDS), epochs))
        .collect();
    let fits = std::mem::take(&mut state.fits);
    let manifest = &data.manifest;
    let origin = Origin {
        data_made: manifest.made.clone(),
        kernel: manifest.kernel.clone(),
        image: manifest.image.clone(),
        machine: manifest.machine.clone(),
        rows: data.rows.len() as u64,
        workloads: data.workloads().into_iter().map(str::to_owned).collect(),
        seed: settings.seed,
        epochs: epochs as u64,
    };
    let answered = data.manifest.window_names.iter().position(|name| name == "answered");
    let (scores, start) = Scores::of(&data.rows, answered, &said, settings.seed);
    let mut model = Model::new(schema, shape, scales, table.units, origin, start, members);
    let timing = Timing::of(&mut model, &data.rows);
    Ok(Trained { model, scores, said, fits, timing, took_s: begin.elapsed().as_secs_f64() })
}

/// Puts what a predictor said of a part's rows where those rows are among all.
fn keep(said: &mut Vec<(String, Vec<Estimate>)>, name: &str, rows: &[Row], part: &[&Row], answers: Vec<Estimate>) {
    let at = said.iter().position(|(n, _)| n == name).unwrap_or_else(|| {
        said.push((name.to_owned(), vec![Estimate::default(); rows.len()]));
        said.len() - 1
    });
    // Both are in the order of the dataset.
    let mut answers = part.iter().zip(answers).peekable();
    for (row, said) in rows.iter().zip(&mut said[at].1) {
        if let Some((_, answer)) = answers.next_if(|(of, _)| std::ptr::eq(**of, row)) {
            *said = answer;
        }
    }
}

/// The workloads in parts, drawn by the seed.
fn folds(data: &Dataset, settings: &Settings) -> Result<Vec<Vec<String>>, TrainError> {
    let mut workloads: Vec<String> = data.workloads().into_iter().map(str::to_owned).collect();
    if workloads.len() < 3 {
        return Err(TrainError::Workloads { found: workloads.len(), names: workloads.join(", ") });
    }
    for (what, names) in [("window", &data.manifest.window_names), ("candidate", &data.manifest.candidate_names)] {
        if names.is_empty() {
            return Err(TrainError::Columns(what));
        }
    }
    workloads.shuffle(&mut ChaCha8Rng::seed_from_u64(settings.seed));
    let count = settings.folds.clamp(3, workloads.len());
    let mut folds = vec![Vec::new(); count];
    for (i, workload) in workloads.into_iter().enumerate() {
        folds[i % count].push(workload);
    }
    Ok(folds)
}

/// A row's window and candidate, one after the other.
pub(crate) fn columns(row: &Row) -> Vec<f32> {
    [row.window.as_slice(), &row.candidate].concat()
}

/// What each row counts, so that workloads count alike; 1 on the average.
pub(crate) fn weights(rows: &[&Row]) -> Vec<f32> {
    let mut counts = BTreeMap::<&str, usize>::new();
    for row in rows {
        *counts.entry(&row.workload).or_default() += 1;
    }
    let share = rows.len() as f64 / counts.len().max(1) as f64;
    rows.iter().map(|row| (share / counts[row.workload.as_str()] as f64) as f32).collect()
}

fn scales(rows: &[&Row], shape: Shape) -> (Scale, Scale) {
    (
        Scale::of(rows.iter().map(|r| r.window.as_slice()), shape.window),
        Scale::of(rows.iter().map(|r| r.candidate.as_slice()), shape.candidate),
    )
}

fn units(schema: &Schema, rows: &[&Row]) -> Units {
    Units::of(schema, rows.iter().map(|r| (r.window.as_slice(), r.loss)))
}

/// Rows as numbers, scaled.
struct Table {
    rows: usize,
    window: Vec<f32>,
    candidate: Vec<f32>,
    loss: Vec<f32>,
    pressure: Vec<f32>,
    weight: Vec<f32>,
    /// Each row's.
    unit: Vec<f32>,
    units: Units,
}

impl Table {
    fn of(rows: &[&Row], (window, candidate): &(Scale, Scale), units: Units) -> Self {
        let mut table = Self {
            rows: rows.len(),
            window: Vec::new(),
            candidate: Vec::new(),
            loss: rows.iter().map(|r| r.loss).collect(),
            pressure: rows.iter().map(|r| f32::from(u8::from(r.pressure))).collect(),
            weight: weights(rows),
            unit: rows.iter().map(|r| units.at(&r.window)).collect(),
            units,
        };
        for row in rows {
            window.apply(&row.window, &mut table.window);
            candidate.apply(&row.candidate, &mut table.candidate);
        }
        table
    }

    /// The rows of these numbers as tensors.
    fn batch(&self, rows: &[usize], device: &Device, keep: &mut dyn FnMut() -> bool) -> Batch {
        let picked = |from: &[f32], keep: &mut dyn FnMut() -> bool| {
            let columns = from.len() / self.rows.max(1);
            let values = rows.iter().flat_map(|r| &from[r * columns..(r + 1) * columns]);
            matrix(values.map(|v| if keep() { *v } else { 0.0 }).collect(), rows.len(), columns, device)
        };
        let pick = |from: &[f32]| picked(from, &mut || true);
        Batch {
            window: picked(&self.window, keep),
            candidate: pick(&self.candidate),
            loss: pick(&self.loss),
            pressure: pick(&self.pressure),
            weight: pick(&self.weight),
            unit: pick(&self.unit),
        }
    }
}

#[derive(Clone)]
struct Batch {
    window: Tensor<2>,
    candidate: Tensor<2>,
    loss: Tensor<2>,
    pressure: Tensor<2>,
    weight: Tensor<2>,
    unit: Tensor<2>,
}

impl Batch {
    /// What is to be made small: pinball loss of all quantiles, and the logarithmic loss of pressure.
    fn error(self, network: &Network) -> Tensor<1> {
        let levels = |less: f32| {
            let levels = QUANTILES.iter().map(|q| q - less).collect();
            matrix(levels, 1, LEVELS, &self.window.device())
        };
        let (above, below) = (levels(0.0), levels(1.0));
        let curves = network.forward(self.window, self.candidate, self.unit.clone());
        let error = (self.loss - curves.loss) / self.unit;
        let pinball = (error.clone() * above).max_pair(error * below).mean_dim(1);
        let pressure = softplus(curves.pressure.clone(), 1.0) - self.pressure * curves.pressure;
        ((pinball + pressure.mul_scalar(PRESSURE)) * self.weight).mean()
    }
}

/// A training under way.
struct State<'a> {
    settings: &'a Settings,
    progress: &'a mut dyn FnMut(&Progress),
    parts: usize,
    parts_done: usize,
    doing: String,
    fits: Vec<Fit>,
}

impl<'a> State<'a> {
    fn new(settings: &'a Settings, folds: usize, progress: &'a mut dyn FnMut(&Progress)) -> Self {
        // Each fold's networks and its baselines, then the networks that are shipped.
        let parts = folds * (settings.members + 1) + settings.members;
        Self { settings, progress, parts, parts_done: 0, doing: String::new(), fits: Vec::new() }
    }

    fn report(&mut self, epochs: usize) {
        let whole = self.settings.epochs.max(1);
        let done = (self.parts_done * whole + epochs.min(whole)) as u64;
        (self.progress)(&Progress { done, total: (self.parts * whole) as u64, doing: self.doing.clone() });
    }

    fn part_done(&mut self) {
        self.parts_done += 1;
        self.report(0);
    }

    /// Trains one network for at most `epochs` passes. With something to be stopped by, the weights of its best pass are
    /// kept; without, those of the last.
    fn fit(
        &mut self,
        train: &Table,
        valid: Option<(&Table, &[String])>,
        shape: Shape,
        (seed, ids): (u64, u64),
        epochs: usize,
    ) -> Network {
        let settings = self.settings;
        let device = Device::flex().autodiff();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut network = Network::new(shape, ids, &device, &mut || random.random());
        let mut optimizer = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(settings.decay).init();
        let whole =
            valid.map(|(table, _)| table.batch(&(0..table.rows).collect::<Vec<_>>(), &Device::flex(), &mut || true));
        let mut order: Vec<usize> = (0..train.rows).collect();
        let mut fit = Fit { stopped_by: valid.map(|(_, names)| names.to_vec()).unwrap_or_default(), ..Fit::default() };
        let (mut best, mut lowest) = (network.valid(), f64::INFINITY);
        for epoch in 1..=epochs {
            order.shuffle(&mut random);
            // The rate falls with the passes that there may be, not with those that there are: the networks that are
            // shipped, which stop at a given pass, go the way that those of the folds went.
            let turn = std::f64::consts::PI * (epoch - 1) as f64 / settings.epochs as f64;
            let rate = settings.rate * 0.5 * (1.0 + turn.cos());
            let mut sum = 0.0;
            for rows in order.chunks(settings.batch) {
                let mut keep = || settings.dropout <= 0.0 || random.random::<f32>() >= settings.dropout;
                let error = train.batch(rows, &device, &mut keep).error(&network);
                let slopes = GradientsParams::from_grads(error.backward(), &network);
                sum += scalar(error) * rows.len() as f64;
                network = optimizer.step(rate, network, slopes);
            }
            let frozen = network.valid();
            let seen = whole.as_ref().map(|batch| scalar(batch.clone().error(&frozen)));
            fit.epochs.push((sum / train.rows.max(1) as f64, seen));
            self.report(epoch);
            if seen.is_none_or(|seen| seen < lowest) {
                lowest = seen.unwrap_or(lowest);
                (best, fit.best) = (frozen, epoch);
            } else if epoch >= fit.best + settings.patience {
                break;
            }
        }
        self.fits.push(fit);
        self.part_done();
        best
    }
}

fn scalar(tensor: Tensor<1>) -> f64 {
    f64::from(tensor.into_scalar::<f32>())
}
