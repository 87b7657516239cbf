//! The laws and what stands around them while all is well, case by case.

mod one;

use ballast_planner::{Action, Facts, Hold, Holding, Input, Notice, Reason, Statistics, Trouble, VmSettings};
use ballast_protocol::{BalloonFeatures, Bytes, GuestMessage, Micros, Pressure, Reclaimed, Source, Telemetry, Verdict};
use one::{MAX, One, facts, hello, notices, orders, reclaims, vm};

#[test]
fn takes_only_when_quiet_and_one_step_at_a_time() {
    let (mut one, _) = One::found(facts(MAX), VmSettings::default());
    one.hello();
    assert_eq!(orders(&one.report()), [], "it has just been found");
    assert!(matches!(one.holding(), Holding::CoolingDown(_)));
    one.wait(Micros::millis(1_500));
    one.report();
    let taken = orders(&one.wait(Micros::millis(600)));
    assert_eq!(taken[0].0, MAX - Bytes::mib(64), "one step, as soon as it is quiet");
    assert_eq!(taken.len(), 1, "and no second one while that is under way");
    one.follow(Bytes::mib(448));
    assert_eq!(one.holding(), Holding::Stale, "the last report is from before the balloon settled");
    assert_eq!(orders(&one.report())[0].0, Bytes::mib(384));
}

#[test]
fn leaves_the_headroom_and_ignores_the_dead_band() {
    for (free, expected) in [(75, None), (76, Some(506)), (92, Some(490))] {
        // 6 MiB watermark + 64 MiB headroom + 6 MiB dead band.
        let mut one = One::quiet();
        (one.report.free, one.report.file, one.report.giveable) = (Bytes::mib(free), Bytes::mib(10), Bytes::mib(free));
        let taken = orders(&one.report());
        assert_eq!(taken.first().map(|o| o.0), expected.map(Bytes::mib), "{free} MiB free");
    }
}

#[test]
fn what_is_free_while_programs_grow_is_not_spare() {
    let (mut one, _) = One::found(facts(MAX), VmSettings::default());
    one.hello();
    one.report();
    let before = one.aim();
    // 30 MiB/s into anonymous memory, for 3 s: longer than the cool-down, with 200 MiB still free at its end.
    for _ in 0..15 {
        one.report.anon += Bytes::mib(6);
        assert_eq!(orders(&one.report()), []);
        assert_eq!(orders(&one.wait(Micros::millis(200))), []);
        assert!(matches!(one.holding(), Holding::CoolingDown(_)), "{:?}", one.holding());
    }
    assert_eq!(one.aim(), before);
    one.wait(Micros::millis(1_700));
    one.report();
    assert_eq!(orders(&one.wait(Micros::millis(500))).len(), 1, "once it is over, as before");
}

#[test]
fn refills_at_once_and_only_once_for_one_report() {
    let mut one = One::quiet_at(Bytes::mib(256));
    (one.report.free, one.report.giveable) = (Bytes::mib(16), Bytes::mib(10));
    let given = orders(&one.report());
    assert_eq!(given, [(Bytes::mib(256 + 54), Reason::Refill)]);
    assert_eq!(orders(&one.follow(Bytes::mib(310))), [], "that report's hole is filled");
    one.report.free = Bytes::mib(16);
    assert_eq!(orders(&one.report()).len(), 1, "a new report, a new hole");
}

#[test]
fn what_hurts_is_undone_and_blocked_for_twice_as_long_each_time() {
    type Hurt = fn(&mut Telemetry);
    let hurts: [(Trouble, Hurt); 4] = [
        (Trouble::AllocStalls, |t| t.counters.alloc_stall = t.counters.alloc_stall.map(|n| n + 1)),
        (Trouble::Pressure, |t| {
            t.memory_pressure = t.memory_pressure.map(|p| Pressure { some: p.some + Micros::millis(5), ..p })
        }),
        (Trouble::Swapping, |t| t.counters.swap_in = t.counters.swap_in.map(|n| n + 256)),
        (Trouble::Refaults, |t| t.counters.refault_file = t.counters.refault_file.map(|n| n + 256)),
    ];
    for (trouble, hurt) in hurts {
        let mut one = One::quiet();
        for block in [10, 20, 40] {
            let before = one.aim();
            while one.aim() >= before {
                one.idle(1);
            }
            let target = one.aim();
            one.follow(target);
            hurt(&mut one.report);
            let undone = orders(&one.report());
            assert_eq!(undone, [(before, Reason::Undo(trouble))]);
            one.follow(before);
            let calm = orders(&one.idle(block - 2));
            assert_eq!(calm, [], "{trouble:?}: blocked for {block} s");
            assert!(matches!(one.holding(), Holding::Blocked(_)), "{:?}", one.holding());
        }
    }
}

