//! Promise P8: whatever a model says, P1 to P7 and P10 hold. The judge in `sim` watches every order, as in `promises.rs`.

mod sim;

use ballast_planner::{Action, Mode, Planner, Reason, VmName, VmStatus};
use ballast_protocol::{Bytes, Micros};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use sim::World;
use sim::guest::{Guest, Temper};
use sim::oracle::{ALL, Oracle};

/// How many worlds each promise is tried in: `BALLAST_CASES` as in `promises.rs`. Each is longer, because a model has to
/// be tried before it can do harm.
fn config() -> ProptestConfig {
    let cases = std::env::var("BALLAST_CASES").map_or(Ok(48), |text| text.parse());
    let seed = std::env::var("BALLAST_SEED").map_or(Ok(1), |text| text.parse());
    ProptestConfig {
        cases: cases.expect("BALLAST_CASES is a whole number"),
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed.expect("BALLAST_SEED is a whole number")),
        ..ProptestConfig::default()
    }
}

/// Long enough for still guests to come to rest, and for a model to be tried on them.
const STILL: Micros = Micros::secs(75);
const LONG: Micros = Micros::secs(50);

/// Guests that hold still until the model has been tried, and then do what is in their temper.
fn settle(world: &mut World) {
    world.guests.iter_mut().for_each(Guest::hold_still);
    world.run(STILL);
    let now = world.now;
    world.guests.iter_mut().for_each(|guest| guest.stir(now));
}

fn run(world: &mut World) {
    settle(world);
    world.run(LONG);
}

/// Orders and answers, without the numbers that all VMs share.
fn about(world: &World, vm: &VmName) -> Vec<String> {
    let about = |(at, action): &(Micros, Action)| match action {
        Action::Order { vm: whose, target, from, pace, reason, .. } if whose == vm => {
            Some(format!("{at:?} {target:?} {from:?} {pace:?} {reason:?}"))
        }
        Action::Answer { vm: whose, demand, verdict } if whose == vm => Some(format!("{at:?} {demand} {verdict:?}")),
        _ => None,
    };
    world.actions.iter().filter_map(about).collect()
}

fn followed(world: &World) -> usize {
    let foreseen = |reason: &Reason| matches!(reason, Reason::ForeseenSpare { .. } | Reason::ForeseenNeed(_));
    world.actions.iter().filter(|(_, a)| matches!(a, Action::Order { reason, .. } if foreseen(reason))).count()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn p8_no_model_breaks_a_promise(seed: u64, which in 0..ALL.len(), malicious: bool) {
        let temper = if malicious { Temper::Malicious } else { Temper::Troubled };
        run(&mut World::foretold(seed >> 1, 3, temper, ALL[which]));
    }

    #[test]
    fn p8_no_model_overruns_the_budget(seed: u64, which in 0..ALL.len(), percent in 20u64..120) {
        let guests = World::foretold(seed >> 1, 4, Temper::Troubled, ALL[which]).guests;
        let most: Bytes = guests.iter().map(|g| g.max).sum();
        let mut world = World::within(most.share(percent, 100), guests);
        world.oracle = Some((ALL[which], 4));
        run(&mut world);
    }

    #[test]
    fn p8_a_mad_model_of_one_vm_changes_nothing_for_the_others(seed: u64, which in 0..ALL.len()) {
        let mut mad = World::foretold(seed >> 1, 3, Temper::Troubled, ALL[which]);
        let mut none = World::foretold(seed >> 1, 3, Temper::Troubled, ALL[which]);
        (mad.oracle, none.oracle) = (Some((ALL[which], 1)), None);
        run(&mut mad);
        run(&mut none);
        for guest in &none.guests[1..] {
            prop_assert_eq!(about(&mad, &guest.name), about(&none, &guest.name));
        }
    }

    #[test]
    fn p8_the_same_forecasts_give_the_same_actions_even_through_serde(seed: u64, which in 0..ALL.len(), cut in 1u64..49) {
        let worlds = [false, true].map(|interrupted| {
            let mut world = World::foretold(seed >> 1, 2, Temper::Troubled, ALL[which]);
            settle(&mut world);
            world.run(Micros::secs(cut));
            if interrupted {
                let text = serde_json::to_string(&world.planner).expect("the planner serialises");
                let read = serde_json::from_str::<Planner>(&text).expect("and comes back");
                world.planner = read;
            }
            world.run(Micros::secs(20));
            world.actions.iter().map(|a| serde_json::to_string(a).expect("actions serialise")).collect::<Vec<_>>()
        });
        prop_assert_eq!(&worlds[0], &worlds[1]);
    }

    #[test]
    fn p8_with_the_most_careless_model_a_spike_kills_nobody(seed: u64, rate in 50u64..=240) {
        for oracle in [Oracle::Zero, Oracle::OtherSizes, Oracle::Wavering] {
            let mut world = World::foretold(seed >> 1, 3, Temper::Sound, oracle);
            world.guests.iter_mut().for_each(Guest::hold_still);
            world.run(STILL + LONG);
            prop_assert!(followed(&world) > 0, "{oracle:?}");
            for guest in &mut world.guests {
                let goal = guest.total() - Bytes::mib(30);
                guest.spike(goal, rate);
            }
            world.run(Micros::secs(15));
            for guest in &world.guests {
                prop_assert_eq!(guest.oom_kills, 0, "{} was killed in, by {:?}", &guest.name, oracle);
                prop_assert_eq!(guest.self_deflations, 0, "{} needed the last resort, by {:?}", &guest.name, oracle);
            }
        }
    }

    /// What cannot be used leaves no trace, and neither does what is only shadowed.
    #[test]
    fn p8_without_a_usable_forecast_the_law_stands_alone(seed: u64, which in 0..ALL.len()) {
        let oracle = ALL[which];
        let mut told = World::foretold(seed >> 1, 3, Temper::Troubled, oracle);
        if !oracle.is_useless() {
            let mut guests = World::fleet(seed >> 1, 3, Temper::Troubled).guests;
            guests.iter_mut().for_each(|g| g.settings.predictor = Mode::Shadow);
            told = World::new(guests);
            told.oracle = Some((oracle, 3));
        }
        let mut plain = World::fleet(seed >> 1, 3, Temper::Troubled);
        run(&mut told);
        run(&mut plain);
        prop_assert_eq!(followed(&told), 0);
        for guest in &plain.guests {
            prop_assert_eq!(about(&told, &guest.name), about(&plain, &guest.name), "{:?}", oracle);
        }
    }
}

