//! The figures that were asked for, each reached or not, and where ours stands against each rival.

use super::{experiments, is_rival, lost, pairs};
use crate::lab::results::{BALLAST, Block, Cell, Interval, PREDICTIVE, STATIC, Summary, WorstPhase};
use crate::lab::stats::{self, Difference};
use ballast_host::prober::Settings;
use serde::Serialize;
use std::cmp::Ordering;
use std::collections::BTreeSet;

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
    /// Fewer kills, less unfinished work, or better in memory, throughput or p99 latency and worse in none.
    Ahead,
    /// No difference, or each is better at one thing.
    Level,
    /// One of them ended early, or there are too few values to compare.
    Unknown,
    /// The rival is better in memory, throughput or p99 latency and worse in none; or in memory and throughput, but inside the
    /// noise.
    Behind,
    /// More kills or unfinished work than the rival's, or it both saves more and loses less, beyond the noise.
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
    /// The rival's p99 latency to ours, with its interval; `None` where the work has no latencies.
    pub p99: Option<(f64, Option<Interval>)>,
    /// A law that moves balloons, and not an arm without one.
    pub law: bool,
}

impl Standing {
    /// Whether it both holds less and does more than ours, however little and however sure that is.
    fn dominates(&self) -> bool {
        let of = |ratio: Ratio| ratio.map_or(1.0, |(value, _)| value);
        self.place != Place::Ahead && of(self.memory) < 1.0 && of(self.throughput) > 1.0
    }
}

/// Throughput to static, worst cell.
const THROUGHPUT: f64 = 0.92;
/// p99 latency to static, worst cell.
const P99: f64 = 1.5;
/// Resident memory to the oracle's, median cell.
const ORACLE: f64 = 1.35;
/// Resident memory with forecasts to that without, median cell.
const FORESEEN: f64 = 0.95;

/// Throughput with iperf3's probes to that without: what they may cost.
const PROBED: f64 = 0.98;
/// The arm that does nothing but probe.
const STATIC_PROBED: &str = "static-probed";

/// What figures are of.
struct Ours<'a> {
    cells: Vec<&'a Cell>,
    /// Experiments that were asked for and of which there is no block.
    missing: Vec<&'a str>,
    summary: &'a Summary,
}

/// The figures for the arm that is ours, and what probes cost. A figure is reached only if all cells that should have it do,
/// and were run to their end.
#[must_use]
pub fn figures(summary: &Summary, standings: &[Standing]) -> Vec<Figure> {
    let cells: Vec<&Cell> = summary.cells.iter().filter(|c| c.arm == BALLAST).collect();
    if cells.is_empty() {
        return disturbances(summary);
    }
    let asked = summary.run.experiments.keys().map(String::as_str);
    let mut missing: BTreeSet<&str> = asked.chain(summary.run.left_out.iter().map(|l| left_out_of(l))).collect();
    missing.retain(|name| summary.cells.iter().all(|c| c.experiment != *name));
    let ours = Ours { cells, missing: missing.into_iter().collect(), summary };
    let mut figures = vec![
        ours.kills(),
        ours.worst(
            "throughput to static, worst cell",
            |c| c.throughput_ratio,
            |c| c.worst_phase_throughput.as_ref(),
            (THROUGHPUT, true),
        ),
        ours.worst("p99 latency to static, worst cell", |c| c.p99_ratio, |c| c.worst_phase_p99.as_ref(), (P99, false)),
        ours.to_oracle(),
        ours.against("against each rival law in each cell", standings.iter().filter(|s| s.law)),
    ];
    // Not asked for, and what a reader wants to know all the same.
    if standings.iter().any(|s| !s.law) {
        figures.push(ours.against("against each arm without a law in each cell", standings.iter().filter(|s| !s.law)));
    }
    figures.extend(ours.foreseen());
    figures.extend(disturbances(summary));
    figures
}

/// The experiment of a block that was left out: `redis 2`, `redis oracle 1`, `redis 1 (and why)`.
#[must_use]
pub fn left_out_of(block: &str) -> &str {
    let block = block.split_once(" (").map_or(block, |(block, _)| block);
    let name = block.rsplit_once(' ').map_or(block, |(name, _)| name);
    name.strip_suffix(" oracle").unwrap_or(name)
}

