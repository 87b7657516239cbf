//! The QMP backend against real QEMUs, and against monitors that misbehave.

// The helpers of a test fail as the test does.
#![allow(clippy::unwrap_used)]

mod common;

use ballast_host::hypervisor::{DEADLINE, Error, Event, Hypervisor, Qmp, State, What};
use ballast_planner::VmName;
use ballast_protocol::Bytes;
use common::{Dependant, expect_event, initramfs, program, quantiles, setup_file, wait_for};
use rustix::process::Signal;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

const SIZE: Bytes = Bytes::mib(192);

/// A directory whose name leaves room in a socket's path.
fn directory() -> TempDir {
    tempfile::Builder::new().prefix("bq").tempdir_in("/tmp").unwrap()
}

/// A QEMU with two monitors: one for the backend, one for the test.
fn qemu(directory: &Path, more: &[&str]) -> Dependant {
    Dependant::spawn(
        Command::new(program("qemu-system-x86_64"))
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-m", "192"])
            .args(["-M", "pc", "-uuid", "7B2C0000-0000-4000-8000-00000000000A"])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", directory.join("q").display()))
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", directory.join("t").display()))
            .args(more),
    )
}

fn connect(directory: &Path) -> (Qmp, VmName, UnboundedReceiver<Event>) {
    let (sender, events) = unbounded_channel();
    let vm = VmName::from("guest");
    (Qmp::new(vm.clone(), directory.join("q"), sender), vm, events)
}

/// The test's own monitor.
fn say(directory: &Path, command: &str) {
    say_with(directory, command, "{}");
}

fn say_with(directory: &Path, command: &str, arguments: &str) {
    let path = directory.join("t");
    let mut stream = wait_for("the test's monitor", || UnixStream::connect(&path).ok());
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    for (command, arguments) in [("qmp_capabilities", "{}"), (command, arguments)] {
        writeln!(stream, "{{\"execute\":\"{command}\",\"arguments\":{arguments}}}").unwrap();
        let answer = lines.by_ref().map(Result::unwrap).find(|l| l.contains("\"return\"") || l.contains("\"error\""));
        assert!(answer.as_ref().is_some_and(|a| a.contains("\"return\"")), "{command}: {answer:?}");
    }
}

