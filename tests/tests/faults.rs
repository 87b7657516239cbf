//! What goes wrong: agents, hypervisors and devices that die or hang, and guests that lie. Every VM stays alive, and
//! whatever happens to one is nothing to another (promises P1, P3 to P6, P9).
//!
//! Where a test plays the guest itself, it speaks to the host agent's own socket as the vsock daemon would; the VM
//! behind it is real, and so is its balloon.
// The helpers of a test fail as the test does.
#![allow(clippy::unwrap_used)]

mod support;

use ballast_protocol::{
    Answer, Bytes, Demand, GuestMessage, HostMessage, Micros, Refusal, Shortfall, Source, Telemetry, Verdict,
};
use ballast_tests::wire::{End, Touch};
use ballast_tests::{HostAgent, Machine, bursting};
use serde_json::{Value, json};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};
use support::{
    FakeAgent, PATIENCE, config, count, decisions, guest_status, hello, idle, known, program, session_went_on,
    squeezed_below, vm, wait_field, wait_for,
};

const FULL: Bytes = Bytes::mib(512);

/// A VM whose agent the test plays.
fn puppet(name: &str) -> Machine {
    Machine::builder(name).without_vsock().start().unwrap()
}

/// An honest VM with the real agent, whose session is to go on whatever others do.
fn honest(name: &str) -> Machine {
    let machine = Machine::builder(name).start().unwrap();
    machine.guest.start_agent(&["run"]).unwrap();
    machine
}

fn demand(id: u64, source: Source, size: Bytes, ballooned: Bytes) -> GuestMessage {
    let (sign, free) = (Micros::secs(100), Bytes::mib(100));
    let within = Micros::millis(100);
    GuestMessage::Demand(Demand { id, source, size, sign, sent: sign, within, free, ballooned: Some(ballooned) })
}

/// What the host says before it hangs up.
fn last_word(agent: &mut FakeAgent) -> Option<Refusal> {
    let mut last = None;
    while let Some(message) = agent.next() {
        if let HostMessage::Refused(why) = message {
            last = Some(why);
        }
    }
    last
}

fn misbehaved(agent: &mut FakeAgent, words: &str) {
    match last_word(agent) {
        Some(Refusal::Misbehaved(why)) if why.as_str().contains(words) => {}
        other => panic!("{other:?} instead of `{words}`"),
    }
}

#[test]
fn broken_frames_end_their_own_session_and_nobody_elses() {
    let (liar, good) = (puppet("liar"), honest("good"));
    let host = HostAgent::start(config(&[&liar, &good])).unwrap();
    wait_field(&host, "good", "agent", "alive");

    // Before Hello and after it.
    for greet in [false, true] {
        for (bytes, words) in [
            (&[1, 0, 200][..], "not a message"),
            (&[0xff, 0xff], "65535 bytes"),
            (&[0, 0], "empty"),
            (&[3, 0, 3, 3, 0], "follow the message"),
        ] {
            let mut agent = if greet { FakeAgent::welcomed(&liar).0 } else { FakeAgent::connect(&liar) };
            assert!(agent.write(bytes));
            misbehaved(&mut agent, words);
        }
    }
    // Cut in the middle of a frame.
    for greet in [false, true] {
        let mut agent = if greet { FakeAgent::welcomed(&liar).0 } else { FakeAgent::connect(&liar) };
        assert!(agent.write(&[200, 0, 1]));
        agent.shut();
        assert_eq!(last_word(&mut agent), None);
    }
    wait_for("the truncation in the log", &host, || host.log().contains("in the middle of a frame").then_some(()));

    // Out of place.
    let mut agent = FakeAgent::connect(&liar);
    agent.say(&GuestMessage::Withdraw { id: 1 });
    misbehaved(&mut agent, "the first message is not Hello");
    let (mut agent, _) = FakeAgent::welcomed(&liar);
    agent.say(&hello());
    misbehaved(&mut agent, "a second Hello");
    let mut agent = FakeAgent::connect(&liar);
    let GuestMessage::Hello(old) = hello() else { unreachable!("it is Hello") };
    agent.say(&GuestMessage::Hello(ballast_protocol::Hello { oldest: 900, newest: 901, ..old }));
    assert_eq!(last_word(&mut agent), Some(Refusal::Version(1, 1)));

    // Silent before Hello, then after it.
    let begun = Instant::now();
    let mut agent = FakeAgent::connect(&liar);
    assert_eq!(last_word(&mut agent), None);
    let (mut agent, welcome) = FakeAgent::welcomed(&liar);
    assert_eq!(last_word(&mut agent), None);
    assert!(begun.elapsed() >= welcome.silence.duration(), "{:?}", begun.elapsed());
    wait_for("the silence in the log", &host, || host.log().contains("silent for 3.0 s").then_some(()));

    // Nothing was held against the VM itself: a good agent is welcome.
    let (mut agent, _) = FakeAgent::welcomed(&liar);
    agent.say(&demand(1, Source::Slack, Bytes::mib(1), Bytes::ZERO));
    assert!(matches!(agent.next(), Some(HostMessage::Answer(Answer { id: 1, .. }))));
    session_went_on(&good);
    assert_eq!(known(&host, "good")["agent"], "alive");
}

