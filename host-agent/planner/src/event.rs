//! What goes into the planner and what comes out: plain data, so that a journal can hold it and a replay repeat it.

use crate::config::VmSettings;
use crate::forecast::{Forecast, Said};
use crate::guard::BalloonTarget;
use crate::pace::Pace;
use crate::policy::{LawName, LawSettings};
use crate::pool::Reservation;
use crate::ratio::Ratio;
use crate::service::{ProbeWhy, ServiceSample};
use ballast_protocol::{Bytes, GuestMessage, Micros, Shortfall, Source, Verdict};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A VM's name: libvirt's domain name, or the one in the daemon's configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VmName(pub String);

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl From<&str> for VmName {
    fn from(name: &str) -> Self {
        Self(name.to_owned())
    }
}

/// What the hypervisor says of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// What the guest has with an empty balloon.
    pub max: Bytes,
    /// What the guest keeps now.
    pub actual: Bytes,
    /// Its vCPUs run.
    pub running: bool,
    /// It has a balloon device.
    pub balloon: bool,
    /// The balloon lets go when the guest runs out of memory; `None`: the hypervisor does not say.
    pub deflate_on_oom: Option<bool>,
}

/// The balloon driver's own statistics: all there is for a guest without an agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Free memory.
    pub free: Option<Bytes>,
    /// Memory that can be had without swapping.
    pub available: Option<Bytes>,
    /// The guest's total.
    pub total: Option<Bytes>,
    /// Bytes read back from swap since boot.
    pub swap_in: Option<Bytes>,
    /// How long ago the guest reported them.
    pub age: Micros,
}

/// The host's own memory, by its kernel or by a configured budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostMemory {
    /// All of it.
    pub total: Bytes,
    /// What could be had without swapping.
    pub available: Bytes,
    /// The part of the last ten seconds in which somebody on the host waited for memory; `None`: not known.
    pub psi_some_avg10: Option<Ratio>,
}

/// An operator's word: a VM keeps so much, whatever it asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// So much; never under its guarantee or its floor, never above its maximum.
    pub size: Bytes,
    /// Until then; `None`: until it is ended.
    pub until: Option<Micros>,
    /// Who said so.
    pub by: String,
    /// Why.
    pub reason: String,
}

