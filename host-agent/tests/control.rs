//! The control API and its commands against a real daemon over VMs made of threads. Every answer that the socket gives
//! is checked against `openapi.json`.

// The helpers of a test fail as the test does.
#![allow(clippy::unwrap_used)]

mod common;

use ballast_protocol::Bytes;
use common::quiet::QuietVm;
use common::schema::Schemas;
use common::{Dependant, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_ballast-host"))
}

/// A folder whose name leaves room in a socket's path.
fn folder() -> TempDir {
    tempfile::Builder::new().prefix("bc").tempdir_in("/tmp").unwrap()
}

/// `ballast-host run` in a folder.
struct Host {
    process: Option<Dependant>,
    folder: PathBuf,
    schemas: Schemas,
}

impl Host {
    /// Writes the configuration and starts.
    fn start(folder: &Path, daemon: &str, rest: &str) -> Self {
        let document = include_str!("../openapi.json");
        let mut host = Self { process: None, folder: folder.to_owned(), schemas: Schemas::of(document) };
        host.configure(daemon, rest);
        host.start_again();
        host
    }

    fn configure(&self, daemon: &str, rest: &str) {
        let path = self.folder.display();
        let text = format!(
            "[metrics]\nenabled = false\n[daemon]\nstate-dir = \"{path}/state\"\ncontrol-socket = \"{path}/control\"\nvsock = false\n{daemon}\n{rest}"
        );
        std::fs::write(self.folder.join("host.toml"), text).unwrap();
    }

    fn start_again(&mut self) {
        let (binary, folder) = (binary().display(), self.folder.display());
        let script = format!("exec {binary} run --config {folder}/host.toml 2>>{folder}/log");
        let mut shell = Command::new("sh");
        self.process = Some(Dependant::spawn(shell.args(["-c", &script]).env("NO_COLOR", "1")));
        wait_for("the daemon", || UnixStream::connect(self.socket()).ok());
    }

    fn stop(&mut self, signal: Signal) {
        let mut process = self.process.take().unwrap();
        process.signal(signal);
        process.wait();
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("control")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap()
    }

    /// A command as an operator behind sudo.
    fn command(&self, operator: Option<&str>, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(args).arg("--config").arg(self.folder.join("host.toml")).env_remove("SUDO_USER");
        command.envs(operator.map(|name| ("SUDO_USER", name)));
        command
    }

    /// What it printed, or what it complained about.
    fn run_as(&self, operator: Option<&str>, args: &[&str]) -> Result<String, String> {
        let output = self.command(operator, args).output().unwrap();
        let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        if output.status.success() { Ok(out) } else { Err(err) }
    }

    fn run(&self, args: &[&str]) -> Result<String, String> {
        self.run_as(None, args)
    }

    /// The only word on a failure.
    fn refusal(&self, operator: Option<&str>, args: &[&str]) -> String {
        let said = self.run_as(operator, args).expect_err(&format!("{args:?}"));
        said.strip_prefix("ballast-host: ").unwrap_or_else(|| panic!("{said}")).trim_end().to_owned()
    }

    /// One request; its status and answer, which are as `openapi.json` says.
    fn ask(&self, method: &str, path: &str, body: &str) -> (u64, Value) {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        let length = body.len();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
        let (status, body) = answer(&mut stream);
        let body: Value = serde_json::from_str(&body).unwrap_or_else(|e| panic!("{method} {path}: {e}: {body}"));
        if path != "/v1/openapi.json" {
            let name = self.described(method, path, status);
            self.schemas.check(&name, &body).unwrap_or_else(|e| panic!("{method} {path}: {e}: {body}"));
        }
        (status, body)
    }

