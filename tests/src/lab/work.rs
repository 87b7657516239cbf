//! What the guests are made to do.

use serde::{Deserialize, Serialize};

/// What came of a work.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// How much of `unit` a second.
    pub throughput: f64,
    /// Of what.
    pub unit: String,
    /// Of single operations, where the work has such.
    pub latency: Option<Latency>,
    /// Allocations that were refused.
    pub failed_allocations: u64,
    /// Processes of the work that were killed.
    pub killed: u64,
    /// For people.
    pub detail: String,
}

/// How long single operations took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Operations.
    pub count: u64,
    /// Median, milliseconds.
    pub p50_ms: f64,
    /// 99 of 100 took less.
    pub p99_ms: f64,
    /// 999 of 1000 took less.
    pub p999_ms: f64,
    /// The longest.
    pub max_ms: f64,
    /// Upper end of a bucket in milliseconds, and operations in it.
    pub histogram: Vec<(f64, u64)>,
}
