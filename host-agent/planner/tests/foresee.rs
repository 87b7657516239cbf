//! What forecasts do to one VM, case by case: features, outcomes, when a forecast is followed, and when the law stands
//! alone.

mod one;

use ballast_planner::{
    Action, CANDIDATE_NAMES, Correction, Forecast, ForecastStatus, Hold, Holding, Input, Mode, Point, Ratio, Reason,
    ServiceMode, ServiceSample, VmSettings, VmStatus, WINDOW_NAMES,
};
use ballast_protocol::{Bytes, Counters, GuestMessage, Micros, Pressure, Source, Telemetry};
use one::{One, facts, orders, reclaims, vm};

fn m(n: u64) -> Bytes {
    Bytes::mib(n)
}

fn settings(predictor: Mode) -> VmSettings {
    VmSettings { predictor, cold_after: Micros::ZERO, ..VmSettings::default() }
}

/// 256 MiB of 512 kept, 192 of them used with what lies below the watermark, 64 free; its floor is 106.
fn settled(settings: VmSettings) -> One {
    let (mut one, _) = One::found(facts(m(256)), settings);
    one.hello();
    (one.report.free, one.report.file, one.report.giveable) = (m(70), m(10), m(150));
    one.wait(Micros::secs(1));
    one
}

/// Loses everything below `mib`, nothing from there on.
fn cliff(mib: u64) -> Vec<Point> {
    let point = |size: u64| {
        let loss = if size < mib { 1_000_000 } else { 0 };
        Point { size: m(size), loss_ppm: [loss; 4], pressure_ppm: loss }
    };
    [100, mib - 1, mib, 512].into_iter().map(point).collect()
}

trait Told {
    fn told(&mut self, points: Vec<Point>) -> Vec<Action>;
    fn live(&mut self, seconds: u64, points: &[Point]) -> Vec<Action>;
    fn forecast(&self) -> ForecastStatus;
    fn headroom(&self) -> Bytes;
}

impl Told for One {
    fn told(&mut self, points: Vec<Point>) -> Vec<Action> {
        let forecast = Forecast { made: self.now, model: "m".into(), start: Correction::NONE, points };
        self.hand(Input::Forecast { vm: vm(), forecast })
    }

    /// Each second a report and a forecast; the balloon follows.
    fn live(&mut self, seconds: u64, points: &[Point]) -> Vec<Action> {
        let mut all = Vec::new();
        for _ in 0..seconds {
            let mut actions = self.wait(Micros::secs(1));
            actions.extend(self.report());
            actions.extend(self.told(points.to_vec()));
            if let Some((target, _)) = orders(&actions).last() {
                actions.extend(self.follow(*target));
            }
            all.extend(actions);
        }
        all
    }

    fn forecast(&self) -> ForecastStatus {
        let known = self.planner.vm(&vm()).expect("known");
        VmStatus::of(&vm(), known, self.now).forecast.expect("there was a forecast")
    }

    fn headroom(&self) -> Bytes {
        self.planner.vm(&vm()).expect("known").headroom(self.now)
    }
}

/// A figure of the window that a model would be shown now.
fn figure(one: &One, name: &str) -> f32 {
    let features = one.planner.features(one.now, &vm()).expect("predictable");
    features.window[WINDOW_NAMES.iter().position(|n| *n == name).expect(name)]
}

