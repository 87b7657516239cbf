//! redis, asked by redis-benchmark.

use super::server::{Loader, REDIS};
use super::{Latency, Outcome};
use crate::wire::Executed;
use anyhow::Result;

/// Far above what caches hold as one value, far below what redis-benchmark has memory for.
pub(super) const MAX_BYTES: u32 = 1 << 20;

/// redis-benchmark's own SET hits random keys, of which a third would be missing afterwards: a script counts instead.
/// Nor does the value come with the request, because each of redis-benchmark's progress lines would repeat it.
const FILL: &str =
    "return redis.call('set',string.format('key:%012d',redis.call('incr','filled')-1),redis.call('get','value'))";

pub(super) fn fill(loader: &Loader, mib: u64, bytes: u32, clients: u32) -> Result<Outcome> {
    let keys = (mib << 20) / u64::from(bytes);
    let at = loader.address;
    let command = format!(
        "redis-cli -h {at} del filled >/dev/null; \
         head -c {bytes} /dev/urandom | base64 -w0 | head -c {bytes} | redis-cli -h {at} -x set value >/dev/null; \
         exec redis-benchmark -h {at} -n {keys} -c {clients} --precision 3 eval \"{FILL}\" 0"
    );
    loader.run(&REDIS, &command, read)
}

pub(super) fn load(loader: &Loader, requests: u64, keyspace: u64, bytes: u32, clients: u32) -> Result<Outcome> {
    let at = loader.address;
    let command = format!(
        "exec redis-benchmark -h {at} -n {requests} -c {clients} -r {keyspace} -d {bytes} --precision 3 -t set,get"
    );
    loader.run(&REDIS, &command, read)
}

pub(super) fn flush(loader: &Loader) -> Result<Outcome> {
    // Memory that the allocator keeps is not given back to the guest otherwise.
    let command = format!("redis-cli -h {0} flushall sync && redis-cli -h {0} memory purge", loader.address);
    loader.run(&REDIS, &command, |said| {
        let latency = Latency::of(vec![(said.took_us as f64 / 1e3, 1)]);
        (said.status == Some(0)).then(|| Outcome { latency, ..Outcome::default() })
    })
}

/// What redis-benchmark printed: one report for each kind of request that it completed, and how far it came with the next
/// when it was ended.
fn read(said: &Executed) -> Option<Outcome> {
    let text = &said.output;
    let mut outcome = Outcome { unit: "requests/s".into(), ..Outcome::default() };
    let (mut requests, mut secs) = (0.0, 0.0);
    let mut counts = Vec::new();
    for report in text.split("======").filter(|r| r.contains("requests completed in")) {
        requests += super::parse::after(report, "\n")?;
        secs += super::parse::after(report, "requests completed in")?;
        counts.extend(distribution(report));
    }
    let reached = text.rsplit("requests completed in").next().and_then(overall);
    if secs == 0.0 {
        outcome.throughput = reached?;
    } else if said.whole() {
        outcome.throughput = requests / secs;
    } else {
        // What it was at when it was ended has had the rest of its time.
        let rest = (said.took_us as f64 / 1e6 - secs).max(0.0);
        outcome.throughput = (requests + reached.unwrap_or(0.0) * rest) / (secs + rest);
    }
    outcome.latency = Latency::of(counts);
    outcome.failed_allocations = text.matches("OOM command not allowed").count() as u64;
    Some(outcome)
}

/// From the last of its progress lines: `SET: rps=710.3 (overall: 1737.9) avg_msec=2.467 (overall: 2.854)`.
fn overall(text: &str) -> Option<f64> {
    text.rmatch_indices("(overall: ").find_map(|(at, _)| {
        let rate = super::parse::after(&text[at..], "(overall: ")?;
        text[at..].contains("avg_msec").then_some(rate)
    })
}

