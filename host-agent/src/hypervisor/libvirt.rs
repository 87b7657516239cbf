//! VMs that libvirt manages.
//!
//! ```text
//!   caller --job, expiry--> worker thread --virDomain...--> libvirtd     one thread owns the connection
//!   caller <----answer----- worker thread                                ordered calls, one place to reconnect
//!   daemon <----Event------ worker thread <-- callbacks on libvirt's event loop (events_ffi)
//! ```
//!
//! A call into libvirt's library can hang for as long as libvirtd does. So no caller ever makes one: it leaves a job
//! with the worker and waits for [`DEADLINE`]. A job that expired before the worker came to it is not done at all: an
//! order whose caller has given up must not be carried out after a newer one.
//!
//! libvirt's balloon event comes once a second at most (FACTS.md, section 2): while it matters, [`Hypervisor::balloon`]
//! reads the size by statistics tag 6.

mod domain_xml;
mod events_ffi;
mod job_ffi;
mod session;

use super::{BalloonStatistics, DEADLINE, Error, Event, Events, Hypervisor, State, VmFacts, What};
use ballast_planner::VmName;
use ballast_protocol::{Bytes, KiB};
use session::{Running, Session};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::time::{Duration, Instant};

/// Between attempts to connect: a restarted libvirtd needs some hundred milliseconds, and systemd's socket activation
/// must not be kept awake by a daemon that asks ten times a second.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(2);
/// Jobs that may wait for a worker that hangs; callers leave after [`DEADLINE`], their jobs stay until it comes back.
const WAITING: usize = 1024;

/// All VMs of one libvirtd.
#[derive(Debug)]
pub struct Libvirt {
    uri: String,
    worker: Sender<FromLibvirt>,
    waiting: Arc<AtomicUsize>,
}

/// What the worker is sent, by callers and by libvirt.
enum FromLibvirt {
    Job { expires: Instant, run: Job },
    Event { connection: u64, vm: VmName, id: Option<u32>, occurrence: Occurrence },
    Closed { connection: u64, why: &'static str },
    Stop,
}

/// Run by the worker, with its session or the reason why there is none.
type Job = Box<dyn FnOnce(Result<&mut Session, &str>) + Send>;

/// What libvirt says happened to a domain.
#[derive(Clone, Copy, Debug)]
enum Occurrence {
    Started,
    Stopped,
    Paused,
    Resumed,
    Reset,
    Migrates,
    Changed,
    /// KiB.
    BalloonMoved(u64),
}

impl Libvirt {
    /// Connects to a libvirtd, now or when it appears, for as long as this lives. Does not wait.
    ///
    /// # Errors
    /// libvirt's event loop or a thread cannot be started.
    pub fn new(uri: &str, events: Events) -> Result<Self, Error> {
        let failed = |why: String| Error::Unreachable { whom: format!("libvirt ({uri})"), why };
        events_ffi::start_event_loop().map_err(failed)?;
        let (sender, inbox) = channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let worker = Worker {
            uri: uri.to_owned(),
            sender: sender.clone(),
            inbox,
            waiting: Arc::clone(&waiting),
            events,
            connections: 0,
            running: Running::new(),
        };
        let spawned = std::thread::Builder::new().name("libvirt".into()).spawn(move || worker.run());
        spawned.map_err(|e| failed(e.to_string()))?;
        Ok(Self { uri: uri.to_owned(), worker: sender, waiting })
    }

    fn call<T: Send + 'static>(
        &self,
        call: &'static str,
        run: impl FnOnce(&mut Session) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let whom = || format!("libvirt ({})", self.uri);
        let late = || Error::Deadline { whom: whom(), call };
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(late());
        }
        let (sender, answer) = sync_channel(1);
        let uri = self.uri.clone();
        let run: Job = Box::new(move |session| {
            let result = session
                .map_err(|why| Error::Unreachable { whom: format!("libvirt ({uri})"), why: why.to_owned() })
                .and_then(run);
            // Nobody waits any more.
            let _ = sender.try_send(result);
        });
        let job = FromLibvirt::Job { expires: Instant::now() + DEADLINE, run };
        if self.worker.send(job).is_err() {
            return Err(Error::Unreachable { whom: whom(), why: "its thread has ended".into() });
        }
        match answer.recv_timeout(DEADLINE) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(late()),
            Err(RecvTimeoutError::Disconnected) => {
                Err(Error::Unreachable { whom: whom(), why: "the connection ended before the answer".into() })
            }
        }
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        // Not joined: it may be inside a call that hangs.
        let _ = self.worker.send(FromLibvirt::Stop);
    }
}

