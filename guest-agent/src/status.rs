//! What `ballast-guest status` says: made by the agent, read by the command.

use crate::demand::Tally;
use ballast_protocol::{Bytes, Micros};
use serde::Serialize;
use std::fmt;

/// Demands of one source.
#[derive(Clone, Debug, Serialize, serde::Deserialize)]
pub struct Asked {
    /// The source's name.
    pub source: String,
    /// What became of them.
    #[serde(flatten)]
    pub tally: Tally,
}

/// What the absorber did.
#[derive(Clone, Copy, Debug, Serialize, serde::Deserialize)]
pub struct Absorbed {
    /// How often somebody ran into a limit.
    pub holds: u64,
    /// How often the host was too late and the limits were lifted.
    pub let_go: u64,
}

/// Page cache dropped for the host.
#[derive(Clone, Copy, Debug, Default, Serialize, serde::Deserialize)]
pub struct Reclaimings {
    /// Orders carried out.
    pub orders: u64,
    /// Page cache dropped.
    pub dropped: Bytes,
}

/// The state of the agent. Times in microseconds, sizes in bytes.
#[derive(Clone, Debug, Serialize, serde::Deserialize)]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// Whom it dials.
    pub peer: String,
    /// Whether a session stands.
    pub connected: bool,
    /// Its age.
    pub session_us: Option<u64>,
    /// Sessions since the start.
    pub sessions: u64,
    /// Written in this session.
    pub sent_bytes: u64,
    /// Read in this session.
    pub received_bytes: u64,
    /// Since anything was said.
    pub last_word_us: u64,
    /// Since telemetry was made.
    pub last_telemetry_us: Option<u64>,
    /// Since the agent started.
    pub uptime_us: u64,
    /// Free memory above the low watermarks.
    pub slack: Bytes,
    /// The slack below which a fall becomes a demand.
    pub trip: Bytes,
    /// Memory being used, per second.
    pub rate_per_s: Bytes,
    /// The highest rate seen or plausible.
    pub highest_rate_per_s: Bytes,
    /// The reaction time that is reckoned with.
    pub loop_us: u64,
    /// What the balloon holds.
    pub ballooned: Bytes,
    /// Leases of `need`.
    pub leases: usize,
    /// Their sum.
    pub leased: Bytes,
    /// Demands by source.
    pub asked: Vec<Asked>,
    /// The absorber, when it is on.
    pub absorber: Option<Absorbed>,
    /// Page cache dropped.
    pub reclaim: Reclaimings,
    /// CPU time used since the start.
    pub cpu_us: u64,
    /// Resident memory; `None` when this kernel does not say.
    pub rss: Option<Bytes>,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.session_us {
            Some(age) => writeln!(f, "connected to {} for {}", self.peer, Micros(age))?,
            None => writeln!(f, "not connected to {}", self.peer)?,
        }
        writeln!(
            f,
            "sessions {}, {} B sent and {} B read in this one",
            self.sessions, self.sent_bytes, self.received_bytes
        )?;
        if let Some(ago) = self.last_telemetry_us {
            writeln!(f, "last telemetry {} ago", Micros(ago))?;
        }
        writeln!(f, "slack {}, trip line {}, balloon {}", self.slack, self.trip, self.ballooned)?;
        let (rate, highest) = (self.rate_per_s, self.highest_rate_per_s);
        writeln!(f, "use rises {rate}/s, at most {highest}/s; the host reacts within {}", Micros(self.loop_us))?;
        writeln!(f, "leases {}, {} in all", self.leases, self.leased)?;
        writeln!(
            f,
            "{:<10} {:>7} {:>8} {:>7} {:>8} {:>10}",
            "demands", "raised", "granted", "partly", "refused", "withdrawn"
        )?;
        for Asked { source, tally: t } in &self.asked {
            writeln!(
                f,
                "{source:<10} {:>7} {:>8} {:>7} {:>8} {:>10}",
                t.raised, t.granted, t.partly, t.refused, t.withdrawn
            )?;
        }
        match self.absorber {
            Some(a) => writeln!(f, "absorber held {} times, let go {} times", a.holds, a.let_go)?,
            None => writeln!(f, "absorber off")?,
        }
        writeln!(f, "page cache dropped for the host: {} in {} orders", self.reclaim.dropped, self.reclaim.orders)?;
        let share = self.cpu_us as f64 * 100.0 / self.uptime_us.max(1) as f64;
        write!(f, "own CPU {} ({share:.2} %), resident {}", Micros(self.cpu_us), self.rss.unwrap_or(Bytes::ZERO))
    }
}
