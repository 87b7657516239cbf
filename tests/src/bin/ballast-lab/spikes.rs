//! Random bursts against the pair: does any guest process ever die, or is refused memory, that the machine's maximum
//! could have satisfied?
//!
//! A series is one clone with a fresh pair and some spikes, each after an idle gap during which the pair takes memory
//! away: the gap decides how much slack is left. Everything random comes from the seed and the series' number, so
//! that a failure is repeated by running its series alone.

use anyhow::{Context, Result, bail};
use ballast_protocol::Bytes;
use ballast_tests::wire::{Counters, End, Touch, Touched};
use ballast_tests::{HostAgent, Machine, paths};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::fs;
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

/// The largest spike; what a guest of 512 MiB can hold beside its kernel, with a reserve.
const LARGEST: u64 = 300;
const SMALLEST: u64 = 20;
/// As fast as a guest touches memory under emulation; above it the rate is no limit.
const FASTEST: u64 = 250;
/// Sizes of the single mappings a spike is made of, MiB; `None`: one for all.
const CHUNKS: [Option<u64>; 5] = [None, None, Some(1), Some(8), Some(64)];
/// From "it has just got everything" to "it has been squeezed as far as it goes".
const GAP_MS: (u64, u64) = (100, 6_000);
/// The pair takes for the first time within its cool-down and a few steps.
const FIRST_TAKING: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(120);

/// What is to be tried.
#[derive(Debug, clap::Args)]
pub struct Spikes {
    /// How many spikes.
    #[arg(long, default_value_t = 300)]
    count: u32,
    /// Where randomness starts.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Spikes to a clone.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    per_series: u32,
    /// Only this series, to repeat a failure.
    #[arg(long)]
    series: Option<u32>,
    /// So many series at once, each on a machine of its own; more than one to two cores makes it harder.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
    parallel: u32,
    /// The guest's CPUs.
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
}

/// One spike and what became of it.
#[derive(Debug, Serialize)]
struct Spike {
    series: u32,
    number: u32,
    gap_ms: u64,
    order: Touch,
    /// What the balloon left the guest when the spike began, MiB.
    had_mib: u64,
    /// MemAvailable then, MiB.
    slack_mib: u64,
    outcome: Touched,
    oom_kills: u64,
    allocation_stalls: u64,
    memory_stall_us: u64,
    /// Pages the balloon gave back meanwhile, as MiB.
    given_mib: u64,
}

impl Spike {
    fn failed(&self) -> bool {
        self.outcome.end != End::Whole || self.oom_kills > 0
    }
}

/// `target/spikes/summary.json`.
#[derive(Debug, Default, Serialize)]
struct Summary {
    seed: u64,
    per_series: u32,
    vcpus: u32,
    spikes: usize,
    oom_kills: u64,
    killed: usize,
    failed_allocations: usize,
    allocation_stalls: u64,
    memory_stall_us: u64,
    given_gib: f64,
    allocation_stalls_per_gib_given: f64,
    worst_stall_ms_median: f64,
    worst_stall_ms_p99: f64,
    worst_stall_ms_max: f64,
    /// Spikes that began with less available than they then used: the ones that mattered.
    beyond_slack: usize,
    failures: Vec<Spike>,
}

