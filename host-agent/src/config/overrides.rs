//! What one place says of a VM, and what follows from all places together.
//!
//! ```text
//!   [defaults]  <  <metadata> of the libvirt domain  <  its own [[vm]] table
//! ```
//!
//! Three places may speak of one VM, and each may leave out what it likes. So what a place says is kept apart from what
//! follows, and [`Overrides::apply`] lays one over the other. The file wins over the domain's XML because it belongs to
//! whoever runs this host, while the XML may have come with the VM from another one.

use super::raw::{self, Written};
use ballast_planner::{Class, Mode, Ratio, VmSettings};
use ballast_protocol::{Bytes, Micros};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::Error as ValueError;

/// Weights beyond this make the shares of all others rounding errors; below 1 a VM would get nothing in a crunch, which
/// is what `class` is for.
pub(super) const WEIGHTS: std::ops::RangeInclusive<u32> = 1..=10_000;
/// Slower than this a giving would be taken for one that the guest cannot follow (15 MiB/s), or come after its need.
const SLOWEST: Bytes = Bytes::mib(64);

/// What one place says of a VM; `None`: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// See [`VmSettings`], as for all of these.
    pub min: Option<Bytes>,
    /// The most it has.
    pub max: Option<Bytes>,
    /// Free memory a quiet VM keeps.
    pub headroom: Option<Bytes>,
    /// The largest single taking.
    pub step: Option<Bytes>,
    /// Quiet time before a taking.
    pub cool_down: Option<Micros>,
    /// What comes back sooner is left alone.
    pub returning: Option<Micros>,
    /// Page cache that is younger is left alone.
    pub cold_after: Option<Micros>,
    /// How fast a giving comes that is not urgent.
    pub pace: Option<Bytes>,
    /// Take also what the guest reports by itself.
    pub take_reported: Option<bool>,
    /// Hands off.
    pub exempt: Option<bool>,
    /// Take even without deflate-on-oom.
    pub allow_without_deflate_on_oom: Option<bool>,
    /// Weight under the law `proxmox`.
    pub shares: Option<u32>,
    /// Size under the law `fixed`.
    pub fixed_size: Option<Bytes>,
    /// Its part of what is left in a crunch, among its class.
    pub weight: Option<u32>,
    /// Which class it is in.
    pub class: Option<Class>,
    /// What may be done with forecasts.
    pub predictor: Option<Mode>,
    /// What it may lose when forecasts choose its size.
    pub loss_budget: Option<Ratio>,
}

/// A mistake in settings that are right each by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Conflict {
    /// The keys that make it, the one to blame first.
    pub keys: &'static [&'static str],
    /// For people.
    pub problem: String,
}

impl Overrides {
    /// Lays this over what is there.
    pub fn apply(&self, into: &mut VmSettings) {
        fn set<T: Clone>(given: &Option<T>, into: &mut T) {
            if let Some(given) = given {
                *into = given.clone();
            }
        }
        set(&self.min, &mut into.min);
        set(&self.max, &mut into.max);
        set(&self.headroom, &mut into.headroom);
        set(&self.step, &mut into.step);
        set(&self.cool_down, &mut into.cool_down);
        set(&self.returning, &mut into.returning);
        set(&self.cold_after, &mut into.cold_after);
        set(&self.pace, &mut into.pace);
        set(&self.take_reported, &mut into.take_reported);
        set(&self.exempt, &mut into.exempt);
        set(&self.allow_without_deflate_on_oom, &mut into.allow_without_deflate_on_oom);
        set(&self.shares, &mut into.shares);
        set(&self.weight, &mut into.weight);
        set(&self.class, &mut into.class);
        set(&self.predictor, &mut into.predictor);
        set(&self.loss_budget, &mut into.loss_budget);
        into.fixed_size = self.fixed_size.or(into.fixed_size);
    }

    /// Reads what the `<metadata>` of a domain says: names of elements without their prefix, and their texts.
    ///
    /// # Errors
    /// The first element that is wrong, and what would be right.
    pub fn from_elements(elements: &[(String, String)]) -> Result<Self, String> {
        let mut all = Self::default();
        for (number, (key, text)) in elements.iter().enumerate() {
            if elements[..number].iter().any(|(earlier, _)| earlier == key) {
                return Err(format!("<{key}> is there twice; keep one"));
            }
            all.read(key, text.trim()).map_err(|problem| format!("<{key}>: {problem}"))?;
        }
        Ok(all)
    }

    fn read(&mut self, key: &str, text: &str) -> Result<(), String> {
        match key {
            "min" => self.min = Some(Bytes::read(text)?),
            "max" => self.max = Some(Bytes::read(text)?),
            "headroom" => self.headroom = Some(Bytes::read(text)?),
            "step" => self.step = Some(Bytes::read(text)?),
            "cool-down" => self.cool_down = Some(Micros::read(text)?),
            "returning" => self.returning = Some(Micros::read(text)?),
            "cold-after" => self.cold_after = Some(Micros::read(text)?),
            "pace" => self.pace = Some(Bytes::read(text)?),
            "take-reported" => self.take_reported = Some(flag(text)?),
            "exempt" => self.exempt = Some(flag(text)?),
            "allow-without-deflate-on-oom" => self.allow_without_deflate_on_oom = Some(flag(text)?),
            "shares" => self.shares = Some(number(text)?),
            "fixed-size" => self.fixed_size = Some(Bytes::read(text)?),
            "weight" => self.weight = Some(number(text)?),
            "class" => self.class = Some(named(text)?),
            "predictor" => self.predictor = Some(named(text)?),
            "loss-budget" => self.loss_budget = Some(Ratio::read(text)?),
            unknown => return Err(raw::suggestion("element", unknown, raw::SETTINGS)),
        }
        Ok(())
    }
}

