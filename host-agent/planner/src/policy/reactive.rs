//! The law for guests with an agent.
//!
//! ```text
//!   slack = free - low watermark                     what can be allocated without anybody being woken
//!   slack >  headroom + dead band  ->  take the rest, one step at a time, when quiet: nothing given, hurt, or in growth
//!   slack <  3/4 headroom          ->  refill, at once
//!   slack ~= headroom, cold cache  ->  have the guest drop some, take it when it is free; cold is what came five minutes ago or earlier
//!   a demand                       ->  give what was asked, at once, in one order (see `demand`)
//!   trouble soon after a taking    ->  undo it, and wait twice as long before the next
//! ```
//!
//! Only memory that is already *free* is ever taken. A balloon that has to fight for its pages makes the guest
//! reclaim and stall; dropping cold cache first, through `memory.reclaim` at the guest's own pace, does not, and it
//! leaves the guest's alarm for low slack meaningful at all times. What was cold shows afterwards: refaults say
//! that it was not, and the law backs off.
//!
//! What is asked back soon after it was taken is left alone for a while (see [`super::recurring`]).
//!
//! The headroom is the law of survival: slack must outlast the loop, 2 x R x T with R the fastest growth and T the
//! longest loop seen lately in this VM. Both are forgotten slowly.

use super::recurring::Recurring;
use super::{Policy, Proposal};
use crate::event::{Holding, Reason, Trouble};
use crate::fleet::{Agent, FIRST_BLOCK, LONGEST_BLOCK, Vm};
use ballast_protocol::{Bytes, Demand, Micros, Reclaimed, Relief, Telemetry};
use serde::{Deserialize, Serialize};

/// Moves smaller than this are not worth an order: the noise of an idle guest's free memory is about 1 MiB.
const DEAD_BAND: Bytes = Bytes::mib(6);
/// Page cache that an idle guest's own programs need: text and libraries of what runs (16 to 30 MiB in Debian).
const CACHE_FLOOR: Bytes = Bytes::mib(16);
/// The largest single dropping: a quarter of a second at the 130 MiB/s measured under TCG.
const RECLAIM_STEP: Bytes = Bytes::mib(32);
/// The guest answers a reclaim within this, or it is forgotten.
const RECLAIM_PATIENCE: Micros = Micros::secs(5);
/// Trouble within this time of a taking is the taking's fault.
const BLAME: Micros = Micros::secs(3);
/// Programs' memory that grew by this much between two reports is being used up: what is free then is spoken for. One
/// huge page; the least that an idle guest's programs do not reach by themselves.
const GROWTH: Bytes = Bytes::mib(2);
/// PSI `some` per report that counts as trouble: the smallest step that preceded a kill was 5 ms.
const PRESSURE: Micros = Micros::millis(5);
/// Refaults per report that count as trouble: 1 MiB.
const REFAULTS: u64 = 256;
/// What came to the page cache is remembered by the sixteenth part of the time that it is left alone.
const FRESH: u64 = 16;
/// Page cache that is read again within this time of being dropped was not cold. It shows only when its program runs
/// again, long after the dropping itself was seen to hurt nobody.
const WARM: Micros = Micros::secs(60);
/// The first block after that; doubled each time, up to [`LONGEST_BLOCK`]. It was needed within a minute: three periods of that. With
/// one, the lab's cache, read anew every 45 to 90 s, was dropped in every second idle time and read from the disk again.
const WARM_BLOCK: Micros = Micros::secs(180);
/// Growth and loop time are forgotten by a sixteenth each minute: half after eleven.
const FORGET_EVERY: Micros = Micros::secs(60);
/// After so many of them nothing is left of 4 GiB/s but rounding.
const FORGOTTEN: u64 = 512;
/// Under the agent's first answers the loop is taken for this long: p99 of the first MiB measured under TCG.
const FIRST_LOOP: Micros = Micros::millis(60);

