//! What guests do in an experiment, and what became of it.
//!
//! A [`Work`] is one entry of an experiment file: it is prepared once in a guest, run in every phase that names it,
//! and its [`Outcome`] is the same kind of thing for all of them, so that arms can be compared whatever they did.

mod parse;
mod postgres;
mod programs;
mod redis;
mod server;
mod synthetic;
mod web;

use crate::Guest;
use crate::wire::{Job, Times, bucket};
use anyhow::{Context, Result};
pub use programs::{Stressor, SysbenchTest};
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
    /// Fills redis with the keys `key:000000000000` and so on: redis-benchmark calls a script that sets the next one.
    RedisFill {
        /// Values in all, MiB; redis needs some 100 bytes more for each.
        mib: u64,
        /// Each value, bytes; at most 1 MiB.
        #[serde(default = "kib")]
        bytes: u32,
        /// Connections.
        #[serde(default = "four")]
        clients: u32,
    },
    /// redis-benchmark's SET, then its GET, on random keys.
    RedisLoad {
        /// Requests of each kind.
        requests: u64,
        /// Keys, from the first that a fill makes.
        keyspace: u64,
        /// Each value, bytes.
        #[serde(default = "kib")]
        bytes: u32,
        /// Connections.
        #[serde(default = "four")]
        clients: u32,
    },
    /// Deletes all keys of redis; its latency is what it took, it has no throughput.
    RedisFlush {},
    /// wrk asks nginx for random files of 64 KiB.
    Nginx {
        /// For how long.
        secs: u32,
        /// Files that are asked for, at most 2048: their sum is what the page cache is needed for.
        #[serde(default = "all_files")]
        files: u32,
        /// Connections.
        #[serde(default = "four")]
        clients: u32,
    },
    /// pgbench on PostgreSQL, a database of 75 MiB.
    Pgbench {
        /// For how long.
        secs: u32,
        /// Connections.
        #[serde(default = "four")]
        clients: u32,
        /// Only SELECTs, not TPC-B.
        #[serde(default)]
        read_only: bool,
    },
    /// gcc compiles the sources of Lua; an operation is one file.
    Compile {
        /// How many, from the first by name; after the last of them the first again.
        files: u32,
        /// How many at once.
        #[serde(default = "two")]
        jobs: u32,
    },
    /// sysbench.
    Sysbench {
        /// Which of its tests.
        test: SysbenchTest,
        /// For how long.
        secs: u32,
        /// Threads.
        #[serde(default = "one")]
        threads: u32,
        /// For the test of memory: its block, MiB.
        #[serde(default = "one")]
        block_mib: u32,
    },
    /// stress-ng. It has no latencies.
    StressNg {
        /// Which of its stressors.
        stressor: Stressor,
        /// Processes.
        #[serde(default = "one")]
        workers: u32,
        /// Memory of each, MiB.
        mib: u64,
        /// For how long.
        secs: u32,
    },
    /// A Java program with a cache in which it replaces entries, so that its collector has work.
    Jvm {
        /// Its cache, MiB.
        live_mib: u64,
        /// Its heap at most, MiB; above the cache by a third at least.
        heap_mib: u64,
        /// For how long.
        secs: u32,
    },
    /// Makes the host hold all of the guest's memory, as it does for one that has been up for weeks.
    Age {
        /// What stays untouched, so that nothing is killed.
        #[serde(default = "age_keep")]
        keep_free_mib: u64,
    },
}

fn one() -> u32 {
    1
}

fn two() -> u32 {
    2
}

fn four() -> u32 {
    4
}

fn kib() -> u32 {
    1024
}

