//! How often one VM may call.

use std::time::Duration;
use tokio::time::Instant;

/// Calls in a row. An agent that lost its session calls once and then backs off; a few more for doctors and probes.
const BURST: u32 = 8;
/// One more call every so often.
const REFILL: Duration = Duration::from_millis(250);

/// A token bucket, kept as the one instant at which it will be full: nothing to refill, nothing to drift.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    full_at: Instant,
}

impl Default for Pace {
    fn default() -> Self {
        Self { full_at: Instant::now() }
    }
}

impl Pace {
    /// Takes a call's worth, if there is one.
    pub fn try_take(&mut self) -> bool {
        let now = Instant::now();
        let full_at = self.full_at.max(now) + REFILL;
        if full_at > now + REFILL * BURST {
            return false;
        }
        self.full_at = full_at;
        true
    }

    /// Waits until a call's worth is there, and takes it.
    pub async fn take(&mut self) {
        while !self.try_take() {
            tokio::time::sleep_until(self.full_at + REFILL - REFILL * BURST).await;
        }
    }

    /// Nobody called for so long that it makes no difference to a new one.
    pub fn is_rested(&self) -> bool {
        self.full_at <= Instant::now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_then_a_steady_trickle() {
        let mut pace = Pace::default();
        assert_eq!((0..100).filter(|_| pace.try_take()).count(), BURST as usize);
        tokio::time::advance(REFILL * 3).await;
        assert_eq!((0..100).filter(|_| pace.try_take()).count(), 3);
        assert!(!pace.is_rested());
        tokio::time::advance(REFILL * (BURST + 1)).await;
        assert!(pace.is_rested());
        assert_eq!((0..100).filter(|_| pace.try_take()).count(), BURST as usize);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_costs_one_refill_a_call() {
        let mut pace = Pace::default();
        let begin = Instant::now();
        for _ in 0..BURST + 4 {
            pace.take().await;
        }
        assert_eq!(begin.elapsed(), REFILL * 4);
    }
}