/// What the law remembers of one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reactive {
    /// When the guest was last not quiet: a demand, trouble, growth of its programs, or something given.
    unquiet: Micros,
    /// When its page cache last grew.
    cache_grew: Micros,
    /// What came to it lately, and when.
    #[serde(default)]
    fresh: Vec<(Micros, Bytes)>,
    /// Its size, as far as that has been counted in.
    #[serde(default)]
    counted: Bytes,
    /// When something was last taken or dropped, and how much.
    taken: Option<(Micros, Bytes)>,
    /// A reclaim is under way since.
    reclaiming: Option<(Micros, u64)>,
    /// When cache was last dropped.
    dropped: Option<Micros>,
    /// No cache is dropped before this.
    cache_blocked: Micros,
    /// How long the next such block is.
    cache_block: Micros,
    /// The fastest growth seen lately, bytes per second.
    rate: Bytes,
    /// The longest loop seen lately: first sign to first MiB.
    turnaround: Micros,
    /// When the two were last lowered.
    forgot: Micros,
    /// What comes back soon after it is taken.
    recurring: Recurring,
}

impl Reactive {
    /// A VM of which nothing is known yet. It is not quiet: it has just been found.
    #[must_use]
    pub fn new(at: Micros) -> Self {
        Self {
            unquiet: at,
            cache_grew: at,
            fresh: Vec::new(),
            counted: Bytes::ZERO,
            taken: None,
            reclaiming: None,
            dropped: None,
            cache_blocked: Micros::ZERO,
            cache_block: FIRST_BLOCK,
            rate: Bytes::ZERO,
            turnaround: FIRST_LOOP,
            forgot: at,
            recurring: Recurring::default(),
        }
    }

    /// Free memory above the low watermark that this VM keeps while it is quiet: never under the configured
    /// headroom, never more than a quarter of its maximum.
    #[must_use]
    pub fn headroom(&self, vm: &Vm) -> Bytes {
        self.survival().min(vm.max().share(1, 4)).max(vm.settings.headroom)
    }

    /// What the law of survival asks for: twice what the guest's fastest growth uses in the longest loop.
    #[must_use]
    pub fn survival(&self) -> Bytes {
        let survival = self.rate.share(self.turnaround.0, 1_000_000);
        survival + survival
    }

    /// The fastest growth seen lately, bytes a second.
    #[must_use]
    pub const fn rate(&self) -> Bytes {
        self.rate
    }

    /// What it is likely to need again soon, and until when it is kept.
    #[must_use]
    pub fn returning(&self, at: Micros) -> Option<(Bytes, Micros)> {
        self.recurring.level(at)
    }

    /// The guest is not quiet now.
    pub fn disturb(&mut self, at: Micros) {
        self.unquiet = at;
    }

    /// When the guest was last not quiet.
    #[must_use]
    pub const fn unquiet(&self) -> Micros {
        self.unquiet
    }

    /// Something that was taken hurt, by another sign than the guest's own.
    pub fn hurt(&mut self, at: Micros) {
        self.unquiet = at;
        self.block_cache(at, FIRST_BLOCK);
    }

    /// So much was taken from a guest that had been told to keep `aim`.
    pub fn took(&mut self, at: Micros, size: Bytes, aim: Bytes) {
        self.taken = Some((at, size));
        self.recurring.took(self.unquiet, aim);
    }

    /// A guest that has been told to keep `aim` needs `wish`.
    pub fn needed(&mut self, at: Micros, aim: Bytes, wish: Bytes, soon: Micros) {
        self.recurring.needed(at, aim, wish, soon);
    }

    /// The guest, which keeps `kept`, uses what is to be kept because its need returns.
    pub fn seen(&mut self, at: Micros, kept: Bytes, slack: Bytes, headroom: Bytes) {
        // Where a model leaves it less than that: what it would have free there.
        let missing = self.recurring.level(at).map_or(Bytes::ZERO, |(level, _)| level - kept);
        if self.recurring.seen(at, slack + missing, headroom) {
            self.unquiet = at;
        }
    }

    /// A reclaim was sent.
    pub fn reclaim_sent(&mut self, at: Micros, id: u64) {
        self.reclaiming = Some((at, id));
    }

    /// A session began: what was under way in the one before is not any more.
    pub fn greeted(&mut self, at: Micros) {
        self.reclaiming = None;
        self.unquiet = at;
    }

