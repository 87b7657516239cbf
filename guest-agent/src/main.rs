//! `ballast-guest`: the commands. `run` is the agent; the others ask it, or read the sensors once.

use anyhow::Context;
use ballast_guest::agent::{self, Settings};
use ballast_guest::link::Peer;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

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
}

#[derive(Debug, Args)]
struct Run {
    /// The host agent's vsock port.
    #[arg(long, default_value_t = ballast_protocol::DEFAULT_PORT)]
    port: u32,
    /// The host agent's CID: 2 is the host, 1 this machine itself.
    #[arg(long, default_value_t = 2)]
    cid: u32,
    /// Where /proc and /sys begin.
    #[arg(long, default_value = "/")]
    root: PathBuf,
    /// For development: dial unix:/path instead of vsock.
    #[arg(long, hide = true)]
    connect: Option<Peer>,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Run(run) => {
            let peer = run.connect.unwrap_or(Peer::Vsock { cid: run.cid, port: run.port });
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
            runtime.block_on(agent::run(Settings { root: run.root, peer }))?;
        }
    }
    Ok(())
}
