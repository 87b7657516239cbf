//! The summary for a console and for a spreadsheet.

use super::Figure;
use crate::lab::results::{Cell, Interval, Oracle, Summary};
use crate::lab::stats;
use anyhow::{Context, Result};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// Laws by experiments, then the figures that were asked for.
#[must_use]
pub fn table(summary: &Summary, figures: &[Figure]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    let late = summary.cells.iter().any(|c| c.unfinished > 0);
    let mut header = vec!["experiment", "arm", "runs", "OOM kills", "refused", "killed"];
    header.extend(late.then_some("unfinished"));
    header.extend(["stalls", "throughput", "p99", "worst stall", "memory", "busy", "of oracle"]);
    table.set_header(header);
    let mut last = "";
    for cell in &summary.cells {
        let new = cell.experiment != last;
        if new && !last.is_empty() {
            table.add_row([""]);
        }
        last = &cell.experiment;
        let mut row = vec![
            if new { cell.experiment.clone() } else { String::new() },
            cell.arm.clone(),
            cell.repetitions.to_string(),
            count(cell.oom_kills),
            count(cell.failed_allocations),
            count(cell.killed),
        ];
        row.extend(late.then(|| count(cell.unfinished)));
        let percent = |ratio: Option<f64>| ratio.map_or("-".to_owned(), |r| format!("{:.0} %", r * 100.0));
        row.extend([
            cell.totals.allocation_stalls.to_string(),
            with_interval(cell, "throughput_ratio", cell.throughput_ratio),
            with_interval(cell, "p99_ratio", cell.p99_ratio),
            cell.worst_stall_ms.map_or("-".to_owned(), |ms| format!("{ms:.0} ms")),
            percent(cell.resident_ratio),
            percent(cell.resident_busy_ratio),
            cell.oracle_ratio.map_or("-".to_owned(), |r| format!("{r:.2}")),
        ]);
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    if summary.cells.is_empty() {
        return "no experiment came to a result\n".to_owned();
    }
    let mut text = format!("{table}\n");
    text.push_str("\nThroughput and p99 are medians of ratios to static, paired by repetition and phase; [95 % interval]; = no difference from\n");
    text.push_str("static, which one repetition cannot tell. Stalls are allocations that waited for reclaim, all guests and runs. Memory is what\n");
    text.push_str("the host held, mean over time, to static's; busy: while the arm's own phases ran.\n");
    text.extend(turns(summary).map(|turns| format!("{turns}\n")));
    for cell in &summary.cells {
        for error in &cell.errors {
            text.push_str(&format!("ended early: {} {}, {error}\n", cell.experiment, cell.arm));
        }
    }
    for block in &summary.run.left_out {
        text.push_str(&format!("left out for lack of time: {block}\n"));
    }
    if !summary.oracles.is_empty() {
        text.push('\n');
    }
    for (experiment, oracle) in &summary.oracles {
        text.push_str(&format!("oracle of {experiment}: {}\n", oracle_in_words(oracle)));
    }
    if !figures.is_empty() {
        text.push_str(&format!("\n{}\n", asked(figures)));
    }
    text.lines().map(|l| format!("{}\n", l.trim_end())).collect()
}

/// How much of the time arms worked. `None` when nothing was watched.
#[must_use]
pub fn turns(summary: &Summary) -> Option<String> {
    let shares: Vec<f64> = summary.cells.iter().filter_map(|c| Some(100.0 * c.busy_share?)).collect();
    let median = stats::median(&shares)?;
    let (low, high) = shares.iter().fold((f64::MAX, 0.0_f64), |(low, high), s| (low.min(*s), high.max(*s)));
    Some(format!(
        "an arm's own phases ran in {median:.0} % of the time (median; {low:.0} to {high:.0}); in the rest its guests were idle while \
         others had their turn"
    ))
}

fn asked(figures: &[Figure]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["figure", "to reach", "", "this run"]);
    for figure in figures {
        let reached = match figure.reached {
            Some(true) => "reached",
            Some(false) => "NOT REACHED",
            None => "unknown",
        };
        table.add_row([&figure.name, &figure.reach, reached, &figure.value]);
    }
    table
}

fn count(n: u64) -> String {
    if n == 0 { "0".to_owned() } else { format!("! {n}") }
}

fn with_interval(cell: &Cell, name: &str, value: Option<f64>) -> String {
    let Some(value) = value else { return "-".to_owned() };
    let same = cell.verdict.get(name).is_some_and(|v| v == "no difference");
    let sign = if same { "= " } else { "" };
    match cell.ci.get(name) {
        Some(Interval { low, high }) if low < high => format!("{sign}{value:.2} [{low:.2}, {high:.2}]"),
        _ => format!("{sign}{value:.2}"),
    }
}

