//! How each VM is to be treated: by the file, its domain's metadata, its domain's guarantee, and operators.
//!
//! ```text
//!   <metadata> --+-- can be used ------------------> laid under the file's [[vm]], and remembered
//!                +-- cannot, but what it said before could --> that goes on
//!                '-- cannot, and never could ------> hands off until it is corrected
//! ```
//! Where a mistake may hide a guarantee or an exemption, nothing is taken: no mistake costs a VM either of them.

use super::Daemon;
use crate::config::{Config, Overrides};
use crate::hypervisor::{METADATA, VmFacts};
use ballast_planner::{VmName, VmSettings};

/// What is known of a domain's metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Metadata {
    /// What it last said that could be used.
    good: Option<Overrides>,
    /// Why what it says now cannot be, and the mend.
    pub problem: Option<String>,
}

/// The settings of a VM by file and metadata, and what is known of its metadata from now on.
fn judge(
    config: &Config,
    vm: &VmName,
    before: &Metadata,
    said: &Result<Vec<(String, String)>, String>,
) -> (VmSettings, Metadata) {
    let read = said.clone().and_then(|all| Overrides::from_elements(&all));
    let problem = match read.and_then(|new| Ok((config.settings_with(vm, &new)?, new))) {
        Ok((settings, new)) => return (settings, Metadata { good: Some(new), problem: None }),
        Err(problem) => problem,
    };
    let good = before.good.clone();
    let (settings, until_then) = match good.as_ref().and_then(|good| config.settings_with(vm, good).ok()) {
        Some(settings) => (settings, "what it said before holds"),
        None => (VmSettings { exempt: true, ..config.settings(vm) }, "hands off: the VM gets and keeps all its memory"),
    };
    let problem = format!(
        "the <metadata> of its domain is not used: {problem}; correct it with `virsh metadata {vm} {METADATA} --edit \
         --key ballast`; until then {until_then}"
    );
    (settings, Metadata { good, problem: Some(problem) })
}

/// Who but an operator says hands off.
#[derive(Debug)]
pub(super) struct ExemptBy {
    /// For people.
    pub whom: String,
    /// What ends it.
    pub mend: String,
    /// Only because a mistake may hide that it is to be so.
    pub is_doubt: bool,
}

impl Daemon {
    /// How a VM is to be treated. A mistake in its metadata is told once.
    pub(super) fn settings_for(&mut self, vm: &VmName, facts: &VmFacts) -> VmSettings {
        let before = self.metadata.remove(vm).unwrap_or_default();
        let (mut settings, metadata) = judge(&self.config, vm, &before, &facts.metadata);
        if metadata.problem != before.problem {
            let text = match &metadata.problem {
                Some(problem) => {
                    tracing::warn!(%vm, "{problem}");
                    problem.clone()
                }
                None => {
                    let text = "the <metadata> of its domain is used again".to_owned();
                    tracing::info!(%vm, "{text}");
                    text
                }
            };
            let at = self.clock.now();
            self.remember(vm, at, text);
        }
        self.metadata.insert(vm.clone(), metadata);
        if let Some(guarantee) = facts.min_guarantee {
            settings.min = settings.min.max(guarantee);
        }
        settings.exempt |= self.operated.is_exempt(vm);
        settings
    }

