//! The picture to remember: memory saved to the right, service kept upwards, and the line that nobody is beyond.

use super::labels;
use super::theme::{self, Chart, Ink, Root, SCALE};
use crate::lab::results::{BALLAST, Cell, Interval};
use crate::lab::stats;
use crate::lab::summary::lost;
use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};
use std::ops::Range;

/// An arm in this picture. Both axes in percent of `static`.
#[derive(Clone, Debug)]
pub struct Point {
    arm: String,
    saved: f64,
    kept: f64,
    saved_ci: Option<Interval>,
    kept_ci: Option<Interval>,
    /// Kills and refused allocations.
    lost: u64,
    /// The same in single experiments, where the point is of many.
    each: Vec<(f64, f64)>,
}

/// The arms of one experiment that can be drawn: those that have both figures.
#[must_use]
pub fn points(cells: &[&Cell]) -> Vec<Point> {
    let points = cells.iter().filter_map(|c| {
        let percent = |i: &Interval| Interval { low: 100.0 * i.low, high: 100.0 * i.high };
        let saved = |i: &Interval| Interval { low: 100.0 * (1.0 - i.high), high: 100.0 * (1.0 - i.low) };
        Some(Point {
            arm: c.arm.clone(),
            saved: 100.0 * (1.0 - c.resident_ratio?),
            kept: 100.0 * c.throughput_ratio?,
            saved_ci: c.ci.get("resident_ratio").map(saved),
            kept_ci: c.ci.get("throughput_ratio").map(percent),
            lost: lost(c),
            each: Vec::new(),
        })
    });
    points.collect()
}

/// All experiments in one: the median of each arm's cells, with the cells themselves.
#[must_use]
pub fn over_all(experiments: &[Vec<Point>]) -> Vec<Point> {
    let mut arms: Vec<&str> = Vec::new();
    for point in experiments.iter().flatten() {
        if !arms.contains(&point.arm.as_str()) {
            arms.push(&point.arm);
        }
    }
    let point = |arm: &&str| {
        let mine: Vec<&Point> = experiments.iter().flatten().filter(|p| p.arm == *arm).collect();
        let median = |of: fn(&Point) -> f64| stats::median(&mine.iter().map(|p| of(p)).collect::<Vec<_>>());
        Some(Point {
            arm: (*arm).to_owned(),
            saved: median(|p| p.saved)?,
            kept: median(|p| p.kept)?,
            saved_ci: None,
            kept_ci: None,
            lost: mine.iter().map(|p| p.lost).sum(),
            each: mine.iter().map(|p| (p.saved, p.kept)).collect(),
        })
    };
    arms.iter().filter_map(point).collect()
}

/// Those without a kill that no other without a kill is better than in both, by memory saved.
fn frontier(points: &[Point]) -> Vec<(f64, f64)> {
    let clean: Vec<&Point> = points.iter().filter(|p| p.lost == 0).collect();
    let beaten = |p: &Point| {
        clean.iter().any(|o| (o.saved >= p.saved && o.kept > p.kept) || (o.saved > p.saved && o.kept >= p.kept))
    };
    let mut best: Vec<(f64, f64)> = clean.iter().filter(|p| !beaten(p)).map(|p| (p.saved, p.kept)).collect();
    best.sort_by(|a, b| a.0.total_cmp(&b.0));
    best
}

/// Draws it, of a nominal size.
///
/// # Errors
/// None that a reader could cause: it is drawn into memory.
pub fn draw(name: &str, points: &[Point], scale: &Axes, (wide, high): (i32, i32)) -> Result<String> {
    let mut svg = String::new();
    let mut hints = String::new();
    {
        let size = ((wide * SCALE) as u32, (high * SCALE) as u32);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let mut chart = axes(&root, scale)?;
        let best = frontier(points);
        let line = staircase(&best, chart.x_range().start, chart.y_range().start);
        let style = theme::line(Ink::Muted.color(), 15);
        chart.draw_series(DashedLineSeries::new(line, 6 * SCALE as u32, 4 * SCALE as u32, style))?;
        for point in points.iter().filter(|p| p.arm != BALLAST).chain(points.iter().filter(|p| p.arm == BALLAST)) {
            mark(&mut chart, point)?;
            let at = chart.backend_coord(&(point.saved, point.kept));
            hints.push_str(&theme::hint(at, 9, &words(point)));
        }
        names(&root, &chart, points)?;
        root.present()?;
    }
    let all: Vec<String> = points.iter().map(words).collect();
    Ok(theme::finish(&svg, &format!("Memory saved against service kept, {name}. {}", all.join(". ")), &hints))
}

