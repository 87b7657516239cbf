//! One arm through one repetition: what its guests held, what they were left, and what happened when.
//!
//! ```text
//!   phases, numbered, with throughput to static ▏ shaded
//!   memory: held by the host (filled, one layer per guest), left by the balloon, available to the guest, host's budget
//!   orders: ▲ gives, ▼ takes; demands: ◆
//!   pressure: a strip, darker where tasks waited for memory for a larger share of the time
//! ```

use super::theme::{self, Chart, Ink, Root, SCALE};
use crate::lab::results::{ArmRun, Block, GuestRun, Look, PhaseRun, STATIC};
use crate::lab::summary::pairs;
use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};
use std::fmt::Write;

/// Nominal size.
const SIZE: (i32, i32) = (500, 230);
/// Points of a line at most: more cannot be told apart at this size.
const POINTS: usize = 400;
/// Height of the strip of pressure, nominal.
const STRIP: i32 = 10;
/// Signs of the same kind nearer than this are one, nominal.
const NEAR: i32 = 4;

/// What all time lines of an experiment share, so that they can be compared at a glance.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    end_s: f64,
    top_mib: f64,
    budget_mib: Option<f64>,
}

impl Scale {
    /// Of one block.
    #[must_use]
    pub fn of(block: &Block, budget_mib: Option<f64>) -> Self {
        let looks = || block.arms.iter().flat_map(|a| &a.guests).flat_map(|g| &g.series);
        let phases = block.arms.iter().flat_map(|a| &a.phases).map(|p| p.began_s + p.took_s);
        let memory = block.arms.iter().map(|a| a.guests.iter().map(|g| g.memory_mib).sum::<u64>()).max();
        Self {
            end_s: looks().map(|l| l.t).chain(phases).filter(|t| t.is_finite()).fold(1.0, f64::max),
            top_mib: (memory.unwrap_or(0) as f64).max(budget_mib.unwrap_or(0.0)).max(64.0) * 1.06,
            budget_mib,
        }
    }
}

/// Draws it. `None` when nothing was seen of the arm.
///
/// # Errors
/// None that a reader could cause: it is drawn into memory.
pub fn draw(block: &Block, arm: &ArmRun, scale: Scale) -> Result<Option<String>> {
    if arm.guests.iter().all(|g| g.series.is_empty()) {
        return Ok(None);
    }
    let mut svg = String::new();
    let mut hints = String::new();
    {
        let size = ((SIZE.0 * SCALE) as u32, (SIZE.1 * SCALE) as u32);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin_right(6 * SCALE)
            .margin_top(18 * SCALE)
            .margin_bottom((STRIP + 4) * SCALE)
            .x_label_area_size(20 * SCALE)
            .y_label_area_size(42 * SCALE)
            .build_cartesian_2d(0.0..scale.end_s, 0.0..scale.top_mib)?;
        shade(&root, &mut chart, block, arm, &mut hints)?;
        axes(&mut chart)?;
        memory(&mut chart, arm, scale)?;
        pressure(&root, &chart, arm, &mut hints)?;
        signs(&root, &chart, arm, &mut hints)?;
        root.present()?;
    }
    let words = format!(
        "{} in {}, repetition {}: memory over time, {} phases, {} orders, {} demands",
        arm.arm,
        block.experiment,
        block.repetition,
        arm.phases.len(),
        arm.orders.len(),
        arm.demands.len()
    );
    Ok(Some(theme::finish(&svg, &words, &hints)))
}

/// A phase's throughput to that of the same phase under `static`.
#[must_use]
pub fn to_reference(reference: &ArmRun, phase: &PhaseRun) -> Option<f64> {
    let same = reference.phases.iter().find(|p| p.index == phase.index && p.guest == phase.guest)?;
    Some(pairs::throughput(phase)? / pairs::throughput(same)?).filter(|r| r.is_finite())
}

