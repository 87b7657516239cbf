//! What is known of each VM, from whom, and how old it is.
//!
//! Two witnesses speak of the same memory: the hypervisor (`actual`) and the guest (`Telemetry`). The
//! hypervisor's word counts for what the VM keeps; the guest's for what it needs, as long as the two agree (see
//! [`crate::trust`]). Everything has the time it arrived at, because nothing is taken on old news (promise P3).

use crate::SELF_DEFLATION;
use crate::config::VmSettings;
use crate::event::{Facts, Hold, Holding, Reason, Statistics};
use crate::foresight::Foresight;
use crate::guard::BalloonTarget;
use crate::history::History;
use crate::pace::Pace;
use crate::policy::{Reactive, StatisticsLaw};
use crate::service::Service;
use crate::trust::Trust;
use ballast_protocol::{Bytes, Hello, Micros, Source, Telemetry};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Something, and when it was learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamped<T> {
    /// When.
    pub at: Micros,
    /// What.
    pub what: T,
}

/// Where the guest agent is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Agent {
    /// None was ever seen: the law of statistics rules.
    #[default]
    Never,
    /// A session lives.
    Alive {
        /// Who it is.
        hello: Hello,
        /// When it last said anything.
        heard: Micros,
    },
    /// It was there, and is gone or silent. Memory is given back from `next` on, step by step.
    Lost {
        /// When it went.
        at: Micros,
        /// When the next step is due.
        next: Micros,
        /// Who it is, as long as it is only silent and its session has not ended.
        hello: Option<Hello>,
    },
}

/// An order that the balloon has not yet followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Its number.
    pub id: u64,
    /// When it was given.
    pub at: Micros,
    /// What the VM kept then.
    pub from: Bytes,
    /// What it had been told to keep.
    pub before: Bytes,
    /// What it is to keep.
    pub target: BalloonTarget,
    /// How fast it comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pace: Option<Pace>,
    /// Why.
    pub reason: Reason,
}

impl Order {
    /// Whether it shrinks the guest.
    #[must_use]
    pub fn is_taking(&self) -> bool {
        self.shrinks_by() > Bytes::ZERO
    }

    /// By how much: from what the VM kept, or had been told to keep, whichever is more.
    #[must_use]
    pub fn shrinks_by(&self) -> Bytes {
        self.from.max(self.before) - self.target.bytes()
    }
}

/// An order that the hypervisor has neither taken nor refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// Its number.
    pub id: u64,
    /// What the VM goes on being told to keep if it is refused.
    pub stands: Bytes,
}

/// What is known of the hypervisor's figure after a reset: QEMU goes on reporting the old kernel's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Leftover {
    /// It is this kernel's.
    #[default]
    None,
    /// It has not been read since the reset.
    Awaited,
    /// This is the old kernel's; another one will be the new one's.
    Figure(Bytes),
}

/// A lease: an application said that it needs memory, and has not yet said that it is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// What the VM must keep as long as it lasts.
    pub keep: Bytes,
}

/// Memory that a VM is to have and does not get, because the host has no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// What it is to keep.
    pub size: Bytes,
    /// When it was last asked for.
    pub at: Micros,
}

/// What has been done to a VM since the planner knows it. Counters only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Orders that shrank it.
    pub takings: u64,
    /// Orders that grew it.
    pub givings: u64,
    /// Bytes that left it, by the hypervisor's count.
    pub taken: Bytes,
    /// Bytes that came back, by the hypervisor's count.
    pub given: Bytes,
    /// Takings undone because they hurt.
    pub undone: u64,
    /// Takings that the guest could not follow; our own law undoes them.
    pub stalled: u64,
    /// Times that the balloon let go by itself: each is a failure of ours.
    pub self_deflated: u64,
    /// Demands, by source.
    pub demands: BTreeMap<Source, u64>,
    /// Reports that were not believed.
    pub distrusted: u64,
    /// OOM kills inside the guest.
    pub oom_kills: u64,
}

