//! A run: which blocks, in which order, what is there already, and what is left out when time is short.
//!
//! Repetitions are the outer loop, so that a run which is cut short has all experiments, with fewer repetitions. The
//! searches for the oracles come after the first repetition, those first whose experiment took least: the figure asked of
//! them is a median, which three of five decide.

use super::block;
use super::experiment::Experiment;
use super::results::{self, Block, Host, Run};
use super::summary;
use super::warm::Warm;
use crate::paths;
use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// Raised whenever blocks are made in another way than before, so that the two are not compared: guests are aged side by side.
const MADE_LIKE: u32 = 2;

/// What QEMU holds beside its guest's memory, MiB: 47 to 68 under TCG with guests of 512 MiB.
const QEMU_MIB: u64 = 64;

/// What is to be run.
#[derive(Debug)]
pub struct Order {
    /// The experiments.
    pub experiments: Vec<Experiment>,
    /// Files that were asked for too and cannot be used, by name.
    pub wrong: Vec<String>,
    /// Where results go.
    pub folder: PathBuf,
    /// In words: a suite's name, or files.
    pub asked: String,
    /// No block begins that would probably end later than this after the start, and none that does is kept.
    pub within: Option<Duration>,
    /// Start anew, whatever is there.
    pub fresh: bool,
    /// How many blocks are run at once: more than one only where nothing is compared.
    pub parallel: usize,
}

/// How a run went.
#[derive(Debug, Default)]
pub struct Done {
    /// Blocks that were run now.
    pub ran: u32,
    /// Blocks that were there already.
    pub resumed: u32,
    /// Blocks that time did not allow.
    pub left_out: Vec<String>,
    /// Blocks that could not be run, or in which an arm broke, and why. Also those that were there already.
    pub broken: Vec<String>,
    /// Blocks that were there, of other programs, images, arms or settings: moved away.
    pub superseded: u32,
    /// The longest block so far, seconds.
    longest_s: f64,
}

/// What all jobs of a run have in common.
struct Shared<'a> {
    made: &'a str,
    journals: &'a Path,
    bar: &'a ProgressBar,
    begun: Instant,
    done: &'a Mutex<Done>,
}

#[derive(Clone, Copy)]
enum Job<'a> {
    Block(&'a Experiment, u32),
    Oracle(&'a Experiment),
}

/// Shows what is being done on the terminal; lines on the standard error output where there is none.
struct Shown<'a> {
    bar: &'a ProgressBar,
    head: String,
}

/// At the pace so far; indicatif's own estimate follows the last few steps, of which one may take a minute and ten a second.
fn left(elapsed: Duration, done: u64, all: u64) -> String {
    match done {
        0 => "?".to_owned(),
        done => format!("{}m", (elapsed.as_secs() * all.saturating_sub(done) / done).div_ceil(60)),
    }
}

/// A line that stays.
fn say(bar: &ProgressBar, line: &str) {
    if bar.is_hidden() {
        let percent = 100 * bar.position() / bar.length().unwrap_or(1).max(1);
        let left = left(bar.elapsed(), bar.position(), bar.length().unwrap_or(0));
        eprintln!("{percent:>3} %  {left:>4} left  {line}");
    } else {
        bar.println(line);
    }
}

impl block::Progress for Shown<'_> {
    fn doing(&self, what: &str) {
        let line = format!("{}: {what}", self.head);
        if self.bar.is_hidden() {
            say(self.bar, &line);
        }
        self.bar.set_message(line);
    }

    fn step(&self) {
        self.bar.inc(1);
    }
}