#[test]
fn an_operator_who_orders_a_size_does_not_wait_until_the_law_dares_again() {
    let mut one = One::quiet();
    let before = one.aim();
    while one.aim() >= before {
        one.idle(1);
    }
    let target = one.aim();
    one.follow(target);
    one.report.counters.alloc_stall = one.report.counters.alloc_stall.map(|n| n + 1);
    one.report();
    one.follow(before);
    assert_eq!(orders(&one.idle(3)), []);
    assert!(matches!(one.holding(), Holding::Blocked(_)), "{:?}", one.holding());
    let hold = Hold { size: target, until: None, by: "uid 0".into(), reason: "it is mine".into() };
    let held = one.hand(Input::Hold { vm: "a".into(), hold: Some(hold) });
    assert_eq!(orders(&held), [(target, Reason::Held)]);
    // It hurts again: that is undone, and the hold waits for longer than the law would have the first time.
    one.follow(target);
    one.report.counters.alloc_stall = one.report.counters.alloc_stall.map(|n| n + 1);
    assert_eq!(orders(&one.report()), [(before, Reason::Undo(Trouble::AllocStalls))]);
    one.follow(before);
    assert_eq!(orders(&one.idle(18)), [], "blocked for 20 s");
    assert_eq!(orders(&one.idle(4)), [(target, Reason::Held)]);
}

#[test]
fn an_oom_kill_gives_everything_at_once() {
    let mut one = One::quiet_at(Bytes::mib(256));
    one.report();
    one.report.counters.oom_kill = Some(1);
    let actions = one.report();
    assert_eq!(orders(&actions), [(MAX, Reason::Killed)]);
    assert_eq!(notices(&actions), [Notice::OomKills(1)]);
}

#[test]
fn cold_cache_is_dropped_and_left_alone_for_twice_as_long_after_refaults() {
    let mut one = One::cold();
    (one.report.free, one.report.file, one.report.giveable) = (Bytes::mib(40), Bytes::mib(200), Bytes::mib(200));
    let asked = reclaims(&one.idle(4));
    assert_eq!(asked.len(), 1, "one at a time");
    assert_eq!(asked[0].1, Bytes::mib(32));
    for (id, block) in [(asked[0].0, 180), (asked[0].0 + 1, 360)] {
        one.report.counters.refault_file = one.report.counters.refault_file.map(|n| n + 1000);
        one.says(GuestMessage::Reclaimed(Reclaimed { id, size: Bytes::mib(4), exhausted: false }));
        one.report();
        assert_eq!(reclaims(&one.idle(block - 2)), [], "blocked for at least {block} s");
        let later = reclaims(&one.idle(4));
        assert_eq!(later.len(), 1, "tried again");
    }
}

#[test]
fn an_exhausted_cache_is_not_asked_again_soon() {
    let mut one = One::cold();
    (one.report.free, one.report.file, one.report.giveable) = (Bytes::mib(40), Bytes::mib(200), Bytes::mib(200));
    let (id, _) = reclaims(&one.idle(4))[0];
    one.says(GuestMessage::Reclaimed(Reclaimed { id, size: Bytes::mib(1), exhausted: true }));
    assert_eq!(reclaims(&one.idle(8)), []);
    assert_eq!(reclaims(&one.idle(6)).len(), 1);
}

#[test]
fn an_exempt_vm_gets_everything_and_keeps_it() {
    let mut one = One::quiet_at(Bytes::mib(256));
    one.settings.exempt = true;
    let actions = one.described();
    assert_eq!(orders(&actions), [(MAX, Reason::Exempt)]);
    one.follow(MAX);
    assert_eq!(orders(&one.idle(20)), []);
    assert_eq!(one.holding(), Holding::Exempt);
}

#[test]
fn without_deflate_on_oom_nothing_is_taken_and_people_are_told_once() {
    for (host, guest) in [(Some(false), true), (None, false), (Some(true), false)] {
        let (mut one, mut actions) = One::found(Facts { deflate_on_oom: host, ..facts(MAX) }, VmSettings::default());
        actions.extend(one.says(GuestMessage::Hello(hello(guest))));
        actions.extend(one.idle(20));
        assert_eq!(orders(&actions), [(MAX, Reason::Adopted)]);
        assert_eq!(notices(&actions), [Notice::NoDeflateOnOom]);
        one.settings.allow_without_deflate_on_oom = true;
        let mut allowed = one.described();
        allowed.extend(one.idle(5));
        assert!(!orders(&allowed).is_empty(), "the operator may insist, {host:?}");
    }
}

