//! What holds while another law than ours rules, whatever that law wants and whatever happens to its VMs.

mod one;
mod sim;

use ballast_planner::{
    Action, Facts, HeadroomSettings, Holding, HostMemory, Input, LawName, LawSettings, Notice, Planner, Reason,
    Statistics, ThresholdSettings, VmName, VmSettings,
};
use ballast_protocol::{Bytes, Micros, Shortfall, Source, Verdict};
use one::{MAX, One, facts, notices, orders, vm};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use sim::World;
use sim::guest::{Guest, Temper};

const fn m(n: u64) -> Bytes {
    Bytes::mib(n)
}

/// All of them. Two floors are lowered, or small guests would never be moved and nothing would be tested.
fn laws() -> Vec<LawSettings> {
    vec![
        LawSettings::Threshold(ThresholdSettings { threshold: m(40), ..Default::default() }),
        LawSettings::Mom(Default::default()),
        LawSettings::Proxmox(Default::default()),
        LawSettings::Headroom(HeadroomSettings { floor: m(128), least_step: m(16), ..Default::default() }),
        LawSettings::Drs(Default::default()),
        LawSettings::Fixed,
        LawSettings::Static,
    ]
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() }
}

fn fleet(seed: u64, count: usize, temper: Temper) -> Vec<Guest> {
    let guest = |i: usize| {
        let mut guest = Guest::new(&format!("vm{i}"), seed + 1000 * i as u64, temper, m([512, 1024, 256, 512][i % 4]));
        guest.settings.fixed_size = Some(guest.max.share(3, 5));
        guest.settings.shares = [1000, 500, 0, 2000][i % 4];
        guest
    };
    (0..count).map(guest).collect()
}

/// What they have together is a tenth more than the host has.
fn tight(guests: &[Guest]) -> Bytes {
    guests.iter().map(|g| g.max).sum::<Bytes>().share(10, 11)
}

fn under(law: &LawSettings, guests: Vec<Guest>) -> World {
    World::under(law.clone(), tight(&guests), guests)
}

fn lines(actions: &[(Micros, Action)]) -> Vec<String> {
    actions.iter().map(|a| serde_json::to_string(a).expect("actions serialise")).collect()
}

proptest! {
    #![proptest_config(config(25))]

    /// The judge in `sim` watches every order: minimum, maximum, exempt, paused, unreachable, stale, demands answered.
    #[test]
    fn the_hard_bounds_hold_under_every_law(seed: u64, count in 1usize..=5) {
        for law in laws() {
            under(&law, fleet(seed >> 1, count, Temper::Troubled)).run(Micros::secs(60));
        }
    }

    #[test]
    fn guests_that_say_anything_break_no_bound(seed: u64) {
        for law in laws() {
            under(&law, fleet(seed >> 1, 3, Temper::Malicious)).run(Micros::secs(60));
        }
    }

    #[test]
    fn p7_a_law_goes_on_from_its_snapshot(seed: u64, cut in 1u64..40) {
        for law in laws() {
            let runs = [false, true].map(|interrupted| {
                let mut world = under(&law, fleet(seed >> 1, 3, Temper::Troubled));
                world.run(Micros::secs(cut));
                if interrupted {
                    let text = serde_json::to_string(&world.planner).expect("the planner serialises");
                    let back: Planner = serde_json::from_str(&text).expect("and comes back");
                    // Actions are handed out at once; nothing else may be missing.
                    assert_eq!(back, world.planner);
                    world.planner = back;
                }
                world.run(Micros::secs(30));
                lines(&world.actions)
            });
            prop_assert_eq!(&runs[0], &runs[1], "{}", law.name());
        }
    }
}

#[test]
fn every_law_but_static_takes_on_a_tight_host_and_says_why() {
    for law in laws() {
        let mut world = under(&law, fleet(7, 4, Temper::Sound));
        for guest in &mut world.guests {
            guest.hold_still();
        }
        world.run(Micros::secs(60));
        let by_law = world.actions.iter().filter_map(|(_, a)| match a {
            Action::Order { reason: Reason::Law { law, why }, .. } => Some((*law, why.clone())),
            _ => None,
        });
        let by_law: Vec<_> = by_law.collect();
        assert_eq!(world.takings > 0, law.name() != LawName::Static, "{}", law.name());
        assert!(by_law.iter().all(|(name, why)| *name == law.name() && why.contains(char::is_numeric)), "{by_law:?}");
        let others = world.actions.iter().filter(|(_, a)| {
            matches!(a, Action::Order { reason, .. } if !matches!(reason, Reason::Law { .. } | Reason::Adopted))
        });
        assert_eq!(others.count(), 0, "{}: no reaction of ours", law.name());
    }
}

