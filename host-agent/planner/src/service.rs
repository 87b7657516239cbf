//! The service level of a VM: what its network gives, against what it gave when the VM was well.
//!
//! ```text
//!   sample (iperf3, or the interface's counters) -> score, higher is better
//!     above the limit -> well: learnt if the VM was calm; what it kept then is remembered
//!     below the limit -> one quick probe more is asked for -> below again: a shortfall
//!        something was taken since it was last well  -> given back, and blocked
//!        nothing was, but its memory shows trouble,
//!        or it has no agent to say so               -> one step is given, three times at most
//! ```
//!
//! The baseline is the VM's own: the median of the better half of the last 32 scores, so that up to half of them may
//! have been spoilt by something else. The spread is the median deviation of all of them from their median, never
//! taken for less than 18 %, the noise of unlimited iperf3 (FACTS section 9: 8 to 18 %). The limit is four spreads
//! down, each of what the one before left, (1 - s)^4, and 60 % of the baseline at most: with 18 % it is 45 %. A guest
//! that thrashes falls to 17 to 35 % (same source). Subtracting four spreads instead would put the limit at 28 % and
//! miss half of these.
//!
//! A good sample never takes anything, and without samples nothing changes.

use crate::event::{Notice, Reason, Trouble, VmName};
use crate::fleet::{Agent, Stamped, Vm};
use crate::{Action, Planner};
use ballast_protocol::{Bytes, Micros};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fmt;

/// Scores remembered. At the prober's usual period of a minute they are half an hour: slow enough for a lasting
/// change of the network, never of its noise.
const KEPT: usize = 32;
/// Scores without which there is no baseline. Three of them are the better half.
const ENOUGH: usize = 6;
/// The least and the largest spread, in thousandths. A few scores may happen to lie far apart; with more than 22 % the
/// limit, then 37 %, would sink below what a fall to a quarter reaches with noise on top of it.
const SPREADS: (u64, u64) = (180, 220);
/// But what so many scores agree on is no accident: a host short of CPU makes 60 % of noise (measured with three busy
/// guests to two cores, 25 probes), and there only a fall to nothing means anything.
const NOISY: u64 = 300;
const NOISIEST: u64 = 450;
const SURE: usize = 16;
/// The limit is this share of the baseline at most, in thousandths.
const LIMIT: u64 = 600;
/// No network known is faster than 1 Tbit/s; what iperf3 says comes from the guest, too.
const FASTEST: u64 = 1_000_000_000_000;
/// Interface counters below this say nothing about what the VM could do: that is idle chatter.
const TRAFFIC: u64 = 1_000_000;
/// A second bad sample within this time confirms the first.
const CONFIRM: Micros = Micros::secs(60);
/// What was taken since the VM was last well is to blame, unless that is longer ago than any probe period that makes
/// sense.
const BLAME: Micros = Micros::secs(600);
/// A probe begins at the earliest so long after the balloon came to rest, to show the guest and not the move.
const REST: Micros = Micros::secs(1);
/// When a series of moves is over: steps follow each other faster.
const AFTER: Micros = Micros::secs(3);
/// Steps given without anything to blame, until the service is well again. Then memory is not what it lacks.
const STEPS: u32 = 3;
/// Trouble of memory seen so lately makes memory the likely cause.
const LATELY: Micros = Micros::secs(60);
/// The interface's counters ask for a probe this often at most.
const HINTS: Micros = Micros::secs(60);

/// A probe says something of now for so long: three of the default period, of which one may be missed.
const RECENT: Micros = Micros::secs(180);

/// How a service level was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ServiceMode {
    /// As fast as it goes: the throughput tells.
    Unlimited,
    /// At a fixed rate: the throughput stays the same, retransmits and round trip tell.
    RateLimited,
    /// By the counters of the VM's interface: whatever its users happened to move.
    Passive,
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSample {
    /// How.
    pub mode: ServiceMode,
    /// Bits per second that arrived.
    pub throughput: u64,
    /// TCP segments sent again.
    pub retransmits: Option<u64>,
    /// The mean round trip of the connection.
    pub rtt: Option<Micros>,
    /// How long it was measured, until the moment it is handed in.
    pub duration: Micros,
}

