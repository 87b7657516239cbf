//! Processes and folders that never outlive the test that made them, however it ends.

use crate::machine::DISK_PREFIX;
use crate::paths;
use anyhow::{Context, Result, anyhow};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, Once, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// Short, because a Unix socket's path has 108 bytes at most (`sun_path`, unix(7)).
const ROOT: &str = "/tmp";
const PREFIX: &str = "ballast-";

type Order = (Command, mpsc::Sender<std::io::Result<Child>>);

/// Starts `command` from a thread that never ends: the kernel sends the death signal when the *thread* that started
/// a process ends (prctl(2), `PR_SET_PDEATHSIG`), and a test's thread ends before the machines it shares.
fn spawn(command: Command) -> Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, answer) in inbox {
                // Nobody waits for the answer only when the whole process ends.
                let _ = answer.send(command.spawn());
            }
        });
        orders
    });
    let (answer, result) = mpsc::channel();
    spawner.send((command, answer)).map_err(|_| anyhow!("the spawner thread is gone"))?;
    Ok(result.recv()??)
}

/// A child that is killed when dropped, and when this process dies, even by SIGKILL.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts `program`; its output and errors go to the file `log`.
    ///
    /// # Errors
    /// The program or util-linux's `setpriv` is missing, or the log cannot be written.
    pub fn start(program: &Path, args: &[String], log: &Path) -> Result<Self> {
        let log = fs::File::options().create(true).append(true).open(log).with_context(|| log.display().to_string())?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(args);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let child = spawn(command).with_context(|| format!("cannot start {} by setpriv", program.display()))?;
        living_set().insert(child.id());
        Ok(Self { child, name })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status, once it ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It is gone already.
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).with_context(|| format!("{} {}", self.name, self.pid()))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It still runs after `patience`.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.ended() {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(anyhow!("{} {} still runs after {patience:?}", self.name, self.pid()));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn living_set() -> MutexGuard<'static, BTreeSet<u32>> {
    static LIVING: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());
    LIVING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The children that have not been waited for.
pub(crate) fn living() -> Vec<u32> {
    living_set().iter().copied().collect()
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        // Off the list first: after the wait its number may be another's.
        living_set().remove(&self.child.id());
        let _ = self.child.wait();
    }
}

/// A folder under `/tmp` for sockets and logs, removed when dropped.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Result<Self> {
        static SWEPT: Once = Once::new();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        SWEPT.call_once(sweep);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(ROOT).join(format!("{PREFIX}{}-{n}", std::process::id()));
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Left behind for whoever looks into a failure, when asked for.
        if std::env::var_os("BALLAST_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// Removes the folders of processes that are gone. Called by itself before the first machine of a process.
pub fn sweep() {
    remove_folders(|pid| !Path::new("/proc").join(pid.to_string()).exists());
}

/// Removes the folders of this process, which is about to end.
pub(crate) fn remove_own_folders() {
    remove_folders(|pid| pid == std::process::id());
}

/// Removes the folders whose owner is such: those for sockets and logs, and those of disks that were never made whole.
fn remove_folders(of: impl Fn(u32) -> bool) {
    let in_tmp = |name: &str| name.strip_prefix(PREFIX)?.split_once('-')?.0.parse::<u32>().ok();
    let in_guest = |name: &str| name.strip_prefix(DISK_PREFIX)?.parse::<u32>().ok();
    remove_in(Path::new(ROOT), |name| in_tmp(name).is_some_and(&of));
    remove_in(&paths::guest(""), |name| in_guest(name).is_some_and(&of));
}

fn remove_in(folder: &Path, which: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(&which) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A turn at loading the machine: at most two guests burst at once, or their times say more about the two cores of a
/// test machine than about the guests.
#[derive(Debug)]
#[must_use]
pub struct Turn(());

static TURNS: (Mutex<u32>, Condvar) = (Mutex::new(2), Condvar::new());

/// Waits for a [`Turn`]; it ends when dropped.
pub fn bursting() -> Turn {
    // A test that panicked with its turn has given it back all the same.
    let mut free = TURNS.0.lock().unwrap_or_else(PoisonError::into_inner);
    while *free == 0 {
        free = TURNS.1.wait(free).unwrap_or_else(PoisonError::into_inner);
    }
    *free -= 1;
    Turn(())
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TURNS.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        TURNS.1.notify_one();
    }
}

/// The last lines of a log, for errors.
#[must_use]
pub fn log_tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    format!("--- {}\n{}\n---", path.display(), all[all.len().saturating_sub(lines)..].join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_processes_that_are_gone_are_swept() {
        let mut gone = Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        let made = [gone.id(), std::process::id()].map(|pid| {
            [paths::guest(&format!("{DISK_PREFIX}{pid}")), Path::new(ROOT).join(format!("{PREFIX}{pid}-swept"))]
        });
        for folder in made.as_flattened() {
            fs::create_dir_all(folder.join("tree")).unwrap();
        }
        sweep();
        assert_eq!(made.map(|of| of.map(|folder| folder.exists())), [[false; 2], [true; 2]]);
        remove_in(&paths::guest(""), |name| *name == format!("{DISK_PREFIX}{}", std::process::id()));
        remove_in(Path::new(ROOT), |name| *name == format!("{PREFIX}{}-swept", std::process::id()));
    }
}
