//! The guest agent as a child: started, signalled and watched at the harness's will.

use crate::STACK;
use anyhow::{Context, Result, bail};
use ballast_tests::wire::AgentState;
use std::fs::File;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::thread;

const BINARY: &str = "/bin/ballast-guest";
/// The guest's console, which the harness keeps in a file and quotes in its errors.
const CONSOLE: &str = "/dev/ttyS0";

/// The agent last started.
#[derive(Default)]
pub struct Agent(Option<Child>);

impl Agent {
    /// Starts it and returns its process id.
    ///
    /// Its log goes to the console through a pipe: a slow serial line must not hold up what is being measured.
    pub fn start(&mut self, args: &[String]) -> Result<u32> {
        if self.pid().is_some() {
            bail!("the agent runs already");
        }
        let (mut log, end) = io::pipe()?;
        let mut child = Command::new(BINARY)
            .args(args)
            .stdin(Stdio::null())
            .stdout(end.try_clone()?)
            .stderr(end)
            .spawn()
            .context(BINARY)?;
        let copy = move || File::options().write(true).open(CONSOLE).and_then(|mut out| io::copy(&mut log, &mut out));
        if let Err(e) = thread::Builder::new().stack_size(STACK).spawn(copy) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(e).context("cannot copy the agent's log");
        }
        let pid = child.id();
        self.0 = Some(child);
        Ok(pid)
    }

    /// Its process id while it lives.
    pub fn pid(&mut self) -> Option<u32> {
        let child = self.0.as_mut()?;
        matches!(child.try_wait(), Ok(None)).then(|| child.id())
    }

    /// Sends it a signal.
    pub fn kill(&mut self, signal: i32) -> Result<()> {
        let pid = self.pid().context("no agent runs")?;
        let pid = rustix::process::Pid::from_raw(pid as i32).context("a process id is positive")?;
        let signal = rustix::process::Signal::from_named_raw(signal).context("there is no such signal")?;
        Ok(rustix::process::kill_process(pid, signal)?)
    }

    /// Whether it lives, and how it ended.
    pub fn state(&mut self) -> AgentState {
        let Some(child) = self.0.as_mut() else { return AgentState { pid: None, alive: false, status: None } };
        let status = child.try_wait().ok().flatten();
        AgentState {
            pid: Some(child.id()),
            alive: status.is_none(),
            status: status.map(|s| s.code().unwrap_or_else(|| -s.signal().unwrap_or(0))),
        }
    }
}
