use super::*;
use ballast_protocol::Micros;

const EXAMPLE: &str = include_str!("../../ballast-host.example.toml");

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("b.toml"), text)
}

fn message(text: &str) -> String {
    parse(text).expect_err(text).to_string()
}

#[test]
fn the_example_says_what_it_shows() {
    let config = parse(EXAMPLE).unwrap();
    assert_eq!(config.daemon, parse("[libvirt]").unwrap().daemon);
    assert_eq!(config.libvirt, Some(Libvirt { uri: "qemu:///system".into() }));
    assert_eq!(config.defaults, parse("[libvirt]").unwrap().defaults, "whoever copies it caps no VM");

    let [database, web, pinned] = config.vms.as_slice() else { panic!("three VMs: {:?}", config.vms) };
    assert_eq!((&database.agent, database.settings.min), (&Some(Address::Cid(42)), Bytes::mib(1024)));
    assert_eq!((database.settings.max, database.settings.headroom), (Bytes::mib(4096), config.defaults.headroom));
    assert_eq!(web.qmp.as_deref(), Some(Path::new("/run/web.qmp")));
    assert_eq!(web.agent, Some(Address::Hybrid("/run/web.vsock".into())));
    assert_eq!((web.settings.headroom, web.settings.cool_down), (Bytes::mib(48), Micros::millis(500)));
    assert!(pinned.settings.exempt && pinned.agent.is_none());
    assert_eq!((web.service, web.interface.as_deref()), (Some("10.0.0.7:5201".parse().unwrap()), Some("tap0")));
    assert_eq!(config.prober, crate::prober::Settings::default());

    assert_eq!(config.settings(&VmName::from("web")), web.settings);
    assert_eq!(config.settings(&VmName::from("unnamed")), config.defaults);
}