/// Floods of every kind while another VM bursts.
#[test]
fn a_flood_is_dammed_and_another_vm_bursts_undisturbed() {
    let _turn = bursting();
    let (liar, mut good) = (puppet("flood"), honest("calm"));
    let host = HostAgent::start(config(&[&liar, &good])).unwrap();
    squeezed_below(&mut good, &host, Bytes::mib(220));
    let burst = good.guest.touch(Touch { mib: 250, ..Touch::default() }).unwrap();

    // Reports beyond the rate are dropped, and the session goes on.
    let (mut agent, _) = FakeAgent::welcomed(&liar);
    let report = idle(Bytes::ZERO);
    for _ in 0..5_000 {
        assert!(agent.report(report.clone()));
        while let Ok(Some(_)) = agent.heard() {}
    }
    agent.say(&demand(1, Source::Slack, Bytes::mib(1), Bytes::ZERO));
    assert!(matches!(agent.next(), Some(HostMessage::Answer(_))), "a flood of reports is no reason to hang up");
    // Anything else beyond the rate ends it.
    while agent.say(&GuestMessage::Withdraw { id: 1 }) {}
    misbehaved(&mut agent, "too many messages");
    // Leases that never end are counted, too: each costs the host memory.
    let (mut agent, _) = FakeAgent::welcomed(&liar);
    for id in 0..600 {
        agent.say(&demand(id, Source::Reserve, Bytes::mib(1), Bytes::ZERO));
        thread::sleep(Duration::from_millis(6));
    }
    misbehaved(&mut agent, "too many leases");
    // A guest that asks and never reads.
    let (mut agent, _) = FakeAgent::welcomed(&liar);
    let mut id = 0;
    wait_for("the end of a session that reads nothing", &host, || {
        id += 1;
        (!agent.say(&demand(id, Source::Slack, Bytes::mib(1), Bytes::ZERO))).then_some(())
    });

    let burst = burst.outcome(PATIENCE).unwrap();
    assert_eq!(burst.end, End::Whole, "{}\n{}", host.log(), good.guest.log());
    assert_eq!(good.guest.counters().unwrap().oom_kills(), 0);
    session_went_on(&good);
}

