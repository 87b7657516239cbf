//! `ballast-lab run` and `ballast-lab list`.

use anyhow::{Context, Result, bail};
use ballast_tests::lab::experiment::Experiment;
use ballast_tests::lab::run::Order;
use ballast_tests::{interrupt, paths};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Runs experiments, then writes summary and report. Blocks that are complete are not run again.
#[derive(Debug, clap::Args)]
pub struct RunCommand {
    /// Experiment files.
    #[arg(required_unless_present = "suite", conflicts_with = "suite")]
    files: Vec<PathBuf>,
    /// A suite: quick, smoke or full.
    #[arg(long)]
    suite: Option<String>,
    /// Only these arms (and `static`), separated by commas.
    #[arg(long, value_delimiter = ',')]
    arms: Vec<String>,
    /// So many repetitions instead of the files'.
    #[arg(long)]
    repetitions: Option<u32>,
    /// Without the searches for the oracles.
    #[arg(long)]
    no_oracle: bool,
    /// Where results go; `lab` in the target folder unless said.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Begin no block that would probably end later than this after the start, for example 45m, and end one that does.
    #[arg(long, value_parser = humantime::parse_duration)]
    within: Option<Duration>,
    /// Run everything again, whatever is there.
    #[arg(long)]
    fresh: bool,
}

/// Lists suites, experiments, arms and phases.
#[derive(Debug, clap::Args)]
pub struct ListCommand {
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// The experiments that come with the sources, by suite: a file is in the suites that its first line names.
fn suite_files(suite: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut known = std::collections::BTreeSet::new();
    for path in shipped()? {
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let suites = suites(&text);
        if suite == "full" || suites.iter().any(|s| s == suite) {
            files.push(path);
        }
        known.extend(suites);
    }
    known.insert("full".into());
    if files.is_empty() {
        let known: Vec<String> = known.into_iter().collect();
        bail!("there is no suite `{suite}`; known are {}", known.join(", "));
    }
    Ok(files)
}

fn suites(text: &str) -> Vec<String> {
    let first = text.lines().next().unwrap_or_default();
    let named = first.strip_prefix("# suites:").unwrap_or_default();
    named.split_whitespace().map(str::to_owned).collect()
}

fn shipped() -> Result<Vec<PathBuf>> {
    files_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments"))
}

/// The experiment files of a folder, by name.
pub fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut files: Vec<PathBuf> = entries.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
    files.retain(|f| f.extension().is_some_and(|e| e == "toml"));
    files.sort();
    Ok(files)
}

impl RunCommand {
    /// Runs; status 1 when something could not be run.
    pub fn run(&self) -> Result<ExitCode> {
        interrupt::tidy_up_on_signals()?;
        let files = match &self.suite {
            Some(suite) => suite_files(suite)?,
            None => self.files.clone(),
        };
        let (read, wrong) = Experiment::read_all(&files);
        let unusable = |name: &String| read.iter().all(|e| e.name != *name);
        let stems = files.iter().filter_map(|f| Some(f.file_stem()?.to_string_lossy().into_owned()));
        let names: Vec<String> = stems.filter(unusable).collect();
        let wrong: Vec<String> = wrong.into_iter().map(|e| format!("{:#}", anyhow::Error::new(e))).collect();
        if read.is_empty() {
            bail!("{}", wrong.join("\n"));
        }
        // At once, and again at the end: a run takes long.
        wrong.iter().for_each(|told| eprintln!("left out: {told}"));
        let mut experiments = Vec::new();
        for mut experiment in read {
            experiment.repetitions = self.repetitions.unwrap_or(experiment.repetitions).max(1);
            experiment.oracle &= !self.no_oracle;
            if !self.arms.is_empty() && !experiment.keep_arms(&self.arms) {
                continue;
            }
            experiments.push(experiment);
        }
        if let Some(unknown) =
            self.arms.iter().find(|a| experiments.iter().all(|e| e.arms.iter().all(|b| b.name != **a)))
        {
            bail!("no arm `{unknown}` in {}; `ballast-lab list` shows what there is", self.asked(&files));
        }
        let asked = self.asked(&files);
        let folder = self.out.clone().unwrap_or_else(|| paths::target().join("lab"));
        let order =
            Order { experiments, wrong: names, folder, asked, within: self.within, fresh: self.fresh, parallel: 1 };
        let done = order.run()?;
        super::report::make(&order.folder)?;
        if done.superseded > 0 {
            let away = order.folder.join("superseded");
            println!(
                "{} blocks of other programs, images, arms or settings are in {} now",
                done.superseded,
                away.display()
            );
        }
        if done.resumed > 0 {
            println!("{} blocks were there already, {} were run", done.resumed, done.ran);
        }
        for told in &done.broken {
            println!("BROKEN {told}");
        }
        for told in &wrong {
            println!("WRONG {told}");
        }
        Ok(if done.broken.is_empty() && wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// The command line that asks for the same again, without `--out`, `--within` and `--fresh`.
    fn asked(&self, files: &[PathBuf]) -> String {
        let mut words = match &self.suite {
            Some(suite) => vec![format!("--suite {suite}")],
            None => files.iter().map(|f| f.display().to_string()).collect(),
        };
        if !self.arms.is_empty() {
            words.push(format!("--arms {}", self.arms.join(",")));
        }
        words.extend(self.repetitions.map(|n| format!("--repetitions {n}")));
        words.extend(self.no_oracle.then(|| "--no-oracle".to_owned()));
        words.join(" ")
    }
}

impl ListCommand {
    /// Lists.
    pub fn run(&self) -> Result<ExitCode> {
        let mut all = Vec::new();
        for path in shipped()? {
            let experiment = Experiment::read(&path)?;
            let suites = suites(&experiment.text);
            let arms: Vec<String> = experiment.arms.iter().map(|a| a.name.clone()).collect();
            let mut phases: Vec<String> = experiment.phases.iter().map(|p| p.label.clone()).collect();
            phases.dedup();
            all.push(serde_json::json!({
                "file": path, "name": experiment.name, "title": experiment.title, "suites": suites,
                "repetitions": experiment.repetitions, "arms": arms, "phases": phases,
                "guests": experiment.guests.iter().map(|g| &g.name).collect::<Vec<_>>(),
            }));
        }
        if self.json {
            crate::say(&(serde_json::to_string_pretty(&all)? + "\n"))?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut table = comfy_table::Table::new();
        table.load_preset(comfy_table::presets::NOTHING).set_header(["experiment", "suites", "n", "arms", "what"]);
        for e in &all {
            let words = |key: &str| {
                let items = e[key].as_array().into_iter().flatten().filter_map(|v| v.as_str());
                items.collect::<Vec<_>>().join(" ")
            };
            let text = |key: &str| e[key].as_str().unwrap_or_default().to_owned();
            table.add_row([text("name"), words("suites"), e["repetitions"].to_string(), words("arms"), text("title")]);
        }
        crate::say(&format!("{table}\n"))?;
        Ok(ExitCode::SUCCESS)
    }
}
