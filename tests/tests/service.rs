//! Service levels on real guests: the daemon's prober learns what a server gives, sees it thrash, and gives memory
//! back; and what is wrong with a server is told and holds up nobody.
#![allow(clippy::unwrap_used)]

mod support;

use ballast_protocol::{Bytes, Telemetry};
use ballast_tests::{HostAgent, Link, Machine, Network, bursting};
use serde_json::Value;
use std::process::Command;
use std::time::{Duration, Instant};
use support::{FakeAgent, PATIENCE, config, decisions, idle, program, vm, wait_for};
use toml::Table;

const PORT: u16 = 5201;
/// For clients other than the prober.
const OTHER_PORT: u16 = 5202;

/// A swap of 100 MiB in memory, and a place for the hogs.
const ZRAM: &str = "echo 100M >/sys/block/zram0/disksize && mkswap /dev/zram0 && swapon /dev/zram0 && \
                    mkdir /hog && mount -t tmpfs -o size=400m hog /hog && seq 1 99999 | head -c 524288 >/hog/piece";

/// Three processes, each of which holds 60 MiB that compress and reads them again and again.
const HOGS: &str = "for n in 1 2 3; do (for i in $(seq 60); do cat /hog/piece /hog/piece; done >/hog/$n; \
                    while :; do dd if=/hog/$n of=/dev/null bs=64k; done) >/dev/null 2>&1 & done";

/// The machine's daemon with a prober that is not patient; more than 1 % of the time, which is what tests have.
fn probing(machine: &Machine, service: &str, port: u16) -> Table {
    let mut config = config(&[machine]);
    let vms = config.get_mut("vm").and_then(toml::Value::as_array_mut).unwrap();
    let vm = vms[0].as_table_mut().unwrap();
    let place = Table::from_iter([("address".to_owned(), service.into()), ("port".to_owned(), i64::from(port).into())]);
    vm.insert("service".into(), place.into());
    if let Some(interface) = machine.interface() {
        vm.insert("interface".into(), interface.into());
    }
    let prober = toml::toml! {
        period = "2s"
        length = "500ms"
        time-per-hour = "1h"
        traffic-per-hour = "500GiB"
    };
    config.insert("prober".into(), prober.into());
    config
}

/// Other guests of the same test machine must not look like a shortfall of this one. Where that is not allowed it is
/// left as it is.
fn before_others(machine: &Machine, host: &mut HostAgent) {
    for pid in [machine.qemu.pid(), host.pid().unwrap()] {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|t| t.unwrap().file_name());
        Command::new("renice").args(["-n", "-10", "-p"]).args(threads).output().unwrap();
    }
}

fn service(host: &HostAgent) -> Value {
    vm(host, "server").map_or(Value::Null, |v| v["service"].clone())
}

/// What an agent would say that sees nothing to ask for: much is free, and swap is read as the guest's kernel counts.
fn report(machine: &mut Machine, free: Option<Bytes>) -> Telemetry {
    let kept = machine.qmp.balloon().unwrap();
    let mut report = idle(machine.size() - kept);
    if let Some(free) = free {
        (report.free, report.available, report.giveable) = (free, free, free);
    }
    report.counters.swap_in = machine.guest.counters().unwrap().vmstat.get("pswpin").copied();
    report
}

/// Reports until something is so.
fn until(
    agent: &mut FakeAgent,
    machine: &mut Machine,
    host: &HostAgent,
    what: &str,
    mut so: impl FnMut(&HostAgent) -> bool,
) {
    let begun = Instant::now();
    while !so(host) {
        let said = || format!("{}\n{}\n{}", service(host), decisions(host, "server"), host.log());
        assert!(begun.elapsed() < 3 * PATIENCE, "waited in vain until {what}: {}", said());
        let next = Instant::now() + Duration::from_millis(200);
        let telemetry = report(machine, None);
        agent.report_until(&telemetry, || Instant::now() > next);
    }
}

