//! What is drawn, on terminals of known sizes, and what keys do.

use super::app::{App, Place};
use super::draw::draw;
use super::feed::{News, Wish};
use super::keys::press;
use super::order::Column;
use crate::control::{Explained, HoldRequest, Status};
use ballast_planner::VmName;
use ballast_protocol::{Bytes, Micros};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::{Value, json};
use std::time::Duration;

const MIB: u64 = 1 << 20;

fn vm(name: &str, max: u64, actual: u64, available: u64, more: Value) -> Value {
    let mut vm = json!({
        "name": name, "running": true, "max": max * MIB, "min": 64 * MIB, "target": actual * MIB, "actual": actual * MIB,
        "available": available * MIB, "slack": 64 * MIB, "floor": (actual - available) * MIB, "headroom": 64 * MIB,
        "pending": 0, "pressure": 1_000_000, "agent": "alive", "guest": null, "report_age": 100_000, "trusted": true,
        "deflate_on_oom": true, "leases": 0, "last": null, "holding": "nothing to gain", "holding_for": null,
        "service": null, "counts": {
            "takings": 0, "givings": 0, "taken": 0, "given": 0, "undone": 0, "stalled": 0, "self_deflated": 0,
            "demands": {}, "distrusted": 0, "oom_kills": 0,
        },
    });
    for (key, value) in more.as_object().unwrap() {
        vm[key] = value.clone();
    }
    vm
}

fn status(second: u64) -> Status {
    let service = json!({
        "mode": "Unlimited", "throughput": 900_000_000, "retransmits": null, "rtt": null, "age": 1_000_000, "percent": 61,
        "limit_percent": 70, "learnt": 20, "short": true, "shortfalls": 1,
    });
    let stalled = 1_000_000 + 30_000 * second;
    serde_json::from_value(json!({
        "version": "0.1.0", "pid": 4711, "up": (3_600 + second) * 1_000_000, "config": "/etc/ballast/host.toml",
        "law": "ballast", "journal": null, "hypervisors": [], "waiting": [],
        "pool": {
            "total": 16_384 * MIB, "available": 9_216 * MIB, "reserve": 1_024 * MIB, "burst_reserve": 2_048 * MIB,
            "reserved": 0, "unavailable": 0, "short": 0, "reservations": [],
        },
        "host": { "total": 16_384 * MIB, "available": 9_216 * MIB, "psi_some_avg10": null },
        "vms": [
            vm("database", 4096, 3000 + 50 * second, 200, json!({
                "pending": 128 * MIB, "pressure": stalled,
                "last": [2_100_000, (3000 + 50 * second) * MIB, "demand 7 (slack)"],
            })),
            vm("build-host", 2048, 700, 300, json!({
                "service": service, "want": 1024 * MIB,
                "hold": { "size": 700 * MIB, "until": null, "by": "anna", "reason": "a measurement" },
            })),
            vm("web", 1024, 512, 256, json!({ "last": [95_000_000, 512 * MIB, "128 MiB free beyond the headroom"] })),
            vm("windows", 2048, 2048, 0, json!({ "agent": "never", "available": null, "floor": null, "pressure": null,
                "slack": null, "pending": null, "holding": "the last report is too old to take on" })),
        ],
    }))
    .unwrap()
}

fn explained() -> Explained {
    let status = status(1);
    serde_json::from_value(json!({
        "status": status.vms[0], "law": "ballast", "now": 3_601_000_000_u64,
        "decisions": [{ "at": 3_599_000_000_u64, "text": "give: 2.9 GiB -> 3.0 GiB: demand 7 (slack)" }],
    }))
    .unwrap()
}

/// Three seconds of it.
fn app() -> App {
    let mut app = App::default();
    for second in 0..3 {
        app.learn(Duration::from_secs(second), News::Status(Ok(Box::new(status(second)))));
    }
    app
}

fn type_keys(app: &mut App, keys: &[KeyCode]) -> Vec<Wish> {
    keys.iter().filter_map(|code| press(app, KeyEvent::new(*code, KeyModifiers::NONE))).collect()
}

/// The screen, its lines without what is blank at their ends.
fn screen(app: &mut App, width: u16, height: u16, at: u64) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, app, Duration::from_secs(at))).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y: u16| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    let lines: Vec<String> = (0..height).map(|y| line(y).trim_end().to_owned()).collect();
    lines.join("\n")
}

