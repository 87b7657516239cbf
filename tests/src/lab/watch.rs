//! The eye on all guests of a block: a look at each twice a second, from outside and, every second time, from inside.
//!
//! A guest under pressure may not answer in time. Then the look from inside is missing, and nothing waits for it.

use super::collect::{Move, Sweep};
use super::results::{Look, Totals};
use crate::wire::{Counters, Request, Sample};
use crate::{HostAgent, Machine};
use anyhow::{Context, Result};
use ballast_protocol::Bytes;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Between two looks from outside.
const EVERY: Duration = Duration::from_millis(500);
/// A guest that takes longer is too busy to be asked.
const PATIENCE: Duration = Duration::from_millis(400);

/// A guest and what has been seen of it.
#[derive(Debug)]
pub struct Watched {
    /// The guest.
    pub machine: Machine,
    /// The looks so far.
    pub series: Vec<Look>,
    /// What it had stalled for memory at the first look, microseconds.
    pub stalled_before: Option<u64>,
    /// Why it cannot be watched any more.
    pub lost: Option<String>,
    /// Where it is told what is charged to its cgroup, under the arm that has some.
    pub charged: Option<PathBuf>,
    /// Where its balloon goes, where chance decides; and the configuration of the host agent that moves it, unless the lab does.
    pub sweep: Option<(Sweep, Option<PathBuf>)>,
}

impl Watched {
    /// A guest that nothing has been seen of.
    #[must_use]
    pub fn new(machine: Machine) -> Self {
        Self { machine, series: Vec::new(), stalled_before: None, lost: None, charged: None, sweep: None }
    }

    /// What the host holds of it in memory, MiB.
    fn resident_mib(&self) -> Result<f64> {
        let touched = self.machine.resident()?;
        let Some(charged) = &self.charged else { return Ok(touched.mib_f64()) };
        // QEMU's own memory is charged too, so that this is no less than what the guest has.
        let text = fs::read_to_string(charged).with_context(|| charged.display().to_string())?;
        Ok(touched.min(Bytes(text.trim().parse()?)).mib_f64())
    }

    /// Moves the balloon when its time has come.
    fn sweep(&mut self, zero: Instant) {
        let Some((sweep, host)) = self.sweep.as_mut().filter(|_| self.lost.is_none()) else { return };
        // Before the order, never after it: what is known at this moment must not know the order's effect.
        let now = zero.elapsed().as_secs_f64();
        let Some(what) = sweep.due(now, &self.series) else { return };
        let size = if let Move::Hold(size) = what { format!("{}M", size.as_mib()) } else { String::new() };
        let moved = match (host, what) {
            (Some(host), Move::Hold(_)) => {
                HostAgent::tell(host, &["hold", sweep.guest(), &size, "--reason", "sweep"]).map(drop)
            }
            (Some(host), Move::Release) => HostAgent::tell(host, &["release", sweep.guest()]).map(drop),
            (None, Move::Hold(size)) => self.machine.qmp.set_balloon(size),
            (None, Move::Release) => Ok(()),
        };
        if let Err(e) = moved {
            self.lost = Some(format!("{e:#}"));
        }
    }
}

/// Looks at all of them until told to stop; `zero` is the time that looks count from.
pub fn watch(guests: &mut [&mut Watched], zero: Instant, stop: &AtomicBool) {
    let mut inside = true;
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        guests.iter_mut().for_each(|guest| guest.sweep(zero));
        look(guests, zero, inside);
        inside = !inside;
        next += EVERY;
        // After a hold-up the looks that were missed are not made up for.
        next = next.max(Instant::now());
        std::thread::sleep(next - Instant::now());
    }
}

fn look(guests: &mut [&mut Watched], zero: Instant, inside: bool) {
    // All are asked before the first answer is awaited: their vCPUs answer side by side.
    let asked: Vec<_> = guests
        .iter()
        .map(|g| (inside && g.lost.is_none()).then(|| g.machine.guest.ask::<Sample>(Request::Sample).ok()).flatten())
        .collect();
    let deadline = Instant::now() + PATIENCE;
    for (guest, asked) in guests.iter_mut().zip(asked) {
        if guest.lost.is_some() {
            continue;
        }
        let outside = guest.resident_mib().and_then(|r| Ok((r, guest.machine.qmp.balloon()?)));
        let (resident, kept) = match outside {
            Ok(seen) => seen,
            Err(e) => {
                guest.lost = Some(format!("{e:#}"));
                continue;
            }
        };
        let glance = asked.and_then(|a| a.wait(deadline.saturating_duration_since(Instant::now())).ok());
        let base = guest.stalled_before.or(glance.as_ref().map(|g| g.some_us));
        guest.stalled_before = base;
        let stalled = |g: &Sample| g.some_us.saturating_sub(base.unwrap_or(0)) as f64 / 1e3;
        let mib = |kib: u64| kib as f64 / 1024.0;
        guest.series.push(Look {
            t: zero.elapsed().as_secs_f64(),
            resident_mib: resident,
            kept_mib: kept.mib_f64(),
            free_mib: glance.as_ref().map(|g| mib(g.free_kib)),
            available_mib: glance.as_ref().map(|g| mib(g.available_kib)),
            stall_ms: glance.as_ref().map(stalled),
        });
    }
}

/// What lies between two readings of a guest's counters.
#[must_use]
pub fn between(before: &Counters, after: &Counters) -> Totals {
    const PAGES_PER_MIB: f64 = 256.0;
    let grew = |prefix: &str| {
        let sum = |c: &Counters| c.vmstat.iter().filter(|(k, _)| k.starts_with(prefix)).map(|(_, v)| v).sum::<u64>();
        sum(after).saturating_sub(sum(before))
    };
    let stalled = |kind: &str| {
        let of = |c: &Counters| c.pressure.get(kind).copied().unwrap_or(0);
        of(after).saturating_sub(of(before)) as f64 / 1e3
    };
    let cpu = |c: &Counters| c.agent_cpu_us.unwrap_or(0);
    Totals {
        oom_kills: grew("oom_kill"),
        allocation_stalls: grew("allocstall"),
        stall_some_ms: stalled("memory.some"),
        stall_full_ms: stalled("memory.full"),
        refault_mib: grew("workingset_refault_file") as f64 / PAGES_PER_MIB,
        swap_in_mib: grew("pswpin") as f64 / PAGES_PER_MIB,
        swap_out_mib: grew("pswpout") as f64 / PAGES_PER_MIB,
        inflated_mib: grew("balloon_inflate") as f64 / PAGES_PER_MIB,
        deflated_mib: grew("balloon_deflate") as f64 / PAGES_PER_MIB,
        agent_cpu_s: cpu(after).saturating_sub(cpu(before)) as f64 / 1e6,
        watched_s: after.at_us.saturating_sub(before.at_us) as f64 / 1e6,
        resident_gib_s: 0.0,
    }
}

/// Memory held within a span of time, GiB times seconds, and how much of the span was seen, seconds.
#[must_use]
pub fn held(series: &[Look], within: Range<f64>) -> (f64, f64) {
    let mut sum = 0.0;
    let mut span = 0.0;
    for pair in series.windows(2) {
        // A phase may be shorter than the time between two looks.
        let step = (pair[1].t.min(within.end) - pair[0].t.max(within.start)).max(0.0);
        sum += step * (pair[0].resident_mib + pair[1].resident_mib) / 2.0 / 1024.0;
        span += step;
    }
    (sum, span)
}
