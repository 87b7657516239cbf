//! `report.html`: one file that can be sent to somebody, opens without a network and without scripts, and says on
//! its first screen what was found.
//!
//! ```text
//!   findings, figures asked ── frontier ── laws by workloads ── per experiment: work, latency, time lines ── probes, agents
//!      words, tables           frontier        tables              phases, latency, timeline            probes
//! ```
//! The page is also well-formed XML, which is how a test knows that nothing in it is left open. To look at it:
//! ```text
//!   cargo test -p ballast-tests --test report sample -- --ignored
//!   chromium --headless --no-sandbox --screenshot=page.png --window-size=1280,9000 target/lab-sample/report.html
//!   # a phone: --window-size=500,9000 (headless Chromium goes no narrower) or a page with a frame of 420 pixels;
//!   # dark: --blink-settings=preferredColorScheme=0
//! ```

mod frontier;
mod labels;
mod latency;
mod phases;
mod probes;
mod tables;
mod theme;
mod timeline;
mod words;

use super::results::{ArmRun, BALLAST, Block, Cell, Summary};
use super::stats;
use super::summary::{self, Experiment, Figure, Standing, counted, experiments, pairs};
use anyhow::{Context, Result};
use ballast_protocol::Bytes;
use frontier::Axes;
use std::fmt::Write;
use std::path::Path;
use theme::escaped;

/// Nominal size of the frontier over all experiments on a wide page, and of one among several, or on a phone.
const LARGE: (i32, i32) = (960, 440);
const SMALL: (i32, i32) = (400, 320);

/// Writes `report.html` into a run's folder.
///
/// # Errors
/// It cannot be written.
pub fn write(folder: &Path, summary: &Summary, blocks: &[Block]) -> Result<()> {
    let path = folder.join("report.html");
    let draft = path.with_extension("draft");
    std::fs::write(&draft, page(summary, blocks)?).with_context(|| draft.display().to_string())?;
    std::fs::rename(&draft, &path).with_context(|| path.display().to_string())
}

/// The page.
///
/// # Errors
/// None that a reader could cause: it is drawn into memory.
pub fn page(summary: &Summary, blocks: &[Block]) -> Result<String> {
    let standings = summary::standings(summary, blocks);
    let figures = summary::figures(summary, &standings);
    let mut html = String::new();
    write!(
        html,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/><meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\"/><title>Ballast lab: {}, {}</title><style>{}{}</style></head>\n<body>",
        escaped(&summary.run.asked),
        words::date(summary.run.started_unix),
        theme::css(),
        include_str!("report/page.css")
    )?;
    head(&mut html, summary, blocks, &figures, &standings)?;
    html.push_str("<main>\n");
    frontiers(&mut html, summary, blocks)?;
    laws(&mut html, summary, &standings)?;
    each(&mut html, summary, blocks)?;
    bandwidth(&mut html, blocks)?;
    html.push_str("<h2>What the agents cost, and how fast they were</h2>\n<p>Medians over the experiments.</p>\n");
    html.push_str(&tables::agents(summary));
    html.push_str("</main>\n");
    foot(&mut html, summary)?;
    write!(html, "<script>{}</script>\n</body></html>", include_str!("report/page.js"))?;
    Ok(html)
}

