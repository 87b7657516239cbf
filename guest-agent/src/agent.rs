//! The one loop that owns all state.
//!
//! ```text
//!            +--------------------- select ---------------------+
//!   link --->| Welcome, Answer, Reclaim, Ping                   |---> Demand, Withdraw, Relief (never dropped)
//!   timer -->| look at slack, Committed_AS, reliefs, deadlines  |---> Telemetry (newest wins)
//!   thread ->| PSI triggers, memory.events                      |---> memory.high (absorber)
//!   socket ->| need, status                                     |---> memory.reclaim (on a thread)
//!   signal ->| SIGTERM, SIGINT                                  |---> Goodbye
//!            +--------------------------------------------------+
//! ```
//!
//! Time is CLOCK_MONOTONIC in [`Micros`] throughout; one timer is set to the earliest of all deadlines. This file is
//! the loop; `watch` looks and asks, `session` keeps the connection, `leases` the promises made to `need`.

mod leases;
mod session;
mod watch;

use crate::absorber::{self, Absorber};
use crate::demand::committed::CommittedWatch;
use crate::demand::edges::Edges;
use crate::demand::slack::SlackWatch;
use crate::demand::{Book, State};
use crate::link::{DialError, Dialer, Peer};
use crate::log::Chain;
use crate::notify::Notifier;
use crate::reclaim::{ReclaimError, Stop, carry_out};
use crate::sensors::{SensorError, Sensors};
use crate::serve::{self, Ask};
use crate::status::{Absorbed, Asked, Reclaimings, Status};
use crate::{clock, log, trigger};
use ballast_protocol::{
    Answer, Bytes, Farewell, GuestMessage, HostMessage, Micros, Reclaim, Reclaimed, Relief, Source, Verdict, Watermarks,
};
use leases::Leases;
use session::{Event, Session};
use std::path::{Path, PathBuf};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Requests of clients that may wait for the loop.
const ASKS: usize = 16;
/// Signs of the trigger thread that may wait: at 10 a second each, more tell nothing new.
const SIGNS: usize = 16;

/// How the agent is to run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where `/proc` and `/sys` begin.
    pub root: PathBuf,
    /// The host agent.
    pub peer: Peer,
    /// The Unix socket for `need` and `status`.
    pub socket: PathBuf,
    /// Whether `memory.high` of the workload cgroups is managed.
    pub absorber: bool,
    /// The workload cgroups, relative to the cgroup mount.
    pub workloads: Vec<String>,
}

