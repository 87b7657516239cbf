//! What is on the screen: what the daemon last said, what was before, and where the operator is.

use super::feed::{News, Wish};
use super::hold::Form;
use super::order::Column;
use crate::control::{Explained, Status};
use ballast_planner::{VmName, VmStatus};
use ballast_protocol::{Bytes, Micros};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Samples remembered, one a second: five minutes.
const REMEMBERED: usize = 300;

/// One VM, with what only two looks at it can tell.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub vm: VmStatus,
    /// The part of the time between two looks in which some task in the guest waited for memory, in percent; `None`: the
    /// guest does not say, or was seen once.
    pub pressure: Option<u64>,
}

impl Row {
    /// What its programs use: what it keeps less what is available.
    pub fn used(&self) -> Option<Bytes> {
        Some(self.vm.actual? - self.vm.available?)
    }
}

/// Where the operator is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Place {
    /// Among all VMs.
    #[default]
    List,
    /// Typing what names must contain.
    Filter,
    /// Reading about one VM, so many lines down.
    Explain(u16),
    /// Typing how a VM is to be held.
    Hold(Form),
}

/// Everything that is drawn.
#[derive(Debug, Default)]
pub(super) struct App {
    pub status: Option<Status>,
    pub rows: Vec<Row>,
    /// Since when the daemon does not answer, and why.
    pub lost: Option<(Duration, String)>,
    pub explained: Option<Result<Explained, String>>,
    /// What came of the last hold; shown until the next key.
    pub said: Option<Result<String, String>>,
    pub column: Column,
    pub reversed: bool,
    pub filter: String,
    pub place: Place,
    /// By name, so that it stays when the order changes.
    pub selected: Option<VmName>,
    /// The first row on the screen.
    pub offset: usize,
    /// Lines that the list has on the screen, for whole pages.
    pub page: usize,
    /// What all VMs kept, MiB, oldest first.
    pub kept: VecDeque<u64>,
    /// What each VM kept.
    pub kept_by: BTreeMap<VmName, VecDeque<u64>>,
    stalled: BTreeMap<VmName, (Duration, Micros)>,
    over: bool,
}

impl App {
    pub fn learn(&mut self, at: Duration, news: News) {
        match news {
            News::Stop => self.over = true,
            News::Explained(explained) => {
                if matches!(self.place, Place::Explain(_)) {
                    self.explained = Some(explained.map(|e| *e));
                }
            }
            News::Held(said) => self.said = Some(said),
            News::Status(Err(why)) => {
                let since = self.lost.take().map_or(at, |(since, _)| since);
                self.lost = Some((since, why));
            }
            News::Status(Ok(status)) => {
                self.lost = None;
                self.look(at, *status);
            }
        }
    }

    fn look(&mut self, at: Duration, status: Status) {
        let kept = |vm: &VmStatus| vm.actual.unwrap_or(vm.target).as_mib();
        remember(&mut self.kept, status.vms.iter().map(kept).sum());
        let before = std::mem::take(&mut self.stalled);
        let mut histories = std::mem::take(&mut self.kept_by);
        self.rows.clear();
        for vm in &status.vms {
            let mut history = histories.remove(&vm.name).unwrap_or_default();
            remember(&mut history, kept(vm));
            self.kept_by.insert(vm.name.clone(), history);
            let stalled = vm.pressure;
            let pressure = stalled.zip(before.get(&vm.name)).map(|(now, (then, was))| {
                let elapsed = at.saturating_sub(*then).as_micros().max(1);
                u64::try_from(u128::from((now - *was).0) * 100 / elapsed).unwrap_or(u64::MAX).min(100)
            });
            if let Some(stalled) = stalled {
                self.stalled.insert(vm.name.clone(), (at, stalled));
            }
            self.rows.push(Row { vm: vm.clone(), pressure });
        }
        self.status = Some(status);
        self.sort();
    }

    pub fn sort(&mut self) {
        let (column, reversed) = (self.column, self.reversed);
        self.rows.sort_by(|a, b| {
            let by = column.compare(a, b);
            if reversed { by.reverse() } else { by }
        });
    }

    /// The VMs that are listed, in order.
    pub fn listed(&self) -> Vec<&Row> {
        self.rows.iter().filter(|row| row.vm.name.0.contains(&self.filter)).collect()
    }

    /// Where the chosen one stands among those listed; the first one when it is not among them.
    pub fn position(&self) -> Option<usize> {
        let listed = self.listed();
        let chosen = self.selected.as_ref().and_then(|name| listed.iter().position(|row| row.vm.name == *name));
        chosen.or((!listed.is_empty()).then_some(0))
    }

    /// The chosen VM.
    pub fn chosen(&self) -> Option<VmName> {
        let listed = self.listed();
        self.position().and_then(|at| listed.get(at)).map(|row| row.vm.name.clone())
    }

    /// Chooses another, so many further down; stops at both ends.
    pub fn step(&mut self, by: isize) {
        let listed = self.listed();
        let Some(last) = listed.len().checked_sub(1) else { return };
        let at = self.position().unwrap_or(0).saturating_add_signed(by).min(last);
        self.selected = listed.get(at).map(|row| row.vm.name.clone());
    }

    /// Opens or closes the explanation.
    pub fn explain(&mut self, vm: Option<VmName>) -> Wish {
        self.explained = None;
        self.place = if vm.is_some() { Place::Explain(0) } else { Place::List };
        if vm.is_some() {
            self.selected.clone_from(&vm);
        }
        Wish::Explain(vm)
    }

    pub const fn end(&mut self) {
        self.over = true;
    }

    pub const fn is_over(&self) -> bool {
        self.over
    }
}

fn remember(history: &mut VecDeque<u64>, value: u64) {
    if history.len() == REMEMBERED {
        history.pop_front();
    }
    history.push_back(value);
}
