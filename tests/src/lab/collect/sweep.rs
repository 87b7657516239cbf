//! Where a guest's balloon is moved next, and when.
//!
//! In repetitions of odd numbers the host agent moves it, by an operator's hold that is released as soon as the size is reached,
//! under the law itself but for one thing: it takes nothing of its own accord. So a size is a size that the law can come to, and
//! what is asked for within the horizon is given as ever: a loss is what remains when the fast path has done what it can. In those
//! of even numbers the lab moves it and the host agent runs dry: a loss is what happens when nobody helps.
//!
//! Each move is an intervention: the guest is as it is, gets a size that chance has chosen, and is left alone for a whole
//! horizon. What happens then is an effect of the size and not of a law that chose it because of what it expected. Chance
//! sees one thing only, what the guest needs at that moment, which is a feature too: beside sizes from the whole range it
//! draws many around the need, where "fine" turns into "not fine", and some that are all of the memory, so that no guest
//! stays in misery and the untouched guest is in the data.

use super::HORIZON_S;
use crate::lab::results::{Look, OrderSeen};
use ballast_protocol::Bytes;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Until the first move: features need some seconds of history.
const FIRST_S: f64 = 8.0;
/// A size stays for a horizon and so much more, seconds: at the least what two clocks may differ by, and room for horizons
/// that begin when the guest has been at its size for a while.
const LONGER_S: std::ops::Range<f64> = 0.2..5.0;
/// Around what a guest needs, MiB.
const AROUND: std::ops::Range<i64> = -96..129;
/// How the reasons of its orders begin.
pub const SWEPT: &str = "sweep";
/// So long it is held at a size at the most, seconds: a balloon moves 200 MiB a second at the least.
pub const HELD_S: f64 = 1.5;
/// So near to its size it is there, MiB.
const THERE: f64 = 8.0;
/// What a guest needed longer ago than this is not what it needs, seconds.
const KNOWN_S: f64 = 3.0;

/// What is to be done with a guest's balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// Hold it at a size.
    Hold(Bytes),
    /// Let the law have it.
    Release,
}

/// A guest's balloon in the hands of chance.
#[derive(Debug)]
pub struct Sweep {
    guest: String,
    random: ChaCha8Rng,
    /// The smallest and the largest size, MiB.
    range: (u64, u64),
    next: f64,
    /// It is held at this size, MiB, since then.
    held: Option<(f64, f64)>,
    /// Every order so far, with the moment before it, seconds from the block's zero.
    pub orders: Vec<OrderSeen>,
}

impl Sweep {
    /// Sizes of this range, both ends included; `now` in seconds from the block's zero.
    #[must_use]
    pub fn new(guest: &str, seed: u64, (least, most): (Bytes, Bytes), now: f64) -> Self {
        Self {
            guest: guest.to_owned(),
            random: ChaCha8Rng::seed_from_u64(seed),
            range: (least.as_mib(), most.as_mib()),
            next: now + FIRST_S,
            held: None,
            orders: Vec::new(),
        }
    }

    /// Whose.
    #[must_use]
    pub fn guest(&self) -> &str {
        &self.guest
    }