impl Order {
    /// Runs what is not there yet. A block that cannot be run is told and does not end the run.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn run(&self) -> Result<Done> {
        let begun = Instant::now();
        // What it costs is worth it where arms are compared.
        let compares = self.experiments.iter().any(|e| e.arms.len() > 1);
        let warm = compares.then(Warm::where_needed).flatten();
        let (fitting, too_large) = fitting(&self.experiments, available_mib(), self.parallel.max(1) as u64);
        if fitting.is_empty() && !too_large.is_empty() {
            bail!("{}", too_large.join("\n"));
        }
        let made = made();
        let (mut run, superseded) = self.prepare(warm.is_some(), &made)?;
        let journals = self.folder.join("journals");
        let jobs = jobs(&fitting);
        let total = jobs.iter().map(|job| job.steps()).sum();
        let bar = ProgressBar::new(total);
        bar.set_style(
            ProgressStyle::with_template("{bar:24} {percent:>3} %  {elapsed} gone, about {left} left  {msg}")?
                .with_key("left", |state: &ProgressState, text: &mut dyn fmt::Write| {
                    let _ = text.write_str(&left(state.elapsed(), state.pos(), state.len().unwrap_or(0)));
                }),
        );
        bar.enable_steady_tick(Duration::from_millis(500));
        let done = Mutex::new(Done { superseded, broken: too_large, ..Done::default() });
        let left = Mutex::new(VecDeque::from(jobs));
        let shared = Shared { made: &made, journals: &journals, bar: &bar, begun, done: &done };
        let worker = || -> Result<()> {
            loop {
                // A statement of its own, so that the others may go on while this job runs.
                let next = self.next(&mut left.lock().expect("no holder panics"));
                let at = bar.position();
                match next {
                    None => return Ok(()),
                    Some(Job::Block(experiment, repetition)) => {
                        let print = experiment.fingerprint(&made);
                        self.block(experiment, &print, repetition, false, &shared)?;
                    }
                    Some(Job::Oracle(experiment)) => self.oracle(experiment, &shared)?,
                }
                // A search that needed fewer sizes, or a block that broke, has left some of its steps.
                if let Some(job) = next.filter(|_| self.parallel <= 1) {
                    bar.set_position(at + job.steps());
                }
            }
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..self.parallel.max(1)).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().try_for_each(|w| w.join().unwrap_or_else(|_| bail!("a block panicked")))
        })?;
        bar.finish_and_clear();
        let done = done.into_inner().ok().context("a block panicked")?;
        run.left_out.extend(done.left_out.iter().cloned());
        results::write_json(&self.folder.join("run.json"), &run)?;
        Ok(done)
    }

    /// The next job: the first, or, where searches are due, the one that is probably over soonest.
    fn next<'a>(&self, left: &mut VecDeque<Job<'a>>) -> Option<Job<'a>> {
        // Without a first repetition there is nothing that a search would be for.
        let took = |experiment: &Experiment| {
            let first = results::read_json::<Block>(&self.path(experiment, 1, false));
            first.map_or(u64::MAX, |block| block.took_s.max(0.0) as u64)
        };
        let due = left.iter().enumerate().map_while(|(place, job)| match job {
            Job::Oracle(experiment) => Some((took(experiment), place)),
            Job::Block(..) => None,
        });
        let soonest = due.min().map_or(0, |(_, place)| place);
        left.remove(soonest)
    }

    /// Returns what is asked, and how many blocks were there that are of something else.
    fn prepare(&self, kept_warm: bool, made: &str) -> Result<(Run, u32)> {
        if self.fresh {
            for part in ["blocks", "journals"] {
                let path = self.folder.join(part);
                if path.exists() {
                    fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
                }
            }
        }
        for part in ["blocks", "journals"] {
            let path = self.folder.join(part);
            fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        }
        let superseded = self.set_aside(made)?;
        // Of an earlier run in this folder the blocks of other experiments stay, and what is known of them.
        let before: Option<Run> = results::read_json(&self.folder.join("run.json")).ok().filter(|_| !self.fresh);
        let (mut experiments, mut left_out) = before.map(|run| (run.experiments, run.left_out)).unwrap_or_default();
        left_out.retain(|block| self.experiments.iter().all(|e| e.name != summary::left_out_of(block)));
        // An experiment of which no block ever came is not asked for for ever.
        let there: BTreeSet<String> =
            results::blocks(&self.folder).unwrap_or_default().into_iter().map(|b| b.experiment).collect();
        experiments.retain(|name, _| there.contains(name));
        left_out.retain(|block| there.contains(summary::left_out_of(block)));
        for name in &self.wrong {
            experiments.entry(name.clone()).or_default();
        }
        experiments.extend(self.experiments.iter().map(|e| (e.name.clone(), e.text.clone())));
        let run = Run {
            started_unix: SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs(),
            version: version(),
            asked: self.asked.clone(),
            machine: host(kept_warm),
            image: image(),
            experiments,
            left_out,
        };
        results::write_json(&self.folder.join("run.json"), &run)?;
        Ok((run, superseded))
    }

    /// Blocks of these experiments that were made by other programs, from other images, or with other arms would be compared with
    /// what is run now.
    fn set_aside(&self, made: &str) -> Result<u32> {
        let mut moved = 0;
        for experiment in &self.experiments {
            let print = experiment.fingerprint(made);
            let others = |path: &PathBuf| results::read_json::<Block>(path).is_ok_and(|b| b.fingerprint != print);
            let repetitions = (1..=u32::MAX).map(|n| self.path(experiment, n, false)).take_while(|p| p.exists());
            let stale: Vec<PathBuf> = repetitions.filter(others).collect();
            let mut all = stale.clone();
            if !stale.is_empty() {
                // Its oracle was found for the same programs.
                all.extend((1..=u32::MAX).map(|n| self.path(experiment, n, true)).take_while(|p| p.exists()));
            }
            for path in all {
                let away = self.folder.join("superseded");
                fs::create_dir_all(&away).with_context(|| away.display().to_string())?;
                let name = path.file_name().context("a block has a name")?;
                fs::rename(&path, away.join(name)).with_context(|| path.display().to_string())?;
                moved += 1;
            }
        }
        Ok(moved)
    }

    fn path(&self, experiment: &Experiment, repetition: u32, oracle: bool) -> PathBuf {
        let kind = if oracle { "-oracle" } else { "" };
        self.folder.join("blocks").join(format!("{}{kind}-{repetition}.json", experiment.name))
    }

    /// The search: sizes are tried side by side until the summary knows the smallest without loss.
    fn oracle(&self, experiment: &Experiment, shared: &Shared<'_>) -> Result<()> {
        let (min, max) = experiment.oracle_range();
        // Nothing could be compared with it.
        if !self.path(experiment, 1, false).exists() {
            let mut done = shared.done.lock().expect("no holder panics");
            done.left_out.push(format!("{} oracle 1 (without a first repetition)", experiment.name));
            return Ok(());
        }
        // The sizes follow from the blocks before.
        let print = experiment.fingerprint(shared.made);
        let mut tried: Vec<Block> = Vec::new();
        for repetition in 1.. {
            let sizes = summary::next_oracle_sizes(&tried, min, max);
            if sizes.is_empty() {
                break;
            }
            let experiment = experiment.at_sizes(&sizes);
            match self.block(&experiment, &print, repetition, true, shared)? {
                Some(block) => tried.push(block),
                None => break,
            }
        }
        Ok(())
    }

    /// How long a block of this experiment probably takes, seconds, or a search for its oracle.
    fn expected_s(&self, experiment: &Experiment, search: bool, longest_s: f64) -> f64 {
        // A search has other numbers of arms than the experiment, and half of it finds nothing. Its first look may have given up
        // early, so that it says little about its second.
        let rounds = if search { summary::SEARCH } else { 1.0 };
        let like = (1..=experiment.repetitions)
            .filter_map(|n| results::read_json::<Block>(&self.path(experiment, n, false)).ok())
            .map(|b| rounds * b.took_s * experiment.arms.len() as f64 / b.arms.len().max(1) as f64);
        let planned = experiment.lasting.map_or(0.0, |lasting| (lasting + experiment.settle).as_secs_f64());
        // One that was never run takes as long as the longest so far.
        like.max_by(f64::total_cmp).unwrap_or_else(|| planned.max(longest_s))
    }

    fn block(
        &self,
        experiment: &Experiment,
        print: &str,
        repetition: u32,
        oracle: bool,
        shared: &Shared<'_>,
    ) -> Result<Option<Block>> {
        let Shared { journals, bar, begun, done, .. } = shared;
        let done = || done.lock().expect("no holder panics");
        let kind = if oracle { " oracle" } else { "" };
        let head = format!("{}{kind} {repetition}", experiment.name);
        let path = self.path(experiment, repetition, oracle);
        if let Ok(block) = results::read_json::<Block>(&path)
            && block.fingerprint == print
        {
            let mut done = done();
            done.resumed += 1;
            done.broken
                .extend(broken(&block, &head).map(|told| format!("{told} (in an earlier run; --fresh tries again)")));
            bar.inc(block::steps(experiment));
            return Ok(Some(block));
        }
        let expected = self.expected_s(experiment, oracle && repetition == 1, done().longest_s);
        if let Some(within) = self.within
            && begun.elapsed().as_secs_f64() + expected > within.as_secs_f64()
        {
            done().left_out.push(head);
            bar.inc(block::steps(experiment));
            return Ok(None);
        }
        let shown = Shown { bar, head: head.clone() };
        let at = bar.position();
        let began = Instant::now();
        let deadline = self.within.and_then(|within| begun.checked_add(within));
        match block::run(experiment, repetition, oracle, journals, deadline, &shown) {
            Ok(None) => {
                done().left_out.push(format!("{head} (begun, and not through in time)"));
                if self.parallel <= 1 {
                    bar.set_position(at + block::steps(experiment));
                }
                Ok(None)
            }
            Ok(Some(block)) => {
                let block = Block { fingerprint: print.to_owned(), ..block };
                results::write_json(&path, &block)?;
                let mut done = done();
                for told in broken(&block, &head) {
                    say(bar, &told);
                    done.broken.push(told);
                }
                done.ran += 1;
                done.longest_s = done.longest_s.max(block.took_s);
                drop(done);
                Ok(Some(block))
            }
            Err(e) => {
                let told = format!("{head}: {e:#}");
                say(bar, &told);
                let mut done = done();
                done.broken.push(told);
                // What cannot be run may take its time to say so.
                done.longest_s = done.longest_s.max(began.elapsed().as_secs_f64());
                Ok(None)
            }
        }
    }
}

