//! Works that `ballast-testd` does itself.

use super::{Latency, Outcome};
use crate::Guest;
use crate::wire::Job;
use anyhow::Result;
use std::time::Duration;

/// For a job that was ended: its process may have all of the guest's memory to give back.
const GONE: Duration = Duration::from_secs(20);

pub(super) fn run(guest: &Guest, job: Job, patience: Duration) -> Result<Outcome> {
    let unit = if matches!(job, Job::Swarm { .. }) { "processes/s" } else { "MiB/s" };
    let pending = guest.job(job)?;
    let mut overdue = false;
    let mut worked = match pending.within(patience)? {
        Some(worked) => worked,
        None => {
            // It may have ended by itself just now.
            overdue = guest.cancel(pending.id()).is_ok();
            pending.wait(GONE)?
        }
    };
    if overdue {
        // That was this kill.
        worked.killed = worked.killed.saturating_sub(1);
        worked.why = "not done in time".to_owned();
    }
    Ok(Outcome {
        throughput: worked.rate(),
        unit: unit.to_owned(),
        latency: (worked.times.count > 0).then(|| Latency::from(&worked.times)),
        failed_allocations: worked.refused,
        killed: worked.killed,
        unfinished: overdue || worked.refused > 0 || worked.killed > 0,
        detail: worked.why,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Asked, Reply, Request, Times, Worked};
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;
    use std::path::Path;

    /// Answers a job when it is cancelled, as `ballast-testd` does; or at once.
    fn testd(listener: UnixListener, at_once: bool) {
        let (line, _) = listener.accept().unwrap();
        let mut job = None;
        for text in BufReader::new(line.try_clone().unwrap()).lines().map_while(Result::ok) {
            let asked: Asked = serde_json::from_str(&text).unwrap();
            let reply = |id, value| {
                let reply = serde_json::to_string(&Reply { id, result: Ok(value) }).unwrap();
                writeln!(&line, "{reply}").unwrap();
            };
            let worked = |killed| Worked {
                started_us: 0,
                ended_us: 2_000_000,
                times: Times::of(&mut [5, 5, 5, 5]),
                refused: 0,
                killed,
                oom_kills: 0,
                why: if killed > 0 { "killed by signal 9" } else { "" }.to_owned(),
            };
            match asked.request {
                Request::Job(_) if at_once => reply(asked.id, serde_json::to_value(worked(0)).unwrap()),
                Request::Job(_) => job = Some(asked.id),
                Request::Cancel { id } => {
                    assert_eq!(job, Some(id));
                    reply(asked.id, serde_json::Value::Null);
                    reply(id, serde_json::to_value(worked(1)).unwrap());
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_job_that_takes_too_long_is_ended_and_counts_with_what_it_reached() {
        let folder = tempfile::tempdir().unwrap();
        let run = |name: &str, at_once, patience| {
            let socket = folder.path().join(name);
            let listener = UnixListener::bind(&socket).unwrap();
            std::thread::spawn(move || testd(listener, at_once));
            let guest = Guest::attach(name, &socket, Path::new("/dev/null")).unwrap();
            super::run(&guest, Job::Burst { mib: 9, work: 0 }, patience).unwrap()
        };
        let late = run("late", false, Duration::from_millis(50));
        assert!(late.unfinished, "{late:?}");
        assert_eq!((late.throughput, late.killed, late.detail.as_str()), (2.0, 0, "not done in time"));
        let whole = run("whole", true, GONE);
        assert_eq!((whole.unfinished, whole.throughput, whole.detail.as_str()), (false, 2.0, ""));
    }
}
