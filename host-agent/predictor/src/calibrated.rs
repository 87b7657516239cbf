//! What the calibration that runs beside the model makes of its 95 % quantile, on workloads that the model had not seen.
//!
//! ```text
//!   held-out forecasts of one workload, in the order of time ── Calibration, begun where the others have come to ──> covered
//! ```
//! The planner's own calibration is used, told what it would have been told: a forecast each two seconds, and its outcome ten
//! seconds later. Nothing else would say anything about what operators get.

use crate::{Estimate, LEVELS, Row};
use ballast_planner::{Calibration, Correction, HORIZON, JUDGED_EVERY, Point, score};
use ballast_protocol::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// Forecasts of one VM are judged so often at most, as in the planner.
const EVERY_S: f64 = JUDGED_EVERY.0 as f64 / 1e6;
/// Of the standard normal distribution: 90 % lie within.
const Z: f64 = 1.645;

/// How many outcomes of a workload were within the corrected 95 % quantile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Calibrated {
    /// Outcomes.
    pub judged: u64,
    /// Those within.
    pub covered: u64,
    /// The part within.
    pub coverage: f64,
    /// Its 90 % interval, as if outcomes did not depend on each other (Wilson, 1927). They do: it is wider.
    pub interval: (f64, f64),
}

impl Calibrated {
    fn of(judged: u64, covered: u64) -> Self {
        let (n, p) = (judged.max(1) as f64, covered as f64 / judged.max(1) as f64);
        let (middle, scale) = (p + Z * Z / (2.0 * n), 1.0 + Z * Z / n);
        let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
        Self { judged, covered, coverage: p, interval: ((middle - half) / scale, (middle + half) / scale) }
    }
}

/// A forecast whose outcome is not known yet.
struct Flying {
    known_s: f64,
    half: u32,
    most: u32,
    bound: u32,
    loss: u32,
}

/// Tells a calibration everything in order; returns how many were judged and covered.
fn replay(calibration: &mut Calibration, rows: &[(&Row, &Estimate)]) -> (u64, u64) {
    let (mut judged, mut covered) = (0, 0);
    let mut flying = VecDeque::<Flying>::new();
    let mut run = None;
    let mut next_s = f64::NEG_INFINITY;
    let mut land = |calibration: &mut Calibration, f: &Flying| {
        judged += 1;
        covered += u64::from(!calibration.judge(f.half, f.most, f.bound, f.loss));
    };
    for (row, said) in rows {
        let of = Some((row.run.as_str(), row.guest.as_str()));
        if run != of {
            (run, next_s) = (of, f64::NEG_INFINITY);
            flying.drain(..).for_each(|f| land(calibration, &f));
        }
        if row.at_s < next_s {
            continue;
        }
        next_s = row.at_s + EVERY_S;
        while let Some(f) = flying.pop_front_if(|f| f.known_s <= row.at_s) {
            land(calibration, &f);
        }
        let (half, most, loss) = outcome(row, said);
        let bound = calibration.correction().bound(half, most);
        flying.push_back(Flying { known_s: row.at_s + HORIZON.secs_f64(), half, most, bound, loss });
    }
    flying.drain(..).for_each(|f| land(calibration, &f));
    (judged, covered)
}

/// By workload, each begun where the scores of the others put it; and where all of them put a VM of yet another.
pub(crate) fn by_workload(rows: &[Row], said: &[Estimate]) -> (BTreeMap<String, Calibrated>, Correction) {
    let mut workloads = BTreeMap::<&str, Vec<(&Row, &Estimate)>>::new();
    for pair in rows.iter().zip(said) {
        workloads.entry(&pair.0.workload).or_default().push(pair);
    }
    for pairs in workloads.values_mut() {
        pairs.sort_by(|(a, _), (b, _)| (&a.run, &a.guest).cmp(&(&b.run, &b.guest)).then(a.at_s.total_cmp(&b.at_s)));
    }
    let start = |without: Option<&str>| {
        let others = workloads.iter().filter(|(name, _)| Some(**name) != without).flat_map(|(_, pairs)| pairs);
        Correction::covering(others.map(|(row, said)| outcome(row, said)).map(|(h, m, l)| score(h, m, l)).collect())
    };
    let calibrated = workloads.iter().map(|(name, pairs)| {
        let mut calibration = Calibration::default();
        calibration.begin_with(start(Some(name)));
        let (judged, covered) = replay(&mut calibration, pairs);
        ((*name).to_owned(), Calibrated::of(judged, covered))
    });
    (calibrated.collect(), start(None))
}

/// The median and the 95 % quantile that were said, and the loss that was seen, as the planner counts them.
fn outcome(row: &Row, said: &Estimate) -> (u32, u32, u32) {
    let (half, most) = Point::new(Bytes::ZERO, said.loss, said.pressure).half_and_most();
    let (loss, _) = Point::new(Bytes::ZERO, [row.loss; LEVELS], 0.0).half_and_most();
    (half, most, loss)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(workload: &str, at_s: f64, loss: f32) -> Row {
        Row {
            run: workload.into(),
            workload: workload.into(),
            guest: String::new(),
            at_s,
            window: vec![],
            candidate: vec![],
            size_mib: 0,
            loss,
            pressure: false,
        }
    }

    /// A model that says nothing is ever lost, of works of which each loses a tenth.
    #[test]
    fn a_workload_begins_where_the_others_are_and_a_model_that_is_always_wrong_is_corrected() {
        let works = ["a", "b", "c"];
        let rows: Vec<Row> = works.iter().flat_map(|w| (0..200).map(|i| row(w, 2.0 * f64::from(i), 0.1))).collect();
        let said = vec![Estimate::default(); rows.len()];
        let (calibrated, start) = by_workload(&rows, &said);
        assert_eq!(start.bound(0, 0), 100_000);
        for (work, c) in &calibrated {
            assert_eq!((c.judged, c.covered), (200, 200), "{work}");
            assert!(c.interval.0 > 0.98 && c.interval.1 == 1.0, "{c:?}");
        }
        // One that is unlike all others is missed until its own outcomes are known, five later.
        let mut rows = rows;
        rows.iter_mut().filter(|r| r.workload == "c").for_each(|r| r.loss = 0.3);
        let (calibrated, _) = by_workload(&rows, &said);
        let missed = calibrated["c"].judged - calibrated["c"].covered;
        assert!((5..=10).contains(&missed), "{missed}");
    }

    #[test]
    fn forecasts_are_judged_each_two_seconds_and_when_ten_are_over() {
        let rows: Vec<Row> = (0..100).map(|i| row("a", f64::from(i), 0.0)).collect();
        let said = vec![Estimate::default(); rows.len()];
        assert_eq!(by_workload(&rows, &said).0["a"].judged, 50);
    }
}
