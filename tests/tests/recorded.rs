//! Rows that `ballast-lab collect` recorded on real guests: do they hold anything, and do they hold it only at the right time?
// The helpers of a test fail as the test does.
#![allow(clippy::unwrap_used)]

use ballast_predictor::{Dataset, Settings, train};
use std::path::Path;

fn recorded() -> Dataset {
    Dataset::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("recorded/collect")).unwrap()
}

/// What the network loses on workloads that it has not seen, to what a constant loses.
fn to_constant(data: &Dataset) -> f64 {
    let settings = Settings { folds: 6, stoppers: 1, members: 1, epochs: 60, ..Settings::default() };
    let trained = train(data, &settings, &mut |_| ()).unwrap();
    let mean = |name| trained.scores.named(name).unwrap().mean.mean_pinball;
    mean("network") / mean("constant")
}

/// A figure that sees the future, or outcomes that belong to other windows, would show here.
#[test]
fn recorded_rows_foretell_what_comes_and_nothing_that_comes_at_another_time() {
    // Where nobody helps: whether somebody does is told by the row itself, and foretells much at any time.
    let mut data = recorded();
    let answered = data.manifest.window_names.iter().position(|n| n == "answered").unwrap();
    data.rows.retain(|row| row.window[answered] == 0.0);
    let (real, shifted) = (to_constant(&data), to_constant(&data.shifted(17)));
    println!("{} rows, network to constant: {real:.3}, of another time {shifted:.3}", data.rows.len());
    assert!(real < 0.9, "{real}");
    // Losses of one workload resemble each other at any time, so that a little is left.
    assert!(shifted > 0.93 && shifted > real + 0.1, "{shifted}");
}

/// More memory, less loss: what the model takes for granted must be so.
#[test]
fn sizes_far_above_the_need_lose_less_than_sizes_below_it() {
    let data = recorded();
    let above = data.manifest.candidate_names.iter().position(|n| n == "above_needed").unwrap();
    let mean = |pick: &dyn Fn(f32) -> bool| {
        let losses: Vec<f32> = data.rows.iter().filter(|r| pick(r.candidate[above])).map(|r| r.loss).collect();
        assert!(losses.len() >= 20, "{} rows", losses.len());
        losses.iter().sum::<f32>() / losses.len() as f32
    };
    let (below, far_above) = (mean(&|a| a < 0.0), mean(&|a| a > 0.3));
    assert!(below > 3.0 * far_above, "{below} below, {far_above} far above");
}
