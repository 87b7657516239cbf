//! The VMs, by what their hypervisors say.

use super::Check;
use crate::config::{Address, Config, Overrides};
use crate::hypervisor::{self, BalloonStatistics, Hypervisor, METADATA, VmFacts};
use ballast_planner::VmName;
use ballast_protocol::Bytes;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use tokio::sync::mpsc::unbounded_channel;

/// A VM's statistics, if it has a balloon and runs.
type Statistics = Option<Result<BalloonStatistics, hypervisor::Error>>;

pub(super) fn checks(config: &Config) -> Vec<Check> {
    // Nobody listens: a doctor looks once.
    let (events, _) = unbounded_channel();
    let mut all = Vec::new();
    // A monitor serves one client, and the daemon's is the right one.
    let daemon = Daemon::find(&config.daemon.control_socket);
    if let Daemon::Hidden(error) = &daemon {
        all.push(hidden(config, error));
    }
    for vm in &config.vms {
        let Some(socket) = &vm.qmp else { continue };
        if !matches!(daemon, Daemon::Absent) {
            if matches!(daemon, Daemon::Runs) {
                let what = "the running daemon holds it: see `ballast-host status`";
                all.push(Check::ok(title(&vm.name, "monitor"), what));
            }
            all.push(agent(config, &vm.name, None));
            continue;
        }
        let qmp = hypervisor::Qmp::new(vm.name.clone(), socket.clone(), events.clone());
        match qmp.facts(&vm.name) {
            Ok(facts) => all.extend(vm_checks(config, &facts, statistics(&qmp, &facts))),
            Err(error) => {
                all.push(unreachable_vm(&vm.name, socket, &error));
                all.push(agent(config, &vm.name, None));
            }
        }
    }
    all.extend(libvirt(config, &events));
    all
}

/// What the control socket tells of a daemon.
enum Daemon {
    Runs,
    Absent,
    /// There is a socket, and who runs this may not ask.
    Hidden(std::io::Error),
}

impl Daemon {
    fn find(socket: &Path) -> Self {
        match UnixStream::connect(socket) {
            Ok(_) => Self::Runs,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Self::Absent,
            Err(error) => Self::Hidden(error),
        }
    }
}

fn hidden(config: &Config, error: &std::io::Error) -> Check {
    let socket = config.daemon.control_socket.display();
    let what = format!("{socket}: {error}: a daemon seems to run, which you may not ask; VMs' monitors are left to it");
    let group = config.daemon.control_group.as_ref();
    let group = group.map_or("its group".to_owned(), |group| format!("the group `{group}`"));
    Check::warn("control socket", what, format!("`sudo ballast-host doctor`, or have yourself added to {group}"))
}

#[cfg(feature = "libvirt")]
fn libvirt(config: &Config, events: &hypervisor::Events) -> Vec<Check> {
    let Some(libvirt) = &config.libvirt else { return Vec::new() };
    let asked = hypervisor::Libvirt::new(&libvirt.uri, events.clone()).and_then(|l| l.vms().map(|vms| (l, vms)));
    let (connection, vms) = match asked {
        Ok(answer) => answer,
        Err(error) => {
            let mend =
                format!("`systemctl start libvirtd`; then `virsh -c {} list` must work as this user", libvirt.uri);
            return vec![Check::fail("libvirt", error.to_string(), mend)];
        }
    };
    let mut all = vec![Check::ok("libvirt", format!("{} answers, with {} VMs", libvirt.uri, vms.len()))];
    for vm in config.vms.iter().filter(|v| v.qmp.is_none() && vms.iter().all(|f| f.name != v.name)) {
        all.push(Check::warn(
            title(&vm.name, "domain"),
            "libvirt knows no domain of this name",
            "correct the name, or define the domain",
        ));
    }
    for facts in vms {
        if config.vms.iter().any(|v| v.name == facts.name && v.qmp.is_some()) {
            continue;
        }
        all.extend(vm_checks(config, &facts, statistics(&connection, &facts)));
    }
    all
}

#[cfg(not(feature = "libvirt"))]
fn libvirt(config: &Config, _: &hypervisor::Events) -> Vec<Check> {
    let wanted = config.libvirt.is_some();
    let check = || {
        Check::fail(
            "libvirt",
            "this ballast-host was built without libvirt",
            "use one built with the feature `libvirt`",
        )
    };
    wanted.then(check).into_iter().collect()
}