    /// What is to be done now, if it is time; `looks`: what has been seen of the guest.
    pub fn due(&mut self, now: f64, looks: &[Look]) -> Option<Move> {
        let there = |(size, since): &mut (f64, f64)| {
            let reached = looks.last().is_some_and(|l| l.t > *since && (l.kept_mib - *size).abs() <= THERE);
            reached || now >= *since + HELD_S
        };
        if self.held.take_if(there).is_some() {
            return Some(Move::Release);
        }
        if now < self.next {
            return None;
        }
        self.next = now + HORIZON_S + self.random.random_range(LONGER_S);
        let mut lately = looks.iter().rev().take_while(|l| l.t + KNOWN_S >= now);
        let needs = lately.find_map(|l| Some(l.kept_mib - l.available_mib?));
        let (least, most) = self.range;
        // The same draws whatever is known, so that a seed says as much as it can.
        let (kind, anywhere) = (self.random.random_range(0..10), self.random.random_range(least..=most));
        let around = self.random.random_range(AROUND);
        let (size, reason) = match (kind, needs) {
            (0..2, _) => (most, "sweep: all of it"),
            (2..6, Some(needs)) => {
                ((needs as i64 + around).clamp(least as i64, most as i64) as u64, "sweep: about what it needs")
            }
            _ => (anywhere, "sweep: anything"),
        };
        self.held = Some((size as f64, now));
        let from_mib = looks.last().map_or(most as f64, |l| l.kept_mib);
        self.orders.push(OrderSeen {
            t: now,
            guest: self.guest.clone(),
            from_mib,
            to_mib: size as f64,
            reason: reason.to_owned(),
        });
        Some(Move::Hold(Bytes::mib(size)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn swept(seed: u64) -> Vec<OrderSeen> {
        let mut sweep = Sweep::new("a", seed, (Bytes::mib(128), Bytes::mib(512)), 2.0);
        for step in 0..40_000_u32 {
            let t = f64::from(step) * 0.5;
            // It needs 200 MiB, and says so every second time.
            let look = Look { t, kept_mib: 300.0, available_mib: (step % 2 == 0).then_some(100.0), ..Look::default() };
            sweep.due(t, &[look]);
        }
        sweep.orders
    }

    #[test]
    fn each_hold_is_released_before_the_next() {
        let mut sweep = Sweep::new("a", 1, (Bytes::mib(128), Bytes::mib(512)), 0.0);
        let moves: Vec<_> = (0..400).filter_map(|s| Some((s, sweep.due(f64::from(s) * 0.5, &[])?))).collect();
        assert!(moves.len() > 20);
        for pair in moves.chunks_exact(2) {
            let ((held, hold), (released, release)) = (pair[0], pair[1]);
            assert!(matches!(hold, Move::Hold(_)) && release == Move::Release && released - held == 3, "{pair:?}");
        }
    }

    #[test]
    fn a_hold_ends_when_its_size_is_reached() {
        let mut sweep = Sweep::new("a", 1, (Bytes::mib(128), Bytes::mib(512)), 0.0);
        let Some(Move::Hold(size)) = sweep.due(10.0, &[]) else { panic!("it is time") };
        let seen = |t, kept_mib| Look { t, kept_mib, ..Look::default() };
        assert_eq!(sweep.due(10.1, &[seen(10.0, size.mib_f64())]), None, "seen before it was ordered");
        assert_eq!(sweep.due(10.5, &[seen(10.4, size.mib_f64() + 20.0)]), None);
        assert_eq!(sweep.due(10.6, &[seen(10.6, size.mib_f64() - 4.0)]), Some(Move::Release));
        assert_eq!(sweep.due(11.0, &[]), None);
    }

    #[test]
    fn every_size_stays_for_more_than_a_horizon_and_chance_is_repeatable() {
        let orders = swept(1);
        assert_eq!(orders, swept(1));
        assert_ne!(orders, swept(2));
        assert!(orders[0].t >= 10.0 && orders[0].t < 11.0, "{:?}", orders[0]);
        assert!(orders.windows(2).all(|o| o[1].t - o[0].t >= HORIZON_S + 0.2));
        assert!(orders.windows(2).all(|o| o[1].t - o[0].t <= HORIZON_S + 5.5), "and is never forgotten");
    }

    #[test]
    fn sizes_are_in_their_range_many_near_the_need_and_some_are_everything() {
        let orders = swept(3);
        assert!(orders.len() > 1_000);
        let share =
            |pick: &dyn Fn(f64) -> bool| orders.iter().filter(|o| pick(o.to_mib)).count() as f64 / orders.len() as f64;
        assert_eq!(share(&|mib| (128.0..=512.0).contains(&mib)), 1.0);
        // Two tenths on purpose.
        assert!((0.15..0.25).contains(&share(&|mib| mib == 512.0)));
        // Half of the looks do not tell the need: two tenths of sizes are drawn from 128 to 328, the rest evenly.
        let near = share(&|mib| (128.0..=328.0).contains(&mib));
        assert!((0.45..0.60).contains(&near), "{near}");
    }
}
