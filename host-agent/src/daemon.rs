//! The daemon: one task that owns the planner and the journal. All others send it events and are sent commands.
//!
//! ```text
//!   sessions, actuators, hypervisor events, control API
//!        | Event (one bounded channel)
//!        v
//!   journal <- Input -> Planner -> Action -> journal
//!                                    |-> Order, Watch   -> actuator of the VM
//!                                    |-> Probe          -> prober
//!                                    |-> Answer, Reclaim -> session of the VM
//!                                    '-> Notice          -> log
//! ```

mod discover;
mod dispatch;
mod listen;
mod operate;
pub mod reload;
mod seen;
mod settings;

use crate::actuator::{self, Command, Polling};
use crate::clock::Clock;
use crate::config::{Config, OnExit};
use crate::control;
use crate::forecaster::{self, Forecaster};
use crate::host_memory;
use crate::hypervisor;
use crate::journal::{Journal, JournalError, Record};
use crate::metrics::{self, Depth, Metrics, Snapshot};
use crate::notify::Notifier;
use crate::prober::{self, ProbeStatus, Prober, Target};
use crate::session::{self, Admission, Opening};
use crate::transport::{self, Listener, Peer, Stream};
use ballast_planner::{Forecast, Input, LawSettings, Mode, Planner, VmName, VmStatus};
use ballast_protocol::{Answer, Bytes, GuestMessage, Hello, HostMessage, Micros, Refusal, Shortfall, Verdict};
pub use discover::{Backend, Backends};
pub use reload::Reloaded;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::Path;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Duration, sleep_until, timeout};

/// Events that may wait. A thousand guests at their rate limits fill it in milliseconds only if the planner stood
/// still, and then waiting is right.
const EVENTS: usize = 4096;
/// How long orders under way are waited for when the daemon stops.
const DRAIN: Duration = Duration::from_secs(5);
/// Decisions remembered per VM for `explain`.
const REMEMBERED: usize = 32;

/// What reaches the daemon's task.
#[derive(Debug)]
pub enum Event {
    /// Something for the planner, from an actuator.
    Input(Input),
    /// Forecasts that were made together.
    Forecasts(Vec<(VmName, Forecast)>),
    /// A guest said something; when its frame was read.
    Guest {
        /// Whose.
        vm: VmName,
        /// When.
        received: Micros,
        /// What.
        message: GuestMessage,
    },
    /// A guest introduced itself.
    SessionOpens(Opening),
    /// A session ended.
    SessionEnded {
        /// Whose.
        vm: VmName,
        /// Which.
        number: u64,
        /// For people.
        why: String,
    },
    /// A session measured its guest's clock.
    Clock {
        /// Whose.
        vm: VmName,
        /// Guest minus host, microseconds.
        offset: i64,
        /// Round trip of the measurement.
        round_trip: Micros,
    },
    /// An order went to the hypervisor.
    Issued {
        /// Whose.
        vm: VmName,
        /// Which.
        order: u64,
        /// When the call began.
        at: Micros,
        /// How long it took.
        took: Micros,
    },
    /// The hypervisors that may have this VM should be asked anew.
    Rediscover(VmName),
    /// A hypervisor answered which VMs there are.
    Discovered {
        /// Which hypervisor.
        backend: usize,
        /// Its VMs.
        vms: Result<Vec<hypervisor::VmFacts>, String>,
    },
    /// A hypervisor says that something happened.
    Hypervisor(hypervisor::Event),
    /// A VM's service was probed.
    Probed(ProbeStatus),
    /// Somebody asks.
    Query(control::Query),
    /// Metrics or the page are wanted.
    Look {
        /// How much of it.
        depth: Depth,
        /// Where to.
        reply: oneshot::Sender<Box<Snapshot>>,
    },
    /// The configuration file is to be read again; what came of it is told.
    Reload(oneshot::Sender<Reloaded>),
}

