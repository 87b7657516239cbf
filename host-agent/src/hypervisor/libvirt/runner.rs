//! Threads that make the calls which may hang, and what becomes of those that do.
//!
//! ```text
//!   worker --job--> Runner: one thread, one connection --done--> worker
//!     | not done in time
//!     '--> Hung: the thread is left behind, its VM is asked nothing until a probe was answered in time
//! ```
//!
//! That the thread is back is not enough: a QEMU that answers, but slowly, would be asked again at once, and hold up all
//! others again. For the same reason a VM that hangs again soon after a probe is probed later than before.
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
/// Between the probes of a VM whose calls end with an error or late.
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

/// Run by a runner with its session, or by the worker with the reason why there is none. Says what runs, if that was
/// asked.
pub(super) type Job<S> = Box<dyn FnOnce(Result<&mut S, Unable<'_>>) -> Option<Running> + Send>;

/// A thread that owns a session.
#[derive(Debug)]
pub(super) struct Runner<S> {
    jobs: Sender<Job<S>>,
    opened: Receiver<Result<Running, String>>,
    done: Receiver<Option<Running>>,
    thread: JoinHandle<()>,
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
                    return;
                }
            };
            let _ = say_opened.send(Ok(running));
            while let Ok(job) = to_do.recv() {
                let _ = say_done.send(job(Ok(&mut session)));
            }
        };
        let thread = std::thread::Builder::new().name("libvirt calls".into()).spawn(work)?;
        Ok(Self { jobs, opened, done, thread })
    }

    /// Which VMs run, once the session is open.
    pub fn opened(&self, patience: Duration) -> Result<Result<Running, String>, Undone> {
        Ok(self.opened.recv_timeout(patience)?)
    }

    /// Does a job. After an error this is to be abandoned.
    pub fn run(&self, job: Job<S>, patience: Duration) -> Result<Option<Running>, Undone> {
        self.jobs.send(job).map_err(|_| Undone::Died)?;
        Ok(self.done.recv_timeout(patience)?)
    }

    /// Its thread ends by itself when its call returns.
    pub fn abandon(self) -> JoinHandle<()> {
        self.thread
    }
}

/// VMs that hang, and the threads that hang with them.
#[derive(Debug, Default)]
pub(super) struct Hung {
    threads: Vec<(Option<VmName>, Thread)>,
    vms: BTreeMap<VmName, Probing>,
    /// VMs that answered a probe: when, and the pause before the next one if they hang again soon.
    released: BTreeMap<VmName, (Instant, Duration)>,
}

#[derive(Debug)]
enum Thread {
    /// Its job was not done in time.
    Late(JoinHandle<()>),
    /// Says whether its VM answered in time.
    Probe(JoinHandle<bool>),
}

#[derive(Clone, Copy, Debug)]
struct Probing {
    next: Instant,
    pause: Duration,
}

impl Thread {
    fn is_finished(&self) -> bool {
        match self {
            Self::Late(thread) => thread.is_finished(),
            Self::Probe(thread) => thread.is_finished(),
        }
    }
}

