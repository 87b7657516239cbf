//! How well does network bandwidth stand for what users feel? One point per phase in which the prober came by.

use super::labels;
use super::theme::{self, Chart, Ink, Root, SCALE};
use super::words;
use crate::lab::results::{ArmRun, Block, Interval};
use crate::lab::stats;
use crate::lab::summary::experiments;
use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

/// Nominal size.
const SIZE: (i32, i32) = (520, 320);

/// Bandwidth and request latency of one phase.
#[derive(Clone, Debug, PartialEq)]
pub struct Both {
    arm: String,
    label: String,
    mbit_s: f64,
    p99_ms: f64,
    words: String,
}

/// What the probes of a run say about its latencies.
#[derive(Debug)]
pub struct Correlation {
    /// Spearman's.
    pub rho: f64,
    /// 95 %, by repetition.
    pub interval: Option<Interval>,
    /// Phases with both.
    pub phases: usize,
}

fn of_arm(block: &Block, arm: &ArmRun) -> Vec<Both> {
    let both = arm.phases.iter().filter(|p| p.measured).filter_map(|phase| {
        let latency = phase.outcome.latency.as_ref().filter(|l| l.count > 0 && l.p99_ms > 0.0)?;
        let inside = |t: f64| t >= phase.began_s && t <= phase.began_s + phase.took_s;
        let probes = arm.probes.iter().filter(|p| p.guest == phase.guest && inside(p.t));
        let mbit_s = stats::mean(&probes.map(|p| p.mbit_s).collect::<Vec<_>>()).filter(|v| v.is_finite())?;
        let p99 = words::ms(latency.p99_ms);
        let words = format!("{}, {}, {}: {mbit_s:.0} Mbit/s, p99 {p99}", arm.arm, block.experiment, phase.label);
        Some(Both { arm: arm.arm.clone(), label: phase.label.clone(), mbit_s, p99_ms: latency.p99_ms, words })
    });
    both.collect()
}

/// By experiment, one inner vector per repetition.
#[must_use]
pub fn collect(blocks: &[Block]) -> Vec<(String, Vec<Vec<Both>>)> {
    let all = experiments(blocks).into_iter().map(|e| {
        let repetitions = e.blocks.iter().map(|b| b.arms.iter().flat_map(|a| of_arm(b, a)).collect());
        (e.name.to_owned(), repetitions.collect::<Vec<Vec<Both>>>())
    });
    all.filter(|(_, r)| r.iter().any(|r| !r.is_empty())).collect()
}

/// Within one work under one arm: works differ in what a request is, and arms in how fast they are altogether, so across them it
/// would mean nothing.
#[must_use]
pub fn correlation(repetitions: &[Vec<Both>]) -> Option<Correlation> {
    let mut groups: Vec<(&str, &str)> = Vec::new();
    let mut grouped = Vec::new();
    for repetition in repetitions {
        let mut own = Vec::new();
        for both in repetition {
            let name = (both.label.as_str(), both.arm.as_str());
            let group = groups.iter().position(|g| *g == name).unwrap_or_else(|| {
                groups.push(name);
                groups.len() - 1
            });
            own.push((group, both.mbit_s, both.p99_ms));
        }
        grouped.push(own);
    }
    let all = grouped.concat();
    let used = |group: usize| all.iter().filter(|both| both.0 == group).count() > 1;
    Some(Correlation {
        rho: stats::spearman_within(&all)?,
        interval: stats::interval(&grouped, stats::spearman_within),
        phases: all.iter().filter(|both| used(both.0)).count(),
    })
}

/// One sentence about it.
#[must_use]
pub fn in_words(correlation: Option<&Correlation>) -> String {
    let Some(c) = correlation else { return "Too few phases have both to say whether they go together.".to_owned() };
    let interval = c.interval.map_or(String::new(), |i| format!(" [{:.2}, {:.2}]", i.low, i.high));
    let reading = match c.interval {
        // Read from the end of the interval that promises less.
        Some(i) if i.high <= -0.7 => "bandwidth falls as latency rises and stands for it well",
        Some(i) if i.high <= -0.4 => "bandwidth falls as latency rises and stands for it in part",
        Some(i) if i.high < 0.0 => "bandwidth falls as latency rises, but hardly stands for it",
        Some(i) if i.low > 0.0 => "bandwidth rises with latency: it does not stand for it",
        Some(_) => "the interval contains 0: bandwidth says nothing sure about latency here",
        None => "its interval is unknown",
    };
    format!(
        "Spearman's rank correlation over {} phases, ranked within each work and arm, is {:.2}{interval}: {reading}.",
        c.phases, c.rho
    )
}

