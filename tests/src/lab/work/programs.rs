//! Programs that need no server: the compiler, a Java program, and two stress programs.

use super::server::complete;
use super::{Latency, Outcome, parse};
use crate::Guest;
use crate::wire::Executed;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What sysbench tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SysbenchTest {
    /// Writes a block of memory again and again.
    Memory,
    /// Looks for prime numbers; needs no memory, and shows what control costs.
    Cpu,
}

/// What stress-ng does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stressor {
    /// Maps memory, writes and checks patterns, unmaps it.
    Vm,
    /// Maps and unmaps in random order.
    Mmap,
    /// Random malloc, realloc and free.
    Malloc,
}

/// Every file's time and status, one to a line. Not -O2: under emulation a file would take ten seconds and more.
const COMPILE: &str = r#"begin=$(date +%s%N); gcc -O0 -c "$1" -o "/data/scratch/$$.o" 2>&1; status=$?
end=$(date +%s%N); rm -f "/data/scratch/$$.o"; echo "file $(((end - begin) / 1000)) $status""#;

pub(super) fn compile(guest: &Guest, files: u32, jobs: u32, patience: Duration) -> Result<Outcome> {
    let command = format!(
        "cd /data/source; ls *.c >/tmp/files; n=0; while [ $n -lt {files} ]; do cat /tmp/files; n=$((n + $(wc -l </tmp/files))); done | \
         head -n {files} | xargs -P {jobs} -n 1 sh -c '{COMPILE}' sh >/tmp/compile.log; cat /tmp/compile.log | grep -v '^file' | tail -n 20; \
         grep '^file' /tmp/compile.log | grep -v ' 0$'; sed -n 's/^file \\(.*\\) 0$/\\1/p' /tmp/compile.log | latencies"
    );
    complete(&guest.debian(&command, patience)?, false, read_compile)
}

fn read_compile(said: &Executed) -> Option<Outcome> {
    let times = parse::times(&said.output)?;
    let failed = said.output.lines().filter(|l| l.starts_with("file ")).count();
    Some(Outcome {
        throughput: times.count as f64 * 1e6 / said.took_us.max(1) as f64,
        unit: "files/s".into(),
        latency: parse::latency(&said.output),
        failed_allocations: said.output.matches("out of memory").count() as u64,
        // What gcc says of the compiler proper that it started.
        killed: said.output.matches("Killed signal terminated program").count() as u64,
        detail: if failed > 0 { format!("{failed} files failed") } else { String::new() },
        unfinished: false,
    })
}

pub(super) fn jvm(guest: &Guest, live_mib: u64, heap_mib: u64, secs: u32, patience: Duration) -> Result<Outcome> {
    // The serial collector is what Java itself chooses in a machine with one CPU or under 1792 MiB.
    let command = format!(
        "java -Xmx{heap_mib}m -XX:+UseSerialGC -cp /usr/local/lib/ballast Heap {live_mib} {secs} >/tmp/heap; \
         status=$?; latencies </tmp/heap; exit $status"
    );
    complete(&guest.debian(&command, patience)?, false, read_jvm)
}

fn read_jvm(said: &Executed) -> Option<Outcome> {
    let line = said.output.lines().find_map(|l| l.strip_prefix("heap "))?;
    let [end, done, us] = line.split_whitespace().collect::<Vec<_>>()[..] else { return None };
    let (done, us): (f64, f64) = (done.parse().ok()?, us.parse().ok()?);
    let refused = end == "refused";
    Some(Outcome {
        throughput: if us > 0.0 { done * 1e6 / us } else { 0.0 },
        unit: "MiB/s".into(),
        latency: parse::latency(&said.output),
        failed_allocations: refused.into(),
        detail: if refused { "OutOfMemoryError".into() } else { String::new() },
        ..Outcome::default()
    })
}

pub(super) fn sysbench(
    guest: &Guest,
    test: SysbenchTest,
    secs: u32,
    threads: u32,
    block_mib: u32,
    patience: Duration,
) -> Result<Outcome> {
    let test = match test {
        SysbenchTest::Memory => format!("memory --memory-block-size={block_mib}M --memory-total-size=100000G"),
        SysbenchTest::Cpu => "cpu".to_owned(),
    };
    let command = format!("exec sysbench {test} --threads={threads} --time={secs} --histogram=on run");
    complete(&guest.debian(&command, patience)?, false, read_sysbench)
}

