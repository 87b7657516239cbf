//! A real host agent, `ballast-host run`, over the machines of a test.

use crate::children::{Folder, Process, log_tail};
use crate::machine::Machine;
use crate::network::Network;
use crate::paths;
use anyhow::{Context, Result, anyhow, bail};
use rustix::process::Signal;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};
use toml::{Table, Value};

/// It binds its control socket within some tens of milliseconds.
const START: Duration = Duration::from_secs(20);
/// It drains within a grace period of its own, which is shorter.
const STOP: Duration = Duration::from_secs(20);
const TAIL: usize = 25;

/// A running `ballast-host`. Dropping it kills it.
#[derive(Debug)]
pub struct HostAgent {
    process: Option<Process>,
    network: Option<Network>,
    folder: Folder,
}

impl HostAgent {
    /// The least configuration that manages these machines; add to the table what a test needs.
    #[must_use]
    pub fn config(machines: &[&Machine]) -> Table {
        let vm = |machine: &&Machine| {
            let mut vm = Table::new();
            vm.insert("name".into(), machine.name().into());
            vm.insert("qmp".into(), path(&machine.agent_qmp()));
            match machine.vsock.as_ref().map(|v| (&v.hybrid, v.cid)) {
                Some((Some(hybrid), _)) => drop(vm.insert("vsock".into(), path(hybrid))),
                Some((None, cid)) => drop(vm.insert("cid".into(), i64::from(cid).into())),
                None => {}
            }
            vm.insert("max".into(), format!("{}MiB", machine.size().as_mib()).into());
            Value::Table(vm)
        };
        Table::from_iter([("vm".to_owned(), machines.iter().map(vm).collect::<Vec<_>>().into())])
    }

    /// Starts it and waits until it answers. Where it keeps its state and its control socket is set here.
    ///
    /// # Errors
    /// It is not built, or ends, or does not answer; with the end of its log.
    pub fn start(config: Table) -> Result<Self> {
        Self::start_on(config, None)
    }

    /// As [`HostAgent::start`], on a private network.
    ///
    /// # Errors
    /// As [`HostAgent::start`].
    pub fn start_in(config: Table, network: &Network) -> Result<Self> {
        Self::start_on(config, Some(network.clone()))
    }

    fn start_on(mut config: Table, network: Option<Network>) -> Result<Self> {
        let folder = Folder::new()?;
        let daemon = config.entry("daemon").or_insert_with(|| Table::new().into());
        let daemon = daemon.as_table_mut().context("`daemon` is not a table")?;
        daemon.insert("state-dir".into(), path(&folder.file("state")));
        daemon.insert("control-socket".into(), path(&folder.file("control")));
        let journal = config.entry("journal").or_insert_with(|| Table::new().into());
        let journal = journal.as_table_mut().context("`journal` is not a table")?;
        journal.insert("path".into(), path(&folder.file("state").join("journal")));
        // Many run at once on one machine, some of them where not even the loopback interface is up.
        config.entry("metrics").or_insert_with(|| Table::from_iter([("enabled".to_owned(), false.into())]).into());
        std::fs::create_dir(folder.file("state"))?;
        std::fs::write(folder.file("config.toml"), toml::to_string(&config)?)?;
        let mut agent = Self { process: None, network, folder };
        agent.restart()?;
        Ok(agent)
    }

    /// Kills it when it runs, starts it again on the same configuration and state, waits until it answers.
    ///
    /// # Errors
    /// As [`HostAgent::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.process = None;
        let config = self.folder.file("config.toml").display().to_string();
        let program = Self::program()?;
        let args = ["run".into(), "--config".into(), config];
        let process = match &self.network {
            None => Process::start(&program, &args, &self.log_path())?,
            Some(network) => network.start(&program, &args, &self.log_path())?,
        };
        let process = self.process.insert(process);
        let deadline = Instant::now() + START;
        loop {
            if let Some(status) = process.ended() {
                bail!("ballast-host ended with {status}\n{}", log_tail(&self.folder.file("host.log"), TAIL));
            }
            // The socket of a predecessor that was killed may still be there, but nobody answers on it. An answer means
            // that the listeners for agents stand too: they are bound before the first event is looked at.
            if answers(&self.folder.file("control")) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("ballast-host does not answer\n{}", log_tail(&self.folder.file("host.log"), TAIL));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The binary of this build's profile.
    ///
    /// # Errors
    /// It was not built.
    pub fn program() -> Result<PathBuf> {
        let here = std::env::current_exe()?;
        let folder = here.parent().context("an executable is in a folder")?;
        let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
        paths::required(folder.join("ballast-host"), "cargo build -p ballast-host")
    }

    /// Runs another of its commands against the running one, for example `["status", "--json"]`; returns its output.
    ///
    /// # Errors
    /// It fails; with what it said.
    pub fn command(&self, args: &[&str]) -> Result<String> {
        Self::tell(&self.config_path(), args).map_err(|e| anyhow!("{e:#}\n{}", self.log()))
    }

    /// The same from another thread, by the configuration alone.
    ///
    /// # Errors
    /// It fails; with what it said.
    pub fn tell(config: &Path, args: &[&str]) -> Result<String> {
        let output = Command::new(Self::program()?).args(args).arg("--config").arg(config).output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("ballast-host {} ended with {}: {said}", args.join(" "), output.status);
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// `status --json`.
    ///
    /// # Errors
    /// It does not answer.
    pub fn status(&self) -> Result<serde_json::Value> {
        let text = self.command(&["status", "--json"])?;
        serde_json::from_str(&text).with_context(|| format!("status is no JSON: {text}"))
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Asks it to drain and waits for its end.
    ///
    /// # Errors
    /// It does not run, or does not end in time.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        let mut process = self.process.take().context("ballast-host does not run")?;
        process.signal(Signal::TERM)?;
        process.wait(STOP).with_context(|| self.log())
    }

    /// Sends it a signal, for example HUP to read its configuration again.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.as_ref().context("ballast-host does not run")?.signal(signal)
    }

    /// Its process id while it runs.
    pub fn pid(&mut self) -> Option<u32> {
        let process = self.process.as_mut()?;
        process.ended().is_none().then(|| process.pid())
    }

    /// Where its metrics and its page are, by its log.
    ///
    /// # Errors
    /// It has none: they are off unless the configuration says otherwise.
    pub fn page(&self) -> Result<SocketAddr> {
        let log = std::fs::read_to_string(self.log_path())?;
        let page = log.rsplit_once("page=\"http://").and_then(|(_, rest)| rest.split('/').next()?.parse().ok());
        page.with_context(|| format!("ballast-host serves no metrics\n{}", self.log()))
    }

    /// Where it keeps its state.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.folder.file("state")
    }

    /// Its journal.
    #[must_use]
    pub fn journal_path(&self) -> PathBuf {
        self.state_dir().join("journal")
    }

    /// Its configuration file.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.folder.file("config.toml")
    }

    /// Its log.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.folder.file("host.log")
    }

    /// The end of its log.
    #[must_use]
    pub fn log(&self) -> String {
        log_tail(&self.log_path(), TAIL)
    }
}

/// Whether somebody answers a question on a control socket.
fn answers(socket: &Path) -> bool {
    let asked = || -> std::io::Result<usize> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(START))?;
        stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost: ballast\r\nConnection: close\r\n\r\n")?;
        stream.read(&mut [0; 1])
    };
    asked().is_ok_and(|n| n > 0)
}

fn path(path: &Path) -> Value {
    path.display().to_string().into()
}
