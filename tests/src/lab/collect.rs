//! Data for the predictor: what becomes of a guest that is left so much memory?
//!
//! ```text
//!   collect/*.toml ── blocks (law `sweep`): works run, the lab has the balloon moved to a random size every horizon ─┐
//!                         └ ballast-host answers demands and takes nothing by itself (odd repetitions), or only     │
//!                           watches (even ones), and journals                                                       │
//!   DIR/blocks/*.json  DIR/journals/*.jsonl  <─────────────────────────────────────────────────────────────────────┘
//!        └── replayed through the planner: features before a horizon, the outcome at its end ── DIR/rows.jsonl
//!                                                                       DIR/manifest.json, DIR/CARD.md
//! ```
//! Blocks are collected once; rows are made again from them whenever features change, in seconds and without a guest. The
//! features of a row are what a planner answers that has been told everything up to that moment and nothing after it: the
//! same question that the daemon asks while it runs.

mod card;
mod rows;
mod sweep;

use super::results::{self, Block, Run};
use anyhow::{Context, Result, bail};
use ballast_planner::{CANDIDATE_NAMES, FEATURES_VERSION, WINDOW_NAMES};
use ballast_predictor::{Dataset, Manifest, RunInfo};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, SystemTime};
pub use sweep::{Move, SWEPT, Sweep};

/// The planner's horizon, seconds.
pub(crate) const HORIZON_S: f64 = ballast_planner::HORIZON.0 as f64 / 1e6;

/// What was made of the blocks in a folder.
#[derive(Debug, Default)]
pub struct Made {
    /// Rows written.
    pub rows: usize,
    /// Horizons in all.
    pub horizons: usize,
    /// Horizons whose beginning the planner knew too little of.
    pub unknown: usize,
    /// Horizons whose end was not told.
    pub untold: usize,
    /// Blocks that gave nothing, and why.
    pub without: Vec<String>,
}

/// What was made of one block.
struct Part {
    block: Block,
    /// Its journal, relative to the folder.
    journal: String,
    found: rows::Found,
}

/// A run's name in rows and files.
fn name(block: &Block) -> String {
    format!("{}-{}", block.experiment, block.repetition)
}

/// Writes `rows.jsonl`, `manifest.json` and `CARD.md` from the blocks and journals of a folder.
///
/// # Errors
/// There are no blocks, a journal is missing or cannot be read, or the folder cannot be written.
pub fn make(folder: &Path) -> Result<Made> {
    let run: Run = results::read_json(&folder.join("run.json")).context("nothing was collected here")?;
    let mut made = Made::default();
    let mut parts = Vec::new();
    for block in results::blocks(folder)? {
        let name = name(&block);
        let Some(arm) = block.arms.iter().find(|a| a.clock_s.is_some()) else {
            let why = block.arms.iter().find_map(|a| a.error.clone()).unwrap_or_else(|| "it has no sweep".into());
            made.without.push(format!("{name}: {why}"));
            continue;
        };
        let journal = format!("journals/{name}-{}.jsonl", arm.arm);
        let found = rows::of(&folder.join(&journal), &name, &block.experiment, &rows::horizons(arm))?;
        made.rows += found.rows.len();
        made.horizons += found.rows.len() + found.unknown + found.untold;
        made.unknown += found.unknown;
        made.untold += found.untold;
        parts.push(Part { block, journal, found });
    }
    if made.rows == 0 {
        bail!(
            "{}: not one horizon of {} could be made a row\n{}",
            folder.display(),
            made.horizons,
            made.without.join("\n")
        );
    }
    let manifest = manifest(&run, &parts);
    let text = card::text(&run, &manifest, &parts, &made);
    std::fs::write(folder.join("CARD.md"), text).with_context(|| folder.display().to_string())?;
    let rows = parts.into_iter().flat_map(|p| p.found.rows).collect();
    Dataset { manifest, rows }.write(folder).with_context(|| folder.display().to_string())?;
    Ok(made)
}

/// What the rows are and where they come from. Nothing in it is of the moment it is made: the same blocks give the same file.
fn manifest(run: &Run, parts: &[Part]) -> Manifest {
    let names = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect();
    let kernels: BTreeSet<&str> = parts.iter().filter_map(|p| p.found.kernel.as_deref()).collect();
    let m = &run.machine;
    let started = SystemTime::UNIX_EPOCH + Duration::from_secs(run.started_unix);
    Manifest {
        features_version: FEATURES_VERSION,
        window_names: names(&WINDOW_NAMES),
        candidate_names: names(&CANDIDATE_NAMES),
        kernel: kernels.into_iter().collect::<Vec<_>>().join(", "),
        image: run.image.clone(),
        machine: format!(
            "{}, {} CPUs, {} MiB, Linux {}, {}, {}",
            m.cpu, m.cpus, m.memory_mib, m.kernel, m.qemu, m.accelerator
        ),
        seed: parts.first().map_or(0, |p| p.block.seed),
        made: humantime::format_rfc3339_seconds(started).to_string(),
        runs: parts.iter().map(run_info).collect(),
    }
}

fn run_info(part: &Part) -> RunInfo {
    RunInfo {
        name: name(&part.block),
        workload: part.block.experiment.clone(),
        journal: part.journal.clone(),
        seed: part.block.seed,
        started_unix: part.block.started_unix,
        seconds: part.block.took_s,
        rows: part.found.rows.len() as u64,
    }
}
