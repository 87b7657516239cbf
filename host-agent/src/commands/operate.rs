//! The commands that change something while the daemon runs. Each is one request; sizes and times are read here, as
//! people write them.

use super::{Ask, client, escaped, of_vm, print, when};
use anyhow::Result;
use axum::http::Method;
use ballast_host::control::{
    self, Done, DryRunRequest, HoldRequest, LawRequest, ReclaimRequest, Reclaimed, Reloaded, ReserveRequest,
};
use ballast_host::show;
use ballast_planner::LawName;
use ballast_protocol::{Bytes, Micros};
use clap::builder::PossibleValuesParser;
use clap::builder::TypedValueParser as _;
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use std::process::ExitCode;

/// All laws, ours first.
const LAWS: [LawName; 8] = [
    LawName::Ballast,
    LawName::Threshold,
    LawName::Mom,
    LawName::Proxmox,
    LawName::Headroom,
    LawName::Drs,
    LawName::Fixed,
    LawName::Static,
];

/// `hold`
#[derive(Debug, Args)]
pub struct Hold {
    /// The VM's name.
    vm: String,
    /// What it is to keep, for example 256M or 1.5GiB.
    size: Bytes,
    /// For how long, for example 10m or 2h; without it until it is released.
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    during: Option<Micros>,
    /// Why; the next operator reads it.
    #[arg(long)]
    reason: String,
    /// Also when another operator holds it.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    ask: Ask,
}

/// `release`
#[derive(Debug, Args)]
pub struct Release {
    /// The VM's name.
    vm: String,
    /// Also when another operator holds it.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    ask: Ask,
}

/// `exempt`
#[derive(Debug, Args)]
pub struct Exempt {
    /// The VM's name.
    vm: String,
    /// No longer.
    #[arg(long)]
    off: bool,
    #[command(flatten)]
    ask: Ask,
}

/// `reclaim`
#[derive(Debug, Args)]
pub struct Reclaim {
    /// How much, for example 2G.
    size: Bytes,
    /// Only show what would be taken from whom.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    ask: Ask,
}

/// `reserve`
#[derive(Debug, Args)]
pub struct Reserve {
    /// How much, for example 4G.
    size: Bytes,
    /// The VM that will start or arrive.
    #[arg(long = "for", value_name = "NAME")]
    name: String,
    #[command(flatten)]
    end: End,
    #[command(flatten)]
    ask: Ask,
}

/// When a reservation lapses.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct End {
    /// Until when: 14:30, 2026-11-22 14:30, or 2026-11-22T14:30:00Z.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// For how long from now: 30m, 2h.
    #[arg(long, value_name = "DURATION", value_parser = time)]
    within: Option<Micros>,
}

/// `unreserve`
#[derive(Debug, Args)]
pub struct Unreserve {
    /// The VM that will not come.
    name: String,
    #[command(flatten)]
    ask: Ask,
}

/// `policy`
#[derive(Debug, Subcommand)]
pub enum Policy {
    /// Have another law rule until the daemon restarts; its constants are the configuration's.
    Set {
        /// Which.
        #[arg(value_parser = law())]
        law: LawName,
        #[command(flatten)]
        ask: Ask,
    },
}

/// `dry-run`
#[derive(Debug, Args)]
pub struct DryRun {
    /// Whether decisions are only written down.
    state: OnOff,
    #[command(flatten)]
    ask: Ask,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnOff {
    On,
    Off,
}

fn time(text: &str) -> Result<Micros, String> {
    humantime::parse_duration(text)
        .map(Micros::from_duration)
        .map_err(|_| "not a time; write for example 90s, 10m or 2h".to_owned())
}

fn law() -> impl clap::builder::TypedValueParser<Value = LawName> {
    let names = PossibleValuesParser::new(LAWS.map(LawName::as_str));
    names.try_map(|name| LAWS.into_iter().find(|law| law.as_str() == name).ok_or("unknown law"))
}

/// One request, and what it did.
fn tell(ask: &Ask, method: Method, url: &str, body: Option<&impl Serialize>) -> Result<ExitCode> {
    let done: Done = client()?.block_on(control::tell(&ask.socket()?, method, url, body))?;
    print(ask.json, &done, show::done)
}

/// A request that needs no body.
const NOTHING: Option<&()> = None;

/// `hold`
pub fn hold(args: Hold) -> Result<ExitCode> {
    let Hold { vm, size, during, reason, force, ask } = args;
    tell(&ask, Method::PUT, &of_vm(&vm, "/hold"), Some(&HoldRequest { size, during, reason, force }))
}

/// `release`
pub fn release(args: &Release) -> Result<ExitCode> {
    let what = if args.force { "/hold?force=true" } else { "/hold" };
    tell(&args.ask, Method::DELETE, &of_vm(&args.vm, what), NOTHING)
}

/// `exempt`
pub fn exempt(args: &Exempt) -> Result<ExitCode> {
    let method = if args.off { Method::DELETE } else { Method::PUT };
    tell(&args.ask, method, &of_vm(&args.vm, "/exempt"), NOTHING)
}

/// `reload`
pub fn reload(ask: &Ask) -> Result<ExitCode> {
    let reloaded: Reloaded = client()?.block_on(control::tell(&ask.socket()?, Method::POST, "/v1/reload", NOTHING))?;
    print(ask.json, &reloaded, show::reloaded)?;
    Ok(if reloaded.refused.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `reclaim`
pub fn reclaim(args: &Reclaim) -> Result<ExitCode> {
    let Reclaim { size, dry_run, ask } = args;
    let body = ReclaimRequest { size: *size, dry_run: *dry_run };
    let reclaimed: Reclaimed =
        client()?.block_on(control::tell(&ask.socket()?, Method::POST, "/v1/reclaim", Some(&body)))?;
    print(ask.json, &reclaimed, show::reclaimed)
}

/// `reserve`
pub fn reserve(args: &Reserve) -> Result<ExitCode> {
    let within = match (&args.end.until, args.end.within) {
        (Some(until), _) => when::left(until, &jiff::Zoned::now())?,
        (None, within) => within.unwrap_or_default(),
    };
    let url = format!("/v1/reservations/{}", escaped(&args.name));
    tell(&args.ask, Method::PUT, &url, Some(&ReserveRequest { size: args.size, within }))
}

/// `unreserve`
pub fn unreserve(args: &Unreserve) -> Result<ExitCode> {
    tell(&args.ask, Method::DELETE, &format!("/v1/reservations/{}", escaped(&args.name)), NOTHING)
}

/// `policy`
pub fn policy(args: &Policy) -> Result<ExitCode> {
    let Policy::Set { law, ask } = args;
    tell(ask, Method::PUT, "/v1/law", Some(&LawRequest { law: *law }))
}

/// `dry-run`
pub fn dry_run(args: &DryRun) -> Result<ExitCode> {
    tell(&args.ask, Method::PUT, "/v1/dry-run", Some(&DryRunRequest { on: args.state == OnOff::On }))
}
