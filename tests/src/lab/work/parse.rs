//! The format in which what we wrote ourselves for the workload image prints times: images/workload/latencies, wrk.lua.

use super::Latency;
use crate::wire::Times;

/// `times COUNT P50 P99 P999 MAX` and lines `bucket UPPER COUNT`, all in microseconds, among other lines. `None`: there
/// is no such line, or it is not whole.
pub(super) fn times(text: &str) -> Option<Times> {
    let numbers = |line: &str, word: &str| -> Option<Vec<u64>> {
        line.strip_prefix(word)?.split_whitespace().map(|n| n.parse().ok()).collect()
    };
    let [count, p50_us, p99_us, p999_us, max_us] = text.lines().find_map(|l| numbers(l, "times "))?[..] else {
        return None;
    };
    let buckets = text.lines().filter_map(|l| numbers(l, "bucket "));
    let buckets = buckets.map(|b| <[u64; 2]>::try_from(b).ok().map(Into::into)).collect::<Option<Vec<(u64, u64)>>>()?;
    Some(Times { count, p50_us, p99_us, p999_us, max_us, buckets })
}

/// The same as a latency; `None` too when nothing was timed.
pub(super) fn latency(text: &str) -> Option<Latency> {
    times(text).filter(|t| t.count > 0).map(|t| Latency::from(&t))
}

/// The number after `label`, anywhere in a text.
pub(super) fn after(text: &str, label: &str) -> Option<f64> {
    let rest = text.split_once(label)?.1.trim_start();
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    rest[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_among_other_lines() {
        let text = "heap whole 3 90\ntimes 3 10 20 20 20\nbucket 10 2\nbucket 22 1\n";
        let times = times(text).unwrap();
        assert_eq!((times.count, times.p50_us, times.max_us), (3, 10, 20));
        assert_eq!(times.buckets, [(10, 2), (22, 1)]);
        assert_eq!(super::times("times 3 10"), None);
        assert_eq!(latency("times 0 0 0 0 0\n"), None);
    }

    #[test]
    fn a_number_after_its_label() {
        assert_eq!(after("tps = 53.508161 (without", "tps = "), Some(53.508_161));
        assert_eq!(after("total time:       4.2708s\n", "total time:"), Some(4.2708));
        assert_eq!(after("none", "tps"), None);
    }
}
