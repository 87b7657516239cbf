//! One repetition of one experiment: all arms' guests alive at once, each phase run by one arm after the other.
//!
//! ```text
//!   clone all ── age all ── zero: daemons, agents, balloons ── settle ── phase 1: C A B ── phase 2: B C A ── ... ── end
//!                                  └────────────── a look at every guest twice a second ──────────────────────┘
//! ```
//! *Ageing*: nearly all memory of a guest is touched and freed, as in a VM that has been up for weeks. Without it
//! `static` would hold only what a minute's life has touched, and every law would be compared with that.
//!
//! An arm that breaks (its QEMU dies, its guest does not answer) is out for the rest of the block and says why; the
//! others go on.

use super::arm::{Arm, Law};
use super::collect::Sweep;
use super::experiment::{Experiment, GuestSpec};
use super::results::{ArmRun, Block, GuestRun, PhaseRun, Totals};
use super::watch::{self, Watched};
use super::{journal, restrict, summary};
use crate::wire::{Counters, Job};
use crate::{Balloon, Guest, HostAgent, Machine, Network};
use anyhow::{Context, Result, anyhow, bail};
use ballast_protocol::{Bytes, Micros};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// What every guest keeps free while it is aged: enough for its own programs, so that ageing kills nobody.
const AGED_FREE_MIB: u64 = 24;
/// The longest that ageing may take: 512 MiB are touched in 3 s.
const AGEING: Duration = Duration::from_secs(120);

/// For a phase that runs when the block's time is over: with it the block may be whole after all.
const GRACE: Duration = Duration::from_secs(10);

/// iperf3's own port.
const IPERF3: u16 = 5201;
/// Phases that begin anew until a time is over advance a block by a step each so often.
const STEP: Duration = Duration::from_secs(5);

/// Told what is being done, and by how many steps the block has advanced.
pub trait Progress: Sync {
    /// Something begins.
    fn doing(&self, what: &str);
    /// A step is done.
    fn step(&self);
}

/// One arm while its block runs.
struct Live<'a> {
    arm: &'a Arm,
    guests: Vec<Watched>,
    network: Option<Vec<Ipv4Addr>>,
    daemon: Option<Daemon>,
    limits: Option<restrict::Limits>,
    phases: Vec<PhaseRun>,
    error: Option<String>,
    before: Vec<Counters>,
    /// When its law began.
    since: Option<Instant>,
}

struct Daemon {
    agent: HostAgent,
    /// When its clock began, from the block's zero, seconds.
    began: f64,
    /// The same, asked of itself where it matters; see [`ArmRun::clock_s`].
    clock: Option<f64>,
}

/// How many steps [`run`] reports.
#[must_use]
pub fn steps(experiment: &Experiment) -> u64 {
    let arms = experiment.arms.len() as u64;
    2 * arms + 1 + experiment.lasting.map_or(arms * experiment.phases.len() as u64, ticks)
}

fn ticks(time: Duration) -> u64 {
    time.as_secs() / STEP.as_secs()
}

/// The order of turns among so many arms, another each time and the same for the same seed.
fn turns(random: &mut ChaCha8Rng, arms: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..arms).collect();
    order.shuffle(random);
    order
}

/// How long a phase that would begin `now` may take; `None`: it is not begun any more.
fn time_for(patience: Duration, deadline: Option<Instant>, now: Instant) -> Option<Duration> {
    let Some(deadline) = deadline else { return Some(patience) };
    (now < deadline).then(|| patience.min(deadline - now + GRACE))
}