#[test]
fn features_are_named_relative_and_finite_whatever_the_guest_says() {
    let mut one = settled(settings(Mode::Shadow));
    one.idle(12);
    let get = figure;
    let features = one.planner.features(one.now, &vm()).expect("predictable");
    assert_eq!((features.kept, features.max, features.floor), (m(256), m(512), m(106)));
    assert_eq!(features.needed, m(192), "it has never grown fast");
    assert_eq!((get(&one, "slack"), get(&one, "ballooned"), get(&one, "stall_10s")), (0.125, 0.5, 0.0));
    assert_eq!((get(&one, "asked_10s"), get(&one, "refaults_10s"), get(&one, "service")), (0.0, 0.0, 1.0));

    // Whether anybody helps makes a difference.
    assert_eq!(get(&one, "answered"), 1.0);
    let mut dry = one.twin();
    dry.hand(Input::Mode { dry_run: true });
    assert_eq!(get(&dry, "answered"), 0.0);

    // It grows by 20 MiB a second, stalls for a tenth of the time, and asks for 64 MiB.
    for _ in 0..4 {
        (one.report.free, one.report.anon) = (one.report.free - m(10), one.report.anon + m(10));
        one.report.memory_pressure =
            one.report.memory_pressure.map(|p| Pressure { some: p.some + Micros::millis(50), ..p });
        one.report.counters.refault_file = one.report.counters.refault_file.map(|n| n + 128);
        one.wait(Micros::millis(500));
        one.report();
    }
    one.demand(Source::Slack, m(64));
    one.wait(Micros::millis(600));
    one.report();
    assert!((get(&one, "growth_2s") - 20.0 / 512.0).abs() < 0.02, "{}", get(&one, "growth_2s"));
    assert!((get(&one, "stall_2s") - 0.1).abs() < 0.05, "{}", get(&one, "stall_2s"));
    assert!((get(&one, "refaults_2s") - 1f32.ln_1p()).abs() < 0.35, "{}", get(&one, "refaults_2s"));
    assert_eq!(get(&one, "asked_10s"), 0.125);
    assert!(get(&one, "quiet") < 0.1 && get(&one, "growth_10s") < get(&one, "growth_2s"));

    // Sound by its own arithmetic, and as extreme as that can be.
    let wild = Telemetry {
        committed: Bytes::MAX,
        swap_total: Bytes::MAX,
        pending: Bytes::MAX,
        dirty: Bytes::MAX,
        memory_pressure: Some(Pressure { some: Micros::MAX, full: Micros::MAX }),
        io_pressure: Some(Pressure { some: Micros::MAX, full: Micros::MAX }),
        counters: Counters {
            refault_file: Some(u64::MAX),
            major_fault: Some(u64::MAX),
            swap_in: Some(u64::MAX),
            ..one.report.counters
        },
        at: one.now,
        ..one.report.clone()
    };
    one.says(GuestMessage::Telemetry(wild));
    let features = one.planner.features(one.now, &vm()).expect("predictable");
    assert!(features.window.iter().all(|f| f.is_finite() && f.abs() < 100.0), "{features:?}");
    let candidate = features.candidate(Bytes::MAX);
    assert!(candidate.iter().all(|f| f.is_finite()) && candidate.len() == CANDIDATE_NAMES.len());
}

#[test]
fn a_host_that_has_no_more_helps_nobody() {
    let mut one = followed();
    assert_eq!(figure(&one, "answered"), 1.0);
    one.hand(Input::Pool { budget: Some(m(256)), reserve: None });
    one.demand(Source::Slack, m(128));
    one.live(1, &cliff(106));
    assert_eq!(figure(&one, "answered"), 0.0);
    assert!(!one.forecast().used && one.forecast().standing.contains("tried"), "{:?}", one.forecast());
    // Whoever asks for too much every six seconds: what it says is tried all the same, as of a guest that is not helped.
    for _ in 0..8 {
        one.live(6, &cliff(290));
        one.demand(Source::Slack, m(128));
        assert_eq!(figure(&one, "answered"), 0.0);
    }
    assert!(one.forecast().standing.contains("good"), "{:?}", one.forecast());
    assert!(one.headroom() <= m(64), "it may save there, and not ask");
    // Some time after the last of it all is as before.
    one.hand(Input::Pool { budget: Some(m(2000)), reserve: None });
    one.live(16, &cliff(106));
    assert_eq!(figure(&one, "answered"), 1.0);
    assert!(one.forecast().used, "{:?}", one.forecast());
}

