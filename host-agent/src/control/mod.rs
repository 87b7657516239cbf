//! The control API: HTTP and JSON over a Unix socket, and the client behind `ballast-host status` and its like.
//!
//! ```text
//!   ballast-host hold ... -> client -> socket -> serve -> Query -> the daemon's task -> Done or Refused
//!                                                 '-> who asked (SO_PEERCRED), what, and the answer, in the log
//! ```
//! HTTP, so that `curl --unix-socket` and every language can use it; `GET /v1/openapi.json` describes it, and a test
//! compares that description with the routes and types. Who may connect is a matter of the socket's mode (0660) and
//! group (`[daemon] control-group`): whoever may write to it may do everything.

pub use crate::daemon::Reloaded;

mod client;
mod near;
mod openapi;
mod operator;
mod serve;
mod types;

use ballast_planner::VmName;
use tokio::sync::oneshot;

pub use client::{ControlError, ask, tell};
pub use near::unknown_vm;
pub use openapi::DOCUMENT;
pub use operator::Operator;
pub use serve::{ServeError, remove, serve};
pub use types::{
    Decision, Done, DryRunRequest, Explained, HoldRequest, HypervisorStatus, LONGEST_REASON, LawRequest, Problem,
    ReclaimRequest, Reclaimed, Refused, RefusedWhy, ReserveRequest, Status, Waiting,
};

/// What can be asked of the daemon's task.
#[derive(Debug)]
pub enum Query {
    /// Everything.
    Status(oneshot::Sender<Status>),
    /// One VM.
    Explain(VmName, oneshot::Sender<Option<Explained>>),
    /// Memory for the host, at once; or what would be taken for it.
    Reclaim(Operator, ReclaimRequest, oneshot::Sender<Result<Reclaimed, Refused>>),
    /// Change something.
    Change(Operator, Change, oneshot::Sender<Result<Done, Refused>>),
}

/// What an operator can change while the daemon runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Keep a VM at a size.
    Hold(VmName, HoldRequest),
    /// No longer.
    Release {
        /// Which VM.
        vm: VmName,
        /// Also when somebody else holds it.
        force: bool,
    },
    /// Hands off a VM, or on again.
    Exempt {
        /// Which VM.
        vm: VmName,
        /// Hands off.
        on: bool,
    },
    /// Make room for a VM that is about to start or arrive.
    Reserve(VmName, ReserveRequest),
    /// No longer.
    Unreserve(VmName),
    /// Another law.
    Law(LawRequest),
    /// Decide and order nothing, or act again.
    DryRun(DryRunRequest),
}

impl Change {
    /// The VM that it is about.
    #[must_use]
    pub const fn vm(&self) -> Option<&VmName> {
        match self {
            Self::Hold(vm, _)
            | Self::Release { vm, .. }
            | Self::Exempt { vm, .. }
            | Self::Reserve(vm, _)
            | Self::Unreserve(vm) => Some(vm),
            Self::Law(_) | Self::DryRun(_) => None,
        }
    }
}
