//! The libvirt backend against a real libvirtd and a real guest.
#![cfg(feature = "libvirt")]
// The helpers of a test fail as the test does.
#![allow(clippy::unwrap_used)]

mod common;

use ballast_host::hypervisor::{DEADLINE, Error, Event, Hypervisor, Libvirt, State, What};
use ballast_planner::VmName;
use ballast_protocol::Bytes;
use common::libvirtd::Libvirtd;
use common::{expect_event, initramfs, quantiles, setup_file, wait_for};
use rustix::process::Signal;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

const SIZE: Bytes = Bytes::mib(192);
const SMALLER: Bytes = Bytes::mib(160);

fn domain(libvirtd: &Libvirtd, name: &str, balloon: &str) -> String {
    let image = libvirtd.directory().join("i.cpio");
    let kernel = setup_file("vmlinuz").canonicalize().unwrap();
    format!(
        "<domain type='qemu'><name>{name}</name><memory unit='MiB'>192</memory><vcpu>1</vcpu>
        <os><type machine='pc'>hvm</type><kernel>{}</kernel><initrd>{}</initrd>
        <cmdline>quiet panic=-1</cmdline></os><features><acpi/></features><on_reboot>restart</on_reboot>
        <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{balloon}<controller type='usb' model='none'/>
        </devices></domain>",
        kernel.display(),
        image.display(),
    )
}

fn connect(libvirtd: &Libvirtd) -> (Libvirt, UnboundedReceiver<Event>) {
    let (sender, events) = unbounded_channel();
    (Libvirt::new(&libvirtd.uri(), sender).unwrap(), events)
}