/// What the example shows as a default is the default: every commented key is uncommented and must change nothing.
#[test]
fn the_defaults_that_the_example_shows_are_the_defaults() {
    let shown: String = EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix("# ").and_then(|l| l.split_once(" = ")) {
            Some((key, value)) if !key.contains(' ') => format!("{key} = {value}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    assert!(shown.contains("\nstate-dir = ") && shown.contains("\nallow-without-deflate-on-oom = "), "{shown}");
    assert_eq!(parse(&shown).unwrap(), parse(EXAMPLE).unwrap());
}

#[test]
fn af_vsock_is_opened_only_when_somebody_may_call_there() {
    let hybrid = "[[vm]]\nname = \"a\"\nqmp = \"/q\"\nvsock = \"/v\"\n";
    assert!(!parse(hybrid).unwrap().daemon.vsock);
    assert!(parse("[[vm]]\nname = \"a\"\nqmp = \"/q\"\ncid = 3").unwrap().daemon.vsock);
    assert!(parse("[libvirt]").unwrap().daemon.vsock);
    assert!(!parse("[daemon]\nvsock = false\n[libvirt]").unwrap().daemon.vsock);
}

#[test]
fn a_wrong_file_is_refused_with_place_vm_and_mend() {
    let long = format!("[[vm]]\nname = \"a\"\nqmp = \"/{}\"", "x".repeat(110));
    let cases: &[(&str, &str)] = &[
        (
            "[[vm]]\nname = \"web\"\nqmp = \"/q\"\nmax = \"512MB\"\n",
            "b.toml:4:7: VM `web`: `512MB` is not a memory size: decimal units are not used for memory; \
             write for example 256MiB, 2G or 1.5GiB",
        ),
        (
            "[[vm]]\nmax = 512\nname = \"web\"\nqmp = \"/q\"\n",
            "b.toml:2:7: VM `web`: invalid type: integer `512`, expected a memory size in quotes, for example \"256MiB\"",
        ),
        (
            "[libvirt]\n[defaults]\ncool-down = \"2 parsecs\"\n",
            "b.toml:3:13: `2 parsecs` is not a time; write for example 2s or 500ms",
        ),
        ("[libvirt]\n[defaults]\ncooldown = \"2s\"\n", "b.toml:3:1: unknown key `cooldown`; did you mean `cool-down`?"),
        (
            "[[vm]]\nname = \"web\"\nqmp = \"/q\"\ncolour = \"red\"\n",
            "b.toml:4:1: VM `web`: unknown key `colour`; known are name, qmp, vsock, cid, service, interface, min, max, headroom, step, \
             cool-down, returning, cold-after, pace, take-reported, exempt, allow-without-deflate-on-oom, shares, fixed-size, weight, class, \
             predictor, loss-budget",
        ),
        ("[demon]\n", "b.toml:1:2: unknown key `demon`; did you mean `daemon`?"),
        ("[libvirt]\n[daemon]\non-exit = \"keeep\"\n", "b.toml:3:11: unknown value `keeep`; did you mean `keep`?"),
        (
            "[[vm]]\nname = \"web\"\nqmp = \"/q\"\nmin = \"2GiB\"\nmax = \"1GiB\"\n",
            "b.toml:4:7: VM `web`: min 2 GiB is above max 1 GiB; lower min or raise max",
        ),
        (
            "[defaults]\nmin = \"2GiB\"\n[[vm]]\nname = \"web\"\nqmp = \"/q\"\nmax = \"1GiB\"\n",
            "b.toml:6:7: VM `web`: min 2 GiB is above max 1 GiB; lower min or raise max",
        ),
        (
            "[[vm]]\nname = \"web\"\nqmp = \"/q\"\nstep = \"4KiB\"\n",
            "b.toml:4:8: VM `web`: step 4 KiB is too small; the balloon moves by MiB",
        ),
        (
            "[defaults]\npace = \"63MiB\"\n",
            "b.toml:2:8: pace 63 MiB a second is too slow; say 64 MiB or more, or 0MiB for all at once",
        ),
        (
            "[[vm]]\nname = \"web\"\nqmp = \"/q\"\n\n[[vm]]\nname = \"web\"\nqmp = \"/r\"\n",
            "b.toml:6:8: VM `web`: name `web` is used already in line 2; each VM needs its own",
        ),
        (
            "[[vm]]\nname = \"a\"\nqmp = \"/q\"\n[[vm]]\nname = \"b\"\nqmp = \"/q\"\n",
            "b.toml:6:7: VM `b`: qmp `/q` is used already in line 3; each VM needs its own",
        ),
        (
            "[libvirt]\n[[vm]]\nname = \"a\"\ncid = 7\n[[vm]]\nname = \"b\"\ncid = 7\n",
            "b.toml:7:7: VM `b`: cid `7` is used already in line 4; each VM needs its own",
        ),
        (
            "[libvirt]\n[[vm]]\nname = \"a\"\ncid = 2\n",
            "b.toml:4:7: VM `a`: cid 2 is no guest's; guests have 3 and above",
        ),
        (
            "[[vm]]\nname = \"a\"\nqmp = \"/q\"\nvsock = \"/v\"\ncid = 7\n",
            "b.toml:5:7: VM `a`: `vsock` and `cid` exclude each other: an agent calls from one place; keep `vsock` for \
             hybrid vsock, `cid` for the kernel's",
        ),
        (
            "[[vm]]\nname = \"a\"\n",
            "b.toml:2:8: VM `a`: nothing manages this VM: give `qmp`, the path of its QEMU monitor socket, or add \
             [libvirt]",
        ),
        ("[[vm]]\nqmp = \"/q\"\n", "b.toml:1:1: this [[vm]] has no `name`; add for example name = \"web\""),
        ("[[vm]]\nname = \"\"\nqmp = \"/q\"\n", "b.toml:2:8: VM ``: a name has 1 to 128 printable characters"),
        (
            "[[vm]]\nname = \"a\"\nqmp = \"run/q\"\n",
            "b.toml:3:7: VM `a`: qmp `run/q` is not absolute; a daemon has no directory of its own, begin with /",
        ),
        (
            &long,
            "b.toml:3:7: VM `a`: qmp with its suffix `` has 111 bytes; a socket's path has 107 at most, use a shorter \
             directory",
        ),
        (
            "",
            "b.toml:1:1: there is nothing to manage: add [libvirt], or a [[vm]] with `qmp`, the path of its QEMU monitor \
             socket",
        ),
        (
            "[[vm]]\nname = \"a\"\nqmp = \"/q\"\nservice = { address = \"web.local\" }\n",
            "b.toml:4:23: VM `a`: `web.local` is not an IP address; names are not looked up in the middle of a probe",
        ),
        (
            "[[vm]]\nname = \"a\"\nqmp = \"/q\"\nservice = { adress = \"10.0.0.7\" }\n",
            "b.toml:4:13: VM `a`: unknown key `adress`; did you mean `address`?",
        ),
        (
            "[[vm]]\nname = \"a\"\nqmp = \"/q\"\nservice = { address = \"10.0.0.7\" }\n[[vm]]\nname = \"b\"\nqmp = \"/r\"\n\
             service = { address = \"10.0.0.7\", port = 5201 }\n",
            "b.toml:8:11: VM `b`: service `10.0.0.7:5201` is used already in line 4; each VM needs its own",
        ),
        (
            "[[vm]]\nname = \"a\"\nqmp = \"/q\"\ninterface = \"/sys/class/net/tap0\"\n",
            "b.toml:4:13: VM `a`: `/sys/class/net/tap0` is no name of a network interface; `ip link` shows them, for \
             example tap0",
        ),
        (
            "[libvirt]\n[prober]\nmode = \"fast\"\n",
            "b.toml:3:8: unknown value `fast`; known are unlimited, rate-limited",
        ),
        ("[libvirt]\n[prober]\nperiod = \"1ms\"\n", "b.toml:3:10: period 1.0 ms is too short; at least 1.0 s"),
        (
            "[libvirt]\n[prober]\nlength = \"1m\"\n",
            "b.toml:3:10: length 60.0 s cannot be used; a probe takes 50.0 ms to 10.0 s",
        ),
        (
            "[libvirt]\n[prober]\nrate = \"50MB\"\n",
            "b.toml:3:8: `50MB` is not a bit rate; write for example 50Mbit or 1Gbit",
        ),
        (
            "[libvirt]\n[prober]\ntime-per-hour = \"100ms\"\n",
            "b.toml:3:17: time-per-hour 100.0 ms is too little for probes of 200.0 ms; at least 800.0 ms",
        ),
        (
            "[libvirt]\n[prober]\ntraffic-per-hour = \"1MiB\"\n",
            "b.toml:3:20: traffic-per-hour 1 MiB is too little; at least 16 MiB",
        ),
        ("[libvirt]\nuri = \"system\"\n", "b.toml:2:7: `system` is not a libvirt URI; the usual one is qemu:///system"),
        ("[libvirt]\n[daemon]\nport = 0\n", "b.toml:3:8: port 0 cannot be listened on; the usual one is 9150"),
        ("[libvirt]\n[journal]\nmax-size = \"1k\"\n", "b.toml:3:12: max-size 1 KiB is too little; at least 1 MiB"),
    ];
    let mut wrong = String::new();
    for (text, expected) in cases {
        let actual = message(text);
        if actual != *expected {
            wrong += &format!("{text}\n  expected {expected}\n  but got  {actual}\n\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn a_law_is_chosen_by_name_and_its_constants_by_its_table() {
    use ballast_planner::{DrsSettings, LawName, LawSettings, MomSettings, Ratio};
    assert_eq!(parse("[libvirt]").unwrap().law, LawSettings::Ballast);
    for (name, law) in [
        ("ballast", LawName::Ballast),
        ("threshold", LawName::Threshold),
        ("mom", LawName::Mom),
        ("proxmox", LawName::Proxmox),
        ("headroom", LawName::Headroom),
        ("drs", LawName::Drs),
        ("fixed", LawName::Fixed),
        ("static", LawName::Static),
    ] {
        let config = parse(&format!("[libvirt]\n[law]\nname = \"{name}\"\n")).unwrap();
        assert_eq!((config.law.name(), law.to_string()), (law, name.to_owned()));
    }
    let text =
        "[libvirt]\n[law]\nname = \"mom\"\n[law.mom]\npressure = \"50%\"\nperiod = \"20s\"\n[law.drs]\nlow = \"1%\"\n";
    let mom = MomSettings { pressure: Ratio::percent(50), period: Micros::secs(20), ..MomSettings::default() };
    assert_eq!(parse(text).unwrap().law, LawSettings::Mom(mom), "the other table waits for its law");
    let drs = DrsSettings { low: Ratio::percent(1), ..DrsSettings::default() };
    assert_eq!(parse(&text.replace("name = \"mom\"", "name = \"drs\"")).unwrap().law, LawSettings::Drs(drs));
}

#[test]
fn budget_shares_and_fixed_size_are_read() {
    let text = "[libvirt]\n[host]\nbudget = \"600MiB\"\n[defaults]\nfixed-size = \"1GiB\"\n\
                [[vm]]\nname = \"a\"\nshares = 0\n[[vm]]\nname = \"b\"\nfixed-size = \"2GiB\"\n";
    let config = parse(text).unwrap();
    assert_eq!(config.budget, Some(Bytes::mib(600)));
    let read: Vec<_> = config.vms.iter().map(|v| (v.settings.shares, v.settings.fixed_size)).collect();
    assert_eq!(read, [(0, Some(Bytes::mib(1024))), (1000, Some(Bytes::mib(2048)))]);
    assert_eq!(parse("[libvirt]").unwrap().budget, None);
}

#[test]
fn a_wrong_law_is_refused_with_place_and_mend() {
    let cases = [
        ("[law]\nname = \"mum\"", "b.toml:3:8: unknown value `mum`; did you mean `mom`?"),
        ("[law]\nnme = \"mom\"", "b.toml:3:1: unknown key `nme`; did you mean `name`?"),
        ("[law.mom]\npresure = \"5%\"", "b.toml:3:1: unknown key `presure`; did you mean `pressure`?"),
        (
            "[law.fixed]\nsize = \"5%\"",
            "b.toml:2:6: unknown key `fixed`; known are name, threshold, mom, proxmox, headroom, drs",
        ),
        (
            "[law.mom]\npressure = \"120%\"",
            "b.toml:3:12: `120%` is not a percentage from 0% to 100%; write for example 20% or 0.25%",
        ),
        (
            "[law.mom]\npressure = 0.2",
            "b.toml:3:12: invalid type: floating point `0.2`, expected a percentage in quotes, for example \"20%\"",
        ),
        ("[law.drs]\nperiod = \"10ms\"", "b.toml:3:10: period 10.0 ms is too short; at least 1.0 s"),
        (
            "[law.mom]\npressure = \"4%\"",
            "b.toml:3:12: critical 5 % is above pressure 4 %; lower critical or raise pressure",
        ),
        (
            "[law.headroom]\nstep = \"1MiB\"",
            "b.toml:3:8: least-step 64 MiB is above step 1 MiB; lower least-step or raise step",
        ),
        ("[host]\nbudget = \"1k\"", "b.toml:3:10: budget 1 KiB is too little; at least 16 MiB"),
        (
            "[[vm]]\nname = \"a\"\nfixed-size = \"1GiB\"\nmax = \"512MiB\"",
            "b.toml:4:14: VM `a`: fixed-size 1 GiB is not between min 64 MiB and max 512 MiB",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(message(&format!("[libvirt]\n{text}\n")), expected);
    }
}

#[test]
fn broken_toml_is_placed() {
    let text = message("[libvirt]\nuri = \"qemu:///system\n");
    assert!(text.starts_with("b.toml:2:"), "{text}");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let text = Config::load(Path::new("/nowhere/b.toml")).unwrap_err().to_string();
    assert_eq!(
        text,
        "/nowhere/b.toml: cannot be read: No such file or directory (os error 2); ballast-host.example.toml shows the \
         format"
    );
}

#[test]
fn weight_class_reserve_and_dry_run_are_read_and_checked() {
    use ballast_planner::Class;
    let config = parse(
        "[libvirt]\n[daemon]\ndry-run = true\n[host]\nreserve = \"2GiB\"\n[defaults]\nclass = \"low\"\n\
         [[vm]]\nname = \"a\"\nweight = 10000\n[[vm]]\nname = \"b\"\nclass = \"high\"\nweight = 1\n",
    )
    .unwrap();
    assert!(config.daemon.dry_run && !parse("[libvirt]").unwrap().daemon.dry_run);
    assert_eq!((config.budget, config.reserve), (None, Some(Bytes::mib(2048))));
    let read: Vec<_> = config.vms.iter().map(|v| (v.settings.weight, v.settings.class)).collect();
    assert_eq!(read, [(10_000, Class::Low), (1, Class::High)]);
    assert_eq!((config.defaults.weight, config.defaults.class), (100, Class::Low));

    let vm = |line: &str| format!("[libvirt]\n[[vm]]\nname = \"a\"\n{line}\n");
    let cases = [
        (vm("weight = 0"), "b.toml:4:10: VM `a`: weight 0 cannot be used; a weight is 1 to 10000"),
        (vm("weight = 10001"), "b.toml:4:10: VM `a`: weight 10001 cannot be used; a weight is 1 to 10000"),
        (vm("wieght = 5"), "b.toml:4:1: VM `a`: unknown key `wieght`; did you mean `weight`?"),
        (vm("class = \"hihg\""), "b.toml:4:9: VM `a`: unknown value `hihg`; did you mean `high`?"),
        ("[libvirt]\n[host]\nreserv = \"1G\"\n".into(), "b.toml:3:1: unknown key `reserv`; did you mean `reserve`?"),
        (
            "[libvirt]\n[host]\nbudget = \"1GiB\"\nreserve = \"1GiB\"\n".into(),
            "b.toml:4:11: reserve 1 GiB leaves less than 16 MiB of budget 1 GiB; lower reserve",
        ),
        ("[libvirt]\n[daemon]\ndryrun = true\n".into(), "b.toml:3:1: unknown key `dryrun`; did you mean `dry-run`?"),
    ];
    for (text, expected) in cases {
        assert_eq!(message(&text), expected);
    }
}

#[test]
fn minimums_that_the_budget_cannot_hold_are_refused_with_the_figures() {
    let text = |budget: &str, more: &str| {
        format!(
            "[libvirt]\n[host]\nbudget = \"{budget}\"\n{more}[defaults]\nmin = \"1GiB\"\n[[vm]]\nname = \"a\"\n\
             [[vm]]\nname = \"b\"\nmin = \"3GiB\"\n"
        )
    };
    assert!(parse(&text("4GiB", "")).is_ok());
    assert_eq!(
        message(&text("3584MiB", "")),
        "b.toml:3:10: the minimums of 2 VMs sum to 4 GiB, 512 MiB more than budget 3.5 GiB; lower a `min` or raise \
         budget"
    );
    assert_eq!(
        message(&text("4GiB", "reserve = \"256MiB\"\n")),
        "b.toml:3:10: the minimums of 2 VMs sum to 4 GiB, 256 MiB more than budget 4 GiB less reserve 256 MiB; lower a \
         `min` or raise budget"
    );
}

#[test]
fn a_bad_vm_is_refused_alone_and_by_name() {
    let text = "[[vm]]\nname = \"a\"\nqmp = \"/a\"\n\n[[vm]]\nname = \"b\"\nqmp = \"/b\"\nmin = 7\n\n[[vm]]\n\
                name = \"c\"\nqmp = \"/c\"\nmin = \"2G\"\nmax = \"1G\"\n\n[[vm]]\nname = \"d\"\nqmp = \"/a\"\n\n\
                [[vm]]\nqmp = \"/e\"\n\n[[vm]]\nname = \"f\"\nqmp = \"/f\"\n";
    let examined = Config::examine_text(Path::new("b.toml"), text).unwrap();
    let good: Vec<_> = examined.vms.iter().map(|v| v.name.0.as_str()).collect();
    assert_eq!(good, ["a", "f"]);
    let said: Vec<_> = examined.refused.iter().map(|r| (r.name.clone(), r.error.to_string())).collect();
    let named = |name: &str, text: &str| (Some(VmName::from(name)), text.to_owned());
    assert_eq!(
        said,
        [
            named(
                "b",
                "b.toml:8:7: VM `b`: invalid type: integer `7`, expected a memory size in quotes, for example \"256MiB\""
            ),
            named("c", "b.toml:13:7: VM `c`: min 2 GiB is above max 1 GiB; lower min or raise max"),
            named("d", "b.toml:18:7: VM `d`: qmp `/a` is used already in line 3; each VM needs its own"),
            (None, "b.toml:20:1: this [[vm]] has no `name`; add for example name = \"web\"".to_owned()),
        ]
    );
    // For `run --check`, the first mistake is one too many.
    assert_eq!(parse(text).unwrap_err().to_string(), said[0].1);
    // What is wrong outside of [[vm]] is wrong for all.
    for wrong in ["[daemon]\nport = 0\n", "[demon]\n", "[host\n", "[defaults]\nmin = \"2G\"\nmax = \"1G\"\n"] {
        assert!(Config::examine_text(Path::new("b.toml"), &format!("{wrong}{text}")).is_err(), "{wrong}");
    }
    assert!(Config::examine_text(Path::new("b.toml"), "vm = 3\n").is_err());
}

#[test]
fn a_start_takes_what_can_be_used_and_is_hands_off_where_it_cannot_know() {
    let start = |text: &str| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::examine_to_start(file.path()).map_err(|e| e.to_string())
    };
    let wrong = "[[vm]]\nname = \"db\"\nexempt = true\nmin = 3\n";
    let good = "[[vm]]\nname = \"web\"\nmin = \"128MiB\"\n";
    let config = start(&format!("[libvirt]\n{wrong}{good}")).unwrap();
    let exempt = |config: &Config, vm: &str| {
        let said = config.settings_with(&vm.into(), &Overrides::default()).unwrap();
        assert_eq!(said.exempt, config.settings(&vm.into()).exempt);
        said.exempt
    };
    assert_eq!(["db", "web", "other"].map(|vm| exempt(&config, vm)), [true, false, false]);
    // A table that names nobody may be anybody's but theirs who have one.
    let nameless = start(&format!("[libvirt]\n{}{good}", wrong.replace("name", "nane"))).unwrap();
    assert_eq!(["db", "web", "other"].map(|vm| exempt(&nameless, vm)), [true, false, true]);
    // A second table of a name leaves the first one in force.
    let twice = start(&format!("[libvirt]\n{good}{}", wrong.replace("db", "web"))).unwrap();
    assert!(!exempt(&twice, "web") && twice.refused.len() == 1);

    // A QEMU whose monitor is known is taken up, exempt; not one whose monitor or name is another's.
    let qmp = |name: &str, path: &str, more: &str| format!("[[vm]]\nname = \"{name}\"\nqmp = \"{path}\"\n{more}\n");
    let text = qmp("a", "/a", "") + &qmp("b", "/b", "min = 3") + &qmp("c", "/c", "max = \"1MiB\"");
    let text = text + &qmp("d", "/a", "") + &qmp("a", "/e", "") + &qmp("f", "f", "");
    let config = start(&text).unwrap();
    let vms: Vec<_> = config.vms.iter().map(|v| (v.name.0.as_str(), v.settings.exempt)).collect();
    assert_eq!(vms, [("a", false), ("b", true), ("c", true)]);
    assert_eq!(config.refused.len(), 5);
    assert!(exempt(&config, "b") && config.is_in_doubt(&"b".into()) && !config.is_in_doubt(&"a".into()));

    // Also alone; what has no monitor is nothing to manage.
    let alone = start(&format!("{wrong}qmp = \"/q\"\n")).unwrap();
    assert!(exempt(&alone, "db") && alone.vms.len() == 1 && alone.refused.len() == 1);
    let nothing = start(wrong).unwrap_err();
    assert!(nothing.contains(":4:7: VM `db`: invalid type: integer `3`"), "nothing to manage: {nothing}");
    let crowded = start(&format!("[libvirt]\n[host]\nbudget = \"64MiB\"\n{wrong}{good}")).unwrap_err();
    assert!(crowded.contains("the minimums of 1 VMs sum to 128 MiB"), "{crowded}");
    assert!(start("[libvirt]\n[demon]\n").is_err());
}

/// AF_VSOCK is bound at the start or never.
#[test]
fn af_vsock_is_wanted_also_for_a_vm_whose_table_is_wrong() {
    let good = "[[vm]]\nname = \"a\"\nqmp = \"/a\"\n";
    let wants = |wrong: &str| {
        let text = format!("{good}[[vm]]\nname = \"b\"\nqmp = \"/b\"\n{wrong}\n");
        let config = Config::examine_text(Path::new("b.toml"), &text).unwrap();
        assert!(config.refused.len() == 1 && !config.needs_vsock(), "{text}");
        config.daemon.vsock
    };
    assert!(wants("cid = 7\nmin = 3") && wants("cid = 7\nmin = \"2G\"\nmax = \"1G\"") && wants("cid = \"7\""));
    assert!(!wants("min = 3"));
    assert!(!parse(good).unwrap().daemon.vsock);
}

#[test]
fn forecasts_are_shadowed_unless_said_otherwise() {
    use ballast_planner::{Mode, Ratio};
    let config = parse(
        "[libvirt]\n[defaults]\nloss-budget = \"0.5%\"\n[[vm]]\nname = \"a\"\npredictor = \"on\"\n\
         [[vm]]\nname = \"b\"\npredictor = \"off\"\nloss-budget = \"3%\"\n",
    )
    .unwrap();
    let read: Vec<_> = config.vms.iter().map(|v| (v.settings.predictor, v.settings.loss_budget)).collect();
    assert_eq!(read, [(Mode::On, Ratio::basis_points(50)), (Mode::Off, Ratio::percent(3))]);
    let usual = parse("[libvirt]").unwrap().defaults;
    assert_eq!((usual.predictor, usual.loss_budget), (Mode::Shadow, Ratio::percent(1)));
    let vm = |line: &str| format!("[libvirt]\n[[vm]]\nname = \"a\"\n{line}\n");
    for (line, expected) in [
        ("predictor = \"shado\"", "b.toml:4:13: VM `a`: unknown value `shado`; did you mean `shadow`?"),
        (
            "loss-budget = \"2\"",
            "b.toml:4:15: VM `a`: `2` is not a percentage from 0% to 100%; write for example 20% or 0.25%",
        ),
        (
            "loss-budget = 2",
            "b.toml:4:15: VM `a`: invalid type: integer `2`, expected a percentage in quotes, for example \"20%\"",
        ),
    ] {
        assert_eq!(parse(&vm(line)).unwrap_err().to_string(), expected);
    }
}

#[test]
fn the_file_wins_over_metadata_and_metadata_over_defaults() {
    let config = parse(
        "[libvirt]\n[defaults]\nmin = \"100MiB\"\nheadroom = \"10MiB\"\nweight = 5\n\
         [[vm]]\nname = \"a\"\nmin = \"300MiB\"\nmax = \"1GiB\"\n",
    )
    .unwrap();
    let said = |all: &[(&str, &str)]| {
        let all: Vec<_> = all.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Overrides::from_elements(&all).unwrap()
    };
    let metadata = said(&[("min", "200MiB"), ("headroom", "20MiB")]);
    let named = config.settings_with(&"a".into(), &metadata).unwrap();
    assert_eq!((named.min, named.headroom, named.weight), (Bytes::mib(300), Bytes::mib(20), 5));
    let unnamed = config.settings_with(&"other".into(), &metadata).unwrap();
    assert_eq!((unnamed.min, unnamed.headroom, unnamed.max), (Bytes::mib(200), Bytes::mib(20), Bytes::MAX));
    assert_eq!(config.settings_with(&"a".into(), &Overrides::default()).unwrap(), config.settings(&"a".into()));

    // Each right by itself.
    let error = config.settings_with(&"a".into(), &said(&[("fixed-size", "2GiB")])).unwrap_err();
    assert_eq!(error, "fixed-size 2 GiB is not between min 300 MiB and max 1 GiB");
    assert!(config.settings_with(&"a".into(), &said(&[("weight", "0")])).is_err());
}
