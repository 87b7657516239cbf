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
    /// does not start would help no VM.
    pub fn load(folder: &Path, now: Micros) -> Self {
        let path = folder.join("operators.json");
        let said = match std::fs::read(&path) {
            Ok(text) => Said::read(&text, Clocks { now, wall: SystemTime::now() }).unwrap_or_else(|problem| {
                let aside = path.with_extension("json.unreadable");
                let moved = std::fs::rename(&path, &aside);
                tracing::error!(path = %path.display(), problem, aside = %aside.display(), moved = moved.is_ok(),
                    "holds and reservations of before are lost: set them again");
                Said::default()
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => Said::default(),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "holds and reservations of before are lost: set them again");
                Said::default()
            }
        };
        let (queue, keeps) = mpsc::unbounded_channel();
        Self { said, queue, writer: tokio::spawn(write_all(path, keeps)) }
    }

    pub fn is_exempt(&self, vm: &VmName) -> bool {
        self.said.exempt.contains_key(vm)
    }

    /// What was said about a dry run is over.
    pub fn forget_mode(&mut self, now: Micros) {
        self.said.dry_run = None;
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
