//! The messages. Enums only grow at their end; structs never change within a version (see SPEC.md, "Growing").

use crate::{Bytes, Micros};
use serde::{Deserialize, Deserializer, Serialize};

/// A string of at most `N` bytes: longer ones are refused while decoding, before anything is copied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Limited<const N: usize>(String);

impl<const N: usize> Limited<N> {
    /// Cuts `text` to the limit, at a character's edge; control characters become spaces, because these strings
    /// end in logs and on terminals.
    #[must_use]
    pub fn cut(text: &str) -> Self {
        let mut end = text.len().min(N);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Self(text[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A string longer than its field allows, or with control characters in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("text is longer than its {0} bytes or has control characters in it")]
pub struct TooLong(usize);

impl<'de, const N: usize> Deserialize<'de> for Limited<N> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Text<const N: usize>;
        impl<const N: usize> serde::de::Visitor<'_> for Text<N> {
            type Value = Limited<N>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "at most {N} bytes of text")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Limited<N>, E> {
                if text.len() > N || text.chars().any(char::is_control) {
                    return Err(E::custom(TooLong(N)));
                }
                Ok(Limited(text.to_owned()))
            }
        }
        d.deserialize_str(Text::<N>)
    }
}

/// Everything a guest can say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "a box would make decoding allocate, and a message lives for a moment")]
pub enum GuestMessage {
    /// The first message of a session, and only the first.
    Hello(Hello),
    /// The state of the guest. May be dropped in favour of a newer one.
    Telemetry(Telemetry),
    /// Memory is about to be used. Never dropped, always answered.
    Demand(Demand),
    /// A demand is over: its lease ended, or what was feared did not come.
    Withdraw {
        /// The demand.
        id: u64,
    },
    /// When the memory of an answered demand was really there.
    Relief(Relief),
    /// What came of a [`Reclaim`].
    Reclaimed(Reclaimed),
    /// The answer to a [`Ping`].
    Pong(Pong),
    /// The agent stops on purpose.
    Goodbye(Farewell),
}

/// Everything a host can say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostMessage {
    /// The session stands.
    Welcome(Welcome),
    /// The session does not stand, and the host will close the connection.
    Refused(Refusal),
    /// The answer to a [`Demand`].
    Answer(Answer),
    /// Drop cold page cache, so that it can be taken without the balloon having to fight for it.
    Reclaim(Reclaim),
    /// Answer with a [`Pong`].
    Ping(Ping),
    /// The host agent stops on purpose; come back later.
    Goodbye,
}

/// Who this guest is and what it can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The oldest protocol version the guest agent speaks.
    pub oldest: u16,
    /// The newest.
    pub newest: u16,
    /// The guest agent's own version.
    pub agent: Limited<32>,
    /// The guest's kernel release (`uname -r`).
    pub kernel: Limited<64>,
    /// `/proc/sys/kernel/random/boot_id`: a new one means that the guest rebooted and its counters began anew.
    pub boot_id: [u8; 16],
    /// The agent's clock now: CLOCK_MONOTONIC of the guest.
    pub now: Micros,
    /// What this guest can do.
    pub capabilities: Capabilities,
}

/// What a guest's kernel and set-up allow. Absent features are never simulated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// `/proc/pressure/memory` is there.
    pub psi: bool,
    /// cgroup v2 with the memory controller is there.
    pub cgroup2: bool,
    /// `memory.reclaim` can be written (Linux 5.19 and newer): the guest can drop cold cache when told.
    pub reclaim: bool,
    /// The absorber is on: `memory.high` of the workload cgroups is managed.
    pub absorber: bool,
    /// The balloon device as the guest's driver negotiated it; `None`: this guest has no balloon.
    pub balloon: Option<BalloonFeatures>,
}

/// Features negotiated by the guest's balloon driver (`/sys/bus/virtio/devices/*/features`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonFeatures {
    /// VIRTIO_BALLOON_F_DEFLATE_ON_OOM (bit 2): the last resort. Without it MemTotal shrinks with the balloon and
    /// large allocations fail at once.
    pub deflate_on_oom: bool,
    /// VIRTIO_BALLOON_F_REPORTING (bit 5): free pages go back to the host by themselves.
    pub free_page_reporting: bool,
}

/// The state of a guest at one moment: sizes, and counters since the guest's boot. `None`: this kernel lacks it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Telemetry {
    /// Counts the reports of this session, from 0.
    pub seq: u64,
    /// When it was read, guest clock.
    pub at: Micros,
    /// MemTotal.
    pub total: Bytes,
    /// MemFree.
    pub free: Bytes,
    /// MemAvailable.
    pub available: Bytes,
    /// Cached + Buffers - Shmem: page cache that has a file behind it.
    pub file: Bytes,
    /// Dirty + Writeback: cache that cannot be dropped before it is written.
    pub dirty: Bytes,
    /// AnonPages.
    pub anon: Bytes,
    /// Shmem: tmpfs and shared memory; only swap can take it.
    pub shmem: Bytes,
    /// Committed_AS.
    pub committed: Bytes,
    /// SwapTotal.
    pub swap_total: Bytes,
    /// SwapFree.
    pub swap_free: Bytes,
    /// Zone watermarks, summed.
    pub watermarks: Watermarks,
    /// What the guest can give without swapping and without killing: its floor is what it keeps less this.
    pub giveable: Bytes,
    /// What the balloon holds by the guest's own count (balloon_inflate - balloon_deflate).
    pub ballooned: Option<Bytes>,
    /// Demands that are not over, summed.
    pub pending: Bytes,
    /// Memory pressure (`/proc/pressure/memory`).
    pub memory_pressure: Option<Pressure>,
    /// I/O pressure (`/proc/pressure/io`).
    pub io_pressure: Option<Pressure>,
    /// `/proc/vmstat` events.
    pub counters: Counters,
    /// CPU time the agent has used since it started.
    pub agent_cpu: Micros,
}