#[test]
fn a_release_gives_everything_and_nothing_is_taken_after_it() {
    let mut one = One::quiet_at(Bytes::mib(256));
    one.report();
    assert_eq!(orders(&one.hand(Input::Release { vm: vm() })), [(MAX, Reason::Release)]);
    one.follow(MAX);
    assert_eq!(orders(&one.idle(30)), []);
}

#[test]
fn a_raised_minimum_is_given_at_once() {
    let mut one = One::quiet_at(Bytes::mib(256));
    one.settings.min = Bytes::mib(400);
    assert_eq!(orders(&one.described()), [(Bytes::mib(400), Reason::Settings)]);
}

#[test]
fn a_lowered_maximum_is_a_taking_like_any_other() {
    let mut one = One::quiet();
    (one.report.free, one.report.giveable) = (Bytes::mib(60), Bytes::mib(100));
    one.settings.max = Bytes::mib(256);
    assert_eq!(orders(&one.described()), [], "not without fresh figures");
    let mut least = MAX;
    for _ in 0..20 {
        for (target, reason) in orders(&one.idle(1)) {
            assert_eq!(reason, Reason::Settings);
            assert!(target >= Bytes::mib(412), "the floor counts more than the maximum");
            least = target;
            one.follow(target);
        }
    }
    assert_eq!(least, Bytes::mib(412));
}

#[test]
fn a_lease_holds_until_it_is_withdrawn() {
    let mut one = One::quiet_at(Bytes::mib(256));
    (one.report.free, one.report.giveable) = (Bytes::mib(60), Bytes::mib(40));
    one.report();
    let given = orders(&one.demand(Source::Reserve, Bytes::mib(200)));
    assert_eq!(given[0].0, Bytes::mib(456));
    one.follow(Bytes::mib(456));
    assert_eq!(orders(&one.idle(20)), []);
    let mut actions = one.says(GuestMessage::Withdraw { id: 1 });
    actions.extend(one.idle(5));
    assert!(!orders(&actions).is_empty());
}

/// Others may have been given that memory since.
#[test]
fn a_maximum_below_a_lease_ends_what_is_above_it_for_good() {
    let mut one = One::quiet_at(Bytes::mib(256));
    (one.report.free, one.report.giveable) = (Bytes::mib(60), Bytes::mib(40));
    one.report();
    one.demand(Source::Reserve, Bytes::mib(200));
    one.follow(Bytes::mib(456));
    one.settings.max = Bytes::mib(300);
    one.described();
    for _ in 0..10 {
        if let Some((target, _)) = orders(&one.idle(20)).first() {
            one.follow(*target);
        }
    }
    assert_eq!(one.aim(), Bytes::mib(300));
    (one.settings.max, one.facts.actual) = (Bytes::MAX, Bytes::mib(300));
    assert_eq!(orders(&one.described()), []);
    assert_eq!(orders(&one.idle(20)), [], "what is below it is leased as before");
}

#[test]
fn a_demand_gets_all_it_asks_for_in_one_order() {
    let mut one = One::quiet_at(Bytes::mib(256));
    one.report();
    for (size, target, verdict) in [(100, 356, true), (400, 512, false)] {
        let actions = one.demand(Source::Slack, Bytes::mib(size));
        assert_eq!(orders(&actions)[0].0, Bytes::mib(target));
        let granted = actions.iter().any(|a| matches!(a, Action::Answer { verdict: Verdict::Granted { .. }, .. }));
        assert_eq!(granted, verdict);
        assert_eq!(orders(&one.demand(Source::Slack, Bytes::mib(size))), [], "asked again, nothing twice");
    }
}

