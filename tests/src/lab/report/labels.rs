//! Names beside points, so that nobody has to look up a legend: each goes to the nearest free place.

use super::theme::{self, Root, SCALE};
use crate::lab::results::BALLAST;
use anyhow::Result;
use plotters::element::{PathElement, Text};
use plotters::style::FontStyle;
use plotters::style::text_anchor::{HPos, VPos};
use std::ops::Range;

/// A rectangle: left, top, right, bottom, drawn pixels.
pub type Area = (i32, i32, i32, i32);

fn overlap(a: Area, b: Area) -> i64 {
    let wide = (a.2.min(b.2) - a.0.max(b.0)).max(0);
    let high = (a.3.min(b.3) - a.1.max(b.1)).max(0);
    i64::from(wide) * i64::from(high)
}

/// Places for labels of these sizes beside these points, inside the bounds, not on top of each other or of `taken`.
/// Where all is full the place with least overlap is taken.
#[must_use]
pub fn beside(points: &[(i32, i32)], sizes: &[(i32, i32)], bounds: Area, taken: &[Area]) -> Vec<Area> {
    let mut used: Vec<Area> = taken.to_vec();
    used.extend(points.iter().map(|(x, y)| (x - 12, y - 12, x + 12, y + 12)));
    let mut places = Vec::new();
    for ((x, y), (wide, high)) in points.iter().zip(sizes) {
        let mut best: Option<(i64, Area)> = None;
        for ring in 0..6 {
            let gap = 20 + ring * 16;
            let around = [
                (x + gap, y - high / 2),
                (x - gap - wide, y - high / 2),
                (x + gap / 2, y - gap - high),
                (x + gap / 2, y + gap),
                (x - gap / 2 - wide, y - gap - high),
                (x - gap / 2 - wide, y + gap),
                (x - wide / 2, y - gap - high),
                (x - wide / 2, y + gap),
            ];
            for (left, top) in around {
                let area = (left, top, left + wide, top + high);
                let inside = overlap(area, bounds);
                let outside = i64::from(*wide) * i64::from(*high) - inside;
                let cost = used.iter().map(|u| overlap(area, *u)).sum::<i64>() + 8 * outside;
                if best.is_none_or(|(least, _)| cost < least) {
                    best = Some((cost, area));
                }
            }
            if best.is_some_and(|(cost, _)| cost == 0) {
                break;
            }
        }
        let area = best.map_or((*x, *y, x + wide, y + high), |(_, area)| area);
        used.push(area);
        places.push(area);
    }
    places
}

/// Heights for labels in one column, as near as can be to where they should be, `gap` apart, between two bounds.
/// Labels that would touch become a block around the middle of where its members should be.
#[must_use]
pub fn column(wanted: &[i32], gap: i32, (top, bottom): (i32, i32)) -> Vec<i32> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by_key(|i| (wanted[*i], *i));
    // A block: where its first should be, summed over its members, and their number.
    let mut blocks: Vec<(i32, i32)> = Vec::new();
    for &i in &order {
        let mut block = (wanted[i], 1);
        while let Some((sum, count)) = blocks.pop_if(|(sum, count)| *sum / *count + *count * gap > block.0 / block.1) {
            block = (sum + block.0 - block.1 * count * gap, count + block.1);
        }
        blocks.push(block);
    }
    let mut heights = blocks.iter().flat_map(|(sum, count)| (0..*count).map(move |i| sum / count + i * gap));
    let mut placed = wanted.to_vec();
    for &i in &order {
        placed[i] = heights.next().unwrap_or(wanted[i]);
    }
    // What the bounds push back.
    let mut lowest = top;
    for &i in &order {
        placed[i] = placed[i].max(lowest);
        lowest = placed[i] + gap;
    }
    let mut highest = bottom;
    for &i in order.iter().rev() {
        placed[i] = placed[i].min(highest);
        highest = placed[i] - gap;
    }
    placed
}

/// Names of arms in a column at the right of a plot, each tied to the end of its line.
///
/// # Errors
/// None that a reader could cause: it is drawn into memory.
pub fn at_ends(
    root: &Root<'_>,
    (xs, ys): (Range<i32>, Range<i32>),
    ends: &[(&str, (i32, i32))],
    size: i32,
) -> Result<()> {
    let wanted: Vec<i32> = ends.iter().map(|(_, end)| end.1).collect();
    let gap = (size + 3) * SCALE;
    let heights = column(&wanted, gap, (ys.start + gap / 3, ys.end - gap / 3));
    for ((arm, end), y) in ends.iter().zip(heights) {
        let color = theme::arm(arm);
        let left = xs.end + 14 * SCALE;
        root.draw(&PathElement::new(vec![*end, (left - 3 * SCALE, y)], theme::line(color, 8)))?;
        let mut style = theme::text(size, color, HPos::Left, VPos::Center);
        if *arm == BALLAST {
            style.font = style.font.style(FontStyle::Bold);
        }
        root.draw(&Text::new((*arm).to_owned(), (left, y), style))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn labels_keep_apart(points in prop::collection::vec((100i32..900, 100i32..500), 1..8)) {
            let sizes = vec![(120, 24); points.len()];
            let places = beside(&points, &sizes, (0, 0, 1000, 600), &[]);
            for (i, a) in places.iter().enumerate() {
                prop_assert!(a.0 >= 0 && a.1 >= 0 && a.2 <= 1000 && a.3 <= 600);
                for b in &places[..i] {
                    prop_assert_eq!(overlap(*a, *b), 0);
                }
            }
        }

        #[test]
        fn columns_keep_apart(wanted in prop::collection::vec(0i32..500, 1..12)) {
            let mut placed = column(&wanted, 30, (0, 500));
            placed.sort_unstable();
            prop_assert!(placed.windows(2).all(|p| p[1] - p[0] >= 30), "{:?}", placed);
            prop_assert!(placed.iter().all(|p| (0..=500).contains(p)));
        }
    }
}