/// One VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// The operator's word.
    pub settings: VmSettings,
    /// The hypervisor's word.
    pub facts: Facts,
    /// What it keeps, by the hypervisor; `None` while that cannot be reached.
    pub actual: Option<Stamped<Bytes>>,
    /// The last order's target: what the VM has been told to keep.
    pub aim: Bytes,
    /// The order that is being followed.
    pub order: Option<Order>,
    /// The last order, as long as the hypervisor has not answered it: a balloon can be where it leads without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<Sent>,
    /// The last answer was a refusal: what the hypervisor was told is not known for sure.
    #[serde(default)]
    pub refused: bool,
    /// When the balloon last came to rest.
    pub settled: Micros,
    /// The guest agent.
    pub agent: Agent,
    /// Its last report.
    pub telemetry: Option<Stamped<Telemetry>>,
    /// Whether it is believed.
    pub trust: Trust,
    /// The balloon driver's statistics.
    pub statistics: Option<Stamped<Statistics>>,
    /// Leases by demand.
    pub leases: BTreeMap<u64, Lease>,
    /// The law for guests with an agent.
    pub reactive: Reactive,
    /// The law for guests without.
    pub by_statistics: StatisticsLaw,
    /// Nothing is taken before this, because taking failed.
    pub blocked_until: Micros,
    /// How long the next such block is.
    pub block: Micros,
    /// Its balloon did not follow the last taking.
    #[serde(default)]
    pub stuck: bool,
    /// What has been done.
    pub counts: Counts,
    /// The last move and its reason.
    pub last: Option<Stamped<(Bytes, Reason)>>,
    /// Why it is not moved now.
    pub holding: Holding,
    /// How often the balloon is read.
    pub watch: Micros,
    /// Whether the missing deflate-on-oom was told.
    pub told_no_deflate: bool,
    /// Whether `actual` is the hypervisor's figure, or the guest's as long as that is left over from before a reset.
    pub leftover: Leftover,
    /// All of its memory goes back to it, and nothing is taken any more.
    pub released: bool,
    /// The hypervisor refused an order: nothing is given by our own will before this.
    pub retry: Micros,
    /// What its network gives.
    #[serde(default)]
    pub service: Service,
    /// It migrates, or is saved: nothing is ordered.
    #[serde(default)]
    pub migrating: bool,
    /// What it is to have and does not get.
    #[serde(default)]
    pub want: Option<Want>,
    /// The host lacks room, be it only for bursts to come.
    #[serde(default)]
    pub crowded: bool,
    /// The operator's hold.
    #[serde(default)]
    pub hold: Option<Hold>,
    /// What was last said in a dry run.
    #[serde(default)]
    pub would: Option<Stamped<Bytes>>,
    /// What it did lately.
    #[serde(default)]
    pub history: History,
    /// What a model says of it, and how right it was.
    #[serde(default)]
    pub foresight: Foresight,
}

/// The first block after a taking that a guest could not follow; doubled each time, up to [`LONGEST_BLOCK`].
pub const FIRST_BLOCK: Micros = Micros::secs(10);
/// Ten minutes: long enough to be no load, short enough that a guest which changed is found again.
pub const LONGEST_BLOCK: Micros = Micros::secs(600);

impl Vm {
    /// A VM as it is found.
    #[must_use]
    pub fn new(facts: Facts, settings: VmSettings, at: Micros) -> Self {
        Self {
            settings,
            actual: Some(Stamped { at, what: facts.actual }),
            aim: facts.actual,
            order: None,
            sent: None,
            refused: false,
            settled: at,
            agent: Agent::Never,
            telemetry: None,
            trust: Trust::default(),
            statistics: None,
            leases: BTreeMap::new(),
            reactive: Reactive::new(at),
            by_statistics: StatisticsLaw::new(at),
            blocked_until: Micros::ZERO,
            block: FIRST_BLOCK,
            stuck: false,
            counts: Counts::default(),
            last: None,
            holding: Holding::Stale,
            watch: Micros::ZERO,
            told_no_deflate: false,
            crowded: false,
            leftover: Leftover::None,
            released: false,
            retry: Micros::ZERO,
            service: Service::default(),
            migrating: false,
            want: None,
            hold: None,
            would: None,
            history: History::default(),
            foresight: Foresight::default(),
            facts,
        }
    }

