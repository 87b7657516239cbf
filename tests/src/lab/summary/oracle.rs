//! The oracle: the smallest fixed size with no loss, which nobody could know beforehand.
//!
//! ```text
//!   6 sizes, evenly from min to max ──> largest that lost, smallest that did not ──> 4 sizes between them ──> done
//! ```
//! A size has no loss when neither it nor any larger one tried lost: luck at one size between two that lose is luck. So
//! once a size is killed or cannot end, the rest of the block does without it and all smaller ones.

use super::{counted, pairs};
use crate::lab::results::{ArmRun, Block, Oracle, PhaseRun, STATIC};
use crate::lab::stats;

/// Throughput to `static` that is no loss: what an identical run shows on a quiet machine.
const THROUGHPUT: f64 = 0.95;
/// 99th percentile of latency to `static` that is no loss.
const P99: f64 = 1.25;
/// Stall beyond that of `static` that is no loss, milliseconds a repetition.
const STALL_MS: f64 = 50.0;
/// Sizes of the first look.
const COARSE: u64 = 6;
/// Sizes between the largest that lost and the smallest that did not.
const FINE: u64 = 4;
/// Both looks, `static` among each, in units of the first.
pub const SEARCH: f64 = ((COARSE + 1) + (FINE + 1)) as f64 / (COARSE + 1) as f64;

/// The name of an arm that keeps this many MiB.
#[must_use]
pub fn arm_name(mib: u64) -> String {
    format!("fixed@{mib}")
}

/// The sizes that an experiment's oracle blocks tried, ascending, MiB.
fn tried(blocks: &[&Block]) -> Vec<u64> {
    let names = blocks.iter().filter(|b| b.oracle).flat_map(|b| &b.arms);
    let mut sizes: Vec<u64> = names.filter_map(|a| a.arm.strip_prefix("fixed@")?.parse().ok()).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// Whether this phase alone makes its size one that loses, whatever the others come to. The reference is what `static` has done
/// so far.
#[must_use]
pub fn surely_lost(phase: &PhaseRun, reference: &[PhaseRun]) -> bool {
    let outcome = &phase.outcome;
    let done = || reference.iter().any(|r| r.index == phase.index);
    phase.during.oom_kills + outcome.killed + outcome.failed_allocations > 0 || (done() && later(phase, reference))
}

/// It did not end in time, and `static` did: on a slow machine that may not end either.
fn later(phase: &PhaseRun, reference: &[PhaseRun]) -> bool {
    let as_late = |r: &PhaseRun| r.index == phase.index && r.outcome.unfinished;
    phase.outcome.unfinished && !reference.iter().any(as_late)
}

/// Why a size lost; `None` when it did not.
fn loss(blocks: &[&Block], mib: u64) -> Option<String> {
    let name = arm_name(mib);
    let runs: Vec<(&ArmRun, Option<&ArmRun>)> =
        blocks.iter().filter_map(|b| Some((pairs::arm(b, &name)?, pairs::arm(b, STATIC)))).collect();
    if let Some(error) = runs.iter().find_map(|(run, _)| run.error.as_ref()) {
        return Some(format!("ended early: {error}"));
    }
    let phases = || runs.iter().flat_map(|(run, _)| &run.phases);
    let kills: u64 = runs.iter().flat_map(|(run, _)| &run.guests).map(|g| g.totals.oom_kills).sum();
    let late = |(run, reference): &(&ArmRun, Option<&ArmRun>)| {
        let reference = reference.map_or(&[][..], |r| &r.phases);
        run.phases.iter().filter(|p| later(p, reference)).count() as u64
    };
    let late = runs.iter().map(late).sum();
    let counts = [
        (kills, "OOM kill"),
        (phases().map(|p| p.outcome.failed_allocations).sum(), "failed allocation"),
        (phases().map(|p| p.outcome.killed).sum(), "killed worker"),
        (late, "unfinished phase"),
    ];
    if let Some((count, what)) = counts.into_iter().find(|(count, _)| *count > 0) {
        return Some(counted(count, what));
    }
    let ratio = |measure| stats::median(&pairs::paired(blocks, &name, STATIC, measure).concat());
    match (ratio(pairs::throughput), ratio(pairs::p99)) {
        (None, _) => return Some("nothing to compare with static".to_owned()),
        (Some(t), _) if t < THROUGHPUT => return Some(format!("throughput {t:.2} of static")),
        (_, Some(p)) if p > P99 => return Some(format!("p99 latency {p:.2} of static")),
        _ => {}
    }
    let stall = |run: &ArmRun| run.guests.iter().map(|g| g.totals.stall_some_ms).sum::<f64>();
    let more: Vec<f64> = runs.iter().filter_map(|(run, reference)| Some(stall(run) - stall((*reference)?))).collect();
    let more = stats::mean(&more)?;
    (more > STALL_MS).then(|| format!("{more:.0} ms more stall than static a repetition"))
}

/// The oracle of one experiment. `None` when no size was tried, even the largest lost, `static` ended early, or the search was not
/// ended: the sizes of the first look are so far apart that ours would look better than it is.
#[must_use]
pub fn find(blocks: &[&Block]) -> Option<Oracle> {
    let oracle_blocks: Vec<&Block> = blocks.iter().copied().filter(|b| b.oracle).collect();
    // Compared with half of what it did, a size that loses later would have lost nothing.
    if oracle_blocks.iter().any(|b| pairs::arm(b, STATIC).is_none_or(|a| a.error.is_some())) {
        return None;
    }
    let mut size = None;
    let mut lost_at = None;
    let sizes = tried(&oracle_blocks);
    let only_coarse = sizes.len() as u64 <= COARSE;
    for mib in sizes.into_iter().rev() {
        if let Some(why) = loss(&oracle_blocks, mib) {
            lost_at = Some((mib, why));
            break;
        }
        size = Some(mib);
    }
    let size_mib = size?;
    if only_coarse && lost_at.as_ref().is_some_and(|(lost, _)| size_mib - lost > 1) {
        return None;
    }
    let runs = oracle_blocks.iter().filter_map(|b| pairs::arm(b, &arm_name(size_mib)));
    let held: Vec<f64> = runs.filter_map(pairs::resident_mib).collect();
    Some(Oracle { size_mib, resident_mib: stats::mean(&held)?, lost_at })
}

/// What to try next, MiB per guest, given what the experiment's oracle blocks tried: nothing when the search is done.
#[must_use]
pub fn next_sizes(blocks: &[&Block], min: u64, max: u64) -> Vec<u64> {
    let oracle_blocks: Vec<&Block> = blocks.iter().copied().filter(|b| b.oracle).collect();
    let known = tried(&oracle_blocks);
    let missing = |mut sizes: Vec<u64>| {
        sizes.dedup();
        sizes.retain(|s| !known.contains(s));
        sizes
    };
    let span = max.saturating_sub(min);
    let coarse: Vec<u64> = (0..COARSE).map(|i| min + span * i / (COARSE - 1)).collect();
    let first = missing(coarse.clone());
    if !first.is_empty() {
        return first;
    }
    // From the first look alone: what the second one found must not start a third.
    let Some(lost) = coarse.iter().rposition(|mib| loss(&oracle_blocks, *mib).is_some()) else { return Vec::new() };
    let Some(kept) = coarse.get(lost + 1) else { return Vec::new() };
    let gap = kept - coarse[lost];
    let fine = (1..=FINE).map(|i| coarse[lost] + gap * i / (FINE + 1)).filter(|s| *s != coarse[lost]);
    missing(fine.collect())
}