#[test]
fn a_guest_that_claims_more_than_its_maximum_gets_its_maximum() {
    let mut greedy = puppet("greedy");
    let host = HostAgent::start(config(&[&greedy])).unwrap();
    let (mut agent, _) = FakeAgent::welcomed(&greedy);
    wait_field(&host, "greedy", "agent", "alive");

    // It has all already.
    agent.say(&demand(1, Source::Slack, Bytes::MAX, Bytes::ZERO));
    let answer = |agent: &mut FakeAgent, wanted| match agent.next() {
        Some(HostMessage::Answer(Answer { id, verdict })) if id == wanted => verdict,
        other => panic!("{other:?} instead of an answer"),
    };
    assert_eq!(answer(&mut agent, 1), Verdict::Refused(Shortfall::AtMaximum));

    // Taken from, and then greedy again, by a lease that would last for ever.
    let mut size = FULL;
    agent.report_until(&idle(Bytes::ZERO), || {
        size = greedy.qmp.balloon().unwrap();
        size <= FULL - Bytes::mib(60)
    });
    agent.say(&demand(2, Source::Reserve, Bytes::MAX, FULL - size));
    match answer(&mut agent, 2) {
        Verdict::Partly { size: more, why: Shortfall::AtMaximum, .. } => {
            assert!(size + more <= FULL, "{size} + {more}")
        }
        other => panic!("{other:?}"),
    }
    greedy.wait_balloon(FULL, Bytes::mib(1), PATIENCE).unwrap();
    let status = known(&host, "greedy");
    assert_eq!((&status["min"], &status["target"], &status["leases"]), (&FULL.0.into(), &FULL.0.into(), &1.into()));

    // A balloon that it says is larger than itself changes nothing about that.
    for (id, ballooned) in [(3, Bytes::MAX), (4, Bytes::ZERO)] {
        agent.say(&demand(id, Source::Psi, Bytes::MAX, ballooned));
        let verdict = answer(&mut agent, id);
        match verdict {
            Verdict::Granted { size, .. } | Verdict::Partly { size, .. } => assert!(size <= FULL, "{verdict:?}"),
            Verdict::Refused(why) => assert_eq!(why, Shortfall::AtMaximum),
        }
    }
    assert_eq!(greedy.qmp.balloon().unwrap(), FULL);
    // The lease goes with its session.
    drop(agent);
    wait_field(&host, "greedy", "leases", 0);
}

#[test]
fn reports_of_nonsense_are_not_believed_and_nothing_is_taken_on_them() {
    let (mut liar, mut good) = (puppet("liar"), honest("honest"));
    let host = HostAgent::start(config(&[&liar, &good])).unwrap();
    let (mut agent, _) = FakeAgent::welcomed(&liar);
    wait_field(&host, "liar", "agent", "alive");

    let sound = idle(Bytes::ZERO);
    let use_above_total = Telemetry { anon: Bytes::mib(460), ..sound.clone() };
    let more_than_it_has = Telemetry { total: Bytes::mib(513), ..sound.clone() };
    let mut counters_back = sound.clone();
    counters_back.counters.alloc_stall = Some(1);
    // An answer tells that all before it was read, and judged.
    let mut asked = 0;
    let mut judged = |agent: &mut FakeAgent| {
        asked += 1;
        agent.say(&demand(asked, Source::Slack, Bytes::mib(1), Bytes::ZERO));
        assert!(matches!(agent.next(), Some(HostMessage::Answer(_))));
        count(&host, "liar", "distrusted")
    };
    for (row, nonsense) in [use_above_total, more_than_it_has, counters_back].into_iter().enumerate() {
        agent.report(sound.clone());
        assert_eq!(judged(&mut agent), row as u64);
        agent.report(nonsense);
        assert_eq!(judged(&mut agent), row as u64 + 1, "{}", decisions(&host, "liar"));
        assert_eq!(known(&host, "liar")["trusted"], false);
    }
    assert!(decisions(&host, "liar").contains("memory sum to 850 MiB"), "{}", decisions(&host, "liar"));
    // Possible by itself, but the hypervisor knows better: its balloon holds nothing.
    agent.report(sound.clone());
    assert_eq!(judged(&mut agent), 3);
    agent.report_until(&idle(Bytes::mib(200)), || count(&host, "liar", "distrusted") > 3);
    // Sound again, but not for long enough: still nothing is taken. Meanwhile the other VM is squeezed as ever.
    let squeezed = Instant::now();
    agent.report_until(&sound, || {
        let size = good.qmp.balloon().unwrap();
        squeezed.elapsed() > Duration::from_secs(3) && size < Bytes::mib(300)
    });
    let status = known(&host, "liar");
    assert_eq!((&status["trusted"], &status["counts"]["takings"]), (&false.into(), &0.into()), "{status}");
    assert!(status["holding"].as_str().unwrap().contains("not believed"), "{status}");
    assert_eq!(liar.qmp.balloon().unwrap(), FULL);
    // It is believed again after thirty sound reports in a row.
    agent.report_until(&sound, || liar.qmp.balloon().unwrap() < FULL);
    assert_eq!(known(&host, "liar")["trusted"], true);
    session_went_on(&good);
}