/// Runs a block. Whoever keeps it fills in what it was made of ([`Block::fingerprint`]). `None`: it was not through by the
/// deadline, and is none.
///
/// # Errors
/// No arm could be run at all, or the client guest is lost; what befalls one arm is in its [`ArmRun::error`].
pub fn run(
    experiment: &Experiment,
    repetition: u32,
    oracle: bool,
    journals: &Path,
    deadline: Option<Instant>,
    told: &dyn Progress,
) -> Result<Option<Block>> {
    let begun = Instant::now();
    let started_unix = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    let load = std::fs::read_to_string("/proc/loadavg").ok();
    let load = load.and_then(|l| l.split(' ').next()?.parse().ok()).unwrap_or(0.0);
    let seed = experiment.seed.wrapping_mul(1_000).wrapping_add(repetition.into());
    let mut random = ChaCha8Rng::seed_from_u64(seed);

    // The probes of a sweep come from this machine; all others from beside a client.
    let networked =
        experiment.client.is_some() || experiment.arms.iter().any(|a| a.probes.is_some() && a.law == Law::Sweep);
    let network = networked.then(Network::new).transpose()?;
    told.doing("cloning the guests");
    let client = experiment.client.as_ref().map(|spec| client(spec, network.as_ref(), experiment)).transpose()?;
    let mut arms: Vec<Live<'_>> = Vec::new();
    for arm in &experiment.arms {
        // A guest that hangs while it boots is waited for a minute, and so may be the next arm's.
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Ok(None);
        }
        arms.push(Live::start(arm, experiment, network.as_ref()));
        told.step();
    }
    told.doing("ageing them: a VM that has been up for weeks has touched all of its memory");
    let order = turns(&mut random, arms.len());
    age_all(&mut arms, &order, told);
    let zero = Instant::now();
    for &turn in &order {
        arms[turn].attempt(|live| live.begin(experiment, (repetition, seed), network.as_ref(), zero));
    }
    if arms.iter().all(|a| a.error.is_some()) {
        let why = arms.first().and_then(|a| a.error.clone()).unwrap_or_default();
        return Err(anyhow!("{}: no arm could be started: {why}", experiment.name));
    }
    let first_phase = zero.elapsed().as_secs_f64() + experiment.settle.as_secs_f64();
    if !phases(experiment, &mut arms, client.as_ref(), oracle, (zero, deadline), &mut random, told) {
        return Ok(None);
    }
    let arms = arms.into_iter().map(|live| live.end(experiment, repetition, oracle, first_phase, journals)).collect();
    Ok(Some(Block {
        experiment: experiment.name.clone(),
        fingerprint: String::new(),
        repetition,
        oracle,
        seed,
        started_unix,
        took_s: begun.elapsed().as_secs_f64(),
        load,
        arms,
    }))
}

/// Settles, then runs all phases, while another thread looks at all guests. Returns whether they were through in time.
fn phases(
    experiment: &Experiment,
    arms: &mut [Live<'_>],
    client: Option<&Machine>,
    oracle: bool,
    (zero, deadline): (Instant, Option<Instant>),
    random: &mut ChaCha8Rng,
    told: &dyn Progress,
) -> bool {
    struct Turn<'a> {
        arm: &'a str,
        size: Option<Bytes>,
        guests: Vec<Guest>,
        network: Option<Vec<Ipv4Addr>>,
        phases: &'a mut Vec<PhaseRun>,
        error: &'a mut Option<String>,
    }
    if time_for(experiment.patience, deadline, Instant::now() + experiment.settle).is_none() {
        return false;
    }
    let mut in_time = true;
    let stop = AtomicBool::new(false);
    let mut watched: Vec<&mut Watched> = Vec::new();
    let mut turns: Vec<Turn<'_>> = Vec::new();
    for live in arms {
        turns.push(Turn {
            arm: &live.arm.name,
            size: if let Law::Fixed(size) = live.arm.law { size } else { None },
            guests: live.guests.iter().map(|g| g.machine.guest.clone()).collect(),
            network: live.network.clone(),
            phases: &mut live.phases,
            error: &mut live.error,
        });
        watched.extend(&mut live.guests);
    }
    thread::scope(|scope| {
        scope.spawn(|| watch::watch(&mut watched, zero, &stop));
        told.doing("settling: the laws find their size");
        thread::sleep(experiment.settle);
        told.step();
        let begun = Instant::now();
        let mut ticked = 0;
        // In a search, the largest size that is known to lose: it and what is smaller need not be gone on with.
        let mut lost: Option<Bytes> = None;
        // Once, or again and again until their time is over or there is nobody left to run them.
        'all: for (index, phase) in experiment.phases.iter().cycle().enumerate() {
            let over = match experiment.lasting {
                None => index >= experiment.phases.len(),
                Some(lasting) => begun.elapsed() >= lasting || turns.iter().all(|t| t.error.is_some()),
            };
            if over {
                break;
            }
            for turn in self::turns(random, turns.len()) {
                if oracle {
                    lost = lost.max(hopeless(turns.iter().map(|t| (t.size, &*t.phases))));
                }
                let turn = &mut turns[turn];
                let given_up = turn.size.is_some_and(|size| Some(size) <= lost);
                let of = experiment.lasting.map_or_else(|| experiment.phases.len().to_string(), |l| format!("{l:?}"));
                if turn.error.is_none() && !given_up {
                    told.doing(&format!("{} of {of}: {}, {}", index + 1, phase.label, turn.arm));
                    let Some(patience) = time_for(experiment.patience, deadline, Instant::now()) else {
                        in_time = false;
                        break 'all;
                    };
                    let guest = &turn.guests[phase.guest];
                    let address = turn.network.as_ref().map(|addresses| addresses[phase.guest].to_string());
                    let over = client.zip(address.as_deref()).map(|(c, address)| (&c.guest, address));
                    match one(experiment, index, guest, over, (zero, patience)) {
                        // With all of its patience it might have been more. Loads count whole seconds.
                        Ok(run)
                            if run.outcome.unfinished
                                && patience < experiment.patience
                                && run.took_s + 1.0 >= patience.as_secs_f64() =>
                        {
                            in_time = false;
                            break 'all;
                        }
                        Ok(run) => turn.phases.push(run),
                        Err(e) => {
                            *turn.error = Some(format!("{}, phase {} ({}): {e:#}", turn.arm, index + 1, phase.label))
                        }
                    }
                    thread::sleep(experiment.gap);
                }
                if experiment.lasting.is_none() {
                    told.step();
                }
            }
            let now = ticks(begun.elapsed().min(experiment.lasting.unwrap_or_default()));
            (ticked..now).for_each(|_| told.step());
            ticked = now.max(ticked);
        }
        stop.store(true, Ordering::Relaxed);
    });
    in_time
}