fn assert_screen(app: &mut App, (width, height): (u16, u16), at: u64, expected: &str) {
    let shown = screen(app, width, height, at);
    let expected = expected.strip_prefix('\n').unwrap_or(expected).trim_end();
    assert_eq!(shown.trim_end(), expected, "\n{shown}\n");
}

#[test]
fn a_terminal_of_80_by_24_shows_all_columns() {
    assert_screen(
        &mut app(),
        (80, 24),
        3,
        "
ballast-host 0.1.0 up 1 h 0 min, law ballast, 4 VMs
host 16 GiB: 9 GiB free, reserve 1 GiB, bursts 2 GiB; VMs keep 6.2 GiB of 9 GiB
all VMs     ▇▇█
6.2 GiB     ███
VM                MiB▼     use   demand   floor   psi   service last decision
database          3100    2900      128    2900   3 %         - demand 7 (slack)
windows           2048       -        -       -     -         - the last report
build-host         700     400   -/1024     400   0 %  61 % LOW held at 700 MiB
web                512     256        -     256   0 %         - 128 MiB free bey














q quit  s sort  / filter  e explain  h hold  S turn the order",
    );
}

#[test]
fn a_terminal_of_40_by_10_shows_the_sizes_and_the_demands() {
    assert_screen(
        &mut app(),
        (40, 10),
        3,
        "
ballast-host 0.1.0 up 1 h 0 min, law bal
host 16 GiB: 9 GiB free, reserve 1 GiB,
VM                MiB▼     use   demand
database          3100    2900      128
windows           2048       -        -
build-host         700     400   -/1024
web                512     256        -


q quit  s sort  / filter  e explain  h h",
    );
}

#[test]
fn a_terminal_of_any_size_is_drawn_on() {
    let mut app = app();
    for (width, height) in [(1, 1), (3, 2), (20, 4), (300, 100), (80, 3)] {
        screen(&mut app, width, height, 3);
        type_keys(&mut app, &[KeyCode::Char('e')]);
        screen(&mut app, width, height, 3);
        type_keys(&mut app, &[KeyCode::Esc, KeyCode::PageDown]);
    }
}

#[test]
fn one_vm_is_explained_and_can_be_scrolled() {
    let mut app = app();
    assert_eq!(type_keys(&mut app, &[KeyCode::Char('e')]), [Wish::Explain(Some(VmName::from("database")))]);
    assert!(screen(&mut app, 80, 24, 3).contains("asking the daemon"));
    app.learn(Duration::from_secs(3), News::Explained(Ok(Box::new(explained()))));
    let shown = screen(&mut app, 80, 24, 3);
    for line in [
        "this VM     ▇▇█",
        "database: told to keep 3.0 GiB, at most 4 GiB",
        "   class and weight on a host that is short",
    ] {
        assert!(shown.contains(line), "{line}\n{shown}");
    }
    assert!(!shown.contains("demand 7"), "it is below\n{shown}");
    type_keys(&mut app, &[KeyCode::End]);
    assert!(screen(&mut app, 80, 24, 3).contains("demand 7 (slack)"), "the last decision is at the end");
    assert_eq!(type_keys(&mut app, &[KeyCode::Esc]), [Wish::Explain(None)]);
    assert_eq!(app.place, Place::List);
    // It came too late.
    app.learn(Duration::from_secs(4), News::Explained(Ok(Box::new(explained()))));
    assert!(app.explained.is_none());
}

#[test]
fn a_daemon_that_is_gone_is_said_with_what_it_said_last_and_its_return_ends_that() {
    let mut app = app();
    for second in 3..6 {
        app.learn(Duration::from_secs(second), News::Status(Err("no ballast-host answers".into())));
    }
    let gone = screen(&mut app, 80, 24, 13);
    assert!(gone.starts_with("NO ANSWER for 10 s: no ballast-host answers"), "{gone}");
    assert!(gone.contains("database"), "{gone}");
    app.learn(Duration::from_secs(14), News::Status(Ok(Box::new(status(14)))));
    assert!(screen(&mut app, 80, 24, 14).starts_with("ballast-host 0.1.0 up 1 h 0 min, law ballast"));

    let mut never = App::default();
    assert!(screen(&mut never, 80, 24, 0).starts_with("asking the daemon"));
    never.learn(Duration::ZERO, News::Status(Err("no ballast-host answers".into())));
    assert!(screen(&mut never, 80, 24, 1).starts_with("NO ANSWER for 1 s"));
}

