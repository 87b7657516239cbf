//! What holds the balloons: one blocking trait, two implementors.
//!
//! ```text
//!   actuator --spawn_blocking--> Hypervisor --+-- Qmp      one Unix socket each, one thread: QEMUs
//!                                             +-- Libvirt  one connection at a time: all VMs of a libvirtd
//!   daemon   <--mpsc---- Event <--------------+
//! ```
//!
//! Both are blocking because libvirt's library is, and because a call that may hang belongs on a thread that may
//! hang. Every call ends within [`DEADLINE`] whatever the other side does, both reconnect by themselves for ever, and
//! a call while there is no connection fails at once.

mod age;
#[cfg(feature = "libvirt")]
mod libvirt;
mod qmp;

#[cfg(feature = "libvirt")]
pub use libvirt::Libvirt;
pub use qmp::Qmp;

use ballast_planner::VmName;
use ballast_protocol::{Bytes, Micros};
use std::fmt;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;

/// The longest a call takes. A healthy QEMU answers in 0.4 ms and libvirtd in 2 ms; the slowest answer measured on a
/// busy machine took 1.3 s (FACTS.md, section 2).
pub const DEADLINE: Duration = Duration::from_secs(2);

/// Where events go. Unbounded, because a reader thread that waited for a slow daemon could not deliver the answers
/// that the daemon waits for; QEMU sends balloon events once a second at most, and all others are rare.
pub type Events = UnboundedSender<Event>;

/// The namespace of what a libvirt domain's `<metadata>` says to us. The number grows when the meaning of an element
/// changes.
pub const METADATA: &str = "https://ballast.dev/domain/1";

/// Something that holds balloons.
pub trait Hypervisor: Send + Sync + fmt::Debug {
    /// All VMs, also those that are off.
    ///
    /// # Errors
    /// The hypervisor as a whole cannot be asked.
    fn vms(&self) -> Result<Vec<VmFacts>, Error>;

    /// One VM.
    ///
    /// # Errors
    /// It is unknown, or cannot be asked.
    fn facts(&self, vm: &VmName) -> Result<VmFacts, Error>;

    /// What the guest keeps now.
    ///
    /// # Errors
    /// The VM is unknown or off, has no balloon, or cannot be asked.
    fn balloon(&self, vm: &VmName) -> Result<Bytes, Error>;

    /// Tells the balloon what the guest is to keep. Returns when the hypervisor has accepted it; the guest obeys in its
    /// own time. An order that fails with [`Error::Deadline`] may still take effect.
    ///
    /// # Errors
    /// The VM is unknown or off, has no balloon, or the hypervisor refuses.
    fn order(&self, vm: &VmName, keep: Bytes) -> Result<(), Error>;

    /// What the guest's balloon driver says of the guest. Switches the statistics on when they are off; then the first
    /// answer is empty.
    ///
    /// # Errors
    /// The VM is unknown or off, has no balloon, or cannot be asked.
    fn statistics(&self, vm: &VmName) -> Result<BalloonStatistics, Error>;
}

/// What a hypervisor says of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmFacts {
    /// Its name.
    pub name: VmName,
    /// Its UUID, lower case.
    pub uuid: Option<String>,
    /// What it does.
    pub state: State,
    /// What the guest has with an empty balloon: base memory and what was plugged. Zero when never known.
    pub max: Bytes,
    /// What the guest keeps now.
    pub actual: Bytes,
    /// There is a balloon device.
    pub has_balloon: bool,
    /// It lets go when the guest runs out of memory.
    pub deflate_on_oom: Option<bool>,
    /// It tells the host of free pages.
    pub free_page_reporting: Option<bool>,
    /// Its AF_VSOCK address, when the hypervisor knows one.
    pub cid: Option<u32>,
    /// libvirt's `<min_guarantee>`.
    pub min_guarantee: Option<Bytes>,
    /// It migrates, or libvirt saves, dumps or snapshots it: nothing may be ordered meanwhile.
    pub migrating: bool,
    /// What its `<metadata>` says in our namespace: names of elements without their prefix, and their texts; or why that
    /// cannot be read.
    pub metadata: Result<Vec<(String, String)>, String>,
}