fn shade(root: &Root<'_>, chart: &mut Chart<'_, '_>, block: &Block, arm: &ArmRun, hints: &mut String) -> Result<()> {
    let top = chart.y_range().end;
    let mut free = i32::MIN;
    for phase in &arm.phases {
        let (from, to) = (phase.began_s, phase.began_s + phase.took_s);
        chart.draw_series([Rectangle::new([(from, 0.0), (to, top)], Ink::Shade.color().filled())])?;
        let (left, above) = chart.backend_coord(&(from, top));
        let (right, below) = chart.backend_coord(&(to, 0.0));
        let reference = pairs::arm(block, STATIC).filter(|_| phase.measured);
        let ratio = reference.and_then(|r| to_reference(r, phase));
        let killed = phase.outcome.killed > 0 || phase.during.oom_kills > 0;
        let mut words = format!(
            "{}. {} in {}, {:.1} to {:.1} s: {:.1} {}/s",
            phase.index + 1,
            phase.label,
            phase.guest,
            from,
            to,
            pairs::throughput(phase).unwrap_or(0.0),
            phase.outcome.unit
        );
        if let Some(ratio) = ratio {
            write!(words, ", {:.0} % of static", ratio * 100.0)?;
        }
        if let Some(latency) = &phase.outcome.latency {
            write!(words, ", p99 {:.1} ms, worst {:.1} ms", latency.p99_ms, latency.max_ms)?;
        }
        if killed {
            write!(words, ", {} killed", phase.outcome.killed.max(phase.during.oom_kills))?;
        }
        write!(
            hints,
            "<rect class=\"hint\" x=\"{left}\" y=\"{above}\" width=\"{}\" height=\"{}\"><title>{}</title></rect>",
            (right - left).max(4),
            (below - above).max(4),
            theme::escaped(&words)
        )?;
        let label = match ratio {
            _ if killed => "✕".to_owned(),
            Some(ratio) => format!("{:.0}", ratio * 100.0),
            None => String::new(),
        };
        let ink = if killed { Ink::Bad } else { Ink::Muted };
        let half = theme::width(&label, 11) / 2;
        let middle = (left + right) / 2;
        // Where phases are too short for their labels, some go without; the hint has the figure.
        if middle - half >= free {
            let style = theme::text(11, ink.color(), HPos::Center, VPos::Bottom);
            root.draw(&Text::new(label, (middle, above - 2 * SCALE), style))?;
            free = middle + half + 4;
        }
    }
    let style = theme::text(11, Ink::Muted.color(), HPos::Right, VPos::Bottom);
    let (left, above) = chart.backend_coord(&(0.0, top));
    root.draw(&Text::new("work %", (left - 3 * SCALE, above - 2 * SCALE), style))?;
    Ok(())
}

fn axes(chart: &mut Chart<'_, '_>) -> Result<()> {
    let small = theme::text(11, Ink::Muted.color(), HPos::Center, VPos::Center);
    let seconds = |v: &f64| format!("{v:.0} s");
    let mib = |v: &f64| format!("{v:.0}");
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(theme::line(Ink::Grid.color(), 8))
        .axis_style(theme::line(Ink::Grid.color(), 8))
        .label_style(small)
        .x_labels(7)
        .y_labels(5)
        .x_label_formatter(&seconds)
        .y_label_formatter(&mib)
        .draw()?;
    Ok(())
}

/// One line of all guests together, thinned. A gap where a guest gave no answer is bridged.
fn total(guests: &[GuestRun], of: fn(&Look) -> Option<f64>) -> Vec<(f64, f64)> {
    let Some(first) = guests.iter().find(|g| !g.series.is_empty()) else { return Vec::new() };
    let mut at = vec![0; guests.len()];
    let mut last: Vec<Option<f64>> = vec![None; guests.len()];
    let mut line = Vec::new();
    for look in &first.series {
        for (i, guest) in guests.iter().enumerate() {
            while guest.series.get(at[i]).is_some_and(|l| l.t <= look.t) {
                last[i] = of(&guest.series[at[i]]).filter(|v| v.is_finite()).or(last[i]);
                at[i] += 1;
            }
        }
        let known: Vec<f64> = last.iter().flatten().copied().collect();
        if known.len() == guests.len() || (!known.is_empty() && line.is_empty()) {
            line.push((look.t, known.iter().sum()));
        }
    }
    thinned(&line)
}

/// Keeps the lowest and the highest of each stretch, so that no spike is lost.
fn thinned(line: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if line.len() <= POINTS {
        return line.to_vec();
    }
    let stretch = (2 * line.len()).div_ceil(POINTS);
    let ends = line.chunks(stretch).flat_map(|part| {
        let low = part.iter().enumerate().min_by(|a, b| a.1.1.total_cmp(&b.1.1)).map(|p| p.0);
        let high = part.iter().enumerate().max_by(|a, b| a.1.1.total_cmp(&b.1.1)).map(|p| p.0);
        let mut both: Vec<usize> = low.into_iter().chain(high).collect();
        both.sort_unstable();
        both.dedup();
        both.into_iter().map(|i| part[i])
    });
    ends.collect()
}

