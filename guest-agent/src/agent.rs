//! The one loop that owns all state.
//!
//! ```text
//!            +--------------------- select ---------------------+
//!   link --->| Welcome, Answer, Reclaim, Ping                   |---> Demand, Withdraw, Relief (never dropped)
//!   timer -->| look at slack, telemetry, reliefs, deadlines     |---> Telemetry (newest wins)
//!   signal ->| SIGTERM, SIGINT                                  |---> Goodbye
//!            +--------------------------------------------------+
//! ```
//!
//! Time is CLOCK_MONOTONIC in [`Micros`] throughout; one timer is set to the earliest of all deadlines.

mod session;

use crate::demand::Book;
use crate::demand::slack::{Detail, Look, Need, SlackWatch};
use crate::link::{DialError, Dialer, Peer};
use crate::sensors::{Sensors, SensorError};
use crate::{clock, log};
use ballast_protocol::{
    Answer, Bytes, Demand, Farewell, GuestMessage, HostMessage, Micros, Relief, Source, Telemetry, Verdict, Watermarks,
};
use session::Session;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};

/// How long watermarks are believed; they change by sysctl, hot-plug, or with the balloon when MemTotal moves.
const WATERMARKS_KEPT: Micros = Micros::secs(60);
/// Free memory that moves by more than this between two looks at telemetry is news.
const NEWS: Bytes = Bytes::mib(4);
/// Telemetry stays busy so long after the last news.
const NEWS_LASTS: Micros = Micros::secs(2);
/// Between two looks at the balloon while waiting for its first MiB.
const RELIEF_PERIOD: Micros = Micros::millis(2);
/// The first MiB, in the balloon's pages.
const FIRST_MIB: u64 = 256;
/// When no MiB has come by then, none will be measured.
const RELIEF_GIVEN_UP: Micros = Micros::secs(1);
/// Reliefs watched at a time; more demands than these in one second tell nothing new.
const RELIEFS: usize = 8;

/// How the agent is to run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where `/proc` and `/sys` begin.
    pub root: PathBuf,
    /// The host agent.
    pub peer: Peer,
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
    sent: Micros,
    deflated_at_sign: u64,
}

/// The state of the agent.
#[derive(Debug)]
struct Agent {
    sensors: Sensors,
    total: Bytes,
    watermarks: Watermarks,
    watermarks_at: Micros,
    slack: SlackWatch,
    next_look: Micros,
    book: Book,
    reliefs: Vec<AwaitedRelief>,
    /// balloon_inflate and balloon_deflate when last read.
    balloon: (u64, u64),
    /// What free memory and the balloon were in the last telemetry.
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
    let mut agent = Agent::new(&settings)?;
    let setup = |what| move |source| AgentError::Setup { what, source };
    let mut terminate = signal(SignalKind::terminate()).map_err(setup("cannot catch SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(setup("cannot catch SIGINT"))?;
    loop {
        let wake = tokio::time::Instant::now() + (agent.next_wake() - clock::now()).duration();
        tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            event = agent.session.next() => agent.on_link(event)?,
            () = tokio::time::sleep_until(wake) => agent.tick(clock::now())?,
        }
    }
    log!(Info, "stopping");
    agent.session.say_last(&GuestMessage::Goodbye(Farewell::AgentStopped)).await;
    Ok(())
}

impl Agent {
    fn new(settings: &Settings) -> Result<Self, AgentError> {
        let mut sensors = Sensors::open(&settings.root)?;
        let total = sensors.meminfo()?.total;
        let watermarks = sensors.watermarks()?;
        let now = clock::now();
        let session = Session::new(Dialer::new(settings.peer.clone()), sensors.capabilities(false), &settings.root);
        Ok(Self {
            sensors,
            total,
            watermarks,
            watermarks_at: now,
            slack: SlackWatch::new(watermarks.low, total),
            next_look: now,
            book: Book::default(),
            reliefs: Vec::with_capacity(RELIEFS),
            balloon: (0, 0),
            reported: (Bytes::ZERO, (0, 0)),
            reported_at: Micros::ZERO,
            news_at: now,
            session,
        })
    }

    fn next_wake(&self) -> Micros {
        let telemetry = self.session.telemetry_due(self.is_busy(clock::now()), self.reported_at);
        self.next_look.min(self.session.deadline()).min(telemetry)
    }

    fn is_busy(&self, now: Micros) -> bool {
        now - self.news_at < NEWS_LASTS || !self.book.entries().is_empty() || !self.reliefs.is_empty()
    }

    fn on_link(&mut self, event: session::Event) -> Result<(), AgentError> {
        let now = clock::now();
        match event {
            session::Event::Message(HostMessage::Answer(answer)) => self.on_answer(now, answer),
            session::Event::Message(_) | session::Event::Dialled | session::Event::Handled => {}
            session::Event::Up => {
                self.slack.forget_host();
                self.next_look = now;
                for entry in self.book.entries_mut() {
                    entry.demand.sent = now;
                    self.session.say(&GuestMessage::Demand(entry.demand));
                }
            }
            session::Event::Down => {
                self.slack.forget_host();
                self.book.end_session();
                self.reliefs.clear();
            }
            session::Event::Hopeless(e) => return Err(e.into()),
        }
        Ok(())
    }

