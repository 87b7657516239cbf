//! What was seen: rows of window, candidate size and outcome, as `ballast-lab collect` writes them.
//!
//! ```text
//!   DIR/manifest.json   what the columns are, and where the rows come from
//!   DIR/rows.jsonl      one row a line
//!   DIR/journals/*      what the rows were made from, by replaying
//! ```
//! A row that does not fit its manifest stops everything, with its file and line: a model trained on half a dataset
//! looks like any other.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The manifest's file in a dataset's folder.
pub const MANIFEST: &str = "manifest.json";
/// The rows' file in a dataset's folder.
pub const ROWS: &str = "rows.jsonl";

/// A dataset that cannot be used, and where.
#[derive(Debug, Error)]
pub enum DataError {
    /// A file is missing or unreadable.
    #[error("{}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line that says something else than it must.
    #[error("{}:{line}: {what}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// There is nothing to learn from.
    #[error("{}: no rows; `ballast-lab collect` writes them", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// It is no dataset.
    #[error("{}: no {MANIFEST} there; `ballast-lab collect` makes a dataset", folder.display())]
    None {
        /// The folder.
        folder: PathBuf,
    },
    /// Rows are missing or double.
    #[error("{}: run {run:?} has {rows} rows where {MANIFEST} says {expected}; `ballast-lab collect --rows-only` makes them again", path.display())]
    Count {
        /// The file.
        path: PathBuf,
        /// The run.
        run: String,
        /// Those that are there.
        rows: u64,
        /// Those that should be.
        expected: u64,
    },
}

/// One intervention: the state before, the size that was ordered, and what the horizon after it brought.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// The run it is from, as in [`RunInfo::name`].
    pub run: String,
    /// The workload; whole workloads are held out, never single rows.
    pub workload: String,
    /// The guest.
    pub guest: String,
    /// When the window ends, seconds since the run began.
    pub at_s: f64,
    /// The state before the order, in the order of [`Schema::window`].
    pub window: Vec<f32>,
    /// The size ordered, as the features see it, in the order of [`Schema::candidate`].
    pub candidate: Vec<f32>,
    /// The size ordered, MiB: for people.
    pub size_mib: u32,
    /// The part of the horizon that was lost, 0 to 1.
    pub loss: f32,
    /// Whether the guest was under pressure in the horizon.
    pub pressure: bool,
}

/// Where a run's rows come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    /// Its name, unique in the dataset.
    pub name: String,
    /// Its workload.
    pub workload: String,
    /// Its journal, relative to the dataset's folder.
    pub journal: String,
    /// The seed of its sizes.
    #[serde(default)]
    pub seed: u64,
    /// When it began, seconds since 1970.
    pub started_unix: u64,
    /// How long it took.
    pub seconds: f64,
    /// How many rows it gave.
    pub rows: u64,
}

/// What a dataset is made of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of the features' meaning.
    pub features_version: u32,
    /// The window's columns.
    pub window_names: Vec<String>,
    /// The candidate's columns, each of which does not fall when the size grows.
    pub candidate_names: Vec<String>,
    /// The guests' kernel.
    pub kernel: String,
    /// The guests' image.
    pub image: String,
    /// The machine it was collected on.
    pub machine: String,
    /// The seed of the first run's sizes; each run has its own.
    pub seed: u64,
    /// When it was made, for people.
    pub made: String,
    /// The runs.
    pub runs: Vec<RunInfo>,
}

impl Manifest {
    /// What a model must agree with to be trained on it.
    #[must_use]
    pub fn schema(&self) -> Schema {
        Schema {
            version: self.features_version,
            window: self.window_names.clone(),
            candidate: self.candidate_names.clone(),
        }
    }
}

/// What the columns mean: of a dataset, of a model, and of the planner that asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schema {
    /// The version of the features' meaning.
    pub version: u32,
    /// The window's columns.
    pub window: Vec<String>,
    /// The candidate's columns.
    pub candidate: Vec<String>,
}

/// A manifest and its rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    /// What it is made of.
    pub manifest: Manifest,
    /// What was seen.
    pub rows: Vec<Row>,
}