/// Draws one experiment's.
///
/// # Errors
/// None that a reader could cause: it is drawn into memory.
pub fn draw(name: &str, repetitions: &[Vec<Both>]) -> Result<String> {
    let all = || repetitions.iter().flatten();
    let right = all().map(|b| b.mbit_s).fold(1.0, f64::max) * 1.05;
    let (low, high) = all().fold((f64::MAX, 1e-6_f64), |(l, h), b| (l.min(b.p99_ms), h.max(b.p99_ms)));
    let mut svg = String::new();
    let mut hints = String::new();
    {
        let root =
            SVGBackend::with_string(&mut svg, ((SIZE.0 * SCALE) as u32, (SIZE.1 * SCALE) as u32)).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin_right(10 * SCALE)
            .margin_top(10 * SCALE)
            .x_label_area_size(36 * SCALE)
            .y_label_area_size(72 * SCALE)
            .build_cartesian_2d(0.0..right, (low * 0.8).log10()..(high * 1.25).log10())?;
        let small = theme::text(12, Ink::Muted.color(), HPos::Center, VPos::Center);
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(theme::line(Ink::Grid.color(), 10))
            .axis_style(theme::line(Ink::Grid.color(), 10))
            .label_style(small.clone())
            .axis_desc_style(small)
            .x_labels(6)
            .disable_y_mesh()
            .y_labels(0)
            .x_label_formatter(&|v| format!("{v:.0}"))
            .x_desc("iperf3, Mbit/s")
            .y_desc("p99 request latency")
            .draw()?;
        theme::log_lines(&root, &mut chart, 12, words::ms)?;
        for both in all() {
            let at = (both.mbit_s, both.p99_ms.log10());
            chart.draw_series([Circle::new(at, 4 * SCALE, theme::arm(&both.arm).mix(0.75).filled())])?;
            hints.push_str(&theme::hint(chart.backend_coord(&at), 6, &both.words));
        }
        names(&root, &chart, &all().collect::<Vec<_>>())?;
        root.present()?;
    }
    Ok(theme::finish(&svg, &format!("Bandwidth against p99 request latency in {name}"), &hints))
}

/// Each arm's name beside the middle of its points.
fn names(root: &Root<'_>, chart: &Chart<'_, '_>, all: &[&Both]) -> Result<()> {
    let mut arms: Vec<&str> = Vec::new();
    for both in all {
        if !arms.contains(&both.arm.as_str()) {
            arms.push(&both.arm);
        }
    }
    let at = |both: &Both| chart.backend_coord(&(both.mbit_s, both.p99_ms.log10()));
    let middle = |arm: &&str| {
        let mine = || all.iter().filter(|b| b.arm == *arm);
        let median = |values: Vec<f64>| stats::median(&values);
        let x = median(mine().map(|b| f64::from(at(b).0)).collect())?;
        let y = median(mine().map(|b| f64::from(at(b).1)).collect())?;
        Some((x as i32, y as i32))
    };
    let middles: Vec<(i32, i32)> = arms.iter().filter_map(middle).collect();
    let sizes: Vec<(i32, i32)> = arms.iter().map(|a| (theme::width(a, 11), 13 * SCALE)).collect();
    let points: Vec<labels::Area> = all.iter().map(|b| at(b)).map(|(x, y)| (x - 8, y - 8, x + 8, y + 8)).collect();
    let (xs, ys) = chart.plotting_area().get_pixel_range();
    let places = labels::beside(&middles, &sizes, (xs.start, ys.start, xs.end, ys.end), &points);
    for (arm, area) in arms.iter().zip(places) {
        let style = theme::text(11, theme::arm(arm), HPos::Left, VPos::Center);
        root.draw(&Text::new((*arm).to_owned(), (area.0, (area.1 + area.3) / 2), style))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arms_that_differ_are_no_correlation() {
        let both = |arm: &str, mbit_s: f64, p99_ms: f64| Both {
            arm: arm.to_owned(),
            label: "load".to_owned(),
            mbit_s,
            p99_ms,
            words: String::new(),
        };
        // One arm is better in both; within each, bandwidth and latency rise together.
        let repetition = |n: f64| vec![both("slow", 100.0 + n, 50.0 + n), both("fast", 900.0 + n, 5.0 + n)];
        let found = correlation(&[repetition(0.0), repetition(1.0), repetition(2.0)]).unwrap();
        assert!((found.rho - 1.0).abs() < 1e-12, "{found:?}");
        assert!(in_words(Some(&found)).contains("over 6 phases, ranked within each work and arm, is 1.00"));
    }
}
