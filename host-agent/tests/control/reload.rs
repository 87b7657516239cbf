//! Reloads of the file.

use crate::common::wait_for;
use crate::host::{Host, folder, settled};
use rustix::process::Signal;
use serde_json::json;

#[test]
fn a_reload_says_what_changed_and_what_was_refused_and_takes_a_word_back_only_for_a_new_one() {
    let directory = folder();
    let web = settled(directory.path(), "web");
    let mail = settled(directory.path(), "mail");
    let mut host = Host::start(directory.path(), "", &(web.table("") + &mail.table("")));
    host.wait_for_vms(&["web", "mail"]);
    assert_eq!(host.run(&["reload"]).unwrap(), "the file says nothing new\n");
    host.run(&["exempt", "web"]).unwrap();
    host.run(&["dry-run", "on"]).unwrap();

    host.configure("", &(web.table("weight = 7") + &mail.table("weight = -7")));
    // Wrong in one place, it still leads to the daemon.
    let output = host.command(None, &["reload"]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(!output.status.success(), "{said}");
    assert!(said.starts_with("VM `web`: weight 100 -> 7\nREFUSED: ") && said.contains("VM `mail`: "), "{said}");
    assert_eq!((&host.vm("web").unwrap()["weight"], &host.status()["dry_run"]), (&json!(7), &json!(true)));
    assert!(host.vm("web").unwrap()["holding"].as_str().unwrap().contains("exempt"));
    let (status, body) = host.ask("POST", "/v1/reload", "");
    assert_eq!((status, &body["changed"]), (200, &json!([])), "{body}");
    assert_eq!(body["refused"].as_array().unwrap().len(), 1, "{body}");

    host.configure("dry-run = true", &(web.table("") + &mail.table("")));
    assert!(host.run(&["reload"]).unwrap().contains("dry-run: false -> true\n"));
    let said = host.run(&["dry-run", "off"]).unwrap();
    assert!(
        said.contains("\n  after a restart it is a dry run again: ") && said.ends_with("host.toml says so\n"),
        "{said}"
    );
    host.run(&["dry-run", "on"]).unwrap();
    host.configure("", &(web.table("") + &mail.table("")));
    assert!(host.run(&["reload"]).unwrap().contains("dry-run: true -> false\n"));
    assert_eq!(host.status()["dry_run"], false);
    host.stop(Signal::TERM);
    host.start_again();
    assert_eq!(host.status()["dry_run"], false, "the word by hand is over");
    wait_for("the VM", || host.vm("web"));
    assert!(host.refusal(None, &["hold", "web", "512M", "--reason", "x"]).contains("is exempt, hands off"));
}