#[test]
fn a_guest_without_an_agent_keeps_its_margin() {
    let (mut one, _) = One::found(facts(MAX), VmSettings::default());
    let tell = |one: &mut One, free| {
        let statistics =
            Statistics { free: Some(Bytes::mib(free)), available: Some(Bytes::mib(free)), ..Statistics::default() };
        one.hand(Input::Statistics { vm: vm(), statistics })
    };
    assert_eq!(orders(&tell(&mut one, 300)), []);
    assert_eq!(orders(&one.wait(Micros::secs(9))), []);
    tell(&mut one, 300);
    let taken = orders(&one.wait(Micros::secs(2)));
    assert_eq!(taken[0].0, Bytes::mib(512 - 25), "a twentieth");
    one.balloon(taken[0].0);
    tell(&mut one, 140);
    assert_eq!(orders(&one.wait(Micros::secs(12))), [], "128 MiB stay");
    assert_eq!(orders(&tell(&mut one, 60)), [(MAX, Reason::Refill)]);
}

#[test]
fn what_is_asked_back_soon_is_left_alone_for_a_while() {
    let mut one = One::quiet();
    one.report();
    // Two steps are taken, then the guest asks for them again.
    for _ in 0..2 {
        one.idle(3);
        let target = one.aim();
        one.follow(target);
    }
    assert_eq!(one.aim(), MAX - Bytes::mib(128));
    let began = one.now;
    assert_eq!(orders(&one.demand(Source::Slack, Bytes::mib(128)))[0].0, MAX);
    one.follow(MAX);
    assert_eq!(orders(&one.idle(8)), [], "cool-down is over, the guest has much free");
    let Holding::Returning(until) = one.holding() else { panic!("{:?}", one.holding()) };
    assert!(until > began + Micros::secs(8) && until < began + Micros::secs(90), "{until}");
    let mut other = one.twin();
    let waited = (until - one.now).0 / 1_000_000 + 2;
    assert_eq!(orders(&one.idle(waited))[0].0, MAX - Bytes::mib(64), "nobody came back for it");
    // 512 of 528 MiB are kept: a sixteenth, 33, stays ready for others; in whole MiB.
    let budget = Input::Pool { budget: Some(Bytes::mib(528)), reserve: None };
    other.report.file = Bytes::mib(150);
    let actions = [other.hand(budget), other.idle(1)].concat();
    assert_eq!(orders(&actions), [(Bytes::mib(494), Reason::Needed(Bytes::mib(50)))], "others may need it");
    let actions = [actions, other.follow(Bytes::mib(494)), other.idle(3)].concat();
    assert_eq!(reclaims(&actions), [], "what is free there serves bursts too");
}

/// A file of 130 MiB was read; what is free is what a quiet guest keeps.
fn cached() -> One {
    let mut one = One::quiet();
    one.report();
    (one.report.free, one.report.giveable, one.report.file) = (Bytes::mib(70), Bytes::mib(200), Bytes::mib(150));
    one.report();
    one
}

#[test]
fn page_cache_is_left_alone_for_five_minutes_unless_others_need_the_room() {
    let mut one = cached();
    assert_eq!(reclaims(&one.idle(240)), []);
    assert!(matches!(one.holding(), Holding::Fresh(_)), "{:?}", one.holding());
    let after = |budget: u64, seconds: u64| {
        let mut one = cached();
        one.idle(60);
        one.hand(Input::Pool { budget: Some(Bytes::mib(budget)), reserve: None });
        reclaims(&one.idle(seconds))
    };
    assert_eq!(after(520, 4), [], "a moment is nothing");
    assert_ne!(after(520, 10), [], "no room for bursts to come");
    assert_eq!(after(1024, 10), []);
    assert_eq!(reclaims(&one.idle(54)), []);
    assert_ne!(reclaims(&one.idle(10)), [], "{:?}", one.holding());
}

#[test]
fn cache_that_grows_all_the_time_grows_old_all_the_same() {
    let mut one = cached();
    let mut grow = |seconds: u64| {
        let step = |_| {
            one.report.file += Bytes::mib(2);
            reclaims(&one.idle(5))
        };
        (0..seconds / 5).flat_map(step).count()
    };
    assert_eq!(grow(270), 0);
    assert_ne!(grow(60), 0, "what was read at first");
}