#[test]
fn what_was_said_of_a_vm_that_is_held_is_not_followed_when_it_is_not_any_more() {
    let mut one = settled(settings(Mode::On));
    let until = Some(one.now + Micros::secs(60));
    let hold = Hold { size: m(256), until, by: "op".into(), reason: String::new() };
    one.hand(Input::Hold { vm: vm(), hold: Some(hold) });
    one.live(55, &cliff(106));
    assert!(one.forecast().standing.contains("good"), "{:?}", one.forecast());
    one.wait(Micros::secs(6));
    one.report();
    assert!(!one.forecast().used && one.headroom() == m(64), "{:?}", one.forecast());
}

#[test]
fn the_service_that_is_shown_is_what_a_probe_found_lately() {
    let mut one = settled(settings(Mode::Shadow));
    one.idle(12);
    let measure = |one: &mut One, mode: ServiceMode, mbits: u64| {
        let duration = Micros::millis(250);
        let sample = ServiceSample { mode, throughput: mbits * 1_000_000, retransmits: None, rtt: None, duration };
        one.idle(10);
        one.hand(Input::Service { vm: vm(), sample });
        figure(one, "service")
    };
    // Traffic that ends is no loss of service.
    for _ in 0..8 {
        assert_eq!(measure(&mut one, ServiceMode::Passive, 100), 1.0);
    }
    assert_eq!(measure(&mut one, ServiceMode::Passive, 0), 1.0);
    for _ in 0..8 {
        measure(&mut one, ServiceMode::Unlimited, 100);
    }
    assert_eq!(measure(&mut one, ServiceMode::Unlimited, 50), 0.5);
    one.idle(170);
    assert_eq!(figure(&one, "service"), 0.5);
    one.idle(20);
    assert_eq!(figure(&one, "service"), 1.0, "that was long ago");
}

#[test]
fn there_are_no_features_of_a_guest_that_cannot_be_predicted() {
    let mut one = settled(settings(Mode::Shadow));
    assert_eq!(one.planner.features(one.now, &vm()), None, "nothing was ever heard");
    one.idle(4);
    assert_eq!(one.planner.features(one.now, &vm()), None, "too short a history");
    one.idle(4);
    let seen = |one: &One| one.planner.features(one.now, &vm()).is_some();
    assert!(seen(&one));
    assert_eq!(one.planner.features(one.now, &"nobody".into()), None);
    let after = |input: Input| {
        let mut twin = one.twin();
        twin.hand(input);
        seen(&twin)
    };
    assert!(after(Input::Wake));
    for end in [
        Input::AgentLost { vm: vm(), why: "gone".into() },
        Input::Running { vm: vm(), running: false },
        Input::HypervisorLost { vm: vm() },
        Input::Rebooted { vm: vm() },
        Input::Guest { vm: vm(), message: GuestMessage::Hello(one::hello(true)) },
        Input::Guest {
            vm: vm(),
            message: GuestMessage::Telemetry(Telemetry { free: Bytes::MAX, ..one.report.clone() }),
        },
    ] {
        assert!(!after(end.clone()), "{end:?}");
    }
    one.wait(Micros::millis(2_600));
    assert!(!seen(&one), "stale");
}

#[test]
fn an_outcome_is_what_came_of_it() {
    let mut one = settled(settings(Mode::Shadow));
    one.idle(12);
    let mut other = one.twin();
    let since = one.now;
    assert_eq!(one.planner.outcome(one.now, &vm(), since), None, "nothing has come of it yet");
    one.idle(10);
    for _ in 0..10 {
        other.report.memory_pressure =
            other.report.memory_pressure.map(|p| Pressure { some: p.some + Micros::millis(300), ..p });
        other.idle(1);
    }
    let calm = one.planner.outcome(one.now, &vm(), since).expect("known");
    let stalled = other.planner.outcome(other.now, &vm(), since).expect("known");
    assert_eq!((calm.loss, calm.pressure), (0.0, false));
    assert!((stalled.loss - 0.3).abs() < 0.01 && stalled.pressure, "{stalled:?}");
    assert_eq!(one.planner.outcome(one.now, &"nobody".into(), since), None);
}