/// A daemon that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A hypervisor.
    #[error("hypervisor")]
    Hypervisor(#[from] hypervisor::Error),
    /// A listener for agents.
    #[error("listening for guest agents")]
    Transport(#[from] transport::Error),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] control::ServeError),
}

struct Managed {
    backend: usize,
    facts: hypervisor::VmFacts,
    commands: mpsc::UnboundedSender<Command>,
    task: JoinHandle<()>,
}

struct Session {
    number: u64,
    hello: Hello,
    outgoing: mpsc::Sender<HostMessage>,
    running: watch::Sender<bool>,
}

/// Everything the daemon's task owns.
pub struct Daemon {
    config: Config,
    /// The tables of its file that are not used, and what that means.
    refused: Vec<String>,
    clock: Clock,
    planner: Planner,
    journal: Option<Journal>,
    backends: Backends,
    vms: BTreeMap<VmName, Managed>,
    metadata: BTreeMap<VmName, settings::Metadata>,
    sessions: BTreeMap<VmName, Session>,
    next_session: u64,
    remembered: BTreeMap<VmName, VecDeque<control::Decision>>,
    events: mpsc::Sender<Event>,
    inbox: mpsc::Receiver<Event>,
    listener: Listener,
    /// VMs whose hybrid vsock cannot be had, and why.
    unheard: BTreeMap<VmName, String>,
    prober: mpsc::UnboundedSender<prober::Command>,
    probing: JoinHandle<()>,
    probed: BTreeMap<VmName, ProbeStatus>,
    /// The model; why there are no forecasts.
    forecaster: Result<Forecaster, String>,
    operated: operate::Operated,
    metrics: Metrics,
    /// When the clock began, seconds since 1970.
    started: f64,
    web: Option<SocketAddr>,
    /// Whether the host's memory could be read last time: a failure is told once.
    host_read: bool,
    notifier: Notifier,
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Daemon").field("planner", &self.planner).finish_non_exhaustive()
    }
}

