//! Models that are wrong in every way we could think of. Slow and panicking ones are nothing here but forecasts that come
//! late or not at all.

use super::guest::Dice;
use ballast_planner::{Correction, Features, Forecast, Point, SIZES};
use ballast_protocol::{Bytes, Micros};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oracle {
    /// Nothing is ever lost: the one that would take the most.
    Zero,
    /// All is always lost.
    Whole,
    /// Floats that are no numbers.
    Nan,
    /// Integers that are no millionths.
    Huge,
    /// Anything.
    Random,
    /// The nothing of six seconds ago.
    Late,
    /// The nothing of tomorrow.
    Early,
    /// Sizes that fall, and some twice.
    Unsorted,
    /// No sizes.
    Empty,
    /// More sizes than anybody asked for.
    TooMany,
    /// Nothing lost at any size from nothing to everything.
    OtherSizes,
    /// All and nothing in turns.
    Flip,
    /// Another name each second.
    Renamed,
    /// A byte less than the maximum loses all.
    Greedy,
    /// A size in the middle that comes and goes.
    Wavering,
    /// Nothing at all half of the time.
    Mute,
    /// Too careful of much memory, which is to earn trust for a careless word of little.
    Careful,
    /// Nothing lost, by a new model each minute whose calibration begins anywhere.
    Started,
}

pub const ALL: [Oracle; 18] = [
    Oracle::Zero,
    Oracle::Whole,
    Oracle::Nan,
    Oracle::Huge,
    Oracle::Random,
    Oracle::Late,
    Oracle::Early,
    Oracle::Unsorted,
    Oracle::Empty,
    Oracle::TooMany,
    Oracle::OtherSizes,
    Oracle::Flip,
    Oracle::Renamed,
    Oracle::Greedy,
    Oracle::Wavering,
    Oracle::Mute,
    Oracle::Careful,
    Oracle::Started,
];

impl Oracle {
    /// Whether it can never be followed, so that it must make no difference.
    pub fn is_useless(self) -> bool {
        use Oracle::*;
        matches!(self, Whole | Nan | Huge | Late | Early | Unsorted | Empty | TooMany | Renamed)
    }

    /// What it says of guest `i` now. The same whenever it is asked again.
    pub fn says(self, at: Micros, i: u64, features: Option<&Features>) -> Vec<Forecast> {
        let mut dice = Dice(at.0 ^ (i << 40));
        let asked = features.map_or_else(|| (1..=8).map(|n| Bytes::mib(64 * n)).collect(), Features::sizes);
        let all = |loss: u32| -> Vec<Point> {
            asked.iter().map(|size| Point { size: *size, loss_ppm: [loss; 4], pressure_ppm: loss }).collect()
        };
        let (mut made, mut model, mut start) = (at, "oracle".to_owned(), Correction::NONE);
        let points = match self {
            Self::Zero => all(0),
            Self::Whole => all(1_000_000),
            Self::Nan => {
                let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
                let pick = |dice: &mut Dice| odd[dice.roll(3) as usize];
                asked.iter().map(|s| Point::new(*s, [0; 4].map(|_: i32| pick(&mut dice)), pick(&mut dice))).collect()
            }
            Self::Huge => all(u32::MAX),
            Self::Random => {
                let any = |dice: &mut Dice| [0, 1, 9_999, dice.roll(1_000_000) as u32, u32::MAX][dice.roll(5) as usize];
                let point = |size: &Bytes| Point {
                    size: *size,
                    loss_ppm: [0; 4].map(|_: i32| any(&mut dice)),
                    pressure_ppm: any(&mut dice),
                };
                asked.iter().map(point).collect()
            }
            Self::Late => {
                made = at - Micros::secs(6);
                all(0)
            }
            Self::Early => {
                made = at + Micros::secs(86_400);
                all(0)
            }
            Self::Unsorted => {
                let mut points = all(0);
                points.reverse();
                points.extend(all(0));
                points.truncate(SIZES);
                points
            }
            Self::Empty => Vec::new(),
            Self::TooMany => {
                let size = |n: u64| Bytes(n << 10);
                (0..5_000).map(|n| Point { size: size(n), loss_ppm: [0; 4], pressure_ppm: 0 }).collect()
            }
            Self::OtherSizes => {
                let sizes = [Bytes::ZERO, Bytes(1), Bytes::mib(100), Bytes(u64::MAX / 2), Bytes::MAX];
                sizes.map(|size| Point { size, loss_ppm: [0; 4], pressure_ppm: 0 }).to_vec()
            }
            Self::Flip => all(if (at.0 / 1_000_000).is_multiple_of(2) { 0 } else { 1_000_000 }),
            Self::Renamed => {
                model = format!("oracle {at:?}");
                all(0)
            }
            Self::Greedy => {
                let mut points = all(1_000_000);
                if let Some(last) = points.last_mut() {
                    (last.loss_ppm, last.pressure_ppm) = ([0; 4], 0);
                }
                points
            }
            Self::Wavering => {
                let from = dice.roll(asked.len() as u64) as usize;
                let mut points = all(0);
                for point in &mut points[..from] {
                    point.loss_ppm = [1_000_000; 4];
                }
                points
            }
            Self::Mute => {
                if dice.roll(2) == 0 {
                    return Vec::new();
                }
                all(0)
            }
            Self::Careful => {
                let mut points = all(0);
                let half = points.len() / 2;
                for (i, point) in points.iter_mut().enumerate() {
                    let most = if i < half { 90_000 } else { 5_000 };
                    point.loss_ppm = [0, most / 2, most, most];
                }
                points
            }
            Self::Started => {
                let minute = at.0 / 60_000_000;
                model = format!("oracle {minute}");
                let any = [i32::MIN, -1, 1, i32::MAX - 1, i32::MAX][(minute % 5) as usize];
                start = serde_json::from_value(any.into()).expect("an integer");
                all(0)
            }
        };
        vec![Forecast { made, model, start, points }]
    }
}
