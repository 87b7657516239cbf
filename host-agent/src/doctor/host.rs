//! The machine, by its files.

use super::Check;
use crate::config::{Address, Config};
use std::fs::File;
use std::io::ErrorKind;
use std::path::PathBuf;

/// A machine: where its files are, and where its programs.
#[derive(Debug)]
pub(super) struct Host {
    pub root: PathBuf,
    pub programs: Vec<PathBuf>,
}

impl Host {
    pub fn checks(&self, config: Option<&Config>) -> Vec<Check> {
        let mut all = vec![self.accelerator(), self.vsock(config), self.cgroups(), self.pressure()];
        all.push(self.same_page_merging(config));
        all.push(self.iperf3());
        all.extend(self.unused_libvirt(config));
        all
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    fn read(&self, relative: &str) -> Option<String> {
        std::fs::read_to_string(self.path(relative)).ok()
    }

    /// Whether it can be opened. Whether a kernel boots under it only a boot can tell (there are machines whose
    /// nested KVM opens and then fails), and asking KVM for its version takes an ioctl, which is unsafe code.
    fn accelerator(&self) -> Check {
        const NAME: &str = "accelerator";
        match File::options().read(true).write(true).open(self.path("dev/kvm")) {
            Ok(_) => Check::ok(NAME, "/dev/kvm can be opened; a boot will tell whether it works"),
            Err(e) if e.kind() == ErrorKind::PermissionDenied => Check::warn(
                NAME,
                "/dev/kvm is there, but not for this user",
                "add the user that runs QEMU to the group kvm: `usermod -aG kvm USER`",
            ),
            Err(_) => Check::warn(
                NAME,
                "there is no /dev/kvm: guests run under TCG, ten times slower or more",
                "switch virtualisation on in the firmware (or nesting, in a VM), then `modprobe kvm_intel` or `kvm_amd`",
            ),
        }
    }

    fn vsock(&self, config: Option<&Config>) -> Check {
        const NAME: &str = "vsock device";
        let device = self.path("dev/vhost-vsock").exists();
        let socket = self.read("proc/net/protocols").is_some_and(|p| p.contains("AF_VSOCK"));
        let hybrid = config.is_some_and(|c| c.vms.iter().any(|v| matches!(v.agent, Some(Address::Hybrid(_)))));
        let wanted = config.is_some_and(|c| c.daemon.vsock);
        let alternative = "or give each VM a hybrid vsock (vhost-device-vsock) and set `vsock = false` under [daemon]";
        if device && (socket || !wanted) {
            return Check::ok(NAME, "/dev/vhost-vsock is there");
        }
        if wanted {
            let missing = if device { "AF_VSOCK sockets are not loaded" } else { "there is no /dev/vhost-vsock" };
            return Check::fail(
                NAME,
                format!("{missing}, and the configuration needs AF_VSOCK"),
                format!("`modprobe vhost_vsock`, {alternative}"),
            );
        }
        if hybrid {
            return Check::ok(NAME, "none is needed: the VMs use hybrid vsock");
        }
        Check::warn(
            NAME,
            "there is no /dev/vhost-vsock: no agent can call",
            format!("`modprobe vhost_vsock`, {alternative}"),
        )
    }

    /// By the mounts alone: the crate that manages cgroups panics where there are none (FACTS.md, section 4).
    fn cgroups(&self) -> Check {
        const NAME: &str = "cgroups";
        const MEND: &str = "boot with systemd.unified_cgroup_hierarchy=1";
        let mounts = self.read("proc/mounts").unwrap_or_default();
        let kinds: Vec<&str> = mounts.lines().filter_map(|l| l.split(' ').nth(2)).collect();
        match (kinds.contains(&"cgroup"), kinds.contains(&"cgroup2")) {
            (false, true) => Check::ok(NAME, "version 2"),
            (true, true) => Check::warn(NAME, "hybrid: memory is controlled by version 1, without pressure", MEND),
            (true, false) => Check::warn(NAME, "version 1: no pressure of single VMs can be read", MEND),
            (false, false) => Check::warn(NAME, "none are mounted: no pressure of single VMs can be read", MEND),
        }
    }

    fn pressure(&self) -> Check {
        const NAME: &str = "host pressure";
        match self.read("proc/pressure/memory") {
            Some(_) => Check::ok(NAME, "/proc/pressure/memory can be read"),
            None => Check::warn(NAME, "this kernel does not tell its own memory pressure", "boot the host with psi=1"),
        }
    }

    fn same_page_merging(&self, config: Option<&Config>) -> Check {
        const NAME: &str = "page merging";
        let running = self.read("sys/kernel/mm/ksm/run").is_some_and(|r| r.trim() == "1");
        let shared = config.map_or(0, |c| c.vms.iter().filter(|v| matches!(v.agent, Some(Address::Hybrid(_)))).count());
        match (running, shared) {
            (false, _) => Check::ok(NAME, "KSM is off"),
            (true, 0) => Check::ok(NAME, "KSM is on"),
            (true, n) => Check::warn(
                NAME,
                format!(
                    "KSM is on, but {n} VMs use hybrid vsock: if through vhost-user, their memory is shared and never merged"
                ),
                "use the kernel's vsock device (vhost_vsock) for VMs that are to be merged",
            ),
        }
    }

    fn iperf3(&self) -> Check {
        const NAME: &str = "iperf3";
        match self.programs.iter().map(|d| d.join(NAME)).find(|p| p.is_file()) {
            Some(program) => Check::ok(NAME, program.display().to_string()),
            None => Check::warn(NAME, "not installed: service levels cannot be measured", "`apt-get install iperf3`"),
        }
    }

    /// Only when it is there and not used; one that is used is asked.
    fn unused_libvirt(&self, config: Option<&Config>) -> Option<Check> {
        let unused = config.is_some_and(|c| c.libvirt.is_none()) && self.path("run/libvirt/libvirt-sock").exists();
        unused.then(|| {
            Check::warn(
                "libvirt",
                "libvirtd is there and its VMs are not managed",
                "add [libvirt] to the configuration",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;
    use std::path::Path;
    use tempfile::TempDir;

    fn machine(files: &[(&str, &str)]) -> (TempDir, Host) {
        let directory = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let file = directory.path().join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }
        let host = Host { root: directory.path().to_owned(), programs: vec![directory.path().join("usr/bin")] };
        (directory, host)
    }

    fn config(text: &str) -> Config {
        Config::parse(Path::new("b.toml"), text).unwrap()
    }

    const HYBRID: &str = "[[vm]]\nname = \"a\"\nqmp = \"/q\"\nvsock = \"/v\"\n";
    const PROTOCOLS: &str = "protocol  size sockets  memory press maxhdr  slab module\nAF_VSOCK  1096      0      -1   NI       0   yes  vsock\n";

    #[test]
    fn a_good_machine_is_good() {
        let (_directory, host) = machine(&[
            ("dev/kvm", ""),
            ("dev/vhost-vsock", ""),
            ("proc/net/protocols", PROTOCOLS),
            ("proc/mounts", "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n"),
            ("proc/pressure/memory", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"),
            ("sys/kernel/mm/ksm/run", "0\n"),
            ("usr/bin/iperf3", ""),
        ]);
        let checks = host.checks(Some(&config("[libvirt]")));
        assert_eq!(checks.len(), 6);
        assert!(checks.iter().all(|c| c.state == State::Ok), "{checks:#?}");
    }

    #[test]
    fn a_bare_machine_gets_a_mend_for_everything() {
        let (_directory, host) = machine(&[]);
        let checks = host.checks(None);
        let states: Vec<_> = checks.iter().map(|c| (c.name.as_str(), c.state)).collect();
        let (ok, warn) = (State::Ok, State::Warn);
        assert_eq!(
            states,
            [
                ("accelerator", warn),
                ("vsock device", warn),
                ("cgroups", warn),
                ("host pressure", warn),
                ("page merging", ok),
                ("iperf3", warn)
            ]
        );
        assert!(checks.iter().all(|c| c.mend.is_some() == (c.state != ok)));
    }

    #[test]
    fn af_vsock_is_a_failure_only_when_it_is_needed() {
        let (_directory, host) = machine(&[]);
        let check = host.vsock(Some(&config("[libvirt]")));
        assert!(check.is_failure() && check.mend.unwrap().contains("modprobe vhost_vsock"));
        assert_eq!(host.vsock(Some(&config(HYBRID))).state, State::Ok);
        let (_directory, host) = machine(&[("dev/vhost-vsock", ""), ("proc/net/protocols", "TCP 1\n")]);
        let check = host.vsock(Some(&config("[libvirt]")));
        assert!(check.is_failure() && check.what.contains("not loaded"), "{check:?}");
    }

    #[test]
    fn the_three_kinds_of_cgroups() {
        let v1 = "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n";
        let v2 = "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        for (mounts, state, word) in [
            (v1.to_owned(), State::Warn, "version 1"),
            (v1.to_owned() + v2, State::Warn, "hybrid"),
            (v2.to_owned(), State::Ok, "version 2"),
            (String::new(), State::Warn, "none"),
        ] {
            let (_directory, host) = machine(&[("proc/mounts", &mounts)]);
            let check = host.cgroups();
            assert!(check.state == state && check.what.contains(word), "{mounts}: {check:?}");
        }
    }

    #[test]
    fn merging_and_shared_memory_exclude_each_other() {
        let (_directory, host) = machine(&[("sys/kernel/mm/ksm/run", "1\n")]);
        assert_eq!(host.same_page_merging(Some(&config("[libvirt]"))).state, State::Ok);
        assert_eq!(host.same_page_merging(Some(&config(HYBRID))).state, State::Warn);
    }

    #[test]
    fn a_libvirt_that_is_there_and_not_used_is_mentioned() {
        let (_directory, host) = machine(&[("run/libvirt/libvirt-sock", "")]);
        assert_eq!(host.unused_libvirt(Some(&config(HYBRID))).map(|c| c.state), Some(State::Warn));
        assert_eq!(host.unused_libvirt(Some(&config("[libvirt]"))), None);
        assert_eq!(host.unused_libvirt(None), None);
    }
}
