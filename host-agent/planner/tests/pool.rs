//! The host's memory shared out, case by case: who is cut, who gives, who comes first.

mod many;

use ballast_planner::{
    Action, Class, Hold, Holding, HostMemory, HostNotice, Input, Reason, Reservation, VmName, VmSettings,
};
use ballast_protocol::{Bytes, Micros, Shortfall, Source, Verdict};
use many::{Many, m};

/// 46 MiB of kernel and watermark and 64 MiB of headroom: what an idle guest keeps besides what it uses.
const KEEPS: u64 = 46 + 64;

fn partly(verdict: Verdict) -> (u64, Option<Shortfall>) {
    match verdict {
        Verdict::Granted { size, .. } => (size.as_mib(), None),
        Verdict::Partly { size, why, .. } => (size.as_mib(), Some(why)),
        Verdict::Refused(why) => (0, Some(why)),
    }
}

#[test]
fn a_demand_within_the_room_is_met_at_once() {
    let mut host = Many::with(1000, &[("a", 512, 200, 90), ("b", 512, 200, 90)]);
    assert_eq!(partly(host.ask("a", 300, Source::Slack)), (300, None));
    assert_eq!(host.target("a"), m(500));
}

#[test]
fn beyond_the_room_the_rest_comes_when_idle_memory_of_others_is_free() {
    let mut host = Many::with(600, &[("a", 512, 150, 40), ("b", 512, 400, 100)]);
    host.run(Micros::millis(200));
    host.orders();
    // Without a budget they would be left alone for two seconds yet; 50 are free.
    assert_eq!(partly(host.ask("a", 200, Source::Slack)), (50, Some(Shortfall::HostShort)));
    assert_eq!(host.target("a"), m(200));
    assert_eq!(host.vm("a").want.map(|w| w.size), Some(m(350)));
    let taken = host.orders().into_iter().find(|o| o.0 == "b").expect("the same call takes from the other");
    assert_eq!(taken.2, Reason::Needed(m(150)));
    assert_eq!(host.sum(), 600, "nothing is given before it is free");
    host.run(Micros::millis(200));
    assert_eq!((host.target("a"), host.target("b")), (m(350), m(250)));
    assert_eq!(host.vm("a").want, None);
    assert!(host.orders().contains(&("a".to_owned(), 350, Reason::Room)));
    assert_eq!(host.notices(), [], "a moment's wait is no shortage");
}

#[test]
fn nobody_is_taken_below_what_it_uses_and_people_are_told_that_the_host_is_short() {
    let mut host = Many::with(500, &[("a", 512, 150, 90), ("b", 512, 350, 290)]);
    for _ in 0..30 {
        host.ask("a", 300, Source::Slack);
        host.run(Micros::millis(100));
    }
    let floor = 40 + 6 + 290;
    assert!(host.target("b") >= m(floor), "{}", host.target("b"));
    assert!(host.sum() <= 500);
    assert!(matches!(host.notices()[..], [HostNotice::Short(_)]), "{:?}", host.notices());
    assert!(host.host().short > m(200), "{:?} {:?}", host.host(), host.vm("a"));
    assert_eq!(host.vm("a").holding, Holding::HostShort);
    // Its owner ends something in the other: that is enough.
    host.guest("b").used = m(40);
    host.run(Micros::secs(1));
    host.ask("a", 300, Source::Slack);
    host.run(Micros::secs(7));
    assert_eq!(host.notices().last(), Some(&HostNotice::Enough));
    assert_eq!(host.host().short, Bytes::ZERO);
}

#[test]
fn in_a_crunch_equals_share_by_weight_whoever_asked_first() {
    for weights in [[100, 100, 100], [100, 200, 300], [900, 400, 500]] {
        let mut host = Many::with(900, &[]);
        for (name, weight) in ["a", "b", "c"].into_iter().zip(weights) {
            let settings = VmSettings { weight, ..VmSettings::default() };
            host.add(name, 2000, 120, 10, settings);
        }
        host.run(Micros::secs(3));
        // All want more than there is, and keep asking; what they get they do not touch for now.
        for _ in 0..100 {
            for name in ["a", "b", "c"] {
                host.ask(name, 1500, Source::Slack);
                host.guest(name).pending = m(1500);
            }
            host.run(Micros::millis(100));
        }
        assert!(host.sum() <= 900);
        assert!(host.sum() >= 885, "all of it is handed out: {}", host.sum());
        let sum: u32 = weights.iter().sum();
        // No share is below what a guest cannot do without, 80 MiB: the weights alone decide.
        for (name, weight) in ["a", "b", "c"].into_iter().zip(weights) {
            let fair = 900 * u64::from(weight) / u64::from(sum);
            let got = host.target(name).as_mib();
            assert!(got.abs_diff(fair) * 100 <= fair, "{name} has {got} of {fair}: {weights:?} {:?}", host.orders());
        }
    }
}

