//! A real guest under QEMU: booted, or cloned from one that was.
//!
//! ```text
//!   boot  ── stop ── memory (memfd) + device state (memfd) = Base, once per configuration and process
//!                                  │
//!   clone ── copy of the memory ── -incoming defer ── cont ── vsock plugged, with a fresh CID
//! ```
//! A clone runs some tenths of a second after it was asked for; a boot takes seconds under emulation.

use crate::accel::Accel;
use crate::children::{Folder, Process, log_tail};
use crate::guest::Guest;
use crate::memory::Memory;
use crate::network::{Link, Network, Port};
use crate::paths;
use crate::qmp::Qmp;
use crate::vsock::Vsock;
use anyhow::{Context, Result, bail};
use ballast_protocol::Bytes;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A boot takes 2 to 3 s under emulation on a quiet machine; others may use both cores.
const BOOT_PATIENCE: Duration = Duration::from_secs(60);
/// For everything that takes QEMU or the guest less than a second.
const PATIENCE: Duration = Duration::from_secs(20);
/// An emulated guest measures its time-stamp counter against a timer while it boots. On a busy host that fails now and
/// then (seen: a clock three times too fast, in every clone of that boot), and then it must boot again.
const BOOTS: u32 = 6;
/// What its clock may differ from the host's: what 300 ms between two answers over the serial line can resolve.
const CLOCK_ERROR: f64 = 0.05;
/// The page cache experiments read 250 MiB of it.
const NOISE: Bytes = Bytes::mib(300);
/// The folder in which a process makes that disk; its number follows.
pub(crate) const DISK_PREFIX: &str = "disk.";
/// A file of 300 MiB in the guest of a machine with a disk.
pub const NOISE_FILE: &str = "/disk/noise";

/// The balloon device of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Balloon {
    /// The guest takes pages back when it would otherwise kill.
    pub deflate_on_oom: bool,
    /// The guest tells the host of pages it has freed.
    pub free_page_reporting: bool,
}

impl Default for Balloon {
    /// As Ballast asks operators to have it.
    fn default() -> Self {
        Self { deflate_on_oom: true, free_page_reporting: false }
    }
}

/// What a machine is to be. Machines with equal answers to these questions are clones of one boot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Shape {
    memory: Bytes,
    vcpus: u32,
    balloon: Option<Balloon>,
    disk: bool,
    host_agent: bool,
    /// With a network device, and iperf3 in its image.
    link: Option<Link>,
    workload: bool,
    /// `None`: whatever works here.
    accel: Option<Accel>,
}

/// Builds a [`Machine`].
#[derive(Clone, Debug)]
pub struct MachineBuilder {
    name: String,
    shape: Shape,
    vsock: bool,
    network: Option<Network>,
}

/// A running guest. Dropping it ends it and leaves nothing behind.
#[derive(Debug)]
pub struct Machine {
    name: String,
    /// The guest's `ballast-testd`.
    pub guest: Guest,
    /// The harness's own monitor.
    pub qmp: Qmp,
    /// The vsock device, unless it was built without.
    pub vsock: Option<Vsock>,
    /// QEMU.
    pub qemu: Process,
    memory: Memory,
    shape: Shape,
    port: Option<Port>,
    folder: Folder,
}

/// A machine that was booted, stopped and kept, for cloning.
struct Base {
    memory: Memory,
    state: Memory,
}

impl MachineBuilder {
    /// So much memory; 512 MiB unless said.
    #[must_use]
    pub fn memory(mut self, size: Bytes) -> Self {
        self.shape.memory = size;
        self
    }

    /// So many CPUs; 1 unless said.
    #[must_use]
    pub fn vcpus(mut self, count: u32) -> Self {
        self.shape.vcpus = count;
        self
    }

    /// The balloon; one with `deflate_on_oom` unless said. `None`: no device.
    #[must_use]
    pub fn balloon(mut self, balloon: Option<Balloon>) -> Self {
        self.shape.balloon = balloon;
        self
    }