fn statistics(hypervisor: &dyn Hypervisor, facts: &VmFacts) -> Statistics {
    let asks = facts.has_balloon && facts.state != hypervisor::State::Off;
    asks.then(|| hypervisor.statistics(&facts.name))
}

fn title(vm: &VmName, what: &str) -> String {
    format!("VM {vm}: {what}")
}

fn unreachable_vm(vm: &VmName, socket: &Path, error: &hypervisor::Error) -> Check {
    let name = title(vm, "monitor");
    match error {
        hypervisor::Error::Off(_) => Check::warn(
            name,
            format!("nobody listens on {}: the VM is off", socket.display()),
            format!("start it, with `-qmp unix:{},server=on,wait=off`", socket.display()),
        ),
        error => Check::fail(name, error.to_string(), "end the other client, or restart the VM if it hangs"),
    }
}

/// Judges one VM.
fn vm_checks(config: &Config, facts: &VmFacts, statistics: Statistics) -> Vec<Check> {
    let vm = &facts.name;
    let said = facts.metadata.clone().and_then(|all| Overrides::from_elements(&all));
    let merged = said.and_then(|said| config.settings_with(vm, &said));
    let settings = merged.clone().unwrap_or_else(|_| config.settings(vm));
    let mut all = Vec::new();
    if facts.has_balloon {
        let what = format!("keeps {} of {}", facts.actual, facts.max);
        all.push(Check::ok(title(vm, "balloon"), what));
        all.push(deflate_on_oom(facts, settings.allow_without_deflate_on_oom || settings.exempt));
        all.extend(statistics.map(|s| statistics_check(vm, s)));
        all.push(free_page_reporting(facts));
    } else {
        all.push(Check::fail(
            title(vm, "balloon"),
            "it has none: its memory cannot be managed",
            "libvirt: <memballoon model='virtio' autodeflate='on'/>; QEMU: -device virtio-balloon-pci,deflate-on-oom=on",
        ));
    }
    if let Err(problem) = &merged {
        let mend = format!(
            "`virsh metadata {vm} {METADATA} --edit --key ballast`; packaging/domain.xml shows what can be said"
        );
        all.push(Check::warn(title(vm, "metadata"), format!("not used: {problem}"), mend));
    }
    let least = settings.min.max(facts.min_guarantee.unwrap_or(Bytes::ZERO));
    if facts.max != Bytes::ZERO && least > facts.max {
        all.push(Check::fail(
            title(vm, "minimum"),
            format!("it is guaranteed {least} and has {} at most", facts.max),
            // Only where there is one: libvirt refuses it for QEMU.
            match facts.min_guarantee {
                Some(_) => "lower `min` or libvirt's <min_guarantee>, whichever is more, or give the VM more memory",
                None => "lower `min`, or give the VM more memory",
            },
        ));
    }
    all.push(agent(config, vm, facts.cid));
    all
}

fn deflate_on_oom(facts: &VmFacts, accepted: bool) -> Check {
    let name = title(&facts.name, "deflate-on-oom");
    match (facts.deflate_on_oom, accepted) {
        (Some(true), _) => Check::ok(name, "on"),
        (_, true) => Check::ok(name, "not on, which the configuration accepts"),
        (answer, false) => {
            let what = if answer.is_some() { "off" } else { "not known to this hypervisor" };
            Check::fail(
                name,
                format!("{what}: large allocations would be refused at once, so nothing is taken from this VM"),
                "libvirt: autodeflate='on' in <memballoon>; QEMU: deflate-on-oom=on; then restart the VM",
            )
        }
    }
}

fn statistics_check(vm: &VmName, statistics: Result<BalloonStatistics, hypervisor::Error>) -> Check {
    let name = title(vm, "statistics");
    match statistics {
        Ok(s) if s.age.is_some() => {
            Check::ok(name, format!("the guest's driver answers, {} free", s.free.unwrap_or_default()))
        }
        Ok(_) => Check::warn(
            name,
            "the guest's balloon driver has said nothing yet",
            "look again in a few seconds; if it stays so, load virtio_balloon in the guest",
        ),
        Err(error) => Check::warn(name, error.to_string(), "without an agent nothing is known of this guest"),
    }
}

