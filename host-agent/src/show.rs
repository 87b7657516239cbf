//! Tables for people. Whoever wants to compute uses `--json`.

use crate::control::{Done, Explained, Reclaimed, Reloaded, Status};
use crate::replay::Replayed;
use ballast_planner::{HostStatus, ServiceMode, VmStatus};
use ballast_protocol::{Bytes, Micros};
use comfy_table::{Cell, CellAlignment, Table, presets};
use std::fmt::Write;

fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(head.iter().map(Cell::new));
    table
}

fn right(text: impl std::fmt::Display) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

fn mib(size: Option<Bytes>) -> Cell {
    right(size.map_or_else(|| "-".to_owned(), |s| s.as_mib().to_string()))
}

/// `ballast-host status`.
#[must_use]
pub fn status(status: &Status) -> String {
    let mut out = format!("ballast-host {} up {} (pid {})\n", status.version, status.up, status.pid);
    let _ = write!(out, "  law {}", status.law);
    let _ = match &status.host {
        Some(host) => writeln!(out, ": {} of {} are available on the host", host.available, host.total),
        None => writeln!(out),
    };
    if status.dry_run {
        out.push_str("  DRY RUN: nothing is ordered\n");
    }
    if let Some(pool) = &status.pool {
        out.push_str(&host(pool, status.now));
    }
    for hypervisor in &status.hypervisors {
        let state = hypervisor.error.as_ref().map_or_else(|| "ok".to_owned(), |e| format!("NO ANSWER: {e}"));
        let _ = writeln!(out, "  {}: {state}", hypervisor.name);
    }
    for problem in &status.problems {
        let _ = writeln!(out, "  WRONG: {problem}");
    }
    let mut vms = table(&[
        "VM",
        "class",
        "MiB: max",
        "target",
        "actual",
        "want",
        "floor",
        "slack",
        "agent",
        "service",
        "last move",
        "now",
    ]);
    for vm in &status.vms {
        let last = vm.last.as_ref().map_or_else(String::new, |(ago, to, why)| format!("{ago} ago to {to}: {why}"));
        vms.add_row(vec![
            Cell::new(&vm.name.0),
            Cell::new(format!("{} {}", vm.class, vm.weight)),
            mib(Some(vm.max)),
            mib(Some(vm.target)),
            mib(vm.actual),
            mib(vm.want),
            mib(vm.floor),
            mib(vm.slack),
            Cell::new(&vm.agent),
            right(service(vm)),
            Cell::new(last),
            Cell::new(&vm.holding),
        ]);
    }
    for waiting in &status.waiting {
        let agent = if waiting.agent { "alive" } else { "-" };
        let mut row = vec![Cell::new(&waiting.name.0), Cell::new("")];
        row.extend((0..6).map(|_| mib(None)));
        row.extend([Cell::new(agent), right("-"), Cell::new(""), Cell::new("waiting for its hypervisor")]);
        vms.add_row(row);
    }
    for probe in &status.probes {
        if let Some(problem) = &probe.problem {
            let _ = writeln!(out, "  {}: the service level is not measured: {problem}", probe.vm);
        }
    }
    if vms.row_count() == 0 {
        out.push_str("no VM is known: name one in a [[vm]] table, or add [libvirt]\n");
    } else {
        let _ = writeln!(out, "{vms}");
    }
    out
}

/// What the arbiter makes of the host.
fn host(pool: &HostStatus, now: Micros) -> String {
    let mut out = format!(
        "  host: {} in all, {} available; reserve {}, for bursts {}, reserved {}, in VMs that cannot give {}\n",
        pool.total, pool.available, pool.reserve, pool.burst_reserve, pool.reserved, pool.unavailable
    );
    if pool.short > Bytes::ZERO {
        let _ = writeln!(out, "  HOST SHORT BY {}", pool.short);
    }
    for reservation in &pool.reservations {
        let ready = if reservation.ready { "there is room" } else { "room is being made" };
        let left = seconds(reservation.until - now);
        let _ = writeln!(out, "  {} reserved for {} for {left} yet: {ready}", reservation.size, reservation.name);
    }
    out
}

/// A time for people, to the second.
pub(crate) fn seconds(span: Micros) -> String {
    humantime::format_duration(std::time::Duration::from_secs(span.0 / 1_000_000)).to_string()
}

