//! VMs that libvirt manages.
//!
//! ```text
//!   caller --job, expiry--> worker --job--> runner --virDomain...--> libvirtd     one runner owns the connection
//!   caller <----answer--------------------- runner                                ordered calls
//!   daemon <----Event------ worker <-- callbacks on libvirt's event loop (events_ffi)
//! ```
//!
//! A call into libvirt's library can hang for as long as libvirtd does, or as the QEMU that the call is about. So no
//! caller ever makes one: it leaves a job with the worker and waits for [`DEADLINE`]. A job that expired before the worker
//! came to it is not done at all: an order whose caller has given up must not be carried out after a newer one.
//!
//! Nor does the worker make one: a runner that has not come back after [`PATIENCE`] is left behind with its connection,
//! the others' jobs go on with a new runner on a new one, and its VM is left alone until it answers again (`runner`).
//!
//! libvirt's balloon event comes once a second at most (FACTS.md, section 2): while it matters, [`Hypervisor::balloon`]
//! reads the size by statistics tag 6.

mod domain_xml;
mod events_ffi;
mod job_ffi;
mod runner;
mod session;

use super::{BalloonStatistics, DEADLINE, Error, Event, Events, Hypervisor, State, VmFacts, What};
use ballast_planner::VmName;
use ballast_protocol::{Bytes, KiB};
use runner::{Hung, Job, Runner, Unable, Undone};
use session::{Running, Session};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Between attempts to connect: a restarted libvirtd needs some hundred milliseconds, and systemd's socket activation
/// must not be kept awake by a daemon that asks ten times a second.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(2);
/// How long a job may take before the others are served without it; as much is left of [`DEADLINE`] for those that waited
/// behind it. An answer that comes later still reaches its caller.
const PATIENCE: Duration = Duration::from_secs(1);
/// Jobs that may wait for a worker that hangs; callers leave after [`DEADLINE`], their jobs stay until it comes back.
const WAITING: usize = 1024;
/// Events that may wait. With more of them all VMs are asked instead.
const EVENTS: usize = 1024;
/// How often threads that hang are looked after.
const LOOK: Duration = Duration::from_millis(50);

/// All VMs of one libvirtd.
#[derive(Debug)]
pub struct Libvirt {
    uri: String,
    worker: Inbox,
    waiting: Arc<AtomicUsize>,
    /// VMs that cannot be described: told once.
    undescribed: Mutex<BTreeSet<VmName>>,
}

/// What the worker is sent, by callers and by libvirt.
enum FromLibvirt {
    /// About a VM whose QEMU it may have to wait for, if one is named.
    Job {
        vm: Option<VmName>,
        expires: Instant,
        run: Job<Session>,
    },
    Event {
        connection: u64,
        vm: VmName,
        id: Option<u32>,
        occurrence: Occurrence,
    },
    Closed {
        connection: u64,
        why: &'static str,
    },
    /// Only wakes it: [`Inbox::stopped`] says so.
    Stop,
}

/// The way to the worker. Bounded: libvirt's callbacks must not wait, and what they cannot leave is found by asking.
#[derive(Clone, Debug)]
struct Inbox {
    sender: SyncSender<FromLibvirt>,
    missed: Arc<AtomicBool>,
    stopped: Arc<AtomicBool>,
}

impl Inbox {
    fn new() -> (Self, Receiver<FromLibvirt>) {
        let (sender, inbox) = sync_channel(WAITING + EVENTS);
        (Self { sender, missed: Arc::default(), stopped: Arc::default() }, inbox)
    }