impl Ours<'_> {
    /// What is not known, in words; empty when all is.
    fn but(&self) -> String {
        let broken = self.broken();
        let mut but = String::new();
        if !broken.is_empty() {
            but.push_str(&format!("; not known to its end: {}", broken.join(", ")));
        }
        if !self.missing.is_empty() {
            but.push_str(&format!("; not run: {}", self.missing.join(", ")));
        }
        but
    }

    /// Ours and what it is compared with came to their end everywhere.
    fn whole(&self) -> bool {
        self.missing.is_empty() && self.broken().is_empty()
    }

    fn broken(&self) -> Vec<&str> {
        let ended_early = |c: &&&Cell| {
            let reference = |r: &Cell| r.arm == STATIC && r.experiment == c.experiment && !r.errors.is_empty();
            !c.errors.is_empty() || self.summary.cells.iter().any(reference)
        };
        self.cells.iter().filter(ended_early).map(|c| c.experiment.as_str()).collect()
    }

    fn kills(&self) -> Figure {
        let sum = |of: fn(&Cell) -> u64| self.cells.iter().map(|c| of(c)).sum::<u64>();
        let (kills, failed) = (sum(|c| c.oom_kills.max(c.killed)), sum(|c| c.failed_allocations));
        let unfinished = sum(|c| c.unfinished);
        let late = if unfinished > 0 { format!("; {unfinished} unfinished") } else { String::new() };
        Figure {
            name: "OOM kills and failed allocations, all cells".to_owned(),
            reach: "0".to_owned(),
            value: format!("{kills} and {failed}{late}{}", self.but()),
            reached: if kills + failed + unfinished > 0 { Some(false) } else { self.whole().then_some(true) },
        }
    }

    /// Whether a cell should have a figure: some works have no latencies, and then `static` has none either.
    fn should_have(&self, cell: &Cell, of: fn(&Cell) -> Option<f64>) -> bool {
        let reference = self.summary.cells.iter().find(|c| c.arm == STATIC && c.experiment == cell.experiment);
        reference.is_none_or(|s| of(s).is_some() || s.repetitions == 0 || !s.errors.is_empty())
    }

    fn worst(
        &self,
        name: &str,
        of: fn(&Cell) -> Option<f64>,
        of_phase: fn(&Cell) -> Option<&WorstPhase>,
        (bound, at_least): (f64, bool),
    ) -> Figure {
        let known: Vec<(f64, &&Cell)> = self.cells.iter().filter_map(|c| Some((of(c)?, c))).collect();
        let asked = self.cells.iter().filter(|c| of(c).is_some() || self.should_have(c, of)).count();
        let asked = asked + self.missing.len();
        let all = known.len() == asked && self.whole();
        let sign = if at_least { 1.0 } else { -1.0 };
        let worst = known.iter().copied().min_by(|a, b| (sign * a.0).total_cmp(&(sign * b.0)));
        let phases = self.cells.iter().filter_map(|c| Some((c.experiment.as_str(), of_phase(c)?)));
        let phase = phases.min_by(|a, b| (sign * a.1.ratio).total_cmp(&(sign * b.1.ratio)));
        // Where all phases are of one kind it is the cell's own figure.
        let phase = phase.filter(|(_, p)| worst.is_some_and(|(v, _)| sign * p.ratio < sign * v));
        let phase = phase.map_or(String::new(), |(experiment, p)| {
            format!("; worst phase {:.2} ({experiment}, {})", p.ratio, p.label)
        });
        let over = format!("over {} of {asked} cells{phase}{}", known.len(), self.but());
        let reached = worst.map(|(v, _)| if at_least { v >= bound } else { v <= bound });
        Figure {
            name: name.to_owned(),
            reach: format!("{} {bound}", if at_least { "at least" } else { "at most" }),
            value: worst
                .map_or("nothing to compare".to_owned(), |(v, c)| format!("{v:.2} in {}, {over}", c.experiment)),
            reached: reached.filter(|reached| all || !reached),
        }
    }

    fn to_oracle(&self) -> Figure {
        let searched = |c: &&&Cell| {
            let file = self.summary.run.experiments.get(&c.experiment);
            let file = file.and_then(|text| text.parse::<toml::Table>().ok());
            file.and_then(|file| file.get("oracle")?.as_bool()).unwrap_or(true)
        };
        let known = |c: &&&Cell| c.errors.is_empty();
        let ratios: Vec<f64> = self.cells.iter().filter(known).filter_map(|c| c.oracle_ratio).collect();
        let asked = self.cells.iter().filter(searched).count() + self.missing.len();
        // Whatever those come to that are not known.
        let with = |unknown: f64| {
            let mut all = ratios.clone();
            all.resize(asked.max(ratios.len()), unknown);
            stats::median(&all).filter(|_| !ratios.is_empty())
        };
        let (least, most) = (with(0.0), with(f64::from(u16::MAX)));
        Figure {
            name: "memory held to the oracle's, median cell".to_owned(),
            reach: format!("at most {ORACLE}"),
            value: stats::median(&ratios).map_or("no oracle was found".to_owned(), |m| {
                format!("{m:.2} over {} of {asked} cells{}", ratios.len(), self.but())
            }),
            reached: match (least, most) {
                (_, Some(most)) if most <= ORACLE => Some(true),
                (Some(least), _) if least > ORACLE => Some(false),
                _ => None,
            },
        }
    }

    /// What following forecasts saves, and whether anything is lost by it. `None`: nobody did.
    fn foreseen(&self) -> Option<Figure> {
        let with = |c: &Cell| self.summary.cells.iter().find(|w| w.arm == PREDICTIVE && w.experiment == c.experiment);
        let pairs: Vec<(&Cell, &Cell)> = self.cells.iter().filter_map(|c| Some((with(c)?, *c))).collect();
        if pairs.is_empty() {
            return None;
        }
        let ratios: Vec<f64> = pairs.iter().filter_map(|(c, w)| Some(c.resident_mib? / w.resident_mib?)).collect();
        let worse = |c: &Cell| lost(c) + c.unfinished;
        let more: u64 = pairs.iter().map(|(c, w)| worse(c).saturating_sub(worse(w))).sum();
        // Each on its worst day. `None` where a cell has nothing to say, which then may have been the worst.
        let services = pairs.iter().map(|(c, w)| Some((c.throughput_ratio?, w.throughput_ratio?)));
        let least = |all: &[(f64, f64)]| {
            all.iter().fold((f64::INFINITY, f64::INFINITY), |least, one| (least.0.min(one.0), least.1.min(one.1)))
        };
        let service = services.collect::<Option<Vec<_>>>().map(|all| least(&all));
        let median = stats::median(&ratios);
        let broken = pairs.iter().any(|(c, w)| !c.errors.is_empty() || !w.errors.is_empty());
        let whole = self.whole() && ratios.len() == pairs.len() && !broken;
        let good = service.filter(|_| !broken).map(|(with, without)| with >= without);
        Some(Figure {
            name: "memory held with forecasts to that without, median cell".to_owned(),
            reach: format!("at most {FORESEEN}, no more OOM kills and no lower worst throughput"),
            value: median.map_or("nothing to compare".to_owned(), |m| {
                format!(
                    "{m:.2} over {} of {} cells, {more} more kills, refusals or unfinished, worst throughput {}{}",
                    ratios.len(),
                    pairs.len(),
                    service.map_or("unknown".to_owned(), |(with, without)| format!("{with:.2} to {without:.2}")),
                    self.but()
                )
            }),
            reached: match (more > 0, good) {
                (true, _) | (_, Some(false)) => Some(false),
                (_, Some(true)) => median.filter(|_| whole).map(|m| m <= FORESEEN),
                (_, None) => median.filter(|m| *m > FORESEEN && whole).map(|_| false),
            },
        })
    }

    fn against<'a>(&self, name: &str, standings: impl Iterator<Item = &'a Standing>) -> Figure {
        let standings: Vec<&Standing> = standings.collect();
        let lost: Vec<String> = standings
            .iter()
            .filter(|s| s.place == Place::Lost)
            .map(|s| format!("{} to {} ({})", s.experiment, s.rival, s.why))
            .collect();
        let count = |place| standings.iter().filter(|s| s.place == place).count();
        let unknown = count(Place::Unknown);
        // What is better in both by less than the noise is not shown to be off the frontier, nor to be on it.
        let unsure = standings.iter().filter(|s| s.place != Place::Lost && s.dominates()).count();
        let mut places = format!(
            "ahead {}, level {}, behind {}, unknown {unknown}, lost {}",
            count(Place::Ahead),
            count(Place::Level),
            count(Place::Behind),
            lost.len()
        );
        if unsure > 0 {
            places.push_str(&format!("; better than ours in both, inside the noise: {unsure}"));
        }
        let all = !standings.is_empty() && unknown + unsure == 0 && self.whole();
        Figure {
            name: name.to_owned(),
            reach: "no more OOM kills, on the frontier".to_owned(),
            value: if lost.is_empty() { places } else { format!("{places}: {}", lost.join("; ")) },
            reached: if lost.is_empty() { all.then_some(true) } else { Some(false) },
        }
    }
}

