//! Which VM is probed when, and with how much: no I/O, time comes in as an argument.
//!
//! ```text
//!   regular   every period, begun at a place in it that the VM's name decides, so that VMs do not come in a heap;
//!             six times as often until the baseline is known; not within 5 s of a demand or a move of the balloon;
//!             only while the budget keeps a reserve
//!   asked     by the planner: at once, even then, out of the reserve
//!   failed    twice as long each time, an hour at most; the planner's questions do not shorten that
//! ```

use super::{Command, Measured, ProbeStatus, Problem, Settings, Target};
use ballast_planner::{ProbeWhy, ServiceMode, VmName};
use ballast_protocol::{Bytes, Micros};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

const HOUR: u64 = 3_600_000_000;
/// How long a demand or a move of the balloon keeps regular probes away.
const QUIET: Micros = Micros::secs(5);
/// Until so many probes have measured something they come six times as often: the planner's baseline needs six.
const FIRST: u64 = 8;
const FASTER: u64 = 6;
/// The first probe of a VM whose speed is not known: 130 ms at 250 Mbit/s.
const FIRST_PROBE: Bytes = Bytes::mib(4);
/// Less does not fill a connection's buffers.
const LEAST_PROBE: Bytes = Bytes(256 << 10);
/// A VM that became slower for good is probed with less after so many probes: half of the planner's baseline.
const SPEEDS: usize = 16;
/// A single probe uses at most this part of an hour's traffic.
const PROBES_PER_HOUR: u64 = 64;
/// A budget holds twenty minutes' worth; a quarter of that is kept for the planner's questions.
const HELD: u64 = 3;
const RESERVE: u64 = 4;
/// At the most so many doublings.
const DOUBLINGS: u32 = 12;
const LONGEST_BACK_OFF: Micros = Micros(HOUR);

/// A probe that is to be run now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Of which VM.
    pub vm: VmName,
    /// Its server.
    pub service: SocketAddr,
    /// How much is sent.
    pub bytes: Bytes,
    /// Bits per second, when it is limited.
    pub rate: Option<u64>,
    /// How long that should take.
    pub length: Micros,
    /// What the planner wants to know; `None`: it is a regular one.
    pub why: Option<ProbeWhy>,
}

/// A budget that fills evenly: what an hour brings, a third of which it holds.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    per_hour: u64,
    level: i128,
    filled: Micros,
}

impl Bucket {
    fn new(per_hour: u64, now: Micros) -> Self {
        Self { per_hour, level: i128::from(per_hour / HELD), filled: now }
    }

    fn fill(&mut self, now: Micros) {
        let gained = i128::from(now.0.saturating_sub(self.filled.0)) * i128::from(self.per_hour) / i128::from(HOUR);
        if gained > 0 {
            self.level = (self.level + gained).min(i128::from(self.per_hour / HELD));
            self.filled = now;
        }
    }

    /// How long until it holds `cost` and the reserve; never, when it cannot.
    fn wait(&self, cost: u64, reserved: bool) -> Micros {
        let reserve = if reserved { self.per_hour / HELD / RESERVE } else { 0 };
        let missing = i128::from(cost) + i128::from(reserve) - self.level;
        if missing <= 0 {
            return Micros::ZERO;
        }
        let wait = missing * i128::from(HOUR) / i128::from(self.per_hour.max(1)) + 1;
        Micros(u64::try_from(wait).unwrap_or(u64::MAX))
    }

    fn spend(&mut self, cost: u64) {
        self.level -= i128::from(cost);
    }
}

#[derive(Debug)]
struct Entry {
    status: ProbeStatus,
    runs: bool,
    regular: Micros,
    quiet: Micros,
    asked: Option<(Micros, ProbeWhy)>,
    not_before: Micros,
    failed: u32,
    /// Bits per second of the last probes. The fastest of them sets the size of the next: a connection needs some time
    /// to come to its speed, so that smaller probes would measure less, and a slow guest slower and slower.
    speeds: VecDeque<u64>,
    time: Bucket,
    traffic: Bucket,
    seed: u64,
}

/// The schedule of all VMs that have a server.
#[derive(Debug)]
pub struct Schedule {
    settings: Settings,
    vms: BTreeMap<VmName, Entry>,
}

impl Schedule {
    /// All of these VMs, none of them running yet.
    #[must_use]
    pub fn new(settings: &Settings, targets: &[Target], now: Micros) -> Self {
        let entry = |target: &Target| {
            let service = target.service?;
            let vm = target.vm.clone();
            let status = ProbeStatus {
                vm: vm.clone(),
                service,
                probes: 0,
                failures: 0,
                problem: None,
                time: Micros::ZERO,
                traffic: Bytes::ZERO,
            };
            let entry = Entry {
                status,
                runs: false,
                regular: now,
                quiet: now,
                asked: None,
                not_before: now,
                failed: 0,
                speeds: VecDeque::new(),
                time: Bucket::new(settings.time_per_hour.0, now),
                traffic: Bucket::new(settings.traffic_per_hour.0, now),
                seed: hash(&vm.0),
            };
            Some((vm, entry))
        };
        let vms = if settings.enabled { targets.iter().filter_map(entry).collect() } else { BTreeMap::new() };
        Self { settings: settings.clone(), vms }
    }

