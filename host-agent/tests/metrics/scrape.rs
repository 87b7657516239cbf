//! `/metrics` itself.

use crate::common::wait_for;
use crate::{HOSTILE, Host, burst, config, directory, figure, three};
use ballast_host::daemon::Daemon;
use ballast_protocol::Bytes;
use std::time::Duration;

const MIB: f64 = 1_048_576.0;

#[test]
fn a_scrape_has_every_vm_and_what_really_moved() {
    let directory = directory();
    let [hostile, web, bare] = three(directory.path());
    let host = Host::start(directory.path(), &[&hostile, &web, &bare], "[host]\nbudget = \"4GiB\"");
    let text = host.scrape_until("three VMs", |t| figure(t, "ballast_vms ") == 3.0);
    assert!(figure(&text, "ballast_vm_memory_max_bytes{vm=\"bare\"}") == 256.0 * MIB, "{text}");
    burst(&host, &web);
    let text = host.scrape_until("an order for a demand", |t| {
        // The balloon is read every 25 ms while it moves.
        figure(t, "ballast_vm_memory_actual_bytes{vm=\"web\"}") >= 700.0 * MIB
            && figure(t, "ballast_vm_orders_total{vm=\"web\",direction=\"give\",reason=\"demand\"}") >= 1.0
            && figure(t, "ballast_order_settle_seconds_count") >= 3.0
    });
    let of_web = |name: &str| figure(&text, &format!("{name}{{vm=\"web\""));
    let moved =
        |direction| figure(&text, &format!("ballast_vm_moved_bytes_total{{vm=\"web\",direction=\"{direction}\"}}"));
    // It began with 1,024 MiB, went below 600 and came back above 700: what moved is what it keeps now.
    assert!(moved("take") >= 400.0 * MIB && moved("give") >= 50.0 * MIB, "{text}");
    assert!(
        (1024.0 * MIB - moved("take") + moved("give") - of_web("ballast_vm_memory_actual_bytes")).abs() < MIB,
        "{text}"
    );
    assert_eq!(of_web("ballast_vm_agent_alive"), 1.0);
    assert_eq!(figure(&text, "ballast_vm_agent_alive{vm=\"bare\"}"), 0.0);
    assert!(of_web("ballast_vm_report_age_seconds") < 5.0);
    assert!(figure(&text, "ballast_vm_demand_answers_total{vm=\"web\",verdict=\"granted\"}") >= 1.0, "{text}");
    assert!(
        text.contains("ballast_vm_demand_answers_total{vm=\"web\",verdict=\"refused\"} 0\n"),
        "a zero to grow from"
    );
    assert_eq!(figure(&text, "ballast_host_memory_total_bytes"), 4096.0 * MIB);
    assert_eq!(
        figure(&text, "ballast_demand_order_seconds_bucket{le=\"+Inf\"}"),
        figure(&text, "ballast_demand_order_seconds_count")
    );
    let escaped = HOSTILE.replace('\\', "\\\\").replace('"', "\\\"");
    assert!(text.contains(&format!("ballast_vm_running{{vm=\"{escaped}\"}} 1\n")), "{text}");

    hostile.kill_one();
    host.scrape_until("the kill", |t| figure(t, &format!("ballast_vm_oom_kills_total{{vm=\"{escaped}\"}}")) == 1.0);
    // In the middle of a taking the balloon may do so by its own noise: again until it rests.
    wait_for("the balloon that let go", || {
        web.let_go(Bytes::mib(24));
        std::thread::sleep(Duration::from_millis(1500));
        (figure(&host.get("/metrics").body, "ballast_vm_self_deflations_total{vm=\"web\"}") >= 1.0).then_some(())
    });
}

#[test]
fn series_go_with_their_vm() {
    let directory = directory();
    let [hostile, web, bare] = three(directory.path());
    let host = Host::start(directory.path(), &[&hostile, &web, &bare], "");
    host.scrape_until("orders", |t| t.contains("ballast_vm_orders_total{vm=\"web\""));
    drop(web);
    let text = host.scrape_until("its end", |t| figure(t, "ballast_vms ") == 2.0);
    assert!(!text.contains("vm=\"web\""), "{text}");
    assert_eq!(figure(&text, "ballast_vms_waiting "), 1.0);
}

/// No VM is left without its daemon because somebody else has a port that only figures need.
#[test]
fn a_port_that_is_taken_is_served_as_soon_as_it_is_free() {
    let directory = directory();
    let [hostile, ..] = three(directory.path());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let config = config(directory.path(), &[&hostile], &format!("[metrics]\nlisten = \"{address}\""));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let daemon = runtime.block_on(Daemon::start(config)).unwrap();
    assert_eq!(daemon.web(), None);
    let (stop, stopped) = tokio::sync::oneshot::channel();
    runtime.spawn(daemon.run(async { drop(stopped.await) }));
    let host = Host { address, stop: Some(stop), runtime: Some(runtime) };
    wait_for("a VM that is served all the same", || (hostile.keeps() < Bytes::mib(512)).then_some(()));
    drop(taken);
    wait_for("the port", || std::net::TcpStream::connect(address).ok());
    host.scrape_until("the VM", |t| figure(t, "ballast_vms ") == 1.0);
}
