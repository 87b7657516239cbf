//! The command line. In the library, so that man pages and completions can be made of it (`examples/generate.rs`).

use crate::config::DEFAULT_SOCKET;
use crate::link::Peer;
use crate::need;
use ballast_protocol::{Bytes, Micros};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Ballast's guest agent: tells the host about memory that is about to be used.
#[derive(Debug, Parser)]
#[command(name = "ballast-guest", version)]
pub struct Cli {
    /// Which.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
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

/// What `run` is told.
#[derive(Debug, Args)]
pub struct Run {
    /// The configuration file [default: /etc/ballast/guest.toml, which may be missing].
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// The host agent's vsock port [default: 9150].
    #[arg(long)]
    pub port: Option<u32>,
    /// The host agent's CID [default: 2, the host]; 1 is this machine itself.
    #[arg(long)]
    pub cid: Option<u32>,
    /// Hold back workloads that outrun the host, by memory.high of their cgroups.
    #[arg(long, conflicts_with = "no_absorber")]
    pub absorber: bool,
    /// Never do that, whatever the configuration says.
    #[arg(long)]
    pub no_absorber: bool,
    /// The workloads' cgroups, separated by commas.
    #[arg(long, value_delimiter = ',')]
    pub workloads: Option<Vec<String>>,
    /// The socket for `need` and `status` [default: /run/ballast/guest.sock].
    #[arg(long)]
    pub socket: Option<PathBuf>,
    /// Where /proc and /sys begin.
    #[arg(long, default_value = "/")]
    pub root: PathBuf,
    /// For development: dial unix:/path instead of vsock.
    #[arg(long, hide = true)]
    pub connect: Option<Peer>,
}

/// What `need` is told.
#[derive(Debug, Args)]
pub struct Need {
    /// How much, for example 512MiB or 2G.
    pub size: Bytes,
    /// Without a command: hold the lease so long, for example 90s.
    #[arg(long = "for", value_parser = need::parse_duration, conflicts_with = "command")]
    pub hold: Option<Micros>,
    /// The agent's socket.
    #[arg(long, default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// The command and its arguments.
    #[arg(last = true)]
    pub command: Vec<String>,
}