#[test]
fn a_second_agent_of_one_vm_is_refused_and_the_first_goes_on() {
    let (machine, shared) = (honest("twice"), puppet("shared"));
    let host = HostAgent::start(config(&[&machine, &shared])).unwrap();
    wait_field(&host, "twice", "agent", "alive");
    let second = machine.guest.sh("timeout -s KILL 3 ballast-guest run --socket /tmp/second.sock 2>&1").unwrap();
    assert!(second.output.contains("Occupied"), "{second:?}");
    session_went_on(&machine);

    let (mut first, _) = FakeAgent::welcomed(&shared);
    let mut late = FakeAgent::connect(&shared);
    late.say(&hello());
    assert_eq!(last_word(&mut late), Some(Refusal::Occupied));
    first.say(&demand(1, Source::Slack, Bytes::mib(1), Bytes::ZERO));
    assert!(matches!(first.next(), Some(HostMessage::Answer(_))));
    // Once the first is gone, the next is welcome.
    drop(first);
    wait_for("its end", &host, || (known(&host, "shared")["agent"] != "alive").then_some(()));
    FakeAgent::welcomed(&shared);
}

/// P9: killed in the middle of a burst, and back: nobody dies, and nothing is taken back at once.
#[test]
fn the_host_agent_killed_in_the_middle_of_a_burst() {
    let _turn = bursting();
    let mut machine = honest("orphan");
    let mut host = HostAgent::start(config(&[&machine])).unwrap();
    squeezed_below(&mut machine, &host, Bytes::mib(200));
    let low = machine.qmp.balloon().unwrap();
    let touch = Touch { mib: 280, rate_mib_s: Some(100), ..Touch::default() };
    let burst = machine.guest.touch(touch).unwrap();
    let size = wait_for("the first giving", &host, || {
        let size = machine.qmp.balloon().unwrap();
        (size > low + Bytes::mib(20)).then_some(size)
    });
    host.kill();
    thread::sleep(Duration::from_millis(300));
    let at_restart = machine.qmp.balloon().unwrap();
    assert!(at_restart >= size, "nobody was there to take anything: {size}, then {at_restart}");
    host.restart().unwrap();
    let begun = Instant::now();
    let mut lowest = at_restart;
    while begun.elapsed() < Duration::from_millis(1_500) {
        lowest = lowest.min(machine.qmp.balloon().unwrap());
    }
    assert!(lowest + Bytes::mib(1) >= at_restart, "a jump down from {at_restart} to {lowest} after the restart");
    let burst = burst.outcome(PATIENCE).unwrap();
    assert_eq!(burst.end, End::Whole, "{}\n{}", host.log(), machine.guest.log());
    assert_eq!(machine.guest.counters().unwrap().oom_kills(), 0);
    // It resumes: the agent is back by itself, and what the burst left is taken again.
    wait_field(&host, "orphan", "agent", "alive");
    squeezed_below(&mut machine, &host, Bytes::mib(250));
    assert!(decisions(&host, "orphan").contains("found like this"), "{}", decisions(&host, "orphan"));
}