    /// Who but an operator says hands off, if anybody does.
    pub(super) fn exempt_by(&self, vm: &VmName) -> Option<ExemptBy> {
        let by = |whom: String, mend: String, is_doubt| Some(ExemptBy { whom, mend, is_doubt });
        let file = self.config.file.display();
        if self.config.is_in_doubt(vm) {
            return by(format!("a wrong [[vm]] in {file}"), format!("correct it in {file} and reload"), true);
        }
        let by_file = self.config.settings(vm).exempt;
        let by_all = match (self.vms.get(vm), self.metadata.get(vm)) {
            (Some(known), Some(before)) => judge(&self.config, vm, before, &known.facts.metadata).0.exempt,
            _ => by_file,
        };
        if !by_all {
            return None;
        }
        let domain = "the <metadata> of its domain";
        if by_file {
            by(file.to_string(), format!("take `exempt` out of {file} and reload"), false)
        } else if self.metadata.get(vm).is_some_and(|m| m.problem.is_some()) {
            by(format!("{domain}, which is wrong"), format!("correct {domain}"), true)
        } else {
            by(domain.to_owned(), format!("take `exempt` out of {domain}"), false)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ballast_protocol::Bytes;
    use std::path::Path;

    fn config(text: &str) -> Config {
        Config::parse(Path::new("b.toml"), &format!("[libvirt]\n{text}")).unwrap()
    }

    fn said(all: &[(&str, &str)]) -> Result<Vec<(String, String)>, String> {
        Ok(all.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect())
    }

    const WRONG: &[(&str, &str)] = &[("min", "a lot"), ("weight", "300")];

    #[test]
    fn metadata_that_goes_wrong_leaves_a_vm_what_it_had() {
        let (config, vm) = (config(""), VmName::from("db"));
        let right = said(&[("min", "200MiB"), ("exempt", "true")]);
        let (settings, good) = judge(&config, &vm, &Metadata::default(), &right);
        assert_eq!((settings.min, settings.exempt, &good.problem), (Bytes::mib(200), true, &None));

        let (settings, wrong) = judge(&config, &vm, &good, &said(WRONG));
        assert_eq!((settings.min, settings.exempt, settings.weight), (Bytes::mib(200), true, 100));
        let problem = wrong.problem.clone().unwrap();
        assert!(problem.contains("not used: <min>: `a lot` is not a memory size"), "{problem}");
        assert!(problem.contains("virsh metadata db https://ballast.dev/domain/1 --edit --key ballast"), "{problem}");
        assert!(problem.ends_with("until then what it said before holds"), "{problem}");
        // Wrong in another way, and unreadable: still what it had.
        for again in [said(&[("exmpt", "true")]), Err("its namespace is another".to_owned())] {
            let (settings, still) = judge(&config, &vm, &wrong, &again);
            assert_eq!((settings.min, settings.exempt, &still.good), (Bytes::mib(200), true, &good.good));
        }

        // Corrected: what it says now counts, and what it said before is over.
        let (settings, mended) = judge(&config, &vm, &wrong, &said(&[("weight", "300")]));
        assert_eq!((settings.min, settings.exempt, settings.weight), (VmSettings::default().min, false, 300));
        assert_eq!(mended.problem, None);
    }

    #[test]
    fn a_vm_whose_metadata_was_never_right_is_left_alone() {
        let (config, vm) = (config("[defaults]\nmin = \"100MiB\"\n"), VmName::from("db"));
        for wrong in [said(WRONG), Err("its namespace is another".to_owned())] {
            let (settings, metadata) = judge(&config, &vm, &Metadata::default(), &wrong);
            assert_eq!((settings.exempt, settings.min), (true, Bytes::mib(100)));
            let problem = metadata.problem.unwrap();
            assert!(problem.ends_with("until then hands off: the VM gets and keeps all its memory"), "{problem}");
        }
    }

    #[test]
    fn metadata_that_the_file_does_not_go_with_is_no_reason_to_squeeze() {
        let vm = VmName::from("db");
        let metadata = said(&[("min", "800MiB")]);
        let (_, good) = judge(&config(""), &vm, &Metadata::default(), &metadata);
        let now = config("[[vm]]\nname = \"db\"\nmax = \"512MiB\"\n");
        let (settings, metadata) = judge(&now, &vm, &good, &metadata);
        assert!(settings.exempt, "{settings:?}");
        assert!(metadata.problem.unwrap().contains("min 800 MiB is above max 512 MiB"));
    }
}
