//! What the guest agent costs a real guest that is idle: on disk, in memory, on its CPU and on the wire.
//!
//! It looks more often the less slack there is for the reaction it reckons with. So it is measured where the pair has
//! squeezed the guest and the agent still reckons with its first guess of that reaction; in the same guest after a burst,
//! when it knows better; and in one that keeps all its memory.

use super::{Measured, proxy};
use anyhow::{Context, Result, bail};
use ballast_protocol::{Bytes, DEFAULT_PORT};
use ballast_tests::{HostAgent, Machine};
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the design allows (issue 1 of 4, part 2).
pub const FILE: Bytes = Bytes::mib(4);
pub const RESIDENT: Bytes = Bytes::mib(6);
pub const CPU_PERCENT: f64 = 1.0;
pub const WIRE_BYTES_S: f64 = 1024.0;

const IDLE: Duration = Duration::from_secs(30);
/// The balloon has come to rest when it has not moved for this long.
const REST: Duration = Duration::from_secs(8);
/// Beyond the slack of a squeezed guest, within the maximum of 512 MiB.
const BURST_MIB: u64 = 200;
const PATIENCE: Duration = Duration::from_secs(90);

/// One guest agent's costs.
#[derive(Debug, Serialize)]
pub struct Budget {
    pub file_bytes: u64,
    pub guests: Vec<Idle>,
}

/// Over 30 s of idleness.
#[derive(Debug, Serialize)]
pub struct Idle {
    pub guest: &'static str,
    /// What the guest kept, by the hypervisor.
    pub kept_mib: u64,
    /// `Rss` of smaps_rollup; the counters in `status` are batched and too low (FACTS.md, section 3).
    pub resident_bytes: u64,
    /// Of one of the guest's CPUs.
    pub cpu_percent: f64,
    /// Both ways, frames with their prefixes.
    pub wire_bytes_s: f64,
}

/// Puts a host agent over both, `alone` exempt; the guests' agents run already.
pub fn measure(squeezed: &mut Machine, alone: &Machine) -> Result<Measured<Budget>> {
    let mut config = HostAgent::config(&[squeezed, alone]);
    let vms = config.get_mut("vm").and_then(|v| v.as_array_mut()).context("the configuration has no VMs")?;
    let mut counts = Vec::new();
    for (machine, vm) in [&*squeezed, alone].into_iter().zip(vms) {
        let Some(hybrid) = machine.vsock.as_ref().and_then(|v| v.hybrid.as_ref()) else {
            return Ok(Measured::no("the wire is counted on hybrid vsock, and this machine has the kernel's device"));
        };
        let far = machine.folder().join("far");
        let near = format!("{}_{DEFAULT_PORT}", hybrid.display());
        counts.push(proxy::start(near.as_ref(), format!("{}_{DEFAULT_PORT}", far.display()).into())?);
        let vm = vm.as_table_mut().context("a VM is no table")?;
        vm.insert("vsock".into(), far.display().to_string().into());
        vm.insert("exempt".into(), std::ptr::eq(machine, alone).into());
    }
    let host = HostAgent::start(config)?;
    come_to_rest(squeezed, &host)?;

    let before = [look(squeezed, &counts[0])?, look(alone, &counts[1])?];
    std::thread::sleep(IDLE);
    let after = [look(squeezed, &counts[0])?, look(alone, &counts[1])?];
    let fresh = idle("squeezed", squeezed.qmp.balloon()?, &before[0], &after[0]);
    let alone = idle("left alone", alone.size(), &before[1], &after[1]);

    squeezed.guest.burst(BURST_MIB)?;
    come_to_rest(squeezed, &host)?;
    let before = look(squeezed, &counts[0])?;
    std::thread::sleep(IDLE);
    let burst = idle("after a burst", squeezed.qmp.balloon()?, &before, &look(squeezed, &counts[0])?);
    let size = squeezed.guest.sh_ok("wc -c </bin/ballast-guest")?;
    let file_bytes = size.trim().parse().with_context(|| format!("`{size}` is no size"))?;
    Ok(Measured::Yes(Budget { file_bytes, guests: vec![fresh, burst, alone] }))
}

fn idle(guest: &'static str, kept: Bytes, before: &Look, after: &Look) -> Idle {
    let seconds = (after.at_us - before.at_us) as f64 / 1e6;
    Idle {
        guest,
        kept_mib: kept.as_mib(),
        resident_bytes: after.resident,
        cpu_percent: (after.cpu_us - before.cpu_us) as f64 / 1e4 / seconds,
        wire_bytes_s: (after.wire - before.wire) as f64 / seconds,
    }
}

/// Waits until the pair has taken what it takes.
fn come_to_rest(machine: &mut Machine, host: &HostAgent) -> Result<()> {
    let begun = Instant::now();
    let (mut kept, mut since) = (machine.qmp.balloon()?, Instant::now());
    while kept == machine.size() || since.elapsed() < REST {
        if begun.elapsed() > PATIENCE {
            bail!("the balloon of {} is at {kept} and does not rest\n{}", machine.name(), host.log());
        }
        std::thread::sleep(Duration::from_millis(100));
        let now = machine.qmp.balloon()?;
        if now != kept {
            (kept, since) = (now, Instant::now());
        }
    }
    Ok(())
}

struct Look {
    at_us: u64,
    cpu_us: u64,
    resident: u64,
    wire: u64,
}

fn look(machine: &Machine, count: &Arc<proxy::Count>) -> Result<Look> {
    let wire = count.total();
    let counters = machine.guest.counters()?;
    let dead = || format!("the guest agent of {} does not run\n{}", machine.name(), machine.guest.log());
    Ok(Look {
        at_us: counters.at_us,
        cpu_us: counters.agent_cpu_us.with_context(dead)?,
        resident: counters.agent_rss_kib.with_context(dead)? << 10,
        wire,
    })
}
