//! What the daemon logs, to stderr and to systemd's journal.

use crate::common::{Dependant, skipped, wait_for};
use crate::{config_text, directory, three};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_ballast-host")
}

#[test]
fn each_order_is_logged_with_its_reason_and_with_what_really_moved() {
    let directory = directory();
    let [hostile, web, bare] = three(directory.path());
    let config = directory.path().join("host.toml");
    std::fs::write(&config, config_text(directory.path(), &[&hostile, &web, &bare], "[metrics]\nenabled = false"))
        .unwrap();
    let log = directory.path().join("log");
    let _host = Dependant::spawn(Command::new("sh").args(["-c", "exec \"$0\" run --config \"$1\" 2>\"$2\""]).args([
        Path::new(binary()),
        &config,
        &log,
    ]));
    let settled = wait_for("an order that settled", || {
        let text = std::fs::read_to_string(&log).ok()?;
        let line = text.lines().find(|l| l.contains(" settled ") && l.contains("vm=web") && l.contains("moved=-"))?;
        Some(line.to_owned())
    });
    assert!(settled.contains("end=followed") && settled.contains("moved_bytes=-"), "{settled}");
    assert!(settled.contains("free beyond the headroom"), "{settled}");
    let order = settled.split("order=").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let text = std::fs::read_to_string(&log).unwrap();
    let given = text.lines().find(|l| l.contains(" take ") && l.contains(&format!("order={order} "))).unwrap();
    assert!(given.contains("vm=web") && given.contains("reason="), "{given}");
}

/// The journal's own protocol: `NAME=text` lines, or the name, a length and the text where that has lines.
fn fields(datagram: &[u8]) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    let mut rest = datagram;
    while let Some(end) = rest.iter().position(|b| *b == b'\n') {
        let line = String::from_utf8_lossy(&rest[..end]).into_owned();
        rest = &rest[end + 1..];
        match line.split_once('=') {
            Some((name, text)) => drop(fields.insert(name.to_owned(), text.to_owned())),
            None => {
                let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
                fields.insert(line, String::from_utf8_lossy(&rest[8..8 + length]).into_owned());
                rest = &rest[8 + length + 1..];
            }
        }
    }
    fields
}

#[test]
fn under_systemd_the_journal_gets_every_field() {
    if !rustix::process::geteuid().is_root() {
        return skipped("only root can put another socket in the journal's place; run it as root");
    }
    let directory = directory();
    let [hostile, web, bare] = three(directory.path());
    let config = directory.path().join("host.toml");
    std::fs::write(&config, config_text(directory.path(), &[&hostile, &web, &bare], "[metrics]\nenabled = false"))
        .unwrap();
    let journal = directory.path().join("journal");
    std::fs::create_dir(&journal).unwrap();
    let socket = UnixDatagram::bind(journal.join("socket")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let log = directory.path().join("log");
    let stderr = std::fs::File::create(&log).unwrap().metadata().unwrap();
    // A mount namespace of its own: this machine's /run stays as it is.
    let script = "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && \
                  mount --bind \"$0\" /run/systemd/journal && exec \"$1\" run --config \"$2\" 2>\"$3\"";
    let _host = Dependant::spawn(
        Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script])
            .args([&*journal, Path::new(binary()), &config, &log])
            .env("JOURNAL_STREAM", format!("{}:{}", stderr.dev(), stderr.ino())),
    );
    let mut buffer = vec![0; 1 << 16];
    let mut next = || {
        let count = socket.recv(&mut buffer).unwrap();
        fields(&buffer[..count])
    };
    let settled = loop {
        let fields = next();
        if fields.get("BALLAST_VM").is_some_and(|v| v == "web")
            && fields.get("BALLAST_MOVED_BYTES").is_some_and(|m| m.starts_with('-'))
        {
            break fields;
        }
    };
    assert_eq!(settled["SYSLOG_IDENTIFIER"], "ballast-host");
    assert_eq!(settled["PRIORITY"], "6");
    assert!(settled["BALLAST_REASON"].contains("free beyond the headroom"), "{settled:?}");
    assert!(settled["MESSAGE"].starts_with("settled vm=web order="), "{settled:?}");
    assert!(settled["MESSAGE"].contains("moved_bytes=-"), "{settled:?}");
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "", "nothing twice");
}
