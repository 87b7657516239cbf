//! From a journal to rows: the planner is told again what it was told then, and asked in between.
//!
//! ```text
//!   inputs      ─┬──────┬─┬─────────┬────┬──────────┬─
//!   horizon      ^ features: all before, nothing after │
//!                └───────────── HORIZON ───────────────^ outcome
//! ```
//! A horizon begins with each order of the sweep, and each second after its release as long as it ends before the next order:
//! the guest as it is when it loses or gets memory, and the guest that has been left at its size, by then with what it has asked for.

use super::HORIZON_S;
use super::sweep::{HELD_S, SWEPT};
use crate::lab::results::ArmRun;
use anyhow::{Result, bail};
use ballast_host::journal::{self, FORMAT, Record};
use ballast_planner::{Features, HORIZON, Input, Planner, VmName};
use ballast_predictor::Row;
use ballast_protocol::{Bytes, GuestMessage, Micros};
use std::path::Path;

/// Between two horizons of one order, seconds.
const EVERY_S: f64 = 1.0;

/// A guest is left so much for so long.
#[derive(Clone, Debug, PartialEq)]
pub struct Horizon {
    vm: VmName,
    /// Its beginning, by the daemon's clock or a little before.
    from: Micros,
    /// What it is ordered to keep; `None`: what it keeps at that moment.
    size: Option<Bytes>,
}

/// What a journal tells of horizons.
#[derive(Debug, Default)]
pub struct Found {
    /// The horizons that are known from beginning to end.
    pub rows: Vec<Row>,
    /// Those of whose beginning the planner knew too little.
    pub unknown: usize,
    /// Those whose outcome the planner does not know.
    pub untold: usize,
    /// The guest's kernel, by its agent.
    pub kernel: Option<String>,
}

/// All horizons of an arm that no order interrupts. They end with the last phase: what a guest does after an arm broke is not
/// its work.
#[must_use]
pub fn horizons(run: &ArmRun) -> Vec<Horizon> {
    let Some(clock) = run.clock_s else { return Vec::new() };
    let end = run.phases.iter().map(|p| p.began_s + p.took_s).fold(0.0, f64::max);
    let mut all = Vec::new();
    let swept: Vec<_> = run.orders.iter().filter(|o| o.reason.starts_with(SWEPT)).collect();
    for (place, order) in swept.iter().enumerate() {
        let next = swept[place + 1..].iter().find(|o| o.guest == order.guest);
        let until = next.map_or(end, |o| o.t.min(end));
        // Then from its release on.
        let later = (0..).map(|n| order.t + HELD_S + EVERY_S * f64::from(n));
        let begins = std::iter::once((order.t, Some(Bytes::mib(order.to_mib as u64)))).chain(later.map(|t| (t, None)));
        all.extend(begins.take_while(|(t, _)| t + HORIZON_S <= until).map(|(t, size)| Horizon {
            vm: VmName(order.guest.clone()),
            from: Micros(((t - clock).max(0.0) * 1e6) as u64),
            size,
        }));
    }
    all
}

/// Replays a journal and asks for features at the beginning and the outcome at the end of each horizon.
///
/// # Errors
/// The journal cannot be read, or is of another format.
pub fn of(path: &Path, run: &str, workload: &str, horizons: &[Horizon]) -> Result<Found> {
    let mut records = journal::read(path)?;
    let mut planner = match records.next().transpose()? {
        Some(Record::Start { format: FORMAT, planner, .. }) => planner,
        Some(Record::Start { format, .. }) => bail!("{}: format {format}, not {FORMAT}", path.display()),
        _ => bail!("{}: it does not begin with a start record", path.display()),
    };
    let mut questions = Vec::with_capacity(2 * horizons.len());
    for (place, horizon) in horizons.iter().enumerate() {
        questions.push(Question { at: horizon.from, begins: true, place });
        questions.push(Question { at: horizon.from + HORIZON, begins: false, place });
    }
    questions.sort_unstable();
    let mut questions = questions.into_iter().peekable();
    let mut asker = Asker { run, workload, horizons, known: vec![None; horizons.len()], found: Found::default() };
    let mut last = Micros::ZERO;
    for record in records {
        let Record::Input { at, input } = record? else { continue };
        // What happened at the same microsecond is known then; what came later is not.
        while let Some(question) = questions.next_if(|q| q.at < at) {
            asker.ask(&planner, question);
        }
        if let Input::Guest { message: GuestMessage::Hello(hello), .. } = &input {
            asker.found.kernel.get_or_insert_with(|| hello.kernel.as_str().to_owned());
        }
        planner.handle(at, input);
        while planner.poll_action().is_some() {}
        last = at;
    }
    for question in questions {
        if question.at <= last {
            asker.ask(&planner, question);
        } else {
            asker.in_vain(question);
        }
    }
    Ok(asker.found)
}

