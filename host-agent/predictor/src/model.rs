//! A trained model: networks that are averaged, how their inputs are scaled, and what they were trained on.
//!
//! ```text
//!   ballast-model 1\n | length of the header, u32 little-endian | header, JSON | weights, burnpack
//! ```
//! The header says which features the model means. A planner that means others must not use it: the same numbers
//! under another meaning give answers that look right. So versions and names of all columns are compared, and what
//! does not agree is refused with both sides named; the reactive law goes on without a model.

use crate::network::{Head, Shape, Units, matrix};
use crate::{Estimate, Network, Predictor, QUANTILES, Query, Schema};
use ballast_planner::Correction;
use burn::module::Module;
use burn::store::ModuleRecord;
use burn::tensor::{Bytes, Device};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use thiserror::Error;

const MAGIC: &[u8] = b"ballast-model 1\n";
/// Scaled inputs end here. What lies farther out than the training data is taken for its edge, because a network's
/// answer out there means nothing.
const EDGE: f32 = 4.0;
/// Windows that go through the layers together: what stays in a core's own cache.
const TOGETHER: usize = 256;

/// The weights that this build ships; an empty file while there are none.
static SHIPPED: &[u8] = include_bytes!("../weights/ballast.model");

/// A model that cannot be used, and why.
#[derive(Debug, Error)]
pub enum ModelError {
    /// The file is missing or unreadable.
    #[error("{}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There are no weights in this build.
    #[error("this build ships no weights; train some with `ballast-host train`")]
    NoneShipped,
    /// It is something else.
    #[error("not a model: it does not begin with \"ballast-model 1\"")]
    NotAModel,
    /// It ends too early.
    #[error("cut off: {found} bytes where the header needs {needed}")]
    CutOff {
        /// Bytes there are.
        found: usize,
        /// Bytes there should be.
        needed: usize,
    },
    /// The header is not what it must be.
    #[error("header")]
    Header(#[source] serde_json::Error),
    /// The weights are not those that were saved.
    #[error("weights are damaged: checksum {found:016x}, not {expected:016x}")]
    Damaged {
        /// Of the weights there are.
        found: u64,
        /// As the header says.
        expected: u64,
    },
    /// The weights are of another network than the header says.
    #[error("weights: {0}")]
    Weights(String),
    /// The model's quantiles are not ours.
    #[error("it predicts the quantiles {found:?}, this build wants {QUANTILES:?}; train it again")]
    Quantiles {
        /// Its.
        found: Vec<f32>,
    },
    /// The model means other features.
    #[error("it was trained on features of version {found}, this build has version {expected}; train it again")]
    Version {
        /// Its.
        found: u32,
        /// Ours.
        expected: u32,
    },
    /// The version is the same and a column is not.
    #[error("{what} {at} is {found:?} in the model and {expected:?} in this build; train it again")]
    Column {
        /// Window or candidate.
        what: &'static str,
        /// Which column, from 1.
        at: usize,
        /// Its name in the model, empty when it has no such column.
        found: String,
        /// Its name here, empty when there is no such column.
        expected: String,
    },
}

/// What a model was made from: for people, and for the record.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// When the data was made, as its manifest says.
    pub data_made: String,
    /// The guests' kernel.
    pub kernel: String,
    /// The guests' image.
    pub image: String,
    /// The machine it was collected on.
    pub machine: String,
    /// How many rows.
    pub rows: u64,
    /// The workloads.
    pub workloads: Vec<String>,
    /// The seed of the training.
    pub seed: u64,
    /// Passes over the data.
    pub epochs: u64,
}

/// Moves columns to mean 0 and deviation 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Scale {
    mean: Vec<f32>,
    /// One over the deviation; zero for a column that never changed, which then says nothing. Never negative: a
    /// candidate's order must survive.
    gain: Vec<f32>,
}

impl Scale {
    /// The scale of rows of `columns` values.
    #[cfg(feature = "train")]
    pub(crate) fn of<'a>(rows: impl Iterator<Item = &'a [f32]> + Clone, columns: usize) -> Self {
        let count = rows.clone().count().max(1) as f64;
        let mut mean = vec![0.0_f64; columns];
        for row in rows.clone() {
            mean.iter_mut().zip(row).for_each(|(m, v)| *m += f64::from(*v) / count);
        }
        let mut variance = vec![0.0_f64; columns];
        for row in rows {
            for ((sum, v), m) in variance.iter_mut().zip(row).zip(&mean) {
                *sum += (f64::from(*v) - m).powi(2) / count;
            }
        }
        let gain = |v: &f64| if *v > 1e-12 { (1.0 / v.sqrt()) as f32 } else { 0.0 };
        Self { mean: mean.iter().map(|m| *m as f32).collect(), gain: variance.iter().map(gain).collect() }
    }

    pub(crate) fn apply(&self, row: &[f32], to: &mut Vec<f32>) {
        let scaled = row.iter().zip(&self.mean).zip(&self.gain);
        to.extend(scaled.map(|((v, mean), gain)| ((v - mean) * gain).clamp(-EDGE, EDGE)));
    }

    fn fits(&self, columns: usize) -> bool {
        self.mean.len() == columns
            && self.gain.len() == columns
            && self.mean.iter().chain(&self.gain).all(|v| v.is_finite())
            && self.gain.iter().all(|g| *g >= 0.0)
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    name: String,
    schema: Schema,
    quantiles: Vec<f32>,
    shape: Shape,
    members: usize,
    window: Scale,
    candidate: Scale,
    /// The losses that the networks reckon in; models from before there were others have 1.
    #[serde(default)]
    units: Units,
    origin: Origin,
    /// Where calibration begins.
    start: Correction,
    checksum: u64,
}