#[test]
fn the_guest_agent_killed_and_back() {
    let mut machine = honest("headless");
    let host = HostAgent::start(config(&[&machine])).unwrap();
    squeezed_below(&mut machine, &host, Bytes::mib(250));
    machine.guest.kill_agent(9).unwrap();
    wait_field(&host, "headless", "agent", "lost");
    // Nothing more is taken, and what was is given back step by step.
    let (takings, size) = (count(&host, "headless", "takings"), machine.qmp.balloon().unwrap());
    wait_for("the first step of the decay", &host, || {
        (machine.qmp.balloon().unwrap() > size + Bytes::mib(20)).then_some(())
    });
    assert!(decisions(&host, "headless").contains("nothing is known of the guest any more"));
    assert_eq!(count(&host, "headless", "takings"), takings);
    machine.guest.start_agent(&["run"]).unwrap();
    wait_field(&host, "headless", "agent", "alive");
    let size = machine.qmp.balloon().unwrap();
    squeezed_below(&mut machine, &host, size - Bytes::mib(20));
    session_went_on(&machine);

    // An agent that stops on purpose says so.
    machine.guest.kill_agent(15).unwrap();
    wait_field(&host, "headless", "agent", "lost");
    wait_for("its end", &host, || machine.guest.agent().unwrap().status.is_some().then_some(()));
    assert_eq!(machine.guest.agent().unwrap().status, Some(0));
    wait_for("its goodbye", &host, || host.log().contains("said goodbye").then_some(()));
}

#[test]
fn a_qemu_that_is_killed_is_forgotten_and_the_others_go_on() {
    let (mut victim, mut other) = (honest("victim"), honest("other"));
    let host = HostAgent::start(config(&[&victim, &other])).unwrap();
    wait_field(&host, "victim", "agent", "alive");
    squeezed_below(&mut other, &host, Bytes::mib(300));
    victim.qemu.signal(rustix::process::Signal::KILL).unwrap();
    victim.qemu.wait(PATIENCE).unwrap();
    wait_for("the VM to be forgotten", &host, || vm(&host, "victim").is_none().then_some(()));
    let status = host.status().unwrap();
    assert_eq!(status["waiting"], json!([{ "name": "victim", "agent": false }]), "{status}");
    drop(victim);
    let burst = other.guest.burst(100).unwrap();
    assert_eq!(burst.end, End::Whole);
    session_went_on(&other);
}

#[test]
fn a_reboot_empties_the_balloon_and_the_next_agent_is_welcome() {
    let mut machine = honest("reboot");
    let host = HostAgent::start(config(&[&machine])).unwrap();
    squeezed_below(&mut machine, &host, Bytes::mib(250));
    machine.reboot().unwrap();
    // The old kernel's agent is gone; the new kernel has all memory, with or without an agent. QEMU's own figure is
    // the old kernel's until the new driver moves, so it is the guest that is asked.
    wait_for("the old session's end", &host, || (known(&host, "reboot")["agent"] != "alive").then_some(()));
    let vmstat = machine.guest.counters().unwrap().vmstat;
    let held = Bytes::from(ballast_protocol::Pages(vmstat["balloon_inflate"] - vmstat["balloon_deflate"]));
    assert!(held < Bytes::mib(16), "the new kernel's balloon holds {held} already\n{}", host.log());
    let burst = machine.guest.burst(300).unwrap();
    assert_eq!(burst.end, End::Whole, "{}", machine.guest.log());
    // vhost-device-vsock 0.3.0 does not survive the reset of its VM.
    if machine.vsock.as_ref().unwrap().hybrid.is_some() {
        machine.vsock.as_mut().unwrap().kill_daemon().unwrap();
        replug(&mut machine, &host);
    }
    machine.guest.start_agent(&["run"]).unwrap();
    wait_field(&host, "reboot", "agent", "alive");
    squeezed_below(&mut machine, &host, Bytes::mib(300));
    assert_eq!(machine.guest.counters().unwrap().oom_kills(), 0);
    session_went_on(&machine);
}