fn arms_of(experiments: &[Experiment<'_>]) -> Vec<String> {
    let mut arms: Vec<String> = Vec::new();
    for arm in experiments.iter().flat_map(Experiment::arms) {
        if !arms.iter().any(|a| a == arm) {
            arms.push(arm.to_owned());
        }
    }
    arms
}

fn head(
    html: &mut String,
    summary: &Summary,
    blocks: &[Block],
    figures: &[Figure],
    standings: &[Standing],
) -> Result<()> {
    let all = experiments(blocks);
    let run = &summary.run;
    let arms = arms_of(&all);
    let repetitions = all.iter().map(|e| e.blocks.len()).max().unwrap_or(0);
    write!(
        html,
        "<header>\n<p class=\"eyebrow\">Ballast lab · {}</p>\n<h1>What {} did to {}</h1>",
        escaped(&run.asked),
        if arms.len() == 1 {
            "one way of sharing memory".to_owned()
        } else {
            format!("{} ways of sharing memory", arms.len())
        },
        counted(all.len() as u64, "workload"),
    )?;
    html.push_str("<ul class=\"found\">");
    for sentence in words::findings(summary, standings) {
        write!(html, "<li>{}</li>", escaped(&sentence.replace(" %", "\u{a0}%")))?;
    }
    html.push_str("</ul>\n");
    html.push_str(&tables::figures(figures));
    let machine = &run.machine;
    let warm = if machine.kept_warm { "; free memory was kept warm for all arms alike" } else { "" };
    let loads: Vec<f64> = blocks.iter().map(|b| b.load).collect();
    let load = stats::median(&loads).map_or("unknown".to_owned(), |l| format!("{l:.1} when a block began, median"));
    let facts = [
        ("When", format!("{}, {} of blocks", words::date(run.started_unix), words::duration(summary.took_s))),
        ("Version", run.version.clone()),
        (
            "Blocks",
            format!(
                "{} ({} with an arm that ended early), up to {} of an experiment",
                summary.blocks,
                summary.broken,
                counted(repetitions as u64, "repetition")
            ),
        ),
        (
            "Machine",
            format!("{}, {}, {} MiB{warm}", machine.cpu, counted(machine.cpus as u64, "CPU"), machine.memory_mib),
        ),
        ("Kernel", machine.kernel.clone()),
        ("Hypervisor", format!("{}, {}", machine.qemu, machine.accelerator)),
        ("Load", load),
        ("Turns", summary::turns(summary).unwrap_or_else(|| "unknown".to_owned())),
        ("Arms", arms.join(", ")),
    ];
    html.push_str("<dl class=\"facts\">");
    for (name, value) in facts {
        write!(html, "<div><dt>{name}</dt><dd>{}</dd></div>", escaped(&value))?;
    }
    html.push_str("</dl>\n");
    html.push_str(&tables::left_out(summary));
    html.push_str(&tables::broken(summary));
    html.push_str("</header>\n");
    Ok(())
}

fn cells_of<'a>(summary: &'a Summary, experiment: &str) -> Vec<&'a Cell> {
    summary.cells.iter().filter(|c| c.experiment == experiment).collect()
}

fn frontiers(html: &mut String, summary: &Summary, blocks: &[Block]) -> Result<()> {
    html.push_str("<h2>The frontier</h2>\n<p>Memory given back to the host against service kept, both in percent of a \
        guest that keeps all of its memory (<i>static</i>, paired phase by phase). Up and to the right is better. The dashed line \
        is the best that any law without a kill reached; a cross is a law that killed processes or refused them memory, and how many.</p>\n");
    let all = experiments(blocks);
    let points: Vec<_> = all.iter().map(|e| frontier::points(&cells_of(summary, e.name))).collect();
    if points.iter().all(Vec::is_empty) {
        html.push_str("<p class=\"note\">Nothing could be compared with static, so there is no frontier.</p>\n");
        return Ok(());
    }
    if all.len() > 1 {
        let over = frontier::over_all(&points);
        let scale = Axes::of(over.iter());
        write!(
            html,
            "<figure><figcaption><b>All experiments</b> <span class=\"muted\">medians; faint: single experiments</span>\
             </figcaption><div class=\"on-wide\">{}</div><div class=\"on-narrow\">{}</div></figure>",
            frontier::draw("all experiments", &over, &scale, LARGE)?,
            frontier::draw("all experiments", &over, &scale, SMALL)?
        )?;
    }
    let scale = Axes::of(points.iter().flatten());
    html.push_str("<div class=\"plots\">");
    for (experiment, points) in all.iter().zip(&points).filter(|(_, p)| !p.is_empty()) {
        let svg = frontier::draw(experiment.name, points, &scale, SMALL)?;
        write!(
            html,
            "<figure><figcaption><b>{}</b> <span class=\"muted\">bars: 95 % intervals</span></figcaption>{svg}</figure>",
            escaped(experiment.name)
        )?;
    }
    html.push_str("</div>\n");
    Ok(())
}

