//! Training on data whose truth is known.
// The helpers of a test fail as the test does.
#![allow(clippy::unwrap_used)]

use ballast_predictor::{
    Dataset, Estimate, Manifest, Model, ModelError, Predictor, Query, Row, RunInfo, Schema, Settings, TrainError,
    Trained, card, page, train,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::sync::OnceLock;

const WORKLOADS: [&str; 5] = ["redis", "nginx", "postgresql", "gcc", "java"];
const RUNS: usize = 2;
const ROWS: usize = 120;

/// VMs that lose what they are short of: a size below what they use and are about to use costs three times as much as is
/// missing, with noise. Workloads differ in what they use and how fast they grow.
fn dataset(seed: u64) -> Dataset {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let names = |n: &[&str]| n.iter().map(|s| (*s).to_owned()).collect();
    let mut manifest = Manifest {
        features_version: 1,
        window_names: names(&["used", "growth", "stall_10s", "nothing"]),
        candidate_names: names(&["size", "above_used"]),
        made: "for a test | with a bar".to_owned(),
        ..Manifest::default()
    };
    let mut rows = Vec::new();
    for (w, workload) in WORKLOADS.iter().enumerate() {
        for r in 0..RUNS {
            let run = format!("{workload}-{r}");
            manifest.runs.push(RunInfo { name: run.clone(), workload: (*workload).to_owned(), ..RunInfo::default() });
            for i in 0..ROWS {
                let mut uniform = || random.random::<f32>();
                let used = 0.2 + 0.1 * w as f32 + 0.2 * uniform();
                let growth = 0.05 * w as f32 * uniform();
                let size = 0.2 + 0.8 * uniform();
                let missing = (used + growth + 0.1 * (uniform() - 0.5) - size).max(0.0);
                rows.push(Row {
                    run: run.clone(),
                    workload: (*workload).to_owned(),
                    guest: "a".to_owned(),
                    at_s: 10.0 * i as f64,
                    window: vec![used, growth, 0.1 * uniform(), uniform()],
                    candidate: vec![size, size - used],
                    size_mib: (size * 512.0) as u32,
                    loss: (3.0 * missing).min(1.0),
                    pressure: missing > 0.05,
                });
            }
        }
    }
    Dataset { manifest, rows }
}

fn settings(seed: u64) -> Settings {
    Settings {
        seed,
        folds: 5,
        members: 2,
        hidden: 24,
        steps: 6,
        epochs: 60,
        patience: 15,
        batch: 32,
        // What the recorded rows need, which are few and of many columns, would blur these.
        stoppers: 1,
        decay: 1e-2,
        dropout: 0.0,
        ..Settings::default()
    }
}

fn trained() -> &'static (Dataset, Trained) {
    static TRAINED: OnceLock<(Dataset, Trained)> = OnceLock::new();
    TRAINED.get_or_init(|| {
        let data = dataset(1);
        let trained = train(&data, &settings(1), &mut |_| ()).unwrap();
        (data, trained)
    })
}

fn copy(of: &Model) -> Model {
    Model::from_bytes(&of.to_bytes().unwrap(), of.schema()).unwrap()
}

#[test]
fn it_finds_what_there_is_to_find() {
    let (_, trained) = trained();
    let names: Vec<&str> = trained.scores.predictors.iter().map(|p| p.predictor.as_str()).collect();
    assert_eq!(names, ["network", "constant", "last value", "linear", "boosting"]);
    let loss = |name| trained.scores.named(name).unwrap().mean.mean_pinball;
    assert!(loss("network") < 0.5 * loss("constant"), "{} {}", loss("network"), loss("constant"));
    // What stalled before means nothing in this data.
    assert!(loss("last value") > 0.8 * loss("constant"));
    assert!(loss("linear") < loss("constant") && loss("boosting") < loss("constant"));
    let network = &trained.scores.named("network").unwrap().mean;
    // gcc and java use and grow as no other workload does: what holds there is not known from the others, which is why
    // calibration goes on while the model runs.
    for workload in ["redis", "nginx", "postgresql"] {
        let covered = trained.scores.named("network").unwrap().workloads[workload].coverage[2];
        assert!((0.88..=1.0).contains(&covered), "{workload}: {covered}");
    }
    assert!(network.brier < 0.1, "{}", network.brier);
    assert_eq!(network.rows as usize, WORKLOADS.len() * RUNS * ROWS);
    let (low, high) = trained.scores.gain_interval;
    assert!(low <= trained.scores.gain && trained.scores.gain <= high, "{low} {high} {}", trained.scores.gain);
}