fn one(
    experiment: &Experiment,
    index: usize,
    guest: &Guest,
    client: Option<(&Guest, &str)>,
    (zero, patience): (Instant, Duration),
) -> Result<PhaseRun> {
    let phase = &experiment.phases[index % experiment.phases.len()];
    let before = guest.counters()?;
    let began = zero.elapsed().as_secs_f64();
    let outcome = phase.work.run(guest, client, patience)?;
    let took_s = zero.elapsed().as_secs_f64() - began;
    let during = watch::between(&before, &guest.counters()?);
    Ok(PhaseRun {
        index,
        label: phase.label.clone(),
        guest: experiment.guests[phase.guest].name.clone(),
        measured: phase.measured,
        began_s: began,
        took_s,
        outcome,
        during,
    })
}

/// The largest of several sizes that lost whatever is still to come, judged by the arm that kept all its memory.
fn hopeless<'a>(arms: impl Iterator<Item = (Option<Bytes>, &'a Vec<PhaseRun>)>) -> Option<Bytes> {
    let (sizes, references): (Vec<_>, Vec<_>) = arms.partition(|(size, _)| size.is_some());
    let reference = references.first().map(|(_, phases)| phases.as_slice()).unwrap_or_default();
    let lost = sizes.into_iter().filter(|(_, phases)| phases.iter().any(|p| summary::surely_lost(p, reference)));
    lost.filter_map(|(size, _)| size).max()
}

/// As many at once as there are processors, for nothing is measured yet, and in an order of chance.
fn age_all(arms: &mut [Live<'_>], order: &[usize], told: &dyn Progress) {
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let mut queue: Vec<(usize, &mut Live<'_>)> = arms.iter_mut().enumerate().collect();
    queue.sort_by_key(|(place, _)| order.iter().position(|turn| turn == place));
    let left = Mutex::new(queue.into_iter());
    let worker = || {
        loop {
            // A statement of its own, so that the others may go on while this one is aged.
            let next = left.lock().expect("no holder panics").next();
            let Some((_, live)) = next else { break };
            live.attempt(|live| live.age());
            told.step();
        }
    };
    thread::scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(worker))));
}

fn age(guest: &Guest) -> Result<()> {
    let worked = guest.job(Job::Age { keep_free_mib: AGED_FREE_MIB })?.wait(AGEING)?;
    if worked.killed > 0 || worked.oom_kills > 0 {
        bail!("ageing was killed: {}", worked.why);
    }
    Ok(())
}