fn memory(chart: &mut Chart<'_, '_>, arm: &ArmRun, scale: Scale) -> Result<()> {
    let color = theme::arm(&arm.arm);
    // From the back: all guests, then all but the last, and so on. Each layer darkens what is under it.
    for guests in (1..=arm.guests.len()).rev() {
        let held = total(&arm.guests[..guests], |l| Some(l.resident_mib));
        chart.draw_series(
            AreaSeries::new(held, 0.0, color.mix(0.22))
                .border_style(theme::line(color, if guests == arm.guests.len() { 16 } else { 8 })),
        )?;
    }
    let kept = total(&arm.guests, |l| Some(l.kept_mib));
    let ink = theme::line(Ink::Text.color(), 10);
    chart.draw_series(DashedLineSeries::new(kept, 5 * SCALE as u32, 3 * SCALE as u32, ink))?;
    let available = total(&arm.guests, |l| l.available_mib);
    chart.draw_series(LineSeries::new(available, theme::line(Ink::Muted.color(), 9)))?;
    if let Some(budget) = scale.budget_mib {
        let line = [(0.0, budget), (scale.end_s, budget)];
        let ink = theme::line(Ink::Bad.color(), 12);
        chart.draw_series(DashedLineSeries::new(line, 10 * SCALE as u32, 4 * SCALE as u32, ink))?;
    }
    Ok(())
}

/// Shares of time in which tasks waited for memory, two seconds at a time, the worst guest's.
fn stalls(arm: &ArmRun, end_s: f64) -> Vec<f64> {
    const STEP_S: f64 = 2.0;
    let mut shares = vec![0.0_f64; (end_s / STEP_S).ceil() as usize + 1];
    for guest in &arm.guests {
        let mut mine = vec![0.0; shares.len()];
        let known: Vec<(f64, f64)> = guest.series.iter().filter_map(|l| Some((l.t, l.stall_ms?))).collect();
        for pair in known.windows(2) {
            if let Some(share) = mine.get_mut((pair[1].0 / STEP_S).max(0.0) as usize) {
                *share += (pair[1].1 - pair[0].1).max(0.0) / 1000.0 / STEP_S;
            }
        }
        for (most, share) in shares.iter_mut().zip(mine) {
            *most = most.max(share.min(1.0));
        }
    }
    shares
}

fn pressure(root: &Root<'_>, chart: &Chart<'_, '_>, arm: &ArmRun, hints: &mut String) -> Result<()> {
    let end_s = chart.x_range().end;
    let top = SIZE.1 * SCALE - (STRIP + 2) * SCALE;
    let bottom = top + STRIP * SCALE;
    let x = |t: f64| chart.backend_coord(&(t.min(end_s), 0.0)).0;
    root.draw(&Rectangle::new([(x(0.0), top), (x(end_s), bottom)], Ink::Shade.color().filled()))?;
    let shares = stalls(arm, end_s);
    for (i, share) in shares.iter().enumerate().filter(|(_, s)| **s >= 0.005) {
        let (from, to) = (i as f64 * 2.0, (i + 1) as f64 * 2.0);
        let strength = (25.0 + 75.0 * share.sqrt()).round() / 100.0;
        let ink = Ink::Bad.color().mix(strength).filled();
        root.draw(&Rectangle::new([(x(from), top), (x(to).max(x(from) + 2), bottom)], ink))?;
    }
    let worst = shares.iter().copied().fold(0.0, f64::max);
    let total: f64 = shares.iter().sum::<f64>() * 2.0;
    write!(
        hints,
        "<rect class=\"hint\" x=\"{}\" y=\"{top}\" width=\"{}\" height=\"{}\"><title>Tasks waited for memory for {total:.1} s \
         (PSI some), at worst {:.0} % of two seconds</title></rect>",
        x(0.0),
        x(end_s) - x(0.0),
        STRIP * SCALE,
        worst * 100.0
    )?;
    let style = theme::text(11, Ink::Muted.color(), HPos::Right, VPos::Center);
    root.draw(&Text::new("PSI", (x(0.0) - 3 * SCALE, (top + bottom) / 2), style))?;
    Ok(())
}

/// A sign: place, kind, when, and in words.
struct Sign {
    x: i32,
    count: usize,
    words: String,
}

