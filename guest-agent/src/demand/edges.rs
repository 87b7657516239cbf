//! Late signs: the absorber held somebody, PSI crossed its line, an allocation had to reclaim for itself.
//!
//! By then somebody is already slower, so they are believed at once; but they tell no size, come in bursts, and mostly
//! repeat what the slack judge has said. So each asks for the smallest demand, ten times a second at most, and only
//! when nothing else is on its way. Pure.

use super::slack::SMALLEST;
use ballast_protocol::{Bytes, Micros, Source};

/// Between two demands of one source.
const PAUSE: Micros = Micros::millis(100);
/// PSI counts the stalls of a single cgroup at its own limit as well; they are the VM's affair only while the VM is
/// short itself: less slack than this, or an eighth of a small guest.
const SHORT: Bytes = Bytes::mib(64);

/// Judges the late signs.
#[derive(Debug, Default)]
pub struct Edges {
    last: [Option<Micros>; 3],
    alloc_stall: Option<u64>,
    scan_direct: Option<u64>,
}

impl Edges {
    /// A sign of `source` came; what to ask for.
    ///
    /// `on_its_way`: another demand is unanswered, or was raised within the last 100 ms.
    pub fn sign(&mut self, at: Micros, source: Source, slack: Bytes, total: Bytes, on_its_way: bool) -> Option<Bytes> {
        let index = match source {
            Source::Cgroup => 0,
            Source::Psi => 1,
            Source::Stall => 2,
            Source::Slack | Source::Committed | Source::Reserve => return None,
        };
        let short = slack < SHORT.min(total.share(1, 8));
        // A stalled allocation is global by definition (`allocstall` leaves cgroup reclaim out) and needs no more proof.
        if on_its_way || (!short && source != Source::Stall) {
            return None;
        }
        if self.last[index].is_some_and(|last| at - last < PAUSE) {
            return None;
        }
        self.last[index] = Some(at);
        Some(SMALLEST)
    }

    /// New values of `allocstall_*` and `pgscan_direct`; whether somebody stalled since the last ones.
    pub fn stalled(&mut self, alloc_stall: Option<u64>, scan_direct: Option<u64>) -> bool {
        let grew = |then: Option<u64>, now: Option<u64>| then.zip(now).is_some_and(|(then, now)| now > then);
        let stalled = grew(self.alloc_stall, alloc_stall) || grew(self.scan_direct, scan_direct);
        (self.alloc_stall, self.scan_direct) = (alloc_stall, scan_direct);
        stalled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOTAL: Bytes = Bytes::mib(512);

    #[test]
    fn late_signs_ask_once_in_a_hundred_milliseconds_and_only_when_nothing_is_on_its_way() {
        let mut e = Edges::default();
        let asks = (0..1_000)
            .filter(|ms| e.sign(Micros::millis(*ms), Source::Cgroup, Bytes::mib(10), TOTAL, false).is_some())
            .count();
        assert_eq!(asks, 10);
        assert_eq!(e.sign(Micros::secs(5), Source::Psi, Bytes::mib(10), TOTAL, true), None);
        assert_eq!(e.sign(Micros::secs(5), Source::Psi, Bytes::mib(10), TOTAL, false), Some(SMALLEST));
    }

    #[test]
    fn pressure_inside_one_cgroup_is_not_the_vms_but_a_stalled_allocation_is() {
        let mut e = Edges::default();
        assert_eq!(e.sign(Micros::secs(1), Source::Psi, Bytes::mib(300), TOTAL, false), None);
        assert_eq!(e.sign(Micros::secs(1), Source::Stall, Bytes::mib(300), TOTAL, false), Some(SMALLEST));
    }

    #[test]
    fn stalls_are_deltas_and_the_first_reading_is_none() {
        let mut e = Edges::default();
        assert!(!e.stalled(Some(500), Some(7)));
        assert!(!e.stalled(Some(500), Some(7)));
        assert!(e.stalled(Some(501), Some(7)));
        assert!(!e.stalled(None, None));
        assert!(!e.stalled(Some(900), None));
    }
}