fn laws(html: &mut String, summary: &Summary, standings: &[Standing]) -> Result<()> {
    html.push_str("<h2>Laws by workloads</h2>\n<p>To <i>static</i>: memory held by the host, work done in the same time, 99th \
        percentile of latency. <span class=\"good\">Better</span>, <span class=\"worse\">worse</span>, or \
        <span class=\"same\">no difference</span>: the 95 % interval contains 1, or static differs as much from itself; of one \
        repetition that is not said, as its noise is unknown. <i>Busy</i> is memory while an arm's own phases ran. Point at a figure \
        for its interval.</p>\n");
    if !tables::has_reference(summary) {
        html.push_str("<p class=\"note\">This run has no arm <i>static</i>: there are no ratios.</p>\n");
    }
    html.push_str(&tables::matrix(summary));
    write!(html, "<details><summary>All figures with their intervals</summary>{}</details>", tables::details(summary))?;
    if !standings.is_empty() {
        write!(
            html,
            "<h3>{} against each of the others</h3>\n<p>Lost: more kills, or the other both holds less and does more, beyond \
             the noise. Behind: the other is better in memory, work or p99 latency and worse in none, or in memory and work but \
             inside the noise; ahead is the reverse. Unknown: one of them ended early, or there are too few values. What the other holds and does is relative to ours, paired phase by phase.</p>\n{}",
            tables::name(BALLAST),
            tables::against(summary, standings)
        )?;
    }
    write!(
        html,
        "<h3>The oracle</h3>\n<p>The smallest fixed size at which, and above which, nothing was lost: what one would have \
         configured, had one known. Each size was tried once, and bad luck counts as a loss, so that it is rather too large.</p>\n{}",
        tables::oracles(summary)
    )?;
    Ok(())
}

fn each(html: &mut String, summary: &Summary, blocks: &[Block]) -> Result<()> {
    html.push_str("<h2>Experiment by experiment</h2>\n<div class=\"tabs\"></div>\n");
    for (i, experiment) in experiments(blocks).iter().enumerate() {
        write!(html, "<section class=\"tab\" id=\"e{i}\" data-name=\"{0}\">\n<h3>{0}</h3>", escaped(experiment.name))?;
        html.push_str("<div class=\"plots wide\">");
        if let Some(svg) = phases::draw(experiment.name, &experiment.blocks, &experiment.arms())? {
            write!(
                html,
                "<figure><figcaption><b>Work by phase</b> <span class=\"muted\">median, range of repetitions; cross: a kill\
                 </span></figcaption>{svg}</figure>"
            )?;
        }
        if let Some(svg) = latency::draw(experiment.name, &experiment.blocks, &experiment.arms())? {
            write!(
                html,
                "<figure><figcaption><b>Latency by percentile</b> <span class=\"muted\">all measured phases and \
                 repetitions</span></figcaption>{svg}</figure>"
            )?;
        } else {
            html.push_str("<p class=\"note\">This work has no single operations, so there are no latencies.</p>");
        }
        html.push_str("</div>\n");
        lines(html, summary, experiment)?;
        html.push_str("</section>\n");
    }
    Ok(())
}

fn lines(html: &mut String, summary: &Summary, experiment: &Experiment<'_>) -> Result<()> {
    let Some(block) = median_block(experiment) else { return Ok(()) };
    let budget = summary.run.experiments.get(experiment.name).and_then(|text| budget_mib(text));
    let scale = timeline::Scale::of(block, budget);
    write!(html, "<h3>Time lines of repetition {}, the median one; MiB of all guests</h3>", block.repetition)?;
    html.push_str(&key(budget));
    html.push_str("<div class=\"plots wide\">");
    for arm in &block.arms {
        let note = arm_note(arm);
        write!(
            html,
            "<figure><figcaption>{} <span class=\"muted\">{}</span></figcaption>",
            tables::name(&arm.arm),
            escaped(&note)
        )?;
        match timeline::draw(block, arm, scale)? {
            Some(svg) => html.push_str(&svg),
            None => html.push_str("<p class=\"note\">Nothing was seen of it.</p>"),
        }
        html.push_str("</figure>");
    }
    html.push_str("</div>\n");
    Ok(())
}

fn arm_note(arm: &ArmRun) -> String {
    if let Some(error) = &arm.error {
        return format!("ended early: {error}");
    }
    let held = pairs::resident_mib(arm).map(|m| format!("{m:.0} MiB held on average"));
    let kills: u64 = arm.guests.iter().map(|g| g.totals.oom_kills).sum();
    let killed = arm.phases.iter().map(|p| p.outcome.killed).sum::<u64>().max(kills);
    let killed = (killed > 0).then(|| format!("{killed} killed"));
    let orders = (!arm.orders.is_empty()).then(|| counted(arm.orders.len() as u64, "order"));
    [held, killed, orders].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// The repetition in the middle by what ours held (by what all held, without ours), among those in which nothing broke
/// if there are any.
fn median_block<'a>(experiment: &Experiment<'a>) -> Option<&'a Block> {
    let whole = |b: &&&Block| b.arms.iter().all(|a| a.error.is_none());
    let mut candidates: Vec<&Block> = experiment.blocks.iter().filter(whole).copied().collect();
    if candidates.is_empty() {
        candidates = experiment.blocks.clone();
    }
    let held = |b: &Block| {
        let ours = pairs::arm(b, BALLAST).and_then(pairs::resident_mib);
        ours.unwrap_or_else(|| b.arms.iter().filter_map(pairs::resident_mib).sum())
    };
    candidates.sort_by(|a, b| held(a).total_cmp(&held(b)));
    candidates.get(candidates.len().saturating_sub(1) / 2).copied()
}