    /// The schema of an answer.
    fn described(&self, method: &str, path: &str, status: u64) -> String {
        let path = path.split('?').next().unwrap();
        let matches = |template: &str| {
            template.split('/').count() == path.split('/').count()
                && template.split('/').zip(path.split('/')).all(|(t, p)| t == p || t == "{name}")
        };
        let paths = self.schemas.document()["paths"].as_object().unwrap();
        let item = paths.iter().find(|(template, _)| matches(template)).map(|(_, item)| item);
        let Some(operation) = item.and_then(|item| item.get(method.to_lowercase())) else {
            return "Problem".to_owned();
        };
        let responses = &operation["responses"];
        let response = responses.get(status.to_string()).unwrap_or(&responses["default"]);
        let target = response["$ref"].as_str().and_then(|r| self.schemas.document().pointer(&r[1..]));
        let schema = &target.unwrap_or(response)["content"]["application/json"]["schema"]["$ref"];
        schema.as_str().unwrap().rsplit('/').next().unwrap().to_owned()
    }

    fn status(&self) -> Value {
        let (status, body) = self.ask("GET", "/v1/status", "");
        assert_eq!(status, 200, "{body}");
        body
    }

    fn vm(&self, name: &str) -> Option<Value> {
        self.status()["vms"].as_array().unwrap().iter().find(|v| v["name"] == name).cloned()
    }

    /// Waits until these are managed and their statistics known.
    fn wait_for_vms(&self, names: &[&str]) {
        for name in names {
            wait_for(name, || self.vm(name).filter(|v| v["available"].is_u64()));
        }
    }
}

