//! What the file says of service levels.

use super::{ConfigError, Source, check, raw};
use crate::prober::{DEFAULT_PORT, Settings};
use ballast_planner::ServiceMode;
use ballast_protocol::{Bytes, Micros};
use std::net::{IpAddr, SocketAddr};
use toml::Spanned;

/// The least time between a VM's probes. iperf3 itself takes some 20 ms to start and connect; more often would be nothing but probes.
pub const SHORTEST_PERIOD: Micros = Micros::secs(1);
const LENGTHS: (Micros, Micros) = (Micros::millis(50), Micros::secs(10));
/// A connection's buffers alone hold hundreds of KiB.
const LEAST_TRAFFIC: Bytes = Bytes::mib(16);
const LEAST_RATE: u64 = 100_000;
/// IFNAMSIZ is 16 with the closing zero (net/if.h).
const LONGEST_INTERFACE: usize = 15;

pub(super) fn settings(source: &Source<'_>, raw: &raw::Prober) -> Result<Settings, ConfigError> {
    let mut into = Settings::default();
    into.enabled = raw.enabled.unwrap_or(into.enabled);
    into.mode = match raw.mode {
        raw::Mode::Unlimited => ServiceMode::Unlimited,
        raw::Mode::RateLimited => ServiceMode::RateLimited,
    };
    if let Some(given) = &raw.period {
        into.period = given.get_ref().0;
        if into.period < SHORTEST_PERIOD {
            return Err(source.error(
                given.span().start,
                format!("period {} is too short; at least {SHORTEST_PERIOD}", into.period),
            ));
        }
    }
    if let Some(given) = &raw.length {
        into.length = given.get_ref().0;
        let (least, most) = LENGTHS;
        if into.length < least || into.length > most {
            let problem = format!("length {} cannot be used; a probe takes {least} to {most}", into.length);
            return Err(source.error(given.span().start, problem));
        }
    }
    if let Some(given) = &raw.rate {
        into.rate = given.get_ref().0.0;
        if into.rate < LEAST_RATE {
            return Err(source.error(given.span().start, "rate is too little; at least 100kbit"));
        }
    }
    if let Some(given) = &raw.time_per_hour {
        into.time_per_hour = given.get_ref().0;
    }
    // What is held of it, a third, must be enough for a probe beside the reserve of a quarter.
    let least = Micros(into.length.0 * 4);
    if into.time_per_hour < least
        && let Some(given) = raw.time_per_hour.as_ref().or(raw.length.as_ref())
    {
        let problem = format!(
            "time-per-hour {} is too little for probes of {}; at least {least}",
            into.time_per_hour, into.length
        );
        return Err(source.error(given.span().start, problem));
    }
    if let Some(given) = &raw.traffic_per_hour {
        into.traffic_per_hour = given.get_ref().0;
        if into.traffic_per_hour < LEAST_TRAFFIC {
            let problem = format!("traffic-per-hour {} is too little; at least {LEAST_TRAFFIC}", into.traffic_per_hour);
            return Err(source.error(given.span().start, problem));
        }
    }
    into.program = check::path(source, raw.program.as_ref(), "program")?;
    Ok(into)
}

pub(super) fn service(source: &Source<'_>, raw: &Spanned<raw::Service>) -> Result<SocketAddr, ConfigError> {
    let raw = raw.get_ref();
    let text = raw.address.get_ref();
    let address: IpAddr = text.parse().map_err(|_| {
        let problem = format!("`{text}` is not an IP address; names are not looked up in the middle of a probe");
        source.error(raw.address.span().start, problem)
    })?;
    Ok(SocketAddr::new(address, raw.port.unwrap_or(DEFAULT_PORT)))
}

pub(super) fn interface(source: &Source<'_>, raw: &Spanned<String>) -> Result<String, ConfigError> {
    let name = raw.get_ref();
    if name.is_empty() || name.len() > LONGEST_INTERFACE || name.contains(|c: char| c == '/' || c.is_whitespace()) {
        let problem = format!("`{name}` is no name of a network interface; `ip link` shows them, for example tap0");
        return Err(source.error(raw.span().start, problem));
    }
    Ok(name.clone())
}
