//! A run that never happened: a folder as the lab leaves it, from a seed, with what can go wrong in it.

use ballast_tests::lab::results::*;
use ballast_tests::lab::work::{Latency, Outcome};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::path::Path;

pub const ARMS: [&str; 8] =
    ["static", "fixed", "deflate-on-oom", "free-page-reporting", "threshold", "mom", "proxmox", "ballast"];
pub const EXPERIMENTS: [&str; 5] = ["burst", "ramp", "redis", "page-cache", "two-guests"];
/// Memory of a guest, MiB.
const MEMORY: f64 = 512.0;
/// Length of a block, seconds.
const LENGTH: f64 = 180.0;

/// How a law behaves, as a caricature.
#[derive(Clone, Copy)]
struct Law {
    /// Memory it leaves beside what is used, MiB; `None`: everything.
    slack: Option<f64>,
    /// Seconds until it gives.
    slow: f64,
    /// Takes with a balloon.
    balloon: bool,
    throughput: f64,
    p99: f64,
    /// In 100 phases.
    kills: u32,
}

fn law(arm: &str) -> Law {
    let law = |slack, slow, balloon, throughput, p99, kills| Law { slack, slow, balloon, throughput, p99, kills };
    match arm {
        "static" => law(None, 0.0, false, 1.0, 1.0, 0),
        "fixed" => law(Some(160.0), 1e9, true, 0.9, 2.2, 12),
        "deflate-on-oom" => law(Some(20.0), 1.0, true, 0.6, 6.0, 0),
        "free-page-reporting" => law(Some(70.0), 0.0, false, 0.97, 1.15, 0),
        "threshold" => law(Some(110.0), 10.0, true, 0.85, 3.0, 15),
        "mom" => law(Some(100.0), 10.0, true, 0.88, 2.6, 10),
        "proxmox" => law(Some(130.0), 10.0, true, 0.93, 1.6, 6),
        _ => law(Some(64.0), 0.2, true, 0.985, 1.08, 0),
    }
}

/// What an experiment's guest uses at rest and in a phase, MiB.
fn demand(experiment: &str) -> (f64, f64, &'static [&'static str]) {
    match experiment {
        "burst" => (70.0, 330.0, &["burst 250 MiB", "burst 250 MiB again", "burst 250 MiB last"]),
        "ramp" => (80.0, 380.0, &["ramp to 300 MiB", "ramp to 300 MiB again"]),
        "redis" => (130.0, 290.0, &["SET 100k", "GET 100k", "SET 100k again"]),
        "page-cache" => (90.0, 420.0, &["read 300 MiB", "read it again"]),
        _ => (70.0, 360.0, &["a works", "b works", "a works again", "b works again"]),
    }
}

fn histogram(random: &mut ChaCha8Rng, base_ms: f64, tail: f64) -> Latency {
    let mut buckets = BTreeMap::<u64, u64>::new();
    let mut all = Vec::new();
    for _ in 0..4000 {
        let bell: f64 = (0..6).map(|_| random.random::<f64>()).sum::<f64>() - 3.0;
        let stretch = if random.random::<f64>() < 0.03 { tail * (1.0 + 4.0 * random.random::<f64>()) } else { 1.0 };
        let ms = base_ms * (0.35 * bell).exp() * stretch;
        all.push(ms);
        *buckets.entry((ms.log2() * 8.0).ceil() as i64 as u64 ^ (1 << 63)).or_default() += 1;
    }
    all.sort_by(f64::total_cmp);
    let at = |q: f64| all[((all.len() as f64 * q).ceil() as usize).max(1) - 1];
    let upper = |b: u64| ((b ^ (1 << 63)) as i64 as f64 / 8.0).exp2();
    Latency {
        count: all.len() as u64,
        p50_ms: at(0.5),
        p99_ms: at(0.99),
        p999_ms: at(0.999),
        max_ms: at(1.0),
        histogram: buckets.into_iter().map(|(b, n)| (upper(b), n)).collect(),
    }
}

/// Used memory at a time, given the phases of this guest.
fn used(t: f64, base: f64, peak: f64, phases: &[PhaseRun], guest: &str) -> f64 {
    phases.iter().filter(|p| p.guest == guest).fold(base, |most, p| {
        let into = t - p.began_s;
        let share = if into < 0.0 || into > p.took_s { 0.0 } else { (into / 2.0).min(1.0) };
        most.max(base + (peak - base) * share)
    })
}

