//! The command `train`, as whoever types it meets it: on the recorded rows of three workloads, whole and damaged.
#![allow(clippy::unwrap_used)]

use ballast_predictor::{Dataset, Model};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const WORKLOADS: [&str; 3] = ["burst", "cache", "leak"];

fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/recorded/collect")
}

/// The recorded rows of a few workloads, in a folder of their own.
fn dataset(folder: &Path) {
    let recorded = recorded();
    let is_wanted = |value: &Value| WORKLOADS.contains(&value["workload"].as_str().unwrap());
    let text = std::fs::read_to_string(recorded.join("manifest.json")).unwrap();
    let mut manifest: Value = serde_json::from_str(&text).unwrap();
    manifest["runs"].as_array_mut().unwrap().retain(is_wanted);
    std::fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
    let rows = std::fs::read_to_string(recorded.join("rows.jsonl")).unwrap();
    let wanted = rows.lines().filter(|line| is_wanted(&serde_json::from_str(line).unwrap()));
    std::fs::write(folder.join("rows.jsonl"), wanted.map(|line| format!("{line}\n")).collect::<String>()).unwrap();
}

fn train(folder: &Path, data: &str, out: &str, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ballast-host"));
    command.current_dir(folder).args(["train", "--data", data, "--out", out, "--report", "report", "--epochs", "1"]);
    command.args(more).output().unwrap()
}

fn refused(folder: &Path, data: &str, out: &str) -> String {
    let output = train(folder, data, out, &[]);
    assert!(!output.status.success());
    assert!(!folder.join("report").exists() && !folder.join("a.model").exists(), "nothing is left behind");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn what_cannot_be_trained_on_is_said_with_its_place_and_mend() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let text = refused(folder, "nowhere", "a.model");
    assert!(text.contains("nowhere: no manifest.json there; `ballast-lab collect` makes a dataset"), "{text}");
    dataset(folder);
    let text = refused(folder, ".", "a.md");
    assert!(text.contains("--out a.md") && text.contains("card"), "{text}");
    let text = refused(folder, ".", "rows.jsonl/a.model");
    assert!(text.contains("--out rows.jsonl/a.model"), "{text}");

    let rows = std::fs::read_to_string(folder.join("rows.jsonl")).unwrap();
    let (cut, _) = rows.trim_end().rsplit_once('\n').unwrap();
    std::fs::write(folder.join("rows.jsonl"), cut).unwrap();
    let text = refused(folder, ".", "a.model");
    assert!(text.contains("rows.jsonl: run ") && text.contains("--rows-only"), "{text}");

    std::fs::write(folder.join("rows.jsonl"), &rows).unwrap();
    let manifest = std::fs::read_to_string(folder.join("manifest.json")).unwrap();
    let mut other: Value = serde_json::from_str(&manifest).unwrap();
    other["features_version"] = 1.into();
    std::fs::write(folder.join("manifest.json"), other.to_string()).unwrap();
    let text = refused(folder, ".", "a.model");
    assert!(text.contains("version 1") && text.contains("collect again"), "{text}");
}

#[test]
fn a_training_leaves_a_model_its_card_a_page_and_scores_and_the_same_again_by_the_same_seed() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    dataset(folder);
    let output = train(folder, ".", "models/a.model", &["--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let kept: Value = serde_json::from_slice(&std::fs::read(folder.join("report/summary.json")).unwrap()).unwrap();
    assert_eq!(said, kept);
    assert_eq!(said["workloads"], serde_json::json!(WORKLOADS));
    let card = std::fs::read_to_string(folder.join("models/a.md")).unwrap();
    assert!(card.starts_with("# Model card") && card.contains("| burst |"), "{card}");
    let page = std::fs::read_to_string(folder.join("report/report.html")).unwrap();
    assert!(page.contains("<svg"), "learning curves are drawn");
    let again = train(folder, ".", "models/b.model", &[]);
    assert!(again.status.success());
    let model = |name: &str| std::fs::read(folder.join("models").join(name)).unwrap();
    assert!(model("a.model") == model("b.model"), "the same data and seed give the same file");
    let left = std::fs::read_dir(folder.join("models")).unwrap().count();
    assert_eq!(left, 4, "two models, two cards, no drafts");
}

#[test]
fn the_model_that_ships_is_of_the_rows_that_ship() {
    let (model, data) = (Model::embedded().unwrap(), Dataset::read(&recorded()).unwrap());
    let origin = model.origin();
    assert_eq!((origin.rows, &origin.data_made), (data.rows.len() as u64, &data.manifest.made));
    assert_eq!(origin.workloads, data.workloads());
}
