//! The shock absorber: what outruns headroom and the fast path is slowed for a moment, never killed.
//!
//! ```text
//!   slack ample          memory.high = max
//!   slack not ample      memory.high = memory.current + slack        (rises at once with every grant)
//!   somebody was held, and the host has not answered in 50 ms:
//!                        memory.high = max for 10 s; `deflate-on-oom` stands behind
//! ```
//!
//! A crash leaves limits behind; a note in `/run` names the groups that had one, so that the next start lifts exactly
//! those (P9) and never a limit that an administrator set.

use crate::log;
use crate::log::Chain;
use crate::sensors::cgroup::limit;
use crate::sensors::file::{ProcFile, Scratch};
use ballast_protocol::{Bytes, Micros};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Nobody is held longer than this for want of an answer.
pub const BOUND: Micros = Micros::millis(50);
/// How long it then stays off.
const OFF: Micros = Micros::secs(10);
/// Between two updates without a grant.
const PERIOD: Micros = Micros::millis(10);
/// Room that is always left above use: writing less than `memory.current` would make this thread reclaim for it. At one
/// update in [`PERIOD`] it lets 100 MiB/s through, the speed of a slow burst.
const ROOM: Bytes = Bytes::mib(1);
/// A limit is written only when it moves by this much: a write costs some 30 us.
const STEP: Bytes = Bytes(512 << 10);

/// One workload cgroup.
#[derive(Debug)]
struct Group {
    dir: PathBuf,
    current: ProcFile,
    high: File,
    /// What we wrote last; `None`: max.
    written: Option<Bytes>,
}

/// The absorber, when it is switched on.
#[derive(Debug)]
pub struct Absorber {
    groups: Vec<Group>,
    note: PathBuf,
    scratch: Scratch,
    next: Micros,
    /// Since when somebody is held without an answer.
    held: Option<Micros>,
    off_until: Micros,
    holds: u64,
    let_go: u64,
}

/// Lifts what a crashed agent left behind, whether the absorber is on now or not.
pub fn lift_leftovers(note: &Path) {
    let Ok(text) = std::fs::read_to_string(note) else { return };
    for group in text.lines().filter(|line| !line.is_empty()) {
        let path = Path::new(group).join("memory.high");
        match std::fs::write(&path, "max") {
            Ok(()) => log!(Info, "lifted the limit that an earlier agent left in {}", path.display()),
            Err(e) => log!(Warn, "cannot lift {}: {}", path.display(), Chain(&e)),
        }
    }
    remove_note(note);
}

fn remove_note(note: &Path) {
    if let Err(e) = std::fs::remove_file(note)
        && e.kind() != std::io::ErrorKind::NotFound
    {
        log!(Warn, "cannot remove {}: {}", note.display(), Chain(&e));
    }
}

impl Absorber {
    /// Takes charge of `groups` (cgroup directories) that exist and have no limit of an administrator's.
    #[must_use]
    pub fn new(groups: &[PathBuf], note: &Path) -> Self {
        let mut scratch = Scratch::default();
        let mut groups: Vec<Group> = groups.iter().filter_map(|dir| open(dir, &mut scratch)).collect();
        let text: String = groups.iter().map(|g| format!("{}\n", g.dir.display())).collect();
        let noted = note.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(note, text));
        if let Err(e) = noted {
            // Without the note a crash would leave limits that nobody lifts.
            log!(Error, "the absorber stays off: cannot write {}: {}", note.display(), Chain(&e));
            groups.clear();
        }
        log!(Info, "the absorber holds {} cgroups", groups.len());
        Self {
            groups,
            note: note.to_owned(),
            scratch,
            next: Micros::ZERO,
            held: None,
            off_until: Micros::ZERO,
            holds: 0,
            let_go: 0,
        }
    }

    /// When [`Absorber::update`] must be called at the latest: never while it is off or nobody is held.
    #[must_use]
    pub fn deadline(&self) -> Micros {
        self.held.map_or(Micros::MAX, |since| since + BOUND)
    }

    /// Somebody ran into a limit.
    pub fn held(&mut self, now: Micros) {
        self.holds += 1;
        if now >= self.off_until {
            self.held.get_or_insert(now);
        }
    }

    /// The host answered: limits rise with what it gives.
    pub fn answered(&mut self) {
        self.held = None;
        self.next = Micros::ZERO;
    }

    /// Sets limits for this `slack`; `ample` is the slack above which none is needed.
    pub fn update(&mut self, now: Micros, slack: Bytes, ample: Bytes) {
        if self.held.is_some_and(|since| now - since >= BOUND) {
            self.let_go += 1;
            self.held = None;
            self.off_until = now + OFF;
            log!(Warn, "the host did not answer in {BOUND}: the absorber is off for {OFF}");
            self.lift();
        }
        if now < self.off_until || now < self.next {
            return;
        }
        self.next = now + PERIOD;
        if slack >= ample {
            self.lift();
            return;
        }
        for group in &mut self.groups {
            let Some(current) = group.current.read(&mut self.scratch).ok().and_then(limit) else { continue };
            let high = current + slack.max(ROOM);
            if group.written.is_none_or(|then| then.0.abs_diff(high.0) >= STEP.0)
                && write(&group.high, &high.0.to_string())
            {
                group.written = Some(high);
            }
        }
    }

    /// How often somebody was held, and how often the host was too late.
    #[must_use]
    pub fn tally(&self) -> (u64, u64) {
        (self.holds, self.let_go)
    }

    /// Sets every limit to `max`.
    pub fn lift(&mut self) {
        for group in self.groups.iter_mut().filter(|g| g.written.is_some()) {
            if write(&group.high, "max") {
                group.written = None;
            }
        }
    }
}

