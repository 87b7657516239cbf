//! `ballast-lab`: experiments on real guests with the real pair of agents.

#![forbid(unsafe_code)]

mod bench;
mod demo;
mod spikes;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Experiments on real guests with the real pair of agents.
#[derive(Debug, Parser)]
#[command(name = "ballast-lab", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Four arms on four guests in one interleaved run: what does ballooning cost, and what does it save?
    Demo(demo::Demo),
    /// What each part costs: messages, planner, orders, vsock, the guest agent's budget.
    Bench(bench::Bench),
    /// Random bursts against the pair, counting what the guest suffers.
    Spikes(spikes::Spikes),
}

fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Demo(order) => order.run(),
        Command::Bench(order) => order.run(),
        Command::Spikes(order) => order.run(),
    }
}
