//! The tables of the page.

use super::theme::{arm_css, escaped};
use crate::lab::results::{BALLAST, Cell, Interval, STATIC, Summary};
use crate::lab::stats;
use crate::lab::summary::{Figure, Place, Standing, counted, lost, oracle_in_words};
use std::fmt::Write;

/// An arm's name in its colour.
#[must_use]
pub fn name(arm: &str) -> String {
    let ours = if arm == BALLAST { " ours" } else { "" };
    format!("<span class=\"arm{ours}\" style=\"--c:{}\">{}</span>", arm_css(arm), escaped(arm))
}

/// The figures that were asked for, as cards.
#[must_use]
pub fn figures(figures: &[Figure]) -> String {
    let mut html = String::from("<div class=\"cards\">");
    for figure in figures {
        let (class, sign) = match figure.reached {
            Some(true) => ("good", "✓ reached"),
            Some(false) => ("bad", "✕ not reached"),
            None => ("muted", "unknown in this run"),
        };
        let _ = write!(
            html,
            "<div class=\"card\"><p class=\"muted\">{}</p><p class=\"value\">{}</p><p class=\"{class}\">{sign} <span class=\"muted\">\
             (asked: {})</span></p></div>",
            escaped(&figure.name),
            escaped(&figure.value),
            escaped(&figure.reach)
        );
    }
    html.push_str("</div>\n");
    html
}

fn arms(summary: &Summary) -> Vec<&str> {
    let mut arms: Vec<&str> = Vec::new();
    for cell in &summary.cells {
        if !arms.contains(&cell.arm.as_str()) {
            arms.push(&cell.arm);
        }
    }
    arms
}

fn experiments(summary: &Summary) -> Vec<&str> {
    let mut names: Vec<&str> = summary.cells.iter().map(|c| c.experiment.as_str()).collect();
    names.dedup();
    names
}

/// Laws by workloads: per cell what was killed, memory held, throughput and p99.
#[must_use]
pub fn matrix(summary: &Summary) -> String {
    let names = experiments(summary);
    let mut html = String::from("<div class=\"scroll\"><table class=\"matrix\"><thead><tr><th>law</th>");
    for experiment in &names {
        let _ = write!(html, "<th>{}</th>", escaped(experiment));
    }
    html.push_str("</tr></thead><tbody>");
    for arm in arms(summary) {
        let _ = write!(html, "<tr><th scope=\"row\">{}</th>", name(arm));
        for experiment in &names {
            let cell = summary.cells.iter().find(|c| c.arm == arm && c.experiment == *experiment);
            html.push_str(&cell.map_or("<td class=\"muted\">not run</td>".to_owned(), matrix_cell));
        }
        html.push_str("</tr>");
    }
    html.push_str("</tbody></table></div>\n");
    html
}

fn matrix_cell(cell: &Cell) -> String {
    let lost = lost(cell);
    let mut parts = Vec::new();
    if lost > 0 {
        parts.push(format!("<b class=\"bad\">✕ {lost} killed or refused</b>"));
    }
    if cell.unfinished > 0 {
        parts.push(format!("<b class=\"bad\">{} unfinished</b>", cell.unfinished));
    }
    if !cell.errors.is_empty() {
        parts.push(format!(
            "<span class=\"bad\" title=\"{}\">{} ended early</span>",
            escaped(&cell.errors.join("\n")),
            counted(cell.errors.len() as u64, "run")
        ));
    }
    let mut line = |label: &str, key: &str, value: Option<f64>, show: fn(f64) -> String| {
        let Some(value) = value else { return };
        let verdict = cell.verdict.get(key).map_or("", String::as_str);
        let class = match verdict {
            v if v.starts_with("better") => "good",
            v if v.starts_with("worse") => "worse",
            "no difference" => "same",
            _ => "",
        };
        let hint = match cell.ci.get(key) {
            Some(Interval { low, high }) => format!("{verdict} [{}, {}]", show(*low), show(*high)),
            None => verdict.to_owned(),
        };
        parts.push(format!(
            "<span title=\"{}\"><i>{label}</i> <span class=\"{class}\">{}</span></span>",
            escaped(&hint),
            show(value)
        ));
    };
    let percent = |r: f64| format!("{:.0} %", 100.0 * r);
    let times = |r: f64| format!("{r:.2} ×");
    line("memory", "resident_ratio", cell.resident_ratio, percent);
    line("busy", "resident_busy_ratio", cell.resident_busy_ratio, percent);
    line("work", "throughput_ratio", cell.throughput_ratio, percent);
    line("p99", "p99_ratio", cell.p99_ratio, times);
    if parts.is_empty() {
        parts.push("<span class=\"muted\">nothing to compare</span>".to_owned());
    }
    let class = if lost > 0 { " class=\"lost\"" } else { "" };
    format!("<td{class}>{}</td>", parts.join("<br/>"))
}

