//! The daemon's configuration: TOML in, a typed [`Config`] out, or one error that names file, line, column, VM and
//! mend.
//!
//! A daemon that holds the memory of other people's machines must not guess: an unknown key, a unit that could mean
//! two things, a minimum above a maximum is refused before anything is touched. `raw` mirrors the file and is read
//! by serde; `check` turns it into the typed form and is the only place that can make one. The format is documented
//! in `ballast-host.example.toml`, which a test parses.

mod check;
mod law;
mod metrics;
mod overrides;
mod probing;
mod raw;

pub use law::Laws;
pub use overrides::Overrides;
pub use probing::SHORTEST_PERIOD;
pub(crate) use raw::distance as edit_distance;

use crate::prober;
use ballast_planner::{LawSettings, VmName, VmSettings};
use ballast_protocol::Bytes;
use serde::Deserialize;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer, ValueDeserializer};

pub use metrics::Metrics;

/// What the daemon is to do. Made by [`Config::load`], [`Config::parse`], [`Config::examine`] and
/// [`Config::examine_to_start`] only, which check it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where it was read from.
    pub file: PathBuf,
    /// The daemon itself.
    pub daemon: Daemon,
    /// The journal.
    pub journal: Journal,
    /// libvirt, when it is to be used.
    pub libvirt: Option<Libvirt>,
    /// Metrics and status page, when they are to be served.
    pub metrics: Option<Metrics>,
    /// The prober.
    pub prober: prober::Settings,
    /// What the host counts as having, all VMs together; `None`: what its kernel says.
    pub budget: Option<Bytes>,
    /// What of it is never handed out; `None`: a sixteenth.
    pub reserve: Option<Bytes>,
    /// The law that rules.
    pub law: LawSettings,
    /// Every law with the constants that this file gives it, for a change while the daemon runs.
    pub laws: Laws,
    /// For VMs that libvirt knows and this file does not name.
    pub defaults: VmSettings,
    /// The VMs this file names, in its order.
    pub vms: Vec<Vm>,
    /// Its `[[vm]]` tables that cannot be used, in its order. None of one that was checked by [`Config::parse`].
    pub refused: Vec<RefusedVm>,
}

/// The daemon itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Daemon {
    /// Journal and learned figures live here.
    pub state_dir: PathBuf,
    /// Where `ballast-host status` and its like connect.
    pub control_socket: PathBuf,
    /// Whose members may use it; `None`: the daemon's own group.
    pub control_group: Option<String>,
    /// AF_VSOCK port, and suffix of hybrid sockets.
    pub port: u32,
    /// Listen on AF_VSOCK.
    pub vsock: bool,
    /// What becomes of the balloons when the daemon stops.
    pub on_exit: OnExit,
    /// Decide and write down, and order nothing.
    pub dry_run: bool,
    /// The predictor's weights; `None`: those in the binary.
    pub model: Option<PathBuf>,
}

/// What becomes of the balloons when the daemon stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnExit {
    /// They stay: the next daemon goes on from there. Right for upgrades.
    #[default]
    Keep,
    /// Every VM gets all its memory back.
    Release,
}

/// The journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal {
    /// Written at all.
    pub enabled: bool,
    /// Where.
    pub path: PathBuf,
    /// At this size the older half is dropped.
    pub max_size: Bytes,
}

/// libvirt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Libvirt {
    /// Which one.
    pub uri: String,
}

/// A VM this file names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vm {
    /// Its name; libvirt's domain name when libvirt manages it.
    pub name: VmName,
    /// Its monitor, when QMP manages it; otherwise libvirt does.
    pub qmp: Option<PathBuf>,
    /// Where its agent calls from. `None`: what libvirt's XML says, or no agent.
    pub agent: Option<Address>,
    /// Its iperf3 server, when its service level is to be measured.
    pub service: Option<SocketAddr>,
    /// Its network interface on this host, whose counters tell its traffic.
    pub interface: Option<String>,
    /// What its table says of how it is to be treated.
    pub overrides: Overrides,
    /// How it is to be treated, defaults filled in.
    pub settings: VmSettings,
    /// Taken up for its monitor alone, as exempt: its table cannot be used.
    pub is_stand_in: bool,
}

/// A `[[vm]]` that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedVm {
    /// Whose it is; `None`: it has no name that can be read.
    pub name: Option<VmName>,
    /// Its monitor, as the table says.
    pub qmp: Option<PathBuf>,
    /// It says from which CID its agent calls.
    pub has_cid: bool,
    /// What is wrong with it.
    pub error: ConfigError,
}

