//! A migration from one real libvirtd to another, slow enough to look at: both backends see it at once, nothing is ordered
//! meanwhile, and no call waits for it. libvirt itself would let an order wait for half a minute, and with it all orders
//! of all other VMs.
#![cfg(feature = "libvirt")]
// The helpers of a test fail as the test does.
#![allow(clippy::unwrap_used)]

mod common;

use ballast_host::hypervisor::{DEADLINE, Error, Hypervisor, Libvirt, What};
use ballast_planner::VmName;
use ballast_protocol::Bytes;
use common::libvirtd::Libvirtd;
use common::{Dependant, expect_event, initramfs, program, setup_file, wait_for};
use std::net::TcpListener;
use std::process::Command;
use std::time::Instant;
use tokio::sync::mpsc::unbounded_channel;

const SIZE: Bytes = Bytes::mib(192);

#[test]
fn hands_off_while_libvirt_migrates() {
    let (source, target) = (Libvirtd::start(), Libvirtd::start());
    let image = initramfs(source.directory());
    let kernel = setup_file("vmlinuz").canonicalize().unwrap();
    // A CPU model by name: TCG's default cannot be migrated by libvirt.
    source.define(
        "a",
        &format!(
            "<domain type='qemu'><name>a</name><memory unit='MiB'>192</memory><vcpu>1</vcpu>
            <os><type machine='pc'>hvm</type><kernel>{}</kernel><initrd>{}</initrd><cmdline>quiet panic=-1</cmdline></os>
            <features><acpi/></features><cpu mode='custom' match='exact' check='none'><model>qemu64</model></cpu>
            <devices><emulator>/usr/bin/qemu-system-x86_64</emulator><memballoon model='virtio' autodeflate='on'/>
            <controller type='usb' model='none'/></devices></domain>",
            kernel.display(),
            image.display(),
        ),
    );
    let connect = |libvirtd: &Libvirtd| {
        let (sender, events) = unbounded_channel();
        (Libvirt::new(&libvirtd.uri(), sender).unwrap(), events)
    };
    let ((here, mut events), (there, _events)) = (connect(&source), connect(&target));
    let a = VmName::from("a");
    source.virsh(&["start", "a"]);
    expect_event(&mut events, "a", |w| *w == What::Started, "Started");
    // Its driver is there, so that an order could be obeyed.
    wait_for("statistics", || here.statistics(&a).unwrap().free);
    assert!(!here.facts(&a).unwrap().migrating);

    // What a kernel has touched takes half a minute at 1 MiB/s.
    source.virsh(&["migrate-setspeed", "a", "1"]);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut migrate = Command::new(program("virsh"));
    migrate.args(["-q", "-c", &source.uri(), "migrate", "--live", "--unsafe", "a", &target.uri()]);
    migrate.args(["--migrateuri", &format!("tcp://127.0.0.1:{port}")]);
    let _migrate = Dependant::spawn(&mut migrate);
    expect_event(&mut events, "a", |w| *w == What::Migrates, "Migrates");
    let begun = Instant::now();
    assert!(here.facts(&a).unwrap().migrating);
    let error = here.order(&a, SIZE - Bytes::mib(32)).unwrap_err();
    assert!(matches!(&error, Error::Refused { why, .. } if why.contains("migrated")), "{error}");
    // What only looks is answered.
    assert_eq!(here.balloon(&a), Ok(SIZE));
    assert!(here.statistics(&a).unwrap().total.is_some());
    let arriving = there.vms().unwrap();
    assert!(arriving.iter().any(|f| f.name == a && f.migrating), "{arriving:?}");
    assert!(begun.elapsed() < DEADLINE * 2, "{:?}", begun.elapsed());

    // Given up: it is the same VM as before. Of this libvirt tells nothing; the daemon asks every 5 s.
    source.virsh(&["domjobabort", "a"]);
    wait_for("the end of it", || (!here.facts(&a).unwrap().migrating).then_some(()));
    here.order(&a, SIZE - Bytes::mib(32)).unwrap();
    wait_for("the VM to be gone there", || there.vms().unwrap().is_empty().then_some(()));
}