fn with_interval(cell: &Cell, key: &str, value: Option<f64>, digits: usize) -> String {
    let Some(value) = value else { return "–".to_owned() };
    match cell.ci.get(key) {
        Some(Interval { low, high }) if low < high => {
            format!("{value:.digits$} <small>[{low:.digits$}, {high:.digits$}]</small>")
        }
        _ => format!("{value:.digits$}"),
    }
}

/// Every figure with its interval.
#[must_use]
pub fn details(summary: &Summary) -> String {
    let late = summary.cells.iter().any(|c| c.unfinished > 0);
    let mut html = String::from("<div class=\"scroll\"><table class=\"figures\"><thead><tr>");
    for head in [
        "experiment",
        "law",
        "runs",
        "OOM kills",
        "refused",
        "killed",
        "unfinished",
        "throughput",
        "p50",
        "p99",
        "p99.9",
        "worst stall, ms",
        "memory held, MiB",
        "of static",
        "own phases, %",
        "of static in them",
        "of oracle",
        "stalled (PSI), s",
        "refaults, MiB",
        "swap in + out, MiB",
        "over budget, MiB s",
    ]
    .into_iter()
    .filter(|head| late || *head != "unfinished")
    {
        let _ = write!(html, "<th>{head}</th>");
    }
    html.push_str("</tr></thead><tbody>");
    let mut last = "";
    for cell in &summary.cells {
        let (first, shown) =
            if cell.experiment == last { ("", "") } else { (" class=\"first\"", cell.experiment.as_str()) };
        last = &cell.experiment;
        let _ = write!(html, "<tr{first}><th scope=\"row\">{}</th><td>{}</td>", escaped(shown), name(&cell.arm));
        let number = |n: u64| if n > 0 { format!("<b class=\"bad\">{n}</b>") } else { "0".to_owned() };
        let t = &cell.totals;
        let mut columns = vec![
            cell.repetitions.to_string(),
            number(cell.oom_kills),
            number(cell.failed_allocations),
            number(cell.killed),
        ];
        columns.extend(late.then(|| number(cell.unfinished)));
        columns.extend([
            with_interval(cell, "throughput_ratio", cell.throughput_ratio, 2),
            with_interval(cell, "p50_ratio", cell.p50_ratio, 2),
            with_interval(cell, "p99_ratio", cell.p99_ratio, 2),
            with_interval(cell, "p999_ratio", cell.p999_ratio, 2),
            with_interval(cell, "worst_stall_ms", cell.worst_stall_ms, 0),
            with_interval(cell, "resident_mib", cell.resident_mib, 0),
            with_interval(cell, "resident_ratio", cell.resident_ratio, 2),
            cell.busy_share.map_or("–".to_owned(), |s| format!("{:.0}", 100.0 * s)),
            with_interval(cell, "resident_busy_ratio", cell.resident_busy_ratio, 2),
            with_interval(cell, "oracle_ratio", cell.oracle_ratio, 2),
            format!("{:.2}", t.stall_some_ms / 1000.0),
            format!("{:.0}", t.refault_mib),
            format!("{:.0}", t.swap_in_mib + t.swap_out_mib),
            cell.over_budget_mib_s.map_or("–".to_owned(), |v| format!("{v:.0}")),
        ]);
        for column in columns {
            let _ = write!(html, "<td>{column}</td>");
        }
        html.push_str("</tr>");
    }
    html.push_str("</tbody></table></div>\n");
    html
}

/// Against each rival: one mark per experiment, its reason to point at, lost cells by name.
#[must_use]
pub fn against(summary: &Summary, standings: &[Standing]) -> String {
    let names = experiments(summary);
    let mut html = String::from("<div class=\"scroll\"><table class=\"matrix\"><thead><tr><th>ours against</th>");
    for experiment in &names {
        let _ = write!(html, "<th>{}</th>", escaped(experiment));
    }
    html.push_str("</tr></thead><tbody>");
    let mut lost = Vec::new();
    for arm in arms(summary) {
        if !standings.iter().any(|s| s.rival == arm) {
            continue;
        }
        let _ = write!(html, "<tr><th scope=\"row\">{}</th>", name(arm));
        for experiment in &names {
            let Some(s) = standings.iter().find(|s| s.rival == arm && s.experiment == *experiment) else {
                html.push_str("<td class=\"muted\">not run</td>");
                continue;
            };
            let (class, sign) = match s.place {
                Place::Ahead => ("good", "▲ ahead"),
                Place::Level => ("same", "= level"),
                Place::Behind => ("worse", "▽ behind"),
                Place::Unknown => ("muted", "? unknown"),
                Place::Lost => ("bad", "✕ lost"),
            };
            if s.place == Place::Lost {
                lost.push(format!("<li>{} to {}: {}</li>", escaped(experiment), name(arm), escaped(&s.why)));
            }
            let _ =
                write!(html, "<td><span class=\"{class}\">{sign}</span><br/><small>{}</small></td>", escaped(&s.why));
        }
        html.push_str("</tr>");
    }
    html.push_str("</tbody></table></div>\n");
    if !lost.is_empty() {
        let _ = write!(html, "<p>Lost:</p><ul>{}</ul>", lost.concat());
    }
    html
}

