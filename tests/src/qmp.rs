//! A small client of QEMU's machine protocol, for the harness's own needs.

use anyhow::{Context, Result, bail};
use ballast_protocol::Bytes;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// QEMU answers within milliseconds, even under load within a second.
const PATIENCE: Duration = Duration::from_secs(20);

/// One monitor connection. Events are kept until asked for.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    events: Vec<Value>,
}

impl Qmp {
    /// Connects and negotiates.
    ///
    /// # Errors
    /// There is no QEMU behind `path`, or somebody else is connected already.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).with_context(|| path.display().to_string())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut qmp = Self { stream: BufReader::new(stream), events: Vec::new() };
        qmp.line().context("no greeting")?;
        qmp.run("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).context("QEMU does not answer")? == 0 {
            bail!("QEMU closed its monitor");
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// Runs a command and returns what it returns.
    ///
    /// # Errors
    /// QEMU refuses, or is gone.
    pub fn run(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut text = serde_json::to_vec(&json!({ "execute": command, "arguments": arguments }))?;
        text.push(b'\n');
        self.stream.get_mut().write_all(&text).with_context(|| format!("{command}: QEMU is gone"))?;
        loop {
            let mut answer = self.line().with_context(|| command.to_owned())?;
            if answer.get("event").is_some() {
                self.events.push(answer);
            } else if let Some(error) = answer.get("error") {
                bail!("{command}: {}", error["desc"].as_str().unwrap_or("QEMU gives no reason"));
            } else {
                return Ok(answer["return"].take());
            }
        }
    }

    /// The events since the last call, by name and data.
    ///
    /// # Errors
    /// QEMU is gone.
    pub fn events(&mut self) -> Result<Vec<(String, Value)>> {
        // Whatever precedes the answer to a command arrives with it.
        self.run("query-status", json!({}))?;
        let named = |mut e: Value| (e["event"].as_str().unwrap_or_default().to_owned(), e["data"].take());
        Ok(self.events.drain(..).map(named).collect())
    }

    /// The memory the guest has now by the balloon device's count (`query-balloon`).
    ///
    /// # Errors
    /// There is no balloon.
    pub fn balloon(&mut self) -> Result<Bytes> {
        self.run("query-balloon", json!({}))?["actual"].as_u64().map(Bytes).context("query-balloon: no `actual`")
    }

    /// Orders the memory the guest keeps; returns at once.
    ///
    /// # Errors
    /// There is no balloon.
    pub fn set_balloon(&mut self, keep: Bytes) -> Result<()> {
        self.run("balloon", json!({ "value": keep.0 })).map(drop)
    }

    /// The machine's state, for example `running`.
    ///
    /// # Errors
    /// QEMU is gone.
    pub fn status(&mut self) -> Result<String> {
        Ok(self.run("query-status", json!({}))?["status"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits for a state.
    ///
    /// # Errors
    /// It does not come within `patience`.
    pub fn wait_status(&mut self, wanted: &str, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let status = self.status()?;
            if status == wanted {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the machine is `{status}` and not `{wanted}` after {patience:?}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
