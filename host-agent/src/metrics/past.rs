//! The last five minutes of every VM, so that a page which is opened because something happened can show it.
//!
//! A look every two seconds, whether somebody reads it or not: 12 bytes for each VM, 1.8 KiB in all, which a VM's first
//! look allocates at once.

use super::Seen;
use ballast_planner::{Planner, Vm, VmName};
use ballast_protocol::{Bytes, Micros};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

/// From one look to the next.
pub const EVERY: Duration = Duration::from_secs(2);
/// Five minutes of them, what the page shows.
const LOOKS: usize = 150;

/// How many bits of a [`Size`] are its figure; the others say how far that is shifted.
const DIGITS: u32 = 11;

/// A size in KiB, less a thousandth at most: no line on the page shows that. Zero is stored as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "u64")]
struct Size(NonZeroU16);

/// One look: kept, used, told to keep, floor, and milliseconds stalled; `None` where nothing is known. Zero
/// milliseconds are stored as one, and 32 bits hold seven weeks of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Look(Option<Size>, Option<Size>, Option<Size>, Option<Size>, Option<NonZeroU32>);

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
                None => {
                    // Not by pushing, which doubles: a quarter of the memory would be for nothing.
                    let mut looks = VecDeque::with_capacity(LOOKS);
                    looks.push_back(Look::at(vm));
                    self.vms.insert(name.clone(), looks);
                }
            }
        }
    }
}

impl Look {
    fn at(vm: &Vm) -> Self {
        let size = |size: Option<Bytes>| size.map(Size::from);
        let millis = |time: Micros| u32::try_from(time.0 / 1000).unwrap_or(u32::MAX).max(1);
        let stalled = Seen::stalled(vm).map(millis).and_then(NonZeroU32::new);
        Self(size(vm.actual.map(|a| a.what)), size(Seen::used(vm)), size(Some(vm.aim)), size(vm.floor()), stalled)
    }
}

impl From<Bytes> for Size {
    fn from(size: Bytes) -> Self {
        let kib = size.as_kib().0.max(1);
        let shift = (u64::BITS - kib.leading_zeros()).saturating_sub(DIGITS);
        let code = u16::try_from((u64::from(shift) << DIGITS) | (kib >> shift)).ok().and_then(NonZeroU16::new);
        // Only what has more than 42 bits does not fit.
        Self(code.unwrap_or(NonZeroU16::MAX))
    }
}

impl From<Size> for u64 {
    fn from(size: Size) -> Self {
        let code = Self::from(size.0.get());
        (code & ((1 << DIGITS) - 1)) << (code >> DIGITS)
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
        assert_eq!(size_of::<Look>(), 12);
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
        assert_eq!(past.vms[&VmName::from("a")].capacity(), LOOKS, "and not an entry more: there are a thousand VMs");
        let json = serde_json::to_string(&past).unwrap();
        assert!(json.contains("[524288,null,524288,null,null]"), "{json}");
    }

    #[test]
    fn a_size_loses_a_thousandth_at_most() {
        let kib = |size: Bytes| u64::from(Size::from(size));
        for exact in [1, 1023, 2047, 2048, 4 << 20, 2047 << 31] {
            assert_eq!(kib(Bytes(exact << 10)), exact);
        }
        for size in [2049, 123_457, 524_287, 16_777_215, (4 << 30) - 1_u64] {
            let stored = kib(Bytes(size << 10));
            assert!(stored <= size && (size - stored) * 1000 < size, "{size}: {stored}");
        }
        assert_eq!((kib(Bytes::ZERO), kib(Bytes::MAX)), (1, 2047 << 31));
    }
}
