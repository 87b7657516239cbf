//! Laws of others, for comparison: each looks at the host and all VMs at once, now and then.
//!
//! ```text
//!   Planner --View, every pause()--> FleetLaw::round --Move--> guard::by_law --> Order
//! ```
//!
//! They are what people run today, rebuilt from their published rules and constants (FIELD.md, section 1), so that
//! every claim can be tried against them on the same VMs. They are given what they have in reality: the host's
//! figures and the balloon drivers' statistics, nothing from a guest agent. The guard's hard bounds hold for them as
//! for us (minimum, maximum, exempt, paused, nothing taken on stale statistics); everything else that our own law
//! does on its own (undoing, refilling, answering demands with memory) is off while one of them rules.
//!
//! `static` is the law that never moves anything; it has no round and hence no file.

use super::drs::{Drs, DrsSettings};
use super::fixed::Fixed;
use super::headroom::{Headroom, HeadroomSettings};
use super::mom::{Mom, MomSettings};
use super::proxmox::{Proxmox, ProxmoxSettings};
use super::threshold::{Threshold, ThresholdSettings};
use crate::event::{HostMemory, VmName};
use ballast_protocol::{Bytes, Micros};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A law for all VMs at once.
pub trait FleetLaw {
    /// One round: what VMs are to keep. Those that are left out stay as they are.
    fn round(&mut self, view: &View, at: Micros) -> Vec<Move>;

    /// How long after this round the next one is.
    fn pause(&self) -> Micros;
}

/// What a law sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The host; `None`: nothing recent is known.
    pub host: Option<HostMemory>,
    /// The VMs that may be moved, by name. Those that are exempt, paused, or without a balloon are not among them.
    pub vms: Vec<Seen>,
}

/// A VM as a law sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its name.
    pub name: VmName,
    /// The least it may be ordered to keep.
    pub min: Bytes,
    /// The most.
    pub max: Bytes,
    /// What it has been told to keep.
    pub target: Bytes,
    /// What it keeps, by the hypervisor.
    pub kept: Bytes,
    /// Free memory, by its balloon driver; `None`: it does not say, or has not said lately.
    pub free: Option<Bytes>,
    /// Memory that can be had without swapping, by its balloon driver; what is free where it does not say.
    pub available: Option<Bytes>,
    /// Its weight.
    pub shares: u32,
    /// The size that the operator wants, for [`Fixed`].
    pub fixed_size: Option<Bytes>,
}

impl Seen {
    /// What is in use, page cache too, by the host's count of what it keeps.
    #[must_use]
    pub fn used(&self) -> Option<Bytes> {
        self.free.map(|free| self.kept - free)
    }
}

/// What a law wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Of which VM.
    pub vm: VmName,
    /// What it is to keep.
    pub keep: Bytes,
    /// Why, for people, with the figures that led to it.
    pub why: String,
}

/// Which law.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LawName {
    /// Ours.
    #[default]
    Ballast,
    /// A libvirt memory scheduler.
    Threshold,
    /// oVirt's.
    Mom,
    /// Proxmox VE's.
    Proxmox,
    /// Hypeman's.
    Headroom,
    /// A decentralised resource scheduler.
    Drs,
    /// Each VM at its configured size.
    Fixed,
    /// Nothing is moved.
    Static,
}

impl LawName {
    /// As in a configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ballast => "ballast",
            Self::Threshold => "threshold",
            Self::Mom => "mom",
            Self::Proxmox => "proxmox",
            Self::Headroom => "headroom",
            Self::Drs => "drs",
            Self::Fixed => "fixed",
            Self::Static => "static",
        }
    }

    /// Whether it looks at the host: others to see when to take, ours to give no more than there is.
    #[must_use]
    pub const fn needs_host(self) -> bool {
        match self {
            Self::Fixed | Self::Static => false,
            Self::Ballast | Self::Threshold | Self::Mom | Self::Proxmox | Self::Headroom | Self::Drs => true,
        }
    }
}

