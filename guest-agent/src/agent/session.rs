//! The session with the host: dialling with backoff for ever, the handshake, and the deadlines of both directions.
//!
//! ```text
//!   Waiting --timer--> Dialling --connected, Hello sent--> Greeting --Welcome--> Up
//!      ^                   |                                  |                   |
//!      +---- backoff ------+---------- Refused, silence ------+--- any failure ---+
//! ```

use crate::link::{DialError, Dialer, Link, LinkError, Stream};
use crate::log::Chain;
use crate::{clock, log};
use ballast_protocol::{
    Capabilities, GuestMessage, Hello, HostMessage, Limited, Micros, OLDEST_VERSION, Pong, Telemetry, VERSION, Welcome,
};
use std::path::Path;

/// The first wait before dialling again; doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Micros = Micros::millis(50);
/// The longest wait: a host agent that restarts is found again within this and a vsock timeout.
const BACKOFF_MAX: Micros = Micros::secs(5);
/// How long the host may take to answer Hello.
const GREETING: Micros = Micros::secs(5);
/// A session that lived so long was a good one: the next dial starts from [`BACKOFF_MIN`].
const PROVEN: Micros = Micros::secs(10);
/// The host's intervals are kept within these, whatever it asks: it cannot make the guest busy or mute.
const INTERVALS: (Micros, Micros) = (Micros::millis(10), Micros::secs(30));
/// While memory moves without a demand or the balloon, reports come so many times more seldom than with them: demands
/// have messages of their own, and takings wait for quiet.
const MOVING: u64 = 4;
/// The shortest silence that is believed to be one.
const SILENCE_MIN: Micros = Micros::millis(500);
/// What a clean end waits for its last words.
const LAST_WORDS: Micros = Micros::millis(500);

/// How often the host is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Nothing moves.
    Idle,
    /// Memory moves, or what was asked for is being used.
    Moving,
    /// A demand waits for its memory, or the balloon moves.
    Busy,
}

/// What happened on the connection.
#[derive(Debug)]
pub enum Event {
    /// The host said something the loop must act on.
    Message(HostMessage),
    /// Connected, Hello is on its way.
    Dialled,
    /// The session has dealt with it.
    Handled,
    /// A session stands.
    Up,
    /// The session is over, or none came about; the next dial is scheduled.
    Down,
    /// Dialling can never work.
    Hopeless(DialError),
}

type Dial = std::pin::Pin<Box<dyn Future<Output = (Dialer, Result<Stream, DialError>)>>>;

/// The session. Exactly one of `dialling` and `link` is there, or neither while waiting for `redial_at`.
pub struct Session {
    dialer: Dialer,
    dialling: Option<Dial>,
    link: Option<Link>,
    /// Set once the host has said Welcome.
    welcome: Option<Welcome>,
    redial_at: Micros,
    hello: Hello,
    backoff: Micros,
    random: u64,
    /// When the connection stood, when the host was last heard, when we last spoke.
    since: Micros,
    heard: Micros,
    spoke: Micros,
    seq: u64,
    report_at_once: bool,
    sessions: u64,
    /// The last failure that was logged: repeated ones are not.
    complained: String,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("link", &self.link).field("welcome", &self.welcome).finish_non_exhaustive()
    }
}

impl Session {
    /// A session that will dial at the first [`Session::check`].
    #[must_use]
    pub fn new(dialer: Dialer, capabilities: Capabilities, root: &Path) -> Self {
        let boot_id = boot_id(root);
        let uname = rustix::system::uname();
        let hello = Hello {
            oldest: OLDEST_VERSION,
            newest: VERSION,
            agent: Limited::cut(env!("CARGO_PKG_VERSION")),
            kernel: Limited::cut(&uname.release().to_string_lossy()),
            boot_id,
            now: Micros::ZERO,
            capabilities,
        };
        let seed = u64::from_le_bytes(boot_id[..8].try_into().expect("a boot id has 16 bytes"));
        Self {
            dialer,
            dialling: None,
            link: None,
            welcome: None,
            redial_at: Micros::ZERO,
            hello,
            backoff: BACKOFF_MIN,
            // A thousand guests booted together must not knock together; boot ids are random. Never zero: xorshift.
            random: seed ^ clock::now().0 | 1,
            since: Micros::ZERO,
            heard: Micros::ZERO,
            spoke: Micros::ZERO,
            seq: 0,
            report_at_once: false,
            sessions: 0,
            complained: String::new(),
        }
    }

