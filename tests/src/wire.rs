//! What the harness asks of `ballast-testd` in the guest: one JSON line each way, any number outstanding.

mod job;

pub use job::{Command, Executed, Job, Sample, Times, Worked, bucket};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A request with the number that its [`Reply`] will bear.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Asked {
    /// Unique among the requests that are outstanding.
    pub id: u64,
    /// What is asked.
    pub request: Request,
}

/// The answer to one [`Asked`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reply {
    /// The request's number; 0 when `ballast-testd` started and tells so unasked.
    pub id: u64,
    /// The result, its type according to the request; or why there is none.
    pub result: Result<serde_json::Value, Failure>,
}

/// Why a request has no result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    /// The workload's process was killed.
    #[error("killed by signal {signal}, the guest counted {oom_kills} OOM kills meanwhile")]
    Killed {
        /// The signal.
        signal: i32,
        /// How many OOM kills the guest's kernel counted while the workload ran.
        oom_kills: u64,
        /// When the workload was started, guest clock in microseconds.
        started_us: u64,
        /// When its death was seen.
        ended_us: u64,
    },
    /// It could not be done.
    #[error("{0}")]
    Failed(String),
}

/// What can be asked. Everything here is bounded by `ballast-testd`, in size and in time.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Answers `null`.
    Ping,
    /// Answers the guest's CLOCK_MONOTONIC in microseconds.
    Clock,
    /// Answers [`Counters`].
    Counters,
    /// Answers [`Sample`].
    Sample,
    /// Answers [`Worked`]; that the job was killed is part of it.
    Job(Job),
    /// Answers [`Executed`].
    Exec(Command),
    /// Maps and touches memory. Answers [`Touched`].
    Touch(Touch),
    /// Maps so many MiB in one piece and touches nothing. Answers `null`, or the system's refusal.
    Probe {
        /// MiB.
        mib: u64,
    },
    /// Reads a file or device from its beginning through the page cache. Answers [`FileRead`].
    Read {
        /// The path.
        path: String,
        /// MiB.
        mib: u64,
    },
    /// Starts so many processes that are all alive at once, each touching `mib` MiB. Answers [`Swarm`].
    Procs {
        /// How many.
        count: u32,
        /// MiB for each.
        mib: u64,
    },
    /// So many threads compute. Answers `null` when they are through.
    CpuHogs {
        /// How many.
        count: u32,
        /// For how long.
        secs: u32,
    },
    /// Runs a shell command. Answers [`Shell`].
    Sh {
        /// For `sh -c`.
        command: String,
        /// In `workload.slice` and fit to be OOM-killed like a workload, or beside `ballast-testd`.
        workload: bool,
    },
    /// Connects by AF_VSOCK from an ordinary source port as an unprivileged user. Answers [`Peer`].
    VsockConnect {
        /// The peer's CID.
        cid: u32,
        /// The peer's port.
        port: u32,
    },
    /// Starts `/bin/ballast-guest` with arguments. Answers its process id.
    StartAgent {
        /// The arguments.
        args: Vec<String>,
    },
    /// Sends the agent a signal. Answers `null`.
    KillAgent {
        /// The signal's number.
        signal: i32,
    },
    /// Answers [`AgentState`].
    Agent,
    /// Kills the workload of an outstanding request, whose own answer says so. Answers `null`.
    Cancel {
        /// The request's number.
        id: u64,
    },
}

/// Memory to be mapped and touched, one byte each page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touch {
    /// How much, MiB.
    pub mib: u64,
    /// How fast, MiB/s; `None`: as fast as it goes.
    pub rate_mib_s: Option<u64>,
    /// Mapped in pieces of so many MiB, each when its turn comes; `None`: in one piece, at once.
    pub chunk_mib: Option<u64>,
    /// Keep it for so long; the answer comes when all is touched.
    pub hold_ms: u64,
}

