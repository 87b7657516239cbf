//! `ballast-host`: the host agent's command line.

#![forbid(unsafe_code)]

mod commands;

use anyhow::{Context, Result};
use ballast_host::control::Problem;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use commands::{Ask, SOCKET, generate, operate};
use std::path::PathBuf;
use std::process::ExitCode;

const CONFIG: &str = "/etc/ballast/host.toml";

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
    /// Show the host and every VM: sizes, slack, last move, and why it is not moved now.
    Status(Ask),
    /// Show all that is known of a VM and its last decisions.
    Explain {
        /// The VM's name.
        vm: String,
        /// Write what the model expects at each size as a picture into this file.
        #[arg(long, value_name = "FILE", conflicts_with = "json")]
        svg: Option<PathBuf>,
        #[command(flatten)]
        ask: Ask,
    },
    /// Watch all VMs on one screen: sizes, use, demands, floors, pressure, service levels, decisions. `q` ends it.
    Top {
        /// The daemon's control socket; otherwise the configuration names it.
        #[arg(long)]
        socket: Option<PathBuf>,
        /// The daemon's configuration.
        #[arg(long, short, default_value = CONFIG)]
        config: PathBuf,
    },
    /// Keep a VM at a size, whatever it asks for.
    Hold(operate::Hold),
    /// No longer hold a VM.
    Release(operate::Release),
    /// Hands off a VM: it gets all its memory back and keeps it. Kept across restarts.
    Exempt(operate::Exempt),
    /// Take memory from whoever can spare it, once, at once.
    Reclaim(operate::Reclaim),
    /// Make room for a VM that is about to start or arrive.
    Reserve(operate::Reserve),
    /// The VM will not come after all.
    Unreserve(operate::Unreserve),
    /// Have another law move the balloons.
    #[command(subcommand)]
    Policy(operate::Policy),
    /// Decide and write the journal without ordering anything, or act again.
    DryRun(operate::DryRun),
    /// Read the configuration again; what is wrong in it is refused by name, and all else applied.
    Reload(Ask),
    /// Look at this host and its VMs: what is wrong, and how to mend it.
    Doctor {
        /// The configuration.
        #[arg(long, short, default_value = CONFIG)]
        config: PathBuf,
        /// Print JSON; what goes wrong too, on stderr.
        #[arg(long)]
        json: bool,
    },
    /// Feed a journal's inputs to the planner anew and compare every decision.
    Replay {
        /// The journal.
        journal: PathBuf,
        /// Print JSON; what goes wrong too, on stderr.
        #[arg(long)]
        json: bool,
    },
    /// Train the predictor on what `ballast-lab collect` saw, and score it beside simpler ones.
    #[cfg(feature = "train")]
    Train(commands::train::Train),
    /// Write man pages or shell completions into a folder, for packagers.
    #[command(hide = true)]
    Generate {
        /// Which.
        what: generate::What,
        /// The folder.
        directory: PathBuf,
    },
}

/// What the man page says beside the command line.
const MANUAL: &[generate::Section<'_>] = &[
    (
        "ENVIRONMENT",
        &[("BALLAST_LOG", "What the daemon logs: error, warn, info (the default), debug or trace, also per module.")],
    ),
    (
        "FILES",
        &[
            (CONFIG, "The configuration. Every key with its default: /usr/share/doc/ballast-host/examples/host.toml."),
            (SOCKET, "Where the commands find the daemon; for root and the group ballast."),
            ("/var/lib/ballast/journal", "Every input and every decision, for explain and replay."),
        ],
    ),
    ("SEE ALSO", &[("ballast-guest(8), systemctl(1), virsh(1)", "The agent in the guests, the service, libvirt.")]),
];

fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            let error = format!("{error:#}");
            // As the control socket's own answers have it.
            match serde_json::to_string(&Problem { error: error.clone() }) {
                Ok(json) if wants_json(&matches) => eprintln!("{json}"),
                _ => eprintln!("ballast-host: {error}"),
            }
            ExitCode::FAILURE
        }
    }
}

/// Whether the command, or the command of the command, was given `--json`.
fn wants_json(matches: &ArgMatches) -> bool {
    matches.subcommand().is_some_and(|(_, command)| {
        command.try_get_one("json").is_ok_and(|given: Option<&bool>| given.copied().unwrap_or(false))
            || wants_json(command)
    })
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Run { config, check } => commands::run::run(&config, check),
        Command::Status(ask) => commands::status(&ask),
        Command::Explain { vm, svg, ask } => commands::explain(&vm, svg.as_deref(), &ask),
        Command::Top { socket, config } => commands::watch(socket, config),
        Command::Hold(args) => operate::hold(args),
        Command::Release(args) => operate::release(&args),
        Command::Exempt(args) => operate::exempt(&args),
        Command::Reclaim(args) => operate::reclaim(&args),
        Command::Reserve(args) => operate::reserve(&args),
        Command::Unreserve(args) => operate::unreserve(&args),
        Command::Policy(args) => operate::policy(&args),
        Command::DryRun(args) => operate::dry_run(&args),
        Command::Reload(ask) => operate::reload(&ask),
        Command::Doctor { config, json } => commands::examine(&config, json),
        Command::Replay { journal, json } => commands::repeat(&journal, json),
        #[cfg(feature = "train")]
        Command::Train(args) => commands::train::run(&args),
        Command::Generate { what, directory } => {
            generate::write(Cli::command(), what, &directory, MANUAL)
                .with_context(|| format!("writing into {}", directory.display()))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