/// The guest that loads all others; no law touches it.
fn client(spec: &GuestSpec, network: Option<&Network>, experiment: &Experiment) -> Result<Machine> {
    let network = network.context("a client has a network")?;
    let builder = Machine::builder(&spec.name).memory(spec.memory).vcpus(spec.vcpus).network(network).workload();
    let machine = builder.without_vsock().start().with_context(|| format!("client {}", spec.name))?;
    machine.guest.mount_workload()?;
    for phase in &experiment.phases {
        phase.work.prepare_client(&machine.guest)?;
    }
    Ok(machine)
}

impl<'a> Live<'a> {
    fn start(arm: &'a Arm, experiment: &Experiment, network: Option<&Network>) -> Self {
        let mut live = Self {
            arm,
            guests: Vec::new(),
            network: None,
            daemon: None,
            limits: None,
            phases: Vec::new(),
            error: None,
            before: Vec::new(),
            since: None,
        };
        live.attempt(|live| {
            for (place, spec) in experiment.guests.iter().enumerate() {
                let guest = live.guest(spec, place, experiment, network);
                live.guests.push(guest.with_context(|| format!("arm {}, guest {}", arm.name, spec.name))?);
            }
            if arm.law == Law::Cgroup {
                let pids: Vec<u32> = live.guests.iter().map(|g| g.machine.qemu.pid()).collect();
                live.limits = Some(restrict::Limits::new(&pids)?);
                live.guests.iter_mut().zip(pids).for_each(|(g, pid)| g.charged = Some(restrict::charged_to(pid)));
            }
            let addresses = || live.guests.iter().map(|g| g.machine.address()).collect::<Result<_>>();
            live.network = network.map(|_| addresses()).transpose()?;
            Ok(())
        });
        live
    }

    fn guest(
        &self,
        spec: &GuestSpec,
        place: usize,
        experiment: &Experiment,
        network: Option<&Network>,
    ) -> Result<Watched> {
        let balloon =
            Balloon { deflate_on_oom: !matches!(self.arm.law, Law::Fixed(_)), free_page_reporting: self.arm.reporting };
        let works: Vec<_> = experiment.phases.iter().filter(|p| p.guest == place).map(|p| &p.work).collect();
        let mut builder = Machine::builder(&spec.name).memory(spec.memory).vcpus(spec.vcpus).balloon(Some(balloon));
        if works.iter().any(|w| w.needs().disk) {
            builder = builder.disk();
        }
        if works.iter().any(|w| w.needs().workload) {
            builder = builder.workload();
        }
        if let Some(network) = network {
            builder = builder.network(network);
        }
        if !self.arm.has_agent() {
            builder = builder.without_vsock();
        }
        let machine = builder.start()?;
        if let Some(size) = spec.zram {
            machine.guest.swap_to_zram(size)?;
        }
        Ok(Watched::new(machine))
    }

    /// Does something that may break this arm, unless it is broken already.
    fn attempt(&mut self, step: impl FnOnce(&mut Self) -> Result<()>) {
        if self.error.is_none()
            && let Err(e) = step(self)
        {
            self.error = Some(format!("{e:#}"));
        }
    }

    fn age(&mut self) -> Result<()> {
        self.guests.iter().try_for_each(|g| age(&g.machine.guest))
    }

