//! How long a hypervisor takes to accept an order, through the daemon's own backends.

// The private libvirtd of the backends' own tests: it fails as a test does, which is caught here.
#[allow(clippy::unwrap_used)]
#[path = "../../../../../host-agent/tests/common/mod.rs"]
mod common;

use super::{Measured, Quantiles};
use anyhow::{Result, anyhow};
use ballast_host::hypervisor::{Hypervisor, Libvirt, Qmp};
use ballast_planner::VmName;
use ballast_protocol::Bytes;
use ballast_tests::Machine;
use common::libvirtd::Libvirtd;
use serde::Serialize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::unbounded_channel;

const SAMPLES: usize = 500;
/// Orders that are not timed: connections are made, buffers grow.
const WARM_UP: usize = 50;
/// Orders are milliseconds apart in the daemon too, and the guest has time to follow.
const PAUSE: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(90);
/// The size of the guest under libvirt: kernel, busybox and the balloon's driver.
const SMALL: Bytes = Bytes::mib(192);
/// Each order differs from the one before by so much: less is none, more would be a measurement of the balloon.
const STEP: Bytes = Bytes::mib(2);

/// One backend; milliseconds from the call to the hypervisor's acceptance.
#[derive(Debug, Serialize)]
pub struct Orders {
    pub backend: &'static str,
    pub order_ms: Measured<Quantiles>,
}

/// A guest whose monitor for the host agent is free.
pub fn qmp(machine: &Machine) -> Orders {
    let (events, _unread) = unbounded_channel();
    let vm = VmName::from(machine.name());
    let backend = Qmp::new(vm.clone(), machine.agent_qmp(), events);
    Orders { backend: "QMP", order_ms: told(time(&backend, &vm, machine.size())) }
}

/// A guest under a libvirtd of its own, which leaves the machine's alone.
pub fn libvirt() -> Orders {
    // A panic prints what it has to say, over the progress bar; it is told in the table instead.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = catch_unwind(AssertUnwindSafe(under_libvirt));
    std::panic::set_hook(hook);
    let result = result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(anyhow!("{}", text.unwrap_or("the private libvirtd does not start")))
    });
    Orders { backend: "libvirt", order_ms: told(result) }
}

fn under_libvirt() -> Result<Quantiles> {
    let libvirtd = Libvirtd::start();
    let image = common::initramfs(libvirtd.directory());
    let kernel = common::setup_file("vmlinuz").canonicalize()?;
    let xml = format!(
        "<domain type='qemu'><name>bench</name><memory unit='MiB'>{}</memory><vcpu>1</vcpu>\
         <os><type machine='pc'>hvm</type><kernel>{}</kernel><initrd>{}</initrd><cmdline>quiet panic=-1</cmdline></os>\
         <features><acpi/></features><devices><emulator>/usr/bin/qemu-system-x86_64</emulator>\
         <memballoon model='virtio' autodeflate='on'/><controller type='usb' model='none'/></devices></domain>",
        SMALL.as_mib(),
        kernel.display(),
        image.display(),
    );
    libvirtd.define("bench", &xml);
    libvirtd.virsh(&["start", "bench"]);
    let (events, _unread) = unbounded_channel();
    let backend = Libvirt::new(&libvirtd.uri(), events)?;
    time(&backend, &VmName::from("bench"), SMALL)
}

fn told(result: Result<Quantiles>) -> Measured<Quantiles> {
    result.map_or_else(|e| Measured::no(format!("{e:#}")), Measured::Yes)
}

fn time(backend: &dyn Hypervisor, vm: &VmName, max: Bytes) -> Result<Quantiles> {
    // Until the connection stands and the guest has its driver: one that follows has both.
    let begun = Instant::now();
    while let Err(e) = backend.order(vm, max - STEP).and_then(|()| followed(backend, vm, max - STEP)) {
        if begun.elapsed() > PATIENCE {
            return Err(e.into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut samples = Vec::with_capacity(SAMPLES);
    for n in 0..WARM_UP + SAMPLES {
        let keep = if n % 2 == 0 { max } else { max - STEP };
        let begun = Instant::now();
        backend.order(vm, keep)?;
        let took = begun.elapsed();
        if n >= WARM_UP {
            samples.push(took.as_secs_f64() * 1e3);
        }
        std::thread::sleep(PAUSE);
    }
    backend.order(vm, max)?;
    Quantiles::of(samples).ok_or_else(|| anyhow!("no order was timed"))
}

fn followed(backend: &dyn Hypervisor, vm: &VmName, keep: Bytes) -> Result<(), ballast_host::hypervisor::Error> {
    match backend.balloon(vm)? {
        actual if actual == keep => Ok(()),
        _ => Err(ballast_host::hypervisor::Error::NoBalloon(vm.clone())),
    }
}