/// One test, because starting a libvirtd and a guest is what takes time; each step says what it shows.
#[test]
fn a_real_guest_under_a_real_libvirtd_that_crashes_in_the_middle() {
    let mut libvirtd = Libvirtd::start();
    initramfs(libvirtd.directory());
    let good = "<memballoon model='virtio' autodeflate='on' freePageReporting='on'/>";
    libvirtd.define("a", &domain(&libvirtd, "a", good));
    libvirtd.define("bare", &domain(&libvirtd, "bare", "<memballoon model='none'/>"));
    let (libvirt, mut events) = connect(&libvirtd);
    let (a, bare) = (VmName::from("a"), VmName::from("bare"));

    // Off: known, described, not to be ordered.
    let off = wait_for("the connection", || libvirt.vms().ok());
    assert_eq!(off.iter().map(|f| (&f.name, f.state)).collect::<Vec<_>>(), [(&a, State::Off), (&bare, State::Off)]);
    assert_eq!(libvirt.order(&a, SMALLER), Err(Error::Off(a.clone())));
    assert_eq!(libvirt.balloon(&a), Err(Error::Off(a.clone())));
    assert_eq!(libvirt.order(&VmName::from("none"), SMALLER), Err(Error::UnknownVm("none".into())));
    assert_eq!(libvirt.order(&VmName::from("no\0ne"), SMALLER), Err(Error::UnknownVm("no\0ne".into())));

    // Started.
    libvirtd.virsh(&["start", "a"]);
    expect_event(&mut events, "a", |w| *w == What::Started, "Started");
    let facts = libvirt.facts(&a).unwrap();
    assert_eq!((facts.state, facts.max, facts.actual), (State::Running, SIZE, SIZE));
    assert_eq!((facts.has_balloon, facts.deflate_on_oom, facts.free_page_reporting), (true, Some(true), Some(true)));
    assert_eq!(facts.uuid.as_deref(), Some(libvirtd.virsh(&["domuuid", "a"]).trim()));

    // Statistics: switched on by asking.
    let statistics = wait_for("statistics", || {
        let s = libvirt.statistics(&a).unwrap();
        (s.age.is_some() && s.free.is_some()).then_some(s)
    });
    let total = statistics.total.unwrap();
    assert!(total < SIZE && total > Bytes::mib(100) && statistics.free.unwrap() < total, "{statistics:?}");
    assert!(statistics.age.unwrap().duration() < Duration::from_secs(30), "{statistics:?}");

    // A real taking.
    libvirt.order(&a, SMALLER).unwrap();
    wait_for("the balloon to fill", || (libvirt.balloon(&a).unwrap() == SMALLER).then_some(()));
    expect_event(&mut events, "a", |w| matches!(w, What::BalloonMoved(_)), "BalloonMoved");
    let error = libvirt.order(&a, Bytes::mib(300)).unwrap_err();
    assert!(matches!(&error, Error::Refused { why, .. } if why.contains("max")), "{error}");

    // Paused, resumed, reset.
    libvirtd.virsh(&["suspend", "a"]);
    expect_event(&mut events, "a", |w| *w == What::Paused, "Paused");
    assert_eq!(libvirt.facts(&a).unwrap().state, State::Paused);
    libvirtd.virsh(&["resume", "a"]);
    expect_event(&mut events, "a", |w| *w == What::Resumed, "Resumed");
    libvirtd.virsh(&["reset", "a"]);
    expect_event(&mut events, "a", |w| *w == What::Reset, "Reset");
    // QEMU goes on showing what the old kernel's balloon held until the new one's driver moves it.
    assert_eq!(libvirt.balloon(&a), Ok(SMALLER));
    let other = SMALLER - Bytes::mib(8);
    libvirt.order(&a, other).unwrap();
    wait_for("the new kernel's balloon to fill", || (libvirt.balloon(&a).unwrap() == other).then_some(()));

    // libvirtd crashes: said at once, calls fail clearly, the VM lives on.
    let qemu = libvirtd.qemu("a");
    assert!(qemu.is_some());
    libvirtd.kill();
    let begin = Instant::now();
    expect_event(&mut events, "a", |w| matches!(w, What::ConnectionLost(_)), "ConnectionLost");
    let error = libvirt.order(&a, SMALLER).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(begin.elapsed() < DEADLINE, "{:?}", begin.elapsed());
    assert_eq!(libvirtd.qemu("a"), qemu, "the VM lives on");
    libvirtd.start_again();
    expect_event(&mut events, "a", |w| *w == What::ConnectionBack, "ConnectionBack");
    libvirt.order(&a, SIZE).unwrap();
    wait_for("the balloon to empty", || (libvirt.balloon(&a).unwrap() == SIZE).then_some(()));

    // libvirtd hangs: a deadline for each call. The order that it was busy with may come late, the next one never does.
    libvirtd.signal(Signal::STOP);
    let begin = Instant::now();
    for keep in [SMALLER, other] {
        let error = libvirt.order(&a, keep).unwrap_err();
        assert!(matches!(error, Error::Deadline { .. }), "{error}");
    }
    let took = begin.elapsed();
    assert!(took >= DEADLINE * 2 && took < DEADLINE * 2 + Duration::from_secs(1), "{took:?}");
    libvirtd.signal(Signal::CONT);
    wait_for("the first order", || (libvirt.balloon(&a).ok()? == SMALLER).then_some(()));
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(libvirt.balloon(&a), Ok(SMALLER));
    libvirt.order(&a, SIZE).unwrap();
    wait_for("the balloon to empty", || (libvirt.balloon(&a).unwrap() == SIZE).then_some(()));

    // How long an order takes.
    let spans = (0..300)
        .map(|n| {
            let begin = Instant::now();
            libvirt.order(&a, SIZE - Bytes::mib(n % 2)).unwrap();
            begin.elapsed()
        })
        .collect();
    let (median, p99) = quantiles(spans);
    println!("libvirt order: median {median:?}, p99 {p99:?}");
    assert!(median < Duration::from_millis(20), "1.7 ms measured on a quiet machine: {median:?}");

    // Without a balloon.
    libvirtd.virsh(&["start", "--paused", "bare"]);
    expect_event(&mut events, "bare", |w| *w == What::Started, "Started");
    let facts = libvirt.facts(&bare).unwrap();
    assert_eq!(
        (facts.state, facts.has_balloon, facts.actual, facts.deflate_on_oom),
        (State::Paused, false, SIZE, None)
    );
    for error in [
        libvirt.order(&bare, SIZE).unwrap_err(),
        libvirt.balloon(&bare).unwrap_err(),
        libvirt.statistics(&bare).unwrap_err(),
    ] {
        assert_eq!(error, Error::NoBalloon(bare.clone()));
    }

    // Stopped; and one that stops while there is nobody to say so.
    libvirtd.virsh(&["destroy", "a"]);
    expect_event(&mut events, "a", |w| *w == What::Stopped, "Stopped");
    assert_eq!(libvirt.balloon(&a), Err(Error::Off(a.clone())));
    libvirtd.kill();
    expect_event(&mut events, "bare", |w| matches!(w, What::ConnectionLost(_)), "ConnectionLost");
    libvirtd.kill_qemu("bare");
    libvirtd.start_again();
    // The daemon asks for the list now and then; libvirtd may need a moment to find out itself.
    wait_for("libvirt to know it", || {
        let vms = libvirt.vms().ok()?;
        vms.iter().all(|f| f.name != bare || f.state == State::Off).then_some(())
    });
    libvirt.vms().unwrap();
    expect_event(&mut events, "bare", |w| *w == What::Stopped, "Stopped");
}