    /// The law begins.
    fn begin(
        &mut self,
        experiment: &Experiment,
        (repetition, seed): (u32, u64),
        network: Option<&Network>,
        zero: Instant,
    ) -> Result<()> {
        // See `collect`: what becomes of a guest when nobody helps is a question of its own.
        let alone = self.arm.law == Law::Sweep && repetition.is_multiple_of(2);
        for (place, guest) in self.guests.iter_mut().enumerate() {
            for phase in experiment.phases.iter().filter(|p| p.guest == place) {
                phase.work.prepare(&guest.machine.guest)?;
            }
        }
        for (guest, spec) in self.guests.iter_mut().zip(&experiment.guests) {
            let keep = match &self.arm.law {
                Law::Fixed(size) => size.or(spec.fixed).unwrap_or(spec.memory.share(3, 5)),
                Law::DeflateOnOom => spec.squeezed.unwrap_or(spec.min),
                _ => continue,
            };
            guest.machine.qmp.set_balloon(keep)?;
        }
        if let Some(groups) = &self.limits {
            let limit = |(guest, spec): (&Watched, &GuestSpec)| -> Result<restrict::Limit> {
                let size = spec.fixed.unwrap_or(spec.memory.share(3, 5));
                Ok(restrict::Limit { size, resident: guest.machine.resident()? })
            };
            groups.set(&self.guests.iter().zip(&experiment.guests).map(limit).collect::<Result<Vec<_>>>()?)?;
        }
        self.since = Some(Instant::now());
        if self.arm.has_daemon() {
            let machines: Vec<&Machine> = self.guests.iter().map(|g| &g.machine).collect();
            let mut config =
                config(self.arm, alone, &experiment.guests, experiment.budget, HostAgent::config(&machines));
            if let Some(period) = self.arm.probes {
                for machine in &machines {
                    machine.guest.iperf3_server(IPERF3)?;
                }
                let addresses = self.network.as_deref().context("probes need a network: add a [client] guest")?;
                probe(&mut config, period, addresses);
            }
            let began = zero.elapsed().as_secs_f64();
            let agent = match network.filter(|_| self.arm.probes.is_some()) {
                Some(network) => HostAgent::start_in(config, network),
                None => HostAgent::start(config),
            };
            let agent = agent?;
            let clock = (self.arm.law == Law::Sweep).then(|| clock(&agent, zero)).transpose()?;
            self.daemon = Some(Daemon { agent, began, clock });
        }
        if self.arm.has_agent() {
            let args: &[&str] = if self.arm.absorber { &["run", "--absorber"] } else { &["run"] };
            for guest in &self.guests {
                guest.machine.guest.start_agent(args)?;
            }
        }
        self.before = self.guests.iter().map(|g| g.machine.guest.counters()).collect::<Result<_>>()?;
        if self.arm.law == Law::Sweep {
            let now = zero.elapsed().as_secs_f64();
            let host = self.daemon.as_ref().filter(|_| !alone).map(|daemon| daemon.agent.config_path());
            for (place, (guest, spec)) in self.guests.iter_mut().zip(&experiment.guests).enumerate() {
                let sweep = Sweep::new(&spec.name, seed + place as u64, (spec.min, spec.memory), now);
                guest.sweep = Some((sweep, host.clone()));
            }
        }
        Ok(())
    }

    fn end(mut self, experiment: &Experiment, repetition: u32, oracle: bool, from: f64, journals: &Path) -> ArmRun {
        let agents_s = self.since.map(|since| since.elapsed().as_secs_f64());
        let mut run = ArmRun { arm: self.arm.name.clone(), agents_s, ..ArmRun::default() };
        for (number, guest) in self.guests.iter_mut().enumerate() {
            if let Some(lost) = guest.lost.take() {
                self.error.get_or_insert(format!("guest {}: {lost}", guest.machine.name()));
            }
            run.orders.extend(guest.sweep.take().map(|(s, _)| s.orders).unwrap_or_default());
            let mut totals = match (self.before.get(number), guest.machine.guest.counters()) {
                (Some(before), Ok(after)) => watch::between(before, &after),
                (_, Err(e)) => {
                    self.error.get_or_insert(format!("guest {}: {e:#}", guest.machine.name()));
                    Totals::default()
                }
                (None, Ok(_)) => Totals::default(),
            };
            (totals.resident_gib_s, totals.watched_s) = watch::held(&guest.series, from..f64::INFINITY);
            run.guests.push(GuestRun {
                name: guest.machine.name().to_owned(),
                memory_mib: guest.machine.size().as_mib(),
                series: std::mem::take(&mut guest.series),
                totals,
            });
        }
        run.phases = std::mem::take(&mut self.phases);
        run.over_budget_mib_s = experiment.budget.map(|budget| over(&run.guests, budget.mib_f64(), from));
        if let Some(Daemon { mut agent, began, clock }) = self.daemon.take() {
            run.clock_s = clock;
            let unmeasured = self.arm.probes.and_then(|_| unmeasured(&agent));
            run.host_agent_cpu_s = agent.pid().and_then(cpu_seconds).unwrap_or(0.0);
            let file = format!("{}-{repetition}-{}.jsonl", experiment.name, self.arm.name);
            let read = || -> Result<()> {
                agent.terminate()?;
                if !oracle {
                    std::fs::copy(agent.journal_path(), journals.join(file))?;
                }
                journal::read(&agent.journal_path(), began, &mut run)
            };
            if let Err(e) = read() {
                self.error.get_or_insert(format!("ballast-host: {e:#}"));
            }
            if self.arm.probes.is_some() && run.probes.iter().all(|p| p.mbit_s <= 0.0) {
                let why = unmeasured.unwrap_or_else(|| "the arm was too short for one".to_owned());
                self.error.get_or_insert(format!("no probe measured the service level: {why}"));
            }
        }
        run.error = self.error;
        run
    }
}

