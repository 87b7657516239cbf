//! The benchmark's tables, in Markdown, so that a README can quote a run as it is.

use super::budget::{self, Idle};
use super::{Measured, Quantiles, Summary};
use ballast_protocol::Bytes;
use comfy_table::{CellAlignment, Table, presets};

pub fn tables(summary: &Summary) -> String {
    let mut messages = table(&["message", "bytes", "encode, ns", "decode, ns"]);
    for m in &summary.messages {
        let times = [format!("{:.0}", m.encode_ns), format!("{:.0}", m.decode_ns)];
        messages.add_row([m.kind.clone(), m.bytes.to_string()].into_iter().chain(times));
    }
    let mut planner = table(&["planner, us", "VMs", "median", "p99"]);
    for input in &summary.planner {
        for (name, q) in [("telemetry", &input.telemetry_us), ("demand", &input.demand_us)] {
            let times = [format!("{:.2}", q.median), format!("{:.2}", q.p99)];
            planner.add_row([name.to_owned(), input.vms.to_string()].into_iter().chain(times));
        }
    }
    let mut times = table(&["time, ms", "median", "p99", "samples"]);
    for orders in &summary.orders {
        quantiles(&mut times, &format!("order by {}", orders.backend), &orders.order_ms);
    }
    quantiles(&mut times, "vsock round trip", &summary.vsock_round_trip);
    format!("{messages}\n\n{planner}\n\n{times}\n\n{}\n", agent(&summary.guest_agent))
}

fn quantiles(table: &mut Table, name: &str, figure: &Measured<Quantiles>) {
    let cells = match figure {
        Measured::Yes(q) => [format!("{:.2}", q.median), format!("{:.2}", q.p99), q.samples.to_string()],
        Measured::No { not_measured } => [format!("not measured: {not_measured}"), String::new(), String::new()],
    };
    table.add_row([name.to_owned()].into_iter().chain(cells));
}

fn agent(budget: &Measured<budget::Budget>) -> String {
    let b = match budget {
        Measured::Yes(budget) => budget,
        Measured::No { not_measured } => return format!("guest agent: not measured: {not_measured}"),
    };
    let mut head = vec!["guest agent, idle".to_owned()];
    head.extend(b.guests.iter().map(|g| format!("{}, {} MiB", g.guest, g.kept_mib)));
    head.push("budget".into());
    let mut agent = table(&head.iter().map(String::as_str).collect::<Vec<_>>());
    let mut row = |name: &str, figure: &dyn Fn(&Idle) -> f64, allowed: f64, say: fn(f64) -> String| {
        let cell = |g: &Idle| {
            let over = if figure(g) > allowed { " OVER" } else { "" };
            format!("{}{over}", say(figure(g)))
        };
        let cells = b.guests.iter().map(cell);
        agent.add_row([name.to_owned()].into_iter().chain(cells).chain([say(allowed)]));
    };
    let size = |n: f64| Bytes(n as u64).to_string();
    row("file", &|_| b.file_bytes as f64, budget::FILE.0 as f64, size);
    row("resident", &|g| g.resident_bytes as f64, budget::RESIDENT.0 as f64, size);
    row("one CPU, %", &|g| g.cpu_percent, budget::CPU_PERCENT, |n| format!("{n:.2}"));
    row("wire, bytes/s", &|g| g.wire_bytes_s, budget::WIRE_BYTES_S, |n| format!("{n:.0}"));
    agent.to_string()
}

fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header(head);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
