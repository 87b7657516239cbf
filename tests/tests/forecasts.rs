//! The model that ships, on a real guest: forecasts are made, judged by what really happens, drawn, and replayed without a
//! model; what they may do keeps a burst alive; and one that cannot be used leaves the law alone.
// The helpers of a test fail as the test does.
#![allow(clippy::unwrap_used)]

mod support;

use ballast_protocol::Bytes;
use ballast_tests::wire::End;
use ballast_tests::{HostAgent, Machine, bursting};
use serde_json::Value;
use std::process::Command;
use support::{known, program, squeezed_below, vm, wait_for};
use toml::Table;

/// Enough for a curve that is more than a line.
const POINTS: usize = 16;

#[test]
fn forecasts_are_judged_by_a_real_guest_and_drawn_and_a_burst_survives_what_they_may_do() {
    let _turn = bursting();
    let mut machine = Machine::builder("seer").start().unwrap();
    let mut config = HostAgent::config(&[&machine]);
    config.insert("defaults".into(), Table::from_iter([("predictor".into(), "on".into())]).into());
    let mut host = HostAgent::start(config.clone()).unwrap();
    machine.guest.start_agent(&["run"]).unwrap();

    // An idle guest: outcomes are known after ten seconds, and eight of them after half a minute.
    let tried = wait_for("forecasts that were tried", &host, || {
        Some(vm(&host, "seer")?["forecast"].clone()).filter(|f| f["judged"].as_u64() >= Some(8))
    });
    assert_eq!((&tried["mode"], tried["points"].as_array().map(Vec::len)), (&"on".into(), Some(POINTS)), "{tried}");
    // Nothing is lost by an idle guest: not one may have been exceeded. One that comes while the guest's reports are late is refused.
    assert_eq!(tried["missed"], 0, "{tried}");
    // They do what was asked for: they are followed.
    wait_for("a forecast that is followed", &host, || (vm(&host, "seer")?["forecast"]["used"] == true).then_some(()));
    let headroom = known(&host, "seer")["headroom"].as_u64().unwrap();
    assert!((Bytes::mib(32).0..=Bytes::mib(128).0).contains(&headroom), "{headroom}");

    let explained = host.command(&["explain", "seer"]).unwrap();
    for part in ["forecasts", "on: ", "expects of the next 10 s", "corrected", "MiB"] {
        assert!(explained.contains(part), "{part} is missing:\n{explained}");
    }
    println!("{explained}");
    let picture = host.config_path().with_file_name("curve.svg");
    host.command(&["explain", "seer", "--svg", picture.to_str().unwrap()]).unwrap();
    let picture = std::fs::read_to_string(picture).unwrap();
    assert!(picture.starts_with("<svg") && picture.contains("seer") && picture.contains("allowed"), "{picture}");

    squeezed_below(&mut machine, &host, Bytes::mib(200));
    let burst = machine.guest.burst(250).unwrap();
    println!("a burst of 250 MiB in {:.0} ms", burst.millis());
    assert_eq!(burst.end, End::Whole, "{}\n{}", host.log(), machine.guest.log());
    assert_eq!(machine.guest.counters().unwrap().oom_kills(), 0);

    // The journal has what the model said, so that a replay needs none.
    assert!(host.terminate().unwrap().success(), "{}", host.log());
    let journal = std::fs::read_to_string(host.journal_path()).unwrap();
    assert!(journal.contains("\"Forecast\""));
    let output = Command::new(program()).args(["replay", "--json"]).arg(host.journal_path()).output().unwrap();
    let replayed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &replayed["difference"]), (Some(0), &Value::Null));

    // The same guest under a daemon whose model is none.
    let file = host.config_path().with_file_name("my.model");
    std::fs::write(&file, "weights").unwrap();
    let daemon = Table::from_iter([("model".into(), file.to_str().unwrap().into())]);
    config.insert("daemon".into(), daemon.into());
    let other = HostAgent::start(config).unwrap();
    squeezed_below(&mut machine, &other, Bytes::mib(200));
    assert!(other.log().contains("my.model") && other.log().contains("the reactive law goes on"), "{}", other.log());
    assert_eq!(known(&other, "seer")["forecast"], Value::Null);
    let problem = other.status().unwrap()["problems"][0].as_str().unwrap().to_owned();
    assert!(problem.contains("no forecasts: ") && problem.contains("my.model"), "{problem}");
}
