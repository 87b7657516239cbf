//! A libvirtd of the test's own, in namespaces of its own: its state is not the machine's, `/dev/kvm` is hidden from it
//! (an unusable one makes it probe for a minute at every look-up: FACTS.md, section 0), and everything it started dies
//! with the first process of its PID namespace, even if the test is killed.
//!
//! Without root it runs in a user namespace, as a user's own libvirtd ("session").

use super::{Dependant, output, program, run, wait_for};
use rustix::process::{Pid, Signal};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use tempfile::TempDir;

static HOSTS: AtomicU64 = AtomicU64::new(0xff);

/// Mounts; $1 is a directory with the configuration. The last line is process 1 of the namespace.
const NAMESPACE: &str = r#"
set -e
hostname ballast-test
mkdir "$1/dev"
mount -t tmpfs dev "$1/dev"
for d in null zero full random urandom tty vhost-vsock; do
    [ -e "/dev/$d" ] || continue
    : >"$1/dev/$d"; mount --bind "/dev/$d" "$1/dev/$d"
done
mkdir "$1/dev/pts" "$1/dev/shm" "$1/dev/net"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$1/dev/pts"
ln -s pts/ptmx "$1/dev/ptmx"
mount --rbind "$1/dev" /dev
for d in /run /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /etc/libvirt; do mount -t tmpfs t "$d"; done
cp "$1/qemu.conf" /etc/libvirt/
mkdir -p "$1/xdg/libvirt"
cp "$1/qemu.conf" "$1/xdg/libvirt/"
: >"$1/ready"
while :; do sleep 1000; done
"#;

#[derive(Debug)]
pub struct Libvirtd {
    directory: TempDir,
    /// The namespaces.
    _unshare: Dependant,
    /// Their process 1, as seen from here.
    init: Pid,
    /// `nsenter`, and under it libvirtd.
    daemon: Option<Dependant>,
}

impl Libvirtd {
    pub fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("bl").tempdir_in("/tmp").unwrap();
        let path = directory.path();
        let libvirtd_conf = format!(
            "unix_sock_dir = \"{}\"\nauth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\nunix_sock_rw_perms = \"0700\"\n\
             host_uuid = \"7b2c0000-0000-4000-8000-{:012x}\"\nlog_outputs = \"3:file:{}\"\n",
            path.display(),
            // Two of them are two hosts.
            HOSTS.fetch_add(1, Ordering::Relaxed),
            path.join("libvirtd.log").display()
        );
        std::fs::write(path.join("libvirtd.conf"), libvirtd_conf).unwrap();
        // A session runs its VMs as its own user and can do no other.
        let user = if is_root() { "user = \"root\"\ngroup = \"root\"\n" } else { "" };
        let qemu_conf = format!(
            "stdio_handler = \"file\"\n{user}namespaces = []\nsecurity_driver = \"none\"\ncgroup_controllers = []\n\
             remember_owner = 0\n"
        );
        std::fs::write(path.join("qemu.conf"), qemu_conf).unwrap();

        let mut unshare = Command::new(program("unshare"));
        unshare.args(["--mount", "--uts", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]);
        if !is_root() {
            unshare.args(["--user", "--map-current-user", "--keep-caps"]);
        }
        unshare.args(["--", "sh", "-c", NAMESPACE, "sh"]).arg(path);
        let unshare = Dependant::spawn(&mut unshare);
        wait_for("the namespaces (does this machine allow them? as root they always work)", || {
            path.join("ready").exists().then_some(())
        });
        let init = only_child(unshare.pid());
        let mut this = Self { directory, _unshare: unshare, init, daemon: None };
        this.start_again();
        this
    }

    pub fn start_again(&mut self) {
        assert!(self.daemon.is_none(), "it runs");
        let mut enter = self.enter();
        enter.arg(program("libvirtd")).arg("-f").arg(self.directory.path().join("libvirtd.conf"));
        for variable in ["XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME"] {
            enter.env(variable, self.directory.path().join("xdg"));
        }
        self.daemon = Some(Dependant::spawn(&mut enter));
        let socket = self.socket();
        wait_for("libvirtd's socket", || UnixStream::connect(&socket).ok());
    }

    /// As a crash would.
    pub fn kill(&mut self) {
        let mut daemon = self.daemon.take().expect("it runs");
        self.signal_to(&daemon, Signal::KILL);
        daemon.kill();
    }

    pub fn signal(&self, signal: Signal) {
        self.signal_to(self.daemon.as_ref().expect("it runs"), signal);
    }

    fn signal_to(&self, daemon: &Dependant, signal: Signal) {
        rustix::process::kill_process(only_child(daemon.pid()), signal).unwrap();
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("libvirt-sock")
    }

    pub fn uri(&self) -> String {
        let whose = if is_root() { "system" } else { "session" };
        format!("qemu:///{whose}?socket={}", self.socket().display())
    }

    /// `virsh`, with what it printed.
    pub fn virsh(&self, arguments: &[&str]) -> String {
        let mut virsh = Command::new(program("virsh"));
        String::from_utf8(output(virsh.arg("-q").arg("-c").arg(self.uri()).args(arguments))).unwrap()
    }

    /// The VM's QEMU, as numbered inside. Asked of the processes themselves, not of libvirtd.
    pub fn qemu(&self, vm: &str) -> Option<u32> {
        // The brackets keep the script from finding itself.
        let script = format!("grep -l '[g]uest={vm},' /proc/[0-9]*/cmdline 2>/dev/null | cut -d/ -f3");
        String::from_utf8(output(self.enter().args(["sh", "-c", &script]))).unwrap().trim().parse().ok()
    }

    /// As the host's OOM killer would.
    pub fn kill_qemu(&self, vm: &str) {
        self.signal_qemu(vm, "KILL");
    }

    pub fn signal_qemu(&self, vm: &str, signal: &str) {
        let pid = self.qemu(vm).expect("it runs");
        run(self.enter().args(["kill", "-s", signal, &pid.to_string()]));
    }

    pub fn define(&self, name: &str, xml: &str) {
        let file = self.directory.path().join(format!("{name}.xml"));
        std::fs::write(&file, xml).unwrap();
        let mut virsh = Command::new(program("virsh"));
        run(virsh.arg("-q").arg("-c").arg(self.uri()).arg("define").arg(file));
    }

    fn enter(&self) -> Command {
        let mut enter = Command::new(program("nsenter"));
        enter.args(["-t", &self.init.as_raw_nonzero().to_string(), "--mount", "--uts", "--pid"]);
        if !is_root() {
            enter.args(["--user", "--preserve-credentials"]);
        }
        enter.arg("--");
        enter
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.directory.path().join("libvirtd.log"));
            eprintln!("libvirtd's log: {}", log.unwrap_or_default());
        }
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn only_child(parent: Pid) -> Pid {
    let parent = parent.as_raw_nonzero();
    wait_for("a child process", || {
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
        Pid::from_raw(children.split_whitespace().next()?.parse().ok()?)
    })
}
