//! The lab itself, on real guests: a run is complete, is resumed, survives a broken arm, and Ctrl-C leaves nothing.

use ballast_tests::lab::experiment::Experiment;
use ballast_tests::lab::results::{self, Block};
use ballast_tests::lab::run::Order;
use ballast_tests::lab::summary;
use ballast_tests::paths;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Small guests and short phases; `mom` cannot be started with such a setting.
const SMALL: &str = r#"title = "small"
settle = "4s"
gap = "50ms"
oracle = false
arms = ["static", "ballast", { name = "wrong", law = "mom", settings = { bogus = 1 } }]
[[guest]]
name = "a"
memory = "320MiB"
[[phase]]
work = { do = "burst", mib = 60, work = 2 }
times = 2
"#;

fn order(file: &Path, folder: &Path) -> Order {
    Order {
        experiments: vec![Experiment::read(file).expect("a good file")],
        folder: folder.to_owned(),
        asked: "test".into(),
        within: None,
        fresh: false,
        parallel: 1,
    }
}

#[test]
fn a_run_is_complete_resumed_and_goes_on_without_an_arm_that_breaks() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("small.toml");
    fs::write(&file, SMALL).unwrap();
    let done = order(&file, folder.path()).run().unwrap();
    assert_eq!((done.ran, done.resumed, done.left_out.len()), (1, 0, 0), "{done:?}");
    assert_eq!(done.broken.len(), 1, "{done:?}");
    assert!(done.broken[0].contains("wrong") && done.broken[0].contains("bogus"), "{done:?}");

    let blocks = results::blocks(folder.path()).unwrap();
    let arm = |name: &str| blocks[0].arms.iter().find(|a| a.arm == name).unwrap();
    for name in ["static", "ballast"] {
        let run = arm(name);
        assert_eq!(run.error, None);
        assert_eq!(run.phases.len(), 2);
        for phase in &run.phases {
            let latency = phase.outcome.latency.as_ref().unwrap();
            assert_eq!(
                (latency.count, phase.outcome.killed, phase.outcome.failed_allocations),
                (60, 0, 0),
                "{phase:?}"
            );
            assert!(phase.outcome.throughput > 0.0 && phase.took_s > 0.0);
        }
        assert!(run.guests[0].series.len() >= 6, "{} looks", run.guests[0].series.len());
        assert!(run.guests[0].totals.watched_s > 0.0 && run.guests[0].totals.resident_gib_s > 0.0);
    }
    assert_eq!(arm("static").orders, []);
    assert!(!arm("ballast").orders.is_empty(), "four seconds of quiet are enough to take something");
    // Aged: the host holds most of what a guest has that nothing was taken from.
    let resident = arm("static").guests[0].series[0].resident_mib;
    assert!(resident > 0.7 * 320.0, "{resident} MiB of 320");
    assert!(folder.path().join("journals/small-1-ballast.jsonl").exists());

    let found = summary::summarise(folder.path()).unwrap();
    let cell = found.cells.iter().find(|c| c.arm == "ballast").unwrap();
    assert_eq!((cell.oom_kills, cell.failed_allocations), (0, 0));
    assert!(cell.throughput_ratio.is_some_and(|r| r > 0.0) && cell.resident_ratio.is_some_and(|r| r < 1.0), "{cell:?}");

    let again = order(&file, folder.path()).run().unwrap();
    assert_eq!((again.ran, again.resumed), (0, 1), "{again:?}");
    // A block of another text is not taken for this one's.
    let path = folder.path().join("blocks/small-1.json");
    let mut block: Block = results::read_json(&path).unwrap();
    block.fingerprint = "other".into();
    results::write_json(&path, &block).unwrap();
    let bounded = Order { within: Some(Duration::ZERO), ..order(&file, folder.path()) };
    assert_eq!(bounded.run().unwrap().left_out.len(), 1, "there is no time for it");
}

