//! Work done in each phase, in percent of what `static` did in it: where in an experiment a law costs something.

use super::labels;
use super::latency::{NAMES, SIZE};
use super::theme::{self, Chart, Ink, SCALE};
use crate::lab::results::{BALLAST, Block, STATIC};
use crate::lab::stats;
use crate::lab::summary::pairs;
use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};
use std::collections::BTreeMap;

/// One measured phase under one arm, all repetitions.
#[derive(Debug, Default, PartialEq)]
struct Work {
    /// In percent of `static`.
    ratios: Vec<f64>,
    killed: u64,
}

/// By place in the file.
fn collect(blocks: &[&Block], arm: &str) -> BTreeMap<usize, Work> {
    let mut places = BTreeMap::<usize, Work>::new();
    for block in blocks {
        let (Some(run), Some(reference)) = (pairs::arm(block, arm), pairs::arm(block, STATIC)) else { continue };
        for phase in run.phases.iter().filter(|p| p.measured) {
            if let Some(ratio) = super::timeline::to_reference(reference, phase) {
                let work = places.entry(phase.index).or_default();
                work.ratios.push(100.0 * ratio);
                work.killed += phase.outcome.killed.max(phase.during.oom_kills);
            }
        }
    }
    places
}

/// Names of the measured phases by place.
fn names(blocks: &[&Block]) -> BTreeMap<usize, String> {
    let phases = blocks.iter().flat_map(|b| &b.arms).flat_map(|a| &a.phases).filter(|p| p.measured);
    phases.map(|p| (p.index, p.label.clone())).collect()
}

/// Draws an experiment's. `None` when nothing can be compared or there is but one phase, which the tables have.
///
/// # Errors
/// None that a reader could cause: it is drawn into memory.
pub fn draw(name: &str, blocks: &[&Block], arms: &[&str]) -> Result<Option<String>> {
    let names = names(blocks);
    let places: Vec<usize> = names.keys().copied().collect();
    let all: Vec<(&str, BTreeMap<usize, Work>)> = arms.iter().map(|a| (*a, collect(blocks, a))).collect();
    let values = || all.iter().flat_map(|(_, w)| w.values()).flat_map(|w| &w.ratios).copied();
    if places.len() < 2 || values().next().is_none() {
        return Ok(None);
    }
    let top = values().fold(105.0, f64::max).min(400.0) * 1.04;
    let mut svg = String::new();
    let mut hints = String::new();
    {
        let size = ((SIZE.0 * SCALE) as u32, (SIZE.1 * SCALE) as u32);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin_right(NAMES * SCALE)
            .margin_top(10 * SCALE)
            .x_label_area_size(36 * SCALE)
            .y_label_area_size(72 * SCALE)
            .build_cartesian_2d(-0.3..(places.len() - 1) as f64 + 0.2, 0.0..top)?;
        let small = theme::text(12, Ink::Muted.color(), HPos::Center, VPos::Center);
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(theme::line(Ink::Grid.color(), 10))
            .axis_style(theme::line(Ink::Grid.color(), 10))
            .label_style(small.clone())
            .axis_desc_style(small)
            .x_labels(0)
            .y_labels(6)
            .y_label_formatter(&|v| format!("{v:.0} %"))
            .x_desc("phase")
            .y_desc("throughput, % of static")
            .draw()?;
        let every = places.len().div_ceil(16);
        for (x, place) in places.iter().enumerate().filter(|(x, _)| x % every == 0) {
            let (x, y) = chart.backend_coord(&(x as f64, 0.0));
            let style = theme::text(12, Ink::Muted.color(), HPos::Center, VPos::Top);
            root.draw(&Text::new((place + 1).to_string(), (x, y + 5 * SCALE), style))?;
        }
        let mut ends = Vec::new();
        let ours_last = all.iter().filter(|a| a.0 != BALLAST).chain(all.iter().filter(|a| a.0 == BALLAST));
        for (i, (arm, works)) in ours_last.enumerate() {
            // Side by side, so that equal ones do not hide each other.
            let aside = (i as f64 - all.len() as f64 / 2.0) * 0.3 / all.len() as f64;
            let mut line = Vec::new();
            for (x, place) in places.iter().enumerate() {
                let Some(work) = works.get(place) else { continue };
                let Some(median) = stats::median(&work.ratios) else { continue };
                let at = (x as f64 + aside, median.min(top));
                mark(&mut chart, arm, at, work)?;
                let phase = names.get(place).map_or("", String::as_str);
                let killed = if work.killed > 0 { format!(", {} killed", work.killed) } else { String::new() };
                let words = format!("{arm}, {}. {phase}: {median:.0} % of static{killed}", place + 1);
                hints.push_str(&theme::hint(chart.backend_coord(&at), 6, &words));
                line.push(at);
            }
            let tenths = if *arm == BALLAST { 26 } else { 12 };
            if let Some(last) = line.last() {
                ends.push((*arm, chart.backend_coord(last)));
            }
            chart.draw_series(LineSeries::new(line, theme::line(theme::arm(arm), tenths)))?;
        }
        labels::at_ends(&root, chart.plotting_area().get_pixel_range(), &ends, 12)?;
        root.present()?;
    }
    let words: Vec<String> = names.iter().map(|(place, name)| format!("{}. {name}", place + 1)).collect();
    let words = format!("Throughput in percent of static by phase in {name}: {}", words.join(", "));
    Ok(Some(theme::finish(&svg, &words, &hints)))
}

/// The median, the range of the repetitions, and a cross when something was killed in one of them.
fn mark(chart: &mut Chart<'_, '_>, arm: &str, (x, y): (f64, f64), work: &Work) -> Result<()> {
    let color = theme::arm(arm);
    let top = chart.y_range().end;
    let (low, high) = work.ratios.iter().fold((f64::MAX, 0.0_f64), |(l, h), r| (l.min(*r), h.max(*r)));
    let range = ShapeStyle { color: color.mix(0.5), filled: false, stroke_width: 3 };
    chart.draw_series([PathElement::new(vec![(x, low.min(top)), (x, high.min(top))], range)])?;
    let radius = if arm == BALLAST { 5 } else { 3 } * SCALE;
    if work.killed > 0 {
        chart.draw_series([Cross::new((x, y), 4 * SCALE, theme::line(color, 22))])?;
    } else {
        chart.draw_series([Circle::new((x, y), radius, color.filled())])?;
    }
    Ok(())
}
