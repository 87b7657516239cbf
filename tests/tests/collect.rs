//! Collecting on real guests: the balloon goes where chance says, the rows say what came of it, and all of it can be made again.
// The helpers of a test fail as the test does.
#![allow(clippy::unwrap_used)]

use ballast_host::journal::{self, Record};
use ballast_planner::{Action, CANDIDATE, HORIZON, Reason, WINDOW};
use ballast_predictor::Dataset;
use ballast_tests::lab::collect;
use ballast_tests::lab::experiment::Experiment;
use ballast_tests::lab::results::{self, ArmRun};
use ballast_tests::lab::run::{Done, Order};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Long enough for three sizes, of which one at least stays for a whole horizon.
const SMALL: &str = r#"title = "small"
seed = 5
settle = "4s"
gap = "50ms"
lasting = "44s"
oracle = false
arms = [{ name = "sweep" }]
[[guest]]
name = "a"
memory = "320MiB"
min = "112MiB"
zram = "64MiB"
[[phase]]
work = { do = "burst", mib = 60, work = 2 }
[[phase]]
work = { do = "rest", secs = 2 }
"#;

fn run(files: &[PathBuf], folder: &Path) -> Done {
    let mut experiments: Vec<_> = files.iter().map(|f| Experiment::read(f).unwrap()).collect();
    // With help and without.
    experiments[1].repetitions = 2;
    let order = Order {
        experiments,
        wrong: Vec::new(),
        folder: folder.to_owned(),
        asked: "test".into(),
        within: None,
        fresh: false,
        parallel: 2,
    };
    order.run().unwrap()
}

/// How often the host agent took something of its own accord.
fn takings(journal: &Path) -> usize {
    let spare = |r: &Record| matches!(r, Record::Action { action: Action::Order { reason: Reason::Spare(_), .. }, .. });
    journal::read(journal).unwrap().map(Result::unwrap).filter(spare).count()
}

fn check(run: &ArmRun, data: &Dataset, name: &str) {
    assert_eq!(run.error, None);
    let swept: Vec<_> = run.orders.iter().filter(|o| o.reason.starts_with(collect::SWEPT)).collect();
    assert!(swept.len() >= 3, "{:?}", run.orders);
    let apart = swept.windows(2).map(|o| o[1].t - o[0].t);
    assert!(apart.clone().all(|s| s >= HORIZON.secs_f64()), "{:?}", run.orders);
    // The balloon was moved; where nobody helps, to where it was told and within what it can do in three seconds.
    let series = &run.guests[0].series;
    for order in swept.iter().filter(|_| name.ends_with("-2")) {
        let later = series.iter().find(|l| l.t > order.t + 3.0);
        assert!(later.is_none_or(|l| (l.kept_mib - order.to_mib).abs() < 24.0), "{order:?}, then {later:?}");
    }
    let kept = || series.iter().map(|l| l.kept_mib);
    let (least, most) = (kept().fold(f64::INFINITY, f64::min), kept().fold(0.0, f64::max));
    assert!(most - least > 32.0, "from {least} to {most} MiB: {:?}", run.orders);
    assert!(run.phases.len() > 4, "the phases begin anew: {}", run.phases.len());
    let rows: Vec<_> = data.rows.iter().filter(|r| r.run == name).collect();
    assert!(rows.len() >= 2, "{} rows of {name}", rows.len());
    let answered = data.manifest.window_names.iter().position(|n| n == "answered").unwrap();
    for row in rows {
        assert_eq!((row.window.len(), row.candidate.len()), (WINDOW, CANDIDATE));
        assert_eq!(row.window[answered] == 1.0, !name.ends_with("-2"), "{row:?}");
        assert!((112..=320).contains(&row.size_mib), "{row:?}");
    }
}

#[test]
fn two_guests_at_a_time_are_swept_and_rows_can_be_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let files = ["one", "two"].map(|name| folder.path().join(format!("{name}.toml")));
    fs::write(&files[0], SMALL).unwrap();
    fs::write(&files[1], SMALL.replace("seed = 5", "seed = 6")).unwrap();
    let out = folder.path().join("out");
    let done = run(&files, &out);
    assert_eq!((done.ran, done.resumed, &done.broken), (3, 0, &vec![]), "{done:?}");
    let blocks = results::blocks(&out).unwrap();
    let overlap = blocks[0].started_unix.abs_diff(blocks[1].started_unix);
    assert!((overlap as f64) < blocks[0].took_s, "both ran at once");

    let made = collect::make(&out).unwrap();
    assert_eq!((made.rows + made.unknown + made.untold, &made.without), (made.horizons, &vec![]), "{made:?}");
    let data = Dataset::read(&out).unwrap();
    assert_eq!(data.rows.len(), made.rows);
    assert!(data.manifest.kernel.starts_with('6') && data.manifest.image.contains("initramfs"), "{:?}", data.manifest);
    for (block, name) in blocks.iter().zip(["one-1", "two-1", "two-2"]) {
        assert_eq!(format!("{}-{}", block.experiment, block.repetition), name);
        check(&block.arms[0], &data, name);
        assert_eq!(takings(&out.join(format!("journals/{name}-sweep.jsonl"))), 0);
    }
    let card = fs::read_to_string(out.join("CARD.md")).unwrap();
    for said in ["one: small", "two: small", "stall_10s", "fast path"] {
        assert!(card.contains(said), "{said} is missing:\n{card}");
    }

    // What is there is not run again, and the same journals give the same rows.
    assert_eq!((run(&files, &out).ran, run(&files, &out).resumed), (0, 3));
    let rows = fs::read(out.join("rows.jsonl")).unwrap();
    fs::remove_file(out.join("rows.jsonl")).unwrap();
    let lab =
        Command::new(env!("CARGO_BIN_EXE_ballast-lab")).args(["collect", "--rows-only", "--out"]).arg(&out).output();
    let lab = lab.unwrap();
    assert!(lab.status.success(), "{}", String::from_utf8_lossy(&lab.stderr));
    assert!(fs::read(out.join("rows.jsonl")).unwrap() == rows, "rows differ from themselves");
}

#[test]
fn only_sweeps_are_collected_and_all_that_are_shipped_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wrong.toml");
    fs::write(&file, SMALL.replace("{ name = \"sweep\" }", "\"static\"")).unwrap();
    let out = folder.path().join("out");
    let lab = |args: &[&str]| {
        let mut lab = Command::new(env!("CARGO_BIN_EXE_ballast-lab"));
        let output = lab.arg("collect").args(args).arg("--out").arg(&out).stdin(Stdio::null()).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (well, said) = lab(&[file.to_str().unwrap()]);
    assert!(!well && said.contains("one arm, of the law `sweep`"), "{said}");
    let (well, said) = lab(&["--rows-only"]);
    assert!(!well && said.contains("nothing was collected here"), "{said}");
    assert!(!out.exists());

    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments/collect");
    let files: Vec<_> = fs::read_dir(shipped).unwrap().map(|e| e.unwrap().path()).collect();
    let all: Vec<_> = files.iter().map(|f| Experiment::read(f).unwrap()).collect();
    assert!(all.len() >= 10, "{} workloads", all.len());
    for (place, one) in all.iter().enumerate() {
        assert!(one.lasting.is_some() && one.guests[0].zram.is_some(), "{}: only fine and killed", one.name);
        assert!(all[..place].iter().all(|o| o.seed != one.seed), "{}: chance is another's", one.name);
    }
}
