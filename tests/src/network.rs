//! A private network for machines: nothing of it can be seen from the host's own network, or outlive us.
//!
//! ```text
//!   network namespace without a name, held by a child of ours
//!   ├── bridge 10.77.0.1 ── the "host" of this network: commands and host agents can be started in here
//!   ├── tap2 ── QEMU ── eth0 10.77.0.2
//!   └── tap3 ── QEMU ── eth0 10.77.0.3
//! ```
//! Taps vanish with the QEMU that opened them, and the namespace with the last process in it, all of which die with
//! us, even by SIGKILL: there is nothing to sweep. Where namespaces or taps are not allowed, the machines speak by
//! QEMU's multicast sockets: they reach each other, but the host reaches none of them ([`Link`]).

use crate::children::{Folder, Process, log_tail};
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A namespace and a bridge take some 30 ms.
const PATIENCE: Duration = Duration::from_secs(20);
/// 253 machines at most: 10.77.0.2 to 10.77.0.254.
const SUBNET: [u8; 3] = [10, 77, 0];
const HOST: u8 = 1;
const FIRST: u8 = 2;
const LAST: u8 = 254;

/// Sets the namespace up, says what is possible in it, and holds it.
const HOLD: &str = "ip link set lo up
if ip link add bridge type bridge && ip addr add 10.77.0.1/24 dev bridge && ip link set bridge up &&
    ip tuntap add dev trial mode tap && ip link del trial
then echo link=tap
else echo link=multicast
fi
exec sleep infinity";

/// How machines of a network are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Link {
    /// By taps on a bridge. Machines and host reach each other.
    Tap,
    /// By multicast sockets of their QEMUs. Machines reach each other; the host reaches none of them.
    Multicast,
}

/// A private network. Clones are the same network; it ends with the last of them and of the machines on it.
#[derive(Clone, Debug)]
pub struct Network(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// `None`: namespaces are not allowed here.
    holder: Option<Process>,
    link: Link,
    /// Multicast groups are told apart by their port.
    group: u16,
    taken: Mutex<BTreeSet<u8>>,
    _folder: Folder,
}

/// A machine's place on a network.
#[derive(Debug)]
pub(crate) struct Port {
    network: Network,
    number: u8,
}

impl Network {
    /// A network with whatever link works here.
    ///
    /// # Errors
    /// iproute2 or util-linux is missing.
    pub fn new() -> Result<Self> {
        let folder = Folder::new()?;
        let log = folder.file("network.log");
        let args = ["--net", "--", "sh", "-c", HOLD].map(str::to_owned);
        let mut holder = Process::start(Path::new("unshare"), &args, &log)?;
        let deadline = Instant::now() + PATIENCE;
        let link = loop {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            match said.lines().find_map(|l| l.strip_prefix("link=")) {
                Some("tap") => break Some(Link::Tap),
                Some(_) => break Some(Link::Multicast),
                None if holder.ended().is_some() => break None,
                None if Instant::now() > deadline => bail!("no network after {PATIENCE:?}\n{}", log_tail(&log, 10)),
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        let holder = link.is_some().then_some(holder);
        Ok(Self::of(holder, link.unwrap_or(Link::Multicast), folder))
    }

    /// A network with a certain link.
    ///
    /// # Errors
    /// It does not work here.
    pub fn with(link: Link) -> Result<Self> {
        let network = Self::new()?;
        match (network.link(), link) {
            (found, wanted) if found == wanted => Ok(network),
            (Link::Tap, Link::Multicast) => {
                let inner = Arc::try_unwrap(network.0).expect("nobody else has it yet");
                Ok(Self::of(inner.holder, link, inner._folder))
            }
            (found, wanted) => bail!("{wanted:?} does not work here, only {found:?}"),
        }
    }

    fn of(holder: Option<Process>, link: Link, folder: Folder) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // By process and by count where networks share the host's own loopback; from the dynamic ports (RFC 6335).
        let group = std::process::id().wrapping_mul(31).wrapping_add(COUNT.fetch_add(1, Ordering::Relaxed));
        let group = 49152 + (group % 16384) as u16;
        Self(Arc::new(Inner { holder, link, group, taken: Mutex::default(), _folder: folder }))
    }

    /// How its machines are connected.
    #[must_use]
    pub fn link(&self) -> Link {
        self.0.link
    }

    /// The host's address on it, where the link has one.
    #[must_use]
    pub fn host(&self) -> Option<Ipv4Addr> {
        (self.0.link == Link::Tap).then(|| address(HOST))
    }

    /// What enters the network before a program runs.
    fn entrance(&self) -> Vec<String> {
        let Some(holder) = &self.0.holder else { return Vec::new() };
        vec!["nsenter".into(), format!("--net=/proc/{}/ns/net", holder.pid()), "--".into()]
    }

    /// A command that runs inside, and is killed when the thread that started it ends.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).args(self.entrance()).arg(program);
        command
    }