fn words(point: &Point) -> String {
    let with = |value: f64, ci: Option<Interval>| match ci {
        Some(ci) if ci.low < ci.high => format!("{value:.0} % [{:.0}, {:.0}]", ci.low, ci.high),
        _ => format!("{value:.0} %"),
    };
    let lost = if point.lost == 0 { String::new() } else { format!(", {} killed or refused", point.lost) };
    let (saved, kept) = (with(point.saved, point.saved_ci), with(point.kept, point.kept_ci));
    format!("{}: saves {saved} of memory, keeps {kept} of throughput{lost}", point.arm)
}

/// Axes that several pictures share, so that they can be compared at a glance.
#[derive(Clone, Debug)]
pub struct Axes {
    saved: Range<f64>,
    kept: Range<f64>,
}

impl Axes {
    /// With room for all of these.
    #[must_use]
    pub fn of<'a>(points: impl Iterator<Item = &'a Point>) -> Self {
        let (mut right, mut low, mut left, mut top) = (20.0_f64, 80.0_f64, 0.0_f64, 104.0_f64);
        for (saved, kept) in points.flat_map(|p| p.each.iter().copied().chain([(p.saved, p.kept)])) {
            right = right.max(saved);
            left = left.min(saved);
            low = low.min(kept);
            top = top.max(kept + 3.0);
        }
        let saved = ((left - 2.0) / 5.0).floor() * 5.0..(right / 10.0 + 0.6).ceil() * 10.0;
        Self { saved, kept: (((low - 6.0) / 10.0).floor() * 10.0).max(-5.0)..top }
    }
}

fn axes<'a, 'b>(root: &'a Root<'b>, axes: &Axes) -> Result<Chart<'a, 'b>> {
    let mut chart = ChartBuilder::on(root)
        .margin_right(18 * SCALE)
        .margin_top(10 * SCALE)
        .x_label_area_size(36 * SCALE)
        .y_label_area_size(58 * SCALE)
        .build_cartesian_2d(axes.saved.clone(), axes.kept.clone())?;
    let small = theme::text(11, Ink::Muted.color(), HPos::Center, VPos::Center);
    let percent = |v: &f64| format!("{v:.0} %");
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(theme::line(Ink::Grid.color(), 10))
        .axis_style(theme::line(Ink::Grid.color(), 10))
        .label_style(small.clone())
        .axis_desc_style(small)
        .x_labels(6)
        .y_labels(6)
        .x_label_formatter(&percent)
        .y_label_formatter(&percent)
        .x_desc("memory saved, % of static")
        .y_desc("throughput kept, % of static")
        .draw()?;
    Ok(chart)
}

/// Nobody without a kill is to the right of or above this line.
fn staircase(best: &[(f64, f64)], left: f64, bottom: f64) -> Vec<(f64, f64)> {
    let (Some(first), Some(last)) = (best.first(), best.last()) else { return Vec::new() };
    let mut line = vec![(left, first.1)];
    for (saved, kept) in best {
        let before = line.last().map_or(*saved, |p| p.0);
        line.extend([(before, *kept), (*saved, *kept)]);
    }
    line.push((last.0, bottom));
    line
}

fn mark(chart: &mut Chart<'_, '_>, point: &Point) -> Result<()> {
    let color = theme::arm(&point.arm);
    let faint = ShapeStyle { color: color.mix(0.35), filled: true, stroke_width: SCALE as u32 };
    let at = (point.saved, point.kept);
    let (x, y) = (chart.x_range(), chart.y_range());
    for each in &point.each {
        chart.draw_series([PathElement::new(vec![at, *each], faint)])?;
        chart.draw_series([Circle::new(*each, 2 * SCALE, faint)])?;
    }
    let bar = ShapeStyle { color: color.mix(0.6), filled: false, stroke_width: 3 };
    if let Some(ci) = point.saved_ci {
        let ends = vec![(ci.low.max(x.start), at.1), (ci.high.min(x.end), at.1)];
        chart.draw_series([PathElement::new(ends, bar)])?;
    }
    if let Some(ci) = point.kept_ci {
        let ends = vec![(at.0, ci.low.max(y.start)), (at.0, ci.high.min(y.end))];
        chart.draw_series([PathElement::new(ends, bar)])?;
    }
    let strong = theme::line(color, 25);
    let radius = if point.arm == BALLAST { 7 } else { 5 } * SCALE;
    if point.lost > 0 {
        chart.draw_series([Cross::new(at, radius, strong)])?;
    } else {
        chart.draw_series([Circle::new(at, radius, color.filled())])?;
    }
    Ok(())
}

