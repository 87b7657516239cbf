//! A simulated guest with its hypervisor. All its chances come from its own seed, so that what it does depends on
//! nothing but what is done to it: this is what makes promise P6 testable.

use ballast_planner::{Action, Facts, Input, Pace, Statistics, VmName, VmSettings};
use ballast_protocol::{
    BalloonFeatures, Bytes, Capabilities, Counters, Demand, GuestMessage, Hello, Limited, Micros, Pressure, Reclaimed,
    Source, Telemetry, Verdict, Watermarks,
};
use std::collections::VecDeque;

/// The grain of virtual time.
pub const TICK: Micros = Micros::millis(10);
/// What the kernel keeps for itself (43 MiB of 512 in Debian 6.1).
const RESERVED: Bytes = Bytes::mib(43);
/// Low watermark of a 512 MiB guest.
const LOW: Bytes = Bytes::mib(6);
/// Measured under TCG: the balloon's pace in MiB/s.
const INFLATES: u64 = 190;
const DEFLATES: u64 = 1400;

/// SplitMix64 (Steele, Lea, Flood 2014): tiny, seeded, good enough for dice.
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}

/// What may go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Temper {
    /// Spikes, page cache and idleness; nothing fails.
    Sound,
    /// All that plus reboots, pauses, dead agents, stuck balloons, lost and refusing hypervisors.
    Troubled,
    /// It says anything at any time.
    Malicious,
}

#[derive(Clone, Debug)]
pub struct Guest {
    pub name: VmName,
    pub temper: Temper,
    pub settings: VmSettings,
    pub max: Bytes,
    pub balloon: Bytes,
    /// What the hypervisor reports, which survives a reset.
    pub reported: Bytes,
    /// The hypervisor's target.
    pub target: Bytes,
    /// Another law than ours rules: its balloon's statistics are read, whether it has an agent or not.
    pub ruled: bool,
    pub anon: Bytes,
    pub cache: Bytes,
    pub running: bool,
    pub oom_kills: u64,
    pub self_deflations: u64,
    pub verdicts: Vec<(u64, Verdict)>,
    /// Its balloon reports free pages to the host.
    pub reporting: bool,
    dice: Dice,
    goal: Bytes,
    /// MiB a second.
    rate: u64,
    booted: Micros,
    agent: bool,
    greeted: bool,
    stuck: bool,
    reachable: bool,
    refusing: bool,
    /// Orders on their way to the hypervisor: due, number, size, pace.
    orders: VecDeque<(Micros, u64, Bytes, Option<Pace>)>,
    /// What is still to come of a giving: when, of which order, how, up to where.
    pieces: Option<(Micros, u64, Pace, Bytes)>,
    latency: Micros,
    told: Option<Bytes>,
    watch: Micros,
    next_look: Micros,
    next_report: Micros,
    next_statistics: Micros,
    next_demand: Micros,
    next_event: Micros,
    demands: u64,
    seq: u64,
    last_free: Bytes,
    last_anon: Bytes,
    reclaims: VecDeque<(u64, Bytes)>,
    lease: Option<u64>,
    counters: Counters,
}

impl Guest {
    pub fn new(name: &str, seed: u64, temper: Temper, max: Bytes) -> Self {
        let mut dice = Dice(seed);
        let anon = Bytes::mib(40 + dice.roll(40));
        Self {
            name: VmName::from(name),
            temper,
            settings: VmSettings::default(),
            max,
            balloon: Bytes::ZERO,
            reported: max,
            target: max,
            ruled: false,
            anon,
            cache: Bytes::mib(20 + dice.roll(60)),
            running: true,
            oom_kills: 0,
            self_deflations: 0,
            verdicts: Vec::new(),
            reporting: false,
            goal: anon,
            rate: 0,
            booted: Micros::ZERO,
            agent: true,
            greeted: false,
            stuck: false,
            reachable: true,
            refusing: false,
            orders: VecDeque::new(),
            pieces: None,
            latency: Micros::millis(dice.roll(3) * 10),
            told: None,
            watch: Micros::secs(1),
            next_look: Micros::ZERO,
            next_report: Micros::ZERO,
            next_statistics: Micros::ZERO,
            next_demand: Micros::ZERO,
            next_event: Micros::secs(5 + dice.roll(10)),
            demands: 0,
            seq: 0,
            last_free: Bytes::ZERO,
            last_anon: Bytes::ZERO,
            reclaims: VecDeque::new(),
            lease: None,
            counters: Counters {
                oom_kill: Some(0),
                alloc_stall: Some(0),
                refault_file: Some(0),
                ..Counters::default()
            },
            dice,
        }
    }