fn hold_text(vm: &VmStatus, now: Micros) -> String {
    let Some(hold) = &vm.hold else { return "no".to_owned() };
    let lasts =
        hold.until.map_or_else(|| "until it is released".to_owned(), |u| format!("for {} yet", seconds(u - now)));
    format!("at {} by {} {lasts}: {}", hold.size, hold.by, hold.reason)
}

/// What a command did.
#[must_use]
pub fn done(done: &Done) -> String {
    let notes: String = done.notes.iter().map(|note| format!("  {note}\n")).collect();
    format!("{}\n{notes}", done.done)
}

/// `ballast-host reload`.
#[must_use]
pub fn reloaded(reloaded: &Reloaded) -> String {
    let mut out = String::new();
    for changed in &reloaded.changed {
        let _ = writeln!(out, "{changed}");
    }
    for refused in &reloaded.refused {
        let _ = writeln!(out, "REFUSED: {refused}");
    }
    if out.is_empty() {
        out.push_str("the file says nothing new\n");
    }
    out
}

/// `ballast-host reclaim`.
#[must_use]
pub fn reclaimed(reclaimed: &Reclaimed) -> String {
    let Reclaimed { asked, total, dry_run, takings } = reclaimed;
    let mut out = match (dry_run, total < asked) {
        (true, false) => format!("dry run: {total} would be taken\n"),
        (true, true) => format!("dry run: {total} of {asked} would be taken, nobody can spare more now\n"),
        (false, false) => format!("{total} are being taken\n"),
        (false, true) => format!("{total} of {asked} are being taken; more follows if it can be spared within 30 s\n"),
    };
    if !takings.is_empty() {
        let mut rows = table(&["VM", "MiB: keeps", "is left", "taken", "why"]);
        for taking in takings {
            rows.add_row(vec![
                Cell::new(&taking.vm.0),
                mib(Some(taking.from)),
                mib(Some(taking.to)),
                mib(Some(taking.from - taking.to)),
                Cell::new(&taking.why),
            ]);
        }
        let _ = writeln!(out, "{rows}");
    }
    out
}

/// The service level in a few characters.
pub(crate) fn service(vm: &VmStatus) -> String {
    let Some(service) = &vm.service else { return "-".to_owned() };
    let low = if service.short { " LOW" } else { "" };
    match service.percent {
        Some(percent) => format!("{percent} %{low}"),
        None => mbits(service.throughput),
    }
}

fn forecast_text(vm: &VmStatus) -> String {
    let Some(f) = &vm.forecast else {
        return match (vm.agent.as_str(), vm.report_age, vm.pressure) {
            ("alive", Some(_), None) => "none: the guest's kernel tells no pressure (boot it with psi=1)",
            ("alive", ..) => "none: none was made yet, they are switched off, or `status` names what is wrong",
            _ => "none: no agent says what the guest does",
        }
        .to_owned();
    };
    let covered = f.coverage.map_or_else(String::new, |c| format!("; {c} of the last outcomes within the 95 % line"));
    let size = f.size.map_or_else(String::new, |size| format!("; {size} would do"));
    let headroom = f.headroom.map_or_else(String::new, |headroom| format!(", {headroom} of headroom"));
    format!("{}: {}{size}{headroom}{covered}", f.mode, f.standing)
}

fn mbits(bits: u64) -> String {
    format!("{:.0} Mbit/s", bits as f64 / 1e6)
}

fn service_text(vm: &VmStatus) -> String {
    let Some(s) = &vm.service else { return "not measured".to_owned() };
    let how = match s.mode {
        ServiceMode::Unlimited => "by iperf3",
        ServiceMode::RateLimited => "by iperf3 at a fixed rate",
        ServiceMode::Passive => "by its interface",
    };
    let mut text = format!("{} {how}, {} ago", mbits(s.throughput), s.age);
    if let (Some(retransmits), Some(rtt)) = (s.retransmits, s.rtt) {
        let _ = write!(text, "; {retransmits} retransmits, {rtt} round trip");
    }
    text
}

fn baseline_text(vm: &VmStatus) -> String {
    match vm.service.map(|s| (s, s.percent, s.limit_percent)) {
        None => "not measured".to_owned(),
        Some((s, Some(percent), Some(limit))) => {
            let now = if s.short { ", LOW now" } else { "" };
            format!("{percent} %, low below {limit} %; {} shortfalls{now}", s.shortfalls)
        }
        Some((s, ..)) => format!("not known yet, {} samples", s.learnt),
    }
}

