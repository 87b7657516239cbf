//! Laws: each looks at one VM and says what it would do. None can do anything: the guard makes the target.
//!
//! One file per law. [`Reactive`] is for guests with an agent, [`StatisticsLaw`] for guests without one; together they
//! are the law `ballast`. The laws of others are in [`fleet`]'s terms: they look at all VMs at once, in rounds.

mod drs;
mod fixed;
mod fleet;
mod headroom;
mod mom;
mod proxmox;
mod reactive;
mod recurring;
mod statistics;
mod threshold;

pub use drs::DrsSettings;
pub use fleet::{Law, LawName, LawSettings, Move, Seen, View};
pub use headroom::HeadroomSettings;
pub use mom::MomSettings;
pub use proxmox::ProxmoxSettings;
pub use reactive::Reactive;
pub use statistics::StatisticsLaw;
pub use threshold::ThresholdSettings;

use crate::event::{Holding, Reason};
use crate::fleet::Vm;
use crate::forecast::Said;
use ballast_protocol::{Bytes, Micros};

/// What a law would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proposal {
    /// Nothing, and why. A time in it is when to ask again.
    Hold(Holding),
    /// Let the guest keep only this much.
    Take(Bytes, Reason),
    /// Let the guest keep this much.
    Give(Bytes, Reason),
    /// Have the guest drop so much cold page cache, and what a model that is followed said of it.
    Reclaim(Bytes, Option<Said>),
}

/// A law.
pub trait Policy {
    /// What it would do for this VM now. Asked whenever something about the VM changed, or a time it named has come.
    fn propose(&self, vm: &Vm, at: Micros) -> Proposal;
}