    /// With a disk, read-only, on which [`NOISE_FILE`] is.
    #[must_use]
    pub fn disk(mut self) -> Self {
        self.shape.disk = true;
        self
    }

    /// With the two disks of the workload image; [`Guest::mount_workload`] makes them usable, once it runs.
    #[must_use]
    pub fn workload(mut self) -> Self {
        self.shape.workload = true;
        self
    }

    /// With `/bin/ballast-host` in its image, built without libvirt.
    #[must_use]
    pub fn host_agent(mut self) -> Self {
        self.shape.host_agent = true;
        self
    }

    /// On this network, and with iperf3 in its image.
    #[must_use]
    pub fn network(mut self, network: &Network) -> Self {
        self.shape.link = Some(network.link());
        self.network = Some(network.clone());
        self
    }

    /// Without a vsock device.
    #[must_use]
    pub fn without_vsock(mut self) -> Self {
        self.vsock = false;
        self
    }

    /// With a certain accelerator; [`Accel::here`] unless said.
    #[must_use]
    pub fn accel(mut self, accel: Accel) -> Self {
        self.shape.accel = Some(accel);
        self
    }

    /// Boots it.
    ///
    /// # Errors
    /// Something that `make setup` or `make image` makes is missing, or the guest does not boot; with its console.
    pub fn boot(self) -> Result<Machine> {
        self.boot_within(BOOT_PATIENCE)
    }

    pub(crate) fn boot_within(self, patience: Duration) -> Result<Machine> {
        for _ in 0..BOOTS {
            let mut machine = Machine::launch(&self, Memory::new(&self.name, self.shape.memory)?, &[])?;
            machine.guest.wait_boot(patience)?;
            let rate = machine.guest.clock_rate()?;
            if (rate - 1.0).abs() > CLOCK_ERROR {
                continue;
            }
            machine.join_network()?;
            if self.vsock {
                machine.plug_vsock()?;
            }
            return Ok(machine);
        }
        bail!(
            "machine {}: its clock is wrong after {BOOTS} boots; this host is too busy for its kernel to calibrate it",
            self.name
        )
    }

    /// Clones it from a machine of the same shape, which is booted when it is the first of its shape.
    ///
    /// # Errors
    /// As [`MachineBuilder::boot`].
    pub fn start(self) -> Result<Machine> {
        let base = base(&self.shape)?;
        let memory = base.memory.duplicate(&self.name)?;
        let mut machine = Machine::launch(&self, memory, &["-incoming", "defer"])?;
        machine.resume(&base.state).with_context(|| format!("cannot clone machine {}", self.name))?;
        machine.join_network()?;
        if self.vsock {
            machine.plug_vsock()?;
        }
        Ok(machine)
    }
}

/// The base of a shape; others that want the same wait while the first boots it.
fn base(shape: &Shape) -> Result<Arc<Base>> {
    static BASES: Slots<Shape, Base> = Mutex::new(BTreeMap::new());
    get_or_try(&BASES, shape, || Base::make(shape))
}

type Slots<K, V> = Mutex<BTreeMap<K, Arc<Mutex<Option<Arc<V>>>>>>;

/// What was made for a key before, otherwise what is made now. A failure is not kept: on a busy machine the next boot may
/// be in time.
fn get_or_try<K: Ord + Clone, V>(slots: &Slots<K, V>, key: &K, make: impl FnOnce() -> Result<V>) -> Result<Arc<V>> {
    let slot = Arc::clone(slots.lock().expect("no holder panics").entry(key.clone()).or_default());
    // Whoever panicked while making it has left it empty.
    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(made) = &*slot {
        return Ok(Arc::clone(made));
    }
    let made = Arc::new(make()?);
    Ok(Arc::clone(slot.insert(made)))
}