/// Something happened.
// One at a time is alive; boxing the guest's words would only add an allocation to each report.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// A VM is there, or its facts or settings changed.
    Vm {
        /// Which.
        vm: VmName,
        /// What the hypervisor says.
        facts: Facts,
        /// What the operator says.
        settings: VmSettings,
    },
    /// A VM is gone.
    VmGone {
        /// Which.
        vm: VmName,
    },
    /// A VM was paused or resumed.
    Running {
        /// Which.
        vm: VmName,
        /// Whether its vCPUs run now.
        running: bool,
    },
    /// A VM begins or ceases to migrate, or to be saved: nothing is ordered meanwhile, not even a giving. Hypervisors
    /// refuse it or let it wait, and what moves under a migration in flight was seen to break guests (FACTS, section 8).
    Migrating {
        /// Which.
        vm: VmName,
        /// Whether it does.
        migrating: bool,
    },
    /// A VM was reset: its balloon is empty, whatever the hypervisor says of it, and its agent gone.
    Rebooted {
        /// Which.
        vm: VmName,
    },
    /// The guest said something. The session has bounded and decoded it, nothing else.
    Guest {
        /// Which.
        vm: VmName,
        /// What.
        message: GuestMessage,
    },
    /// The session of a VM's agent ended.
    AgentLost {
        /// Which.
        vm: VmName,
        /// For people.
        why: String,
    },
    /// What the VM keeps now, by the hypervisor.
    Balloon {
        /// Which.
        vm: VmName,
        /// How much.
        actual: Bytes,
    },
    /// The balloon driver's statistics.
    Statistics {
        /// Which.
        vm: VmName,
        /// What they say.
        statistics: Statistics,
    },
    /// The hypervisor took an order, or refused it.
    Ordered {
        /// Which.
        vm: VmName,
        /// The order.
        order: u64,
        /// Why it was refused.
        error: Option<String>,
    },
    /// The hypervisor of a VM cannot be reached. What it said last is no longer known.
    HypervisorLost {
        /// Which.
        vm: VmName,
    },
    /// The service level of a VM was measured.
    Service {
        /// Whose.
        vm: VmName,
        /// What it was.
        sample: ServiceSample,
    },
    /// A model says what a VM would lose at which size.
    Forecast {
        /// Which.
        vm: VmName,
        /// What it says.
        forecast: Forecast,
    },
    /// All of a VM's memory goes back to it: the daemon stops for good.
    Release {
        /// Which.
        vm: VmName,
    },
    /// The operator chose a law, or changed its settings. What is under way goes on; the new law begins from nothing.
    Law {
        /// Which.
        law: LawSettings,
    },
    /// What the VMs may have together.
    Pool {
        /// So much; `None`: what the host's kernel says, less the reserve.
        budget: Option<Bytes>,
        /// The part of the host's memory that is never handed out; `None`: a sixteenth of
        /// what its kernel says, nothing of a budget.
        reserve: Option<Bytes>,
    },
    /// The operator holds a VM at a size, or ends that.
    Hold {
        /// Which.
        vm: VmName,
        /// How; `None`: no longer.
        hold: Option<Hold>,
    },
    /// Room is to be made for a VM that will start or arrive. Replaces the reservation of the same name.
    Reserve(Reservation),
    /// It will not come after all.
    Unreserve {
        /// Which.
        name: VmName,
    },
    /// The operator wants so much back from whoever can spare it, once.
    Reclaim {
        /// How much.
        size: Bytes,
    },
    /// Whether orders are only said and not given.
    Mode {
        /// They are.
        dry_run: bool,
    },
    /// The host's memory.
    Host(HostMemory),
    /// [`crate::Planner::deadline`] has come.
    Wake,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Set a balloon.
    Order {
        /// Whose.
        vm: VmName,
        /// Counts all orders of this planner.
        order: u64,
        /// What the guest keeps.
        target: BalloonTarget,
        /// What it had been told to keep.
        from: Bytes,
        /// How fast it comes; `None`: all at once, as soon as it can.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pace: Option<Pace>,
        /// Why.
        reason: Reason,
    },
    /// Answer a demand.
    Answer {
        /// Whose.
        vm: VmName,
        /// Which.
        demand: u64,
        /// How.
        verdict: Verdict,
    },
    /// Ask the guest to drop cold page cache.
    Reclaim {
        /// Whom.
        vm: VmName,
        /// Counts the reclaims of this planner.
        id: u64,
        /// How much at most.
        size: Bytes,
        /// What a model that is followed said of it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        said: Option<Said>,
    },
    /// Read the balloon's size this often from now on.
    Watch {
        /// Whose.
        vm: VmName,
        /// How often.
        every: Micros,
    },
    /// Measure the service level of a VM soon.
    Probe {
        /// Whose.
        vm: VmName,
        /// Why.
        why: ProbeWhy,
    },
    /// What would be ordered, were it not a dry run.
    Would {
        /// Whose balloon.
        vm: VmName,
        /// What the guest would keep.
        target: BalloonTarget,
        /// What it has been told to keep.
        from: Bytes,
        /// Why.
        reason: Reason,
    },
    /// Tell people about the host.
    Host(HostNotice),
    /// Tell people.
    Notice {
        /// About whom.
        vm: VmName,
        /// What.
        notice: Notice,
    },
}

/// Why a balloon is moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// The VM was found like this; the order ends whatever was half done before.
    Adopted,
    /// The guest asked.
    Demand {
        /// Which demand.
        id: u64,
        /// How the guest knew.
        source: Source,
    },
    /// Free memory beyond the headroom.
    Spare(Bytes),
    /// Free memory fell below the headroom without a demand.
    Refill,
    /// Free memory beyond the headroom that a model leaves it.
    ForeseenSpare {
        /// So much.
        spare: Bytes,
        /// What it said.
        said: Said,
    },
    /// Free memory fell below the headroom that a model leaves it.
    ForeseenNeed(Said),
    /// The last taking hurt.
    Undo(Trouble),
    /// The guest could not give what it was told to.
    Stalled,
    /// The balloon let go by itself: the last resort was needed.
    SelfDeflated,
    /// Nothing is known of this VM any more.
    Decay,
    /// The VM is exempt, or must not be taken from.
    Exempt,
    /// A guest process was killed.
    Killed,
    /// The settings say so.
    Settings,
    /// The daemon stops for good.
    Release,
    /// The VM was reset: its new kernel's driver would otherwise inflate to the old kernel's target.
    Rebooted,
    /// Others need it: so much is missing on this host.
    Needed(Bytes),
    /// Room was made for what it had asked for.
    Room,
    /// It needs so much again and again, and there is room now.
    Returning,
    /// The operator holds it at this size.
    Held,
    /// The operator wants memory back.
    Reclaim,
    /// A law for all VMs at once says so.
    Law {
        /// Which.
        law: LawName,
        /// With the figures that led to it.
        why: String,
    },
}

