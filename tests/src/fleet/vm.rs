//! One VM of the fleet and the books kept of it: what it asked for, what it was told, and what must not have happened.
//!
//! ```text
//!   agent   --demand--> opened --answer--> answered     unanswered after 2 s: P5
//!   monitor --balloon command--> met                    granted and no command after 2 s: P5
//! ```

use super::guest::Guest;
use super::tally::{Promise, Tally};
use ballast_planner::shortfall_text;
use ballast_protocol::{Answer, Bytes, Demand, Micros, Source, Telemetry, Verdict};
use std::collections::BTreeMap;
use tokio::sync::Notify;

/// A balloon works in units of 1 MiB.
const NEAR: Bytes = Bytes::mib(1);
/// A demand that is neither answered nor met after this is a broken promise: twenty times what the slowest answer of a
/// daemon that lives should take.
const PATIENCE: Micros = Micros::secs(2);

/// A demand that is not over.
#[derive(Debug)]
struct Open {
    demand: Demand,
    written: Micros,
    /// What the VM is to keep when it is met.
    wish: Bytes,
    /// What it had been told to keep when it asked.
    told: Bytes,
    /// When it was first told to keep more than that.
    rose: Option<Micros>,
    answered: bool,
    met: bool,
}

/// A VM.
#[derive(Debug)]
pub(super) struct Vm {
    pub name: String,
    pub guest: Guest,
    /// Its session stands.
    pub stands: bool,
    /// A burst begins: look now.
    pub wake: std::rc::Rc<Notify>,
    /// The next burst is a large allocation that shows before it is touched.
    pub shows: bool,
    open: BTreeMap<u64, Open>,
    demands: u64,
    /// Floors of the last two reports: the daemon may not have seen the last one yet.
    floors: (Option<Bytes>, Option<Bytes>),
    stalls_told: u64,
}

impl Vm {
    pub fn new(name: String, guest: Guest) -> Self {
        Self {
            name,
            guest,
            stands: false,
            wake: std::rc::Rc::default(),
            shows: false,
            open: BTreeMap::new(),
            demands: 0,
            floors: (None, None),
            stalls_told: 0,
        }
    }

    /// A session stands. What was asked in the one before is asked again.
    pub fn greeted(&mut self, now: Micros, tally: &mut Tally) -> Vec<Demand> {
        self.stands = true;
        self.floors = (None, None);
        tally.connected += 1;
        tally.sessions += 1;
        self.open.retain(|_, open| !open.answered);
        tally.repeated += self.open.len() as u64;
        self.open
            .values_mut()
            .map(|open| {
                open.written = now;
                open.demand
            })
            .collect()
    }

    pub fn lost(&mut self, tally: &mut Tally) {
        if std::mem::take(&mut self.stands) {
            tally.connected -= 1;
        }
    }

    pub fn report(&mut self, seq: u64, now: Micros, tally: &mut Tally) -> Telemetry {
        self.guest.advance(now);
        self.floors = (Some(self.guest.floor()), self.floors.0);
        tally.reports += 1;
        tally.stalls += self.guest.stalls() - self.stalls_told;
        self.stalls_told = self.guest.stalls();
        self.guest.report(seq, now, self.open.values().map(|o| o.demand.size).sum())
    }

    /// Whether something moves, so that it reports often.
    pub fn is_busy(&self) -> bool {
        self.guest.is_growing() || self.guest.is_moving() || !self.open.is_empty()
    }

    pub fn ask(&mut self, now: Micros, source: Source, size: Bytes, tally: &mut Tally) -> Demand {
        self.demands += 1;
        let demand = Demand {
            id: self.demands,
            source,
            size,
            sign: now,
            sent: now,
            within: self.guest.lasts(),
            free: self.guest.free(),
            ballooned: Some(self.guest.ballooned()),
        };
        let wish = (self.guest.kept() + size).min(self.guest.max);
        let told = self.guest.target;
        let open = Open { demand, written: now, wish, told, rose: None, answered: false, met: told + NEAR >= wish };
        self.open.insert(demand.id, open);
        tally.demands += 1;
        tally.open += 1;
        demand
    }

    pub fn answered(&mut self, now: Micros, answer: &Answer, tally: &mut Tally) {
        // The first answer counts; one to a demand that is long over is none of ours.
        let Some(open) = self.open.get_mut(&answer.id).filter(|open| !open.answered) else { return };
        open.answered = true;
        tally.open -= 1;
        tally.answers += 1;
        tally.answer_us.push((now - open.written).0);
        tally.late += u64::from(now > open.written + open.demand.within);
        let had = self.guest.max - open.demand.ballooned.unwrap_or_default();
        match answer.verdict {
            Verdict::Granted { size, .. } | Verdict::Partly { size, .. } => {
                open.wish = open.wish.min(had + size);
                if let (false, Some(rose)) = (open.met, open.rose) {
                    open.met = self.guest.target + NEAR >= open.wish;
                    if open.met {
                        tally.order_us.push((rose - open.written).0);
                        tally.whole_us.push((now - open.written).0);
                    }
                }
                open.met |= open.told + NEAR >= open.wish;
            }
            Verdict::Refused(why) => {
                *tally.refused.entry(shortfall_text(why)).or_default() += 1;
                open.met = true;
            }
        }
        self.open.retain(|_, open| !(open.answered && open.met));
    }

    /// The hypervisor was told what the guest is to keep.
    pub fn ordered(&mut self, now: Micros, keep: Bytes, tally: &mut Tally) {
        self.guest.advance(now);
        tally.orders += 1;
        let guest = &self.guest;
        if keep < guest.min {
            tally.breaks(Promise::BelowMinimum, &self.name, format_args!("{keep}, minimum {}", guest.min));
        }
        if keep > guest.max {
            tally.breaks(Promise::AboveMaximum, &self.name, format_args!("{keep}, maximum {}", guest.max));
        }
        if keep < guest.target {
            tally.takings += 1;
            let off = (guest.kept() - guest.target).max(guest.target - guest.kept());
            if off > NEAR {
                let (kept, target) = (guest.kept(), guest.target);
                let what = format_args!("told {keep} at {kept} on the way to {target}");
                tally.breaks(Promise::TakenWhileMoving, &self.name, what);
            }
            if let (Some(last), Some(before)) = self.floors
                && keep + NEAR < last.min(before)
            {
                tally.breaks(Promise::BelowFloor, &self.name, format_args!("{keep}, floors {before} and {last}"));
            }
        }
        for open in self.open.values_mut().filter(|open| !open.met && keep > open.told) {
            let rose = *open.rose.get_or_insert(now);
            if keep + NEAR >= open.wish {
                open.met = true;
                tally.order_us.push((rose - open.written).0);
                tally.whole_us.push((now - open.written).0);
            }
        }
        self.open.retain(|_, open| !(open.answered && open.met));
        self.guest.target = keep;
    }

    /// Demands that waited for too long. Each is told once.
    pub fn audit(&mut self, now: Micros, tally: &mut Tally) {
        if !self.stands {
            return;
        }
        let name = &self.name;
        self.open.retain(|id, open| {
            if now < open.written + PATIENCE {
                return true;
            }
            if !open.answered {
                tally.open -= 1;
                tally.breaks(Promise::Unanswered, name, format_args!("demand {id} of {}", open.demand.size));
            } else if !open.met {
                tally.breaks(Promise::NotOrdered, name, format_args!("demand {id}, granted up to {}", open.wish));
            }
            false
        });
    }
}
