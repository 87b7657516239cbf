//! Real machines: that they boot, clone, can be commanded and measured, and leave nothing behind.

use ballast_protocol::{Bytes, DEFAULT_PORT, Deframer, GuestMessage, VERSION};
use ballast_tests::wire::{End, Touch};
use ballast_tests::{Balloon, Machine, NOISE_FILE, bursting, sweep};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn a_guest_boots_and_its_memory_is_counted() {
    let _turn = bursting();
    let begun = Instant::now();
    let mut machine = Machine::builder("boot").without_vsock().boot().unwrap();
    println!("booted in {:?}", begun.elapsed());
    let before = machine.resident().unwrap();

    let burst = machine.guest.burst(150).unwrap();
    assert_eq!((burst.touched_mib, &burst.end), (150, &End::Whole));
    assert!(burst.worst_us >= burst.p99_us && burst.p99_us >= burst.median_us && burst.median_us > 0, "{burst:?}");
    let after = machine.resident().unwrap();
    assert!(after >= before + Bytes::mib(60), "a burst of 150 MiB: {before} resident before, {after} after");

    // What the guest freed stays with QEMU until the balloon takes it.
    let keep = Bytes::mib(200);
    machine.qmp.set_balloon(keep).unwrap();
    machine.wait_balloon(keep, Bytes::mib(1), PATIENCE).unwrap();
    let taken = machine.resident().unwrap();
    assert!(taken <= keep, "{taken} resident of {keep} ordered");
    println!("resident: {before} booted, {after} after the burst, {taken} ballooned to {keep}");
}

/// The counters begin anew, and a clone finds its plugged device again.
#[test]
fn a_clone_can_be_rebooted() {
    let mut machine = Machine::builder("reboot").start().unwrap();
    let before = machine.guest.clock().unwrap().1;
    let id = "cat /proc/sys/kernel/random/boot_id";
    let first = machine.guest.sh_ok(id).unwrap();
    machine.reboot().unwrap();
    assert_ne!(machine.guest.sh_ok(id).unwrap(), first);
    assert!(machine.guest.clock().unwrap().1 < before + 20_000_000);
    machine.guest.sh_ok("ls /sys/bus/virtio/drivers/vmw_vsock_virtio_transport/virtio*").unwrap();
}

#[test]
fn clones_run_apart_from_each_other() {
    let _turn = bursting();
    drop(Machine::builder("first").start().unwrap());
    let mut clones = Vec::new();
    for name in ["a", "b", "c"] {
        let begun = Instant::now();
        clones.push(Machine::builder(name).start().unwrap());
        println!("clone {name} with vsock in {:?}", begun.elapsed());
    }
    for clone in &clones {
        clone.guest.sh_ok(&format!("echo {} >/tmp/name", clone.name())).unwrap();
    }
    for clone in &clones {
        assert_eq!(clone.guest.sh_ok("cat /tmp/name").unwrap().trim(), clone.name());
    }
    let before: Vec<_> = clones.iter().map(|c| c.resident().unwrap()).collect();
    clones[0].guest.burst(200).unwrap();
    let after: Vec<_> = clones.iter().map(|c| c.resident().unwrap()).collect();
    assert!(after[0] >= before[0] + Bytes::mib(60), "{before:?} {after:?}");
    assert!(after[1] < before[1] + Bytes::mib(20), "{before:?} {after:?}");
}

/// The whole path of a session without the agents: guest, device, daemon or kernel, host; and what the guest side of
/// the privileged-port rule is tested with.
#[test]
fn a_guest_reaches_the_host_by_vsock() {
    const PORT: u32 = 7100;
    let machine = Machine::builder("vsock").start().unwrap();
    let Some(hybrid) = machine.vsock.as_ref().unwrap().hybrid.clone() else {
        println!("this host has the kernel's vsock device: the AF_VSOCK path is tested inside a guest");
        return;
    };
    let listener = UnixListener::bind(format!("{}_{PORT}", hybrid.display())).unwrap();
    let host = thread::spawn(move || listener.accept().unwrap().0.write_all(b"who are you?").unwrap());
    let peer = machine.guest.vsock_connect_unprivileged(2, PORT).unwrap();
    host.join().unwrap();
    assert_eq!((peer.received.as_slice(), peer.closed), (b"who are you?".as_slice(), true));
    assert!(peer.source_port >= 1024, "{peer:?}");
    let refused = machine.guest.vsock_connect_unprivileged(2, PORT + 1).unwrap_err();
    assert!(format!("{refused:#}").contains("cannot connect"), "{refused:#}");
}

