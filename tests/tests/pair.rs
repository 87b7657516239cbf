//! The pair on real guests: it takes what a guest does not use and gives it back before the guest misses it.

use ballast_protocol::Bytes;
use ballast_tests::wire::End;
use ballast_tests::{HostAgent, Machine, bursting};
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until the pair has squeezed the guest below `size`.
fn squeezed_below(machine: &mut Machine, host: &HostAgent, size: Bytes) {
    let deadline = Instant::now() + PATIENCE;
    while machine.qmp.balloon().expect("QEMU answers while it lives") >= size {
        assert!(Instant::now() < deadline, "nothing is taken\n{}\n{}", host.log(), machine.guest.log());
        thread::sleep(Duration::from_millis(20));
    }
}

/// P9 and P10 in one guest's life: squeezed, burst, host agent killed and restarted, squeezed, burst, drained.
#[test]
fn a_burst_beyond_the_slack_survives_also_after_the_host_agent_was_killed() {
    let _turn = bursting();
    let mut machine = Machine::builder("pair").start().unwrap();
    let mut host = HostAgent::start(HostAgent::config(&[&machine])).unwrap();
    machine.guest.start_agent(&["run"]).unwrap();

    for restarted in [false, true] {
        if restarted {
            host.kill();
            assert!(host.status().is_err(), "a killed host agent answers");
            machine.guest.ping().unwrap();
            host.restart().unwrap();
        }
        squeezed_below(&mut machine, &host, Bytes::mib(200));
        let slack = machine.guest.counters().unwrap().available_mib();
        let burst = machine.guest.burst(250).unwrap();
        println!("restarted {restarted}: slack {slack} MiB, {burst:?}");
        assert!(slack < 200, "a burst of 250 MiB into {slack} MiB proves little");
        assert_eq!(burst.end, End::Whole, "{}\n{}", host.log(), machine.guest.log());
        assert_eq!(machine.guest.counters().unwrap().oom_kills(), 0);
    }
    let status = host.status().unwrap();
    assert!(status.to_string().contains("pair"), "{status}");
    assert!(host.journal_path().exists());
    assert!(host.terminate().unwrap().success(), "{}", host.log());
    assert!(machine.guest.agent().unwrap().alive, "{}", machine.guest.log());
}