#[test]
fn an_interrupted_run_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("small.toml");
    fs::write(&file, SMALL.replace("4s", "60s")).unwrap();
    let mut lab = Command::new(env!("CARGO_BIN_EXE_ballast-lab"))
        .args(["run", "--out"])
        .arg(folder.path().join("out"))
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let own = format!("/tmp/ballast-{}-", lab.id());
    let patience = Instant::now() + Duration::from_secs(120);
    while processes_with(&own) < 2 {
        assert!(Instant::now() < patience, "no guests after two minutes");
        assert_eq!(lab.try_wait().unwrap(), None, "it ended early");
        std::thread::sleep(Duration::from_millis(100));
    }
    kill_process(Pid::from_child(&lab), Signal::INT).unwrap();
    let status = lab.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    let patience = Instant::now() + Duration::from_secs(20);
    while processes_with(&own) > 0 {
        assert!(Instant::now() < patience, "processes are left");
        std::thread::sleep(Duration::from_millis(50));
    }
    let left: Vec<_> = fs::read_dir("/tmp").unwrap().flatten().map(|e| e.path()).collect();
    let left: Vec<_> = left.iter().filter(|p| p.to_string_lossy().starts_with(&own)).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!folder.path().join("out/blocks/small-1.json").exists(), "half a block is no block");
}

/// How many processes of this machine name one of these folders.
fn processes_with(folder: &str) -> usize {
    let processes = fs::read_dir("/proc").expect("/proc is there").flatten();
    let lines = processes.filter_map(|p| fs::read(p.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(folder)).count()
}

#[test]
fn what_is_wrong_with_an_order_is_said_before_anything_boots() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wrong.toml");
    fs::write(&file, SMALL.replace("\"burst\"", "\"bust\"")).unwrap();
    let missing = folder.path().join("missing.toml");
    for (args, said) in [
        (vec![file.to_str().unwrap()], "wrong.toml:10: "),
        (vec![missing.to_str().unwrap()], "missing.toml"),
        (vec!["--suite", "quik"], "no suite `quik`; known are full, quick, smoke"),
        (vec!["--suite", "smoke", "--arms", "drs"], "no arm `drs`"),
        (vec![], "required"),
    ] {
        let out = folder.path().join("out");
        let mut lab = Command::new(env!("CARGO_BIN_EXE_ballast-lab"));
        lab.arg("run").args(&args).arg("--out").arg(&out);
        let output = lab.stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(said), "{args:?}: {text}");
        assert!(!out.exists(), "{args:?}");
    }
}

#[test]
fn a_guest_that_never_boots_is_told_with_its_console_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("small.toml");
    fs::write(&file, SMALL).unwrap();
    // The kernel is the real one; what it is to start from is cut off.
    let guest = folder.path().join("target/guest");
    fs::create_dir_all(&guest).unwrap();
    fs::copy(paths::guest("vmlinuz"), guest.join("vmlinuz")).unwrap();
    let whole = fs::read(paths::guest("initramfs.cpio")).unwrap();
    fs::write(guest.join("initramfs.cpio"), &whole[..4096]).unwrap();
    let out = folder.path().join("out");
    let mut lab = Command::new(env!("CARGO_BIN_EXE_ballast-lab"));
    // Nothing boots there, also not the trial that tells whether KVM works.
    lab.env("CARGO_TARGET_DIR", folder.path().join("target")).env("BALLAST_ACCEL", "tcg");
    lab.arg("run").arg(&file).arg("--out").arg(&out);
    let output = lab.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "{text}");
    // The end of its console: the trace of a kernel that found nothing to start.
    assert!(text.contains("did not boot: QEMU ended") && text.contains("kernel_init"), "{text}");
    assert_eq!(processes_with(folder.path().to_str().unwrap()), 0, "{text}");
}

#[test]
fn every_experiment_that_is_shipped_can_be_read() {
    let output = Command::new(env!("CARGO_BIN_EXE_ballast-lab")).args(["list", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let all: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let quick = all.as_array().unwrap().iter().filter(|e| e["suites"].as_array().unwrap().contains(&"quick".into()));
    let names: Vec<_> = quick.map(|e| e["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["burst", "cache", "pair", "ramp", "redis"]);
}
