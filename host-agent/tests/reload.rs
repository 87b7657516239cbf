//! The configuration changed under a daemon that runs, over VMs made of a script.
// The helpers of a test fail as the test does.
#![allow(clippy::unwrap_used)]

mod common;

use ballast_protocol::Bytes;
use common::script::{FakeVm, Host, folder};
use common::wait_for;
use std::time::Duration;

const SIZE: Bytes = Bytes::mib(512);

fn mib(n: u64) -> u64 {
    Bytes::mib(n).0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bad_vm_is_refused_by_name_and_all_else_changes() {
    let folder = folder();
    let vm = |name: &str| FakeVm::start(folder.path(), name, SIZE, true);
    let (a, b, gone, new) = (vm("a"), vm("b"), vm("gone"), vm("new"));
    let host = Host::start(folder.path(), &(a.table("") + &b.table("min = \"128MiB\"") + &gone.table("")));
    for name in ["a", "b", "gone"] {
        host.wait_field(name, "agent", "alive");
    }
    wait_for("a taking", || (gone.actual() < SIZE).then_some(()));
    let pid = host.pid();

    // One is wrong, one changes, one goes, one comes.
    host.configure(&(a.table("min = \"300MiB\"\nweight = 7\nclass = \"high\"") + &b.table("min = 3") + &new.table("")));
    let said = host.reload();
    assert!(said.contains("host.toml:") && said.contains("VM `b`: invalid type: integer `3`"), "{said}");
    assert!(said.contains("this VM goes on as it was"), "{said}");
    assert!(said.contains("VM `a`: min 64 MiB -> 300 MiB, weight 100 -> 7, class normal -> high"), "{said}");
    let field = |name: &str, field: &str| host.vm(name).unwrap()[field].clone();
    assert_eq!((field("a", "min"), field("a", "class")), (mib(300).into(), "high".into()));
    assert_eq!((field("b", "min"), field("b", "agent")), (mib(128).into(), "alive".into()));
    host.wait_field("new", "agent", "alive");
    wait_for("the VM that goes to have all its memory", || (gone.actual() == SIZE).then_some(()));
    assert!(host.vm("gone").is_none(), "{}", host.status());
    let sessions = gone.state().sessions;

    // The file as a whole is wrong: old settings go on.
    for (wrong, problem) in [
        ("[host\n", "unclosed table"),
        ("[host]\nbudgte = \"1G\"\n", "did you mean `budget`?"),
        ("port = 0\n", "port 0"),
    ] {
        host.configure(&(wrong.to_owned() + &a.table("min = \"1MiB\"")));
        let said = host.reload();
        assert!(said.contains(problem) && said.contains("nothing has changed"), "{said}");
        assert_eq!((field("a", "min"), host.vm("new").is_some()), (mib(300).into(), true));
    }
    std::fs::remove_file(folder.path().join("host.toml")).unwrap();
    assert!(host.reload().contains("cannot be read"));

    // What is bound needs a restart, and the rest is done all the same.
    host.configure(&("port = 4711\n".to_owned() + &a.table("min = \"100MiB\"") + &b.table("") + &new.table("")));
    let said = host.reload();
    assert!(said.contains("[daemon] port stays 9150 until ballast-host is restarted; the file says 4711"), "{said}");
    assert_eq!((field("a", "min"), field("b", "min")), (mib(100).into(), mib(64).into()));

    // Sessions of VMs that nobody touched went on; who is gone is gone.
    assert_eq!([&a, &b, &new].map(|vm| vm.state().sessions), [1, 1, 1]);
    assert_eq!((gone.state().sessions, host.pid()), (sessions, pid));
    host.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn law_budget_and_dry_run_change_while_it_runs() {
    let folder = folder();
    let a = FakeVm::start(folder.path(), "a", SIZE, true);
    let host = Host::start(folder.path(), &("dry-run = true\n".to_owned() + &a.table("")));
    host.wait_field("a", "agent", "alive");
    wait_for("what would be taken", || {
        String::from_utf8(host.ask(&["explain", "a"])).unwrap().contains("dry run, would take").then_some(())
    });
    assert_eq!((a.orders(), a.actual()), (0, SIZE), "a dry run orders nothing");

    host.configure(&a.table(""));
    assert!(host.reload().contains("dry-run: true -> false"));
    wait_for("a taking", || (a.actual() < SIZE).then_some(()));

    host.configure(&("[law]\nname = \"fixed\"\n".to_owned() + &a.table("fixed-size = \"400MiB\"")));
    let said = host.reload();
    assert!(said.contains("law: ballast -> fixed") && said.contains("fixed-size all it has -> 400 MiB"), "{said}");
    wait_for("its fixed size", || (a.actual() == Bytes::mib(400)).then_some(()));

    host.configure(&("[host]\nbudget = \"256MiB\"\nreserve = \"32MiB\"\n".to_owned() + &a.table("")));
    let said = host.reload();
    assert!(said.contains("budget: by default -> 256 MiB") && said.contains("reserve: by default -> 32 MiB"), "{said}");
    assert!(said.contains("law: fixed -> ballast"), "{said}");
    wait_for("the VM within the budget", || (a.actual() <= Bytes::mib(224)).then_some(()));

    // A budget that cannot hold the guarantees.
    host.configure(&("[host]\nbudget = \"256MiB\"\n".to_owned() + &a.table("min = \"300MiB\"")));
    let said = host.reload();
    assert!(said.contains("the minimums of 1 VMs sum to 300 MiB") && said.contains("nothing has changed"), "{said}");
    assert_eq!(host.vm("a").unwrap()["min"], mib(64));
    host.stop();
}

/// As after a crash that follows a reload which was partly refused, on a host where something is in the way besides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_starts_with_what_can_be_used_and_names_the_rest() {
    let folder = folder();
    let vm = |name: &str| FakeVm::start(folder.path(), name, SIZE, true);
    let (a, b, c) = (vm("a"), vm("b"), vm("c"));
    let in_the_way = folder.path().join("c.vsock_9150");
    std::fs::write(&in_the_way, "precious").unwrap();
    let mut host = Host::start(folder.path(), &(a.table("") + &b.table("") + &c.table("")));
    host.wait_field("a", "agent", "alive");
    host.wait_field("c", "agent", "never");
    let log = host.log();
    assert!(log.contains("c.vsock_9150 is there and is no socket; move it away; its agent cannot call"), "{log}");
    assert_eq!(std::fs::read_to_string(&in_the_way).unwrap(), "precious");
    wait_for("a taking", || (b.actual() < SIZE).then_some(()));
    host.configure(&(a.table("") + &b.table("min = 3") + &c.table("")));
    assert!(host.reload().contains("this VM goes on as it was"));
    assert!(host.status()["problems"][0].as_str().unwrap().contains("VM `b`: invalid type"), "{}", host.status());

    // Nobody knows any more what `b` was: it has all its memory.
    host.restart();
    host.wait_field("a", "agent", "alive");
    wait_for("all its memory", || (b.actual() == SIZE).then_some(()));
    host.wait_field("b", "agent", "never");
    let log = host.log();
    let refused = log.lines().find(|l| l.contains("ERROR")).unwrap();
    for part in ["host.toml:", ": VM `b`: invalid type: integer `3`", "hands off this VM until it is corrected"] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    let status = host.status();
    let [problem, unheard] = status["problems"].as_array().unwrap().as_slice() else { panic!("{status}") };
    assert!(refused.contains(problem.as_str().unwrap()), "{problem}");
    assert!(unheard.as_str().unwrap().contains("its agent cannot call (tried again every 10 s)"), "{unheard}");
    assert!(String::from_utf8(host.ask(&["status"])).unwrap().contains("  WRONG: "));
    // Who asks whether the file is right hears of every mistake.
    let check = std::process::Command::new(env!("CARGO_BIN_EXE_ballast-host"))
        .args(["run", "--check", "--config"])
        .arg(folder.path().join("host.toml"))
        .output()
        .unwrap();
    assert!(!check.status.success() && String::from_utf8(check.stderr).unwrap().contains("VM `b`"));

    // What was in the way is gone: nobody needs to say so.
    std::fs::remove_file(&in_the_way).unwrap();
    host.wait_field("c", "agent", "alive");
    host.configure(&(a.table("") + &b.table("min = \"3MiB\"") + &c.table("")));
    let said = host.reload();
    assert!(said.contains("exempt true -> false"), "{said}");
    host.wait_field("b", "agent", "alive");
    wait_for("a taking", || (b.actual() < SIZE).then_some(()));
    assert_eq!(host.status()["problems"], serde_json::json!([]));
    host.stop();
}

/// Two daemons would undo each other's orders.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_daemon_on_all_the_same_vms_does_not_start() {
    let folder = folder();
    let vm = |name: &str| FakeVm::start(folder.path(), name, SIZE, true);
    let (a, b) = (vm("a"), vm("b"));
    let host = Host::start(folder.path(), &(a.table("") + &b.table("")));
    host.wait_field("b", "agent", "alive");
    let own = std::fs::read_to_string(folder.path().join("host.toml")).unwrap().replace("/control\"", "/second\"");
    let file = folder.path().join("second.toml");
    std::fs::write(&file, own).unwrap();
    let mut second = std::process::Command::new(env!("CARGO_BIN_EXE_ballast-host"));
    let second = second.args(["run", "--config"]).arg(&file).output().unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(!second.status.success() && said.contains("another ballast-host runs on the same VMs"), "{said}");
    assert_eq!(host.vm("a").unwrap()["agent"], "alive");
    host.stop();
}

