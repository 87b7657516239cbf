//! What a run leaves on disk: one file a block, complete or not there at all.
//!
//! ```text
//!   target/lab/run.json                         what was asked, and of which machine
//!   target/lab/blocks/<experiment>-<n>.json     one repetition of one experiment, all arms
//!   target/lab/blocks/<experiment>-oracle-<n>.json
//!   target/lab/journals/<experiment>-<n>-<arm>.jsonl
//!   target/lab/summary.json  summary.csv  report.html
//! ```
//! A block is written under another name and renamed, so that whoever resumes a run may trust what is there. Everything
//! else (summary, report, comparison) is computed from the blocks and can be made again at any time.

use super::work::Outcome;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;

/// The arm that all others are compared with.
pub const STATIC: &str = "static";
/// The arm that is ours.
pub const BALLAST: &str = "ballast";
/// The same with the model's forecasts followed: what they are worth is the difference.
pub const PREDICTIVE: &str = "predictive";

/// What was asked, and of which machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Seconds since 1970.
    pub started_unix: u64,
    /// `git describe` of the sources, where there is one.
    pub version: String,
    /// Suite or file.
    pub asked: String,
    /// Where it ran.
    pub machine: Host,
    /// What the guests were booted from: kernel, and what tells one image from another.
    #[serde(default)]
    pub image: String,
    /// The files, by name: the text as it was read.
    pub experiments: std::collections::BTreeMap<String, String>,
    /// Blocks that time did not allow: an experiment's name and which of its blocks.
    #[serde(default)]
    pub left_out: Vec<String>,
}

/// The machine that an experiment ran on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// `model name` of `/proc/cpuinfo`.
    pub cpu: String,
    /// CPUs this process may use.
    pub cpus: usize,
    /// MemTotal, MiB.
    pub memory_mib: u64,
    /// Kernel release.
    pub kernel: String,
    /// First line of `qemu-system-x86_64 --version`.
    pub qemu: String,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// It reports its free pages to a host of its own, so free memory was kept warm (for all arms alike).
    pub kept_warm: bool,
}

/// One repetition of one experiment: all arms, side by side.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Block {
    /// The experiment's name.
    pub experiment: String,
    /// Of the file's text, the arms, the daemon and the images: a block of others is not resumed.
    pub fingerprint: String,
    /// From 1. An oracle search counts its own.
    pub repetition: u32,
    /// Part of the search for the oracle: its arms are `fixed@<MiB>`.
    pub oracle: bool,
    /// The order of arms was shuffled by this.
    pub seed: u64,
    /// Seconds since 1970.
    pub started_unix: u64,
    /// Wall-clock time, seconds.
    pub took_s: f64,
    /// Load average over a minute when it began: other work on this machine.
    pub load: f64,
    /// The arms, in the file's order.
    pub arms: Vec<ArmRun>,
}

/// One arm of a block.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ArmRun {
    /// Its name.
    pub arm: String,
    /// Why it ended early: the VM did not boot, QEMU died, the daemon ended. What was measured before is kept.
    pub error: Option<String>,
    /// Its guests, in the file's order.
    pub guests: Vec<GuestRun>,
    /// Its phases, in the order they were run.
    pub phases: Vec<PhaseRun>,
    /// Every order of its daemon; under `sweep`, of the lab.
    pub orders: Vec<OrderSeen>,
    /// Every demand its daemon heard.
    pub demands: Vec<DemandSeen>,
    /// Every service sample its prober made, iperf3.
    pub probes: Vec<ProbeSeen>,
    /// CPU time of its daemon, seconds.
    pub host_agent_cpu_s: f64,
    /// How long the law lasted, its settling included, seconds: what CPU time of the agents is a share of.
    #[serde(default)]
    pub agents_s: Option<f64>,
    /// First sign in the guest to the host's order, milliseconds, one per demand that led to an order.
    pub sign_to_order_ms: Vec<f64>,
    /// First sign in the guest to its first MiB, milliseconds.
    pub sign_to_first_mib_ms: Vec<f64>,
    /// What the guests together held beyond the host's budget, MiB times seconds; `None` without a budget.
    pub over_budget_mib_s: Option<f64>,
    /// When its daemon's clock began, at the latest, from the block's zero, seconds: that clock then says at least what lies
    /// between. Known under `sweep`.
    #[serde(default)]
    pub clock_s: Option<f64>,
}