#[test]
fn a_forecast_is_followed_only_after_it_was_tried_and_only_down_to_half_the_headroom() {
    let mut one = settled(settings(Mode::On));
    let early = one.live(28, &cliff(106));
    assert_eq!(orders(&early), [], "{:?}", one.forecast());
    assert!(one.forecast().standing.contains("tried"), "{:?}", one.forecast());
    let taken = orders(&one.live(40, &cliff(106)));
    assert!(taken.iter().all(|(_, reason)| matches!(reason, Reason::ForeseenSpare { .. })), "{taken:?}");
    assert_eq!(one.headroom(), m(32));
    // 192 used, 32 free, and less than the dead band.
    assert!((m(224)..m(230)).contains(&one.aim()), "{}", one.aim());
    assert!(
        taken[0].1.to_string().ends_with("with 106 MiB at most 0.00 % of the next 10 s are lost"),
        "{}",
        taken[0].1
    );
    let shown = one.forecast();
    assert!(shown.used && shown.coverage == Some(Ratio::WHOLE) && shown.missed == 0, "{shown:?}");
    assert_eq!((shown.model.as_deref(), shown.size, shown.points.len()), (Some("m"), Some(m(106)), 4));
}

/// Tried, followed, and at rest.
fn followed() -> One {
    let mut one = settled(settings(Mode::On));
    one.live(90, &cliff(106));
    assert!(one.forecast().used && one.headroom() == m(32), "{:?}", one.forecast());
    one
}

/// What is not helped loses what one that is helped does not, and the other way round.
#[test]
fn a_dry_run_earns_no_trust_and_costs_none() {
    let mut one = settled(settings(Mode::On));
    one.hand(Input::Mode { dry_run: true });
    one.live(60, &cliff(106));
    assert!(one.forecast().judged >= 16, "{:?}", one.forecast());
    let stale = Forecast { made: one.now, model: "m".into(), start: Correction::NONE, points: cliff(106) };
    one.wait(Micros::millis(100));
    one.hand(Input::Mode { dry_run: false });
    assert_eq!(orders(&one.hand(Input::Forecast { vm: vm(), forecast: stale })), []);
    assert!(one.forecast().standing.contains("another time"), "{:?}", one.forecast());
    assert_eq!(orders(&one.live(20, &cliff(106))), []);
    assert!(!one.forecast().used && one.forecast().standing.contains("tried"), "{:?}", one.forecast());
    one.live(70, &cliff(106));
    assert!(one.forecast().used, "{:?}", one.forecast());
    // What it knew of the other is not forgotten.
    for dry_run in [true, false] {
        one.hand(Input::Mode { dry_run });
        assert!(!one.forecast().used);
        one.wait(Micros::millis(100));
        one.live(1, &cliff(106));
        assert!(one.forecast().used, "{:?}", one.forecast());
    }
    // What hurts when nobody helps is not held against it either.
    one.hand(Input::Mode { dry_run: true });
    one.wait(Micros::millis(100));
    for _ in 0..12 {
        one.report.memory_pressure =
            one.report.memory_pressure.map(|p| Pressure { some: p.some + Micros::millis(200), ..p });
        one.live(1, &cliff(106));
    }
    assert!(one.forecast().missed > 0 && one.forecast().standing.contains("wrong"), "{:?}", one.forecast());
    one.hand(Input::Mode { dry_run: false });
    one.wait(Micros::millis(100));
    one.live(1, &cliff(106));
    assert!(one.forecast().used, "{:?}", one.forecast());
}

/// An outcome at the size that the VM has says nothing good of smaller ones.
#[test]
fn a_model_that_is_too_careful_here_is_not_taken_to_be_so_elsewhere() {
    let point = |size: u64, loss_ppm: [u32; 4]| Point { size: m(size), loss_ppm, pressure_ppm: 0 };
    let points = [point(106, [0, 50_000, 90_000, 95_000]), point(512, [0, 3_000, 5_000, 9_000])];
    let mut one = settled(settings(Mode::On));
    one.live(240, &points);
    let shown = one.forecast();
    assert!(shown.judged > 80 && shown.coverage == Some(Ratio::WHOLE), "{shown:?}");
    assert!(shown.points[0].bound_ppm >= 90_000, "{shown:?}");
    // 1 % more than the 0.5 % of all of the memory.
    assert!(shown.size.is_some_and(|size| size > m(450)), "{shown:?}");
}

