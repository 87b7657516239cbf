//! Every message of the protocol with its bytes, written once and used three times: `tests/bytes.rs` pins the
//! encoding with it, `tests/spec.rs` holds SPEC.md's tables against it, and `examples/fuzz_seeds.rs` turns it into
//! the fuzz targets' seed corpus.

use ballast_protocol::{
    Answer, BalloonFeatures, Bytes, Capabilities, Counters, Demand, Farewell, GuestMessage, Hello, HostMessage,
    Limited, Micros, Ping, Pong, Pressure, Reclaim, Reclaimed, Refusal, Relief, Shortfall, Source, Telemetry, Verdict,
    Watermarks, Welcome,
};

/// One message and the payload it must have, as lower-case hexadecimal without spaces.
pub struct Entry<M> {
    pub name: &'static str,
    /// Whether the message is of the variant that its row stands under.
    pub in_place: bool,
    pub message: M,
    pub hex: String,
}

/// Builds the table and, from the same patterns, a `match` without a wildcard: a variant that is added to a message,
/// or to an enum inside one, does not compile until it has a pattern here, and a pattern needs at least one row.
macro_rules! table {
    ($function:ident: $message:ident { $($pattern:pat => [$($name:literal, $sample:expr, $hex:expr);+ $(;)?])+ }) => {
        pub fn $function() -> Vec<Entry<$message>> {
            fn row(message: &$message) -> &'static str {
                match message { $($pattern => stringify!($pattern),)+ }
            }
            vec![$($({
                let message = $sample;
                let in_place = row(&message) == stringify!($pattern);
                let hex = $hex.chars().filter(|c| !c.is_whitespace()).collect();
                Entry { name: $name, in_place, message, hex }
            },)+)+]
        }
    };
}

const BOOT_ID: [u8; 16] = *b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff";

table!(guest: GuestMessage {
    GuestMessage::Hello(Hello { capabilities: Capabilities { balloon: Some(_), .. }, .. }) => [
        "hello", GuestMessage::Hello(Hello {
            oldest: 1,
            newest: 1,
            agent: Limited::cut("0.1.0"),
            kernel: Limited::cut("6.1.0-56-cloud-amd64"),
            boot_id: BOOT_ID,
            now: Micros(1_500_000),
            capabilities: Capabilities {
                psi: true,
                cgroup2: true,
                reclaim: true,
                absorber: false,
                balloon: Some(BalloonFeatures { deflate_on_oom: true, free_page_reporting: false }),
            },
        }), "
            00010105302e312e3014362e312e302d35362d636c6f75642d616d64363400112233445566778899aabbccddeeffe0c6
            5b01010100010100";
    ]
    GuestMessage::Hello(Hello { capabilities: Capabilities { balloon: None, .. }, .. }) => [
        "hello-least", GuestMessage::Hello(Hello {
            oldest: 1,
            newest: 300,
            agent: Limited::cut(""),
            kernel: Limited::cut("é"),
            boot_id: [0; 16],
            now: Micros(0),
            capabilities: Capabilities::default(),
        }), "0001ac020002c3a900000000000000000000000000000000000000000000";
    ]
    GuestMessage::Telemetry(_) => [
        "telemetry-least", GuestMessage::Telemetry(Telemetry::default()), "0100000000000000000000000000000000000000000000000000000000000000";
        "telemetry", GuestMessage::Telemetry(Telemetry {
            seq: 7,
            at: Micros(2_000_000),
            total: Bytes::mib(469),
            free: Bytes::mib(60),
            available: Bytes::mib(120),
            file: Bytes::mib(80),
            dirty: Bytes(4096),
            anon: Bytes::mib(90),
            shmem: Bytes::mib(1),
            committed: Bytes::mib(200),
            swap_total: Bytes(0),
            swap_free: Bytes(0),
            watermarks: Watermarks { min: Bytes::mib(23), low: Bytes::mib(29), high: Bytes::mib(35) },
            giveable: Bytes::mib(64),
            ballooned: Some(Bytes::mib(128)),
            pending: Bytes(0),
            memory_pressure: Some(Pressure { some: Micros(127), full: Micros(128) }),
            io_pressure: None,
            counters: Counters {
                refault_file: Some(1),
                refault_anon: Some(2),
                scan_direct: Some(3),
                alloc_stall: Some(4),
                major_fault: Some(5),
                swap_in: None,
                swap_out: None,
                oom_kill: Some(0),
                balloon_inflate: Some(32_768),
                balloon_deflate: Some(0),
            },
            agent_cpu: Micros(20_000),
        }), "
            010780897a8080c0ea018080801e8080803c8080802880208080802d8080408080806400008080c00b8080c00e8080c0
            1180808020018080804000017f8001000101010201030104010500000100018080020100a09c01";
    ]
    GuestMessage::Demand(Demand { source: Source::Slack, .. }) => [
        "demand-slack", demand(Source::Slack, Some(Bytes::mib(128))), "0203008080802080897ae4897ad086038080801e0180808040";
    ]
    GuestMessage::Demand(Demand { source: Source::Committed, .. }) => [
        "demand-committed", demand(Source::Committed, None), "0203018080802080897ae4897ad086038080801e00";
    ]
    GuestMessage::Demand(Demand { source: Source::Cgroup, .. }) => [
        "demand-cgroup", demand(Source::Cgroup, None), "0203028080802080897ae4897ad086038080801e00";
    ]
    GuestMessage::Demand(Demand { source: Source::Psi, .. }) => [
        "demand-psi", demand(Source::Psi, None), "0203038080802080897ae4897ad086038080801e00";
    ]
    GuestMessage::Demand(Demand { source: Source::Stall, .. }) => [
        "demand-stall", demand(Source::Stall, None), "0203048080802080897ae4897ad086038080801e00";
    ]
    GuestMessage::Demand(Demand { source: Source::Reserve, .. }) => [
        "demand-reserve", demand(Source::Reserve, None), "0203058080802080897ae4897ad086038080801e00";
    ]
    GuestMessage::Withdraw { .. } => [
        "withdraw", GuestMessage::Withdraw { id: 3 }, "0303";
        "withdraw-largest", GuestMessage::Withdraw { id: u64::MAX }, "03ffffffffffffffffff01";
    ]
    GuestMessage::Relief(_) => [
        "relief", GuestMessage::Relief(Relief {
            id: 3,
            sign: Micros(2_000_000),
            answered: Micros(2_001_500),
            first_mib: Some(Micros(2_006_000)),
        }), "040380897adc947a01f0b77a";
        "relief-none", GuestMessage::Relief(Relief {
            id: 3,
            sign: Micros(2_000_000),
            answered: Micros(2_001_500),
            first_mib: None,
        }), "040380897adc947a00";
    ]
    GuestMessage::Reclaimed(_) => [
        "reclaimed", GuestMessage::Reclaimed(Reclaimed { id: 1, size: Bytes::mib(48), exhausted: true }), "05018080801801";
    ]
    GuestMessage::Pong(_) => [
        "pong", GuestMessage::Pong(Pong {
            seq: 9,
            at: Micros(1_000),
            received: Micros(2_000_000),
            sent: Micros(2_000_040),
        }), "0609e80780897aa8897a";
    ]
    GuestMessage::Goodbye(Farewell::Shutdown) => [
        "goodbye-shutdown", GuestMessage::Goodbye(Farewell::Shutdown), "0700";
    ]
    GuestMessage::Goodbye(Farewell::AgentStopped) => [
        "goodbye-agent-stopped", GuestMessage::Goodbye(Farewell::AgentStopped), "0701";
    ]
});