#[test]
fn a_higher_class_comes_first_but_nobody_loses_its_guarantee() {
    let mut host = Many::with(700, &[]);
    for (name, class) in [("low", Class::Low), ("high", Class::High)] {
        host.add(name, 1000, 350, 10, VmSettings { class, min: m(150), ..VmSettings::default() });
    }
    host.guest("low").pending = m(300);
    host.run(Micros::secs(1));
    for _ in 0..50 {
        host.ask("low", 600, Source::Slack);
        host.ask("high", 600, Source::Slack);
        host.run(Micros::millis(100));
    }
    assert_eq!(host.target("low"), m(150), "its guarantee");
    assert!(host.target("high") >= m(546), "{}", host.target("high"));
    assert!(host.sum() <= 700);
}

#[test]
fn a_guarantee_is_given_whatever_the_host_has() {
    let mut host = Many::with(500, &[("a", 512, 200, 100), ("b", 512, 300, 240)]);
    host.set("a", |s| s.min = m(400));
    assert_eq!(host.target("a"), m(400));
    assert!(host.host().available == Bytes::ZERO);
}

#[test]
fn room_for_bursts_is_kept_in_advance_from_idle_memory_only() {
    // 10 of 600 are free; an eighth, 75, is to be ready. The busy one gives nothing.
    let mut host = Many::with(600, &[("busy", 512, 290, 230), ("idle", 512, 300, 60)]);
    host.run(Micros::secs(4));
    assert_eq!(host.target("busy"), m(290 + 50), "its headroom is refilled");
    assert_eq!(host.target("idle"), m(60 + KEEPS));
    // What was asked for together is what is kept ready afterwards.
    host.ask("idle", 120, Source::Slack);
    assert_eq!(host.host().burst_reserve, m(120));
    host.run(Micros::secs(3600));
    assert_eq!(host.host().burst_reserve.as_mib(), 37, "and is forgotten, down to a sixteenth");
}

#[test]
fn what_vms_need_in_turns_is_at_home_with_each_as_far_as_it_fits() {
    // Two VMs that use 100 MiB and, in turns, 300: together 344 each with the headroom.
    let mut many = Many::with(576, &[("day", 448, 288, 100), ("night", 448, 288, 100)]);
    let mut given = Vec::new();
    for turn in 0..6 {
        let name = ["day", "night"][turn % 2];
        many.run(Micros::secs(12));
        let before = many.target(name);
        many.ask(name, (m(326) - before).as_mib(), Source::Slack);
        many.run(Micros::secs(1));
        given.push(many.target(name) - before);
        many.guest(name).used = m(250);
        many.run(Micros::secs(4));
        many.guest(name).used = m(100);
    }
    many.run(Micros::secs(12));
    // 576 less a sixteenth: 270 each, less the rounding. What a burst needs beyond that comes from the other one.
    assert_eq!((many.target("day"), many.target("night")), (m(269), m(269)));
    assert!(given[4..].iter().all(|size| *size <= m(57)), "{given:?}");
}

#[test]
fn a_reservation_makes_room_before_its_vm_starts() {
    let mut host = Many::with(800, &[("a", 512, 400, 60), ("b", 512, 400, 60)]);
    let until = host.now + Micros::secs(60);
    host.hand(Input::Reserve(Reservation { name: VmName::from("new"), size: m(300), until }));
    assert_eq!(host.host().reserved, m(300));
    assert!(!host.host().reservations[0].ready);
    host.run(Micros::secs(4));
    assert!(host.sum() <= 500, "{}", host.sum());
    assert!(host.host().reservations[0].ready);
    assert_eq!(host.notices(), [HostNotice::Ready(VmName::from("new"))]);
    // It is not lent away, and is its VM's when that comes.
    assert_eq!(partly(host.ask("a", 500, Source::Slack)).1, Some(Shortfall::HostShort));
    assert!(host.sum() <= 500);
    host.add("new", 300, 300, 50, VmSettings::default());
    assert_eq!(host.host().reserved, Bytes::ZERO);
    assert!(host.sum() <= 800);
}

#[test]
fn a_reservation_that_nobody_comes_for_runs_out() {
    let mut host = Many::with(800, &[("a", 512, 400, 60)]);
    let until = host.now + Micros::secs(3);
    host.hand(Input::Reserve(Reservation { name: VmName::from("new"), size: m(200), until }));
    host.hand(Input::Reserve(Reservation { name: VmName::from("other"), size: m(100), until: Micros::MAX }));
    host.hand(Input::Unreserve { name: VmName::from("other") });
    host.run(Micros::secs(4));
    assert_eq!(host.notices().last(), Some(&HostNotice::Lapsed(VmName::from("new"))));
    assert_eq!(host.host().reservations, []);
}

