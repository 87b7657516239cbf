//! What is compared with what: the same phase of the same repetition under two arms.

use crate::lab::results::{ArmRun, Block, PhaseRun, STATIC};
use crate::lab::stats;
use std::collections::BTreeMap;

/// A quantity of a phase; `None` where the phase has none.
pub type Measure = fn(&PhaseRun) -> Option<f64>;

/// How much was done a second. A phase that was killed before it got anywhere did nothing.
#[must_use]
pub fn throughput(phase: &PhaseRun) -> Option<f64> {
    let done = phase.outcome.throughput;
    Some(if done.is_finite() { done.max(0.0) } else { 0.0 })
}

/// Median latency, milliseconds.
#[must_use]
pub fn p50(phase: &PhaseRun) -> Option<f64> {
    phase.outcome.latency.as_ref().filter(|l| l.count > 0).map(|l| l.p50_ms)
}

/// 99 of 100 operations took less, milliseconds.
#[must_use]
pub fn p99(phase: &PhaseRun) -> Option<f64> {
    phase.outcome.latency.as_ref().filter(|l| l.count > 0).map(|l| l.p99_ms)
}

/// 999 of 1000 operations took less, milliseconds.
#[must_use]
pub fn p999(phase: &PhaseRun) -> Option<f64> {
    phase.outcome.latency.as_ref().filter(|l| l.count > 0).map(|l| l.p999_ms)
}

/// An arm of a block.
#[must_use]
pub fn arm<'a>(block: &'a Block, name: &str) -> Option<&'a ArmRun> {
    block.arms.iter().find(|a| a.arm == name)
}

/// The measured phases of an arm by place in the file, guest, and how often that place came before.
fn places(arm: &ArmRun, measure: Measure) -> BTreeMap<(usize, &str, usize), f64> {
    let mut seen = BTreeMap::<(usize, &str), usize>::new();
    let mut places = BTreeMap::new();
    for phase in arm.phases.iter().filter(|p| p.measured) {
        let count = seen.entry((phase.index, &phase.guest)).or_default();
        if let Some(value) = measure(phase).filter(|v| v.is_finite()) {
            places.insert((phase.index, phase.guest.as_str(), *count), value);
        }
        *count += 1;
    }
    places
}

fn ratios(of: &ArmRun, to: &ArmRun, measure: Measure) -> Vec<f64> {
    let reference = places(to, measure);
    let paired = places(of, measure).into_iter().filter_map(|(place, value)| {
        let reference = reference.get(&place).copied().filter(|v| *v > 0.0)?;
        Some(value / reference)
    });
    paired.collect()
}

/// Ratios of one arm to another, one vector per repetition, one value per phase that both ran.
#[must_use]
pub fn paired(blocks: &[&Block], of: &str, to: &str, measure: Measure) -> Vec<Vec<f64>> {
    blocks.iter().filter_map(|b| Some(ratios(arm(b, of)?, arm(b, to)?, measure))).collect()
}

/// What the host held for all guests of an arm, mean over time, MiB. `None` when it ended early: half a block holds
/// other phases than a whole one.
#[must_use]
pub fn resident_mib(arm: &ArmRun) -> Option<f64> {
    if arm.error.is_some() || arm.guests.is_empty() {
        return None;
    }
    let guests = arm.guests.iter().map(|g| {
        let mib = g.totals.resident_gib_s * 1024.0 / g.totals.watched_s;
        mib.is_finite().then_some(mib)
    });
    guests.sum()
}

/// Ratios of what the host held, one value per repetition.
#[must_use]
pub fn resident(blocks: &[&Block], of: &str, to: &str) -> Vec<Vec<f64>> {
    let pair = |b: &&Block| {
        let to = resident_mib(arm(b, to)?).filter(|v| *v > 0.0)?;
        Some(vec![resident_mib(arm(b, of)?)? / to])
    };
    blocks.iter().filter_map(pair).collect()
}

/// How far `static` is from itself, as a factor of at least 1: the ratios between its own repetitions, 95 % of them
/// nearer to 1 than this. With one repetition it is 1, as nothing is known.
#[must_use]
pub fn noise(blocks: &[&Block], measure: Measure) -> f64 {
    let runs: Vec<_> = blocks.iter().filter_map(|b| arm(b, STATIC)).collect();
    let mut factors = Vec::new();
    for (i, one) in runs.iter().enumerate() {
        for other in &runs[i + 1..] {
            if let Some(ratio) = stats::median(&ratios(one, other, measure)).filter(|r| *r > 0.0) {
                factors.push(ratio.max(1.0 / ratio));
            }
        }
    }
    stats::quantile(&factors, 0.95).unwrap_or(1.0)
}