/// One guest of an arm.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct GuestRun {
    /// Its name in the file.
    pub name: String,
    /// Its memory with an empty balloon, MiB.
    pub memory_mib: u64,
    /// Looks at it, twice a second, from the end of ageing to the end of the block.
    pub series: Vec<Look>,
    /// What it went through from the law's beginning to the end of the block. What the host held for it, and the
    /// seconds watched, count from the first phase on: before that the laws still look for their size.
    pub totals: Totals,
}

/// One look at a guest. Times are seconds from the block's zero: the end of ageing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Look {
    /// When.
    pub t: f64,
    /// Guest memory that the host holds, MiB.
    pub resident_mib: f64,
    /// What the balloon leaves the guest, MiB.
    pub kept_mib: f64,
    /// MemFree, MiB; `None` when the guest did not answer in time.
    pub free_mib: Option<f64>,
    /// MemAvailable, MiB.
    pub available_mib: Option<f64>,
    /// PSI `some` of memory since the block's zero, milliseconds.
    pub stall_ms: Option<f64>,
}

/// What a guest went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// OOM kills.
    pub oom_kills: u64,
    /// Direct reclaims that an allocation waited for.
    pub allocation_stalls: u64,
    /// PSI `some` of memory, milliseconds.
    pub stall_some_ms: f64,
    /// PSI `full` of memory, milliseconds.
    pub stall_full_ms: f64,
    /// Page cache read again that had been dropped, MiB.
    pub refault_mib: f64,
    /// Read from swap, MiB.
    pub swap_in_mib: f64,
    /// Written to swap, MiB.
    pub swap_out_mib: f64,
    /// Into the balloon, MiB.
    pub inflated_mib: f64,
    /// Out of the balloon, MiB.
    pub deflated_mib: f64,
    /// CPU time of the guest agent, seconds.
    pub agent_cpu_s: f64,
    /// Seconds in which it was watched.
    pub watched_s: f64,
    /// Memory the host held for it, GiB times seconds.
    pub resident_gib_s: f64,
}

/// One phase, run once on one arm.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PhaseRun {
    /// Its place in the file, from 0, counted on when the phases begin anew: the same place in another arm is its pair.
    pub index: usize,
    /// Its label: the file's, or made from the work.
    pub label: String,
    /// The guest it ran in.
    pub guest: String,
    /// Counts in ratios. Fills and flushes only set the scene.
    pub measured: bool,
    /// From the block's zero, seconds.
    pub began_s: f64,
    /// Its length, seconds.
    pub took_s: f64,
    /// What came of it.
    pub outcome: Outcome,
    /// What its guest went through meanwhile.
    pub during: Totals,
}

/// An order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OrderSeen {
    /// From the block's zero, seconds.
    pub t: f64,
    /// The guest.
    pub guest: String,
    /// What it had been told to keep, MiB.
    pub from_mib: f64,
    /// What it is to keep, MiB.
    pub to_mib: f64,
    /// In words.
    pub reason: String,
}

/// A demand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DemandSeen {
    /// From the block's zero, seconds.
    pub t: f64,
    /// The guest.
    pub guest: String,
    /// MiB.
    pub mib: f64,
    /// How the guest knew.
    pub source: String,
}

/// A service sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeSeen {
    /// From the block's zero, seconds.
    pub t: f64,
    /// The guest.
    pub guest: String,
    /// Mbit/s; 0 when it failed.
    pub mbit_s: f64,
    /// TCP retransmits.
    pub retransmits: u64,
    /// Smoothed round-trip time, milliseconds, where iperf3 tells.
    pub rtt_ms: Option<f64>,
}

/// `summary.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    /// What was asked, and of which machine.
    pub run: Run,
    /// Wall-clock time of all blocks, seconds.
    pub took_s: f64,
    /// Blocks that are complete, and blocks in which an arm ended early.
    pub blocks: u32,
    /// Of these.
    pub broken: u32,
    /// One per experiment and arm, in the files' order.
    pub cells: Vec<Cell>,
    /// By experiment: the smallest fixed size of each guest with no loss, MiB.
    pub oracles: std::collections::BTreeMap<String, Oracle>,
}

/// The smallest fixed size with no loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Oracle {
    /// What each guest keeps, MiB.
    pub size_mib: u64,
    /// What the host held for all of its guests, on average, MiB.
    pub resident_mib: f64,
    /// The largest size tried that did lose, and how; `None`: even the smallest tried lost nothing.
    pub lost_at: Option<(u64, String)>,
}

/// An estimate with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// The phase that suffers most, where an experiment has several kinds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorstPhase {
    /// Its label.
    pub label: String,
    /// Its median, over repetitions and times, of ratios to `static`.
    pub ratio: f64,
}