/// What the agents cost and how fast they were, over all experiments.
#[must_use]
pub fn agents(summary: &Summary) -> String {
    let mut html = String::from("<div class=\"scroll\"><table class=\"figures\"><thead><tr><th>law</th>");
    for head in [
        "first sign to order, ms",
        "its p99",
        "first sign to first MiB, ms",
        "its p99",
        "into balloons, MiB/min",
        "out of balloons, MiB/min",
        "host agent, % of a core",
        "guest agent, % of a vCPU",
    ] {
        let _ = write!(html, "<th>{head}</th>");
    }
    html.push_str("</tr></thead><tbody>");
    for arm in arms(summary) {
        let cells: Vec<&Cell> = summary.cells.iter().filter(|c| c.arm == arm).collect();
        let median = |of: &dyn Fn(&Cell) -> Option<f64>, digits: usize| {
            stats::median(&cells.iter().filter_map(|c| of(c)).collect::<Vec<_>>())
                .map_or("–".to_owned(), |v| format!("{v:.digits$}"))
        };
        let rate = |of: fn(&Cell) -> f64| move |c: &Cell| Some(of(c) * 60.0 / c.agents_s?).filter(|r| r.is_finite());
        let columns = [
            median(&|c| c.sign_to_order_ms.map(|s| s.0), 1),
            median(&|c| c.sign_to_order_ms.map(|s| s.1), 1),
            median(&|c| c.sign_to_first_mib_ms.map(|s| s.0), 1),
            median(&|c| c.sign_to_first_mib_ms.map(|s| s.1), 1),
            median(&rate(|c| c.totals.inflated_mib), 0),
            median(&rate(|c| c.totals.deflated_mib), 0),
            median(&|c| c.host_agent_cpu.map(|s| 100.0 * s), 2),
            median(&|c| c.guest_agent_cpu.map(|s| 100.0 * s), 2),
        ];
        let _ = write!(html, "<tr><th scope=\"row\">{}</th>", name(arm));
        for column in columns {
            let _ = write!(html, "<td>{column}</td>");
        }
        html.push_str("</tr>");
    }
    html.push_str("</tbody></table></div>\n");
    html
}

/// The smallest fixed sizes with no loss.
#[must_use]
pub fn oracles(summary: &Summary) -> String {
    if summary.oracles.is_empty() {
        return "<p>No oracle was found: no fixed sizes were tried, even the largest lost something, or no search came to its \
                end.</p>\n"
            .to_owned();
    }
    let mut html = String::from("<ul>");
    for experiment in experiments(summary) {
        let found = summary.oracles.get(experiment).map_or(
            "none: not searched, not searched to the end, or even the largest size tried lost".to_owned(),
            oracle_in_words,
        );
        let _ = write!(html, "<li><b>{}</b>: {}</li>", escaped(experiment), escaped(&found));
    }
    html.push_str("</ul>\n");
    html
}

/// Blocks that time did not allow. Empty when all were run.
#[must_use]
pub fn left_out(summary: &Summary) -> String {
    if summary.run.left_out.is_empty() {
        return String::new();
    }
    format!("<p class=\"bad\">Left out for lack of time: {}</p>\n", escaped(&summary.run.left_out.join(", ")))
}

/// Arms that ended early. Empty when none did.
#[must_use]
pub fn broken(summary: &Summary) -> String {
    let errors: Vec<String> = summary
        .cells
        .iter()
        .flat_map(|c| c.errors.iter().map(move |e| (c, e)))
        .map(|(c, e)| format!("<li>{}, {}: {}</li>", escaped(&c.experiment), name(&c.arm), escaped(e)))
        .collect();
    if errors.is_empty() {
        return String::new();
    }
    format!(
        "<details><summary>{} ended early; what was measured before counts</summary><ul>{}</ul></details>\n",
        counted(errors.len() as u64, "arm"),
        errors.concat()
    )
}

/// Is there anything in the summary to compare with?
#[must_use]
pub fn has_reference(summary: &Summary) -> bool {
    summary.cells.iter().any(|c| c.arm == STATIC)
}
