//! How old the balloon statistics are, although all that a hypervisor gives is a time of day.
//!
//! QEMU stamps them with the host's wall clock, in seconds, and the wall clock jumps: set back by an hour, it would make
//! the statistics of a driver that has died look young for an hour, and memory would be taken on them (promise P3).
//! So the wall clock is asked once for each stamp, when it is first seen; from then on the stamp ages by the monotonic
//! clock. A jump forward makes at most one stamp look old, which only delays a taking.

use ballast_protocol::Micros;
use std::time::{Duration, Instant, SystemTime};

/// The age of one VM's statistics.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Age {
    seen: Option<Seen>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    stamp: u64,
    at: Instant,
    age: Duration,
}

impl Age {
    /// The age of statistics with this stamp, seconds since 1970; `None` for 0, which stands for never.
    pub fn of(&mut self, stamp: u64, wall: SystemTime, now: Instant) -> Option<Micros> {
        if stamp == 0 {
            return None;
        }
        let seen = match self.seen {
            Some(seen) if seen.stamp == stamp => seen,
            _ => {
                // Beyond what fits it is nonsense; in the future, the clock was set back since.
                let then = SystemTime::UNIX_EPOCH + Duration::from_secs(stamp.min(u64::from(u32::MAX)));
                Seen { stamp, at: now, age: wall.duration_since(then).unwrap_or_default() }
            }
        };
        self.seen = Some(seen);
        Some(Micros::from_duration(seen.age + now.saturating_duration_since(seen.at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn wall(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_wall_clock_that_jumps_makes_dead_statistics_no_younger() {
        let (mut age, start) = (Age::default(), Instant::now());
        assert_eq!(age.of(0, wall(10_000), start), None, "never given");
        assert_eq!(age.of(10_000, wall(10_002), start), Some(Micros::secs(2)));
        // Set back by an hour, and the guest's driver has died: they go on ageing.
        assert_eq!(age.of(10_000, wall(6_403), start + SECOND), Some(Micros::secs(3)));
        assert_eq!(age.of(10_000, wall(6_500), start + 98 * SECOND), Some(Micros::secs(100)));
        // A new stamp is a new report, also when it is earlier than the last.
        assert_eq!(age.of(6_501, wall(6_502), start + 99 * SECOND), Some(Micros::secs(1)));
        // Seen for the first time after the clock was set back: young now, and not for ever.
        let mut age = Age::default();
        assert_eq!(age.of(10_000, wall(6_400), start), Some(Micros::ZERO));
        assert_eq!(age.of(10_000, wall(6_400), start + 20 * SECOND), Some(Micros::secs(20)));
    }

    #[test]
    fn a_jump_forward_is_forgotten_with_the_next_stamp() {
        let (mut age, start) = (Age::default(), Instant::now());
        assert_eq!(age.of(1_000, wall(4_600), start), Some(Micros::secs(3_600)));
        assert_eq!(age.of(4_600, wall(4_600), start + SECOND), Some(Micros::ZERO));
        assert_eq!(age.of(u64::MAX, wall(1_000), start), Some(Micros::ZERO), "nonsense is no panic");
    }
}
