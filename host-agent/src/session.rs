//! One task per guest: reads its frames, bounds them, passes them on; writes what the daemon says.
//!
//! ```text
//!   connected --Hello--> negotiate --> daemon: is this VM free?  --> Welcome --> frames both ways --> ended
//!                 |2 s                      | no
//!                 +--> Refused, close <-----+
//! ```
//!
//! The guest is hostile. A malformed or oversized frame ends the session, because no next frame can be found. Too
//! much telemetry is dropped and counted; too much of anything else ends the session. Silence longer than
//! [`SILENCE`] of a VM that runs ends it too: the vsock daemon may die and leave streams that hang without an error.
//! Whatever one guest does, the channel to the daemon takes a bounded number of messages a second from it (promise
//! P6).

use crate::clock::Clock;
use crate::daemon::Event;
use ballast_planner::{SILENCE, VmName};
use ballast_protocol::{
    Deframer, FrameError, GuestMessage, Hello, HostMessage, Limited, MAX_FRAME, Micros, OLDEST_VERSION, Ping, Pong,
    Refusal, Source, VERSION, Welcome, encode, negotiate,
};
use std::collections::BTreeSet;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};

/// How long a guest may take for its Hello: a connect under TCG on a busy machine takes 20 ms.
const HANDSHAKE: std::time::Duration = std::time::Duration::from_secs(2);
/// How long a write may take before the guest counts as gone.
const WRITE: std::time::Duration = std::time::Duration::from_secs(2);
/// Telemetry while nothing moves: 1/s is what Hyper-V's and ChromeOS's agents send.
const IDLE_INTERVAL: Micros = Micros::secs(1);
/// Telemetry while something moves: a taking of 64 MiB lasts about 350 ms and must not be waited for long.
const BUSY_INTERVAL: Micros = Micros::millis(100);
/// A ping a second keeps the guest sure of us, and the clocks aligned.
const PING: Micros = Micros::secs(1);
/// The first pings follow each other quickly, because the best of several round trips aligns the clocks.
const FIRST_PINGS: u64 = 8;
const FIRST_PING: Micros = Micros::millis(25);
/// Messages other than telemetry: 200 a second, 400 at once. The agent's own bound is 10/s for each source.
const MESSAGES: Bucket = Bucket { per_second: 200, burst: 400, tokens: 400_000_000, filled: Micros::ZERO };
/// Reports: 50 a second, 100 at once; five times what a busy agent sends.
const REPORTS: Bucket = Bucket { per_second: 50, burst: 100, tokens: 100_000_000, filled: Micros::ZERO };
/// Leases of one guest at a time. The agent's own bound is 64; each costs the daemon memory until it is withdrawn.
const LEASES: usize = 256;
/// Round trips over which the best is looked for, as many as NTP's clock filter keeps. Longer is worse: the clock of
/// an emulated guest on a busy host was seen to lose 1.5 s a minute.
const BEST_OF: usize = 8;
/// What may wait for a guest that does not read.
pub const OUTGOING: usize = 256;

/// What the daemon needs to know to let a session stand.
#[derive(Debug)]
pub struct Opening {
    /// The VM behind the connection.
    pub vm: VmName,
    /// What it said first.
    pub hello: Hello,
    /// Where to send what the VM is to be told; dropping it ends the session.
    pub outgoing: mpsc::Sender<HostMessage>,
    /// The daemon's answer, or why not.
    pub answer: oneshot::Sender<Result<Admission, Refusal>>,
}

/// What the daemon tells a session that stands.
#[derive(Debug)]
pub struct Admission {
    /// The session's number.
    pub number: u64,
    /// Whether the VM's vCPUs run: a paused guest is silent and lives.
    pub running: watch::Receiver<bool>,
}

