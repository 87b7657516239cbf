//! Virtual time: a planner, simulated guests, and a judge who watches every order.
//!
//! The judge keeps its own books from what was handed to the planner and from the guests' true state, so that a
//! promise is not checked with the planner's own idea of it.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod guest;
pub mod oracle;

use ballast_planner::{
    Action, Facts, Hold, HostMemory, Input, LawSettings, Leftover, Mode, Notice, Planner, Reason, Reservation, SILENCE,
    VmName,
};
use ballast_protocol::{Bytes, GuestMessage, Micros, Shortfall, Source, Telemetry, Verdict};
use guest::{Dice, Guest, TICK, Temper};
use oracle::Oracle;
use std::collections::BTreeMap;

const NEAR: Bytes = Bytes::mib(1);
/// A balloon moves less than this in the tick between a figure and its being heard.
const LAG: Bytes = Bytes::mib(16);

/// Two figures of one balloon that differ by less are the same: after a reset, an old one and the guest's.
const ALIKE: Bytes = Bytes::mib(4);

/// What the judge knows of one VM.
#[derive(Debug, Default)]
struct Book {
    heard: Option<Micros>,
    report: Option<(Micros, Telemetry)>,
    /// What is promised to applications, by demand.
    leases: BTreeMap<u64, Bytes>,
    /// The most that they can be taken for: who lies about its size may be owed less than it is given.
    leased: BTreeMap<u64, Bytes>,
    /// Demand, what the VM kept then, what it would keep.
    asked: Option<(u64, Bytes, Bytes)>,
    /// Issue or resumption, number, what it kept or was to keep before, target.
    outstanding: Option<(Micros, u64, Bytes, Bytes)>,
    settled: Micros,
    /// The last order's number, and what the VM kept or was to keep before it.
    last: (u64, Bytes),
    /// What stands if the hypervisor refuses the orders that it has not answered.
    stands: Option<Bytes>,
    /// The last order's target.
    told: Bytes,
    /// What it kept when the planner last heard of its balloon.
    kept: Bytes,
    /// What the hypervisor says of the balloon is the old kernel's.
    is_old: bool,
    /// When its balloon's driver last said something, by its own word.
    statistics: Option<Micros>,
    lost: bool,
}

pub struct World {
    pub now: Micros,
    pub planner: Planner,
    pub guests: Vec<Guest>,
    pub actions: Vec<(Micros, Action)>,
    pub takings: u64,
    pub givings: u64,
    /// What the planner was told, wakes included.
    pub events: u64,
    /// The host tells its memory each second: so much is not the guests' and not free.
    pub others: Option<Bytes>,
    /// What all may have together.
    budget: Option<Bytes>,
    /// Another law than ours rules: it knows no floor and no trust, and may order anew at any time.
    ruled: bool,
    /// Who predicts, and for how many of the guests.
    pub oracle: Option<(Oracle, usize)>,
    books: BTreeMap<VmName, Book>,
}

impl World {
    pub fn new(guests: Vec<Guest>) -> Self {
        let mut world = Self {
            now: Micros::secs(1),
            planner: Planner::new(),
            books: guests.iter().map(|g| (g.name.clone(), Book::default())).collect(),
            guests,
            actions: Vec::new(),
            takings: 0,
            givings: 0,
            events: 0,
            others: None,
            budget: None,
            ruled: false,
            oracle: None,
        };
        world.find_all();
        world
    }

    /// The same fleet under another law than ours, on a host that has `budget`.
    pub fn under(law: LawSettings, budget: Bytes, guests: Vec<Guest>) -> Self {
        let mut world = Self::new(guests);
        world.ruled = true;
        world.planner = Planner::new();
        world.actions.clear();
        world.planner.handle(world.now, Input::Pool { budget: Some(budget), reserve: None });
        world.planner.handle(world.now, Input::Law { law });
        for guest in &mut world.guests {
            guest.ruled = true;
        }
        world.find_all();
        world
    }

    /// The fleet on a host that has `budget`.
    pub fn within(budget: Bytes, guests: Vec<Guest>) -> Self {
        let mut world = Self::new(guests);
        world.budget = Some(budget);
        world.planner = Planner::new();
        world.actions.clear();
        world.planner.handle(world.now, Input::Pool { budget: Some(budget), reserve: None });
        for guest in &mut world.guests {
            guest.planner_restarted();
        }
        world.books = world.guests.iter().map(|g| (g.name.clone(), Book::default())).collect();
        world.find_all();
        world
    }