/// From `PERCENT% <= MS milliseconds (cumulative count N)`; a report has two tables of them, one fine at the long end,
/// one evenly spaced: together they are better than each.
fn distribution(report: &str) -> Vec<(f64, u64)> {
    let line = |line: &str| -> Option<(f64, u64)> {
        let (ms, rest) = line.split_once("% <= ")?.1.split_once(" milliseconds (cumulative count ")?;
        Some((ms.parse().ok()?, rest.trim_end().strip_suffix(')')?.parse().ok()?))
    };
    let mut points: Vec<(f64, u64)> = report.lines().filter_map(line).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut below = 0;
    let mut counts = Vec::new();
    for (ms, cumulative) in points {
        if cumulative > below {
            counts.push((ms, cumulative - below));
            below = cumulative;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(output: &str, status: i32) -> Executed {
        let output = output.to_owned();
        Executed { status: Some(status), signal: None, overdue: false, oom_kills: 0, took_us: 1, output }
    }

    #[test]
    fn a_report_of_two_kinds_is_summed_up() {
        let outcome = read(&said(include_str!("captured/redis-benchmark"), 0)).unwrap();
        assert_eq!(outcome.unit, "requests/s");
        let latency = outcome.latency.unwrap();
        assert_eq!((latency.count, latency.max_ms), (4_000, 14.887));
        assert_eq!(latency.histogram.iter().map(|b| b.1).sum::<u64>(), 4_000);
        // 2000 requests in 0.68 s and as many in 0.78 s.
        assert!((outcome.throughput - 4_000.0 / 1.46).abs() < 1e-6, "{}", outcome.throughput);
        // Its own summary says 0.807 and 0.791, 6.255 and 6.679; five requests took longer than 9.943.
        assert!((0.79..0.82).contains(&latency.p50_ms), "{latency:?}");
        assert!((6.2..6.8).contains(&latency.p99_ms), "{latency:?}");
        assert!((9.9..10.3).contains(&latency.p999_ms), "{latency:?}");
    }

    #[test]
    fn the_last_progress_line_counts_when_the_server_dies() {
        let text = "\rSET: rps=0.0 (overall: 0.0) avg_msec=-nan (overall: -nan)\r   \r\
                    SET: rps=2519.8 (overall: 2293.0) avg_msec=2.467 (overall: 2.854)\r\
                    Error: Server closed the connection\n";
        let outcome = read(&said(text, 1)).unwrap();
        assert_eq!((outcome.throughput, outcome.latency, outcome.failed_allocations), (2_293.0, None, 0));
        // Where SET came to its end in 0.68 s and GET did not in the other 9.32, SET's figures are not the load's.
        let (set, _) = include_str!("captured/redis-benchmark").split_once("====== GET ======").unwrap();
        let cut = Executed { overdue: true, status: None, signal: Some(9), took_us: 10_000_000, ..said(set, 0) };
        let outcome = super::super::server::complete(&cut, false, read).unwrap();
        let overall = overall(set.rsplit("requests completed in").next().unwrap()).unwrap();
        let expected = (2_000.0 + overall * 9.32) / 10.0;
        assert!(outcome.unfinished && (outcome.throughput - expected).abs() < 1e-6, "{outcome:?}");
        assert_eq!(outcome.latency.unwrap().count, 2_000);
        let whole = super::super::server::complete(&said(include_str!("captured/redis-benchmark"), 0), false, read);
        assert!(!whole.unwrap().unfinished);
        assert_eq!(read(&said("Could not connect to Redis at 127.0.0.1:6379: Connection refused\n", 1)), None);
    }

    #[test]
    fn a_full_server_is_a_failed_allocation() {
        let text = "Error from server: OOM command not allowed when used memory > 'maxmemory'.\n \r\
                    SET: rps=0.0 (overall: 0.0) avg_msec=-nan (overall: -nan)\n";
        assert_eq!(read(&said(text, 1)).unwrap().failed_allocations, 1);
    }
}