    /// The daemon said something.
    pub fn heed(&mut self, now: Micros, command: Command) {
        let (Command::Runs(vm, _) | Command::Disturbed(vm) | Command::Asked(vm, _)) = &command;
        let period = self.settings.period;
        let Some(entry) = self.vms.get_mut(vm) else { return };
        match command {
            Command::Runs(_, true) if !entry.runs => {
                entry.runs = true;
                entry.regular = now + entry.phase(entry.pace(period));
            }
            Command::Runs(_, runs) => entry.runs = runs,
            Command::Disturbed(_) => entry.quiet = now + QUIET,
            Command::Asked(_, why) => entry.asked = Some((now, why)),
        }
        if !entry.runs {
            entry.asked = None;
        }
    }

    /// When [`Schedule::begin`] may have something.
    #[must_use]
    pub fn next(&self) -> Option<Micros> {
        self.vms.values().filter_map(|e| e.due(&self.settings)).map(|(at, _)| at).min()
    }

    /// The probe that is due, if any.
    pub fn begin(&mut self, now: Micros) -> Option<Plan> {
        for entry in self.vms.values_mut() {
            entry.time.fill(now);
            entry.traffic.fill(now);
        }
        let due = |(name, e): (&VmName, &Entry)| e.due(&self.settings).map(|(at, why)| (at, name.clone(), why));
        let (at, name, why) = self.vms.iter().filter_map(due).min_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)))?;
        if at > now {
            return None;
        }
        let entry = self.vms.get_mut(&name)?;
        entry.asked = None;
        let rate = (self.settings.mode == ServiceMode::RateLimited).then_some(self.settings.rate);
        let bytes = entry.bytes(&self.settings);
        let length = self.settings.length;
        Some(Plan { vm: name, service: entry.status.service, bytes, rate, length, why })
    }

    /// What went wrong with the last probe of a VM.
    #[must_use]
    pub fn problem(&self, vm: &VmName) -> Option<String> {
        self.vms.get(vm)?.status.problem.clone()
    }

    /// The probe has ended, and took so long.
    ///
    /// # Panics
    /// Never: only a VM of this schedule is probed, and none is ever removed.
    pub fn done(&mut self, now: Micros, vm: &VmName, took: Micros, outcome: &Result<Measured, Problem>) -> ProbeStatus {
        let settings = &self.settings;
        let entry = self.vms.get_mut(vm).expect("a plan names a VM of this schedule");
        entry.time.spend(took.0);
        entry.status.time += took;
        match outcome {
            Ok(measured) => {
                entry.failed = 0;
                entry.not_before = now;
                entry.status.probes += 1;
                entry.status.problem = None;
                entry.status.traffic += measured.traffic;
                entry.traffic.spend(measured.traffic.0);
                if entry.speeds.len() == SPEEDS {
                    entry.speeds.pop_front();
                }
                entry.speeds.push_back(measured.sample.throughput);
            }
            Err(problem) => {
                entry.status.failures += 1;
                entry.status.problem = Some(problem.to_string());
                let back_off = settings.period.0.saturating_mul(1 << entry.failed.min(DOUBLINGS));
                entry.failed += 1;
                entry.not_before = now + Micros(back_off).min(LONGEST_BACK_OFF);
            }
        }
        let pace = entry.pace(settings.period);
        entry.regular = now + pace - entry.jitter(pace);
        entry.status.clone()
    }
}

impl Entry {
    fn due(&self, settings: &Settings) -> Option<(Micros, Option<ProbeWhy>)> {
        if !self.runs {
            return None;
        }
        let (at, why) = match self.asked {
            Some((at, why)) => (at, Some(why)),
            None => (self.regular.max(self.quiet), None),
        };
        let regular = why.is_none();
        let wait = |bucket: &Bucket, cost| bucket.filled + bucket.wait(cost, regular);
        let affordable = wait(&self.time, settings.length.0).max(wait(&self.traffic, self.bytes(settings).0));
        Some((at.max(self.not_before).max(affordable), why))
    }

    /// So many bytes that a probe takes about as long as it should.
    fn bytes(&self, settings: &Settings) -> Bytes {
        let speed = match settings.mode {
            ServiceMode::RateLimited => Some(settings.rate),
            _ => self.speeds.iter().max().copied(),
        };
        let wanted = speed.map_or(FIRST_PROBE, |bits| Bytes(bits / 8).share(settings.length.0, 1_000_000));
        let most = Bytes(settings.traffic_per_hour.0 / PROBES_PER_HOUR).max(LEAST_PROBE);
        wanted.max(LEAST_PROBE).min(most)
    }

    fn pace(&self, period: Micros) -> Micros {
        if self.status.probes < FIRST { Micros(period.0 / FASTER) } else { period }
    }

    /// Where in its first period a VM's probes begin.
    fn phase(&self, pace: Micros) -> Micros {
        Micros(self.seed % pace.0.max(1))
    }

    /// Up to a fifth of the period less, differently each time.
    fn jitter(&self, pace: Micros) -> Micros {
        let count = self.status.probes + self.status.failures;
        let draw = (self.seed ^ count.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xff51_afd7_ed55_8ccd) >> 32;
        Micros(draw % (pace.0 / 5).max(1))
    }
}

/// FNV-1a: the same in every run and on every host, which the standard library's hasher does not promise.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests;