/// What hurts a guest, in the order of how bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Trouble {
    /// The VM's network gives less than it did.
    Service,
    /// Page cache was needed again after it had been dropped.
    Refaults,
    /// Swap is being read.
    Swapping,
    /// Tasks stalled for memory.
    Pressure,
    /// Allocations waited for reclaim.
    AllocStalls,
    /// The OOM killer struck.
    OomKill,
}

/// Why a balloon is not moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Holding {
    /// There is nothing to gain.
    Settled,
    /// The last order is still being carried out.
    Moving,
    /// Quiet is awaited until then.
    CoolingDown(Micros),
    /// A taking hurt or failed; not before then.
    Blocked(Micros),
    /// Page cache is being dropped by the guest.
    Reclaiming,
    /// What is known is too old to take on.
    Stale,
    /// The guest's reports contradict themselves or the hypervisor.
    Distrusted,
    /// At the configured minimum, or a lease.
    AtMinimum,
    /// The guest's floor allows no more.
    AtFloor,
    /// The VM is exempt.
    Exempt,
    /// The VM has no balloon.
    NoBalloon,
    /// The balloon would not deflate when the guest runs out.
    NoDeflateOnOom,
    /// The VM is paused.
    Paused,
    /// The VM migrates, or is saved.
    Migrating,
    /// The hypervisor cannot be reached.
    NoHypervisor,
    /// The agent is gone; memory is given back step by step.
    Decaying,
    /// What was taken came back soon: until then it is left alone.
    Returning(Micros),
    /// Its page cache came lately: until then it is left alone.
    Fresh(Micros),
    /// What is free is with the host already: the guest reports it (free page reporting).
    Reported,
    /// A model foresees a loss with less.
    Foreseen(Said),
    /// It needs more, and the host has no more.
    HostShort,
    /// The operator holds it at a size.
    Held,
    /// Nothing is ordered in a dry run.
    DryRun,
    /// Another law than ours decides.
    Ruled(LawName),
}

/// Something people should know about the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostNotice {
    /// VMs and reservations need so much more than it has.
    Short(Bytes),
    /// It has enough again.
    Enough,
    /// There is room for the VM that this was reserved for.
    Ready(VmName),
    /// A reservation ran out before its VM came.
    Lapsed(VmName),
}

impl fmt::Display for HostNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short(size) => write!(f, "host short by {size}"),
            Self::Enough => f.write_str("the host has enough for all again"),
            Self::Ready(name) => write!(f, "there is room for {name}"),
            Self::Lapsed(name) => write!(f, "the reservation for {name} ran out"),
        }
    }
}

/// Something people should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// The VM's balloon does not deflate when the guest runs out of memory: nothing is taken from it.
    NoDeflateOnOom,
    /// The guest's figures are not believed any more.
    Distrusted(String),
    /// The guest's figures are believed again.
    TrustedAgain,
    /// The guest could not give what it was told to.
    Stalled {
        /// The target.
        target: Bytes,
        /// What it came to.
        actual: Bytes,
    },
    /// The balloon let go by itself.
    SelfDeflated(Bytes),
    /// The OOM killer struck inside the guest so many times.
    OomKills(u64),
    /// The agent is silent or gone.
    AgentSilent(String),
    /// The hypervisor refused an order.
    OrderRefused(String),
    /// The VM's service fell far below its own baseline, and a second probe says the same.
    ServiceShort {
        /// Of the baseline.
        percent: u32,
    },
    /// The VM's service is back.
    ServiceWell,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => "the service level fell",
            Self::Refaults => "dropped page cache was needed again",
            Self::Swapping => "swap is being read",
            Self::Pressure => "tasks stalled for memory",
            Self::AllocStalls => "allocations waited for reclaim",
            Self::OomKill => "the OOM killer struck",
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Adopted => f.write_str("found like this"),
            Self::Demand { id, source } => write!(f, "demand {id} ({})", source_name(*source)),
            Self::Spare(size) => write!(f, "{size} free beyond the headroom"),
            Self::Refill => f.write_str("free memory fell below the headroom"),
            Self::ForeseenSpare { spare, said } => {
                write!(f, "{spare} free beyond the headroom that the model leaves: {said}")
            }
            Self::ForeseenNeed(said) => {
                write!(f, "free memory fell below the headroom that the model asks for: {said}")
            }
            Self::Undo(trouble) => write!(f, "the last taking hurt: {trouble}"),
            Self::Stalled => f.write_str("the guest could not give more"),
            Self::SelfDeflated => f.write_str("the balloon let go by itself"),
            Self::Decay => f.write_str("nothing is known of the guest any more"),
            Self::Exempt => f.write_str("must not be taken from"),
            Self::Killed => f.write_str("the OOM killer struck"),
            Self::Settings => f.write_str("the settings changed"),
            Self::Release => f.write_str("the daemon stops"),
            Self::Rebooted => f.write_str("the VM was reset"),
            Self::Needed(size) => write!(f, "others need {size}"),
            Self::Returning => f.write_str("it needs this again and again, and there is room now"),
            Self::Room => f.write_str("room was made for what it had asked for"),
            Self::Held => f.write_str("held by an operator"),
            Self::Reclaim => f.write_str("an operator wants memory back"),
            Self::Law { law, why } => write!(f, "law {law}: {why}"),
        }
    }
}