    pub fn kept(&self) -> Bytes {
        self.max - self.balloon
    }

    pub fn total(&self) -> Bytes {
        self.max - RESERVED
    }

    pub fn free(&self) -> Bytes {
        self.total() - self.balloon - self.anon - self.cache
    }

    /// What it can give without swapping and without killing.
    fn giveable(&self) -> Bytes {
        self.free() + self.cache - Bytes::mib(16) - LOW
    }

    pub fn facts(&self) -> Input {
        Input::Vm {
            vm: self.name.clone(),
            facts: Facts {
                max: self.max,
                actual: self.reported,
                running: self.running,
                balloon: true,
                deflate_on_oom: Some(true),
            },
            settings: self.settings.clone(),
        }
    }

    pub fn hello(&self) -> Input {
        let hello = Hello {
            oldest: 1,
            newest: 1,
            agent: Limited::cut("0.1.0"),
            kernel: Limited::cut("6.1.0"),
            boot_id: [0; 16],
            now: Micros::ZERO,
            capabilities: Capabilities {
                reclaim: true,
                balloon: Some(BalloonFeatures { deflate_on_oom: true, free_page_reporting: self.reporting }),
                ..Capabilities::default()
            },
        };
        self.says(GuestMessage::Hello(hello))
    }

    fn says(&self, message: GuestMessage) -> Input {
        Input::Guest { vm: self.name.clone(), message }
    }

    pub fn report(&self, at: Micros) -> Telemetry {
        Telemetry {
            seq: self.seq,
            at: at - self.booted,
            total: self.total(),
            free: self.free(),
            available: self.free() + self.cache,
            file: self.cache,
            anon: self.anon,
            watermarks: Watermarks { min: LOW, low: LOW, high: LOW },
            giveable: self.giveable(),
            ballooned: Some(self.balloon),
            memory_pressure: Some(Pressure::default()),
            counters: self.counters,
            ..Telemetry::default()
        }
    }

    /// An action of the planner reaches the VM.
    pub fn obey(&mut self, at: Micros, action: &Action) {
        match action {
            Action::Order { order, target, pace, .. } => {
                self.orders.push_back((at + self.latency, *order, target.bytes(), *pace));
            }
            Action::Answer { demand, verdict, .. } => self.verdicts.push((*demand, *verdict)),
            Action::Reclaim { id, size, .. } => self.reclaims.push_back((*id, *size)),
            Action::Watch { every, .. } => {
                self.watch = *every;
                self.next_look = self.next_look.min(at + *every);
            }
            Action::Notice { .. } | Action::Probe { .. } | Action::Would { .. } | Action::Host(_) => {}
        }
    }

    /// A spike of anonymous memory up to `goal`.
    pub fn spike(&mut self, goal: Bytes, rate: u64) {
        (self.goal, self.rate) = (goal, rate);
    }

    /// No events of its own from now on.
    pub fn hold_still(&mut self) {
        self.next_event = Micros::MAX;
    }

    /// Events of its own again.
    pub fn stir(&mut self, at: Micros) {
        self.next_event = at;
    }

    /// The balloon does not move any more.
    pub fn stick(&mut self) {
        self.stuck = true;
    }

    /// One tick; what the planner hears of it.
    pub fn tick(&mut self, at: Micros) -> Vec<Input> {
        let mut heard = Vec::new();
        if at >= self.next_event {
            self.next_event = at + Micros::millis(200 + 10 * self.dice.roll(600));
            self.event(at, &mut heard);
        }
        while self.orders.front().is_some_and(|(due, ..)| *due <= at) {
            let Some((_, order, size, pace)) = self.orders.pop_front() else { break };
            let refused = self.refusing || !self.reachable;
            // What an earlier giving has brought already is not taken back.
            let sent = self.pieces.map_or(Bytes::ZERO, |_| self.target);
            let first = pace.map_or(size, |pace| pace.first.max(sent).min(size));
            self.pieces = pace.filter(|_| !refused).map(|pace| (at + Pace::EVERY, order, pace, size));
            if !refused {
                self.target = first;
            }
            self.told = None;
            self.next_look = self.next_look.min(at + self.watch);
            let error = refused.then(|| "refused".to_owned());
            heard.push(Input::Ordered { vm: self.name.clone(), order, error });
        }
        if let Some((due, order, pace, size)) = self.pieces
            && at >= due
        {
            if self.refusing || !self.reachable {
                self.pieces = None;
                let error = Some("a piece was refused".to_owned());
                heard.push(Input::Ordered { vm: self.name.clone(), order, error });
            } else {
                self.target = pace.next(self.target, size);
                self.pieces = (self.target < size).then_some((at + Pace::EVERY, order, pace, size));
            }
        }
        if self.running {
            self.live();
            if at >= self.booted + Micros::millis(500) {
                self.inflate();
            }
            self.speak(at, &mut heard);
        }
        if self.reachable && at >= self.next_look {
            self.next_look = at + self.watch;
            if self.told != Some(self.reported) {
                self.told = Some(self.reported);
                heard.push(Input::Balloon { vm: self.name.clone(), actual: self.reported });
            }
        }
        if (self.ruled || !self.agent) && self.reachable && at >= self.next_statistics {
            self.next_statistics = at + Micros::secs(if self.ruled { 2 } else { 5 });
            let statistics = Statistics {
                free: Some(self.free()),
                available: Some(self.free() + self.cache),
                total: Some(self.total()),
                swap_in: None,
                age: Micros::ZERO,
            };
            heard.push(Input::Statistics { vm: self.name.clone(), statistics });
        }
        heard
    }

