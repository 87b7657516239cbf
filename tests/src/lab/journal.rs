//! What a daemon's journal tells about an arm: its orders with their reasons, the demands it heard, the service samples
//! its prober made, and how fast the pair reacted.
//!
//! The journal's clock begins with the daemon; the lab saw that moment within the time a process takes to start (some
//! tens of milliseconds), which is enough for a time line. Reaction times do not need it: they compare the guest's clock
//! with the daemon's by the round trips of their own session.

use super::results::{ArmRun, DemandSeen, OrderSeen, ProbeSeen};
use anyhow::Result;
use ballast_host::journal::{self, Record};
use ballast_planner::{Action, Input, Reason, ServiceMode, source_name};
use ballast_protocol::GuestMessage;
use std::collections::BTreeMap;
use std::path::Path;

/// Adds what the journal says to `run`; `began` is when its clock began, by the block's.
pub fn read(path: &Path, began: f64, run: &mut ArmRun) -> Result<()> {
    // Guest minus host, microseconds, by VM: the session tells only when it knows better.
    let mut clock = BTreeMap::new();
    let (mut signs, mut asked) = (BTreeMap::new(), BTreeMap::new());
    for record in journal::read(path)? {
        match record? {
            Record::Clock { vm, offset, .. } => drop(clock.insert(vm, offset)),
            Record::Input { at, input: Input::Guest { vm, message } } => match message {
                GuestMessage::Demand(demand) => {
                    run.demands.push(DemandSeen {
                        t: began + at.millis_f64() / 1e3,
                        guest: vm.0.clone(),
                        mib: demand.size.mib_f64(),
                        source: source_name(demand.source).to_owned(),
                    });
                    signs.insert((vm, demand.id), demand.sign);
                }
                GuestMessage::Relief(relief) => {
                    let first = relief.first_mib.map(|first| (first - relief.sign).millis_f64());
                    run.sign_to_first_mib_ms.extend(first);
                }
                _ => {}
            },
            Record::Input { at, input: Input::Service { vm, sample } } if sample.mode != ServiceMode::Passive => {
                run.probes.push(ProbeSeen {
                    t: began + at.millis_f64() / 1e3,
                    guest: vm.0,
                    mbit_s: sample.throughput as f64 / 1e6,
                    retransmits: sample.retransmits.unwrap_or(0),
                    rtt_ms: sample.rtt.map(|rtt| rtt.millis_f64()),
                });
            }
            Record::Action { at, action: Action::Order { vm, order, target, from, reason, .. } } => {
                run.orders.push(OrderSeen {
                    t: began + at.millis_f64() / 1e3,
                    guest: vm.0.clone(),
                    from_mib: from.mib_f64(),
                    to_mib: target.bytes().mib_f64(),
                    reason: reason.to_string(),
                });
                if let Reason::Demand { id, .. } = reason {
                    asked.insert((vm.clone(), order), (vm, id));
                }
            }
            Record::Issued { at, vm, order, .. } => {
                let Some(demand) = asked.get(&(vm.clone(), order)) else { continue };
                if let (Some(sign), Some(offset)) = (signs.get(demand), clock.get(&vm)) {
                    let sign_here = sign.0 as f64 - *offset as f64;
                    run.sign_to_order_ms.push((at.0 as f64 - sign_here) / 1e3);
                }
            }
            _ => {}
        }
    }
    Ok(())
}
