//! `ballast-guest`: the commands. `run` is the agent; the others ask it, or read the sensors once.

mod once;

use anyhow::Context;
use ballast_guest::cli::{Cli, Command, Need, Run};
use ballast_guest::config::Config;
use ballast_guest::status::Status;
use ballast_guest::{agent, need, process};
use clap::Parser;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitCode;

/// Threads for connecting and for dropping page cache; each at most once at a time.
const BLOCKING_THREADS: usize = 3;
/// Their stacks: no deep calls there.
const STACK: usize = 128 << 10;

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
