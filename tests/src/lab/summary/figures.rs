//! The figures that were asked for, each reached or not, and where ours stands against each rival.

use super::{experiments, is_rival, pairs};
use crate::lab::results::{BALLAST, Block, Cell, Interval, PREDICTIVE, Summary};
use crate::lab::stats::{self, Difference};
use serde::Serialize;

/// One figure of the table that the lab was built to fill.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What is counted or compared.
    pub name: String,
    /// What it should reach.
    pub reach: String,
    /// What it is; why it is unknown.
    pub value: String,
    /// `None`: this run cannot tell.
    pub reached: Option<bool>,
}

/// Where ours stands against one rival in one experiment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// Fewer kills, or better in memory or throughput and worse in neither.
    Ahead,
    /// No difference, or each is better at one thing.
    Level,
    /// The rival is better in both, but inside the noise.
    Behind,
    /// More kills than the rival's, or it both saves more and loses less, beyond the noise.
    Lost,
}

/// The same with its reason.
#[derive(Clone, Debug, Serialize)]
pub struct Standing {
    /// The experiment.
    pub experiment: String,
    /// The other arm.
    pub rival: String,
    /// Where ours is.
    pub place: Place,
    /// In words.
    pub why: String,
    /// What the rival's guests held to what ours held, with its interval.
    pub memory: Option<(f64, Option<Interval>)>,
    /// The rival's throughput to ours, with its interval.
    pub throughput: Option<(f64, Option<Interval>)>,
}

/// Throughput to static, worst cell.
const THROUGHPUT: f64 = 0.92;
/// p99 latency to static, worst cell.
const P99: f64 = 1.5;
/// Resident memory to the oracle's, median cell.
const ORACLE: f64 = 1.35;
/// Resident memory with forecasts to that without, median cell.
const FORESEEN: f64 = 0.95;

/// The figures for the arm that is ours. Empty when the run had no such arm.
#[must_use]
pub fn figures(summary: &Summary, standings: &[Standing]) -> Vec<Figure> {
    let ours: Vec<&Cell> = summary.cells.iter().filter(|c| c.arm == BALLAST).collect();
    if ours.is_empty() {
        return Vec::new();
    }
    let (kills, failed) = (sum(&ours, |c| c.oom_kills.max(c.killed)), sum(&ours, |c| c.failed_allocations));
    let broken: Vec<&str> = ours.iter().filter(|c| !c.errors.is_empty()).map(|c| c.experiment.as_str()).collect();
    let but = if broken.is_empty() { String::new() } else { format!("; not known to its end: {}", broken.join(", ")) };
    let mut figures = vec![Figure {
        name: "OOM kills and failed allocations, all cells".to_owned(),
        reach: "0".to_owned(),
        value: format!("{kills} and {failed}{but}"),
        reached: (broken.is_empty() || kills + failed > 0).then_some(kills + failed == 0),
    }];
    figures.push(worst(&ours, "throughput to static, worst cell", |c| c.throughput_ratio, THROUGHPUT, true));
    figures.push(worst(&ours, "p99 latency to static, worst cell", |c| c.p99_ratio, P99, false));
    let ratios: Vec<f64> = ours.iter().filter_map(|c| c.oracle_ratio).collect();
    let median = stats::median(&ratios);
    figures.push(Figure {
        name: "memory held to the oracle's, median cell".to_owned(),
        reach: format!("at most {ORACLE}"),
        value: median.map_or("no oracle was found".to_owned(), |m| {
            format!("{m:.2} over {} of {} cells", ratios.len(), ours.len())
        }),
        reached: median.map(|m| m <= ORACLE),
    });
    figures.push(against(standings));
    figures.extend(foreseen(summary, &ours));
    figures
}

/// What following forecasts saves. `None`: nobody did.
fn foreseen(summary: &Summary, ours: &[&Cell]) -> Option<Figure> {
    let theirs = |c: &Cell| summary.cells.iter().find(|p| p.arm == PREDICTIVE && p.experiment == c.experiment);
    let pairs: Vec<(&Cell, &Cell)> = ours.iter().filter_map(|c| Some((theirs(c)?, *c))).collect();
    if pairs.is_empty() {
        return None;
    }
    let ratios: Vec<f64> = pairs.iter().filter_map(|(p, c)| Some(p.resident_mib? / c.resident_mib?)).collect();
    let more: u64 = pairs.iter().map(|(p, c)| lost(p).saturating_sub(lost(c))).sum();
    let median = stats::median(&ratios);
    let whole = pairs.iter().all(|(p, c)| p.errors.is_empty() && c.errors.is_empty());
    Some(Figure {
        name: "memory held with forecasts to that without, median cell".to_owned(),
        reach: format!("at most {FORESEEN}, no more OOM kills"),
        value: median.map_or("nothing to compare".to_owned(), |m| {
            format!("{m:.2} over {} of {} cells, {more} more kills or refusals", ratios.len(), pairs.len())
        }),
        reached: if more > 0 { Some(false) } else { median.filter(|_| whole).map(|m| m <= FORESEEN) },
    })
}

