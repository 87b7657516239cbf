//! Where the planner's features become queries, and answers become the points of a forecast.

use crate::{Predictor, Query, Schema};
use ballast_planner::{CANDIDATE_NAMES, FEATURES_VERSION, Features, Point, WINDOW_NAMES};

impl Schema {
    /// What this build's planner means.
    #[must_use]
    pub fn current() -> Self {
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        Self { version: FEATURES_VERSION, window: owned(&WINDOW_NAMES), candidate: owned(&CANDIDATE_NAMES) }
    }
}

/// What `predictor` says of each VM at the sizes that the planner wants to know about, ascending.
pub(crate) fn points<P: Predictor + ?Sized>(predictor: &mut P, features: &[Features]) -> Vec<Option<Vec<Point>>> {
    let sizes: Vec<_> = features.iter().map(Features::sizes).collect();
    let candidates: Vec<Vec<f32>> =
        features.iter().zip(&sizes).map(|(f, sizes)| sizes.iter().flat_map(|s| f.candidate(*s)).collect()).collect();
    let queries: Vec<Query<'_>> = features
        .iter()
        .zip(&candidates)
        .map(|(features, candidates)| Query { window: &features.window, candidates })
        .collect();
    let curve = |(answer, sizes): (Option<Vec<_>>, &Vec<_>)| {
        let points = sizes
            .iter()
            .zip(answer?)
            .map(|(size, said): (_, crate::Estimate)| Point::new(*size, said.loss, said.pressure));
        Some(points.collect())
    };
    predictor.estimate(&queries).into_iter().zip(&sizes).map(curve).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Estimate, LEVELS};
    use ballast_planner::{CANDIDATE, SIZES, WINDOW};
    use ballast_protocol::Bytes;

    /// Loses what is missing of the whole, and knows nothing of VMs that use nothing.
    struct Plain;

    impl Predictor for Plain {
        fn name(&self) -> &str {
            "plain"
        }

        fn estimate(&mut self, queries: &[Query<'_>]) -> Vec<Option<Vec<Estimate>>> {
            let curve = |q: &Query<'_>| {
                let one = |c: &[f32]| Estimate { loss: [1.0 - c[0]; LEVELS], pressure: 0.25 };
                (q.window[0] > 0.0).then(|| q.candidates.chunks_exact(CANDIDATE).map(one).collect())
            };
            queries.iter().map(curve).collect()
        }
    }

    #[test]
    fn each_vm_gets_a_point_for_each_size_of_its_own() {
        let vm = |used: f32, max: u64| Features {
            window: [used; WINDOW],
            kept: Bytes::mib(max),
            needed: Bytes::mib(100),
            floor: Bytes::mib(max / 2),
            max: Bytes::mib(max),
        };
        let said = Plain.predict(&[vm(0.5, 512), vm(0.0, 512), vm(0.5, 1024)]);
        assert!(said[1].is_none());
        let (small, large) = (said[0].as_ref().unwrap(), said[2].as_ref().unwrap());
        assert_eq!((small.len(), large.len()), (SIZES, SIZES));
        assert_eq!(small[0], Point::new(Bytes::mib(256), [0.5; LEVELS], 0.25));
        assert_eq!(large[SIZES - 1], Point::new(Bytes::mib(1024), [0.0; LEVELS], 0.25));
    }

    #[test]
    fn the_schema_is_the_planners() {
        let schema = Schema::current();
        assert_eq!((schema.window.len(), schema.candidate.len()), (WINDOW, CANDIDATE));
    }
}