#[test]
fn workloads_report_what_became_of_them() {
    let _turn = bursting();
    let machine = Machine::builder("work").disk().without_vsock().start().unwrap();
    let guest = &machine.guest;

    let ramp = guest.ramp(40, 80).unwrap();
    assert_eq!(ramp.touched_mib, 40);
    assert!((450.0..3_000.0).contains(&ramp.millis()), "40 MiB at 80 MiB/s: {ramp:?}");

    let cached = |c: &ballast_tests::wire::Counters| c.meminfo["Cached"] + c.meminfo["Buffers"];
    let before = cached(&guest.counters().unwrap());
    assert_eq!(guest.read(NOISE_FILE, 50).unwrap().bytes, 50 << 20);
    let after = cached(&guest.counters().unwrap());
    assert!(after >= before + (45 << 10), "50 MiB read: {before} KiB cached before, {after} after");

    let swarm = guest.procs(10, 2).unwrap();
    assert_eq!((swarm.started, swarm.alive), (10, 10));

    let hogs = guest.cpu_hogs(2, 1).unwrap();
    guest.ping().unwrap();
    hogs.wait(PATIENCE).unwrap();

    let anon = || guest.counters().unwrap().meminfo["AnonPages"];
    let free = anon();
    let held = guest.hold(64).unwrap();
    assert!(anon() >= free + (60 << 10));
    guest.cancel(held).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while anon() >= free + (10 << 10) {
        assert!(Instant::now() < deadline, "a cancelled workload keeps its memory");
    }

    assert_eq!(guest.probe(64).unwrap(), Ok(()));
    assert!(guest.probe(4_000).unwrap().unwrap_err().contains("annot allocate memory"));
    let failed = guest.sh("echo said; exit 3").unwrap();
    assert_eq!((failed.status, failed.output.as_str()), (3, "said\n"));
    assert!(guest.kill_agent(9).is_err() && !guest.agent().unwrap().alive);

    let (before, first, after) = guest.clock().unwrap();
    thread::sleep(Duration::from_millis(50));
    let second = guest.clock().unwrap();
    let passed = Duration::from_micros(second.1 - first);
    assert!(passed <= second.2 - before && passed >= second.0 - after, "the guest's clock went {passed:?}");
}

#[test]
fn an_oom_kill_and_a_refused_allocation_are_told_apart() {
    let _turn = bursting();
    let balloon = Balloon { deflate_on_oom: false, ..Balloon::default() };
    let mut machine = Machine::builder("oom").balloon(Some(balloon)).without_vsock().start().unwrap();
    let keep = Bytes::mib(256);
    machine.qmp.set_balloon(keep).unwrap();
    machine.wait_balloon(keep, Bytes::mib(1), PATIENCE).unwrap();

    // One mapping beyond all that the guest has is refused before a page is touched.
    let refused = machine.guest.burst(300).unwrap();
    assert!(matches!(&refused.end, End::Refused(why) if why.contains("annot allocate memory")), "{refused:?}");
    assert_eq!(refused.touched_mib, 0);

    // Many small ones are granted, and then somebody pays.
    let order = Touch { mib: 400, chunk_mib: Some(4), ..Touch::default() };
    let killed = machine.guest.touch(order).unwrap().outcome(PATIENCE).unwrap();
    assert!(matches!(killed.end, End::Killed { signal: 9, oom_kills: 1.. }), "{killed:?}");
    assert!(machine.guest.counters().unwrap().oom_kills() >= 1);
    machine.guest.ping().unwrap();
}

