//! `ballast-host doctor`: is this host, and is each VM, as Ballast needs it? Each line says what is wrong and how to
//! mend it.
//!
//! `host` looks at files under a root path, so that tests show it captured machines; `vms` judges what a hypervisor
//! says. Nothing is changed, with one exception: asking for a balloon's statistics switches them on.

mod host;
mod vms;

use crate::config::{Config, ConfigError};
use crate::forecaster;
use ballast_predictor::Predictor as _;
use serde::Serialize;
use std::fmt::Write as _;
use std::path::Path;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at; begins with `VM` and its name for a VM's.
    pub name: String,
    /// How bad it is.
    pub state: State,
    /// What was found.
    pub what: String,
    /// What to do about it; `None` when nothing needs doing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// It works, with less than there could be.
    Warn,
    /// It does not work.
    Fail,
}

impl Check {
    fn ok(name: impl Into<String>, what: impl Into<String>) -> Self {
        Self { name: name.into(), state: State::Ok, what: what.into(), mend: None }
    }

    fn warn(name: impl Into<String>, what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name: name.into(), state: State::Warn, what: what.into(), mend: Some(mend.into()) }
    }

    fn fail(name: impl Into<String>, what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name: name.into(), state: State::Fail, what: what.into(), mend: Some(mend.into()) }
    }

    /// Something does not work.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        self.state == State::Fail
    }
}

/// Looks at everything: this machine, and the VMs of a configuration. Takes a few seconds when hypervisors hang.
#[must_use]
pub fn examine(config: &Path) -> Vec<Check> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let host = host::Host { root: "/".into(), programs: std::env::split_paths(&path).collect() };
    let config = Config::load(config);
    let mut checks = vec![configuration(&config)];
    checks.extend(host.checks(config.as_ref().ok()));
    if let Ok(config) = &config {
        checks.push(model(config.daemon.model.as_deref()));
        checks.extend(vms::checks(config));
    }
    checks
}

/// Whether forecasts can be made.
fn model(file: Option<&Path>) -> Check {
    const NAME: &str = "predictor";
    match forecaster::model(file) {
        Ok(model) => {
            let origin = model.origin();
            Check::ok(NAME, format!("{}: {} rows of {} workloads", model.name(), origin.rows, origin.workloads.len()))
        }
        Err(error) => Check::warn(
            NAME,
            format!("{}; no forecasts are made", crate::chain(&error)),
            "leave out `model` in [daemon] for the one that ships, or train one with `ballast-host train`",
        ),
    }
}

fn configuration(config: &Result<Config, ConfigError>) -> Check {
    const NAME: &str = "configuration";
    match config {
        Ok(config) => {
            let libvirt = if config.libvirt.is_some() { ", and those of libvirt" } else { "" };
            Check::ok(NAME, format!("{}: {} VMs named{libvirt}", config.file.display(), config.vms.len()))
        }
        Err(error) => Check::fail(NAME, error.to_string(), "the line above says how; VMs were not looked at"),
    }
}

/// For people.
#[must_use]
pub fn report(checks: &[Check]) -> String {
    let width = checks.iter().map(|c| c.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let state = match check.state {
            State::Ok => "ok",
            State::Warn => "warn",
            State::Fail => "FAIL",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{state:<4}  {:<width$}  {}", check.name, check.what);
        if let Some(mend) = &check.mend {
            let _ = writeln!(text, "{:<4}  {:<width$}  -> {mend}", "", "");
        }
    }
    let count = |state| checks.iter().filter(|c| c.state == state).count();
    let (ok, warn, fail) = (count(State::Ok), count(State::Warn), count(State::Fail));
    let _ = writeln!(text, "\n{ok} ok, {warn} to improve, {fail} wrong");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_see_what_and_how_to_mend_it() {
        let checks =
            [Check::ok("a", "fine"), Check::warn("longer", "so so", "do this"), Check::fail("b", "bad", "do that")];
        let expected = "ok    a       fine\nwarn  longer  so so\n              -> do this\nFAIL  b       bad\n              \
                        -> do that\n\n1 ok, 1 to improve, 1 wrong\n";
        assert_eq!(report(&checks), expected);
        assert_eq!(checks.map(|c| c.is_failure()), [false, false, true]);
    }

    #[test]
    fn programs_see_the_same() {
        let checks = [Check::ok("a", "fine"), Check::fail("b", "bad", "do that")];
        assert_eq!(
            serde_json::to_string(&checks).unwrap(),
            r#"[{"name":"a","state":"ok","what":"fine"},{"name":"b","state":"fail","what":"bad","mend":"do that"}]"#
        );
    }

    #[test]
    fn a_model_that_cannot_be_used_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "weights").unwrap();
        let check = model(Some(file.path()));
        let name = file.path().display().to_string();
        assert!(check.what.contains(&name) && check.what.contains("not a model"), "{check:?}");
        assert!(!check.is_failure(), "the reactive law goes on without");
        let shipped = model(None);
        assert!(shipped.state == State::Ok && shipped.what.contains("workloads"), "{shipped:?}");
    }

    #[test]
    fn a_wrong_configuration_is_the_first_failure_and_the_host_is_looked_at_all_the_same() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "[demon]").unwrap();
        let checks = examine(file.path());
        assert!(
            checks[0].is_failure() && checks[0].what.ends_with(":1:2: unknown key `demon`; did you mean `daemon`?")
        );
        assert!(checks.len() > 4 && checks.iter().all(|c| !c.name.starts_with("VM")), "{checks:?}");
    }
}