#[test]
fn cache_that_comes_slowly_is_fresh_and_what_goes_by_itself_is_not_counted() {
    let mut one = cached();
    for second in 0..317 {
        // Half a MiB a report, 60 MiB in two minutes.
        if second < 120 {
            one.report.file += Bytes(1 << 19);
        }
        for (id, size) in reclaims(&one.idle(1)) {
            assert!(second > 290, "{second}");
            one.report.file = one.report.file - size;
            one.says(GuestMessage::Reclaimed(Reclaimed { id, size, exhausted: false }));
        }
    }
    // What was read at first is gone, with what came within a sixteenth of five minutes of it.
    assert!((Bytes::mib(46)..Bytes::mib(58)).contains(&one.report.file), "{}", one.report.file);
    assert!(matches!(one.holding(), Holding::Fresh(_)), "{:?}", one.holding());
    // A file that is written and deleted again and again makes nothing else young.
    let mut one = cached();
    one.idle(240);
    let mut asked = Vec::new();
    for _ in 0..10 {
        one.report.file += Bytes::mib(20);
        asked.extend(reclaims(&one.idle(5)));
        one.report.file = one.report.file - Bytes::mib(20);
        asked.extend(reclaims(&one.idle(5)));
    }
    assert_ne!(asked, [], "{:?}", one.holding());
}

#[test]
fn the_kernel_evicts_the_oldest_and_a_longer_rest_begins_anew() {
    let mut one = cached();
    one.idle(240);
    one.report.file += Bytes::mib(100);
    one.report();
    // A burst lives on the old cache.
    (one.report.file, one.report.anon) = (Bytes::mib(102), one.report.anon + Bytes::mib(148));
    one.report();
    assert_eq!(reclaims(&one.idle(200)), [], "{:?}", one.holding());
    let (mut one, _) = One::found(facts(MAX), VmSettings { cold_after: Micros::ZERO, ..VmSettings::default() });
    one.hello();
    (one.report.free, one.report.giveable, one.report.file) = (Bytes::mib(70), Bytes::mib(200), Bytes::mib(150));
    one.report();
    one.settings.cold_after = Micros::secs(300);
    one.described();
    assert_eq!(reclaims(&one.idle(290)), []);
    assert_ne!(reclaims(&one.idle(20)), [], "{:?}", one.holding());
}

#[test]
fn cache_of_unknown_age_counts_as_fresh() {
    let (mut one, _) = One::found(facts(MAX), VmSettings::default());
    (one.report.free, one.report.giveable, one.report.file) = (Bytes::mib(70), Bytes::mib(200), Bytes::mib(150));
    one.hello();
    assert_eq!(reclaims(&one.idle(295)), []);
    assert_ne!(reclaims(&one.idle(15)), [], "{:?}", one.holding());
}

#[test]
fn cache_that_is_read_again_within_a_minute_was_not_cold() {
    let mut one = One::cold();
    (one.report.free, one.report.giveable) = (Bytes::mib(72), Bytes::mib(200));
    one.report.file = Bytes::mib(150);
    let asked = reclaims(&one.idle(4));
    assert_eq!(asked.len(), 1, "{:?}", one.holding());
    let (id, size) = asked[0];
    one.report.file = one.report.file - size;
    one.says(GuestMessage::Reclaimed(Reclaimed { id, size, exhausted: false }));
    // Its program sleeps for twenty seconds and reads it again.
    one.wait(Micros::secs(20));
    one.report.counters.refault_file = one.report.counters.refault_file.map(|n| n + 8_192);
    one.report.file += size;
    one.report();
    assert_eq!(reclaims(&one.idle(178)), [], "left alone for three minutes");
    assert_ne!(reclaims(&one.idle(8)), [], "and tried again");
}

#[test]
fn what_a_guest_reports_to_the_host_by_itself_is_left_to_it_until_others_need_it() {
    let reporting = |take_reported| {
        let settings = VmSettings { take_reported, cold_after: Micros::ZERO, ..VmSettings::default() };
        let (mut one, _) = One::found(facts(MAX), settings);
        let mut hello = hello(true);
        hello.capabilities.balloon =
            hello.capabilities.balloon.map(|b| BalloonFeatures { free_page_reporting: true, ..b });
        one.says(GuestMessage::Hello(hello));
        one.report();
        one
    };
    let mut one = reporting(false);
    assert_eq!(orders(&one.idle(20)), []);
    assert_eq!(one.holding(), Holding::Reported);
    let budget = Input::Pool { budget: Some(Bytes::mib(448)), reserve: None };
    let taken = [orders(&one.hand(budget)), orders(&one.idle(2))].concat();
    assert!(matches!(taken[0], (target, Reason::Needed(_)) if target <= Bytes::mib(448)), "{taken:?}");
    // Its page cache it does not report: that is dropped as ever, and then reported.
    let mut one = reporting(false);
    one.report.file = Bytes::mib(150);
    assert_eq!(reclaims(&one.idle(4)).len(), 1, "{:?}", one.holding());
    assert!(!orders(&reporting(true).idle(20)).is_empty(), "unless it is wanted all the same");
}