fn calm(oracle: Option<Oracle>) -> World {
    let guests = (0..3).map(|i| {
        let mut guest = Guest::new(&format!("vm{i}"), 7 + i, Temper::Sound, Bytes::mib(512));
        guest.settings.predictor = Mode::On;
        guest.hold_still();
        guest
    });
    let mut world = World::new(guests.collect());
    world.oracle = oracle.map(|oracle| (oracle, 3));
    world.run(Micros::secs(150));
    world
}

fn kept(world: &World) -> u64 {
    world.guests.iter().map(Guest::kept).sum::<Bytes>().as_mib()
}

/// A judge who sees no forecast followed proves nothing.
#[test]
fn a_model_that_foresees_no_loss_saves_half_of_each_headroom_and_says_so() {
    let (plain, told) = (calm(None), calm(Some(Oracle::Zero)));
    assert!(followed(&told) >= 3, "{:?}", told.actions);
    let saved = kept(&plain) - kept(&told);
    assert!((60..=120).contains(&saved), "{saved} MiB of three headrooms of 64");
    let reason = told.actions.iter().find_map(|(_, a)| match a {
        Action::Order { reason: reason @ Reason::ForeseenSpare { .. }, .. } => Some(reason.to_string()),
        _ => None,
    });
    let reason = reason.expect("something was taken because of a forecast");
    assert!(reason.contains("at most 0.00 % of the next 10 s are lost"), "{reason}");
    let vm = told.planner.vm(&told.guests[0].name).expect("known");
    let status = VmStatus::of(&told.guests[0].name, vm, told.now).forecast.expect("there are forecasts");
    assert!(status.used && status.judged > 30 && status.missed == 0, "{status:?}");
    assert_eq!(status.headroom, Some(Bytes::mib(32)));
}

#[test]
fn the_greediest_model_gets_a_quarter_of_a_vm_and_no_more() {
    let (plain, told) = (calm(None), calm(Some(Oracle::Greedy)));
    let more = kept(&told) - kept(&plain);
    assert!(more <= 3 * (128 - 64 + 6), "{more} MiB");
    assert!(followed(&told) > 0);
}