fn read_sysbench(said: &Executed) -> Option<Outcome> {
    let text = &said.output;
    // `       0.160 |*********************                    724`
    let row = |line: &str| -> Option<(f64, u64)> {
        let (ms, rest) = line.split_once('|')?;
        Some((ms.trim().parse().ok()?, rest.trim_start_matches('*').trim().parse().ok()?))
    };
    let events = parse::after(text, "total number of events:")?;
    let secs = parse::after(text, "total time:")?;
    let mut latency = Latency::of(text.lines().filter_map(row).collect());
    if let (Some(latency), Some(max)) = (&mut latency, parse::after(text, "max:")) {
        latency.max_ms = max;
    }
    let throughput = if secs > 0.0 { events / secs } else { 0.0 };
    Some(Outcome { throughput, unit: "events/s".into(), latency, ..Outcome::default() })
}

pub(super) fn stress_ng(
    guest: &Guest,
    stressor: Stressor,
    workers: u32,
    mib: u64,
    secs: u32,
    patience: Duration,
) -> Result<Outcome> {
    let name = match stressor {
        Stressor::Vm => "vm",
        Stressor::Mmap => "mmap",
        Stressor::Malloc => "malloc",
    };
    // Its workers would otherwise make themselves the first to be killed, and be started again unseen.
    let command = format!(
        "exec stress-ng --temp-path /tmp --no-oom-adjust --oomable --metrics-brief --timeout {secs} \
         --{name} {workers} --{name}-bytes {mib}M"
    );
    complete(&guest.debian(&command, patience)?, false, |said| read_stress_ng(said, name))
}

fn read_stress_ng(said: &Executed, name: &str) -> Option<Outcome> {
    // `stress-ng: metrc: [318] vm  14321  5.01  9.13  0.60  2858.08  1471.40`: operations, then real, user and system
    // seconds, then operations per real second.
    let row = |line: &str| -> Option<f64> {
        let mut words = line.split_once(']')?.1.split_whitespace();
        (words.next()? == name).then_some(())?;
        words.nth(4)?.parse().ok()
    };
    let throughput = said.output.lines().filter(|l| l.contains("metrc")).find_map(row)?;
    let killed = said.output.lines().filter(|l| l.contains("killed by") && l.contains("SIGKILL")).count() as u64;
    Some(Outcome { throughput, unit: "operations/s".into(), killed, ..Outcome::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(output: &str) -> Executed {
        let output = output.to_owned();
        Executed { status: Some(0), signal: None, overdue: false, oom_kills: 0, took_us: 4_000_000, output }
    }

    #[test]
    fn a_compile_with_failures() {
        let text = "gcc: fatal error: Killed signal terminated program cc1\nfile 900 1\n\
                    cc1: out of memory allocating 65536 bytes after a total of 12 bytes\nfile 800 1\n\
                    times 2 1000 2000 2000 2000\nbucket 1000 1\nbucket 2154 1\n";
        let outcome = read_compile(&said(text)).unwrap();
        assert_eq!((outcome.throughput, outcome.killed, outcome.failed_allocations), (0.5, 1, 1));
        assert_eq!(outcome.detail, "2 files failed");
    }

    #[test]
    fn a_java_program_out_of_memory() {
        let outcome = read_jvm(&said("heap refused 10 2000000\ntimes 2 10 20 20 20\nbucket 22 2\n")).unwrap();
        assert_eq!((outcome.throughput, outcome.failed_allocations), (5.0, 1));
        assert_eq!(read_jvm(&said("Error occurred during initialization of VM")), None);
    }

    #[test]
    fn what_sysbench_prints() {
        let outcome = read_sysbench(&said(include_str!("captured/sysbench"))).unwrap();
        let latency = outcome.latency.unwrap();
        assert_eq!((latency.count, latency.max_ms), (10_807, 5.92));
        assert!(latency.p999_ms >= latency.p99_ms && latency.p99_ms >= latency.p50_ms, "{latency:?}");
        assert!((outcome.throughput - 10_807.0 / 2.0187).abs() < 1e-6, "{}", outcome.throughput);
    }

    #[test]
    fn what_stress_ng_prints() {
        let outcome = read_stress_ng(&said(include_str!("captured/stress-ng")), "vm").unwrap();
        assert_eq!((outcome.throughput, outcome.killed), (6_160.56, 0));
        assert_eq!(read_stress_ng(&said(include_str!("captured/stress-ng")), "mmap"), None);
    }
}