/// Networks that differ in their seed. The mean of curves that fall and do not cross falls and does not cross.
#[derive(Module, Debug)]
struct Ensemble {
    members: Vec<Network>,
}

/// A trained model.
#[derive(Debug)]
pub struct Model {
    header: Header,
    /// Kind and checksum: calibration of one model says nothing about another.
    name: String,
    members: Vec<Network>,
    /// The members' slopes as they act.
    slopes: Vec<Vec<f32>>,
    device: Device,
}

impl Model {
    /// The model that this build ships.
    ///
    /// # Errors
    /// There is none, or it does not mean what this build's planner means.
    pub fn embedded() -> Result<Self, ModelError> {
        if SHIPPED.is_empty() { Err(ModelError::NoneShipped) } else { Self::from_bytes(SHIPPED, &Schema::current()) }
    }

    /// The model in a file.
    ///
    /// # Errors
    /// It cannot be read, is damaged, or does not mean what this build's planner means.
    pub fn load(path: &Path) -> Result<Self, ModelError> {
        let bytes = std::fs::read(path).map_err(|source| ModelError::Read { path: path.to_owned(), source })?;
        Self::from_bytes(&bytes, &Schema::current())
    }

    /// The model in `bytes`.
    ///
    /// # Errors
    /// It is damaged, or does not mean what `schema` means.
    pub fn from_bytes(bytes: &[u8], schema: &Schema) -> Result<Self, ModelError> {
        let (header, weights) = split(bytes)?;
        agree(&header, schema)?;
        let found = checksum(weights);
        if found != header.checksum {
            return Err(ModelError::Damaged { found, expected: header.checksum });
        }
        let broken = |e: burn::store::RecordError| ModelError::Weights(e.to_string());
        let record = ModuleRecord::from_bytes(Bytes::from_bytes_vec(weights.to_vec())).map_err(broken)?;
        let device = Device::flex();
        let blank = |_| Network::new(header.shape, 0, &device, &mut || 0.5);
        let ensemble = Ensemble { members: (0..header.members).map(blank).collect() };
        let ensemble = ensemble.try_load_record(record).map_err(broken)?;
        Ok(Self::of(header, ensemble.members))
    }

    /// Puts trained networks together.
    #[cfg(feature = "train")]
    pub(crate) fn new(
        schema: Schema,
        shape: Shape,
        (window, candidate): (Scale, Scale),
        units: Units,
        origin: Origin,
        start: Correction,
        members: Vec<Network>,
    ) -> Self {
        let header = Header {
            name: "network".to_owned(),
            schema,
            quantiles: QUANTILES.to_vec(),
            shape,
            members: members.len(),
            window,
            candidate,
            units,
            origin,
            start,
            checksum: 0,
        };
        Self::of(header, members)
    }

    fn of(header: Header, members: Vec<Network>) -> Self {
        let slopes = members.iter().map(Network::slopes).collect();
        let name = format!("{}-{:04x}", header.name, header.checksum >> 48);
        Self { header, name, members, slopes, device: Device::flex() }
    }

    /// The model as a file holds it.
    ///
    /// # Errors
    /// The weights cannot be packed.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ModelError> {
        let record = Ensemble { members: self.members.clone() }.into_record();
        let weights = record.into_bytes().map_err(|e| ModelError::Weights(e.to_string()))?;
        let header = Header { checksum: checksum(&weights), ..self.header.clone() };
        let header = serde_json::to_vec(&header).map_err(ModelError::Header)?;
        let length = u32::try_from(header.len()).expect("a header of names and a few hundred numbers");
        Ok([MAGIC, &length.to_le_bytes()[..], &header[..], &weights[..]].concat())
    }

    /// What it was made from.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.header.origin
    }

    /// What its columns mean.
    #[must_use]
    pub fn schema(&self) -> &Schema {
        &self.header.schema
    }

    /// How many numbers were trained, in all members.
    #[must_use]
    pub fn parameters(&self) -> usize {
        self.members.iter().map(Module::num_params).sum()
    }

    /// How many networks are averaged.
    #[must_use]
    pub fn members(&self) -> usize {
        self.members.len()
    }

    fn fits(&self, query: &Query<'_>) -> bool {
        let shape = self.header.shape;
        query.window.len() == shape.window
            && query.candidates.len().is_multiple_of(shape.candidate)
            && query.window.iter().chain(query.candidates).all(|v| v.is_finite())
    }
}