impl Dataset {
    /// Reads a folder and checks every row against the manifest.
    ///
    /// # Errors
    /// A file is missing, or a line is wrong: both are named.
    pub fn read(folder: &Path) -> Result<Self, DataError> {
        let path = folder.join(MANIFEST);
        let text = std::fs::read_to_string(&path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => DataError::None { folder: folder.to_owned() },
            _ => DataError::Read { path: path.clone(), source },
        })?;
        let manifest: Manifest = serde_json::from_str(&text).map_err(|e| wrong(&path, e.line(), &e))?;
        let path = folder.join(ROWS);
        let failed = |source| DataError::Read { path: path.clone(), source };
        let mut rows: Vec<Row> = Vec::new();
        for (i, line) in BufReader::new(File::open(&path).map_err(failed)?).lines().enumerate() {
            let line = line.map_err(failed)?;
            if line.trim().is_empty() {
                continue;
            }
            let row: Row = serde_json::from_str(&line).map_err(|e| wrong(&path, i + 1, &e))?;
            if let Some(what) = row.fault(&manifest) {
                return Err(DataError::Wrong { path, line: i + 1, what });
            }
            rows.push(row);
        }
        if rows.is_empty() {
            return Err(DataError::Empty { path });
        }
        for run in &manifest.runs {
            let (count, expected) = (rows.iter().filter(|r| r.run == run.name).count() as u64, run.rows);
            if count != expected {
                return Err(DataError::Count { path, run: run.name.clone(), rows: count, expected });
            }
        }
        Ok(Self { manifest, rows })
    }

    /// Writes it into a folder, which must exist.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, folder: &Path) -> std::io::Result<()> {
        std::fs::write(folder.join(MANIFEST), serde_json::to_string_pretty(&self.manifest)? + "\n")?;
        let mut file = BufWriter::new(File::create(folder.join(ROWS))?);
        for row in &self.rows {
            serde_json::to_writer(&mut file, row)?;
            file.write_all(b"\n")?;
        }
        file.flush()
    }

    /// The workloads, in order of their names.
    #[must_use]
    pub fn workloads(&self) -> Vec<&str> {
        self.rows.iter().map(|r| r.workload.as_str()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The same rows with each outcome taken from `by` rows later of the same guest in the same run. Whoever still
    /// predicts well has seen the future.
    #[must_use]
    pub fn shifted(&self, by: usize) -> Self {
        let mut guests = BTreeMap::<(&str, &str), Vec<usize>>::new();
        for (i, row) in self.rows.iter().enumerate() {
            guests.entry((&row.run, &row.guest)).or_default().push(i);
        }
        let mut rows = self.rows.clone();
        for indices in guests.values_mut() {
            indices.sort_by(|a, b| self.rows[*a].at_s.total_cmp(&self.rows[*b].at_s));
            for (k, i) in indices.iter().enumerate() {
                let from = &self.rows[indices[(k + by) % indices.len()]];
                (rows[*i].loss, rows[*i].pressure) = (from.loss, from.pressure);
            }
        }
        Self { manifest: self.manifest.clone(), rows }
    }
}

impl Row {
    /// What is wrong with it, if anything is.
    fn fault(&self, manifest: &Manifest) -> Option<String> {
        let columns = |what, values: &[f32], names: &[String]| {
            if values.len() != names.len() {
                return Some(format!(
                    "{what} has {} values where {MANIFEST} names {}; collect again",
                    values.len(),
                    names.len()
                ));
            }
            let at = values.iter().position(|v| !v.is_finite())?;
            Some(format!("{what}: {} is not a number", names[at]))
        };
        if self.workload.is_empty() {
            return Some("no workload".to_owned());
        }
        match manifest.runs.iter().find(|run| run.name == self.run) {
            None => return Some(format!("run {:?} is not in {MANIFEST}", self.run)),
            Some(run) if run.workload != self.workload => {
                return Some(format!(
                    "workload is {:?}, in {MANIFEST} run {:?} did {:?}",
                    self.workload, self.run, run.workload
                ));
            }
            Some(_) => {}
        }
        if !(0.0..=1.0).contains(&self.loss) {
            return Some(format!("loss is {}, not from 0 to 1", self.loss));
        }
        columns("window", &self.window, &manifest.window_names)
            .or_else(|| columns("candidate", &self.candidate, &manifest.candidate_names))
    }
}

/// A JSON error under the number of the line in its own file: the parser counts from where it was put.
fn wrong(path: &Path, line: usize, error: &serde_json::Error) -> DataError {
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what).to_owned();
    DataError::Wrong { path: path.to_owned(), line, what }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dataset() -> Dataset {
        let names = |n: &[&str]| n.iter().map(|s| (*s).to_owned()).collect();
        let manifest = Manifest {
            features_version: 1,
            window_names: names(&["used", "stall"]),
            candidate_names: names(&["size"]),
            runs: vec![RunInfo { name: "r1".into(), workload: "redis".into(), rows: 4, ..RunInfo::default() }],
            ..Manifest::default()
        };
        let row = |i: u8| Row {
            run: "r1".into(),
            workload: "redis".into(),
            guest: "g".into(),
            at_s: f64::from(9 - i),
            window: vec![0.5, 0.0],
            candidate: vec![1.0],
            size_mib: 256,
            loss: f32::from(i) / 10.0,
            pressure: i == 3,
        };
        Dataset { manifest, rows: (0..4).map(row).collect() }
    }

    /// Writes it, replaces `old` by `new` in `file`, and reads it again.
    fn reread(file: &str, old: &str, new: &str) -> Result<Dataset, DataError> {
        let folder = tempfile::tempdir().unwrap();
        dataset().write(folder.path()).unwrap();
        let path = folder.path().join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(old), "{old:?} is not in {text}");
        std::fs::write(&path, text.replacen(old, new, 1)).unwrap();
        Dataset::read(folder.path())
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(reread(ROWS, "\n", "\n\n").unwrap(), dataset());
    }

    #[test]
    fn errors_name_file_and_line() {
        let says = |file, old, new| reread(file, old, new).unwrap_err().to_string();
        let text = says(ROWS, r#""loss":0.2"#, r#""loss":2.0"#);
        assert!(text.ends_with("rows.jsonl:3: loss is 2, not from 0 to 1"), "{text}");
        let text = says(ROWS, r#""loss":0.1"#, r#""lost":0.1"#);
        assert!(text.contains("rows.jsonl:2: unknown field `lost`") && !text.contains("column"), "{text}");
        let text = says(ROWS, "[0.5,0.0]", "[0.5,null]");
        assert!(text.contains("rows.jsonl:1: invalid type: null"), "{text}");
        let text = says(ROWS, "[0.5,0.0]", "[0.5]");
        assert!(text.contains("rows.jsonl:1: window has 1 values where manifest.json names 2"), "{text}");
        let text = says(ROWS, r#""run":"r1""#, r#""run":"r2""#);
        assert!(text.contains("rows.jsonl:1: run \"r2\" is not in manifest.json"), "{text}");
        let text = says(ROWS, r#""workload":"redis""#, r#""workload":"nginx""#);
        assert!(
            text.contains("rows.jsonl:1: workload is \"nginx\", in manifest.json run \"r1\" did \"redis\""),
            "{text}"
        );
        // Cut at the end of a line, as a crash leaves it.
        let text = says(MANIFEST, r#""rows": 4"#, r#""rows": 5"#);
        assert!(text.contains("rows.jsonl: run \"r1\" has 4 rows where manifest.json says 5"), "{text}");
        let text = says(MANIFEST, r#""seed": 0"#, r#""seed": -1"#);
        assert!(text.contains("manifest.json:") && text.contains("invalid value"), "{text}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let text = Dataset::read(folder.path()).unwrap_err().to_string();
        assert!(text.contains("no manifest.json there; `ballast-lab collect`"), "{text}");
        dataset().write(folder.path()).unwrap();
        std::fs::write(folder.path().join(ROWS), "").unwrap();
        assert!(matches!(Dataset::read(folder.path()), Err(DataError::Empty { .. })));
    }

    #[test]
    fn shifting_follows_time_and_stays_in_the_guest() {
        let mut data = dataset();
        data.rows[0].guest = "other".into();
        let shifted = data.shifted(1);
        // By time: rows 3, 2, 1; the last takes the first's.
        let losses: Vec<f32> = shifted.rows.iter().map(|r| r.loss).collect();
        assert_eq!(losses, [0.0, 0.3, 0.1, 0.2]);
        assert!(shifted.rows[1].pressure && !shifted.rows[3].pressure);
        assert_eq!(shifted.rows[2].window, data.rows[2].window);
    }
}
