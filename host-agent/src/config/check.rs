//! From the file's text to a configuration that can be used: defaults, and what no single field can know.

use super::{Address, Config, ConfigError, Daemon, Journal, Libvirt, Source, Vm, law, metrics, probing, raw};
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

pub(super) fn check(source: &Source<'_>, raw: raw::Root) -> Result<Config, ConfigError> {
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
    let journal = journal(source, &raw.journal, &state_dir)?;
    let libvirt = libvirt(source, raw.libvirt.as_ref())?;
    let metrics = metrics::check(source, &raw.metrics)?;
    let prober = probing::settings(source, &raw.prober)?;
    let budget = raw.host.budget.as_ref().map(|b| b.get_ref().0);
    if let Some(given) = raw.host.budget.as_ref().filter(|b| b.get_ref().0 < LEAST_BUDGET) {
        let problem = format!("budget {} is too little; at least {LEAST_BUDGET}", given.get_ref().0);
        return Err(source.error(given.span().start, problem));
    }
    let (law, laws) = law::check(source, &raw.law)?;
    let defaults = settings(source, &raw.defaults, VmSettings::default())?;

    let mut taken = Taken { source, seen: BTreeMap::new() };
    let mut vms = Vec::with_capacity(raw.vm.len());
    for entry in &raw.vm {
        vms.push(vm(source, entry, &defaults, port, libvirt.is_some(), &mut taken)?);
    }
    if vms.is_empty() && libvirt.is_none() {
        return Err(source.error(
            0,
            "there is nothing to manage: add [libvirt], or a [[vm]] with `qmp`, the path of its QEMU monitor socket",
        ));
    }
    let needs_vsock = libvirt.is_some() || vms.iter().any(|v| matches!(v.agent, Some(Address::Cid(_))));
    Ok(Config {
        file: source.file.to_owned(),
        daemon: Daemon {
            state_dir,
            control_socket,
            control_group,
            port,
            vsock: daemon.vsock.unwrap_or(needs_vsock),
            on_exit: daemon.on_exit,
        },
        journal,
        libvirt,
        metrics,
        prober,
        budget,
        law,
        laws,
        defaults,
        vms,
    })
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
    if text.is_empty() || text.len() > LONGEST_NAME || text.chars().any(char::is_control) {
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
    let settings = settings(source, &raw.settings(), defaults.clone())?;
    Ok(Vm { name: VmName(text.clone()), qmp, agent, service, interface, settings })
}

fn settings(source: &Source<'_>, raw: &raw::Settings, mut into: VmSettings) -> Result<VmSettings, ConfigError> {
    let fields = [
        (&raw.min, &mut into.min),
        (&raw.max, &mut into.max),
        (&raw.headroom, &mut into.headroom),
        (&raw.step, &mut into.step),
    ];
    for (given, field) in fields {
        if let Some(given) = given {
            *field = given.get_ref().0;
        }
    }
    if let Some(given) = &raw.cool_down {
        into.cool_down = given.get_ref().0;
    }
    if let Some(given) = &raw.returning {
        into.returning = given.get_ref().0;
    }
    into.exempt = raw.exempt.unwrap_or(into.exempt);
    into.allow_without_deflate_on_oom = raw.allow_without_deflate_on_oom.unwrap_or(into.allow_without_deflate_on_oom);
    into.shares = raw.shares.unwrap_or(into.shares);
    into.fixed_size = raw.fixed_size.as_ref().map(|s| s.get_ref().0).or(into.fixed_size);

    if let Some(at) = raw.step.as_ref().filter(|_| into.step < Bytes::mib(1)) {
        return Err(source.error(at.span().start, format!("step {} is too small; the balloon moves by MiB", into.step)));
    }
    if into.min > into.max
        && let Some(at) = raw.min.as_ref().or(raw.max.as_ref())
    {
        let problem = format!("min {} is above max {}; lower min or raise max", into.min, into.max);
        return Err(source.error(at.span().start, problem));
    }
    if let Some(size) = into.fixed_size.filter(|size| !(into.min..=into.max).contains(size))
        && let Some(at) = raw.fixed_size.as_ref().or(raw.min.as_ref()).or(raw.max.as_ref())
    {
        let problem = format!("fixed-size {size} is not between min {} and max {}", into.min, into.max);
        return Err(source.error(at.span().start, problem));
    }
    Ok(into)
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
