//! The only place that can make a [`BalloonTarget`]. Whatever a law proposes, the promises hold here:
//!
//! - P1: never below the configured minimum, a lease, or the guest's floor;
//! - P3: nothing is taken on stale or disbelieved data; giving needs no data;
//! - P4: nothing is taken while an order is under way;
//! - never above the maximum, except that a maximum which was lowered is no reason to take all at once.
//!
//! A law that looks at all VMs at once gets less: see [`by_law`].

use crate::event::Holding;
use crate::fleet::{Agent, Vm};
use ballast_protocol::{Bytes, Micros};
use serde::{Deserialize, Serialize};

/// What a guest is to keep. Made by [`giving`], [`taking`] and [`by_law`] only, and by reading a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BalloonTarget(Bytes);

impl BalloonTarget {
    /// The memory the guest keeps.
    #[must_use]
    pub const fn bytes(self) -> Bytes {
        self.0
    }
}

/// An idle agent reports once a second; two and a half leave room for one lost report.
pub const FRESH: Micros = Micros::millis(2_500);
/// Balloon statistics come once in five seconds at best; their age is the guest's, not ours.
pub const FRESH_STATISTICS: Micros = Micros::secs(15);

/// A target that does not shrink the guest, not even when its maximum was lowered: that is a taking like any other.
/// Always possible: too much memory harms nobody but the host's budget.
#[must_use]
pub fn giving(vm: &Vm, wish: Bytes) -> BalloonTarget {
    // A floor above what it has is no reason to give: whoever says so has been lied to, or lies.
    let floor = vm.floor().unwrap_or_default().min(vm.entitled());
    // What the guest keeps already is no growth: a taking that stalls above a lowered maximum can still be undone.
    let most = vm.max().max(vm.kept().min(vm.facts.max));
    BalloonTarget(wish.max(vm.guaranteed()).max(floor).min(most).max(vm.aim))
}

/// A target that shrinks the guest, or why not.
///
/// # Errors
/// The promise that forbids it.
pub fn taking(vm: &Vm, wish: Bytes, at: Micros) -> Result<BalloonTarget, Holding> {
    may_take(vm, at)?;
    let floor = match vm.agent {
        Agent::Alive { .. } => vm.floor().ok_or(Holding::Stale)?,
        // Without an agent nobody states a floor; the law of statistics takes from free memory only.
        Agent::Never | Agent::Lost { .. } => Bytes::ZERO,
    };
    let lowest = vm.guaranteed();
    if vm.aim <= lowest {
        return Err(Holding::AtMinimum);
    }
    if vm.aim <= floor {
        return Err(Holding::AtFloor);
    }
    let target = wish.max(lowest).max(floor).min(vm.aim);
    if target == vm.aim { Err(Holding::Settled) } else { Ok(BalloonTarget(target)) }
}

/// Whether anything may be taken from this VM now.
///
/// # Errors
/// Why not.
pub fn may_take(vm: &Vm, at: Micros) -> Result<(), Holding> {
    if vm.settings.exempt || vm.released {
        return Err(Holding::Exempt);
    }
    if !vm.facts.balloon {
        return Err(Holding::NoBalloon);
    }
    if !vm.facts.running {
        return Err(Holding::Paused);
    }
    if vm.migrating {
        return Err(Holding::Migrating);
    }
    if !deflates_on_oom(vm) && !vm.settings.allow_without_deflate_on_oom {
        return Err(Holding::NoDeflateOnOom);
    }
    if vm.actual.is_none() {
        return Err(Holding::NoHypervisor);
    }
    // Nor while the hypervisor has not answered: a balloon that is there already may be on its way elsewhere.
    if vm.order.is_some() || vm.sent.is_some() {
        return Err(Holding::Moving);
    }
    if !vm.trust.is_trusted() {
        return Err(Holding::Distrusted);
    }
    if at < vm.blocked_until {
        return Err(Holding::Blocked(vm.blocked_until));
    }
    match &vm.agent {
        Agent::Alive { .. } => {
            // Made after the balloon came to rest: an older report speaks of another size.
            let fresh = vm.telemetry.as_ref().is_some_and(|t| t.at >= vm.settled && t.at + FRESH >= at);
            if fresh { Ok(()) } else { Err(Holding::Stale) }
        }
        Agent::Lost { .. } => Err(Holding::Decaying),
        Agent::Never => {
            let fresh = vm
                .statistics
                .as_ref()
                .is_some_and(|s| s.at - s.what.age >= vm.settled && s.at - s.what.age + FRESH_STATISTICS >= at);
            if fresh { Ok(()) } else { Err(Holding::Stale) }
        }
    }
}

/// Whether a law for all VMs at once may move this VM.
///
/// # Errors
/// Why not.
pub fn may_move(vm: &Vm) -> Result<(), Holding> {
    if vm.settings.exempt || vm.released {
        return Err(Holding::Exempt);
    }
    if !vm.facts.balloon {
        return Err(Holding::NoBalloon);
    }
    if !vm.facts.running {
        return Err(Holding::Paused);
    }
    if vm.migrating {
        return Err(Holding::Migrating);
    }
    if vm.actual.is_none() {
        return Err(Holding::NoHypervisor);
    }
    if !deflates_on_oom(vm) && !vm.settings.allow_without_deflate_on_oom {
        return Err(Holding::NoDeflateOnOom);
    }
    Ok(())
}

/// What a law for all VMs at once wants, within the bounds that hold for every law: minimum, leases, maximum, and
/// nothing taken on stale statistics (P3). Such a law knows no guest's floor, and may order anew at any time.
///
/// # Errors
/// Why not.
pub fn by_law(vm: &Vm, wish: Bytes, at: Micros) -> Result<BalloonTarget, Holding> {
    may_move(vm)?;
    let target = wish.max(vm.guaranteed()).min(vm.max());
    if target < vm.aim && !has_fresh_statistics(vm, at) { Err(Holding::Stale) } else { Ok(BalloonTarget(target)) }
}

/// Whether the balloon driver has said something lately.
#[must_use]
pub fn has_fresh_statistics(vm: &Vm, at: Micros) -> bool {
    vm.statistics.is_some_and(|s| (at - s.at) + s.what.age <= FRESH_STATISTICS)
}

/// Whether it is known that the balloon does not let go when the guest runs out.
#[must_use]
pub fn lacks_deflate_on_oom(vm: &Vm) -> bool {
    vm.facts.deflate_on_oom == Some(false) || by_guest(vm) == Some(false)
}

fn by_guest(vm: &Vm) -> Option<bool> {
    match &vm.agent {
        Agent::Alive { hello, .. } => hello.capabilities.balloon.map(|b| b.deflate_on_oom),
        Agent::Never | Agent::Lost { .. } => None,
    }
}

/// Whether the balloon lets go when the guest runs out: by the hypervisor, else by the guest's driver, else unknown
/// and taken for no.
#[must_use]
pub fn deflates_on_oom(vm: &Vm) -> bool {
    let by_guest = by_guest(vm);
    // Both must not say no: the device offers it, the driver has to accept it.
    by_guest != Some(false) && vm.facts.deflate_on_oom.or(by_guest).unwrap_or(false)
}
