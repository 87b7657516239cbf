//! Committed_AS as a hint: `malloc(200 MiB)` shows here before a page is touched.
//!
//! ```text
//!   committed = promised to programs        promised = committed - resident
//!   a jump of `promised` that does not fit into slack --> Raise
//!     committed falls back, little was touched        --> Over (a fork that exec'ed, a buffer freed unused)
//!     2 s later little was touched                    --> Over (nobody uses it now; the slack judge watches)
//!     touched                                         --> Over once 2 s old: it came true
//! ```
//!
//! Blind to MAP_NORESERVE and PROT_NONE (JVM, Go), to growth in small chunks and to fork storms (FACTS, section 6);
//! it never proves demand alone, so what it raises is short-lived. Pure.

use ballast_protocol::{Bytes, Micros};

/// A smaller jump is not worth a message: the slack judge meets it with what it asks at least.
const JUMP: Bytes = Bytes::mib(32);
/// A jump happens within this.
const WINDOW: Micros = Micros::secs(1);
/// A hint lives so long.
const LIFE: Micros = Micros::secs(2);
/// Samples kept: the window at the usual period of 100 ms, twice over; faster samples shorten the window.
const KEPT: usize = 20;

/// One reading of `/proc/meminfo`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Promise {
    /// When.
    pub at: Micros,
    /// Committed_AS.
    pub committed: Bytes,
    /// Anonymous, shared and swapped-out memory: what of it was touched.
    pub resident: Bytes,
    /// Free memory above the low watermarks.
    pub slack: Bytes,
}

impl Promise {
    fn promised(&self) -> Bytes {
        self.committed - self.resident
    }
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// Ask for so much; an earlier hint that still stands is replaced.
    Raise(Bytes),
    /// The hint that stands is over.
    Over,
}

#[derive(Clone, Copy, Debug)]
struct Standing {
    raised: Micros,
    /// Where committed and resident were before the jump.
    before: Promise,
    jump: Bytes,
}

/// Watches Committed_AS.
#[derive(Debug, Default)]
pub struct CommittedWatch {
    samples: [Promise; KEPT],
    count: usize,
    standing: Option<Standing>,
}

impl CommittedWatch {
    /// The session ended: no hint stands any more.
    pub fn forget_host(&mut self) {
        self.standing = None;
    }

    /// Whether a hint stands, so that samples are wanted more often.
    #[must_use]
    pub fn is_standing(&self) -> bool {
        self.standing.is_some()
    }

    /// Takes one reading.
    pub fn sample(&mut self, now: Promise) -> Option<Hint> {
        let base =
            self.samples[..self.count].iter().filter(|p| now.at - p.at <= WINDOW).min_by_key(|p| p.promised()).copied();
        self.samples.copy_within(0..KEPT - 1, 1);
        self.samples[0] = now;
        self.count = (self.count + 1).min(KEPT);
        let jump = base.map_or(Bytes::ZERO, |b| now.promised() - b.promised());
        if let Some(s) = self.standing {
            let touched = now.resident - s.before.resident;
            let fell_back = now.committed <= s.before.committed + s.jump.share(1, 4);
            let old = now.at - s.raised >= LIFE;
            if old || (fell_back && touched < s.jump.share(1, 4)) {
                return self.end();
            }
            // More than the hint that stands: promises that are still open, plus what the standing one asked for.
            if jump < s.jump + JUMP {
                return None;
            }
        }
        if jump < JUMP || jump <= now.slack {
            return None;
        }
        self.standing = Some(Standing { raised: now.at, before: base?, jump });
        Some(Hint::Raise(jump - now.slack))
    }

    /// The next jump counts from here: what stands promised now was judged already.
    fn end(&mut self) -> Option<Hint> {
        self.standing = None;
        self.count = 1;
        Some(Hint::Over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64, committed: u64, resident: u64, slack: u64) -> Promise {
        Promise {
            at: Micros::millis(ms),
            committed: Bytes::mib(committed),
            resident: Bytes::mib(resident),
            slack: Bytes::mib(slack),
        }
    }

    #[test]
    fn a_large_malloc_is_asked_for_before_it_is_touched() {
        let mut w = CommittedWatch::default();
        assert_eq!(w.sample(at(0, 100, 60, 30)), None);
        assert_eq!(w.sample(at(100, 400, 60, 30)), Some(Hint::Raise(Bytes::mib(270))));
        // It is being touched: no second hint, and it is over when it has come true.
        for ms in (120..2_100).step_by(20) {
            let touched = (ms - 100) / 5;
            assert_eq!(w.sample(at(ms, 400, 60 + touched.min(300), 30)), None, "{ms}");
        }
        assert_eq!(w.sample(at(2_100, 400, 360, 30)), Some(Hint::Over));
        assert!(!w.is_standing());
    }

    #[test]
    fn a_fork_that_execs_leaves_no_standing_demand() {
        let mut w = CommittedWatch::default();
        w.sample(at(0, 200, 150, 50));
        assert_eq!(w.sample(at(100, 302, 150, 50)), Some(Hint::Raise(Bytes::mib(52))));
        assert_eq!(w.sample(at(120, 203, 151, 50)), Some(Hint::Over));
        assert_eq!(w.sample(at(220, 203, 151, 50)), None);
    }

    #[test]
    fn a_fork_that_stays_lapses_and_is_not_raised_again() {
        let mut w = CommittedWatch::default();
        w.sample(at(0, 200, 150, 50));
        assert!(matches!(w.sample(at(100, 302, 150, 50)), Some(Hint::Raise(_))));
        let hints: Vec<_> =
            (2..80).filter_map(|i| w.sample(at(i * 100, 302, 152, 50)).map(|hint| (i * 100, hint))).collect();
        assert_eq!(hints, [(2_100, Hint::Over)]);
    }

    #[test]
    fn what_fits_into_slack_or_comes_in_drops_is_no_hint() {
        let mut w = CommittedWatch::default();
        w.sample(at(0, 100, 60, 300));
        assert_eq!(w.sample(at(100, 300, 60, 300)), None, "fits");
        let mut w = CommittedWatch::default();
        for i in 0..100 {
            assert_eq!(w.sample(at(i * 100, 100 + i, 60 + i, 10)), None, "grows as it is touched");
        }
    }

    #[test]
    fn a_second_malloc_replaces_the_hint_with_the_sum() {
        let mut w = CommittedWatch::default();
        w.sample(at(0, 100, 60, 30));
        assert!(matches!(w.sample(at(100, 200, 60, 30)), Some(Hint::Raise(_))));
        assert_eq!(w.sample(at(200, 300, 60, 30)), Some(Hint::Raise(Bytes::mib(170))));
    }
}