    /// The fleet on a host that has `total` and no budget: what is free is read each second.
    pub fn on_host(total: Bytes, others: Bytes, guests: Vec<Guest>) -> Self {
        let mut world = Self::within(total, guests);
        world.others = Some(others);
        world.planner.handle(world.now, Input::Pool { budget: None, reserve: None });
        world.tell_host();
        world
    }

    fn tell_host(&mut self) {
        let (Some(others), Some(total)) = (self.others, self.budget) else { return };
        let kept: Bytes = self.guests.iter().map(Guest::kept).sum();
        let available = total - others - kept;
        self.say(Input::Host(HostMemory { total, available, psi_some_avg10: None }));
    }

    /// What no guest says.
    pub fn say(&mut self, input: Input) {
        self.events += 1;
        self.planner.handle(self.now, input);
        self.carry_out(None);
    }

    /// Somebody with the right to do so does something.
    pub fn operate(&mut self, dice: &mut Dice) {
        let size = Bytes::mib(dice.roll(1_200));
        let vm = self.guests[dice.roll(self.guests.len() as u64) as usize].name.clone();
        let until = self.now + Micros::secs(1 + dice.roll(20));
        let hold = |until| Hold { size, until, by: "somebody".into(), reason: "why not".into() };
        let name = VmName(format!("new{}", dice.roll(3)));
        let input = match dice.roll(8) {
            0 => Input::Hold { vm, hold: Some(hold(None)) },
            1 | 2 => Input::Hold { vm, hold: Some(hold(Some(until))) },
            3 => Input::Hold { vm, hold: None },
            4 => Input::Reserve(Reservation { name, size, until }),
            5 => Input::Unreserve { name },
            6 => Input::Reclaim { size },
            _ => return,
        };
        self.say(input);
    }

    /// A fleet of `count` guests whose seeds do not depend on one another.
    pub fn fleet(seed: u64, count: usize, temper: Temper) -> Self {
        let guest = |i: usize| {
            let mut guest = Guest::new(&format!("vm{i}"), seed + 1000 * i as u64, temper, size(i));
            // Every third one reports free pages to the host.
            guest.reporting = i % 3 == 2;
            guest
        };
        Self::new((0..count).map(guest).collect())
    }

    /// The same, with forecasts that are followed.
    pub fn foretold(seed: u64, count: usize, temper: Temper, oracle: Oracle) -> Self {
        let mut guests = Self::fleet(seed, count, temper).guests;
        for guest in &mut guests {
            guest.settings.predictor = Mode::On;
        }
        let mut world = Self::new(guests);
        world.oracle = Some((oracle, count));
        world
    }

    fn find_all(&mut self) {
        for i in 0..self.guests.len() {
            let facts = self.guests[i].facts();
            self.hand(i, facts);
        }
    }

    /// The host agent was killed; the next one knows what the hypervisor says and nothing else.
    pub fn restart_planner(&mut self) {
        self.planner = Planner::new();
        for guest in &mut self.guests {
            guest.planner_restarted();
            self.books.insert(guest.name.clone(), Book::default());
        }
        self.find_all();
    }

    pub fn run(&mut self, time: Micros) {
        let end = self.now + time;
        while self.now < end {
            self.tick();
        }
    }

    pub fn tick(&mut self) {
        assert!(self.actions.len() < 1_000_000, "a planner that never ends");
        self.now += TICK;
        if self.now.0.is_multiple_of(1_000_000) {
            self.tell_host();
        }
        for guest in &self.guests {
            self.books.entry(guest.name.clone()).or_default().expire(self.now, guest);
        }
        for i in 0..self.guests.len() {
            for input in self.guests[i].tick(self.now) {
                self.hand(i, input);
            }
        }
        self.foretell();
        while self.planner.deadline().is_some_and(|due| due <= self.now) {
            self.events += 1;
            self.planner.handle(self.now, Input::Wake);
            assert!(self.planner.deadline().is_none_or(|due| due > self.now), "a wake leaves nothing due");
            self.carry_out(None);
        }
        for guest in &self.guests {
            if let Some(book) = self.books.get_mut(&guest.name) {
                book.read(self.now, guest.kept());
                if !self.ruled {
                    book.judge_patience(self.now, guest);
                }
            }
        }
    }