/// A guest that looks idle to the law and is squeezed, then thrashes: its service level says so, and only that.
#[test]
fn a_server_that_thrashes_gets_memory_back_for_its_service_level() {
    let _turn = bursting();
    let network = Network::new().unwrap();
    if network.link() != Link::Tap {
        return println!("the host reaches no machine here: taps are not allowed");
    }
    let mut server = Machine::builder("server").network(&network).without_vsock().start().unwrap();
    server.guest.sh_ok(ZRAM).unwrap();
    server.guest.iperf3_server(PORT).unwrap();
    let address = server.address().unwrap().to_string();
    let mut host = HostAgent::start_in(probing(&server, &address, PORT), &network).unwrap();
    before_others(&server, &mut host);
    let (mut agent, _) = FakeAgent::welcomed(&server);

    let squeezed =
        |host: &HostAgent| vm(host, "server").is_some_and(|v| v["actual"].as_u64() < Some(Bytes::mib(210).0));
    until(&mut agent, &mut server, &host, "it is squeezed", squeezed);
    let learnt = |host: &HostAgent| service(host)["learnt"].as_u64() >= Some(8);
    until(&mut agent, &mut server, &host, "its service is known", learnt);
    println!("well, at {}: {}", server.qmp.balloon().unwrap(), service(&host));

    server.guest.sh_ok(HOGS).unwrap();
    let begun = Instant::now();
    let undone = |host: &HostAgent| decisions(host, "server").contains("the last taking hurt: the service level fell");
    until(&mut agent, &mut server, &host, "memory is given back", undone);
    println!("given back {:?} after the hogs began: {}", begun.elapsed(), service(&host));
    println!("{}", host.command(&["explain", "server"]).unwrap());

    let told = decisions(&host, "server");
    for part in ["probe: to confirm a low sample", "% of the VM's own baseline"] {
        assert!(told.contains(part), "{part} is missing:\n{told}");
    }
    assert!(service(&host)["shortfalls"].as_u64() > Some(0));
    let grown = |host: &HostAgent| vm(host, "server").is_some_and(|v| v["counts"]["given"].as_u64() > Some(0));
    until(&mut agent, &mut server, &host, "the balloon has moved", grown);
    let table = host.command(&["status"]).unwrap();
    assert!(table.contains(" %"), "{table}");
    assert_eq!(server.guest.counters().unwrap().oom_kills(), 0);

    // Samples are in the journal, so that a replay decides the same (P7).
    assert!(host.terminate().unwrap().success(), "{}", host.log());
    let journal = std::fs::read_to_string(host.journal_path()).unwrap();
    assert!(journal.contains("\"Service\"") && journal.contains("\"Probe\""));
    let replay = Command::new(program()).arg("replay").arg(host.journal_path()).output().unwrap();
    assert!(replay.status.success(), "{}", String::from_utf8_lossy(&replay.stdout));
}

/// A pair: the client VM loads the server VM, its interface's counters show it, the prober has a server of its own.
#[test]
fn a_pair_of_vms_loads_each_other_while_the_prober_measures() {
    let _turn = bursting();
    let network = Network::new().unwrap();
    if network.link() != Link::Tap {
        return println!("the host reaches no machine here: taps are not allowed");
    }
    let start =
        |name| Machine::builder(name).memory(Bytes::mib(256)).network(&network).without_vsock().start().unwrap();
    let (server, client) = (start("server"), start("client"));
    server.guest.iperf3_server(PORT).unwrap();
    server.guest.iperf3_server(OTHER_PORT).unwrap();
    let address = server.address().unwrap().to_string();
    let host = HostAgent::start_in(probing(&server, &address, PORT), &network).unwrap();
    wait_for("a first sample", &host, || service(&host)["throughput"].as_u64());
    let port = OTHER_PORT.to_string();
    let load = client.guest.iperf3(&["-c", &address, "-p", &port, "-t", "12", "-b", "30M"]).unwrap();
    assert!(load["end"]["sum_received"]["bits_per_second"].as_f64() > Some(20e6), "{load}");
    let journal = std::fs::read_to_string(host.journal_path()).unwrap();
    let of_mode = |mode: &str| {
        let mode = format!("\"mode\":\"{mode}\"");
        journal.lines().filter(|l| l.contains(&mode)).count()
    };
    println!("{} probes, {} figures of the interface", of_mode("Unlimited"), of_mode("Passive"));
    assert!(of_mode("Unlimited") > 1 && of_mode("Passive") > 0);
}

/// A server at port 6000 that hangs: the kernel accepts for it, and it answers nothing.
fn stopped_server(machine: &Machine) {
    machine.guest.iperf3_server(6000).unwrap();
    machine.guest.sh_ok("kill -STOP $(pidof iperf3)").unwrap();
}

