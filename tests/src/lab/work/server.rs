//! The servers of the workload image, and the loaders that ask them, in the same guest or in another.

use super::Outcome;
use crate::Guest;
use crate::wire::{Command, Executed};
use anyhow::{Context, Result, bail};
use std::time::{Duration, Instant};

/// How often a loader is looked at; nothing is asked of a guest for it.
const LOOK: Duration = Duration::from_millis(20);
/// What a loader has to end by itself, once its server is gone. redis-benchmark never does.
const GRACE: Duration = Duration::from_secs(2);
/// For a server to answer for the first time. PostgreSQL may have to recover from its own death.
const READY: Duration = Duration::from_secs(60);

/// Characters that an outcome quotes of a program's last words.
const DETAIL: usize = 300;

/// A server: started by `prepare`, and again by whoever finds it dead, as a supervisor would.
#[derive(Debug)]
pub(super) struct Server {
    name: &'static str,
    program: &'static str,
    command: &'static str,
    /// Succeeds when it answers.
    ready: &'static str,
    log: &'static str,
    /// What its log says when one of its processes was killed, for grep.
    killed: &'static str,
    /// What its log says when it was refused memory.
    refused: &'static str,
}

pub(super) const REDIS: Server = Server {
    name: "redis-server",
    program: "/usr/bin/redis-server",
    command: "exec redis-server --port 6379 --bind 0.0.0.0 --protected-mode no --save '' --appendonly no --dir /tmp \
              --logfile /tmp/redis.log",
    ready: "redis-cli ping | grep -q PONG",
    log: "/w/tmp/redis.log",
    // It has one process, whose end is noticed without the log.
    killed: "no such line",
    refused: "Out Of Memory allocating",
};

pub(super) const NGINX: Server = Server {
    name: "nginx",
    program: "/usr/sbin/nginx",
    command: "exec nginx -c /usr/local/lib/ballast/nginx.conf",
    ready: "wrk -t1 -c1 -d1 http://127.0.0.1:8080/0 | grep -q Requests/sec",
    log: "/w/tmp/nginx.log",
    killed: "exited on signal 9",
    refused: "Cannot allocate memory",
};

pub(super) const POSTGRES: Server = Server {
    name: "postgres",
    program: "/usr/bin/pg_ctlcluster",
    command: "exec setpriv --reuid postgres --regid postgres --init-groups \
              /usr/lib/postgresql/*/bin/postgres -D /data/postgres >>/tmp/postgres.log 2>&1",
    ready: "pg_isready -q -h /tmp",
    log: "/w/tmp/postgres.log",
    killed: "was terminated by signal 9",
    refused: "out of memory",
};

impl Server {
    /// Starts it, and waits until it answers.
    pub(super) fn prepare(&self, work: &str, guest: &Guest) -> Result<()> {
        guest.has_program(work, self.program)?;
        if !self.start(guest)? {
            bail!("guest {}: {} does not run\n{}", guest.name(), self.name, self.tail(guest)?);
        }
        Ok(())
    }

    /// Starts it unless it runs; false when it does not live.
    fn start(&self, guest: &Guest) -> Result<bool> {
        let command = Command { command: self.command.to_owned(), chroot: true, secs: u32::MAX };
        if !guest.serve(self.name, command)? {
            return Ok(true);
        }
        let deadline = Instant::now() + READY;
        while guest.server_lives(self.name) {
            if guest.debian(self.ready, READY)?.status == Some(0) {
                return Ok(true);
            }
            if Instant::now() > deadline {
                bail!("guest {}: {} does not answer\n{}", guest.name(), self.name, self.tail(guest)?);
            }
        }
        Ok(false)
    }

    fn tail(&self, guest: &Guest) -> Result<String> {
        Ok(guest.sh(&format!("tail -n 10 {}", self.log))?.output)
    }

