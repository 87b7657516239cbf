//! One simulated guest's memory and its balloon, at the pace measured on real ones. No I/O and no clock: whoever has it
//! tells the time.

use ballast_protocol::{Bytes, Counters, Micros, Pressure, Telemetry, Watermarks};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// What the kernel keeps for itself (43 MiB of 512 in Debian 6.1).
const RESERVED: Bytes = Bytes::mib(43);
/// Zone watermarks of a guest with transparent huge pages (DESIGN section 1).
const MIN: Bytes = Bytes::mib(23);
const LOW: Bytes = Bytes::mib(29);
const HIGH: Bytes = Bytes::mib(35);
/// The balloon's pace, MiB/s (DESIGN section 1: inflates at 170 to 200, deflates at 1300 to 1700).
const INFLATES: u64 = 190;
const DEFLATES: u64 = 1400;
/// Page cache that the guest's own programs need.
const CACHE_FLOOR: Bytes = Bytes::mib(16);
/// The daemon's default headroom: a guest that begins with it has nothing to give and nothing to ask for.
const HEADROOM: Bytes = Bytes::mib(64);
/// Slack under which a guest that grows asks for more: 2 x R x T of the law of survival.
const ALARM: Bytes = Bytes::mib(32);
/// What it asks for then.
const MORE: Bytes = Bytes::mib(64);

/// A guest that uses a part of its memory, now and then grows fast, and shrinks again.
#[derive(Debug)]
pub(super) struct Guest {
    pub max: Bytes,
    /// Its configured minimum.
    pub min: Bytes,
    /// What the balloon was last told that the guest is to keep.
    pub target: Bytes,
    kept: Bytes,
    base: Bytes,
    anon: Bytes,
    goal: Bytes,
    cache: Bytes,
    /// MiB/s while it grows.
    rate: u64,
    stalls: u64,
    inflated: Bytes,
    deflated: Bytes,
    advanced: Micros,
}

impl Guest {
    /// Sized by its number, used by chance; its balloon is where the daemon would leave it.
    pub fn new(number: usize, random: &mut ChaCha8Rng) -> Self {
        let max = [Bytes::mib(512), Bytes::mib(1024), Bytes::mib(1024), Bytes::mib(2048)][number % 4];
        let anon = max.share(random.random_range(20..45), 100).round_down(Bytes(4096));
        let cache = Bytes::mib(random.random_range(20..80));
        let kept = (RESERVED + anon + cache + LOW + HEADROOM).min(max);
        Self {
            max,
            min: max.share(1, 4),
            target: kept,
            kept,
            base: anon,
            anon,
            goal: anon,
            cache,
            rate: 0,
            stalls: 0,
            inflated: max - kept,
            deflated: Bytes::ZERO,
            advanced: Micros::ZERO,
        }
    }

    pub const fn kept(&self) -> Bytes {
        self.kept
    }

    pub fn ballooned(&self) -> Bytes {
        self.max - self.kept
    }

    pub fn free(&self) -> Bytes {
        self.kept - RESERVED - self.anon - self.cache
    }

    /// What can be allocated without anybody being woken.
    pub fn slack(&self) -> Bytes {
        self.free() - LOW
    }

    fn giveable(&self) -> Bytes {
        self.free() + (self.cache - CACHE_FLOOR) - LOW
    }

    /// Below this nobody may order it: what it keeps less what it can give.
    pub fn floor(&self) -> Bytes {
        self.kept - self.giveable()
    }

    pub fn is_growing(&self) -> bool {
        self.anon < self.goal
    }

    pub fn is_moving(&self) -> bool {
        self.kept != self.target
    }

    /// Allocations that found neither free memory nor cache to drop, in looks of the agent.
    pub const fn stalls(&self) -> u64 {
        self.stalls
    }

    /// Grows by so much, or by what its maximum still allows; returns how much that is.
    pub fn burst(&mut self, size: Bytes, rate: u64) -> Bytes {
        let most = self.max - RESERVED - self.base - self.cache - LOW - Bytes::mib(16);
        let size = size.min(most);
        (self.goal, self.rate) = (self.base + size, rate);
        size
    }

    /// What a burst took is free again.
    pub fn calm(&mut self) {
        (self.anon, self.goal) = (self.base, self.base);
    }

    /// What a burst that is known in advance lacks (a large allocation shows before it is touched).
    pub fn lacks(&self) -> Bytes {
        // Who has its maximum has nobody to ask.
        if self.kept < self.max { (self.goal - self.anon) + ALARM - self.slack() } else { Bytes::ZERO }
    }

