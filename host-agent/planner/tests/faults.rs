//! What the planner does when something fails, lies or falls silent, case by case.

mod one;

use ballast_planner::{Action, Facts, Holding, Input, LawName, LawSettings, Notice, Reason, Statistics, VmSettings};
use ballast_protocol::{
    Bytes, Counters, GuestMessage, Hello, Micros, Pressure, Reclaimed, Relief, Shortfall, Source, Telemetry, Verdict,
    Watermarks,
};
use one::{MAX, One, facts, hello, notices, orders, vm};

#[test]
fn a_balloon_that_lets_go_by_itself_gets_more_and_is_left_alone() {
    let mut one = One::quiet_at(Bytes::mib(256));
    one.report();
    one.wait(Micros::secs(1));
    let actions = one.balloon(Bytes::mib(300));
    assert_eq!(notices(&actions), [Notice::SelfDeflated(Bytes::mib(44))]);
    assert_eq!(orders(&actions), [(Bytes::mib(364), Reason::SelfDeflated)]);
    assert_eq!(orders(&one.idle(1)).len(), 0);
}

#[test]
fn a_balloon_that_lets_go_while_it_is_to_give_is_helped_at_once() {
    let mut one = One::quiet();
    let target = orders(&one.report())[0].0;
    one.follow(target);
    orders(&one.report());
    assert!(one.aim() < target, "the second step is under way");
    let actions = one.balloon(Bytes::mib(500));
    assert_eq!(orders(&actions), [(MAX, Reason::SelfDeflated)]);
}

#[test]
fn memory_comes_back_within_eighty_seconds_of_the_agents_death() {
    let mut one = One::quiet_at(Bytes::mib(64));
    one.report();
    let mut given = one.hand(Input::AgentLost { vm: vm(), why: "gone".to_owned() });
    assert_eq!(notices(&given).len(), 1);
    let began = one.now;
    while one.aim() < MAX {
        given.extend(one.wait(Micros::secs(1)));
        let aim = one.aim();
        one.balloon(aim);
        assert!(one.now <= began + Micros::secs(80));
    }
    let given = orders(&given);
    assert!(given.windows(2).all(|w| w[0].0 < w[1].0) && given.len() == 14, "step by step: {given:?}");
}

#[test]
fn an_agent_that_falls_silent_is_given_up_and_taken_back_when_it_speaks() {
    let mut one = One::quiet_at(Bytes::mib(256));
    one.report();
    let actions = one.wait(Micros::millis(2_999));
    assert_eq!(notices(&actions), []);
    let actions = one.wait(Micros::millis(1));
    assert!(matches!(&notices(&actions)[..], [Notice::AgentSilent(_)]));
    assert!(matches!(&orders(&actions)[..], [(_, Reason::Decay)]));
    one.report();
    let later = orders(&one.idle(10));
    assert!(later.iter().all(|o| o.1 != Reason::Decay), "its session was never closed: {later:?}");
    // A session that was closed is over, whatever still trickles in.
    one.hand(Input::AgentLost { vm: vm(), why: "closed".to_owned() });
    one.report();
    assert!(orders(&one.wait(Micros::secs(6))).iter().any(|o| o.1 == Reason::Decay));
}

#[test]
fn a_lost_hypervisor_does_not_keep_the_planner_busy() {
    let mut one = One::quiet_at(Bytes::mib(256));
    one.hand(Input::AgentLost { vm: vm(), why: "gone".to_owned() });
    one.hand(Input::HypervisorLost { vm: vm() });
    one.wait(Micros::secs(60));
    assert!(one.planner.deadline().is_none_or(|due| due > one.now + Micros::millis(100)));
    let back = orders(&one.balloon(Bytes::mib(200)));
    assert_eq!(back[0], (Bytes::mib(200), Reason::Adopted), "an order that was half done ends: {back:?}");
}

