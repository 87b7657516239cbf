//! Two arms of one run, or one arm of two runs: what differs, and is it more than noise?
//!
//! Arms of one run are paired phase by phase. Two runs share no minutes, so their arm is compared by its ratios to
//! `static`, each from its own run, and each run is resampled by itself; what the machine did to both arms of a run
//! is gone from such a ratio.

use super::results::{Block, Interval, STATIC};
use super::stats;
use super::summary::pairs::{self, Held, Measure};
use super::summary::{Experiment, Good, counted, experiments, in_words, killed_or_refused};
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
        rows.extend(memory_row(experiment.name, "memory held", &pairs::resident(blocks, arm, with)));
        let busy = pairs::resident_busy(blocks, arm, with);
        rows.extend(memory_row(experiment.name, "memory held, busy", &busy));
        rows.extend([arm, with].into_iter().flat_map(|arm| errors(&experiment, arm, arm)));
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
            rows.extend(quotient(one.name, name, (&ratios(&one), &ratios(other)), stats::median, noise, good));
        }
        rows.push(memory_of_two(&one, other, arm));
        let busy = |e: &Experiment<'_>| pairs::resident_busy(&e.blocks, arm, STATIC);
        let (busy, others) = (busy(&one), busy(other));
        rows.extend(quotient(one.name, "memory held, busy", (&busy, &others), pairs::ratio_of_means, 1.0, Good::Less));
        rows.extend(errors(&one, arm, of));
        rows.extend(errors(other, arm, with));
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

/// What was killed or refused, and the repetitions in which it happened.
fn lost(experiment: &Experiment<'_>, arm: &str) -> (u64, usize) {
    let runs: Vec<_> = experiment.blocks.iter().filter_map(|b| pairs::arm(b, arm)).collect();
    let kills = runs.iter().flat_map(|r| &r.guests).map(|g| g.totals.oom_kills).sum();
    let outcomes = || runs.iter().flat_map(|r| &r.phases).map(|p| &p.outcome);
    let killed = outcomes().map(|o| o.killed).sum();
    let refused = outcomes().map(|o| o.failed_allocations).sum();
    (killed_or_refused(kills, killed, refused), runs.len())
}

/// One row for a side that ended early: what it lost and held is not known to its end.
fn errors(experiment: &Experiment<'_>, arm: &str, side: &str) -> Option<Row> {
    let runs = experiment.blocks.iter().filter_map(|b| Some((b.repetition, pairs::arm(b, arm)?.error.as_ref()?)));
    let told: Vec<String> = runs.map(|(repetition, error)| format!("repetition {repetition}: {error}")).collect();
    (!told.is_empty()).then(|| Row {
        experiment: experiment.name.to_owned(),
        quantity: "ended early".to_owned(),
        ratio: None,
        interval: None,
        verdict: format!("{side}, {}", told.join("; ")),
    })
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
        quantity: "killed and refused".to_owned(),
        ratio: None,
        interval: None,
        verdict: format!("{verdict}: {of} in {of_runs} repetitions, {with} in {with_runs}"),
    }
}

fn row(experiment: &str, quantity: &str, ratios: &[Vec<f64>], noise: f64, good: Good) -> Option<Row> {
    let ratio = stats::median(&ratios.concat())?;
    let interval = stats::interval(ratios, stats::median);
    Some(made(
        experiment,
        quantity,
        ratio,
        interval,
        in_words(ratio, interval, noise, good, stats::repetitions(ratios)),
    ))
}

fn memory_row(experiment: &str, quantity: &str, held: &[Vec<(Held, Held)>]) -> Option<Row> {
    let ratio = pairs::ratio_of_means(&held.concat())?;
    let interval = stats::interval(held, pairs::ratio_of_means);
    let verdict = in_words(ratio, interval, 1.0, Good::Less, stats::repetitions(held));
    Some(made(experiment, quantity, ratio, interval, verdict))
}

/// Memory of two runs, where it can be compared: a guest is idle while other arms have their turn, and the more there are the
/// less it holds.
fn memory_of_two(one: &Experiment<'_>, other: &Experiment<'_>, arm: &str) -> Row {
    let quantity = "memory held";
    let withheld = |verdict: String| Row {
        experiment: one.name.to_owned(),
        quantity: quantity.to_owned(),
        ratio: None,
        interval: None,
        verdict,
    };
    let (arms, others) = (one.arms().len() as u64, other.arms().len() as u64);
    if arms != others {
        return withheld(format!(
            "not compared: {} took turns in the one run, {others} in the other, and guests are idle while others have theirs",
            counted(arms, "arm")
        ));
    }
    let held = |e: &Experiment<'_>| pairs::resident(&e.blocks, arm, STATIC);
    quotient(one.name, quantity, (&held(one), &held(other)), pairs::ratio_of_means, 1.0, Good::Less)
        .unwrap_or_else(|| withheld("nothing to compare".to_owned()))
}

fn quotient<T: Copy>(
    experiment: &str,
    quantity: &str,
    (one, other): (&[Vec<T>], &[Vec<T>]),
    statistic: fn(&[T]) -> Option<f64>,
    noise: f64,
    good: Good,
) -> Option<Row> {
    let ratio = statistic(&one.concat())? / statistic(&other.concat())?;
    let interval = stats::interval_of_two((one, other), statistic, |a, b| a / b);
    let repetitions = stats::repetitions(one).min(stats::repetitions(other));
    let verdict = in_words(ratio, interval, noise, good, repetitions);
    ratio.is_finite().then(|| made(experiment, quantity, ratio, interval, verdict))
}

fn made(experiment: &str, quantity: &str, ratio: f64, interval: Option<Interval>, verdict: String) -> Row {
    Row { experiment: experiment.to_owned(), quantity: quantity.to_owned(), ratio: Some(ratio), interval, verdict }
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
