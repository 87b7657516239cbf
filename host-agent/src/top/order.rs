//! By what the VMs are sorted.

use super::app::Row;
use std::cmp::Ordering;

/// A column to sort by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Column {
    Name,
    #[default]
    Size,
    Use,
    Demand,
    Floor,
    Pressure,
    Service,
    Last,
}

impl Column {
    const ALL: [Self; 8] =
        [Self::Name, Self::Size, Self::Use, Self::Demand, Self::Floor, Self::Pressure, Self::Service, Self::Last];

    /// The next one to the right, and at the end the first again.
    pub fn next(self) -> Self {
        let here = Self::ALL.iter().position(|c| *c == self).unwrap_or(0);
        Self::ALL[(here + 1) % Self::ALL.len()]
    }

    /// Compares two VMs so that what needs attention comes first: the larger, the shorter of service, the newer.
    /// What is not known comes last.
    pub fn compare(self, a: &Row, b: &Row) -> Ordering {
        let (x, y) = (&a.vm, &b.vm);
        let by = match self {
            Self::Name => Ordering::Equal,
            Self::Size => y.actual.cmp(&x.actual),
            Self::Use => b.used().cmp(&a.used()),
            Self::Demand => y.pending.cmp(&x.pending),
            Self::Floor => y.floor.cmp(&x.floor),
            Self::Pressure => b.pressure.cmp(&a.pressure),
            Self::Service => known_first(service(x), service(y)),
            Self::Last => known_first(x.last.as_ref().map(|l| l.0), y.last.as_ref().map(|l| l.0)),
        };
        by.then_with(|| x.name.cmp(&y.name))
    }
}

fn service(vm: &ballast_planner::VmStatus) -> Option<u64> {
    vm.service.and_then(|s| s.percent).map(u64::from)
}

fn known_first<T: Ord>(a: Option<T>, b: Option<T>) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => a.cmp(&b),
        (a, b) => b.is_some().cmp(&a.is_some()),
    }
}