/// The test plays the guest: vhost-device-vsock 0.3.0 does not survive a pause of its VM.
#[test]
fn a_paused_vm_is_left_alone_and_its_session_outlives_the_silence() {
    let mut machine = puppet("pause");
    let host = HostAgent::start(config(&[&machine])).unwrap();
    let (mut agent, _) = FakeAgent::welcomed(&machine);
    let mut size = FULL;
    agent.report_until(&idle(Bytes::ZERO), || {
        size = machine.qmp.balloon().unwrap();
        size <= FULL - Bytes::mib(60)
    });
    machine.qmp.run("stop", json!({})).unwrap();
    wait_field(&host, "pause", "running", false);
    let size = machine.qmp.balloon().unwrap();
    let (takings, stalled) = (count(&host, "pause", "takings"), count(&host, "pause", "stalled"));
    // Longer than any silence that is taken for life, and than a running guest may take to follow an order.
    thread::sleep(Duration::from_secs(9));
    let status = known(&host, "pause");
    assert!(status["holding"].as_str().unwrap().contains("paused"), "{status}");
    assert_eq!((&status["agent"], &status["running"]), (&"alive".into(), &false.into()), "{status}");
    assert_eq!((count(&host, "pause", "takings"), machine.qmp.balloon().unwrap()), (takings, size));
    machine.qmp.run("cont", json!({})).unwrap();
    wait_field(&host, "pause", "running", true);
    // The same session goes on, and so does the taking.
    agent.report_until(&idle(FULL - size), || count(&host, "pause", "takings") > takings);
    assert_eq!(count(&host, "pause", "stalled"), stalled, "a paused guest cannot follow, which is no stall");
    // Silence counts again now.
    assert_eq!(last_word(&mut agent), None);
    wait_for("the silence in the log", &host, || host.log().contains("silent for 3.0 s").then_some(()));
    assert_eq!(machine.guest.counters().unwrap().oom_kills(), 0);
}

/// The guest's driver is gone, and its agent claims to have memory to spare.
#[test]
fn an_inflation_that_cannot_complete_is_undone_and_blocked() {
    let mut machine = puppet("stuck");
    let unbind = "cd /sys/bus/virtio/drivers/virtio_balloon && for d in virtio*; do echo $d >unbind; done";
    machine.guest.sh_ok(unbind).unwrap();
    let host = HostAgent::start(config(&[&machine])).unwrap();
    let (mut agent, _) = FakeAgent::welcomed(&machine);
    let report = Telemetry { ballooned: None, ..idle(Bytes::ZERO) };
    agent.report_until(&report, || count(&host, "stuck", "takings") == 1);
    assert_eq!(known(&host, "stuck")["actual"], FULL.0, "nobody is there to inflate");
    agent.report_until(&report, || count(&host, "stuck", "stalled") == 1);
    let status = known(&host, "stuck");
    assert_eq!(status["target"], FULL.0, "undone");
    assert!(status["holding"].as_str().unwrap().contains("blocked"), "{status}");
    assert!(status["holding_for"].as_u64() > Some(5_000_000), "{status}");
    assert!(decisions(&host, "stuck").contains("undone, and blocked for a while"), "{}", decisions(&host, "stuck"));
    // The driver is back: nothing that was ordered before comes true now.
    machine.guest.sh_ok("cd /sys/bus/virtio/drivers/virtio_balloon && echo virtio0 >bind; ls -d virtio*").unwrap();
    let begun = Instant::now();
    agent.report_until(&report, || {
        assert!(machine.qmp.balloon().unwrap() >= FULL - Bytes::mib(1), "an order that was undone was carried out");
        begun.elapsed() > Duration::from_secs(2)
    });
    assert_eq!(count(&host, "stuck", "takings"), 1);
}

/// Takes the vsock device out and puts in another one, with a daemon of its own.
fn replug(machine: &mut Machine, host: &HostAgent) {
    machine.qmp.run("device_del", json!({ "id": "vsock0" })).unwrap();
    wait_for("the device to be unplugged", host, || {
        let gone = |(name, data): &(String, Value)| name == "DEVICE_DELETED" && data["device"] == "vsock0";
        machine.qmp.events().unwrap().iter().any(gone).then_some(())
    });
    machine.qmp.run("chardev-remove", json!({ "id": "vsock" })).unwrap();
    for socket in ["vhost", "vsock"] {
        let _ = std::fs::remove_file(machine.folder().join(socket));
    }
    machine.vsock = None;
    machine.plug_vsock().unwrap();
}

