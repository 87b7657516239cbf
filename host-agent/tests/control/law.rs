//! Another law at run time, and dry runs.

use crate::common::quiet::QuietVm;
use crate::common::{self, wait_for};
use crate::host::{Host, MIB, binary, folder, settled};
use ballast_protocol::Bytes;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::process::Command;

#[test]
fn another_law_rules_at_run_time_and_knows_no_holds() {
    let directory = folder();
    let web = settled(directory.path(), "web");
    let host = Host::start(directory.path(), "", &web.table("fixed-size = \"700MiB\""));
    host.wait_for_vms(&["web"]);
    let said = host.run(&["policy", "set", "fixed"]).unwrap();
    let file = directory.path().join("host.toml");
    assert_eq!(
        said,
        format!("the law is `fixed`\n  after a restart it is `ballast` again: {} says so\n", file.display())
    );
    wait_for("its fixed size", || (web.kept() == 700).then_some(()));
    assert_eq!(host.status()["law"], "fixed");
    for args in [
        &["hold", "web", "512M", "--reason", "x"][..],
        &["reserve", "1G", "--for", "late", "--within", "1h"],
        &["reclaim", "1G"],
    ] {
        let said = host.refusal(None, args);
        assert!(said.starts_with("under the law `fixed` nothing is "), "{said}");
        assert!(said.ends_with("`ballast-host policy set ballast` first"), "{said}");
    }
    assert_eq!(host.run(&["policy", "set", "ballast"]).unwrap(), "the law is `ballast`\n");
    host.run(&["hold", "web", "512M", "--reason", "x"]).unwrap();
    wait_for("the hold", || (web.kept() == 512).then_some(()));
    let said = host.run(&["policy", "set", "static"]).unwrap();
    assert!(said.contains("  it knows no holds; these wait until `ballast` rules again: web\n"), "{said}");
    let said = host.run(&["policy", "set", "balast"]).unwrap_err();
    assert!(said.contains("invalid value 'balast'") && said.contains("'ballast'"), "{said}");
}

#[test]
fn a_dry_run_orders_nothing_and_shows_what_a_reclaim_would_take() {
    let directory = folder();
    // 700 MiB of 1 GiB are free, in a guest that talks.
    let web = QuietVm::start(directory.path(), "web", Bytes::mib(1024), Bytes::mib(300));
    let full = settled(directory.path(), "full");
    let config = "[host]\nbudget = \"4GiB\"\n".to_owned() + &web.table("") + &full.table("");
    let mut host = Host::start(directory.path(), "", &config);
    assert_eq!(
        host.run(&["dry-run", "on"]).unwrap(),
        "dry run: decisions are made and written down, and nothing is ordered\n"
    );
    web.agent();
    host.wait_for_vms(&["web", "full"]);
    wait_for("a decision", || host.run(&["explain", "web"]).ok().filter(|said| said.contains("dry run, would take: ")));
    assert!(host.run(&["status"]).unwrap().contains("  DRY RUN: nothing is ordered\n"));
    let plan = ["reclaim", "300M", "--dry-run", "--json"];
    let plan: Value = wait_for("a plan", || {
        let plan: Value = serde_json::from_str(&host.run(&plan).unwrap()).unwrap();
        (plan["total"] == 300 * MIB).then_some(plan)
    });
    assert_eq!((&plan["dry_run"], &plan["takings"][0]["vm"]), (&json!(true), &json!("web")), "{plan}");
    let said = host.run(&["reclaim", "2G"]).unwrap();
    assert!(
        said.starts_with("dry run: ") && said.contains(" of 2 GiB would be taken, nobody can spare more now\n"),
        "{said}"
    );
    assert!(said.contains(" web "), "{said}");
    let said = host.run(&["hold", "full", "512M", "--reason", "x"]).unwrap();
    assert!(said.contains("  this is a dry run: nothing is ordered\n"), "{said}");
    host.run(&["release", "full"]).unwrap();
    assert_eq!((web.kept(), full.kept()), (1024, 1024));

    assert_eq!(host.run(&["dry-run", "off"]).unwrap(), "no dry run any more: decisions are orders\n");
    let said = host.run(&["reclaim", "300M"]).unwrap();
    assert!(said.contains("being taken"), "{said}");
    wait_for("the memory", || (web.kept() <= 724).then_some(()));
    assert_eq!(host.refusal(None, &["reclaim", "1K"]), "a size of 1 KiB is too little: balloons move by MiB");
    // The planner was told, and its journal replays.
    host.stop(Signal::TERM);
    let journal = directory.path().join("state/journal");
    let told = format!("{{\"Reclaim\":{{\"size\":{}}}}}", 300 * MIB);
    assert!(std::fs::read_to_string(&journal).unwrap().contains(&told), "{told}");
    let said = common::output(Command::new(binary()).arg("replay").arg(&journal));
    assert!(String::from_utf8(said).unwrap().contains("every decision is the same"));
}