#[test]
fn an_operator_gets_back_what_can_be_spared_and_sees_it_before() {
    let mut host = Many::with(10_000, &[("a", 512, 512, 60), ("b", 512, 512, 300), ("exempt", 512, 512, 60)]);
    host.set("exempt", |s| s.exempt = true);
    host.run(Micros::millis(200));
    host.orders();
    // All are cooling down; nothing is taken by itself, and all of it can be planned once they are calm.
    host.guest("a").settings.cool_down = Micros::secs(1);
    let now = host.now + Micros::secs(3);
    let plan = host.planner.plan_reclaim(now, m(100));
    assert_eq!(plan, [], "reports are too old by then");
    let plan = host.planner.plan_reclaim(host.now, m(100));
    assert_eq!(plan, [], "not calm yet");
    host.hand(Input::Reclaim { size: m(400) });
    host.run(Micros::secs(3));
    let orders = host.orders();
    assert!(orders.iter().any(|o| o.2 == Reason::Reclaim), "{orders:?}");
    assert!(orders.iter().all(|o| o.0 != "exempt"));
    assert_eq!(host.target("exempt"), m(512));
    assert!(host.target("a") >= m(60 + KEEPS) && host.target("b") >= m(300 + KEEPS));
}

#[test]
fn a_dry_run_of_a_reclaim_says_what_the_reclaim_does() {
    let mut host = Many::with(10_000, &[("a", 512, 512, 60), ("b", 512, 512, 300)]);
    for name in ["a", "b"] {
        // Their own law would take from them, too.
        host.set(name, |s| (s.step, s.returning) = (Bytes::ZERO, Micros::ZERO));
    }
    host.run(Micros::secs(4));
    host.orders();
    let plan = host.planner.plan_reclaim(host.now, m(200));
    assert_eq!(plan.len(), 1, "{plan:?}");
    assert_eq!((plan[0].vm.0.as_str(), plan[0].from, plan[0].to), ("a", m(512), m(312)), "the idlest first");
    host.hand(Input::Reclaim { size: m(200) });
    assert_eq!(host.orders(), [("a".to_owned(), 312, Reason::Reclaim)]);
    host.run(Micros::secs(5));
    assert_eq!((host.target("a"), host.target("b")), (m(312), m(512)), "once");
}

#[test]
fn a_reclaim_is_once_also_while_room_for_bursts_is_made() {
    // 24 of 1024 are free, and 128 are to be ready: 104 are missing besides what the operator wants.
    let mut host = Many::with(1024, &[("a", 500, 500, 60), ("b", 500, 500, 60)]);
    for name in ["a", "b"] {
        host.set(name, |s| (s.step, s.returning, s.cool_down) = (Bytes::ZERO, Micros::ZERO, Micros::secs(3)));
    }
    host.run(Micros::secs(2));
    host.hand(Input::Reclaim { size: m(100) });
    host.run(Micros::secs(20));
    assert_eq!(host.sum(), 1000 - 104 - 100, "{:?}", host.orders());
}

#[test]
fn a_hold_is_kept_against_the_law_and_against_demands_until_it_ends() {
    let mut host = Many::with(2000, &[("a", 512, 512, 60)]);
    let hold =
        |size, until| Hold { size, until, by: "ann".to_owned(), reason: "a test of the night's batch".to_owned() };
    host.run(Micros::millis(200));
    let until = host.now + Micros::secs(10);
    host.hand(Input::Hold { vm: VmName::from("a"), hold: Some(hold(m(300), Some(until))) });
    assert_eq!(host.orders().last().expect("an order"), &("a".to_owned(), 300, Reason::Held));
    host.run(Micros::secs(5));
    assert_eq!((host.target("a"), host.vm("a").holding.clone()), (m(300), Holding::Held), "nothing more is taken");
    assert_eq!(partly(host.ask("a", 100, Source::Slack)), (0, Some(Shortfall::Held)));
    host.run(Micros::secs(10));
    assert!(host.target("a") < m(300), "over: the law goes on");
    assert_eq!(partly(host.ask("a", 300, Source::Slack)), (300, None));
    // Never under the floor, whatever is said.
    host.guest("a").used = m(300);
    host.run(Micros::secs(1));
    host.hand(Input::Hold { vm: VmName::from("a"), hold: Some(hold(m(100), None)) });
    host.run(Micros::secs(1));
    assert!(host.target("a") >= m(346), "{}", host.target("a"));
    host.hand(Input::Hold { vm: VmName::from("a"), hold: None });
    assert_ne!(host.vm("a").holding, Holding::Held);
}

