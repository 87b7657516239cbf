//! The host as people and programs are shown it.

use super::Reservation;
use crate::event::{Holding, HostMemory, VmName};
use crate::fleet::Vm;
use crate::{Planner, guard};
use ballast_protocol::{Bytes, Micros};
use serde::{Deserialize, Serialize};

/// A reservation as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReservationStatus {
    /// For whom.
    pub name: VmName,
    /// How much.
    pub size: Bytes,
    /// Until when, by the planner's clock.
    pub until: Micros,
    /// Whether there is room for all of it.
    pub ready: bool,
}

/// The host as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// The budget, or all of the host's memory.
    pub total: Bytes,
    /// What of it nobody has.
    pub available: Bytes,
    /// What is never handed out.
    pub reserve: Bytes,
    /// What is kept ready for demands.
    pub burst_reserve: Bytes,
    /// The sum of all reservations.
    pub reserved: Bytes,
    /// What VMs keep that cannot give: exempt, paused, without a balloon, with one that does not move, agent lost...
    pub unavailable: Bytes,
    /// How much is missing; zero: enough for all.
    pub short: Bytes,
    /// By name.
    pub reservations: Vec<ReservationStatus>,
}

impl Planner {
    /// The host as it stands; `None`: nothing is known of it.
    #[must_use]
    pub fn host_status(&self, at: Micros) -> Option<HostStatus> {
        let HostMemory { total, available, .. } = self.host_memory(at)?;
        let limit = self.pool.limit(at)?;
        let cannot_give = |vm: &&Vm| {
            let passing = [Holding::Moving, Holding::Stale];
            let passes = |why: Holding| passing.contains(&why) || (matches!(why, Holding::Blocked(_)) && !vm.stuck);
            guard::may_take(vm, at).is_err_and(|why| !passes(why))
        };
        let status = |r: &Reservation| ReservationStatus {
            name: r.name.clone(),
            size: r.size,
            until: r.until,
            ready: self.pool.ready.contains(&r.name),
        };
        Some(HostStatus {
            total,
            available,
            reserve: self.pool.reserve(at),
            burst_reserve: self.pool.burst_reserve(limit),
            reserved: self.pool.reserved(),
            unavailable: self.vms.values().filter(cannot_give).map(Vm::charge).sum(),
            short: self.pool.short,
            reservations: self.pool.reservations.values().map(status).collect(),
        })
    }
}
