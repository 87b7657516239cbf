//! The real binary against a host double: sessions, demands, leases, orders, ends. `/proc` is a captured tree that the
//! tests change under it.

mod support;

use ballast_protocol::{
    Answer, Bytes, GuestMessage, HostMessage, Micros, Ping, Reclaim, Refusal, Shortfall, Source, Verdict,
};
use rustix::process::Signal;
use std::time::{Duration, Instant};
use support::{Bench, until};

const GUEST: &str = "6.1-cloud-guest";

#[test]
fn a_session_begins_with_hello_and_telemetry_of_the_tree() {
    let bench = Bench::start(GUEST, &[]);
    let mut host = bench.accept();
    let GuestMessage::Hello(hello) = host.read() else { panic!("no Hello") };
    assert!(hello.capabilities.psi && !hello.capabilities.absorber);
    assert!(hello.capabilities.balloon.is_some_and(|b| b.deflate_on_oom));
    assert_eq!(hello.boot_id[..2], [0xc5, 0xe2]);
    drop(host);
    // The host may go at any moment: the guest dials again.
    let mut host = bench.welcome(3_000);
    let telemetry = host.telemetry();
    assert_eq!(telemetry.seq, 0);
    bench.set_meminfo("MemAvailable", Bytes::mib(77));
    bench.set_meminfo("Dirty", Bytes::mib(7));
    until(|| (host.telemetry().giveable == Bytes::mib(70)).then_some(()));
}

#[test]
fn pings_are_answered_and_a_silent_host_is_left() {
    let bench = Bench::start(GUEST, &[]);
    let mut host = bench.welcome(600);
    host.say(&HostMessage::Ping(Ping { seq: 3, at: Micros(12) }));
    let pong = host.find(|m| if let GuestMessage::Pong(p) = m { Some(p) } else { None });
    assert_eq!((pong.seq, pong.at), (3, Micros(12)));
    assert!(pong.sent >= pong.received);
    let began = Instant::now();
    assert!(host.is_closed());
    let took = began.elapsed();
    assert!((Duration::from_millis(400)..Duration::from_secs(3)).contains(&took), "{took:?}");
    bench.welcome(3_000).telemetry();
}

#[test]
fn falling_memory_is_a_demand_and_the_balloons_first_mib_its_relief() {
    let bench = Bench::start(GUEST, &[]);
    bench.set_vmstat("balloon_inflate", 60_000);
    let mut host = bench.welcome(3_000);
    host.telemetry();
    for free in (10..100).rev().step_by(2) {
        bench.set_meminfo("MemFree", Bytes::mib(free));
        std::thread::sleep(Duration::from_millis(8));
    }
    let demand = host.demand();
    assert_eq!(demand.source, Source::Slack);
    assert!(demand.size >= Bytes::mib(64) && demand.sign <= demand.sent);
    host.grant(demand.id, demand.size);
    std::thread::sleep(Duration::from_millis(50));
    bench.set_vmstat("balloon_deflate", 300);
    let relief = host.find(|m| if let GuestMessage::Relief(r) = m { Some(r) } else { None });
    assert_eq!((relief.id, relief.sign), (demand.id, demand.sign));
    assert!(relief.first_mib.is_some_and(|first| first >= relief.answered), "{relief:?}");
}

#[test]
fn a_refusal_quietens_the_guest_for_a_second() {
    let bench = Bench::start(GUEST, &[]);
    let mut host = bench.welcome(3_000);
    host.telemetry();
    bench.set_vmstat("nr_inactive_file", 0);
    bench.set_meminfo("MemFree", Bytes::mib(1));
    let mut times = Vec::new();
    for _ in 0..3 {
        let demand = host.demand();
        times.push(demand.sent);
        host.say(&HostMessage::Answer(Answer { id: demand.id, verdict: Verdict::Refused(Shortfall::AtMaximum) }));
    }
    assert!(times.windows(2).all(|w| w[1] - w[0] >= Micros::millis(950)), "{times:?}");
}

#[test]
fn a_malloc_is_a_demand_before_it_is_touched_and_lapses() {
    let bench = Bench::start(GUEST, &[]);
    let mut host = bench.welcome(5_000);
    bench.set_meminfo("MemFree", Bytes::mib(60));
    host.telemetry();
    std::thread::sleep(Duration::from_millis(500));
    bench.set_meminfo("Committed_AS", Bytes::mib(400));
    let demand = host.find(|m| match m {
        GuestMessage::Demand(d) if d.source == Source::Committed => Some(d),
        _ => None,
    });
    assert!(demand.size >= Bytes::mib(300), "{}", demand.size);
    host.grant(demand.id, demand.size);
    let withdrawn = host.find(|m| if let GuestMessage::Withdraw { id } = m { Some(id) } else { None });
    assert_eq!(withdrawn, demand.id);
}

