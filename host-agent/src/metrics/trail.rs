//! Orders from their beginning to their end, with what they really moved, and the latest of them for the page.
//!
//! A target is a wish: what a guest gives or takes is seen at its balloon. So an order is told twice, when it is given
//! and when it is over, and the second time says how many bytes moved in between by the hypervisor's count.

use ballast_planner::{Reason, Vm, VmName};
use ballast_protocol::{Bytes, Micros};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};

/// Marks remembered, of all VMs together: five minutes of a busy host.
const MARKS: usize = 512;
/// The balloon driver works in units of 1 MiB.
const NEAR: Bytes = Bytes::mib(1);

/// What a [`Mark`] stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MarkKind {
    /// An order that shrinks a guest.
    Take,
    /// An order that lets it grow, or stay as it is.
    Give,
    /// A demand, with its answer.
    Demand,
    /// An order that was not given, because the daemon only says what it would do.
    Would,
}

/// Something that happened to a VM at a moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mark {
    /// Counts them.
    pub number: u64,
    /// When, daemon's clock.
    pub at: Micros,
    /// To whom.
    pub vm: VmName,
    /// What.
    pub kind: MarkKind,
    /// What it had been told to keep, and what it is to keep; for a demand: nothing, and how much more it wants.
    pub sizes: (Bytes, Bytes),
    /// Why, for people.
    pub text: String,
}

#[derive(Debug)]
struct UnderWay {
    order: u64,
    at: Micros,
    /// What the guest kept then.
    kept: Bytes,
    target: Bytes,
    reason: String,
}

/// Follows orders.
#[derive(Debug, Default)]
pub struct Trail {
    under_way: BTreeMap<VmName, UnderWay>,
    marks: VecDeque<Mark>,
    count: u64,
}

impl Trail {
    /// An order was given; the one before it has been ended.
    pub fn ordered(&mut self, at: Micros, vm: &VmName, sizes: (Bytes, Bytes), reason: &Reason, known: Option<&Vm>) {
        let reason = reason.to_string();
        let kind = if sizes.1 < sizes.0 { MarkKind::Take } else { MarkKind::Give };
        self.mark(at, vm, kind, sizes, reason.clone());
        if let Some(order) = known.and_then(|k| k.order.as_ref()) {
            let under_way = UnderWay { order: order.id, at, kept: order.from, target: order.target.bytes(), reason };
            self.under_way.insert(vm.clone(), under_way);
        }
    }

    /// An order would have been given.
    pub fn would(&mut self, at: Micros, vm: &VmName, sizes: (Bytes, Bytes), reason: &Reason) {
        self.mark(at, vm, MarkKind::Would, sizes, reason.to_string());
    }

    /// A demand was answered.
    pub fn demanded(&mut self, at: Micros, vm: &VmName, size: Bytes, text: String) {
        self.mark(at, vm, MarkKind::Demand, (Bytes::ZERO, size), text);
    }

    /// Tells of the end of a VM's order if that has come; returns how long it took.
    pub fn ended(&mut self, at: Micros, vm: &VmName, known: Option<&Vm>) -> Option<Micros> {
        let current = known.and_then(|k| k.order.as_ref()).map(|o| o.id);
        if self.under_way.get(vm).is_none_or(|u| current == Some(u.order)) {
            return None;
        }
        let under_way = self.under_way.remove(vm)?;
        let (took, actual) = (at - under_way.at, known.and_then(|k| k.actual).map(|a| a.what));
        let end = match actual {
            None if known.is_none() => "the VM has gone",
            None => "the hypervisor has gone",
            Some(actual) if is_followed(&under_way, actual) => "followed",
            Some(_) if current.is_some() => "replaced by the next one",
            Some(_) => "not followed",
        };
        let UnderWay { order, kept, target, reason, .. } = under_way;
        match actual {
            Some(actual) => {
                let moved_bytes = signed(actual) - signed(kept);
                let moved = format!("{}{}", if actual < kept { "-" } else { "+" }, (actual - kept).max(kept - actual));
                tracing::info!(%vm, order, %moved, moved_bytes, %took, %target, %reason, %end, "settled");
            }
            None => tracing::info!(%vm, order, %took, %target, %reason, %end, "settled"),
        }
        Some(took)
    }

    /// What happened since then, as far as it is remembered, oldest first.
    pub fn marks(&self, since: Micros) -> Vec<Mark> {
        self.marks.iter().skip_while(|m| m.at < since).cloned().collect()
    }

    fn mark(&mut self, at: Micros, vm: &VmName, kind: MarkKind, sizes: (Bytes, Bytes), text: String) {
        if self.marks.len() == MARKS {
            self.marks.pop_front();
        }
        self.count += 1;
        self.marks.push_back(Mark { number: self.count, at, vm: vm.clone(), kind, sizes, text });
    }
}

fn is_followed(order: &UnderWay, actual: Bytes) -> bool {
    let (more, less) = (actual - order.target, order.target - actual);
    if order.target < order.kept { more <= NEAR } else { less <= NEAR }
}

/// For differences: no host has 8 EiB.
fn signed(size: Bytes) -> i64 {
    i64::try_from(size.0).unwrap_or(i64::MAX)
}