impl ServiceSample {
    /// Higher is better. At a fixed rate it is Kleinrock's power, throughput over delay, with each retransmit a
    /// second as one delay more.
    fn score(&self) -> u64 {
        let throughput = self.throughput.min(FASTEST);
        match self.mode {
            ServiceMode::Unlimited | ServiceMode::Passive => throughput,
            ServiceMode::RateLimited => {
                let seconds = self.duration.0.max(1);
                let retransmits = self.retransmits.unwrap_or(0).min(1_000_000).saturating_mul(1_000_000) / seconds;
                let delay = self.rtt.unwrap_or(Micros(1_000)).0.clamp(1, 1_000_000_000);
                throughput.saturating_mul(1_000) / delay.saturating_mul(retransmits.saturating_add(1))
            }
        }
    }
}

/// Why a probe is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeWhy {
    /// A bad sample is to be confirmed.
    Confirm,
    /// Something was taken, and the VM has settled.
    Taken,
    /// Something was given because of the service, and the VM has settled.
    Given,
    /// The interface's counters fell after something was taken.
    Traffic,
}

impl fmt::Display for ProbeWhy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Confirm => "to confirm a low sample",
            Self::Taken => "to see whether the last taking hurt",
            Self::Given => "to see whether giving helped",
            Self::Traffic => "because its traffic fell after a taking",
        })
    }
}

/// What a VM gives when it is well.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Learner(VecDeque<u64>);

impl Learner {
    fn learn(&mut self, score: u64) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(score);
    }

    /// Baseline, and the limit below which a score is short of it.
    fn figures(&self) -> Option<(u64, u64)> {
        if self.0.len() < ENOUGH {
            return None;
        }
        let mut sorted: Vec<u64> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        let baseline = median(&sorted[sorted.len() / 2..]).max(1);
        let middle = median(&sorted).max(1);
        let mut deviations: Vec<u64> = sorted.iter().map(|s| s.abs_diff(middle)).collect();
        deviations.sort_unstable();
        // 1.4826 x the median deviation is the standard deviation of a normal distribution.
        let spread = u128::from(median(&deviations)) * 1_483 / u128::from(middle);
        let spread = u64::try_from(spread).unwrap_or(u64::MAX);
        let spread = match spread {
            NOISY.. if sorted.len() >= SURE => spread.min(NOISIEST),
            _ => spread.clamp(SPREADS.0, SPREADS.1),
        };
        let share = ((1_000 - spread).pow(4) / 1_000_000_000).min(LIMIT);
        let limit = u128::from(baseline) * u128::from(share) / 1_000;
        Some((baseline, u64::try_from(limit).unwrap_or(u64::MAX)))
    }
}

/// The lower of two middles: of a score that is to be reached, the modest one.
fn median(sorted: &[u64]) -> u64 {
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(0)
}

fn percent(score: u64, baseline: u64) -> u32 {
    u32::try_from(u128::from(score) * 100 / u128::from(baseline.max(1))).unwrap_or(u32::MAX)
}

/// What is known of one VM's service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// By probes of one mode; another mode begins anew.
    probed: Learner,
    mode: Option<ServiceMode>,
    counted: Learner,
    last: Option<Stamped<ServiceSample>>,
    last_counted: Option<Stamped<ServiceSample>>,
    /// The first bad sample of what may be a shortfall.
    suspected: Option<Micros>,
    /// When it was last well, and what it had been told to keep then.
    well: Option<Stamped<Bytes>>,
    /// A shortfall was seen, and no good sample since.
    short: bool,
    /// Steps given since then without anything to blame.
    steps: u32,
    /// A probe is wanted when the balloon has come to rest.
    wanted: Option<ProbeWhy>,
    hinted: Micros,
    /// When the memory last showed trouble.
    trouble: Option<Micros>,
    shortfalls: u64,
}

/// A VM's service level, for people and programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// How the last sample was measured.
    pub mode: ServiceMode,
    /// Its throughput, bits per second.
    pub throughput: u64,
    /// Its retransmits.
    pub retransmits: Option<u64>,
    /// Its mean round trip.
    pub rtt: Option<Micros>,
    /// How old it is.
    pub age: Micros,
    /// Its score in percent of the VM's own baseline; `None`: there is none yet.
    pub percent: Option<u32>,
    /// Below this many percent it counts as short.
    pub limit_percent: Option<u32>,
    /// Samples the baseline is made of.
    pub learnt: usize,
    /// A shortfall was seen, and no good sample since.
    pub short: bool,
    /// Shortfalls seen.
    pub shortfalls: u64,
}