impl fmt::Display for LawName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A law and its settings, as an operator chose them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LawSettings {
    /// [`LawName::Ballast`]
    #[default]
    Ballast,
    /// [`LawName::Threshold`]
    Threshold(ThresholdSettings),
    /// [`LawName::Mom`]
    Mom(MomSettings),
    /// [`LawName::Proxmox`]
    Proxmox(ProxmoxSettings),
    /// [`LawName::Headroom`]
    Headroom(HeadroomSettings),
    /// [`LawName::Drs`]
    Drs(DrsSettings),
    /// [`LawName::Fixed`]
    Fixed,
    /// [`LawName::Static`]
    Static,
}

impl LawSettings {
    /// Its name.
    #[must_use]
    pub const fn name(&self) -> LawName {
        match self {
            Self::Ballast => LawName::Ballast,
            Self::Threshold(_) => LawName::Threshold,
            Self::Mom(_) => LawName::Mom,
            Self::Proxmox(_) => LawName::Proxmox,
            Self::Headroom(_) => LawName::Headroom,
            Self::Drs(_) => LawName::Drs,
            Self::Fixed => LawName::Fixed,
            Self::Static => LawName::Static,
        }
    }
}

/// The law that rules, and what it remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Law {
    /// Ours: [`super::Reactive`] and [`super::StatisticsLaw`], which remember in each VM.
    #[default]
    Ballast,
    /// [`LawName::Threshold`]
    Threshold(Threshold),
    /// [`LawName::Mom`]
    Mom(Mom),
    /// [`LawName::Proxmox`]
    Proxmox(Proxmox),
    /// [`LawName::Headroom`]
    Headroom(Headroom),
    /// [`LawName::Drs`]
    Drs(Drs),
    /// [`LawName::Fixed`]
    Fixed(Fixed),
    /// [`LawName::Static`]
    Static,
}

impl Law {
    /// A law that has seen nothing yet.
    #[must_use]
    pub fn new(settings: LawSettings) -> Self {
        match settings {
            LawSettings::Ballast => Self::Ballast,
            LawSettings::Threshold(s) => Self::Threshold(Threshold::new(s)),
            LawSettings::Mom(s) => Self::Mom(Mom::new(s)),
            LawSettings::Proxmox(s) => Self::Proxmox(Proxmox::new(s)),
            LawSettings::Headroom(s) => Self::Headroom(Headroom::new(s)),
            LawSettings::Drs(s) => Self::Drs(Drs::new(s)),
            LawSettings::Fixed => Self::Fixed(Fixed),
            LawSettings::Static => Self::Static,
        }
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> LawName {
        match self {
            Self::Ballast => LawName::Ballast,
            Self::Threshold(_) => LawName::Threshold,
            Self::Mom(_) => LawName::Mom,
            Self::Proxmox(_) => LawName::Proxmox,
            Self::Headroom(_) => LawName::Headroom,
            Self::Drs(_) => LawName::Drs,
            Self::Fixed(_) => LawName::Fixed,
            Self::Static => LawName::Static,
        }
    }

    /// The part of it that has rounds.
    pub fn in_rounds(&mut self) -> Option<&mut dyn FleetLaw> {
        match self {
            Self::Ballast | Self::Static => None,
            Self::Threshold(law) => Some(law),
            Self::Mom(law) => Some(law),
            Self::Proxmox(law) => Some(law),
            Self::Headroom(law) => Some(law),
            Self::Drs(law) => Some(law),
            Self::Fixed(law) => Some(law),
        }
    }
}

/// `amount` in parts proportional to `weights`, each at most its weight, which for what can be taken is what is
/// there. What rounding leaves goes to the first that can bear it.
pub(super) fn in_proportion(amount: Bytes, weights: &[Bytes]) -> Vec<Bytes> {
    let all: Bytes = weights.iter().copied().sum();
    let amount = amount.min(all);
    let mut parts: Vec<Bytes> = weights.iter().map(|w| amount.share(w.0, all.0).min(*w)).collect();
    let mut rest = amount - parts.iter().copied().sum();
    for (part, weight) in parts.iter_mut().zip(weights) {
        let more = rest.min(*weight - *part);
        *part += more;
        rest = rest - more;
    }
    parts
}

#[cfg(test)]
pub(super) mod bench {
    //! What the laws' tables of cases are made of.

    use super::*;

    pub const M: fn(u64) -> Bytes = Bytes::mib;