impl Job<'_> {
    fn steps(&self) -> u64 {
        match self {
            Self::Block(experiment, _) => block::steps(experiment),
            // A coarse and a fine round of six and four sizes.
            Self::Oracle(experiment) => {
                block::steps(&experiment.at_sizes(&[0; 6])) + block::steps(&experiment.at_sizes(&[0; 4]))
            }
        }
    }
}

/// The experiments whose guests fit into so much memory, and what is wrong with the others: all guests of a block live at
/// once and are aged.
fn fitting(experiments: &[Experiment], free: Option<u64>, parallel: u64) -> (Vec<&Experiment>, Vec<String>) {
    let (mut fitting, mut too_large) = (Vec::new(), Vec::new());
    for experiment in experiments {
        let (min, max) = experiment.oracle_range();
        // The first round of its search has the most sizes, beside `static`.
        let search = if experiment.oracle { 1 + summary::next_oracle_sizes(&[], min, max).len() } else { 0 };
        let arms = experiment.arms.len().max(search);
        let each: u64 = experiment.guests.iter().map(|g| g.memory.as_mib() + QEMU_MIB).sum();
        let client = experiment.client.as_ref().map_or(0, |c| c.memory.as_mib() + QEMU_MIB);
        let needs = (each * arms as u64 + client) * parallel;
        let Some(free) = free.filter(|&free| needs > free) else {
            fitting.push(experiment);
            continue;
        };
        let (whose, mend) = if search > experiment.arms.len() {
            ("arms of its search for the oracle", "leave that out (--no-oracle)")
        } else {
            ("arms", "give it fewer arms (--arms)")
        };
        too_large.push(format!(
            "{}: {arms} {whose} need {needs} MiB at once, and this machine has {free} MiB available: {mend} or smaller \
             guests",
            experiment.name,
        ));
    }
    (fitting, too_large)
}