fn names(app: &App) -> Vec<&str> {
    app.listed().iter().map(|row| row.vm.name.0.as_str()).collect()
}

#[test]
fn s_sorts_by_one_column_after_another_and_what_is_not_known_comes_last() {
    let mut app = app();
    assert_eq!((app.column, names(&app)), (Column::Size, vec!["database", "windows", "build-host", "web"]));
    let orders = [
        (Column::Use, ["database", "build-host", "web", "windows"]),
        (Column::Demand, ["database", "build-host", "web", "windows"]),
        (Column::Floor, ["database", "build-host", "web", "windows"]),
        (Column::Pressure, ["database", "build-host", "web", "windows"]),
        (Column::Service, ["build-host", "database", "web", "windows"]),
        (Column::Last, ["database", "web", "build-host", "windows"]),
        (Column::Name, ["build-host", "database", "web", "windows"]),
    ];
    for (column, expected) in orders {
        type_keys(&mut app, &[KeyCode::Char('s')]);
        assert_eq!((app.column, names(&app)), (column, expected.to_vec()));
    }
    type_keys(&mut app, &[KeyCode::Char('S')]);
    assert_eq!(names(&app), ["windows", "web", "database", "build-host"]);
}

#[test]
fn the_chosen_vm_stays_chosen_when_the_order_changes() {
    let mut app = app();
    type_keys(&mut app, &[KeyCode::Down, KeyCode::Char('j'), KeyCode::Up]);
    assert_eq!(app.chosen(), Some(VmName::from("windows")));
    type_keys(&mut app, &[KeyCode::Char('s')]);
    assert_eq!((app.chosen(), app.position()), (Some(VmName::from("windows")), Some(3)));
    type_keys(&mut app, &[KeyCode::End, KeyCode::Down]);
    assert_eq!(app.position(), Some(3));
    type_keys(&mut app, &[KeyCode::Home, KeyCode::Up]);
    assert_eq!(app.position(), Some(0));
}

#[test]
fn a_filter_leaves_the_names_that_contain_it() {
    let mut app = app();
    type_keys(&mut app, &[KeyCode::Char('/'), KeyCode::Char('w'), KeyCode::Char('q')]);
    assert!(names(&app).is_empty() && app.chosen().is_none(), "q is a letter here");
    assert!(type_keys(&mut app, &[KeyCode::Enter, KeyCode::Char('e'), KeyCode::Down]).is_empty(), "nothing to explain");
    type_keys(&mut app, &[KeyCode::Char('/'), KeyCode::Backspace, KeyCode::Enter]);
    assert_eq!(names(&app), ["windows", "web"]);
    assert!(screen(&mut app, 80, 24, 3).ends_with("names with `w`, Esc shows all   q quit   e explain"));
    type_keys(&mut app, &[KeyCode::Esc]);
    assert_eq!(names(&app).len(), 4);
}

#[test]
fn q_and_control_c_and_signals_end_it() {
    for how in 0..3 {
        let mut app = app();
        assert!(!app.is_over());
        match how {
            0 => drop(type_keys(&mut app, &[KeyCode::Char('q')])),
            1 => drop(press(&mut app, KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL))),
            _ => app.learn(Duration::from_secs(3), News::Stop),
        }
        assert!(app.is_over());
    }
}

#[test]
fn pressure_is_the_part_of_the_time_between_two_looks() {
    let mut app = App::default();
    app.learn(Duration::ZERO, News::Status(Ok(Box::new(status(0)))));
    assert!(app.rows.iter().all(|row| row.pressure.is_none()), "one look tells nothing");
    app.learn(Duration::from_secs(1), News::Status(Ok(Box::new(status(1)))));
    let of = |name: &str| app.rows.iter().find(|row| row.vm.name.0 == name).unwrap().pressure;
    assert_eq!((of("database"), of("web"), of("windows")), (Some(3), Some(0), None));
}

