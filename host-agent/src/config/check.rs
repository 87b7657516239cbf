//! From the file's text to a configuration that can be used: defaults, and what no single field can know.

use super::overrides::{self, Overrides};
use super::{
    Address, Config, ConfigError, Daemon, Journal, Libvirt, RefusedVm, Source, Vm, law, metrics, probing, raw,
};
use ballast_planner::{VmName, VmSettings};
use ballast_protocol::{Bytes, DEFAULT_PORT};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use toml::Spanned;

const STATE_DIR: &str = "/var/lib/ballast";
const CONTROL_SOCKET: &str = "/run/ballast/control.sock";
const URI: &str = "qemu:///system";
/// A day of one VM at ten inputs a second is about 60 MiB.
const JOURNAL_SIZE: Bytes = Bytes::mib(256);
/// Below it a journal is rewritten all the time.
const LEAST_JOURNAL: Bytes = Bytes::mib(1);
/// Below it there is no guest to share it.
const LEAST_BUDGET: Bytes = Bytes::mib(16);
/// `sun_path` holds 108 bytes with the closing zero (unix(7)).
const LONGEST_SOCKET: usize = 107;
/// Names end in logs, metrics and file names.
const LONGEST_NAME: usize = 128;

/// `tables`: each `[[vm]]`, or why it cannot even be read.
pub(super) fn check(
    source: &Source<'_>,
    raw: raw::Root,
    tables: Vec<Result<Spanned<raw::Vm>, Box<RefusedVm>>>,
) -> Result<Config, ConfigError> {
    let daemon = &raw.daemon;
    let port = match &daemon.port {
        Some(port) if matches!(*port.get_ref(), 0 | u32::MAX) => {
            return Err(source.error(
                port.span().start,
                format!("port {} cannot be listened on; the usual one is {DEFAULT_PORT}", port.get_ref()),
            ));
        }
        port => port.as_ref().map_or(DEFAULT_PORT, |p| *p.get_ref()),
    };
    let state_dir = path(source, daemon.state_dir.as_ref(), "state-dir")?.unwrap_or_else(|| STATE_DIR.into());
    let control_socket =
        socket(source, daemon.control_socket.as_ref(), "control-socket", "")?.unwrap_or_else(|| CONTROL_SOCKET.into());
    let control_group = group(source, daemon.control_group.as_ref())?;
    let model = path(source, daemon.model.as_ref(), "model")?;
    let journal = journal(source, &raw.journal, &state_dir)?;
    let libvirt = libvirt(source, raw.libvirt.as_ref())?;
    let metrics = metrics::check(source, &raw.metrics)?;
    let prober = probing::settings(source, &raw.prober)?;
    let (budget, reserve) = pool(source, &raw.host)?;
    let (law, laws) = law::check(source, &raw.law)?;
    let (_, defaults) = settings(source, &raw.defaults, VmSettings::default())?;

    let mut taken = Taken { source, seen: BTreeMap::new() };
    let (mut vms, mut refused) = (Vec::with_capacity(tables.len()), Vec::new());
    for table in tables {
        match table {
            Err(unread) => refused.push(*unread),
            Ok(entry) => match vm(source, &entry, &defaults, port, libvirt.is_some(), &mut taken) {
                Ok(vm) => vms.push(vm),
                Err(error) => {
                    let raw::Vm { name, qmp, cid, .. } = entry.get_ref();
                    let name = name.as_ref().map(|n| VmName(n.get_ref().clone()));
                    let qmp = qmp.as_ref().map(|q| q.get_ref().clone());
                    refused.push(RefusedVm { name, qmp, has_cid: cid.is_some(), error });
                }
            },
        }
    }
    if vms.is_empty() && refused.is_empty() && libvirt.is_none() {
        return Err(source.error(
            0,
            "there is nothing to manage: add [libvirt], or a [[vm]] with `qmp`, the path of its QEMU monitor socket",
        ));
    }
    let mut config = Config {
        file: source.file.to_owned(),
        daemon: Daemon {
            state_dir,
            control_socket,
            control_group,
            port,
            vsock: false,
            on_exit: daemon.on_exit,
            dry_run: daemon.dry_run,
            model,
        },
        journal,
        libvirt,
        metrics,
        prober,
        budget,
        reserve,
        law,
        laws,
        defaults,
        vms,
        refused,
    };
    // Also for a VM that a reload takes up when its table is right: what is not bound at the start never is.
    let needs_vsock = config.needs_vsock() || config.refused.iter().any(|r| r.has_cid);
    config.daemon.vsock = daemon.vsock.unwrap_or(needs_vsock);
    if config.refused.is_empty()
        && let (Some(problem), Some(at)) = (config.overcommitted(), &raw.host.budget)
    {
        return Err(source.error(at.span().start, problem));
    }
    Ok(config)
}

