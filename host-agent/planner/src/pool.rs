//! The host's memory shared out: what the VMs may have together, and what happens when they want more.
//!
//! ```text
//!   limit = budget, or what the host has less a reserve;  less reservations        (Input::Pool, Host, Reserve)
//!   room  = limit - sum of what the VMs keep or have been told they may keep
//!
//!   a giving within the room  -> ordered at once
//!   beyond the room           -> the room at once, the rest is a want; others give first, then it is met
//! ```
//! So the sum never exceeds the limit (promise P2), except by what nobody here decides: VMs that are found with more,
//! reset, or whose balloon let go, and guarantees, which are never lent away. Giving waits for taking to have happened
//! (two phases): a VM is given what is free, not what somebody has been told to free.
//!
//! Room for bursts is kept in advance, as much as all demands within two seconds together have lately asked for; it
//! comes from idle memory only. Who gives how much is [`crate::arbiter`]'s; what may be taken at all is the guard's: the
//! guest's floor holds, so that no VM is killed to please another. A VM that cannot give now counts as it is.
//!
//! With neither a budget nor a word from the host's kernel there is no limit, and nothing of this happens.

mod status;
mod taking;

pub use status::{HostStatus, ReservationStatus};
pub use taking::Taking;

use crate::Planner;
use crate::arbiter::{self, Claimant};
use crate::event::{Action, HostMemory, HostNotice, Reason, VmName};
use crate::features::HORIZON;
use crate::fleet::{Stamped, Vm, Want};
use crate::ratio::Ratio;
use ballast_protocol::{Bytes, Micros};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The host's kernel is asked every second; an older figure is none.
const FRESH_HOST: Micros = Micros::secs(5);
/// Of the host's memory, what is never handed out unless said otherwise: for its kernel and its services.
const RESERVE: (u64, u64) = (1, 16);
/// When tasks of the host wait for memory for more than this part of ten seconds, the reserve is doubled: what its
/// kernel calls available is then not. systemd-oomd acts at 60 % over 30 s, Proxmox has no such rule; one task in
/// twenty waiting is far from both and above the noise of an idle host (0.0).
const PRESSURE: Ratio = Ratio::basis_points(500);
/// The looks at the pool: with something scarce, and otherwise.
const SCARCE_LOOK: Micros = Micros::millis(50);
const QUIET_LOOK: Micros = Micros::secs(1);
/// A want that nobody repeats is over: agents ask again within 100 ms while they are short.
const WANT_LASTS: Micros = Micros::secs(5);
/// What an operator wanted back and nobody could spare by then is forgotten.
const RECLAIM_LASTS: Micros = Micros::secs(30);
/// Demands this close together count as one burst: a taking of 128 MiB lasts 0.7 s, so what comes later can be made.
const TOGETHER: Micros = Micros::secs(2);
/// Bursts are forgotten by a sixteenth each minute, as the headroom is.
const FORGET_EVERY: Micros = Micros::secs(60);
/// The burst reserve's bounds, as parts of the limit: an eighth before anything was seen (MoM begins to act at 20 % free,
/// FIELD section 1), a sixteenth at least, and a quarter at most.
const FIRST_BURST: (u64, u64) = (1, 8);
const LEAST_BURST: (u64, u64) = (1, 16);
const MOST_BURST: (u64, u64) = (1, 4);
/// What is missing for a moment, because guests are still giving, is no shortage that people should know of.
const LASTING: Micros = Micros::secs(1);
/// Forecasts count a host as one that has no more for so long after it had not: a horizon, and as long again as a want lasts. Or whoever
/// asks for too much again and again would keep all of them from ever being judged.
const SCARCE_FOR: Micros = Micros(HORIZON.0 + WANT_LASTS.0);
/// Smaller moves are not worth an order.
const WORTH: Bytes = Bytes::mib(4);
/// Nor are smaller ones that nobody has asked for.
const WORTH_SENDING: Bytes = Bytes::mib(16);
/// What a guest keeps free above its low watermark however short the host is: half a headroom's least worth, and above
/// the 16 MiB at which its agent calls itself starved.
const LAST: Bytes = Bytes::mib(24);

/// Room for a VM that will start or arrive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// The VM's name: when it appears, the reservation is over.
    pub name: VmName,
    /// How much.
    pub size: Bytes,
    /// When it is over in any case.
    pub until: Micros,
}

