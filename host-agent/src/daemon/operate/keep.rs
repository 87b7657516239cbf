//! The file in which the operators' words survive the daemon, `operators.json` in its state folder.
//!
//! A disk takes milliseconds or hangs; the daemon's task has neither. So a task of its own writes, in order, and
//! answers the operator afterwards.

use super::said::{Clocks, Said};
use crate::control::{Done, Refused};
use ballast_planner::VmName;
use ballast_protocol::Micros;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

type Reply = oneshot::Sender<Result<Done, Refused>>;

/// What operators said, and the task that keeps it.
#[derive(Debug)]
pub(in crate::daemon) struct Operated {
    pub said: Said,
    queue: mpsc::UnboundedSender<Keep>,
    writer: JoinHandle<()>,
}

#[derive(Debug)]
struct Keep {
    text: Vec<u8>,
    /// Who waits for it.
    answer: Option<(Done, Reply)>,
}

impl Operated {
    /// Reads what the daemon before this one kept in `folder`. A file that cannot be read is put aside: a daemon that
    /// does not start would help no VM. Nor does it act as long as it may have been told not to.
    pub fn load(folder: &Path, now: Micros) -> Self {
        let path = folder.join("operators.json");
        let clocks = Clocks { now, wall: SystemTime::now() };
        let (text, problem) = match std::fs::read(&path) {
            Ok(text) => match Said::read(&text, clocks) {
                Ok(said) => return Self::of(said, path).kept(now),
                Err(problem) => (Some(text), problem),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => return Self::of(Said::default(), path),
            Err(error) => (None, error.to_string()),
        };
        let aside = path.with_extension("json.unreadable");
        let moved = text.is_some() && std::fs::rename(&path, &aside).is_ok();
        tracing::error!(path = %path.display(), problem, aside = %aside.display(), moved,
            "holds and reservations of before are lost: set them again");
        let salvaged = text.and_then(|text| Said::salvage(&text));
        let said = salvaged.unwrap_or_else(|| {
            let lost = format!(
                "a dry run, because {} could not be read ({problem}) and may have said so, or that VMs are exempt: exempt \
                 them again, then `ballast-host dry-run off`",
                path.display()
            );
            tracing::error!("{lost}");
            Said { dry_run: Some(true), lost: Some(lost), ..Said::default() }
        });
        let operated = Self::of(said, path);
        // What is still there can be looked at again by the next daemon.
        if moved { operated.kept(now) } else { operated }
    }

    fn of(said: Said, path: PathBuf) -> Self {
        let (queue, keeps) = mpsc::unbounded_channel();
        Self { said, queue, writer: tokio::spawn(write_all(path, keeps)) }
    }

    /// Writes what was read in the time of this start, so that a clock that was set back prolongs nothing twice.
    fn kept(self, now: Micros) -> Self {
        if self.said != Said::default() {
            self.keep(now);
        }
        self
    }

    pub fn is_exempt(&self, vm: &VmName) -> bool {
        self.said.exempt.contains_key(vm)
    }

    /// What was said about a dry run is over.
    pub fn forget_mode(&mut self, now: Micros) {
        self.said.dry_run = None;
        self.said.lost = None;
        self.keep(now);
    }

    /// Keeps what is said now.
    pub fn keep(&self, now: Micros) {
        self.send(now, None);
    }

    /// Keeps what is said now, then answers.
    pub fn keep_and_answer(&self, now: Micros, done: Done, reply: Reply) {
        self.send(now, Some((done, reply)));
    }

    fn send(&self, now: Micros, answer: Option<(Done, Reply)>) {
        match self.said.write(Clocks { now, wall: SystemTime::now() }) {
            // The task ends only after this.
            Ok(text) => drop(self.queue.send(Keep { text, answer })),
            Err(error) => tracing::error!(%error, "what operators said cannot be written"),
        }
    }

    /// Waits until everything is written.
    pub async fn finish(self) {
        drop(self.queue);
        if self.writer.await.is_err() {
            tracing::error!("the task that keeps what operators said has panicked");
        }
    }
}

async fn write_all(path: PathBuf, mut keeps: mpsc::UnboundedReceiver<Keep>) {
    while let Some(Keep { text, answer }) = keeps.recv().await {
        let to = path.clone();
        let written = tokio::task::spawn_blocking(move || write(&to, &text)).await;
        let problem = match written {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(panic) => Some(panic.to_string()),
        };
        if let Some(problem) = &problem {
            tracing::warn!(path = %path.display(), problem, "what operators said is not kept across a restart");
        }
        if let Some((mut done, reply)) = answer {
            let note = |p| format!("a restart of the daemon ends it: {} cannot be written ({p})", path.display());
            done.notes.extend(problem.map(note));
            let _ = reply.send(Ok(done));
        }
    }
}

/// All of it or nothing, also when the power fails.
fn write(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder)?;
    let new = path.with_extension("json.new");
    let mut file = File::create(&new)?;
    file.write_all(text)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a daemon makes of a file, and what the one after it does.
    async fn loaded(text: &[u8]) -> [Said; 2] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("operators.json"), text).unwrap();
        let mut all = [const { None }; 2];
        for one in &mut all {
            let operated = Operated::load(folder.path(), Micros::ZERO);
            *one = Some(operated.said.clone());
            operated.finish().await;
            assert_eq!(std::fs::read(folder.path().join("operators.json.unreadable")).unwrap(), text);
        }
        all.map(Option::unwrap)
    }

    #[tokio::test]
    async fn what_forbids_is_kept_from_a_file_of_another_format() {
        let exempt = [(VmName::from("db"), "bob".to_owned())];
        let text = br#"{"format": 2, "holds": [], "exempt": {"db": "bob"}, "dry_run": true, "moods": {}}"#;
        let said = Said { exempt: exempt.clone().into(), dry_run: Some(true), ..Said::default() };
        assert_eq!(loaded(text).await, [said.clone(), said]);
        let text = br#"{"format": 2, "exempt": {"db": "bob"}, "dry_run": false}"#;
        let said = Said { exempt: exempt.into(), ..Said::default() };
        assert_eq!(loaded(text).await, [said.clone(), said]);
    }

    #[tokio::test]
    async fn why_it_is_a_dry_run_is_over_when_somebody_says_whether_it_is_to_be_one() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("operators.json"), "garbage").unwrap();
        let mut operated = Operated::load(folder.path(), Micros::ZERO);
        operated.forget_mode(Micros::ZERO);
        operated.finish().await;
        let operated = Operated::load(folder.path(), Micros::ZERO);
        assert_eq!(operated.said, Said::default());
        operated.finish().await;
        assert!(!std::fs::read_to_string(folder.path().join("operators.json")).unwrap().contains("lost"));
    }

    #[tokio::test]
    async fn garbage_is_a_dry_run_until_an_operator_speaks() {
        for garbage in [&b"{\"format\": 1, \"hol"[..], b"", b"\0\0\0\0", b"[]"] {
            // Also the second of them says why.
            for said in loaded(garbage).await {
                let lost = said.lost.unwrap();
                assert!(
                    lost.starts_with("a dry run, because ") && lost.contains("`ballast-host dry-run off`"),
                    "{lost}"
                );
                assert_eq!(said.dry_run, Some(true));
            }
        }
        // One that cannot even be read stays where it is.
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("operators.json")).unwrap();
        let operated = Operated::load(folder.path(), Micros::ZERO);
        assert!(operated.said.lost.is_some() && operated.said.dry_run == Some(true));
        operated.finish().await;
        assert!(folder.path().join("operators.json").is_dir());
    }
}
