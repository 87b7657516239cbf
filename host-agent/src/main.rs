//! `ballast-host`: the host agent's command line.

#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use ballast_host::config::Config;
use ballast_host::daemon::Daemon;
use ballast_host::{control, doctor, logs, replay, show};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

const CONFIG: &str = "/etc/ballast/host.toml";
const SOCKET: &str = "/run/ballast/control.sock";

/// Hands memory to the virtual machines that need it, in milliseconds.
#[derive(Debug, Parser)]
#[command(name = "ballast-host", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon in the foreground until SIGTERM or Ctrl-C.
    Run {
        /// The configuration.
        #[arg(long, short, default_value = CONFIG)]
        config: PathBuf,
        /// Read the configuration, say whether it is right, and end.
        #[arg(long)]
        check: bool,
    },
    /// Show every VM: sizes, slack, last move, and why it is not moved now.
    Status(Ask),
    /// Show all that is known of a VM and its last decisions.
    Explain {
        /// The VM's name.
        vm: String,
        #[command(flatten)]
        ask: Ask,
    },
    /// Look at this host and its VMs: what is wrong, and how to mend it.
    Doctor {
        /// The configuration.
        #[arg(long, short, default_value = CONFIG)]
        config: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Feed a journal's inputs to the planner anew and compare every decision.
    Replay {
        /// The journal.
        journal: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct Ask {
    /// The daemon's control socket; otherwise the configuration names it.
    #[arg(long)]
    socket: Option<PathBuf>,
    /// The daemon's configuration.
    #[arg(long, short, default_value = CONFIG)]
    config: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Ask {
    fn socket(&self) -> Result<PathBuf> {
        match &self.socket {
            Some(socket) => Ok(socket.clone()),
            None if self.config.exists() => Ok(Config::load(&self.config)?.daemon.control_socket),
            None => Ok(SOCKET.into()),
        }
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("ballast-host: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Run { config, check } => daemon(&config, check),
        Command::Status(ask) => {
            let status: control::Status = client()?.block_on(control::ask(&ask.socket()?, "/v1/status"))?;
            print(ask.json, &status, show::status)
        }
        Command::Explain { vm, ask } => {
            let url =
                format!("/v1/vms/{}", percent_encoding::utf8_percent_encode(&vm, percent_encoding::NON_ALPHANUMERIC));
            let explained: control::Explained = client()?.block_on(control::ask(&ask.socket()?, &url))?;
            print(ask.json, &explained, show::explain)
        }
        Command::Doctor { config, json } => {
            let checks = doctor::examine(&config);
            let failed = checks.iter().any(doctor::Check::is_failure);
            print(json, &checks, |c| doctor::report(c))?;
            Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
        Command::Replay { journal, json } => {
            let replayed = replay::replay(&journal)?;
            print(json, &replayed, show::replayed)?;
            Ok(if replayed.difference.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
    }
}

fn print<T: serde::Serialize>(json: bool, what: &T, show: impl Fn(&T) -> String) -> Result<ExitCode> {
    use std::io::Write;
    let text = if json { serde_json::to_string_pretty(what)? + "\n" } else { show(what) };
    // A reader that has seen enough (`| head`) is no error.
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn client() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")
}

fn daemon(config: &std::path::Path, check: bool) -> Result<ExitCode> {
    let config = Config::load(config)?;
    if check {
        println!("{}: ok, {} VMs named", config.file.display(), config.vms.len());
        return Ok(ExitCode::SUCCESS);
    }
    logs::start();
    // Two workers: one for the daemon's task, one for sessions, so that a burst of reports never delays a decision.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        };
        let daemon = Daemon::start(config).await?;
        // In a task of its own: the thread that blocks on the runtime is none of its workers.
        tokio::spawn(daemon.run(stop)).await.context("the daemon's task")?;
        anyhow::Ok(())
    })?;
    // A hypervisor call that hangs must not keep the daemon alive.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    Ok(ExitCode::SUCCESS)
}
