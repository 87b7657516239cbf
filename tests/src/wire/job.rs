//! The lab's workloads as they are asked of a guest, with what became of them.
//!
//! A [`Job`] is made of operations of one MiB (or one process), each timed. Its process writes every time down at once
//! in a file that `ballast-testd` reads: a job that is killed still tells how far it came and how slow it was before.

use serde::{Deserialize, Serialize};

/// Boundaries of the histograms: six to a decade from 10 µs on, the last at 46 s.
const BUCKETS: i32 = 41;

/// One workload. Sizes in MiB.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Job {
    /// Maps memory in one piece, uses it MiB by MiB as fast as possible, frees it.
    Burst {
        /// How much.
        mib: u64,
        /// 0: one byte of each page is written. Otherwise each MiB is filled with pseudo-random words, and so many
        /// checksums are computed over it: a program that allocates and computes.
        work: u32,
    },
    /// Grows in pieces of 4 MiB at a rate, then frees everything.
    Ramp {
        /// How much.
        mib: u64,
        /// MiB/s, from 1.
        rate_mib_s: u64,
        /// As in [`Job::Burst`].
        work: u32,
    },
    /// Reads a file from its beginning through the page cache, again and again.
    Scan {
        /// How much of it.
        mib: u64,
        /// How often.
        passes: u32,
        /// The file.
        path: String,
    },
    /// Many processes, each of which maps memory, uses it and exits.
    Swarm {
        /// How many in all.
        count: u32,
        /// How many are alive at once.
        alive: u32,
        /// MiB for each.
        mib: u64,
        /// As in [`Job::Burst`].
        work: u32,
    },
    /// Grows at a rate, then holds everything until its time is over.
    Leak {
        /// How much.
        mib: u64,
        /// MiB/s, from 1.
        rate_mib_s: u64,
        /// From its beginning to its end, seconds.
        secs: u32,
    },
    /// Drops the page cache, then touches and frees all memory but so much: the host then holds all of it, as it does
    /// for a machine that has been up for weeks.
    Age {
        /// What MemAvailable must not fall below; at least 16 MiB, so that nothing is killed.
        keep_free_mib: u64,
    },
}

impl Job {
    /// Operations at most; every one has its place in the file of times.
    #[must_use]
    pub fn operations(&self) -> u64 {
        match self {
            Job::Burst { mib, .. } | Job::Ramp { mib, .. } | Job::Leak { mib, .. } => *mib,
            Job::Scan { mib, passes, .. } => mib * u64::from(*passes),
            Job::Swarm { count, .. } => u64::from(*count),
            Job::Age { .. } => 1 << 16,
        }
    }
}

/// What became of a [`Job`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worked {
    /// Before the first operation, guest clock in microseconds.
    pub started_us: u64,
    /// After the last one; when its process was killed, the moment its death was seen.
    pub ended_us: u64,
    /// The operations that were completed.
    pub times: Times,
    /// Allocations that the system refused.
    pub refused: u64,
    /// Processes of the job that a signal ended.
    pub killed: u64,
    /// OOM kills that the guest's kernel counted meanwhile, whoever was killed.
    pub oom_kills: u64,
    /// Why it ended before its time, in the system's words; empty when it did not.
    pub why: String,
}

impl Worked {
    /// Operations per second; 0 when there was none.
    #[must_use]
    pub fn rate(&self) -> f64 {
        let secs = self.ended_us.saturating_sub(self.started_us) as f64 / 1e6;
        if secs > 0.0 { self.times.count as f64 / secs } else { 0.0 }
    }
}

/// How long the operations of a job took, microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// How many there were.
    pub count: u64,
    /// Half of them took at most so long.
    pub p50_us: u64,
    /// 99 of 100.
    pub p99_us: u64,
    /// 999 of 1000.
    pub p999_us: u64,
    /// The longest.
    pub max_us: u64,
    /// Upper end of a bucket and how many fell into it, from short to long; empty buckets are left out.
    pub buckets: Vec<(u64, u64)>,
}

impl Times {
    /// Sums up single times; sorts them.
    #[must_use]
    pub fn of(times: &mut [u32]) -> Self {
        times.sort_unstable();
        let Some(&max) = times.last() else { return Self::default() };
        // The nearest rank: the smallest of them that so many are not longer than.
        let at = |per_mille: usize| u64::from(times[(times.len() * per_mille).div_ceil(1_000).max(1) - 1]);
        let mut buckets: Vec<(u64, u64)> = Vec::new();
        for &time in times.iter() {
            let upper = bucket(time.into());
            match buckets.last_mut() {
                Some((last, count)) if *last == upper => *count += 1,
                _ => buckets.push((upper, 1)),
            }
        }
        let [p50_us, p99_us, p999_us] = [500, 990, 999].map(at);
        Self { count: times.len() as u64, p50_us, p99_us, p999_us, max_us: max.into(), buckets }
    }
}

/// The upper end of the bucket that a time belongs to; both in microseconds. What is beyond all is in the last.
#[must_use]
pub fn bucket(us: u64) -> u64 {
    let upper = |k: i32| 10f64.powf(1.0 + f64::from(k) / 6.0).round() as u64;
    (0..BUCKETS).map(upper).find(|&upper| us <= upper).unwrap_or_else(|| upper(BUCKETS - 1))
}

