//! Predicts how much service a VM loses in the next seconds if it keeps only so much memory.
//!
//! ```text
//!   training:  DIR/rows.jsonl ── Dataset ── train ──> Model ──> weights/ballast.model, card, report
//!   running:   planner's features ── Model ──> curve: size -> quantiles of loss, probability of pressure ──> planner
//! ```
//! The model stands outside the planner: its answer is an input like any other, journalled, checked and bounded
//! there, so that a wrong, slow or missing model can break no promise. Of itself it promises that quantiles do not
//! cross and that more memory never predicts more loss, whatever its weights are ([`Network`]).
//!
//! It is a crate of its own because nothing else may depend on Burn: the planner is pure, and the guest agent small.

#![forbid(unsafe_code)]

mod data;
mod forecast;
mod model;
mod network;

#[cfg(feature = "train")]
mod baselines;
#[cfg(feature = "train")]
mod calibrated;
#[cfg(feature = "train")]
mod card;
#[cfg(feature = "train")]
mod report;
#[cfg(feature = "train")]
mod scores;
#[cfg(feature = "train")]
mod train;

pub use data::{DataError, Dataset, MANIFEST, Manifest, ROWS, Row, RunInfo, Schema};
pub use model::{Model, ModelError, Origin};
pub use network::Network;

#[cfg(feature = "train")]
pub use baselines::{Boosting, Constant, LastValue, Linear};
#[cfg(feature = "train")]
pub use calibrated::Calibrated;
#[cfg(feature = "train")]
pub use card::card;
#[cfg(feature = "train")]
pub use report::page;
#[cfg(feature = "train")]
pub use scores::{Score, Scored, Scores, Timing};
#[cfg(feature = "train")]
pub use train::{Fit, Progress, Settings, TrainError, Trained, train};

pub use ballast_planner::QUANTILES;
use ballast_planner::{Correction, Features, Point};

/// How many quantiles of the loss are predicted.
pub const LEVELS: usize = QUANTILES.len();

/// What a predictor is asked: the state of a VM and the sizes it might keep.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The window, in the order of [`Schema::window`].
    pub window: &'a [f32],
    /// One candidate after the other, each in the order of [`Schema::candidate`].
    pub candidates: &'a [f32],
}

/// What a predictor says of one size.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// The loss by [`QUANTILES`], 0 to 1.
    pub loss: [f32; LEVELS],
    /// The probability of pressure, 0 to 1.
    pub pressure: f32,
}

/// Something that predicts: the network, and what it is compared with.
pub trait Predictor: Send {
    /// Its short name, as in the table of scores.
    fn name(&self) -> &str;

    /// Where the calibration of a VM begins of which nothing is known yet.
    fn start(&self) -> Correction {
        Correction::NONE
    }

    /// An estimate for each candidate of each query. `None` for a query with a value that is not a number, or with
    /// another number of columns than it was trained on.
    fn estimate(&mut self, queries: &[Query<'_>]) -> Vec<Option<Vec<Estimate>>>;

    /// The points of a forecast for each VM, by ascending size. `None` where [`Self::estimate`] has no answer.
    fn predict(&mut self, features: &[Features]) -> Vec<Option<Vec<Point>>> {
        forecast::points(self, features)
    }
}