/// What the host counts as having, and what of it is never handed out.
fn pool(source: &Source<'_>, raw: &raw::Host) -> Result<(Option<Bytes>, Option<Bytes>), ConfigError> {
    let budget = raw.budget.as_ref().map(|b| b.get_ref().0);
    if let Some(given) = raw.budget.as_ref().filter(|b| b.get_ref().0 < LEAST_BUDGET) {
        let problem = format!("budget {} is too little; at least {LEAST_BUDGET}", given.get_ref().0);
        return Err(source.error(given.span().start, problem));
    }
    let reserve = raw.reserve.as_ref().map(|r| r.get_ref().0);
    if let (Some(budget), Some(given)) = (budget, &raw.reserve)
        && given.get_ref().0 + LEAST_BUDGET > budget
    {
        let problem =
            format!("reserve {} leaves less than {LEAST_BUDGET} of budget {budget}; lower reserve", given.get_ref().0);
        return Err(source.error(given.span().start, problem));
    }
    Ok((budget, reserve))
}

fn journal(source: &Source<'_>, raw: &raw::Journal, state_dir: &Path) -> Result<Journal, ConfigError> {
    let max_size = raw.max_size.as_ref().map_or(JOURNAL_SIZE, |s| s.get_ref().0);
    if let Some(size) = raw.max_size.as_ref().filter(|_| max_size < LEAST_JOURNAL) {
        return Err(
            source.error(size.span().start, format!("max-size {max_size} is too little; at least {LEAST_JOURNAL}"))
        );
    }
    Ok(Journal {
        enabled: raw.enabled.unwrap_or(true),
        path: path(source, raw.path.as_ref(), "path")?.unwrap_or_else(|| state_dir.join("journal")),
        max_size,
    })
}

fn libvirt(source: &Source<'_>, raw: Option<&raw::Libvirt>) -> Result<Option<Libvirt>, ConfigError> {
    let Some(raw) = raw else { return Ok(None) };
    let uri = match &raw.uri {
        Some(uri) if !uri.get_ref().contains(':') => {
            return Err(source
                .error(uri.span().start, format!("`{}` is not a libvirt URI; the usual one is {URI}", uri.get_ref())));
        }
        uri => uri.as_ref().map_or(URI, |u| u.get_ref()).to_owned(),
    };
    Ok(Some(Libvirt { uri }))
}

/// Names stand in logs, one line each.
pub(super) fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= LONGEST_NAME && !text.chars().any(char::is_control)
}

fn vm(
    source: &Source<'_>,
    entry: &Spanned<raw::Vm>,
    defaults: &VmSettings,
    port: u32,
    libvirt: bool,
    taken: &mut Taken<'_>,
) -> Result<Vm, ConfigError> {
    let raw = entry.get_ref();
    let Some(name) = &raw.name else {
        return Err(source.error(entry.span().start, "this [[vm]] has no `name`; add for example name = \"web\""));
    };
    let text = name.get_ref();
    if !is_name(text) {
        return Err(source.error(name.span().start, format!("a name has 1 to {LONGEST_NAME} printable characters")));
    }
    taken.claim("name", text, name.span().start)?;

    let qmp = socket(source, raw.qmp.as_ref(), "qmp", "")?;
    if let (Some(path), Some(raw)) = (&qmp, &raw.qmp) {
        taken.claim("qmp", path.display(), raw.span().start)?;
    } else if !libvirt {
        return Err(source.error(
            name.span().start,
            "nothing manages this VM: give `qmp`, the path of its QEMU monitor socket, or add [libvirt]",
        ));
    }
    let vsock = socket(source, raw.vsock.as_ref(), "vsock", &format!("_{port}"))?;
    let agent = match (vsock, &raw.vsock, &raw.cid) {
        (Some(_), _, Some(cid)) => {
            return Err(source.error(cid.span().start, "`vsock` and `cid` exclude each other: an agent calls from one place; keep `vsock` for hybrid vsock, `cid` for the kernel's"));
        }
        (Some(path), Some(raw), None) => {
            taken.claim("vsock", path.display(), raw.span().start)?;
            Some(Address::Hybrid(path))
        }
        (_, _, Some(cid)) => {
            // vsock(7): 0 is the hypervisor, 2 the host, -1 any. 1 is loopback: both agents in one guest, as in tests.
            if matches!(*cid.get_ref(), 0 | 2 | u32::MAX) {
                return Err(source
                    .error(cid.span().start, format!("cid {} is no guest's; guests have 3 and above", cid.get_ref())));
            }
            taken.claim("cid", cid.get_ref(), cid.span().start)?;
            Some(Address::Cid(*cid.get_ref()))
        }
        _ => None,
    };
    let service = raw.service.as_ref().map(|s| probing::service(source, s)).transpose()?;
    if let (Some(service), Some(raw)) = (&service, &raw.service) {
        taken.claim("service", service, raw.span().start)?;
    }
    let interface = raw.interface.as_ref().map(|i| probing::interface(source, i)).transpose()?;
    if let (Some(interface), Some(raw)) = (&interface, &raw.interface) {
        taken.claim("interface", interface, raw.span().start)?;
    }
    let (overrides, settings) = settings(source, &raw.settings(), defaults.clone())?;
    Ok(Vm { name: VmName(text.clone()), qmp, agent, service, interface, overrides, settings, is_stand_in: false })
}

