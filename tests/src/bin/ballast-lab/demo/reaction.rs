//! How fast the pair reacted, from the journal: guest clocks are aligned by the session's own round trips.

use anyhow::Result;
use ballast_host::journal::{self, Record};
use ballast_planner::{Action, Input, Reason};
use ballast_protocol::GuestMessage;
use std::collections::BTreeMap;
use std::path::Path;

/// Times in milliseconds, unsorted.
#[derive(Debug, Default)]
pub struct Reactions {
    /// First sign in the guest -> the host's order on its way to the hypervisor.
    pub to_order: Vec<f64>,
    /// First sign in the guest -> first MiB given, both by the guest's clock.
    pub to_first_mib: Vec<f64>,
    /// Demand received -> order on its way, inside the host agent.
    pub inside: Vec<f64>,
    /// The round trip behind the clock alignment: its half bounds the error of `to_order`.
    pub round_trip: Option<f64>,
}

/// Reads them. Only demands that led to an order count: one that asks for what was already given has no order.
pub fn read(path: &Path) -> Result<Reactions> {
    let mut found = Reactions::default();
    // Guest minus host, microseconds, and the round trip, by VM: the session tells only when it knows better.
    let mut clock = BTreeMap::new();
    let (mut signs, mut received, mut orders) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for record in journal::read(path)? {
        match record? {
            Record::Clock { vm, offset, round_trip, .. } => {
                found.round_trip = Some(round_trip.millis_f64());
                clock.insert(vm, offset);
            }
            Record::Received { at, vm, demand } => drop(received.insert((vm, demand), at)),
            Record::Input { input: Input::Guest { vm, message }, .. } => match message {
                GuestMessage::Demand(demand) => drop(signs.insert((vm, demand.id), demand.sign)),
                GuestMessage::Relief(relief) => {
                    if let Some(first) = relief.first_mib {
                        found.to_first_mib.push((first - relief.sign).millis_f64());
                    }
                }
                _ => {}
            },
            Record::Action { action: Action::Order { vm, order, reason: Reason::Demand { id, .. }, .. }, .. } => {
                orders.insert((vm.clone(), order), (vm, id));
            }
            Record::Issued { at, vm, order, .. } => {
                let Some(demand) = orders.get(&(vm.clone(), order)) else { continue };
                if let (Some(sign), Some(offset)) = (signs.get(demand), clock.get(&vm)) {
                    let sign_here = sign.0 as f64 - *offset as f64;
                    found.to_order.push((at.0 as f64 - sign_here) / 1e3);
                }
                if let Some(received) = received.get(demand) {
                    found.inside.push((at - *received).millis_f64());
                }
            }
            _ => {}
        }
    }
    Ok(found)
}