fn probes_text(explained: &Explained) -> String {
    let Some(probe) = &explained.probe else { return "none".to_owned() };
    let mut text = format!("{} in {}, {}", probe.probes, probe.time, probe.traffic);
    if probe.failures > 0 {
        let _ = write!(text, "; {} failed", probe.failures);
    }
    text
}

/// `ballast-host explain VM`.
#[must_use]
pub fn explain(explained: &Explained) -> String {
    let vm = &explained.status;
    let mut out = format!("{}: told to keep {}, at most {}, at least {}\n", vm.name, vm.target, vm.max, vm.min);
    let mut facts = table(&["", ""]);
    let text = |size: Option<Bytes>| size.map_or_else(|| "not known".to_owned(), |s| s.to_string());
    let yes = |b: bool| if b { "yes" } else { "NO" }.to_owned();
    for (what, value) in [
        ("the law that rules", explained.law.to_string()),
        ("class and weight on a host that is short", format!("{}, {}", vm.class, vm.weight)),
        ("held by an operator", hold_text(vm, explained.now)),
        ("keeps, by the hypervisor", text(vm.actual)),
        ("needs, and the host has not", vm.want.map_or_else(|| "nothing".to_owned(), |w| w.to_string())),
        ("available, by the guest", text(vm.available)),
        ("slack: free above the low watermark", text(vm.slack)),
        ("headroom it is left with when quiet", vm.headroom.to_string()),
        ("floor, by the guest", text(vm.floor)),
        ("pending demands, by the guest", text(vm.pending)),
        ("agent", vm.guest.as_ref().map_or_else(|| vm.agent.clone(), |g| format!("{} ({g})", vm.agent))),
        ("last report", vm.report_age.map_or_else(|| "none".to_owned(), |a: Micros| format!("{a} ago"))),
        ("its reports are believed", yes(vm.trusted)),
        ("balloon lets go when it runs out", yes(vm.deflate_on_oom)),
        ("leases held", vm.leases.to_string()),
        (
            "taken / given",
            format!(
                "{} in {} orders / {} in {}",
                vm.counts.taken, vm.counts.takings, vm.counts.given, vm.counts.givings
            ),
        ),
        ("takings undone / stalled", format!("{} / {}", vm.counts.undone, vm.counts.stalled)),
        ("balloon let go by itself", vm.counts.self_deflated.to_string()),
        ("service level", service_text(vm)),
        ("of its own baseline", baseline_text(vm)),
        ("probes of it", probes_text(explained)),
        ("OOM kills inside", vm.counts.oom_kills.to_string()),
        ("forecasts", forecast_text(vm)),
    ] {
        facts.add_row(vec![format!("  {what}"), value]);
    }
    let body = facts.to_string();
    out.push_str(body.split_once('\n').map_or("", |(_, rows)| rows));
    let until = vm.holding_for.map_or_else(String::new, |t| format!(" (for {t} yet)"));
    let _ = writeln!(out, "\nnow: {}{until}\n", vm.holding);
    if let Some(problem) = explained.probe.as_ref().and_then(|p| p.problem.as_ref()) {
        let _ = writeln!(out, "the service level is not measured: {problem}\n");
    }
    if let Some(curve) = crate::curve::text(vm) {
        let _ = writeln!(out, "{curve}");
    }
    for decision in &explained.decisions {
        let _ = writeln!(out, "{:>12} ago  {}", (explained.now - decision.at).to_string(), decision.text);
    }
    out
}

/// `ballast-host replay`.
#[must_use]
pub fn replayed(replayed: &Replayed) -> String {
    let mut out = format!(
        "{} inputs over {}, {} actions, {} orders\n",
        replayed.inputs, replayed.span, replayed.actions, replayed.orders
    );
    for (reason, count) in &replayed.reasons {
        let _ = writeln!(out, "{count:>8}  {reason}");
    }
    match &replayed.difference {
        None => out.push_str("every decision is the same, byte for byte\n"),
        Some(d) => {
            let nothing = || "nothing".to_owned();
            let _ = writeln!(
                out,
                "DIFFERENT at {}:\n  journal: {}\n  planner: {}",
                d.at,
                d.journal.clone().unwrap_or_else(nothing),
                d.planner.clone().unwrap_or_else(nothing)
            );
        }
    }
    out
}