/// What became of a [`Touch`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Touched {
    /// Before the first mapping, guest clock in microseconds.
    pub started_us: u64,
    /// After the last page, or when it ended early.
    pub ended_us: u64,
    /// MiB touched. 0 when the process was killed: it could not tell any more.
    pub touched_mib: u64,
    /// How it ended.
    pub end: End,
    /// The longest time that one MiB took.
    pub worst_us: u64,
    /// 99 of 100 MiB took less.
    pub p99_us: u64,
    /// Half of them took less.
    pub median_us: u64,
}

impl Touched {
    /// From the first mapping to the last page, milliseconds.
    #[must_use]
    pub fn millis(&self) -> f64 {
        (self.ended_us - self.started_us) as f64 / 1e3
    }

    /// The longest time that one MiB took, milliseconds.
    #[must_use]
    pub fn worst_millis(&self) -> f64 {
        self.worst_us as f64 / 1e3
    }
}

/// How a [`Touch`] ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// Everything was touched.
    Whole,
    /// The system refused a mapping, in its own words.
    Refused(String),
    /// The process was killed.
    Killed {
        /// The signal.
        signal: i32,
        /// OOM kills counted meanwhile; 0: it was no OOM kill.
        oom_kills: u64,
    },
}

/// What became of a [`Request::Read`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRead {
    /// Bytes read.
    pub bytes: u64,
    /// Time taken.
    pub took_us: u64,
}

/// What became of a [`Request::Procs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swarm {
    /// How many were started.
    pub started: u32,
    /// How many were alive with their memory touched when the last one was.
    pub alive: u32,
    /// Time taken until then.
    pub took_us: u64,
}

/// What a shell command said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shell {
    /// Its exit status; -1 when it took longer than 60 s.
    pub status: i32,
    /// Its output and errors, the last 8 KiB.
    pub output: String,
}

/// What a peer did with an unprivileged connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// The source port that was used.
    pub source_port: u32,
    /// What it sent, at most 4 KiB.
    pub received: Vec<u8>,
    /// Whether it closed the connection within 5 s.
    pub closed: bool,
}

/// The guest agent as `ballast-testd` sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentState {
    /// The process last started, if any.
    pub pid: Option<u32>,
    /// Whether it lives.
    pub alive: bool,
    /// Its exit status, or minus the signal that ended it.
    pub status: Option<i32>,
}

/// The guest's counters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Guest clock, microseconds.
    pub at_us: u64,
    /// `/proc/meminfo`, KiB.
    pub meminfo: BTreeMap<String, u64>,
    /// `/proc/vmstat`, what concerns pressure and the balloon.
    pub vmstat: BTreeMap<String, u64>,
    /// `total=` of `/proc/pressure/{memory,io,cpu}` by `<file>.<some|full>`, microseconds.
    pub pressure: BTreeMap<String, u64>,
    /// CPU time of the living agent, microseconds.
    pub agent_cpu_us: Option<u64>,
    /// Resident KiB of the living agent (smaps_rollup).
    pub agent_rss_kib: Option<u64>,
}

impl Counters {
    /// OOM kills since boot.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        self.vmstat.get("oom_kill").copied().unwrap_or(0)
    }

    /// Allocation stalls since boot, over all zones.
    #[must_use]
    pub fn allocation_stalls(&self) -> u64 {
        self.vmstat.iter().filter(|(k, _)| k.starts_with("allocstall")).map(|(_, v)| v).sum()
    }

    /// Time in which some task stalled for memory since boot, microseconds; 0 when this kernel does not say.
    #[must_use]
    pub fn memory_stall_us(&self) -> u64 {
        self.pressure.get("memory.some").copied().unwrap_or(0)
    }

    /// MemAvailable, MiB.
    #[must_use]
    pub fn available_mib(&self) -> u64 {
        self.meminfo.get("MemAvailable").map_or(0, |kib| kib >> 10)
    }
}