    /// How often its log tells of killed processes and refused memory.
    fn troubles(&self, guest: &Guest) -> Result<(u64, u64)> {
        let count = |what: &str| format!("grep -c '{what}' {} 2>/dev/null || echo", self.log);
        let said = guest.sh_ok(&format!("{}; {}", count(self.killed), count(self.refused)))?;
        let mut lines = said.lines().filter(|l| !l.is_empty()).map(str::parse);
        let mut next = || lines.next().and_then(Result::ok).unwrap_or(0);
        Ok((next(), next()))
    }
}

/// Where the load comes from.
#[derive(Debug)]
pub(super) struct Loader<'a> {
    server: &'a Guest,
    guest: &'a Guest,
    /// The server's address, as its loader sees it.
    pub(super) address: &'a str,
    patience: Duration,
}

impl<'a> Loader<'a> {
    pub(super) fn new(server: &'a Guest, client: Option<(&'a Guest, &'a str)>, patience: Duration) -> Self {
        let (guest, address) = client.unwrap_or((server, "127.0.0.1"));
        Self { server, guest, address, patience }
    }

    /// Runs a loader's command against a server to its end, or until the server is gone. What `read` makes of its
    /// output is completed by what became of the processes; `None` is an output that cannot be read.
    pub(super) fn run(
        &self,
        kind: &Server,
        command: &str,
        read: impl FnOnce(&Executed) -> Option<Outcome>,
    ) -> Result<Outcome> {
        if !kind.start(self.server)? {
            let detail = format!("{} dies as soon as it starts", kind.name);
            return Ok(Outcome { killed: 1, detail, unfinished: true, ..Outcome::default() });
        }
        let before = kind.troubles(self.server)?;
        let secs = u32::try_from(self.patience.as_secs()).unwrap_or(u32::MAX);
        let pending = self.guest.exec(Command { command: command.to_owned(), chroot: true, secs })?;
        let deadline = Instant::now() + self.patience + READY;
        let mut gone: Option<Instant> = None;
        let mut ended = false;
        let said = loop {
            if let Some(said) = pending.poll()? {
                break said;
            }
            if !self.server.server_lives(kind.name) {
                let since = *gone.get_or_insert_with(Instant::now);
                if !ended && since.elapsed() > GRACE {
                    // It may have ended by itself just now.
                    let _ = self.guest.cancel(pending.id());
                    ended = true;
                }
            }
            if Instant::now() > deadline {
                bail!("guest {}: no answer to `{command}`\n{}", self.guest.name(), self.guest.log());
            }
            std::thread::sleep(LOOK);
        };
        let after = kind.troubles(self.server)?;
        let died = gone.is_some() || !self.server.server_lives(kind.name);
        let mut outcome = complete(&said, died || ended, read)?;
        outcome.killed += after.0.saturating_sub(before.0) + u64::from(died);
        outcome.failed_allocations += after.1.saturating_sub(before.1);
        if died {
            outcome.unfinished = true;
            outcome.detail = format!("{} was killed; {}", kind.name, outcome.detail);
        }
        Ok(outcome)
    }
}

/// Adds to what could be read of a command's output how it ended.
pub(super) fn complete(
    said: &Executed,
    expected: bool,
    read: impl FnOnce(&Executed) -> Option<Outcome>,
) -> Result<Outcome> {
    let whole = said.whole();
    let tail = || {
        let lines: Vec<&str> = said.output.split(['\n', '\r']).filter(|l| !l.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(3)..].join(" | ").chars().take(DETAIL).collect::<String>()
    };
    let mut outcome = match read(said) {
        Some(outcome) => outcome,
        None if whole => return Err(anyhow::anyhow!("{}", said.output)).context("an output that cannot be read"),
        None => Outcome::default(),
    };
    if !whole {
        outcome.unfinished = true;
        // 137: a shell saw its command killed.
        let killed = (said.signal.is_some() || said.status == Some(137)) && !said.overdue && !expected;
        outcome.killed += u64::from(killed);
        let how = if said.overdue { "not done in time" } else { "failed" };
        outcome.detail = format!("{how}, status {:?}, signal {:?}: {}", said.status, said.signal, tail());
    }
    Ok(outcome)
}