/// What is to be asked when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Question {
    at: Micros,
    begins: bool,
    place: usize,
}

struct Asker<'a> {
    run: &'a str,
    workload: &'a str,
    horizons: &'a [Horizon],
    /// The features of horizons that have begun and not ended.
    known: Vec<Option<Features>>,
    found: Found,
}

impl Asker<'_> {
    fn ask(&mut self, planner: &Planner, Question { at, begins, place }: Question) {
        let horizon = &self.horizons[place];
        if begins {
            // One whose release is still on its way is neither helped nor left alone.
            let held = horizon.size.is_none() && planner.vm(&horizon.vm).is_some_and(|vm| vm.held(at).is_some());
            self.known[place] = planner.features(at, &horizon.vm).filter(|_| !held);
            self.found.unknown += usize::from(self.known[place].is_none());
            return;
        }
        let Some(features) = self.known[place].take() else { return };
        let Some(outcome) = planner.outcome(at, &horizon.vm, horizon.from) else {
            self.found.untold += 1;
            return;
        };
        // What chance wished for, where the guard or the guest's own memory will stop it above that. Not what it came to: a guest
        // that was helped at once came to the size that cured it, and not to the one that hurt.
        let size = horizon.size.map_or(features.kept, |size| size.max(features.floor));
        self.found.rows.push(Row {
            run: self.run.to_owned(),
            workload: self.workload.to_owned(),
            guest: horizon.vm.0.clone(),
            at_s: horizon.from.secs_f64(),
            window: features.window.to_vec(),
            candidate: features.candidate(size).to_vec(),
            size_mib: u32::try_from(size.as_mib()).unwrap_or(u32::MAX),
            loss: outcome.loss,
            pressure: outcome.pressure,
        });
    }

    /// The journal has ended before it.
    fn in_vain(&mut self, Question { begins, place, .. }: Question) {
        if begins {
            self.found.unknown += 1;
        } else if self.known[place].take().is_some() {
            self.found.untold += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::results::{OrderSeen, PhaseRun, Totals};
    use crate::lab::work::Outcome;
    use ballast_host::journal::Journal;
    use ballast_planner::{Facts, VmSettings};
    use ballast_protocol::{BalloonFeatures, Capabilities, Counters, Hello, Limited, Pressure, Telemetry, Watermarks};
    use std::io::Write;

    const MAX: Bytes = Bytes::mib(512);
    const CLOCK: f64 = 3.0;
    const END: u64 = 100;

    fn order(t: f64, mib: u64) -> OrderSeen {
        OrderSeen { t, guest: "a".into(), from_mib: 512.0, to_mib: mib as f64, reason: "sweep: anything".into() }
    }

    /// The third size hurts.
    fn run() -> ArmRun {
        let orders = [(11.0, 300), (23.5, 200), (36.0, 120), (51.0, 512)];
        let phase = |began_s, took_s| PhaseRun {
            index: 0,
            label: "work".into(),
            guest: "a".into(),
            measured: true,
            began_s,
            took_s,
            outcome: Outcome::default(),
            during: Totals::default(),
        };
        ArmRun {
            orders: orders.map(|(t, mib)| order(t, mib)).to_vec(),
            phases: vec![phase(10.0, 20.0), phase(30.0, 34.5)],
            clock_s: Some(CLOCK),
            ..ArmRun::default()
        }
    }

    fn vm() -> VmName {
        "a".into()
    }

    fn report(seq: u64, at: Micros, kept: Bytes, stalled: Micros) -> GuestMessage {
        let anon = Bytes::mib(110);
        let free = kept - anon - Bytes::mib(9);
        GuestMessage::Telemetry(Telemetry {
            seq,
            at: at + Micros::secs(1_000),
            total: Bytes::mib(469),
            free,
            available: free,
            giveable: free,
            ballooned: Some(MAX - kept),
            anon,
            watermarks: Watermarks { min: Bytes::mib(1), low: Bytes::mib(2), high: Bytes::mib(3) },
            memory_pressure: Some(Pressure { some: stalled, full: stalled }),
            counters: Counters {
                oom_kill: Some(0),
                alloc_stall: Some(0),
                refault_file: Some(7),
                ..Counters::default()
            },
            ..Telemetry::default()
        })
    }

    /// What a daemon would have written of [`run`]: a report each half second. `bends`: what it was told later than that is
    /// something else altogether.
    fn journal(path: &Path, bends: Option<Micros>) {
        let mut planner = Planner::new();
        let mut journal = Journal::begin(path, 1 << 30, &planner, Micros::ZERO).unwrap();
        let mut tell = |planner: &mut Planner, at, input: Input| {
            journal.write(&Record::Input { at, input: input.clone() });
            planner.handle(at, input);
            while let Some(action) = planner.poll_action() {
                journal.write(&Record::Action { at, action });
            }
            journal.flush();
        };
        let facts = Facts { max: MAX, actual: MAX, running: true, balloon: true, deflate_on_oom: Some(true) };
        tell(&mut planner, Micros::ZERO, Input::Mode { dry_run: true });
        tell(&mut planner, Micros::ZERO, Input::Vm { vm: vm(), facts, settings: VmSettings::default() });
        let hello = Hello {
            oldest: 1,
            newest: 1,
            agent: Limited::cut("test"),
            kernel: Limited::cut("6.1.0-test"),
            boot_id: [7; 16],
            now: Micros::secs(1_000),
            capabilities: Capabilities {
                psi: true,
                balloon: Some(BalloonFeatures { deflate_on_oom: true, free_page_reporting: false }),
                ..Capabilities::default()
            },
        };
        tell(&mut planner, Micros::millis(1), Input::Guest { vm: vm(), message: GuestMessage::Hello(hello) });
        let mut stalled = Micros::ZERO;
        for step in 1..2 * (END - CLOCK as u64) {
            let at = Micros::millis(500 * step);
            let now = CLOCK + at.secs_f64();
            let ordered = run().orders.iter().rev().find(|o| o.t <= now).map_or(512.0, |o| o.to_mib);
            let mut kept = Bytes::mib(ordered as u64);
            if kept <= Bytes::mib(120) {
                stalled += Micros::millis(200);
            }
            if bends.is_some_and(|bends| at > bends) {
                (kept, stalled) = (Bytes::mib(130), stalled + Micros::millis(450));
            }
            tell(&mut planner, at, Input::Balloon { vm: vm(), actual: kept });
            tell(&mut planner, at, Input::Guest { vm: vm(), message: report(step, at, kept, stalled) });
        }
    }

    fn found(bends: Option<Micros>) -> Found {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        journal(&path, bends);
        of(&path, "r-1", "work", &horizons(&run())).unwrap()
    }

    #[test]
    fn no_order_and_no_end_falls_into_a_horizon() {
        let run = run();
        let all = horizons(&run);
        // 12.5 s, 12.5 s and 15 s leave room for 3, 3 and 5 beginnings; the last ends with the last phase, after 13.5 s.
        assert_eq!(all.len(), 3 + 3 + 5 + 4, "{all:?}");
        for horizon in &all {
            let (from, to) = (horizon.from.secs_f64() + CLOCK, (horizon.from + HORIZON).secs_f64() + CLOCK);
            assert!(to <= 64.5 + 1e-6, "{horizon:?}");
            // The order it begins with, or one that was before, and none of the others.
            let inside = run.orders.iter().filter(|o| o.t > from + 1e-6 && o.t < to - 1e-6);
            assert_eq!(inside.count(), 0, "{horizon:?}");
            let order = run.orders.iter().rev().find(|o| o.t <= from + 1e-6).unwrap();
            let begins = (from - order.t).abs() < 1e-5;
            assert_eq!(horizon.size.map(Bytes::mib_f64), begins.then_some(order.to_mib), "{horizon:?}");
        }
        let of_two =
            ArmRun { orders: vec![order(11.0, 300), OrderSeen { guest: "b".into(), ..order(15.0, 200) }], ..run };
        assert!(horizons(&of_two).len() > 20, "another guest's orders interrupt nothing");
        assert_eq!(horizons(&ArmRun { clock_s: None, ..of_two }), []);
    }

    #[test]
    fn rows_know_the_state_before_the_size_and_what_came_of_it() {
        let found = found(None);
        assert_eq!(found.kernel.as_deref(), Some("6.1.0-test"));
        assert_eq!((found.rows.len(), found.unknown, found.untold), (15, 0, 0));
        for row in &found.rows {
            let hurt = row.size_mib == 120;
            assert_eq!(row.loss > 0.2, hurt, "{row:?}");
            assert!(row.loss <= 0.5 && row.window.iter().chain(&row.candidate).all(|v| v.is_finite()), "{row:?}");
            assert_eq!((row.run.as_str(), row.workload.as_str(), row.guest.as_str()), ("r-1", "work", "a"));
        }
    }

    /// Not with what the guest came to, helped or not.
    #[test]
    fn a_row_begins_with_what_was_ordered_where_the_guest_can_give_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        journal(&path, None);
        let mut run = run();
        // Its guest reports that it cannot go below 119 MiB, and goes to 300 and 120.
        (run.orders[0].to_mib, run.orders[2].to_mib) = (280.0, 60.0);
        let rows = of(&path, "r-1", "work", &horizons(&run)).unwrap().rows;
        let begins = |t: f64| rows.iter().find(|row| (row.at_s + CLOCK - t).abs() < 1e-5).map(|row| row.size_mib);
        assert_eq!((begins(11.0), begins(36.0)), (Some(280), Some(119)));
    }

    /// Everything after a moment is changed: what was asked before must not change, and of what ends later only the outcome.
    #[test]
    fn no_row_has_seen_the_future() {
        let whole = found(None);
        for horizon in [&whole.rows[0], &whole.rows[4], &whole.rows[9]] {
            let bent = found(Some(Micros((horizon.at_s * 1e6) as u64)));
            let same = bent.rows.iter().find(|row| row.at_s == horizon.at_s).unwrap();
            assert_eq!((&same.window, &same.candidate), (&horizon.window, &horizon.candidate));
            assert_ne!(same.loss, horizon.loss, "what came of it is another thing");
            let before = |found: &Found| {
                let ended = found.rows.iter().filter(|r| r.at_s + HORIZON_S <= horizon.at_s);
                ended.cloned().collect::<Vec<_>>()
            };
            assert_eq!(before(&bent), before(&whole));
        }
    }

    #[test]
    fn horizons_that_the_journal_does_not_tell_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        journal(&path, None);
        // Its daemon was killed at 40 s of its clock, in the middle of a line.
        let text = std::fs::read_to_string(&path).unwrap();
        let cut = text.find("{\"input\":{\"at\":40000000").unwrap();
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(&text.as_bytes()[..cut + 20]).unwrap();
        let found = of(&path, "r-1", "work", &horizons(&run())).unwrap();
        let told = found.rows.len();
        assert!(told > 0 && found.untold > 0 && found.unknown > 0, "{found:?}");
        assert_eq!(told + found.untold + found.unknown, 15);
        std::fs::write(&path, "").unwrap();
        assert!(of(&path, "r-1", "work", &[]).unwrap_err().to_string().contains("start record"));
    }
}