/// A guest that died took its kernel's counter with it; what the harness saw killed is known all the same.
fn lost(cell: &Cell) -> u64 {
    cell.oom_kills.max(cell.killed) + cell.failed_allocations
}

fn sum(cells: &[&Cell], of: fn(&Cell) -> u64) -> u64 {
    cells.iter().map(|c| of(c)).sum()
}

fn worst(cells: &[&Cell], name: &str, of: fn(&Cell) -> Option<f64>, bound: f64, at_least: bool) -> Figure {
    let known = cells.iter().filter_map(|c| Some((of(c)?, c)));
    let sign = if at_least { 1.0 } else { -1.0 };
    let worst = known.min_by(|a, b| (sign * a.0).total_cmp(&(sign * b.0)));
    Figure {
        name: name.to_owned(),
        reach: format!("{} {bound}", if at_least { "at least" } else { "at most" }),
        value: worst.map_or("nothing to compare".to_owned(), |(v, c)| format!("{v:.2} in {}", c.experiment)),
        reached: worst.map(|(v, _)| if at_least { v >= bound } else { v <= bound }),
    }
}

fn against(standings: &[Standing]) -> Figure {
    let lost: Vec<String> = standings
        .iter()
        .filter(|s| s.place == Place::Lost)
        .map(|s| format!("{} to {} ({})", s.experiment, s.rival, s.why))
        .collect();
    let count = |place| standings.iter().filter(|s| s.place == place).count();
    let places = format!(
        "ahead {}, level {}, behind inside the noise {}, lost {}",
        count(Place::Ahead),
        count(Place::Level),
        count(Place::Behind),
        lost.len()
    );
    Figure {
        name: "against each rival in each cell".to_owned(),
        reach: "no more OOM kills, on the frontier".to_owned(),
        value: if lost.is_empty() { places } else { format!("{places}: {}", lost.join("; ")) },
        reached: (!standings.is_empty()).then_some(lost.is_empty()),
    }
}

/// Where ours stands against every other arm but `static`, experiment by experiment: rival and ours are paired with
/// each other directly, which is tighter than comparing two ratios to `static`.
#[must_use]
pub fn standings(summary: &Summary, blocks: &[Block]) -> Vec<Standing> {
    let mut standings = Vec::new();
    for experiment in experiments(blocks) {
        let cell = |arm: &str| summary.cells.iter().find(|c| c.experiment == experiment.name && c.arm == arm);
        let Some(ours) = cell(BALLAST) else { continue };
        for rival in experiment.arms().into_iter().filter(|a| is_rival(a)) {
            let Some(theirs) = cell(rival) else { continue };
            let figure =
                |ratios: &[Vec<f64>]| Some((stats::median(&ratios.concat())?, stats::interval(ratios, stats::median)));
            let blocks = &experiment.blocks;
            let memory = figure(&pairs::resident(blocks, rival, BALLAST));
            let throughput = figure(&pairs::paired(blocks, rival, BALLAST, pairs::throughput));
            let noise = pairs::noise(blocks, pairs::throughput);
            let (place, why) = place(ours, theirs, memory, throughput, noise);
            standings.push(Standing {
                experiment: experiment.name.to_owned(),
                rival: rival.to_owned(),
                place,
                why,
                memory,
                throughput,
            });
        }
    }
    standings
}

type Ratio = Option<(f64, Option<Interval>)>;

fn place(ours: &Cell, theirs: &Cell, memory: Ratio, throughput: Ratio, noise: f64) -> (Place, String) {
    let (ours, theirs) = (lost(ours), lost(theirs));
    if ours > theirs {
        return (Place::Lost, format!("ours killed or refused {ours}, it {theirs}"));
    }
    if theirs > ours {
        return (Place::Ahead, format!("it killed or refused {theirs}, ours {ours}"));
    }
    let (Some((m, m_interval)), Some((t, t_interval))) = (memory, throughput) else {
        return (Place::Level, "nothing to compare".to_owned());
    };
    // Adding 0 makes a plain 0 of a negative one.
    let percent = |ratio: f64| ((ratio - 1.0) * 100.0).round() + 0.0;
    let why = format!("it holds {:+.0} % memory, does {:+.0} % work", percent(m), percent(t));
    let place = match (stats::difference(m, m_interval, 1.0), stats::difference(t, t_interval, noise)) {
        (Difference::Less, Difference::More) => Place::Lost,
        (Difference::More, Difference::Less | Difference::None) | (Difference::None, Difference::Less) => Place::Ahead,
        _ if m < 1.0 && t > 1.0 => Place::Behind,
        _ => Place::Level,
    };
    (place, why)
}
