//! The demo: four guests of one image, one interleaved run, one table.
//!
//! ```text
//!   idle 15 s   round 1        round 2        round 3        ramp     cache          idle 20 s
//!   all         S . B . R . P  P . R . B . S  B . P . S . R  all      S  B  R  P     all
//! ```
//!
//! S static, B balloon, R reporting, P the pair (`ballast`). All four live through the same minutes of the same noisy
//! machine, bursts never overlap, and each arm idles at least 10 s before and after each of its bursts. The order
//! changes from round to round, so that no arm always follows the same other.

mod reaction;
mod report;

use anyhow::{Context, Result, bail};
use ballast_protocol::Bytes;
use ballast_tests::lab::warm::Warm;
use ballast_tests::wire::{Counters, End, Touch, Touched};
use ballast_tests::{Balloon, HostAgent, Machine, NOISE_FILE, paths};
use indicatif::{ProgressBar, ProgressStyle};
use std::process::ExitCode;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

/// Each burst maps and touches so much, as fast as it goes.
const BURST_MIB: u64 = 300;
/// The ramp, and its rate: 10 s.
const RAMP_MIB: u64 = 250;
const RAMP_MIB_S: u64 = 25;
/// What is read once from the disk.
const CACHE_MIB: u64 = 250;
/// Before and after each burst, at least.
const IDLE: Duration = Duration::from_secs(10);
/// Between two bursts of different arms: the one before has settled.
const GAP: Duration = Duration::from_secs(5);
const AFTER_CACHE: Duration = Duration::from_secs(20);
/// Resident memory is looked at so often.
const SAMPLE: Duration = Duration::from_millis(250);
/// The end of an idle phase, where its resident memory is taken from.
const SETTLED: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(60);
const ARMS: [&str; 4] = ["static", "balloon", "reporting", "ballast"];
const STATIC: usize = 0;
const BALLOON: usize = 1;
const BALLAST: usize = 3;
const ROUNDS: [[usize; 4]; 3] = [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]];

/// Runs static, balloon, reporting and the pair side by side and compares them.
#[derive(Debug, clap::Args)]
pub struct Demo {
    /// The guests' CPUs.
    #[arg(long, default_value_t = 2)]
    vcpus: u32,
    /// Let the pair's guest report free pages as well.
    #[arg(long)]
    with_reporting: bool,
    /// Let the pair's guest agent hold back what outruns it (memory.high), to measure what that costs and saves.
    #[arg(long)]
    with_absorber: bool,
}

/// One guest and what has been seen of it.
struct Arm {
    name: &'static str,
    machine: Machine,
    before: Counters,
    /// Resident memory over time.
    resident: Vec<(Instant, Bytes)>,
    bursts: Vec<(Instant, Touched, Instant)>,
    ramp: Option<Touched>,
    cache: Option<(Instant, f64)>,
}

impl Arm {
    fn mean_resident(&self, from: Instant, to: Instant) -> Option<f64> {
        let within: Vec<f64> =
            self.resident.iter().filter(|(at, _)| (from..=to).contains(at)).map(|(_, r)| r.mib_f64()).collect();
        (!within.is_empty()).then(|| within.iter().sum::<f64>() / within.len() as f64)
    }
}

impl Demo {
    /// Runs it; status 1 when the pair let an allocation fail or a process be killed.
    pub fn run(&self) -> Result<ExitCode> {
        let folder = paths::target().join("demo");
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let begun = Instant::now();
        let warm = Warm::where_needed();
        let bar = ProgressBar::new(19);
        bar.set_style(ProgressStyle::with_template("{bar:30} {elapsed} of about 3 min  {msg}")?);
        bar.enable_steady_tick(Duration::from_millis(500));

        bar.set_message("booting one guest of each kind, then cloning");
        let mut arms = self.machines()?;
        let mut config = HostAgent::config(&[&arms[BALLAST].machine]);
        // Each burst is to meet a squeezed guest: that is what the demo is about. By default the second would not, and what is read
        // once would stay for five minutes.
        config.insert(
            "defaults".into(),
            toml::Table::from_iter(["returning", "cold-after"].map(|key| (key.to_owned(), "0s".into()))).into(),
        );
        let host = HostAgent::start(config)?;
        let agent = if self.with_absorber { vec!["run", "--absorber"] } else { vec!["run"] };
        arms[BALLAST].machine.guest.start_agent(&agent)?;
        bar.inc(1);

        bar.set_message("all idle: the pair finds its size");
        watch(&mut arms, IDLE)?;
        let sizes = sample_balloon(&mut arms, SETTLED)?;
        arms[BALLOON].machine.qmp.set_balloon(sizes)?;
        bar.inc(1);
        bar.set_message(format!("all idle: the fixed balloon gets the pair's idle size, {} MiB", sizes.as_mib()));
        watch(&mut arms, IDLE)?;
        for arm in &mut arms {
            arm.before = arm.machine.guest.counters()?;
        }
        bar.inc(1);

        for (number, round) in ROUNDS.iter().enumerate() {
            for &arm in round {
                bar.set_message(format!("burst {} of {}: {}", number + 1, ROUNDS.len(), arms[arm].name));
                if let Some((_, _, end)) = arms[arm].bursts.last() {
                    let rest = IDLE.saturating_sub(end.elapsed());
                    watch(&mut arms, rest)?;
                }
                burst(&mut arms, arm)?;
                watch(&mut arms, GAP)?;
                bar.inc(1);
            }
        }
        bar.set_message("all idle");
        watch(&mut arms, IDLE.saturating_sub(GAP))?;

        bar.set_message(format!("a ramp of {RAMP_MIB} MiB at {RAMP_MIB_S} MiB/s in all four"));
        ramps(&mut arms)?;
        bar.inc(1);
        bar.set_message(format!("{CACHE_MIB} MiB of page cache in each, one after the other"));
        for arm in &mut arms {
            let read = arm.machine.guest.read(NOISE_FILE, CACHE_MIB)?;
            arm.cache = Some((Instant::now(), read.took_us as f64 / 1e3));
        }
        bar.inc(1);
        bar.set_message("all idle for 20 s: who keeps the cache?");
        watch(&mut arms, AFTER_CACHE)?;
        bar.finish_and_clear();

        let summary =
            report::summary(&mut arms, self.vcpus, warm.is_some(), sizes, begun.elapsed(), &host.journal_path())?;
        let journal = folder.join("journal.jsonl");
        std::fs::copy(host.journal_path(), &journal).with_context(|| journal.display().to_string())?;
        std::fs::write(folder.join("host.log"), std::fs::read(host.log_path())?)?;
        let path = folder.join("summary.json");
        std::fs::write(&path, serde_json::to_vec_pretty(&summary)?).with_context(|| path.display().to_string())?;
        print!("{}", report::table(&summary));
        println!("{}\n{}", path.display(), journal.display());
        let ballast = &summary.arms["ballast"];
        if ballast.failed_allocations > 0 || ballast.oom_kills > 0 {
            println!("FAILED: the pair refused an allocation or let a process be killed\n{}", host.log());
            return Ok(ExitCode::FAILURE);
        }
        Ok(ExitCode::SUCCESS)
    }

