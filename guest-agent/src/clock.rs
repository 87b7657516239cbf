//! The agent's clock: CLOCK_MONOTONIC in microseconds, the one that the wire calls "guest clock".

use ballast_protocol::Micros;
use rustix::time::{ClockId, Timespec, clock_gettime};

/// Now.
#[must_use]
pub fn now() -> Micros {
    micros(clock_gettime(ClockId::Monotonic))
}

/// CPU time that this process has used, all threads.
#[must_use]
pub fn cpu() -> Micros {
    micros(clock_gettime(ClockId::ProcessCPUTime))
}

fn micros(t: Timespec) -> Micros {
    // Neither clock is ever negative.
    Micros(t.tv_sec.unsigned_abs() * 1_000_000 + t.tv_nsec.unsigned_abs() / 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_moves_forward_in_microseconds() {
        let before = now();
        std::thread::sleep(std::time::Duration::from_millis(2));
        let took = now() - before;
        assert!(took >= Micros::millis(2) && took < Micros::secs(60), "{took}");
    }
}