/// What measuring the service level costs what it measures, where a run has the arm that does nothing else.
fn disturbances(summary: &Summary) -> Vec<Figure> {
    let probed = summary.cells.iter().filter(|c| c.arm == STATIC_PROBED);
    let figures: Vec<Figure> = probed.map(disturbance).collect();
    // Asked for with the others of this suite, whose guests have no network.
    if figures.is_empty() && summary.run.asked.contains("--suite quick") {
        return vec![disturbed(
            "not part of this suite: ballast-lab run tests/experiments/network.toml".to_owned(),
            None,
        )];
    }
    figures
}

fn disturbed(value: String, reached: Option<bool>) -> Figure {
    Figure {
        name: "iperf3's own disturbance: throughput with probes to without".to_owned(),
        reach: "at most 2 % less, as often as usual".to_owned(),
        value,
        reached,
    }
}

/// What a probe a minute costs is far inside the noise. Probes cost in proportion to how many they are, so an arm with many shows
/// what few cost, by the ratio of their numbers.
fn disturbance(probed: &Cell) -> Figure {
    let usual = 1.0 / Settings::default().period.secs_f64();
    let Some(often) = probed.probes_per_s else {
        return disturbed(format!("no probe came while it worked, in {}", probed.experiment), None);
    };
    let as_usual = |ratio: f64| 1.0 - (1.0 - ratio) * usual / often;
    let interval = probed.ci.get("throughput_ratio").filter(|_| probed.errors.is_empty() && probed.repetitions > 1);
    let bounds = interval.map_or(", its noise is unknown".to_owned(), |i| format!(" [{:.2}, {:.2}]", i.low, i.high));
    let value = probed.throughput_ratio.map_or("nothing to compare".to_owned(), |r| {
        let scaled = interval.map_or(String::new(), |i| format!(" [{:.4}, {:.4}]", as_usual(i.low), as_usual(i.high)));
        let usually = format!("{:.4}{scaled} with one every {}", as_usual(r), Settings::default().period);
        format!("{usually}; {r:.2}{bounds} with {often:.2} a second, in {}", probed.experiment)
    });
    let reached = match interval {
        Some(i) if as_usual(i.low) >= PROBED => Some(true),
        Some(i) if as_usual(i.high) < PROBED => Some(false),
        _ => None,
    };
    disturbed(value, reached)
}

