//! How sure a figure is: medians, quantiles, bootstrap intervals, rank correlation.
//!
//! Phases of one repetition share its minutes and its clones, so they are not independent. The bootstrap therefore
//! draws whole repetitions first and phases inside the drawn ones second. With six repetitions such an interval covers
//! the truth 91 times in 100 (a blind one 69 times: see the tests), with two or three less often: it says what this
//! run can tell, not more. With one it knows only that repetition's own spread and covers the truth 33 to 58 times in 100,
//! so that no verdict calls it "no difference".
//!
//! Medians and quantiles come from `statrs`, random numbers from `rand`. No crate on the registry that is kept up
//! resamples in clusters (`bootstrap` and `hypors` do something else), so the few lines that do are here.

use super::results::Interval;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use statrs::statistics::{Data, OrderStatistics};
use std::collections::BTreeMap;

/// Resamples: the ends of a 95 % interval then rest on 50 values each.
const RESAMPLES: usize = 2000;
/// Share left out at each end: 95 % remain.
const TAIL: f64 = 0.025;
/// Of the resampling, not of an experiment: any number will do as long as it stays, so that the same blocks give the
/// same report.
const SEED: u64 = 0xBA_11A5;

/// The middle value. `None` of nothing.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// The value that a share of all values does not exceed, interpolated (type 8 of Hyndman and Fan). `None` of nothing.
#[must_use]
pub fn quantile(values: &[f64], share: f64) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    Some(Data::new(values.to_vec()).quantile(share)).filter(|v| v.is_finite())
}

/// `None` of nothing.
#[must_use]
pub fn mean(values: &[f64]) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    Some(values.iter().sum::<f64>() / values.len() as f64)
}

/// 95 % percentile interval of a statistic. The outer slice holds repetitions, the inner ones what happened in each.
/// `None` with fewer than two values: one value says nothing about its spread.
#[must_use]
pub fn interval<T: Copy>(repetitions: &[Vec<T>], statistic: impl Fn(&[T]) -> Option<f64>) -> Option<Interval> {
    between(resampled(repetitions, statistic, SEED)?)
}

/// The same for a figure made of two runs that share nothing: each is resampled by itself.
#[must_use]
pub fn interval_of_two<T: Copy>(
    (one, other): (&[Vec<T>], &[Vec<T>]),
    statistic: impl Fn(&[T]) -> Option<f64>,
    combine: impl Fn(f64, f64) -> f64,
) -> Option<Interval> {
    let ones = resampled(one, &statistic, SEED)?;
    let others = resampled(other, &statistic, SEED + 1)?;
    between(ones.into_iter().zip(others).map(|(a, b)| combine(a, b)).collect())
}

fn resampled<T: Copy>(repetitions: &[Vec<T>], statistic: impl Fn(&[T]) -> Option<f64>, seed: u64) -> Option<Vec<f64>> {
    let full: Vec<&Vec<T>> = repetitions.iter().filter(|r| !r.is_empty()).collect();
    if full.iter().map(|r| r.len()).sum::<usize>() < 2 {
        return None;
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut drawn = Vec::new();
    let values = (0..RESAMPLES).filter_map(|_| {
        drawn.clear();
        for _ in 0..full.len() {
            let repetition = full[random.random_range(0..full.len())];
            drawn.extend((0..repetition.len()).map(|_| repetition[random.random_range(0..repetition.len())]));
        }
        statistic(&drawn)
    });
    Some(values.collect())
}

fn between(mut values: Vec<f64>) -> Option<Interval> {
    values.retain(|v| v.is_finite());
    Some(Interval { low: quantile(&values, TAIL)?, high: quantile(&values, 1.0 - TAIL)? })
}

/// Spearman's rank correlation within groups, -1 to 1: each value is its place among its own group's, so that what differs
/// between the groups is no correlation. `None` when fewer than three pairs have another of their group, or one side never moves.
#[must_use]
pub fn spearman_within(grouped: &[(usize, f64, f64)]) -> Option<f64> {
    let mut groups = BTreeMap::<usize, Vec<(f64, f64)>>::new();
    for (group, x, y) in grouped {
        groups.entry(*group).or_default().push((*x, *y));
    }
    groups.retain(|_, pairs| pairs.len() > 1);
    let (mut of_x, mut of_y, mut of_both, mut count) = (0.0, 0.0, 0.0, 0);
    for pairs in groups.into_values() {
        count += pairs.len();
        let (size, centre) = (pairs.len() as f64, (pairs.len() as f64 + 1.0) / 2.0);
        let (xs, ys): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
        for (x, y) in ranks(&xs).into_iter().zip(ranks(&ys)) {
            let (x, y) = ((x - centre) / size, (y - centre) / size);
            of_x += x * x;
            of_y += y * y;
            of_both += x * y;
        }
    }
    let spread = f64::sqrt(of_x * of_y);
    (count >= 3 && spread > 0.0).then(|| of_both / spread)
}

/// Ranks from 1, equal values sharing their mean rank.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0.0;
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        for &i in tied {
            ranks[i] = before + (tied.len() as f64 + 1.0) / 2.0;
        }
        before += tied.len() as f64;
    }
    ranks
}

