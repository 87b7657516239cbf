//! Threads that make the calls which may hang, and what becomes of those that do.
//!
//! ```text
//!   worker --job--> Runner: one thread, one connection --done--> worker
//!     | not done in time
//!     '--> Hung: the thread is left behind, its VM is asked nothing until the thread is back or a probe was answered
//! ```
//!
//! A call about a VM waits for its QEMU's monitor without end. The thread that waits cannot be stopped, and libvirtd keeps
//! one of its own (20, `max_workers`) waiting with it: so one for each VM that hangs, and not too many in all.

use super::session::Running;
use ballast_planner::VmName;
use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Threads left behind. With so many the connection counts as lost until one is back.
const MOST: usize = 16;
/// Between the probes of a VM whose calls end with an error.
const FIRST_PROBE: Duration = Duration::from_secs(1);
const LAST_PROBE: Duration = Duration::from_secs(64);

/// Why a job has nothing to work with.
#[derive(Clone, Copy, Debug)]
pub(super) enum Unable<'a> {
    /// There is no connection.
    Away(&'a str),
    /// The VM's QEMU hangs.
    Hung,
}

/// What a job tells the worker.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// The hypervisor did what it was asked.
    pub answered: bool,
    /// What runs, if that was asked.
    pub listed: Option<Running>,
}

/// Run by a runner with its session, or by the worker with the reason why there is none.
pub(super) type Job<S> = Box<dyn FnOnce(Result<&mut S, Unable<'_>>) -> Done + Send>;

/// A thread that owns a session.
#[derive(Debug)]
pub(super) struct Runner<S> {
    jobs: Sender<Job<S>>,
    opened: Receiver<Result<Running, String>>,
    done: Receiver<Done>,
    thread: JoinHandle<bool>,
}

/// A job, or the opening of a session, that is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Undone {
    /// It takes longer than it may.
    Overran,
    /// It panicked.
    Died,
}

impl From<RecvTimeoutError> for Undone {
    fn from(error: RecvTimeoutError) -> Self {
        match error {
            RecvTimeoutError::Timeout => Self::Overran,
            RecvTimeoutError::Disconnected => Self::Died,
        }
    }
}

impl<S: 'static> Runner<S> {
    /// Opens a session on a thread of its own.
    ///
    /// # Errors
    /// There can be no thread.
    pub fn start(open: impl FnOnce() -> Result<(S, Running), String> + Send + 'static) -> io::Result<Self> {
        let (jobs, to_do) = channel::<Job<S>>();
        let (say_opened, opened) = channel();
        let (say_done, done) = channel();
        let work = move || {
            let (mut session, running) = match open() {
                Ok(open) => open,
                Err(why) => {
                    // Whoever waited may have gone, here and below.
                    let _ = say_opened.send(Err(why));
                    return false;
                }
            };
            let _ = say_opened.send(Ok(running));
            let mut answered = true;
            while let Ok(job) = to_do.recv() {
                let did = job(Ok(&mut session));
                answered = did.answered;
                let _ = say_done.send(did);
            }
            answered
        };
        let thread = std::thread::Builder::new().name("libvirt calls".into()).spawn(work)?;
        Ok(Self { jobs, opened, done, thread })
    }

    /// Which VMs run, once the session is open.
    pub fn opened(&self, patience: Duration) -> Result<Result<Running, String>, Undone> {
        Ok(self.opened.recv_timeout(patience)?)
    }

    /// Does a job. After an error this is to be abandoned.
    pub fn run(&self, job: Job<S>, patience: Duration) -> Result<Done, Undone> {
        self.jobs.send(job).map_err(|_| Undone::Died)?;
        Ok(self.done.recv_timeout(patience)?)
    }

    /// Its thread ends by itself when its call returns, and says whether that was answered.
    pub fn abandon(self) -> JoinHandle<bool> {
        self.thread
    }
}

/// VMs that hang, and the threads that hang with them.
#[derive(Debug, Default)]
pub(super) struct Hung {
    threads: Vec<(Option<VmName>, JoinHandle<bool>)>,
    vms: BTreeMap<VmName, Probing>,
}

#[derive(Clone, Copy, Debug)]
struct Probing {
    next: Instant,
    pause: Duration,
}

impl Hung {
    /// A thread hangs, in a call about a VM if one is named.
    pub fn add(&mut self, vm: Option<VmName>, thread: JoinHandle<bool>, now: Instant) {
        if let Some(vm) = &vm {
            self.vms.entry(vm.clone()).or_insert(Probing { next: now, pause: FIRST_PROBE });
        }
        self.threads.push((vm, thread));
    }

    pub fn contains(&self, vm: &VmName) -> bool {
        self.vms.contains_key(vm)
    }

    pub fn is_empty(&self) -> bool {
        self.threads.is_empty() && self.vms.is_empty()
    }

    /// Whether no other thread may be left behind.
    pub fn is_full(&self) -> bool {
        self.threads.len() >= MOST
    }

