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

pub use figures::{Figure, Place, Standing, figures, left_out_of, standings};
pub(super) use oracle::{SEARCH, surely_lost};
pub use table::{csv, oracle_in_words, table, turns};

use super::results::{
    self, ArmRun, BALLAST, Block, Cell, Interval, Oracle, ProbeSeen, Run, STATIC, Summary, Totals, WorstPhase,
};
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
            let law = law(&run, experiment.name, arm);
            cells.push(cell(&experiment, arm, law, oracle.as_ref()));
        }
        if let Some(oracle) = oracle {
            oracles.insert(experiment.name.to_owned(), oracle);
        }
    }
    let broken = blocks.iter().filter(|b| b.arms.iter().any(|a| a.error.is_some())).count();
    let took_s = blocks.iter().map(|b| b.took_s).sum();
    Summary { run, took_s, blocks: blocks.len() as u32, broken: broken as u32, cells, oracles }
}

/// The law of an arm, as its experiment's file has it: the arm's name, unless the file says another.
fn law(run: &Run, experiment: &str, arm: &str) -> String {
    let said = || {
        let file: toml::Table = run.experiments.get(experiment)?.parse().ok()?;
        let named = |a: &&toml::Value| a.get("name").and_then(toml::Value::as_str) == Some(arm);
        Some(file.get("arms")?.as_array()?.iter().find(named)?.get("law")?.as_str()?.to_owned())
    };
    said().unwrap_or_else(|| arm.to_owned())
}

