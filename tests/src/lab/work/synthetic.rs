//! Works that `ballast-testd` does itself.

use super::{Latency, Outcome};
use crate::Guest;
use crate::wire::Job;
use anyhow::Result;
use std::time::Duration;

pub(super) fn run(guest: &Guest, job: Job, patience: Duration) -> Result<Outcome> {
    let unit = if matches!(job, Job::Swarm { .. }) { "processes/s" } else { "MiB/s" };
    let worked = guest.job(job)?.wait(patience)?;
    Ok(Outcome {
        throughput: worked.rate(),
        unit: unit.to_owned(),
        latency: (worked.times.count > 0).then(|| Latency::from(&worked.times)),
        failed_allocations: worked.refused,
        killed: worked.killed,
        detail: worked.why,
        unfinished: false,
    })
}
