//! What the demo found: the table for people, `summary.json` for programs.

use super::{ARMS, Arm, BALLAST, SETTLED, STATIC, reaction, refused};
use anyhow::Result;
use ballast_protocol::Bytes;
use ballast_tests::wire::End;
use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

/// `target/demo/summary.json`.
#[derive(Debug, Serialize)]
pub struct Summary {
    pub vcpus: u32,
    /// This machine reports its free pages to a host of its own, so some were kept in use (see `warm`).
    pub warmed: bool,
    pub arms: BTreeMap<&'static str, ArmSummary>,
    /// Each arm's figures over `static`'s, and the two ratios between other arms.
    pub ratios: BTreeMap<String, f64>,
    pub fixed_balloon_mib: u64,
    pub demands_with_an_order: usize,
    pub reaction_ms_p50: Option<f64>,
    pub reaction_ms_p99: Option<f64>,
    pub first_mib_ms_p50: Option<f64>,
    pub first_mib_ms_p99: Option<f64>,
    pub inside_host_ms_p50: Option<f64>,
    pub inside_host_ms_p99: Option<f64>,
    pub clock_round_trip_ms: Option<f64>,
    pub took_s: f64,
}

/// One arm. Times in milliseconds, sizes in MiB; `None`: no burst came to its end.
#[derive(Debug, Serialize)]
pub struct ArmSummary {
    pub failed_allocations: u64,
    pub oom_kills: u64,
    pub burst_ms_median: Option<f64>,
    pub burst_ms_worst: Option<f64>,
    pub worst_stall_ms_median: Option<f64>,
    pub worst_stall_ms_worst: Option<f64>,
    pub bursts_ms: Vec<f64>,
    pub stalls_ms: Vec<f64>,
    pub ramp_ms: Option<f64>,
    pub ramp_worst_stall_ms: Option<f64>,
    pub cache_read_ms: Option<f64>,
    /// The last five seconds of the ten after each burst, mean.
    pub idle_resident_mib: f64,
    /// All ten seconds after each burst, mean: includes the time it takes to take.
    pub idle_whole_resident_mib: f64,
    /// The last five of the twenty seconds after the page cache, mean.
    pub cache_resident_mib: f64,
    pub allocation_stalls: u64,
    pub memory_stall_ms: f64,
    pub refaults: u64,
}

pub fn summary(
    arms: &mut [Arm],
    vcpus: u32,
    warmed: bool,
    fixed: Bytes,
    took: Duration,
    journal: &Path,
) -> Result<Summary> {
    let mut found = BTreeMap::new();
    for arm in arms.iter_mut() {
        found.insert(arm.name, arm_summary(arm)?);
    }
    let mut reactions = reaction::read(journal)?;
    let count = reactions.to_order.len();
    let ratios = ratios(&found);
    Ok(Summary {
        vcpus,
        warmed,
        ratios,
        fixed_balloon_mib: fixed.as_mib(),
        demands_with_an_order: count,
        reaction_ms_p50: quantile(&mut reactions.to_order, 0.5),
        reaction_ms_p99: quantile(&mut reactions.to_order, 0.99),
        first_mib_ms_p50: quantile(&mut reactions.to_first_mib, 0.5),
        first_mib_ms_p99: quantile(&mut reactions.to_first_mib, 0.99),
        inside_host_ms_p50: quantile(&mut reactions.inside, 0.5),
        inside_host_ms_p99: quantile(&mut reactions.inside, 0.99),
        clock_round_trip_ms: reactions.round_trip,
        took_s: took.as_secs_f64(),
        arms: found,
    })
}