#[test]
fn off_and_shadow_do_nothing_and_shadow_says_what_it_would_do() {
    let mut shadow = settled(settings(Mode::Shadow));
    assert_eq!(orders(&shadow.live(90, &cliff(106))), []);
    let shown = shadow.forecast();
    assert_eq!((shown.used, shown.headroom, shadow.headroom()), (false, Some(m(32)), m(64)));
    assert!(shown.standing.contains("good enough"), "{shown:?}");

    let mut off = settled(settings(Mode::Off));
    assert_eq!(orders(&off.live(90, &cliff(106))), []);
    let known = off.planner.vm(&vm()).expect("known");
    assert_eq!(VmStatus::of(&vm(), known, off.now).forecast, None);

    // Switched off while it is followed: the law's own headroom is filled up at once.
    let mut one = followed();
    (one.settings.predictor, one.facts.actual) = (Mode::Off, one.aim());
    one.described();
    one.wait(Micros::secs(1));
    one.report();
    assert!(one.aim() >= m(256), "{}", one.aim());
}

#[test]
fn without_a_new_forecast_the_law_stands_alone_after_five_seconds() {
    let mut one = followed();
    assert_eq!(orders(&one.idle(4)), []);
    let given = orders(&one.idle(2));
    assert!(matches!(&given[..], [(size, Reason::Refill)] if *size == m(256)), "{given:?}");
    assert!(one.forecast().standing.contains("too old"));
}

#[test]
fn a_flawed_forecast_is_no_forecast() {
    type Spoil = fn(&mut Forecast);
    let spoils: [(&str, Spoil); 5] = [
        ("points", |f| f.points.clear()),
        ("ascend", |f| f.points.reverse()),
        ("late", |f| f.made = f.made - Micros::secs(5)),
        ("another time", |f| f.made += Micros(1)),
        ("tried", |f| f.model = "another".into()),
    ];
    for (expected, spoil) in spoils {
        let mut one = followed();
        one.wait(Micros::secs(1));
        one.report();
        let mut forecast = Forecast { made: one.now, model: "m".into(), start: Correction::NONE, points: cliff(106) };
        spoil(&mut forecast);
        let given = orders(&one.hand(Input::Forecast { vm: vm(), forecast }));
        assert_eq!(given, [(m(256), Reason::Refill)], "{expected}");
        assert!(one.forecast().standing.contains(expected), "{expected}: {:?}", one.forecast());
    }
}

#[test]
fn a_miss_that_hurt_ends_it_for_a_minute_and_then_for_two() {
    let mut one = followed();
    for minutes in [1, 2] {
        // Tasks stall for a fifth of the time, and the forecast had said that nothing is lost.
        for _ in 0..12 {
            one.report.memory_pressure =
                one.report.memory_pressure.map(|p| Pressure { some: p.some + Micros::millis(200), ..p });
            one.live(1, &cliff(106));
        }
        assert!(!one.forecast().used && one.headroom() == m(64), "{:?}", one.forecast());
        assert!(one.forecast().missed > 0);
        one.live(60 * minutes - 15, &cliff(106));
        assert!(!one.forecast().used, "{:?}", one.forecast());
        // After that it still has to earn back its coverage.
        one.live(400, &cliff(106));
        assert!(one.forecast().used, "{:?}", one.forecast());
    }
}

#[test]
fn an_undone_taking_ends_it_at_once() {
    let mut one = followed();
    one.report.free += m(20);
    one.report.giveable += m(20);
    let taken = orders(&one.live(1, &cliff(106)));
    assert_eq!(taken.len(), 1, "{:?}", one.holding());
    one.report.counters.alloc_stall = one.report.counters.alloc_stall.map(|n| n + 1);
    one.wait(Micros::millis(500));
    let undone = orders(&one.report());
    assert!(matches!(undone[0].1, Reason::Undo(_)), "{undone:?}");
    assert!(!one.forecast().used && one.forecast().standing.contains("wrong"), "{:?}", one.forecast());
}

