//! The file as it is written: every field optional, every value with its place.

use super::{OnExit, Overrides, law, metrics};
use ballast_planner::{Class, Mode as Forecasts, Ratio};
use ballast_protocol::{Bytes, Micros};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, Visitor};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use toml::Spanned;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Root {
    pub daemon: Daemon,
    pub journal: Journal,
    pub libvirt: Option<Libvirt>,
    pub metrics: metrics::Raw,
    pub prober: Prober,
    pub host: Host,
    pub law: law::Law,
    pub defaults: Settings,
    /// Known as a key; each table is read by itself, so that a mistake in one is no mistake in another.
    #[serde(rename = "vm")]
    _vm: IgnoredAny,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Daemon {
    pub state_dir: Option<Spanned<PathBuf>>,
    pub control_socket: Option<Spanned<PathBuf>>,
    pub control_group: Option<Spanned<String>>,
    pub port: Option<Spanned<u32>>,
    pub vsock: Option<bool>,
    pub on_exit: OnExit,
    pub dry_run: bool,
    pub model: Option<Spanned<PathBuf>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Journal {
    pub enabled: Option<bool>,
    pub path: Option<Spanned<PathBuf>>,
    pub max_size: Option<Spanned<Text<Bytes>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Libvirt {
    pub uri: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Prober {
    pub enabled: Option<bool>,
    pub mode: Mode,
    pub period: Option<Spanned<Text<Micros>>>,
    pub length: Option<Spanned<Text<Micros>>>,
    pub rate: Option<Spanned<Text<BitRate>>>,
    pub time_per_hour: Option<Spanned<Text<Micros>>>,
    pub traffic_per_hour: Option<Spanned<Text<Bytes>>>,
    pub program: Option<Spanned<PathBuf>>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Mode {
    #[default]
    Unlimited,
    RateLimited,
}

/// Where a VM's iperf3 server is.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Service {
    pub address: Spanned<String>,
    pub port: Option<u16>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Host {
    pub budget: Option<Spanned<Text<Bytes>>>,
    pub reserve: Option<Spanned<Text<Bytes>>>,
}

/// The keys of [`Settings`], for suggestions.
pub(super) const SETTINGS: &[&str] = &[
    "min",
    "max",
    "headroom",
    "step",
    "cool-down",
    "returning",
    "cold-after",
    "pace",
    "take-reported",
    "exempt",
    "allow-without-deflate-on-oom",
    "shares",
    "fixed-size",
    "weight",
    "class",
    "predictor",
    "loss-budget",
];

/// What `[defaults]` and `[[vm]]` share. TOML places are lost under `serde(flatten)`, so [`Vm`] repeats the fields.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Settings {
    pub min: Option<Spanned<Text<Bytes>>>,
    pub max: Option<Spanned<Text<Bytes>>>,
    pub headroom: Option<Spanned<Text<Bytes>>>,
    pub step: Option<Spanned<Text<Bytes>>>,
    pub cool_down: Option<Spanned<Text<Micros>>>,
    pub returning: Option<Spanned<Text<Micros>>>,
    pub cold_after: Option<Spanned<Text<Micros>>>,
    pub pace: Option<Spanned<Text<Bytes>>>,
    pub take_reported: Option<bool>,
    pub exempt: Option<bool>,
    pub allow_without_deflate_on_oom: Option<bool>,
    pub shares: Option<u32>,
    pub fixed_size: Option<Spanned<Text<Bytes>>>,
    pub weight: Option<Spanned<u32>>,
    pub class: Option<Class>,
    pub predictor: Option<Forecasts>,
    pub loss_budget: Option<Spanned<Text<Ratio>>>,
}

impl Settings {
    pub fn overrides(&self) -> Overrides {
        fn value<T: Copy>(raw: &Option<Spanned<Text<T>>>) -> Option<T> {
            raw.as_ref().map(|r| r.get_ref().0)
        }
        Overrides {
            min: value(&self.min),
            max: value(&self.max),
            headroom: value(&self.headroom),
            step: value(&self.step),
            cool_down: value(&self.cool_down),
            returning: value(&self.returning),
            cold_after: value(&self.cold_after),
            pace: value(&self.pace),
            take_reported: self.take_reported,
            exempt: self.exempt,
            allow_without_deflate_on_oom: self.allow_without_deflate_on_oom,
            shares: self.shares,
            fixed_size: value(&self.fixed_size),
            weight: self.weight.as_ref().map(|w| *w.get_ref()),
            class: self.class,
            predictor: self.predictor,
            loss_budget: value(&self.loss_budget),
        }
    }

    /// Where a key that can be in conflict with another is given, if it is.
    pub fn place(&self, key: &str) -> Option<usize> {
        let place = |raw: &Option<Spanned<Text<Bytes>>>| raw.as_ref().map(|r| r.span().start);
        match key {
            "min" => place(&self.min),
            "max" => place(&self.max),
            "step" => place(&self.step),
            "pace" => place(&self.pace),
            "fixed-size" => place(&self.fixed_size),
            "weight" => self.weight.as_ref().map(|w| w.span().start),
            _ => None,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Vm {
    pub name: Option<Spanned<String>>,
    pub qmp: Option<Spanned<PathBuf>>,
    pub vsock: Option<Spanned<PathBuf>>,
    pub cid: Option<Spanned<u32>>,
    pub service: Option<Spanned<Service>>,
    pub interface: Option<Spanned<String>>,
    min: Option<Spanned<Text<Bytes>>>,
    max: Option<Spanned<Text<Bytes>>>,
    headroom: Option<Spanned<Text<Bytes>>>,
    step: Option<Spanned<Text<Bytes>>>,
    cool_down: Option<Spanned<Text<Micros>>>,
    returning: Option<Spanned<Text<Micros>>>,
    cold_after: Option<Spanned<Text<Micros>>>,
    pace: Option<Spanned<Text<Bytes>>>,
    take_reported: Option<bool>,
    exempt: Option<bool>,
    allow_without_deflate_on_oom: Option<bool>,
    shares: Option<u32>,
    fixed_size: Option<Spanned<Text<Bytes>>>,
    weight: Option<Spanned<u32>>,
    class: Option<Class>,
    predictor: Option<Forecasts>,
    loss_budget: Option<Spanned<Text<Ratio>>>,
}

impl Vm {
    pub fn settings(&self) -> Settings {
        Settings {
            min: self.min.clone(),
            max: self.max.clone(),
            headroom: self.headroom.clone(),
            step: self.step.clone(),
            cool_down: self.cool_down.clone(),
            returning: self.returning.clone(),
            cold_after: self.cold_after.clone(),
            pace: self.pace.clone(),
            take_reported: self.take_reported,
            exempt: self.exempt,
            allow_without_deflate_on_oom: self.allow_without_deflate_on_oom,
            shares: self.shares,
            fixed_size: self.fixed_size.clone(),
            weight: self.weight.clone(),
            class: self.class,
            predictor: self.predictor,
            loss_budget: self.loss_budget.clone(),
        }
    }
}

/// A value that the file writes as text: `"512MiB"`, `"2s"`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text<T>(pub T);

/// Bits per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BitRate(pub u64);

/// A kind of value written as text.
pub(super) trait Written: Sized {
    const EXPECTED: &'static str;
    fn read(text: &str) -> Result<Self, String>;
}

impl Written for Bytes {
    const EXPECTED: &'static str = "a memory size in quotes, for example \"256MiB\"";
    fn read(text: &str) -> Result<Self, String> {
        Self::from_str(text).map_err(|e| e.to_string())
    }
}

impl Written for Micros {
    const EXPECTED: &'static str = "a time in quotes, for example \"2s\" or \"500ms\"";
    fn read(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text)
            .map(Self::from_duration)
            .map_err(|_| format!("`{text}` is not a time; write for example 2s or 500ms"))
    }
}

impl Written for BitRate {
    const EXPECTED: &'static str = "a bit rate in quotes, for example \"50Mbit\"";
    fn read(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a bit rate; write for example 50Mbit or 1Gbit");
        let (number, unit) = text.trim().split_at(text.trim().find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?);
        let unit = match unit.trim() {
            "kbit" => 1_000,
            "Mbit" => 1_000_000,
            "Gbit" => 1_000_000_000,
            _ => return Err(wrong()),
        };
        number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).map(Self).ok_or_else(wrong)
    }
}

impl Written for Ratio {
    const EXPECTED: &'static str = "a percentage in quotes, for example \"20%\"";
    fn read(text: &str) -> Result<Self, String> {
        Self::from_str(text).map_err(|e| e.to_string())
    }
}

impl<'de, T: Written> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Reader<T>(std::marker::PhantomData<T>);
        impl<T: Written> Visitor<'_> for Reader<T> {
            type Value = Text<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::EXPECTED)
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Text<T>, E> {
                T::read(text).map(Text).map_err(E::custom)
            }
        }
        d.deserialize_str(Reader(std::marker::PhantomData))
    }
}

/// Puts the nearest known key in front of serde's list of all keys. serde offers the names in its text only; a text
/// that does not look as expected is passed on as it is.
pub(super) fn with_suggestion(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let (Some(rest), Some(unknown)) = (message.strip_prefix("unknown "), quoted.next()) else {
        return message.to_owned();
    };
    let (kind, _) = rest.split_once(' ').unwrap_or((rest, ""));
    let kind = if kind == "field" { "key" } else { "value" };
    suggestion(kind, unknown, &quoted.collect::<Vec<_>>())
}

/// What is said to a name that is none of those known.
pub(super) fn suggestion(kind: &str, unknown: &str, known: &[&str]) -> String {
    let nearest = known.iter().map(|k| (distance(unknown, k), *k)).min();
    match nearest {
        Some((edits, key)) if edits <= 1 + unknown.len() / 3 => {
            format!("unknown {kind} `{unknown}`; did you mean `{key}`?")
        }
        _ => format!("unknown {kind} `{unknown}`; known are {}", known.join(", ")),
    }
}

/// Levenshtein's distance, on keys of a few characters.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let next = (diagonal + usize::from(x != *y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], next);
        }
    }
    row[b.len()]
}
