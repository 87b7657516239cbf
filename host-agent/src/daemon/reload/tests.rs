use super::*;
use crate::config::Overrides;
use std::path::Path;

fn vm(name: &str, more: &str) -> String {
    format!("[[vm]]\nname = \"{name}\"\nqmp = \"/q/{name}\"\n{more}\n")
}

fn config(text: &str) -> Config {
    Config::parse(Path::new("b.toml"), text).unwrap()
}

/// Reads a text as the running daemon would; the file is there only to be read.
fn examined(text: &str) -> Config {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    Config::examine(file.path()).unwrap()
}

fn merged(old: &str, new: &str) -> Result<Merged, String> {
    merge(&config(old), examined(new))
}

fn names(config: &Config) -> Vec<&str> {
    let mut names: Vec<&str> = config.vms.iter().map(|v| v.name.0.as_str()).collect();
    names.sort_unstable();
    names
}

#[test]
fn a_vm_whose_table_is_wrong_goes_on_as_it_was_and_the_others_change() {
    let old = vm("a", "min = \"100MiB\"") + &vm("b", "min = \"100MiB\"") + &vm("gone", "");
    let new = vm("a", "min = \"nonsense\"") + &vm("b", "min = \"200MiB\"") + &vm("new", "") + &vm("bad", "step = 1");
    let merged = merged(&old, &new).unwrap();
    assert_eq!(names(&merged.config), ["a", "b", "new"]);
    let min = |name: &str| find(&merged.config, &name.into()).unwrap().settings.min;
    assert_eq!((min("a"), min("b")), (Bytes::mib(100), Bytes::mib(200)));
    let [a, bad] = merged.refused.as_slice() else { panic!("{:?}", merged.refused) };
    assert!(a.contains(":4:7: VM `a`: `nonsense` is not a memory size") && a.ends_with("goes on as it was"), "{a}");
    assert!(bad.contains("VM `bad`: invalid type") && bad.ends_with("this VM is not taken up"), "{bad}");
}

#[test]
fn a_table_that_names_nobody_lets_go_of_nobody() {
    let old = vm("a", "") + &vm("b", "");
    let new = vm("a", "").replace("name", "nane") + &vm("b", "");
    let merged = merged(&old, &new).unwrap();
    assert_eq!(names(&merged.config), ["a", "b"]);
    assert!(merged.refused[0].contains("unknown key `nane`; did you mean `name`?"), "{:?}", merged.refused);
}

/// libvirt manages VMs that no table names, by the defaults: what a wrong table would have said of one is not known.
#[test]
fn a_vm_of_libvirt_whose_first_table_is_wrong_is_hands_off_until_it_is_right() {
    let table = "[[vm]]\nname = \"db\"\nexempt = true\nmin = 3\n";
    let old = config("[libvirt]\n");
    let first = merge(&old, examined(&format!("[libvirt]\n{table}"))).unwrap();
    let [said] = first.refused.as_slice() else { panic!("{:?}", first.refused) };
    let ends =
        "; hands off this VM until it is corrected and read by `ballast-host reload`: it gets and keeps all its memory";
    assert!(said.contains(":5:7: VM `db`: invalid type: integer `3`") && said.ends_with(ends), "{said}");
    assert_eq!(first.tables, first.refused);
    let exempt = |config: &Config, vm: &str| config.settings_with(&vm.into(), &Overrides::default()).unwrap().exempt;
    assert!(exempt(&first.config, "db") && first.config.settings(&"db".into()).exempt);
    assert!(!exempt(&first.config, "web"));
    // Still wrong: still so. Right, or gone: what the file says.
    let still = merge(&first.config, examined(&format!("[libvirt]\n{table}"))).unwrap();
    assert!(exempt(&still.config, "db"));
    let right = merge(&still.config, examined("[libvirt]\n[[vm]]\nname = \"db\"\nmin = \"1GiB\"\n")).unwrap();
    assert!(!exempt(&right.config, "db") && right.tables.is_empty());
    assert!(!exempt(&merge(&first.config, examined("[libvirt]\n")).unwrap().config, "db"));
    // Known by a right table, it goes on as it was.
    let known = merge(&right.config, examined(&format!("[libvirt]\n{table}"))).unwrap();
    assert!(!exempt(&known.config, "db") && known.refused[0].ends_with("this VM goes on as it was"));
    assert_eq!(known.config.settings(&"db".into()).min, Bytes::mib(1024));
    // One that names nobody changes nothing for those who run.
    let nameless = merge(&old, examined(&format!("[libvirt]\n{}", table.replace("name", "nane")))).unwrap();
    assert!(!exempt(&nameless.config, "db") && nameless.tables.len() == 1);
}