/// One line.
#[must_use]
pub fn oracle_in_words(oracle: &Oracle) -> String {
    let Oracle { size_mib, resident_mib, lost_at } = oracle;
    let found = match lost_at {
        Some((mib, why)) => format!(
            "between {mib} MiB a guest, which lost ({why}), and {size_mib} MiB, which did not; each size was tried once, so that \
             it is rather too large"
        ),
        None => format!("at most {size_mib} MiB a guest, the smallest size tried; each was tried once"),
    };
    format!("{found}; {resident_mib:.0} MiB held in all")
}

/// One line per cell, units in the names, empty where there is no value.
///
/// # Errors
/// Never in practice: it is written to memory.
pub fn csv(summary: &Summary) -> Result<Vec<u8>> {
    const WITH_INTERVAL: [&str; 8] = [
        "throughput_ratio",
        "p50_ratio",
        "p99_ratio",
        "p999_ratio",
        "worst_stall_ms",
        "resident_ratio",
        "oracle_ratio",
        "resident_mib",
    ];
    let mut header = vec!["experiment", "arm", "repetitions", "oom_kills", "failed_allocations", "killed"]
        .into_iter()
        .map(str::to_owned)
        .collect::<Vec<_>>();
    for name in WITH_INTERVAL {
        header.extend([name.to_owned(), format!("{name}_low"), format!("{name}_high"), format!("{name}_verdict")]);
    }
    header.extend(
        [
            "stall_some_ms",
            "stall_full_ms",
            "allocation_stalls",
            "refault_mib",
            "swap_in_mib",
            "swap_out_mib",
            "inflated_mib",
            "deflated_mib",
            "resident_gib_s",
            "host_agent_cpu",
            "guest_agent_cpu",
            "sign_to_order_ms_median",
            "sign_to_order_ms_p99",
            "sign_to_first_mib_ms_median",
            "sign_to_first_mib_ms_p99",
            "over_budget_mib_s",
            "errors",
            "law",
            "unfinished",
            "busy_share",
            "resident_busy_mib",
            "resident_busy_ratio",
            "worst_phase_throughput",
            "worst_phase_throughput_label",
            "worst_phase_p99",
            "worst_phase_p99_label",
        ]
        .map(str::to_owned),
    );
    let mut file = ::csv::Writer::from_writer(Vec::new());
    file.write_record(&header)?;
    for cell in &summary.cells {
        file.write_record(line(cell, &WITH_INTERVAL))?;
    }
    file.into_inner().context("summary.csv")
}

fn line(cell: &Cell, with_interval: &[&str]) -> Vec<String> {
    let number = |v: Option<f64>| v.map_or(String::new(), |v| format!("{v}"));
    let mut line = vec![
        cell.experiment.clone(),
        cell.arm.clone(),
        cell.repetitions.to_string(),
        cell.oom_kills.to_string(),
        cell.failed_allocations.to_string(),
        cell.killed.to_string(),
    ];
    let values = [
        cell.throughput_ratio,
        cell.p50_ratio,
        cell.p99_ratio,
        cell.p999_ratio,
        cell.worst_stall_ms,
        cell.resident_ratio,
        cell.oracle_ratio,
        cell.resident_mib,
    ];
    for (name, value) in with_interval.iter().zip(values) {
        let interval = cell.ci.get(*name);
        line.extend([
            number(value),
            number(interval.map(|i| i.low)),
            number(interval.map(|i| i.high)),
            cell.verdict.get(*name).cloned().unwrap_or_default(),
        ]);
    }
    let t = &cell.totals;
    line.extend([
        t.stall_some_ms.to_string(),
        t.stall_full_ms.to_string(),
        t.allocation_stalls.to_string(),
        t.refault_mib.to_string(),
        t.swap_in_mib.to_string(),
        t.swap_out_mib.to_string(),
        t.inflated_mib.to_string(),
        t.deflated_mib.to_string(),
        t.resident_gib_s.to_string(),
        number(cell.host_agent_cpu),
        number(cell.guest_agent_cpu),
        number(cell.sign_to_order_ms.map(|s| s.0)),
        number(cell.sign_to_order_ms.map(|s| s.1)),
        number(cell.sign_to_first_mib_ms.map(|s| s.0)),
        number(cell.sign_to_first_mib_ms.map(|s| s.1)),
        number(cell.over_budget_mib_s),
        cell.errors.join("; "),
        cell.law.clone(),
        cell.unfinished.to_string(),
        number(cell.busy_share),
        number(cell.resident_busy_mib),
        number(cell.resident_busy_ratio),
    ]);
    for worst in [&cell.worst_phase_throughput, &cell.worst_phase_p99] {
        line.extend([
            number(worst.as_ref().map(|w| w.ratio)),
            worst.as_ref().map_or(String::new(), |w| w.label.clone()),
        ]);
    }
    line
}
