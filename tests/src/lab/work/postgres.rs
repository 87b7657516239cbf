//! PostgreSQL, asked by pgbench.

use super::server::{Loader, POSTGRES};
use super::{Outcome, parse};
use crate::wire::Executed;
use anyhow::Result;

pub(super) fn run(loader: &Loader, secs: u32, clients: u32, read_only: bool) -> Result<Outcome> {
    // Its log has a line for each transaction, the third word its time in microseconds; it has percentiles of nothing.
    let command = format!(
        "cd /tmp; rm -f pgb.*; /usr/lib/postgresql/*/bin/pgbench -h {} -U postgres -n {} -c {clients} -T {secs} \
         -l --log-prefix=/tmp/pgb bench; status=$?; cat pgb.* | cut -d ' ' -f 3 | grep -v skipped | latencies; exit $status",
        loader.address,
        if read_only { "-S" } else { "" }
    );
    loader.run(&POSTGRES, &command, read)
}

fn read(said: &Executed) -> Option<Outcome> {
    let text = &said.output;
    let times = parse::times(text)?;
    // It prints no rate when all its connections were lost.
    let reached = || times.count as f64 * 1e6 / said.took_us.max(1) as f64;
    let failed = parse::after(text, "number of failed transactions:").unwrap_or(0.0);
    Some(Outcome {
        throughput: parse::after(text, "tps = ").unwrap_or_else(reached),
        unit: "transactions/s".into(),
        latency: parse::latency(text),
        detail: if failed > 0.0 { format!("{failed} transactions failed") } else { String::new() },
        unfinished: failed > 0.0,
        ..Outcome::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pgbench_and_its_log_say() {
        let output = include_str!("captured/pgbench").to_owned();
        let said = Executed { status: Some(0), signal: None, overdue: false, oom_kills: 0, took_us: 1, output };
        let outcome = read(&said).unwrap();
        assert_eq!((outcome.throughput, outcome.detail.as_str()), (76.900_252, ""));
        let latency = outcome.latency.unwrap();
        assert_eq!((latency.count, latency.p50_ms, latency.p99_ms), (290, 29.845, 247.782));

        assert!(!outcome.unfinished);

        let lost = "pgbench: error: client 0 aborted\ntimes 4 10 20 20 20\nbucket 10 4\n";
        let lost = Executed { output: lost.into(), took_us: 2_000_000, status: Some(2), ..said };
        let outcome = super::super::server::complete(&lost, false, read).unwrap();
        assert_eq!((outcome.throughput, outcome.unfinished), (2.0, true));
    }
}