/// What the planner knows of the host and of what is wanted from it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pool {
    budget: Option<Bytes>,
    reserve: Option<Bytes>,
    host: Option<Stamped<HostMemory>>,
    /// By what targets grew since the host's kernel was asked.
    grown: Bytes,
    reservations: BTreeMap<VmName, Reservation>,
    /// Those whose room has been announced.
    ready: BTreeSet<VmName>,
    /// What an operator wants back, and since when.
    reclaim: Option<Stamped<Bytes>>,
    /// What was asked for within [`TOGETHER`] of its time.
    burst: Option<Stamped<Bytes>>,
    /// The most of that, seen lately.
    peak: Bytes,
    /// When that was last lowered.
    forgot: Micros,
    /// Since when room for bursts to come has been missing.
    unready_since: Option<Micros>,
    /// Since when something has been missing.
    missing_since: Option<Micros>,
    short: Bytes,
    /// Somebody waited, or VMs had more than they may have together: until then a demand cannot be counted on.
    scarce_until: Micros,
    next: Option<Micros>,
    /// Something happened that may have made room or need it.
    look: bool,
}

impl Pool {
    pub(crate) const fn budget(&self) -> Option<Bytes> {
        self.budget
    }

    pub(crate) fn host(&self, at: Micros) -> Option<HostMemory> {
        self.host.filter(|host| host.at + FRESH_HOST >= at).map(|host| host.what)
    }

    pub(crate) const fn next(&self) -> Option<Micros> {
        self.next
    }

    pub(crate) const fn look_again(&mut self) {
        self.look = true;
    }

    /// Not all that is asked for has been given lately.
    pub(crate) fn is_scarce(&self, at: Micros) -> bool {
        at < self.scarce_until
    }

    /// Our own law rules again.
    pub(crate) const fn resume(&mut self, at: Micros) {
        self.next = Some(at);
    }

    fn reserve(&self, at: Micros) -> Bytes {
        if self.budget.is_some() {
            return self.reserve.unwrap_or_default();
        }
        let Some(host) = self.host(at) else { return Bytes::ZERO };
        let reserve = self.reserve.unwrap_or(host.total.share(RESERVE.0, RESERVE.1));
        if host.psi_some_avg10.is_some_and(|psi| psi > PRESSURE) { reserve + reserve } else { reserve }
    }

    fn reserved(&self) -> Bytes {
        self.reservations.values().map(|r| r.size).sum()
    }

    /// What the VMs may have together.
    fn limit(&self, at: Micros) -> Option<Bytes> {
        let total = self.budget.or_else(|| self.host(at).map(|host| host.total))?;
        Some(total - self.reserve(at) - self.reserved())
    }

    fn burst_reserve(&self, limit: Bytes) -> Bytes {
        self.peak.max(limit.share(LEAST_BURST.0, LEAST_BURST.1)).min(limit.share(MOST_BURST.0, MOST_BURST.1))
    }

    /// A guest asked for so much.
    pub(crate) fn asked(&mut self, at: Micros, size: Bytes) {
        match &mut self.burst {
            Some(burst) if at < burst.at + TOGETHER => burst.what += size,
            burst => *burst = Some(Stamped { at, what: size }),
        }
        self.peak = self.peak.max(self.burst.map_or(Bytes::ZERO, |burst| burst.what));
    }

    fn forget(&mut self, at: Micros) {
        while at >= self.forgot + FORGET_EVERY {
            self.forgot += FORGET_EVERY;
            self.peak = self.peak.share(15, 16);
            if self.peak == Bytes::ZERO {
                self.forgot = at;
            }
        }
    }
}

impl Planner {
    pub(crate) fn set_pool(&mut self, at: Micros, budget: Option<Bytes>, reserve: Option<Bytes>) {
        (self.pool.budget, self.pool.reserve, self.pool.forgot) = (budget, reserve, at);
        self.pool.peak = self.pool.limit(at).unwrap_or_default().share(FIRST_BURST.0, FIRST_BURST.1);
        self.pool.next = Some(at);
        self.pool.look_again();
    }

    pub(crate) fn set_host(&mut self, at: Micros, host: HostMemory) {
        let first = self.pool.host.is_none();
        self.pool.host = Some(Stamped { at, what: host });
        self.pool.grown = Bytes::ZERO;
        if first && self.pool.budget.is_none() {
            self.set_pool(at, None, self.pool.reserve);
        } else if self.pool.next.is_none() && !self.is_ruled() {
            self.pool.next = Some(at);
        }
    }

    pub(crate) fn reserve(&mut self, reservation: Reservation) {
        self.pool.ready.remove(&reservation.name);
        if self.vms.contains_key(&reservation.name) {
            // It is here: what it needs it can ask for.
            return;
        }
        self.pool.reservations.insert(reservation.name.clone(), reservation);
        self.pool.look_again();
    }

