//! What a model says of a VM, made harmless.
//!
//! A model is an oracle outside: it may be late, wrong, mad or absent. What it says arrives as an input like any other,
//! in integers, and is either refused for a reason or repaired towards caution: a larger quantile is never below a
//! smaller one, and more memory never loses more. So a journal holds all that was said, and a replay needs no model.

use crate::conformal::Correction;
use crate::features::{HORIZON, SIZES};
use crate::history::WHOLE;
use ballast_protocol::{Bytes, Micros};
use serde::{Deserialize, Serialize};
use std::fmt;

/// An older forecast is none: half a horizon.
pub const STALE: Micros = Micros::secs(5);
/// Of a model's name, this much is remembered.
const NAME: usize = 32;

/// What may be done with forecasts of a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Nothing: none is made.
    Off,
    /// They are made, judged and shown; nothing is done because of them.
    #[default]
    Shadow,
    /// They choose within the bounds that hold anyway.
    On,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Off => "off",
            Self::Shadow => "shadow",
            Self::On => "on",
        })
    }
}

/// What is said of one size. An array in a journal, which has sixteen of these for each VM every two seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "[u64; 6]", into = "[u64; 6]")]
pub struct Point {
    /// If the VM keeps this...
    pub size: Bytes,
    /// ...so many millionths of the horizon are lost, by [`crate::QUANTILES`]...
    pub loss_ppm: [u32; 4],
    /// ...and there is pressure with this probability, in millionths.
    pub pressure_ppm: u32,
}

impl From<Point> for [u64; 6] {
    fn from(p: Point) -> Self {
        let [half, nine, most, all] = p.loss_ppm.map(u64::from);
        [p.size.0, half, nine, most, all, p.pressure_ppm.into()]
    }
}

impl From<[u64; 6]> for Point {
    fn from([size, half, nine, most, all, pressure]: [u64; 6]) -> Self {
        let ppm = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Self { size: Bytes(size), loss_ppm: [half, nine, most, all].map(ppm), pressure_ppm: ppm(pressure) }
    }
}

impl Point {
    /// From a model's floats. What is no number, or infinite, is the worst there is.
    #[must_use]
    pub fn new(size: Bytes, loss: [f32; 4], pressure: f32) -> Self {
        Self { size, loss_ppm: loss.map(millionths), pressure_ppm: millionths(pressure) }
    }

    /// The quantiles that decisions need: 50 % and 95 %.
    #[must_use]
    pub const fn half_and_most(&self) -> (u32, u32) {
        (self.loss_ppm[0], self.loss_ppm[2])
    }
}

fn millionths(part: f32) -> u32 {
    if part.is_finite() { (part.clamp(0.0, 1.0) * WHOLE as f32) as u32 } else { WHOLE }
}

/// What a model says of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forecast {
    /// When its features were taken.
    pub made: Micros,
    /// Which model, for people.
    pub model: String,
    /// Where the calibration of a VM begins of which nothing is known yet, by what the model's training found.
    #[serde(default)]
    pub start: Correction,
    /// What it says, by size, ascending.
    pub points: Vec<Point>,
}

/// Why a forecast is not used at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Flaw {
    /// It says nothing, or more than was asked.
    Points,
    /// Its sizes do not ascend.
    Sizes,
    /// It was made too long ago.
    Late,
    /// It was made before the guest was known, or in the future.
    Time,
    /// Nothing can be said of the VM now.
    Blind,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Points => "it has no points, or too many",
            Self::Sizes => "its sizes do not ascend",
            Self::Late => "it came too late",
            Self::Time => "it speaks of another time",
            Self::Blind => "nothing can be said of this VM now",
        })
    }
}

/// What is remembered of a model's name.
pub fn name(model: &str) -> String {
    model.chars().filter(|c| !c.is_control()).take(NAME).collect()
}

