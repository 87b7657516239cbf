//! Replay: a journal's inputs through a fresh planner must give the journal's actions, byte for byte (promise P7).

use crate::journal::{self, FORMAT, JournalError, Record};
use ballast_planner::{Action, Input, Planner};
use ballast_protocol::Micros;
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

/// What a replay found.
#[derive(Debug, Default, Serialize)]
pub struct Replayed {
    /// Inputs fed.
    pub inputs: u64,
    /// Actions compared.
    pub actions: u64,
    /// Orders among them.
    pub orders: u64,
    /// Orders by reason.
    pub reasons: BTreeMap<String, u64>,
    /// From the first to the last record.
    pub span: Micros,
    /// The first difference.
    pub difference: Option<Difference>,
}

/// Where a replay and its journal part.
#[derive(Debug, Serialize)]
pub struct Difference {
    /// When.
    pub at: Micros,
    /// What the journal has, as JSON; `None`: nothing more.
    pub journal: Option<String>,
    /// What the planner decides now, as JSON; `None`: nothing more.
    pub planner: Option<String>,
}

/// Replays the journal at `path` up to its end or the first difference.
///
/// # Errors
/// The journal cannot be read.
pub fn replay(path: &Path) -> Result<Replayed, JournalError> {
    let mut records = journal::read(path)?;
    let format = |problem: &str| JournalError::Format { path: path.to_owned(), problem: problem.to_owned() };
    let (mut planner, start) = match records.next().transpose()? {
        Some(Record::Start { format: FORMAT, planner, at, .. }) => (planner, at),
        Some(Record::Start { format: other, .. }) => {
            return Err(format(&format!("format {other}, this program reads {FORMAT}")));
        }
        _ => return Err(format("it does not begin with a start record")),
    };
    let mut found = Replayed::default();
    let mut expected: VecDeque<(Micros, Action)> = VecDeque::new();
    for record in records {
        match record? {
            Record::Input { at, input } => {
                // All actions of the previous input must have been met by now.
                if let Some((at, action)) = expected.pop_front() {
                    found.difference = Some(differ(at, None, Some(&action)));
                    return Ok(found);
                }
                feed(&mut planner, at, input, &mut expected);
                found.inputs += 1;
                found.span = at - start;
            }
            Record::Action { at, action } => {
                found.actions += 1;
                if let Action::Order { reason, .. } = &action {
                    found.orders += 1;
                    *found.reasons.entry(kind(&reason.to_string())).or_default() += 1;
                }
                let now = expected.pop_front();
                if now.as_ref().map(|(_, a)| json(a)) != Some(json(&action)) {
                    found.difference = Some(differ(at, Some(&action), now.as_ref().map(|(_, a)| a)));
                    return Ok(found);
                }
            }
            Record::Start { .. } | Record::Received { .. } | Record::Issued { .. } | Record::Clock { .. } => {}
        }
    }
    Ok(found)
}

fn feed(planner: &mut Planner, at: Micros, input: Input, out: &mut VecDeque<(Micros, Action)>) {
    planner.handle(at, input);
    while let Some(action) = planner.poll_action() {
        out.push_back((at, action));
    }
}

fn differ(at: Micros, journal: Option<&Action>, planner: Option<&Action>) -> Difference {
    Difference { at, journal: journal.map(json), planner: planner.map(json) }
}

fn json(action: &Action) -> String {
    serde_json::to_string(action).unwrap_or_else(|e| format!("not JSON: {e}"))
}

/// A reason without its figures, so that a table of reasons stays short.
fn kind(reason: &str) -> String {
    reason.split_whitespace().filter(|w| !w.starts_with(|c: char| c.is_ascii_digit())).collect::<Vec<_>>().join(" ")
}