impl Drop for Absorber {
    fn drop(&mut self) {
        self.lift();
        remove_note(&self.note);
    }
}

fn open(dir: &Path, scratch: &mut Scratch) -> Option<Group> {
    let high_file = ProcFile::open(dir, "memory.high").ok()??;
    if high_file.read(scratch).ok().and_then(limit) != Some(Bytes::MAX) {
        log!(Info, "{} has a memory.high of its own: the absorber leaves it alone", dir.display());
        return None;
    }
    let current = ProcFile::open(dir, "memory.current").ok()??;
    let high = File::options().write(true).open(dir.join("memory.high")).ok()?;
    Some(Group { dir: dir.to_owned(), current, high, written: None })
}

/// Whether it was written; a cgroup that has gone is no error.
fn write(file: &File, text: &str) -> bool {
    file.write_at(text.as_bytes(), 0).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A plain file keeps what a shorter write leaves behind it, which kernel files do not: read up to the write's
    /// digits.
    fn high(dir: &Path) -> String {
        std::fs::read_to_string(dir.join("memory.high")).unwrap()
    }

    fn group(dir: &Path, name: &str, high: &str) -> PathBuf {
        let group = dir.join(name);
        std::fs::create_dir(&group).unwrap();
        std::fs::write(group.join("memory.current"), "104857600\n").unwrap();
        std::fs::write(group.join("memory.high"), high).unwrap();
        group
    }

    #[test]
    fn limits_follow_slack_and_are_lifted_when_it_is_ample_or_the_agent_ends() {
        let dir = tempfile::tempdir().unwrap();
        let note = dir.path().join("note");
        let a = group(dir.path(), "a.slice", "max\n");
        let own = group(dir.path(), "own.slice", "5000\n");
        let mut absorber = Absorber::new(&[a.clone(), own.clone(), dir.path().join("absent.slice")], &note);
        assert_eq!(std::fs::read_to_string(&note).unwrap(), format!("{}\n", a.display()));
        absorber.update(Micros::secs(1), Bytes::mib(20), Bytes::mib(100));
        assert!(high(&a).starts_with(&(120u64 << 20).to_string()), "{}", high(&a));
        absorber.update(Micros::secs(2), Bytes::ZERO, Bytes::mib(100));
        assert!(high(&a).starts_with(&(101u64 << 20).to_string()), "never under use");
        absorber.update(Micros::secs(3), Bytes::mib(200), Bytes::mib(100));
        assert!(high(&a).starts_with("max"));
        absorber.update(Micros::secs(4), Bytes::mib(20), Bytes::mib(100));
        drop(absorber);
        assert!(high(&a).starts_with("max"));
        assert_eq!(high(&own), "5000\n", "an administrator's limit is not ours");
        assert!(!note.exists());
    }

    #[test]
    fn a_silent_host_makes_it_let_go_within_the_bound() {
        let dir = tempfile::tempdir().unwrap();
        let a = group(dir.path(), "a.slice", "max\n");
        let mut absorber = Absorber::new(std::slice::from_ref(&a), &dir.path().join("note"));
        absorber.update(Micros::secs(1), Bytes::mib(20), Bytes::mib(100));
        absorber.held(Micros::secs(1));
        assert_eq!(absorber.deadline(), Micros::secs(1) + BOUND);
        absorber.update(absorber.deadline(), Bytes::mib(20), Bytes::mib(100));
        assert!(high(&a).starts_with("max"));
        absorber.update(Micros::secs(5), Bytes::mib(20), Bytes::mib(100));
        assert!(high(&a).starts_with("max"), "off for ten seconds");
        absorber.update(Micros::secs(12), Bytes::mib(20), Bytes::mib(100));
        assert!(!high(&a).starts_with("max"));
        assert_eq!(absorber.tally(), (1, 1));
    }

    #[test]
    fn what_a_crashed_agent_left_is_lifted() {
        let dir = tempfile::tempdir().unwrap();
        let a = group(dir.path(), "a.slice", "7000000\n");
        let note = dir.path().join("note");
        std::fs::write(&note, format!("{}\n", a.display())).unwrap();
        lift_leftovers(&note);
        assert_eq!(high(&a), "max");
        assert!(!note.exists());
    }
}