fn arm_summary(arm: &mut Arm) -> Result<ArmSummary> {
    let after = arm.machine.guest.counters()?;
    let before = &arm.before;
    let all = || arm.bursts.iter().map(|(_, t, _)| t).chain(&arm.ramp);
    let whole: Vec<_> = arm.bursts.iter().map(|(_, t, _)| t).filter(|t| t.end == End::Whole).collect();
    let bursts_ms: Vec<f64> = whole.iter().map(|t| t.millis()).collect();
    let stalls_ms: Vec<f64> = whole.iter().map(|t| t.worst_millis()).collect();
    let worst = |v: &[f64]| v.iter().copied().max_by(f64::total_cmp);
    let ramp = arm.ramp.as_ref().filter(|t| t.end == End::Whole);
    let (mut settled, mut idle) = (Vec::new(), Vec::new());
    for (_, _, end) in &arm.bursts {
        settled.extend(arm.mean_resident(*end + super::IDLE - SETTLED, *end + super::IDLE));
        idle.extend(arm.mean_resident(*end, *end + super::IDLE));
    }
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len().max(1) as f64;
    let last = arm.resident.last().map(|(at, _)| *at);
    let refault = |c: &ballast_tests::wire::Counters| c.vmstat.get("workingset_refault_file").copied().unwrap_or(0);
    Ok(ArmSummary {
        failed_allocations: all().filter(|t| refused(t)).count() as u64,
        oom_kills: after.oom_kills() - before.oom_kills(),
        burst_ms_median: quantile(&mut bursts_ms.clone(), 0.5),
        burst_ms_worst: worst(&bursts_ms),
        worst_stall_ms_median: quantile(&mut stalls_ms.clone(), 0.5),
        worst_stall_ms_worst: worst(&stalls_ms),
        ramp_ms: ramp.map(|t| t.millis()),
        ramp_worst_stall_ms: ramp.map(|t| t.worst_millis()),
        cache_read_ms: arm.cache.map(|(_, ms)| ms),
        idle_resident_mib: mean(&settled),
        idle_whole_resident_mib: mean(&idle),
        cache_resident_mib: last.and_then(|end| arm.mean_resident(end - SETTLED, end)).unwrap_or(0.0),
        allocation_stalls: after.allocation_stalls() - before.allocation_stalls(),
        memory_stall_ms: (after.memory_stall_us() - before.memory_stall_us()) as f64 / 1e3,
        refaults: refault(&after) - refault(before),
        bursts_ms,
        stalls_ms,
    })
}

fn ratios(arms: &BTreeMap<&'static str, ArmSummary>) -> BTreeMap<String, f64> {
    let mut ratios = BTreeMap::new();
    let base = &arms[ARMS[STATIC]];
    let mut put = |name: String, a: Option<f64>, b: Option<f64>| {
        if let (Some(a), Some(b)) = (a, b)
            && b > 0.0
        {
            ratios.insert(name, a / b);
        }
    };
    for (name, arm) in arms.iter().filter(|(name, _)| **name != ARMS[STATIC]) {
        put(format!("{name}.burst"), arm.burst_ms_median, base.burst_ms_median);
        // The first burst of `static` takes its pages from the host as every burst of the others does.
        put(format!("{name}.burst_to_first_of_static"), arm.burst_ms_median, base.bursts_ms.first().copied());
        put(format!("{name}.worst_stall"), arm.worst_stall_ms_median, base.worst_stall_ms_median);
        put(format!("{name}.idle_resident"), Some(arm.idle_resident_mib), Some(base.idle_resident_mib));
        put(format!("{name}.cache_resident"), Some(arm.cache_resident_mib), Some(base.cache_resident_mib));
    }
    let (ours, reporting) = (&arms[ARMS[BALLAST]], &arms["reporting"]);
    put(
        "ballast_to_reporting.cache_resident".into(),
        Some(ours.cache_resident_mib),
        Some(reporting.cache_resident_mib),
    );
    put("ballast_to_reporting.idle_resident".into(), Some(ours.idle_resident_mib), Some(reporting.idle_resident_mib));
    ratios
}

/// The smallest value that at least `share` of all do not exceed (nearest rank); `None` of nothing.
fn quantile(values: &mut [f64], share: f64) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() as f64 * share).ceil() as usize;
    values.get(rank.max(1) - 1).copied()
}