fn jobs<'a>(experiments: &[&'a Experiment]) -> Vec<Job<'a>> {
    let most = experiments.iter().map(|e| e.repetitions).max().unwrap_or(0);
    let mut jobs = Vec::new();
    for repetition in 1..=most {
        let due = experiments.iter().copied().filter(|e| repetition <= e.repetitions);
        jobs.extend(due.map(|e| Job::Block(e, repetition)));
        if repetition == 1 {
            jobs.extend(experiments.iter().copied().filter(|e| e.oracle).map(Job::Oracle));
        }
    }
    jobs
}

/// The arms that broke, and why.
fn broken(block: &Block, head: &str) -> impl Iterator<Item = String> {
    block.arms.iter().filter_map(move |arm| Some(format!("{head}, arm {}: {}", arm.arm, arm.error.as_ref()?)))
}

/// What blocks are made of: the daemon and the images. This program is left out, so that a better report keeps its blocks.
fn made() -> String {
    let mut hasher = DefaultHasher::new();
    let daemon = crate::HostAgent::program().and_then(|path| Ok(fs::read(path)?));
    daemon.unwrap_or_default().hash(&mut hasher);
    format!("ballast-host {:016x}, {}, blocks {MADE_LIKE}", hasher.finish(), image())
}

/// A figure of /proc/meminfo, KiB.
fn meminfo_kib(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What this machine has for guests, where it says so.
fn available_mib() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    meminfo_kib(&meminfo, "MemAvailable").map(|kib| kib / 1024)
}

