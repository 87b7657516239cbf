use super::*;
use ballast_planner::ServiceSample;

const ADDRESS: &str = "10.77.0.2:5201";

fn target(vm: &str) -> Target {
    Target { vm: VmName::from(vm), service: Some(ADDRESS.parse().unwrap()), interface: None }
}

fn running(settings: &Settings, vms: &[&str]) -> Schedule {
    let targets: Vec<Target> = vms.iter().map(|vm| target(vm)).collect();
    let mut schedule = Schedule::new(settings, &targets, Micros::ZERO);
    assert_eq!(schedule.next(), None, "none of them runs");
    for vm in vms {
        schedule.heed(Micros::ZERO, Command::Runs(VmName::from(*vm), true));
    }
    schedule
}

fn measured(mbits: u64, bytes: Bytes) -> Result<Measured, Problem> {
    let sample = ServiceSample {
        mode: ServiceMode::Unlimited,
        throughput: mbits * 1_000_000,
        retransmits: Some(0),
        rtt: None,
        duration: Micros::millis(200),
    };
    Ok(Measured { sample, traffic: bytes })
}

fn refused() -> Result<Measured, Problem> {
    Err(Problem::NoServer(ADDRESS.parse().unwrap(), "Connection refused".to_owned()))
}

/// Waits for the next probe, runs it, and returns when and what it was.
fn probe(schedule: &mut Schedule, now: &mut Micros, outcome: impl Fn(&Plan) -> Result<Measured, Problem>) -> Plan {
    for _ in 0..100 {
        let plan = schedule.begin(*now);
        if let Some(plan) = plan {
            let took = Micros::millis(220);
            *now += took;
            let outcome = outcome(&plan);
            schedule.done(*now, &plan.vm, took, &outcome);
            return plan;
        }
        *now = schedule.next().unwrap().max(*now);
    }
    panic!("nothing is ever due");
}

fn well(plan: &Plan) -> Result<Measured, Problem> {
    measured(1_000, plan.bytes)
}

#[test]
fn probes_come_quickly_until_the_vm_is_known_and_then_each_period() {
    let mut schedule = running(&Settings::default(), &["web"]);
    let mut now = Micros::ZERO;
    let mut times = Vec::new();
    for _ in 0..20 {
        probe(&mut schedule, &mut now, well);
        times.push(now);
    }
    let gaps: Vec<f64> = times.windows(2).map(|w| (w[1] - w[0]).0 as f64 / 1e6).collect();
    assert!(gaps[..7].iter().all(|g| (7.9..=10.5).contains(g)), "{gaps:?}");
    assert!(gaps[8..].iter().all(|g| (47.9..=60.5).contains(g)), "{gaps:?}");
    assert!(gaps[8..].windows(2).any(|w| (w[0] - w[1]).abs() > 1.0), "no two the same: {gaps:?}");
}

#[test]
fn a_probe_takes_as_long_as_it_should_whatever_the_speed() {
    let mut schedule = running(&Settings::default(), &["web"]);
    let mut now = Micros::ZERO;
    assert_eq!(probe(&mut schedule, &mut now, well).bytes, Bytes::mib(4), "not known yet");
    assert_eq!(probe(&mut schedule, &mut now, |p| measured(400, p.bytes)).bytes, Bytes(25_000_000));
    for _ in 0..15 {
        let plan = probe(&mut schedule, &mut now, |p| measured(40, p.bytes));
        assert_eq!(plan.bytes, Bytes(25_000_000), "a slow guest is measured with the same");
    }
    assert_eq!(probe(&mut schedule, &mut now, |p| measured(40, p.bytes)).bytes, Bytes(10_000_000));
    let plan = probe(&mut schedule, &mut now, |p| measured(100_000, p.bytes));
    assert_eq!(plan.bytes, Bytes(1_000_000), "unless it is so for good");
    assert_eq!(probe(&mut schedule, &mut now, well).bytes, Bytes::mib(32), "the traffic of an hour bounds it");

    let limited = Settings { mode: ServiceMode::RateLimited, ..Settings::default() };
    let mut now = Micros::ZERO;
    let plan = probe(&mut running(&limited, &["web"]), &mut now, well);
    assert_eq!((plan.rate, plan.bytes), (Some(50_000_000), Bytes(1_250_000)));
}

#[test]
fn a_vm_that_is_disturbed_is_left_alone_unless_the_planner_asks() {
    let web = || VmName::from("web");
    let mut schedule = running(&Settings::default(), &["web"]);
    let mut now = Micros::ZERO;
    let first = schedule.next().unwrap();
    for _ in 0..20 {
        now += Micros::secs(1);
        schedule.heed(now, Command::Disturbed(web()));
        assert_eq!(schedule.begin(now), None);
    }
    assert!(first < now);
    assert_eq!(schedule.next(), Some(now + QUIET));
    schedule.heed(now, Command::Asked(web(), ProbeWhy::Confirm));
    assert_eq!(schedule.begin(now).unwrap().why, Some(ProbeWhy::Confirm));
    schedule.done(now, &web(), Micros::ZERO, &measured(1_000, Bytes::ZERO));
    assert_eq!(schedule.begin(now), None, "asked once, probed once");
}

