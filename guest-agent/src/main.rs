//! `ballast-guest`: the commands. `run` is the agent; the others ask it, or read the sensors once.

mod once;

use anyhow::Context;
use ballast_guest::config::{Config, DEFAULT_SOCKET};
use ballast_guest::link::Peer;
use ballast_guest::status::Status;
use ballast_guest::{agent, need, process};
use ballast_protocol::{Bytes, Micros};
use clap::{Args, Parser, Subcommand};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Threads for connecting and for dropping page cache; each at most once at a time.
const BLOCKING_THREADS: usize = 3;
/// Their stacks: no deep calls there.
const STACK: usize = 128 << 10;

/// Ballast's guest agent: tells the host about memory that is about to be used.
#[derive(Debug, Parser)]
#[command(name = "ballast-guest", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent.
    Run(Run),
    /// Wait until memory is really there, then run a command. The lease ends with it.
    ///
    /// Exit status: the command's; 124 when the memory will not be there, 125 when no agent answers, 126 when the
    /// command cannot be run, 127 when it is not found.
    Need(Need),
    /// Read all sensors once.
    Once {
        /// As JSON.
        #[arg(long)]
        json: bool,
        /// Where /proc and /sys begin.
        #[arg(long, default_value = "/")]
        root: PathBuf,
    },
    /// Ask the running agent.
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
        /// The agent's socket.
        #[arg(long, default_value = DEFAULT_SOCKET)]
        socket: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Run {
    /// The configuration file [default: /etc/ballast/guest.toml, which may be missing].
    #[arg(long)]
    config: Option<PathBuf>,
    /// The host agent's vsock port [default: 9150].
    #[arg(long)]
    port: Option<u32>,
    /// The host agent's CID [default: 2, the host]; 1 is this machine itself.
    #[arg(long)]
    cid: Option<u32>,
    /// Hold back workloads that outrun the host, by memory.high of their cgroups.
    #[arg(long, conflicts_with = "no_absorber")]
    absorber: bool,
    /// Never do that, whatever the configuration says.
    #[arg(long)]
    no_absorber: bool,
    /// The workloads' cgroups, separated by commas.
    #[arg(long, value_delimiter = ',')]
    workloads: Option<Vec<String>>,
    /// The socket for `need` and `status` [default: /run/ballast/guest.sock].
    #[arg(long)]
    socket: Option<PathBuf>,
    /// Where /proc and /sys begin.
    #[arg(long, default_value = "/")]
    root: PathBuf,
    /// For development: dial unix:/path instead of vsock.
    #[arg(long, hide = true)]
    connect: Option<Peer>,
}

#[derive(Debug, Args)]
struct Need {
    /// How much, for example 512MiB or 2G.
    size: Bytes,
    /// Without a command: hold the lease so long, for example 90s.
    #[arg(long = "for", value_parser = need::parse_duration, conflicts_with = "command")]
    hold: Option<Micros>,
    /// The agent's socket.
    #[arg(long, default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    /// The command and its arguments.
    #[arg(last = true)]
    command: Vec<String>,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run(args),
        Command::Need(args) => return run_need(&args),
        Command::Once { json, root } => once::read(&root, json).and_then(|text| say(&text)),
        Command::Status { json, socket } => status(&socket, json),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            ballast_guest::log!(Error, "{e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Run) -> anyhow::Result<()> {
    let line = Config {
        port: args.port,
        cid: args.cid,
        absorber: if args.absorber { Some(true) } else { args.no_absorber.then_some(false) },
        workloads: args.workloads,
        socket: args.socket,
    };
    let settings = Config::load(args.config.as_deref())?.overridden_by(line).settings(args.root, args.connect)?;
    if settings.root == Path::new("/") {
        process::harden();
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_stack_size(STACK)
        .build()
        .context("cannot start the event loop")?;
    let result = runtime.block_on(agent::run(settings));
    // A dial or a write that blocks must not hold up the end.
    runtime.shutdown_background();
    Ok(result?)
}

fn run_need(args: &Need) -> ExitCode {
    match need::need(&args.socket, args.size, args.hold, &args.command) {
        Ok(None) => ExitCode::SUCCESS,
        // As shells have it: a command that a signal ended is 128 and the signal. Both fit a byte.
        Ok(Some(status)) => {
            let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            ExitCode::from((code & 0xff) as u8)
        }
        Err(e) => {
            ballast_guest::log!(Error, "{}", ballast_guest::log::Chain(&e));
            ExitCode::from(e.exit_code())
        }
    }
}

/// Prints one answer. A reader that has gone (`| head`) wants no more, and that is no failure.
fn say(text: &dyn std::fmt::Display) -> anyhow::Result<()> {
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e).context("cannot write to standard output"),
        _ => Ok(()),
    }
}

fn status(socket: &Path, json: bool) -> anyhow::Result<()> {
    let (_, line) = need::ask(socket, "status")?;
    if json {
        return say(&line);
    }
    let status: Status = serde_json::from_str(&line).context("the agent's answer is not a status")?;
    say(&status)
}
