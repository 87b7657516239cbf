//! The thread that waits for the kernel's own signals: PSI triggers and `memory.events` of the workload cgroups.
//!
//! Both are POLLPRI on a file. tokio can wait for that only through an interface that is `unsafe` now, so a thread
//! with a blocking poll does it and sends what it saw into the loop. (POLLERR comes with every POLLPRI here and is no
//! error: FACTS, section 4.)

use crate::log;
use crate::log::Chain;
use crate::sensors::cgroup::high_events;
use crate::sensors::file::{ProcFile, Scratch};
use ballast_protocol::Source;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use tokio::sync::mpsc::Sender;

/// 5 ms of stall within 500 ms: the shortest window that kernels accept, and the one that fired 18 ms before a kill
/// where 50 ms never fired (FACTS, section 5).
const PSI_TRIGGER: &[u8] = b"some 5000 500000\0";
/// How often cgroups that were not there are looked for again, in seconds.
const RESCAN: i64 = 10;

/// One workload cgroup's events file.
struct Events {
    file: ProcFile,
    high: u64,
}

/// Starts the thread; it ends with the process, or when nobody listens any more. `groups` are cgroup directories that
/// may not exist yet.
///
/// # Errors
/// No thread can be started.
pub fn start(root: &Path, groups: Vec<PathBuf>, signs: Sender<Source>) -> std::io::Result<()> {
    let psi = arm_psi(root);
    if psi.is_none() && groups.is_empty() {
        return Ok(());
    }
    // No deep calls here: the smallest stack that Rust's runtime is at home in.
    let builder = std::thread::Builder::new().name("triggers".to_owned()).stack_size(128 << 10);
    builder.spawn(move || watch(psi, &groups, &signs)).map(drop)
}

/// Opens `/proc/pressure/memory` with a trigger in it; `None` where there is no PSI or no right to it.
fn arm_psi(root: &Path) -> Option<File> {
    let path = root.join("proc/pressure/memory");
    let mut file = File::options().read(true).write(true).open(&path).ok()?;
    match file.write_all(PSI_TRIGGER) {
        Ok(()) => Some(file),
        Err(e) => {
            log!(Info, "no PSI trigger on {}: {}", path.display(), Chain(&e));
            None
        }
    }
}

fn watch(psi: Option<File>, groups: &[PathBuf], signs: &Sender<Source>) {
    let mut scratch = Scratch::default();
    let mut open: Vec<Option<Events>> = groups.iter().map(|_| None).collect();
    loop {
        for (slot, dir) in open.iter_mut().zip(groups) {
            if slot.is_none() {
                *slot = open_events(dir, &mut scratch);
            }
        }
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(1 + open.len());
        fds.extend(psi.iter().map(|file| PollFd::new(file, PollFlags::PRI)));
        let first_group = fds.len();
        fds.extend(open.iter().flatten().map(|events| PollFd::new(events.file.handle(), PollFlags::PRI)));
        if poll(&mut fds, Some(&Timespec { tv_sec: RESCAN, tv_nsec: 0 })).is_err() {
            continue;
        }
        let fired: Vec<bool> = fds.iter().map(|fd| fd.revents().contains(PollFlags::PRI)).collect();
        drop(fds);
        if fired[..first_group].contains(&true) && !tell(signs, Source::Psi) {
            return;
        }
        for (slot, _) in open.iter_mut().filter(|slot| slot.is_some()).zip(&fired[first_group..]).filter(|(_, f)| **f) {
            let Some(events) = slot else { continue };
            // Reading re-arms; a group that is gone fails to read and is looked for again.
            match events.file.read(&mut scratch).ok().and_then(high_events) {
                Some(high) if high > events.high => {
                    events.high = high;
                    if !tell(signs, Source::Cgroup) {
                        return;
                    }
                }
                Some(_) => {}
                None => *slot = None,
            }
        }
    }
}

fn open_events(dir: &Path, scratch: &mut Scratch) -> Option<Events> {
    let file = ProcFile::open(dir, "memory.events").ok()??;
    let high = high_events(file.read(scratch).ok()?)?;
    Some(Events { file, high })
}

/// Whether somebody still listens. A full channel is no loss: the loop has signs enough to act on.
fn tell(signs: &Sender<Source>, source: Source) -> bool {
    !matches!(signs.try_send(source), Err(tokio::sync::mpsc::error::TrySendError::Closed(_)))
}
