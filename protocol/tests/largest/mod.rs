//! The largest message of every kind: what frames, rates and buffers have to be sized for.

use ballast_protocol::{
    Answer, BalloonFeatures, Bytes, Capabilities, Counters, Demand, Farewell, GuestMessage, Hello, HostMessage,
    Limited, Micros, Ping, Pong, Pressure, Reclaim, Reclaimed, Refusal, Relief, Shortfall, Source, Telemetry, Verdict,
    Watermarks, Welcome,
};

const B: Bytes = Bytes::MAX;
const T: Micros = Micros::MAX;

fn text<const N: usize>() -> Limited<N> {
    Limited::cut(&"x".repeat(N))
}

/// The largest of each kind, with the name of its variant. The structs are written out in full, so that a new field does not compile without a
/// largest value; `tests/properties.rs` shows that nothing random is larger.
pub fn guest() -> Vec<(&'static str, GuestMessage)> {
    let n = Some(u64::MAX);
    let pressure = Some(Pressure { some: T, full: T });
    let balloon = Some(BalloonFeatures { deflate_on_oom: true, free_page_reporting: true });
    let all = vec![
        GuestMessage::Hello(Hello {
            oldest: u16::MAX,
            newest: u16::MAX,
            agent: text(),
            kernel: text(),
            boot_id: [255; 16],
            now: T,
            capabilities: Capabilities { psi: true, cgroup2: true, reclaim: true, absorber: true, balloon },
        }),
        GuestMessage::Telemetry(Telemetry {
            seq: u64::MAX,
            at: T,
            total: B,
            free: B,
            available: B,
            file: B,
            dirty: B,
            anon: B,
            shmem: B,
            committed: B,
            swap_total: B,
            swap_free: B,
            watermarks: Watermarks { min: B, low: B, high: B },
            giveable: B,
            ballooned: Some(B),
            pending: B,
            memory_pressure: pressure,
            io_pressure: pressure,
            counters: Counters {
                refault_file: n,
                refault_anon: n,
                scan_direct: n,
                alloc_stall: n,
                major_fault: n,
                swap_in: n,
                swap_out: n,
                oom_kill: n,
                balloon_inflate: n,
                balloon_deflate: n,
            },
            agent_cpu: T,
        }),
        GuestMessage::Demand(Demand {
            id: u64::MAX,
            source: Source::Reserve,
            size: B,
            sign: T,
            sent: T,
            within: T,
            free: B,
            ballooned: Some(B),
        }),
        GuestMessage::Withdraw { id: u64::MAX },
        GuestMessage::Relief(Relief { id: u64::MAX, sign: T, answered: T, first_mib: Some(T) }),
        GuestMessage::Reclaimed(Reclaimed { id: u64::MAX, size: B, exhausted: true }),
        GuestMessage::Pong(Pong { seq: u64::MAX, at: T, received: T, sent: T }),
        GuestMessage::Goodbye(Farewell::AgentStopped),
    ];
    all.into_iter()
        .map(|m| {
            let kind = match &m {
                GuestMessage::Hello(_) => "Hello",
                GuestMessage::Telemetry(_) => "Telemetry",
                GuestMessage::Demand(_) => "Demand",
                GuestMessage::Withdraw { .. } => "Withdraw",
                GuestMessage::Relief(_) => "Relief",
                GuestMessage::Reclaimed(_) => "Reclaimed",
                GuestMessage::Pong(_) => "Pong",
                GuestMessage::Goodbye(_) => "Goodbye",
            };
            (kind, m)
        })
        .collect()
}

pub fn host() -> Vec<(&'static str, HostMessage)> {
    let all = vec![
        HostMessage::Welcome(Welcome { version: u16::MAX, silence: T, idle_interval: T, busy_interval: T }),
        HostMessage::Refused(Refusal::Misbehaved(text())),
        HostMessage::Answer(Answer {
            id: u64::MAX,
            verdict: Verdict::Partly { size: B, hold: T, why: Shortfall::Distrusted },
        }),
        HostMessage::Reclaim(Reclaim { id: u64::MAX, size: B }),
        HostMessage::Ping(Ping { seq: u64::MAX, at: T }),
        HostMessage::Goodbye,
    ];
    all.into_iter()
        .map(|m| {
            let kind = match &m {
                HostMessage::Welcome(_) => "Welcome",
                HostMessage::Refused(_) => "Refused",
                HostMessage::Answer(_) => "Answer",
                HostMessage::Reclaim(_) => "Reclaim",
                HostMessage::Ping(_) => "Ping",
                HostMessage::Goodbye => "Goodbye",
            };
            (kind, m)
        })
        .collect()
}