/// Status and body of an answer.
fn answer(stream: &mut UnixStream) -> (u64, String) {
    let mut text = Vec::new();
    // An answer to a request that was not read to its end is followed by a reset.
    let end = stream.read_to_end(&mut text);
    assert!(end.is_ok() || !text.is_empty(), "{end:?}");
    let text = String::from_utf8(text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// 1 GiB with a quarter free: without an agent nothing is taken from it by itself.
fn settled(folder: &Path, name: &'static str) -> QuietVm {
    QuietVm::start(folder, name, Bytes::mib(1024), Bytes::mib(760))
}

#[test]
fn a_held_vm_keeps_its_size_and_the_next_operator_learns_who_holds_it() {
    let directory = folder();
    let web = settled(directory.path(), "web");
    let mail = settled(directory.path(), "mail");
    let config = web.table("min = \"256MiB\"")
        + &mail.table("max = \"1000MiB\"")
        + "[[vm]]\nname = \"storage\"\nqmp = \"/nowhere\"\n";
    let host = Host::start(directory.path(), "", &config);
    host.wait_for_vms(&["web", "mail"]);

    let said = host.run_as(Some("alice"), &["hold", "web", "512M", "--for", "10m", "--reason", "disk backup"]).unwrap();
    assert!(said.starts_with("`web` is held at 512 MiB for 10m by alice: disk backup\n"), "{said}");
    wait_for("the hold", || (web.kept() == 512).then_some(()));
    let hold = host.vm("web").unwrap()["hold"].clone();
    assert_eq!((&hold["size"], &hold["by"]), (&json!(512 * MIB), &json!("alice")), "{hold}");

    // The second operator, in words that name the first.
    let other = host.refusal(Some("bob"), &["hold", "web", "300M", "--reason", "mine"]);
    assert!(
        other.starts_with("`web` is held at 512 MiB by alice for 9m ")
            && other.ends_with("s (disk backup): ask alice, or overrule with --force"),
        "{other}"
    );
    let other = host.refusal(Some("bob"), &["release", "web"]);
    assert!(other.contains("is held at 512 MiB by alice"), "{other}");
    assert_eq!(web.kept(), 512);
    // The first one may change what it said; the other may insist, and is told whom it overruled.
    host.run_as(Some("alice"), &["hold", "web", "600MiB", "--reason", "longer"]).unwrap();
    wait_for("the change", || (web.kept() == 600).then_some(()));
    let forced = ["hold", "web", "700M", "--reason", "mine", "--force", "--json"];
    let said: Value = serde_json::from_str(&host.run_as(Some("bob"), &forced).unwrap()).unwrap();
    assert_eq!(said["done"], "`web` is held at 700 MiB until it is released by bob: mine");
    assert!(
        said["notes"].as_array().unwrap().contains(&json!("alice held it at 600 MiB (longer): tell alice")),
        "{said}"
    );
    let explained = host.run(&["explain", "web"]).unwrap();
    for line in ["at 700 MiB by bob until it is released: mine", "hold: 600 MiB until it is released by alice: longer"]
    {
        assert!(explained.contains(line), "{explained}");
    }
    assert_eq!(host.run_as(Some("bob"), &["release", "web"]).unwrap(), "`web` is released by bob\n");
    assert_eq!(host.vm("web").unwrap()["hold"], Value::Null);
    assert_eq!(host.refusal(None, &["release", "web"]), "nobody holds `web`");

    // Everything else that can be wrong with it.
    for (args, complaint) in [
        (vec!["hold", "wbe", "512M", "--reason", "x"], "no VM named `wbe` is known; did you mean `web`?"),
        (vec!["release", "mial"], "no VM named `mial` is known; did you mean `mail`?"),
        (vec!["explain", "printer"], "no VM named `printer` is known; `ballast-host status` lists them"),
        (
            vec!["hold", "storage", "512M", "--reason", "x"],
            "`storage` is named in the configuration, but no hypervisor has it now: start it first",
        ),
        (
            vec!["explain", "storage"],
            "`storage` is named in the configuration, but no hypervisor has it now: start it first",
        ),
        (
            vec!["hold", "web", "100M", "--reason", "x"],
            "100 MiB is below what `web` is guaranteed, min 256 MiB; it can be held at 256 MiB to 1 GiB",
        ),
        (
            vec!["hold", "mail", "1G", "--reason", "x"],
            "1 GiB is above the most that `mail` may have, max 1000 MiB; it can be held at 64 MiB to 1000 MiB",
        ),
        (
            vec!["hold", "web", "512M", "--reason", " "],
            "a reason has 1 to 200 printable characters: the next operator reads it",
        ),
        (
            vec!["hold", "web", "512M", "--for", "2y", "--reason", "x"],
            "is not between 1 s and a year; what lasts longer belongs into host.toml",
        ),
    ] {
        let said = host.refusal(None, &args);
        assert!(said.ends_with(complaint), "{args:?}: {said}");
    }
    for (args, complaint) in [
        (
            vec!["hold", "web", "512", "--reason", "x"],
            "`512` is not a memory size: it has no unit; write for example 256MiB, 2G or 1.5GiB",
        ),
        (vec!["hold", "web", "512M", "--for", "soon", "--reason", "x"], "not a time; write for example 90s, 10m or 2h"),
        (vec!["hold", "web", "512M"], "--reason <REASON>"),
    ] {
        let said = host.run(&args).unwrap_err();
        assert!(said.contains(complaint), "{args:?}: {said}");
    }

    // Who, what, and how it ended stand in the log.
    let log = host.log();
    let uid = rustix::process::geteuid().as_raw();
    for part in [
        format!("user=alice uid={uid} "),
        "method=PUT path=\"/v1/vms/web/hold\" status=200".to_owned(),
        "status=409".to_owned(),
    ] {
        assert!(log.contains(&part), "{part}: {log}");
    }
    let line = log.lines().find(|l| l.contains("user=alice") && l.contains("method=PUT")).unwrap();
    let pid = line.split("pid=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    assert!(pid.parse::<u32>().unwrap() > 1, "{line}");
    assert!(log.contains("refused: `web` is held at 512 MiB by alice"), "{log}");
}

#[test]
fn what_operators_said_survives_a_crash_of_the_daemon_until_it_runs_out() {
    let directory = folder();
    let web = settled(directory.path(), "web");
    let mail = settled(directory.path(), "mail");
    let config = "[host]\nbudget = \"8GiB\"\n".to_owned() + &web.table("") + &mail.table("");
    let mut host = Host::start(directory.path(), "", &config);
    host.wait_for_vms(&["web", "mail"]);
    host.run_as(Some("alice"), &["hold", "web", "512M", "--for", "1h", "--reason", "backup"]).unwrap();
    wait_for("the hold", || (web.kept() == 512).then_some(()));
    host.run(&["exempt", "mail"]).unwrap();
    let said = host.run(&["reserve", "1G", "--for", "late", "--within", "2h"]).unwrap();
    assert!(said.starts_with("1 GiB are reserved for `late` for 2h\n"), "{said}");

    // Killed: what it had answered was on the disk.
    host.stop(Signal::KILL);
    host.start_again();
    let hold = wait_for("the VM", || host.vm("web"))["hold"].clone();
    let left = hold["until"].as_u64().unwrap() / 1_000_000;
    assert_eq!((&hold["by"], &hold["reason"], &hold["size"]), (&json!("alice"), &json!("backup"), &json!(512 * MIB)));
    assert!((3000..=3600).contains(&left), "{hold}");
    assert_eq!(host.status()["pool"]["reservations"][0]["name"], "late");
    wait_for("hands off", || host.vm("mail")?["holding"].as_str()?.contains("exempt").then_some(()));
    assert!(
        host.refusal(Some("bob"), &["hold", "web", "600M", "--reason", "x"])
            .contains("held at 512 MiB by alice for 59m ")
    );
    assert_eq!(web.kept(), 512);

    // What runs out while nobody looks is gone; what was released stays so.
    host.run_as(Some("alice"), &["hold", "web", "600M", "--for", "1s", "--reason", "short"]).unwrap();
    host.run(&["exempt", "mail", "--off"]).unwrap();
    host.run(&["unreserve", "late"]).unwrap();
    host.run(&["dry-run", "on"]).unwrap();
    host.stop(Signal::TERM);
    std::thread::sleep(Duration::from_secs(1));
    host.start_again();
    assert_eq!(wait_for("the VM", || host.vm("web"))["hold"], Value::Null);
    assert_eq!(host.status()["dry_run"], true, "a daemon told not to act must not begin to");
    assert_eq!(host.status()["pool"]["reservations"], json!([]));
    assert_eq!(host.refusal(None, &["exempt", "mail", "--off"]), "`mail` is not exempt");

    // A file that makes no sense is put aside and named.
    host.stop(Signal::TERM);
    std::fs::write(directory.path().join("state/operators.json"), "{\"format\": 7").unwrap();
    host.start_again();
    wait_for("the VM", || host.vm("web"));
    assert!(directory.path().join("state/operators.json.unreadable").exists());
    assert!(host.log().contains("holds and reservations of before are lost: set them again"), "{}", host.log());
}

#[test]
fn a_hold_ends_by_itself_and_the_vm_is_served_again() {
    let directory = folder();
    let web = settled(directory.path(), "web");
    let host = Host::start(directory.path(), "", &web.table(""));
    host.wait_for_vms(&["web"]);
    host.run(&["hold", "web", "512M", "--for", "10s", "--reason", "a moment"]).unwrap();
    wait_for("the hold", || (web.kept() == 512).then_some(()));
    // It has less than it needs, which its own law sees as soon as it may.
    wait_for("the end of the hold", || (host.vm("web")?["hold"].is_null() && web.kept() == 1024).then_some(()));
}

#[test]
fn an_exempt_vm_gets_all_its_memory_and_may_not_be_held() {
    let directory = folder();
    let web = settled(directory.path(), "web");
    let fixed = settled(directory.path(), "fixed");
    let host = Host::start(directory.path(), "", &(web.table("") + &fixed.table("exempt = true")));
    host.wait_for_vms(&["web", "fixed"]);
    host.run(&["hold", "web", "512M", "--reason", "first"]).unwrap();
    wait_for("the hold", || (web.kept() == 512).then_some(()));
    let said = host.refusal(None, &["exempt", "web"]);
    assert!(said.starts_with("`web` is held at 512 MiB by ") && said.ends_with("(first): release it first"), "{said}");
    host.run(&["release", "web"]).unwrap();
    assert_eq!(host.run(&["exempt", "web"]).unwrap(), "`web` is exempt: it gets all its memory and keeps it\n");
    wait_for("all its memory", || (web.kept() == 1024).then_some(()));
    assert_eq!(
        host.refusal(None, &["hold", "web", "512M", "--reason", "x"]),
        "`web` is exempt, hands off: `ballast-host exempt web --off` first"
    );
    assert_eq!(host.run(&["exempt", "web", "--off"]).unwrap(), "`web` is no longer exempt\n");
    host.run(&["hold", "web", "512M", "--reason", "again"]).unwrap();

    let file = directory.path().join("host.toml");
    let file = file.display();
    assert_eq!(host.run(&["exempt", "fixed"]).unwrap(), format!("`fixed` is exempt by {file} already\n"));
    assert_eq!(
        host.refusal(None, &["exempt", "fixed", "--off"]),
        format!("`fixed` is exempt by configuration: take `exempt` out of {file} and reload")
    );
    assert_eq!(host.refusal(None, &["exempt", "fxed"]), "no VM named `fxed` is known; did you mean `fixed`?");
}

#[test]
fn room_is_reserved_for_a_vm_that_will_come() {
    let directory = folder();
    let web = settled(directory.path(), "web");
    let host = Host::start(directory.path(), "", &("[host]\nbudget = \"4GiB\"\n".to_owned() + &web.table("")));
    host.wait_for_vms(&["web"]);
    let said = host.run(&["reserve", "2G", "--for", "late", "--within", "30m"]).unwrap();
    assert!(said.starts_with("2 GiB are reserved for `late` for 30m\n"), "{said}");
    wait_for("the room", || (host.status()["pool"]["reservations"][0]["ready"] == true).then_some(()));
    let text = host.run(&["status"]).unwrap();
    assert!(text.contains("reserved 2 GiB, in VMs that cannot give"), "{text}");
    assert!(text.contains("  2 GiB reserved for late for 29m ") && text.contains(" yet: there is room\n"), "{text}");
    // A later word replaces the first.
    let until = jiff::Zoned::now().checked_add(jiff::Span::new().hours(2)).unwrap();
    let until = until.strftime("%Y-%m-%d %H:%M").to_string();
    host.run(&["reserve", "1G", "--for", "late", "--until", &until]).unwrap();
    let reservations = host.status()["pool"]["reservations"].clone();
    assert_eq!((reservations.as_array().unwrap().len(), &reservations[0]["size"]), (1, &json!(1024 * MIB)));

    for (args, complaint) in [
        (
            vec!["reserve", "1G", "--for", "web", "--within", "1h"],
            "`web` is here already, and room is reserved for VMs that will start or arrive; `hold` gives it a size",
        ),
        (
            vec!["reserve", "5G", "--for", "huge", "--within", "1h"],
            "5 GiB is more than this host has for all its VMs, 4 GiB",
        ),
        (
            vec!["reserve", "1K", "--for", "tiny", "--within", "1h"],
            "a size of 1 KiB is too little: balloons move by MiB",
        ),
        (
            vec!["reserve", "1G", "--for", "", "--within", "1h"],
            "there is nothing at /v1/reservations/; GET /v1/openapi.json lists what there is",
        ),
        (vec!["reserve", "1G", "--for", "old", "--until", "2020-01-01 08:00"], "08:00\""),
        (vec!["unreserve", "lat"], "nothing is reserved for `lat`, only for late"),
    ] {
        let said = host.refusal(None, &args);
        assert!(said.ends_with(complaint), "{args:?}: {said}");
    }
    for both in
        [&["reserve", "1G", "--for", "x"][..], &["reserve", "1G", "--for", "x", "--until", "8:00", "--within", "1h"]]
    {
        let said = host.run(both).unwrap_err();
        assert!(said.contains("--within <DURATION>"), "{said}");
    }
    assert_eq!(host.run(&["unreserve", "late"]).unwrap(), "nothing is reserved for `late` any more\n");
    assert_eq!(host.refusal(None, &["unreserve", "late"]), "nothing is reserved for `late`, nor for any other VM");

    // The VM comes: what was reserved is its own.
    host.run(&["reserve", "1G", "--for", "web2", "--within", "1h"]).unwrap();
    assert_eq!(host.status()["pool"]["reserved"], 1024 * MIB);
}

#[test]
fn another_law_rules_at_run_time_and_knows_no_holds() {
    let directory = folder();
    let web = settled(directory.path(), "web");
    let host = Host::start(directory.path(), "", &web.table("fixed-size = \"700MiB\""));
    host.wait_for_vms(&["web"]);
    let said = host.run(&["policy", "set", "fixed"]).unwrap();
    let file = directory.path().join("host.toml");
    assert_eq!(
        said,
        format!("the law is `fixed`\n  after a restart it is `ballast` again: {} says so\n", file.display())
    );
    wait_for("its fixed size", || (web.kept() == 700).then_some(()));
    assert_eq!(host.status()["law"], "fixed");
    for args in [
        &["hold", "web", "512M", "--reason", "x"][..],
        &["reserve", "1G", "--for", "late", "--within", "1h"],
        &["reclaim", "1G"],
    ] {
        let said = host.refusal(None, args);
        assert!(said.starts_with("under the law `fixed` nothing is "), "{said}");
        assert!(said.ends_with("`ballast-host policy set ballast` first"), "{said}");
    }
    assert_eq!(host.run(&["policy", "set", "ballast"]).unwrap(), "the law is `ballast`\n");
    host.run(&["hold", "web", "512M", "--reason", "x"]).unwrap();
    wait_for("the hold", || (web.kept() == 512).then_some(()));
    let said = host.run(&["policy", "set", "static"]).unwrap();
    assert!(said.contains("  it knows no holds; these wait until `ballast` rules again: web\n"), "{said}");
    let said = host.run(&["policy", "set", "balast"]).unwrap_err();
    assert!(said.contains("invalid value 'balast'") && said.contains("'ballast'"), "{said}");
}

#[test]
fn a_dry_run_orders_nothing_and_shows_what_a_reclaim_would_take() {
    let directory = folder();
    // 700 MiB of 1 GiB are free, in a guest that talks.
    let web = QuietVm::start(directory.path(), "web", Bytes::mib(1024), Bytes::mib(300));
    let full = settled(directory.path(), "full");
    let config = "[host]\nbudget = \"4GiB\"\n".to_owned() + &web.table("") + &full.table("");
    let mut host = Host::start(directory.path(), "", &config);
    assert_eq!(
        host.run(&["dry-run", "on"]).unwrap(),
        "dry run: decisions are made and written down, and nothing is ordered\n"
    );
    web.agent();
    host.wait_for_vms(&["web", "full"]);
    wait_for("a decision", || host.run(&["explain", "web"]).ok().filter(|said| said.contains("dry run, would take: ")));
    assert!(host.run(&["status"]).unwrap().contains("  DRY RUN: nothing is ordered\n"));
    let plan = ["reclaim", "300M", "--dry-run", "--json"];
    let plan: Value = wait_for("a plan", || {
        let plan: Value = serde_json::from_str(&host.run(&plan).unwrap()).unwrap();
        (plan["total"] == 300 * MIB).then_some(plan)
    });
    assert_eq!((&plan["dry_run"], &plan["takings"][0]["vm"]), (&json!(true), &json!("web")), "{plan}");
    let said = host.run(&["reclaim", "2G"]).unwrap();
    assert!(
        said.starts_with("dry run: ") && said.contains(" of 2 GiB would be taken, nobody can spare more now\n"),
        "{said}"
    );
    assert!(said.contains(" web "), "{said}");
    let said = host.run(&["hold", "full", "512M", "--reason", "x"]).unwrap();
    assert!(said.contains("  this is a dry run: nothing is ordered\n"), "{said}");
    host.run(&["release", "full"]).unwrap();
    assert_eq!((web.kept(), full.kept()), (1024, 1024));

    assert_eq!(host.run(&["dry-run", "off"]).unwrap(), "no dry run any more: decisions are orders\n");
    let said = host.run(&["reclaim", "300M"]).unwrap();
    assert!(said.contains("being taken"), "{said}");
    wait_for("the memory", || (web.kept() <= 724).then_some(()));
    assert_eq!(host.refusal(None, &["reclaim", "1K"]), "a size of 1 KiB is too little: balloons move by MiB");
    // The planner was told, and its journal replays.
    host.stop(Signal::TERM);
    let journal = directory.path().join("state/journal");
    let told = format!("{{\"Reclaim\":{{\"size\":{}}}}}", 300 * MIB);
    assert!(std::fs::read_to_string(&journal).unwrap().contains(&told), "{told}");
    let said = common::output(Command::new(binary()).arg("replay").arg(&journal));
    assert!(String::from_utf8(said).unwrap().contains("every decision is the same"));
}

/// Descriptors that a process has open.
fn descriptors(process: &Dependant) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", process.pid().as_raw_nonzero())).unwrap().count()
}

#[test]
fn clients_that_hang_hold_up_nobody_and_leave_nothing_behind() {
    let directory = folder();
    let web = settled(directory.path(), "web");
    let host = Host::start(directory.path(), "", &web.table(""));
    host.wait_for_vms(&["web"]);
    let process = host.process.as_ref().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let before = descriptors(process);

    // More than may be at a time: silent, half a head, half a body, never reading. Then one that works.
    let mut hanging = Vec::new();
    for i in 0..200 {
        let mut stream = UnixStream::connect(host.socket()).unwrap();
        let says: &[u8] = match i % 4 {
            0 => b"",
            1 => b"GET /v1/status HTTP/1.1\r\nHo",
            2 => b"PUT /v1/vms/web/hold HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"size\": 1",
            _ => b"GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n",
        };
        // One that was hung up on already cannot be written to.
        let _ = stream.write_all(says);
        hanging.push(stream);
    }
    let begun = Instant::now();
    assert_eq!(host.status()["vms"][0]["name"], "web");
    host.run(&["hold", "web", "512M", "--reason", "while others hang"]).unwrap();
    // Of their ten seconds none was waited for.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(descriptors(process) < before + 100, "the number of connections has no bound");

    // They are hung up on although they themselves stay, and no descriptor is left.
    wait_for("the end of those that hang", || (descriptors(process) <= before).then_some(()));
    for mut stream in hanging {
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let mut said = Vec::new();
        // Reset or closed, not waiting any more.
        if let Err(error) = stream.read_to_end(&mut said) {
            assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "still connected");
        }
    }
    assert_eq!(host.vm("web").unwrap()["hold"]["reason"], "while others hang");
}

#[test]
fn a_request_that_makes_no_sense_gets_a_clear_answer() {
    let directory = folder();
    let web = settled(directory.path(), "web");
    let host = Host::start(directory.path(), "", &web.table(""));
    host.wait_for_vms(&["web"]);
    let hold = "/v1/vms/web/hold";
    let long = format!("{{\"size\": 1, \"reason\": \"{}\"}}", "x".repeat(20_000));
    for (method, path, body, status, complaint) in [
        ("GET", "/v2/status", "", 404, "there is nothing at /v2/status; GET /v1/openapi.json lists what there is"),
        ("POST", "/v1/status", "", 405, "POST is not for /v1/status; GET /v1/openapi.json lists what there is"),
        ("PUT", hold, "", 400, "not what is wanted here: EOF"),
        ("PUT", hold, "{\"size\": 536870912}", 400, "missing field `reason`"),
        ("PUT", hold, "{\"size\": -1, \"reason\": \"x\"}", 400, "invalid value: integer `-1`"),
        ("PUT", hold, "{\"size\": 1, \"reason\": \"x\", \"until\": 1}", 400, "unknown field `until`"),
        ("PUT", hold, &long, 413, "the request's body is longer than 16384 bytes"),
        ("PUT", hold, "{\"size\": 1048576, \"reason\": \"a\\nb\"}", 400, "a reason has 1 to 200 printable characters"),
        ("DELETE", "/v1/vms/web/hold?force=yes", "", 400, "`?force=yes` is not known here; ?force=true is"),
        ("DELETE", hold, "", 409, "nobody holds `web`"),
        ("DELETE", "/v1/reservations/a%0Ab", "", 400, "a name has 1 to 128 printable characters"),
        ("PUT", "/v1/law", "{\"law\": \"mine\"}", 400, "unknown variant `mine`"),
        ("PUT", "/v1/dry-run", "{\"on\": \"yes\"}", 400, "expected a boolean"),
        ("GET", "/v1/vms/nobody", "", 404, "no VM named `nobody` is known"),
    ] {
        let (got, body) = host.ask(method, path, body);
        assert_eq!(got, status, "{method} {path}: {body}");
        let error = body["error"].as_str().unwrap();
        assert!(error.contains(complaint), "{method} {path}: {error}");
    }
    // A name that has to be escaped, and the document itself.
    assert_eq!(
        host.ask("GET", "/v1/vms/a%20b%2Fc", "").1["error"],
        "no VM named `a b/c` is known; `ballast-host status` lists them"
    );
    assert_eq!(&host.ask("GET", "/v1/openapi.json", "").1, host.schemas.document());
    // No HTTP at all.
    let mut stream = UnixStream::connect(host.socket()).unwrap();
    stream.write_all(b"\x16\x03\x01 what is this?\r\n\r\n").unwrap();
    assert_eq!(answer(&mut stream).0, 400);
}

#[test]
fn a_reload_says_what_changed_and_what_was_refused_and_takes_a_word_back_only_for_a_new_one() {
    let directory = folder();
    let web = settled(directory.path(), "web");
    let mail = settled(directory.path(), "mail");
    let mut host = Host::start(directory.path(), "", &(web.table("") + &mail.table("")));
    host.wait_for_vms(&["web", "mail"]);
    assert_eq!(host.run(&["reload"]).unwrap(), "the file says nothing new\n");
    host.run(&["exempt", "web"]).unwrap();
    host.run(&["dry-run", "on"]).unwrap();

    host.configure("", &(web.table("weight = 7") + &mail.table("weight = -7")));
    // Wrong in one place, it still leads to the daemon.
    let output = host.command(None, &["reload"]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(!output.status.success(), "{said}");
    assert!(said.starts_with("VM `web`: weight 100 -> 7\nREFUSED: ") && said.contains("VM `mail`: "), "{said}");
    assert_eq!((&host.vm("web").unwrap()["weight"], &host.status()["dry_run"]), (&json!(7), &json!(true)));
    assert!(host.vm("web").unwrap()["holding"].as_str().unwrap().contains("exempt"));
    let (status, body) = host.ask("POST", "/v1/reload", "");
    assert_eq!((status, &body["changed"]), (200, &json!([])), "{body}");
    assert_eq!(body["refused"].as_array().unwrap().len(), 1, "{body}");

    host.configure("dry-run = true", &(web.table("") + &mail.table("")));
    assert!(host.run(&["reload"]).unwrap().contains("dry-run: false -> true\n"));
    host.configure("", &(web.table("") + &mail.table("")));
    assert!(host.run(&["reload"]).unwrap().contains("dry-run: true -> false\n"));
    assert_eq!(host.status()["dry_run"], false);
    host.stop(Signal::TERM);
    host.start_again();
    assert_eq!(host.status()["dry_run"], false, "the word by hand is over");
    wait_for("the VM", || host.vm("web"));
    assert!(host.refusal(None, &["hold", "web", "512M", "--reason", "x"]).contains("is exempt, hands off"));
}

#[test]
fn who_may_use_the_socket_is_a_matter_of_its_group() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: only root can become somebody else; run it as root");
        return;
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
