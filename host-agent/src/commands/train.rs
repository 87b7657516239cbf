//! `train`: from what `ballast-lab collect` saw to a model, its card, and a page about it.

use anyhow::{Context, Result, bail};
use ballast_predictor::{Dataset, Progress, Schema, Scores, Settings, Timing, Trained, card, page, train};
use clap::Args;
use comfy_table::{Cell, CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What to learn from, and where to put it.
#[derive(Debug, Args)]
pub struct Train {
    /// The folder that `ballast-lab collect` filled.
    #[arg(long)]
    data: PathBuf,
    /// The model's file. Its card is written beside it, as .md.
    #[arg(long)]
    out: PathBuf,
    /// The folder for report.html and summary.json.
    #[arg(long, default_value = "target/predictor")]
    report: PathBuf,
    /// Everything that is drawn comes from it: the same data and seed give the same file.
    #[arg(long, default_value_t = Settings::default().seed)]
    seed: u64,
    /// Passes over the data, at most.
    #[arg(long, default_value_t = Settings::default().epochs as u64, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    epochs: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What `summary.json` holds.
#[derive(Serialize)]
struct Summary<'a> {
    data_made: &'a str,
    rows: usize,
    workloads: Vec<&'a str>,
    features_version: u32,
    settings: &'a Settings,
    took_s: f64,
    timing: Timing,
    scores: &'a Scores,
}

/// Runs it.
pub fn run(args: &Train) -> Result<ExitCode> {
    let data = Dataset::read(&args.data)?;
    check(&data, &args.data)?;
    check_out(&args.out)?;
    let epochs = usize::try_from(args.epochs).context("--epochs")?;
    let settings = Settings { seed: args.seed, epochs, ..Settings::default() };
    // Hidden by itself when stderr is no terminal.
    let bar = ProgressBar::new(1);
    bar.set_style(ProgressStyle::with_template("{bar:40} {percent:>3} % {elapsed} {msg}")?);
    let show = &mut |progress: &Progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
        bar.set_message(progress.doing.clone());
    };
    let trained = train(&data, &settings, show)?;
    bar.finish_and_clear();
    let card = card(&data, &settings, &trained)?;
    let page = page(&data, &settings, &trained).map_err(|e| anyhow::anyhow!("drawing the report: {e}"))?;
    let summary = Summary {
        data_made: &data.manifest.made,
        rows: data.rows.len(),
        workloads: data.workloads(),
        features_version: data.manifest.features_version,
        settings: &settings,
        took_s: trained.took_s,
        timing: trained.timing,
        scores: &trained.scores,
    };
    std::fs::create_dir_all(&args.report).with_context(|| args.report.display().to_string())?;
    write(&args.report.join("report.html"), page.as_bytes())?;
    write(&args.report.join("summary.json"), (serde_json::to_string_pretty(&summary)? + "\n").as_bytes())?;
    write(&args.out.with_extension("md"), card.as_bytes())?;
    write(&args.out, &trained.model.to_bytes()?)?;
    super::print(args.json, &summary, |_| {
        let (model, page) = (args.out.display(), args.report.join("report.html"));
        format!("{}\n\n{}\n{model} and {} written\n", table(&trained), trained.finding(), page.display())
    })
}

/// A model of other features than this build's could be loaded by nobody.
fn check(data: &Dataset, folder: &Path) -> Result<()> {
    let (theirs, ours) = (data.manifest.schema(), Schema::current());
    if theirs != ours {
        bail!(
            "{}: its features are of version {}, or have other columns than version {} of this build; collect again \
             with this build's ballast-lab",
            folder.join(ballast_predictor::MANIFEST).display(),
            theirs.version,
            ours.version
        );
    }
    Ok(())
}

/// That it cannot be written is told before the training, not after.
fn check_out(out: &Path) -> Result<()> {
    if out.extension().is_some_and(|end| end == "md") {
        bail!("--out {}: its card would have the same name; end it with .model", out.display());
    }
    if out.is_dir() {
        bail!("--out {}: it is a folder; name the model's file", out.display());
    }
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).with_context(|| format!("--out {}", out.display()))?;
    let probe = out.with_added_extension("draft");
    std::fs::write(&probe, b"")
        .and_then(|()| std::fs::remove_file(&probe))
        .with_context(|| format!("--out {}", out.display()))
}

/// Written whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let draft = path.with_added_extension("draft");
    std::fs::write(&draft, bytes).with_context(|| draft.display().to_string())?;
    std::fs::rename(&draft, path).with_context(|| path.display().to_string())
}

fn table(trained: &Trained) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["predictor", "pinball x1000", "50 %", "90 %", "95 %", "99 %", "covered by 95 %", "Brier"]);
    for p in &trained.scores.predictors {
        let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        let mut row = vec![Cell::new(&p.predictor), right(format!("{:.2}", p.mean.mean_pinball * 1e3))];
        row.extend(p.mean.pinball.map(|v| right(format!("{:.2}", v * 1e3))));
        row.push(right(format!("{:.1} %", p.mean.coverage[2] * 100.0)));
        row.push(right(format!("{:.3}", p.mean.brier)));
        table.add_row(row);
    }
    table
}