    /// What libvirt says.
    fn hear(&self, said: FromLibvirt) {
        if self.sender.try_send(said).is_err() {
            self.missed.store(true, Ordering::Release);
        }
    }
}

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
        let (sender, inbox) = Inbox::new();
        let waiting = Arc::new(AtomicUsize::new(0));
        let worker = Worker {
            uri: uri.to_owned(),
            sender: sender.clone(),
            inbox,
            waiting: Arc::clone(&waiting),
            events,
            connections: 0,
            running: Running::new(),
            is_lost: false,
            hung: Hung::default(),
        };
        let spawned = std::thread::Builder::new().name("libvirt".into()).spawn(move || worker.run());
        spawned.map_err(|e| failed(e.to_string()))?;
        Ok(Self { uri: uri.to_owned(), worker: sender, waiting, undescribed: Mutex::default() })
    }

    /// Has something done that may have to wait for the QEMU of `vm`, or else for libvirtd alone.
    fn call<T: Send + 'static>(
        &self,
        call: &'static str,
        vm: Option<&VmName>,
        run: impl FnOnce(&mut Session) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let whom = || format!("libvirt ({})", self.uri);
        let late = || Error::Deadline { whom: whom(), call };
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(late());
        }
        let (sender, answer) = sync_channel(1);
        let (uri, about) = (self.uri.clone(), vm.cloned());
        let run: Job<Session> = Box::new(move |session| {
            let (result, listed) = match (session, about) {
                (Ok(session), _) => (run(session), session.take_list()),
                (Err(Unable::Hung), Some(vm)) => (Err(Error::Hung { vm, call }), None),
                (Err(Unable::Hung), None) => (Err(Error::Deadline { whom: format!("libvirt ({uri})"), call }), None),
                (Err(Unable::Away(why)), _) => {
                    let whom = format!("libvirt ({uri})");
                    (Err(Error::Unreachable { whom, why: why.to_owned() }), None)
                }
            };
            // Fails only when nobody waits any more.
            let _ = sender.try_send(result);
            listed
        });
        let job = FromLibvirt::Job { vm: vm.cloned(), expires: Instant::now() + DEADLINE, run };
        match self.worker.sender.try_send(job) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                return Err(late());
            }
            Err(TrySendError::Disconnected(_)) => {
                return Err(Error::Unreachable { whom: whom(), why: "its thread has ended".into() });
            }
        }
        match answer.recv_timeout(DEADLINE) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(late()),
            Err(RecvTimeoutError::Disconnected) => {
                Err(Error::Unreachable { whom: whom(), why: "the connection ended before the answer".into() })
            }
        }
    }

    /// What libvirtd says of a VM without asking its QEMU.
    fn facts_of_hung(&self, vm: &VmName) -> Result<VmFacts, Error> {
        let vm = vm.clone();
        self.call("virDomainGetXMLDesc", None, move |s| s.facts_of_hung(&vm))
    }

    /// A VM that libvirt lists and of which nothing more is to be had: if it runs, it is there all the same, as it was.
    fn facts_of_undescribed(&self, vm: VmName, error: &Error) -> Result<Option<VmFacts>, Error> {
        if self.undescribed().insert(vm.clone()) {
            tracing::warn!(%vm, %error, "libvirt does not describe it: it stays as it was, and is not taken up");
        }
        let name = vm.clone();
        let runs = self.call("virDomainIsActive", None, move |s| Ok(s.is_active(&name)))?;
        Ok(runs.then(|| VmFacts {
            name: vm,
            uuid: None,
            state: State::Hung,
            max: Bytes::ZERO,
            actual: Bytes::ZERO,
            has_balloon: false,
            deflate_on_oom: None,
            free_page_reporting: None,
            cid: None,
            min_guarantee: None,
            // So that it is taken up when its size is known.
            migrating: true,
            metadata: Err(error.to_string()),
        }))
    }

    fn undescribed(&self) -> MutexGuard<'_, BTreeSet<VmName>> {
        self.undescribed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        self.worker.stopped.store(true, Ordering::Release);
        // Not joined: it may wait for a call that hangs. When it has too much to do to be woken, it does not sleep.
        let _ = self.worker.sender.try_send(FromLibvirt::Stop);
    }
}