/// What a sample was measured in.
struct Circumstances {
    /// The balloon rested all the while.
    at_rest: bool,
    /// And nothing was asked or hurt, and there was memory to spare.
    calm: bool,
    /// The VM has all it may have: whatever it lacks is not memory of ours.
    whole: bool,
}

/// What follows from a sample.
#[derive(Debug, PartialEq, Eq)]
enum Finding {
    Nothing,
    Probe(ProbeWhy),
    Well,
    Short { percent: u32 },
}

impl Service {
    /// Something was taken.
    pub(crate) fn took(&mut self) {
        if self.probed.figures().is_some() {
            self.wanted = Some(ProbeWhy::Taken);
        }
    }

    /// The memory shows trouble.
    pub(crate) fn troubled(&mut self, at: Micros) {
        self.trouble = Some(at);
    }

    /// What the last probe lacked to the baseline, in millionths, if it was short: above the limit it may be noise.
    fn lost(&self) -> Option<u32> {
        let (baseline, limit) = self.probed.figures()?;
        let score = self.last?.what.score();
        let left = || u32::try_from(u128::from(score) * 1_000_000 / u128::from(baseline.max(1)));
        (score < limit).then(|| 1_000_000 - left().unwrap_or(1_000_000).min(1_000_000))
    }

    fn judge(&mut self, at: Micros, sample: ServiceSample, kept: Bytes, around: &Circumstances) -> Finding {
        if self.mode != Some(sample.mode) {
            *self = Self { mode: Some(sample.mode), shortfalls: self.shortfalls, ..Self::default() };
        }
        self.last = Some(Stamped { at, what: sample });
        let score = sample.score();
        let low = self.probed.figures().filter(|(_, limit)| score < *limit);
        let Some((baseline, _)) = low else {
            if around.calm {
                self.probed.learn(score);
            }
            if around.at_rest {
                self.well = Some(Stamped { at, what: kept });
            }
            self.suspected = None;
            self.steps = 0;
            return if std::mem::take(&mut self.short) { Finding::Well } else { Finding::Nothing };
        };
        if around.whole {
            // This is what the VM gives with all its memory, so it is what it gives.
            self.suspected = None;
            if around.calm {
                self.probed.learn(score);
            }
            return Finding::Nothing;
        }
        if !around.at_rest {
            return Finding::Nothing;
        }
        match self.suspected.take() {
            Some(since) if at <= since + CONFIRM => {
                self.short = true;
                self.shortfalls += 1;
                Finding::Short { percent: percent(score, baseline) }
            }
            _ => {
                self.suspected = Some(at);
                Finding::Probe(ProbeWhy::Confirm)
            }
        }
    }

    fn judge_counted(&mut self, at: Micros, sample: ServiceSample, kept: Bytes, around: &Circumstances) -> Finding {
        self.last_counted = Some(Stamped { at, what: sample });
        let score = sample.score();
        if score < TRAFFIC {
            return Finding::Nothing;
        }
        if self.counted.figures().is_none_or(|(_, limit)| score >= limit) {
            if around.calm {
                self.counted.learn(score);
            }
            return Finding::Nothing;
        }
        // Fewer wishes look the same as fewer means: only a probe can tell.
        let taken = self.well.is_some_and(|w| kept < w.what && at <= w.at + BLAME);
        if !taken || !around.at_rest || self.probed.figures().is_none() || at < self.hinted + HINTS {
            return Finding::Nothing;
        }
        self.hinted = at;
        Finding::Probe(ProbeWhy::Traffic)
    }

    /// What the last probe came to in percent of the baseline, if that was lately. Traffic is no measure of what a VM could give.
    pub(crate) fn probed(&self, at: Micros) -> Option<u32> {
        let last = self.last.filter(|last| at < last.at + RECENT)?;
        self.probed.figures().map(|(baseline, _)| percent(last.what.score(), baseline))
    }