table!(host: HostMessage {
    HostMessage::Welcome(_) => [
        "welcome", HostMessage::Welcome(Welcome {
            version: 1,
            silence: Micros::secs(3),
            idle_interval: Micros::secs(1),
            busy_interval: Micros::millis(100),
        }), "0001c08db701c0843da08d06";
    ]
    HostMessage::Refused(Refusal::Version(_, _)) => [
        "refused-version", HostMessage::Refused(Refusal::Version(1, 300)), "010001ac02";
    ]
    HostMessage::Refused(Refusal::Occupied) => [
        "refused-occupied", HostMessage::Refused(Refusal::Occupied), "0101";
    ]
    HostMessage::Refused(Refusal::Unprivileged) => [
        "refused-unprivileged", HostMessage::Refused(Refusal::Unprivileged), "0102";
    ]
    HostMessage::Refused(Refusal::UnknownVm) => [
        "refused-unknown-vm", HostMessage::Refused(Refusal::UnknownVm), "0103";
    ]
    HostMessage::Refused(Refusal::Misbehaved(_)) => [
        "refused-misbehaved", HostMessage::Refused(Refusal::Misbehaved(Limited::cut("an empty frame"))), "01040e616e20656d707479206672616d65";
    ]
    HostMessage::Answer(Answer { verdict: Verdict::Granted { .. }, .. }) => [
        "answer-granted", answer(Verdict::Granted { size: Bytes::mib(64), hold: Micros::secs(10) }), "0203008080802080ade204";
    ]
    HostMessage::Answer(Answer { verdict: Verdict::Partly { .. }, .. }) => [
        "answer-partly", answer(Verdict::Partly {
            size: Bytes::mib(16),
            hold: Micros::secs(10),
            why: Shortfall::HostShort,
        }), "0203018080800880ade20401";
    ]
    HostMessage::Answer(Answer { verdict: Verdict::Refused(Shortfall::AtMaximum), .. }) => [
        "answer-at-maximum", answer(Verdict::Refused(Shortfall::AtMaximum)), "02030200";
    ]
    HostMessage::Answer(Answer { verdict: Verdict::Refused(Shortfall::HostShort), .. }) => [
        "answer-host-short", answer(Verdict::Refused(Shortfall::HostShort)), "02030201";
    ]
    HostMessage::Answer(Answer { verdict: Verdict::Refused(Shortfall::NoBalloon), .. }) => [
        "answer-no-balloon", answer(Verdict::Refused(Shortfall::NoBalloon)), "02030202";
    ]
    HostMessage::Answer(Answer { verdict: Verdict::Refused(Shortfall::Held), .. }) => [
        "answer-held", answer(Verdict::Refused(Shortfall::Held)), "02030203";
    ]
    HostMessage::Answer(Answer { verdict: Verdict::Refused(Shortfall::Distrusted), .. }) => [
        "answer-distrusted", answer(Verdict::Refused(Shortfall::Distrusted)), "02030204";
    ]
    HostMessage::Reclaim(_) => [
        "reclaim", HostMessage::Reclaim(Reclaim { id: 1, size: Bytes::mib(64) }), "030180808020";
    ]
    HostMessage::Ping(_) => [
        "ping", HostMessage::Ping(Ping { seq: 9, at: Micros(1_000) }), "0409e807";
    ]
    HostMessage::Goodbye => [
        "goodbye", HostMessage::Goodbye, "05";
    ]
});

fn demand(source: Source, ballooned: Option<Bytes>) -> GuestMessage {
    GuestMessage::Demand(Demand {
        id: 3,
        source,
        size: Bytes::mib(64),
        sign: Micros(2_000_000),
        sent: Micros(2_000_100),
        within: Micros::millis(50),
        free: Bytes::mib(60),
        ballooned,
    })
}

fn answer(verdict: Verdict) -> HostMessage {
    HostMessage::Answer(Answer { id: 3, verdict })
}
