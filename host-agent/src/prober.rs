//! Measures the service level of VMs: short runs of the real iperf3 against a server in each, and the counters of
//! their interfaces as the cheap version.
//!
//! ```text
//!   daemon --Command--> this task --Schedule--> iperf3 -J -c ADDRESS   one at a time on a host, killed with us
//!      ^                    |  '--------------> /proc/net/dev          every five seconds
//!      '-- Event::Probed, Input::Service <------'
//! ```
//! One probe at a time, or probes of two VMs would measure each other. What a probe costs is bounded per VM, in time
//! and in bytes an hour (see [`Settings`]). A server that is absent, hangs or talks nonsense costs one message and is
//! asked less and less often; nothing else in the daemon waits for any of this.

mod counters;
mod iperf3;
mod schedule;

pub use iperf3::{Measured, Problem};
pub use schedule::{Plan, Schedule};

use crate::clock::Clock;
use crate::daemon::Event;
use ballast_planner::{Input, ProbeWhy, ServiceMode, ServiceSample, VmName};
use ballast_protocol::{Bytes, Micros};
use counters::Counters;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use tokio::sync::mpsc;
use tokio::time::sleep_until;

/// Where iperf3 servers listen unless told otherwise (iperf3(1)).
pub const DEFAULT_PORT: u16 = 5201;

/// The prober's settings. The defaults cost a VM a third of a percent of the time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Probe at all; counters are read in any case.
    pub enabled: bool,
    /// How.
    pub mode: ServiceMode,
    /// How long from one regular probe of a VM to its next.
    pub period: Micros,
    /// How long a probe is to take. 200 ms are some hundred round trips of a slow guest, and shorter than what users
    /// notice.
    pub length: Micros,
    /// Bits per second of a rate-limited probe.
    pub rate: u64,
    /// Probing time for each VM in an hour. 36 s are 1 %.
    pub time_per_hour: Micros,
    /// Probing traffic for each VM in an hour. 2 GiB are 60 probes of 200 ms at 1.4 Gbit/s.
    pub traffic_per_hour: Bytes,
    /// The program; `None`: `iperf3` in the path.
    pub program: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            enabled: true,
            mode: ServiceMode::Unlimited,
            period: Micros::secs(60),
            length: Micros::millis(200),
            rate: 50_000_000,
            time_per_hour: Micros::secs(36),
            traffic_per_hour: Bytes::mib(2048),
            program: None,
        }
    }
}

/// A VM that is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Which.
    pub vm: VmName,
    /// Its iperf3 server.
    pub service: Option<SocketAddr>,
    /// Its network interface on this host.
    pub interface: Option<String>,
}

/// What the daemon tells the prober.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A VM runs, or does not any more.
    Runs(VmName, bool),
    /// A VM asks for memory, or its balloon moves: not now, please.
    Disturbed(VmName),
    /// The planner wants to know.
    Asked(VmName, ProbeWhy),
}

/// How it goes with a VM, for people and programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeStatus {
    /// Which VM.
    pub vm: VmName,
    /// Its server.
    pub service: SocketAddr,
    /// Probes that measured something.
    pub probes: u64,
    /// Probes that did not.
    pub failures: u64,
    /// What went wrong with the last one.
    pub problem: Option<String>,
    /// Time spent in probes.
    pub time: Micros,
    /// Bytes sent by probes.
    pub traffic: Bytes,
}

/// The prober's task.
#[derive(Debug)]
pub struct Prober {
    settings: Settings,
    schedule: Schedule,
    counters: Counters,
    commands: mpsc::UnboundedReceiver<Command>,
    events: mpsc::Sender<Event>,
    clock: Clock,
    told_missing: bool,
}

impl Prober {
    /// A prober of these VMs; none of them is probed before it is said to run.
    #[must_use]
    pub fn new(
        settings: Settings,
        targets: &[Target],
        commands: mpsc::UnboundedReceiver<Command>,
        events: mpsc::Sender<Event>,
        clock: Clock,
    ) -> Self {
        let schedule = Schedule::new(&settings, targets, clock.now());
        let counters = Counters::new(targets, clock.now());
        Self { settings, schedule, counters, commands, events, clock, told_missing: false }
    }

    /// Runs until the daemon is gone.
    pub async fn run(mut self) {
        loop {
            let now = self.clock.now();
            while let Ok(command) = self.commands.try_recv() {
                self.schedule.heed(now, command);
            }
            if let Some(plan) = self.schedule.begin(now) {
                let samples = self.counters.until_probe(&plan.vm, now);
                if self.hand_in(samples).await.is_none() || self.probe(plan).await.is_none() {
                    return;
                }
                continue;
            }
            let wake = self.schedule.next().unwrap_or(Micros::MAX).min(self.counters.next());
            tokio::select! {
                command = self.commands.recv() => match command {
                    None => return,
                    Some(command) => self.schedule.heed(self.clock.now(), command),
                },
                () = sleep_until(self.clock.instant(wake)) => {
                    let samples = self.counters.read(self.clock.now());
                    if self.hand_in(samples).await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    /// `None`: the daemon is gone.
    async fn hand_in(&self, samples: Vec<(VmName, ServiceSample)>) -> Option<()> {
        for (vm, sample) in samples {
            self.events.send(Event::Input(Input::Service { vm, sample })).await.ok()?;
        }
        Some(())
    }

    /// One probe. `None`: the daemon is gone.
    async fn probe(&mut self, plan: Plan) -> Option<()> {
        let begun = self.clock.now();
        let outcome = match iperf3::find(self.settings.program.as_ref()) {
            Some(program) => iperf3::probe(&program, &plan).await,
            None => Err(Problem::NotInstalled),
        };
        let now = self.clock.now();
        self.counters.probed(&plan.vm, now);
        let before = self.schedule.problem(&plan.vm);
        let status = self.schedule.done(now, &plan.vm, now - begun, &outcome);
        self.tell(&plan, before.as_deref(), &outcome);
        let input = outcome.ok().map(|measured| Input::Service {
            vm: plan.vm,
            sample: ServiceSample { duration: now - begun, ..measured.sample },
        });
        self.events.send(Event::Probed(status)).await.ok()?;
        if let Some(input) = input {
            self.events.send(Event::Input(input)).await.ok()?;
        }
        Some(())
    }

    /// The first of a row of problems is news, and so is its end.
    fn tell(&mut self, plan: &Plan, before: Option<&str>, outcome: &Result<Measured, Problem>) {
        let vm = &plan.vm;
        match outcome {
            Err(problem @ Problem::NotInstalled) => {
                if !std::mem::replace(&mut self.told_missing, true) {
                    tracing::warn!("{problem}");
                }
            }
            Err(problem) if before == Some(problem.to_string().as_str()) => {
                tracing::debug!(%vm, "the service level is not measured: {problem}");
            }
            Err(problem) => {
                tracing::warn!(%vm, "the service level of VM {vm} is not measured: {problem}");
            }
            Ok(measured) => {
                self.told_missing = false;
                if before.is_some() {
                    tracing::info!(%vm, "the service level of VM {vm} is measured again");
                }
                let mbits = measured.sample.throughput / 1_000_000;
                tracing::debug!(%vm, mbits, why = ?plan.why, "probed");
            }
        }
    }
}
