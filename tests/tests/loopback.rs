//! AF_VSOCK for real, with no host that has it: both agents in one guest, over `vsock_loopback`. There is no hypervisor
//! inside, so what shows is the session alone.
// The helpers of a test fail as the test does.
#![allow(clippy::unwrap_used)]

use ballast_protocol::{DEFAULT_PORT, Deframer, HostMessage, Refusal};
use ballast_tests::Machine;
use serde_json::Value;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
// The guest's loopback interface may be down.
const CONFIG: &str = "[metrics]\\nenabled = false\\n[daemon]\\nstate-dir = \"/run/state\"\\ncontrol-socket = \"/run/control\"\\n\
    [[vm]]\\nname = \"self\"\\ncid = 1\\nqmp = \"/run/no-such-monitor\"\\n";

fn wait_for<T>(what: &str, machine: &Machine, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = ask() {
            return found;
        }
        let log = || machine.guest.sh("cat /run/host.log; ballast-guest status").unwrap().output;
        assert!(Instant::now() < deadline, "waited in vain for {what}\n{}\n{}", log(), machine.guest.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn status(machine: &Machine) -> Option<Value> {
    let said = machine.guest.sh("ballast-host status --socket /run/control --json 2>/dev/null").unwrap();
    serde_json::from_str(&said.output).ok()
}

#[test]
fn both_agents_meet_over_af_vsock_and_an_unprivileged_process_is_refused() {
    let machine = Machine::builder("loopback").host_agent().without_vsock().start().unwrap();
    let guest = &machine.guest;
    guest.sh_ok(&format!("printf '{CONFIG}' >/run/host.toml")).unwrap();
    let run = "setsid ballast-host run --config /run/host.toml >/run/host.log 2>&1 </dev/null & echo $! >/run/pid";
    guest.sh_ok(run).unwrap();
    let first = wait_for("the host agent", &machine, || status(&machine));
    let waiting = |agent: bool| serde_json::json!([{ "name": "self", "agent": agent }]);
    assert_eq!(first["waiting"], waiting(false), "{first}");

    // Any process may connect; only root's source ports are let in.
    let peer = guest.vsock_connect_unprivileged(1, DEFAULT_PORT).unwrap();
    assert!(peer.source_port >= 1024 && peer.closed, "{peer:?}");
    let mut deframer = Deframer::default();
    deframer.space()[..peer.received.len()].copy_from_slice(&peer.received);
    deframer.advance(peer.received.len());
    assert_eq!(deframer.next_frame::<HostMessage>().unwrap(), Some(HostMessage::Refused(Refusal::Unprivileged)));

    // The agent binds one of root's.
    guest.start_agent(&["run", "--cid", "1"]).unwrap();
    let agent = |alive: bool| {
        wait_for("the session", &machine, || (status(&machine)?["waiting"] == waiting(alive)).then_some(()));
    };
    agent(true);
    let own: Value = serde_json::from_str(&guest.sh_ok("ballast-guest status --json").unwrap()).unwrap();
    assert_eq!((&own["connected"], &own["sessions"]), (&true.into(), &1.into()), "{own}");
    assert_eq!(own["peer"], "vsock cid 1 port 9150");
    // Words go both ways: without pings the session would end by silence within three seconds.
    std::thread::sleep(Duration::from_secs(5));
    let own: Value = serde_json::from_str(&guest.sh_ok("ballast-guest status --json").unwrap()).unwrap();
    assert_eq!((&own["connected"], &own["sessions"]), (&true.into(), &1.into()), "{own}");

    // Both survive each other's death.
    guest.kill_agent(9).unwrap();
    agent(false);
    guest.start_agent(&["run", "--cid", "1"]).unwrap();
    agent(true);
    guest.sh_ok("kill -9 $(cat /run/pid)").unwrap();
    guest.sh_ok(run).unwrap();
    agent(true);
    let said = guest
        .sh_ok(
            "kill $(cat /run/pid); n=0; while [ -e /run/control ] && [ $n -lt 100 ]; do usleep 100000; \
        n=$((n+1)); done; ls /run",
        )
        .unwrap();
    assert!(!said.contains("control"), "a drained host agent leaves its socket behind: {said}");
    assert!(guest.agent().unwrap().alive);
}