    /// The oracle speaks once a second, also of guests of which there is nothing to say.
    fn foretell(&mut self) {
        let Some((oracle, count)) = self.oracle.filter(|_| self.now.0.is_multiple_of(1_000_000)) else { return };
        for i in 0..count.min(self.guests.len()) {
            let features = self.planner.features(self.now, &self.guests[i].name);
            for forecast in oracle.says(self.now, i as u64, features.as_ref()) {
                let vm = self.guests[i].name.clone();
                self.hand(i, Input::Forecast { vm, forecast });
            }
        }
        if let (Some(first), true) = (self.guests.first(), count > 0) {
            let features = self.planner.features(self.now, &first.name);
            for forecast in oracle.says(self.now, 0, features.as_ref()) {
                self.hand(0, Input::Forecast { vm: VmName::from("nobody"), forecast });
            }
        }
    }

    /// Hands one input to the planner and carries out what it says.
    pub fn hand(&mut self, i: usize, input: Input) {
        let name = self.guests[i].name.clone();
        let demand = match &input {
            Input::Guest { message: GuestMessage::Demand(demand), .. } => Some(demand.id),
            _ => None,
        };
        if let Some(book) = self.books.get_mut(&name) {
            book.hear(self.now, &input, &self.guests[i]);
        }
        self.events += 1;
        self.planner.handle(self.now, input);
        self.carry_out(demand.map(|id| (name, id)));
    }

    fn carry_out(&mut self, demand: Option<(VmName, u64)>) {
        let mut answers = Vec::new();
        while let Some(action) = self.planner.poll_action() {
            let name = match &action {
                Action::Order { vm, .. }
                | Action::Answer { vm, .. }
                | Action::Reclaim { vm, .. }
                | Action::Watch { vm, .. }
                | Action::Probe { vm, .. }
                | Action::Would { vm, .. }
                | Action::Notice { vm, .. } => vm.clone(),
                Action::Host(_) => {
                    self.actions.push((self.now, action));
                    continue;
                }
            };
            let Some(guest) = self.guests.iter_mut().find(|g| g.name == name) else { panic!("{name} does not exist") };
            let book = self.books.entry(name.clone()).or_default();
            match &action {
                Action::Order { order, target, from, reason, .. } => {
                    let trusted = self.planner.vm(&name).is_some_and(|vm| vm.trust.is_trusted());
                    let taking = book.judge(self.now, guest, target.bytes(), *from, (trusted, self.ruled), &action);
                    self.takings += u64::from(taking);
                    self.givings += u64::from(target.bytes() > *from);
                    let told = target.bytes();
                    let rebooted = *reason == Reason::Rebooted;
                    let before = book.kept.max(*from);
                    book.outstanding = (!rebooted).then_some((self.now, *order, before, told));
                    let undone = std::mem::replace(&mut book.last, (*order, before)).1;
                    book.stands = Some(book.stands.map_or(*from, |stands| stands.max(*from)));
                    book.told = told;
                    if let (Some(budget), true) = (self.budget, told > *from)
                        && !matches!(reason, Reason::Adopted | Reason::Rebooted)
                    {
                        let leased =
                            book.leases.values().chain(book.leased.values()).max().copied().unwrap_or_default();
                        let guaranteed = guest.settings.min.min(guest.max).max(leased);
                        // After a reset the planner hears of it from the guest, and at another moment.
                        let had = book.kept.max(*from).max(guest.kept() + LAG);
                        let had = match (reason, self.planner.vm(&name).map(|vm| vm.leftover)) {
                            // What a taking did not bring can be left where it is.
                            (Reason::Stalled, Some(Leftover::None)) => had.max(undone),
                            (_, Some(Leftover::None) | None) => had,
                            // As long as nobody but an old figure says what it has since its reset, it counts with everything.
                            _ => guest.max,
                        };
                        let mine = book.kept.max(told);
                        let sum: Bytes = self.books.values().map(|b| b.kept.max(b.told)).sum();
                        let affordable = sum <= budget + LAG || mine <= had || told <= guaranteed;
                        assert!(affordable, "P2: {sum} of {budget}: {action:?} at {}", self.now);
                    }
                }
                Action::Answer { demand, verdict, .. } => {
                    answers.push((name.clone(), *demand));
                    if let Some((id, had, keep)) = book.asked.take_if(|(id, ..)| id == demand) {
                        let lies = guest.temper == Temper::Malicious;
                        if lies {
                            book.leased.insert(id, book.told);
                        }
                        let alone = self.planner.vm(&name).is_some_and(|vm| vm.leftover != Leftover::None);
                        match verdict {
                            // Since its reset only the guest says what it has: who lies then is owed what it was granted.
                            Verdict::Granted { size, .. } | Verdict::Partly { size, .. } if lies && alone => {
                                book.leases.insert(id, *size);
                            }
                            Verdict::Granted { size, .. } | Verdict::Partly { size, .. } if *size > Bytes::ZERO => {
                                book.leases.insert(id, keep.min(had + *size));
                            }
                            Verdict::Refused(Shortfall::NoBalloon) => {}
                            // What it has is leased, unless it is on its way out.
                            _ if book.told >= had && !self.ruled && !lies => {
                                book.leases.insert(id, had);
                            }
                            _ => {}
                        }
                    }
                }
                Action::Notice { notice: Notice::Stalled { actual, .. }, .. } => {
                    assert!(*actual > Bytes::ZERO || guest.max == Bytes::ZERO);
                }
                _ => {}
            }
            guest.obey(self.now, &action);
            self.actions.push((self.now, action));
        }
        // P5: exactly one answer, at once, and none to anybody who did not ask.
        assert_eq!(answers, demand.into_iter().collect::<Vec<_>>());
    }
}

