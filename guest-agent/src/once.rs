//! `ballast-guest once`: one reading of every sensor, for people, scripts and bug reports.

use anyhow::Result;
use ballast_guest::clock;
use ballast_guest::sensors::Sensors;
use ballast_protocol::{Bytes, Capabilities, Micros, Pressure, Telemetry};
use serde::Serialize;
use std::path::Path;

/// What is printed: the telemetry as the host would get it, and what is derived from it here.
#[derive(Debug, Serialize)]
struct Reading {
    telemetry: Telemetry,
    /// Free memory above the low watermarks.
    slack: Bytes,
    capabilities: Capabilities,
    cpu_pressure: Option<Pressure>,
    /// Enabled parts of the multi-generational LRU.
    lru_gen: Option<u64>,
}

/// Reads, and says it as text.
///
/// # Errors
/// A sensor that is there cannot be read.
pub fn read(root: &Path, json: bool) -> Result<String> {
    let mut sensors = Sensors::open(root)?;
    let watermarks = sensors.watermarks()?;
    let telemetry = sensors.telemetry(clock::now(), watermarks)?;
    let reading = Reading {
        slack: sensors.free()? - watermarks.low,
        capabilities: sensors.capabilities(false),
        cpu_pressure: sensors.pressures()[2],
        lru_gen: sensors.lru_gen,
        telemetry,
    };
    if json {
        return Ok(serde_json::to_string(&reading)?);
    }
    let rows: Vec<String> = reading.rows().into_iter().map(|(name, value)| format!("{name:<22} {value}")).collect();
    Ok(rows.join("\n"))
}

impl Reading {
    fn rows(&self) -> Vec<(&'static str, String)> {
        let Self { telemetry: t, capabilities: c, .. } = self;
        let stall =
            |p: Option<Pressure>| p.map_or("absent".to_owned(), |p| format!("some {}, full {}", p.some, p.full));
        let counter = |n: Option<u64>| n.map_or("absent".to_owned(), |n| n.to_string());
        let yes = |b: bool| if b { "yes" } else { "no" }.to_owned();
        vec![
            ("total", t.total.to_string()),
            ("free", t.free.to_string()),
            ("available", t.available.to_string()),
            ("slack", self.slack.to_string()),
            ("giveable", t.giveable.to_string()),
            ("watermarks", format!("min {}, low {}, high {}", t.watermarks.min, t.watermarks.low, t.watermarks.high)),
            ("page cache", format!("{}, {} not written", t.file, t.dirty)),
            ("anonymous, shared", format!("{}, {}", t.anon, t.shmem)),
            ("committed", t.committed.to_string()),
            ("swap", format!("{} of {} free", t.swap_free, t.swap_total)),
            ("balloon holds", t.ballooned.map_or("absent".to_owned(), |b| b.to_string())),
            ("memory pressure", stall(t.memory_pressure)),
            ("I/O pressure", stall(t.io_pressure)),
            ("CPU pressure", stall(self.cpu_pressure)),
            ("allocation stalls", counter(t.counters.alloc_stall)),
            ("cache refaults", counter(t.counters.refault_file)),
            ("OOM kills", counter(t.counters.oom_kill)),
            (
                "balloon device",
                c.balloon.map_or("absent".to_owned(), |b| {
                    let (oom, free) = (yes(b.deflate_on_oom), yes(b.free_page_reporting));
                    format!("deflate on OOM: {oom}, free page reporting: {free}")
                }),
            ),
            ("PSI", yes(c.psi)),
            ("cgroup v2 memory", yes(c.cgroup2)),
            ("memory.reclaim", yes(c.reclaim)),
            ("page aging (MGLRU)", self.lru_gen.map_or("absent".to_owned(), |mask| format!("{mask:#06x}"))),
            ("read in", (clock::now() - t.at).max(Micros(1)).to_string()),
        ]
    }
}
