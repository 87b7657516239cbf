//! The guest's counters, read whole at one moment.

use crate::now_us;
use ballast_tests::wire::{Counters, Sample};
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

/// What changes while a guest works. Read without a map for every line: it is asked for while others are measured.
pub fn sample(agent: Option<u32>) -> Sample {
    let mut sample = Sample { at_us: now_us(), agent_cpu_us: agent.and_then(cpu_us), ..Sample::default() };
    let number = |text: Option<&str>| text.and_then(|n| n.parse().ok()).unwrap_or(0);
    for line in text("/proc/meminfo").lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("MemFree:") => sample.free_kib = number(words.next()),
            Some("MemAvailable:") => sample.available_kib = number(words.next()),
            Some("Committed_AS:") => sample.committed_kib = number(words.next()),
            _ => {}
        }
    }
    let mut deflated = 0;
    for (name, value) in text("/proc/vmstat").lines().filter_map(|line| line.split_once(' ')) {
        match name {
            "workingset_refault_file" => sample.refault_file = number(Some(value)),
            "workingset_refault_anon" => sample.refault_anon = number(Some(value)),
            "pswpin" => sample.swap_in = number(Some(value)),
            "pswpout" => sample.swap_out = number(Some(value)),
            "oom_kill" => sample.oom_kills = number(Some(value)),
            "balloon_inflate" => sample.balloon_pages = number(Some(value)),
            "balloon_deflate" => deflated = number(Some(value)),
            _ if name.starts_with("allocstall") => sample.stalls += number(Some(value)),
            _ => {}
        }
    }
    sample.balloon_pages = sample.balloon_pages.saturating_sub(deflated);
    for line in text("/proc/pressure/memory").lines() {
        let total = number(line.rsplit("total=").next());
        if line.starts_with("some") { sample.some_us = total } else { sample.full_us = total }
    }
    sample
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
