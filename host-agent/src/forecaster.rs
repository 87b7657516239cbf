//! Runs the model beside the daemon: features of each VM go in every two seconds, forecasts come back as inputs of the planner.
//!
//! ```text
//!   daemon's task -- features of a few VMs --> thread: Model::predict -- Event::Forecasts --> daemon's task
//! ```
//! A thread of its own, because the daemon's task must never wait for a model (promise P6). While it works, the next
//! VMs' features are dropped: a slow model means older forecasts, and the planner knows how old they are. VMs take turns,
//! a few at a time, because the forecasts of a thousand at once would be inputs that a demand has to wait for. A model
//! that panics is not asked again; the reactive law goes on.

use crate::daemon::Event;
use ballast_planner::{Features, Forecast, VmName};
use ballast_predictor::{Model, ModelError, Predictor};
use ballast_protocol::Micros;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;
use tokio::sync::mpsc;

/// In so many turns all VMs have been asked about once.
pub const TURNS: usize = 20;
/// Time between two turns: a forecast of each VM every two seconds, as often as forecasts are judged. Before it is stale there
/// is room for one that is dropped.
pub const TURN: Duration = Duration::from_millis(ballast_planner::JUDGED_EVERY.0 / 1_000 / TURNS as u64);

/// The model cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read, or is none for this build.
    #[error("the model{}", from.as_ref().map_or_else(|| " in this binary".to_owned(), |p| format!(" {}", p.display())))]
    Model {
        /// The file; `None`: the one that ships.
        from: Option<PathBuf>,
        /// Why.
        source: ModelError,
    },
    /// The system gives no thread.
    #[error("a thread for the model")]
    Thread(#[from] std::io::Error),
}

struct Batch {
    made: Micros,
    vms: Vec<VmName>,
    features: Vec<Features>,
}

/// The daemon's end.
#[derive(Debug)]
pub struct Forecaster {
    to: SyncSender<Batch>,
    name: String,
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "features of {} VMs at {}", self.vms.len(), self.made)
    }
}

impl Forecaster {
    /// With the model that ships, or one from a file.
    ///
    /// # Errors
    /// There is none, it is damaged, or it means other features.
    pub fn start(file: Option<&Path>, events: mpsc::Sender<Event>) -> Result<Self, Error> {
        Ok(Self::with(Box::new(model(file)?), events)?)
    }

    /// With any predictor.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn with(model: Box<dyn Predictor>, events: mpsc::Sender<Event>) -> std::io::Result<Self> {
        let (to, from) = sync_channel(1);
        let name = model.name().to_owned();
        std::thread::Builder::new().name("forecaster".into()).spawn(move || work(model, &from, &events))?;
        Ok(Self { to, name })
    }

    /// The model's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Asks for forecasts; they come as events. Returns whether there will be any, now or later.
    pub fn ask(&self, made: Micros, all: Vec<(VmName, Features)>) -> bool {
        if all.is_empty() {
            return true;
        }
        let (vms, features) = all.into_iter().unzip();
        !matches!(self.to.try_send(Batch { made, vms, features }), Err(TrySendError::Disconnected(_)))
    }
}

/// The model of a file, or the one that ships.
///
/// # Errors
/// There is none, it is damaged, or it means other features.
pub fn model(file: Option<&Path>) -> Result<Model, Error> {
    let model = match file {
        Some(path) => Model::load(path),
        None => Model::embedded(),
    };
    model.map_err(|source| Error::Model { from: file.map(Path::to_owned), source })
}

fn work(mut model: Box<dyn Predictor>, batches: &Receiver<Batch>, events: &mpsc::Sender<Event>) {
    let (name, start) = (model.name().to_owned(), model.start());
    while let Ok(Batch { made, vms, features }) = batches.recv() {
        // Nothing of the model is used again after a panic.
        let Ok(said) = catch_unwind(AssertUnwindSafe(|| model.predict(&features))) else {
            tracing::error!(model = name, "the model panicked: no forecasts from now on, the reactive law goes on");
            return;
        };
        let forecast = |points| Forecast { made, model: name.clone(), start, points };
        // All at once: the daemon's task is woken ten times a second and not once for each.
        let all = vms.into_iter().zip(said).filter_map(|(vm, points)| Some((vm, forecast(points?)))).collect();
        if events.blocking_send(Event::Forecasts(all)).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ballast_planner::{SIZES, WINDOW};
    use ballast_predictor::{Estimate, Query};
    use ballast_protocol::Bytes;

    /// Says nothing is lost, or panics.
    struct Oracle(bool);

    impl Predictor for Oracle {
        fn name(&self) -> &str {
            "oracle"
        }

        fn estimate(&mut self, queries: &[Query<'_>]) -> Vec<Option<Vec<Estimate>>> {
            assert!(!self.0, "as it was told to");
            queries.iter().map(|_| Some(vec![Estimate::default(); SIZES])).collect()
        }
    }

    fn features() -> Features {
        let [kept, needed, floor, max] = [400, 200, 100, 512].map(Bytes::mib);
        Features { window: [0.0; WINDOW], kept, needed, floor, max }
    }

    fn one() -> Vec<(VmName, Features)> {
        vec![(VmName::from("a"), features())]
    }

    #[tokio::test]
    async fn forecasts_come_back_as_inputs() {
        let (to, mut events) = mpsc::channel(8);
        let forecaster = Forecaster::with(Box::new(Oracle(false)), to).unwrap();
        assert!(forecaster.ask(Micros::secs(7), one()));
        let Some(Event::Forecasts(all)) = events.recv().await else { panic!("a forecast") };
        let [(vm, forecast)] = &all[..] else { panic!("one: {all:?}") };
        assert_eq!(
            (vm.clone(), forecast.made, forecast.model.as_str()),
            (VmName::from("a"), Micros::secs(7), "oracle")
        );
        assert_eq!(forecast.points.len(), SIZES);
    }

    #[tokio::test]
    async fn a_model_that_panics_is_not_asked_again() {
        let (to, mut events) = mpsc::channel(8);
        let forecaster = Forecaster::with(Box::new(Oracle(true)), to).unwrap();
        assert!(forecaster.ask(Micros::ZERO, one()));
        assert!(events.recv().await.is_none(), "its thread has ended");
        assert!(!forecaster.ask(Micros::ZERO, one()));
    }

    #[test]
    fn a_file_that_is_no_model_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.model");
        std::fs::write(&path, "weights").unwrap();
        let error = Forecaster::start(Some(&path), mpsc::channel(1).0).unwrap_err();
        let text = crate::chain(&error);
        assert!(text.contains("x.model") && text.contains("not a model"), "{text}");
    }
}
