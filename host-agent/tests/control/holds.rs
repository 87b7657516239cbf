//! Holds and exemptions: an operator says how much a VM keeps.

use crate::common::wait_for;
use crate::host::{Host, MIB, folder, settled};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::time::Duration;

#[test]
fn a_held_vm_keeps_its_size_and_the_next_operator_learns_who_holds_it() {
    let directory = folder();
    let web = settled(directory.path(), "web");
    let mail = settled(directory.path(), "mail");
    let config = web.table("min = \"256MiB\"")
        + &mail.table("max = \"1000MiB\"")
        + "[[vm]]\nname = \"storage\"\nqmp = \"/nowhere\"\n";
    let host = Host::start(directory.path(), "", &config);
    host.wait_for_vms(&["web", "mail"]);

    let said = host.run_as(Some("alice"), &["hold", "web", "512M", "--for", "10m", "--reason", "disk backup"]).unwrap();
    assert!(said.starts_with("`web` is held at 512 MiB for 10m by alice: disk backup\n"), "{said}");
    wait_for("the hold", || (web.kept() == 512).then_some(()));
    let hold = host.vm("web").unwrap()["hold"].clone();
    assert_eq!((&hold["size"], &hold["by"]), (&json!(512 * MIB), &json!("alice")), "{hold}");

    // The second operator, in words that name the first.
    let other = host.refusal(Some("bob"), &["hold", "web", "300M", "--reason", "mine"]);
    assert!(
        other.starts_with("`web` is held at 512 MiB by alice for 9m ")
            && other.ends_with("s (disk backup): ask alice, or overrule with --force"),
        "{other}"
    );
    let other = host.refusal(Some("bob"), &["release", "web"]);
    assert!(other.contains("is held at 512 MiB by alice"), "{other}");
    assert_eq!(web.kept(), 512);
    // The first one may change what it said; the other may insist, and is told whom it overruled.
    host.run_as(Some("alice"), &["hold", "web", "600MiB", "--reason", "longer"]).unwrap();
    wait_for("the change", || (web.kept() == 600).then_some(()));
    let forced = ["hold", "web", "700M", "--reason", "mine", "--force", "--json"];
    let said: Value = serde_json::from_str(&host.run_as(Some("bob"), &forced).unwrap()).unwrap();
    assert_eq!(said["done"], "`web` is held at 700 MiB until it is released by bob: mine");
    assert!(
        said["notes"].as_array().unwrap().contains(&json!("alice held it at 600 MiB (longer): tell alice")),
        "{said}"
    );
    let explained = host.run(&["explain", "web"]).unwrap();
    for line in ["at 700 MiB by bob until it is released: mine", "hold: 600 MiB until it is released by alice: longer"]
    {
        assert!(explained.contains(line), "{explained}");
    }
    assert_eq!(host.run_as(Some("bob"), &["release", "web"]).unwrap(), "`web` is released by bob\n");
    assert_eq!(host.vm("web").unwrap()["hold"], Value::Null);
    assert_eq!(host.refusal(None, &["release", "web"]), "nobody holds `web`");

    // Everything else that can be wrong with it.
    for (args, complaint) in [
        (vec!["hold", "wbe", "512M", "--reason", "x"], "no VM named `wbe` is known; did you mean `web`?"),
        (vec!["release", "mial"], "no VM named `mial` is known; did you mean `mail`?"),
        (vec!["explain", "printer"], "no VM named `printer` is known; `ballast-host status` lists them"),
        (
            vec!["hold", "storage", "512M", "--reason", "x"],
            "`storage` is named in the configuration, but no hypervisor has it now: start it first",
        ),
        (
            vec!["explain", "storage"],
            "`storage` is named in the configuration, but no hypervisor has it now: start it first",
        ),
        (
            vec!["hold", "web", "100M", "--reason", "x"],
            "100 MiB is below what `web` is guaranteed, min 256 MiB; it can be held at 256 MiB to 1 GiB",
        ),
        (
            vec!["hold", "mail", "1G", "--reason", "x"],
            "1 GiB is above the most that `mail` may have, max 1000 MiB; it can be held at 64 MiB to 1000 MiB",
        ),
        (
            vec!["hold", "web", "512M", "--reason", " "],
            "a reason has 1 to 200 printable characters: the next operator reads it",
        ),
        (
            vec!["hold", "web", "512M", "--for", "2y", "--reason", "x"],
            "is not between 1 s and a year; what lasts longer belongs into host.toml",
        ),
    ] {
        let said = host.refusal(None, &args);
        assert!(said.ends_with(complaint), "{args:?}: {said}");
    }
    for (args, complaint) in [
        (
            vec!["hold", "web", "512", "--reason", "x"],
            "`512` is not a memory size: it has no unit; write for example 256MiB, 2G or 1.5GiB",
        ),
        (vec!["hold", "web", "512M", "--for", "soon", "--reason", "x"], "not a time; write for example 90s, 10m or 2h"),
        (vec!["hold", "web", "512M"], "--reason <REASON>"),
    ] {
        let said = host.run(&args).unwrap_err();
        assert!(said.contains(complaint), "{args:?}: {said}");
    }

    // Who, what, and how it ended stand in the log.
    let log = host.log();
    let uid = rustix::process::geteuid().as_raw();
    for part in [
        format!("user=alice uid={uid} "),
        "method=PUT path=\"/v1/vms/web/hold\" status=200".to_owned(),
        "status=409".to_owned(),
    ] {
        assert!(log.contains(&part), "{part}: {log}");
    }
    let line = log.lines().find(|l| l.contains("user=alice") && l.contains("method=PUT")).unwrap();
    let pid = line.split("pid=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    assert!(pid.parse::<u32>().unwrap() > 1, "{line}");
    assert!(log.contains("refused: `web` is held at 512 MiB by alice"), "{log}");
}

#[test]
fn what_operators_said_survives_a_crash_of_the_daemon_until_it_runs_out() {
    let directory = folder();
    let web = settled(directory.path(), "web");
    let mail = settled(directory.path(), "mail");
    let config = "[host]\nbudget = \"8GiB\"\n".to_owned() + &web.table("") + &mail.table("");
    let mut host = Host::start(directory.path(), "", &config);
    host.wait_for_vms(&["web", "mail"]);
    host.run_as(Some("alice"), &["hold", "web", "512M", "--for", "1h", "--reason", "backup"]).unwrap();
    wait_for("the hold", || (web.kept() == 512).then_some(()));
    host.run(&["exempt", "mail"]).unwrap();
    let said = host.run(&["reserve", "1G", "--for", "late", "--within", "2h"]).unwrap();
    assert!(said.starts_with("1 GiB are reserved for `late` for 2h\n"), "{said}");

    // Killed: what it had answered was on the disk.
    host.stop(Signal::KILL);
    host.start_again();
    let hold = wait_for("the VM", || host.vm("web"))["hold"].clone();
    let left = hold["until"].as_u64().unwrap() / 1_000_000;
    assert_eq!((&hold["by"], &hold["reason"], &hold["size"]), (&json!("alice"), &json!("backup"), &json!(512 * MIB)));
    assert!((3000..=3600).contains(&left), "{hold}");
    assert_eq!(host.status()["pool"]["reservations"][0]["name"], "late");
    wait_for("hands off", || host.vm("mail")?["holding"].as_str()?.contains("exempt").then_some(()));
    assert!(
        host.refusal(Some("bob"), &["hold", "web", "600M", "--reason", "x"])
            .contains("held at 512 MiB by alice for 59m ")
    );
    assert_eq!(web.kept(), 512);

    // What runs out while nobody looks is gone; what was released stays so.
    host.run_as(Some("alice"), &["hold", "web", "600M", "--for", "1s", "--reason", "short"]).unwrap();
    host.run(&["exempt", "mail", "--off"]).unwrap();
    host.run(&["unreserve", "late"]).unwrap();
    host.run(&["dry-run", "on"]).unwrap();
    host.stop(Signal::TERM);
    std::thread::sleep(Duration::from_secs(1));
    host.start_again();
    assert_eq!(wait_for("the VM", || host.vm("web"))["hold"], Value::Null);
    assert_eq!(host.status()["dry_run"], true, "a daemon told not to act must not begin to");
    assert_eq!(host.status()["pool"]["reservations"], json!([]));
    assert_eq!(host.refusal(None, &["exempt", "mail", "--off"]), "`mail` is not exempt");

    // A file that makes no sense is put aside and named.
    host.stop(Signal::TERM);
    std::fs::write(directory.path().join("state/operators.json"), "{\"format\": 7").unwrap();
    host.start_again();
    wait_for("the VM", || host.vm("web"));
    assert!(directory.path().join("state/operators.json.unreadable").exists());
    assert!(host.log().contains("holds and reservations of before are lost: set them again"), "{}", host.log());
    // It may have said that nothing is to be ordered: nothing is, until somebody says otherwise.
    let status = host.status();
    assert_eq!(status["dry_run"], true);
    assert!(status["problems"][0].as_str().unwrap().starts_with("a dry run, because "), "{status}");
    host.run(&["dry-run", "off"]).unwrap();
    let status = host.status();
    assert_eq!((&status["dry_run"], &status["problems"]), (&json!(false), &json!([])));
}

#[test]
fn a_hold_ends_by_itself_and_the_vm_is_served_again() {
    let directory = folder();
    let web = settled(directory.path(), "web");
    let host = Host::start(directory.path(), "", &web.table(""));
    host.wait_for_vms(&["web"]);
    host.run(&["hold", "web", "512M", "--for", "10s", "--reason", "a moment"]).unwrap();
    wait_for("the hold", || (web.kept() == 512).then_some(()));
    // It has less than it needs, which its own law sees as soon as it may.
    wait_for("the end of the hold", || (host.vm("web")?["hold"].is_null() && web.kept() == 1024).then_some(()));
}

#[test]
fn an_exempt_vm_gets_all_its_memory_and_may_not_be_held() {
    let directory = folder();
    let web = settled(directory.path(), "web");
    let fixed = settled(directory.path(), "fixed");
    let host = Host::start(directory.path(), "", &(web.table("") + &fixed.table("exempt = true")));
    host.wait_for_vms(&["web", "fixed"]);
    host.run(&["hold", "web", "512M", "--reason", "first"]).unwrap();
    wait_for("the hold", || (web.kept() == 512).then_some(()));
    let said = host.refusal(None, &["exempt", "web"]);
    assert!(said.starts_with("`web` is held at 512 MiB by ") && said.ends_with("(first): release it first"), "{said}");
    host.run(&["release", "web"]).unwrap();
    assert_eq!(host.run(&["exempt", "web"]).unwrap(), "`web` is exempt: it gets all its memory and keeps it\n");
    wait_for("all its memory", || (web.kept() == 1024).then_some(()));
    assert_eq!(
        host.refusal(None, &["hold", "web", "512M", "--reason", "x"]),
        "`web` is exempt, hands off: `ballast-host exempt web --off` first"
    );
    assert_eq!(host.run(&["exempt", "web", "--off"]).unwrap(), "`web` is no longer exempt\n");
    host.run(&["hold", "web", "512M", "--reason", "again"]).unwrap();

    let file = directory.path().join("host.toml");
    let file = file.display();
    assert_eq!(host.run(&["exempt", "fixed"]).unwrap(), format!("`fixed` is exempt by {file} already\n"));
    assert_eq!(
        host.refusal(None, &["exempt", "fixed", "--off"]),
        format!("`fixed` is exempt by configuration: take `exempt` out of {file} and reload")
    );
    assert_eq!(host.refusal(None, &["exempt", "fxed"]), "no VM named `fxed` is known; did you mean `fixed`?");

    // Exempt by hand, and by the file since: taking back the one leaves the other.
    host.run(&["release", "web"]).unwrap();
    host.run(&["exempt", "web"]).unwrap();
    host.configure("", &(web.table("exempt = true") + &fixed.table("exempt = true")));
    host.run(&["reload"]).unwrap();
    assert_eq!(
        host.run(&["exempt", "web", "--off"]).unwrap(),
        format!(
            "`web` is no longer exempt by hand\n  it stays exempt by {file}: take `exempt` out of {file} and reload\n"
        )
    );
}

/// Its table is wrong, and so nobody knows what it says of the VM.
#[test]
fn an_operators_word_holds_when_the_table_that_made_the_vm_exempt_is_corrected() {
    let directory = folder();
    let web = settled(directory.path(), "web");
    // Alone on its host, it is taken up all the same.
    let host = Host::start(directory.path(), "", &web.table("min = 3"));
    host.wait_for_vms(&["web"]);
    let file = directory.path().join("host.toml");
    let file = file.display();
    assert_eq!(
        host.refusal(None, &["exempt", "web", "--off"]),
        format!("`web` is exempt by configuration: correct it in {file} and reload")
    );
    let output = host.command(None, &["reload"]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with("REFUSED: ") && said.contains("; hands off this VM until"), "{said}");
    let problem = host.status()["problems"][0].as_str().unwrap().to_owned();
    assert!(problem.contains("VM `web`: invalid type") && problem.contains("; hands off this VM until"), "{problem}");
    assert_eq!(
        host.run(&["exempt", "web"]).unwrap(),
        format!(
            "`web` is exempt: it gets all its memory and keeps it\n  it was so by a wrong [[vm]] in {file}, and stays so \
             when that is corrected\n"
        )
    );
    host.configure("", &web.table(""));
    host.run(&["reload"]).unwrap();
    assert_eq!(host.status()["problems"], json!([]));
    assert_eq!(
        host.refusal(None, &["hold", "web", "512M", "--reason", "x"]),
        "`web` is exempt, hands off: `ballast-host exempt web --off` first"
    );
    assert_eq!(host.run(&["exempt", "web", "--off"]).unwrap(), "`web` is no longer exempt\n");
}
