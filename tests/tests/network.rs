//! Machines on a private network: that they reach each other, and that nothing is left of it.
#![allow(clippy::unwrap_used)]

use ballast_protocol::Bytes;
use ballast_tests::{Link, Machine, Network, bursting};
use serde_json::Value;
use std::time::{Duration, Instant};

const PORT: u16 = 5201;

fn mbits(answer: &Value) -> f64 {
    answer["end"]["sum_received"]["bits_per_second"].as_f64().unwrap() / 1e6
}

fn machine(name: &str, network: &Network) -> Machine {
    Machine::builder(name).memory(Bytes::mib(256)).network(network).without_vsock().start().unwrap()
}

/// Host to VM and VM to VM; a reboot brings the address back; a machine that is gone makes room.
#[test]
fn iperf3_runs_from_the_host_and_between_machines() {
    let _turn = bursting();
    let network = Network::new().unwrap();
    println!("linked by {:?}", network.link());
    let begun = Instant::now();
    let mut server = machine("server", &network);
    println!("the first after {:?}", begun.elapsed());
    let begun = Instant::now();
    let client = machine("client", &network);
    println!("the second after {:?}", begun.elapsed());
    assert_ne!(server.address().unwrap(), client.address().unwrap());
    let address = server.address().unwrap().to_string();
    server.guest.iperf3_server(PORT).unwrap();

    let between = client.guest.iperf3(&["-c", &address, "-t", "2"]).unwrap();
    println!("VM to VM: {:.0} Mbit/s", mbits(&between));
    assert!(mbits(&between) > 1.0, "{between}");
    if network.link() == Link::Tap {
        let from_host = network.iperf3(&["-c", &address, "-t", "2"]).unwrap();
        println!("host to VM: {:.0} Mbit/s", mbits(&from_host));
        assert!(mbits(&from_host) > 1.0, "{from_host}");
    }

    let refused = client.guest.iperf3(&["-c", &address, "-p", "5999"]).unwrap_err();
    assert!(format!("{refused:#}").contains("refused"), "{refused:#}");

    server.reboot().unwrap();
    server.guest.iperf3_server(PORT).unwrap();
    client.guest.iperf3(&["-c", &address, "-n", "1M"]).unwrap();
    drop(server);
    assert_eq!(machine("third", &network).address().unwrap().to_string(), address);
}

/// What is used where taps are not allowed.
#[test]
fn machines_reach_each_other_by_multicast_too() {
    let network = Network::with(Link::Multicast).unwrap();
    assert_eq!((network.link(), network.host()), (Link::Multicast, None));
    let (server, client) = (machine("server", &network), machine("client", &network));
    server.guest.iperf3_server(PORT).unwrap();
    let address = server.address().unwrap().to_string();
    let between = client.guest.iperf3(&["-c", &address, "-t", "2"]).unwrap();
    println!("VM to VM by multicast: {:.0} Mbit/s", mbits(&between));
    assert!(mbits(&between) > 1.0, "{between}");
}

/// Two networks with the same addresses know nothing of each other.
#[test]
fn networks_are_apart_and_end_with_their_last_user() {
    let (one, two) = (Network::new().unwrap(), Network::new().unwrap());
    let (alone, other) = (machine("alone", &one), machine("other", &two));
    assert_eq!(alone.address().unwrap(), other.address().unwrap());
    let inside = |network: &Network| {
        let said = network.command("readlink").arg("/proc/self/ns/net").output().unwrap().stdout;
        String::from_utf8(said).unwrap()
    };
    let (first, second) = (inside(&one), inside(&two));
    let here = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert!(one.link() == Link::Multicast || (first != second && first.trim() != here.to_string_lossy()));

    // The machine keeps its network alive, and takes it along.
    drop(one);
    alone.guest.ping().unwrap();
    drop(alone);
    let users = || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let spaces = processes.filter_map(|p| std::fs::read_link(p.path().join("ns/net")).ok());
        spaces.filter(|n| n.to_string_lossy() == first.trim()).count()
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while first != second && first.trim() != here.to_string_lossy() && users() > 0 {
        assert!(Instant::now() < deadline, "somebody lives on in {first}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