/// Its streams hang without an error: both ends notice by their deadlines, and find each other again.
#[test]
fn a_vsock_daemon_that_dies_is_noticed_by_both_ends_and_can_be_replaced() {
    let mut machine = honest("cut");
    if machine.vsock.as_ref().unwrap().hybrid.is_none() {
        println!("this host has the kernel's vsock device, which has no daemon that could die");
        return;
    }
    let host = HostAgent::start(config(&[&machine])).unwrap();
    squeezed_below(&mut machine, &host, Bytes::mib(250));
    let size = machine.qmp.balloon().unwrap();
    machine.vsock.as_mut().unwrap().kill_daemon().unwrap();
    wait_field(&host, "cut", "agent", "lost");
    wait_for("the guest agent to notice", &host, || (guest_status(&machine)["connected"] == false).then_some(()));
    wait_for("memory to come back", &host, || (machine.qmp.balloon().unwrap() > size + Bytes::mib(20)).then_some(()));

    replug(&mut machine, &host);
    wait_field(&host, "cut", "agent", "alive");
    let size = machine.qmp.balloon().unwrap();
    squeezed_below(&mut machine, &host, size - Bytes::mib(20));
}

#[test]
fn a_wrong_configuration_is_refused_with_its_line_and_changes_nothing() {
    let mut machine = honest("running");
    let mut host = HostAgent::start(config(&[&machine])).unwrap();
    squeezed_below(&mut machine, &host, Bytes::mib(300));
    let pid = host.pid();
    let good = std::fs::read_to_string(host.config_path()).unwrap();
    let try_config = |name: &str, text: &str| {
        let path = host.config_path().with_file_name(name);
        std::fs::write(&path, text).unwrap();
        let output = Command::new(program()).args(["run", "--config"]).arg(&path).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{said}");
        (said, path.display().to_string())
    };
    let vm = good.lines().position(|l| l == "[[vm]]").expect("toml writes tables of an array like this") + 1;
    for (wrong, problem) in [
        ("headroom = \"12 parsecs\"", "parsecs"),
        ("headroom = 512", "a memory size in quotes"),
        ("headroon = \"32MiB\"", "did you mean `headroom`"),
        ("min = \"2GiB\"", "min 2 GiB is above max 512 MiB"),
    ] {
        let text = good.replace("[[vm]]", &format!("[[vm]]\n{wrong}"));
        let (said, path) = try_config("wrong.toml", &text);
        assert!(said.contains(&format!("{path}:{}:", vm + 1)), "no file and line: {said}");
        assert!(said.contains(problem) && said.contains("running"), "{problem}, VM: {said}");
        // With its monitor known it would be left alone; what ends it is that it has a daemon.
        assert!(said.contains("hands off this VM until") && said.contains("another ballast-host"), "{said}");
    }
    let (said, path) = try_config("empty.toml", "");
    assert!(said.contains(&path) && said.contains("nothing to manage"), "{said}");

    // A right one, but these VMs have a daemon already.
    let (said, _) = try_config("second.toml", &good);
    assert!(said.contains("another ballast-host"), "{said}");
    // Nor with a control socket of its own.
    let control = host.config_path().with_file_name("control").display().to_string();
    let (said, _) = try_config("third.toml", &good.replace(&control, &format!("{control}-of-its-own")));
    assert!(machine.vsock.as_ref().unwrap().hybrid.is_none() || said.contains("VM `running`"), "{said}");

    assert_eq!(host.pid(), pid);
    assert_eq!(known(&host, "running")["agent"], "alive");
    session_went_on(&machine);
    let burst = machine.guest.burst(250).unwrap();
    assert_eq!(burst.end, End::Whole, "{}", host.log());
    let journal = std::fs::read_to_string(host.journal_path()).unwrap();
    assert!(journal.lines().count() > 10, "a second instance moved the first one's journal aside");
}