impl Book {
    fn forget_leases(&mut self) {
        self.leases.clear();
        self.leased.clear();
    }

    fn hear(&mut self, at: Micros, input: &Input, guest: &Guest) {
        match input {
            Input::Balloon { actual, .. } | Input::Vm { facts: Facts { actual, .. }, .. } => {
                // Said a tick ago at most. What is further off is the old kernel's figure, after a reset.
                let gap = (*actual - guest.kept()).max(guest.kept() - *actual);
                self.is_old = gap > LAG;
                self.kept = if self.is_old { guest.kept() } else { *actual };
            }
            Input::Rebooted { .. } => (self.kept, self.is_old) = (guest.max, true),
            _ => {}
        }
        match input {
            Input::Guest { message, .. } => {
                match message {
                    GuestMessage::Hello(_) => {
                        (self.report, self.heard) = (None, Some(at));
                        self.forget_leases();
                    }
                    GuestMessage::Telemetry(t) => {
                        self.report = Some((at, t.clone()));
                        // Nobody else says that the balloon holds something again.
                        if self.is_old && guest.temper != Temper::Malicious {
                            self.kept = self.kept.min(guest.kept());
                            self.read(at, guest.kept());
                        }
                    }
                    GuestMessage::Demand(d) if d.source == Source::Reserve && self.heard.is_some() => {
                        // What it kept when it asked; who is not believed is owed no more than the hypervisor saw.
                        let said = guest.max - d.ballooned.unwrap_or_default();
                        let had = if guest.temper == Temper::Malicious { said.min(self.kept) } else { said };
                        // No more is promised than the maximum of that moment.
                        let most = guest.max.min(guest.settings.max);
                        self.asked = Some((d.id, had.min(most), (had + d.size).min(most)));
                    }
                    GuestMessage::Withdraw { id } => {
                        self.leases.remove(id);
                        self.leased.remove(id);
                    }
                    _ => {}
                }
                if self.heard.is_some() {
                    self.heard = Some(at);
                }
            }
            Input::Statistics { statistics, .. } => self.statistics = Some(at - statistics.age),
            Input::AgentLost { .. } => {
                (self.heard, self.report) = (None, None);
                self.forget_leases();
            }
            Input::Rebooted { .. } => {
                *self = Self { settled: at, lost: self.lost, kept: self.kept, is_old: true, ..Self::default() };
            }
            Input::HypervisorLost { .. } => (self.lost, self.outstanding) = (true, None),
            Input::Vm { .. } => {
                self.lost = false;
                let most = guest.max.min(guest.settings.max);
                for lease in self.leases.values_mut().chain(self.leased.values_mut()) {
                    *lease = (*lease).min(most);
                }
                self.read(at, guest.kept());
            }
            // The truth, whatever the hypervisor reports after a reset.
            Input::Balloon { .. } => self.read(at, guest.kept()),
            Input::Ordered { order, error, .. } if self.last.0 == *order => {
                let stands = self.stands.take();
                if error.is_some() {
                    // Also when the balloon went there by itself meanwhile: it has not been told to. An order that was taken and has a
                    // piece refused may have come anywhere.
                    self.told = stands.map_or(self.told, |stands| stands.max(self.kept));
                    if self.outstanding.take_if(|o| o.1 == *order).is_some() {
                        self.settled = at;
                    }
                }
            }
            Input::Running { running: true, .. } => {
                if let Some(o) = &mut self.outstanding {
                    o.0 = at;
                }
                self.heard = self.heard.map(|_| at);
            }
            _ => {}
        }
    }