#[test]
fn a_real_guest_from_start_to_end() {
    let directory = directory();
    let image = initramfs(directory.path());
    let kernel = setup_file("vmlinuz");
    let boot = [
        "-kernel",
        kernel.to_str().unwrap(),
        "-initrd",
        image.to_str().unwrap(),
        "-append",
        "console=ttyS0 quiet panic=-1",
        "-device",
        "virtio-balloon-pci,id=b0,deflate-on-oom=on,free-page-reporting=on",
    ];
    // The backend is there first, as after a host's boot.
    let (qmp, vm, mut events) = connect(directory.path());
    assert_eq!(qmp.order(&vm, SIZE), Err(Error::Off(vm.clone())));
    assert_eq!(qmp.vms(), Ok(vec![]));
    let mut machine = qemu(directory.path(), &boot);
    expect_event(&mut events, "guest", |w| *w == What::Started, "Started");

    let facts = qmp.vms().unwrap().remove(0);
    assert_eq!((&facts.name, facts.state, facts.max, facts.actual), (&vm, State::Running, SIZE, SIZE));
    assert_eq!(facts.uuid.as_deref(), Some("7b2c0000-0000-4000-8000-00000000000a"));
    assert_eq!((facts.has_balloon, facts.deflate_on_oom, facts.free_page_reporting), (true, Some(true), Some(true)));
    assert_eq!((facts.cid, facts.min_guarantee), (None, None));

    // Statistics: switched on by asking, there when the driver is.
    let statistics = wait_for("statistics", || {
        let s = qmp.statistics(&vm).unwrap();
        (s.age.is_some() && s.total.is_some()).then_some(s)
    });
    let (total, free) = (statistics.total.unwrap(), statistics.free.unwrap());
    assert!(total < SIZE && total > Bytes::mib(100) && free < total, "{statistics:?}");
    assert!(statistics.available.is_some() && statistics.major_faults.is_some(), "{statistics:?}");
    assert!(statistics.age.unwrap().duration() < Duration::from_secs(30), "{statistics:?}");

    // A real taking and a real giving.
    let smaller = Bytes::mib(160);
    qmp.order(&vm, smaller).unwrap();
    wait_for("the balloon to fill", || (qmp.balloon(&vm).unwrap() == smaller).then_some(()));
    assert_eq!(qmp.facts(&vm).unwrap().actual, smaller);
    expect_event(&mut events, "guest", |w| matches!(w, What::BalloonMoved(_)), "BalloonMoved");
    qmp.order(&vm, SIZE).unwrap();
    wait_for("the balloon to empty", || (qmp.balloon(&vm).unwrap() == SIZE).then_some(()));

    say(directory.path(), "stop");
    expect_event(&mut events, "guest", |w| *w == What::Paused, "Paused");
    assert_eq!(qmp.facts(&vm).unwrap().state, State::Paused);
    say(directory.path(), "cont");
    expect_event(&mut events, "guest", |w| *w == What::Resumed, "Resumed");
    say(directory.path(), "system_reset");
    expect_event(&mut events, "guest", |w| *w == What::Reset, "Reset");
    // The new kernel's driver obeys too.
    let smaller = smaller - Bytes::mib(8);
    qmp.order(&vm, smaller).unwrap();
    wait_for("the balloon to fill after a reboot", || (qmp.balloon(&vm).unwrap() == smaller).then_some(()));

    machine.kill();
    expect_event(&mut events, "guest", |w| matches!(w, What::ConnectionLost(_)), "ConnectionLost");
    expect_event(&mut events, "guest", |w| *w == What::Stopped, "Stopped");
    assert_eq!(qmp.balloon(&vm), Err(Error::Off(vm.clone())));
    assert_eq!(qmp.vms(), Ok(vec![]));

    // A dead QEMU leaves its socket files behind, the next one replaces them.
    let _again = qemu(directory.path(), &["-S", "-device", "virtio-balloon-pci"]);
    expect_event(&mut events, "guest", |w| *w == What::Started, "Started again");
    let facts = qmp.facts(&vm).unwrap();
    assert_eq!((facts.state, facts.deflate_on_oom), (State::Paused, Some(false)));
    assert_eq!(qmp.statistics(&vm).map(|s| s.total), Ok(None), "nobody drives this balloon");
}