fn cell(experiment: &Experiment<'_>, arm: &str, law: String, oracle: Option<&Oracle>) -> Cell {
    let blocks = &experiment.blocks;
    let runs: Vec<(&Block, &ArmRun)> = blocks.iter().filter_map(|b| Some((*b, pairs::arm(b, arm)?))).collect();
    let guests = || runs.iter().flat_map(|(_, run)| &run.guests);
    let phases = || runs.iter().flat_map(|(_, run)| &run.phases);

    let mut found = Found::default();
    let mut to_static = |name, measure: Measure, good| {
        let ratios = pairs::paired(blocks, arm, STATIC, measure);
        let judged = (arm != STATIC).then(|| (pairs::noise(blocks, measure), good));
        found.keep(name, &ratios, stats::median, judged)
    };
    let throughput_ratio = to_static("throughput_ratio", pairs::throughput, Good::More);
    let p50_ratio = to_static("p50_ratio", pairs::p50, Good::Less);
    let p99_ratio = to_static("p99_ratio", pairs::p99, Good::Less);
    let p999_ratio = to_static("p999_ratio", pairs::p999, Good::Less);
    let worst_phase = |measure, sign: f64| {
        let labels = pairs::by_label(blocks, arm, STATIC, measure);
        let medians = labels.iter().filter_map(|(label, ratios)| Some((*label, stats::median(ratios)?)));
        let worst = medians.min_by(|a, b| (sign * a.1).total_cmp(&(sign * b.1)));
        worst.map(|(label, ratio)| WorstPhase { label: label.to_owned(), ratio })
    };
    let judged = (arm != STATIC).then_some((1.0, Good::Less));
    let held = pairs::resident(blocks, arm, STATIC);
    let resident_ratio = found.keep("resident_ratio", &held, pairs::ratio_of_means, judged);
    let held = pairs::resident_busy(blocks, arm, STATIC);
    let resident_busy_ratio = found.keep("resident_busy_ratio", &held, pairs::ratio_of_means, judged);
    let resident_busy_mib = found.keep("resident_busy_mib", &pairs::busy(blocks, arm), pairs::mean_held, None);
    found.keep("resident_mib", &pairs::held(blocks, arm), pairs::mean_held, None);
    let resident_mib = stats::mean(&each(&runs, |_, run| pairs::resident_mib(run)).concat());
    let worst_stall_ms = found.keep("worst_stall_ms", &each(&runs, |_, run| worst_stall(run)), stats::median, None);
    let Found { mut ci, verdict } = found;
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
        law,
        repetitions: runs.iter().filter(|(_, run)| run.phases.iter().any(|p| p.measured)).count() as u32,
        oom_kills: totals.oom_kills,
        failed_allocations: phases().map(|p| p.outcome.failed_allocations).sum(),
        killed: phases().map(|p| p.outcome.killed).sum(),
        unfinished: phases().filter(|p| p.outcome.unfinished).count() as u64,
        throughput_ratio,
        p50_ratio,
        p99_ratio,
        p999_ratio,
        worst_phase_throughput: worst_phase(pairs::throughput, 1.0),
        worst_phase_p99: worst_phase(pairs::p99, -1.0),
        worst_stall_ms,
        resident_ratio,
        oracle_ratio: oracle.and_then(|o| Some(resident_mib? / o.resident_mib)).filter(|r| r.is_finite()),
        resident_mib,
        busy_share: share(runs.iter().filter(|(_, run)| run.error.is_none()).map(|(_, run)| {
            let ran: f64 = run.phases.iter().map(|p| p.took_s).sum();
            (ran, pairs::watched_s(run))
        })),
        resident_busy_mib,
        resident_busy_ratio,
        totals,
        probes_per_s: probes_per_s(&runs),
        host_agent_cpu: share(runs.iter().map(|(_, run)| (run.host_agent_cpu_s, agents_s(run)))),
        guest_agent_cpu: share(runs.iter().flat_map(|(_, run)| {
            let lasted = agents_s(run);
            run.guests.iter().map(move |g| (g.totals.agent_cpu_s, lasted))
        })),
        agents_s: Some(runs.iter().map(|(_, run)| agents_s(run)).sum::<f64>()).filter(|s| *s > 0.0),
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

/// Those that came while the phases were measured that throughput is of.
fn probes_per_s(runs: &[(&Block, &ArmRun)]) -> Option<f64> {
    let (mut probes, mut seconds) = (0, 0.0);
    for (_, run) in runs {
        for phase in run.phases.iter().filter(|p| p.measured) {
            let came = |p: &&ProbeSeen| phase.began_s <= p.t && p.t <= phase.began_s + phase.took_s;
            probes += run.probes.iter().filter(|p| p.guest == phase.guest).filter(came).count();
            seconds += phase.took_s;
        }
    }
    (probes > 0 && seconds > 0.0).then(|| probes as f64 / seconds)
}

/// Intervals and verdicts of a cell, by the name of the field.
#[derive(Default)]
struct Found {
    ci: BTreeMap<String, Interval>,
    verdict: BTreeMap<String, String>,
}

impl Found {
    /// Computes a statistic, keeps its interval and, given the noise and which way is better, what it says of the difference.
    fn keep<T: Copy>(
        &mut self,
        name: &str,
        repetitions: &[Vec<T>],
        statistic: fn(&[T]) -> Option<f64>,
        judged: Option<(f64, Good)>,
    ) -> Option<f64> {
        let value = statistic(&repetitions.concat())?;
        let interval = stats::interval(repetitions, statistic);
        if let Some(interval) = interval {
            self.ci.insert(name.to_owned(), interval);
        }
        if let Some((noise, good)) = judged {
            let words = in_words(value, interval, noise, good, stats::repetitions(repetitions));
            self.verdict.insert(name.to_owned(), words);
        }
        Some(value)
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

/// How long the agents could use CPU time, seconds. Blocks of an earlier version know only how long they were watched.
fn agents_s(run: &ArmRun) -> f64 {
    run.agents_s.unwrap_or_else(|| pairs::watched_s(run))
}

/// What was killed or refused, without counting a kill twice. A guest that died took its kernel's counter with it; what the
/// harness saw killed is known all the same.
#[must_use]
pub fn lost(cell: &Cell) -> u64 {
    killed_or_refused(cell.oom_kills, cell.killed, cell.failed_allocations)
}

/// The same of single figures.
#[must_use]
pub fn killed_or_refused(oom_kills: u64, killed: u64, refused: u64) -> u64 {
    oom_kills.max(killed) + refused
}

/// Seconds used over seconds in which they could be.
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
pub fn in_words(ratio: f64, interval: Option<Interval>, noise: f64, good: Good, repetitions: usize) -> String {
    let once = if repetitions < 2 { " in one repetition" } else { "" };
    let by = format!("{:.0} %{once}", (ratio - 1.0).abs() * 100.0);
    match (stats::difference(ratio, interval, noise), good) {
        (Difference::None, _) if repetitions < 2 => "one repetition: its noise is unknown".to_owned(),
        (Difference::None, _) => "no difference".to_owned(),
        (Difference::Unknown, _) => "one value: its spread is unknown".to_owned(),
        (Difference::More, Good::More) | (Difference::Less, Good::Less) => format!("better by {by}"),
        (Difference::Less, Good::More) | (Difference::More, Good::Less) => format!("worse by {by}"),
    }
}

/// Is this arm neither the reference nor ours, nor one of their variants? Its law decides, whatever it is called.
#[must_use]
pub fn is_rival(cell: &Cell) -> bool {
    ![STATIC, BALLAST].contains(&cell.law.as_str())
}

/// `1 kill`, `2 kills`.
#[must_use]
pub fn counted(n: u64, one: &str) -> String {
    let many = if n == 1 { "" } else { "s" };
    format!("{n} {one}{many}")
}