impl fmt::Display for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Settled => f.write_str("nothing to gain: no spare memory beyond the headroom"),
            Self::Moving => f.write_str("the last order is still being carried out"),
            Self::CoolingDown(_) => f.write_str("cooling down after a demand or trouble"),
            Self::Blocked(_) => f.write_str("blocked for a while, because taking hurt or failed"),
            Self::Reclaiming => f.write_str("the guest is dropping cold page cache"),
            Self::Stale => f.write_str("the last report is too old to take on"),
            Self::Distrusted => f.write_str("the guest's reports are not believed"),
            Self::AtMinimum => f.write_str("at the configured minimum, or a lease"),
            Self::AtFloor => f.write_str("at the floor the guest states"),
            Self::Exempt => f.write_str("exempt: hands off"),
            Self::NoBalloon => f.write_str("the VM has no balloon device"),
            Self::NoDeflateOnOom => f.write_str("deflate-on-oom (libvirt: autodeflate='on') is off"),
            Self::Paused => f.write_str("the VM is paused"),
            Self::Migrating => f.write_str("hands off: the VM migrates, or is saved"),
            Self::NoHypervisor => f.write_str("the hypervisor cannot be reached"),
            Self::Decaying => f.write_str("the agent is gone: memory is given back step by step"),
            Self::Returning(_) => f.write_str("left alone for a while: it was needed again soon after it was taken"),
            Self::Fresh(_) => f.write_str("its page cache came lately, and nobody needs the room"),
            Self::Reported => f.write_str("what is free is with the host already (free page reporting)"),
            Self::Foreseen(said) => write!(f, "the model foresees a loss with less: {said}"),
            Self::HostShort => f.write_str("it needs more, and the host has no more"),
            Self::Held => f.write_str("held at this size by an operator"),
            Self::DryRun => f.write_str("a dry run: nothing is ordered"),
            Self::Ruled(LawName::Static) => f.write_str("the law is `static`: nothing is moved"),
            Self::Ruled(law) => write!(f, "the law `{law}` decides, in rounds"),
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDeflateOnOom => f.write_str(
                "deflate-on-oom is off, large allocations would be refused: nothing is taken; \
                 set autodeflate='on' (libvirt) or deflate-on-oom=on (QEMU)",
            ),
            Self::Distrusted(why) => write!(f, "the guest's reports are not believed: {why}"),
            Self::TrustedAgain => f.write_str("the guest's reports are believed again"),
            Self::Stalled { target, actual } => {
                write!(f, "the guest was to keep {target} and came to {actual}: undone, and blocked for a while")
            }
            Self::SelfDeflated(size) => write!(f, "the balloon let go of {size} by itself (deflate-on-oom)"),
            Self::OomKills(n) => write!(f, "the OOM killer struck {n} times inside the guest"),
            Self::AgentSilent(why) => write!(f, "the agent is silent: {why}"),
            Self::OrderRefused(why) => write!(f, "the hypervisor refused an order: {why}"),
            Self::ServiceShort { percent } => {
                write!(f, "the service level fell to {percent} % of the VM's own baseline")
            }
            Self::ServiceWell => f.write_str("the service level is well again"),
        }
    }
}

/// A source's name for people, logs and metrics.
#[must_use]
pub const fn source_name(source: Source) -> &'static str {
    match source {
        Source::Slack => "slack",
        Source::Committed => "committed",
        Source::Cgroup => "cgroup",
        Source::Psi => "psi",
        Source::Stall => "stall",
        Source::Reserve => "reserve",
    }
}

/// Why a demand fell short, for people.
#[must_use]
pub const fn shortfall_text(why: Shortfall) -> &'static str {
    match why {
        Shortfall::AtMaximum => "the VM has its maximum",
        Shortfall::HostShort => "the host has no more",
        Shortfall::NoBalloon => "no balloon, or the hypervisor cannot be reached",
        Shortfall::Held => "held by an operator, or by a law that hears no demands",
        Shortfall::Distrusted => "the guest's reports are not believed",
    }
}