    /// Takes back the threads that have returned, and probes VMs whose time has come: `probe` starts a thread that says
    /// whether the VM answered. Returns the VMs that do again.
    pub fn look(
        &mut self,
        now: Instant,
        mut probe: impl FnMut(&VmName) -> io::Result<JoinHandle<bool>>,
    ) -> Vec<VmName> {
        let mut back = Vec::new();
        for (vm, thread) in std::mem::take(&mut self.threads) {
            if !thread.is_finished() {
                self.threads.push((vm, thread));
                continue;
            }
            let answered = thread.join().unwrap_or(false);
            let Some(vm) = vm else { continue };
            if answered {
                self.vms.remove(&vm);
                back.push(vm);
            }
        }
        for (vm, probing) in &mut self.vms {
            let is_asked = self.threads.iter().any(|(about, _)| about.as_ref() == Some(vm));
            if is_asked || now < probing.next || self.threads.len() >= MOST {
                continue;
            }
            match probe(vm) {
                Ok(thread) => self.threads.push((Some(vm.clone()), thread)),
                Err(error) => tracing::debug!(%vm, %error, "no thread for a probe"),
            }
            probing.next = now + probing.pause;
            probing.pause = (probing.pause * 2).min(LAST_PROBE);
        }
        back
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::SyncSender;

    const SOON: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(20);

    fn runner() -> Runner<u32> {
        let runner = Runner::start(|| Ok((7, Running::new()))).unwrap();
        assert_eq!(runner.opened(LONG).unwrap(), Ok(Running::new()));
        runner
    }

    /// A job that hangs until it is told how it ends.
    fn hangs() -> (SyncSender<bool>, Job<u32>) {
        let (end, ended) = std::sync::mpsc::sync_channel(1);
        (end, Box::new(move |_| Done { answered: ended.recv().unwrap(), listed: None }))
    }

    fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !is_so() {
            assert!(begin.elapsed() < LONG, "waited in vain for {what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn no_probe(_: &VmName) -> io::Result<JoinHandle<bool>> {
        panic!("nothing is to be probed")
    }

    #[test]
    fn a_job_that_hangs_is_left_behind_and_the_next_runner_serves_at_once() {
        let (vm, now) = (VmName::from("a"), Instant::now());
        let (first, mut hung) = (runner(), Hung::default());
        let (end, job) = hangs();
        assert_eq!(first.run(job, SOON).unwrap_err(), Undone::Overran);
        hung.add(Some(vm.clone()), first.abandon(), now);
        let second = runner();
        let did = second.run(Box::new(|s| Done { answered: s.is_ok_and(|s| *s == 7), listed: None }), LONG).unwrap();
        assert!(did.answered);
        assert!(hung.contains(&vm) && !hung.contains(&"b".into()));
        assert_eq!(hung.look(now + LAST_PROBE, no_probe), [], "its thread hangs: it is not asked by another");
        end.send(true).unwrap();
        wait("the thread", || hung.look(now, no_probe) == [vm.clone()]);
        assert!(hung.is_empty() && !hung.contains(&vm));
    }

    #[test]
    fn a_vm_whose_calls_fail_is_probed_more_and_more_rarely_until_it_answers() {
        let (vm, begin) = (VmName::from("a"), Instant::now());
        let mut hung = Hung::default();
        hung.add(Some(vm.clone()), std::thread::spawn(|| false), begin);
        let mut probes = Vec::new();
        for second in 0..100 {
            // As many as are due at that moment; each fails at once.
            wait("the thread", || hung.threads.iter().all(|(_, t)| t.is_finished()));
            let back = hung.look(begin + Duration::from_secs(second), |_| {
                probes.push(second);
                Ok(std::thread::spawn(|| false))
            });
            assert_eq!(back, []);
        }
        assert_eq!(probes, [0, 1, 3, 7, 15, 31, 63]);
        wait("the thread", || hung.threads.iter().all(|(_, t)| t.is_finished()));
        assert_eq!(hung.look(begin + LAST_PROBE * 3, |_| Ok(std::thread::spawn(|| true))), []);
        wait("the answer", || hung.look(begin, no_probe) == [vm.clone()]);
        assert!(hung.is_empty());
    }

    #[test]
    fn not_many_threads_are_left_behind() {
        let mut hung = Hung::default();
        let (end, ended) = channel::<()>();
        let ended = std::sync::Arc::new(std::sync::Mutex::new(ended));
        for n in 0..MOST {
            assert!(!hung.is_full());
            let ended = std::sync::Arc::clone(&ended);
            let thread = std::thread::spawn(move || ended.lock().unwrap().recv().is_ok());
            hung.add(Some(format!("vm{n}").as_str().into()), thread, Instant::now());
        }
        assert!(hung.is_full());
        end.send(()).unwrap();
        let mut back = Vec::new();
        wait("one", || {
            back.extend(hung.look(Instant::now(), no_probe));
            back.len() == 1
        });
        assert!(!hung.is_full());
    }

    #[test]
    fn a_job_that_panics_ends_its_runner() {
        let runner = runner();
        assert_eq!(runner.run(Box::new(|_| panic!("as a test")), LONG).unwrap_err(), Undone::Died);
        assert!(runner.abandon().join().is_err());
    }
}
