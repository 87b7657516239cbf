//! `ballast-lab`: experiments on real guests with the real pair of agents.

#![forbid(unsafe_code)]

mod bench;
mod collect;
mod demo;
mod fleet;
mod lab;
mod report;
mod spikes;

use clap::{Parser, Subcommand};
use std::io::Write;
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
    /// A thousand simulated VMs around a real daemon: how fast it orders, and what it costs.
    Fleet(fleet::FleetCommand),
    /// Runs experiments: laws against workloads, side by side, and writes a report.
    Run(lab::RunCommand),
    /// Collects data for the predictor: guests at random sizes, and what became of them.
    Collect(collect::CollectCommand),
    /// Lists the experiments that come with the sources.
    List(lab::ListCommand),
    /// Random bursts against the pair, counting what the guest suffers.
    Spikes(spikes::Spikes),
    /// What a run found: table, summary.json, summary.csv and report.html, made again from its blocks.
    Report(report::Report),
    /// Two arms of one run, or one arm of two runs: what differs, beyond the noise.
    Compare(report::Compare),
}

/// Prints a result. A reader that has seen enough (`| head`) is no error.
fn say(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Demo(order) => order.run(),
        Command::Bench(order) => order.run(),
        Command::Fleet(order) => order.run(),
        Command::Run(order) => order.run(),
        Command::Collect(order) => order.run(),
        Command::List(order) => order.run(),
        Command::Spikes(order) => order.run(),
        Command::Report(order) => order.run(),
        Command::Compare(order) => order.run(),
    }
}