impl Hypervisor for Libvirt {
    fn vms(&self) -> Result<Vec<VmFacts>, Error> {
        let names = self.call("virConnectListAllDomains", Session::names)?;
        let mut all = Vec::with_capacity(names.len());
        // A job for each, so that orders get their turn in between.
        for name in names {
            match self.facts(&name) {
                Ok(facts) => all.push(facts),
                // It went while we asked.
                Err(Error::UnknownVm(_)) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(all)
    }

    fn facts(&self, vm: &VmName) -> Result<VmFacts, Error> {
        let vm = vm.clone();
        self.call("virDomainGetXMLDesc", move |s| s.facts(&vm))
    }

    fn balloon(&self, vm: &VmName) -> Result<Bytes, Error> {
        let vm = vm.clone();
        self.call("virDomainMemoryStats", move |s| s.balloon(&vm))
    }

    fn order(&self, vm: &VmName, keep: Bytes) -> Result<(), Error> {
        let vm = vm.clone();
        self.call("virDomainSetMemoryFlags", move |s| s.order(&vm, keep))
    }

    fn statistics(&self, vm: &VmName) -> Result<BalloonStatistics, Error> {
        let vm = vm.clone();
        self.call("virDomainMemoryStats", move |s| s.statistics(&vm))
    }
}

struct Worker {
    uri: String,
    sender: Sender<FromLibvirt>,
    inbox: Receiver<FromLibvirt>,
    waiting: Arc<AtomicUsize>,
    events: Events,
    /// Counts connections, so that a late word of an old one is known as such.
    connections: u64,
    /// The VMs the daemon believes to run.
    running: Running,
}

/// Why the worker stops doing something.
enum End {
    Stop,
    Lost(String),
}

impl Worker {
    fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            self.connections += 1;
            let why = match Session::open(&self.uri, self.connections, &self.sender) {
                Ok((session, running)) => {
                    pause = FIRST_PAUSE;
                    for (vm, _) in self.running.iter().filter(|(vm, id)| running.get(*vm) == Some(*id)) {
                        self.tell(vm, What::ConnectionBack);
                    }
                    self.compare(running);
                    match self.serve(session) {
                        End::Stop => return,
                        End::Lost(why) => {
                            for vm in self.running.keys() {
                                self.tell(vm, What::ConnectionLost(why.clone()));
                            }
                            why
                        }
                    }
                }
                Err(why) => why,
            };
            tracing::debug!(uri = self.uri, why, "no connection to libvirt");
            if let End::Stop = self.wait(pause, &why) {
                return;
            }
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    fn tell(&self, vm: &VmName, what: What) {
        // Fails only when the daemon has gone, and then nobody wants to know.
        let _ = self.events.send(Event { vm: vm.clone(), what });
    }

    /// A new list: what changed since the last one that no event told of? A libvirtd that starts and finds a VM dead
    /// says nothing, and on a connection that was lost nothing can be said.
    fn compare(&mut self, running: Running) {
        for (vm, id) in &self.running {
            if running.get(vm) != Some(id) {
                self.tell(vm, What::Stopped);
            }
        }
        for (vm, id) in &running {
            if self.running.get(vm) != Some(id) {
                self.tell(vm, What::Started);
            }
        }
        self.running = running;
    }

    /// Does jobs and passes events on until the connection is lost.
    fn serve(&mut self, mut session: Session) -> End {
        loop {
            // The worker itself holds a sender.
            let Ok(message) = self.inbox.recv() else { return End::Stop };
            match message {
                FromLibvirt::Stop => return End::Stop,
                FromLibvirt::Job { expires, run } => {
                    self.waiting.fetch_sub(1, Ordering::Relaxed);
                    if Instant::now() < expires {
                        run(Ok(&mut session));
                    }
                    if let Some(running) = session.take_list() {
                        self.compare(running);
                    }
                }
                FromLibvirt::Closed { connection, why } if connection == self.connections => {
                    return End::Lost(why.to_owned());
                }
                FromLibvirt::Event { connection, vm, id, occurrence } if connection == self.connections => {
                    self.event(&mut session, &vm, id, occurrence);
                }
                FromLibvirt::Closed { .. } | FromLibvirt::Event { .. } => {}
            }
        }
    }

    fn event(&mut self, session: &mut Session, vm: &VmName, id: Option<u32>, occurrence: Occurrence) {
        let what = match occurrence {
            Occurrence::Started => {
                session.forget(vm);
                if self.running.insert(vm.clone(), id) == Some(id) {
                    // It was in the list already.
                    return;
                }
                What::Started
            }
            Occurrence::Stopped => {
                session.forget(vm);
                if self.running.remove(vm).is_none() {
                    return;
                }
                What::Stopped
            }
            Occurrence::Paused => What::Paused,
            Occurrence::Resumed => What::Resumed,
            Occurrence::Reset => What::Reset,
            Occurrence::Migrates => What::Migrates,
            Occurrence::Changed => What::Changed,
            Occurrence::BalloonMoved(kib) => What::BalloonMoved(KiB(kib).into()),
        };
        self.tell(vm, what);
    }

    /// Lets time pass without a connection; jobs fail at once.
    fn wait(&mut self, pause: Duration, why: &str) -> End {
        let until = Instant::now() + pause;
        loop {
            match self.inbox.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(FromLibvirt::Job { run, .. }) => {
                    self.waiting.fetch_sub(1, Ordering::Relaxed);
                    run(Err(why));
                }
                Ok(FromLibvirt::Stop) | Err(RecvTimeoutError::Disconnected) => return End::Stop,
                // Words of a connection that is gone.
                Ok(FromLibvirt::Closed { .. } | FromLibvirt::Event { .. }) => {}
                Err(RecvTimeoutError::Timeout) => return End::Lost(why.to_owned()),
            }
        }
    }
}
