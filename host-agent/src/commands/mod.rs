//! What each command of `ballast-host` does; `main` reads the arguments and comes here.

pub mod generate;
pub mod operate;
pub mod run;
#[cfg(feature = "train")]
pub mod train;
pub mod when;

use crate::CONFIG;
use anyhow::{Context, Result};
use ballast_host::config::{Config, ConfigError};
use ballast_host::{control, curve, doctor, replay, show, top};
use clap::Args;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub const SOCKET: &str = "/run/ballast/control.sock";

/// Where the daemon is, and how its answer is wanted.
#[derive(Debug, Args)]
pub struct Ask {
    /// The daemon's control socket; otherwise the configuration names it.
    #[arg(long)]
    socket: Option<PathBuf>,
    /// The daemon's configuration.
    #[arg(long, short, default_value = CONFIG)]
    config: PathBuf,
    /// Print JSON; what goes wrong too, on stderr.
    #[arg(long)]
    json: bool,
}

impl Ask {
    fn socket(&self) -> Result<PathBuf> {
        match &self.socket {
            Some(socket) => Ok(socket.clone()),
            None if self.config.exists() => Ok(self.configured()?),
            None => Ok(SOCKET.into()),
        }
    }

    /// The socket that the configuration names. A file that is being edited, and wrong for the moment, does not cut
    /// anybody off from the daemon that runs by an older one.
    fn configured(&self) -> Result<PathBuf, ConfigError> {
        let error = match Config::load(&self.config) {
            Ok(config) => return Ok(config.daemon.control_socket),
            Err(error) => error,
        };
        let text = std::fs::read_to_string(&self.config).map_err(|_| error)?;
        let named = text.lines().find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key.trim() == "control-socket").then(|| value.split('#').next().unwrap_or_default().trim())
        });
        Ok(named.map_or(SOCKET, |value| value.trim_matches(['"', '\''])).into())
    }
}

/// `status`
pub fn status(ask: &Ask) -> Result<ExitCode> {
    let status: control::Status = client()?.block_on(control::ask(&ask.socket()?, "/v1/status"))?;
    print(ask.json, &status, show::status)
}

/// `explain`
pub fn explain(vm: &str, svg: Option<&Path>, ask: &Ask) -> Result<ExitCode> {
    let explained: control::Explained = client()?.block_on(control::ask(&ask.socket()?, &of_vm(vm, "")))?;
    if let Some(file) = svg {
        let picture = curve::svg(&explained.status).map_err(anyhow::Error::msg)?;
        std::fs::write(file, picture).with_context(|| file.display().to_string())?;
        println!("{}: what the model expects at each size", file.display());
        return Ok(ExitCode::SUCCESS);
    }
    print(ask.json, &explained, show::explain)
}

/// `top`
pub fn watch(socket: Option<PathBuf>, config: PathBuf) -> Result<ExitCode> {
    top::run(&Ask { socket, config, json: false }.socket()?)?;
    Ok(ExitCode::SUCCESS)
}

/// `doctor`
pub fn examine(config: &Path, json: bool) -> Result<ExitCode> {
    let checks = doctor::examine(config);
    let failed = checks.iter().any(doctor::Check::is_failure);
    print(json, &checks, |c| doctor::report(c))?;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// `replay`
pub fn repeat(journal: &Path, json: bool) -> Result<ExitCode> {
    let replayed = replay::replay(journal)?;
    print(json, &replayed, show::replayed)?;
    Ok(if replayed.difference.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The address of a VM, or of `what` of it.
fn of_vm(vm: &str, what: &str) -> String {
    format!("/v1/vms/{}{what}", escaped(vm))
}

fn escaped(name: &str) -> impl std::fmt::Display {
    utf8_percent_encode(name, NON_ALPHANUMERIC)
}

fn client() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")
}

fn print<T: Serialize>(json: bool, what: &T, show: impl Fn(&T) -> String) -> Result<ExitCode> {
    let text = if json { serde_json::to_string_pretty(what)? + "\n" } else { show(what) };
    // A reader that has seen enough (`| head`) is no error.
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}