impl Spikes {
    /// Runs them; status 1 when one failed.
    pub fn run(&self) -> Result<ExitCode> {
        let folder = paths::target().join("spikes");
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let series: Vec<u32> = match self.series {
            Some(one) => vec![one],
            None => (0..self.count.div_ceil(self.per_series)).collect(),
        };
        println!("seed {}, series {:?}, {} spikes to a series", self.seed, series, self.per_series);
        let bar = ProgressBar::new(u64::from(if self.series.is_some() { self.per_series } else { self.count }));
        let style = "{bar:30} {pos}/{len} spikes, {elapsed} gone, {eta} left  {msg}";
        bar.set_style(ProgressStyle::with_template(style).context("the bar's template is wrong")?);
        let all = Mutex::new(Vec::new());
        let left = Mutex::new(series.into_iter());
        let worker = || -> Result<()> {
            loop {
                // A statement of its own, so that the others may go on while this series runs.
                let next = left.lock().expect("no holder panics").next();
                let Some(series) = next else { return Ok(()) };
                let rest = self.count.saturating_sub(series * self.per_series).min(self.per_series);
                let wanted = if self.series.is_some() { self.per_series } else { rest };
                self.series(series, wanted, &bar, &all)
                    .with_context(|| format!("seed {}, series {series}", self.seed))?;
            }
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..self.parallel).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().try_for_each(|w| w.join().unwrap_or_else(|_| bail!("a series panicked")))
        })?;
        bar.finish();
        let summary = self.summary(all.into_inner().context("a series panicked")?);
        let path = folder.join("summary.json");
        fs::write(&path, serde_json::to_vec_pretty(&summary)?).with_context(|| path.display().to_string())?;
        println!(
            "{} spikes ({} beyond the slack they began with): {} killed, {} OOM kills, {} failed allocations; {:.1} GiB \
             given, {:.1} allocation stalls a GiB, {:.1} ms stalled in all; worst 1 MiB: median {:.1}, p99 {:.1}, max \
             {:.1} ms\n{}",
            summary.spikes,
            summary.beyond_slack,
            summary.killed,
            summary.oom_kills,
            summary.failed_allocations,
            summary.given_gib,
            summary.allocation_stalls_per_gib_given,
            summary.memory_stall_us as f64 / 1e3,
            summary.worst_stall_ms_median,
            summary.worst_stall_ms_p99,
            summary.worst_stall_ms_max,
            path.display(),
        );
        Ok(if summary.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// One clone, one pair, some spikes.
    fn series(&self, series: u32, spikes: u32, bar: &ProgressBar, all: &Mutex<Vec<Spike>>) -> Result<()> {
        let mut random = Random::new(self.seed, series);
        let mut machine = Machine::builder("spikes").vcpus(self.vcpus).start()?;
        let mut config = HostAgent::config(&[&machine]);
        // Nothing is left alone: every spike is to meet a guest that has just been squeezed.
        config.insert(
            "defaults".into(),
            toml::Table::from_iter(["returning", "cold-after"].map(|key| (key.to_owned(), "0s".into()))).into(),
        );
        let host = HostAgent::start(config)?;
        machine.guest.start_agent(&["run"])?;
        let begun = Instant::now();
        while machine.qmp.balloon()? >= machine.size() {
            if begun.elapsed() > FIRST_TAKING {
                bail!("the pair takes nothing in {FIRST_TAKING:?}\n{}\n{}", host.log(), machine.guest.log());
            }
            thread::sleep(Duration::from_millis(20));
        }
        for number in 0..spikes {
            let gap_ms = random.within(GAP_MS.0, GAP_MS.1);
            let order = random.touch();
            thread::sleep(Duration::from_millis(gap_ms));
            let before = machine.guest.counters()?;
            let had_mib = machine.qmp.balloon()?.as_mib();
            let outcome = machine.guest.touch(order)?.outcome(PATIENCE)?;
            let after = machine.guest.counters()?;
            let spike = Spike {
                series,
                number,
                gap_ms,
                order,
                had_mib,
                slack_mib: before.available_mib(),
                outcome,
                oom_kills: after.oom_kills() - before.oom_kills(),
                allocation_stalls: after.allocation_stalls() - before.allocation_stalls(),
                memory_stall_us: after.memory_stall_us() - before.memory_stall_us(),
                given_mib: (given(&after) - given(&before)).as_mib(),
            };
            if spike.failed() {
                let what = format!(
                    "FAILED: seed {} series {series} spike {number}, {} us after the guest's boot: {spike:?}\n{}\n{}",
                    self.seed,
                    spike.outcome.ended_us,
                    host.log(),
                    machine.guest.log()
                );
                bar.suspend(|| println!("{what}"));
            }
            bar.inc(1);
            let mut all = all.lock().expect("no holder panics");
            all.push(spike);
            bar.set_message(format!("{} failed", all.iter().filter(|s| s.failed()).count()));
            drop(all);
            if !machine.guest.agent()?.alive {
                bail!("the guest agent is gone\n{}", machine.guest.log());
            }
        }
        Ok(())
    }

    fn summary(&self, all: Vec<Spike>) -> Summary {
        let given_gib = all.iter().map(|s| s.given_mib).sum::<u64>() as f64 / 1024.0;
        let allocation_stalls = all.iter().map(|s| s.allocation_stalls).sum();
        let mut worst: Vec<f64> = all.iter().map(|s| s.outcome.worst_millis()).collect();
        worst.sort_by(f64::total_cmp);
        let at = |share: f64| {
            worst
                .get(((worst.len() as f64 * share) as usize).min(worst.len().saturating_sub(1)))
                .copied()
                .unwrap_or(0.0)
        };
        Summary {
            seed: self.seed,
            per_series: self.per_series,
            vcpus: self.vcpus,
            spikes: all.len(),
            oom_kills: all.iter().map(|s| s.oom_kills).sum(),
            killed: all.iter().filter(|s| matches!(s.outcome.end, End::Killed { .. })).count(),
            failed_allocations: all.iter().filter(|s| matches!(s.outcome.end, End::Refused(_))).count(),
            allocation_stalls,
            memory_stall_us: all.iter().map(|s| s.memory_stall_us).sum(),
            given_gib,
            allocation_stalls_per_gib_given: if given_gib > 0.0 { allocation_stalls as f64 / given_gib } else { 0.0 },
            worst_stall_ms_median: at(0.5),
            worst_stall_ms_p99: at(0.99),
            worst_stall_ms_max: at(1.0),
            beyond_slack: all.iter().filter(|s| s.order.mib > s.slack_mib).count(),
            failures: all.into_iter().filter(Spike::failed).collect(),
        }
    }
}