#[test]
fn a_qemu_that_hangs_holds_up_no_other_vm() {
    let libvirtd = Libvirtd::start();
    initramfs(libvirtd.directory());
    let good = "<memballoon model='virtio' autodeflate='on'/>";
    let (a, b) = (VmName::from("a"), VmName::from("b"));
    let (libvirt, mut events) = connect(&libvirtd);
    for name in ["a", "b"] {
        libvirtd.define(name, &domain(&libvirtd, name, good));
        libvirtd.virsh(&["start", name]);
        expect_event(&mut events, name, |w| *w == What::Started, "Started");
    }
    let states = |libvirt: &Libvirt| {
        let vms = libvirt.vms().unwrap();
        vms.into_iter().map(|f| (f.name, f.state, f.actual)).collect::<Vec<_>>()
    };
    assert_eq!(states(&libvirt), [(a.clone(), State::Running, SIZE), (b.clone(), State::Running, SIZE)]);

    libvirtd.signal_qemu("a", "STOP");
    std::thread::scope(|scope| {
        let first = scope.spawn(|| libvirt.balloon(&a));
        std::thread::sleep(Duration::from_millis(100));
        // Behind a call that hangs.
        libvirt.order(&b, SMALLER).unwrap();
        let error = first.join().unwrap().unwrap_err();
        assert!(matches!(error, Error::Deadline { .. }), "{error}");
    });
    // From now on it is left alone.
    let begin = Instant::now();
    for n in 0..20 {
        let error = libvirt.order(&a, SMALLER).unwrap_err();
        assert_eq!(error, Error::Hung { vm: a.clone(), call: "virDomainSetMemoryFlags" });
        libvirt.order(&b, SMALLER + Bytes::mib(n % 2)).unwrap();
        libvirt.balloon(&b).unwrap();
    }
    assert!(begin.elapsed() < DEADLINE, "{:?}", begin.elapsed());
    let listed = states(&libvirt);
    assert_eq!(listed.iter().map(|(n, s, _)| (n, *s)).collect::<Vec<_>>(), [(&a, State::Hung), (&b, State::Running)]);
    assert_eq!(listed[0].2, SIZE, "what it keeps is known all the same");

    // What was told when it was left alone.
    while events.try_recv().is_ok() {}
    libvirtd.signal_qemu("a", "CONT");
    expect_event(&mut events, "a", |w| *w == What::Changed, "Changed");
    libvirt.order(&a, SMALLER).unwrap();
    assert_eq!(states(&libvirt)[0].1, State::Running);
}

#[test]
fn a_libvirtd_that_is_not_there_is_waited_for() {
    let (sender, mut events) = unbounded_channel();
    let libvirt = Libvirt::new("qemu:///system?socket=/nonexistent/libvirt-sock", sender).unwrap();
    let begin = Instant::now();
    let error = wait_for("the first attempt", || libvirt.vms().err());
    assert!(error.to_string().contains("/nonexistent/libvirt-sock"), "{error}");
    assert!(begin.elapsed() < DEADLINE);
    assert!(events.try_recv().is_err(), "no VM, no event");
}

#[test]
fn a_uri_that_makes_no_sense_is_said_in_libvirts_words() {
    let (sender, _events) = unbounded_channel();
    let libvirt = Libvirt::new("nonsense:///", sender).unwrap();
    let error = wait_for("the reason", || libvirt.vms().err().map(|e| e.to_string()));
    assert!(error.contains("nonsense"), "{error}");
}
