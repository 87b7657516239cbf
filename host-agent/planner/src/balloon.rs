//! What the hypervisor says of the balloon, and what follows from it.
//!
//! ```text
//!   found, found again  -> adopt: an order to keep what it has ends whatever was half done
//!   order followed      -> settled
//!   order not followed  -> stalled: undone, and blocked for a while
//!   more than ordered   -> the balloon let go by itself: the last resort was needed
//!   reset               -> everything is given; the figure is the old kernel's and not believed
//! ```
//!
//! After a reset QEMU goes on reporting what the *old* kernel's balloon came to until the new driver first moves
//! (`virtio_balloon_device_reset` touches neither `actual` nor the target). The target is set to everything at once,
//! or the new driver would inflate to the old one while it boots; and then it has nothing to move, so that the old
//! figure stays for as long as nothing is taken. See [`Leftover`].

use crate::event::{Facts, Notice, Reason, VmName};
use crate::fleet::Agent;
use crate::fleet::{Leftover, Vm};
use crate::{NEAR, Planner, RETRY, SELF_DEFLATION, STALL_RELIEF, Stamped, guard};
use ballast_protocol::{Bytes, Micros};

impl Planner {
    /// The VM is taken as it is found. The order ends one that a predecessor of this planner, or this one before
    /// the hypervisor was lost, may have left half done (promise P9).
    pub(crate) fn adopt(&mut self, at: Micros, name: &VmName, actual: Bytes) {
        self.with(name, |vm| {
            vm.aim = actual;
            vm.sent = None;
            vm.foresight.moved(actual);
            vm.actual = Some(Stamped { at, what: actual });
            vm.settled = at;
            vm.reactive.disturb(at);
        });
        self.order(at, name, |vm| Some(guard::giving(vm, actual)), Reason::Adopted, true);
    }

    /// The hypervisor says what the VM keeps.
    pub(crate) fn balloon(&mut self, at: Micros, name: &VmName, actual: Bytes) {
        let is_ruled = self.is_ruled();
        let Some(vm) = self.vms.get_mut(name) else { return };
        let believed = vm.believes(actual);
        if vm.actual.is_none() {
            let found = if believed { actual } else { vm.facts.max };
            return self.adopt(at, name, found);
        }
        if !believed {
            return;
        }
        let before = vm.kept();
        vm.counts.taken += before - actual;
        vm.counts.given += actual - before;
        vm.actual = Some(Stamped { at, what: actual });
        if self.dry_run {
            // Whoever moves it, it is not this planner.
            (vm.aim, vm.settled) = (actual, if before == actual { vm.settled } else { at });
            vm.foresight.moved(actual);
            return;
        }
        let by_itself = match &vm.order {
            Some(order) => {
                let target = order.target.bytes();
                let done = if order.is_taking() { actual <= target + NEAR } else { actual + NEAR >= target };
                // A giving that was still under way when less was ordered rises a little on.
                let most = order.from.max(order.before).max(target);
                if done {
                    vm.stuck &= !order.is_taking();
                    vm.order = None;
                    vm.settled = at;
                    self.pool.look_again();
                }
                // A guest that lets go while it is to give needs help now, not when patience ends.
                actual - most
            }
            // An order that was left standing may never be reached: only what grows has let go.
            None if is_ruled => actual - before.max(vm.aim),
            None => actual - vm.aim,
        };
        if by_itself > SELF_DEFLATION {
            vm.counts.self_deflated += 1;
            vm.blame_forecast(at);
            vm.reactive.disturb(at);
            vm.block(at);
            let wish = actual + vm.reactive.headroom(vm);
            self.notice(name, Notice::SelfDeflated(by_itself));
            if is_ruled {
                return self.watch(name);
            }
            // Otherwise the guest's driver would fight for the old target as soon as it can.
            self.give(at, name, wish, Reason::SelfDeflated);
        }
        self.watch(name);
    }

    /// The hypervisor took an order, or refused it.
    pub(crate) fn ordered(&mut self, at: Micros, name: &VmName, order: u64, error: Option<String>) {
        let Some(vm) = self.vms.get_mut(name) else { return };
        let sent = vm.sent.take_if(|sent| sent.id == order);
        // Of two on their way the later one decides.
        vm.refused = error.is_some() || (vm.refused && sent.is_none());
        let Some(why) = error else { return };
        vm.retry = at + RETRY;
        let refused = vm.order.take_if(|o| o.id == order);
        let stands = match (sent, refused) {
            (Some(sent), _) => Some(sent.stands),
            // It was taken, and one of its pieces was not: how many came before that nobody here knows.
            (None, Some(refused)) => Some(refused.target.bytes().max(refused.before)),
            (None, None) => None,
        };
        if let Some(stands) = stands {
            // What was ordered before stands, and may still be on its way; also when the balloon is at the size already.
            vm.aim = stands.max(vm.kept());
            vm.settled = at;
            vm.block(at);
        }
        self.notice(name, Notice::OrderRefused(why));
        self.watch(name);
    }

