//! The Debian packages, in a clean Debian tree: `images/test-deb.sh` does it and says what is wrong.
#![allow(clippy::unwrap_used)]

use ballast_tests::paths;
use std::path::Path;
use std::process::Command;

/// Needs root or sudo, as `make workload` does; the tree is fetched the first time only.
#[test]
fn packages_are_installed_upgraded_removed_and_purged() {
    paths::required(paths::target().join("debian"), "make deb").unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/test-deb.sh");
    let output = Command::new(script).env("CARGO_TARGET_DIR", paths::target()).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    assert!(output.status.success(), "{said}");
}