impl Hypervisor for Libvirt {
    fn vms(&self) -> Result<Vec<VmFacts>, Error> {
        let names = self.call("virConnectListAllDomains", None, Session::names)?;
        let mut all = Vec::with_capacity(names.len());
        // A job for each, so that orders get their turn in between.
        for name in names {
            let facts = match self.facts(&name) {
                // One that does not answer is there all the same, and keeps its memory.
                Err(Error::Hung { .. } | Error::Deadline { .. } | Error::Refused { .. }) => self.facts_of_hung(&name),
                facts => facts,
            };
            match facts {
                Ok(facts) => {
                    self.undescribed().remove(&name);
                    all.push(facts);
                }
                // It went, or stopped, while we asked.
                Err(Error::UnknownVm(_) | Error::Off(_)) => {}
                Err(e @ (Error::Unreachable { .. } | Error::Deadline { .. })) => return Err(e),
                Err(error) => all.extend(self.facts_of_undescribed(name, &error)?),
            }
        }
        Ok(all)
    }

    fn facts(&self, vm: &VmName) -> Result<VmFacts, Error> {
        let name = vm.clone();
        self.call("virDomainGetXMLDesc", Some(vm), move |s| s.facts(&name))
    }

    fn balloon(&self, vm: &VmName) -> Result<Bytes, Error> {
        let name = vm.clone();
        self.call("virDomainMemoryStats", Some(vm), move |s| s.balloon(&name))
    }

    fn order(&self, vm: &VmName, keep: Bytes) -> Result<(), Error> {
        let name = vm.clone();
        self.call("virDomainSetMemoryFlags", Some(vm), move |s| s.order(&name, keep))
    }

    fn statistics(&self, vm: &VmName) -> Result<BalloonStatistics, Error> {
        let name = vm.clone();
        self.call("virDomainMemoryStats", Some(vm), move |s| s.statistics(&name))
    }
}

struct Worker {
    uri: String,
    sender: Inbox,
    inbox: Receiver<FromLibvirt>,
    waiting: Arc<AtomicUsize>,
    events: Events,
    /// Counts connections, so that a late word of an old one is known as such.
    connections: u64,
    /// The VMs the daemon believes to run.
    running: Running,
    /// The daemon was told that there is no connection.
    is_lost: bool,
    hung: Hung,
}

/// Why the worker stops doing something.
enum End {
    Stop,
    Lost(String),
    /// A call hangs; about a VM if one is named.
    Hangs(Option<VmName>),
}

impl Worker {
    fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            self.connections += 1;
            let why = match self.open() {
                Ok((runner, running)) => {
                    pause = FIRST_PAUSE;
                    if std::mem::take(&mut self.is_lost) {
                        for (vm, _) in self.running.iter().filter(|(vm, id)| running.get(*vm) == Some(*id)) {
                            self.tell(vm, What::ConnectionBack);
                        }
                    }
                    self.compare(running);
                    match self.serve(&runner) {
                        End::Stop => return,
                        End::Lost(why) => why,
                        End::Hangs(vm) => {
                            self.abandon(vm, runner);
                            // Until the next connection nobody listens.
                            self.sender.missed.store(true, Ordering::Release);
                            if !self.hung.is_full() {
                                continue;
                            }
                            "too many QEMUs hang, and each keeps one of libvirtd's workers: look for processes that \
                             are stopped or wait for a disk (`ps -C qemu-system-x86_64 -o pid,stat,args`)"
                                .to_owned()
                        }
                    }
                }
                Err(why) => why,
            };
            self.lose(&why);
            if let End::Stop = self.wait(pause, &why) {
                return;
            }
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// Opens a connection, however long that takes: a libvirtd that hangs is waited for.
    fn open(&mut self) -> Result<(Runner<Session>, Running), String> {
        let (uri, number, sender) = (self.uri.clone(), self.connections, self.sender.clone());
        let runner = Runner::start(move || Session::open(&uri, number, &sender)).map_err(|e| e.to_string())?;
        let mut patience = PATIENCE;
        loop {
            match runner.opened(patience) {
                Ok(running) => return running.map(|running| (runner, running)),
                Err(Undone::Died) => return Err("its thread has ended".to_owned()),
                Err(Undone::Overran) => {
                    self.lose("libvirtd does not answer");
                    if self.sender.stopped.load(Ordering::Acquire) {
                        return Err("it is not wanted any more".to_owned());
                    }
                    patience = LAST_PAUSE;
                }
            }
        }
    }

