//! `ballast-lab collect`.

use super::lab::files_in;
use anyhow::{Result, bail};
use ballast_tests::lab::arm::Law;
use ballast_tests::lab::collect;
use ballast_tests::lab::experiment::Experiment;
use ballast_tests::lab::run::Order;
use ballast_tests::{interrupt, paths};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Collects data for the predictor. Works run in real guests whose balloons are moved to random sizes. In repetitions of odd
/// numbers a host agent moves them and answers what guests ask for; in those of even numbers it runs dry, and nobody helps. Its
/// journals, replayed, become rows.jsonl, manifest.json and CARD.md.
/// Blocks that are complete are not run again.
#[derive(Debug, clap::Args)]
pub struct CollectCommand {
    /// Experiment files whose one arm is `sweep`; those in tests/experiments/collect unless said.
    files: Vec<PathBuf>,
    /// Where the data goes; `collect` in the target folder unless said.
    #[arg(long)]
    out: Option<PathBuf>,
    /// So many repetitions.
    #[arg(long, default_value_t = 2)]
    repetitions: u32,
    /// So many guests at once. More than there are CPUs wait for each other, which looks like a lack of memory.
    #[arg(long, default_value_t = 2)]
    parallel: usize,
    /// Begin no block that would probably end later than this after the start, for example 20m, and end one that does.
    #[arg(long, value_parser = humantime::parse_duration)]
    within: Option<Duration>,
    /// Run everything again, whatever is there.
    #[arg(long)]
    fresh: bool,
    /// Run nothing: make the rows again from what was collected.
    #[arg(long, conflicts_with_all = ["files", "repetitions", "within", "fresh"])]
    rows_only: bool,
}

impl CollectCommand {
    /// Collects; status 1 when something could not be run.
    pub fn run(&self) -> Result<ExitCode> {
        let folder = self.out.clone().unwrap_or_else(|| paths::target().join("collect"));
        let mut status = ExitCode::SUCCESS;
        if !self.rows_only {
            interrupt::tidy_up_on_signals()?;
            let done = self.order(&folder)?.run()?;
            println!("{} blocks were run, {} were there already", done.ran, done.resumed);
            if done.superseded > 0 {
                println!("{} blocks of another daemon, other images or settings were set aside", done.superseded);
            }
            for block in &done.left_out {
                println!("left out for lack of time: {block}");
            }
            for told in &done.broken {
                println!("BROKEN {told}");
                status = ExitCode::FAILURE;
            }
        }
        let made = collect::make(&folder)?;
        println!(
            "{} rows of {} horizons ({} not known at their beginning, {} not told to their end): {}",
            made.rows,
            made.horizons,
            made.unknown,
            made.untold,
            folder.join("CARD.md").display(),
        );
        for block in &made.without {
            println!("without rows: {block}");
        }
        Ok(status)
    }

    fn order(&self, folder: &Path) -> Result<Order> {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments/collect");
        let files = if self.files.is_empty() { files_in(&shipped)? } else { self.files.clone() };
        let mut experiments = Vec::new();
        for file in &files {
            let mut experiment = Experiment::read(file)?;
            if experiment.arms.len() != 1 || experiment.arms[0].law != Law::Sweep {
                bail!("{}: data is collected by one arm, of the law `sweep`", file.display());
            }
            experiment.repetitions = self.repetitions.max(1);
            experiments.push(experiment);
        }
        // A sweep's fixed sizes are beside the point.
        experiments.iter_mut().for_each(|e| e.oracle = false);
        Ok(Order {
            experiments,
            wrong: Vec::new(),
            folder: folder.to_owned(),
            asked: "collect".into(),
            within: self.within,
            fresh: self.fresh,
            parallel: self.parallel,
        })
    }
}