impl Forecast {
    /// Repairs it, or says why it cannot be used.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn sanitised(mut self, at: Micros) -> Result<Self, Flaw> {
        if self.points.is_empty() || self.points.len() > SIZES {
            return Err(Flaw::Points);
        }
        if !self.points.is_sorted_by(|a, b| a.size < b.size) {
            return Err(Flaw::Sizes);
        }
        if self.made > at {
            return Err(Flaw::Time);
        }
        if at >= self.made + STALE {
            return Err(Flaw::Late);
        }
        self.model = name(&self.model);
        self.points.shrink_to_fit();
        let (mut loss, mut pressure) = ([0; 4], 0);
        // From the largest size down: what is lost with more memory is lost with less.
        for point in self.points.iter_mut().rev() {
            let mut below = 0;
            for (now, most) in point.loss_ppm.iter_mut().zip(&mut loss) {
                *most = (*now).min(WHOLE).max(*most).max(below);
                below = *most;
            }
            pressure = point.pressure_ppm.min(WHOLE).max(pressure);
            (point.loss_ppm, point.pressure_ppm) = (loss, pressure);
        }
        Ok(self)
    }

    /// What it says of a size, between two of its points in proportion. `None`: the size is below all of them.
    #[must_use]
    pub fn at(&self, size: Bytes) -> Option<Point> {
        let above = self.points.iter().position(|p| p.size >= size);
        let Some(above) = above else { return self.points.last().map(|p| Point { size, ..*p }) };
        let b = self.points.get(above)?;
        if b.size == size {
            return Some(*b);
        }
        let a = self.points.get(above.checked_sub(1)?)?;
        let between = |from: u32, to: u32| {
            // Falls from a to b, rounded up.
            let fall = Bytes(from.saturating_sub(to).into()).share((size - a.size).0, (b.size - a.size).0);
            from - u32::try_from(fall.0).unwrap_or(0)
        };
        let mut loss_ppm = [0; 4];
        for (i, loss) in loss_ppm.iter_mut().enumerate() {
            *loss = between(a.loss_ppm[i], b.loss_ppm[i]);
        }
        Some(Point { size, loss_ppm, pressure_ppm: between(a.pressure_ppm, b.pressure_ppm) })
    }

    /// The smallest size of which all that is larger is `fine`, to the MiB. `None`: not even the largest is.
    #[must_use]
    pub fn smallest(&self, fine: impl Fn(&Point) -> bool) -> Option<Point> {
        let first = self.points.iter().rposition(|p| !fine(p)).map_or(0, |i| i + 1);
        let mut best = *self.points.get(first)?;
        let Some(mut bad) = first.checked_sub(1).and_then(|i| self.points.get(i)).map(|p| p.size) else {
            return Some(best);
        };
        while best.size - bad > Bytes::mib(1) {
            let middle = bad + (best.size - bad).share(1, 2);
            match self.at(middle).filter(&fine) {
                Some(point) => best = point,
                None => bad = middle,
            }
        }
        Some(best)
    }
}

