//! Two arms of one run, or one arm of two runs: what differs, and is it more than noise?
//!
//! Arms of one run are paired phase by phase. Two runs share no minutes, so their arm is compared by its ratios to
//! `static`, each from its own run, and each run is resampled by itself; what the machine did to both arms of a run
//! is gone from such a ratio.

use super::results::{Block, Interval, STATIC};
use super::stats;
use super::summary::pairs::{self, Measure};
use super::summary::{Experiment, Good, experiments, in_words};
use anyhow::{Result, bail};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// One quantity in one experiment.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The experiment.
    pub experiment: String,
    /// What is compared.
    pub quantity: String,
    /// The first side to the second. Counters are no ratios.
    pub ratio: Option<f64>,
    /// Its 95 % interval.
    pub interval: Option<Interval>,
    /// In words, seen from the first side.
    pub verdict: String,
}

/// What was compared, and how it came out.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// In words.
    pub of: String,
    /// In words.
    pub with: String,
    /// Experiment by experiment.
    pub rows: Vec<Row>,
}

struct Quantity {
    name: &'static str,
    measure: Measure,
    good: Good,
}

const QUANTITIES: [Quantity; 3] = [
    Quantity { name: "throughput", measure: pairs::throughput, good: Good::More },
    Quantity { name: "p50 latency", measure: pairs::p50, good: Good::Less },
    Quantity { name: "p99 latency", measure: pairs::p99, good: Good::Less },
];

/// Two arms of one run.
///
/// # Errors
/// One of them is in none of its experiments.
pub fn arms(blocks: &[Block], arm: &str, with: &str) -> Result<Comparison> {
    let mut rows = Vec::new();
    for experiment in experiments(blocks) {
        let arms = experiment.arms();
        if !arms.contains(&arm) || !arms.contains(&with) {
            continue;
        }
        rows.push(kills(experiment.name, lost(&experiment, arm), lost(&experiment, with)));
        let blocks = &experiment.blocks;
        for Quantity { name, measure, good } in QUANTITIES {
            let ratios = pairs::paired(blocks, arm, with, measure);
            rows.extend(row(experiment.name, name, &ratios, pairs::noise(blocks, measure), good));
        }
        rows.extend(row(experiment.name, "memory held", &pairs::resident(blocks, arm, with), 1.0, Good::Less));
    }
    if rows.is_empty() {
        bail!("no experiment of this run has both arms, {arm} and {with}: {}", known(blocks));
    }
    Ok(Comparison { of: arm.to_owned(), with: with.to_owned(), rows })
}

/// One arm of two runs.
///
/// # Errors
/// It is in no experiment that both ran.
pub fn runs((first, of): (&[Block], &str), (second, with): (&[Block], &str), arm: &str) -> Result<Comparison> {
    let mut rows = Vec::new();
    let others = experiments(second);
    for one in experiments(first) {
        let Some(other) = others.iter().find(|e| e.name == one.name) else { continue };
        if !one.arms().contains(&arm) || !other.arms().contains(&arm) {
            continue;
        }
        rows.push(kills(one.name, lost(&one, arm), lost(other, arm)));
        for Quantity { name, measure, good } in QUANTITIES {
            let ratios = |e: &Experiment<'_>| pairs::paired(&e.blocks, arm, STATIC, measure);
            let noise = pairs::noise(&one.blocks, measure).max(pairs::noise(&other.blocks, measure));
            rows.extend(row_of_two(one.name, name, (&ratios(&one), &ratios(other)), noise, good));
        }
        let held = |e: &Experiment<'_>| pairs::resident(&e.blocks, arm, STATIC);
        rows.extend(row_of_two(one.name, "memory held", (&held(&one), &held(other)), 1.0, Good::Less));
    }
    if rows.is_empty() {
        bail!(
            "no experiment was run with {arm} in both runs: the first has {}, the second {}",
            known(first),
            known(second)
        );
    }
    Ok(Comparison { of: format!("{arm} of {of}"), with: format!("{arm} of {with}"), rows })
}

/// Names for an error message.
fn known(blocks: &[Block]) -> String {
    let experiments = experiments(blocks);
    let names: Vec<String> = experiments.iter().map(|e| format!("{} with {}", e.name, e.arms().join(", "))).collect();
    if names.is_empty() { "no blocks".to_owned() } else { names.join("; ") }
}

/// OOM kills and refused allocations, and the repetitions in which they happened.
fn lost(experiment: &Experiment<'_>, arm: &str) -> (u64, usize) {
    let runs: Vec<_> = experiment.blocks.iter().filter_map(|b| pairs::arm(b, arm)).collect();
    let kills: u64 = runs.iter().flat_map(|r| &r.guests).map(|g| g.totals.oom_kills).sum();
    let refused: u64 = runs.iter().flat_map(|r| &r.phases).map(|p| p.outcome.failed_allocations).sum();
    (kills + refused, runs.len())
}

fn kills(experiment: &str, (of, of_runs): (u64, usize), (with, with_runs): (u64, usize)) -> Row {
    // Two runs may differ in length: a rate is what compares.
    let (rate, other) = (of as f64 / of_runs.max(1) as f64, with as f64 / with_runs.max(1) as f64);
    let verdict = match rate.total_cmp(&other) {
        std::cmp::Ordering::Equal => "no difference",
        std::cmp::Ordering::Less => "better",
        std::cmp::Ordering::Greater => "worse",
    };
    Row {
        experiment: experiment.to_owned(),
        quantity: "OOM kills and refused".to_owned(),
        ratio: None,
        interval: None,
        verdict: format!("{verdict}: {of} in {of_runs} repetitions, {with} in {with_runs}"),
    }
}

fn row(experiment: &str, quantity: &str, ratios: &[Vec<f64>], noise: f64, good: Good) -> Option<Row> {
    let ratio = stats::median(&ratios.concat())?;
    let interval = stats::interval(ratios, stats::median);
    Some(made(experiment, quantity, ratio, interval, noise, good))
}

fn row_of_two(
    experiment: &str,
    quantity: &str,
    (one, other): (&[Vec<f64>], &[Vec<f64>]),
    noise: f64,
    good: Good,
) -> Option<Row> {
    let ratio = stats::median(&one.concat())? / stats::median(&other.concat())?;
    let interval = stats::interval_of_two((one, other), stats::median, |a, b| a / b);
    ratio.is_finite().then(|| made(experiment, quantity, ratio, interval, noise, good))
}

fn made(experiment: &str, quantity: &str, ratio: f64, interval: Option<Interval>, noise: f64, good: Good) -> Row {
    Row {
        experiment: experiment.to_owned(),
        quantity: quantity.to_owned(),
        ratio: Some(ratio),
        interval,
        verdict: in_words(ratio, interval, noise, good),
    }
}

/// For a console.
#[must_use]
pub fn table(comparison: &Comparison) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["experiment", "quantity", "ratio", "95 % interval", "verdict"]);
    let mut last = "";
    for row in &comparison.rows {
        let name = if row.experiment == last { "" } else { &row.experiment };
        last = &row.experiment;
        let interval = row.interval.map_or(String::new(), |i| format!("[{:.2}, {:.2}]", i.low, i.high));
        let ratio = row.ratio.map_or(String::new(), |r| format!("{r:.2}"));
        table.add_row([name, &row.quantity, &ratio, &interval, &row.verdict]);
    }
    for column in table.column_iter_mut().skip(2).take(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let text = format!("{} to {}\n\n{table}\n", comparison.of, comparison.with);
    text.lines().map(|l| format!("{}\n", l.trim_end())).collect()
}
