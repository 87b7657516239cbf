//! What an operator may set for a VM, with the defaults and where each default comes from.

use crate::forecast::Mode;
use crate::ratio::Ratio;
use ballast_protocol::{Bytes, Micros};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Who comes first when the host has not enough for everybody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Gets what the others leave.
    Low,
    /// Most VMs.
    #[default]
    Normal,
    /// Gets all it needs before the others get more than they are guaranteed.
    High,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        })
    }
}

/// The settings of one VM, complete: every default is filled in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VmSettings {
    /// The VM is never ordered below this.
    pub min: Bytes,
    /// The VM is never ordered above this; capped by what the hypervisor allows. Default: all of it.
    pub max: Bytes,
    /// The least free memory above the low watermark that a quiet VM keeps. The law of survival asks for
    /// 2 x R x T: the fastest growth measured under TCG is 240 MiB/s and the first MiB is back within 60 ms, so
    /// 29 MiB; it is raised per VM when faster growth or a slower loop is seen. The default is twice that: a burst
    /// then meets memory that the host holds already while the balloon deflates.
    pub headroom: Bytes,
    /// The largest single taking. 64 MiB leave a guest in about 350 ms (190 MiB/s measured), so that a step that
    /// hurts is seen and undone before the next.
    pub step: Bytes,
    /// How long a VM must have been quiet, no demand and no pressure, before anything is taken.
    pub cool_down: Micros,
    /// What was taken and is asked back sooner than this is left alone for a while, as long as the host has room; 0:
    /// never. On KVM 1 % of a core moves 10 MiB/s (HyperAlloc, EuroSys'25): a cycle of 600 MiB a minute.
    pub returning: Micros,
    /// Page cache younger than this is left to a guest whose memory nobody else needs; 0: only for `cool_down`. A page
    /// that is read again within five minutes costs less in memory than on its disk (Gray and Putzolu, "The 5 minute rule",
    /// SIGMOD'87; "thirty years later", Appuswamy 2017, has 4 to 7 minutes for SSDs). Journals from before this existed have 0.
    #[serde(default)]
    pub cold_after: Micros,
    /// How fast a giving comes that is not urgent, in bytes a second; 0: all at once. See [`crate::pace`].
    pub pace: Bytes,
    /// Take free memory also from a guest that reports it to the host by itself (free page reporting). The host has that
    /// memory already, and a burst that finds it in the balloon waits for the balloon too: on one vCPU under TCG
    /// throughput 0.86 of `static`, and 0.96 under reporting alone (12 bursts each in one run). So it is left to the
    /// guest until others need it.
    pub take_reported: bool,
    /// Hands off: this VM keeps all its memory.
    pub exempt: bool,
    /// Take even from a VM whose balloon does not deflate when the guest runs out of memory. There a large
    /// allocation is refused at once, before any agent can help (7 of 7 measured), so the default is no.
    pub allow_without_deflate_on_oom: bool,
    /// Its weight among VMs of its class when the host has not enough for all, 1 to 10,000.
    pub weight: u32,
    /// Its class then.
    pub class: Class,
    /// What may be done with a model's forecasts of this VM. On, they move the headroom: down to half of what is set
    /// above or what the law of survival asks for, whichever is more, and up to a quarter of the VM; and what is kept because it was asked
    /// back is kept only as far as they ask for it.
    pub predictor: Mode,
    /// How much of its next ten seconds this VM may lose, 95 times in 100, beyond what it would lose with all of its memory,
    /// when forecasts choose its size: time in which its tasks wait for memory, or service.
    pub loss_budget: Ratio,
    /// Its weight under the law `proxmox`, whose default this is; 0: that law leaves it alone.
    pub shares: u32,
    /// What it keeps under the law `fixed`; `None`: all it may have.
    pub fixed_size: Option<Bytes>,
}

impl Default for VmSettings {
    fn default() -> Self {
        Self {
            min: Bytes::mib(64),
            max: Bytes::MAX,
            headroom: Bytes::mib(64),
            step: Bytes::mib(64),
            cool_down: Micros::secs(2),
            returning: Micros::secs(60),
            cold_after: Micros::secs(300),
            pace: crate::pace::DEFAULT,
            take_reported: false,
            exempt: false,
            allow_without_deflate_on_oom: false,
            weight: 100,
            class: Class::Normal,
            predictor: Mode::default(),
            loss_budget: Ratio::percent(1),
            shares: 1000,
            fixed_size: None,
        }
    }
}