    /// A reclaim is answered.
    pub fn reclaimed(&mut self, at: Micros, answer: &Reclaimed) {
        if self.reclaiming.is_none_or(|(_, id)| id != answer.id) {
            return;
        }
        self.reclaiming = None;
        if answer.size > Bytes::ZERO {
            self.taken = Some((at, answer.size));
            self.dropped = Some(at);
        }
        if answer.exhausted || answer.size < Bytes::mib(1) {
            self.block_cache(at, FIRST_BLOCK);
        }
    }

    /// A demand tells how fast the guest grows.
    pub fn demanded(&mut self, at: Micros, demand: &Demand, low_watermark: Bytes) {
        self.unquiet = at;
        let slack = demand.free - low_watermark;
        if demand.within > Micros::ZERO {
            // A guest may say anything: 4 GiB/s is more than one core can touch on any machine known to us.
            let rate = slack.share(1_000_000, demand.within.0).min(Bytes(4 << 30));
            self.rate = self.rate.max(rate);
        }
    }

    /// The guest tells how long the whole loop took.
    pub fn relieved(&mut self, relief: &Relief) {
        if let Some(first) = relief.first_mib {
            // Bounded: a second is far beyond what any loop should take, and a guest may say anything.
            self.turnaround = self.turnaround.max(first - relief.sign).min(Micros::secs(1));
        }
    }

    /// Compares two reports; says what hurt in between, and how much of the last taking is to blame.
    pub fn observe(
        &mut self,
        at: Micros,
        new: &Telemetry,
        old: Option<&Telemetry>,
        cold_after: Micros,
    ) -> Option<(Trouble, Bytes)> {
        let ages = at.0.saturating_sub(self.forgot.0) / FORGET_EVERY.0;
        self.forgot += Micros(ages * FORGET_EVERY.0);
        for _ in 0..ages.min(FORGOTTEN) {
            self.rate = self.rate.share(15, 16);
            self.turnaround = FIRST_LOOP.max(Micros(self.turnaround.0 / 16 * 15));
        }
        let Some(old) = old else {
            // Nobody knows how old it is.
            self.fresh.clear();
            self.came(at, new.file, cold_after);
            self.counted = new.file;
            return None;
        };
        self.count_cache(at, new, old, cold_after);
        if new.file > old.file + Bytes::mib(1) {
            self.cache_grew = at;
        }
        if new.anon + new.shmem >= old.anon + old.shmem + GROWTH {
            // A burst that was asked for is still taking its memory: what it has not touched yet is not spare.
            self.unquiet = at;
        }
        let warm = refaulted(new, old) && self.dropped.is_some_and(|when| at <= when + WARM);
        if warm {
            self.dropped = None;
            self.block_cache(at, WARM_BLOCK);
        }
        let trouble = trouble(new, old)?;
        self.unquiet = at;
        let blamed = match self.taken {
            Some((when, size)) if at <= when + BLAME => size,
            _ => return Some((trouble, Bytes::ZERO)),
        };
        self.taken = None;
        if !warm {
            self.block_cache(at, FIRST_BLOCK);
        }
        Some((trouble, blamed))
    }

    /// Page cache is this large now: what came, a MiB at least, is fresh; of what went by itself the newest was.
    fn count_cache(&mut self, at: Micros, new: &Telemetry, old: &Telemetry, cold_after: Micros) {
        let size = new.file;
        if size > self.counted + Bytes::mib(1) {
            self.came(at, size - self.counted, cold_after);
            self.counted = size;
        }
        let mut gone = self.counted - size;
        self.counted = self.counted.min(size);
        // What was dropped was the oldest, and so is what makes room for programs.
        let dropped = self.is_reclaiming(at) || self.dropped.is_some_and(|when| at <= when + BLAME);
        let pressed = new.anon + new.shmem >= old.anon + old.shmem + GROWTH || trouble(new, old).is_some();
        if dropped || pressed {
            return;
        }
        while let Some((_, newest)) = self.fresh.last_mut()
            && gone > Bytes::ZERO
        {
            let part = gone.min(*newest);
            (*newest, gone) = (*newest - part, gone - part);
            if *newest == Bytes::ZERO {
                self.fresh.pop();
            }
        }
    }