/// Where a VM's agent calls from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Hybrid vsock: the agent arrives at this path with `_<port>` appended.
    Hybrid(PathBuf),
    /// AF_VSOCK: the agent arrives from this CID.
    Cid(u32),
}

/// A configuration that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// Line and column, from 1; `None` when the file could not be read at all.
    pub at: Option<(usize, usize)>,
    /// The VM whose table it is in.
    pub vm: Option<String>,
    /// What is wrong and what to do about it.
    pub problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some((line, column)) = self.at {
            write!(f, ":{line}:{column}")?;
        }
        if let Some(vm) = &self.vm {
            write!(f, ": VM `{vm}`")?;
        }
        write!(f, ": {}", self.problem)
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// It cannot be read, or something in it is wrong.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        Self::parse(file, &read(file)?)
    }

    /// Checks a text; `file` is named in errors.
    ///
    /// # Errors
    /// Something in it is wrong: the first thing, in the order of the file as far as possible.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut config = Self::examine_text(file, text)?;
        if config.refused.is_empty() { Ok(config) } else { Err(config.refused.swap_remove(0).error) }
    }

    /// Reads and checks a file for a daemon that runs: a mistake in a `[[vm]]` refuses that table only.
    ///
    /// # Errors
    /// It cannot be read, is no TOML, or something is wrong outside of the `[[vm]]` tables.
    pub fn examine(file: &Path) -> Result<Self, ConfigError> {
        Self::examine_text(file, &read(file)?)
    }

    /// Reads and checks a file for a daemon that starts, possibly after a crash: as for one that runs, and what is left
    /// must be something to manage, within the budget.
    ///
    /// # Errors
    /// As [`Self::examine`]; or nothing is left, or too much.
    pub fn examine_to_start(file: &Path) -> Result<Self, ConfigError> {
        let mut config = Self::examine(file)?;
        config.leave_alone();
        if config.vms.is_empty() && config.libvirt.is_none() {
            // One without any table was refused by `examine`.
            return Err(config.refused.swap_remove(0).error);
        }
        if let Some(problem) = config.overcommitted() {
            return Err(ConfigError { file: file.to_owned(), at: None, vm: None, problem });
        }
        Ok(config)
    }

    /// Takes up the QEMUs of refused tables as exempt, where their monitors are known: the daemon before this one may have
    /// left them with little, and nobody else gives it back.
    fn leave_alone(&mut self) {
        let overrides = Overrides { exempt: Some(true), ..Overrides::default() };
        for refused in &self.refused {
            let (Some(name), Some(qmp)) = (&refused.name, &refused.qmp) else { continue };
            let taken = self.vms.iter().any(|vm| vm.name == *name || vm.qmp.as_ref() == Some(qmp));
            if taken || !check::is_name(&name.0) || !qmp.is_absolute() {
                continue;
            }
            let mut settings = self.defaults.clone();
            overrides.apply(&mut settings);
            self.vms.push(Vm {
                name: name.clone(),
                qmp: Some(qmp.clone()),
                agent: None,
                service: None,
                interface: None,
                overrides: overrides.clone(),
                settings,
                is_stand_in: true,
            });
        }
    }

    fn examine_text(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let source = Source { file, text };
        let wrong = |e: toml::de::Error| {
            let at = e.span().map_or(0, |s| s.start);
            source.error(at, raw::with_suggestion(e.message()))
        };
        let mut document = DeTable::parse(text).map_err(wrong)?;
        let tables = document.get_mut().remove("vm");
        let root = raw::Root::deserialize(Deserializer::from(document)).map_err(wrong)?;
        let tables = match tables {
            None => Vec::new(),
            Some(value) => {
                let span = value.span();
                match value.into_inner() {
                    DeValue::Array(all) => all.into_iter().map(|table| read_vm(table, wrong)).collect(),
                    other => {
                        let other = ValueDeserializer::from(Spanned::new(span, other));
                        let all = Vec::<Spanned<raw::Vm>>::deserialize(other).map_err(wrong)?;
                        all.into_iter().map(Ok).collect()
                    }
                }
            }
        };
        check::check(&source, root, tables)
    }

    /// How a VM is to be treated, by its domain's metadata too.
    ///
    /// # Errors
    /// What the metadata says cannot be together with what this file says.
    pub fn settings_with(&self, vm: &VmName, metadata: &Overrides) -> Result<VmSettings, String> {
        let mut settings = self.defaults.clone();
        metadata.apply(&mut settings);
        settings.exempt |= self.is_in_doubt(vm);
        if let Some(vm) = self.vms.iter().find(|v| v.name == *vm) {
            vm.overrides.apply(&mut settings);
        }
        match overrides::conflict(&settings) {
            Some(conflict) => Err(conflict.problem),
            None => Ok(settings),
        }
    }

    /// Whether a VM that is taken up may call by AF_VSOCK. Else it is listened at for tables that cannot be used.
    #[must_use]
    pub fn needs_vsock(&self) -> bool {
        self.libvirt.is_some() || self.vms.iter().any(|v| matches!(v.agent, Some(Address::Cid(_))))
    }

    /// Minimums are guarantees: whether they sum to more than the budget, and how much. Without a budget only a host's
    /// kernel can tell. What a table that cannot be used guarantees is not known.
    #[must_use]
    pub fn overcommitted(&self) -> Option<String> {
        let (budget, reserve) = (self.budget?, self.reserve.unwrap_or_default());
        let known: Vec<Bytes> = self.vms.iter().filter(|vm| !vm.is_stand_in).map(|vm| vm.settings.min).collect();
        let sum = known.iter().fold(Bytes::ZERO, |sum, min| sum + *min);
        let left = budget - reserve;
        let less = if reserve > Bytes::ZERO { format!(" less reserve {reserve}") } else { String::new() };
        (sum > left).then(|| {
            format!(
                "the minimums of {} VMs sum to {sum}, {} more than budget {budget}{less}; lower a `min` or raise budget",
                known.len(),
                sum - left
            )
        })
    }

    /// How a VM is to be treated, named in this file or not.
    #[must_use]
    pub fn settings(&self, vm: &VmName) -> VmSettings {
        let mut settings = self.vms.iter().find(|v| v.name == *vm).map_or(&self.defaults, |v| &v.settings).clone();
        settings.exempt |= self.is_in_doubt(vm);
        settings
    }

    /// Whether what this file says of a VM cannot be read: a table that is refused is its own, or may be, and no other
    /// is. It is exempt, for that or a guarantee may be what the table says.
    #[must_use]
    pub fn is_in_doubt(&self, vm: &VmName) -> bool {
        match self.vms.iter().find(|v| v.name == *vm) {
            Some(named) => named.is_stand_in,
            None => self.refused.iter().any(|refused| refused.name.as_ref().is_none_or(|name| name == vm)),
        }
    }
}