/// What the guests together held beyond the budget, MiB times seconds.
fn over(guests: &[GuestRun], budget_mib: f64, from: f64) -> f64 {
    let looks = guests.iter().map(|g| g.series.len()).min().unwrap_or(0);
    let at = |i: usize| guests.iter().map(|g| g.series[i].resident_mib).sum::<f64>();
    let Some(first) = guests.first() else { return 0.0 };
    let steps = (1..looks).filter(|&i| first.series[i - 1].t >= from);
    steps.map(|i| (at(i) - budget_mib).max(0.0) * (first.series[i].t - first.series[i - 1].t)).sum()
}

/// The daemon's file for an arm.
pub(super) fn config(
    arm: &Arm,
    alone: bool,
    guests: &[GuestSpec],
    budget: Option<Bytes>,
    mut config: toml::Table,
) -> toml::Table {
    let law = match &arm.law {
        Law::Host(name) => name.as_str(),
        Law::Sweep => "ballast",
        _ => "static",
    };
    if alone {
        config.insert("daemon".into(), toml::Table::from_iter([("dry-run".to_owned(), true.into())]).into());
    }
    let mut section = toml::Table::from_iter([("name".to_owned(), law.into())]);
    if law == "ballast" {
        let mut settings = arm.settings.clone();
        if arm.law == Law::Sweep {
            // No guest is quiet for so long: nothing is taken of its own accord. And no more is given unasked than the law of
            // survival wants, least of all because of a forecast: the next model would learn from what this one did.
            let fixed = [("cool-down", "1d"), ("headroom", "0MiB"), ("predictor", "off")];
            settings.extend(fixed.map(|(key, value)| (key.to_owned(), value.into())));
        }
        config.insert("defaults".into(), settings.into());
    } else if !arm.settings.is_empty() {
        section.insert(law.into(), arm.settings.clone().into());
    }
    config.insert("law".into(), section.into());
    if let Some(budget) = budget {
        let host = toml::Table::from_iter([("budget".to_owned(), format!("{}MiB", budget.as_mib()).into())]);
        config.insert("host".into(), host.into());
    }
    for (vm, spec) in config.get_mut("vm").and_then(|v| v.as_array_mut()).into_iter().flatten().zip(guests) {
        if let Some(vm) = vm.as_table_mut() {
            vm.insert("min".into(), format!("{}MiB", spec.min.as_mib()).into());
        }
    }
    config
}

/// Probes of each guest, far more often than an operator would have them: a block lasts minutes.
fn probe(config: &mut toml::Table, period: Micros, addresses: &[Ipv4Addr]) {
    let period = format!("{}us", period.0);
    let settings =
        [("period", period.as_str()), ("length", "200ms"), ("time-per-hour", "30m"), ("traffic-per-hour", "1TiB")];
    let settings = settings.map(|(key, value)| (key.to_owned(), value.into()));
    config.insert("prober".into(), toml::Table::from_iter(settings).into());
    for (vm, address) in config.get_mut("vm").and_then(|v| v.as_array_mut()).into_iter().flatten().zip(addresses) {
        let service =
            [("address".to_owned(), address.to_string().into()), ("port".to_owned(), i64::from(IPERF3).into())];
        if let Some(vm) = vm.as_table_mut() {
            vm.insert("service".into(), toml::Table::from_iter(service).into());
        }
    }
}

/// When a daemon's clock began, at the latest.
fn clock(agent: &HostAgent, zero: Instant) -> Result<f64> {
    let now = agent.status()?["now"].as_u64().context("the host agent's status tells no time")?;
    Ok(zero.elapsed().as_secs_f64() - now as f64 / 1e6)
}

/// Why a service level is not measured.
fn unmeasured(agent: &HostAgent) -> Option<String> {
    let status = agent.status().ok()?;
    let problems =
        status["probes"].as_array()?.iter().filter_map(|p| Some((p["vm"].as_str()?, p["problem"].as_str()?)));
    problems.map(|(vm, problem)| format!("{vm}: {problem}")).next()
}

