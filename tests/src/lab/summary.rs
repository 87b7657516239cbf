//! From blocks to one cell per experiment and arm.
//!
//! ```text
//!   blocks ── pairs: the same phase of the same repetition, arm to static ── median, interval, verdict ── Cell
//!        └─── oracle: the smallest fixed size with no loss ─────────────── oracle_ratio ┘
//! ```
//! Counters come first: a ratio says nothing for a workload that was killed. Throughput of a killed phase counts as
//! what it reached, which may be 0; its latency counts only if it had operations, so a law that kills may show a good
//! p99, and that is why every table names kills before it.

mod figures;
mod oracle;
pub mod pairs;
mod table;

pub use figures::{Figure, Place, Standing, figures, standings};
pub use table::{csv, oracle_in_words, table};

use super::results::{self, ArmRun, BALLAST, Block, Cell, Interval, Oracle, PREDICTIVE, Run, STATIC, Summary, Totals};
use super::stats::{self, Difference};
use anyhow::{Context, Result};
use pairs::Measure;
use std::collections::BTreeMap;
use std::path::Path;

/// Blocks of one experiment, without and with those of the oracle's search, by repetition.
#[derive(Debug)]
pub struct Experiment<'a> {
    /// Its name.
    pub name: &'a str,
    /// Repetitions.
    pub blocks: Vec<&'a Block>,
    /// The search for the oracle.
    pub search: Vec<&'a Block>,
}

impl Experiment<'_> {
    /// Its arms, in the file's order.
    #[must_use]
    pub fn arms(&self) -> Vec<&str> {
        let mut arms: Vec<&str> = Vec::new();
        for arm in self.blocks.iter().flat_map(|b| &b.arms) {
            if !arms.contains(&arm.arm.as_str()) {
                arms.push(&arm.arm);
            }
        }
        arms
    }
}

/// Sorts blocks by experiment, in the order in which the experiments were first run. Where an experiment's file was
/// changed between blocks, only those of its last text count.
#[must_use]
pub fn experiments(blocks: &[Block]) -> Vec<Experiment<'_>> {
    let mut found = BTreeMap::<&str, Vec<&Block>>::new();
    for block in blocks {
        found.entry(&block.experiment).or_default().push(block);
    }
    let mut ordered: Vec<(u64, Experiment)> = Vec::new();
    for (name, mut all) in found {
        all.sort_by_key(|b| (b.repetition, b.started_unix));
        let first = all.iter().map(|b| b.started_unix).min().unwrap_or_default();
        let last = all.iter().max_by_key(|b| b.started_unix).map(|b| b.fingerprint.clone());
        all.retain(|b| Some(&b.fingerprint) == last.as_ref());
        let (search, blocks) = all.into_iter().partition(|b| b.oracle);
        ordered.push((first, Experiment { name, blocks, search }));
    }
    ordered.sort_by_key(|(first, e)| (*first, e.name));
    ordered.into_iter().map(|(_, e)| e).collect()
}

/// What the oracle's search should try next, MiB per guest, between two sizes and given one experiment's blocks.
/// Nothing when it is done.
#[must_use]
pub fn next_oracle_sizes(blocks: &[Block], min: u64, max: u64) -> Vec<u64> {
    oracle::next_sizes(&blocks.iter().collect::<Vec<_>>(), min, max)
}

/// Computes the summary of a folder's blocks and writes `summary.json` and `summary.csv` beside them.
///
/// # Errors
/// There is no run in the folder, a block cannot be read, or the results cannot be written.
pub fn summarise(folder: &Path) -> Result<Summary> {
    let run: Run = results::read_json(&folder.join("run.json"))?;
    let summary = of(run, &results::blocks(folder)?);
    results::write_json(&folder.join("summary.json"), &summary)?;
    let path = folder.join("summary.csv");
    std::fs::write(&path, csv(&summary)?).with_context(|| path.display().to_string())?;
    Ok(summary)
}

