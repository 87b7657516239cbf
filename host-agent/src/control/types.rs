//! What travels over the control socket. Sizes are bytes, times microseconds, as everywhere in this project; sizes and
//! times as people write them are the commands' business.

use crate::prober::ProbeStatus;
use ballast_planner::{HostMemory, HostStatus, LawName, Taking, VmName, VmStatus};
use ballast_protocol::{Bytes, Micros};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The daemon as it stands.
#[derive(Debug, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// How long it has been up.
    pub up: Micros,
    /// Its configuration.
    pub config: PathBuf,
    /// The law that rules.
    pub law: LawName,
    /// It decides and writes its journal, and orders nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// The host's memory as its kernel or the budget says, if known.
    pub host: Option<HostMemory>,
    /// What the arbiter makes of it; `None`: nothing is known of the host.
    #[serde(default)]
    pub pool: Option<HostStatus>,
    /// The daemon's clock, from which `until` in holds and reservations counts.
    #[serde(default)]
    pub now: Micros,
    /// Its journal, if it keeps one.
    pub journal: Option<PathBuf>,
    /// Its hypervisors.
    pub hypervisors: Vec<HypervisorStatus>,
    /// Its VMs.
    pub vms: Vec<VmStatus>,
    /// VMs that the configuration names and no hypervisor has.
    pub waiting: Vec<Waiting>,
    /// How it goes with the probes of its VMs.
    #[serde(default)]
    pub probes: Vec<ProbeStatus>,
    /// What waits for somebody to mend it: tables and metadata that are not used, agents' sockets
    /// that cannot be had, words of operators that are lost.
    #[serde(default)]
    pub problems: Vec<String>,
}

/// A hypervisor.
#[derive(Debug, Serialize, Deserialize)]
pub struct HypervisorStatus {
    /// Kind and address.
    pub name: String,
    /// What went wrong the last time it was asked; `None`: it answered.
    pub error: Option<String>,
}

/// A VM that no hypervisor has.
#[derive(Debug, Serialize, Deserialize)]
pub struct Waiting {
    /// Its name.
    pub name: VmName,
    /// Whether its agent is connected all the same.
    pub agent: bool,
}

/// A VM and its last decisions.
#[derive(Debug, Serialize, Deserialize)]
pub struct Explained {
    /// As it stands.
    pub status: VmStatus,
    /// The law that rules.
    pub law: LawName,
    /// The daemon's clock.
    pub now: Micros,
    /// How it goes with its probes; `None`: there was none.
    #[serde(default)]
    pub probe: Option<ProbeStatus>,
    /// The last decisions, oldest first.
    pub decisions: Vec<Decision>,
}

/// One decision.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Decision {
    /// When, daemon's clock.
    pub at: Micros,
    /// For people.
    pub text: String,
}

/// Keep a VM at a size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HoldRequest {
    /// What it keeps: within its min and max.
    pub size: Bytes,
    /// For how long; `None`: until it is released.
    #[serde(default, rename = "for")]
    pub during: Option<Micros>,
    /// Why, for the next operator: 1 to [`LONGEST_REASON`] characters.
    pub reason: String,
    /// Also when somebody else holds it.
    #[serde(default)]
    pub force: bool,
}

/// The longest reason. It stands in logs, the journal and a line of a terminal.
pub const LONGEST_REASON: usize = 200;

/// Take memory from whoever can spare it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReclaimRequest {
    /// How much.
    pub size: Bytes,
    /// Only say what would be taken.
    #[serde(default)]
    pub dry_run: bool,
}

/// What is taken, or would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reclaimed {
    /// What was asked for.
    pub asked: Bytes,
    /// What comes together.
    pub total: Bytes,
    /// Nothing was ordered.
    pub dry_run: bool,
    /// From whom, and why from them.
    pub takings: Vec<Taking>,
}

/// Make room for a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReserveRequest {
    /// How much.
    pub size: Bytes,
    /// For how long from now: after that it lapses.
    pub within: Micros,
}

/// Choose a law.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LawRequest {
    /// Which. Its constants are the configuration's.
    pub law: LawName,
}

/// Decide without acting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DryRunRequest {
    /// Order nothing.
    pub on: bool,
}

/// A change that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// What was done, for people.
    pub done: String,
    /// What they should know besides.
    pub notes: Vec<String>,
}

/// The body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What is wrong and how to mend it, for people.
    pub error: String,
}

/// A request that the daemon does not carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Which kind of no.
    pub why: RefusedWhy,
    /// What is wrong and how to mend it, for people.
    pub problem: String,
}

/// Kinds of no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedWhy {
    /// Nothing of that name.
    Unknown,
    /// Something stands against it.
    Conflict,
    /// It makes no sense.
    Invalid,
}

impl Refused {
    /// Nothing of that name.
    #[must_use]
    pub const fn unknown(problem: String) -> Self {
        Self { why: RefusedWhy::Unknown, problem }
    }

    /// Something stands against it.
    #[must_use]
    pub const fn conflict(problem: String) -> Self {
        Self { why: RefusedWhy::Conflict, problem }
    }

    /// It makes no sense.
    #[must_use]
    pub const fn invalid(problem: String) -> Self {
        Self { why: RefusedWhy::Invalid, problem }
    }
}
