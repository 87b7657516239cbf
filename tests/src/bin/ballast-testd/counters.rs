//! The guest's counters, read whole at one moment.

use crate::now_us;
use ballast_tests::wire::Counters;
use std::collections::BTreeMap;
use std::fs;

/// What of `/proc/vmstat` tells about pressure: the whole of it would take long over a serial line.
const VMSTAT: [&str; 14] = [
    "oom_kill",
    "allocstall",
    "pgscan_direct",
    "pgsteal_direct",
    "pgscan_kswapd",
    "workingset_refault",
    "balloon_",
    "pswp",
    "pgfault",
    "pgmajfault",
    "thp_fault_",
    "pageoutrun",
    "nr_free_pages",
    "compact_stall",
];

/// Everything, with the agent's own figures when it lives.
pub fn read(agent: Option<u32>) -> Counters {
    let agent_cpu_us = agent.and_then(cpu_us);
    let agent_rss_kib = agent.and_then(|pid| pairs(&text(&format!("/proc/{pid}/smaps_rollup"))).remove("Rss"));
    let mut vmstat = pairs(&text("/proc/vmstat"));
    vmstat.retain(|key, _| VMSTAT.iter().any(|wanted| key.starts_with(wanted)));
    let mut pressure = BTreeMap::new();
    for file in ["memory", "io", "cpu"] {
        for line in text(&format!("/proc/pressure/{file}")).lines() {
            let kind = line.split(' ').next().unwrap_or_default();
            if let Some(total) = line.rsplit("total=").next().and_then(|t| t.parse().ok()) {
                pressure.insert(format!("{file}.{kind}"), total);
            }
        }
    }
    Counters { at_us: now_us(), meminfo: pairs(&text("/proc/meminfo")), vmstat, pressure, agent_cpu_us, agent_rss_kib }
}

/// OOM kills since boot.
pub fn oom_kills() -> u64 {
    pairs(&text("/proc/vmstat")).remove("oom_kill").unwrap_or(0)
}

/// CPU time of all threads. From schedstat: it counts nanoseconds, `stat` only ticks of 10 ms.
fn cpu_us(pid: u32) -> Option<u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let of = |task: fs::DirEntry| -> Option<u64> {
        fs::read_to_string(task.path().join("schedstat")).ok()?.split(' ').next()?.parse().ok()
    };
    Some(tasks.filter_map(Result::ok).filter_map(of).sum::<u64>() / 1_000)
}

/// A file that this kernel lacks reads as empty, so that its counters are absent and not 0.
fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Lines of `name value` or `name: value kB`.
fn pairs(text: &str) -> BTreeMap<String, u64> {
    let pair = |line: &str| {
        let mut words = line.split_whitespace();
        Some((words.next()?.trim_end_matches(':').to_owned(), words.next()?.parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}
