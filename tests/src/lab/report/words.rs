//! What the figures say, in sentences that are computed and not written beforehand.

use crate::lab::results::{BALLAST, Cell, STATIC, Summary};
use crate::lab::stats;
use crate::lab::summary::{Place, Standing, counted, is_rival, lost};
use std::time::{Duration, SystemTime};

/// Milliseconds as people say them.
#[must_use]
pub fn ms(ms: f64) -> String {
    match ms {
        v if v >= 10_000.0 => format!("{:.0} s", v / 1000.0),
        v if v >= 1000.0 => format!("{:.1} s", v / 1000.0).replace(".0 ", " "),
        v if v >= 10.0 => format!("{v:.0} ms"),
        v if v >= 1.0 => format!("{v:.1} ms").replace(".0 ", " "),
        v if v >= 0.01 => format!("{:.0} µs", v * 1000.0),
        v => format!("{:.1} µs", v * 1000.0),
    }
}

/// Seconds as people say them.
#[must_use]
pub fn duration(seconds: f64) -> String {
    let whole = if seconds.is_finite() { seconds.max(0.0).round() as u64 } else { 0 };
    humantime::format_duration(Duration::from_secs(whole)).to_string()
}

/// A day and a time, UTC, from seconds since 1970.
#[must_use]
pub fn date(unix: u64) -> String {
    // A file may say anything; the library knows no year after 9999.
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(unix.min(253_402_300_799));
    humantime::format_rfc3339_seconds(at).to_string().replace('T', " ").replace('Z', " UTC")
}

fn list(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [all @ .., last] => format!("{} and {last}", all.join(", ")),
    }
}

/// An arm over all of its experiments.
struct Over {
    arm: String,
    saved: f64,
    kept: f64,
    lost: u64,
}

fn over(summary: &Summary, arm: &str) -> Option<Over> {
    let cells: Vec<&Cell> = summary.cells.iter().filter(|c| c.arm == arm).collect();
    let median = |of: fn(&Cell) -> Option<f64>| stats::median(&cells.iter().filter_map(|c| of(c)).collect::<Vec<_>>());
    Some(Over {
        arm: arm.to_owned(),
        saved: 100.0 * (1.0 - median(|c| c.resident_ratio)?),
        kept: 100.0 * median(|c| c.throughput_ratio)?,
        lost: cells.iter().map(|c| lost(c)).sum(),
    })
}

/// Three sentences: ours, the others, and the one against the others.
#[must_use]
pub fn findings(summary: &Summary, standings: &[Standing]) -> Vec<String> {
    let mut arms: Vec<&str> = Vec::new();
    for cell in summary.cells.iter().filter(|c| is_rival(c)) {
        if !arms.contains(&cell.arm.as_str()) {
            arms.push(&cell.arm);
        }
    }
    let mut sentences = Vec::new();
    sentences.extend(ours(summary));
    let rivals: Vec<Over> = arms.iter().filter_map(|a| over(summary, a)).collect();
    sentences.extend(others(&rivals));
    sentences.extend(against(standings));
    if sentences.is_empty() {
        sentences.push(format!("No arm could be compared with {STATIC}."));
    }
    sentences
}

fn ours(summary: &Summary) -> Option<String> {
    let ours = over(summary, BALLAST)?;
    let cells: Vec<&Cell> = summary.cells.iter().filter(|c| c.arm == BALLAST).collect();
    let p99: Vec<f64> = cells.iter().filter_map(|c| c.p99_ratio).collect();
    let p99 = stats::median(&p99).map_or(String::new(), |r| format!(" at {r:.2} times its p99 latency"));
    let oracle: Vec<f64> = cells.iter().filter_map(|c| c.oracle_ratio).collect();
    let oracle = stats::median(&oracle)
        .map_or(String::new(), |r| format!("; it held {r:.2} times what the smallest harmless fixed size would have"));
    let whole = cells.iter().all(|c| c.errors.is_empty() && c.unfinished == 0);
    let lost = match ours.lost {
        0 if !whole => "nothing was seen killed or refused memory, but not all of it came to its end".to_owned(),
        0 => "nothing was killed or refused memory".to_owned(),
        n => format!("{n} processes or allocations were killed or refused"),
    };
    Some(format!(
        "{BALLAST} saved {:.0} % of the memory that {STATIC} held and kept {:.0} % of its throughput{p99} (medians of {}){oracle}; {lost}.",
        ours.saved,
        ours.kept,
        counted(cells.len() as u64, "experiment"),
    ))
}

fn others(rivals: &[Over]) -> Option<String> {
    if rivals.is_empty() {
        return None;
    }
    let killers: Vec<String> =
        rivals.iter().filter(|r| r.lost > 0).map(|r| format!("{} ({})", r.arm, r.lost)).collect();
    let clean = || rivals.iter().filter(|r| r.lost == 0);
    let killed = match killers.len() {
        0 => format!("None of the {} others killed or refused anything", rivals.len()),
        n => format!("{n} of the {} others killed or refused: {}", rivals.len(), list(&killers)),
    };
    let told = |r: &Over| format!("{} saved {:.0} % and kept {:.0} %", r.arm, r.saved, r.kept);
    let clean: Vec<String> = clean().map(told).collect();
    Some(if clean.is_empty() {
        format!("{killed}.")
    } else {
        format!("{killed}; without a loss of that kind, {}.", list(&clean))
    })
}

fn against(standings: &[Standing]) -> Option<String> {
    if standings.is_empty() {
        return None;
    }
    let named = |place| -> Vec<String> {
        standings.iter().filter(|s| s.place == place).map(|s| format!("{} in {}", s.rival, s.experiment)).collect()
    };
    let (ahead, level) = (named(Place::Ahead).len(), named(Place::Level).len());
    let (behind, unknown, lost) = (named(Place::Behind), named(Place::Unknown), named(Place::Lost));
    let mut text = format!(
        "Against each of them in each experiment ({} pairs) {BALLAST} is ahead in {ahead} and level in {level}",
        standings.len()
    );
    if !behind.is_empty() {
        text.push_str(&format!(", behind in {} ({})", behind.len(), list(&behind)));
    }
    if !unknown.is_empty() {
        text.push_str(&format!("; {} cannot be told ({})", unknown.len(), list(&unknown)));
    }
    text.push_str(&match lost.len() {
        0 if !unknown.is_empty() => "; of the others it lost none.".to_owned(),
        0 => "; it lost none.".to_owned(),
        n => format!("; it lost {n}: {}.", list(&lost)),
    });
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_dates() {
        assert_eq!(date(1_795_247_000), "2026-11-21 07:43:20 UTC");
        assert!(date(u64::MAX).starts_with("9999-12-31"));
        assert_eq!((ms(0.25), ms(4.25), ms(1500.0)), ("250 µs".to_owned(), "4.2 ms".to_owned(), "1.5 s".to_owned()));
        assert_eq!(duration(59.6), "1m");
        assert_eq!(list(&["a".to_owned(), "b".to_owned(), "c".to_owned()]), "a, b and c");
    }
}
