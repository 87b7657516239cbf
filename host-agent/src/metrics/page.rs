//! A [`Snapshot`] as the status page reads it: one line of JSON.
//!
//! VMs have the keys of `ballast-host status --json`.

use super::{Mark, Past, Seen, Snapshot};
use ballast_planner::{HostStatus, LawName, VmStatus};
use ballast_protocol::Micros;
use serde::Serialize;

#[derive(Serialize)]
struct Page<'a> {
    at: Micros,
    started: f64,
    version: &'static str,
    law: LawName,
    dry_run: bool,
    host: Option<&'a HostStatus>,
    hypervisors: Vec<Hypervisor<'a>>,
    problems: &'a [String],
    waiting: usize,
    vms: Vec<Row<'a>>,
    marks: &'a [Mark],
    past: Option<&'a Past>,
}

#[derive(Serialize)]
struct Hypervisor<'a> {
    name: &'a str,
    error: Option<&'a str>,
}

#[derive(Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    status: &'a VmStatus,
    stalled: Option<Micros>,
}

/// The JSON.
///
/// # Errors
/// None that anybody could cause: the keys of all maps in it are names.
pub fn json(snapshot: &Snapshot) -> serde_json::Result<String> {
    serde_json::to_string(&Page {
        at: snapshot.at,
        started: snapshot.started,
        version: env!("CARGO_PKG_VERSION"),
        law: snapshot.law,
        dry_run: snapshot.dry_run,
        host: snapshot.host.as_ref(),
        hypervisors: snapshot
            .hypervisors
            .iter()
            .map(|h| Hypervisor { name: &h.name, error: h.error.as_deref() })
            .collect(),
        problems: &snapshot.problems,
        waiting: snapshot.waiting,
        vms: snapshot.vms.iter().map(|Seen { status, stalled, .. }| Row { status, stalled: *stalled }).collect(),
        marks: &snapshot.marks,
        past: snapshot.past.as_ref(),
    })
}