    /// A VM of 1000 MiB with a minimum of 100 MiB that keeps `kept` MiB and has `free` MiB free and available.
    pub fn seen(name: &str, kept: u64, free: u64) -> Seen {
        Seen {
            name: VmName::from(name),
            min: M(100),
            max: M(1000),
            target: M(kept),
            kept: M(kept),
            free: Some(M(free)),
            available: Some(M(free)),
            shares: 1000,
            fixed_size: None,
        }
    }

    /// A host of `total` MiB with `available` MiB and no stall.
    pub fn host(total: u64, available: u64) -> Option<HostMemory> {
        Some(HostMemory { total: M(total), available: M(available), psi_some_avg10: None })
    }

    /// What is left of a round once it is rounded down to MiB.
    pub fn moves(law: &mut dyn FleetLaw, view: &View, at: Micros) -> Vec<(String, u64)> {
        law.round(view, at).into_iter().map(|m| (m.vm.0, m.keep.as_mib())).collect()
    }

    /// As [`moves`] gives them.
    pub fn expect(moves: &[(&str, u64)]) -> Vec<(String, u64)> {
        moves.iter().map(|(name, keep)| ((*name).to_owned(), *keep)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_size() -> impl Strategy<Value = Bytes> {
        prop_oneof![Just(Bytes::ZERO), Just(Bytes(1)), Just(Bytes::MAX), (0u64..2000).prop_map(Bytes::mib)]
    }

    fn any_vm() -> impl Strategy<Value = Seen> {
        let sizes = (any_size(), any_size(), any_size(), any_size(), proptest::option::of(any_size()));
        let rest = (proptest::option::of(any_size()), proptest::option::of(any_size()), any::<u32>());
        (sizes, rest).prop_map(|((a, b, target, kept, free), (available, fixed_size, shares))| Seen {
            name: VmName::from("x"),
            min: a.min(b),
            max: a.max(b),
            target,
            kept,
            free,
            available: available.or(free),
            shares,
            fixed_size,
        })
    }

    fn any_view() -> impl Strategy<Value = View> {
        let host = (any_size(), any_size()).prop_map(|(total, available)| HostMemory {
            total,
            available,
            psi_some_avg10: Some(crate::Ratio::between(available, total)),
        });
        (proptest::option::of(host), proptest::collection::vec(any_vm(), 0..5)).prop_map(|(host, mut vms)| {
            for (i, vm) in vms.iter_mut().enumerate() {
                vm.name = VmName(format!("vm{i}"));
            }
            View { host, vms }
        })
    }

    proptest! {
        /// Figures that no kernel makes, from rounds that have nothing in common.
        #[test]
        fn no_law_panics_and_each_orders_a_vm_once_at_most(views in proptest::collection::vec(any_view(), 1..6)) {
            for settings in [
                LawSettings::Threshold(Default::default()),
                LawSettings::Mom(Default::default()),
                LawSettings::Proxmox(Default::default()),
                LawSettings::Headroom(Default::default()),
                LawSettings::Drs(Default::default()),
                LawSettings::Fixed,
            ] {
                let mut law = Law::new(settings);
                for (i, view) in views.iter().enumerate() {
                    let law = law.in_rounds().expect("all of these have rounds");
                    let mut moves: Vec<VmName> =
                        law.round(view, Micros::secs(10 * i as u64)).into_iter().map(|m| m.vm).collect();
                    let all = moves.len();
                    moves.dedup();
                    prop_assert_eq!(moves.len(), all);
                    prop_assert!(moves.iter().all(|name| view.vms.iter().any(|vm| vm.name == *name)));
                }
            }
        }
    }

    #[test]
    fn proportions_sum_up_and_exceed_nothing() {
        let weights = [Bytes(1), Bytes(1), Bytes(1)];
        assert_eq!(in_proportion(Bytes(2), &weights), [Bytes(1), Bytes(1), Bytes(0)]);
        assert_eq!(in_proportion(Bytes(9), &weights), weights);
        assert_eq!(in_proportion(Bytes(9), &[]), []);
        assert_eq!(in_proportion(Bytes(9), &[Bytes::ZERO]), [Bytes::ZERO]);
        let whole = in_proportion(Bytes(10), &[Bytes(30), Bytes(10)]);
        assert_eq!(whole, [Bytes(8), Bytes(2)], "7.5 and 2.5, rounded down, and 1 left for the first");
    }
}
