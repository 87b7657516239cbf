//! A simulated fleet: many VMs, each with an agent that speaks the real protocol and a QEMU monitor that has no QEMU,
//! around a real daemon.
//!
//! ```text
//!   this process, one thread                                  ballast-host run
//!     agent 0..n    --reports, demands--> <v>_9150  ------->    sessions, planner
//!     monitor 0..n  <------------------- <q>       <-------     actuators, QMP
//!       '- guest: balloon at its measured pace, memory, bursts
//! ```
//!
//! 1 in 100 VMs grows at any time; the others report once a second. The time from a demand to its balloon command is
//! taken here, where both are seen by one clock, so the fleet's own delays are in it; they are measured too.

mod agent;
mod cost;
mod guest;
mod monitor;
mod scrape;
mod tally;
mod vm;

pub use cost::{Cost, Usage};
pub use scrape::Scrapes;
pub use tally::{Promise, Quantiles, Tally};

use crate::children::Folder;
use anyhow::{Context, Result, bail};
use ballast_protocol::{Bytes, DEFAULT_PORT, Micros};
use guest::Guest;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc as std_mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{LocalSet, spawn_local};
use toml::{Table, Value};
use vm::Vm;

/// One in so many VMs is in a burst.
const QUIET_TO_BURSTING: usize = 100;
/// How fast a burst grows, MiB/s (DESIGN section 1: 100 to 240 under TCG).
const RATES: std::ops::Range<u64> = 100..240;
/// How large it is, MiB: always beyond the headroom.
const SIZES: std::ops::Range<u64> = 96..256;
/// How long it holds what it has, ms.
const HOLDS: std::ops::Range<u64> = 500..2000;
/// How often broken promises and the fleet's own delay are looked for.
const AUDIT: Duration = Duration::from_millis(250);
const LAG: Duration = Duration::from_millis(20);

type Shared = Arc<Mutex<Tally>>;

/// What all tasks of a fleet see.
struct World {
    epoch: Instant,
    tally: Shared,
    /// Grows when all sessions are to end.
    dropping: watch::Sender<u64>,
    bursting: Cell<bool>,
}

impl World {
    fn now(&self) -> Micros {
        Micros::from_duration(self.epoch.elapsed())
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        lock(&self.tally)
    }
}

fn lock(tally: &Shared) -> MutexGuard<'_, Tally> {
    // Counts stay counts even if somebody panicked between two of them.
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Command {
    Burst(bool),
    Reconnect,
}

/// A fleet. Dropping it ends it.
pub struct Fleet {
    commands: Option<mpsc::UnboundedSender<Command>>,
    thread: Option<JoinHandle<()>>,
    tally: Shared,
    sizes: Vec<(Bytes, Bytes)>,
    folder: Folder,
}

impl std::fmt::Debug for Fleet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fleet").field("vms", &self.sizes.len()).finish_non_exhaustive()
    }
}

impl Fleet {
    /// Starts `vms` VMs; the same seed makes the same VMs and the same bursts. Their agents dial until a daemon is
    /// there.
    ///
    /// # Errors
    /// The sockets cannot be had: three file descriptors a VM.
    pub fn start(vms: usize, seed: u64) -> Result<Self> {
        raise_file_limit(vms)?;
        let folder = Folder::new()?;
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let guests: Vec<Guest> = (0..vms).map(|n| Guest::new(n, &mut random)).collect();
        let sizes = guests.iter().map(|g| (g.min, g.max)).collect();
        let tally = Shared::default();
        let (commands, inbox) = mpsc::unbounded_channel();
        let (ready, started) = std_mpsc::channel();
        let thread = std::thread::Builder::new().name("fleet".into()).spawn({
            let (path, tally) = (folder.path().to_owned(), Arc::clone(&tally));
            move || {
                let ended = run(guests, &path, random, tally, inbox, &ready);
                // Whoever waits for the start hears of a failure; later nobody waits, and nothing fails.
                let _ = ready.send(ended);
            }
        })?;
        started.recv().context("the fleet's thread")?.context("starting the fleet")?;
        Ok(Self { commands: Some(commands), thread: Some(thread), tally, sizes, folder })
    }

    /// A configuration of `ballast-host` that manages all of it, with more memory than all can ask for, and with metrics
    /// and page on as everywhere by default.
    #[must_use]
    pub fn config(&self) -> Table {
        let vm = |(n, (min, _)): (usize, &(Bytes, Bytes))| {
            let text = |path: PathBuf| Value::from(path.display().to_string());
            Value::Table(Table::from_iter([
                ("name".to_owned(), name(n).into()),
                ("qmp".to_owned(), text(monitor_path(self.folder.path(), n))),
                ("vsock".to_owned(), text(vsock_path(self.folder.path(), n))),
                ("min".to_owned(), format!("{}MiB", min.as_mib()).into()),
            ]))
        };
        let vms: Vec<Value> = self.sizes.iter().enumerate().map(vm).collect();
        let all: Bytes = self.sizes.iter().map(|(_, max)| *max).sum();
        let budget = format!("{}MiB", 2 * all.as_mib());
        let host = Table::from_iter([("budget".to_owned(), budget.into())]);
        let metrics = Table::from_iter([("listen".to_owned(), "127.0.0.1:0".into())]);
        Table::from_iter([
            ("vm".to_owned(), vms.into()),
            ("host".to_owned(), host.into()),
            ("metrics".to_owned(), metrics.into()),
        ])
    }

