//! The last five minutes of every VM, so that a page which is opened because something happened can show it.
//!
//! A look every two seconds, whether somebody reads it or not: 20 bytes for each VM, 3 KiB in all.

use super::Seen;
use ballast_planner::{Planner, Vm, VmName};
use ballast_protocol::{Bytes, Micros};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// From one look to the next.
pub const EVERY: Duration = Duration::from_secs(2);
/// Five minutes of them, what the page shows.
const LOOKS: usize = 150;

/// A figure in KiB, or milliseconds; `None` where nothing is known. 32 bits hold 4 TiB and seven weeks.
type Figure = Option<std::num::NonZeroU32>;

/// One look: kept, used, told to keep, floor, and time stalled. Zero is stored as one, which no line shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Look(Figure, Figure, Figure, Figure, Figure);

/// What the page is told when it opens: a VM's last look belongs to the last time.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Past {
    times: VecDeque<Micros>,
    vms: BTreeMap<VmName, VecDeque<Look>>,
}

impl Past {
    /// Looks at all VMs.
    pub fn look(&mut self, at: Micros, planner: &Planner) {
        push(&mut self.times, at);
        self.vms.retain(|name, _| planner.vm(name).is_some());
        for (name, vm) in planner.vms() {
            match self.vms.get_mut(name) {
                Some(looks) => push(looks, Look::at(vm)),
                None => drop(self.vms.insert(name.clone(), VecDeque::from([Look::at(vm)]))),
            }
        }
    }
}

impl Look {
    fn at(vm: &Vm) -> Self {
        let figure = |n: u64| std::num::NonZeroU32::new(u32::try_from(n).unwrap_or(u32::MAX).max(1));
        let size = |size: Option<Bytes>| size.and_then(|s| figure(s.as_kib().0));
        let stalled = Seen::stalled(vm).and_then(|s| figure(s.0 / 1000));
        Self(size(vm.actual.map(|a| a.what)), size(Seen::used(vm)), size(Some(vm.aim)), size(vm.floor()), stalled)
    }
}

fn push<T>(looks: &mut VecDeque<T>, look: T) {
    if looks.len() == LOOKS {
        looks.pop_front();
    }
    looks.push_back(look);
}

#[cfg(test)]
mod tests {
    use super::*;
    use ballast_planner::{Facts, Input, VmSettings};

    #[test]
    fn it_holds_five_minutes_and_only_of_vms_that_are_there() {
        assert_eq!(size_of::<Look>(), 20);
        let (mut past, mut planner) = (Past::default(), Planner::new());
        let mib = Bytes::mib(512);
        let facts = Facts { max: mib, actual: mib, running: true, balloon: true, deflate_on_oom: None };
        past.look(Micros::ZERO, &planner);
        for name in ["a", "b"] {
            let (vm, settings) = (VmName::from(name), VmSettings::default());
            planner.handle(Micros::ZERO, Input::Vm { vm, facts: facts.clone(), settings });
        }
        past.look(Micros::secs(2), &planner);
        assert_eq!((past.times.len(), past.vms[&VmName::from("a")].len()), (2, 1));
        planner.handle(Micros::secs(3), Input::VmGone { vm: VmName::from("b") });
        for n in 2..400 {
            past.look(Micros::secs(2 * n), &planner);
        }
        assert_eq!((past.times.len(), past.vms.len(), past.vms[&VmName::from("a")].len()), (LOOKS, 1, LOOKS));
        let json = serde_json::to_string(&past).unwrap();
        assert!(json.contains("[524288,null,524288,null,null]"), "{json}");
    }
}