    pub(crate) fn unreserve(&mut self, name: &VmName) {
        self.pool.reservations.remove(name);
        self.pool.ready.remove(name);
        self.pool.look_again();
    }

    pub(crate) fn reclaim(&mut self, at: Micros, size: Bytes) {
        self.pool.reclaim = Some(Stamped { at, what: size });
        self.pool.look_again();
    }

    /// What is not handed out; `None`: there is no limit.
    pub(crate) fn room(&self, at: Micros) -> Option<Bytes> {
        if self.is_ruled() {
            return None;
        }
        let room = self.pool.limit(at)? - self.charges();
        let Some(host) = self.pool.host(at).filter(|_| self.pool.budget.is_none()) else { return Some(room) };
        // Memory that VMs may have and have not touched looks available to the host's kernel, hence both bounds.
        let spoken_for = self.pool.reserve(at) + self.pool.reserved() + self.pool.grown;
        Some(room.min(host.available - spoken_for))
    }

    fn charges(&self) -> Bytes {
        self.vms.values().map(Vm::charge).sum()
    }

    /// How much of a giving the host can afford now. What is left out becomes a want.
    pub(crate) fn afford(&mut self, at: Micros, name: &VmName, target: Bytes, reason: &Reason) -> Bytes {
        let described = matches!(reason, Reason::Adopted | Reason::Rebooted | Reason::Release);
        let Some(vm) = self.vms.get(name) else { return target };
        let (aim, guaranteed) = (vm.aim, vm.guaranteed());
        let has = match reason {
            Reason::Stalled => vm.charge(),
            // What was being taken from it when the balloon let go is not given back besides.
            Reason::SelfDeflated => vm.kept().max(aim),
            _ => vm.entitled(),
        };
        if described || target <= aim {
            return target;
        }
        let Some(room) = self.room(at) else { return target };
        let mut affordable = (has + room).max(guaranteed).min(target);
        // While others wait, whoever asks loudest gets no more than its share, nor back what is being taken from it.
        if affordable > guaranteed && self.vms.iter().any(|(other, vm)| other != name && vm.want.is_some()) {
            affordable = affordable.min(self.share_of(at, name, target).max(aim).max(guaranteed));
        }
        if affordable < target {
            let new = Want { size: target, at };
            self.with(name, |vm| vm.want = Some(vm.want.filter(|want| want.size > target).unwrap_or(new)));
            self.pool.look_again();
        }
        affordable
    }

    /// What a VM that wishes for `target` may have when all that wait are served.
    fn share_of(&self, at: Micros, name: &VmName, target: Bytes) -> Bytes {
        let mut all = self.claimants(at);
        for c in all.iter_mut().filter(|c| c.name == *name) {
            c.fullest = c.fullest.max(target);
        }
        let shares = arbiter::shares(self.pool.limit(at).unwrap_or(Bytes::MAX), &all);
        all.iter().zip(shares).find(|(c, _)| c.name == *name).map_or(target, |(_, share)| share)
    }

    /// A target grew.
    pub(crate) fn granted(&mut self, name: &VmName, by: Bytes, target: Bytes) {
        self.pool.grown += by;
        self.with(name, |vm| vm.want = vm.want.filter(|want| want.size > target));
    }

    /// Called after every input: something may have to move because of another VM.
    pub(crate) fn look_at_pool(&mut self, at: Micros) {
        if self.is_ruled() {
            self.judge_room(at, false);
            return self.pool.next = None;
        }
        if !self.pool.look && self.pool.next.is_none_or(|next| next > at) {
            return;
        }
        self.pool.look = false;
        let Some(limit) = self.pool.limit(at) else {
            self.judge_room(at, false);
            return self.pool.next = None;
        };
        self.pool.forget(at);
        self.lapse(at);
        self.meet_wants(at, limit);
        let plan = self.plan(at, self.goal(at, limit));
        let scarce = self.judge_shortage(at, limit, plan.missing);
        self.judge_room(at, scarce || plan.unready >= WORTH);
        self.take_for_others(at, plan);
        if !scarce {
            self.send_home(at, limit);
        }
        self.announce_rooms(at);
        let next = at + if scarce { SCARCE_LOOK } else { QUIET_LOOK };
        self.pool.next = (next > at).then_some(next);
    }

