//! The model card, written beside the weights: what they were trained on, how good they are, and where they are not to
//! be trusted (after Mitchell et al., "Model Cards for Model Reporting", 2019).

use crate::{Dataset, QUANTILES, Score, Settings, Trained};
use std::fmt::Write;

/// The card of a training, Markdown.
///
/// # Errors
/// None: it is written into memory.
pub fn card(data: &Dataset, settings: &Settings, trained: &Trained) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    let manifest = &data.manifest;
    let (model, timing) = (&trained.model, trained.timing);
    writeln!(text, "# Model card: Ballast's predictor\n\n{}\n", trained.finding())?;
    writeln!(
        text,
        "Made by `ballast-host train --seed {}`; the same data and seed give the same file.\n",
        settings.seed
    )?;
    writeln!(text, "## What it predicts\n")?;
    writeln!(
        text,
        "For a VM and a size it might keep: quantiles ({}) of the part of the next 10 s that is lost (tasks stalled for \
         memory, or service that two probes found lost, the larger; with the host agent answering what it asks for, or \
         without), and the probability of pressure. {} networks of {} numbers in all are averaged. By \
         construction no quantile crosses another, and more memory never predicts more loss.\n",
        QUANTILES.map(|q| q.to_string()).join(", "),
        model.members(),
        model.parameters(),
    )?;
    writeln!(text, "It may only choose inside the guard's bounds; P1 to P6 hold whatever it says.\n\n## Data\n")?;
    writeln!(text, "| | |\n|---|---|")?;
    let facts = [
        ("Made", manifest.made.clone()),
        ("Kernel of the guests", manifest.kernel.clone()),
        ("Image", manifest.image.clone()),
        ("Machine", manifest.machine.clone()),
        ("Seed of the first run", manifest.seed.to_string()),
        ("Rows", data.rows.len().to_string()),
        ("Runs", manifest.runs.len().to_string()),
        ("Workloads", data.workloads().join(", ")),
    ];
    for (what, is) in facts {
        writeln!(text, "| {what} | {} |", cell(&is))?;
    }
    let with = |of: &dyn Fn(&crate::Row) -> bool| {
        100.0 * data.rows.iter().filter(|r| of(r)).count() as f64 / data.rows.len().max(1) as f64
    };
    writeln!(
        text,
        "\n{:.0} % of the rows lost anything, {:.0} % more than a hundredth, {:.0} % were under pressure.\n",
        with(&|r| r.loss > 0.0),
        with(&|r| r.loss > 0.01),
        with(&|r| r.pressure)
    )?;
    writeln!(text, "## Features, version {}\n", manifest.features_version)?;
    writeln!(text, "Window: {}.\n", manifest.window_names.join(", "))?;
    writeln!(text, "Size: {}.\n", manifest.candidate_names.join(", "))?;
    writeln!(text, "## Scores on workloads that were held out\n")?;
    writeln!(
        text,
        "Each workload was held out once; while it was, {} of {} parts of the others stopped the training and the rest were learned \
         from. Pinball loss in thousandths of the horizon, mean over workloads, before calibration. The defaults of the training were \
         chosen by this table on the rows that ship, so that on those it flatters the network a little.\n",
        settings.stoppers,
        settings.folds.min(data.workloads().len()) - 1,
    )?;
    writeln!(
        text,
        "| Predictor | Pinball | 50 % | 90 % | 95 % | 99 % | Covered by 95 % | Brier of pressure | Pinball, helped | Not helped |\n\
         |---|---|---|---|---|---|---|---|---|---|"
    )?;
    for p in &trained.scores.predictors {
        let [a, b, c, d] = p.mean.pinball.map(|v| v * 1e3);
        writeln!(
            text,
            "| {} | {:.2} | {a:.2} | {b:.2} | {c:.2} | {d:.2} | {:.1} % | {:.3} | {} | {} |",
            p.predictor,
            p.mean.mean_pinball * 1e3,
            p.mean.coverage[2] * 100.0,
            p.mean.brier,
            part(&p.helped),
            part(&p.alone)
        )?;
    }
    writeln!(
        text,
        "\nHelped are guests whose host agent answers what they ask for, as it does in use: there little is lost and little is left to \
         foretell."
    )?;
    writeln!(text, "\n| Held out | Rows | {} |", names(trained))?;
    writeln!(text, "|---|---{}|", "|---".repeat(trained.scores.predictors.len()))?;
    for (workload, score) in trained.scores.predictors.first().iter().flat_map(|p| &p.workloads) {
        let losses = trained.scores.predictors.iter().filter_map(|p| p.workloads.get(workload));
        let losses: Vec<String> = losses.map(|s| format!("{:.2}", s.mean_pinball * 1e3)).collect();
        writeln!(text, "| {} | {} | {} |", cell(workload), score.rows, losses.join(" | "))?;
    }
    writeln!(text, "\n## After calibration\n")?;
    writeln!(
        text,
        "The same held-out forecasts through the calibration that runs with the model, begun where the other workloads' \
         scores put it: outcomes within the corrected 95 % quantile, with a 90 % interval.\n\n| Held out | Outcomes | Covered \
         | Interval |\n|---|---|---|---|"
    )?;
    for (workload, c) in trained.scores.predictors.first().iter().flat_map(|p| &p.calibrated) {
        let [covered, low, high] = [c.coverage, c.interval.0, c.interval.1].map(|v| v * 100.0);
        writeln!(text, "| {} | {} | {covered:.1} % | {low:.0} to {high:.0} % |", cell(workload), c.judged)?;
    }
    writeln!(
        text,
        "\nOne VM at 16 sizes takes {:.1} us (median; 99 %: {:.1} us), a thousand VMs {:.1} ms, on the machine that \
         trained.\n",
        timing.one_median_us, timing.one_p99_us, timing.thousand_ms
    )?;
    writeln!(text, "## Limits\n")?;
    writeln!(
        text,
        "- It has seen only the kernel, image and workloads above, in guests of one size for each workload, under emulation; elsewhere the \
         calibration that runs with it has to find out how wrong it is.\n\
         - Inputs beyond four deviations of the data are taken for the data's edge.\n\
         - What is rare in the data (losses of more than half of a horizon) is known badly, what is not in it (processes killed, in \
         the rows that ship) not at all.\n\
         - A column that never changed in the data is ignored.\n\
         - Where nothing is lost most of the time, quantiles are zero and cover more than they state."
    )?;
    Ok(text)
}

/// What there are no rows of has no score.
fn part(score: &Score) -> String {
    if score.rows > 0 { format!("{:.2}", score.mean_pinball * 1e3) } else { "-".to_owned() }
}

fn names(trained: &Trained) -> String {
    trained.scores.predictors.iter().map(|p| p.predictor.as_str()).collect::<Vec<_>>().join(" | ")
}

/// Text that does not end a cell.
fn cell(text: &str) -> String {
    text.replace('|', "/").replace('\n', " ")
}