fn named<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, String> {
    let read: Result<_, ValueError> = T::deserialize(text.into_deserializer());
    read.map_err(|e| raw::with_suggestion(&e.to_string()))
}

fn flag(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("`{text}` is neither true nor false"))
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("`{text}` is not a whole number from 0 to {}", u32::MAX))
}

/// What no single setting can know.
pub(super) fn conflict(settings: &VmSettings) -> Option<Conflict> {
    let VmSettings { min, max, step, pace, fixed_size, weight, .. } = settings;
    let conflict = |keys, problem| Some(Conflict { keys, problem });
    if *step < Bytes::mib(1) {
        return conflict(&["step"], format!("step {step} is too small; the balloon moves by MiB"));
    }
    if (Bytes(1)..SLOWEST).contains(pace) {
        let problem = format!("pace {pace} a second is too slow; say {SLOWEST} or more, or 0MiB for all at once");
        return conflict(&["pace"], problem);
    }
    if !WEIGHTS.contains(weight) {
        let (least, most) = (WEIGHTS.start(), WEIGHTS.end());
        return conflict(&["weight"], format!("weight {weight} cannot be used; a weight is {least} to {most}"));
    }
    if min > max {
        return conflict(&["min", "max"], format!("min {min} is above max {max}; lower min or raise max"));
    }
    match fixed_size {
        Some(size) if !(min..=max).contains(&size) => {
            conflict(&["fixed-size", "min", "max"], format!("fixed-size {size} is not between min {min} and max {max}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(all: &[(&str, &str)]) -> Vec<(String, String)> {
        all.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn every_setting_can_be_said_in_metadata() {
        let said = Overrides::from_elements(&elements(&[
            ("min", " 1GiB\n"),
            ("max", "4GiB"),
            ("headroom", "96MiB"),
            ("step", "32MiB"),
            ("cool-down", "500ms"),
            ("returning", "0s"),
            ("cold-after", "10m"),
            ("pace", "1GiB"),
            ("take-reported", "true"),
            ("exempt", "true"),
            ("allow-without-deflate-on-oom", "false"),
            ("shares", "7"),
            ("fixed-size", "2GiB"),
            ("weight", "250"),
            ("class", "high"),
            ("predictor", "on"),
            ("loss-budget", "2.5%"),
        ]))
        .unwrap();
        let mut settings = VmSettings::default();
        said.apply(&mut settings);
        let expected = VmSettings {
            min: Bytes::mib(1024),
            max: Bytes::mib(4096),
            headroom: Bytes::mib(96),
            step: Bytes::mib(32),
            cool_down: Micros::millis(500),
            returning: Micros::ZERO,
            cold_after: Micros::secs(600),
            pace: Bytes::mib(1024),
            take_reported: true,
            exempt: true,
            allow_without_deflate_on_oom: false,
            shares: 7,
            fixed_size: Some(Bytes::mib(2048)),
            weight: 250,
            class: Class::High,
            predictor: Mode::On,
            loss_budget: Ratio::basis_points(250),
        };
        assert_eq!(settings, expected);
        // One that says nothing changes nothing.
        Overrides::default().apply(&mut settings);
        assert_eq!(settings, expected);
    }

    #[test]
    fn wrong_metadata_names_the_element_and_the_mend() {
        for (key, text, expected) in [
            ("min", "12 parsecs", "<min>: `12 parsecs` is not a memory size"),
            ("min", "", "<min>: `` is not a memory size"),
            ("cool-down", "2", "<cool-down>: `2` is not a time; write for example 2s or 500ms"),
            ("exempt", "yes", "<exempt>: `yes` is neither true nor false"),
            ("weight", "-3", "<weight>: `-3` is not a whole number from 0 to 4294967295"),
            ("class", "hihg", "<class>: unknown value `hihg`; did you mean `high`?"),
            ("predictor", "shado", "<predictor>: unknown value `shado`; did you mean `shadow`?"),
            ("loss-budget", "1", "<loss-budget>: `1` is not a percentage from 0% to 100%"),
            ("headrom", "1M", "<headrom>: unknown element `headrom`; did you mean `headroom`?"),
            ("colour", "red", "<colour>: unknown element `colour`; known are min, max, headroom, "),
        ] {
            let error = Overrides::from_elements(&elements(&[(key, text)])).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        let twice = Overrides::from_elements(&elements(&[("min", "1M"), ("min", "2M")])).unwrap_err();
        assert_eq!(twice, "<min> is there twice; keep one");
    }
}