/// Computes the summary.
#[must_use]
pub fn of(run: Run, blocks: &[Block]) -> Summary {
    let mut oracles = BTreeMap::new();
    let mut cells = Vec::new();
    for experiment in experiments(blocks) {
        let oracle = oracle::find(&experiment.search);
        for arm in experiment.arms() {
            cells.push(cell(&experiment, arm, oracle.as_ref()));
        }
        if let Some(oracle) = oracle {
            oracles.insert(experiment.name.to_owned(), oracle);
        }
    }
    let broken = blocks.iter().filter(|b| b.arms.iter().any(|a| a.error.is_some())).count();
    let took_s = blocks.iter().map(|b| b.took_s).sum();
    Summary { run, took_s, blocks: blocks.len() as u32, broken: broken as u32, cells, oracles }
}

fn cell(experiment: &Experiment<'_>, arm: &str, oracle: Option<&Oracle>) -> Cell {
    let blocks = &experiment.blocks;
    let runs: Vec<(&Block, &ArmRun)> = blocks.iter().filter_map(|b| Some((*b, pairs::arm(b, arm)?))).collect();
    let guests = || runs.iter().flat_map(|(_, run)| &run.guests);
    let phases = || runs.iter().flat_map(|(_, run)| &run.phases);

    let mut ci = BTreeMap::new();
    let mut verdict = BTreeMap::new();
    let mut keep = |name: &str, repetitions: &[Vec<f64>], statistic: fn(&[f64]) -> Option<f64>| {
        if let Some(interval) = stats::interval(repetitions, statistic) {
            ci.insert(name.to_owned(), interval);
        }
        statistic(&repetitions.concat())
    };
    let mut ratio = |name: &str, repetitions: &[Vec<f64>], noise: f64, more: Good| {
        let ratio = keep(name, repetitions, stats::median)?;
        if arm != STATIC {
            let interval = stats::interval(repetitions, stats::median);
            verdict.insert(name.to_owned(), in_words(ratio, interval, noise, more));
        }
        Some(ratio)
    };
    let mut to_static = |name, measure: Measure, more| {
        ratio(name, &pairs::paired(blocks, arm, STATIC, measure), pairs::noise(blocks, measure), more)
    };
    let throughput_ratio = to_static("throughput_ratio", pairs::throughput, Good::More);
    let p50_ratio = to_static("p50_ratio", pairs::p50, Good::Less);
    let p99_ratio = to_static("p99_ratio", pairs::p99, Good::Less);
    let p999_ratio = to_static("p999_ratio", pairs::p999, Good::Less);
    let resident_ratio = ratio("resident_ratio", &pairs::resident(blocks, arm, STATIC), 1.0, Good::Less);

    let held = each(&runs, |_, run| pairs::resident_mib(run));
    let resident_mib = keep("resident_mib", &held, stats::mean);
    let worst_stall_ms = keep("worst_stall_ms", &each(&runs, |_, run| worst_stall(run)), stats::median);
    if let (Some(oracle), Some(Interval { low, high })) = (oracle, ci.get("resident_mib").copied()) {
        let of_oracle = Interval { low: low / oracle.resident_mib, high: high / oracle.resident_mib };
        ci.insert("oracle_ratio".to_owned(), of_oracle);
    }
    let mut totals = Totals::default();
    guests().for_each(|g| add(&mut totals, &g.totals));
    let all = |times: fn(&ArmRun) -> &[f64]| -> Vec<f64> {
        runs.iter().flat_map(|(_, run)| times(run).iter().copied()).collect()
    };
    let spread = |values: &[f64]| Some((stats::median(values)?, stats::quantile(values, 0.99)?));
    let over_budget: Vec<f64> = runs.iter().filter_map(|(_, run)| run.over_budget_mib_s).collect();
    Cell {
        experiment: experiment.name.to_owned(),
        arm: arm.to_owned(),
        repetitions: runs.iter().filter(|(_, run)| run.phases.iter().any(|p| p.measured)).count() as u32,
        oom_kills: totals.oom_kills,
        failed_allocations: phases().map(|p| p.outcome.failed_allocations).sum(),
        killed: phases().map(|p| p.outcome.killed).sum(),
        throughput_ratio,
        p50_ratio,
        p99_ratio,
        p999_ratio,
        worst_stall_ms,
        resident_ratio,
        oracle_ratio: oracle.and_then(|o| Some(resident_mib? / o.resident_mib)).filter(|r| r.is_finite()),
        resident_mib,
        totals,
        host_agent_cpu: share(runs.iter().map(|(_, run)| {
            let watched = run.guests.iter().map(|g| g.totals.watched_s).fold(0.0, f64::max);
            (run.host_agent_cpu_s, watched)
        })),
        guest_agent_cpu: share(guests().map(|g| (g.totals.agent_cpu_s, g.totals.watched_s))),
        sign_to_order_ms: spread(&all(|run| &run.sign_to_order_ms)),
        sign_to_first_mib_ms: spread(&all(|run| &run.sign_to_first_mib_ms)),
        over_budget_mib_s: stats::mean(&over_budget),
        ci,
        verdict,
        errors: runs
            .iter()
            .filter_map(|(block, run)| Some(format!("repetition {}: {}", block.repetition, run.error.as_ref()?)))
            .collect(),
    }
}

