//! What happens to VMs in operation: they migrate, grow, stand still, are reset, and some have drivers that say little. Made
//! of a script, because here it is the daemon that is looked at; `qmp.rs`, `libvirt.rs` and `libvirt_migration.rs` show
//! that real QEMUs and a real libvirt say what the script says.
// The helpers of a test fail as the test does.
#![allow(clippy::unwrap_used)]

mod common;

use ballast_protocol::Bytes;
use common::script::{FakeVm, Host, folder};
use common::wait_for;
use serde_json::json;
use std::time::Duration;

const SIZE: Bytes = Bytes::mib(512);

fn holding(host: &Host, vm: &str) -> String {
    host.vm(vm).unwrap()["holding"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hands_off_while_a_vm_migrates() {
    let folder = folder();
    let (a, arrives) =
        (FakeVm::start(folder.path(), "a", SIZE, true), FakeVm::start(folder.path(), "arrives", SIZE, false));
    {
        let mut state = arrives.state();
        (state.running, state.status) = (false, "inmigrate");
    }
    let host = Host::start(folder.path(), &(a.table("") + &arrives.table("")));
    host.wait_field("a", "agent", "alive");
    wait_for("a taking", || (a.orders() >= 2).then_some(()));

    // It begins, and QEMU says so.
    a.state().migration = Some("setup");
    a.event("MIGRATION", &json!({ "status": "setup" }));
    wait_for("hands off", || holding(&host, "a").contains("the VM migrates").then_some(()));
    a.state().migration = Some("active");
    let (orders, wanted) = (a.orders(), a.actual());
    // It wants more than it has; that must wait. Long enough for several takings and givings.
    a.state().wanted = wanted;
    std::thread::sleep(Duration::from_secs(7));
    assert_eq!(a.orders(), orders, "{}", host.log());
    assert!(holding(&host, "a").contains("the VM migrates"), "also after it was asked anew");
    // It fails in the end.
    a.state().migration = Some("failed");
    a.event("MIGRATION", &json!({ "status": "failed" }));
    wait_for("what it wanted", || (a.state().used >= wanted).then_some(()));

    // One that arrives is not known before it has.
    assert!(host.vm("arrives").is_none() && arrives.orders() == 0, "{}", host.status());
    {
        let mut state = arrives.state();
        (state.running, state.status) = (true, "running");
    }
    arrives.event("RESUME", &json!({}));
    wait_for("the VM that has arrived", || host.vm("arrives"));

    // Nobody said that it begins: it is found out all the same.
    a.state().migration = Some("active");
    wait_for("hands off without a word", || holding(&host, "a").contains("the VM migrates").then_some(()));
    host.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_that_is_plugged_and_unplugged_counts() {
    let folder = folder();
    let a = FakeVm::start(folder.path(), "a", SIZE, true);
    let host = Host::start(folder.path(), &a.table(""));
    host.wait_field("a", "agent", "alive");
    wait_for("a taking", || (a.actual() < SIZE).then_some(()));
    let plug = |size: Bytes| {
        let mut state = a.state();
        let before = state.max();
        state.plugged = size;
        // QEMU counts the balloon's size from all memory there is.
        state.actual = state.actual + state.max() - before;
    };
    plug(Bytes::mib(256));
    a.event("ACPI_DEVICE_OST", &json!({ "info": {} }));
    host.wait_field("a", "max", Bytes::mib(768).0);
    // It can have all of it.
    a.state().wanted = Bytes::mib(650);
    wait_for("all that it wants", || (a.state().used == Bytes::mib(650)).then_some(()));
    a.state().wanted = Bytes::mib(20);
    wait_for("a taking", || (a.actual() < SIZE).then_some(()));
    // And back, with nobody saying so.
    {
        let mut state = a.state();
        state.plugged = Bytes::ZERO;
        state.actual = state.actual.min(SIZE);
    }
    host.wait_field("a", "max", SIZE.0);
    // For a moment guest and hypervisor spoke of different machines.
    host.wait_field("a", "trusted", true);
    host.stop();
}

/// Windows' driver sends -1 for what it does not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statistics_of_minus_one_are_none() {
    let folder = folder();
    let (windows, linux) =
        (FakeVm::start(folder.path(), "w", SIZE, false), FakeVm::start(folder.path(), "l", SIZE, false));
    let says_little = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        windows.state().statistics = Some(json!({
            "stats": { "stat-total-memory": SIZE.0, "stat-free-memory": u64::MAX, "stat-available-memory": -1,
                "stat-swap-in": u64::MAX },
            "last-update": now,
        }));
    };
    says_little();
    let host = Host::start(folder.path(), &(windows.table("") + &linux.table("")));
    wait_for("a taking from the one that says what it has", || {
        says_little();
        (linux.actual() < SIZE).then_some(())
    });
    let status = host.vm("w").unwrap();
    assert!(status["available"].is_null() && status["actual"] == SIZE.0, "{status}");
    // The one order is that of being found.
    assert!(windows.state().orders.iter().all(|(keep, _)| *keep == SIZE), "{:?}", windows.state().orders);
    host.stop();
}