/// P6, as far as it can hold where VMs share a host: one VM without statistics, exempt or malicious stops no law.
#[test]
fn one_bad_vm_stops_no_law_for_the_others() {
    type Spoil = fn(&mut Guest);
    let spoils: [(&str, Spoil); 3] = [
        ("exempt", |g| g.settings.exempt = true),
        ("paused", |g| g.running = false),
        ("malicious", |g| g.temper = Temper::Malicious),
    ];
    for law in laws().into_iter().filter(|l| l.name() != LawName::Static) {
        for (what, spoil) in spoils {
            let mut guests = fleet(7, 4, Temper::Sound);
            guests.iter_mut().skip(1).for_each(Guest::hold_still);
            spoil(&mut guests[0]);
            let mut world = under(&law, guests);
            world.run(Micros::secs(60));
            let moved = |vm: &VmName| *vm != VmName::from("vm0");
            let orders = world
                .actions
                .iter()
                .filter(|(_, a)| matches!(a, Action::Order { vm, reason: Reason::Law { .. }, .. } if moved(vm)));
            assert!(orders.count() > 0, "{}: vm0 is {what}", law.name());
        }
    }
}

impl One {
    /// A VM of 512 MiB without an agent that keeps all of it, under a law.
    fn ruled(law: LawSettings) -> Self {
        let (mut one, _) = Self::found(facts(MAX), VmSettings { fixed_size: Some(m(300)), ..VmSettings::default() });
        one.hand(Input::Law { law });
        one
    }

    fn statistics(&mut self, free: u64) -> Vec<Action> {
        let (free, total) = (Some(m(free)), Some(m(469)));
        let statistics = Statistics { free, available: free, total, swap_in: None, age: Micros::ZERO };
        self.hand(Input::Statistics { vm: vm(), statistics })
    }

    fn host(&mut self, available: u64) {
        let host = HostMemory { total: m(1000), available: m(available), psi_some_avg10: None };
        assert_eq!(self.hand(Input::Host(host)), []);
    }
}