/// One experiment under one arm. Ratios of work and latency are medians of ratios paired by repetition and phase, `None`
/// where nothing could be compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The experiment.
    pub experiment: String,
    /// The arm.
    pub arm: String,
    /// Its law.
    #[serde(default)]
    pub law: String,
    /// Repetitions that count.
    pub repetitions: u32,
    /// Over all repetitions: OOM kills counted by the guests' kernels.
    pub oom_kills: u64,
    /// Allocations refused to workloads.
    pub failed_allocations: u64,
    /// Workload processes that were killed, for whatever reason.
    pub killed: u64,
    /// Phases whose work did not come to its end in time.
    #[serde(default)]
    pub unfinished: u64,
    /// To `static`; more is better.
    pub throughput_ratio: Option<f64>,
    /// To `static`; less is better.
    pub p50_ratio: Option<f64>,
    /// To `static`; less is better.
    pub p99_ratio: Option<f64>,
    /// To `static`; less is better.
    pub p999_ratio: Option<f64>,
    /// As `throughput_ratio`, of the phase in which it is lowest.
    #[serde(default)]
    pub worst_phase_throughput: Option<WorstPhase>,
    /// As `p99_ratio`, of the phase in which it is highest.
    #[serde(default)]
    pub worst_phase_p99: Option<WorstPhase>,
    /// The longest single operation, median over repetitions, milliseconds.
    pub worst_stall_ms: Option<f64>,
    /// Mean memory held by the host, to `static`; less is better. A ratio of means over time; its interval is of rounds, from
    /// where the first arm begins a phase to where the first begins the next.
    pub resident_ratio: Option<f64>,
    /// Mean memory held by the host, to the oracle; less is better.
    pub oracle_ratio: Option<f64>,
    /// Mean memory held by the host for all guests, MiB.
    pub resident_mib: Option<f64>,
    /// Share of the watched time in which its own phases ran. In the rest its guests were idle while others had their turn.
    #[serde(default)]
    pub busy_share: Option<f64>,
    /// As `resident_mib`, while its own phases ran.
    #[serde(default)]
    pub resident_busy_mib: Option<f64>,
    /// As `resident_ratio`, while its own phases ran, to `static` while the same phases of `static` ran.
    #[serde(default)]
    pub resident_busy_ratio: Option<f64>,
    /// Sum over repetitions and guests.
    pub totals: Totals,
    /// iperf3's probes while its measured phases ran, in a second of these; `None`: none.
    #[serde(default)]
    pub probes_per_s: Option<f64>,
    /// CPU time of the host agent, share of one core.
    pub host_agent_cpu: Option<f64>,
    /// CPU time of the guest agents, share of one emulated core each.
    pub guest_agent_cpu: Option<f64>,
    /// How long its law ruled, settling included, sum over repetitions, seconds. What balloons moved, they moved in this time.
    #[serde(default)]
    pub agents_s: Option<f64>,
    /// First sign to order, milliseconds: median and p99.
    pub sign_to_order_ms: Option<(f64, f64)>,
    /// First sign to first MiB, milliseconds: median and p99.
    pub sign_to_first_mib_ms: Option<(f64, f64)>,
    /// Beyond the host's budget, MiB times seconds, mean of repetitions.
    pub over_budget_mib_s: Option<f64>,
    /// By the name of the field: 95 % bootstrap intervals.
    pub ci: std::collections::BTreeMap<String, Interval>,
    /// By the name of the field: differs from `static`, or "no difference".
    pub verdict: std::collections::BTreeMap<String, String>,
    /// Arms that ended early, and why.
    pub errors: Vec<String>,
}

/// Writes a value so that it is there whole or not at all.
///
/// # Errors
/// The folder cannot be written.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let draft = path.with_extension("draft");
    fs::write(&draft, serde_json::to_vec_pretty(value)?).with_context(|| draft.display().to_string())?;
    fs::rename(&draft, path).with_context(|| path.display().to_string())
}

/// Reads a value.
///
/// # Errors
/// The file is not there, or was written by another version.
pub fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T> {
    let text = fs::read(path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&text).with_context(|| format!("{}: not written by this version", path.display()))
}

/// All blocks of a run, in the order of their names.
///
/// # Errors
/// One cannot be read.
pub fn blocks(folder: &Path) -> Result<Vec<Block>> {
    let folder = folder.join("blocks");
    let entries = fs::read_dir(&folder).with_context(|| format!("{}: no run is here", folder.display()))?;
    let mut paths: Vec<_> = entries.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
    paths.retain(|p| p.extension().is_some_and(|e| e == "json"));
    paths.sort();
    paths.iter().map(|p| read_json(p)).collect()
}