/// It was given more and taken from again, several times a second.
#[test]
fn a_hold_ends_what_its_vm_wanted_before() {
    let mut host = Many::with(600, &[("a", 512, 250, 90), ("b", 512, 350, 300)]);
    host.run(Micros::millis(200));
    host.ask("a", 250, Source::Slack);
    assert!(host.vm("a").want.is_some());
    host.orders();
    let hold = Hold { size: m(170), until: None, by: "ann".to_owned(), reason: "a test".to_owned() };
    host.hand(Input::Hold { vm: VmName::from("a"), hold: Some(hold) });
    // Now there is room.
    host.hand(Input::Pool { budget: Some(m(1000)), reserve: None });
    host.run(Micros::secs(5));
    let orders: Vec<_> = host.orders().into_iter().filter(|order| order.0 == "a").collect();
    assert_eq!(orders, [("a".to_owned(), 170, Reason::Held)]);
}

#[test]
fn a_dry_run_says_and_orders_nothing() {
    let mut host = Many::with(600, &[]);
    host.hand(Input::Mode { dry_run: true });
    host.add("a", 512, 512, 60, VmSettings::default());
    host.add("b", 512, 150, 90, VmSettings::default());
    host.run(Micros::secs(10));
    assert_eq!(partly(host.ask("b", 300, Source::Slack)).1, Some(Shortfall::Held));
    host.run(Micros::secs(1));
    let would = host.said.iter().filter(|a| matches!(a, Action::Would { .. })).count();
    assert!((1..20).contains(&would), "said, and not over and over: {would}");
    assert_eq!(host.orders(), []);
    host.hand(Input::Mode { dry_run: false });
    host.run(Micros::secs(5));
    assert!(host.target("a") < m(512), "and then in earnest");
}

#[test]
fn without_a_budget_the_hosts_kernel_says_what_there_is() {
    let mut host = Many::with(1000, &[]);
    host.hand(Input::Pool { budget: None, reserve: Some(m(100)) });
    assert_eq!(host.planner.host_status(host.now), None, "it has not said anything");
    let says = |available, psi: &str| {
        Input::Host(HostMemory { total: m(2000), available: m(available), psi_some_avg10: psi.parse().ok() })
    };
    host.hand(says(500, "0%"));
    host.add("a", 1500, 300, 200, VmSettings::default());
    assert_eq!(partly(host.ask("a", 1000, Source::Slack)), (400, Some(Shortfall::HostShort)), "less the reserve");
    assert_eq!(partly(host.ask("a", 1000, Source::Slack)).0, 400, "and not twice");
    // A host whose own tasks wait keeps twice the reserve.
    host.hand(says(500, "6%"));
    assert_eq!(host.host().reserve, m(200));
    // Memory that VMs may have but have not touched looks available.
    host.hand(says(1900, "0%"));
    host.run(Micros::millis(100));
    host.add("b", 1500, 300, 200, VmSettings::default());
    host.ask("a", 700, Source::Slack);
    assert!(host.target("a") > m(1300), "{}", host.target("a"));
    let (given, why) = partly(host.ask("b", 1200, Source::Slack));
    assert!(given < 400 && why == Some(Shortfall::HostShort), "{given} MiB, {why:?}");
    assert!(host.sum() <= 1900);
    host.now += Micros::secs(6);
    assert_eq!(host.planner.host_status(host.now), None, "old news is none");
}

#[test]
fn a_vm_that_cannot_give_counts_as_unavailable_and_holds_up_nobody() {
    let mut host = Many::with(700, &[("stuck", 512, 400, 60), ("a", 512, 150, 90), ("b", 512, 150, 10)]);
    host.set("stuck", |s| s.exempt = true);
    host.run(Micros::secs(3));
    assert!(host.host().unavailable >= m(400));
    host.ask("a", 100, Source::Slack);
    host.run(Micros::secs(1));
    assert!(host.target("stuck") >= m(400), "exempt");
    assert!(host.target("a") > m(150), "{}: `b` had some to spare", host.target("a"));
    assert!(host.sum() <= 700);
}

#[test]
fn a_vm_whose_balloon_does_not_move_counts_as_unavailable_until_it_does() {
    let mut host = Many::with(900, &[("stuck", 512, 400, 60), ("a", 512, 150, 90)]);
    host.guest("stuck").stuck = true;
    host.run(Micros::secs(20));
    assert!(matches!(host.vm("stuck").holding, Holding::Blocked(_)), "{:?}", host.vm("stuck").holding);
    assert_eq!(host.host().unavailable, host.vm("stuck").charge());
    host.guest("stuck").stuck = false;
    host.run(Micros::secs(60));
    assert!(host.target("stuck") < m(300), "{}", host.target("stuck"));
    assert_eq!(host.host().unavailable, m(0));
}