#[test]
fn the_budget_of_time_bounds_all_probes_and_the_planners_questions_have_a_reserve() {
    // 36 s an hour are 12 s held, 3 s of them for the planner.
    let settings = Settings { period: Micros::secs(1), traffic_per_hour: Bytes::mib(1 << 20), ..Settings::default() };
    let mut schedule = running(&settings, &["web"]);
    let mut now = Micros::ZERO;
    let mut spent = Micros::ZERO;
    while now < Micros::secs(36_000) {
        probe(&mut schedule, &mut now, well);
        spent += Micros::millis(220);
    }
    assert!(spent <= Micros::secs(360 + 12), "{spent} in ten hours");
    assert!(spent >= Micros::secs(350), "{spent} in ten hours");
    assert!(schedule.next().unwrap() > now);
    schedule.heed(now, Command::Asked(VmName::from("web"), ProbeWhy::Taken));
    assert!(schedule.begin(now).is_some());
}

#[test]
fn the_budget_of_traffic_bounds_probes_of_fast_vms() {
    let settings = Settings { period: Micros::secs(1), time_per_hour: Micros::secs(3600), ..Settings::default() };
    let mut schedule = running(&settings, &["web"]);
    let (mut now, mut sent) = (Micros::ZERO, 0);
    while now < Micros::secs(3_600) {
        sent += probe(&mut schedule, &mut now, |p| measured(100_000, p.bytes)).bytes.0;
    }
    assert!(sent <= (2048 << 20) * 4 / 3, "{} MiB in the first hour", sent >> 20);
    assert!(sent >= 2048 << 20, "{} MiB in the first hour", sent >> 20);
}

#[test]
fn a_server_that_does_not_answer_is_asked_less_and_less_often_also_by_the_planner() {
    let mut schedule = running(&Settings::default(), &["web"]);
    let mut now = Micros::ZERO;
    let mut gaps = Vec::new();
    for _ in 0..12 {
        let before = now;
        schedule.heed(now, Command::Asked(VmName::from("web"), ProbeWhy::Taken));
        probe(&mut schedule, &mut now, |_| refused());
        gaps.push((now - before).0 / 1_000_000);
    }
    assert_eq!(gaps, [0, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600, 3600, 3600]);
    let problem = schedule.problem(&VmName::from("web")).unwrap();
    assert!(problem.contains(ADDRESS), "{problem}");
    probe(&mut schedule, &mut now, well);
    assert_eq!(schedule.problem(&VmName::from("web")), None);
    assert!(schedule.next().unwrap() < now + Micros::secs(61), "at once as before");
}

#[test]
fn vms_have_their_own_places_in_the_period_and_a_failing_one_holds_up_nobody() {
    let names: Vec<String> = (0..20).map(|i| format!("vm{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut schedule = running(&Settings::default(), &names);
    let mut now = Micros::ZERO;
    let mut first: BTreeMap<VmName, Micros> = BTreeMap::new();
    let mut counts: BTreeMap<VmName, u32> = BTreeMap::new();
    while now < Micros::secs(600) {
        let plan = probe(&mut schedule, &mut now, |p| if p.vm.0 == "vm3" { refused() } else { well(p) });
        first.entry(plan.vm.clone()).or_insert(now);
        *counts.entry(plan.vm).or_default() += 1;
    }
    assert_eq!(first.len(), 20);
    let (least, most) = (first.values().min().unwrap(), first.values().max().unwrap());
    assert!(*most - *least > Micros::secs(5), "spread over the ten seconds: {first:?}");
    assert!(counts[&VmName::from("vm3")] <= 5, "{counts:?}");
    assert!(counts.iter().all(|(vm, n)| vm.0 == "vm3" || *n >= 14), "{counts:?}");
}

#[test]
fn a_vm_that_ended_is_not_probed_and_its_questions_are_forgotten() {
    let web = || VmName::from("web");
    let mut schedule = running(&Settings::default(), &["web"]);
    schedule.heed(Micros::ZERO, Command::Asked(web(), ProbeWhy::Taken));
    schedule.heed(Micros::ZERO, Command::Runs(web(), false));
    assert_eq!((schedule.next(), schedule.begin(Micros::secs(100))), (None, None));
    schedule.heed(Micros::secs(100), Command::Runs(web(), true));
    assert!(schedule.next().unwrap() >= Micros::secs(100));
    schedule.heed(Micros::secs(100), Command::Asked(VmName::from("nobody"), ProbeWhy::Taken));
    let disabled = Settings { enabled: false, ..Settings::default() };
    assert_eq!(running(&disabled, &["web"]).next(), None);
}