impl Daemon {
    /// Binds everything: what cannot be had is known before the first decision. What only one VM or nobody's memory
    /// depends on is told and done without: a host without this daemon is worse.
    ///
    /// # Errors
    /// The journal, AF_VSOCK or the control socket cannot be had, or another daemon has it.
    pub async fn start(mut config: Config) -> Result<Self, StartError> {
        let clock = Clock::start();
        let refused: Vec<String> = config.refused.iter().map(|table| reload::told(&config, table)).collect();
        for table in &refused {
            tracing::error!("{table}");
        }
        let (events, inbox) = mpsc::channel(EVENTS);
        let planner = Planner::new();
        // First the sockets: they tell whether another daemon is at work, whose journal must not be moved aside.
        control::serve(&config.daemon.control_socket, config.daemon.control_group.as_deref(), events.clone()).await?;
        let web = match &config.metrics {
            Some(settings) => listen::serve_now_or_later(settings, &events).await,
            None => None,
        };
        let mut listener = match Listener::bind(&config.daemon) {
            // Wanted for a table that is wrong, which may be wrong about that, too.
            Err(error) if !config.needs_vsock() && config.refused.iter().any(|r| r.has_cid) => {
                tracing::warn!("{}", crate::chain(&error));
                config.daemon.vsock = false;
                Listener::bind(&config.daemon)?
            }
            listener => listener?,
        };
        let unheard = listen::for_all(&mut listener, &config).await?;
        let journal = if config.journal.enabled {
            Some(Journal::begin(&config.journal.path, config.journal.max_size.0, &planner, clock.now())?)
        } else {
            None
        };
        let forecaster = Forecaster::start(config.daemon.model.as_deref(), events.clone()).map_err(|error| {
            let why = crate::chain(&error);
            tracing::warn!(error = why, "no forecasts: the reactive law goes on without");
            format!("no forecasts: {why}")
        });
        let operated = operate::Operated::load(&config.daemon.state_dir, clock.now());
        let backends = Backends::new(&config, &events)?;
        let (prober, commands) = mpsc::unbounded_channel();
        let targets = targets(&config.vms);
        let task = Prober::new(config.prober.clone(), &targets, commands, events.clone(), clock);
        let probing = tokio::spawn(task.run());
        Ok(Self {
            config,
            refused,
            clock,
            planner,
            journal,
            backends,
            vms: BTreeMap::new(),
            metadata: BTreeMap::new(),
            sessions: BTreeMap::new(),
            next_session: 0,
            remembered: BTreeMap::new(),
            events,
            inbox,
            listener,
            unheard,
            prober,
            probing,
            probed: BTreeMap::new(),
            forecaster,
            operated,
            metrics: Metrics::default(),
            started: std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0.0, |d| d.as_secs_f64()),
            web,
            host_read: true,
            notifier: Notifier::from_environment(),
        })
    }

    /// Where metrics and the status page are, if they were served from the start.
    #[must_use]
    pub const fn web(&self) -> Option<SocketAddr> {
        self.web
    }

    /// Runs until `stop` resolves, then drains: orders under way are finished, guests are told, sockets removed.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        tracing::info!(
            vms = self.config.vms.len(),
            law = %self.config.law.name(),
            control = %self.config.daemon.control_socket.display(),
            page = self.web.map(|address| format!("http://{address}/")),
            "ballast-host runs"
        );
        let (law, budget, reserve) = (self.config.law.clone(), self.config.budget, self.config.reserve);
        // Before any VM: nothing is decided by one law and undone by another.
        if self.is_dry_run() {
            tracing::warn!("a dry run: everything is decided and written down, and no VM is moved");
            self.tell_mode();
        }
        if budget.is_some() || reserve.is_some() {
            self.input(Input::Pool { budget, reserve });
        }
        if law != LawSettings::Ballast {
            self.input(Input::Law { law });
        }
        self.resume_operated();
        let mut hangups = signal(SignalKind::hangup())
            .inspect_err(|error| tracing::warn!(%error, "SIGHUP cannot be heard: use `ballast-host reload`"))
            .ok();
        let mut next_host = tokio::time::Instant::now();
        self.rediscover();
        // Not when they have answered: a libvirtd that is away is waited for, and guests come by vsock meanwhile.
        self.tell_status();
        self.notifier.ready();
        tokio::pin!(stop);
        let mut next_discovery = tokio::time::Instant::now() + discover::EVERY;
        let mut next_listening = tokio::time::Instant::now() + listen::PAUSE;
        let mut next_look = tokio::time::Instant::now();
        let mut next_forecast = tokio::time::Instant::now() + forecaster::TURN;
        let mut turn = 0;
        loop {
            self.notifier.alive();
            let alive = self.notifier.due();
            if self.inbox.is_empty()
                && let Some(journal) = &mut self.journal
            {
                journal.flush();
            }
            let deadline = self.planner.deadline();
            let wake = self.clock.instant(deadline.unwrap_or(Micros::MAX));
            tokio::select! {
                biased;
                () = &mut stop => break,
                () = hung_up(&mut hangups) => drop(self.reload().await),
                event = self.inbox.recv() => match event {
                    Some(event) => self.event(event).await,
                    None => break,
                },
                (peer, stream) = self.listener.accept() => self.connected(peer, stream),
                () = sleep_until(wake), if deadline.is_some() => self.input(Input::Wake),
                // Only to begin another turn.
                () = sleep_until(alive.unwrap_or(next_discovery)), if alive.is_some() => {}
                () = sleep_until(next_host) => {
                    next_host = tokio::time::Instant::now() + host_memory::EVERY;
                    if self.config.budget.is_none() && self.planner.law().needs_host() {
                        self.read_host();
                    }
                }
                () = sleep_until(next_forecast), if self.forecaster.is_ok() => {
                    next_forecast = tokio::time::Instant::now() + forecaster::TURN;
                    turn = (turn + 1) % forecaster::TURNS;
                    self.ask_for_forecasts(turn);
                }
                () = sleep_until(next_listening), if !self.unheard.is_empty() => {
                    next_listening = tokio::time::Instant::now() + listen::PAUSE;
                    self.listen_again().await;
                }
                () = sleep_until(next_look), if self.config.metrics.is_some() => {
                    next_look = tokio::time::Instant::now() + metrics::EVERY;
                    self.metrics.look(self.clock.now(), &self.planner);
                }
                () = sleep_until(next_discovery) => {
                    let round = self.look_regularly();
                    next_discovery = tokio::time::Instant::now() + round.pause;
                    if round.is_complete {
                        self.tell_status();
                    }
                }
            }
        }
        self.notifier.stopping();
        self.drain().await;
    }

    /// The line that `systemctl status` shows, as old as the last look for VMs.
    fn tell_status(&mut self) {
        let mut text = format!("{} VMs, {} with an agent", self.vms.len(), self.sessions.len());
        let away = self.backends.status().iter().filter(|b| b.error.is_some()).count();
        if away > 0 {
            text += &format!(", {away} hypervisors do not answer");
        }
        if let Some(host) = self.planner.host_status(self.clock.now()).filter(|h| h.short > Bytes::ZERO) {
            text += &format!(", the host is short by {}", host.short);
        }
        if self.is_dry_run() {
            text += ", a dry run";
        }
        if !self.problems().is_empty() {
            text += ", `ballast-host status` names what is wrong";
        }
        self.notifier.status(text);
    }

    /// What waits for somebody to mend it.
    fn problems(&self) -> Vec<String> {
        let metadata = self.metadata.iter().filter_map(|(vm, m)| Some(format!("VM `{vm}`: {}", m.problem.as_ref()?)));
        let lost = self.operated.said.lost.iter();
        let wanted = self.planner.vms().any(|(_, vm)| vm.settings.predictor != Mode::Off);
        let model = self.forecaster.as_ref().err().filter(|_| wanted);
        lost.chain(model).chain(&self.refused).chain(self.unheard.values()).cloned().chain(metadata).collect()
    }

    async fn event(&mut self, event: Event) {
        match event {
            Event::Input(input) => self.input(input),
            Event::Forecasts(all) => {
                all.into_iter().for_each(|(vm, forecast)| self.input(Input::Forecast { vm, forecast }))
            }
            Event::Guest { vm, received, message } => self.guest(vm, received, message),
            Event::SessionOpens(opening) => self.open_session(opening),
            Event::SessionEnded { vm, number, why } => self.end_session(vm, number, why),
            Event::Clock { vm, offset, round_trip } => {
                let at = self.clock.now();
                self.record(&Record::Clock { at, vm, offset, round_trip });
            }
            Event::Issued { vm, order, at, took } => {
                self.metrics.issued(order, at, took);
                self.record(&Record::Issued { at, vm, order, took });
            }
            Event::Rediscover(vm) => self.rediscover_vm(&vm),
            Event::Discovered { backend, vms } => self.discovered(backend, vms),
            Event::Hypervisor(event) => self.hypervisor_event(event),
            Event::Probed(status) => drop(self.probed.insert(status.vm.clone(), status)),
            Event::Query(query) => self.query(query),
            // Whoever asked may have gone.
            Event::Look { depth, reply } => drop(reply.send(Box::new(self.look(depth)))),
            Event::Reload(reply) => {
                let reloaded = self.reload().await;
                // Who asked may have gone.
                let _ = reply.send(reloaded);
            }
        }
    }

    fn record(&mut self, record: &Record) {
        if let Some(journal) = &mut self.journal {
            journal.write(record);
        }
    }

    /// The one way into the planner.
    fn input(&mut self, input: Input) {
        let at = self.clock.now();
        if let Some(journal) = &mut self.journal {
            journal.rotate(&self.planner, at);
            journal.write(&Record::Input { at, input: input.clone() });
        }
        let vm = if let Input::Running { vm, .. } | Input::Vm { vm, .. } = &input { Some(vm.clone()) } else { None };
        let quiet_end = seen::quiet_end(&input);
        self.planner.handle(at, input);
        if let Some(vm) = vm {
            self.tell_running(&vm);
        }
        while let Some(action) = self.planner.poll_action() {
            self.dispatch(at, action);
        }
        if let Some(vm) = quiet_end {
            self.heard(at, &vm);
        }
    }

    /// Of the VMs whose turn it is.
    fn ask_for_forecasts(&mut self, turn: usize) {
        let Ok(forecaster) = &self.forecaster else { return };
        let now = self.clock.now();
        let turns = self.planner.vms().skip(turn).step_by(forecaster::TURNS);
        let wanted = turns.filter(|(_, vm)| vm.settings.predictor != Mode::Off);
        let all = wanted.filter_map(|(name, _)| Some((name.clone(), self.planner.features(now, name)?))).collect();
        if !forecaster.ask(now, all) {
            let why = format!(
                "no forecasts: the model {} panicked, as the log says; a restart tries it again",
                forecaster.name()
            );
            self.forecaster = Err(why);
        }
    }

    fn read_host(&mut self) {
        match host_memory::read(Path::new("/proc")) {
            Ok(host) => {
                self.host_read = true;
                self.input(Input::Host(host));
            }
            Err(error) => {
                if std::mem::replace(&mut self.host_read, false) {
                    let (error, law) = (crate::chain(&error), self.planner.law());
                    tracing::warn!(%error, %law, "the host's memory cannot be read: nothing limits what VMs are given together");
                }
            }
        }
    }

    fn guest(&mut self, vm: VmName, received: Micros, message: GuestMessage) {
        self.hear(&vm, received, &message);
        if let GuestMessage::Demand(demand) = &message {
            let id = demand.id;
            if self.planner.vm(&vm).is_none() {
                // The guest is faster than the hypervisor; its demand is answered all the same (promise P5).
                let verdict = Verdict::Refused(Shortfall::NoBalloon);
                return self.say(&vm, HostMessage::Answer(Answer { id, verdict }));
            }
            self.record(&Record::Received { at: received, vm: vm.clone(), demand: id });
        }
        self.input(Input::Guest { vm, message });
    }

    fn connected(&mut self, peer: Peer, stream: Stream) {
        let vm = match peer {
            Peer::Vm(vm) => vm,
            Peer::Cid(cid) => match self.vm_of_cid(cid) {
                Some(vm) => vm,
                None => {
                    tracing::warn!(cid, "no VM is known by this CID: connection refused; name it in [[vm]] cid = …");
                    self.listener.refuser().refuse(stream, Refusal::UnknownVm);
                    return;
                }
            },
        };
        tokio::spawn(session::serve(stream, vm, self.events.clone(), self.clock));
    }

    fn open_session(&mut self, opening: Opening) {
        let Opening { vm, hello, outgoing, answer } = opening;
        if self.sessions.contains_key(&vm) {
            tracing::warn!(%vm, "a second agent is refused while the first lives");
            let _ = answer.send(Err(Refusal::Occupied));
            return;
        }
        self.next_session += 1;
        let number = self.next_session;
        let is_running = self.planner.vm(&vm).is_none_or(|v| v.facts.running);
        let (running, theirs) = watch::channel(is_running);
        if answer.send(Ok(Admission { number, running: theirs })).is_err() {
            return;
        }
        tracing::info!(%vm, agent = hello.agent.as_str(), kernel = hello.kernel.as_str(), "agent connected");
        self.sessions.insert(vm.clone(), Session { number, hello: hello.clone(), outgoing, running });
        self.command(&vm, Command::Agent(true));
        self.input(Input::Guest { vm, message: GuestMessage::Hello(hello) });
    }

    /// A session must not take a paused guest's silence for its death.
    fn tell_running(&self, vm: &VmName) {
        let runs = self.planner.vm(vm).is_some_and(|v| v.facts.running);
        self.probe(prober::Command::Runs(vm.clone(), runs));
        if let (Some(session), Some(known)) = (self.sessions.get(vm), self.planner.vm(vm)) {
            session.running.send_if_modified(|r| std::mem::replace(r, known.facts.running) != known.facts.running);
        }
    }

    /// Tells the prober, which may have ended only because this daemon does.
    fn probe(&self, command: prober::Command) {
        let _ = self.prober.send(command);
    }

    fn end_session(&mut self, vm: VmName, number: u64, why: String) {
        if self.sessions.get(&vm).is_some_and(|s| s.number == number) {
            self.sessions.remove(&vm);
            self.command(&vm, Command::Agent(false));
            self.input(Input::AgentLost { vm, why });
        }
    }

    fn query(&mut self, query: control::Query) {
        let now = self.clock.now();
        match query {
            control::Query::Status(reply) => {
                let vms = self.planner.vms().map(|(name, vm)| VmStatus::of(name, vm, now)).collect();
                let hypervisors = self.backends.status();
                let waiting = self
                    .config
                    .vms
                    .iter()
                    .filter(|v| self.planner.vm(&v.name).is_none())
                    .map(|v| control::Waiting { name: v.name.clone(), agent: self.sessions.contains_key(&v.name) })
                    .collect();
                let status = control::Status {
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    pid: std::process::id(),
                    up: now,
                    config: self.config.file.clone(),
                    law: self.planner.law(),
                    dry_run: self.is_dry_run(),
                    host: self.planner.host_memory(now),
                    pool: self.planner.host_status(now),
                    now,
                    journal: self.config.journal.enabled.then(|| self.config.journal.path.clone()),
                    hypervisors,
                    vms,
                    waiting,
                    probes: self.probed.values().cloned().collect(),
                    problems: self.problems(),
                };
                let _ = reply.send(status);
            }
            control::Query::Explain(vm, reply) => {
                let explained = self.planner.vm(&vm).map(|v| control::Explained {
                    status: VmStatus::of(&vm, v, now),
                    law: self.planner.law(),
                    now,
                    probe: self.probed.get(&vm).cloned(),
                    decisions: self.remembered.get(&vm).map(|d| d.iter().cloned().collect()).unwrap_or_default(),
                });
                let _ = reply.send(explained);
            }
            control::Query::Reclaim(who, request, reply) => drop(reply.send(self.reclaim(&who, &request))),
            control::Query::Change(who, change, reply) => self.change(&who, change, reply),
        }
    }

    /// What guests and operators asked before the daemon was told to stop (promise P5). Guests go on talking: as much as can
    /// wait, and no more.
    async fn answer_queued(&mut self) {
        for _ in 0..EVENTS {
            let Ok(event) = self.inbox.try_recv() else { return };
            self.event(event).await;
        }
    }

    async fn drain(mut self) {
        tracing::info!(vms = self.vms.len(), "stopping: finishing orders under way");
        if timeout(DRAIN, self.answer_queued()).await.is_err() {
            tracing::warn!("not all that waited was answered in {DRAIN:?}");
        }
        if self.config.daemon.on_exit == OnExit::Release {
            for vm in self.vms.keys().cloned().collect::<Vec<_>>() {
                self.input(Input::Release { vm });
            }
        }
        // With it goes its iperf3.
        self.probing.abort();
        // Dropping the senders ends the sessions, each with a goodbye.
        self.sessions.clear();
        for managed in self.vms.values() {
            let _ = managed.commands.send(Command::Finish);
        }
        let (inbox, vms) = (&mut self.inbox, std::mem::take(&mut self.vms));
        let finished = async {
            let all = async {
                for managed in vms.into_values() {
                    // A task that panicked has nothing under way any more.
                    let _ = managed.task.await;
                }
            };
            // The actuators report into the inbox, which must not fill up while they finish.
            tokio::select! {
                () = all => {}
                () = async { while inbox.recv().await.is_some() {} } => {}
            }
        };
        if timeout(DRAIN, finished).await.is_err() {
            tracing::warn!("a hypervisor did not finish an order in {DRAIN:?}; its VM stays as it is");
        }
        if timeout(DRAIN, self.operated.finish()).await.is_err() {
            tracing::warn!("what operators said could not be written in {DRAIN:?}");
        }
        // Long enough for a goodbye on a local socket; nobody is harmed if it is not.
        tokio::time::sleep(Duration::from_millis(50)).await;
        // Everything is written, if the disk takes it.
        self.journal = None;
        control::remove(&self.config.daemon.control_socket);
        tracing::info!("stopped");
    }
}

/// The VMs whose service is measured.
fn targets(vms: &[crate::config::Vm]) -> Vec<Target> {
    let target =
        |vm: &crate::config::Vm| Target { vm: vm.name.clone(), service: vm.service, interface: vm.interface.clone() };
    vms.iter().map(target).collect()
}

/// Waits for a SIGHUP, for ever if none can be heard.
async fn hung_up(hangups: &mut Option<Signal>) {
    let heard = match hangups {
        Some(hangups) => hangups.recv().await,
        None => None,
    };
    if heard.is_none() {
        std::future::pending::<()>().await;
    }
}

/// Starts the actuator of a VM; `None`: its hypervisor has been taken out meanwhile.
fn manage(daemon: &Daemon, backend: usize, facts: hypervisor::VmFacts) -> Option<Managed> {
    let (commands, queue) = mpsc::unbounded_channel();
    let hypervisor = daemon.backends.get(backend)?.hypervisor();
    let name = facts.name.clone();
    let polling = Polling::under(daemon.planner.law());
    let task = tokio::spawn(actuator::run(name, hypervisor, queue, daemon.events.clone(), daemon.clock, polling));
    Some(Managed { backend, facts, commands, task })
}

#[cfg(test)]
mod tests;