fn read(file: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(file).map_err(|e| ConfigError {
        file: file.to_owned(),
        at: None,
        vm: None,
        problem: format!("cannot be read: {e}; ballast-host.example.toml shows the format"),
    })
}

/// Reads one `[[vm]]` by itself.
fn read_vm(
    table: Spanned<DeValue<'_>>,
    wrong: impl Fn(toml::de::Error) -> ConfigError,
) -> Result<Spanned<raw::Vm>, Box<RefusedVm>> {
    let value = |key: &str| table.get_ref().as_table().and_then(|t| Some(t.get(key)?.get_ref()));
    let said = |key: &str| value(key).and_then(DeValue::as_str);
    let (name, qmp) = (said("name").map(VmName::from), said("qmp").map(PathBuf::from));
    let has_cid = value("cid").is_some();
    Spanned::<raw::Vm>::deserialize(ValueDeserializer::from(table))
        .map_err(|error| Box::new(RefusedVm { name, qmp, has_cid, error: wrong(error) }))
}

/// A file under examination.
#[derive(Clone, Copy, Debug)]
struct Source<'a> {
    file: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    /// An error at a byte offset of the text. The VM is found by reading the text itself: what serde refuses never
    /// becomes a table that could be asked for its name.
    fn error(&self, at: usize, problem: impl Into<String>) -> ConfigError {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
        ConfigError {
            file: self.file.to_owned(),
            at: Some((line, column)),
            vm: self.vm_at(line),
            problem: problem.into(),
        }
    }

    /// The name in the `[[vm]]` table around a line.
    fn vm_at(&self, line: usize) -> Option<String> {
        let lines: Vec<&str> = self.text.lines().map(str::trim).collect();
        let is_header = |l: &&str| l.starts_with('[');
        let first = lines.iter().take(line).rposition(is_header)?;
        if !lines[first].starts_with("[[vm]]") {
            return None;
        }
        lines[first + 1..].iter().take_while(|l| !is_header(l)).find_map(|l| {
            let (key, value) = l.split_once('=')?;
            let value = value.split('#').next()?.trim();
            (key.trim() == "name").then(|| value.trim_matches(['"', '\'']).to_owned())
        })
    }
}

#[cfg(test)]
mod tests;