/// CPU time of a process so far, seconds.
fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(cpu_ticks(&stat)? as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Its own and that of the children it has waited for: iperf3, where it probes.
fn cpu_ticks(stat: &str) -> Option<u64> {
    // The name may hold spaces; it ends with the last parenthesis. utime, stime, cutime and cstime are fields 14 to 17
    // (proc(5)).
    let mut fields = stat.rsplit(')').next()?.split_whitespace().skip(11);
    (0..4).try_fold(0, |sum, _| Some(sum + fields.next()?.parse::<u64>().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_differ_by_seed_and_by_phase_and_are_the_same_again() {
        let rounds = |seed| {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            (0..8).map(|_| turns(&mut random, 9)).collect::<Vec<_>>()
        };
        assert_eq!(rounds(1), rounds(1));
        assert_ne!(rounds(1), rounds(2));
        assert!(rounds(1).windows(2).any(|r| r[0] != r[1]));
        for mut round in rounds(3) {
            round.sort_unstable();
            assert_eq!(round, (0..9).collect::<Vec<_>>(), "everybody has a turn");
        }
    }

    #[test]
    fn a_size_that_was_killed_takes_the_smaller_ones_with_it_and_static_is_judged_by_nobody() {
        let phase = |index, killed, unfinished| {
            let outcome = crate::lab::work::Outcome { killed, unfinished, ..Default::default() };
            PhaseRun { index, outcome, ..PhaseRun::default() }
        };
        let size = |mib| Some(Bytes::mib(mib));
        let judged = |arms: &[(Option<Bytes>, Vec<PhaseRun>)]| hopeless(arms.iter().map(|(s, p)| (*s, p)));
        let fine = || vec![phase(0, 0, false)];
        assert_eq!(judged(&[(None, vec![phase(0, 9, true)]), (size(200), fine()), (size(300), fine())]), None);
        let killed = vec![phase(0, 0, false), phase(1, 1, false)];
        assert_eq!(judged(&[(None, fine()), (size(200), killed), (size(300), fine())]), size(200));
        // Late is what `static` was not, once that is known.
        let late = || vec![phase(0, 0, true)];
        assert_eq!(judged(&[(size(200), late()), (None, Vec::new())]), None);
        assert_eq!(judged(&[(size(200), late()), (None, late())]), None);
        assert_eq!(judged(&[(size(200), late()), (size(300), late()), (None, fine())]), size(300));
    }

    #[test]
    fn no_phase_begins_after_the_deadline_and_none_takes_much_longer() {
        let patience = Duration::from_secs(120);
        let now = Instant::now();
        assert_eq!(time_for(patience, None, now), Some(patience));
        assert_eq!(time_for(patience, Some(now + patience), now), Some(patience));
        let soon = now + Duration::from_secs(5);
        assert_eq!(time_for(patience, Some(soon), now), Some(Duration::from_secs(5) + GRACE));
        assert_eq!(time_for(patience, Some(soon), soon), None);
        assert_eq!(time_for(patience, Some(now), soon), None);
    }

    #[test]
    fn cpu_time_is_also_that_of_the_prober() {
        let stat = "42 (a (b) c) S 1 42 42 0 -1 4194304 900 80 0 0 7 5 300 40 20 0 8 0 1234";
        assert_eq!(cpu_ticks(stat), Some(7 + 5 + 300 + 40));
        assert_eq!(cpu_ticks("42 (x) S 1"), None);
        assert!(cpu_seconds(std::process::id()).is_some());
    }

    #[test]
    fn what_is_beyond_the_budget_counts_from_the_first_phase_on() {
        use super::super::results::Look;
        let guest = |mib: [f64; 4]| GuestRun {
            series: mib
                .iter()
                .zip(0u8..)
                .map(|(&m, t)| Look { t: t.into(), resident_mib: m, ..Look::default() })
                .collect(),
            ..GuestRun::default()
        };
        let guests = [guest([300.0, 300.0, 200.0, 100.0]), guest([300.0, 200.0, 200.0, 100.0])];
        // 500 and 400 MiB are held at 1 and 2 s, for a second each; what came before does not count.
        assert_eq!(over(&guests, 350.0, 0.0), 150.0 + 50.0);
        assert_eq!(over(&guests, 350.0, 1.0), 50.0);
        assert_eq!(over(&[], 350.0, 0.0), 0.0);
    }
}