/// Signs that are too near to be told apart become one.
fn merged(signs: impl Iterator<Item = (i32, String)>) -> Vec<Sign> {
    let mut all: Vec<Sign> = Vec::new();
    for (x, words) in signs {
        match all.last_mut() {
            Some(last) if x - last.x < NEAR * SCALE => {
                last.count += 1;
                if last.count <= 4 {
                    last.words = format!("{}\n{words}", last.words);
                }
            }
            _ => all.push(Sign { x, count: 1, words }),
        }
    }
    for sign in all.iter_mut().filter(|s| s.count > 4) {
        sign.words = format!("{}\nand {} more", sign.words, sign.count - 4);
    }
    all
}

fn signs(root: &Root<'_>, chart: &Chart<'_, '_>, arm: &ArmRun, hints: &mut String) -> Result<()> {
    let end_s = chart.x_range().end;
    let x = |t: f64| chart.backend_coord(&(t.clamp(0.0, end_s), 0.0)).0;
    let y = chart.backend_coord(&(0.0, chart.y_range().end)).1;
    let order = |gives: bool| {
        let orders = arm.orders.iter().filter(move |o| (o.to_mib > o.from_mib) == gives);
        merged(orders.map(|o| {
            let words = format!("{:.1} s, {}: {:.0} to {:.0} MiB: {}", o.t, o.guest, o.from_mib, o.to_mib, o.reason);
            (x(o.t), words)
        }))
    };
    let demands = merged(
        arm.demands.iter().map(|d| (x(d.t), format!("{:.1} s, {} needs {:.0} MiB: {}", d.t, d.guest, d.mib, d.source))),
    );
    let r = 4 * SCALE;
    let ink = Ink::Text.color();
    let mut put = |signs: Vec<Sign>, y: i32, shape: &[(i32, i32)], color: RGBColor| -> Result<()> {
        for sign in signs {
            let corners: Vec<(i32, i32)> = shape.iter().map(|(dx, dy)| (sign.x + dx, y + dy)).collect();
            root.draw(&Polygon::new(corners, color.filled()))?;
            hints.push_str(&theme::hint((sign.x, y), 7, &sign.words));
        }
        Ok(())
    };
    put(order(true), y + 2 * r, &[(-r, r), (r, r), (0, -r)], theme::arm(&arm.arm))?;
    put(order(false), y + 5 * r, &[(-r, -r), (r, -r), (0, r)], Ink::Muted.color())?;
    put(demands, y + 8 * r, &[(-r, 0), (0, -r), (r, 0), (0, r)], ink)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_spikes() {
        let line: Vec<(f64, f64)> = (0..5000).map(|i| (f64::from(i), if i == 2503 { 99.0 } else { 1.0 })).collect();
        let thin = thinned(&line);
        assert!(thin.len() <= POINTS && thin.contains(&(2503.0, 99.0)), "{}", thin.len());
    }

    #[test]
    fn a_guest_that_does_not_answer_keeps_its_last_figure() {
        let look = |t: f64, available_mib| Look { t, available_mib, ..Look::default() };
        let guest = |series| GuestRun { series, ..GuestRun::default() };
        let guests = [
            guest(vec![look(0.0, Some(10.0)), look(1.0, None), look(2.0, Some(30.0))]),
            guest(vec![look(0.0, Some(1.0)), look(0.9, Some(2.0)), look(2.0, Some(3.0))]),
        ];
        assert_eq!(total(&guests, |l| l.available_mib), [(0.0, 11.0), (1.0, 12.0), (2.0, 33.0)]);
    }

    #[test]
    fn near_signs_are_one() {
        let signs = merged((0..7).map(|i| (i * 3, format!("order {i}"))));
        assert_eq!(signs.iter().map(|s| s.count).collect::<Vec<_>>(), [3, 3, 1]);
        assert_eq!(signs[0].words, "order 0\norder 1\norder 2");
    }

    #[test]
    fn pressure_is_a_share_of_time() {
        let look = |t: f64, ms: f64| Look { t, stall_ms: Some(ms), ..Look::default() };
        let series = vec![look(0.0, 0.0), look(0.5, 100.0), look(2.5, 100.0), look(3.0, 1100.0)];
        let arm = ArmRun { guests: vec![GuestRun { series, ..GuestRun::default() }], ..ArmRun::default() };
        assert_eq!(stalls(&arm, 4.0), [0.05, 0.5, 0.0]);
    }
}