/// The table.
pub fn table(summary: &Summary) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    let mut head = vec![Cell::new("")];
    head.extend(ARMS.map(|a| Cell::new(a).set_alignment(CellAlignment::Right)));
    table.set_header(head);
    let number = |v: Option<f64>| v.map_or_else(|| "-".to_owned(), |v| format!("{v:.0}"));
    type Figure = (&'static str, fn(&ArmSummary) -> Option<f64>);
    let rows: [Figure; 15] = [
        ("failed allocations", |a| Some(a.failed_allocations as f64)),
        ("OOM kills", |a| Some(a.oom_kills as f64)),
        ("burst of 300 MiB: median, ms", |a| a.burst_ms_median),
        ("burst of 300 MiB: worst, ms", |a| a.burst_ms_worst),
        ("worst 1 MiB stall: median, ms", |a| a.worst_stall_ms_median),
        ("worst 1 MiB stall: worst, ms", |a| a.worst_stall_ms_worst),
        ("ramp of 250 MiB at 25 MiB/s, ms", |a| a.ramp_ms),
        ("ramp: worst 1 MiB stall, ms", |a| a.ramp_worst_stall_ms),
        ("250 MiB read from disk, ms", |a| a.cache_read_ms),
        ("host-resident, idle, MiB", |a| Some(a.idle_resident_mib)),
        ("  the whole 10 s after a burst, MiB", |a| Some(a.idle_whole_resident_mib)),
        ("host-resident, 15-20 s after cache, MiB", |a| Some(a.cache_resident_mib)),
        ("allocation stalls", |a| Some(a.allocation_stalls as f64)),
        ("PSI memory stall, ms", |a| Some(a.memory_stall_ms)),
        ("page cache refaults", |a| Some(a.refaults as f64)),
    ];
    for (name, figure) in rows {
        let mut row = vec![Cell::new(name)];
        row.extend(ARMS.map(|arm| Cell::new(number(figure(&summary.arms[arm]))).set_alignment(CellAlignment::Right)));
        table.add_row(row);
    }
    let mut out = format!("{table}\n");
    let pair = |a: Option<f64>, b: Option<f64>| match (a, b) {
        (Some(a), Some(b)) => format!("median {a:.1} ms, p99 {b:.1} ms"),
        _ => "not measured".to_owned(),
    };
    let _ = writeln!(
        out,
        "first sign in the guest -> order:     {}",
        pair(summary.reaction_ms_p50, summary.reaction_ms_p99)
    );
    let _ = writeln!(
        out,
        "first sign in the guest -> first MiB: {}",
        pair(summary.first_mib_ms_p50, summary.first_mib_ms_p99)
    );
    let _ = writeln!(
        out,
        "demand received -> order, in the host agent: {}",
        pair(summary.inside_host_ms_p50, summary.inside_host_ms_p99)
    );
    let _ = writeln!(
        out,
        "({} demands with an order; clocks aligned by a round trip of {:.2} ms; the fixed balloon had {} MiB; {} vCPUs{}; {:.0} s in all)",
        summary.demands_with_an_order,
        summary.clock_round_trip_ms.unwrap_or(f64::NAN),
        summary.fixed_balloon_mib,
        summary.vcpus,
        if summary.warmed { "; this machine is a VM, its free memory was kept warm" } else { "" },
        summary.took_s
    );
    let ratio = |name: &str| summary.ratios.get(name).map_or_else(|| "-".to_owned(), |r| format!("{r:.2}"));
    let _ = writeln!(
        out,
        "ballast / static: burst {} ({} of static's first, whose pages the host had not given yet), worst stall {}, idle\nresident {}; ballast / reporting: after cache {}",
        ratio("ballast.burst"),
        ratio("ballast.burst_to_first_of_static"),
        ratio("ballast.worst_stall"),
        ratio("ballast.idle_resident"),
        ratio("ballast_to_reporting.cache_resident")
    );
    out
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn quantiles_are_nearest_ranks() {
        let mut v: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(quantile(&mut v, 0.99), Some(99.0));
        assert_eq!(quantile(&mut v, 0.5), Some(50.0));
        assert_eq!(quantile(&mut [7.0], 0.99), Some(7.0));
        assert_eq!(quantile(&mut [], 0.5), None);
    }
}
