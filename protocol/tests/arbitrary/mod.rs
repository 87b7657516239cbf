//! Strategies for every message, with the sizes of numbers spread evenly over the lengths a varint can have.

use ballast_protocol::{
    Answer, BalloonFeatures, Bytes, Capabilities, Counters, Demand, Farewell, GuestMessage, Hello, HostMessage,
    Limited, Micros, Ping, Pong, Pressure, Reclaim, Reclaimed, Refusal, Relief, Shortfall, Source, Telemetry, Verdict,
    Watermarks, Welcome,
};
use proptest::prelude::*;

fn number() -> impl Strategy<Value = u64> + Clone {
    // A uniform u64 takes ten bytes nearly always; shifted by a uniform distance every length is as likely.
    (any::<u64>(), 0u32..64).prop_map(|(n, shift)| n >> shift)
}

fn bytes() -> impl Strategy<Value = Bytes> + Clone {
    number().prop_map(Bytes)
}

fn micros() -> impl Strategy<Value = Micros> + Clone {
    number().prop_map(Micros)
}

fn text<const N: usize>() -> impl Strategy<Value = Limited<N>> {
    // Any characters, control characters and multi-byte ones among them, and longer than the limit.
    proptest::collection::vec(any::<char>(), 0..N + 8).prop_map(|c| Limited::cut(&c.into_iter().collect::<String>()))
}

fn capabilities() -> impl Strategy<Value = Capabilities> {
    (any::<[bool; 4]>(), proptest::option::of(any::<[bool; 2]>())).prop_map(|([psi, cgroup2, reclaim, absorber], b)| {
        let balloon =
            b.map(|[deflate_on_oom, free_page_reporting]| BalloonFeatures { deflate_on_oom, free_page_reporting });
        Capabilities { psi, cgroup2, reclaim, absorber, balloon }
    })
}

fn hello() -> impl Strategy<Value = Hello> {
    (any::<u16>(), any::<u16>(), text(), text(), any::<[u8; 16]>(), micros(), capabilities()).prop_map(
        |(oldest, newest, agent, kernel, boot_id, now, capabilities)| Hello {
            oldest,
            newest,
            agent,
            kernel,
            boot_id,
            now,
            capabilities,
        },
    )
}

fn pressure() -> impl Strategy<Value = Option<Pressure>> {
    proptest::option::of((micros(), micros()).prop_map(|(some, full)| Pressure { some, full }))
}

fn counters() -> impl Strategy<Value = Counters> {
    proptest::collection::vec(proptest::option::of(number()), 10).prop_map(|n| Counters {
        refault_file: n[0],
        refault_anon: n[1],
        scan_direct: n[2],
        alloc_stall: n[3],
        major_fault: n[4],
        swap_in: n[5],
        swap_out: n[6],
        oom_kill: n[7],
        balloon_inflate: n[8],
        balloon_deflate: n[9],
    })
}

fn telemetry() -> impl Strategy<Value = Telemetry> {
    let sizes = proptest::collection::vec(bytes(), 15);
    let optional = (proptest::option::of(bytes()), pressure(), pressure());
    (number(), micros(), micros(), sizes, optional, counters()).prop_map(|(seq, at, agent_cpu, s, o, counters)| {
        Telemetry {
            seq,
            at,
            total: s[0],
            free: s[1],
            available: s[2],
            file: s[3],
            dirty: s[4],
            anon: s[5],
            shmem: s[6],
            committed: s[7],
            swap_total: s[8],
            swap_free: s[9],
            watermarks: Watermarks { min: s[10], low: s[11], high: s[12] },
            giveable: s[13],
            ballooned: o.0,
            pending: s[14],
            memory_pressure: o.1,
            io_pressure: o.2,
            counters,
            agent_cpu,
        }
    })
}

fn demand() -> impl Strategy<Value = Demand> {
    let source = proptest::sample::select(vec![
        Source::Slack,
        Source::Committed,
        Source::Cgroup,
        Source::Psi,
        Source::Stall,
        Source::Reserve,
    ]);
    (number(), source, bytes(), micros(), micros(), micros(), bytes(), proptest::option::of(bytes())).prop_map(
        |(id, source, size, sign, sent, within, free, ballooned)| Demand {
            id,
            source,
            size,
            sign,
            sent,
            within,
            free,
            ballooned,
        },
    )
}

pub fn guest() -> impl Strategy<Value = GuestMessage> {
    prop_oneof![
        hello().prop_map(GuestMessage::Hello),
        telemetry().prop_map(GuestMessage::Telemetry),
        demand().prop_map(GuestMessage::Demand),
        number().prop_map(|id| GuestMessage::Withdraw { id }),
        (number(), micros(), micros(), proptest::option::of(micros())).prop_map(|(id, sign, answered, first_mib)| {
            GuestMessage::Relief(Relief { id, sign, answered, first_mib })
        }),
        (number(), bytes(), any::<bool>()).prop_map(|(id, size, exhausted)| GuestMessage::Reclaimed(Reclaimed {
            id,
            size,
            exhausted
        })),
        (number(), micros(), micros(), micros()).prop_map(|(seq, at, received, sent)| GuestMessage::Pong(Pong {
            seq,
            at,
            received,
            sent
        })),
        proptest::sample::select(vec![Farewell::Shutdown, Farewell::AgentStopped]).prop_map(GuestMessage::Goodbye),
    ]
}

fn shortfall() -> impl Strategy<Value = Shortfall> {
    proptest::sample::select(vec![
        Shortfall::AtMaximum,
        Shortfall::HostShort,
        Shortfall::NoBalloon,
        Shortfall::Held,
        Shortfall::Distrusted,
    ])
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        (bytes(), micros()).prop_map(|(size, hold)| Verdict::Granted { size, hold }),
        (bytes(), micros(), shortfall()).prop_map(|(size, hold, why)| Verdict::Partly { size, hold, why }),
        shortfall().prop_map(Verdict::Refused),
    ]
}

fn refusal() -> impl Strategy<Value = Refusal> {
    prop_oneof![
        (any::<u16>(), any::<u16>()).prop_map(|(oldest, newest)| Refusal::Version(oldest, newest)),
        Just(Refusal::Occupied),
        Just(Refusal::Unprivileged),
        Just(Refusal::UnknownVm),
        text().prop_map(Refusal::Misbehaved),
    ]
}

pub fn host() -> impl Strategy<Value = HostMessage> {
    prop_oneof![
        (any::<u16>(), micros(), micros(), micros()).prop_map(|(version, silence, idle_interval, busy_interval)| {
            HostMessage::Welcome(Welcome { version, silence, idle_interval, busy_interval })
        }),
        refusal().prop_map(HostMessage::Refused),
        (number(), verdict()).prop_map(|(id, verdict)| HostMessage::Answer(Answer { id, verdict })),
        (number(), bytes()).prop_map(|(id, size)| HostMessage::Reclaim(Reclaim { id, size })),
        (number(), micros()).prop_map(|(seq, at)| HostMessage::Ping(Ping { seq, at })),
        Just(HostMessage::Goodbye),
    ]
}