    /// A long-lived process inside, which dies with us; its output and errors go to the file `log`.
    ///
    /// # Errors
    /// As [`Process::start`].
    pub fn start(&self, program: &Path, args: &[String], log: &Path) -> Result<Process> {
        let words: Vec<String> = self.entrance();
        let Some((first, rest)) = words.split_first() else { return Process::start(program, args, log) };
        let rest = [rest, &[program.display().to_string()], args].concat();
        Process::start(&PathBuf::from(first), &rest, log)
    }

    /// Runs the real iperf3 here, as a client of a machine, with `-J`; returns what it says.
    ///
    /// # Errors
    /// It fails; in its own words.
    pub fn iperf3(&self, args: &[&str]) -> Result<serde_json::Value> {
        let output = self.command("iperf3").arg("-J").args(args).output().context("iperf3")?;
        iperf3_answer(&output.stdout).with_context(|| format!("iperf3 {}", args.join(" ")))
    }

    pub(crate) fn port(&self) -> Result<Port> {
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let free = (FIRST..=LAST).find(|n| !taken.contains(n));
        let number = free.with_context(|| format!("a network has room for {} machines", LAST - FIRST + 1))?;
        taken.insert(number);
        Ok(Port { network: self.clone(), number })
    }
}

/// iperf3 says what went wrong inside its JSON.
pub(crate) fn iperf3_answer(said: &[u8]) -> Result<serde_json::Value> {
    let text = || String::from_utf8_lossy(said);
    let answer: serde_json::Value = serde_json::from_slice(said).with_context(|| format!("no JSON: {}", text()))?;
    match answer["error"].as_str() {
        Some(error) => bail!("{error}"),
        None => Ok(answer),
    }
}

fn address(number: u8) -> Ipv4Addr {
    let [a, b, c] = SUBNET;
    Ipv4Addr::new(a, b, c, number)
}

impl Port {
    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    pub(crate) fn address(&self) -> Ipv4Addr {
        address(self.number)
    }

    pub(crate) fn interface(&self) -> Option<String> {
        (self.network.link() == Link::Tap).then(|| format!("tap{}", self.number))
    }

    /// For QEMU.
    pub(crate) fn arguments(&self) -> [String; 4] {
        let backend = match self.interface() {
            // A tap that QEMU makes itself goes with it.
            Some(tap) => format!("tap,id=net0,ifname={tap},script=no,downscript=no"),
            None => format!("socket,id=net0,mcast=230.77.0.1:{},localaddr=127.0.0.1", self.network.0.group),
        };
        // Without its boot ROM, which is a package of its own.
        ["-netdev".into(), backend, "-device".into(), "virtio-net-pci,netdev=net0,romfile=".into()]
    }

    /// Once QEMU has made its tap.
    pub(crate) fn connect(&self) -> Result<()> {
        let Some(tap) = self.interface() else { return Ok(()) };
        let output = self.network.command("ip").args(["link", "set", &tap, "master", "bridge", "up"]).output()?;
        match output.status.success() {
            true => Ok(()),
            false => bail!("ip link set {tap} master bridge: {}", String::from_utf8_lossy(&output.stderr)),
        }
    }

    /// What the guest runs to be on the network. A clone's device has the hardware address of the machine it was
    /// cloned from, so that each must choose its own.
    pub(crate) fn guest_command(&self) -> String {
        // 52:54:00 is what QEMU gives its own devices.
        format!(
            "ip link set eth0 down; ip addr flush dev eth0; ip link set eth0 address 52:54:00:77:00:{:02x} && \
             ip addr add {}/24 dev eth0 && ip link set eth0 up",
            self.number,
            self.address()
        )
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.network.0.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}