/// Where ours stands against every other arm but `static`, experiment by experiment: rival and ours are paired with
/// each other directly, which is tighter than comparing two ratios to `static`.
#[must_use]
pub fn standings(summary: &Summary, blocks: &[Block]) -> Vec<Standing> {
    let mut standings = Vec::new();
    for experiment in experiments(blocks) {
        let cell = |arm: &str| summary.cells.iter().find(|c| c.experiment == experiment.name && c.arm == arm);
        let Some(ours) = cell(BALLAST) else { continue };
        for rival in experiment.arms() {
            let Some(theirs) = cell(rival).filter(|c| is_rival(c)) else { continue };
            let blocks = &experiment.blocks;
            let memory = figure(&pairs::resident(blocks, rival, BALLAST), pairs::ratio_of_means);
            let ratios = pairs::paired(blocks, rival, BALLAST, pairs::throughput);
            let throughput = figure(&ratios, stats::median);
            let p99 = figure(&pairs::paired(blocks, rival, BALLAST, pairs::p99), stats::median);
            let noise = (pairs::noise(blocks, pairs::throughput), pairs::noise(blocks, pairs::p99));
            let (place, mut why) = place((ours, theirs), memory, throughput, p99, noise);
            if stats::repetitions(&ratios) == 1 {
                why.push_str(", in one repetition");
            }
            standings.push(Standing {
                experiment: experiment.name.to_owned(),
                rival: rival.to_owned(),
                place,
                why,
                memory,
                throughput,
                p99,
                law: is_law(theirs),
            });
        }
    }
    standings
}

