//! How long operations took, all of them: the median hides what a law does to the slowest one in a thousand.
//!
//! Percentiles to the right on a scale where each tick is ten times rarer, latency upwards on a logarithmic one, as
//! HdrHistogram draws them. Histograms of an experiment's measured phases and repetitions are added.

use super::labels;
use super::theme::{self, Ink, SCALE};
use crate::lab::results::{BALLAST, Block};
use crate::lab::summary::pairs;
use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};
use std::collections::BTreeMap;

/// Nominal size.
pub const SIZE: (i32, i32) = (520, 310);
/// Nines at the right end: 99.99 %.
const NINES: f64 = 4.0;
/// Nominal width of the column of names.
pub const NAMES: i32 = 134;

/// Latencies of an arm: upper ends of buckets, milliseconds, and the share of operations at most so long.
fn shares(blocks: &[&Block], arm: &str) -> (u64, Vec<(f64, f64)>) {
    // Bits order positive floats as numbers do.
    let mut buckets = BTreeMap::<u64, u64>::new();
    let runs = blocks.iter().filter_map(|b| pairs::arm(b, arm));
    for phase in runs.flat_map(|r| &r.phases).filter(|p| p.measured) {
        let histogram = phase.outcome.latency.iter().flat_map(|l| &l.histogram);
        for (upper, count) in histogram.filter(|(upper, _)| upper.is_finite() && *upper > 0.0) {
            *buckets.entry(upper.to_bits()).or_default() += count;
        }
    }
    let all: u64 = buckets.values().sum();
    let mut so_far = 0;
    let shares = buckets.into_iter().map(|(upper, count)| {
        so_far += count;
        (f64::from_bits(upper), so_far as f64 / all as f64)
    });
    (all, shares.filter(|(_, share)| share.is_finite()).collect())
}

/// How many nines a share has: 0.9 one, 0.99 two.
fn nines(share: f64) -> f64 {
    -(1.0 - share).max(1e-12).log10()
}

/// A staircase of nines and milliseconds, which ends at the rarest operation that was counted.
fn curve(all: u64, shares: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let end = NINES.min((all as f64).log10());
    let mut curve = Vec::new();
    let mut from = 0.0;
    for (upper, share) in shares {
        curve.push((from, *upper));
        from = nines(*share).min(end);
        curve.push((from, *upper));
        if from >= end {
            break;
        }
    }
    curve
}

/// Draws an experiment's. `None` when its work has no single operations.
///
/// # Errors
/// None that a reader could cause: it is drawn into memory.
pub fn draw(name: &str, blocks: &[&Block], arms: &[&str]) -> Result<Option<String>> {
    let curves: Vec<(&str, Vec<(f64, f64)>)> = arms
        .iter()
        .map(|arm| {
            let (all, shares) = shares(blocks, arm);
            (*arm, curve(all, &shares))
        })
        .filter(|(_, curve)| !curve.is_empty())
        .collect();
    let values = || curves.iter().flat_map(|(_, c)| c).map(|p| p.1);
    let (low, high) = values().fold((f64::MAX, 0.0_f64), |(l, h), v| (l.min(v), h.max(v)));
    if curves.is_empty() || low > high {
        return Ok(None);
    }
    let mut svg = String::new();
    let mut words = Vec::new();
    {
        let root =
            SVGBackend::with_string(&mut svg, ((SIZE.0 * SCALE) as u32, (SIZE.1 * SCALE) as u32)).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin_right(NAMES * SCALE)
            .margin_top(10 * SCALE)
            .x_label_area_size(36 * SCALE)
            .y_label_area_size(72 * SCALE)
            .build_cartesian_2d(0.0..NINES, (low * 0.8).log10()..(high * 1.25).log10())?;
        let small = theme::text(12, Ink::Muted.color(), HPos::Center, VPos::Center);
        let percentile = |n: &f64| match n.round() as i32 {
            0 => "0 %".to_owned(),
            1 => "90 %".to_owned(),
            n => format!("{:.*} %", (n - 2).max(0) as usize, 100.0 - 100.0 * 10f64.powi(-n)),
        };
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(theme::line(Ink::Grid.color(), 10))
            .axis_style(theme::line(Ink::Grid.color(), 10))
            .label_style(small.clone())
            .axis_desc_style(small)
            .x_labels(5)
            .disable_y_mesh()
            .y_labels(0)
            .x_label_formatter(&percentile)
            .x_desc("share of operations that took at most this long")
            .y_desc("latency")
            .draw()?;
        theme::log_lines(&root, &mut chart, 12, super::words::ms)?;
        let ours_last = curves.iter().filter(|c| c.0 != BALLAST).chain(curves.iter().filter(|c| c.0 == BALLAST));
        for (arm, curve) in ours_last {
            let tenths = if *arm == BALLAST { 32 } else { 16 };
            chart.draw_series(LineSeries::new(
                curve.iter().map(|(n, ms)| (*n, ms.log10())),
                theme::line(theme::arm(arm), tenths),
            ))?;
        }
        let mut ends = Vec::new();
        for (arm, curve) in &curves {
            let (n, ms) = curve.last().copied().unwrap_or((0.0, low));
            ends.push((*arm, chart.backend_coord(&(n, ms.log10()))));
            let at = |n: f64| curve.iter().find(|p| p.0 >= n).map_or("unknown".to_owned(), |p| super::words::ms(p.1));
            words.push(format!("{arm} {} at 90 %, {} at 99 %", at(1.0), at(2.0)));
        }
        labels::at_ends(&root, chart.plotting_area().get_pixel_range(), &ends, 12)?;
        root.present()?;
    }
    Ok(Some(theme::finish(&svg, &format!("Latency by percentile in {name}: {}", words.join("; ")), "")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_end_at_what_was_counted() {
        let stairs = curve(1000, &[(1.0, 0.9), (8.0, 0.99), (20.0, 1.0)]);
        let rounded: Vec<(f64, f64)> = stairs.iter().map(|(n, ms)| ((n * 1e6).round() / 1e6, *ms)).collect();
        assert_eq!(rounded, [(0.0, 1.0), (1.0, 1.0), (1.0, 8.0), (2.0, 8.0), (2.0, 20.0), (3.0, 20.0)]);
        assert!(curve(0, &[]).is_empty());
    }
}
