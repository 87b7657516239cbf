//! Who gets how much when not everybody can have all: pure arithmetic on what the VMs need.
//!
//! ```text
//!   lowest  = the VM's guarantee and its floor: what cannot be taken without harm
//!   fullest = what it needs: used memory and headroom, or what it has asked for
//!
//!   enough for everybody's fullest -> idle memory pays first, the idlest per weight before the others
//!   not enough (a crunch)          -> lowest for all, then class by class, inside a class by weight
//! ```
//! Inside a class the shares are weighted max-min fair: size = level x weight, no less than `lowest`, no more than
//! `fullest`, the level being the highest that fits ("water filling"; Bertsekas, Gallager, Data Networks, 6.5.2). What
//! one VM cannot use goes to the others of its class, then to the next class.
//!
//! Idle memory costs more than used memory: with nothing scarce it is left where it is, and when somebody needs it
//! the VM with the lowest price per page gives first, price = weight / (kept x (active + k (1 - active))),
//! k = 1 / (1 - 75 %) = 4 (idle memory tax, Waldspurger, OSDI 2002, section 5.2; 75 % is ESX's default).

use crate::config::Class;
use crate::event::VmName;
use ballast_protocol::Bytes;

/// k of the idle memory tax.
const IDLE_COSTS: u64 = 4;
/// Weights are 1 to 10,000; a level times such a weight must not overflow.
const WEIGHTS: (u32, u32) = (1, 10_000);

/// A VM that wants its share of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimant {
    /// Its name.
    pub name: VmName,
    /// Who comes first.
    pub class: Class,
    /// Among equals.
    pub weight: u32,
    /// What it counts for now: what it keeps, or has been told to keep, whichever is more.
    pub charge: Bytes,
    /// The least it can be left with.
    pub lowest: Bytes,
    /// What it needs.
    pub fullest: Bytes,
}

impl Claimant {
    /// What it has and does not need.
    pub fn idle(&self) -> Bytes {
        self.charge - self.fullest.max(self.lowest)
    }

    /// What a page of it is worth, as a number to compare: the lowest gives first.
    fn price(&self) -> u128 {
        let (idle, active) = (self.idle(), self.charge - self.idle());
        let taxed = u128::from(active.0) + u128::from(IDLE_COSTS) * u128::from(idle.0);
        // 2^40 keeps the quotient whole for VMs of up to 1 TiB and the smallest weight.
        (u128::from(self.weight()) << 60) / taxed.max(1)
    }

    fn weight(&self) -> u32 {
        self.weight.clamp(WEIGHTS.0, WEIGHTS.1)
    }
}

/// What each of `claimants` may keep of `budget`, in their order. The sum is at most the budget, unless what nobody can
/// give up (`lowest`) is more than that already.
pub fn shares(budget: Bytes, claimants: &[Claimant]) -> Vec<Bytes> {
    let mut shares: Vec<Bytes> = claimants.iter().map(|c| c.lowest).collect();
    let mut left = budget - shares.iter().copied().sum();
    for class in [Class::High, Class::Normal, Class::Low] {
        let members: Vec<usize> = (0..claimants.len()).filter(|i| claimants[*i].class == class).collect();
        let lowest: Bytes = members.iter().map(|i| shares[*i]).sum();
        fill(lowest + left, claimants, &members, &mut shares);
        left = left - (members.iter().map(|i| shares[*i]).sum::<Bytes>() - lowest);
    }
    shares
}

/// Fills one class to the highest level that `budget` allows.
fn fill(budget: Bytes, claimants: &[Claimant], members: &[usize], shares: &mut [Bytes]) {
    let at = |level: u64, i: usize| {
        let c = &claimants[i];
        Bytes(level.saturating_mul(u64::from(c.weight()))).min(c.fullest).max(c.lowest)
    };
    let fits = |level: u64| members.iter().map(|i| at(level, *i)).sum::<Bytes>() <= budget;
    // The level that gives the largest need to the smallest weight fills everybody.
    let (mut fitting, mut too_high) = (0, members.iter().map(|i| claimants[*i].fullest.0).max().unwrap_or(0) + 1);
    if fits(too_high) {
        fitting = too_high;
    }
    while fitting + 1 < too_high {
        let middle = fitting + (too_high - fitting) / 2;
        if fits(middle) { fitting = middle } else { too_high = middle }
    }
    for i in members {
        shares[*i] = at(fitting, *i);
    }
}