    /// Waits until every VM has a session; returns how long that took.
    ///
    /// # Errors
    /// Not all have one after `patience`.
    pub fn wait_for_sessions(&self, patience: Duration) -> Result<Duration> {
        let begun = Instant::now();
        loop {
            let (connected, refused) = {
                let tally = lock(&self.tally);
                (tally.connected, tally.refused_sessions)
            };
            if connected == self.sizes.len() {
                return Ok(begun.elapsed());
            }
            if begun.elapsed() > patience {
                let all = self.sizes.len();
                bail!("{connected} of {all} agents have a session after {patience:?}; {refused} were refused");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// From now on one in a hundred is in a burst, or none.
    pub fn burst(&self, on: bool) {
        self.tell(Command::Burst(on));
    }

    /// All sessions end, and all agents call at once. Returns when no old session is left.
    pub fn reconnect(&self) {
        let before = lock(&self.tally).sessions;
        self.tell(Command::Reconnect);
        // The command is under way as long as nothing has changed.
        while lock(&self.tally).connected == self.sizes.len() && lock(&self.tally).sessions == before {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn tell(&self, command: Command) {
        if let Some(commands) = &self.commands {
            // Its thread ends only with this.
            let _ = commands.send(command);
        }
    }

    /// What it has seen since the last reset.
    #[must_use]
    pub fn tally(&self) -> Tally {
        lock(&self.tally).clone()
    }

    /// Counts begin anew.
    pub fn reset(&self) {
        lock(&self.tally).reset();
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has been told of by the panic itself.
            let _ = thread.join();
        }
    }
}

fn name(n: usize) -> String {
    format!("vm-{n:04}")
}

fn monitor_path(folder: &Path, n: usize) -> PathBuf {
    folder.join(format!("q{n}"))
}

fn vsock_path(folder: &Path, n: usize) -> PathBuf {
    folder.join(format!("v{n}"))
}

/// The soft limit is 1,024 on most systems; the hard one is what we are allowed.
fn raise_file_limit(vms: usize) -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let needed = 3 * vms as u64 + 100;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|now| now < needed) {
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    }
    if limit.maximum.is_some_and(|most| most < needed) {
        bail!("{vms} VMs need {needed} file descriptors, and the hard limit is lower: `ulimit -Hn`");
    }
    Ok(())
}

type Ready = std_mpsc::Sender<Result<()>>;

fn run(
    guests: Vec<Guest>,
    folder: &Path,
    random: ChaCha8Rng,
    tally: Shared,
    inbox: mpsc::UnboundedReceiver<Command>,
    ready: &Ready,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, live(guests, folder, random, tally, inbox, ready))
}

async fn live(
    guests: Vec<Guest>,
    folder: &Path,
    mut random: ChaCha8Rng,
    tally: Shared,
    mut inbox: mpsc::UnboundedReceiver<Command>,
    ready: &Ready,
) -> Result<()> {
    let world =
        Rc::new(World { epoch: Instant::now(), tally, dropping: watch::Sender::new(0), bursting: Cell::new(false) });
    let mut vms = Vec::with_capacity(guests.len());
    for (n, guest) in guests.into_iter().enumerate() {
        let path = monitor_path(folder, n);
        let listener = UnixListener::bind(&path).with_context(|| path.display().to_string())?;
        let vm = Rc::new(RefCell::new(Vm::new(name(n), guest)));
        spawn_local(monitor::serve(listener, Rc::clone(&vm), Rc::clone(&world)));
        let path = PathBuf::from(format!("{}_{DEFAULT_PORT}", vsock_path(folder, n).display()));
        let dice = ChaCha8Rng::seed_from_u64(random.random());
        spawn_local(agent::live(Rc::clone(&vm), path, Rc::clone(&world), dice));
        vms.push(vm);
    }
    let vms: Rc<[_]> = vms.into();
    for _ in 0..(vms.len() / QUIET_TO_BURSTING).max(1) {
        let dice = ChaCha8Rng::seed_from_u64(random.random());
        spawn_local(bursts(Rc::clone(&vms), Rc::clone(&world), dice));
    }
    spawn_local(audit(Rc::clone(&vms), Rc::clone(&world)));
    spawn_local(lag(Rc::clone(&world)));
    let _ = ready.send(Ok(()));
    while let Some(command) = inbox.recv().await {
        match command {
            Command::Burst(on) => world.bursting.set(on),
            Command::Reconnect => world.dropping.send_modify(|n| *n += 1),
        }
    }
    Ok(())
}

/// One VM after another grows, holds what it has, and lets go.
async fn bursts(vms: Rc<[Rc<RefCell<Vm>>]>, world: Rc<World>, mut random: ChaCha8Rng) {
    loop {
        let vm = &vms[random.random_range(0..vms.len())];
        let is_ready = {
            let vm = vm.borrow();
            world.bursting.get() && vm.stands && !vm.is_busy()
        };
        if !is_ready {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
        let rate = random.random_range(RATES);
        let lasts = {
            let mut vm = vm.borrow_mut();
            vm.guest.advance(world.now());
            let size = vm.guest.burst(Bytes::mib(random.random_range(SIZES)), rate);
            vm.shows = random.random_ratio(3, 4);
            vm.wake.notify_one();
            Duration::from_millis(size.as_mib() * 1000 / rate + random.random_range(HOLDS))
        };
        world.tally().bursts += 1;
        tokio::time::sleep(lasts).await;
        vm.borrow_mut().guest.calm();
    }
}

async fn audit(vms: Rc<[Rc<RefCell<Vm>>]>, world: Rc<World>) {
    loop {
        tokio::time::sleep(AUDIT).await;
        let now = world.now();
        for vm in vms.iter() {
            vm.borrow_mut().audit(now, &mut world.tally());
        }
    }
}

async fn lag(world: Rc<World>) {
    loop {
        let due = Instant::now() + LAG;
        tokio::time::sleep_until(due.into()).await;
        let late = Micros::from_duration(due.elapsed()).0;
        world.tally().lag_us.push(late);
    }
}