#[test]
fn a_paused_vm_is_neither_silent_nor_taken_from() {
    for by_facts in [false, true] {
        let mut one = One::quiet();
        let run = |one: &mut One, running| {
            if by_facts {
                one.facts.running = running;
                one.described()
            } else {
                one.hand(Input::Running { vm: vm(), running })
            }
        };
        run(&mut one, false);
        let actions = one.wait(Micros::secs(60));
        assert_eq!((orders(&actions).len(), notices(&actions).len()), (0, 0));
        let actions = run(&mut one, true);
        assert_eq!(notices(&actions), [], "it had no chance to speak");
        assert!(!orders(&one.idle(5)).is_empty());
    }
}

#[test]
fn a_stalled_inflation_while_paused_is_not_the_guests_fault() {
    let mut one = One::quiet();
    one.report();
    one.hand(Input::Running { vm: vm(), running: false });
    assert_eq!(notices(&one.wait(Micros::secs(60))), []);
    one.hand(Input::Running { vm: vm(), running: true });
    assert_eq!(notices(&one.wait(Micros::secs(2))), []);
}

#[test]
fn a_refused_order_is_not_repeated_as_fast_as_it_is_refused() {
    let mut one = One::quiet_at(Bytes::mib(256));
    (one.report.free, one.report.giveable) = (Bytes::mib(10), Bytes::mib(10));
    let mut actions = one.report();
    let began = one.now;
    let mut tries = 0;
    while one.now < began + Micros::secs(3) {
        for action in std::mem::take(&mut actions) {
            if let Action::Order { order, .. } = action {
                tries += 1;
                actions.extend(one.hand(Input::Ordered { vm: vm(), order, error: Some("no".to_owned()) }));
            }
        }
        actions.extend(one.wait(Micros::millis(100)));
        actions.extend(one.report());
    }
    assert!((2..=4).contains(&tries), "{tries} tries in three seconds");
    let given = orders(&one.demand(Source::Slack, Bytes::mib(64)));
    assert_eq!(given.len(), 1, "a demand does not wait");
}

/// An older target can have brought the balloon there, and lead it elsewhere.
#[test]
fn an_order_is_under_way_until_the_hypervisor_has_answered_even_if_the_balloon_is_there_already() {
    let mut one = One::quiet();
    let taken = orders(&one.report())[0].0;
    assert!(taken < MAX);
    let order = one.unanswered();
    one.follow(taken);
    assert_eq!(orders(&one.idle(5)), [], "nothing more is taken");
    assert_eq!(one.holding(), Holding::Moving);
    assert_eq!(one.planner.vm(&vm()).expect("known").charge(), MAX, "nobody else is given what it may keep after all");
    one.hand(Input::Ordered { vm: vm(), order, error: Some("no".to_owned()) });
    assert_eq!(one.aim(), MAX, "what stood before stands");
}

/// Two orders on their way, of which the second is refused: what the first took is owed.
#[test]
fn what_a_refused_giving_left_out_is_given_when_the_operator_lets_go() {
    let mut one = One::quiet();
    let taken = orders(&one.report())[0].0;
    let first = one.unanswered();
    assert_eq!(orders(&one.demand(Source::Slack, Bytes::mib(64))).len(), 1);
    let second = one.unanswered();
    one.hand(Input::Ordered { vm: vm(), order: first, error: None });
    one.hand(Input::Ordered { vm: vm(), order: second, error: Some("no".to_owned()) });
    assert_eq!(one.aim(), MAX, "it may have been told to keep all");
    one.follow(taken);
    one.wait(Micros::secs(2));
    let given = orders(&one.hand(Input::Release { vm: vm() }));
    assert_eq!(given, [(MAX, Reason::Release)]);
}

#[test]
fn the_pieces_of_a_giving_that_came_before_one_was_refused_are_charged() {
    let mut one = One::quiet_at(Bytes::mib(256));
    one.report();
    assert_eq!(orders(&one.demand(Source::Slack, Bytes::mib(200)))[0].0, Bytes::mib(456));
    let order = one.unanswered();
    one.hand(Input::Ordered { vm: vm(), order, error: None });
    one.balloon(Bytes::mib(300));
    one.hand(Input::Ordered { vm: vm(), order, error: Some("no".to_owned()) });
    assert_eq!(one.planner.vm(&vm()).expect("known").charge(), Bytes::mib(456));
}