    fn on_answer(&mut self, now: Micros, answer: Answer) {
        let Some(entry) = self.book.answer(now, answer) else { return };
        let demand = entry.demand;
        if demand.source != Source::Reserve {
            self.slack.answered(now, answer.verdict);
        }
        log!(Debug, "demand {} {:?}: {:?} after {}", demand.id, demand.source, answer.verdict, now - demand.sent);
        if !matches!(answer.verdict, Verdict::Refused(_)) && self.sensors.balloon.is_some() {
            for awaited in &mut self.reliefs {
                if awaited.relief.id == demand.id {
                    awaited.relief.answered = now;
                }
            }
            self.next_look = now;
        } else {
            self.reliefs.retain(|r| r.relief.id != demand.id);
        }
    }

    fn tick(&mut self, now: Micros) -> Result<(), AgentError> {
        if let Some(event) = self.session.check(now) {
            self.on_link(event)?;
        }
        if now >= self.next_look {
            self.look(now)?;
        }
        if self.session.is_up() && now >= self.session.telemetry_due(self.is_busy(now), self.reported_at) {
            self.report(now)?;
        }
        Ok(())
    }

    /// The hot path: free memory, and what explains it when it falls.
    fn look(&mut self, now: Micros) -> Result<(), AgentError> {
        let free = self.sensors.free()?;
        let wants = self.slack.wants_detail(free) || !self.reliefs.is_empty();
        let detail = if wants { Some(self.detail()?) } else { None };
        if free.0.abs_diff(self.reported.0.0) > NEWS.0 || self.balloon != self.reported.1 {
            self.news_at = now;
        }
        if let Some(need) = self.slack.look(Look { at: now, free, detail }) {
            self.raise(now, Source::Slack, need, free);
        }
        self.check_reliefs(now);
        self.book.expire(now);
        self.next_look = now + self.slack.period(now);
        if !self.reliefs.is_empty() {
            self.next_look = self.next_look.min(now + RELIEF_PERIOD);
        }
        Ok(())
    }

    fn detail(&mut self) -> Result<Detail, AgentError> {
        let v = self.sensors.vmstat()?;
        self.balloon = (v.counters.balloon_inflate.unwrap_or(0), v.counters.balloon_deflate.unwrap_or(0));
        Ok(Detail { file: v.file, droppable: v.droppable, ballooned: v.ballooned().unwrap_or(Bytes::ZERO) })
    }

    fn raise(&mut self, now: Micros, source: Source, need: Need, free: Bytes) {
        if !self.session.is_up() {
            return;
        }
        let ballooned = self.sensors.balloon.map(|_| self.ballooned());
        let Need { size, sign, within } = need;
        let demand = Demand { id: 0, source, size, sign, sent: now, within, free, ballooned };
        let Some(demand) = self.book.raise(demand) else { return };
        self.session.say(&GuestMessage::Demand(demand));
        log!(Debug, "demand {} {source:?}: {size}, {free} free, rate {}/s", demand.id, self.slack.rate());
        if ballooned.is_some() && self.reliefs.len() < RELIEFS {
            let relief = Relief { id: demand.id, sign, answered: Micros::ZERO, first_mib: None };
            self.reliefs.push(AwaitedRelief { relief, sent: now, deflated_at_sign: self.balloon.1 });
        }
    }

    fn ballooned(&self) -> Bytes {
        ballast_protocol::Pages(self.balloon.0.saturating_sub(self.balloon.1)).into()
    }

    fn check_reliefs(&mut self, now: Micros) {
        let deflated = self.balloon.1;
        let (slack, session) = (&mut self.slack, &mut self.session);
        self.reliefs.retain_mut(|awaited| {
            let came = deflated >= awaited.deflated_at_sign + FIRST_MIB;
            if came && awaited.relief.first_mib.is_none() {
                awaited.relief.first_mib = Some(now);
                slack.learn_loop(now - awaited.sent);
            }
            let answered = awaited.relief.answered > Micros::ZERO;
            let over = now - awaited.sent >= RELIEF_GIVEN_UP;
            if answered && (came || over) {
                session.say(&GuestMessage::Relief(awaited.relief));
            }
            !(over || answered && came)
        });
    }

    fn report(&mut self, now: Micros) -> Result<(), AgentError> {
        if now - self.watermarks_at >= WATERMARKS_KEPT {
            self.read_limits(now)?;
        }
        let mut telemetry: Telemetry = self.sensors.telemetry(now, self.watermarks)?;
        if telemetry.total != self.total {
            self.read_limits(now)?;
            telemetry.watermarks = self.watermarks;
        }
        telemetry.pending = self.book.pending();
        let c = telemetry.counters;
        self.balloon = (c.balloon_inflate.unwrap_or(0), c.balloon_deflate.unwrap_or(0));
        if self.balloon != self.reported.1 {
            self.news_at = now;
        }
        self.reported = (telemetry.free, self.balloon);
        self.reported_at = now;
        self.session.report(now, telemetry);
        Ok(())
    }

    fn read_limits(&mut self, now: Micros) -> Result<(), AgentError> {
        self.watermarks = self.sensors.watermarks()?;
        self.total = self.sensors.meminfo()?.total;
        self.watermarks_at = now;
        self.slack.set_limits(self.watermarks.low, self.total);
        Ok(())
    }
}