fn type_text(app: &mut App, text: &str) {
    assert!(type_keys(app, &text.chars().map(KeyCode::Char).collect::<Vec<_>>()).is_empty());
}

#[test]
fn h_asks_for_a_hold_and_what_the_daemon_says_stands_until_the_next_key() {
    let mut app = app();
    type_keys(&mut app, &[KeyCode::End, KeyCode::Char('h')]);
    let form = screen(&mut app, 80, 24, 3);
    for line in ["hold web (Enter: next, Esc: do not)", "  size, like 512M: 512M_", "  reason:"] {
        assert!(form.contains(line), "{line}\n{form}");
    }
    assert!(screen(&mut app, 40, 10, 3).contains("hold web"));
    type_keys(&mut app, &[KeyCode::Backspace; 4]);
    type_text(&mut app, "256M");
    type_keys(&mut app, &[KeyCode::Enter]);
    type_text(&mut app, "10m");
    type_keys(&mut app, &[KeyCode::Tab]);
    type_text(&mut app, " q is a letter ");
    let request = HoldRequest {
        size: Bytes::mib(256),
        during: Some(Micros::secs(600)),
        reason: "q is a letter".to_owned(),
        force: false,
    };
    assert_eq!(type_keys(&mut app, &[KeyCode::Enter]), [Wish::Hold(VmName::from("web"), request)]);
    app.learn(Duration::from_secs(3), News::Held(Ok("web is held at 256 MiB".into())));
    assert!(screen(&mut app, 80, 24, 3).ends_with("web is held at 256 MiB"));
    type_keys(&mut app, &[KeyCode::Up]);
    assert!(!screen(&mut app, 80, 24, 3).contains("is held at 256"));
    app.learn(Duration::from_secs(4), News::Held(Err("anna holds it".into())));
    assert!(screen(&mut app, 80, 24, 4).ends_with("anna holds it"));
}

#[test]
fn a_hold_that_is_wrong_says_what_and_one_thought_better_of_is_not_sent() {
    let mut app = app();
    for (text, problem) in [("12", "`12` is not a memory size: it has no unit"), ("12M", "say why")] {
        type_keys(&mut app, &[KeyCode::Char('h')]);
        type_keys(&mut app, &[KeyCode::Backspace; 9]);
        type_text(&mut app, text);
        assert!(type_keys(&mut app, &[KeyCode::Enter; 3]).is_empty());
        let shown = screen(&mut app, 120, 24, 3);
        assert!(shown.contains(problem), "{shown}");
        assert!(type_keys(&mut app, &[KeyCode::Esc]).is_empty());
        assert_eq!(app.place, Place::List);
    }
    type_keys(&mut app, &[KeyCode::Char('h'), KeyCode::Down]);
    type_text(&mut app, "soon");
    assert!(type_keys(&mut app, &[KeyCode::Enter; 2]).is_empty());
    assert!(screen(&mut app, 120, 24, 3).contains("`soon` is no time"));
}

#[test]
fn what_waits_for_somebody_to_mend_it_is_said_first() {
    let mut app = App::default();
    let wrong = || Status { problems: vec!["b.toml:4: VM `b`: unknown key".to_owned()], ..status(0) };
    app.learn(Duration::ZERO, News::Status(Ok(Box::new(wrong()))));
    assert!(screen(&mut app, 80, 24, 0).starts_with("WRONG: b.toml:4: VM `b`: unknown key  ballast-host 0.1.0"));
    let hypervisors = serde_json::from_value(json!([{ "name": "libvirt", "error": "away" }])).unwrap();
    app.learn(Duration::ZERO, News::Status(Ok(Box::new(Status { hypervisors, ..wrong() }))));
    assert!(screen(&mut app, 80, 24, 0).starts_with("WRONG, and 1 more in `status`: libvirt: away  "));
}

#[test]
fn a_host_that_is_short_says_so_first() {
    let mut app = App::default();
    let mut short = status(0);
    short.pool.as_mut().unwrap().short = Bytes::mib(300);
    app.learn(Duration::ZERO, News::Status(Ok(Box::new(short))));
    assert!(screen(&mut app, 80, 24, 0).contains("\nHOST SHORT BY 300 MiB  host 16 GiB: 9 GiB free"));
}