#[test]
fn need_blocks_until_the_memory_is_there_and_the_lease_ends_with_the_command() {
    let bench = Bench::start(GUEST, &[]);
    bench.set_meminfo("MemFree", Bytes::mib(100));
    let mut host = bench.welcome(5_000);
    host.telemetry();
    std::thread::scope(|scope| {
        let client = scope.spawn(|| bench.client("need", &["200MiB", "--", "sh", "-c", "exit 7"]));
        let demand = host.find(|m| match m {
            GuestMessage::Demand(d) if d.source == Source::Reserve => Some(d),
            _ => None,
        });
        assert!(demand.size >= Bytes::mib(100) && demand.size < Bytes::mib(130), "{}", demand.size);
        host.grant(demand.id, demand.size);
        std::thread::sleep(Duration::from_millis(200));
        assert!(!client.is_finished(), "granted is not there");
        bench.set_meminfo("MemFree", Bytes::mib(300));
        assert_eq!(client.join().unwrap().0, 7, "the command's own status");
        let withdrawn = host.find(|m| if let GuestMessage::Withdraw { id } = m { Some(id) } else { None });
        assert_eq!(withdrawn, demand.id);
    });
}

#[test]
fn need_says_why_not() {
    let bench = Bench::start(GUEST, &[]);
    bench.set_meminfo("MemFree", Bytes::mib(100));
    let mut host = bench.welcome(5_000);
    host.telemetry();
    assert_eq!(bench.client("need", &["64GiB"]).0, 124, "more than the guest has");
    assert_eq!(bench.client("need", &["64"]).0, 2, "no unit");
    std::thread::scope(|scope| {
        let client = scope.spawn(|| bench.client("need", &["200MiB", "--", "true"]));
        let demand = host.find(|m| match m {
            GuestMessage::Demand(d) if d.source == Source::Reserve => Some(d),
            _ => None,
        });
        host.say(&HostMessage::Answer(Answer { id: demand.id, verdict: Verdict::Refused(Shortfall::HostShort) }));
        assert_eq!(client.join().unwrap().0, 124);
    });
    assert_eq!(bench.client("need", &["1MiB", "--", "/no/such/command"]).0, 127);
}

#[test]
fn status_tells_the_session_and_the_budget_and_garbage_is_refused() {
    let bench = Bench::start(GUEST, &[]);
    let mut host = bench.welcome(5_000);
    host.telemetry();
    let (code, text) = bench.client("status", &["--json"]);
    assert_eq!(code, 0);
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status["connected"], true);
    assert_eq!(status["asked"].as_array().unwrap().len(), 6);
    for garbage in ["need -5\n", "need\n", "hello\n", &format!("{}\n", "x".repeat(300))] {
        use std::io::{Read, Write};
        let mut stream = std::os::unix::net::UnixStream::connect(bench.socket()).unwrap();
        stream.write_all(garbage.as_bytes()).unwrap();
        let mut answer = [0; 6];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"error ", "{garbage}");
    }
}

#[test]
fn a_refused_session_and_a_broken_frame_are_survived() {
    let bench = Bench::start(GUEST, &[]);
    let mut host = bench.accept();
    host.say(&HostMessage::Refused(Refusal::Occupied));
    assert!(host.is_closed());
    let mut host = bench.welcome(3_000);
    host.say_bytes(&[0xff, 0xff, 1, 2, 3]);
    assert!(host.is_closed());
    let mut host = bench.accept();
    host.say_bytes(&[2, 0, 99, 99]);
    assert!(host.is_closed());
    bench.welcome(3_000).telemetry();
}

#[test]
fn without_memory_reclaim_an_order_is_answered_exhausted() {
    let bench = Bench::start(GUEST, &[]);
    let mut host = bench.welcome(3_000);
    host.say(&HostMessage::Reclaim(Reclaim { id: 4, size: Bytes::mib(50) }));
    let done = host.find(|m| if let GuestMessage::Reclaimed(r) = m { Some(r) } else { None });
    assert_eq!((done.id, done.size, done.exhausted), (4, Bytes::ZERO, true));
}

#[test]
fn sigterm_says_goodbye_lifts_limits_and_removes_the_socket() {
    let mut bench = Bench::start(GUEST, &[]);
    let mut host = bench.welcome(3_000);
    host.telemetry();
    assert!(bench.socket().exists());
    bench.signal(Signal::TERM);
    host.find(|m| matches!(m, GuestMessage::Goodbye(_)).then_some(()));
    assert_eq!(bench.wait(), Some(0));
    assert!(!bench.socket().exists());
}

#[test]
fn a_killed_agent_leaves_nothing_that_the_next_one_does_not_mend() {
    let mut bench = Bench::start(GUEST, &[]);
    bench.welcome(3_000).telemetry();
    bench.signal(Signal::KILL);
    assert_eq!(bench.wait(), None);
    let slice = bench.dir.path().join("w.slice");
    std::fs::create_dir(&slice).unwrap();
    std::fs::write(slice.join("memory.high"), "1000000").unwrap();
    std::fs::write(bench.dir.path().join("guest.absorber"), format!("{}\n", slice.display())).unwrap();
    bench.start_agent(&[]);
    bench.welcome(3_000).telemetry();
    assert_eq!(std::fs::read_to_string(slice.join("memory.high")).unwrap(), "max");
}