/// What the balloon has given back since boot.
fn given(counters: &Counters) -> Bytes {
    ballast_protocol::Pages(counters.vmstat.get("balloon_deflate").copied().unwrap_or(0)).into()
}

/// splitmix64 (Steele, Lea and Flood, OOPSLA 2014): a few lines, and the same on every machine for ever, which a
/// failure's seed needs.
struct Random(u64);

impl Random {
    fn new(seed: u64, series: u32) -> Self {
        let mut random = Self(seed);
        let start = random.next();
        Self(start ^ u64::from(series).wrapping_mul(0xd134_2543_de82_ef95))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Both ends included. The bias of the remainder is far below what any result here resolves.
    fn within(&mut self, least: u64, most: u64) -> u64 {
        least + self.next() % (most - least + 1)
    }

    fn touch(&mut self) -> Touch {
        // A third of them as fast as it goes: the hardest case.
        let rate_mib_s = (self.within(0, 2) > 0).then(|| self.within(20, FASTEST));
        let chunk_mib = CHUNKS[self.within(0, CHUNKS.len() as u64 - 1) as usize];
        Touch { mib: self.within(SMALLEST, LARGEST), rate_mib_s, chunk_mib, hold_ms: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_repeated_by_its_seed_and_number() {
        let orders = |seed, series| {
            let mut random = Random::new(seed, series);
            (0..50).map(|_| (random.within(GAP_MS.0, GAP_MS.1), random.touch())).collect::<Vec<_>>()
        };
        assert_eq!(orders(7, 3), orders(7, 3));
        assert_ne!(orders(7, 3), orders(7, 4));
        assert_ne!(orders(7, 3), orders(8, 3));
        assert!(orders(7, 3).iter().all(|(gap, o)| *gap <= GAP_MS.1 && (SMALLEST..=LARGEST).contains(&o.mib)));
        assert!(orders(7, 3).iter().any(|(_, o)| o.rate_mib_s.is_none()));
    }
}
