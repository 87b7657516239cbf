//! `ballast-lab report` and `compare`: what a run found, made again from its blocks.

use anyhow::Result;
use ballast_tests::lab::results::{self, BALLAST, STATIC};
use ballast_tests::lab::{compare, report, summary};
use ballast_tests::paths;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Writes summary.json, summary.csv and report.html again from a run's blocks, and prints the table.
#[derive(Debug, clap::Args)]
pub struct Report {
    /// The run's folder: target/lab when it is left out.
    folder: Option<PathBuf>,
}

impl Report {
    /// Runs it. Status 0 whatever the figures are: the table says which were reached.
    pub fn run(&self) -> Result<ExitCode> {
        make(&self.folder.clone().unwrap_or_else(|| paths::target().join("lab")))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Makes everything that comes of a run's blocks, and prints the table.
pub fn make(folder: &Path) -> Result<()> {
    let summary = summary::summarise(folder)?;
    let blocks = results::blocks(folder)?;
    let figures = summary::figures(&summary, &summary::standings(&summary, &blocks));
    report::write(folder, &summary, &blocks)?;
    crate::say(&format!("{}\n{}\n", summary::table(&summary, &figures), folder.join("report.html").display()))
}

/// Two arms of one run, or one arm of two runs: each difference with its interval, or "no difference".
#[derive(Debug, clap::Args)]
pub struct Compare {
    /// The run's folder.
    folder: PathBuf,
    /// Another run's folder: then the same arm of both is compared, by its ratios to static.
    other: Option<PathBuf>,
    /// The arm that is judged.
    #[arg(long, default_value = BALLAST)]
    arm: String,
    /// The arm it is judged by.
    #[arg(long, default_value = STATIC, conflicts_with = "other")]
    with: String,
    /// For programs.
    #[arg(long)]
    json: bool,
}

impl Compare {
    /// Runs it. Status 0 whatever the difference.
    pub fn run(&self) -> Result<ExitCode> {
        let blocks = results::blocks(&self.folder)?;
        let comparison = match &self.other {
            None => compare::arms(&blocks, &self.arm, &self.with)?,
            Some(other) => {
                let names = (self.folder.display().to_string(), other.display().to_string());
                compare::runs((&blocks, &names.0), (&results::blocks(other)?, &names.1), &self.arm)?
            }
        };
        if self.json {
            crate::say(&(serde_json::to_string_pretty(&comparison)? + "\n"))?;
        } else {
            crate::say(&compare::table(&comparison))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
