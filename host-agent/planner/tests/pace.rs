//! Givings in pieces: which come so, how fast, and what hurries them.

mod one;

use ballast_planner::{Action, Pace};
use ballast_protocol::{Bytes, Demand, GuestMessage, Micros, Source};
use one::{MAX, One};

fn paces(actions: &[Action]) -> Vec<Option<Pace>> {
    actions.iter().filter_map(|a| if let Action::Order { pace, .. } = a { Some(*pace) } else { None }).collect()
}

fn squeezed() -> One {
    let mut one = One::quiet_at(Bytes::mib(200));
    one.report.free = Bytes::mib(70);
    one.report.giveable = Bytes::mib(60);
    one.report();
    one
}

/// 14 MiB above the low watermark that last so long.
fn asked(one: &mut One, source: Source, size: Bytes, within: Micros) -> Vec<Action> {
    let now = one.now;
    let free = Bytes::mib(20);
    let ballooned = Some(Bytes::mib(312));
    one.says(GuestMessage::Demand(Demand { id: 1, source, size, sign: now, sent: now, within, free, ballooned }))
}

#[test]
fn what_is_not_urgent_comes_in_pieces() {
    for source in [Source::Slack, Source::Committed, Source::Reserve] {
        let given = asked(&mut squeezed(), source, Bytes::mib(200), Micros::millis(100));
        let pace = Pace { first: Bytes::mib(216), rate: Bytes::mib(400) };
        assert_eq!(paces(&given), [Some(pace)], "{source:?}");
    }
    let mut one = squeezed();
    one.report.free = Bytes::mib(8);
    assert!(matches!(paces(&one.report())[..], [Some(_)]), "a refill");
}

#[test]
fn what_hurts_gets_all_at_once_and_so_does_what_is_small() {
    for source in [Source::Stall, Source::Psi, Source::Cgroup] {
        assert_eq!(paces(&asked(&mut squeezed(), source, Bytes::mib(200), Micros::millis(100))), [None], "{source:?}");
    }
    // 16 MiB at once and a piece of 4.
    assert_eq!(paces(&asked(&mut squeezed(), Source::Slack, Bytes::mib(20), Micros::millis(100))), [None]);
    assert!(paces(&asked(&mut squeezed(), Source::Slack, Bytes::mib(21), Micros::millis(100)))[0].is_some());
}

#[test]
fn pieces_come_twice_as_fast_as_the_guest_grows() {
    // 14 MiB in 25 ms.
    let given = asked(&mut squeezed(), Source::Slack, Bytes::mib(200), Micros::millis(25));
    assert_eq!(paces(&given)[0].map(|p| p.rate), Some(Bytes::mib(1_120)));
}

#[test]
fn a_guest_that_grows_faster_than_its_pieces_come_is_given_the_same_again_faster() {
    let mut one = squeezed();
    assert_eq!(paces(&asked(&mut one, Source::Committed, Bytes::mib(200), Micros::ZERO)).len(), 1);
    assert_eq!(paces(&asked(&mut one, Source::Slack, Bytes::mib(200), Micros::millis(100))), [], "that is under way");
    let again = paces(&asked(&mut one, Source::Slack, Bytes::mib(200), Micros::millis(20)));
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].map(|p| p.rate), Some(Bytes::mib(1_400)));
    assert_eq!(paces(&asked(&mut one, Source::Stall, Bytes::mib(200), Micros::ZERO)), [None], "and all when it hurts");
    assert_eq!(one.aim(), Bytes::mib(400));
}

#[test]
fn zero_means_at_once() {
    let mut one = squeezed();
    one.settings.pace = Bytes::ZERO;
    one.described();
    assert_eq!(paces(&asked(&mut one, Source::Slack, Bytes::mib(200), Micros::millis(100))), [None]);
}

#[test]
fn pieces_add_up_to_the_target_and_never_pass_it() {
    let pace = Pace { first: Bytes::mib(216), rate: Bytes(1) };
    assert_eq!(pace.next(Bytes::mib(216), MAX), Bytes::mib(217), "the driver counts in MiB");
    let pace = Pace { rate: Bytes::mib(400), ..pace };
    let mut size = pace.first;
    let mut pieces = 0;
    while size < MAX {
        size = pace.next(size, MAX);
        pieces += 1;
    }
    assert_eq!((size, pieces), (MAX, 74), "296 MiB by 4");
}