fn free_page_reporting(facts: &VmFacts) -> Check {
    let name = title(&facts.name, "free page reporting");
    if facts.free_page_reporting == Some(true) {
        return Check::ok(name, "on");
    }
    Check::warn(
        name,
        "off: memory that the guest frees comes back only through the balloon",
        "libvirt: freePageReporting='on' in <memballoon>; QEMU 5.1 or newer: free-page-reporting=on; then restart the VM",
    )
}

/// Whether an agent could call. Whether one does, only the daemon knows.
fn agent(config: &Config, vm: &VmName, cid: Option<u32>) -> Check {
    let name = title(vm, "agent");
    let configured = config.vms.iter().find(|v| v.name == *vm).and_then(|v| v.agent.clone());
    match (configured, cid) {
        (Some(Address::Hybrid(path)), _) => hybrid(name, path),
        (Some(Address::Cid(configured)), Some(cid)) if configured != cid => Check::fail(
            name,
            format!("the configuration says cid {configured}, the hypervisor {cid}"),
            "remove `cid` from the configuration: the hypervisor knows it",
        ),
        (Some(Address::Cid(cid)), _) | (None, Some(cid)) if config.daemon.vsock => {
            Check::ok(name, format!("may call from cid {cid}"))
        }
        (Some(Address::Cid(_)), _) | (None, Some(_)) => Check::fail(
            name,
            "it can call by AF_VSOCK only, where the daemon does not listen",
            "set `vsock = true` under [daemon]",
        ),
        (None, None) => Check::warn(
            name,
            "none can call: the balloon's own statistics are all there is, too slow for bursts",
            "give the VM a vsock device (libvirt: <vsock><cid auto='yes'/></vsock>), or name its `vsock` or `cid`",
        ),
    }
}

