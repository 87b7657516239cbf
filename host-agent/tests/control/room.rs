//! Reservations: room for a VM that will come.

use crate::common::quiet::QuietVm;
use crate::common::wait_for;
use crate::host::{Host, MIB, folder, settled};
use ballast_protocol::Bytes;
use serde_json::json;

#[test]
fn room_is_reserved_for_a_vm_that_will_come() {
    let directory = folder();
    let web = settled(directory.path(), "web");
    let host = Host::start(directory.path(), "", &("[host]\nbudget = \"4GiB\"\n".to_owned() + &web.table("")));
    host.wait_for_vms(&["web"]);
    let said = host.run(&["reserve", "2G", "--for", "late", "--within", "30m"]).unwrap();
    assert!(said.starts_with("2 GiB are reserved for `late` for 30m\n"), "{said}");
    wait_for("the room", || (host.status()["pool"]["reservations"][0]["ready"] == true).then_some(()));
    let text = host.run(&["status"]).unwrap();
    assert!(text.contains("reserved 2 GiB, in VMs that cannot give"), "{text}");
    assert!(text.contains("  2 GiB reserved for late for 29m ") && text.contains(" yet: there is room\n"), "{text}");
    // A later word replaces the first.
    let until = jiff::Zoned::now().checked_add(jiff::Span::new().hours(2)).unwrap();
    let until = until.strftime("%Y-%m-%d %H:%M").to_string();
    host.run(&["reserve", "1G", "--for", "late", "--until", &until]).unwrap();
    let reservations = host.status()["pool"]["reservations"].clone();
    assert_eq!((reservations.as_array().unwrap().len(), &reservations[0]["size"]), (1, &json!(1024 * MIB)));

    for (args, complaint) in [
        (
            vec!["reserve", "1G", "--for", "web", "--within", "1h"],
            "`web` is here already, and room is reserved for VMs that will start or arrive; `hold` gives it a size",
        ),
        (
            vec!["reserve", "5G", "--for", "huge", "--within", "1h"],
            "5 GiB is more than this host has for all its VMs, 4 GiB",
        ),
        (
            vec!["reserve", "1K", "--for", "tiny", "--within", "1h"],
            "a size of 1 KiB is too little: balloons move by MiB",
        ),
        (
            vec!["reserve", "1G", "--for", "", "--within", "1h"],
            "there is nothing at /v1/reservations/; GET /v1/openapi.json lists what there is",
        ),
        (vec!["reserve", "1G", "--for", "old", "--until", "2020-01-01 08:00"], "08:00\""),
        (vec!["unreserve", "lat"], "nothing is reserved for `lat`, only for late"),
    ] {
        let said = host.refusal(None, &args);
        assert!(said.ends_with(complaint), "{args:?}: {said}");
    }
    for both in
        [&["reserve", "1G", "--for", "x"][..], &["reserve", "1G", "--for", "x", "--until", "8:00", "--within", "1h"]]
    {
        let said = host.run(both).unwrap_err();
        assert!(said.contains("--within <DURATION>"), "{said}");
    }
    assert_eq!(host.run(&["unreserve", "late"]).unwrap(), "nothing is reserved for `late` any more\n");
    assert_eq!(host.refusal(None, &["unreserve", "late"]), "nothing is reserved for `late`, nor for any other VM");

    // The VM comes: what was reserved is its own.
    host.run(&["reserve", "1G", "--for", "web2", "--within", "1h"]).unwrap();
    assert_eq!(host.status()["pool"]["reserved"], 1024 * MIB);
    let web2 = settled(directory.path(), "web2");
    host.configure("", &("[host]\nbudget = \"4GiB\"\n".to_owned() + &web.table("") + &web2.table("")));
    host.run(&["reload"]).unwrap();
    host.wait_for_vms(&["web", "web2"]);
    wait_for("the end of the reservation", || (host.status()["pool"]["reserved"] == 0).then_some(()));
}

#[test]
fn room_that_is_not_there_is_made_before_the_vm_may_start() {
    let directory = folder();
    // Two thirds of it are free.
    let web = QuietVm::start(directory.path(), "web", Bytes::mib(1024), Bytes::mib(300));
    let host = Host::start(directory.path(), "", &("[host]\nbudget = \"1100MiB\"\n".to_owned() + &web.table("")));
    host.wait_for_vms(&["web"]);
    let said = host.run(&["reserve", "300M", "--for", "late", "--within", "30m"]).unwrap();
    assert!(!said.contains("there is room"), "{said}");
    wait_for("the room", || (host.status()["pool"]["reservations"][0]["ready"] == true).then_some(()));
    assert!(web.kept() <= 1100 - 300, "{} MiB", web.kept());
    // More than the VM can spare: the host is short, and says by how much.
    host.run(&["reserve", "900M", "--for", "late", "--within", "30m"]).unwrap();
    let short = wait_for("the shortage", || host.status()["pool"]["short"].as_u64().filter(|short| *short > 0));
    assert!(short < 900 * MIB, "{short}");
    assert!(host.run(&["status"]).unwrap().contains("HOST SHORT BY "), "{}", host.run(&["status"]).unwrap());
    assert_eq!(host.status()["pool"]["reservations"][0]["ready"], false);
}
