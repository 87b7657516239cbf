//! What the package brings beside the binary: a configuration that is safe to start with, and pages and completions that
//! know every command. The packages themselves are tested by `images/test-deb.sh`.

// The helpers of a test fail as the test does.
#![allow(clippy::unwrap_used)]

use ballast_host::config::Config;
use std::path::Path;
use std::process::Command;

fn ballast_host(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_ballast-host")).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The commands that `--help` lists.
fn commands() -> Vec<String> {
    let help = ballast_host(&["--help"]);
    let listed = help.lines().skip_while(|l| !l.starts_with("Commands:")).skip(1).take_while(|l| !l.is_empty());
    let names = listed.filter_map(|l| l.strip_prefix("  ")).filter(|l| !l.starts_with(' '));
    names.filter_map(|l| l.split_whitespace().next()).filter(|n| *n != "help").map(str::to_owned).collect()
}

#[test]
fn the_configuration_as_installed_is_accepted_and_touches_no_vm() {
    let config = Config::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/host.toml")).unwrap();
    assert!(config.libvirt.is_some() && config.vms.is_empty());
    assert!(config.daemon.dry_run);
    // The package makes it: packaging/ballast-host.sysusers.
    assert_eq!(config.daemon.control_group.as_deref(), Some("ballast"));
}

#[test]
fn every_command_has_a_man_page_and_is_completed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    ballast_host(&["generate", "man", path]);
    ballast_host(&["generate", "completions", path]);
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();

    let page = read("ballast-host.8");
    for part in [".SH SYNOPSIS", ".SH FILES", "/etc/ballast/host.toml", "BALLAST_LOG"] {
        assert!(page.contains(part), "no {part} in {page}");
    }
    assert!(!folder.path().join("ballast-host-generate.8").exists(), "a hidden command has a page");
    let commands = commands();
    assert!(commands.len() >= 5 && commands.iter().any(|c| c == "status"), "{commands:?}");
    for command in &commands {
        assert!(read(&format!("ballast-host-{command}.8")).contains("ballast\\-host"), "{command}");
        for completions in ["ballast-host.bash", "_ballast-host", "ballast-host.fish"] {
            assert!(read(completions).contains(command.as_str()), "{completions} does not know {command}");
        }
    }
}
