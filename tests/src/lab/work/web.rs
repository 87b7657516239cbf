//! nginx, asked by wrk: as fast as the page cache is large.

use super::server::{Loader, NGINX};
use super::{Outcome, parse};
use crate::wire::Executed;
use anyhow::Result;

/// Of 64 KiB each, in the workload image.
pub(super) const FILES: u32 = 2048;

pub(super) fn run(loader: &Loader, secs: u32, files: u32, clients: u32) -> Result<Outcome> {
    let command = format!(
        "exec wrk -t1 -c{clients} -d{secs} --timeout 30 -s /usr/local/lib/ballast/wrk.lua http://{}:8080 -- {files}",
        loader.address
    );
    loader.run(&NGINX, &command, read)
}

/// What wrk.lua printed.
fn read(said: &Executed) -> Option<Outcome> {
    let line = |word: &str| said.output.lines().find_map(|l| l.strip_prefix(word));
    let (requests, us) = line("requests ")?.split_once(' ')?;
    let (requests, us): (f64, f64) = (requests.parse().ok()?, us.trim().parse().ok()?);
    let errors: u64 = line("errors ")?.trim().parse().ok()?;
    Some(Outcome {
        throughput: if us > 0.0 { requests * 1e6 / us } else { 0.0 },
        unit: "requests/s".into(),
        latency: parse::latency(&said.output),
        detail: if errors > 0 { format!("{errors} requests failed") } else { String::new() },
        unfinished: errors > 0,
        ..Outcome::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_our_script_for_wrk_prints() {
        let output = include_str!("captured/wrk").to_owned();
        let said = Executed { status: Some(0), signal: None, overdue: false, oom_kills: 0, took_us: 1, output };
        let outcome = read(&said).unwrap();
        assert!((outcome.throughput - 1_171.0 / 5.0652).abs() < 1e-6 && outcome.detail.is_empty(), "{outcome:?}");
        let latency = outcome.latency.unwrap();
        assert_eq!((latency.p50_ms, latency.p99_ms, latency.p999_ms, latency.max_ms), (15.553, 41.474, 45.603, 49.634));
        assert_eq!(latency.histogram.iter().map(|b| b.1).sum::<u64>(), latency.count);
        assert!(!outcome.unfinished);
        let failed = Executed { output: said.output.replace("errors 0", "errors 3"), ..said.clone() };
        let failed = read(&failed).unwrap();
        assert!(failed.unfinished && failed.detail == "3 requests failed", "{failed:?}");
        assert_eq!(read(&Executed { output: "unable to connect to 127.0.0.1:8080".into(), ..said }), None);
    }
}