    /// Tells that there is no connection, once.
    fn lose(&mut self, why: &str) {
        tracing::debug!(uri = self.uri, why, "no connection to libvirt");
        if !std::mem::replace(&mut self.is_lost, true) {
            for vm in self.running.keys() {
                self.tell(vm, What::ConnectionLost(why.to_owned()));
            }
        }
    }

    /// Leaves a call behind that hangs.
    fn abandon(&mut self, vm: Option<VmName>, runner: Runner<Session>) {
        match &vm {
            Some(vm) => tracing::warn!(%vm, "its QEMU does not answer libvirt in time: it is left alone until it does"),
            None => tracing::warn!(uri = self.uri, "libvirtd does not answer"),
        }
        self.hung.add(vm, runner.abandon(), Instant::now());
    }

    /// Looks after what hangs.
    fn look_after_hung(&mut self) {
        let uri = &self.uri;
        let back = self.hung.look(Instant::now(), |vm| {
            let (uri, vm) = (uri.clone(), vm.clone());
            std::thread::Builder::new().name("libvirt probe".into()).spawn(move || {
                let begin = Instant::now();
                let answer = Session::unattended(&uri).map(|mut s| s.balloon(&vm));
                // That it is off, gone or without a balloon is an answer too.
                let answered =
                    matches!(answer, Ok(Ok(_) | Err(Error::Off(_) | Error::UnknownVm(_) | Error::NoBalloon(_))));
                answered && begin.elapsed() < PATIENCE
            })
        });
        for vm in back {
            tracing::info!(%vm, "its QEMU answers again");
            self.tell(&vm, What::Changed);
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
    fn serve(&mut self, runner: &Runner<Session>) -> End {
        loop {
            if self.sender.stopped.load(Ordering::Acquire) {
                return End::Stop;
            }
            self.look_after_hung();
            if self.sender.missed.swap(false, Ordering::AcqRel)
                && let Some(end) = self.ask_all(runner)
            {
                return end;
            }
            // The worker itself holds a sender.
            let message = if self.hung.is_empty() {
                self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                self.inbox.recv_timeout(LOOK)
            };
            match message {
                Err(RecvTimeoutError::Timeout) | Ok(FromLibvirt::Stop) => {}
                Err(RecvTimeoutError::Disconnected) => return End::Stop,
                Ok(FromLibvirt::Job { vm, expires, run }) => {
                    self.waiting.fetch_sub(1, Ordering::Relaxed);
                    if vm.as_ref().is_some_and(|vm| self.hung.contains(vm)) {
                        run(Err(Unable::Hung));
                    } else if Instant::now() < expires
                        && let Some(end) = self.have_done(runner, vm, run)
                    {
                        return end;
                    }
                }
                Ok(FromLibvirt::Closed { connection, why }) if connection == self.connections => {
                    return End::Lost(why.to_owned());
                }
                Ok(FromLibvirt::Event { connection, vm, id, occurrence }) if connection == self.connections => {
                    if matches!(occurrence, Occurrence::Started | Occurrence::Stopped) {
                        let name = vm.clone();
                        let forget: Job<Session> = Box::new(move |session| {
                            if let Ok(session) = session {
                                session.forget(&name);
                            }
                            None
                        });
                        if let Some(end) = self.have_done(runner, None, forget) {
                            return end;
                        }
                    }
                    self.event(&vm, id, occurrence);
                }
                Ok(FromLibvirt::Closed { .. } | FromLibvirt::Event { .. }) => {}
            }
        }
    }

    /// `None` when the job was done.
    fn have_done(&mut self, runner: &Runner<Session>, vm: Option<VmName>, job: Job<Session>) -> Option<End> {
        match runner.run(job, PATIENCE) {
            Ok(listed) => {
                if let Some(running) = listed {
                    self.compare(running);
                }
                None
            }
            Err(Undone::Overran) => Some(End::Hangs(vm)),
            Err(Undone::Died) => Some(End::Lost("its thread has ended".to_owned())),
        }
    }

    /// libvirt said more than was heard: what it was is found by asking about all.
    fn ask_all(&mut self, runner: &Runner<Session>) -> Option<End> {
        let (say, said) = sync_channel(1);
        let list: Job<Session> = Box::new(move |session| {
            let session = session.ok()?;
            let _ = say.try_send(session.names().map_err(|e| e.to_string()));
            session.take_list()
        });
        let end = self.have_done(runner, None, list);
        if end.is_some() {
            return end;
        }
        if let Ok(Err(why)) = said.try_recv() {
            return Some(End::Lost(why));
        }
        for vm in self.running.keys() {
            self.tell(vm, What::Changed);
        }
        None
    }

    fn event(&mut self, vm: &VmName, id: Option<u32>, occurrence: Occurrence) {
        let what = match occurrence {
            Occurrence::Started => {
                if self.running.insert(vm.clone(), id) == Some(id) {
                    // It was in the list already.
                    return;
                }
                What::Started
            }
            Occurrence::Stopped => {
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

    /// Lets time pass without a connection, as much as it takes until not too much hangs; jobs fail at once.
    fn wait(&mut self, pause: Duration, why: &str) -> End {
        let until = Instant::now() + pause;
        loop {
            self.look_after_hung();
            let left = until.saturating_duration_since(Instant::now());
            let left = match (self.hung.is_empty(), self.hung.is_full()) {
                (true, _) => left,
                (_, true) => LOOK,
                (_, false) => left.min(LOOK),
            };
            match self.inbox.recv_timeout(left) {
                Ok(FromLibvirt::Job { run, .. }) => {
                    self.waiting.fetch_sub(1, Ordering::Relaxed);
                    run(Err(Unable::Away(why)));
                }
                // Words of a connection that is gone.
                Ok(FromLibvirt::Closed { .. } | FromLibvirt::Event { .. } | FromLibvirt::Stop) => {}
                Err(RecvTimeoutError::Disconnected) => return End::Stop,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.sender.stopped.load(Ordering::Acquire) {
                return End::Stop;
            }
            if Instant::now() >= until && !self.hung.is_full() {
                return End::Lost(why.to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virt::connect::Connect;
    use virt::domain::Domain;
    use virt::sys;

    /// Over libvirt's own driver for tests: it is in this process, and has one VM, which runs.
    #[test]
    fn a_vm_that_cannot_be_described_is_listed_while_it_runs() {
        let uri = "test:///default";
        let (sender, _events) = tokio::sync::mpsc::unbounded_channel();
        let libvirt = Libvirt::new(uri, sender).unwrap();
        let connect = Connect::open(Some(uri)).unwrap();
        let domain = Domain::lookup_by_name(&connect, "test").unwrap();
        let listed = || {
            let begin = Instant::now();
            loop {
                match libvirt.vms() {
                    Ok(vms) => {
                        return vms.into_iter().map(|f| (f.name, f.state, f.max, f.migrating)).collect::<Vec<_>>();
                    }
                    // It connects.
                    Err(error) => assert!(begin.elapsed() < DEADLINE * 5, "{error}"),
                }
            }
        };
        let name = VmName::from("test");
        assert_eq!(listed(), [(name.clone(), State::Hung, Bytes::mib(8192), false)], "this driver knows of no jobs");
        // Somebody else's metadata, which libvirt takes: two names of one namespace, and so one attribute twice.
        let odd = "<y xmlns:p='urn:a' xmlns:q='urn:a' p:k='1' q:k='2'/>";
        let (kind, both) =
            (sys::VIR_DOMAIN_METADATA_ELEMENT, sys::VIR_DOMAIN_AFFECT_LIVE | sys::VIR_DOMAIN_AFFECT_CONFIG);
        domain.set_metadata(kind.cast_signed(), Some(odd), Some("w"), Some("urn:x"), both).unwrap();
        assert_eq!(listed(), [(name.clone(), State::Hung, Bytes::ZERO, true)]);
        assert!(libvirt.undescribed().contains(&name));
        domain.destroy().unwrap();
        assert_eq!(listed(), []);
    }
}
