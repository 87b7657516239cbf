//! A guest agent without a guest: the real protocol over a Unix socket, as vhost-device-vsock passes it on.

use super::World;
use super::tally::Promise;
use super::vm::Vm;
use anyhow::{Context, Result, bail};
use ballast_protocol::{
    BalloonFeatures, Capabilities, Deframer, Demand, GuestMessage, Hello, HostMessage, Limited, MAX_FRAME, Micros,
    OLDEST_VERSION, Pong, Reclaimed, Source, VERSION, Welcome, encode,
};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

/// An agent that nobody listens to tries again after this, and up to twice as long.
const REDIAL: u64 = 100;
/// How often an agent looks while something moves (DESIGN section 1: every 2 to 50 ms).
const LOOK: Duration = Duration::from_millis(10);
/// An agent's own bound on its demands: ten a second.
const BETWEEN_DEMANDS: Micros = Micros::millis(100);
/// How long the daemon may take for its Welcome: all agents of a host may call at once.
const GREETING: Duration = Duration::from_secs(10);

/// Why a session ended.
enum End {
    /// The fleet was told to drop all of them.
    Dropped,
    /// The daemon went away, or never let it in.
    Gone,
}

/// One agent, for ever.
pub(super) async fn live(vm: Rc<RefCell<Vm>>, path: PathBuf, world: Rc<World>, mut random: ChaCha8Rng) {
    loop {
        if let Ok(stream) = UnixStream::connect(&path).await {
            let mut session = Session {
                stream,
                deframer: Deframer::default(),
                buffer: Box::new([0; MAX_FRAME]),
                vm: Rc::clone(&vm),
                world: Rc::clone(&world),
            };
            let end = session.run(&mut random).await;
            vm.borrow_mut().lost(&mut world.tally());
            if matches!(end, Ok(End::Dropped)) {
                continue;
            }
        }
        sleep(Duration::from_millis(random.random_range(REDIAL..2 * REDIAL))).await;
    }
}

struct Session {
    stream: UnixStream,
    deframer: Deframer,
    buffer: Box<[u8; MAX_FRAME]>,
    vm: Rc<RefCell<Vm>>,
    world: Rc<World>,
}

impl Session {
    async fn run(&mut self, random: &mut ChaCha8Rng) -> Result<End> {
        let mut dropping = self.world.dropping.subscribe();
        let Some(welcome) = self.greet().await? else { return Ok(End::Gone) };
        let repeated = self.vm.borrow_mut().greeted(self.world.now(), &mut self.world.tally());
        for demand in repeated {
            self.write(&GuestMessage::Demand(demand)).await?;
        }
        let wake = Rc::clone(&self.vm.borrow().wake);
        let (idle, busy) = (welcome.idle_interval.duration(), welcome.busy_interval.duration());
        let mut heard = Instant::now();
        // Spread over the second, as agents are that were not all started at once.
        let mut next_report = heard + idle.mul_f64(random.random::<f64>());
        let mut next_look = None;
        let mut next_demand = Micros::ZERO;
        let mut seq = 0;
        loop {
            tokio::select! {
                changed = dropping.changed() => return if changed.is_ok() { Ok(End::Dropped) } else { Ok(End::Gone) },
                message = timeout_at(heard + welcome.silence.duration(), self.read()) => {
                    let Ok(message) = message else {
                        let vm = self.vm.borrow();
                        self.world.tally().breaks(Promise::HostSilent, &vm.name, welcome.silence);
                        return Ok(End::Gone);
                    };
                    heard = Instant::now();
                    if !self.heard(message?).await? {
                        return Ok(End::Gone);
                    }
                    // An answer is often followed by memory: look soon.
                    if self.vm.borrow().is_busy() {
                        next_look.get_or_insert(heard + LOOK);
                        next_report = next_report.min(heard + busy);
                    }
                }
                () = wake.notified() => {
                    let now = Instant::now();
                    next_look = Some(now);
                    next_report = next_report.min(now + busy);
                }
                () = sleep_until(next_look.unwrap_or(heard)), if next_look.is_some() => {
                    if let Some(demand) = self.look(&mut next_demand) {
                        self.write(&GuestMessage::Demand(demand)).await?;
                    }
                    next_look = self.vm.borrow().is_busy().then(|| Instant::now() + LOOK);
                }
                () = sleep_until(next_report) => {
                    let (report, is_busy) = {
                        let mut vm = self.vm.borrow_mut();
                        (vm.report(seq, self.world.now(), &mut self.world.tally()), vm.is_busy())
                    };
                    seq += 1;
                    self.write(&GuestMessage::Telemetry(report)).await?;
                    next_report += if is_busy { busy } else { idle };
                    // A fleet that was held up does not make up for it.
                    next_report = next_report.max(Instant::now());
                }
            }
        }
    }