    /// The workload uses memory.
    fn live(&mut self) {
        if self.anon >= self.goal {
            self.anon = self.goal;
            return;
        }
        let mut more = Bytes::mib(self.rate * TICK.0 / 1000).share(1, 1000).min(self.goal - self.anon);
        let from_cache = (more - self.free()).min(self.cache);
        self.cache = self.cache - from_cache;
        if more > self.free() {
            // The last resort, deflate-on-oom.
            let let_go = (more - self.free()).min(self.balloon);
            self.balloon = self.balloon - let_go;
            self.reported = self.kept();
            self.self_deflations += 1;
        }
        if more > self.free() {
            self.oom_kills += 1;
            self.counters.oom_kill = Some(self.oom_kills);
            self.anon = Bytes::mib(40);
            self.goal = self.anon;
            more = Bytes::ZERO;
        }
        self.anon += more;
    }

    fn inflate(&mut self) {
        let wanted = self.max - self.target;
        if self.stuck || wanted == self.balloon {
            return;
        }
        if wanted > self.balloon {
            let pace = Bytes::mib(INFLATES * TICK.0 / 1000).share(1, 1000);
            let more = pace.min(wanted - self.balloon).min(self.free() + self.cache - Bytes::mib(4));
            self.cache = self.cache - (more - self.free());
            self.balloon += more;
        } else {
            let pace = Bytes::mib(DEFLATES * TICK.0 / 1000).share(1, 1000);
            self.balloon = self.balloon - pace.min(self.balloon - wanted);
        }
        self.reported = self.kept();
    }

    /// The agent says what it sees.
    fn speak(&mut self, at: Micros, heard: &mut Vec<Input>) {
        if !self.agent || at < self.booted + Micros::secs(1) {
            return;
        }
        if !self.greeted {
            self.greeted = true;
            (self.seq, self.next_report) = (0, at);
            heard.push(self.hello());
        }
        while let Some((id, size)) = self.reclaims.pop_front() {
            let size = size.min(self.cache - Bytes::mib(8));
            self.cache = self.cache - size;
            heard.push(self.says(GuestMessage::Reclaimed(Reclaimed { id, size, exhausted: size < Bytes::mib(4) })));
        }
        let free = self.free();
        // As the agent has it: what programs use counts, also while they live on page cache.
        let falling = free + Bytes(4096) < self.last_free || self.anon > self.last_anon;
        let slack = free - LOW;
        if falling && slack < Bytes::mib(28) && self.balloon > Bytes::ZERO && at >= self.next_demand {
            self.next_demand = at + TICK;
            heard.push(self.asks(at, Source::Slack, Bytes::mib(64)));
        }
        if at >= self.next_report {
            let busy = free != self.last_free || self.anon != self.last_anon;
            self.next_report = at + if busy { Micros::millis(50) } else { Micros::secs(1) };
            self.seq += 1;
            let report = self.report(at);
            heard.push(self.says(GuestMessage::Telemetry(report)));
        }
        (self.last_free, self.last_anon) = (free, self.anon);
    }

    fn asks(&mut self, at: Micros, source: Source, size: Bytes) -> Input {
        self.demands += 1;
        self.says(GuestMessage::Demand(Demand {
            id: self.demands,
            source,
            size,
            sign: at,
            sent: at,
            within: Micros::millis(150),
            free: self.free(),
            ballooned: Some(self.balloon),
        }))
    }