    /// What to show; `None`: nothing was ever measured.
    #[must_use]
    pub fn status(&self, at: Micros) -> Option<ServiceStatus> {
        let (last, learner) = match (self.last, self.last_counted) {
            (Some(last), _) => (last, &self.probed),
            (None, Some(last)) => (last, &self.counted),
            (None, None) => return None,
        };
        let figures = learner.figures();
        Some(ServiceStatus {
            mode: last.what.mode,
            throughput: last.what.throughput,
            retransmits: last.what.retransmits,
            rtt: last.what.rtt,
            age: at - last.at,
            percent: figures.map(|(baseline, _)| percent(last.what.score(), baseline)),
            limit_percent: figures.map(|(baseline, limit)| percent(limit, baseline)),
            learnt: learner.0.len(),
            short: self.short,
            shortfalls: self.shortfalls,
        })
    }
}

impl Circumstances {
    fn of(vm: &Vm, at: Micros, sample: &ServiceSample) -> Self {
        let from = at - sample.duration;
        let at_rest = vm.order.is_none() && from >= vm.settled + REST;
        let headroom = vm.headroom(at);
        let spare = match (&vm.agent, &vm.telemetry) {
            (Agent::Alive { .. }, Some(t)) => t.what.free - t.what.watermarks.low >= headroom.share(1, 2),
            _ => true,
        };
        let quiet = from >= vm.reactive.unquiet() + REST;
        Self { at_rest, calm: at_rest && quiet && spare, whole: vm.aim >= vm.max() }
    }
}

impl Planner {
    /// Somebody measured the service of a VM.
    pub(crate) fn service(&mut self, at: Micros, name: &VmName, sample: ServiceSample) {
        let Some(vm) = self.vms.get_mut(name) else { return };
        let around = Circumstances::of(vm, at, &sample);
        let aim = vm.aim;
        let finding = match sample.mode {
            ServiceMode::Passive => vm.service.judge_counted(at, sample, aim, &around),
            _ => vm.service.judge(at, sample, aim, &around),
        };
        if sample.mode != ServiceMode::Passive
            && let Some(loss) = vm.service.lost()
        {
            vm.history.lost(at, loss);
        }
        match finding {
            Finding::Nothing => {}
            Finding::Probe(why) => self.actions.push_back(Action::Probe { vm: name.clone(), why }),
            Finding::Well => self.notice(name, Notice::ServiceWell),
            Finding::Short { percent } => {
                self.notice(name, Notice::ServiceShort { percent });
                // Another law knows nothing of services.
                if !self.is_ruled() {
                    self.short_of_service(at, name);
                }
            }
        }
    }

    fn short_of_service(&mut self, at: Micros, name: &VmName) {
        let Some(vm) = self.vms.get_mut(name) else { return };
        let step = vm.aim + vm.settings.step;
        let blamed = vm.service.well.filter(|w| vm.aim < w.what && at <= w.at + BLAME).map(|w| w.what);
        let wish = match blamed {
            Some(well) => {
                vm.counts.undone += 1;
                well.max(step)
            }
            None => {
                let by_memory = match vm.agent {
                    Agent::Alive { .. } => vm.service.trouble.is_some_and(|t| at <= t + LATELY),
                    // Nobody is there to say what the guest lacks.
                    Agent::Never | Agent::Lost { .. } => true,
                };
                if !by_memory || vm.service.steps >= STEPS {
                    return;
                }
                vm.service.steps += 1;
                step
            }
        };
        vm.block(at);
        vm.reactive.hurt(at);
        vm.service.wanted = Some(ProbeWhy::Given);
        self.give(at, name, wish, Reason::Undo(Trouble::Service));
    }

    /// Asks for the probe that is wanted once the balloon has rested; otherwise when that will be.
    pub(crate) fn ask_for_probe(&mut self, at: Micros, name: &VmName) -> Micros {
        let Some(vm) = self.vms.get_mut(name) else { return Micros::MAX };
        let Some(why) = vm.service.wanted.filter(|_| vm.order.is_none() && vm.facts.running) else {
            return Micros::MAX;
        };
        let due = vm.settled + AFTER;
        if at < due {
            return due;
        }
        vm.service.wanted = None;
        self.actions.push_back(Action::Probe { vm: name.clone(), why });
        Micros::MAX
    }
}