#[test]
fn after_a_reset_the_old_kernels_figure_is_not_believed() {
    let old = Bytes::mib(200);
    let mut one = One::quiet_at(old);
    one.report();
    let actions = one.hand(Input::Rebooted { vm: vm() });
    assert_eq!(orders(&actions), [(MAX, Reason::Rebooted)], "or the new driver would inflate to the old target");
    let mut actions = one.balloon(old);
    one.report.ballooned = Some(Bytes::ZERO);
    one.hello();
    actions.extend(one.idle(1));
    assert_eq!((orders(&actions), notices(&actions)), (vec![], vec![]));
    // The first real taking brings the hypervisor's figure back to life.
    let taken = orders(&one.idle(1));
    assert_eq!(taken[0].0, Bytes::mib(448));
    let mut actions = one.balloon(old);
    actions.extend(one.wait(Micros::millis(300)));
    assert_eq!(one.holding(), Holding::Moving, "the old figure does not complete the new order");
    actions.extend(one.follow(Bytes::mib(448)));
    assert_eq!((orders(&actions), notices(&actions)), (vec![], vec![]));
    assert_eq!(orders(&one.report())[0].0, Bytes::mib(384));
}

#[test]
fn after_a_reset_a_long_quiet_with_the_old_figure_is_no_lie() {
    let mut one = One::quiet_at(Bytes::mib(200));
    one.report();
    one.hand(Input::Rebooted { vm: vm() });
    one.balloon(Bytes::mib(200));
    one.report.ballooned = Some(Bytes::ZERO);
    (one.report.free, one.report.file) = (Bytes::mib(40), Bytes::mib(10));
    one.hello();
    let actions = one.idle(120);
    assert_eq!((orders(&actions), notices(&actions)), (vec![], vec![]));
    assert!(one.planner.vm(&vm()).expect("known").trust.is_trusted());
}

#[test]
fn after_a_reset_a_balloon_that_comes_to_the_old_size_again_is_believed() {
    let mut one = One::quiet_at(Bytes::mib(448));
    one.report();
    one.hand(Input::Rebooted { vm: vm() });
    one.balloon(Bytes::mib(448));
    one.report.ballooned = Some(Bytes::ZERO);
    one.hello();
    let taken = orders(&one.idle(3));
    assert_eq!(taken[0].0, Bytes::mib(448));
    // The hypervisor's figure does not change; the guest's does.
    one.follow(Bytes::mib(448));
    one.report();
    assert_eq!(notices(&one.idle(3)), []);
    assert!(one.aim() < Bytes::mib(448), "it goes on from there");
}

#[test]
fn extreme_settings_and_facts_always_come_to_a_decision() {
    let sizes = [Bytes::ZERO, Bytes(1), Bytes::mib(64), MAX, Bytes::MAX];
    for max in sizes {
        for min in sizes {
            for other in sizes {
                for bits in 0..8 {
                    let (balloon, exempt, lost) = (bits & 1 == 0, bits & 2 == 0, bits & 4 == 0);
                    let settings =
                        VmSettings { min, max: other, step: other, headroom: min, exempt, ..VmSettings::default() };
                    let facts = Facts { max, actual: min, balloon, ..facts(MAX) };
                    let (mut one, _) = One::found(facts, settings);
                    one.hello();
                    one.report();
                    if lost {
                        one.hand(Input::AgentLost { vm: vm(), why: String::new() });
                    }
                    one.wait(Micros::secs(6));
                    one.facts.max = other;
                    one.described();
                    one.demand(Source::Reserve, other);
                    one.wait(Micros::secs(6));
                    // The end of time.
                    one.now = Micros::MAX;
                    one.hand(Input::Wake);
                    one.report();
                    one.hand(Input::HypervisorLost { vm: vm() });
                    one.described();
                }
            }
        }
    }
}

