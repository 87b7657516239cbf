//! The benchmark: what each part of the pair costs, measured on the parts that run in production.
//!
//! ```text
//!   messages   encode, decode          no guest
//!   planner    1, 100, 10,000 VMs      no guest, simulated fleet and time
//!   orders     QMP, libvirt            a real guest each, without agents
//!   link       vsock round trip        a real guest's agent, this program as its host agent
//!   budget     size, RSS, CPU, wire    two real guests with the real pair: one squeezed, one left alone
//! ```
//! Everything is measured on the machine that runs it; what that machine lacks is reported as not measured, with why.

mod budget;
mod link;
mod messages;
mod orders;
mod planner;
mod proxy;
mod report;

use anyhow::{Context, Result};
use ballast_tests::{Machine, paths};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::process::ExitCode;
use std::time::Duration;

/// Measures times and sizes, prints a table, writes target/bench/summary.json.
#[derive(Debug, clap::Args)]
pub struct Bench {
    /// Only what needs no guest: messages and planner.
    #[arg(long)]
    no_guests: bool,
}

/// `target/bench/summary.json`.
#[derive(Debug, Serialize)]
struct Summary {
    messages: Vec<messages::Message>,
    planner: Vec<planner::Input>,
    orders: Vec<orders::Orders>,
    vsock_round_trip: Measured<Quantiles>,
    guest_agent: Measured<budget::Budget>,
}

/// A figure, or why there is none.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Measured<T> {
    Yes(T),
    No { not_measured: String },
}

impl<T> Measured<T> {
    fn no(why: impl Into<String>) -> Self {
        Self::No { not_measured: why.into() }
    }
}

/// Of one quantity, in the unit that its place says.
#[derive(Clone, Copy, Debug, Serialize)]
struct Quantiles {
    median: f64,
    p99: f64,
    samples: usize,
}

impl Quantiles {
    /// Nearest rank; `None` of nothing.
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let rank = |share: f64| (values.len() as f64 * share).ceil() as usize;
        let at = |share: f64| values.get(rank(share).max(1) - 1).copied();
        Some(Self { median: at(0.5)?, p99: at(0.99)?, samples: values.len() })
    }
}

impl Bench {
    /// Runs it. Status 0 also when something could not be measured: the table says so.
    pub fn run(&self) -> Result<ExitCode> {
        let bar = ProgressBar::new(7);
        bar.set_style(ProgressStyle::with_template("{bar:30} {elapsed} of about 2 min  {msg}")?);
        bar.enable_steady_tick(Duration::from_millis(500));
        let step = |text: &str| {
            bar.inc(1);
            bar.set_message(text.to_owned());
        };

        bar.set_message("messages");
        let messages = messages::measure();
        step("planner: 1, 100 and 10,000 VMs");
        let planner = planner::measure();
        let mut summary = Summary {
            messages,
            planner,
            orders: Vec::new(),
            vsock_round_trip: Measured::no("--no-guests"),
            guest_agent: Measured::no("--no-guests"),
        };
        if !self.no_guests {
            step("booting two guests");
            let mut squeezed = Machine::builder("squeezed").start()?;
            let alone = Machine::builder("alone").start()?;
            step("orders by QMP");
            summary.orders.push(orders::qmp(&squeezed));
            step("orders by libvirt, with a libvirtd of our own");
            summary.orders.push(orders::libvirt());
            step("vsock round trip");
            squeezed.guest.start_agent(&["run"])?;
            alone.guest.start_agent(&["run"])?;
            summary.vsock_round_trip = link::measure(&squeezed)?;
            step("the pair takes what it can, then 30 s of idleness, before and after a burst");
            summary.guest_agent = budget::measure(&mut squeezed, &alone)?;
        }
        bar.finish_and_clear();

        let folder = paths::target().join("bench");
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let path = folder.join("summary.json");
        std::fs::write(&path, serde_json::to_vec_pretty(&summary)?).with_context(|| path.display().to_string())?;
        print!("{}", report::tables(&summary));
        println!("{}", path.display());
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::Quantiles;

    #[test]
    fn quantiles_are_nearest_ranks() {
        let all = Quantiles::of((1..=200).rev().map(f64::from).collect()).expect("there are values");
        assert_eq!((all.median, all.p99, all.samples), (100.0, 198.0, 200));
        assert!(Quantiles::of(Vec::new()).is_none());
    }
}
