//! What is compared with what: the same phase of the same repetition under two arms.

use crate::lab::results::{ArmRun, Block, PhaseRun, STATIC};
use crate::lab::stats;
use crate::lab::watch;
use crate::lab::work::Latency;
use std::collections::BTreeMap;
use std::ops::Range;

/// A quantity of a phase; `None` where the phase has none.
pub type Measure = fn(&PhaseRun) -> Option<f64>;

/// How much was done a second. A phase that was killed before it got anywhere did nothing.
#[must_use]
pub fn throughput(phase: &PhaseRun) -> Option<f64> {
    let done = phase.outcome.throughput;
    Some(if done.is_finite() { done.max(0.0) } else { 0.0 })
}

/// Latencies of a phase that came to its end: of one that did not, what took longest is missing.
fn latency(phase: &PhaseRun) -> Option<&Latency> {
    phase.outcome.latency.as_ref().filter(|l| l.count > 0 && !phase.outcome.unfinished)
}

/// Median latency, milliseconds.
#[must_use]
pub fn p50(phase: &PhaseRun) -> Option<f64> {
    latency(phase).map(|l| l.p50_ms)
}

/// 99 of 100 operations took less, milliseconds.
#[must_use]
pub fn p99(phase: &PhaseRun) -> Option<f64> {
    latency(phase).map(|l| l.p99_ms)
}

/// 999 of 1000 operations took less, milliseconds.
#[must_use]
pub fn p999(phase: &PhaseRun) -> Option<f64> {
    latency(phase).map(|l| l.p999_ms)
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

/// The same ratios by the label of their phase, over all repetitions: what hurts in one phase of many is not seen in a median
/// over all.
#[must_use]
pub fn by_label<'a>(blocks: &[&'a Block], of: &str, to: &str, measure: Measure) -> BTreeMap<&'a str, Vec<f64>> {
    let mut labels = BTreeMap::<&str, Vec<f64>>::new();
    for block in blocks {
        let (Some(of), Some(to)) = (arm(block, of), arm(block, to)) else { continue };
        let reference = places(to, measure);
        for (place, value) in places(of, measure) {
            let label = of.phases.iter().find(|p| p.index == place.0).map_or("", |p| p.label.as_str());
            if let Some(reference) = reference.get(&place).filter(|v| **v > 0.0) {
                labels.entry(label).or_default().push(value / reference);
            }
        }
    }
    labels
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

/// What the host held over some time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Held {
    mib_s: f64,
    seconds: f64,
}

/// What it held on average over all of these times, MiB.
#[must_use]
pub fn mean_held(held: &[Held]) -> Option<f64> {
    let (mib_s, seconds) = held.iter().fold((0.0, 0.0), |sum, h| (sum.0 + h.mib_s, sum.1 + h.seconds));
    (seconds > 0.0).then(|| mib_s / seconds)
}

/// One arm's to the other's, each on average over all of these times.
#[must_use]
pub fn ratio_of_means(held: &[(Held, Held)]) -> Option<f64> {
    let (of, to): (Vec<Held>, Vec<Held>) = held.iter().copied().unzip();
    let to = mean_held(&to).filter(|v| *v > 0.0)?;
    Some(mean_held(&of)? / to)
}

/// What the host held for all guests of an arm within a span. `None` when it ended early, or nothing was seen of it then.
fn held_within(arm: &ArmRun, span: &Range<f64>) -> Option<Held> {
    if arm.error.is_some() {
        return None;
    }
    let seen: Vec<(f64, f64)> = arm.guests.iter().map(|g| watch::held(&g.series, span.clone())).collect();
    // Guests are looked at together; a sum of means does not mind where one look is missing.
    let mib = seen.iter().map(|(gib_s, seconds)| gib_s * 1024.0 / seconds).sum::<f64>();
    let seconds = seen.iter().map(|(_, seconds)| *seconds).fold(0.0, f64::max);
    (mib.is_finite() && seconds > 0.0).then_some(Held { mib_s: mib * seconds, seconds })
}

/// The rounds of a block: from where its first arm begins a phase to where the first begins the next; the last one has no
/// end. All arms have a turn in each.
fn rounds(block: &Block) -> Vec<Range<f64>> {
    let mut begins = BTreeMap::<usize, f64>::new();
    for phase in block.arms.iter().flat_map(|a| &a.phases) {
        let first = begins.entry(phase.index).or_insert(phase.began_s);
        *first = first.min(phase.began_s);
    }
    let begins: Vec<f64> = begins.into_values().collect();
    let ends = begins.iter().skip(1).copied().chain([f64::INFINITY]);
    begins.iter().copied().zip(ends).map(|(from, to)| from..to).collect()
}

/// What an arm held, one vector per repetition, one value per round; one for all of a repetition whose looks are not known.
#[must_use]
pub fn held(blocks: &[&Block], name: &str) -> Vec<Vec<Held>> {
    let of_block = |b: &&Block| {
        let arm = arm(b, name)?;
        let rounds: Vec<Held> = rounds(b).iter().filter_map(|span| held_within(arm, span)).collect();
        if rounds.is_empty() { Some(vec![whole(arm)?]) } else { Some(rounds) }
    };
    blocks.iter().filter_map(of_block).collect()
}

/// The same of two arms, paired by round.
#[must_use]
pub fn resident(blocks: &[&Block], of: &str, to: &str) -> Vec<Vec<(Held, Held)>> {
    let of_block = |b: &&Block| {
        let (of, to) = (arm(b, of)?, arm(b, to)?);
        let pair = |span: &Range<f64>| Some((held_within(of, span)?, held_within(to, span)?));
        let rounds: Vec<_> = rounds(b).iter().filter_map(pair).collect();
        if rounds.is_empty() { Some(vec![(whole(of)?, whole(to)?)]) } else { Some(rounds) }
    };
    blocks.iter().filter_map(of_block).collect()
}

fn whole(arm: &ArmRun) -> Option<Held> {
    let seconds = watched_s(arm);
    Some(Held { mib_s: resident_mib(arm)? * seconds, seconds })
}

/// How long its guests were watched, seconds.
#[must_use]
pub fn watched_s(arm: &ArmRun) -> f64 {
    arm.guests.iter().map(|g| g.totals.watched_s).fold(0.0, f64::max)
}

/// What an arm held while its own phases ran, by place in the file.
fn while_busy(arm: &ArmRun) -> BTreeMap<(usize, &str), Held> {
    let held = |p: &PhaseRun| held_within(arm, &(p.began_s..p.began_s + p.took_s));
    arm.phases.iter().filter_map(|p| Some(((p.index, p.guest.as_str()), held(p)?))).collect()
}

/// What an arm held while its own phases ran, one vector per repetition, one value per phase.
#[must_use]
pub fn busy(blocks: &[&Block], name: &str) -> Vec<Vec<Held>> {
    blocks.iter().filter_map(|b| Some(while_busy(arm(b, name)?).into_values().collect())).collect()
}

/// The same of two arms, each while its own ran, paired by phase.
#[must_use]
pub fn resident_busy(blocks: &[&Block], of: &str, to: &str) -> Vec<Vec<(Held, Held)>> {
    let of_block = |b: &&Block| {
        let reference = while_busy(arm(b, to)?);
        let mine = while_busy(arm(b, of)?).into_iter();
        Some(mine.filter_map(|(place, held)| Some((held, *reference.get(&place)?))).collect())
    };
    blocks.iter().filter_map(of_block).collect()
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