/// Sums over all zones of `/proc/zoneinfo`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watermarks {
    /// Below it only reserves are left.
    pub min: Bytes,
    /// Below it kswapd wakes.
    pub low: Bytes,
    /// kswapd sleeps again above it.
    pub high: Bytes,
}

/// PSI totals since boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pressure {
    /// Some task stalled.
    pub some: Micros,
    /// All tasks stalled.
    pub full: Micros,
}

/// `/proc/vmstat` events since boot, in events or pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// workingset_refault_file: cache that was needed again after it had been dropped.
    pub refault_file: Option<u64>,
    /// workingset_refault_anon.
    pub refault_anon: Option<u64>,
    /// pgscan_direct: pages scanned by tasks that had to reclaim for themselves.
    pub scan_direct: Option<u64>,
    /// allocstall_*, summed: allocations that had to wait for reclaim.
    pub alloc_stall: Option<u64>,
    /// pgmajfault.
    pub major_fault: Option<u64>,
    /// pswpin.
    pub swap_in: Option<u64>,
    /// pswpout.
    pub swap_out: Option<u64>,
    /// oom_kill.
    pub oom_kill: Option<u64>,
    /// balloon_inflate.
    pub balloon_inflate: Option<u64>,
    /// balloon_deflate.
    pub balloon_deflate: Option<u64>,
}

/// Memory that is about to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Demand {
    /// Distinct in this session, and growing.
    pub id: u64,
    /// How the guest knows.
    pub source: Source,
    /// How much more than it has now.
    pub size: Bytes,
    /// When the guest saw the first sign of it, guest clock.
    pub sign: Micros,
    /// When this message was made, guest clock.
    pub sent: Micros,
    /// How long the guest expects to last without it; an answer later than this comes too late.
    pub within: Micros,
    /// MemFree when it was made.
    pub free: Bytes,
    /// What the balloon held when it was made, by the guest's own count.
    pub ballooned: Option<Bytes>,
}

/// How a guest knows that memory is about to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Source {
    /// Free memory above the watermarks is small and falling.
    Slack,
    /// Committed_AS grew beyond what is resident. A hint: it lapses when nothing follows.
    Committed,
    /// The absorber is holding somebody (`memory.events`, `high`).
    Cgroup,
    /// A PSI trigger fired.
    Psi,
    /// Allocations stalled or reclaimed for themselves.
    Stall,
    /// An application or script said so. Lives until withdrawn.
    Reserve,
}

/// When the memory of an answered demand was really there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relief {
    /// The demand.
    pub id: u64,
    /// When its first sign was seen, guest clock.
    pub sign: Micros,
    /// When the answer arrived, guest clock.
    pub answered: Micros,
    /// When the balloon had let go of its first MiB since the sign, guest clock.
    pub first_mib: Option<Micros>,
}

/// An order to drop cold page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reclaim {
    /// Distinct in this session.
    pub id: u64,
    /// How much, at most.
    pub size: Bytes,
}

/// What came of a [`Reclaim`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reclaimed {
    /// The order.
    pub id: u64,
    /// How much was dropped.
    pub size: Bytes,
    /// What can be dropped without effort is exhausted: asking again soon is pointless.
    pub exhausted: bool,
}

/// Asks for a [`Pong`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// Counts the pings of this session.
    pub seq: u64,
    /// When it was sent, host clock.
    pub at: Micros,
}

/// Answers a [`Ping`]: four times give offset and round trip, as in NTP (RFC 5905, section 8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    /// The ping's.
    pub seq: u64,
    /// The ping's.
    pub at: Micros,
    /// When the ping arrived, guest clock.
    pub received: Micros,
    /// When this answer left, guest clock.
    pub sent: Micros,
}

/// The session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version both will speak.
    pub version: u16,
    /// The longest silence the host takes for life, and promises not to exceed itself.
    pub silence: Micros,
    /// How often the host wants telemetry while nothing moves.
    pub idle_interval: Micros,
    /// How often while something does.
    pub busy_interval: Micros,
}

/// Why a session does not stand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// No version in common; the host's oldest and newest.
    Version(u16, u16),
    /// Another agent of this VM has a living session.
    Occupied,
    /// The connection came from a source port that an unprivileged process could have bound.
    Unprivileged,
    /// The host knows no VM behind this connection.
    UnknownVm,
    /// The first message was not Hello, or a message was malformed or too many.
    Misbehaved(Limited<128>),
}

/// The answer to a [`Demand`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The demand.
    pub id: u64,
    /// What becomes of it.
    pub verdict: Verdict,
}

/// What becomes of a demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// All of it is ordered, and stays at least so long.
    Granted {
        /// How much more than the guest had when it asked.
        size: Bytes,
        /// For how long at least.
        hold: Micros,
    },
    /// Part of it is ordered.
    Partly {
        /// How much more than the guest had when it asked.
        size: Bytes,
        /// For how long at least.
        hold: Micros,
        /// Why not all.
        why: Shortfall,
    },
    /// Nothing is ordered.
    Refused(Shortfall),
}

/// Why a demand was not met in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shortfall {
    /// The VM has its configured maximum already.
    AtMaximum,
    /// The host has no more to give.
    HostShort,
    /// The hypervisor cannot be reached, or has no balloon for this VM.
    NoBalloon,
    /// An operator holds this VM, or the daemon decides without acting.
    Held,
    /// The guest's reports contradict the hypervisor's; only the hypervisor's count.
    Distrusted,
}

/// Why an agent stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Farewell {
    /// The guest shuts down or reboots.
    Shutdown,
    /// The agent alone stops.
    AgentStopped,
}