    fn event(&mut self, at: Micros, heard: &mut Vec<Input>) {
        let vm = self.name.clone();
        let kinds = if self.temper == Temper::Sound { 4 } else { 18 };
        match self.dice.roll(kinds) {
            0 | 1 => {
                let room = (self.total() - Bytes::mib(80)).as_mib().max(50);
                let (goal, rate) = (40 + self.dice.roll(room - 40), 20 + self.dice.roll(220));
                self.spike(Bytes::mib(goal), rate);
            }
            2 => self.spike(Bytes::mib(40), 0),
            3 => self.cache += (self.free() - Bytes::mib(30)).share(self.dice.roll(8), 8),
            4 => {
                if self.agent {
                    heard.push(Input::AgentLost { vm, why: "killed".to_owned() });
                }
                (self.agent, self.greeted) = (!self.agent, false);
            }
            // It falls silent while its session lives, or speaks again.
            5 => self.agent = !self.agent,
            6 => self.reboot(at, heard),
            7 | 8 => {
                self.running = !self.running;
                heard.push(Input::Running { vm, running: self.running });
            }
            9 => self.stuck = !self.stuck,
            10 => {
                self.reachable = !self.reachable;
                self.told = None;
                if self.reachable {
                    heard.push(self.facts());
                } else {
                    heard.push(Input::HypervisorLost { vm });
                }
            }
            11 => self.refusing = !self.refusing,
            12 => self.latency = Micros::millis(self.dice.roll(30) * 10),
            13 => {
                let size = Bytes::mib(self.dice.roll(200));
                let ask = self.asks(at, Source::Reserve, size);
                self.lease = Some(self.demands);
                heard.push(ask);
            }
            14 => {
                if let Some(id) = self.lease.take() {
                    heard.push(self.says(GuestMessage::Withdraw { id }));
                }
            }
            15 => {
                self.settings.min = Bytes::mib(self.dice.roll(2 * self.max.as_mib()));
                self.settings.max = if self.dice.roll(2) == 0 { Bytes::MAX } else { Bytes::mib(self.dice.roll(600)) };
                self.settings.exempt = self.dice.roll(5) == 0;
                // Without its hypervisor the daemon knows nothing to say; found again, the VM gets them.
                if self.reachable {
                    heard.push(self.facts());
                }
            }
            16 => {
                (self.running, self.stuck, self.refusing) = (true, false, false);
                heard.push(Input::Running { vm, running: true });
            }
            _ => {
                (self.agent, self.greeted) = (true, false);
                if !self.reachable {
                    self.reachable = true;
                    heard.push(self.facts());
                }
            }
        }
        if self.temper == Temper::Malicious {
            self.lie(at, heard);
        }
    }

    fn any(&mut self) -> Bytes {
        let sizes =
            [Bytes::ZERO, Bytes(1), Bytes::MAX, Bytes(u64::MAX / 2), self.max, Bytes::mib(self.dice.roll(1024))];
        sizes[self.dice.roll(6) as usize]
    }

    fn lie(&mut self, at: Micros, heard: &mut Vec<Input>) {
        let mut report = self.report(at);
        report.free = self.any();
        report.giveable = self.any();
        report.ballooned = Some(self.any());
        report.counters.oom_kill = Some(self.any().0);
        report.at = Micros(self.any().0);
        report.watermarks.low = self.any();
        heard.push(self.says(GuestMessage::Telemetry(report)));
        let mut demand = self.asks(at, Source::Slack, Bytes::MAX);
        if let Input::Guest { message: GuestMessage::Demand(demand), .. } = &mut demand {
            demand.size = self.any();
            demand.ballooned = Some(self.any());
            demand.within = Micros(self.any().0);
        }
        heard.push(demand);
        let id = self.dice.roll(5);
        heard.push(self.says(GuestMessage::Reclaimed(Reclaimed { id, size: Bytes::MAX, exhausted: false })));
        if self.ruled {
            let mut any = || (self.dice.roll(3) > 0).then(|| self.any());
            let (free, available, total) = (any(), any(), any());
            let age = Micros(self.any().0);
            let statistics = Statistics { free, available, total, swap_in: None, age };
            heard.push(Input::Statistics { vm: self.name.clone(), statistics });
        }
    }

    fn reboot(&mut self, at: Micros, heard: &mut Vec<Input>) {
        // QEMU keeps both its target and the figure it reports.
        self.balloon = Bytes::ZERO;
        self.anon = Bytes::mib(40);
        self.goal = self.anon;
        self.cache = Bytes::mib(10);
        self.booted = at;
        (self.greeted, self.lease) = (false, None);
        self.counters.oom_kill = Some(0);
        self.oom_kills = 0;
        self.reclaims.clear();
        heard.push(Input::Rebooted { vm: self.name.clone() });
    }

    /// The agent as the next planner finds it.
    pub fn planner_restarted(&mut self) {
        self.greeted = false;
        self.told = None;
        self.orders.clear();
        self.pieces = None;
        self.reclaims.clear();
        self.watch = Micros::secs(1);
    }
}