/// The guest's counters that change while it works, cheap enough to be asked for twice a second over a serial line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
// Without names: under 250 bytes on the line.
#[serde(from = "Raw", into = "Raw")]
pub struct Sample {
    /// Guest clock, microseconds.
    pub at_us: u64,
    /// MemFree, KiB.
    pub free_kib: u64,
    /// MemAvailable, KiB.
    pub available_kib: u64,
    /// Committed_AS, KiB.
    pub committed_kib: u64,
    /// Time since boot in which some task waited for memory, microseconds (PSI).
    pub some_us: u64,
    /// In which all did.
    pub full_us: u64,
    /// Pages of files that were read again soon after they had been dropped.
    pub refault_file: u64,
    /// Pages of processes that came back from swap soon after they had left.
    pub refault_anon: u64,
    /// Pages swapped in.
    pub swap_in: u64,
    /// Pages swapped out.
    pub swap_out: u64,
    /// OOM kills.
    pub oom_kills: u64,
    /// Allocations that had to reclaim memory themselves, over all zones.
    pub stalls: u64,
    /// Pages that the balloon holds.
    pub balloon_pages: u64,
    /// CPU time of the living agent, microseconds.
    pub agent_cpu_us: Option<u64>,
}

type Raw = ([u64; 13], Option<u64>);

impl From<Sample> for Raw {
    fn from(s: Sample) -> Self {
        let memory = [s.at_us, s.free_kib, s.available_kib, s.committed_kib, s.some_us, s.full_us];
        let events = [s.refault_file, s.refault_anon, s.swap_in, s.swap_out, s.oom_kills, s.stalls, s.balloon_pages];
        let mut all = [0; 13];
        all[..6].copy_from_slice(&memory);
        all[6..].copy_from_slice(&events);
        (all, s.agent_cpu_us)
    }
}

impl From<Raw> for Sample {
    fn from((raw, agent_cpu_us): Raw) -> Self {
        let [at_us, free_kib, available_kib, committed_kib, some_us, full_us, ..] = raw;
        let [.., refault_file, refault_anon, swap_in, swap_out, oom_kills, stalls, balloon_pages] = raw;
        Self {
            at_us,
            free_kib,
            available_kib,
            committed_kib,
            some_us,
            full_us,
            refault_file,
            refault_anon,
            swap_in,
            swap_out,
            oom_kills,
            stalls,
            balloon_pages,
            agent_cpu_us,
        }
    }
}

/// A command in a control group of its own below `workload.slice`, as fit to be OOM-killed as any other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// For `sh -c`.
    pub command: String,
    /// In the workload disk (`chroot /w`), where Debian's programs are; otherwise in the initramfs.
    pub chroot: bool,
    /// It is killed with everything it started after so many seconds; a day at most.
    pub secs: u32,
}

/// What became of a [`Command`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Executed {
    /// Its exit status, if it had one.
    pub status: Option<i32>,
    /// The signal that ended it, if one did: 9 is the OOM killer's.
    pub signal: Option<i32>,
    /// Whether its time was over.
    pub overdue: bool,
    /// OOM kills that the guest's kernel counted meanwhile, whoever was killed.
    pub oom_kills: u64,
    /// Time taken, microseconds.
    pub took_us: u64,
    /// Its output and errors, the last 64 KiB.
    pub output: String,
}

impl Executed {
    /// Whether it came to a good end in its time.
    #[must_use]
    pub fn whole(&self) -> bool {
        self.status == Some(0) && !self.overdue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_summed_up_by_nearest_rank() {
        let mut times: Vec<u32> = (1..=1_000).rev().collect();
        let all = Times::of(&mut times);
        assert_eq!((all.count, all.p50_us, all.p99_us, all.p999_us, all.max_us), (1_000, 500, 990, 999, 1_000));
        assert_eq!(all.buckets.iter().map(|b| b.1).sum::<u64>(), 1_000);
        assert_eq!(all.buckets[0], (10, 10));
        assert!(all.buckets.windows(2).all(|w| w[0].0 < w[1].0), "{all:?}");
        assert_eq!(Times::of(&mut [7]).p999_us, 7);
        assert_eq!(Times::of(&mut []), Times::default());
    }

    #[test]
    fn buckets_are_six_to_a_decade_and_end() {
        assert_eq!([0, 10, 11, 100, 1_000].map(bucket), [10, 10, 15, 100, 1_000]);
        assert_eq!(bucket(u64::MAX), bucket(46_415_888));
    }

    #[test]
    fn a_sample_survives_the_line_and_is_short() {
        let sample = Sample {
            at_us: 36_000_000_000,
            free_kib: 1 << 24,
            available_kib: 1 << 24,
            committed_kib: 1 << 24,
            some_us: 36_000_000_000,
            full_us: 36_000_000_000,
            refault_file: 100_000_000,
            refault_anon: 100_000_001,
            swap_in: 100_000_002,
            swap_out: 100_000_003,
            oom_kills: 12,
            stalls: 100_000_004,
            balloon_pages: 1 << 22,
            agent_cpu_us: Some(36_000_000_000),
        };
        let text = serde_json::to_string(&sample).unwrap();
        assert!(text.len() < 210, "{text}");
        assert_eq!(serde_json::from_str::<Sample>(&text).unwrap(), sample);
    }
}