fn series(arm: &str, experiment: &str, guest: &str, phases: &[PhaseRun], random: &mut ChaCha8Rng) -> Vec<Look> {
    let law = law(arm);
    let (base, peak, _) = demand(experiment);
    let (mut kept, mut touched, mut stall) = (MEMORY, MEMORY, 0.0);
    let mut looks = Vec::new();
    for i in 0..(LENGTH * 2.0) as u32 {
        let t = f64::from(i) / 2.0;
        let now = used(t, base, peak, phases, guest);
        let seen = used((t - law.slow).max(0.0), base, peak, phases, guest);
        if let Some(slack) = law.slack {
            let want = (seen + slack).min(MEMORY);
            if law.balloon {
                kept = if want > kept { want } else { (kept - 12.0).max(want) };
                touched = kept;
            } else {
                touched = if now + slack > touched { now + slack } else { (touched - 40.0).max(now + slack) };
            }
        }
        if now > kept {
            stall += 120.0;
            kept = kept.max(if law.slow < 2.0 { now } else { kept });
        }
        let free = (kept - now).max(4.0);
        looks.push(Look {
            t,
            resident_mib: touched.min(kept) + 3.0 * random.random::<f64>(),
            kept_mib: kept,
            free_mib: (i % 97 != 13).then_some(free),
            available_mib: (i % 97 != 13).then_some(free + 20.0),
            stall_ms: Some(stall),
        });
    }
    looks
}

fn arm_run(experiment: &str, arm: &str, turn: usize, random: &mut ChaCha8Rng) -> ArmRun {
    let law = law(arm);
    let (_, peak, labels) = demand(experiment);
    let guests: &[&str] = if experiment == "two-guests" { &["a", "b"] } else { &["guest"] };
    let mut phases = Vec::new();
    let mut killed_total = 0;
    for (index, label) in labels.iter().enumerate() {
        let slot = LENGTH / labels.len() as f64;
        let began_s = index as f64 * slot + 6.0 + turn as f64 * (slot - 12.0) / ARMS.len() as f64;
        let noise = |random: &mut ChaCha8Rng| 0.96 + 0.08 * random.random::<f64>();
        let killed = random.random_range(0..100) < law.kills;
        killed_total += u64::from(killed);
        let throughput = if killed { 0.0 } else { 140.0 * law.throughput * noise(random) };
        let base_ms = 1.7 * noise(random);
        let latency = (experiment != "ramp" && !killed).then(|| histogram(random, base_ms, 4.0 * law.p99));
        phases.push(PhaseRun {
            index,
            label: (*label).to_owned(),
            guest: guests[index % guests.len()].to_owned(),
            measured: true,
            began_s,
            took_s: 3.5 / law.throughput,
            outcome: Outcome {
                throughput,
                unit: if experiment == "redis" { "requests" } else { "MiB" }.to_owned(),
                latency,
                failed_allocations: 0,
                killed: u64::from(killed),
                detail: String::new(),
                unfinished: false,
            },
            during: Totals { oom_kills: u64::from(killed), stall_some_ms: 40.0 * law.p99, ..Totals::default() },
        });
    }
    let mut run = ArmRun { arm: arm.to_owned(), ..ArmRun::default() };
    for (i, guest) in guests.iter().enumerate() {
        let series = series(arm, experiment, guest, &phases, random);
        let held: f64 = series.iter().map(|l| l.resident_mib).sum::<f64>() / series.len() as f64;
        let totals = Totals {
            oom_kills: if i == 0 { killed_total } else { 0 },
            stall_some_ms: series.last().and_then(|l| l.stall_ms).unwrap_or(0.0) + 30.0,
            inflated_mib: if law.balloon { 900.0 } else { 0.0 },
            deflated_mib: if law.balloon { 640.0 } else { 0.0 },
            agent_cpu_s: if arm == "ballast" { 0.4 } else { 0.0 },
            watched_s: LENGTH,
            resident_gib_s: held / 1024.0 * LENGTH,
            refault_mib: 3.0 * law.p99,
            ..Totals::default()
        };
        run.guests.push(GuestRun { name: (*guest).to_owned(), memory_mib: MEMORY as u64, series, totals });
    }
    for phase in phases.iter().filter(|_| law.balloon && law.slow < 1e6) {
        let order = |t, from_mib, to_mib, reason: &str| OrderSeen {
            t,
            guest: phase.guest.clone(),
            from_mib,
            to_mib,
            reason: reason.to_owned(),
        };
        run.orders.push(order(
            phase.began_s + law.slow.min(20.0),
            140.0,
            peak + 40.0,
            "give: <free memory> is falling",
        ));
        run.orders.push(order(phase.began_s + phase.took_s + 4.0, peak + 40.0, 140.0, "take: quiet & unused"));
        if arm == "ballast" {
            let demand = |mib, source: &str| DemandSeen {
                t: phase.began_s + 0.1,
                guest: phase.guest.clone(),
                mib,
                source: source.to_owned(),
            };
            run.demands.push(demand(220.0, "slack"));
            run.sign_to_order_ms.push(2.0 + 3.0 * random.random::<f64>());
            run.sign_to_first_mib_ms.push(9.0 + 8.0 * random.random::<f64>());
        }
    }
    if experiment == "redis" {
        for (i, phase) in phases.iter().enumerate().filter(|(_, p)| p.outcome.latency.is_some()) {
            run.probes.push(ProbeSeen {
                t: phase.began_s + 1.0,
                guest: phase.guest.clone(),
                mbit_s: 900.0 * law.throughput * (0.9 + 0.2 * random.random::<f64>()),
                retransmits: i as u64,
                rtt_ms: Some(0.8 * law.p99),
            });
        }
    }
    run.host_agent_cpu_s = if law.balloon { 0.5 } else { 0.1 };
    run.over_budget_mib_s = (experiment == "two-guests").then_some(if law.balloon { 12.0 } else { 4800.0 });
    run.phases = phases;
    run
}

