//! Who may use the socket.

use crate::common::{self, wait_for};
use crate::host::{Host, binary, folder, settled};
use serde_json::Value;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

#[test]
fn who_may_use_the_socket_is_a_matter_of_its_group() {
    if !rustix::process::geteuid().is_root() {
        return common::skipped("only root can become somebody else; run it as root");
    }
    let directory = folder();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    // Where everybody may run it.
    let program = directory.path().join("ballast-host");
    std::fs::copy(binary(), &program).unwrap();
    let web = settled(directory.path(), "web");
    let host = Host::start(directory.path(), "control-group = \"games\"", &web.table(""));
    let groups = std::fs::read_to_string("/etc/group").unwrap();
    let games = groups.lines().find(|l| l.starts_with("games:")).and_then(|l| l.split(':').nth(2)).unwrap();
    let socket = std::fs::metadata(host.socket()).unwrap();
    assert_eq!((socket.mode() & 0o777, socket.gid().to_string().as_str()), (0o660, games));

    let nobody = |groups: &[&str], args: &[&str]| {
        let mut command = Command::new(common::program("setpriv"));
        command.args(["--reuid", "65534", "--regid", "65534"]).args(groups).arg(&program).args(args);
        let output = command.arg("--socket").arg(host.socket()).env("SUDO_USER", "root").output().unwrap();
        let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        if output.status.success() { Ok(out) } else { Err(err) }
    };
    let said = nobody(&["--clear-groups"], &["status"]).unwrap_err();
    let path = host.socket();
    let path = path.display();
    assert_eq!(
        said,
        format!(
            "ballast-host: {path} is not for you: become root, or have yourself added to its group (`control-group` in \
             host.toml): Permission denied (os error 13)\n"
        )
    );
    // Programs that asked for JSON get it.
    let said = nobody(&["--clear-groups"], &["status", "--json"]).unwrap_err();
    let said: Value = serde_json::from_str(&said).unwrap();
    assert!(said["error"].as_str().unwrap().starts_with(&format!("{path} is not for you: ")), "{said}");
    // Nor does the doctor take the daemon's monitor away from it, or blame the VM.
    let config = directory.path().join("host.toml");
    let mut doctor = Command::new(common::program("setpriv"));
    doctor.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program).arg("doctor");
    let said = doctor.arg("--json").arg("--config").arg(&config).output().unwrap();
    let checks: Vec<Value> = serde_json::from_slice(&said.stdout).unwrap();
    let check = checks.iter().find(|c| c["name"] == "control socket").unwrap_or_else(|| panic!("{checks:?}"));
    assert_eq!(check["state"], "warn");
    assert!(check["what"].as_str().unwrap().contains("a daemon seems to run, which you may not ask"), "{check}");
    assert_eq!(check["mend"], "`sudo ballast-host doctor`, or have yourself added to the group `games`");
    assert!(!checks.iter().any(|c| c["name"].as_str().unwrap().ends_with("monitor")), "{checks:?}");
    let member = ["--groups", games];
    wait_for("the VM", || nobody(&member, &["explain", "web"]).ok());
    nobody(&member, &["exempt", "web"]).unwrap();
    // Not who it claims to be.
    let line = host.log().lines().find(|l| l.contains("path=\"/v1/vms/web/exempt\"")).unwrap().to_owned();
    assert!(line.contains("user=nobody uid=65534 gid=65534 pid="), "{line}");

    // A group that is not there is said at the start, and nothing is served.
    let other = folder();
    let config = other.path().join("host.toml");
    let text = format!(
        "[metrics]\nenabled = false\n[daemon]\nstate-dir = \"{0}\"\ncontrol-socket = \"{0}/control\"\nvsock = false\ncontrol-group = \"ballastt\"\n{1}",
        other.path().display(),
        web.table("")
    );
    std::fs::write(&config, text).unwrap();
    let output = Command::new(binary()).arg("run").arg("--config").arg(&config).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success()
            && said.contains(
                "control-group `ballastt` is no group of this machine: make it (`groupadd --system ballastt`)"
            ),
        "{said}"
    );
}
