//! The workload image in a guest: a Debian userland on a disk that is never written, and a disk of data whose writes
//! vanish with the machine.
//!
//! ```text
//!   /w       the Debian tree, read-only; commands run in it by chroot
//!   /w/data  the writable disk, also at /data: PostgreSQL's, sources, web pages, NOISE, scratch, a swap file
//! ```
//! Guests go on booting from the small initramfs, so they can be cloned. They mount the disks only afterwards: two
//! clones of a mounted file system would share its cache, but not its disk.

use crate::wire::{Command, Executed};
use crate::{Guest, paths};
use anyhow::{Context, Result, bail};
use ballast_protocol::Bytes;
use std::time::Duration;

/// What makes the disks.
const MADE_BY: &str = "make workload";
/// A file of 300 MiB that nothing can compress, on the writable disk of the workload image.
pub const DATA_FILE: &str = "/data/noise";

/// Serial numbers by which the guest knows the disks, whatever else is plugged.
const ROOT: &str = "w-root";
const DATA: &str = "w-data";

const MOUNT: &str = r#"
[ ! -e /w/usr/bin ] || exit 0
for disk in /sys/block/vd*; do
    case $(cat "$disk/serial") in
    w-root) root=/dev/${disk##*/} ;;
    w-data) data=/dev/${disk##*/} ;;
    esac
done
[ -n "$root" ] && [ -n "$data" ] || { echo "it has no workload disks"; exit 2; }
mount -t ext4 -o ro,noload,noatime "$root" /w &&
mount -t ext4 -o noatime "$data" /data &&
mount -o bind /data /w/data &&
mount -t proc proc /w/proc &&
mount -t sysfs sys /w/sys &&
mount -t devtmpfs dev /w/dev &&
mkdir -p /dev/shm &&
mount -t tmpfs -o size=50%,mode=1777 shm /w/dev/shm &&
mount -t tmpfs -o size=32m,mode=755 run /w/run &&
mount -t tmpfs -o size=32m,mode=1777 tmp /w/tmp
"#;

/// What QEMU is told of the disks.
pub(crate) fn disks() -> Result<Vec<String>> {
    let mut args = Vec::new();
    // What a machine writes goes to a file without a name, in TMPDIR or /var/tmp, and away with its QEMU.
    for (serial, file, mode) in [(ROOT, "workload.ext4", "readonly=on"), (DATA, "workload-data.ext4", "snapshot=on")] {
        let file = paths::required(paths::guest(file), MADE_BY)?;
        let drive = format!("file={},if=none,id={serial},format=raw,{mode}", file.display());
        let device = format!("virtio-blk-pci,drive={serial},serial={serial}");
        args.extend(["-drive".to_owned(), drive, "-device".to_owned(), device]);
    }
    Ok(args)
}

impl Guest {
    /// Mounts the disks of [`crate::MachineBuilder::workload`]; does nothing when they are mounted.
    ///
    /// # Errors
    /// The machine was built without them, or the kernel does not mount them.
    pub fn mount_workload(&self) -> Result<()> {
        let mounted = self.sh(MOUNT)?;
        match mounted.status {
            0 => Ok(()),
            _ => bail!(
                "guest {}: cannot mount the workload image: {}\n{}",
                self.name(),
                mounted.output.trim(),
                self.log()
            ),
        }
    }

    /// Whether a program of the workload image can be run in this guest.
    ///
    /// # Errors
    /// It cannot; the message says what to do.
    pub fn has_program(&self, work: &str, program: &str) -> Result<()> {
        self.mount_workload().with_context(|| format!("the work {work} needs the workload image"))?;
        if self.sh(&format!("chroot /w /usr/bin/test -x {program}"))?.status != 0 {
            let image = paths::guest("workload.ext4");
            bail!(
                "the work {work} needs {program}, which is not in {}: remove it and run `{MADE_BY}`",
                image.display()
            );
        }
        Ok(())
    }

    /// Runs a command in the Debian tree as a workload, and waits for its end.
    ///
    /// # Errors
    /// The guest does not answer; the command's own failure is in the result.
    pub fn debian(&self, command: &str, patience: Duration) -> Result<Executed> {
        let secs = u32::try_from(patience.as_secs()).unwrap_or(u32::MAX);
        let command = Command { command: command.to_owned(), chroot: true, secs };
        // The guest's own limit comes first.
        self.exec(command)?.wait(patience + Duration::from_secs(30))
    }

    /// Swaps to compressed memory; `size` is what it holds uncompressed.
    ///
    /// # Errors
    /// The kernel has no zram, or it is in use.
    pub fn swap_to_zram(&self, size: Bytes) -> Result<()> {
        let on = format!("echo {} >/sys/block/zram0/disksize && mkswap /dev/zram0 && swapon /dev/zram0", size.0);
        self.sh_ok(&on).context("swap to zram").map(drop)
    }

    /// Swaps to a file on the workload image's writable disk; after zram, when that was there first.
    ///
    /// # Errors
    /// The disk is not mounted, or has not so much room.
    pub fn swap_to_disk(&self, size: Bytes) -> Result<()> {
        let on = format!("fallocate -l {} /data/swap && chmod 600 /data/swap && mkswap /data/swap", size.0);
        self.sh_ok(&format!("{on} && swapon /data/swap")).context("swap to disk").map(drop)
    }
}
