//! A vsock device for one machine: the kernel's where there is `/dev/vhost-vsock`, otherwise a `vhost-device-vsock`
//! daemon, which offers hybrid vsock: the guest's connection to port P arrives at the Unix socket `<path>_P`.

use crate::children::{Folder, Process, log_tail};
use crate::paths;
use crate::qmp::Qmp;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The daemon binds its socket within milliseconds; under load it took up to half a second.
const PATIENCE: Duration = Duration::from_secs(10);
const LOG: &str = "vsock.log";

/// A vsock device, ready to be plugged.
#[derive(Debug)]
pub struct Vsock {
    /// The guest's CID.
    pub cid: u32,
    /// The base of the hybrid sockets; `None`: the kernel's device, spoken to by AF_VSOCK.
    pub hybrid: Option<PathBuf>,
    socket: PathBuf,
    daemon: Option<Process>,
}

/// Whether the host's kernel has the device.
#[must_use]
pub fn kernel_device() -> bool {
    std::fs::File::options().read(true).write(true).open("/dev/vhost-vsock").is_ok()
}

/// CIDs are shared by all guests of a host: by process and by count, so that two test runs do not meet.
fn fresh_cid() -> u32 {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    // 0 to 2 are reserved (vsock(7)); process ids stay below 2^22 on Linux (proc(5), pid_max).
    3 + std::process::id() % (1 << 22) * 256 + COUNT.fetch_add(1, Ordering::Relaxed) % 256
}

impl Vsock {
    pub(crate) fn new(folder: &Folder) -> Result<Self> {
        let (cid, socket, hybrid) = (fresh_cid(), folder.file("vhost"), folder.file("vsock"));
        if kernel_device() {
            return Ok(Self { cid, hybrid: None, socket, daemon: None });
        }
        let program = paths::required(paths::target().join("tools/bin/vhost-device-vsock"), "make setup")?;
        let vm = format!("guest-cid={cid},socket={},uds-path={}", socket.display(), hybrid.display());
        let daemon = Process::start(&program, &["--vm".into(), vm], &folder.file(LOG))?;
        Ok(Self { cid, hybrid: Some(hybrid), socket, daemon: Some(daemon) })
    }

    /// Plugs the device into a running machine.
    pub(crate) fn plug(&mut self, qmp: &mut Qmp, folder: &Folder) -> Result<()> {
        if let Some(daemon) = &mut self.daemon {
            let path = self.socket.display().to_string();
            let addr = json!({ "type": "unix", "data": { "path": path } });
            let backend = json!({ "type": "socket", "data": { "addr": addr, "server": false } });
            let deadline = Instant::now() + PATIENCE;
            // Its socket exists a moment before it listens, so that only trying can tell when it is ready.
            while let Err(e) = qmp.run("chardev-add", json!({ "id": "vsock", "backend": backend })) {
                if daemon.ended().is_some() || Instant::now() > deadline {
                    return Err(e.context(format!("vhost-device-vsock\n{}", log_tail(&folder.file(LOG), 10))));
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        qmp.run("device_add", self.device()).map(drop)
    }

    /// Kills the daemon, as a crash of it would: streams hang, QEMU runs on.
    ///
    /// # Errors
    /// The kernel's device has none.
    pub fn kill_daemon(&mut self) -> Result<()> {
        self.daemon.take().map(drop).context("the kernel's vsock device has no daemon")
    }

    /// The device, for `device_add`.
    fn device(&self) -> Value {
        match self.hybrid {
            Some(_) => json!({ "driver": "vhost-user-vsock-pci", "id": "vsock0", "chardev": "vsock", "bus": "port0" }),
            None => json!({ "driver": "vhost-vsock-pci", "id": "vsock0", "guest-cid": self.cid, "bus": "port0" }),
        }
    }
}