fn hybrid(name: String, path: PathBuf) -> Check {
    match std::fs::symlink_metadata(&path) {
        Ok(m) if m.file_type().is_socket() => Check::ok(name, format!("may call through {}", path.display())),
        Ok(_) => {
            Check::fail(name, format!("{} is no socket", path.display()), "name the socket of the VM's vsock device")
        }
        Err(e) => Check::warn(
            name,
            format!("{}: {e}", path.display()),
            format!(
                "start the VM's vsock device, for example `vhost-device-vsock --vm guest-cid=3,uds-path={},...`",
                path.display()
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;
    use ballast_protocol::Micros;

    const HYBRID: &str = "[[vm]]\nname = \"a\"\nqmp = \"/nonexistent/q\"\nvsock = \"/nonexistent/v\"\n";

    fn config(text: &str) -> Config {
        Config::parse(Path::new("b.toml"), text).unwrap()
    }

    fn facts() -> VmFacts {
        VmFacts {
            name: "a".into(),
            uuid: None,
            state: hypervisor::State::Running,
            max: Bytes::mib(512),
            actual: Bytes::mib(256),
            has_balloon: true,
            deflate_on_oom: Some(true),
            free_page_reporting: Some(true),
            cid: Some(42),
            min_guarantee: None,
            migrating: false,
            metadata: Ok(Vec::new()),
        }
    }

    fn judge(config: &Config, facts: &VmFacts) -> Vec<(String, State)> {
        let statistics = Ok(BalloonStatistics { age: Some(Micros::secs(1)), ..Default::default() });
        vm_checks(config, facts, Some(statistics)).into_iter().map(|c| (c.name, c.state)).collect()
    }

    fn state_of(config: &Config, facts: &VmFacts, what: &str) -> Option<State> {
        judge(config, facts).into_iter().find(|(n, _)| n.ends_with(what)).map(|(_, s)| s)
    }

    #[test]
    fn a_good_vm_is_good() {
        let all = judge(&config("[libvirt]"), &facts());
        let names: Vec<_> = all.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(
            names,
            ["VM a: balloon", "VM a: deflate-on-oom", "VM a: statistics", "VM a: free page reporting", "VM a: agent"]
        );
        assert!(all.iter().all(|(_, s)| *s == State::Ok), "{all:?}");
    }

    #[test]
    fn each_fault_has_its_line() {
        let libvirt = config("[libvirt]");
        let none = VmFacts { has_balloon: false, deflate_on_oom: None, free_page_reporting: None, ..facts() };
        assert_eq!(state_of(&libvirt, &none, "balloon"), Some(State::Fail));
        assert_eq!(state_of(&libvirt, &none, "deflate-on-oom"), None, "a consequence is no second fault");
        for off in [Some(false), None] {
            let off = VmFacts { deflate_on_oom: off, ..facts() };
            assert_eq!(state_of(&libvirt, &off, "deflate-on-oom"), Some(State::Fail));
            let accepted = config("[libvirt]\n[defaults]\nallow-without-deflate-on-oom = true");
            assert_eq!(state_of(&accepted, &off, "deflate-on-oom"), Some(State::Ok));
            // The domain may say so too.
            let exempt = VmFacts { metadata: Ok(vec![("exempt".to_owned(), "true".to_owned())]), ..off };
            assert_eq!(state_of(&libvirt, &exempt, "deflate-on-oom"), Some(State::Ok));
        }
        let off = VmFacts { free_page_reporting: Some(false), ..facts() };
        assert_eq!(state_of(&libvirt, &off, "reporting"), Some(State::Warn));
        let least = config("[libvirt]\n[defaults]\nmin = \"1GiB\"");
        assert_eq!(state_of(&least, &facts(), "minimum"), Some(State::Fail));
        let guaranteed = VmFacts { min_guarantee: Some(Bytes::mib(1024)), ..facts() };
        assert_eq!(state_of(&libvirt, &guaranteed, "minimum"), Some(State::Fail));
        let said = |min: &str| VmFacts { metadata: Ok(vec![("min".to_owned(), min.to_owned())]), ..facts() };
        assert_eq!(state_of(&libvirt, &said("1GiB"), "minimum"), Some(State::Fail));
        assert_eq!(state_of(&libvirt, &said("1 acre"), "metadata"), Some(State::Warn));
        assert_eq!(state_of(&libvirt, &said("100MiB"), "metadata"), None);
        let silent = vm_checks(&libvirt, &facts(), Some(Ok(BalloonStatistics::default())));
        assert!(silent.iter().any(|c| c.name.ends_with("statistics") && c.state == State::Warn));
    }

    #[test]
    fn agents_need_a_way_in() {
        let mute = VmFacts { cid: None, ..facts() };
        assert_eq!(state_of(&config("[libvirt]"), &mute, "agent"), Some(State::Warn));
        assert_eq!(state_of(&config("[libvirt]\n[daemon]\nvsock = false"), &facts(), "agent"), Some(State::Fail));
        let wrong = config("[libvirt]\n[[vm]]\nname = \"a\"\ncid = 7");
        assert_eq!(state_of(&wrong, &facts(), "agent"), Some(State::Fail));
        assert_eq!(state_of(&wrong, &mute, "agent"), Some(State::Ok));
        assert_eq!(state_of(&config(HYBRID), &mute, "agent"), Some(State::Warn), "its socket is not there");
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = HYBRID.replace("/nonexistent/v", file.path().to_str().unwrap());
        assert_eq!(state_of(&config(&text), &mute, "agent"), Some(State::Fail), "a file is no socket");
    }

    #[test]
    fn a_vm_that_is_off_is_no_failure() {
        let all = checks(&config(HYBRID));
        assert_eq!(all.iter().map(|c| c.state).collect::<Vec<_>>(), [State::Warn, State::Warn], "{all:?}");
        assert!(all[0].what.contains("the VM is off"), "{all:?}");
    }

    #[test]
    fn a_monitor_is_dialled_only_where_no_daemon_can_be() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("control");
        assert!(matches!(Daemon::find(&socket), Daemon::Absent), "nothing is there");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(matches!(Daemon::find(&socket), Daemon::Runs));
        drop(listener);
        assert!(matches!(Daemon::find(&socket), Daemon::Absent), "left behind by one that was killed");
        // Any other answer, here that the path leads through a file.
        assert!(matches!(Daemon::find(&socket.join("control")), Daemon::Hidden(_)));
        let text = format!("[daemon]\ncontrol-socket = \"{}/control\"\n{HYBRID}", socket.display());
        let all = checks(&config(&text));
        assert_eq!(all.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["control socket", "VM a: agent"]);
    }

    #[cfg(feature = "libvirt")]
    #[test]
    fn a_libvirt_that_is_away_is_a_failure_with_a_mend() {
        let all = checks(&config("[libvirt]\nuri = \"qemu:///system?socket=/nonexistent/s\""));
        assert!(all.len() == 1 && all[0].is_failure() && all[0].what.contains("/nonexistent/s"), "{all:?}");
    }
}
