//! `fixed`: every VM at the size that its operator wrote down, `fixed-size`; without one it keeps all it may have.
//!
//! What a cloud's flavours or a careful administrator do. It looks at nothing but the size. A balloon that let go by
//! itself is told its size again at the next round, because that is what "kept at" means; the pace is ours, the
//! published practice has none.

use super::fleet::{FleetLaw, Move, View};
use ballast_protocol::Micros;
use serde::{Deserialize, Serialize};

/// The law.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fixed;

impl FleetLaw for Fixed {
    fn round(&mut self, view: &View, _: Micros) -> Vec<Move> {
        let order = |vm: &super::fleet::Seen| {
            let keep = vm.fixed_size.unwrap_or(vm.max).clamp(vm.min.min(vm.max), vm.max);
            let why = match vm.fixed_size {
                Some(size) => format!("its fixed-size is {size}"),
                None => "it has no fixed-size: it keeps all it may have".to_owned(),
            };
            (keep != vm.kept || keep != vm.target).then(|| Move { vm: vm.name.clone(), keep, why })
        };
        view.vms.iter().filter_map(order).collect()
    }

    fn pause(&self) -> Micros {
        Micros::secs(5)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fleet::bench::*;
    use super::*;
    use ballast_protocol::Bytes;

    #[test]
    fn each_vm_at_its_size() {
        // (kept, fixed-size, expected)
        let cases = [
            (1000, Some(400), Some(400)),
            (300, Some(400), Some(400)),
            (400, Some(400), None),
            // Below the minimum of 100, above the maximum of 1000.
            (1000, Some(50), Some(100)),
            (400, Some(2000), Some(1000)),
            (400, None, Some(1000)),
            (1000, None, None),
        ];
        for (kept, size, expected) in cases {
            let mut vm = seen("a", kept, 0);
            vm.fixed_size = size.map(Bytes::mib);
            let view = View { host: None, vms: vec![vm] };
            let expected: Vec<_> = expected.map(|keep| ("a".to_owned(), keep)).into_iter().collect();
            assert_eq!(moves(&mut Fixed, &view, Micros::ZERO), expected, "{kept} {size:?}");
        }
    }

    #[test]
    fn nothing_is_asked_of_the_guest() {
        let mut vm = seen("a", 1000, 0);
        (vm.fixed_size, vm.free, vm.available) = (Some(M(500)), None, None);
        let view = View { host: None, vms: vec![vm] };
        assert_eq!(moves(&mut Fixed, &view, Micros::ZERO), expect(&[("a", 500)]));
    }
}