impl Base {
    fn make(shape: &Shape) -> Result<Self> {
        // Of its own: what a device may offer depends on what is behind it, and must not change with the clone.
        let network = shape.link.map(Network::with).transpose()?;
        let builder = MachineBuilder { name: "base".into(), shape: shape.clone(), vsock: false, network };
        let mut machine = builder.boot()?;
        // What the boot has left over would otherwise run in every clone.
        machine.guest.sh_ok("sync; echo 3 >/proc/sys/vm/drop_caches; sleep 0.2")?;
        let state = Memory::new("state", Bytes::ZERO)?;
        machine.qmp.run("stop", json!({}))?;
        machine.share_ignored()?;
        machine.qmp.run("migrate", json!({ "uri": format!("exec:cat >{}", state.path()) }))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let info = machine.qmp.run("query-migrate", json!({}))?;
            match info["status"].as_str() {
                Some("completed") => break,
                Some("failed") => bail!("cannot keep the base: {info}"),
                _ if Instant::now() > deadline => bail!("the base is not kept after {PATIENCE:?}: {info}"),
                _ => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        let Machine { memory, mut qmp, mut qemu, .. } = machine;
        let _ = qmp.run("quit", json!({}));
        // Only now has QEMU written its last byte.
        qemu.wait(PATIENCE)?;
        Ok(Self { memory, state })
    }
}

impl Machine {
    /// A machine of 512 MiB and one CPU with a balloon and vsock, unless told otherwise.
    #[must_use]
    pub fn builder(name: &str) -> MachineBuilder {
        let shape = Shape {
            memory: Bytes::mib(512),
            vcpus: 1,
            balloon: Some(Balloon::default()),
            disk: false,
            host_agent: false,
            link: None,
            workload: false,
            accel: None,
        };
        MachineBuilder { name: name.to_owned(), shape, vsock: true, network: None }
    }