/// The host's budget in an experiment's text, wherever it stands. `None` without one.
fn budget_mib(text: &str) -> Option<f64> {
    fn find(table: &toml::Table) -> Option<f64> {
        table.iter().find_map(|(key, value)| match value {
            toml::Value::Table(inner) => find(inner),
            toml::Value::String(size) if key.contains("budget") => Some(size.parse::<Bytes>().ok()?.mib_f64()),
            _ => None,
        })
    }
    find(&text.parse().ok()?)
}

/// What the lines and signs of a time line are.
fn key(budget: Option<f64>) -> String {
    let sign = |shape: &str, words: &str| {
        format!("<li><svg viewBox=\"0 0 26 12\" aria-hidden=\"true\">{shape}</svg>{words}</li>")
    };
    let line = |color: &str, dash: &str| {
        format!(
            "<path d=\"M0 6H26\" fill=\"none\" stroke=\"var(--{color})\" stroke-width=\"1.6\" stroke-dasharray=\"{dash}\"/>"
        )
    };
    let mut key = String::from("<ul class=\"key\">");
    key += &sign(
        "<rect width=\"26\" height=\"12\" fill=\"var(--arm1)\" opacity=\".3\"/>",
        "held by the host, a layer per guest",
    );
    key += &sign(&line("text", "5 3"), "left to the guests by their balloons");
    key += &sign(&line("muted", "none"), "available inside the guests");
    if let Some(budget) = budget {
        key += &sign(&line("bad", "10 4"), &format!("the host's budget, {budget:.0} MiB"));
    }
    key += &sign(
        "<rect width=\"26\" height=\"12\" fill=\"var(--shade)\"/>",
        "this arm's phase, its throughput in % of static's above",
    );
    key += &sign("<path d=\"M13 1L18 11H8Z\" fill=\"var(--arm1)\"/>", "order that gives");
    key += &sign("<path d=\"M13 11L18 1H8Z\" fill=\"var(--muted)\"/>", "order that takes");
    key += &sign("<path d=\"M13 1L18 6L13 11L8 6Z\" fill=\"var(--text)\"/>", "demand");
    key += &sign("<rect width=\"26\" height=\"12\" fill=\"var(--bad)\"/>", "PSI: tasks waited for memory");
    key += "</ul>\n<p class=\"note\">Point at a phase or a sign for its figures and its reason.</p>\n";
    key
}

fn bandwidth(html: &mut String, blocks: &[Block]) -> Result<()> {
    let all = probes::collect(blocks);
    if all.is_empty() {
        return Ok(());
    }
    html.push_str(
        "<h2>Does bandwidth stand for latency?</h2>\n<p>iperf3's bandwidth against the 99th percentile of request \
        latency, one point per phase in which the prober came by, all arms.</p>\n<div class=\"plots wide\">",
    );
    for (experiment, repetitions) in &all {
        let correlation = probes::correlation(repetitions);
        write!(
            html,
            "<figure><figcaption><b>{}</b></figcaption>{}<p class=\"note\">{}</p></figure>",
            escaped(experiment),
            probes::draw(experiment, repetitions)?,
            escaped(&probes::in_words(correlation.as_ref()))
        )?;
    }
    html.push_str("</div>\n");
    Ok(())
}

fn foot(html: &mut String, summary: &Summary) -> Result<()> {
    html.push_str("<footer>\n<h2>Settings</h2>\n");
    for (name, text) in &summary.run.experiments {
        write!(html, "<details><summary>{}</summary><pre>{}</pre></details>", escaped(name), escaped(text))?;
    }
    let asked = &summary.run.asked;
    write!(
        html,
        "<h2>How to do it again</h2>\n<pre>git checkout {}\nmake workload\ncargo build --release -p ballast-host\ncargo run --release -p ballast-tests --bin ballast-lab -- run {}</pre>\n\
         <p class=\"note\">Figures are medians of ratios paired by repetition and phase; intervals are 95 % percentile intervals of \
         2000 bootstrap resamples that draw repetitions first and phases within them second. This page, summary.json and \
         summary.csv are made from the blocks by <code>ballast-lab report</code>.</p>\n</footer>",
        escaped(summary.run.version.trim_end_matches("-dirty")),
        escaped(asked)
    )?;
    Ok(())
}