/// What a model said that a decision rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// The smallest size within the budget.
    pub size: Bytes,
    /// What is lost there at most, 95 times in 100, corrected by what was seen: millionths of the horizon.
    pub loss_ppm: u32,
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = f64::from(self.loss_ppm) / 1e4;
        write!(f, "with {} at most {percent:.2} % of the next {} s are lost", self.size, HORIZON.0 / 1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forecast(points: &[(u64, [u32; 4], u32)]) -> Forecast {
        let point = |(mib, loss_ppm, pressure_ppm): &(u64, [u32; 4], u32)| Point {
            size: Bytes::mib(*mib),
            loss_ppm: *loss_ppm,
            pressure_ppm: *pressure_ppm,
        };
        let points = points.iter().map(point).collect();
        Forecast { made: Micros::secs(10), model: "m".into(), start: Correction::NONE, points }
    }

    const NOW: Micros = Micros::secs(11);

    #[test]
    fn what_makes_no_sense_is_repaired_towards_caution() {
        let wild = forecast(&[(100, [5, 4, 3, 2], 1), (200, [9_000_000, 0, 0, 0], 7), (300, [1, 2, 30, 4], 2)]);
        let sane = wild.sanitised(NOW).unwrap();
        let losses: Vec<_> = sane.points.iter().map(|p| (p.loss_ppm, p.pressure_ppm)).collect();
        assert_eq!(losses, [([WHOLE; 4], 7), ([WHOLE; 4], 7), ([1, 2, 30, 30], 2)]);
    }

    #[test]
    fn what_is_no_number_is_the_worst() {
        let point = Point::new(Bytes::mib(1), [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -3.0], 0.25);
        assert_eq!((point.loss_ppm, point.pressure_ppm), ([WHOLE, WHOLE, WHOLE, 0], 250_000));
        assert_eq!(Point::new(Bytes::ZERO, [7.0; 4], f32::NAN).pressure_ppm, WHOLE);
    }

    #[test]
    fn what_cannot_be_repaired_is_refused() {
        let good = || forecast(&[(100, [0; 4], 0), (200, [0; 4], 0)]);
        assert!(good().sanitised(NOW).is_ok());
        assert_eq!(forecast(&[]).sanitised(NOW), Err(Flaw::Points));
        let many = Forecast { points: vec![good().points[0]; SIZES + 1], ..good() };
        assert_eq!(many.sanitised(NOW), Err(Flaw::Points));
        for sizes in [(200, 100), (100, 100)] {
            assert_eq!(forecast(&[(sizes.0, [0; 4], 0), (sizes.1, [0; 4], 0)]).sanitised(NOW), Err(Flaw::Sizes));
        }
        assert_eq!(good().sanitised(Micros::secs(9)), Err(Flaw::Time));
        assert_eq!(good().sanitised(Micros::secs(15)), Err(Flaw::Late));
        let long = Forecast { model: "x\n".repeat(5_000), ..good() };
        assert_eq!(long.sanitised(NOW).unwrap().model, "x".repeat(NAME));
    }

    #[test]
    fn a_journal_holds_it_as_it_was_said() {
        let said = forecast(&[(100, [1, 2, u32::MAX, 4], 5), (200, [0; 4], 0)]);
        let text = serde_json::to_string(&said).unwrap();
        assert!(text.contains("[104857600,1,2,4294967295,4,5]"), "{text}");
        assert_eq!(serde_json::from_str::<Forecast>(&text).unwrap(), said);
    }

    #[test]
    fn between_two_sizes_it_is_read_in_proportion() {
        let f = forecast(&[(100, [400, 800, 1000, 1000], 10), (200, [0, 0, 0, 1000], 0)]);
        let at = |mib| f.at(Bytes::mib(mib)).map(|p| (p.loss_ppm, p.pressure_ppm));
        assert_eq!(at(99), None);
        assert_eq!(at(100), Some(([400, 800, 1000, 1000], 10)));
        assert_eq!(at(150), Some(([200, 400, 500, 1000], 5)));
        assert_eq!(at(900), Some(([0, 0, 0, 1000], 0)));
    }

    #[test]
    fn the_smallest_size_is_found_to_the_mib() {
        let f = forecast(&[(100, [0, 0, 100_000, 0], 0), (200, [0; 4], 0), (300, [0; 4], 0)]);
        let smallest = |budget| f.smallest(|p| p.loss_ppm[2] <= budget).map(|p| p.size.as_mib());
        assert_eq!(smallest(100_000), Some(100));
        assert!(smallest(10_000).is_some_and(|s| (190..=191).contains(&s)), "{:?}", smallest(10_000));
        assert_eq!(smallest(0), Some(200));
        assert_eq!(forecast(&[(100, [9; 4], 0)]).smallest(|p| p.loss_ppm[2] == 0), None);
    }
}
