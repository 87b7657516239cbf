//! `[law]`: which law rules, and its constants.

use super::raw::Text;
use super::{ConfigError, Source};
use ballast_planner::{
    DrsSettings, HeadroomSettings, LawName, LawSettings, MomSettings, ProxmoxSettings, Ratio, ThresholdSettings,
};
use ballast_protocol::{Bytes, Micros};
use serde::Deserialize;
use toml::Spanned;

/// Shorter rounds would order faster than a balloon moves.
const SHORTEST_ROUND: Micros = Micros::secs(1);

/// The table of one law: each key is a field of its settings, which has the default.
macro_rules! tables {
    ($($(#[$doc:meta])* $raw:ident => $settings:ident { $($key:ident: $kind:ty),* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Default, Deserialize)]
        #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
        pub(super) struct $raw { $($key: Option<Spanned<Text<$kind>>>),* }

        impl $raw {
            fn settings(&self) -> $settings {
                let mut settings = $settings::default();
                $(if let Some(given) = &self.$key {
                    settings.$key = given.get_ref().0;
                })*
                settings
            }
        }
    )*};
}

tables! {
    /// `[law.threshold]`
    Threshold => ThresholdSettings { period: Micros, threshold: Bytes, step: Ratio }
    /// `[law.mom]`
    Mom => MomSettings {
        sample: Micros, period: Micros, pressure: Ratio, critical: Ratio, guest_free: Ratio, step: Ratio,
        dead_band: Ratio
    }
    /// `[law.proxmox]`
    Proxmox => ProxmoxSettings { period: Micros, goal: Ratio, step: Bytes, dead_band: Bytes, free: Ratio }
    /// `[law.headroom]`
    Headroom => HeadroomSettings {
        period: Micros, pressure: Ratio, recovered: Ratio, floor_part: Ratio, floor: Bytes, least_step: Bytes,
        step: Bytes, cool_down: Micros
    }
    /// `[law.drs]`
    Drs => DrsSettings {
        period: Micros, alpha: Ratio, loaded: Ratio, step: Ratio, reserve: Bytes, low: Ratio, high: Ratio
    }
}

/// `[law]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Law {
    name: LawName,
    threshold: Threshold,
    mom: Mom,
    proxmox: Proxmox,
    headroom: Headroom,
    drs: Drs,
}

/// All tables are checked, also those of laws that do not rule: a mistake is found before its law is chosen.
pub(super) fn check(source: &Source<'_>, raw: &Law) -> Result<(LawSettings, Laws), ConfigError> {
    let rounds = [
        ("period", &raw.threshold.period),
        ("period", &raw.mom.period),
        ("sample", &raw.mom.sample),
        ("period", &raw.proxmox.period),
        ("period", &raw.headroom.period),
        ("period", &raw.drs.period),
    ];
    for (key, given) in rounds {
        if let Some(given) = given.as_ref().filter(|g| g.get_ref().0 < SHORTEST_ROUND) {
            let problem = format!("{key} {} is too short; at least {SHORTEST_ROUND}", given.get_ref().0);
            return Err(source.error(given.span().start, problem));
        }
    }
    let (mom, headroom, drs) = (raw.mom.settings(), raw.headroom.settings(), raw.drs.settings());
    ordered(source, ("critical", &raw.mom.critical, mom.critical), ("pressure", &raw.mom.pressure, mom.pressure))?;
    ordered(
        source,
        ("pressure", &raw.headroom.pressure, headroom.pressure),
        ("recovered", &raw.headroom.recovered, headroom.recovered),
    )?;
    ordered(
        source,
        ("least-step", &raw.headroom.least_step, headroom.least_step),
        ("step", &raw.headroom.step, headroom.step),
    )?;
    ordered(source, ("low", &raw.drs.low, drs.low), ("high", &raw.drs.high, drs.high))?;
    let laws = Laws { threshold: raw.threshold.settings(), mom, proxmox: raw.proxmox.settings(), headroom, drs };
    Ok((laws.of(raw.name), laws))
}

/// Every law with its constants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Laws {
    threshold: ThresholdSettings,
    mom: MomSettings,
    proxmox: ProxmoxSettings,
    headroom: HeadroomSettings,
    drs: DrsSettings,
}

impl Laws {
    /// One of them.
    #[must_use]
    pub fn of(&self, law: LawName) -> LawSettings {
        match law {
            LawName::Ballast => LawSettings::Ballast,
            LawName::Threshold => LawSettings::Threshold(self.threshold.clone()),
            LawName::Mom => LawSettings::Mom(self.mom.clone()),
            LawName::Proxmox => LawSettings::Proxmox(self.proxmox.clone()),
            LawName::Headroom => LawSettings::Headroom(self.headroom.clone()),
            LawName::Drs => LawSettings::Drs(self.drs.clone()),
            LawName::Fixed => LawSettings::Fixed,
            LawName::Static => LawSettings::Static,
        }
    }
}

/// A key, where the file gives it, and its value.
type Given<'a, T> = (&'static str, &'a Option<Spanned<Text<T>>>, T);

/// The first must not exceed the second.
fn ordered<T: PartialOrd + std::fmt::Display>(
    source: &Source<'_>,
    (low, low_raw, low_value): Given<'_, T>,
    (high, high_raw, high_value): Given<'_, T>,
) -> Result<(), ConfigError> {
    match low_raw.as_ref().or(high_raw.as_ref()) {
        Some(at) if low_value > high_value => Err(source.error(
            at.span().start,
            format!("{low} {low_value} is above {high} {high_value}; lower {low} or raise {high}"),
        )),
        _ => Ok(()),
    }
}