#[test]
fn what_is_trained_falls_with_the_size_and_does_not_cross() {
    let (data, trained) = trained();
    let mut model = copy(&trained.model);
    for row in data.rows.iter().step_by(7) {
        let sizes = (0..64).map(|i| i as f32 / 50.0);
        let candidates: Vec<f32> = sizes.flat_map(|s| [s, s - row.window[0]]).collect();
        let said = model.estimate(&[Query { window: &row.window, candidates: &candidates }]);
        let curve = said[0].as_ref().unwrap();
        assert!(curve.iter().all(|e| e.loss.is_sorted()), "{curve:?}");
        let falls =
            |a: &Estimate, b: &Estimate| a.pressure >= b.pressure && a.loss.iter().zip(b.loss).all(|(a, b)| *a >= b);
        assert!(curve.is_sorted_by(falls), "{curve:?}");
        assert!(curve[0].loss[0] > curve[63].loss[0], "{curve:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_file() {
    let (data, first) = trained();
    let again = train(data, &settings(1), &mut |_| ()).unwrap();
    let other = train(data, &settings(2), &mut |_| ()).unwrap();
    let bytes = |t: &Trained| t.model.to_bytes().unwrap();
    assert!(bytes(first) == bytes(&again));
    assert!(bytes(first) != bytes(&other));
    assert_eq!(first.scores, again.scores);
}

#[test]
fn outcomes_of_another_time_teach_nothing() {
    let shifted = dataset(1).shifted(7);
    let trained = train(&shifted, &settings(1), &mut |_| ()).unwrap();
    let constant = trained.scores.named("constant").unwrap().mean.mean_pinball;
    for p in &trained.scores.predictors {
        // Each workload has losses of its own, and windows tell workloads apart: a little is left.
        assert!(p.mean.mean_pinball > 0.8 * constant, "{}: {} of {constant}", p.predictor, p.mean.mean_pinball);
    }
}

#[test]
fn a_file_says_what_the_model_said() {
    let (data, trained) = trained();
    let mut model = copy(&trained.model);
    assert_eq!(model.to_bytes().unwrap(), trained.model.to_bytes().unwrap());
    assert_eq!(model.origin().rows as usize, data.rows.len());
    // Alone and among many, with an odd one between.
    let odd = [f32::NAN; 4];
    let queries: Vec<Query<'_>> = (0..600)
        .map(|i| {
            let row = &data.rows[i % data.rows.len()];
            let window = if i == 300 { &odd[..] } else { &row.window };
            Query { window, candidates: if i % 2 == 0 { &row.candidate } else { &[0.1, 0.0, 0.9, 0.8] } }
        })
        .collect();
    let together = model.estimate(&queries);
    for (i, query) in queries.iter().enumerate() {
        let alone = &model.estimate(&[*query])[0];
        assert_eq!(alone.is_none(), i == 300);
        for (a, b) in alone.iter().flatten().zip(together[i].iter().flatten()) {
            let near = a.loss.iter().zip(b.loss).all(|(a, b)| (a - b).abs() < 1e-5);
            assert!(near && (a.pressure - b.pressure).abs() < 1e-5, "{i}: {a:?} {b:?}");
        }
        assert_eq!(alone.as_ref().map(Vec::len), together[i].as_ref().map(Vec::len));
    }
    assert!(model.estimate(&[Query { window: &[0.0; 3], candidates: &[0.0; 2] }])[0].is_none());
}

#[test]
fn what_does_not_fit_is_refused_with_the_reason() {
    let (data, trained) = trained();
    let (bytes, schema) = (trained.model.to_bytes().unwrap(), data.manifest.schema());
    let refused = |bytes: &[u8], schema: &Schema| Model::from_bytes(bytes, schema).unwrap_err();
    for length in [0, 5, 17, 40, bytes.len() / 2, bytes.len() - 1] {
        let error = refused(&bytes[..length], &schema);
        let cut = matches!(error, ModelError::NotAModel | ModelError::CutOff { .. } | ModelError::Damaged { .. });
        assert!(cut, "{length}: {error:?}");
    }
    let mut damaged = bytes.clone();
    *damaged.last_mut().unwrap() ^= 1;
    assert!(matches!(refused(&damaged, &schema), ModelError::Damaged { .. }));
    let newer = Schema { version: 2, ..schema.clone() };
    assert_eq!(
        refused(&bytes, &newer).to_string(),
        "it was trained on features of version 1, this build has version 2; train it again"
    );
    let mut renamed = schema.clone();
    renamed.window[1] = "growth_5s".to_owned();
    assert_eq!(
        refused(&bytes, &renamed).to_string(),
        "window column 2 is \"growth\" in the model and \"growth_5s\" in this build; train it again"
    );
    let mut longer = schema;
    longer.candidate.push("more".to_owned());
    assert!(refused(&bytes, &longer).to_string().starts_with("candidate column 3 is \"\" in the model"));
    // These features are not the planner's.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.model");
    std::fs::write(&path, &bytes).unwrap();
    assert!(matches!(Model::load(&path), Err(ModelError::Column { .. } | ModelError::Version { .. })));
    assert!(matches!(Model::load("/nowhere".as_ref()), Err(ModelError::Read { .. })));
}

#[test]
fn two_workloads_are_too_few() {
    let mut data = dataset(1);
    data.rows.retain(|r| r.workload == "redis" || r.workload == "gcc");
    let error = train(&data, &settings(1), &mut |_| ()).unwrap_err();
    assert!(matches!(error, TrainError::Workloads { found: 2, .. }));
    assert!(error.to_string().starts_with("2 workloads (gcc, redis)"), "{error}");
}

#[test]
fn progress_goes_to_the_end() {
    let mut seen = Vec::new();
    let few = Settings { epochs: 2, members: 1, ..settings(1) };
    train(&dataset(1), &few, &mut |p| seen.push((p.done, p.total))).unwrap();
    assert!(seen.is_sorted(), "{seen:?}");
    assert!(seen.last().is_some_and(|(done, total)| done == total), "{seen:?}");
}

#[test]
fn the_report_is_whole_and_the_card_names_everybody() {
    let (data, trained) = trained();
    let html = page(data, &settings(1), trained).unwrap();
    let mut reader = quick_xml::Reader::from_str(&html);
    let mut open = 0_i32;
    loop {
        match reader.read_event().unwrap() {
            quick_xml::events::Event::Start(_) => open += 1,
            quick_xml::events::Event::End(_) => open -= 1,
            quick_xml::events::Event::Eof => break,
            _ => (),
        }
    }
    assert_eq!(open, 0);
    assert!(html.contains("for a test | with a bar") && !html.contains("NaN") && !html.contains("http"));
    let card = card(data, &settings(1), trained).unwrap();
    for name in ["network", "constant", "last value", "linear", "boosting"].iter().chain(&WORKLOADS) {
        assert!(html.contains(name) && card.contains(name), "{name}");
    }
    assert!(card.contains("| Made | for a test / with a bar |"));
}
