//! The data card: what the rows are, how they came about, and what they do not know.

use super::{Made, Part};
use crate::lab::results::Run;
use crate::lab::stats;
use ballast_planner::HORIZON;
use ballast_predictor::{Manifest, Row};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, SystemTime};

/// A loss above this is one: the planner's own budget is 1 %.
const LOST: f32 = 0.01;

/// What is said of the rows of one workload.
#[derive(Default)]
struct Sum<'a> {
    title: String,
    blocks: usize,
    minutes: f64,
    killed: u64,
    works: u64,
    probes: usize,
    rows: Vec<&'a Row>,
}

pub(super) fn text(run: &Run, manifest: &Manifest, parts: &[Part], made: &Made) -> String {
    let mut sums: BTreeMap<&str, Sum<'_>> = BTreeMap::new();
    for part in parts {
        let sum = sums.entry(&part.block.experiment).or_default();
        sum.title = title(run.experiments.get(&part.block.experiment).map_or("", String::as_str));
        sum.blocks += 1;
        sum.minutes += part.block.took_s / 60.0;
        for arm in &part.block.arms {
            sum.killed += arm.phases.iter().map(|p| p.outcome.killed).sum::<u64>();
            sum.works += arm.phases.iter().filter(|p| p.measured).count() as u64;
            sum.probes += arm.probes.len();
        }
        sum.rows.extend(&part.found.rows);
    }
    // Writing into a String cannot fail.
    let mut text = String::new();
    let _ = head(&mut text, run, manifest, made);
    let _ = table(&mut text, &sums);
    let _ = columns(&mut text, manifest);
    let _ = limits(&mut text, made);
    text
}

fn head(text: &mut String, run: &Run, manifest: &Manifest, made: &Made) -> std::fmt::Result {
    writeln!(text, "# Data card: what a guest loses when it is left so much memory\n")?;
    let begun: Vec<SystemTime> =
        manifest.runs.iter().map(|r| SystemTime::UNIX_EPOCH + Duration::from_secs(r.started_unix)).collect();
    let moment =
        |at: Option<&SystemTime>| at.map_or(String::new(), |at| humantime::format_rfc3339_seconds(*at).to_string());
    writeln!(
        text,
        "{} rows from {} runs, collected by `ballast-lab collect` (last {}) between {} and {}; runs that are there are kept, and \
         `manifest.json` says when each began and with which seed. Each row is a horizon of {} s of a real guest under QEMU: the state \
         before it, the size it was ordered to keep (its floor, where that is more) or kept, and what came of it.\n",
        made.rows,
        manifest.runs.len(),
        run.version,
        moment(begun.iter().min()),
        moment(begun.iter().max()),
        HORIZON.secs_f64(),
    )?;
    writeln!(text, "- Machine: {}", manifest.machine)?;
    writeln!(text, "- Guest: kernel {}, images {}", manifest.kernel, manifest.image)?;
    writeln!(
        text,
        "- Features: version {}, made by the planner from the journals by replaying them",
        manifest.features_version
    )?;
    writeln!(
        text,
        "- Sizes: chosen by chance, seeded per block: two tenths all of the memory, four tenths within -96 to +128 MiB of what the guest \
         needs at that moment, the rest from its whole range. A size stays for {} to {} s; horizons begin with it and every second \
         after it as long as they end before the next.",
        HORIZON.secs_f64() + 0.2,
        HORIZON.secs_f64() + 5.0,
    )?;
    writeln!(
        text,
        "- In runs of odd numbers the host agent moves the balloon there and then only gives: what the guest asks for, what survival \
         wants, what hurt. A loss is what remains when the fast path has done what it can. In runs of even numbers it runs dry and \
         the balloon is moved behind its back: a loss is what happens when nobody helps. The column `answered` tells them apart.\n",
    )
}

fn table(text: &mut String, sums: &BTreeMap<&str, Sum<'_>>) -> std::fmt::Result {
    writeln!(
        text,
        "| workload | runs | minutes | rows | sizes, MiB | mean loss | lost more than {LOST} | pressure | works done | processes killed | \
         iperf3 probes |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )?;
    for (workload, sum) in sums {
        let count = sum.rows.len();
        let share = |n: usize| if count > 0 { 100.0 * n as f64 / count as f64 } else { 0.0 };
        let losses: Vec<f64> = sum.rows.iter().map(|r| f64::from(r.loss)).collect();
        let sizes = sum.rows.iter().map(|r| r.size_mib);
        writeln!(
            text,
            "| {workload}: {} | {} | {:.1} | {count} | {} to {} | {:.3} | {:.0} % | {:.0} % | {} | {} | {} |",
            sum.title,
            sum.blocks,
            sum.minutes,
            sizes.clone().min().unwrap_or(0),
            sizes.max().unwrap_or(0),
            stats::mean(&losses).unwrap_or(0.0),
            share(sum.rows.iter().filter(|r| r.loss > LOST).count()),
            share(sum.rows.iter().filter(|r| r.pressure).count()),
            sum.works,
            sum.killed,
            sum.probes,
        )?;
    }
    writeln!(text)
}

fn columns(text: &mut String, manifest: &Manifest) -> std::fmt::Result {
    writeln!(text, "## Columns\n")?;
    writeln!(text, "- Of the window: {}", manifest.window_names.join(", "))?;
    writeln!(
        text,
        "- Of the candidate size, none of which falls when the size grows: {}",
        manifest.candidate_names.join(", ")
    )?;
    writeln!(
        text,
        "- `loss`: the part of the horizon in which tasks stalled for memory, or the service lost by two probes, the larger, 0 to 1; \
         `pressure`: whether there was any worth the name. Both are the planner's.\n"
    )
}

fn limits(text: &mut String, made: &Made) -> std::fmt::Result {
    writeln!(text, "## What it does not know\n")?;
    writeln!(
        text,
        "- Of {} horizons {} have no row because the planner knew too little of their beginning (a silent agent, less than 5 s of \
         history), and {} because it does not know their end. A guest that is too busy to report is among these: the worst horizons \
         are a little too rare.",
        made.horizons, made.unknown, made.untold
    )?;
    writeln!(
        text,
        "- Rows of one order, and orders of one run, resemble each other. Hold out whole workloads, never rows.\n\
         - Guests run under emulation unless the machine says `kvm`, two at a time on shared cores; a guest that waits for the host's CPU \
         stalls longer. All have zram swap, and page cache of a disk to lose; none has free page reporting.\n\
         - Works are small and short. Nothing here has a day, a week or a terabyte."
    )?;
    for block in &made.without {
        writeln!(text, "- Without rows: {block}")?;
    }
    Ok(())
}

/// An experiment's own words.
fn title(text: &str) -> String {
    let table = text.parse::<toml::Table>().unwrap_or_default();
    table.get("title").and_then(|t| t.as_str()).unwrap_or_default().to_owned()
}