/// Addresses may pass from one VM to another, and an agent finds its daemon at its new place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_change_hands() {
    let folder = folder();
    let (a, b) = (FakeVm::start(folder.path(), "a", SIZE, true), FakeVm::start(folder.path(), "b", SIZE, true));
    let host = Host::start(folder.path(), &a.table(""));
    host.wait_field("a", "agent", "alive");
    let renamed = |from: &FakeVm, to: &str| {
        let name = format!("name = \"{}\"", from.name);
        from.table("").replace(&name, &format!("name = \"{to}\""))
    };
    // What was `a` is called `c`; and `a` is another machine now.
    host.configure(&(renamed(&a, "c") + &renamed(&b, "a")));
    let said = host.reload();
    assert!(said.contains("refused=0"), "{said}");
    assert!(said.contains(&format!("VM `a`: qmp {0}/a.qmp -> {0}/b.qmp", folder.path().display())), "{said}");
    host.wait_field("c", "agent", "alive");
    host.wait_field("a", "agent", "alive");
    assert!(a.state().sessions >= 2 && b.state().sessions == 1);
    let before = b.orders();
    wait_for("a taking from the new `a`", || (b.orders() > before).then_some(()));

    // A second reload finds nothing to do.
    let said = host.reload();
    assert!(said.contains("changed=0 refused=0"), "{said}");
    // Somebody else sits on the socket that a VM is to have.
    let taken = folder.path().join("taken_9150");
    let _other = std::os::unix::net::UnixListener::bind(&taken).unwrap();
    let moved = renamed(&a, "c").replace("/a.vsock", "/taken");
    host.configure(&(moved.clone() + &renamed(&b, "a")));
    let said = host.reload();
    assert!(said.contains("VM `c`: somebody listens on") && said.contains("its agent cannot call"), "{said}");
    assert!(host.status()["problems"][0].as_str().unwrap().contains("somebody listens on"), "{}", host.status());
    // A reload tries again, too, and what is not to be listened at is no problem.
    assert!(host.reload().contains("changed=0 refused=1"));
    host.configure(&(renamed(&a, "c") + &renamed(&b, "a")));
    assert!(host.reload().contains("VM `c`: its agent may call at"));
    assert_eq!(host.status()["problems"], serde_json::json!([]));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(host.vm("a").unwrap()["agent"], "alive", "{}", host.log());
    host.stop();
}