    /// The most it may have.
    #[must_use]
    pub fn max(&self) -> Bytes {
        self.settings.max.min(self.facts.max)
    }

    /// The least it may be ordered to keep: the configured minimum and every lease.
    #[must_use]
    pub fn guaranteed(&self) -> Bytes {
        let leased = self.leases.values().map(|l| l.keep).max().unwrap_or_default();
        self.settings.min.max(leased).min(self.max())
    }

    /// What the guest kept when it made a report: by its own count of the balloon where it has one, because that
    /// belongs to the same moment; otherwise what the hypervisor last said.
    #[must_use]
    pub fn kept_at(&self, ballooned: Option<Bytes>) -> Bytes {
        match (ballooned, self.actual) {
            (Some(ballooned), _) if self.trust.is_trusted() => self.facts.max - ballooned,
            (_, Some(actual)) => actual.what,
            (_, None) => self.aim,
        }
    }

    /// The guest's floor by its last report: what it cannot give without swapping or killing.
    #[must_use]
    pub fn floor(&self) -> Option<Bytes> {
        let telemetry = &self.telemetry.as_ref()?.what;
        Some(self.kept_at(telemetry.ballooned) - telemetry.giveable)
    }

    /// What it counts for on the host: what it keeps, or has been told it may keep, whichever is more. What it is told to give
    /// is not free as long as the hypervisor could refuse.
    #[must_use]
    pub fn charge(&self) -> Bytes {
        self.has().max(self.sent.map_or(Bytes::ZERO, |sent| sent.stands))
    }

    fn has(&self) -> Bytes {
        // After a reset its balloon is empty, and until the hypervisor shows that it moves only the guest says otherwise.
        if !self.facts.balloon || self.leftover != Leftover::None {
            return self.facts.max;
        }
        self.actual.map_or(self.facts.actual, |a| a.what).max(self.aim)
    }

    /// What it has by what it has been told, not by what it says: a guest's own figure (after a reset) gains it nothing.
    #[must_use]
    pub fn entitled(&self) -> Bytes {
        match &self.order {
            Some(order) if order.is_taking() => self.has().min(order.before.max(self.aim)),
            _ => self.aim,
        }
    }

    /// The hold that is in force.
    #[must_use]
    pub fn held(&self, at: Micros) -> Option<&Hold> {
        self.hold.as_ref().filter(|hold| hold.until.is_none_or(|until| at < until))
    }

    /// It was told to keep more than it does, and nothing is under way.
    #[must_use]
    pub fn is_undelivered(&self) -> bool {
        self.order.is_none() && self.kept() + SELF_DEFLATION < self.aim
    }

    /// It is to have more than it keeps: it was never ordered, or that order was refused. A guest that does not take what it was
    /// told is owed nothing.
    #[must_use]
    pub fn is_owed(&self) -> bool {
        self.aim < self.max() || (self.refused && self.is_undelivered())
    }

    /// What it keeps, as far as anybody knows.
    #[must_use]
    pub fn kept(&self) -> Bytes {
        self.actual.map_or(self.aim, |a| a.what)
    }

    /// Nothing is taken for a while, for longer each time, unless the last time is long past.
    pub fn block(&mut self, at: Micros) {
        if at >= self.blocked_until + LONGEST_BLOCK {
            self.block = FIRST_BLOCK;
        }
        self.blocked_until = at + self.block;
        self.block = (self.block + self.block).min(LONGEST_BLOCK);
    }
}