    /// What a guest asks for that only sees its free memory fall.
    pub fn alarm(&self) -> Option<Bytes> {
        (self.is_growing() && self.slack() < ALARM && self.kept < self.max).then_some(MORE)
    }

    /// How long it lasts without more.
    pub fn lasts(&self) -> Micros {
        Micros(self.slack().share(1_000_000, (self.rate << 20).max(1)).0)
    }

    /// Drops page cache, as far as it goes.
    pub fn drop_cache(&mut self, most: Bytes) -> Bytes {
        let size = most.min(self.cache - CACHE_FLOOR);
        self.cache = self.cache - size;
        size
    }

    /// Lets time pass: the balloon moves and programs grow.
    pub fn advance(&mut self, now: Micros) {
        let elapsed = now - self.advanced;
        self.advanced = now;
        let reach = |mib: u64| Bytes::mib(mib).share(elapsed.0, 1_000_000);
        if self.kept > self.target {
            let step = reach(INFLATES).min(self.kept - self.target).min(self.free());
            self.kept = self.kept - step;
            self.inflated += step;
        } else {
            let step = reach(DEFLATES).min(self.target - self.kept);
            self.kept += step;
            self.deflated += step;
        }
        if self.is_growing() {
            let wanted = reach(self.rate).min(self.goal - self.anon);
            let from_free = wanted.min(self.free() - MIN);
            let from_cache = (wanted - from_free).min(self.cache - CACHE_FLOOR);
            self.cache = self.cache - from_cache;
            self.anon += from_free + from_cache;
            if from_free + from_cache < wanted {
                self.stalls += 1;
            }
        }
    }

    pub fn report(&self, seq: u64, at: Micros, pending: Bytes) -> Telemetry {
        let pages = |size: Bytes| Some(size.0 / 4096);
        Telemetry {
            seq,
            at,
            total: self.max - RESERVED,
            free: self.free(),
            available: self.free() + self.cache,
            file: self.cache,
            anon: self.anon,
            committed: self.goal,
            watermarks: Watermarks { min: MIN, low: LOW, high: HIGH },
            giveable: self.giveable(),
            ballooned: Some(self.ballooned()),
            pending,
            memory_pressure: Some(Pressure::default()),
            io_pressure: Some(Pressure::default()),
            counters: Counters {
                refault_file: Some(0),
                refault_anon: Some(0),
                scan_direct: Some(0),
                alloc_stall: Some(self.stalls),
                major_fault: Some(0),
                swap_in: Some(0),
                swap_out: Some(0),
                oom_kill: Some(0),
                balloon_inflate: pages(self.inflated),
                balloon_deflate: pages(self.deflated),
            },
            ..Telemetry::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn guests() -> impl Iterator<Item = Guest> {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        (0..400).map(move |n| Guest::new(n, &mut random))
    }

    #[test]
    fn every_guest_begins_with_the_headroom_or_all_its_memory() {
        for guest in guests() {
            assert!(guest.slack() == HEADROOM || guest.kept() == guest.max, "{guest:?}");
            assert!(guest.kept() > guest.floor() && guest.kept() > guest.min, "{guest:?}");
        }
    }

    #[test]
    fn a_burst_fits_into_the_maximum_and_stalls_only_without_the_host() {
        for mut guest in guests() {
            let size = guest.burst(Bytes::mib(250), 200);
            assert!(size >= Bytes::mib(32), "{guest:?}");
            guest.target = guest.max;
            for step in 1..=300 {
                guest.advance(Micros::millis(10 * step));
            }
            assert!(!guest.is_growing() && guest.stalls() == 0 && guest.slack() >= Bytes::mib(16), "{guest:?}");
        }
    }

    #[test]
    fn a_guest_that_is_given_nothing_stalls_and_keeps_its_watermark() {
        let mut guest = guests().nth(3).expect("there are four");
        guest.burst(Bytes::mib(250), 200);
        for step in 1..=300 {
            guest.advance(Micros::millis(10 * step));
        }
        assert!(guest.is_growing() && guest.stalls() > 0 && guest.free() >= MIN, "{guest:?}");
    }

    #[test]
    fn the_balloon_moves_at_its_pace_and_no_further() {
        let mut guest = guests().nth(3).expect("there are four");
        let before = guest.kept();
        guest.target = before + Bytes::mib(140);
        guest.advance(Micros::millis(50));
        assert_eq!(guest.kept(), before + Bytes::mib(70));
        guest.advance(Micros::millis(150));
        assert!(!guest.is_moving());
    }
}