#[test]
fn what_the_model_does_not_know_is_left_to_the_law() {
    // Rarely a fifth more is lost than with all of the memory.
    let mut wide = cliff(106);
    wide.iter_mut().for_each(|p| p.loss_ppm[3] = 200_000);
    wide[3].loss_ppm[3] = 50_000;
    // So much is lost at any size that memory is not what decides.
    let mut hopeless = cliff(106);
    hopeless.iter_mut().for_each(|p| p.loss_ppm = [60_000; 4]);
    for (expected, points) in [("not sure", wide), ("no size", hopeless)] {
        let mut one = followed();
        let given = orders(&one.live(1, &points));
        assert_eq!(given, [(m(256), Reason::Refill)], "{expected}");
        assert!(one.forecast().standing.contains(expected), "{:?}", one.forecast());
    }
    // Pressure that there is at any size is no reason; that which more memory would prevent is one.
    let mut pressed = cliff(106);
    pressed.iter_mut().for_each(|p| p.pressure_ppm = 600_000);
    let mut one = followed();
    one.live(1, &pressed);
    assert_eq!(one.forecast().size, Some(m(106)), "{:?}", one.forecast());
    pressed[3].pressure_ppm = 100_000;
    one.live(1, &pressed);
    // A quarter more is half of the way from 106 to 512 MiB.
    assert!(one.forecast().size.is_some_and(|s| (m(307)..m(311)).contains(&s)), "{:?}", one.forecast());
    // Nor is a loss that there is at any size; the budget is for what comes on top.
    let mut lossy = cliff(106);
    lossy.iter_mut().for_each(|p| p.loss_ppm = [20_000; 4]);
    let mut one = followed();
    one.live(1, &lossy);
    assert_eq!(one.forecast().size, Some(m(106)), "{:?}", one.forecast());
    lossy[3].loss_ppm = [5_000; 4];
    one.live(1, &lossy);
    // 15,000 ppm are lost a third of the way.
    assert!(one.forecast().size.is_some_and(|s| (m(240)..m(244)).contains(&s)), "{:?}", one.forecast());
    // A budget that allows it makes the same forecast one to follow.
    let mut patient = settled(VmSettings { loss_budget: Ratio::percent(3), ..settings(Mode::On) });
    let mut costly = cliff(106);
    costly.iter_mut().for_each(|p| p.loss_ppm = [20_000; 4]);
    patient.live(90, &costly);
    assert!(patient.forecast().used, "{:?}", patient.forecast());
}

#[test]
fn growth_that_is_foreseen_is_met_before_it_comes_within_a_quarter_of_the_vm() {
    for (needs, expected) in [(290, 98), (500, 128)] {
        let mut one = followed();
        let given = orders(&one.live(1, &cliff(needs)));
        assert_eq!(given.len(), 1, "{:?}", one.holding());
        let (size, reason) = &given[0];
        assert!(matches!(reason, Reason::ForeseenNeed(said) if said.size == m(needs)), "{reason}");
        assert_eq!(*size, m(192 + expected), "{needs} MiB");
        assert_eq!(one.headroom(), m(expected));
    }
}

#[test]
fn what_was_asked_back_is_kept_unless_the_model_knows_that_less_will_do() {
    let asked_back = |mode: Mode| {
        let (mut one, _) = One::found(facts(m(512)), settings(mode));
        one.hello();
        (one.report.free, one.report.file, one.report.giveable) = (m(326), m(10), m(406));
        one.wait(Micros::secs(1));
        one.live(20, &cliff(106));
        assert_eq!(one.aim(), m(256), "{:?}", one.holding());
        assert_eq!(orders(&one.demand(Source::Slack, m(128)))[0].0, m(384));
        one.follow(m(384));
        let moved = orders(&one.live(30, &cliff(106)));
        (one, moved)
    };
    let (alone, moved) = asked_back(Mode::Shadow);
    assert!(matches!(alone.holding(), Holding::Returning(_)), "{:?}", alone.holding());
    assert_eq!((alone.aim(), moved), (m(384), vec![]));
    let (followed, moved) = asked_back(Mode::On);
    assert!((m(224)..m(232)).contains(&followed.aim()), "{} {:?}", followed.aim(), followed.holding());
    assert!(moved.iter().all(|(_, reason)| matches!(reason, Reason::ForeseenSpare { .. })), "{moved:?}");
}