    fn read(&mut self, at: Micros, actual: Bytes) {
        if let Some((_, _, from, target)) = self.outstanding {
            let done = if target < from { actual <= target + ALIKE } else { actual + NEAR >= target };
            if done {
                (self.outstanding, self.settled) = (None, at);
            }
        }
    }

    /// Judges an order; returns whether it takes.
    fn judge(
        &self,
        at: Micros,
        guest: &Guest,
        target: Bytes,
        from: Bytes,
        (trusted, ruled): (bool, bool),
        action: &Action,
    ) -> bool {
        let max = guest.max.min(guest.settings.max);
        assert!(target >= guest.settings.min.min(max), "P1, minimum: {action:?} at {at}, {:?}", guest.settings);
        assert!(target <= guest.max, "above everything: {action:?}");
        let leased = self.leases.values().max().copied().unwrap_or_default().min(max);
        assert!(target >= leased, "P1, lease of {leased}: {action:?} at {at}");
        if target >= from {
            return false;
        }
        if ruled {
            assert!(guest.running && !self.lost && !guest.settings.exempt, "hands off: {action:?} at {at}");
            let said = self.statistics.expect("P3: nothing is taken from a guest that never said anything");
            assert!(said + Micros::secs(15) >= at, "P3, statistics of {said}: {action:?} at {at}");
            return true;
        }
        assert!(trusted, "P3, distrusted: {action:?} at {at}");
        assert!(guest.running, "P3, paused: {action:?} at {at}");
        assert!(!self.lost, "P3, without its hypervisor: {action:?} at {at}");
        assert!(!guest.settings.exempt, "exempt: {action:?} at {at}");
        // What a liar is still to be given, and says it has, is no order under way.
        let lies = guest.temper == Temper::Malicious;
        let moves = self.outstanding.is_some_and(|(_, _, from, target)| target < from || !lies);
        assert!(!moves, "P4: {action:?} at {at}, {:?}", self.outstanding);
        if let Some(heard) = self.heard {
            assert!(at < heard + SILENCE, "P3, agent: {action:?} at {at}");
            let Some((made, report)) = &self.report else { panic!("P3, without a report: {action:?} at {at}") };
            assert!(*made + Micros::millis(2500) >= at, "P3, stale: {action:?} at {at}, report of {made}");
            assert!(*made >= self.settled, "P3, from before the balloon settled: {action:?} at {at}");
            let floor = guest.max - report.ballooned.unwrap_or_default() - report.giveable;
            assert!(target >= floor, "P1, floor {floor}: {action:?} at {at}");
        }
        true
    }

    /// Nobody waits longer for a guest that does not take what it is given.
    fn expire(&mut self, at: Micros, guest: &Guest) {
        if self.outstanding.is_some_and(|(since, _, from, target)| target >= from && at >= since + Micros::secs(4))
            && guest.running
        {
            (self.outstanding, self.settled) = (None, at);
        }
    }

    /// P4: what stalls is undone in time.
    fn judge_patience(&self, at: Micros, guest: &Guest) {
        // After a reset the size is what the guest says: who lies about it is not owed this, and the old kernel's figure is taken
        // for the new one's where they are that close.
        if let Some((since, _, from, target)) = self.outstanding
            && target < from
            && guest.kept() > target + ALIKE
            && guest.running
            && guest.temper != Temper::Malicious
        {
            let patience = Micros::secs(4) + Micros((from + LAG - target).share(1_000_000, 15 << 20).0);
            assert!(at <= since + patience + TICK, "P4: {} stalls since {since}, it is {at}", guest.name);
        }
    }
}

fn size(i: usize) -> Bytes {
    Bytes::mib([512, 1024, 256, 512][i % 4])
}