#[test]
fn the_agent_in_the_image_calls_the_host_and_is_watched() {
    let machine = Machine::builder("agent").start().unwrap();
    let Some(hybrid) = machine.vsock.as_ref().unwrap().hybrid.clone() else {
        println!("this host has the kernel's vsock device: the AF_VSOCK path is tested inside a guest");
        return;
    };
    let listener = UnixListener::bind(format!("{}_{DEFAULT_PORT}", hybrid.display())).unwrap();
    let hello = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let mut deframer = Deframer::default();
        loop {
            if let Some(message) = deframer.next_frame::<GuestMessage>().unwrap() {
                return message;
            }
            let n = stream.read(deframer.space()).unwrap();
            assert!(n > 0, "the agent closed the connection before it said anything");
            deframer.advance(n);
        }
    });
    machine.guest.start_agent(&["run"]).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !hello.is_finished() {
        assert!(Instant::now() < deadline, "no Hello: {:?}\n{}", machine.guest.agent(), machine.guest.log());
        thread::sleep(Duration::from_millis(5));
    }
    let GuestMessage::Hello(hello) = hello.join().unwrap() else { panic!("the first message is no Hello") };
    println!("{hello:?}");
    assert_eq!(hello.newest, VERSION);
    assert!(hello.capabilities.psi && hello.capabilities.cgroup2, "{hello:?}");
    assert_eq!(hello.capabilities.balloon.map(|b| b.deflate_on_oom), Some(true));

    let counters = machine.guest.counters().unwrap();
    println!("agent: {:?} KiB resident, {:?} us of CPU", counters.agent_rss_kib, counters.agent_cpu_us);
    assert!(counters.agent_rss_kib.unwrap() > 0 && counters.agent_cpu_us.unwrap() > 0);
    machine.guest.kill_agent(9).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while machine.guest.agent().unwrap().alive {
        assert!(Instant::now() < deadline, "the agent survives SIGKILL");
    }
    assert_eq!(machine.guest.agent().unwrap().status, Some(-9));
}

#[test]
fn the_host_agent_runs_inside_a_guest_too() {
    let machine = Machine::builder("both").host_agent().without_vsock().start().unwrap();
    let version = machine.guest.sh_ok("ballast-host --version").unwrap();
    assert!(version.starts_with("ballast-host "), "{version}");
    // AF_VSOCK within one guest: CID 1 answers, and nobody listens there yet.
    let refused = machine.guest.vsock_connect_unprivileged(1, DEFAULT_PORT).unwrap_err();
    assert!(format!("{refused:#}").contains("onnection reset"), "{refused:#}");
}

/// Not a test: what `nothing_survives_a_killed_test` runs and kills.
#[test]
#[ignore = "run by nothing_survives_a_killed_test"]
fn helper_that_is_killed() {
    if std::env::var_os("BALLAST_HELPER").is_none() {
        return;
    }
    let machine = Machine::builder("victim").start().unwrap();
    println!("\nvictim {} {}", machine.qemu.pid(), machine.folder().display());
    std::io::stdout().flush().unwrap();
    thread::sleep(Duration::from_secs(120));
}

#[test]
fn nothing_survives_a_killed_test() {
    let mut helper = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "helper_that_is_killed", "--ignored", "--nocapture"])
        .env("BALLAST_HELPER", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(helper.stdout.take().unwrap());
    let line = out.lines().map_while(Result::ok).find(|l| l.starts_with("victim "));
    let children = descendants(helper.id());
    helper.kill().unwrap();
    helper.wait().unwrap();
    let line = line.expect("the helper starts a machine");
    let (qemu, folder) = line.trim_start_matches("victim ").split_once(' ').unwrap();
    assert!(children.contains(&qemu.parse().unwrap()), "{children:?} {qemu}");
    let deadline = Instant::now() + PATIENCE;
    while let Some(pid) = children.iter().find(|pid| lives(**pid)) {
        assert!(Instant::now() < deadline, "process {pid} survives: {:?}", command_line(*pid));
        thread::sleep(Duration::from_millis(10));
    }
    assert!(Path::new(folder).exists(), "the helper was killed: nobody could tidy up yet");
    sweep();
    assert!(!Path::new(folder).exists(), "{folder} is left behind");
}

/// All processes below `pid`.
fn descendants(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut above = vec![pid];
    while let Some(pid) = above.pop() {
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            let children: Vec<u32> = children.split_whitespace().filter_map(|c| c.parse().ok()).collect();
            above.extend(&children);
            found.extend(children);
        }
    }
    found
}

/// A zombie that nobody waits for does not live.
fn lives(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|l| l.starts_with("State:") && !l.contains('Z'))
}

fn command_line(pid: u32) -> String {
    let mut text = Vec::new();
    let _ = std::fs::File::open(format!("/proc/{pid}/cmdline")).and_then(|mut f| f.read_to_end(&mut text));
    String::from_utf8_lossy(&text).replace('\0', " ")
}