fn names(root: &Root<'_>, chart: &Chart<'_, '_>, points: &[Point]) -> Result<()> {
    // Ours and the reference get the best places.
    let mut order: Vec<&Point> = points.iter().collect();
    order.sort_by_key(|p| p.arm != BALLAST);
    let size = |p: &&Point| if p.arm == BALLAST { 13 } else { 11 };
    let text = |p: &&Point| if p.lost > 0 { format!("{} ✕{}", p.arm, p.lost) } else { p.arm.clone() };
    let at: Vec<(i32, i32)> = order.iter().map(|p| chart.backend_coord(&(p.saved, p.kept))).collect();
    let sizes: Vec<(i32, i32)> =
        order.iter().map(|p| (theme::width(&text(p), size(p)), (size(p) + 2) * SCALE)).collect();
    let (xs, ys) = chart.plotting_area().get_pixel_range();
    let (x, y) = (chart.x_range(), chart.y_range());
    let pixel = |saved: f64, kept: f64| chart.backend_coord(&(saved.clamp(x.start, x.end), kept.clamp(y.start, y.end)));
    let stroke =
        |a: (i32, i32), b: (i32, i32)| (a.0.min(b.0) - 3, a.1.min(b.1) - 3, a.0.max(b.0) + 3, a.1.max(b.1) + 3);
    let mut taken: Vec<labels::Area> = Vec::new();
    for p in points {
        let upright = p.kept_ci.map(|ci| stroke(pixel(p.saved, ci.high), pixel(p.saved, ci.low)));
        let level = p.saved_ci.map(|ci| stroke(pixel(ci.low, p.kept), pixel(ci.high, p.kept)));
        taken.extend(upright.into_iter().chain(level));
    }
    let line = staircase(&frontier(points), x.start, y.start);
    taken.extend(line.windows(2).map(|w| stroke(pixel(w[0].0, w[0].1), pixel(w[1].0, w[1].1))));
    let places = labels::beside(&at, &sizes, (xs.start, ys.start, xs.end, ys.end), &taken);
    for ((point, area), from) in order.iter().zip(places).zip(at) {
        let color = theme::arm(&point.arm);
        let middle = (area.1 + area.3) / 2;
        let near = (from.0.clamp(area.0, area.2), from.1.clamp(area.1, area.3));
        let far = (near.0 - from.0).abs().max((near.1 - from.1).abs()) > 20 * SCALE;
        if far {
            root.draw(&PathElement::new(vec![from, near], theme::line(color, 7)))?;
        }
        let mut style = theme::text(size(point), color, HPos::Left, VPos::Center);
        if point.arm == BALLAST {
            style.font = style.font.style(FontStyle::Bold);
        }
        root.draw(&Text::new(text(point), (area.0, middle), style))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(arm: &str, saved: f64, kept: f64, lost: u64) -> Point {
        Point { arm: arm.to_owned(), saved, kept, saved_ci: None, kept_ci: None, lost, each: Vec::new() }
    }

    #[test]
    fn the_frontier_is_of_those_without_kills_that_nobody_beats() {
        let points = [
            at("static", 0.0, 100.0, 0),
            at("mom", 70.0, 99.0, 3),
            at("proxmox", 30.0, 90.0, 0),
            at("ballast", 60.0, 97.0, 0),
            at("deflate-on-oom", 65.0, 60.0, 0),
        ];
        assert_eq!(frontier(&points), [(0.0, 100.0), (60.0, 97.0), (65.0, 60.0)]);
        let all = over_all(&[points.to_vec(), vec![at("ballast", 50.0, 99.0, 0)]]);
        assert_eq!((all.len(), all[3].saved, all[3].kept, all[1].lost), (5, 55.0, 98.0, 3));
        let svg = draw("test", &points, &Axes::of(points.iter()), (380, 300)).unwrap();
        assert!(svg.contains("mom ✕3") && svg.contains("ballast: saves 60 % of memory, keeps 97 %"), "{svg}");
    }
}