#[test]
fn the_most_extreme_words_of_a_guest_do_no_harm() {
    const ALL: Bytes = Bytes::MAX;
    let all = Telemetry {
        seq: u64::MAX,
        at: Micros::MAX,
        total: ALL,
        free: ALL,
        available: ALL,
        file: ALL,
        dirty: ALL,
        anon: ALL,
        shmem: ALL,
        committed: ALL,
        swap_total: ALL,
        swap_free: ALL,
        watermarks: Watermarks { min: ALL, low: ALL, high: ALL },
        giveable: ALL,
        ballooned: Some(ALL),
        pending: ALL,
        memory_pressure: Some(Pressure { some: Micros::MAX, full: Micros::MAX }),
        io_pressure: None,
        counters: Counters { oom_kill: Some(u64::MAX), alloc_stall: Some(u64::MAX), ..Counters::default() },
        agent_cpu: Micros::MAX,
    };
    let mut one = One::quiet_at(Bytes::mib(256));
    one.report();
    let sound = one.report.clone();
    for round in 0..20 {
        // Now all of it, now only what a sound report may hold as well.
        one.report = if round % 2 == 0 {
            all.clone()
        } else {
            Telemetry { counters: all.counters, memory_pressure: all.memory_pressure, pending: ALL, ..sound.clone() }
        };
        one.report();
        one.demand(Source::Reserve, ALL);
        one.says(GuestMessage::Reclaimed(Reclaimed { id: round, size: ALL, exhausted: false }));
        one.says(GuestMessage::Relief(Relief {
            id: 1,
            sign: Micros::ZERO,
            answered: Micros::MAX,
            first_mib: Some(Micros::MAX),
        }));
        one.says(GuestMessage::Withdraw { id: u64::MAX });
        one.wait(Micros::secs(1));
        assert!(one.aim() <= MAX);
    }
    let statistics =
        Statistics { free: Some(ALL), available: Some(ALL), total: Some(ALL), swap_in: Some(ALL), age: Micros::MAX };
    one.hand(Input::Statistics { vm: vm(), statistics });
    one.balloon(Bytes::MAX);
    one.wait(Micros::secs(5));
    assert!(one.aim() <= MAX);
}

#[test]
fn a_reserve_that_ends_a_silence_is_a_lease() {
    let mut one = One::quiet_at(Bytes::mib(256));
    (one.report.free, one.report.giveable) = (Bytes::mib(100), Bytes::mib(80));
    one.report();
    one.wait(Micros::secs(4));
    let before = one.aim();
    assert!(before > Bytes::mib(256), "given up");
    one.follow(before);
    one.demand(Source::Reserve, Bytes::mib(100));
    let leased = one.aim();
    assert!(leased >= before + Bytes::mib(100));
    one.follow(leased);
    let later = orders(&one.idle(20));
    assert_eq!(later, [], "kept for as long as it lasts");
    let mut actions = one.says(GuestMessage::Withdraw { id: 1 });
    actions.extend(one.idle(5));
    assert!(!orders(&actions).is_empty());
}

#[test]
fn a_silence_after_which_all_was_given_back_ends_with_a_word_as_well() {
    let mut one = One::quiet_at(Bytes::mib(256));
    one.report();
    one.wait(Micros::secs(4));
    for _ in 0..80 {
        let aim = one.aim();
        one.balloon(aim);
        one.wait(Micros::secs(1));
    }
    assert_eq!(one.aim(), MAX);
    one.balloon(MAX);
    one.report.ballooned = Some(Bytes::ZERO);
    assert!(orders(&one.idle(5)).iter().any(|o| matches!(o.1, Reason::Spare(_))), "{:?}", one.holding());
}

