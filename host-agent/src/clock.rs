//! The daemon's one clock: microseconds since it started, monotonic. The planner never sees another.

use ballast_protocol::Micros;
use std::time::Instant;

/// A clock that starts at zero.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// Starts now.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The time since the start.
    #[must_use]
    pub fn now(&self) -> Micros {
        Micros::from_duration(self.0.elapsed())
    }

    /// The instant that `at` names, for the runtime's timers.
    #[must_use]
    pub fn instant(&self, at: Micros) -> tokio::time::Instant {
        // A deadline beyond what the platform's clock can hold is as good as never; a day re-arms harmlessly.
        let far = std::time::Duration::from_secs(86_400);
        self.0.checked_add(at.duration()).unwrap_or_else(|| Instant::now() + far).into()
    }
}