    /// `None`: the daemon does not let it in.
    async fn greet(&mut self) -> Result<Option<Welcome>> {
        let balloon = Some(BalloonFeatures { deflate_on_oom: true, free_page_reporting: false });
        let hello = Hello {
            oldest: OLDEST_VERSION,
            newest: VERSION,
            agent: Limited::cut(env!("CARGO_PKG_VERSION")),
            kernel: Limited::cut("simulated"),
            boot_id: [1; 16],
            now: self.world.now(),
            capabilities: Capabilities { psi: true, cgroup2: true, reclaim: true, absorber: false, balloon },
        };
        self.write(&GuestMessage::Hello(hello)).await?;
        match timeout(GREETING, self.read()).await.context("no Welcome")?? {
            HostMessage::Welcome(welcome) => Ok(Some(welcome)),
            HostMessage::Refused(_) => {
                self.world.tally().refused_sessions += 1;
                Ok(None)
            }
            other => bail!("{other:?} before a Welcome"),
        }
    }

    /// What the host said; `false`: it ends the session.
    async fn heard(&mut self, message: HostMessage) -> Result<bool> {
        let now = self.world.now();
        match message {
            HostMessage::Ping(ping) => {
                let pong = Pong { seq: ping.seq, at: ping.at, received: now, sent: self.world.now() };
                self.write(&GuestMessage::Pong(pong)).await?;
            }
            HostMessage::Answer(answer) => self.vm.borrow_mut().answered(now, &answer, &mut self.world.tally()),
            HostMessage::Reclaim(order) => {
                let size = self.vm.borrow_mut().guest.drop_cache(order.size);
                let exhausted = size < order.size;
                self.write(&GuestMessage::Reclaimed(Reclaimed { id: order.id, size, exhausted })).await?;
            }
            HostMessage::Welcome(_) => bail!("a second Welcome"),
            HostMessage::Refused(_) | HostMessage::Goodbye => return Ok(false),
        }
        Ok(true)
    }

    /// Lets the guest live until now; what it asks for then.
    fn look(&mut self, next_demand: &mut Micros) -> Option<Demand> {
        let now = self.world.now();
        let mut vm = self.vm.borrow_mut();
        let shows = std::mem::take(&mut vm.shows);
        vm.guest.advance(now);
        let (source, size) = match vm.guest.alarm() {
            _ if shows => (Source::Committed, vm.guest.lacks()),
            Some(more) if now >= *next_demand => (Source::Slack, more),
            _ => return None,
        };
        if size == ballast_protocol::Bytes::ZERO {
            return None;
        }
        *next_demand = now + BETWEEN_DEMANDS;
        Some(vm.ask(now, source, size, &mut self.world.tally()))
    }

    /// The next message. Dropped and called again, it loses nothing.
    async fn read(&mut self) -> Result<HostMessage> {
        loop {
            if let Some(message) = self.deframer.next_frame()? {
                return Ok(message);
            }
            match self.stream.read(self.deframer.space()).await? {
                0 => bail!("the daemon closed the connection"),
                count => self.deframer.advance(count),
            }
        }
    }

    async fn write(&mut self, message: &GuestMessage) -> Result<()> {
        let frame = encode(message, &mut self.buffer)?;
        Ok(self.stream.write_all(frame).await?)
    }
}
