//! The page about a training: one file without scripts that opens without a network.
//!
//! Tables say who predicted best on workloads that nobody had seen; plots show how the networks learned and whether
//! what they state is what happens. The page is well-formed XML, which is how a test knows that nothing is left open.

mod plot;

use crate::scores::Scored;
use crate::{Dataset, Estimate, LEVELS, QUANTILES, Row, Score, Settings, Trained};
use plot::{Axis, Line};
use std::fmt::Write;

/// Bins of stated probabilities, and fewest rows for one to be shown.
const BINS: usize = 10;
const ROWS: usize = 10;

/// The page.
///
/// # Errors
/// None that a reader could cause: it is drawn into memory.
pub fn page(data: &Dataset, settings: &Settings, trained: &Trained) -> Result<String, Box<dyn std::error::Error>> {
    let mut html = String::new();
    write!(
        html,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/><meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\"/><title>Ballast: training of the predictor</title>\
         <style>{}{}</style></head>\n<body>\n<header><h1>Training of the predictor</h1>\n<p>{}</p></header>\n<main>\n",
        plot::css(),
        include_str!("report/page.css"),
        escaped(&trained.finding()),
    )?;
    facts(&mut html, data, settings, trained)?;
    html.push_str("<h2>Predictors on workloads they had not seen</h2>\n");
    html.push_str(
        "<p>Pinball loss in thousandths of the horizon, the mean over workloads; lower is better. Coverage is the part \
         of outcomes at most as high as the quantile, before any calibration; where nothing is lost most of the time, a \
         predictor that is right covers more than it states.</p>\n",
    );
    table(&mut html, trained.scores.predictors.iter().map(|p| (p.predictor.as_str(), &p.mean)), "Predictor")?;
    html.push_str("<h2>By workload</h2>\n");
    by_workload(&mut html, &trained.scores.predictors)?;
    if let Some(network) = trained.scores.predictors.first() {
        html.push_str("<h2>The network, by workload</h2>\n");
        table(&mut html, network.workloads.iter().map(|(w, s)| (w.as_str(), s)), "Held out")?;
    }
    calibrated(&mut html, &trained.scores.predictors)?;
    html.push_str("<h2>What is stated and what happens</h2>\n<div class=\"plots\">\n");
    html.push_str(&calibration(&trained.scores.predictors)?);
    html.push_str(&reliability(&data.rows, trained)?);
    html.push_str("</div>\n<h2>How the networks learned</h2>\n<div class=\"plots\">\n");
    html.push_str(&learning(trained)?);
    html.push_str("</div>\n</main>\n</body></html>\n");
    Ok(html)
}

fn facts(html: &mut String, data: &Dataset, settings: &Settings, trained: &Trained) -> std::fmt::Result {
    let manifest = &data.manifest;
    let timing = trained.timing;
    let facts = [
        ("Data", format!("{} rows of {} workloads, {}", data.rows.len(), data.workloads().len(), manifest.made)),
        ("Guests", format!("{}, {}", manifest.kernel, manifest.image)),
        ("Machine", manifest.machine.clone()),
        (
            "Features",
            format!(
                "version {}, {} of the window, {} of the size",
                manifest.features_version,
                manifest.window_names.len(),
                manifest.candidate_names.len()
            ),
        ),
        ("Model", format!("{} networks, {} numbers", trained.model.members(), trained.model.parameters())),
        ("Seed", settings.seed.to_string()),
        ("Training", format!("{:.0} s", trained.took_s)),
        (
            "Prediction",
            format!(
                "one VM at 16 sizes {:.1} us (99 %: {:.1} us), a thousand VMs {:.1} ms",
                timing.one_median_us, timing.one_p99_us, timing.thousand_ms
            ),
        ),
    ];
    html.push_str("<dl class=\"facts\">");
    for (term, meaning) in facts {
        write!(html, "<div><dt>{term}</dt><dd>{}</dd></div>", escaped(&meaning))?;
    }
    html.push_str("</dl>\n");
    Ok(())
}

fn table<'a>(html: &mut String, rows: impl Iterator<Item = (&'a str, &'a Score)>, first: &str) -> std::fmt::Result {
    write!(html, "<div class=\"scroll\"><table><thead><tr><th>{first}</th><th>Rows</th><th>Pinball</th>")?;
    for q in QUANTILES {
        write!(html, "<th>{:.0} %</th>", q * 100.0)?;
    }
    for q in QUANTILES {
        write!(html, "<th>Covered by {:.0} %</th>", q * 100.0)?;
    }
    html.push_str("<th>Pressure: Brier</th><th>log loss</th></tr></thead><tbody>\n");
    for (name, score) in rows {
        write!(
            html,
            "<tr><th>{}</th><td>{}</td><td><b>{:.2}</b></td>",
            escaped(name),
            score.rows,
            score.mean_pinball * 1e3
        )?;
        for q in 0..LEVELS {
            write!(html, "<td>{:.2}</td>", score.pinball[q] * 1e3)?;
        }
        for q in 0..LEVELS {
            write!(html, "<td>{:.1} %</td>", score.coverage[q] * 100.0)?;
        }
        writeln!(html, "<td>{:.3}</td><td>{:.3}</td></tr>", score.brier, score.log_loss)?;
    }
    html.push_str("</tbody></table></div>\n");
    Ok(())
}