/// A QEMU of its own whose table was wrong when the daemon started.
#[test]
fn a_stand_in_is_hands_off_until_its_table_is_right() {
    let start = |text: &str| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::examine_to_start(file.path()).unwrap()
    };
    // The minimum by default is more than the budget has; what the stand-in's table guarantees is not known.
    let host = "[host]\nbudget = \"700MiB\"\n[defaults]\nmin = \"600MiB\"\n";
    let first = start(&(host.to_owned() + &vm("a", "") + &vm("b", "min = 3")));
    assert!(find(&first, &"b".into()).unwrap().is_stand_in && first.is_in_doubt(&"b".into()));
    // Wrong in another way: still nobody knows what it is to have.
    let still = merge(&first, examined(&(host.to_owned() + &vm("a", "") + &vm("b", "max = 3")))).unwrap();
    let [said] = still.refused.as_slice() else { panic!("{:?}", still.refused) };
    assert!(
        said.contains("VM `b`: invalid type") && said.contains("; hands off this VM until it is corrected"),
        "{said}"
    );
    assert!(still.config.settings(&"b".into()).exempt);
    // Also when the table has lost its name, and its VM stays for that.
    let nameless = vm("b", "").replace("name", "nane");
    let nameless = merge(&still.config, examined(&(host.to_owned() + &vm("a", "") + &nameless))).unwrap();
    assert!(nameless.config.is_in_doubt(&"b".into()));
    let right = merge(&nameless.config, examined(&(vm("a", "") + &vm("b", "")))).unwrap();
    assert!(!right.config.is_in_doubt(&"b".into()) && !right.config.settings(&"b".into()).exempt);
    let again = merge(&right.config, examined(&(vm("a", "") + &vm("b", "max = 3")))).unwrap();
    assert!(again.refused[0].ends_with("this VM goes on as it was"), "{:?}", again.refused);
}

#[test]
fn a_second_table_of_a_name_does_not_keep_the_old_one() {
    let old = vm("a", "min = \"100MiB\"");
    let merged = merged(&old, &(vm("a", "min = \"200MiB\"") + &vm("a", ""))).unwrap();
    assert_eq!(names(&merged.config), ["a"]);
    assert_eq!(merged.config.vms[0].settings.min, Bytes::mib(200));
    assert!(merged.refused[0].ends_with("this table is not used"), "{:?}", merged.refused);
}

#[test]
fn what_stays_must_not_meet_what_comes() {
    // `a` stays at its old monitor, which the file gives to `b`.
    let old = vm("a", "");
    let new = vm("a", "min = 3").replace("/q/a", "/q/new") + &vm("b", "").replace("/q/b", "/q/a");
    let error = merged(&old, &new).unwrap_err();
    assert!(error.contains("VM `a` goes on as it was") && error.contains("`b` has the same `qmp`"), "{error}");

    // Minimums are summed with the VMs that stay.
    let budget = "[host]\nbudget = \"1GiB\"\n";
    let old = vm("a", "min = \"800MiB\"") + &vm("b", "min = \"100MiB\"");
    let new = budget.to_owned() + &vm("a", "min = 3") + &vm("b", "min = \"300MiB\"");
    let error = merged(&old, &new).unwrap_err();
    assert!(error.contains("the minimums of 2 VMs sum to 1.1 GiB, 76 MiB more than budget 1 GiB"), "{error}");
}

