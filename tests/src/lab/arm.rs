//! The arms: what is done with the balloons.
//!
//! All laws get the same device, a balloon that deflates when the guest runs out of memory, so that only the law
//! differs. The rivals run in `ballast-host` as policies on balloon statistics, without an agent in the guest, as they
//! do in the field; `ballast` has its agent. Free page reporting can be added to any arm (`reporting = true`): it makes
//! `ballast` hold less while idle, and its bursts fault in more.

use ballast_host::config::SHORTEST_PERIOD;
use ballast_protocol::{Bytes, Micros};
use serde::Deserialize;
use serde::de::{Deserializer, Error, IntoDeserializer};

/// A phase lasts 5 to 10 s: one or two fall into each.
const PROBED_EVERY: Micros = Micros::secs(10);

/// What is done with the balloons of an arm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Law {
    /// Nothing.
    Static,
    /// Inflated once. The device does not deflate by itself: what is fixed stays fixed.
    Fixed(Option<Bytes>),
    /// Inflated once to very little; the device deflates when the guest runs out.
    DeflateOnOom,
    /// The guest reports free pages, the host takes them; the balloon is not inflated.
    FreePageReporting,
    /// The host limits QEMU by a cgroup.
    Cgroup,
    /// A law of `ballast-host`, by name.
    Host(String),
    /// The balloon is moved to a random size each time, by `ballast-host`, which takes nothing by itself, or by the lab, and
    /// `ballast-host` runs dry (see [`super::collect`]); its journal tells what came of it.
    Sweep,
}

/// The laws that `ballast-host` knows and that move balloons.
const HOST_LAWS: [&str; 6] = ["threshold", "mom", "proxmox", "headroom", "drs", "ballast"];

/// An arm.
#[derive(Clone, Debug, PartialEq)]
pub struct Arm {
    /// Its name in results.
    pub name: String,
    /// What is done.
    pub law: Law,
    /// The guest reports free pages.
    pub reporting: bool,
    /// iperf3 measures the guests' service level, so often.
    pub probes: Option<Micros>,
    /// The guest agent may hold back what outruns it.
    pub absorber: bool,
    /// For `[law.<name>]` of the daemon's file, or for `[defaults]` when the law is `ballast`.
    pub settings: toml::Table,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Raw {
    name: String,
    #[serde(default)]
    law: Option<String>,
    #[serde(default)]
    reporting: Option<bool>,
    #[serde(default)]
    probes: Option<toml::Value>,
    #[serde(default)]
    absorber: bool,
    #[serde(default)]
    settings: toml::Table,
}

impl<'de> Deserialize<'de> for Arm {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let raw = match toml::Value::deserialize(d)? {
            toml::Value::String(name) => {
                Raw { name, law: None, reporting: None, probes: None, absorber: false, settings: toml::Table::new() }
            }
            table @ toml::Value::Table(_) => Raw::deserialize(table.into_deserializer())
                .map_err(|e: toml::de::Error| D::Error::custom(e.message()))?,
            other => return Err(D::Error::custom(format!("{other}: an arm is a name, or a table with a name"))),
        };
        let law = raw.law.as_deref().unwrap_or(&raw.name);
        let law = match law {
            "static" => Law::Static,
            "fixed" => Law::Fixed(None),
            "deflate-on-oom" => Law::DeflateOnOom,
            "free-page-reporting" => Law::FreePageReporting,
            "cgroup" => Law::Cgroup,
            "sweep" => Law::Sweep,
            other if HOST_LAWS.contains(&other) => Law::Host(other.to_owned()),
            other => {
                let known = format!(
                    "static, fixed, deflate-on-oom, free-page-reporting, cgroup, sweep, {}",
                    HOST_LAWS.join(", ")
                );
                return Err(D::Error::custom(format!("there is no law `{other}`; known are {known}")));
            }
        };
        let reporting = raw.reporting.unwrap_or(law == Law::FreePageReporting);
        let probes = period(raw.probes.as_ref()).map_err(D::Error::custom)?;
        let Raw { name, absorber, settings, .. } = raw;
        Ok(Self { name, law, reporting, probes, absorber, settings })
    }
}

/// `true`, or a time.
fn period(said: Option<&toml::Value>) -> Result<Option<Micros>, String> {
    let wrong = |said: &toml::Value| {
        format!("probes = {said}: write true, for one every {PROBED_EVERY}, or a time, for example \"1s\"")
    };
    match said {
        None | Some(toml::Value::Boolean(false)) => Ok(None),
        Some(toml::Value::Boolean(true)) => Ok(Some(PROBED_EVERY)),
        Some(said @ toml::Value::String(text)) => {
            humantime::parse_duration(text).map(|period| Some(Micros::from_duration(period))).map_err(|_| wrong(said))
        }
        Some(said) => Err(wrong(said)),
    }
}

impl Arm {
    /// The arm with which all others are compared.
    #[must_use]
    pub fn unmoved() -> Self {
        Self::plain(super::results::STATIC.into(), Law::Static)
    }

    /// One of the oracle's sizes.
    #[must_use]
    pub fn kept_at(size: Bytes) -> Self {
        Self::plain(format!("fixed@{}", size.as_mib()), Law::Fixed(Some(size)))
    }

    fn plain(name: String, law: Law) -> Self {
        Self { name, law, reporting: false, probes: None, absorber: false, settings: toml::Table::new() }
    }

    /// Whether a daemon of its own runs it.
    #[must_use]
    pub fn has_daemon(&self) -> bool {
        matches!(self.law, Law::Host(_) | Law::Sweep) || self.probes.is_some()
    }

    /// Whether the guest agent is part of it.
    #[must_use]
    pub fn has_agent(&self) -> bool {
        self.law == Law::Sweep || self.law == Law::Host("ballast".into())
    }

    /// What cannot be.
    ///
    /// # Errors
    /// A sentence.
    pub fn check(&self) -> Result<(), String> {
        let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.name.is_empty() || !self.name.chars().all(good) {
            return Err(format!("arm `{}`: a name has letters, digits, - and _ only: it names files", self.name));
        }
        if self.absorber && !self.has_agent() {
            return Err(format!("arm `{}`: only `ballast` and `sweep` have an agent that could absorb", self.name));
        }
        if let Some(period) = self.probes.filter(|period| *period < SHORTEST_PERIOD) {
            return Err(format!("arm `{}`: probes every {period} are too many; at least {SHORTEST_PERIOD}", self.name));
        }
        if !self.settings.is_empty() && !matches!(self.law, Law::Host(_)) {
            return Err(format!("arm `{}`: its law has no settings", self.name));
        }
        Ok(())
    }
}