impl Predictor for Model {
    fn name(&self) -> &str {
        &self.name
    }

    fn start(&self) -> Correction {
        self.header.start
    }

    fn estimate(&mut self, queries: &[Query<'_>]) -> Vec<Option<Vec<Estimate>>> {
        let shape = self.header.shape;
        let share = 1.0 / self.members.len() as f32;
        let mut answers: Vec<Option<Vec<Estimate>>> = queries
            .iter()
            .map(|q| self.fits(q).then(|| vec![Estimate::default(); q.candidates.len() / shape.candidate]))
            .collect();
        let mut basis = Vec::with_capacity(shape.steps);
        let mut candidates = Vec::new();
        for (queries, answers) in queries.chunks(TOGETHER).zip(answers.chunks_mut(TOGETHER)) {
            let mut asked: Vec<(&Query<'_>, &mut Vec<Estimate>)> =
                queries.iter().zip(answers).filter_map(|(q, a)| Some((q, a.as_mut()?))).collect();
            if asked.is_empty() {
                continue;
            }
            let mut windows = Vec::with_capacity(asked.len() * shape.window);
            candidates.clear();
            for (query, _) in &asked {
                self.header.window.apply(query.window, &mut windows);
                for candidate in query.candidates.chunks_exact(shape.candidate) {
                    self.header.candidate.apply(candidate, &mut candidates);
                }
            }
            let units: Vec<f32> = asked.iter().map(|(query, _)| self.header.units.at(query.window)).collect();
            let windows = matrix(windows, asked.len(), shape.window, &self.device);
            for (member, slopes) in self.members.iter().zip(&self.slopes) {
                let mut heads = member.heads(windows.clone());
                let mut sizes = candidates.chunks_exact(shape.candidate);
                for (head, (_, answer)) in Head::each(shape, &units, &mut heads, slopes).zip(&mut asked) {
                    for (estimate, size) in answer.iter_mut().zip(&mut sizes) {
                        let said = head.estimate(size, &mut basis);
                        estimate.loss.iter_mut().zip(said.loss).for_each(|(sum, l)| *sum += l * share);
                        estimate.pressure += said.pressure * share;
                    }
                }
            }
        }
        answers
    }
}

fn split(bytes: &[u8]) -> Result<(Header, &[u8]), ModelError> {
    let rest = bytes.strip_prefix(MAGIC).ok_or(ModelError::NotAModel)?;
    let cut_off = |needed| ModelError::CutOff { found: bytes.len(), needed };
    let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(|| cut_off(MAGIC.len() + 4))?;
    let length = u32::from_le_bytes(*length) as usize;
    let (header, weights) = rest.split_at_checked(length).ok_or_else(|| cut_off(MAGIC.len() + 4 + length))?;
    Ok((serde_json::from_slice(header).map_err(ModelError::Header)?, weights))
}

/// Whether a model's header is sound and means what we mean.
fn agree(header: &Header, schema: &Schema) -> Result<(), ModelError> {
    if header.schema.version != schema.version {
        return Err(ModelError::Version { found: header.schema.version, expected: schema.version });
    }
    let lists = [
        ("window column", &header.schema.window, &schema.window),
        ("candidate column", &header.schema.candidate, &schema.candidate),
    ];
    for (what, theirs, ours) in lists {
        for at in 0..theirs.len().max(ours.len()) {
            let (found, expected) = (theirs.get(at), ours.get(at));
            if found != expected {
                let name = |n: Option<&String>| n.cloned().unwrap_or_default();
                return Err(ModelError::Column { what, at: at + 1, found: name(found), expected: name(expected) });
            }
        }
    }
    if header.quantiles != QUANTILES {
        return Err(ModelError::Quantiles { found: header.quantiles.clone() });
    }
    let shape = header.shape;
    let sound = shape.window == schema.window.len()
        && shape.candidate == schema.candidate.len()
        && header.window.fits(shape.window)
        && header.candidate.fits(shape.candidate)
        && shape.candidate > 0
        && header.units.is_sound(shape)
        // Bounds that no model of ours comes near, so that a damaged header cannot ask for all memory.
        && (1..=4096).contains(&shape.hidden)
        && (1..=256).contains(&shape.steps)
        && (1..=64).contains(&header.members);
    if sound {
        Ok(())
    } else {
        Err(ModelError::Weights(format!("the header's sizes do not fit each other: {shape:?}")))
    }
}

/// FNV-1a, 64 bits: for accidents, not for malice.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}