/// This machine, for the report.
fn host(kept_warm: bool) -> Host {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, key: &str| {
        let line = text.lines().find(|l| l.starts_with(key)).unwrap_or_default();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    Host {
        cpu: field(&read("/proc/cpuinfo"), "model name"),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory_mib: meminfo_kib(&read("/proc/meminfo"), "MemTotal").unwrap_or(0) / 1024,
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        qemu: said("qemu-system-x86_64", &["--version"]),
        accelerator: crate::Accel::here().map(|a| format!("{a:?}").to_lowercase()).unwrap_or_default(),
        kept_warm,
    }
}

/// What guests are booted from: the kernel's package, and enough of the images to tell them from others.
fn image() -> String {
    let text = |name| fs::read_to_string(paths::guest(name)).unwrap_or_default().trim().to_owned();
    let print = |name| {
        let mut hasher = DefaultHasher::new();
        fs::read(paths::guest(name)).unwrap_or_default().hash(&mut hasher);
        format!("{name} {:016x}", hasher.finish())
    };
    let recipe = text("workload.recipe");
    [
        text("kernel"),
        print("initramfs.cpio"),
        print("initramfs-net.cpio"),
        format!("workload {}", &recipe[..recipe.len().min(16)]),
    ]
    .join(", ")
}

fn version() -> String {
    let described = said("git", &["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty"]);
    if described.is_empty() { env!("CARGO_PKG_VERSION").to_owned() } else { described }
}

/// The first line that a command prints; empty when it cannot be run.
fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_experiment_that_is_too_large_does_not_keep_the_others_from_being_run() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, arms: &str, oracle: bool| {
            let path = folder.path().join(name);
            let text = format!(
                "title = 't'\noracle = {oracle}\narms = [{arms}]\n[[guest]]\nname = 'a'\nmemory = '512MiB'\n\
                 [[phase]]\nwork = {{ do = 'rest', secs = 1 }}\n"
            );
            fs::write(&path, text).unwrap();
            Experiment::read(&path).unwrap()
        };
        let three = "'static', 'mom', 'drs'";
        let all = [file("small.toml", three, false), file("searched.toml", three, true)];
        // Three arms have 1536 MiB, six sizes and `static` 3584, and each QEMU has 64 more.
        let (fits, too_large) = fitting(&all, Some(2_000), 1);
        assert_eq!((fits.len(), fits[0].name.as_str()), (1, "small"));
        assert!(too_large[0].starts_with("searched: 7 arms of its search") && too_large[0].contains("--no-oracle"));
        assert!(jobs(&fits).iter().all(|job| matches!(job, Job::Block(e, 1) if e.name == "small")));
        let (fits, too_large) = fitting(&all, Some(1_500), 1);
        assert!(fits.is_empty() && too_large[0].contains("3 arms need 1728 MiB"), "{too_large:?}");
        assert_eq!(fitting(&all, Some(4_032), 1).0.len(), 2);
        assert_eq!(fitting(&all, Some(4_032), 2).0.len(), 1);
        assert_eq!(fitting(&all, None, 9).0.len(), 2);
    }

    #[test]
    fn time_left_is_at_the_pace_so_far() {
        assert_eq!(left(Duration::from_secs(9), 0, 10), "?");
        assert_eq!(left(Duration::from_secs(600), 10, 40), "30m");
        assert_eq!(left(Duration::from_secs(600), 40, 40), "0m");
    }

    /// An experiment of two arms and two repetitions.
    fn experiment(folder: &Path, name: &str) -> Experiment {
        let path = folder.join(format!("{name}.toml"));
        let text = "title = 't'\nrepetitions = 2\narms = ['static', 'mom']\n[[guest]]\nname = 'a'\nmemory = '512MiB'\n\
                    [[phase]]\nwork = { do = 'rest', secs = 1 }\n";
        fs::write(&path, text).unwrap();
        Experiment::read(&path).unwrap()
    }

    /// One of its blocks.
    fn ran(folder: &Path, name: &str, repetition: u32, took_s: f64, arms: usize) {
        let block = Block {
            experiment: name.to_owned(),
            fingerprint: String::new(),
            repetition,
            oracle: false,
            seed: 1,
            started_unix: 1,
            took_s,
            load: 0.0,
            arms: vec![results::ArmRun::default(); arms],
        };
        fs::create_dir_all(folder.join("blocks")).unwrap();
        results::write_json(&folder.join(format!("blocks/{name}-{repetition}.json")), &block).unwrap();
    }

    fn order(folder: &Path, experiments: Vec<Experiment>) -> Order {
        Order {
            experiments,
            wrong: Vec::new(),
            folder: folder.to_owned(),
            asked: String::new(),
            within: None,
            fresh: false,
            parallel: 1,
        }
    }

    #[test]
    fn a_block_probably_takes_what_its_like_took_and_else_what_the_longest_did() {
        let folder = tempfile::tempdir().unwrap();
        let one = experiment(folder.path(), "one");
        let order = order(folder.path(), Vec::new());
        let expected = |search| order.expected_s(&one, search, 70.0);
        assert_eq!((expected(false), expected(true)), (70.0, 70.0));
        ran(folder.path(), "one", 1, 100.0, 2);
        assert_eq!((expected(false), expected(true)), (100.0, 100.0 * summary::SEARCH));
        // The longer of two counts, by its arms.
        ran(folder.path(), "one", 2, 240.0, 4);
        assert_eq!(expected(false), 120.0);
        // A search tries sizes beside `static`: as many arms as it has now.
        let search = one.at_sizes(&[200, 300, 400]);
        assert_eq!(order.expected_s(&search, false, 0.0), 60.0 * search.arms.len() as f64);
    }

    #[test]
    fn the_cheapest_search_comes_first_and_none_before_the_first_repetition_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let experiments = [("long", 300.0), ("short", 90.0), ("middling", 200.0)].map(|(name, took_s)| {
            ran(folder.path(), name, 1, took_s, 0);
            experiment(folder.path(), name)
        });
        // What could not be run has no block.
        fs::remove_file(folder.path().join("blocks/long-1.json")).unwrap();
        let order = order(folder.path(), experiments.into());
        let mut left = VecDeque::from(jobs(&order.experiments.iter().collect::<Vec<_>>()));
        let told = std::iter::from_fn(|| order.next(&mut left)).map(|job| match job {
            Job::Block(e, n) => format!("{} {n}", e.name),
            Job::Oracle(e) => format!("{} oracle", e.name),
        });
        let first = ["long 1", "short 1", "middling 1"];
        let searches = ["short oracle", "middling oracle", "long oracle"];
        let second = ["long 2", "short 2", "middling 2"];
        assert_eq!(told.collect::<Vec<_>>(), [first, searches, second].concat());
    }
}
