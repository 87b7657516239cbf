//! What people and programs are shown of a VM: `ballast-host status`, `explain` and whatever reads their `--json`.

use crate::config::Class;
use crate::event::{Hold, VmName};
use crate::fleet::{Agent, Counts, Vm};
use crate::{ForecastStatus, ServiceStatus, guard, statistics_margin};
use ballast_protocol::{Bytes, Micros};
use serde::{Deserialize, Serialize};

/// One VM as it stands. Sizes are bytes, times microseconds; `None`: not known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStatus {
    /// Its name.
    pub name: VmName,
    /// Its vCPUs run.
    pub running: bool,
    /// The most it may have.
    pub max: Bytes,
    /// The least it may be ordered to keep.
    pub min: Bytes,
    /// What it has been told to keep.
    pub target: Bytes,
    /// What it keeps, by the hypervisor.
    pub actual: Option<Bytes>,
    /// Available memory, by the guest.
    pub available: Option<Bytes>,
    /// Free memory above the low watermark, by the guest.
    pub slack: Option<Bytes>,
    /// What it cannot go below without swapping or killing, by the guest.
    pub floor: Option<Bytes>,
    /// The slack it is left with when quiet.
    pub headroom: Bytes,
    /// Pending demands, by the guest.
    pub pending: Option<Bytes>,
    /// How long some task in the guest has waited for memory since its boot, by the guest (PSI `some`).
    #[serde(default)]
    pub pressure: Option<Micros>,
    /// `alive`, `lost` or `never`.
    pub agent: String,
    /// The agent's version and the guest's kernel.
    pub guest: Option<String>,
    /// How old the last report is.
    pub report_age: Option<Micros>,
    /// Whether the guest's figures are believed.
    pub trusted: bool,
    /// Whether the balloon lets go when the guest runs out.
    pub deflate_on_oom: bool,
    /// Leases that are held.
    pub leases: usize,
    /// How long ago it was last moved, to what, and why.
    pub last: Option<(Micros, Bytes, String)>,
    /// Why it is not moved now.
    pub holding: String,
    /// For how long yet, when that is known.
    pub holding_for: Option<Micros>,
    /// Who comes first when the host has not enough for all.
    #[serde(default)]
    pub class: Class,
    /// Its weight among its class then.
    #[serde(default)]
    pub weight: u32,
    /// What it is to keep and cannot, because the host has no more.
    #[serde(default)]
    pub want: Option<Bytes>,
    /// An operator holds it at a size.
    #[serde(default)]
    pub hold: Option<Hold>,
    /// What its network gives against its own baseline; `None`: nobody has measured it.
    #[serde(default)]
    pub service: Option<ServiceStatus>,
    /// What a model says of it; `None`: none ever did.
    #[serde(default)]
    pub forecast: Option<ForecastStatus>,
    /// What has been done.
    pub counts: Counts,
}

impl VmStatus {
    /// The status of `vm` at `at`.
    #[must_use]
    pub fn of(name: &VmName, vm: &Vm, at: Micros) -> Self {
        use crate::event::Holding;
        let telemetry = vm.telemetry.as_ref().map(|t| &t.what);
        let (agent, guest) = match &vm.agent {
            Agent::Never => ("never", None),
            Agent::Lost { .. } => ("lost", None),
            Agent::Alive { hello, .. } => {
                ("alive", Some(format!("{} on Linux {}", hello.agent.as_str(), hello.kernel.as_str())))
            }
        };
        let until = match vm.holding {
            Holding::CoolingDown(until) | Holding::Blocked(until) | Holding::Fresh(until) => Some(until - at),
            _ => None,
        };
        Self {
            name: name.clone(),
            running: vm.facts.running,
            max: vm.max(),
            min: vm.guaranteed(),
            target: vm.aim,
            actual: vm.actual.map(|a| a.what),
            available: telemetry.map(|t| t.available).or(vm.statistics.and_then(|s| s.what.available)),
            slack: telemetry.map(|t| t.free - t.watermarks.low),
            floor: vm.floor(),
            headroom: match vm.agent {
                Agent::Alive { .. } => vm.headroom(at),
                Agent::Never | Agent::Lost { .. } => statistics_margin(vm),
            },
            pending: telemetry.map(|t| t.pending),
            pressure: telemetry.and_then(|t| t.memory_pressure).map(|p| p.some),
            agent: agent.to_owned(),
            guest,
            report_age: vm.telemetry.as_ref().map(|t| at - t.at),
            trusted: vm.trust.is_trusted(),
            deflate_on_oom: guard::deflates_on_oom(vm),
            leases: vm.leases.len(),
            last: vm.last.as_ref().map(|l| (at - l.at, l.what.0, l.what.1.to_string())),
            holding: vm.holding.to_string(),
            holding_for: until,
            class: vm.settings.class,
            weight: vm.settings.weight,
            want: vm.want.map(|want| want.size),
            hold: vm.held(at).cloned(),
            service: vm.service.status(at),
            forecast: vm.foresight.status(at, &vm.settings, vm.foreseen(at).is_some()),
            counts: vm.counts.clone(),
        }
    }
}
