//! Where the build put what guests are made of.

use anyhow::{Result, bail};
use std::path::{Path, PathBuf};

/// Cargo's target folder: `CARGO_TARGET_DIR`, otherwise `target` beside the workspace's manifest.
#[must_use]
pub fn target() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = root.parent().unwrap_or(root);
    match std::env::var_os("CARGO_TARGET_DIR") {
        // Tests run in their crate's folder, but cargo reads a relative path from where it was called: the root.
        Some(dir) if Path::new(&dir).is_relative() => root.join(dir),
        Some(dir) => PathBuf::from(dir),
        None => root.join("target"),
    }
}

/// A file of the guest: `vmlinuz`, `initramfs.cpio`, or one that the harness makes.
#[must_use]
pub fn guest(name: &str) -> PathBuf {
    target().join("guest").join(name)
}

/// A file that must be there.
///
/// # Errors
/// It is not; the message says what makes it.
pub fn required(path: PathBuf, made_by: &str) -> Result<PathBuf> {
    if !path.exists() {
        bail!("{} is missing: run `{made_by}`", path.display());
    }
    Ok(path)
}