    fn launch(builder: &MachineBuilder, memory: Memory, extra: &[&str]) -> Result<Self> {
        let MachineBuilder { name, shape, network, .. } = builder;
        let accel = shape.accel.map_or_else(Accel::here, Ok)?;
        let kernel = paths::required(paths::guest("vmlinuz"), "make setup")?;
        let (image, made_by) = match (shape.host_agent, shape.link) {
            (true, Some(_)) => bail!("machine {name}: no image has both the host agent and iperf3"),
            (true, None) => ("initramfs-host.cpio", "make image-host"),
            (false, Some(_)) => ("initramfs-net.cpio", "make image"),
            (false, None) => ("initramfs.cpio", "make image"),
        };
        let image = paths::required(paths::guest(image), made_by)?;
        let folder = Folder::new()?;
        let disk = shape.disk.then(disk).transpose()?;
        let mut args = arguments(shape, accel, &memory, &folder, disk.as_deref());
        if shape.workload {
            args.extend(crate::workload::disks()?);
        }
        args.extend(["-kernel".into(), kernel.display().to_string(), "-initrd".into(), image.display().to_string()]);
        args.extend(extra.iter().map(|&a| a.to_owned()));
        let log = folder.file("qemu.log");
        let program = Path::new("qemu-system-x86_64");
        let port = network.as_ref().map(Network::port).transpose()?;
        let mut qemu = match &port {
            None => Process::start(program, &args, &log)?,
            Some(port) => port.network().start(program, &[&args[..], &port.arguments()].concat(), &log)?,
        };
        let told = || format!("machine {name}: QEMU does not start\n{}", log_tail(&log, 10));
        let deadline = Instant::now() + PATIENCE;
        let qmp = loop {
            match Qmp::connect(&folder.file("qmp")) {
                Ok(qmp) => break qmp,
                Err(e) if qemu.ended().is_some() || Instant::now() > deadline => return Err(e).with_context(told),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        if let Some(port) = &port {
            port.connect().with_context(told)?;
        }
        let guest = Guest::attach(name, &folder.file("testd"), &folder.file("console")).with_context(told)?;
        Ok(Self { name: name.clone(), guest, qmp, vsock: None, qemu, memory, shape: shape.clone(), port, folder })
    }

    /// Guest memory is ours to copy: the migration stream holds only the devices.
    fn share_ignored(&mut self) -> Result<()> {
        let capabilities = json!([{ "capability": "x-ignore-shared", "state": true }]);
        self.qmp.run("migrate-set-capabilities", json!({ "capabilities": capabilities })).map(drop)
    }

    fn resume(&mut self, state: &Memory) -> Result<()> {
        self.share_ignored()?;
        self.qmp.run("migrate-incoming", json!({ "uri": format!("exec:cat {}", state.path()) }))?;
        // `cont` before the state is loaded corrupts the guest now and then.
        self.qmp.wait_status("paused", PATIENCE)?;
        self.qmp.run("cont", json!({}))?;
        self.guest.ping()
    }

    /// Plugs a vsock device and waits until the guest's driver has it.
    ///
    /// # Errors
    /// It has one already, the daemon does not start, or the guest does not see it.
    pub fn plug_vsock(&mut self) -> Result<()> {
        if self.vsock.is_some() {
            bail!("machine {} has a vsock device", self.name);
        }
        let device = self.vsock.insert(Vsock::new(&self.folder)?);
        device.plug(&mut self.qmp, &self.folder).with_context(|| format!("machine {}", self.name))?;
        // The slot's attention delay makes the guest wait before it looks, then the driver probes.
        let seen = "n=0; until ls /sys/bus/virtio/drivers/vmw_vsock_virtio_transport/virtio* >/dev/null 2>&1; do \
                    n=$((n+1)); [ $n -lt 1000 ] || exit 1; usleep 10000; done";
        self.guest.sh_ok(seen).context("the guest does not see its vsock device").map(drop)
    }

    fn join_network(&self) -> Result<()> {
        let Some(port) = &self.port else { return Ok(()) };
        self.guest.sh_ok(&port.guest_command()).context("the guest does not join its network").map(drop)
    }

    /// Its address on its network.
    ///
    /// # Errors
    /// It was built without a network.
    pub fn address(&self) -> Result<Ipv4Addr> {
        self.port.as_ref().map(Port::address).with_context(|| format!("machine {} has no network", self.name))
    }

    /// The tap behind its network device, where there is one.
    #[must_use]
    pub fn interface(&self) -> Option<String> {
        self.port.as_ref().and_then(Port::interface)
    }

    /// The name it was built with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Guest memory that the host really holds, without QEMU's own.
    ///
    /// # Errors
    /// Never in practice: the memory is this process's own file.
    pub fn resident(&self) -> Result<Bytes> {
        self.memory.resident()
    }

    /// Its memory as configured.
    #[must_use]
    pub fn size(&self) -> Bytes {
        self.shape.memory
    }

    /// The second monitor's socket: the host agent's.
    #[must_use]
    pub fn agent_qmp(&self) -> PathBuf {
        self.folder.file("agent.qmp")
    }

    /// The folder of its sockets and logs, removed with it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Resets it, as a reboot would, and waits until it has booted.
    ///
    /// # Errors
    /// It does not boot.
    pub fn reboot(&mut self) -> Result<()> {
        self.qmp.run("set-action", json!({ "reboot": "reset" }))?;
        self.qmp.run("system_reset", json!({}))?;
        self.guest.wait_boot(BOOT_PATIENCE)?;
        self.join_network()?;
        self.qmp.run("set-action", json!({ "reboot": "shutdown" })).map(drop)
    }

    /// Waits until the balloon's own count says `keep`, within `tolerance`.
    ///
    /// # Errors
    /// It does not in time.
    pub fn wait_balloon(&mut self, keep: Bytes, tolerance: Bytes, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let actual = self.qmp.balloon()?;
            if actual.0.abs_diff(keep.0) <= tolerance.0 {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!(
                    "machine {}: the guest has {actual} and not {keep} after {patience:?}\n{}",
                    self.name,
                    self.guest.log()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn arguments(shape: &Shape, accel: Accel, memory: &Memory, folder: &Folder, disk: Option<&Path>) -> Vec<String> {
    let socket = |name: &str| format!("{},server=on,wait=off", folder.file(name).display());
    let size = shape.memory.as_mib();
    // Everything that would wait for something a virtual machine lacks, or check what emulation cannot do, is off.
    let kernel = "console=ttyS0 quiet panic=-1 psi=1 mitigations=off random.trust_cpu=on no_timer_check \
                  tsc=reliable nowatchdog cgroup_no_v1=all";
    let mut args: Vec<String> = [
        "-nodefaults -no-user-config -display none -no-reboot".to_owned(),
        format!("-machine q35 -smp {} {}", shape.vcpus, accel.arguments()),
        format!("-m {size}M -machine memory-backend=ram"),
        format!("-object memory-backend-file,id=ram,size={size}M,mem-path={},share=on", memory.path()),
        format!("-qmp unix:{} -qmp unix:{}", socket("qmp"), socket("agent.qmp")),
        format!("-chardev file,id=console,path={} -serial chardev:console", folder.file("console").display()),
        format!("-chardev socket,id=testd,path={} -serial chardev:testd", socket("testd")),
        "-device pcie-root-port,id=port0,chassis=1".to_owned(),
    ]
    .iter()
    .flat_map(|words| words.split(' ').map(str::to_owned).collect::<Vec<_>>())
    .collect();
    args.extend(["-append".to_owned(), kernel.to_owned()]);
    if let Some(balloon) = shape.balloon {
        let on = |b: bool| if b { "on" } else { "off" };
        let (oom, reporting) = (on(balloon.deflate_on_oom), on(balloon.free_page_reporting));
        let device = format!("virtio-balloon-pci,id=balloon0,deflate-on-oom={oom},free-page-reporting={reporting}");
        args.extend(["-device".to_owned(), device]);
    }
    if let Some(disk) = disk {
        let drive = format!("file={},if=none,id=disk,format=raw,readonly=on", disk.display());
        args.extend(["-drive".into(), drive, "-device".into(), "virtio-blk-pci,drive=disk".into()]);
    }
    args
}

/// The disk that all machines share, made when it is first wanted.
fn disk() -> Result<PathBuf> {
    static MADE: Mutex<()> = Mutex::new(());
    let _one = MADE.lock().expect("no holder panics");
    let path = paths::guest("disk.ext4");
    if path.exists() {
        return Ok(path);
    }
    // Under a name of its own until it is whole: another process may be making it too.
    let folder = paths::guest(&format!("{DISK_PREFIX}{}", std::process::id()));
    let (tree, fresh) = (folder.join("tree"), folder.join("disk"));
    std::fs::create_dir_all(&tree).with_context(|| folder.display().to_string())?;
    // Noise, so that no layer between here and the guest can make it smaller.
    let mut noise = std::io::Read::take(std::fs::File::open("/dev/urandom")?, NOISE.0);
    std::io::copy(&mut noise, &mut std::fs::File::create(tree.join("noise"))?)?;
    // /sbin is not in everybody's path. Room for what ext4 itself needs.
    let mut command = std::process::Command::new("/sbin/mke2fs");
    command.args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"]).arg(&tree).arg(&fresh);
    let output = command.arg(format!("{}M", NOISE.as_mib() + 32)).output().context("/sbin/mke2fs (e2fsprogs)")?;
    if !output.status.success() {
        bail!("mke2fs: {}", String::from_utf8_lossy(&output.stderr));
    }
    std::fs::rename(&fresh, &path)?;
    std::fs::remove_dir_all(&folder)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_once_is_tried_again_and_what_was_made_is_kept() {
        let slots: Slots<u32, &str> = Mutex::new(BTreeMap::new());
        let failed = get_or_try(&slots, &1, || bail!("did not boot in 60s")).unwrap_err();
        assert_eq!(failed.to_string(), "did not boot in 60s");
        assert_eq!(*get_or_try(&slots, &1, || Ok("first")).unwrap(), "first");
        assert_eq!(*get_or_try(&slots, &1, || Ok("second")).unwrap(), "first");
        assert_eq!(*get_or_try(&slots, &2, || Ok("of another shape")).unwrap(), "of another shape");
    }
}