/// Why the agent cannot run, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A sensor that nothing works without.
    #[error("a sensor does not work")]
    Sensor(#[from] SensorError),
    /// Dialling the host can never work like this.
    #[error("cannot reach the host")]
    Dial(#[from] DialError),
    /// The socket for `need` and `status`.
    #[error("cannot listen on {}", path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The process cannot be set up.
    #[error("{what}")]
    Setup {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// A granted demand whose first MiB has not come.
#[derive(Clone, Copy, Debug)]
struct AwaitedRelief {
    relief: Relief,
    source: Source,
    sent: Micros,
    deflated_at_sign: u64,
}

/// An order to drop cache that is being carried out.
#[derive(Debug)]
struct Job {
    order: Reclaim,
    stop: Stop,
    done: JoinHandle<Result<Reclaimed, ReclaimError>>,
}

/// The state of the agent.
#[derive(Debug)]
struct Agent {
    settings: Settings,
    started: Micros,
    sensors: Sensors,
    total: Bytes,
    watermarks: Watermarks,
    watermarks_at: Micros,
    slack: SlackWatch,
    next_look: Micros,
    committed: CommittedWatch,
    committed_at: Micros,
    next_committed: Micros,
    /// Anonymous, shared and swapped-out memory at the last reading.
    resident: Bytes,
    edges: Edges,
    book: Book,
    /// When the last demand of our own judging was raised.
    raised_at: Option<Micros>,
    reliefs: Vec<AwaitedRelief>,
    leases: Leases,
    absorber: Option<Absorber>,
    job: Option<Job>,
    reclaimings: Reclaimings,
    /// balloon_inflate and balloon_deflate when last read.
    balloon: (u64, u64),
    /// What free memory and the balloon were in the last telemetry, and when that was.
    reported: (Bytes, (u64, u64)),
    reported_at: Micros,
    news_at: Micros,
    session: Session,
}

/// Runs until told to stop.
///
/// # Errors
/// Something that only an operator can mend.
pub async fn run(settings: Settings) -> Result<(), AgentError> {
    let socket = settings.socket.clone();
    let mut agent = Agent::new(settings)?;
    let setup = |what| move |source| AgentError::Setup { what, source };
    let mut terminate = signal(SignalKind::terminate()).map_err(setup("cannot catch SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(setup("cannot catch SIGINT"))?;
    let (signs_in, mut signs) = mpsc::channel(SIGNS);
    trigger::start(&agent.settings.root, agent.groups(), signs_in).map_err(setup("cannot start a thread"))?;
    let listener = serve::bind(&socket).map_err(|source| AgentError::Socket { path: socket.clone(), source })?;
    let (asks_in, mut asks) = mpsc::channel(ASKS);
    tokio::spawn(serve::accept(listener, asks_in));
    let mut notifier = Notifier::from_environment();
    notifier.ready();
    let mut now = clock::now();
    let result = loop {
        // One reading of the clock a turn: under emulation each costs as much as a look at free memory.
        notifier.alive(now);
        let wait = agent.next_wake(now).min(notifier.due()) - now;
        let result = tokio::select! {
            biased;
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            event = agent.session.next() => { now = clock::now(); agent.on_link(now, event) }
            Some(source) = signs.recv() => { now = clock::now(); agent.on_sign(now, source) }
            done = finished(&mut agent.job) => { agent.on_reclaimed(done); Ok(()) }
            Some(ask) = asks.recv() => { now = clock::now(); agent.on_ask(now, ask) }
            () = tokio::time::sleep(wait.duration()) => {
                now = clock::now();
                agent.tick(now)
            }
        };
        if result.is_err() {
            break result;
        }
    };
    notifier.stopping();
    agent.stop(&socket).await;
    result
}

/// What came of the running job; never resolves without one. Cancel-safe.
async fn finished(job: &mut Option<Job>) -> Result<Reclaimed, String> {
    let Some(job) = job else { return std::future::pending().await };
    match (&mut job.done).await {
        Ok(Ok(reclaimed)) => Ok(reclaimed),
        Ok(Err(e)) => Err(Chain(&e).to_string()),
        Err(e) => Err(e.to_string()),
    }
}

impl Agent {
    fn new(settings: Settings) -> Result<Self, AgentError> {
        let mut sensors = Sensors::open(&settings.root)?;
        let total = sensors.meminfo()?.total;
        let watermarks = sensors.watermarks()?;
        let now = clock::now();
        let capabilities = sensors.capabilities(settings.absorber);
        match capabilities.balloon {
            None => log!(Warn, "this guest has no balloon: the host cannot give or take memory"),
            Some(b) if !b.deflate_on_oom => log!(
                Warn,
                "the balloon does not deflate on OOM: large allocations will fail while it is inflated; set \
                 autodeflate='on' (libvirt) or deflate-on-oom=on (QEMU)"
            ),
            Some(_) => {}
        }
        let session = Session::new(Dialer::new(settings.peer.clone()), capabilities, &settings.root);
        let mut agent = Self {
            started: now,
            sensors,
            total,
            watermarks,
            watermarks_at: now,
            slack: SlackWatch::new(watermarks.low, total),
            next_look: now,
            committed: CommittedWatch::default(),
            committed_at: Micros::ZERO,
            next_committed: now,
            resident: Bytes::ZERO,
            edges: Edges::default(),
            book: Book::default(),
            raised_at: None,
            reliefs: Vec::with_capacity(watch::RELIEFS),
            leases: Leases::default(),
            absorber: None,
            job: None,
            reclaimings: Reclaimings::default(),
            balloon: (0, 0),
            reported: (Bytes::ZERO, (0, 0)),
            reported_at: Micros::ZERO,
            news_at: now,
            session,
            settings,
        };
        let note = note(&agent.settings.socket);
        absorber::lift_leftovers(&note);
        if agent.settings.absorber {
            agent.absorber = Some(Absorber::new(&agent.groups(), &note));
        }
        Ok(agent)
    }

    /// The workload cgroups' directories, there or not.
    fn groups(&self) -> Vec<PathBuf> {
        let Some(cgroups) = &self.sensors.cgroups else { return Vec::new() };
        self.settings.workloads.iter().map(|name| cgroups.dir().join(name)).collect()
    }

    fn next_wake(&self, now: Micros) -> Micros {
        let telemetry = self.session.telemetry_due(self.pace(now), self.reported_at);
        let absorber = self.absorber.as_ref().map_or(Micros::MAX, Absorber::deadline);
        self.next_look.min(self.session.deadline()).min(telemetry).min(absorber)
    }

    fn on_link(&mut self, now: Micros, event: Event) -> Result<(), AgentError> {
        match event {
            Event::Message(HostMessage::Answer(answer)) => self.on_answer(now, answer),
            Event::Message(HostMessage::Reclaim(order)) => self.on_reclaim(order),
            Event::Message(_) | Event::Dialled | Event::Handled => {}
            Event::Up => {
                self.slack.forget_host();
                self.leases.forget_host();
                self.next_look = now;
                for entry in self.book.entries_mut() {
                    entry.demand.sent = now;
                    self.session.say(&GuestMessage::Demand(entry.demand));
                }
            }
            Event::Down => {
                self.slack.forget_host();
                self.committed.forget_host();
                self.book.end_session();
                self.reliefs.clear();
                if let Some(job) = &self.job {
                    job.stop.now();
                }
                // Drivers and cgroups may have come since: the next host hears of them.
                self.sensors.rescan();
                self.session.set_capabilities(self.sensors.capabilities(self.settings.absorber));
            }
            Event::Hopeless(e) => return Err(e.into()),
        }
        Ok(())
    }

    fn on_answer(&mut self, now: Micros, answer: Answer) {
        let Some(entry) = self.book.answer(now, answer) else { return };
        let demand = entry.demand;
        log!(Debug, "demand {} {:?}: {:?} after {}", demand.id, demand.source, answer.verdict, now - demand.sent);
        if demand.source == Source::Reserve {
            if let Verdict::Partly { why, .. } | Verdict::Refused(why) = answer.verdict {
                self.leases.refused(now, demand.id, why);
            }
        } else {
            self.slack.answered(now, answer.verdict);
        }
        if let Some(absorber) = &mut self.absorber {
            absorber.answered();
        }
        if matches!(entry.state, State::Granted { .. }) && self.sensors.balloon.is_some() {
            for awaited in self.reliefs.iter_mut().filter(|r| r.relief.id == demand.id) {
                awaited.relief.answered = now;
            }
        } else {
            self.reliefs.retain(|r| r.relief.id != demand.id);
            if !matches!(demand.source, Source::Reserve | Source::Committed) {
                self.book.close(demand.id);
            }
        }
        self.next_look = now;
    }

    fn on_reclaim(&mut self, order: Reclaim) {
        let cgroups = self.sensors.cgroups.as_ref().filter(|c| c.can_reclaim());
        let (Some(cgroups), None) = (cgroups, &self.job) else {
            // No way to carry it out, or one is being carried out: the host asks again if it still wants it.
            let reclaimed = Reclaimed { id: order.id, size: Bytes::ZERO, exhausted: cgroups.is_none() };
            self.session.say(&GuestMessage::Reclaimed(reclaimed));
            return;
        };
        let (root, cgroups, stop) = (self.settings.root.clone(), cgroups.dir().to_owned(), Stop::default());
        let theirs = stop.clone();
        let done = tokio::task::spawn_blocking(move || carry_out(&root, &cgroups, order, &theirs));
        self.job = Some(Job { order, stop, done });
    }

    fn on_reclaimed(&mut self, result: Result<Reclaimed, String>) {
        let Some(job) = self.job.take() else { return };
        self.reclaimings.orders += 1;
        let reclaimed = result.unwrap_or_else(|problem| {
            log!(Error, "cannot drop page cache: {problem}");
            Reclaimed { id: job.order.id, size: Bytes::ZERO, exhausted: true }
        });
        self.reclaimings.dropped += reclaimed.size;
        log!(Debug, "dropped {} of {} page cache", reclaimed.size, job.order.size);
        if self.session.is_up() {
            self.session.say(&GuestMessage::Reclaimed(reclaimed));
            self.session.report_at_once();
        }
    }

    fn on_ask(&mut self, now: Micros, ask: Ask) -> Result<(), AgentError> {
        match ask {
            Ask::Need { client, size, reply } => {
                if self.leases.open(now, client, size, self.total, reply) {
                    self.resident = self.sensors.meminfo()?.resident();
                    self.look(now)?;
                }
            }
            Ask::Gone { client } => {
                if let Some(id) = self.leases.close(client) {
                    self.withdraw(id);
                }
            }
            Ask::Status { reply } => {
                let text = serde_json::to_string(&self.status(now)).unwrap_or_else(|e| format!("error {e}"));
                // A client that is gone is told nothing.
                let _ = reply.send(text);
            }
        }
        Ok(())
    }

    fn withdraw(&mut self, id: u64) {
        if self.book.withdraw(id) {
            self.session.say(&GuestMessage::Withdraw { id });
        }
    }

    fn status(&self, now: Micros) -> Status {
        let (sessions, since) = self.session.standing();
        let (spoke, (sent, received)) = self.session.traffic();
        let (leases, leased) = self.leases.tally();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            peer: self.settings.peer.to_string(),
            connected: since.is_some(),
            session_us: since.map(|t| (now - t).0),
            sessions,
            sent_bytes: sent,
            received_bytes: received,
            last_word_us: (now - spoke).0,
            last_telemetry_us: (self.reported_at > Micros::ZERO).then(|| (now - self.reported_at).0),
            uptime_us: (now - self.started).0,
            slack: self.slack.slack(),
            trip: self.slack.trip(self.slack.rate()),
            rate_per_s: self.slack.rate(),
            highest_rate_per_s: self.slack.highest_rate(),
            loop_us: self.slack.loop_time().0,
            ballooned: self.ballooned(),
            leases,
            leased,
            asked: self.book.tallies().map(|(source, tally)| Asked { source: source.to_owned(), tally }).to_vec(),
            absorber: self.absorber.as_ref().map(Absorber::tally).map(|(holds, let_go)| Absorbed { holds, let_go }),
            reclaim: self.reclaimings,
            cpu_us: clock::cpu().0,
            rss: crate::process::resident(&self.settings.root),
        }
    }

    async fn stop(&mut self, socket: &Path) {
        log!(Info, "stopping");
        self.absorber = None;
        if let Some(job) = &self.job {
            job.stop.now();
        }
        self.session.say_last(&GuestMessage::Goodbye(Farewell::AgentStopped)).await;
        if let Err(e) = std::fs::remove_file(socket) {
            log!(Warn, "cannot remove {}: {}", socket.display(), Chain(&e));
        }
    }
}

/// Beside the socket: gone with the next boot, as the limits are.
fn note(socket: &Path) -> PathBuf {
    socket.with_extension("absorber")
}