/// How a ratio to a reference is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Its interval contains 1, or it is inside what the reference shows against itself.
    None,
    /// Above 1.
    More,
    /// Under 1.
    Less,
    /// One value: its spread is unknown.
    Unknown,
}

/// How many repetitions have anything to say. With one, its own noise and the machine's are not told apart: intervals are of
/// its rounds or phases alone, and cover the truth every second or third time.
#[must_use]
pub fn repetitions<T>(values: &[Vec<T>]) -> usize {
    values.iter().filter(|r| !r.is_empty()).count()
}

/// Reads a ratio. `noise` is how far, as a factor of at least 1, the reference is from itself.
#[must_use]
pub fn difference(ratio: f64, interval: Option<Interval>, noise: f64) -> Difference {
    let Some(interval) = interval else { return Difference::Unknown };
    let inside_noise = ratio <= noise && ratio >= 1.0 / noise;
    match ratio {
        // At least half of it did nothing at all: no interval is wide enough to call that the same.
        r if r <= 0.0 => Difference::Less,
        _ if inside_noise || (interval.low <= 1.0 && interval.high >= 1.0) => Difference::None,
        r if r > 1.0 => Difference::More,
        _ => Difference::Less,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spearman(pairs: &[(f64, f64)]) -> Option<f64> {
        spearman_within(&pairs.iter().map(|(x, y)| (0, *x, *y)).collect::<Vec<_>>())
    }

    #[test]
    fn by_hand() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(difference(0.0, Some(Interval { low: 0.0, high: 1.3 }), 1.1), Difference::Less);
        assert_eq!(difference(0.9, Some(Interval { low: 0.8, high: 1.3 }), 1.1), Difference::None);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
        assert_eq!(mean(&[1.0, 2.0, 6.0]), Some(3.0));
        assert_eq!(ranks(&[10.0, 30.0, 10.0, 20.0]), [1.5, 4.0, 1.5, 3.0]);
        // Ranks 1 2 3 4 against 1 3 2 4: 1 - 6 * (1 + 1) / (4 * 15).
        let rho = spearman(&[(1.0, 1.0), (2.0, 9.0), (3.0, 8.0), (4.0, 10.0)]).unwrap();
        assert!((rho - 0.8).abs() < 1e-12, "{rho}");
        assert_eq!(spearman(&[(1.0, 5.0), (2.0, 5.0), (3.0, 5.0)]), None);
        assert_eq!(spearman(&[(1.0, 1.0), (2.0, 2.0)]), None);
    }

    #[test]
    fn what_differs_between_groups_is_no_correlation() {
        // Two arms, one with more bandwidth and shorter requests; within each, one rises as the other does.
        let slow = [(0, 1.0, 50.0), (0, 2.0, 51.0), (0, 3.0, 52.0)];
        let fast = [(1, 10.0, 5.0), (1, 11.0, 6.0), (1, 12.0, 7.0)];
        let all = [slow, fast].concat();
        let pooled: Vec<_> = all.iter().map(|(_, x, y)| (*x, *y)).collect();
        assert!(spearman(&pooled).unwrap() < -0.5);
        assert!((spearman_within(&all).unwrap() - 1.0).abs() < 1e-12);
        assert_eq!(spearman_within(&[(0, 1.0, 1.0), (1, 2.0, 2.0), (2, 3.0, 3.0)]), None, "each alone");
    }

    #[test]
    fn one_value_has_no_interval() {
        assert_eq!(interval(&[vec![1.0]], median), None);
        assert_eq!(interval(&[vec![], vec![1.0]], median), None);
        assert_eq!(interval(&[], mean), None);
        assert!(interval(&[vec![1.0], vec![2.0]], median).is_some());
    }

    #[test]
    fn differences_need_more_than_the_noise() {
        let at = |low, high| Some(Interval { low, high });
        assert_eq!(difference(0.9, at(0.8, 1.01), 1.0), Difference::None);
        assert_eq!(difference(0.9, at(0.88, 0.92), 1.15), Difference::None);
        assert_eq!(difference(0.9, at(0.88, 0.92), 1.05), Difference::Less);
        assert_eq!(difference(2.0, at(1.5, 2.5), 1.2), Difference::More);
        assert_eq!(difference(2.0, None, 1.2), Difference::Unknown);
    }

    /// A value near 0 with the spread of a sum of twelve uniform ones, whose standard deviation is 1.
    fn bell(random: &mut ChaCha8Rng) -> f64 {
        (0..12).map(|_| random.random::<f64>()).sum::<f64>() - 6.0
    }

    #[test]
    fn intervals_cover_the_truth() {
        // Six repetitions of five phases around 1, repetitions themselves scattered: as the lab's blocks are.
        let (mut covered, mut blind, runs) = (0, 0, 300);
        for run in 0..runs {
            let mut random = ChaCha8Rng::seed_from_u64(run);
            let repetitions: Vec<Vec<f64>> = (0..6)
                .map(|_| {
                    let shared = 1.0 + 0.1 * bell(&mut random);
                    (0..5).map(|_| shared + 0.1 * bell(&mut random)).collect()
                })
                .collect();
            let covers = |i: Interval| u32::from(i.low <= 1.0 && i.high >= 1.0);
            covered += covers(interval(&repetitions, mean).unwrap());
            blind += covers(interval(&[repetitions.concat()], mean).unwrap());
        }
        let (share, blind) = (f64::from(covered) / runs as f64, f64::from(blind) / runs as f64);
        assert!((0.88..=0.99).contains(&share), "{share}");
        assert!(blind < 0.8, "a bootstrap that is blind to repetitions is too sure of itself: {blind}");
    }

    proptest! {
        #[test]
        fn intervals_are_the_same_each_time_and_inside_the_data(
            data in prop::collection::vec(prop::collection::vec(0.01f64..100.0, 0..6), 1..5)
        ) {
            let first = interval(&data, median);
            prop_assert_eq!(first, interval(&data, median));
            let all: Vec<f64> = data.concat();
            prop_assert_eq!(first.is_some(), all.len() >= 2);
            if let Some(Interval { low, high }) = first {
                let (least, most) = all.iter().fold((f64::MAX, f64::MIN), |(l, m), v| (l.min(*v), m.max(*v)));
                prop_assert!(least <= low && low <= high && high <= most);
            }
        }

        #[test]
        fn correlation_is_of_ranks(values in prop::collection::vec(-50.0f64..50.0, 3..30)) {
            let pairs: Vec<_> = values.iter().map(|v| (*v, v.exp())).collect();
            if let Some(rho) = spearman(&pairs) {
                prop_assert!((rho - 1.0).abs() < 1e-9);
            }
            let turned: Vec<_> = pairs.iter().map(|(x, y)| (*x, -y)).collect();
            if let Some(rho) = spearman(&turned) {
                prop_assert!((rho + 1.0).abs() < 1e-9);
            }
        }
    }
}