/// It was given by the pool, which knew better, what the law had just taken.
#[test]
fn what_was_asked_back_is_not_sent_home_against_the_model() {
    let (mut one, _) = One::found(facts(m(512)), settings(Mode::On));
    one.hand(Input::Pool { budget: Some(m(2000)), reserve: None });
    one.hello();
    (one.report.free, one.report.file, one.report.giveable) = (m(326), m(10), m(406));
    one.wait(Micros::secs(1));
    one.live(20, &cliff(106));
    one.demand(Source::Slack, m(128));
    one.follow(m(384));
    let moved = orders(&one.live(30, &cliff(106)));
    assert!(!moved.is_empty() && moved.iter().all(|(_, reason)| *reason != Reason::Returning), "{moved:?}");
}

#[test]
fn cache_that_the_model_would_miss_is_not_dropped() {
    // 100 MiB of cache; what is free is what the model leaves.
    let cached = |needs: u64| {
        let mut one = followed();
        (one.report.file, one.report.anon) = (m(100), m(0));
        one.live(20, &cliff(needs));
        one
    };
    let mut free = cached(106);
    assert_ne!(reclaims(&free.live(10, &cliff(106))), [], "{:?}", free.holding());
    let mut bound = settled(settings(Mode::On));
    (bound.report.file, bound.report.anon) = (m(100), m(0));
    let all = bound.live(80, &cliff(250));
    let late = bound.live(40, &cliff(250));
    assert!(matches!(bound.holding(), Holding::Foreseen(_)), "{:?}: {all:?}", bound.holding());
    assert_eq!(reclaims(&late), []);
}

#[test]
fn a_guest_that_was_too_stalled_to_report_is_judged_by_what_it_says_afterwards() {
    let mut one = settled(settings(Mode::Shadow));
    one.live(40, &cliff(106));
    let before = one.forecast();
    assert_eq!(before.missed, 0);
    // Six seconds without a word, of which five were stalls.
    for _ in 0..12 {
        one.wait(Micros::millis(500));
    }
    one.report.memory_pressure = one.report.memory_pressure.map(|p| Pressure { some: p.some + Micros::secs(5), ..p });
    one.report();
    let after = one.forecast();
    assert!(after.missed > 0 && after.judged >= before.judged + 3, "{before:?} {after:?}");
}

#[test]
fn coverage_is_that_of_what_really_happened() {
    // Tasks stall for 3 % of the time; the model says 5 % at most, and after a while 1 %.
    let mut one = settled(settings(Mode::Shadow));
    let says = |most: u32| {
        let point = |size: u64| Point { size: m(size), loss_ppm: [0, most, most, most], pressure_ppm: 0 };
        vec![point(106), point(512)]
    };
    let live = |one: &mut One, seconds: u64, most: u32| {
        for _ in 0..seconds {
            one.report.memory_pressure =
                one.report.memory_pressure.map(|p| Pressure { some: p.some + Micros::millis(30), ..p });
            one.live(1, &says(most));
        }
    };
    live(&mut one, 100, 50_000);
    let right = one.forecast();
    assert!(right.judged >= 40 && right.missed == 0 && right.coverage == Some(Ratio::WHOLE), "{right:?}");
    live(&mut one, 30, 10_000);
    let wrong = one.forecast();
    assert!(wrong.missed > 0 && wrong.coverage < Some(Ratio::WHOLE), "{wrong:?}");
    live(&mut one, 300, 10_000);
    let again = one.forecast();
    assert!(again.missed < wrong.missed + 8, "{again:?}");
    // 30 ms in each 1 s: the correction has found out.
    assert!(again.points[0].bound_ppm >= 29_000, "{again:?}");
}