/// One value per repetition, where there is one.
fn each(runs: &[(&Block, &ArmRun)], of: fn(&Block, &ArmRun) -> Option<f64>) -> Vec<Vec<f64>> {
    runs.iter().filter_map(|(block, run)| Some(vec![of(block, run)?])).collect()
}

/// The longest single operation of the measured phases, milliseconds.
fn worst_stall(run: &ArmRun) -> Option<f64> {
    let measured = run.phases.iter().filter(|p| p.measured);
    let longest = measured.filter_map(|p| p.outcome.latency.as_ref().filter(|l| l.count > 0)).map(|l| l.max_ms);
    longest.filter(|v| v.is_finite()).reduce(f64::max)
}

/// Seconds used over seconds watched.
fn share(of: impl Iterator<Item = (f64, f64)>) -> Option<f64> {
    let (used, watched) = of.fold((0.0, 0.0), |sum, next| (sum.0 + next.0, sum.1 + next.1));
    (watched > 0.0).then(|| used / watched)
}

fn add(sum: &mut Totals, next: &Totals) {
    sum.oom_kills += next.oom_kills;
    sum.allocation_stalls += next.allocation_stalls;
    sum.stall_some_ms += next.stall_some_ms;
    sum.stall_full_ms += next.stall_full_ms;
    sum.refault_mib += next.refault_mib;
    sum.swap_in_mib += next.swap_in_mib;
    sum.swap_out_mib += next.swap_out_mib;
    sum.inflated_mib += next.inflated_mib;
    sum.deflated_mib += next.deflated_mib;
    sum.agent_cpu_s += next.agent_cpu_s;
    sum.watched_s += next.watched_s;
    sum.resident_gib_s += next.resident_gib_s;
}

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Good {
    /// Throughput.
    More,
    /// Latency, memory.
    Less,
}

/// A verdict as it stands in the summary.
#[must_use]
pub fn in_words(ratio: f64, interval: Option<Interval>, noise: f64, good: Good) -> String {
    let by = format!("{:.0} %", (ratio - 1.0).abs() * 100.0);
    match (stats::difference(ratio, interval, noise), good) {
        (Difference::None, _) => "no difference".to_owned(),
        (Difference::Unknown, _) => "one value: its spread is unknown".to_owned(),
        (Difference::More, Good::More) | (Difference::Less, Good::Less) => format!("better by {by}"),
        (Difference::Less, Good::More) | (Difference::More, Good::Less) => format!("worse by {by}"),
    }
}

/// Is this arm neither the reference nor ours?
#[must_use]
pub fn is_rival(arm: &str) -> bool {
    ![STATIC, BALLAST, PREDICTIVE].contains(&arm)
}

/// `1 kill`, `2 kills`.
#[must_use]
pub fn counted(n: u64, one: &str) -> String {
    let many = if n == 1 { "" } else { "s" };
    format!("{n} {one}{many}")
}