    /// Its cache is to be left alone for longer than before: what came earlier was not remembered.
    pub fn cache_unknown(&mut self, at: Micros, cold_after: Micros) {
        self.fresh.clear();
        self.came(at, self.counted, cold_after);
    }

    /// So much page cache came. What comes close together counts as one, by its beginning.
    fn came(&mut self, at: Micros, size: Bytes, cold_after: Micros) {
        self.fresh.retain(|(when, _)| at < *when + cold_after);
        match self.fresh.last_mut() {
            Some((when, sum)) if at < *when + Micros(cold_after.0 / FRESH) => *sum += size,
            _ if cold_after > Micros::ZERO => self.fresh.push((at, size)),
            _ => {}
        }
    }

    /// No cache is dropped for a while, for longer each time, unless the last time is long past. What was dropped
    /// without complaint shortens nothing: refaults come later than the answer.
    fn block_cache(&mut self, at: Micros, first: Micros) {
        if at >= self.cache_blocked + LONGEST_BLOCK {
            self.cache_block = FIRST_BLOCK;
        }
        self.cache_block = self.cache_block.max(first);
        self.cache_blocked = self.cache_blocked.max(at + self.cache_block);
        self.cache_block = (self.cache_block + self.cache_block).min(LONGEST_BLOCK);
    }

    /// The cache that may be dropped when others need memory: sooner than it would be for its own sake, but never what
    /// was lately seen to be in use.
    #[must_use]
    pub fn droppable(&self, vm: &Vm, at: Micros) -> Option<Bytes> {
        let Agent::Alive { hello, .. } = &vm.agent else { return None };
        let telemetry = vm.telemetry.as_ref()?;
        let cold = telemetry.what.file - telemetry.what.dirty - CACHE_FLOOR;
        let busy = self.is_reclaiming(at) || self.taken.is_some_and(|(when, _)| telemetry.at <= when);
        let may = hello.capabilities.reclaim && at >= self.cache_blocked && !busy && cold >= DEAD_BAND;
        may.then(|| cold.min(RECLAIM_STEP + RECLAIM_STEP))
    }

    fn is_reclaiming(&self, at: Micros) -> bool {
        self.reclaiming.is_some_and(|(since, _)| at < since + RECLAIM_PATIENCE)
    }

    /// The cache that may be dropped now, and when to look again if none.
    fn cold_cache(&self, vm: &Vm, telemetry: &Telemetry, at: Micros) -> Result<Bytes, Holding> {
        let Agent::Alive { hello, .. } = &vm.agent else { return Err(Holding::Settled) };
        // A report from before the last dropping shows cache that is gone, and cannot show what that did.
        if self.taken.is_some_and(|(when, _)| vm.telemetry.as_ref().is_none_or(|t| t.at <= when)) {
            return Err(Holding::Stale);
        }
        let clean = telemetry.file - telemetry.dirty;
        if !hello.capabilities.reclaim || clean < CACHE_FLOOR + DEAD_BAND {
            return Err(Holding::Settled);
        }
        if at < self.cache_blocked {
            return Err(Holding::Blocked(self.cache_blocked));
        }
        let quiet = self.cache_grew + vm.settings.cool_down;
        if at < quiet {
            return Err(Holding::CoolingDown(quiet));
        }
        let cold_after = if vm.crowded { Micros::ZERO } else { vm.settings.cold_after };
        let fresh = || self.fresh.iter().filter(|(when, _)| at < *when + cold_after);
        let cold = clean - CACHE_FLOOR.max(fresh().map(|(_, size)| *size).sum());
        match fresh().next() {
            Some((when, _)) if cold < DEAD_BAND => Err(Holding::Fresh(*when + cold_after)),
            _ => Ok(cold.min(RECLAIM_STEP)),
        }
    }
}

