//! What guests do in an experiment, and what became of it.
//!
//! A [`Work`] is one entry of an experiment file: it is prepared once in a guest, run in every phase that names it,
//! and its [`Outcome`] is the same kind of thing for all of them, so that arms can be compared whatever they did.

mod synthetic;

use crate::Guest;
use crate::wire::{Job, Times};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// One kind of work with its size. In TOML: `{ do = "burst", mib = 200, work = 2 }`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Work {
    /// Nothing.
    Rest {
        /// For how long.
        secs: u32,
    },
    /// A program that maps memory in one piece, computes on it and frees it.
    Burst {
        /// How much.
        mib: u64,
        /// Checksums over each MiB after filling it; 0: each page is only touched.
        #[serde(default)]
        work: u32,
    },
    /// A program that grows in small pieces.
    Ramp {
        /// How much.
        mib: u64,
        /// How fast, MiB/s.
        rate_mib_s: u64,
        /// As for a burst.
        #[serde(default)]
        work: u32,
    },
    /// A working set of a file, read through the page cache.
    Scan {
        /// How much of the file.
        mib: u64,
        /// How often.
        passes: u32,
        /// The file.
        path: String,
    },
    /// Many small processes, as in a build or a shell script.
    Swarm {
        /// How many in all.
        count: u32,
        /// How many at once.
        #[serde(default = "four")]
        alive: u32,
        /// MiB for each.
        mib: u64,
        /// As for a burst.
        #[serde(default)]
        work: u32,
    },
    /// A program that never frees anything, until it ends.
    Leak {
        /// How much in the end.
        mib: u64,
        /// How fast, MiB/s.
        rate_mib_s: u64,
        /// When it ends, after its start.
        secs: u32,
    },
    /// Makes the host hold all of the guest's memory, as it does for one that has been up for weeks.
    Age {
        /// What stays untouched, so that nothing is killed.
        #[serde(default = "age_keep")]
        keep_free_mib: u64,
    },
}

fn four() -> u32 {
    4
}

fn age_keep() -> u64 {
    24
}

/// What a work cannot do without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The disk of [`crate::MachineBuilder::disk`].
    pub disk: bool,
    /// The disks of the workload image.
    pub workload: bool,
    /// A second guest makes it more real: the loader runs there when there is one.
    pub client: bool,
}

/// What became of a work. Being killed or refused memory is an outcome too.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// What was done in a second, in `unit`; 0 when nothing was.
    pub throughput: f64,
    /// Of the throughput.
    pub unit: String,
    /// How long single operations took, when there were any.
    pub latency: Option<Latency>,
    /// Allocations that the system refused, and requests that failed because of one.
    pub failed_allocations: u64,
    /// Processes of the work that were killed.
    pub killed: u64,
    /// What else there is to say; empty when all went well.
    pub detail: String,
}

/// How long single operations took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// How many operations there were.
    pub count: u64,
    /// Half of them took at most so long.
    pub p50_ms: f64,
    /// 99 of 100.
    pub p99_ms: f64,
    /// 999 of 1000.
    pub p999_ms: f64,
    /// The longest.
    pub max_ms: f64,
    /// Upper end of a bucket and how many fell into it, from short to long.
    pub histogram: Vec<(f64, u64)>,
}

impl From<&Times> for Latency {
    fn from(times: &Times) -> Self {
        let ms = |us: u64| us as f64 / 1e3;
        Self {
            count: times.count,
            p50_ms: ms(times.p50_us),
            p99_ms: ms(times.p99_us),
            p999_ms: ms(times.p999_us),
            max_ms: ms(times.max_us),
            histogram: times.buckets.iter().map(|&(upper, count)| (ms(upper), count)).collect(),
        }
    }
}

impl Work {
    /// What a machine must have for it.
    #[must_use]
    pub fn needs(&self) -> Needs {
        match self {
            Work::Scan { path, .. } => {
                Needs { disk: path.starts_with("/disk/"), workload: path.starts_with("/data/"), client: false }
            }
            _ => Needs::default(),
        }
    }

    /// Does in a guest what must be done once before it runs there, in phases that are not measured.
    ///
    /// # Errors
    /// The guest lacks what the work needs; the message says how to get it.
    pub fn prepare(&self, guest: &Guest) -> Result<()> {
        match self {
            Work::Scan { path, .. } => guest.sh_ok(&format!("test -r {path}")).map(drop),
            _ => Ok(()),
        }
    }

    /// Does it, and waits for its end, at most for `patience`.
    ///
    /// # Errors
    /// The lab is broken: a guest does not answer, or lacks what the work needs.
    pub fn run(&self, server: &Guest, _client: Option<(&Guest, &str)>, patience: Duration) -> Result<Outcome> {
        let job = match self {
            Work::Rest { secs } => {
                std::thread::sleep(Duration::from_secs((*secs).into()));
                return Ok(Outcome::default());
            }
            &Work::Burst { mib, work } => Job::Burst { mib, work },
            &Work::Ramp { mib, rate_mib_s, work } => Job::Ramp { mib, rate_mib_s, work },
            Work::Scan { mib, passes, path } => Job::Scan { mib: *mib, passes: *passes, path: path.clone() },
            &Work::Swarm { count, alive, mib, work } => Job::Swarm { count, alive, mib, work },
            &Work::Leak { mib, rate_mib_s, secs } => Job::Leak { mib, rate_mib_s, secs },
            &Work::Age { keep_free_mib } => Job::Age { keep_free_mib },
        };
        synthetic::run(server, job, patience)
    }
}