fn all_files() -> u32 {
    web::FILES
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
    /// It did not come to its end in time: throughput is what it reached, latency only of what was done.
    #[serde(default)]
    pub unfinished: bool,
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

impl Latency {
    /// From how many operations took at most so many milliseconds and more than the pair before; in any order. What is
    /// told of single operations is as fine as the pairs are.
    fn of(mut counts: Vec<(f64, u64)>) -> Option<Self> {
        counts.retain(|c| c.1 > 0);
        counts.sort_by(|a, b| a.0.total_cmp(&b.0));
        let max_ms = counts.last()?.0;
        let count: u64 = counts.iter().map(|c| c.1).sum();
        let at = |per_mille: u64| {
            let mut left = (count * per_mille).div_ceil(1_000).max(1);
            let reached = |c: &&(f64, u64)| {
                let here = c.1 >= left;
                left = left.saturating_sub(c.1);
                here
            };
            counts.iter().find(reached).map_or(max_ms, |c| c.0)
        };
        let [p50_ms, p99_ms, p999_ms] = [500, 990, 999].map(at);
        let mut histogram: Vec<(f64, u64)> = Vec::new();
        for &(ms, n) in &counts {
            let upper = bucket((ms * 1e3).round() as u64) as f64 / 1e3;
            match histogram.last_mut() {
                Some((last, all)) if *last == upper => *all += n,
                _ => histogram.push((upper, n)),
            }
        }
        Some(Self { count, p50_ms, p99_ms, p999_ms, max_ms, histogram })
    }
}

impl Work {
    /// Its name in an experiment file.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Work::Rest { .. } => "rest",
            Work::Burst { .. } => "burst",
            Work::Ramp { .. } => "ramp",
            Work::Scan { .. } => "scan",
            Work::Swarm { .. } => "swarm",
            Work::Leak { .. } => "leak",
            Work::RedisFill { .. } => "redis-fill",
            Work::RedisLoad { .. } => "redis-load",
            Work::RedisFlush {} => "redis-flush",
            Work::Nginx { .. } => "nginx",
            Work::Pgbench { .. } => "pgbench",
            Work::Compile { .. } => "compile",
            Work::Sysbench { .. } => "sysbench",
            Work::StressNg { .. } => "stress-ng",
            Work::Jvm { .. } => "jvm",
            Work::Age { .. } => "age",
        }
    }

    /// What a machine must have for it.
    #[must_use]
    pub fn needs(&self) -> Needs {
        match self {
            Work::Scan { path, .. } => {
                Needs { disk: path.starts_with("/disk/"), workload: path.starts_with("/data/"), client: false }
            }
            Work::RedisFill { .. }
            | Work::RedisLoad { .. }
            | Work::RedisFlush {}
            | Work::Nginx { .. }
            | Work::Pgbench { .. } => Needs { disk: false, workload: true, client: true },
            Work::Compile { .. } | Work::Sysbench { .. } | Work::StressNg { .. } | Work::Jvm { .. } => {
                Needs { disk: false, workload: true, client: false }
            }
            Work::Rest { .. }
            | Work::Burst { .. }
            | Work::Ramp { .. }
            | Work::Swarm { .. }
            | Work::Leak { .. }
            | Work::Age { .. } => Needs::default(),
        }
    }

    /// Does in a guest what must be done once before it runs there and is not measured: mounts disks, starts servers.
    ///
    /// # Errors
    /// The guest lacks what the work needs; the message says how to get it.
    pub fn prepare(&self, guest: &Guest) -> Result<()> {
        let name = self.name();
        match self {
            Work::Scan { path, .. } => {
                if self.needs().workload {
                    guest.mount_workload().with_context(|| format!("the work {name} reads {path}"))?;
                }
                guest
                    .sh_ok(&format!("test -r {path}"))
                    .with_context(|| format!("the work {name} reads {path}"))
                    .map(drop)
            }
            Work::RedisFill { .. } | Work::RedisLoad { .. } | Work::RedisFlush {} => server::REDIS.prepare(name, guest),
            Work::Nginx { .. } => server::NGINX.prepare(name, guest),
            Work::Pgbench { .. } => server::POSTGRES.prepare(name, guest),
            Work::Compile { .. } => guest.has_program(name, "/usr/bin/gcc"),
            Work::Sysbench { .. } => guest.has_program(name, "/usr/bin/sysbench"),
            Work::StressNg { .. } => guest.has_program(name, "/usr/bin/stress-ng"),
            Work::Jvm { .. } => guest.has_program(name, "/usr/bin/java"),
            Work::Rest { .. }
            | Work::Burst { .. }
            | Work::Ramp { .. }
            | Work::Swarm { .. }
            | Work::Leak { .. }
            | Work::Age { .. } => Ok(()),
        }
    }

    /// Does in the client's guest what must be done once before it loads a server.
    ///
    /// # Errors
    /// As [`Work::prepare`].
    pub fn prepare_client(&self, client: &Guest) -> Result<()> {
        match self {
            Work::RedisFill { .. } | Work::RedisLoad { .. } | Work::RedisFlush {} => {
                client.has_program(self.name(), "/usr/bin/redis-benchmark")
            }
            Work::Nginx { .. } => client.has_program(self.name(), "/usr/bin/wrk"),
            Work::Pgbench { .. } => client.has_program(self.name(), "/usr/lib/postgresql"),
            _ => Ok(()),
        }
    }

    /// Does it in a guest that is prepared, and waits for its end, at most for `patience`. `client`: the guest that
    /// loads the server, and the server's address; without one, the load comes from the server's own guest.
    ///
    /// # Errors
    /// The lab is broken: a guest does not answer, or lacks what the work needs.
    pub fn run(&self, server: &Guest, client: Option<(&Guest, &str)>, patience: Duration) -> Result<Outcome> {
        let loader = server::Loader::new(server, client, patience);
        match *self {
            Work::Rest { secs } => {
                std::thread::sleep(Duration::from_secs(secs.into()));
                Ok(Outcome::default())
            }
            Work::Burst { mib, work } => synthetic::run(server, Job::Burst { mib, work }, patience),
            Work::Ramp { mib, rate_mib_s, work } => {
                synthetic::run(server, Job::Ramp { mib, rate_mib_s, work }, patience)
            }
            Work::Scan { mib, passes, ref path } => {
                synthetic::run(server, Job::Scan { mib, passes, path: path.clone() }, patience)
            }
            Work::Swarm { count, alive, mib, work } => {
                synthetic::run(server, Job::Swarm { count, alive, mib, work }, patience)
            }
            Work::Leak { mib, rate_mib_s, secs } => {
                synthetic::run(server, Job::Leak { mib, rate_mib_s, secs }, patience)
            }
            Work::Age { keep_free_mib } => synthetic::run(server, Job::Age { keep_free_mib }, patience),
            Work::RedisFill { mib, bytes, clients } => redis::fill(&loader, mib, bytes, clients),
            Work::RedisLoad { requests, keyspace, bytes, clients } => {
                redis::load(&loader, requests, keyspace, bytes, clients)
            }
            Work::RedisFlush {} => redis::flush(&loader),
            Work::Nginx { secs, files, clients } => web::run(&loader, secs, files, clients),
            Work::Pgbench { secs, clients, read_only } => postgres::run(&loader, secs, clients, read_only),
            Work::Compile { files, jobs } => programs::compile(server, files, jobs, patience),
            Work::Sysbench { test, secs, threads, block_mib } => {
                programs::sysbench(server, test, secs, threads, block_mib, patience)
            }
            Work::StressNg { stressor, workers, mib, secs } => {
                programs::stress_ng(server, stressor, workers, mib, secs, patience)
            }
            Work::Jvm { live_mib, heap_mib, secs } => programs::jvm(server, live_mib, heap_mib, secs, patience),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_counted_times() {
        let latency = Latency::of(vec![(3.0, 10), (1.0, 900), (2.0, 89), (4.0, 0), (9.5, 1)]).unwrap();
        let Latency { count, p50_ms, p99_ms, p999_ms, max_ms, histogram } = latency;
        assert_eq!((count, p50_ms, p99_ms, p999_ms, max_ms), (1_000, 1.0, 3.0, 3.0, 9.5));
        assert_eq!(histogram, [(1.0, 900), (2.154, 89), (3.162, 10), (10.0, 1)]);
        assert_eq!(Latency::of(vec![]), None);
    }

    #[test]
    fn works_are_read_from_experiment_files() {
        let read = |text: &str| toml::from_str::<Work>(text).map_err(|e| e.to_string());
        assert_eq!(read("do = 'burst'\nmib = 5").unwrap(), Work::Burst { mib: 5, work: 0 });
        assert_eq!(read("do = 'redis-flush'").unwrap(), Work::RedisFlush {});
        let load = Work::RedisLoad { requests: 9, keyspace: 7, bytes: 1024, clients: 4 };
        assert_eq!(read("do = 'redis-load'\nrequests = 9\nkeyspace = 7").unwrap(), load);
        assert!(read("do = 'burst'\nmib = 5\nmb = 5").unwrap_err().contains("mb"));
        assert!(read("do = 'dance'").unwrap_err().contains("dance"));
        assert!(load.needs().client && load.needs().workload && !load.needs().disk);
    }

    #[test]
    fn a_work_is_named_as_in_the_file() {
        let works = [
            Work::Rest { secs: 1 },
            Work::RedisFlush {},
            Work::StressNg { stressor: Stressor::Vm, workers: 1, mib: 1, secs: 1 },
            Work::Jvm { live_mib: 1, heap_mib: 2, secs: 1 },
        ];
        for work in works {
            let text = toml::to_string(&work).unwrap();
            assert!(text.contains(&format!("do = \"{}\"", work.name())), "{text}");
        }
    }
}