#[test]
fn what_is_bound_stays_and_needs_a_restart() {
    let old = "[libvirt]\n[daemon]\nvsock = false\n";
    let new = "[daemon]\nvsock = false\nmodel = \"/m\"\nstate-dir = \"/s\"\ncontrol-socket = \"/c\"\ncontrol-group = \"vms\"\nport = 9999\non-exit = \"release\"\n\
               dry-run = true\n[journal]\nenabled = false\nmax-size = \"7MiB\"\n[libvirt]\nuri = \"qemu:///session\"\n";
    let merged = merged(old, new).unwrap();
    let was = config(old);
    assert_eq!((merged.config.daemon.port, &merged.config.libvirt), (was.daemon.port, &was.libvirt));
    assert_eq!(merged.config.daemon.control_socket, was.daemon.control_socket);
    assert!(merged.config.daemon.dry_run && merged.config.daemon.on_exit != was.daemon.on_exit);
    assert_eq!((merged.config.journal.max_size, merged.config.journal.enabled), (Bytes::mib(7), true));
    let said = merged.refused.join("\n");
    for what in [
        "[daemon] state-dir stays /var/lib/ballast until ballast-host is restarted; the file says /s",
        "[daemon] control-socket stays /run/ballast/control.sock until",
        "[daemon] control-group stays the daemon's own until ballast-host is restarted; the file says vms",
        "[daemon] port stays 9150 until ballast-host is restarted; the file says 9999",
        "[daemon] model stays that in the binary until ballast-host is restarted; the file says /m",
        "[journal] enabled stays true until",
        "[journal] path stays /var/lib/ballast/journal until",
        "[libvirt] stays `qemu:///system` until ballast-host is restarted; the file says `qemu:///session`",
    ] {
        assert!(said.contains(what), "{what}\n{said}");
    }
    assert_eq!(merged.refused.len(), 8, "{said}");
}

#[test]
fn a_vm_that_is_found_elsewhere_is_told() {
    let one = |more: &str| config(&format!("[libvirt]\n[[vm]]\nname = \"a\"\n{more}\n")).vms.remove(0);
    let rich = one("qmp = \"/q\"\ncid = 7\nservice = { address = \"10.0.0.7\", port = 5201 }\ninterface = \"tap0\"");
    let other = one("qmp = \"/p\"\ncid = 8\nservice = { address = \"10.0.0.8\" }\ninterface = \"tap1\"");
    let hybrid = one("vsock = \"/v\"");
    for (old, new, said) in [
        (&rich, &other, "qmp /q -> /p, cid 7 -> 8, service 10.0.0.7:5201 -> 10.0.0.8:5201, interface tap0 -> tap1"),
        (&rich, &hybrid, "qmp /q -> none, cid 7 -> none, service 10.0.0.7:5201 -> none, interface tap0 -> none"),
        (&hybrid, &one("cid = 9"), "vsock /v -> none, cid none -> 9"),
    ] {
        assert_eq!(places(old, new).as_deref(), Some(said));
    }
    assert_eq!(places(&hybrid, &one("vsock = \"/w\"")), None, "told when it can be called");
    assert_eq!(places(&rich, &rich.clone()), None);
}

#[test]
fn differences_are_named_as_the_file_names_them() {
    let old = VmSettings::default();
    let new = VmSettings { max: Bytes::mib(2048), exempt: true, weight: 7, ..VmSettings::default() };
    assert_eq!(differences(&old, &new), "max all it has -> 2 GiB, exempt false -> true, weight 100 -> 7");
    assert_eq!(differences(&new, &new), "");
}