fn by_workload(html: &mut String, predictors: &[Scored]) -> std::fmt::Result {
    let Some(first) = predictors.first() else { return Ok(()) };
    html.push_str("<div class=\"scroll\"><table><thead><tr><th>Held out</th>");
    for p in predictors {
        write!(html, "<th>{}</th>", escaped(&p.predictor))?;
    }
    html.push_str("</tr></thead><tbody>\n");
    for workload in first.workloads.keys() {
        write!(html, "<tr><th>{}</th>", escaped(workload))?;
        let losses = || predictors.iter().filter_map(|p| Some(p.workloads.get(workload)?.mean_pinball));
        let best = losses().fold(f64::INFINITY, f64::min);
        for loss in losses() {
            let mark = if loss <= best { " class=\"best\"" } else { "" };
            write!(html, "<td{mark}>{:.2}</td>", loss * 1e3)?;
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody></table></div>\n");
    Ok(())
}

fn calibrated(html: &mut String, predictors: &[Scored]) -> std::fmt::Result {
    html.push_str(
        "<h2>Its 95 % quantile after calibration</h2>\n<p>Outcomes within, on workloads that were held out, by the calibration \
         that runs with the model, begun where the other workloads put it; with a 90 % interval.</p>\n<div class=\"scroll\"><table>\
         <thead><tr><th>Held out</th><th>Outcomes</th><th>Covered</th><th>Interval</th></tr></thead><tbody>\n",
    );
    for (workload, c) in predictors.first().iter().flat_map(|p| &p.calibrated) {
        let [covered, low, high] = [c.coverage, c.interval.0, c.interval.1].map(|v| v * 100.0);
        writeln!(
            html,
            "<tr><th>{}</th><td>{}</td><td>{covered:.1} %</td><td>{low:.0} to {high:.0} %</td></tr>",
            escaped(workload),
            c.judged
        )?;
    }
    html.push_str("</tbody></table></div>\n");
    Ok(())
}

type Drawn = Result<String, Box<dyn std::error::Error>>;

fn calibration(predictors: &[Scored]) -> Drawn {
    let mut lines = vec![Line::guide(QUANTILES.iter().map(|q| (f64::from(*q), f64::from(*q))).collect())];
    for (i, p) in predictors.iter().enumerate() {
        let points = QUANTILES.iter().zip(p.mean.coverage).map(|(q, seen)| (f64::from(*q), seen)).collect();
        lines.push(Line::of(i, &p.predictor, points));
    }
    let low = lines.iter().flat_map(|l| &l.points).map(|p| p.1).fold(0.5, f64::min);
    plot::draw("Coverage of the quantiles", Axis::percent("stated", 0.5, 1.0), Axis::percent("seen", low, 1.0), &lines)
}

fn reliability(rows: &[Row], trained: &Trained) -> Drawn {
    let mut lines = vec![Line::guide(vec![(0.0, 0.0), (1.0, 1.0)])];
    for (i, (name, said)) in trained.said.iter().enumerate() {
        if i == 0 || *name == trained.scores.best_baseline {
            lines.push(Line::of(i, name, bins(rows, said)));
        }
    }
    plot::draw("Probability of pressure", Axis::percent("stated", 0.0, 1.0), Axis::percent("seen", 0.0, 1.0), &lines)
}

/// Mean stated probability and part that happened, by bins of the former.
fn bins(rows: &[Row], said: &[Estimate]) -> Vec<(f64, f64)> {
    let mut bins = [(0_usize, 0.0, 0.0); BINS];
    for (row, said) in rows.iter().zip(said) {
        let p = f64::from(said.pressure);
        let bin = &mut bins[((p * BINS as f64) as usize).min(BINS - 1)];
        *bin = (bin.0 + 1, bin.1 + p, bin.2 + f64::from(u8::from(row.pressure)));
    }
    let full = bins.into_iter().filter(|b| b.0 >= ROWS);
    full.map(|(count, stated, seen)| (stated / count as f64, seen / count as f64)).collect()
}

/// The errors after a pass: on what is learned from, and on what stops.
type Pass = (f64, Option<f64>);

fn learning(trained: &Trained) -> Drawn {
    let mut lines = Vec::new();
    for fit in &trained.fits {
        let errors = |of: fn(&Pass) -> Option<f64>| -> Vec<(f64, f64)> {
            let errors = fit.epochs.iter().enumerate().filter_map(|(i, e)| Some(((i + 1) as f64, of(e)?)));
            errors.filter(|(_, e)| *e > 0.0).map(|(i, e)| (i, e.log10())).collect()
        };
        lines.push(Line::guide(errors(|e| Some(e.0))));
        let held_out = errors(|e| e.1);
        if !held_out.is_empty() {
            lines.push(Line::of(0, "", held_out));
        }
    }
    let points = || lines.iter().flat_map(|l| &l.points);
    let end = points().map(|p| p.0).fold(1.0, f64::max);
    let (low, high) = points().fold((0.0_f64, -9.0_f64), |(l, h), p| (l.min(p.1), h.max(p.1)));
    plot::draw(
        "Error after each pass: learned from (thin), stopped by (thick)",
        Axis { words: "passes", low: 0.0, high: end, show: |v| format!("{v:.0}") },
        Axis { words: "error", low: low.min(high - 0.1), high, show: |v| format!("{:.3}", 10f64.powf(v)) },
        &lines,
    )
}

/// For text and attributes.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            c if c.is_control() && c != '\n' => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}