    /// Whether the host has welcomed us.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.welcome.is_some()
    }

    /// For `status`: sessions so far, and when this one began.
    #[must_use]
    pub fn standing(&self) -> (u64, Option<Micros>) {
        (self.sessions, self.welcome.map(|_| self.since))
    }

    /// For `status`: when the last telemetry or other word went out, and bytes written and read in this session.
    #[must_use]
    pub fn traffic(&self) -> (Micros, (u64, u64)) {
        (self.spoke, self.link.as_ref().map_or((0, 0), Link::traffic))
    }

    /// The next thing that happens; never resolves while waiting to dial. Cancel-safe.
    pub async fn next(&mut self) -> Event {
        if let Some(link) = &mut self.link {
            let result = link.next().await;
            return self.on_result(clock::now(), result);
        }
        if let Some(dial) = &mut self.dialling {
            let (dialer, result) = dial.await;
            self.dialling = None;
            self.dialer = dialer;
            return self.on_dialled(clock::now(), result);
        }
        std::future::pending().await
    }

    /// When [`Session::check`] must be called at the latest.
    #[must_use]
    pub fn deadline(&self) -> Micros {
        match (&self.link, &self.dialling, self.welcome) {
            (Some(_), _, Some(w)) => (self.heard + w.silence).min(self.spoke + keep_alive(&w)),
            (Some(_), _, None) => self.since + GREETING,
            (None, Some(_), _) => Micros::MAX,
            (None, None, _) => self.redial_at,
        }
    }

    /// Acts on deadlines: dials again, and ends a session whose host is silent.
    pub fn check(&mut self, now: Micros) -> Option<Event> {
        match (&self.link, &self.dialling, self.welcome) {
            (Some(_), _, Some(w)) if now - self.heard >= w.silence => {
                Some(self.fail(now, format_args!("the host has been silent for {}", now - self.heard)))
            }
            (Some(_), _, None) if now - self.since >= GREETING => {
                Some(self.fail(now, format_args!("the host did not answer Hello within {GREETING}")))
            }
            (None, None, _) if now >= self.redial_at => {
                self.dialling = Some(Box::pin(self.dialer.clone().dial()));
                None
            }
            _ => None,
        }
    }

    /// When telemetry is due; never while no session stands.
    #[must_use]
    pub fn telemetry_due(&self, pace: Pace, last: Micros) -> Micros {
        let Some(w) = self.welcome else { return Micros::MAX };
        if self.report_at_once {
            return Micros::ZERO;
        }
        let interval = match pace {
            Pace::Busy => w.busy_interval,
            Pace::Moving => Micros(w.busy_interval.0.saturating_mul(MOVING)).min(w.idle_interval),
            Pace::Idle => w.idle_interval,
        };
        (last + interval.clamp(INTERVALS.0, INTERVALS.1)).min(self.spoke + keep_alive(&w))
    }

    /// What the next Hello says.
    pub fn set_capabilities(&mut self, capabilities: Capabilities) {
        self.hello.capabilities = capabilities;
    }

    /// The next telemetry is due now.
    pub fn report_at_once(&mut self) {
        self.report_at_once = true;
    }

    /// Queues a report; a newer one replaces it while the host does not read.
    pub fn report(&mut self, now: Micros, mut telemetry: Telemetry) {
        let Some(link) = self.link.as_mut().filter(|_| self.welcome.is_some()) else { return };
        telemetry.seq = self.seq;
        self.seq += 1;
        self.spoke = now;
        self.report_at_once = false;
        if let Err(e) = link.report(&GuestMessage::Telemetry(telemetry)) {
            log!(Error, "telemetry cannot be sent: {}", Chain(&e));
        }
    }

    /// Queues a message that is never dropped within this session. Without a session it is gone: who raises demands
    /// asks [`Session::is_up`] first.
    pub fn say(&mut self, message: &GuestMessage) {
        let Some(link) = &mut self.link else { return };
        match link.say(message) {
            Ok(()) => self.spoke = clock::now(),
            Err(e) => {
                // The next deadline check or read ends the session in one place.
                log!(Warn, "the host does not take messages: {}", Chain(&e));
                self.heard = Micros::ZERO;
            }
        }
    }

    /// Says one last thing and waits a moment until it is written.
    pub async fn say_last(&mut self, message: &GuestMessage) {
        self.say(message);
        if let Some(link) = &mut self.link {
            // Whether it was written no longer matters to anybody.
            let _ = tokio::time::timeout(LAST_WORDS.duration(), link.flush()).await;
        }
    }

    fn on_dialled(&mut self, now: Micros, result: Result<Stream, DialError>) -> Event {
        match result {
            Ok(stream) => {
                self.link = Some(Link::new(stream));
                (self.since, self.heard, self.spoke) = (now, now, now);
                self.hello.now = now;
                let hello = GuestMessage::Hello(self.hello.clone());
                self.say(&hello);
                Event::Dialled
            }
            Err(e @ DialError::Unprivileged(_)) => Event::Hopeless(e),
            Err(e) => self.fail(now, format_args!("{}", Chain(&e))),
        }
    }

    fn on_result(&mut self, now: Micros, result: Result<HostMessage, LinkError>) -> Event {
        let message = match result {
            Ok(message) => message,
            Err(e) => return self.fail(now, format_args!("{}", Chain(&e))),
        };
        self.heard = now;
        match message {
            HostMessage::Welcome(w) if self.welcome.is_none() => {
                let w = Welcome { silence: w.silence.max(SILENCE_MIN), ..w };
                self.welcome = Some(w);
                (self.seq, self.report_at_once) = (0, true);
                self.sessions += 1;
                self.complained.clear();
                log!(Info, "session {} with {}, version {}", self.sessions, self.dialer.peer(), w.version);
                Event::Up
            }
            HostMessage::Welcome(_) => self.fail(now, format_args!("the host said Welcome twice")),
            HostMessage::Refused(why) => self.fail(now, format_args!("the host refused: {why:?}")),
            HostMessage::Goodbye => self.fail(now, format_args!("the host agent stops")),
            HostMessage::Ping(ping) => {
                let pong = Pong { seq: ping.seq, at: ping.at, received: now, sent: clock::now() };
                self.say(&GuestMessage::Pong(pong));
                Event::Handled
            }
            _ if self.welcome.is_none() => self.fail(now, format_args!("the host spoke before Welcome")),
            other => Event::Message(other),
        }
    }

    /// Ends whatever stands and schedules the next dial.
    fn fail(&mut self, now: Micros, why: std::fmt::Arguments<'_>) -> Event {
        if self.welcome.is_some() && now - self.since >= PROVEN {
            self.backoff = BACKOFF_MIN;
        }
        let wait = self.jitter(self.backoff);
        self.backoff = (self.backoff + self.backoff).min(BACKOFF_MAX);
        self.redial_at = now + wait;
        (self.link, self.dialling, self.welcome) = (None, None, None);
        let text = why.to_string();
        if text != self.complained {
            log!(Warn, "{text}; dialling {} again in {wait} and for ever", self.dialer.peer());
            self.complained = text;
        }
        Event::Down
    }

    /// Between half of `wait` and all of it (xorshift64).
    fn jitter(&mut self, wait: Micros) -> Micros {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        Micros(wait.0 / 2 + self.random % (wait.0 / 2 + 1))
    }
}

/// Something must be said within a third of the silence, so that two lost wake-ups are not taken for death.
fn keep_alive(w: &Welcome) -> Micros {
    Micros(w.silence.0 / 3)
}

/// `/proc/sys/kernel/random/boot_id`; zeros when a captured tree has none.
fn boot_id(root: &Path) -> [u8; 16] {
    let mut id = [0; 16];
    let text = std::fs::read_to_string(root.join("proc/sys/kernel/random/boot_id")).unwrap_or_default();
    let mut digits = text.chars().filter_map(|c| c.to_digit(16));
    for byte in &mut id {
        let (Some(high), Some(low)) = (digits.next(), digits.next()) else { break };
        // Two hexadecimal digits fit a byte.
        *byte = (high << 4 | low) as u8;
    }
    id
}