/// What memory that is plugged, and a migration, look like. No guest is needed for either.
#[test]
fn plugged_memory_and_a_migration_are_seen() {
    let directory = directory();
    let plugs = ["-S", "-m", "192,slots=2,maxmem=1G", "-device", "virtio-balloon-pci"];
    let _machine = qemu(directory.path(), &plugs);
    let (qmp, vm, mut events) = connect(directory.path());
    expect_event(&mut events, "guest", |w| *w == What::Started, "Started");
    assert_eq!(qmp.facts(&vm).map(|f| (f.max, f.migrating)), Ok((SIZE, false)));

    let say = |command: &str, arguments: &str| say_with(directory.path(), command, arguments);
    say("object-add", r#"{"qom-type":"memory-backend-ram","id":"m","size":134217728}"#);
    say("device_add", r#"{"driver":"pc-dimm","memdev":"m","id":"d"}"#);
    let facts = qmp.facts(&vm).unwrap();
    assert_eq!((facts.max, facts.actual), (SIZE + Bytes::mib(128), SIZE + Bytes::mib(128)));

    // To nowhere, and so slowly that it lasts.
    say("migrate-set-parameters", r#"{"max-bandwidth":4096}"#);
    say("migrate", r#"{"uri":"exec:cat >/dev/null"}"#);
    expect_event(&mut events, "guest", |w| *w == What::Migrates, "Migrates");
    assert_eq!(qmp.facts(&vm).map(|f| f.migrating), Ok(true));
    say("migrate_cancel", "{}");
    expect_event(&mut events, "guest", |w| *w == What::Changed, "Changed");
    assert_eq!(qmp.facts(&vm).map(|f| f.migrating), Ok(false));

    // One that waits for a migration to arrive.
    let arriving = self::directory();
    let _other = qemu(arriving.path(), &["-incoming", "defer", "-device", "virtio-balloon-pci"]);
    let (qmp, vm, mut events) = connect(arriving.path());
    expect_event(&mut events, "guest", |w| *w == What::Started, "Started");
    assert_eq!(qmp.facts(&vm).map(|f| (f.migrating, f.state)), Ok((true, State::Paused)));
}

#[test]
fn an_order_is_on_its_way_within_a_millisecond() {
    let directory = directory();
    let _machine = qemu(directory.path(), &["-S", "-device", "virtio-balloon-pci"]);
    let (qmp, vm, mut events) = connect(directory.path());
    expect_event(&mut events, "guest", |w| *w == What::Started, "Started");
    let spans = (0..1000)
        .map(|n| {
            let begin = Instant::now();
            qmp.order(&vm, SIZE - Bytes::mib(n % 64)).unwrap();
            begin.elapsed()
        })
        .collect();
    let (median, p99) = quantiles(spans);
    println!("QMP order: median {median:?}, p99 {p99:?}");
    // 0.4 ms measured; a tenfold allowance for a machine that compiles meanwhile. Polling would not stay within.
    assert!(median < Duration::from_millis(4), "{median:?}");
}

#[test]
fn what_is_missing_or_impossible_is_said_in_words() {
    let directory = directory();
    let _machine = qemu(directory.path(), &["-S"]);
    let (qmp, vm, mut events) = connect(directory.path());
    expect_event(&mut events, "guest", |w| *w == What::Started, "Started");
    let facts = qmp.facts(&vm).unwrap();
    assert_eq!((facts.has_balloon, facts.actual, facts.deflate_on_oom), (false, SIZE, None));
    for error in [qmp.order(&vm, SIZE).unwrap_err(), qmp.balloon(&vm).unwrap_err(), qmp.statistics(&vm).unwrap_err()] {
        assert_eq!(error, Error::NoBalloon(vm.clone()));
    }
    let other = VmName::from("other");
    assert_eq!(qmp.order(&other, SIZE), Err(Error::UnknownVm(other)));
}

#[test]
fn an_order_of_nothing_is_refused_by_qemu_in_its_own_words() {
    let directory = directory();
    let _machine = qemu(directory.path(), &["-S", "-device", "virtio-balloon-pci"]);
    let (qmp, vm, mut events) = connect(directory.path());
    expect_event(&mut events, "guest", |w| *w == What::Started, "Started");
    let error = qmp.order(&vm, Bytes::ZERO).unwrap_err();
    assert!(matches!(&error, Error::Refused { call: "balloon", why, .. } if why.contains("target")), "{error}");
}

#[test]
fn a_qemu_that_hangs_costs_a_deadline_and_comes_back() {
    let directory = directory();
    let machine = qemu(directory.path(), &["-S", "-device", "virtio-balloon-pci"]);
    let (qmp, vm, mut events) = connect(directory.path());
    expect_event(&mut events, "guest", |w| *w == What::Started, "Started");
    machine.signal(Signal::STOP);
    let begin = Instant::now();
    let error = qmp.balloon(&vm).unwrap_err();
    let took = begin.elapsed();
    assert!(matches!(error, Error::Deadline { call: "query-balloon", .. }), "{error}");
    assert!(took >= DEADLINE && took < DEADLINE + Duration::from_secs(1), "{took:?}");
    machine.signal(Signal::CONT);
    // The late reply to the call above must not be taken for the reply to this one.
    qmp.order(&vm, Bytes::mib(100)).unwrap();
    assert_eq!(qmp.balloon(&vm), Ok(SIZE), "without a driver it stays where it is");
}

#[test]
fn a_second_client_is_told_why_it_gets_no_answer() {
    let directory = directory();
    let _machine = qemu(directory.path(), &["-S", "-device", "virtio-balloon-pci"]);
    let (first, vm, mut events) = connect(directory.path());
    expect_event(&mut events, "guest", |w| *w == What::Started, "Started");
    let (second, _, _events) = connect(directory.path());
    let error = wait_for("the reason", || {
        second.balloon(&vm).err().map(|e| e.to_string()).filter(|e| e.contains("another client"))
    });
    assert!(error.contains("VM `guest`") && error.contains("no greeting"), "{error}");
    assert_eq!(first.balloon(&vm), Ok(SIZE));
    drop(first);
    wait_for("its turn", || second.balloon(&vm).ok());
}

/// A monitor made of a script: each connection gets a greeting, then what `answer` makes of each command.
fn monitor(path: PathBuf, answer: impl Fn(&str) -> Option<String> + Send + 'static) -> mpsc::Receiver<()> {
    let listener = UnixListener::bind(path).unwrap();
    let (connected, connections) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            if connected.send(()).is_err() {
                return;
            }
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let _ = stream.write_all(b"{\"QMP\":{}}\r\n");
            while let Some(Ok(line)) = lines.next() {
                let reply =
                    if line.contains("qmp_capabilities") { Some("{\"return\":{}}\r\n".into()) } else { answer(&line) };
                match reply {
                    Some(reply) if stream.write_all(reply.as_bytes()).is_ok() => {}
                    _ => break,
                }
            }
        }
    });
    connections
}

#[test]
fn replies_that_never_end_or_make_no_sense_end_the_connection_not_the_daemon() {
    for (reply, reason) in [
        ("x".repeat(3 << 20), "longer than 1048576 bytes"),
        ("{\"return\":\r\n".to_owned(), "not JSON"),
        (format!("{}\r\n", "[".repeat(1000)), "not JSON"),
    ] {
        let directory = directory();
        let connections = monitor(directory.path().join("q"), move |_| Some(reply.clone()));
        let (qmp, vm, mut events) = connect(directory.path());
        expect_event(&mut events, "guest", |w| *w == What::Started, "Started");
        connections.recv().unwrap();
        let error = qmp.balloon(&vm).unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
        expect_event(&mut events, "guest", |w| matches!(w, What::ConnectionLost(why) if why.contains(reason)), reason);
        expect_event(&mut events, "guest", |w| *w == What::ConnectionBack, "ConnectionBack");
    }
}

#[test]
fn a_reply_without_the_figure_is_an_error_and_not_a_zero() {
    let directory = directory();
    let _connections = monitor(directory.path().join("q"), |line| {
        let id = line.split("\"id\":").nth(1)?.split(['}', ',']).next()?;
        Some(format!("{{\"return\":{{\"actual\":-5}},\"id\":{id}}}\r\n"))
    });
    let (qmp, vm, mut events) = connect(directory.path());
    expect_event(&mut events, "guest", |w| *w == What::Started, "Started");
    let error = qmp.balloon(&vm).unwrap_err();
    assert!(matches!(&error, Error::Malformed { why, .. } if why.contains("actual")), "{error}");
}

#[test]
fn a_monitor_whose_queue_is_full_holds_nobody_for_ever() {
    let directory = directory();
    let path = directory.path().join("q");
    // Nobody accepts, and the queue takes no more.
    let listener = UnixListener::bind(&path).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _queued = UnixStream::connect(&path).unwrap();
    let begin = Instant::now();
    let (qmp, vm, _events) = connect(directory.path());
    let error = qmp.balloon(&vm).unwrap_err();
    assert!(matches!(error, Error::Deadline { .. } | Error::Unreachable { .. }), "{error}");
    drop(qmp);
    assert!(begin.elapsed() < DEADLINE * 3, "{:?}", begin.elapsed());
}

#[test]
fn dropping_it_ends_its_thread_at_once() {
    let directory = directory();
    let _connections = monitor(directory.path().join("q"), |_| None);
    let (qmp, _vm, mut events) = connect(directory.path());
    expect_event(&mut events, "guest", |w| *w == What::Started, "Started");
    let begin = Instant::now();
    drop(qmp);
    assert!(begin.elapsed() < Duration::from_secs(1));
    // The thread held the last sender.
    while let Some(event) = events.blocking_recv() {
        assert!(matches!(event.what, What::ConnectionLost(_)), "{event:?}");
    }
}