    /// Ends what is over: reservations whose VM came or whose time ran out, wants that nobody repeats.
    fn lapse(&mut self, at: Micros) {
        let vms = &self.vms;
        self.pool.reservations.retain(|name, _| !vms.contains_key(name));
        let late: Vec<VmName> =
            self.pool.reservations.values().filter(|r| at >= r.until).map(|r| r.name.clone()).collect();
        for name in late {
            self.pool.reservations.remove(&name);
            self.actions.push_back(Action::Host(HostNotice::Lapsed(name)));
        }
        let reservations = &self.pool.reservations;
        self.pool.ready.retain(|name| reservations.contains_key(name));
        self.pool.reclaim = self.pool.reclaim.filter(|r| r.what > Bytes::ZERO && at < r.at + RECLAIM_LASTS);
        for vm in self.vms.values_mut() {
            vm.want = vm.want.filter(|want| want.size > vm.aim && at < want.at + WANT_LASTS);
        }
    }

    /// The second phase: what is free goes to those who wait for it, by class and weight.
    fn meet_wants(&mut self, at: Micros, limit: Bytes) {
        let Some(room) = self.room(at).filter(|room| *room >= Bytes::mib(1)) else { return };
        if self.vms.values().all(|vm| vm.want.is_none()) {
            return;
        }
        let all = self.claimants(at);
        let shares = arbiter::shares(limit, &all);
        let waiting: Vec<Claimant> = all
            .iter()
            .zip(shares)
            .filter_map(|(c, share)| {
                let want = self.vms.get(&c.name)?.want?;
                let claim = want.size.min(share) - c.charge;
                (claim > Bytes::ZERO).then(|| Claimant { lowest: Bytes::ZERO, fullest: claim, ..c.clone() })
            })
            .collect();
        for (c, size) in waiting.iter().zip(arbiter::shares(room, &waiting)) {
            if size < WORTH.min(c.fullest) {
                continue;
            }
            // The answer that was given says less; that memory came after all can only help.
            self.give(at, &c.name, c.charge + size, Reason::Room);
        }
    }

    /// Tells people when the host becomes short and when that is over. Returns whether anything is scarce.
    fn judge_shortage(&mut self, at: Micros, limit: Bytes, missing: Bytes) -> bool {
        let waiting = self.vms.values().any(|vm| vm.want.is_some());
        let above = self.charges() - limit;
        let scarce = waiting || above > Bytes::ZERO;
        if scarce {
            self.pool.scarce_until = at + SCARCE_FOR;
        }
        let was = self.pool.short;
        self.pool.missing_since = self.pool.missing_since.or(Some(at)).filter(|_| missing > Bytes::ZERO);
        let lasting = was > Bytes::ZERO || self.pool.missing_since.is_some_and(|since| at >= since + LASTING);
        self.pool.short = match missing {
            Bytes::ZERO if scarce => was,
            Bytes::ZERO => Bytes::ZERO,
            missing if lasting => missing,
            _ => Bytes::ZERO,
        };
        if was == Bytes::ZERO && self.pool.short > Bytes::ZERO {
            self.actions.push_back(Action::Host(HostNotice::Short(self.pool.short)));
        }
        if was > Bytes::ZERO && self.pool.short == Bytes::ZERO {
            self.actions.push_back(Action::Host(HostNotice::Enough));
        }
        let unready = self.pool.reservations.len() > self.pool.ready.len();
        scarce || unready || self.pool.reclaim.is_some()
    }

    /// Where room is missing, also only that for bursts to come, page cache is left alone no longer than `cool_down`. What
    /// lasts a moment, while takings are under way, is not meant.
    fn judge_room(&mut self, at: Micros, missing: bool) {
        if !missing && self.pool.unready_since.is_none() {
            return;
        }
        self.pool.unready_since = self.pool.unready_since.or(Some(at)).filter(|_| missing);
        let crowded = self.pool.unready_since.is_some_and(|since| at >= since + WANT_LASTS);
        for vm in self.vms.values_mut() {
            vm.crowded = crowded;
        }
    }

    fn announce_rooms(&mut self, at: Micros) {
        if self.pool.reservations.len() == self.pool.ready.len() || !self.is_within_limit(at) {
            return;
        }
        for name in self.pool.reservations.keys() {
            if self.pool.ready.insert(name.clone()) {
                self.actions.push_back(Action::Host(HostNotice::Ready(name.clone())));
            }
        }
    }

    /// Whether what the VMs have leaves room for all reservations.
    fn is_within_limit(&self, at: Micros) -> bool {
        let by_kernel = self
            .pool
            .host(at)
            .filter(|_| self.pool.budget.is_none())
            .is_none_or(|host| host.available >= self.pool.reserve(at) + self.pool.reserved() + self.pool.grown);
        by_kernel && self.pool.limit(at).is_some_and(|limit| self.charges() <= limit)
    }
}