    /// A guest did not do what it was told within any reasonable time.
    pub(crate) fn stalled(&mut self, at: Micros, name: &VmName) {
        let is_ruled = self.is_ruled();
        let Some(vm) = self.vms.get_mut(name) else { return };
        let Some(order) = vm.order.take() else { return };
        let actual = vm.kept();
        vm.settled = at;
        if is_ruled && order.is_taking() {
            vm.counts.stalled += 1;
        }
        if is_ruled || !order.is_taking() {
            // Nobody waits for it any more, but the target stands: the guest may take what it was given.
            self.watch(name);
            return;
        }
        vm.counts.stalled += 1;
        vm.stuck = true;
        vm.block(at);
        vm.by_statistics.gave(at);
        vm.reactive.disturb(at);
        let wish = actual + STALL_RELIEF;
        self.notice(name, Notice::Stalled { target: order.target.bytes(), actual });
        self.give(at, name, wish, Reason::Stalled);
        self.watch(name);
    }

    /// The VM was reset: nothing of what was known of its guest holds any more.
    pub(crate) fn rebooted(&mut self, at: Micros, name: &VmName) {
        let Some(vm) = self.vms.get_mut(name) else { return };
        let reachable = vm.actual.is_some();
        let facts = Facts { actual: vm.facts.max, ..vm.facts.clone() };
        let counts = std::mem::take(&mut vm.counts);
        // The same machine serves the same users.
        let service = std::mem::take(&mut vm.service);
        vm.foresight.interrupt();
        let foresight = std::mem::take(&mut vm.foresight);
        let new = Vm::new(facts, vm.settings.clone(), at);
        let hold = vm.hold.take();
        let (watch, released, migrating) = (vm.watch, vm.released, vm.migrating);
        *vm = Vm { counts, service, foresight, hold, watch, released, migrating, leftover: Leftover::Awaited, ..new };
        if !reachable {
            // As soon as it is found again.
            vm.actual = None;
            return;
        }
        self.order(at, name, |vm| Some(guard::giving(vm, Bytes::MAX)), Reason::Rebooted, true);
        // An empty balloon has nothing to move: nobody will tell that it was followed.
        self.with(name, |vm| vm.order = None);
        self.watch(name);
    }

    /// A believed report says what the balloon holds. It counts as long as the hypervisor's figure does not.
    pub(crate) fn guests_figure(&mut self, at: Micros, name: &VmName, ballooned: Option<Bytes>) {
        let Some(vm) = self.vms.get_mut(name) else { return };
        let Some(ballooned) = ballooned.filter(|_| vm.trust.is_trusted()) else { return };
        // A hypervisor that cannot be reached is not found again by what the guest says.
        if vm.actual.is_none() {
            return;
        }
        let kept = vm.facts.max - ballooned;
        match vm.leftover {
            Leftover::None => {}
            Leftover::Figure(figure) if (figure - kept).max(kept - figure) <= SELF_DEFLATION => {
                // Both say the same: it is the new kernel's figure by now.
                vm.leftover = Leftover::None;
                self.balloon(at, name, figure);
            }
            Leftover::Awaited | Leftover::Figure(_) => {
                if vm.order.is_none() {
                    vm.actual = Some(Stamped { at, what: kept });
                }
            }
        }
    }
}

impl Vm {
    /// Its vCPUs run, or not. A paused guest can neither speak nor move its balloon: when it goes on, both waits
    /// begin anew.
    pub(crate) fn runs(&mut self, at: Micros, running: bool) {
        let stood_still = !std::mem::replace(&mut self.facts.running, running);
        if !running {
            return;
        }
        if stood_still {
            // Nothing can be said of a stretch in which it did nothing.
            self.forget_past();
        }
        if let Agent::Alive { heard, .. } = &mut self.agent {
            *heard = at;
        }
        if let Some(order) = &mut self.order {
            order.at = at;
        }
    }

    /// It migrates or is saved, or not any more: then an order that was under way has all its time again.
    pub(crate) fn migrates(&mut self, at: Micros, migrating: bool) {
        self.migrating = migrating;
        if let Some(order) = self.order.as_mut().filter(|_| !migrating) {
            order.at = at;
        }
    }

    /// Whether the hypervisor's figure is this kernel's.
    fn believes(&mut self, actual: Bytes) -> bool {
        match self.leftover {
            Leftover::None => return true,
            // A hypervisor that forgets the figure at a reset.
            _ if actual + NEAR >= self.facts.max => {}
            Leftover::Awaited => {
                self.leftover = Leftover::Figure(actual);
                return false;
            }
            Leftover::Figure(old) if old == actual => return false,
            Leftover::Figure(_) => {}
        }
        self.leftover = Leftover::None;
        true
    }
}