impl Hung {
    /// A thread hangs, in a call about a VM if one is named.
    pub fn add(&mut self, vm: Option<VmName>, thread: JoinHandle<()>, now: Instant) {
        if let Some(vm) = &vm {
            let soon = self.released.remove(vm).filter(|(at, _)| now < *at + LAST_PROBE);
            let probing = match soon {
                Some((_, pause)) => Probing { next: now + pause, pause },
                None => Probing { next: now, pause: FIRST_PROBE },
            };
            self.vms.entry(vm.clone()).or_insert(probing);
        }
        self.threads.push((vm, Thread::Late(thread)));
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
            if let (Some(vm), Thread::Probe(thread)) = (vm, thread)
                && thread.join().unwrap_or(false)
                && let Some(Probing { pause, .. }) = self.vms.remove(&vm)
            {
                self.released.insert(vm.clone(), (now, pause));
                back.push(vm);
            }
        }
        self.released.retain(|_, (at, _)| now < *at + LAST_PROBE);
        for (vm, probing) in &mut self.vms {
            let is_asked = self.threads.iter().any(|(about, _)| about.as_ref() == Some(vm));
            if is_asked || now < probing.next || self.threads.len() >= MOST {
                continue;
            }
            match probe(vm) {
                Ok(thread) => self.threads.push((Some(vm.clone()), Thread::Probe(thread))),
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

    /// A job that hangs until it is told to end.
    fn hangs() -> (SyncSender<()>, Job<u32>) {
        let (end, ended) = std::sync::mpsc::sync_channel(1);
        let job = move |_: Result<&mut u32, Unable<'_>>| {
            ended.recv().unwrap();
            None
        };
        (end, Box::new(job))
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
        let (say, said) = channel();
        let job: Job<u32> = Box::new(move |s| {
            say.send(s.is_ok_and(|s| *s == 7)).unwrap();
            None
        });
        second.run(job, LONG).unwrap();
        assert!(said.recv().unwrap());
        assert!(hung.contains(&vm) && !hung.contains(&"b".into()));
        assert_eq!(hung.look(now + LAST_PROBE, no_probe), [], "its thread hangs: it is not asked by another");
        end.send(()).unwrap();
        wait("the thread", || hung.threads.iter().all(|(_, t)| t.is_finished()));
        assert_eq!(hung.look(now, |_| Ok(std::thread::spawn(|| true))), [], "it is back, but late");
        assert!(hung.contains(&vm));
        wait("the probe", || hung.look(now, no_probe) == [vm.clone()]);
        assert!(hung.is_empty() && !hung.contains(&vm));
    }

    #[test]
    fn a_vm_that_is_slow_again_and_again_is_probed_later_and_later() {
        let (vm, mut now) = (VmName::from("a"), Instant::now());
        let mut hung = Hung::default();
        let mut pauses = Vec::new();
        for _ in 0..9 {
            // Late, answers a probe in time, and is asked and late again a second after.
            let begin = now;
            hung.add(Some(vm.clone()), std::thread::spawn(|| ()), now);
            wait("the thread", || hung.threads.iter().all(|(_, t)| t.is_finished()));
            let mut probed = false;
            while !probed {
                let back = hung.look(now, |_| {
                    probed = true;
                    Ok(std::thread::spawn(|| true))
                });
                assert_eq!(back, []);
                now += Duration::from_secs(u64::from(!probed));
            }
            pauses.push((now - begin).as_secs());
            wait("the probe", || hung.look(now, no_probe) == [vm.clone()]);
            now += Duration::from_secs(1);
        }
        assert_eq!(pauses, [0, 2, 4, 8, 16, 32, 64, 64, 64]);
        // Long after, it is as any other.
        now += LAST_PROBE;
        assert_eq!(hung.look(now, no_probe), []);
        assert!(hung.released.is_empty());
    }

    #[test]
    fn a_vm_whose_calls_fail_is_probed_more_and_more_rarely_until_it_answers() {
        let (vm, begin) = (VmName::from("a"), Instant::now());
        let mut hung = Hung::default();
        hung.add(Some(vm.clone()), std::thread::spawn(|| ()), begin);
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
        let (mut hung, begin) = (Hung::default(), Instant::now());
        let (end, ended) = channel::<()>();
        let ended = std::sync::Arc::new(std::sync::Mutex::new(ended));
        for n in 0..MOST {
            assert!(!hung.is_full());
            let ended = std::sync::Arc::clone(&ended);
            let thread = std::thread::spawn(move || ended.lock().unwrap().recv().unwrap());
            hung.add(Some(format!("vm{n}").as_str().into()), thread, begin + LONG);
        }
        assert!(hung.is_full());
        end.send(()).unwrap();
        wait("one", || {
            hung.look(begin, no_probe);
            !hung.is_full()
        });
    }

    #[test]
    fn a_job_that_panics_ends_its_runner() {
        let runner = runner();
        assert_eq!(runner.run(Box::new(|_| panic!("as a test")), LONG).unwrap_err(), Undone::Died);
        assert!(runner.abandon().join().is_err());
    }
}