fn why(order: &(Bytes, Reason)) -> &str {
    match &order.1 {
        Reason::Law { why, .. } => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_demand_is_answered_and_nothing_is_given() {
    let mut one = One::ruled(LawSettings::Fixed);
    one.hello();
    let answer = |actions: Vec<Action>| match &actions[..] {
        [Action::Answer { demand: 1, verdict, .. }] => *verdict,
        other => panic!("{other:?}"),
    };
    assert_eq!(answer(one.demand(Source::Slack, m(64))), Verdict::Refused(Shortfall::AtMaximum));
    one.statistics(300);
    assert_eq!(orders(&one.wait(Micros::secs(5)))[0].0, m(300));
    one.follow(m(300));
    for source in [Source::Slack, Source::Reserve] {
        assert_eq!(answer(one.demand(source, m(64))), Verdict::Refused(Shortfall::Held));
    }
    assert_eq!(one.planner.vm(&vm()).expect("known").leases.len(), 0, "nothing is promised");
}

#[test]
fn our_own_reactions_are_off() {
    let rest = m(256);
    let (mut one, _) = One::found(facts(rest), VmSettings::default());
    one.hand(Input::Law { law: LawSettings::Static });
    one.hello();
    one.report();
    // No refill although next to nothing is free, nothing given for a kill.
    (one.report.free, one.report.giveable) = (m(1), m(0));
    one.report.counters.oom_kill = Some(3);
    let actions = one.report();
    assert_eq!((orders(&actions), notices(&actions)), (vec![], vec![Notice::OomKills(3)]));
    // Nothing is taken either.
    (one.report.free, one.report.giveable) = (m(200), m(190));
    assert_eq!(orders(&one.idle(60)), []);
    // A balloon that lets go is counted.
    let actions = one.balloon(rest + m(40));
    assert_eq!((orders(&actions), notices(&actions)), (vec![], vec![Notice::SelfDeflated(m(40))]));
    // Nothing is given back to a guest whose agent has gone, and it is free to come back.
    one.hand(Input::AgentLost { vm: vm(), why: "gone".into() });
    assert_eq!(orders(&one.wait(Micros::secs(100))), []);
    assert_eq!(one.holding(), Holding::Ruled(LawName::Static));
}

#[test]
fn an_order_that_is_not_followed_stands_and_is_told_again() {
    let mut one = One::ruled(LawSettings::Fixed);
    one.statistics(300);
    assert_eq!(orders(&one.wait(Micros::secs(5)))[0].0, m(300));
    assert_eq!(one.holding(), Holding::Moving);
    one.balloon(m(450));
    // 4 s and 212 MiB at 15 MiB/s: 18.1 s; it is not told again before.
    let mut actions = Vec::new();
    for _ in 0..9 {
        one.statistics(100);
        actions.extend(one.wait(Micros::secs(2)));
    }
    assert_eq!(orders(&actions), []);
    one.statistics(100);
    let later = one.wait(Micros::secs(5));
    assert_eq!((orders(&later).len(), orders(&later)[0].0), (1, m(300)), "its size again");
    assert_eq!(notices(&later), [], "not undone, not blocked");
    assert_eq!(one.planner.vm(&vm()).expect("known").counts.stalled, 1);
    // What it gives now, late, is no letting go.
    assert_eq!(notices(&one.balloon(m(430))), []);
}

#[test]
fn the_newest_order_wins() {
    let mut one = One::ruled(LawSettings::Proxmox(Default::default()));
    let round = |one: &mut One, available| {
        let moves = (0..5).flat_map(|_| {
            one.host(available);
            one.statistics(300);
            orders(&one.wait(Micros::secs(2)))
        });
        moves.collect::<Vec<_>>()
    };
    // Used 900 of 1000, goal -100: 64 + (512 - 64) - 100 = 412.
    let given = round(&mut one, 100);
    assert_eq!(given.iter().map(|o| o.0).collect::<Vec<_>>(), [m(412)]);
    assert!(why(&given[0]).starts_with("900 MiB of the host's 1000 MiB used, 80 % wanted"), "{}", why(&given[0]));
    one.balloon(m(480));
    // On its way the host has room again: goal +50. It has free memory, but nobody else is there: 64 + 416 + 50, its
    // maximum.
    let given = round(&mut one, 250);
    assert_eq!(given.iter().map(|o| o.0).collect::<Vec<_>>(), [MAX]);
    assert_eq!(one.planner.vm(&vm()).expect("known").counts.stalled, 0);
}

#[test]
fn nothing_is_taken_on_stale_figures_of_guest_or_host() {
    // Of the guest: an hour without statistics.
    let mut one = One::ruled(LawSettings::Fixed);
    assert_eq!(orders(&one.wait(Micros::secs(3_600))), []);
    let old = Statistics { free: Some(m(300)), age: Micros::secs(16), ..Statistics::default() };
    one.hand(Input::Statistics { vm: vm(), statistics: old });
    assert_eq!(orders(&one.wait(Micros::secs(5))), []);
    // Growing needs none.
    one.balloon(m(200));
    let mut one = One::ruled(LawSettings::Fixed);
    one.facts.actual = m(200);
    one.planner = Planner::new();
    one.described();
    one.hand(Input::Law { law: LawSettings::Fixed });
    assert_eq!(orders(&one.wait(Micros::secs(5)))[0].0, m(300));
    // Of the host: the last reading is 6 s old when the round comes.
    let mut one = One::ruled(LawSettings::Proxmox(Default::default()));
    one.host(100);
    one.statistics(300);
    one.wait(Micros::secs(4));
    one.statistics(300);
    assert_eq!(orders(&one.wait(Micros::secs(6))), []);
}

#[test]
fn exempt_and_missing_deflate_on_oom_give_everything_back_except_under_static() {
    for (law, gives) in [(LawSettings::Fixed, true), (LawSettings::Static, false)] {
        for exempt in [true, false] {
            let facts = Facts { deflate_on_oom: Some(exempt), ..facts(m(256)) };
            let settings = VmSettings { exempt, fixed_size: Some(m(100)), ..VmSettings::default() };
            let (mut one, _) =
                One::found(facts, VmSettings { allow_without_deflate_on_oom: true, ..VmSettings::default() });
            one.settings = settings;
            one.hand(Input::Law { law: law.clone() });
            one.statistics(200);
            let mut given = orders(&one.described());
            given.extend(orders(&one.wait(Micros::secs(10))));
            let expected: Vec<_> = if gives { vec![(MAX, Reason::Exempt)] } else { vec![] };
            assert_eq!(given, expected, "{law:?}, exempt: {exempt}");
        }
    }
    // The operator may allow it all the same.
    let facts = Facts { deflate_on_oom: Some(false), ..facts(MAX) };
    let settings = VmSettings { allow_without_deflate_on_oom: true, fixed_size: Some(m(300)), ..VmSettings::default() };
    let (mut one, _) = One::found(facts, settings);
    one.hand(Input::Law { law: LawSettings::Fixed });
    one.statistics(300);
    assert_eq!(orders(&one.wait(Micros::secs(5)))[0].0, m(300));
}

#[test]
fn a_refusing_hypervisor_is_not_asked_at_once_again() {
    let mut one = One::ruled(LawSettings::Fixed);
    one.statistics(300);
    let actions = one.wait(Micros::secs(5));
    let Some(Action::Order { order, .. }) = actions.iter().find(|a| matches!(a, Action::Order { .. })) else {
        panic!()
    };
    let refused = Input::Ordered { vm: vm(), order: *order, error: Some("no".into()) };
    assert_eq!(orders(&one.hand(refused)), []);
    assert_eq!(one.aim(), MAX);
    assert_eq!(orders(&one.wait(Micros::secs(5)))[0].0, m(300), "the next round asks again");
}

#[test]
fn the_budget_is_what_the_vms_leave_of_it() {
    let mut one = One::ruled(LawSettings::Mom(Default::default()));
    assert_eq!(one.planner.host_memory(one.now), None);
    one.host(700);
    let kernel = one.planner.host_memory(one.now).expect("just read");
    assert_eq!((kernel.total, kernel.available), (m(1000), m(700)));
    one.hand(Input::Pool { budget: Some(m(600)), reserve: None });
    let budget = |one: &One| one.planner.host_memory(one.now).map(|h| (h.total, h.available, h.psi_some_avg10));
    assert_eq!(budget(&one), Some((m(600), m(88), None)), "whatever the kernel says");
    one.balloon(m(400));
    assert_eq!(budget(&one), Some((m(600), m(200), None)));
    one.hand(Input::Pool { budget: Some(m(100)), reserve: None });
    assert_eq!(budget(&one), Some((m(100), Bytes::ZERO, None)), "overrun");
}

#[test]
fn a_change_of_law_moves_nothing_by_itself() {
    let mut one = One::quiet_at(m(256));
    (one.report.free, one.report.giveable) = (m(70), m(60));
    one.report();
    let law = |law| Input::Law { law };
    for other in laws() {
        let name = other.name();
        assert_eq!(orders(&one.hand(law(other))), [], "to {name}");
        one.statistics(100);
        one.report();
        assert_eq!(orders(&one.hand(law(LawSettings::Ballast))), [], "from {name}");
        assert_eq!(orders(&one.wait(Micros::millis(500))), [], "it has to be quiet first");
    }
    // What another law has taken too much is refilled by ours at once, if the guest has said so.
    one.hand(law(LawSettings::Fixed));
    (one.report.free, one.report.giveable) = (m(10), m(0));
    assert_eq!(orders(&one.report()), []);
    let given = orders(&one.hand(law(LawSettings::Ballast)));
    assert!(matches!(&given[..], [(_, Reason::Refill)]), "{given:?}");
}

#[test]
fn an_order_under_way_survives_a_change_of_law() {
    let mut one = One::ruled(LawSettings::Fixed);
    one.statistics(300);
    assert_eq!(orders(&one.wait(Micros::secs(5)))[0].0, m(300));
    one.hand(Input::Law { law: LawSettings::Ballast });
    assert_eq!(one.aim(), m(300));
    // It stalls: by our law it is undone.
    one.balloon(m(450));
    let undone = orders(&one.wait(Micros::secs(20)));
    assert_eq!(undone[0], (m(466), Reason::Stalled));
}
