//! What a guest asked back soon after it was taken is kept for it a while: it was idle, but not for long enough.
//!
//! ```text
//!   quiet ── taken ── asked back            gap = quiet .. asked back
//!                         gap <= 60 s       kept from now on for 1.5 x gap after each use
//!                         gap >  60 s       not kept: taking it paid                 (`returning`, 60 s by default)
//! ```
//! A program that needs its memory every half minute is served twice as dear by taking and giving in turns as by
//! leaving it alone: under TCG a MiB costs 5 ms to take, 0.8 ms to give and 1 ms to be faulted in again by the host.
//! On KVM a core taken up to 1 % moves 10 MiB/s (HyperAlloc, EuroSys'25), so that a cycle of some 600 MiB pays
//! after a minute. The factor 1.5 leaves room for a period that varies by half.
//!
//! On a host that is nearly full it gives way: room for bursts is made from it, as much as is missing (see `pool`).
//!
//! What is kept is a size of the guest, not a sum: whatever the guest does with it, nothing is taken below it until it
//! is over, unless a model that is followed asks for less. A small need after a large taking teaches nothing, or every blip of an idle guest would keep it large.

use ballast_protocol::{Bytes, Micros};
use serde::{Deserialize, Serialize};

/// What is known of a guest's returning needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recurring {
    /// Something is taken: since when the guest had been quiet, and what it had been told to keep before.
    taken: Option<(Micros, Bytes)>,
    /// Nothing is taken below this...
    level: Bytes,
    /// ...of which so much had been taken and was asked back...
    returned: Bytes,
    /// ...for so long after each use...
    keep: Micros,
    /// ...that is, until then.
    until: Micros,
}

impl Recurring {
    /// Something is taken from a guest that keeps `aim` and has been quiet since.
    pub fn took(&mut self, quiet_since: Micros, aim: Bytes) {
        self.taken.get_or_insert((quiet_since, aim));
    }

    /// A guest that keeps `aim` is to have `wish`; within `soon` of its quiet means that taking did not pay.
    pub fn needed(&mut self, at: Micros, aim: Bytes, wish: Bytes, soon: Micros) {
        let Some((quiet_since, before)) = self.taken else { return };
        let (taken, returned) = (before - aim, wish.min(before) - aim);
        if returned < taken.share(1, 4) {
            return;
        }
        self.taken = None;
        let gap = at - quiet_since;
        if gap > soon {
            *self = Self::default();
            return;
        }
        self.level = wish.min(before);
        self.returned = returned;
        self.keep = gap + Micros(gap.0 / 2);
        self.until = at + self.keep;
    }

    /// The guest has so much free above its low watermark: while much of what came back is in use, its time begins
    /// anew. Returns whether it is.
    pub fn seen(&mut self, at: Micros, slack: Bytes, headroom: Bytes) -> bool {
        let used = at < self.until && slack < headroom + self.returned.share(1, 2);
        if used {
            self.until = at + self.keep;
        }
        used
    }

    /// Below what nothing is taken now, and until when.
    #[must_use]
    pub fn level(&self, at: Micros) -> Option<(Bytes, Micros)> {
        (at < self.until).then_some((self.level, self.until))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADROOM: Bytes = Bytes::mib(64);
    const SOON: Micros = Micros::secs(60);

    /// Quiet since 10 s, taken from 512 to 200 MiB; asked back at `at` seconds, up to `wish` MiB.
    fn asked_back(at: u64, wish: u64) -> Recurring {
        let mut needs = Recurring::default();
        needs.took(Micros::secs(10), Bytes::mib(512));
        // Later steps do not count anew.
        needs.took(Micros::secs(11), Bytes::mib(300));
        needs.needed(Micros::secs(at), Bytes::mib(200), Bytes::mib(wish), SOON);
        needs
    }

    fn level(needs: &Recurring, at: u64) -> Option<(u64, u64)> {
        needs.level(Micros::secs(at)).map(|(size, until)| (size.as_mib(), until.0 / 1_000_000))
    }

    #[test]
    fn what_comes_back_soon_is_kept_half_as_long_again() {
        // 30 s after it became quiet: kept for 45 s, that is until 40 + 45.
        let needs = asked_back(40, 400);
        assert_eq!(level(&needs, 40), Some((400, 85)));
        assert_eq!(level(&needs, 84), Some((400, 85)));
        assert_eq!(level(&needs, 85), None);
    }

    #[test]
    fn what_comes_back_late_or_hardly_is_not() {
        assert_eq!(level(&asked_back(70, 400), 70), Some((400, 160)), "60 s are still soon");
        assert_eq!(level(&asked_back(71, 400), 71), None);
        // A quarter of the 312 MiB that were taken is 78.
        assert_eq!(level(&asked_back(40, 277), 40), None);
        assert_eq!(level(&asked_back(40, 278), 40), Some((278, 85)));
        assert_eq!(level(&asked_back(40, 9_999), 40), Some((512, 85)), "no more than it had");
    }

    #[test]
    fn switched_off_it_keeps_nothing() {
        let mut needs = Recurring::default();
        needs.took(Micros::secs(10), Bytes::mib(512));
        needs.needed(Micros::secs(11), Bytes::mib(200), Bytes::mib(512), Micros::ZERO);
        assert_eq!(level(&needs, 11), None);
    }

    #[test]
    fn without_a_taking_a_need_teaches_nothing() {
        let mut needs = Recurring::default();
        needs.needed(Micros::secs(40), Bytes::mib(200), Bytes::mib(400), SOON);
        assert_eq!(needs, Recurring::default());
    }

    #[test]
    fn use_renews_it_and_idleness_does_not() {
        // 200 MiB came back: in use while less than 64 + 100 MiB are free.
        let mut needs = asked_back(40, 400);
        assert!(!needs.seen(Micros::secs(50), Bytes::mib(164), HEADROOM));
        assert_eq!(level(&needs, 50), Some((400, 85)));
        assert!(needs.seen(Micros::secs(50), Bytes::mib(163), HEADROOM));
        assert_eq!(level(&needs, 50), Some((400, 95)));
        assert!(!needs.seen(Micros::secs(95), Bytes::ZERO, HEADROOM), "over is over");
    }

    #[test]
    fn a_late_return_forgets_what_was_known() {
        let mut needs = asked_back(40, 400);
        needs.took(Micros::secs(85), Bytes::mib(400));
        needs.needed(Micros::secs(146), Bytes::mib(200), Bytes::mib(400), SOON);
        assert_eq!(needs, Recurring::default());
    }
}