/// Which of `claimants` should give up how much, so that `goal` comes together: idle memory only, the cheapest first.
/// By index; less than `goal` when there is no more.
pub fn tax(goal: Bytes, claimants: &[Claimant]) -> Vec<(usize, Bytes)> {
    let mut idle: Vec<(u128, usize)> =
        claimants.iter().enumerate().filter(|(_, c)| c.idle() > Bytes::ZERO).map(|(i, c)| (c.price(), i)).collect();
    idle.sort_unstable();
    let mut missing = goal;
    let mut given = Vec::new();
    for (_, i) in idle {
        if missing == Bytes::ZERO {
            break;
        }
        let size = claimants[i].idle().min(missing);
        missing = missing - size;
        given.push((i, size));
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claimant(class: Class, weight: u32, charge: u64, lowest: u64, fullest: u64) -> Claimant {
        let [charge, lowest, fullest] = [charge, lowest, fullest].map(Bytes::mib);
        Claimant { name: VmName::from("a"), class, weight, charge, lowest, fullest }
    }

    fn mib(sizes: &[Bytes]) -> Vec<u64> {
        sizes.iter().map(|s| s.as_mib()).collect()
    }

    #[test]
    fn with_enough_for_all_each_gets_what_it_needs() {
        let all = [claimant(Class::Low, 1, 500, 100, 300), claimant(Class::High, 900, 500, 100, 200)];
        assert_eq!(mib(&shares(Bytes::mib(500), &all)), [300, 200]);
        assert_eq!(mib(&shares(Bytes::mib(9_000), &all)), [300, 200], "and no more");
    }

    #[test]
    fn among_equals_the_weights_divide_and_what_one_cannot_use_goes_to_the_others() {
        let all = [
            claimant(Class::Normal, 100, 0, 0, 1000),
            claimant(Class::Normal, 200, 0, 0, 1000),
            claimant(Class::Normal, 300, 0, 0, 1000),
        ];
        assert_eq!(mib(&shares(Bytes::mib(600), &all)), [100, 200, 300]);
        let all = [all[0].clone(), all[1].clone(), claimant(Class::Normal, 300, 0, 0, 90)];
        assert_eq!(mib(&shares(Bytes::mib(390), &all)), [100, 200, 90]);
    }

    #[test]
    fn guarantees_come_first_then_classes() {
        let all = [
            claimant(Class::Low, 100, 0, 100, 400),
            claimant(Class::High, 100, 0, 100, 400),
            claimant(Class::Normal, 100, 0, 100, 400),
        ];
        // 300 are guaranteed; 300 more fill the highest class, 50 are left for the next.
        assert_eq!(mib(&shares(Bytes::mib(650), &all)), [100, 400, 150]);
        assert_eq!(mib(&shares(Bytes::mib(200), &all)), [100, 100, 100], "what nobody can give up stays");
    }

    #[test]
    fn the_idlest_gives_first_and_a_larger_weight_protects() {
        // Kept 400 each: half idle against a quarter idle.
        let all = [claimant(Class::Normal, 100, 400, 100, 300), claimant(Class::Normal, 100, 400, 100, 200)];
        assert_eq!(tax(Bytes::mib(150), &all), [(1, Bytes::mib(150))]);
        assert_eq!(tax(Bytes::mib(250), &all), [(1, Bytes::mib(200)), (0, Bytes::mib(50))]);
        assert_eq!(tax(Bytes::mib(999), &all), [(1, Bytes::mib(200)), (0, Bytes::mib(100))]);
        // Price: 100 / (300 + 4 x 100) = 1/7 against 200 / (200 + 4 x 200) = 1/5.
        let all = [all[0].clone(), claimant(Class::Normal, 200, 400, 100, 200)];
        assert_eq!(tax(Bytes::mib(50), &all), [(0, Bytes::mib(50))]);
    }

    fn any_claimant() -> impl Strategy<Value = Claimant> {
        (0usize..3, 1u32..=10_000, 0u64..4096, 0u64..2048, 0u64..4096).prop_map(
            |(class, weight, charge, lowest, more)| {
                claimant([Class::Low, Class::Normal, Class::High][class], weight, charge, lowest, lowest + more)
            },
        )
    }

    proptest! {
        #[test]
        fn no_share_is_out_of_bounds_and_the_sum_fits(
            all in proptest::collection::vec(any_claimant(), 0..24), budget in 0u64..65_536,
        ) {
            let budget = Bytes::mib(budget);
            let shares = shares(budget, &all);
            let lowest: Bytes = all.iter().map(|c| c.lowest).sum();
            prop_assert!(shares.iter().copied().sum::<Bytes>() <= budget.max(lowest));
            for (c, share) in all.iter().zip(&shares) {
                prop_assert!(*share >= c.lowest && *share <= c.fullest.max(c.lowest));
            }
        }

        /// The unfairness figure: among VMs of one class that are bound by nothing else, size / weight is the same to
        /// 1 % (the level is a whole number of bytes per weight).
        #[test]
        fn among_the_unbound_of_a_class_shares_follow_weights(
            all in proptest::collection::vec(any_claimant(), 2..24), budget in 0u64..65_536,
        ) {
            let shares = shares(Bytes::mib(budget), &all);
            for class in [Class::Low, Class::Normal, Class::High] {
                let levels: Vec<f64> = all.iter().zip(&shares)
                    .filter(|(c, s)| c.class == class && **s > c.lowest && **s < c.fullest && s.as_mib() > 0)
                    .map(|(c, s)| s.0 as f64 / f64::from(c.weight)).collect();
                for level in &levels {
                    prop_assert!((level / levels[0] - 1.0).abs() < 0.01, "{levels:?}");
                }
            }
        }

        #[test]
        fn the_tax_takes_idle_memory_only_and_no_more_than_needed(
            all in proptest::collection::vec(any_claimant(), 0..24), goal in 0u64..65_536,
        ) {
            let goal = Bytes::mib(goal);
            let taken = tax(goal, &all);
            let sum: Bytes = taken.iter().map(|t| t.1).sum();
            let idle: Bytes = all.iter().map(Claimant::idle).sum();
            prop_assert_eq!(sum, goal.min(idle));
            for (i, size) in taken {
                prop_assert!(size <= all[i].idle());
            }
        }
    }
}
