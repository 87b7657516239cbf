//! KVM or emulation, decided by trying: on nested and restricted machines `/dev/kvm` opens and then runs no stock
//! kernel, which only a boot can tell.

use crate::machine::Machine;
use crate::paths;
use anyhow::{Context, Result, bail};
use std::fs;
use std::sync::OnceLock;
use std::time::Duration;

/// KVM boots the test guest in under a second, nested KVM in a few.
const TRIAL: Duration = Duration::from_secs(10);

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Accel {
    /// The processor.
    Kvm,
    /// QEMU's emulation.
    Tcg,
}

impl Accel {
    /// The accelerator that works here. Found once, then remembered until the host reboots or the guest's kernel
    /// changes; `BALLAST_ACCEL=kvm` or `tcg` decides without a trial.
    ///
    /// # Errors
    /// `BALLAST_ACCEL` is something else; the result cannot be written.
    pub fn here() -> Result<Self> {
        static FOUND: OnceLock<Result<Accel, String>> = OnceLock::new();
        FOUND.get_or_init(|| Self::find().map_err(|e| format!("{e:#}"))).clone().map_err(anyhow::Error::msg)
    }

    fn find() -> Result<Self> {
        match std::env::var("BALLAST_ACCEL").as_deref() {
            Ok("kvm") => return Ok(Self::Kvm),
            Ok("tcg") => return Ok(Self::Tcg),
            Ok(other) => bail!("BALLAST_ACCEL is `{other}`: `kvm` or `tcg` are possible"),
            Err(_) => {}
        }
        if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
            return Ok(Self::Tcg);
        }
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let kernel = fs::read_to_string(paths::guest("kernel")).context("no guest kernel: run `make setup`")?;
        let key = format!("{} {}", boot.trim(), kernel.trim());
        let cache = paths::guest("accel");
        let known = fs::read_to_string(&cache).unwrap_or_default();
        if let Some(found) = known.trim().strip_prefix(&key) {
            return Ok(if found == " kvm" { Self::Kvm } else { Self::Tcg });
        }
        let trial = Machine::builder("kvm").accel(Self::Kvm).without_vsock().boot_within(TRIAL);
        let (found, name) = if trial.is_ok() { (Self::Kvm, "kvm") } else { (Self::Tcg, "tcg") };
        fs::write(&cache, format!("{key} {name}\n")).with_context(|| cache.display().to_string())?;
        Ok(found)
    }

    /// For QEMU's command line.
    pub(crate) fn arguments(self) -> &'static str {
        match self {
            Self::Kvm => "-accel kvm -cpu host",
            Self::Tcg => "-accel tcg,thread=multi -cpu max",
        }
    }
}