fn settings(
    source: &Source<'_>,
    raw: &raw::Settings,
    mut into: VmSettings,
) -> Result<(Overrides, VmSettings), ConfigError> {
    let overrides = raw.overrides();
    overrides.apply(&mut into);
    // A conflict in which this table has no part was told where it began.
    if let Some(conflict) = overrides::conflict(&into)
        && let Some(at) = conflict.keys.iter().find_map(|key| raw.place(key))
    {
        return Err(source.error(at, conflict.problem));
    }
    Ok((overrides, into))
}

/// What may be there only once: two VMs behind one socket or CID would each be given what the other asked for.
struct Taken<'a> {
    source: &'a Source<'a>,
    seen: BTreeMap<(&'static str, String), usize>,
}

impl Taken<'_> {
    fn claim(&mut self, key: &'static str, value: impl Display, at: usize) -> Result<(), ConfigError> {
        let value = value.to_string();
        match self.seen.insert((key, value.clone()), at) {
            None => Ok(()),
            Some(first) => {
                let line = self.source.text[..first].matches('\n').count() + 1;
                Err(self
                    .source
                    .error(at, format!("{key} `{value}` is used already in line {line}; each VM needs its own")))
            }
        }
    }
}

/// Whether there is such a group is known only when the socket is made: it may come with the packages of this host.
fn group(source: &Source<'_>, raw: Option<&Spanned<String>>) -> Result<Option<String>, ConfigError> {
    match raw {
        Some(group) if group.get_ref().trim().is_empty() || group.get_ref().contains(':') => Err(source.error(
            group.span().start,
            "control-group is the name of one group, for example control-group = \"libvirt\"",
        )),
        group => Ok(group.map(|g| g.get_ref().clone())),
    }
}

pub(super) fn path(
    source: &Source<'_>,
    raw: Option<&Spanned<PathBuf>>,
    key: &str,
) -> Result<Option<PathBuf>, ConfigError> {
    match raw {
        Some(path) if !path.get_ref().is_absolute() => Err(source.error(
            path.span().start,
            format!(
                "{key} `{}` is not absolute; a daemon has no directory of its own, begin with /",
                path.get_ref().display()
            ),
        )),
        path => Ok(path.map(|p| p.get_ref().clone())),
    }
}

fn socket(
    source: &Source<'_>,
    raw: Option<&Spanned<PathBuf>>,
    key: &str,
    suffix: &str,
) -> Result<Option<PathBuf>, ConfigError> {
    let path = path(source, raw, key)?;
    if let (Some(path), Some(raw)) = (&path, raw) {
        let length = path.as_os_str().as_bytes().len() + suffix.len();
        if length > LONGEST_SOCKET {
            return Err(source.error(
                raw.span().start,
                format!("{key} with its suffix `{suffix}` has {length} bytes; a socket's path has {LONGEST_SOCKET} at most, use a shorter directory"),
            ));
        }
    }
    Ok(path)
}