type Ratio = Option<(f64, Option<Interval>)>;

fn figure<T: Copy>(repetitions: &[Vec<T>], statistic: fn(&[T]) -> Option<f64>) -> Ratio {
    Some((statistic(&repetitions.concat())?, stats::interval(repetitions, statistic)))
}

fn place(
    (ours, theirs): (&Cell, &Cell),
    memory: Ratio,
    throughput: Ratio,
    p99: Ratio,
    (noise, p99_noise): (f64, f64),
) -> (Place, String) {
    let (our_loss, their_loss) = (lost(ours), lost(theirs));
    if our_loss > their_loss {
        return (Place::Lost, format!("ours killed or refused {our_loss}, it {their_loss}"));
    }
    if !ours.errors.is_empty() {
        return (Place::Unknown, "ours ended early".to_owned());
    }
    if their_loss > our_loss {
        return (Place::Ahead, format!("it killed or refused {their_loss}, ours {our_loss}"));
    }
    if !theirs.errors.is_empty() {
        return (Place::Unknown, "it ended early".to_owned());
    }
    match ours.unfinished.cmp(&theirs.unfinished) {
        Ordering::Greater => {
            return (Place::Lost, format!("ours left {} unfinished, it {}", ours.unfinished, theirs.unfinished));
        }
        Ordering::Less => {
            return (Place::Ahead, format!("it left {} unfinished, ours {}", theirs.unfinished, ours.unfinished));
        }
        Ordering::Equal => {}
    }
    let (Some((m, m_interval)), Some((t, t_interval))) = (memory, throughput) else {
        return (Place::Unknown, "nothing to compare".to_owned());
    };
    // Adding 0 makes a plain 0 of a negative one.
    let percent = |ratio: f64| ((ratio - 1.0) * 100.0).round() + 0.0;
    let mut why = format!("it holds {:+.0} % memory, does {:+.0} % work", percent(m), percent(t));
    if let Some((p, _)) = p99 {
        why.push_str(&format!(", p99 {:+.0} %", percent(p)));
    }
    let (held, done) = (stats::difference(m, m_interval, 1.0), stats::difference(t, t_interval, noise));
    if held == Difference::Unknown || done == Difference::Unknown {
        return (Place::Unknown, why);
    }
    // One latency says nothing about its spread; work has several values then, or the place is unknown already.
    let late = p99.map_or(Difference::None, |(p, interval)| stats::difference(p, interval, p99_noise));
    let (saves, wastes) = (held == Difference::Less, held == Difference::More);
    let serves = done == Difference::More || late == Difference::Less;
    let fails = done == Difference::Less || late == Difference::More;
    let place = match (saves || serves, wastes || fails) {
        (true, false) if saves && serves => Place::Lost,
        (true, false) => Place::Behind,
        (false, true) => Place::Ahead,
        (false, false) if m < 1.0 && t > 1.0 => Place::Behind,
        _ => Place::Level,
    };
    (place, why)
}

/// Does its law move balloons? The others are a size, a device or nothing at all.
fn is_law(cell: &Cell) -> bool {
    !["fixed", "deflate-on-oom", "free-page-reporting", "cgroup"].contains(&cell.law.as_str())
}