/// What a VM does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its vCPUs run.
    Running,
    /// They do not.
    Paused,
    /// Its process is there and does not answer; whether they run is not known.
    Hung,
    /// There is no such process.
    Off,
}

/// The guest's memory as its balloon driver tells it (virtio 1.2, section 5.5.6.3). `None`: this driver does not say,
/// or not yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonStatistics {
    /// The guest's MemTotal.
    pub total: Option<Bytes>,
    /// MemFree.
    pub free: Option<Bytes>,
    /// MemAvailable.
    pub available: Option<Bytes>,
    /// Memory used as page cache.
    pub caches: Option<Bytes>,
    /// Read back from swap since boot.
    pub swap_in: Option<Bytes>,
    /// Written to swap since boot.
    pub swap_out: Option<Bytes>,
    /// Faults that waited for a disk, since boot.
    pub major_faults: Option<u64>,
    /// Other faults, since boot.
    pub minor_faults: Option<u64>,
    /// How long ago the guest said so; `None`: it never did.
    pub age: Option<Micros>,
}

/// Something happened to a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// To which.
    pub vm: VmName,
    /// What.
    pub what: What,
}

/// What can happen to a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// It is there: just started, or just found. It may be paused.
    Started,
    /// It is gone.
    Stopped,
    /// Its vCPUs stand still.
    Paused,
    /// They run again.
    Resumed,
    /// It was reset: its balloon is empty and its agent is gone. QEMU goes on reporting what the old kernel's balloon
    /// held until the new kernel's driver moves it for the first time; if it is never told to move, for ever.
    Reset,
    /// It begins to migrate.
    Migrates,
    /// Something about it is not as it was: its memory, its devices, its metadata, or the end of a migration.
    Changed,
    /// The guest keeps this much now. Once a second at most; while it matters, ask.
    BalloonMoved(Bytes),
    /// Whoever manages it cannot be reached; the VM itself may well live.
    ConnectionLost(String),
    /// It can be reached again, and is the same VM.
    ConnectionBack,
}

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No such VM is configured or known.
    #[error("VM `{0}` is not known")]
    UnknownVm(VmName),
    /// There is no connection at the moment.
    #[error("{whom} cannot be reached: {why}")]
    Unreachable {
        /// The VM's monitor, or libvirt.
        whom: String,
        /// Why.
        why: String,
    },
    /// No answer in time.
    #[error("{whom} did not answer `{call}` within {DEADLINE:?}")]
    Deadline {
        /// The VM's monitor, or libvirt.
        whom: String,
        /// The command.
        call: &'static str,
    },
    /// It did not answer before, and is not asked until it does.
    #[error(
        "VM `{vm}`: its QEMU hangs, so libvirt is not asked for `{call}` until it answers again; see whether its process \
         is stopped or waits for a disk"
    )]
    Hung {
        /// Which.
        vm: VmName,
        /// The command.
        call: &'static str,
    },
    /// The VM has no balloon device, or its guest no driver yet.
    #[error("VM `{0}` has no balloon; add <memballoon model='virtio'/> or -device virtio-balloon-pci")]
    NoBalloon(VmName),
    /// The VM is off.
    #[error("VM `{0}` is off")]
    Off(VmName),
    /// The hypervisor said no.
    #[error("{whom} refuses `{call}`: {why}")]
    Refused {
        /// The VM's monitor, or libvirt.
        whom: String,
        /// The command.
        call: &'static str,
        /// In its own words.
        why: String,
    },
    /// The answer makes no sense.
    #[error("{whom} answers `{call}` with something else: {why}")]
    Malformed {
        /// The VM's monitor, or libvirt.
        whom: String,
        /// The command.
        call: &'static str,
        /// What is missing.
        why: String,
    },
}