impl Policy for Reactive {
    fn propose(&self, vm: &Vm, at: Micros) -> Proposal {
        let Some(telemetry) = vm.telemetry.as_ref().map(|t| &t.what) else {
            return Proposal::Hold(Holding::Stale);
        };
        let slack = telemetry.free - telemetry.watermarks.low;
        let foreseen = vm.foreseen(at);
        let headroom = vm.headroom(at);
        // A report from before the last move would have the same hole filled twice.
        let current = vm.telemetry.as_ref().is_some_and(|t| t.at >= vm.settled);
        if slack < headroom.share(3, 4) && vm.order.is_none() && vm.is_owed() && current {
            let reason = foreseen.map_or(Reason::Refill, |f| Reason::ForeseenNeed(f.said));
            let has = if vm.is_undelivered() { vm.kept() } else { vm.aim };
            return Proposal::Give(has + (headroom - slack), reason);
        }
        let quiet = self.unquiet + vm.settings.cool_down;
        if at < quiet {
            return Proposal::Hold(Holding::CoolingDown(quiet));
        }
        if self.is_reclaiming(at) {
            return Proposal::Hold(Holding::Reclaiming);
        }
        if vm.aim > vm.max() {
            // The operator lowered the maximum; the guard still keeps the guest's floor.
            let step = (vm.aim - vm.max()).min(vm.settings.step.max(Bytes::mib(1)));
            return Proposal::Take(vm.aim - step, Reason::Settings);
        }
        let spare = if reports(vm) { Bytes::ZERO } else { slack - headroom };
        let kept = match vm.returning(at) {
            Some((level, until)) if vm.aim < level + DEAD_BAND => return Proposal::Hold(Holding::Returning(until)),
            Some((level, _)) => vm.aim - level,
            None => Bytes::MAX,
        };
        if spare >= DEAD_BAND {
            let step = spare.min(vm.settings.step).min(kept).round_down(Bytes::mib(1));
            let reason = foreseen.map_or(Reason::Spare(spare), |f| Reason::ForeseenSpare { spare, said: f.said });
            return Proposal::Take(vm.aim - step, reason);
        }
        if vm.aim <= vm.guaranteed() {
            return Proposal::Hold(Holding::AtMinimum);
        }
        match self.cold_cache(vm, telemetry, at) {
            // What is dropped is taken next: no more than the model leaves it.
            Ok(size) => match foreseen.map(|f| (size.min(vm.aim - f.said.size), f.said)) {
                Some((less, said)) if less < DEAD_BAND => Proposal::Hold(Holding::Foreseen(said)),
                Some((less, said)) => Proposal::Reclaim(less, Some(said)),
                None => Proposal::Reclaim(size, None),
            },
            Err(Holding::Settled) if reports(vm) && slack - headroom >= DEAD_BAND => Proposal::Hold(Holding::Reported),
            Err(why) => Proposal::Hold(why),
        }
    }
}

/// Whether what is free is left to the guest, because it reports it to the host.
fn reports(vm: &Vm) -> bool {
    let Agent::Alive { hello, .. } = &vm.agent else { return false };
    hello.capabilities.balloon.is_some_and(|b| b.free_page_reporting) && !vm.settings.take_reported
}

/// What hurt between two reports, the worst first.
fn trouble(new: &Telemetry, old: &Telemetry) -> Option<Trouble> {
    let (n, o) = (&new.counters, &old.counters);
    if grew(n.oom_kill, o.oom_kill) > 0 {
        return Some(Trouble::OomKill);
    }
    if grew(n.alloc_stall, o.alloc_stall) > 0 {
        return Some(Trouble::AllocStalls);
    }
    if let (Some(n), Some(o)) = (new.memory_pressure, old.memory_pressure)
        && n.some - o.some >= PRESSURE
    {
        return Some(Trouble::Pressure);
    }
    if grew(n.swap_in, o.swap_in) >= REFAULTS {
        return Some(Trouble::Swapping);
    }
    refaulted(new, old).then_some(Trouble::Refaults)
}

/// Whether page cache was read again that had been dropped.
fn refaulted(new: &Telemetry, old: &Telemetry) -> bool {
    grew(new.counters.refault_file, old.counters.refault_file) >= REFAULTS
}

fn grew(new: Option<u64>, old: Option<u64>) -> u64 {
    new.zip(old).map_or(0, |(n, o)| n.saturating_sub(o))
}