pub fn block(experiment: &str, repetition: u32, arms: Vec<ArmRun>, oracle: bool) -> Block {
    Block {
        experiment: experiment.to_owned(),
        fingerprint: "one".to_owned(),
        repetition,
        oracle,
        seed: 1,
        started_unix: 1_795_247_000
            + 200 * EXPERIMENTS.iter().position(|e| *e == experiment).unwrap_or(9) as u64
            + u64::from(repetition),
        took_s: LENGTH + 20.0,
        load: 1.2,
        arms,
    }
}

pub fn run() -> Run {
    let text = |name: &str| {
        let budget = if name == "two-guests" { "[host]\nbudget = \"700MiB\"\n" } else { "" };
        (name.to_owned(), format!("name = \"{name}\"\nseed = 1 # <b> & more\n{budget}"))
    };
    Run {
        started_unix: 1_795_247_000,
        version: "v0.1.0-12-gabcdef0".to_owned(),
        asked: "--suite quick --no-oracle".to_owned(),
        machine: Host {
            cpu: "An Emulated <CPU> @ 2.1 GHz".to_owned(),
            cpus: 2,
            memory_mib: 24_000,
            kernel: "6.1.0".to_owned(),
            qemu: "QEMU emulator version 7.2".to_owned(),
            accelerator: "tcg".to_owned(),
            kept_warm: true,
        },
        image: "6.1.0".to_owned(),
        experiments: EXPERIMENTS.iter().map(|e| text(e)).collect(),
        left_out: Vec::new(),
    }
}

/// The run that had these blocks and no others.
pub fn run_of(blocks: &[Block]) -> Run {
    let mut run = run();
    run.experiments.retain(|name, _| blocks.iter().any(|b| b.experiment == *name));
    run
}

/// All blocks of the world: repetitions of every experiment, an arm that died, a search for oracles.
pub fn blocks(seed: u64, repetitions: u32) -> Vec<Block> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut blocks = Vec::new();
    for experiment in EXPERIMENTS {
        for repetition in 1..=repetitions {
            let mut arms: Vec<ArmRun> = ARMS
                .iter()
                .enumerate()
                .map(|(i, arm)| arm_run(experiment, arm, (i + repetition as usize) % ARMS.len(), &mut random))
                .collect();
            if experiment == "burst" && repetition == 2 {
                let threshold = &mut arms[4];
                threshold.error = Some("QEMU of guest \"threshold\" died: <signal 9>".to_owned());
                threshold.phases.truncate(1);
                threshold.guests.clear();
            }
            if experiment == "ramp" && repetition == 1 {
                arms[5] = ArmRun {
                    arm: "mom".to_owned(),
                    error: Some("guest mom did not boot within 60 s".to_owned()),
                    ..ArmRun::default()
                };
            }
            blocks.push(block(experiment, repetition, arms, false));
        }
        let mut sized = vec![arm_run(experiment, "static", 0, &mut random)];
        for mib in [192, 256, 320, 384, 448, 512] {
            let mut arm = arm_run(experiment, "static", 0, &mut random);
            arm.arm = format!("fixed@{mib}");
            for guest in &mut arm.guests {
                guest.totals.oom_kills = u64::from(mib < 320);
                guest.totals.resident_gib_s = mib as f64 / 1024.0 * LENGTH;
            }
            sized.push(arm);
        }
        blocks.push(block(experiment, 1, sized, true));
    }
    blocks
}

/// Leaves it on disk.
pub fn write(folder: &Path, run: &Run, blocks: &[Block]) {
    std::fs::create_dir_all(folder.join("blocks")).unwrap();
    write_json(&folder.join("run.json"), run).unwrap();
    for block in blocks {
        let kind = if block.oracle { "oracle-" } else { "" };
        let name = format!("{}-{kind}{}.json", block.experiment, block.repetition);
        write_json(&folder.join("blocks").join(name), block).unwrap();
    }
}