/// How a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionEnd {
    /// The guest closed the connection.
    #[error("the guest closed the connection")]
    Closed,
    /// In the middle of a frame.
    #[error("the connection ended in the middle of a frame")]
    Truncated,
    /// Nothing came.
    #[error("silent for {0}")]
    Silent(Micros),
    /// The guest said goodbye.
    #[error("the guest agent said goodbye ({0})")]
    Goodbye(&'static str),
    /// The stream is no protocol stream.
    #[error("malformed: {0}")]
    Malformed(#[from] FrameError),
    /// Too many messages, or one that is out of place.
    #[error("misbehaved: {0}")]
    Misbehaved(&'static str),
    /// The session was not allowed to stand.
    #[error("refused: {0:?}")]
    Refused(Refusal),
    /// The connection broke.
    #[error("the connection broke")]
    Io(#[from] std::io::Error),
    /// The guest does not read.
    #[error("the guest does not read")]
    Deaf,
    /// The daemon stops.
    #[error("the daemon stops")]
    Stopping,
}

/// Runs one connection to its end and tells the daemon.
pub async fn serve<S>(stream: S, vm: VmName, events: mpsc::Sender<Event>, clock: Clock)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut session = Session { stream, deframer: Deframer::default(), clock };
    let end = match session.handshake(&vm, &events).await {
        Ok((Admission { number, running }, outgoing)) => {
            let end = session.run(&vm, &events, outgoing, running).await;
            let why = end.to_string();
            // A closed channel means that the daemon is gone, and nobody is left to be told.
            let _ = events.send(Event::SessionEnded { vm: vm.clone(), number, why }).await;
            end
        }
        Err(end) => end,
    };
    session.farewell(&end).await;
    tracing::info!(vm = %vm, why = %end, "session ended");
}

struct Session<S> {
    stream: S,
    deframer: Deframer,
    clock: Clock,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    async fn handshake(
        &mut self,
        vm: &VmName,
        events: &mpsc::Sender<Event>,
    ) -> Result<(Admission, mpsc::Receiver<HostMessage>), SessionEnd> {
        let first =
            timeout(HANDSHAKE, self.read()).await.map_err(|_| SessionEnd::Silent(Micros::from_duration(HANDSHAKE)))?;
        let GuestMessage::Hello(hello) = first? else {
            return Err(SessionEnd::Misbehaved("the first message is not Hello"));
        };
        let Some(version) = negotiate((OLDEST_VERSION, VERSION), (hello.oldest, hello.newest)) else {
            return Err(SessionEnd::Refused(Refusal::Version(OLDEST_VERSION, VERSION)));
        };
        let (outgoing, queue) = mpsc::channel(OUTGOING);
        let (answer, answered) = oneshot::channel();
        let opening = Opening { vm: vm.clone(), hello, outgoing, answer };
        events.send(Event::SessionOpens(opening)).await.map_err(|_| SessionEnd::Stopping)?;
        let admission = answered.await.map_err(|_| SessionEnd::Stopping)?.map_err(SessionEnd::Refused)?;
        let welcome = Welcome { version, silence: SILENCE, idle_interval: IDLE_INTERVAL, busy_interval: BUSY_INTERVAL };
        if let Err(end) = self.write(&HostMessage::Welcome(welcome)).await {
            let (number, why) = (admission.number, end.to_string());
            let _ = events.send(Event::SessionEnded { vm: vm.clone(), number, why }).await;
            return Err(end);
        }
        Ok((admission, queue))
    }

    async fn run(
        &mut self,
        vm: &VmName,
        events: &mpsc::Sender<Event>,
        mut outgoing: mpsc::Receiver<HostMessage>,
        mut running: watch::Receiver<bool>,
    ) -> SessionEnd {
        let (mut messages, mut reports) = (MESSAGES, REPORTS);
        let mut heard = Instant::now();
        let mut pings = 0;
        let mut next_ping = Instant::now();
        let mut best = RoundTrips::default();
        let mut leases = BTreeSet::new();
        loop {
            tokio::select! {
                biased;
                said = outgoing.recv() => match said {
                    Some(message) => if let Err(end) = self.write(&message).await { return end },
                    None => return SessionEnd::Stopping,
                },
                // Paused or resumed: the wait begins anew. The sender goes with the session itself.
                Ok(()) = running.changed() => heard = Instant::now(),
                message = timeout_at(heard + SILENCE.duration(), self.read()) => {
                    heard = Instant::now();
                    let message = match message {
                        Err(_) if !*running.borrow() => continue,
                        Err(_) => return SessionEnd::Silent(SILENCE),
                        Ok(Err(end)) => return end,
                        Ok(Ok(message)) => message,
                    };
                    let received = self.clock.now();
                    let event = match message {
                        GuestMessage::Hello(_) => return SessionEnd::Misbehaved("a second Hello"),
                        GuestMessage::Telemetry(_) if !reports.take(received) => continue,
                        GuestMessage::Telemetry(_) => {
                            // Newer ones follow; a daemon that is behind is not helped by more of them.
                            let event = Event::Guest { vm: vm.clone(), received, message };
                            match events.try_send(event) {
                                Err(mpsc::error::TrySendError::Closed(_)) => return SessionEnd::Stopping,
                                Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => continue,
                            }
                        }
                        _ if !messages.take(received) => return SessionEnd::Misbehaved("too many messages"),
                        GuestMessage::Pong(pong) => match best.add(&pong, received) {
                            Some((offset, round_trip)) => Event::Clock { vm: vm.clone(), offset, round_trip },
                            None => continue,
                        },
                        GuestMessage::Goodbye(why) => return SessionEnd::Goodbye(match why {
                            ballast_protocol::Farewell::Shutdown => "shutdown",
                            ballast_protocol::Farewell::AgentStopped => "agent stopped",
                        }),
                        message => {
                            match &message {
                                GuestMessage::Demand(d) if d.source == Source::Reserve => drop(leases.insert(d.id)),
                                GuestMessage::Withdraw { id } => drop(leases.remove(id)),
                                _ => {}
                            }
                            if leases.len() > LEASES {
                                return SessionEnd::Misbehaved("too many leases");
                            }
                            Event::Guest { vm: vm.clone(), received, message }
                        }
                    };
                    if events.send(event).await.is_err() {
                        return SessionEnd::Stopping;
                    }
                }
                () = tokio::time::sleep_until(next_ping), if *running.borrow() => {
                    pings += 1;
                    next_ping = Instant::now() + if pings < FIRST_PINGS { FIRST_PING } else { PING }.duration();
                    let ping = Ping { seq: pings, at: self.clock.now() };
                    if let Err(end) = self.write(&HostMessage::Ping(ping)).await { return end }
                }
            }
        }
    }

    /// The next message. Dropped and called again, it loses nothing: what was read stays in the deframer.
    async fn read(&mut self) -> Result<GuestMessage, SessionEnd> {
        loop {
            if let Some(message) = self.deframer.next_frame()? {
                return Ok(message);
            }
            let count = self.stream.read(self.deframer.space()).await?;
            if count == 0 {
                return Err(if self.deframer.is_midway() { SessionEnd::Truncated } else { SessionEnd::Closed });
            }
            self.deframer.advance(count);
        }
    }

    async fn write(&mut self, message: &HostMessage) -> Result<(), SessionEnd> {
        // Tens of bytes. A buffer for the largest frame would stand idle in each of a thousand sessions.
        let frame = encode(message, &mut [0; MAX_FRAME])?.to_vec();
        match timeout(WRITE, self.stream.write_all(&frame)).await {
            Err(_) => Err(SessionEnd::Deaf),
            Ok(written) => Ok(written?),
        }
    }

    /// Tells the guest why, as far as it still listens.
    async fn farewell(&mut self, end: &SessionEnd) {
        let last = match end {
            SessionEnd::Refused(refusal) => HostMessage::Refused(refusal.clone()),
            SessionEnd::Misbehaved(why) => HostMessage::Refused(Refusal::Misbehaved(Limited::cut(why))),
            SessionEnd::Malformed(why) => HostMessage::Refused(Refusal::Misbehaved(Limited::cut(&why.to_string()))),
            SessionEnd::Stopping => HostMessage::Goodbye,
            _ => return,
        };
        // Best effort: the guest may be gone already.
        let _ = self.write(&last).await;
        let _ = self.stream.shutdown().await;
    }
}

/// A token bucket, in millionths of a token.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    per_second: u64,
    burst: u64,
    tokens: u64,
    filled: Micros,
}

impl Bucket {
    fn take(&mut self, at: Micros) -> bool {
        let fresh = (at - self.filled).0.saturating_mul(self.per_second);
        self.tokens = self.tokens.saturating_add(fresh).min(self.burst * 1_000_000);
        self.filled = at;
        match self.tokens.checked_sub(1_000_000) {
            Some(left) => {
                self.tokens = left;
                true
            }
            None => false,
        }
    }
}

/// The last round trips. The shortest is the one that was held up least, so its offset is the best
/// (the clock filter of NTP, RFC 5905 section 10).
#[derive(Debug, Default)]
struct RoundTrips {
    recent: std::collections::VecDeque<(Micros, i64)>,
    told: Option<(Micros, i64)>,
}

impl RoundTrips {
    /// Adds a pong; returns offset (guest minus host, microseconds) and round trip if the best of them changed.
    fn add(&mut self, pong: &Pong, now: Micros) -> Option<(i64, Micros)> {
        let signed = |m: Micros| i64::try_from(m.0).ok();
        let (sent, received, answered, back) =
            (signed(pong.at)?, signed(pong.received)?, signed(pong.sent)?, signed(now)?);
        let round_trip =
            Micros(now.0.checked_sub(pong.at.0)?.saturating_sub(pong.sent.0.saturating_sub(pong.received.0)));
        // The guest may say anything; half of a sum that overflows is no offset.
        let offset = received.checked_sub(sent)?.checked_add(answered.checked_sub(back)?)? / 2;
        if self.recent.len() == BEST_OF {
            self.recent.pop_front();
        }
        self.recent.push_back((round_trip, offset));
        let best = self.recent.iter().copied().min()?;
        if self.told == Some(best) {
            return None;
        }
        self.told = Some(best);
        Some((best.1, best.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_allows_its_burst_and_then_its_rate() {
        let mut bucket = REPORTS;
        let taken = (0..1000).filter(|_| bucket.take(Micros::ZERO)).count();
        assert_eq!(taken, 100);
        let later = (0..1000).filter(|_| bucket.take(Micros::secs(1))).count();
        assert_eq!(later, 50);
    }

    #[test]
    fn the_shortest_round_trip_gives_the_offset() {
        let mut trips = RoundTrips::default();
        let pong = |at: u64, there: u64| Pong { seq: 1, at: Micros(at), received: Micros(there), sent: Micros(there) };
        // 100 us each way, the guest 5000 us ahead.
        assert_eq!(trips.add(&pong(1_000, 6_100), Micros(1_200)), Some((5_000, Micros(200))));
        // Held up for 10 ms on the way back: no better, nothing told.
        assert_eq!(trips.add(&pong(2_000, 7_100), Micros(12_200)), None);
    }

    #[test]
    fn a_pong_of_nonsense_gives_no_offset() {
        let mut trips = RoundTrips::default();
        let pong = Pong { seq: 0, at: Micros::MAX, received: Micros::MAX, sent: Micros::ZERO };
        assert_eq!(trips.add(&pong, Micros(5)), None);
    }
}