/// Absent, silent and rude servers: named with VM and address, and the daemon goes on with its work.
#[test]
fn a_server_that_is_none_is_named_and_holds_up_nothing() {
    let network = Network::new().unwrap();
    if network.link() != Link::Tap {
        return println!("the host reaches no machine here: taps are not allowed");
    }
    let machine = Machine::builder("server").memory(Bytes::mib(256)).network(&network).without_vsock().start().unwrap();
    let address = machine.address().unwrap().to_string();
    stopped_server(&machine);
    machine.guest.sh_ok("telnetd -p 6001 -l /bin/hostname").unwrap();
    let cases = [
        (5999, "no iperf3 server at", "start `iperf3 -s -p 5999` in the VM"),
        (6000, "the server at", "accepts connections and answers nothing"),
        (6001, "iperf3 to", "failed: "),
    ];
    for (port, begins, contains) in cases {
        let mut host = HostAgent::start_in(probing(&machine, &address, port), &network).unwrap();
        let problem = wait_for("a problem", &host, || {
            let status = host.status().unwrap();
            Some(status["probes"].get(0)?["problem"].as_str()?.to_owned())
        });
        assert!(problem.starts_with(&format!("{begins} {address}:{port}")) && problem.contains(contains), "{problem}");
        wait_for("the log", &host, || {
            host.log().contains(&format!("the service level of VM server is not measured: {begins}")).then_some(())
        });
        assert_eq!(service(&host), Value::Null, "nothing was measured");
        assert!(host.command(&["status"]).unwrap().contains(&problem));
        assert!(host.command(&["explain", "server"]).unwrap().contains(&problem));
        let begun = Instant::now();
        assert!(host.terminate().unwrap().success(), "{}", host.log());
        assert!(begun.elapsed() < Duration::from_secs(10), "its end waits for no probe: {:?}", begun.elapsed());
    }
}

const CHILD: &str = "BALLAST_SERVICE_CHILD";

/// Killed at once while it probes: no namespace, tap, bridge, QEMU, daemon or iperf3 is left.
#[test]
fn nothing_is_left_of_a_test_that_was_killed() {
    if std::env::var_os(CHILD).is_some() {
        return as_child();
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["nothing_is_left_of_a_test_that_was_killed", "--exact", "--nocapture"])
        .env(CHILD, "1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let line = lines.map_while(Result::ok).find(|l| l.contains("READY ")).expect("the child gets ready");
    let mut words = line.split("READY ").nth(1).unwrap().split_whitespace();
    let (space, folder) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
    let users = || {
        let all = std::fs::read_dir("/proc").unwrap().flatten().map(|p| p.path());
        let of = |path: &std::path::PathBuf| {
            let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let inside = std::fs::read_link(path.join("ns/net")).is_ok_and(|n| n.to_string_lossy() == space);
            (inside || line.contains(&folder)).then_some(line)
        };
        all.filter_map(|p| of(&p)).collect::<Vec<_>>()
    };
    assert!(users().iter().any(|l| l.contains("iperf3 -J")), "a probe runs: {:?}", users());
    child.kill().unwrap();
    child.wait().unwrap();
    let begun = Instant::now();
    while !users().is_empty() {
        assert!(begun.elapsed() < PATIENCE, "left behind: {:?}", users());
        std::thread::sleep(Duration::from_millis(20));
    }
    // Folders of the dead are swept before the first machine of the next process.
    ballast_tests::sweep();
    assert!(!std::path::Path::new(&folder).exists());
}

fn as_child() {
    let network = Network::new().unwrap();
    let machine = Machine::builder("server").memory(Bytes::mib(256)).network(&network).without_vsock().start().unwrap();
    stopped_server(&machine);
    let address = machine.address().unwrap().to_string();
    let _host = HostAgent::start_in(probing(&machine, &address, 6000), &network).unwrap();
    let inside = |program: &str, args: &[&str]| {
        let output = network.command(program).args(args).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let space = inside("readlink", &["/proc/self/ns/net"]);
    let begun = Instant::now();
    let probes = |line: &[u8]| {
        String::from_utf8_lossy(line).contains("iperf3\0-J") && String::from_utf8_lossy(line).contains(&address)
    };
    let here = |path: &std::path::Path| {
        std::fs::read_link(path.join("ns/net")).is_ok_and(|n| n.to_string_lossy() == space.trim())
            && std::fs::read(path.join("cmdline")).is_ok_and(|l| probes(&l))
    };
    while !std::fs::read_dir("/proc").unwrap().flatten().any(|p| here(&p.path())) {
        assert!(begun.elapsed() < PATIENCE, "no probe begins");
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("READY {} {}", space.trim(), machine.folder().display());
    std::thread::sleep(PATIENCE);
}