#[test]
fn a_new_boot_counts_from_zero_even_if_no_reset_was_seen() {
    let mut one = One::quiet_at(Bytes::mib(256));
    one.report.counters.oom_kill = Some(1000);
    one.report.counters.alloc_stall = Some(9000);
    one.report();
    let booted = Hello { boot_id: [1; 16], ..hello(true) };
    one.says(GuestMessage::Hello(booted));
    one.report.counters.oom_kill = Some(3);
    one.report.counters.alloc_stall = Some(5);
    one.wait(Micros::millis(100));
    // Its clock starts again as well.
    let report = Telemetry { at: Micros::secs(1), ..one.report.clone() };
    let actions = one.says(GuestMessage::Telemetry(report));
    assert_eq!(notices(&actions), [], "neither a lie nor three kills");
    assert!(one.planner.vm(&vm()).expect("known").trust.is_trusted());
}

/// Whatever happens to a VM that migrates, nothing is ordered; and afterwards it goes on as if nothing had been.
#[test]
fn nothing_is_ordered_from_a_vm_that_migrates() {
    let migrating = |migrating| Input::Migrating { vm: vm(), migrating };
    let mut one = One::quiet();
    let target = orders(&one.report())[0].0;
    // In the middle of a taking, which is not called stalled however long it takes.
    let mut seen = one.hand(migrating(true));
    seen.extend(one.idle(60));
    assert_eq!(one.holding(), Holding::Migrating);
    assert_eq!(one.planner.vm(&vm()).unwrap().counts.stalled, 0);
    seen.extend(one.balloon(target));
    // Spare memory, a demand, a reset of its settings, a balloon that lets go, an agent that dies and comes back.
    seen.extend(one.idle(10));
    let answered = one.demand(Source::Slack, Bytes::mib(100));
    assert!(matches!(answered[..], [Action::Answer { verdict: Verdict::Refused(Shortfall::Held), .. }]));
    one.settings.exempt = true;
    seen.extend(one.described());
    one.settings.exempt = false;
    seen.extend(one.described());
    seen.extend(one.balloon(target + Bytes::mib(40)));
    seen.extend(one.hand(Input::AgentLost { vm: vm(), why: "gone".to_owned() }));
    seen.extend(one.wait(Micros::secs(20)));
    seen.extend(one.hello());
    seen.extend(one.idle(10));
    seen.extend(one.hand(Input::Release { vm: vm() }));
    assert_eq!(orders(&seen), []);

    // Under another law too.
    let mut ruled = One::quiet();
    ruled.settings.fixed_size = Some(Bytes::mib(300));
    ruled.described();
    let told = |one: &mut One| {
        let statistics = Statistics { free: Some(Bytes::mib(300)), ..Statistics::default() };
        (0..60)
            .flat_map(|_| {
                let mut seen = one.wait(Micros::secs(1));
                seen.extend(one.hand(Input::Statistics { vm: vm(), statistics }));
                seen
            })
            .collect::<Vec<_>>()
    };
    let mut seen = ruled.hand(migrating(true));
    seen.extend(ruled.hand(Input::Law { law: LawSettings::Fixed }));
    seen.extend(told(&mut ruled));
    assert_eq!(orders(&seen), []);
    let mut after = ruled.hand(migrating(false));
    after.extend(told(&mut ruled));
    assert!(
        matches!(orders(&after).first(), Some((size, Reason::Law { law: LawName::Fixed, .. })) if *size == Bytes::mib(300)),
        "{after:?}"
    );

    // And what was asked for meanwhile is given as soon as it is over.
    let mut one = One::quiet_at(Bytes::mib(256));
    one.hand(migrating(true));
    one.report.free = Bytes::mib(10);
    let mut seen = one.idle(3);
    seen.extend(one.demand(Source::Slack, Bytes::mib(100)));
    assert_eq!(orders(&seen), []);
    let after = one.hand(migrating(false));
    assert!(matches!(&orders(&after)[..], [(size, Reason::Refill)] if *size > Bytes::mib(256)), "{after:?}");
}