    fn machines(&self) -> Result<Vec<Arm>> {
        let balloon = |arm: usize| match ARMS[arm] {
            "balloon" => Balloon { deflate_on_oom: false, free_page_reporting: false },
            "reporting" => Balloon { deflate_on_oom: true, free_page_reporting: true },
            "ballast" => Balloon { deflate_on_oom: true, free_page_reporting: self.with_reporting },
            _ => Balloon::default(),
        };
        let start =
            |arm: usize| Machine::builder(ARMS[arm]).vcpus(self.vcpus).disk().balloon(Some(balloon(arm))).start();
        thread::scope(|scope| {
            let starting: Vec<_> = (0..ARMS.len()).map(|arm| scope.spawn(move || start(arm))).collect();
            let mut arms = Vec::new();
            for (arm, machine) in starting.into_iter().enumerate() {
                let machine = match machine.join() {
                    Ok(machine) => machine?,
                    Err(_) => bail!("starting guest {} panicked", ARMS[arm]),
                };
                arms.push(Arm {
                    name: ARMS[arm],
                    machine,
                    before: Counters::default(),
                    resident: Vec::new(),
                    bursts: Vec::new(),
                    ramp: None,
                    cache: None,
                });
            }
            Ok(arms)
        })
    }
}

/// Lets time pass and looks at what the guests hold.
fn watch(arms: &mut [Arm], span: Duration) -> Result<()> {
    let end = Instant::now() + span;
    loop {
        look(arms)?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        sleep(left.min(SAMPLE));
    }
}

fn look(arms: &mut [Arm]) -> Result<()> {
    for arm in arms {
        let resident = arm.machine.resident()?;
        arm.resident.push((Instant::now(), resident));
    }
    Ok(())
}

/// What the pair's guest keeps on average over `span`.
fn sample_balloon(arms: &mut [Arm], span: Duration) -> Result<Bytes> {
    let begun = Instant::now();
    let mut sizes = Vec::new();
    while begun.elapsed() < span {
        sizes.push(arms[BALLAST].machine.qmp.balloon()?.0);
        watch(arms, SAMPLE)?;
    }
    Ok(Bytes(sizes.iter().sum::<u64>() / sizes.len().max(1) as u64).round_down(Bytes::mib(1)))
}

fn burst(arms: &mut [Arm], arm: usize) -> Result<()> {
    let touch = Touch { mib: BURST_MIB, ..Touch::default() };
    let begun = Instant::now();
    let touched = arms[arm].machine.guest.touch(touch)?.outcome(PATIENCE)?;
    arms[arm].bursts.push((begun, touched, Instant::now()));
    look(arms)
}

fn ramps(arms: &mut [Arm]) -> Result<()> {
    let touch = Touch { mib: RAMP_MIB, rate_mib_s: Some(RAMP_MIB_S), chunk_mib: Some(1), hold_ms: 0 };
    let pending: Vec<_> = arms.iter().map(|a| a.machine.guest.touch(touch)).collect::<Result<_>>()?;
    for (arm, pending) in arms.iter_mut().zip(pending) {
        arm.ramp = Some(pending.outcome(PATIENCE)?);
    }
    look(arms)
}

fn refused(touched: &Touched) -> bool {
    matches!(touched.end, End::Refused(_))
}
