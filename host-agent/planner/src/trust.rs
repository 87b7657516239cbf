//! Whether a guest's reports are believed.
//!
//! A guest is hostile until its figures hold together: within themselves, over time, and with what the hypervisor
//! sees. A guest that is not believed loses nothing it has. It is only not taken from, because a taking rests on
//! its figures; what it asks for is still capped by its own maximum, so that lying gains it nothing either.

use ballast_protocol::{Bytes, Counters, Micros, Telemetry};
use serde::{Deserialize, Serialize};

/// How many sound reports in a row restore trust: half a minute of idle reports.
const SOUND_REPORTS: u32 = 30;
/// How many contradictions with the hypervisor in a row destroy it. One or two happen while a balloon moves.
const CONTRADICTIONS: u32 = 5;

/// The state of trust in one guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    /// Sound reports still needed; 0: trusted.
    owed: u32,
    /// Contradictions in a row.
    contradictions: u32,
}

/// What a report did to trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is used.
    Sound,
    /// It is used, and trust is back.
    SoundAgain,
    /// It is not used; why.
    Unsound(String),
}

impl Trust {
    /// Whether the guest's figures count.
    #[must_use]
    pub const fn is_trusted(&self) -> bool {
        self.owed == 0
    }

    /// Judges a report against itself, the one before, and the hypervisor (`max`, and `actual` if the balloon has
    /// been at rest for long enough that both must agree).
    pub fn judge(
        &mut self,
        new: &Telemetry,
        old: Option<&Telemetry>,
        max: Bytes,
        actual_at_rest: Option<Bytes>,
    ) -> Verdict {
        let fault = impossible(new, max)
            .or_else(|| old.and_then(|old| went_back(new, old)))
            .or_else(|| self.contradiction(new, max, actual_at_rest));
        match fault {
            Some(why) => {
                self.owed = SOUND_REPORTS;
                Verdict::Unsound(why)
            }
            None if self.owed > 0 => {
                self.owed -= 1;
                if self.owed == 0 { Verdict::SoundAgain } else { Verdict::Sound }
            }
            None => Verdict::Sound,
        }
    }

    fn contradiction(&mut self, new: &Telemetry, max: Bytes, actual: Option<Bytes>) -> Option<String> {
        let (ballooned, actual) = (new.ballooned?, actual?);
        let kept = max - ballooned;
        let gap = (kept - actual).max(actual - kept);
        // An eighth: pages that are on their way between the two counts, and memory hot-plugged in between.
        if gap <= max.share(1, 8).max(Bytes::mib(64)) {
            self.contradictions = 0;
            return None;
        }
        self.contradictions += 1;
        (self.contradictions >= CONTRADICTIONS)
            .then(|| format!("it says that it keeps {kept}, the hypervisor says {actual}"))
    }
}

/// A report that no kernel can make.
fn impossible(t: &Telemetry, max: Bytes) -> Option<String> {
    // MemTotal is always less than the VM's memory: the kernel itself and its page table are not in it.
    if t.total == Bytes::ZERO || t.total > max {
        return Some(format!("MemTotal is {}, the VM has {max}", t.total));
    }
    for (name, size) in [
        ("MemFree", t.free),
        ("MemAvailable", t.available),
        ("the giveable part", t.giveable),
        ("page cache", t.file),
        ("AnonPages", t.anon),
        ("Shmem", t.shmem),
        ("the low watermark", t.watermarks.low),
    ] {
        if size > t.total {
            return Some(format!("{name} is {size}, MemTotal {}", t.total));
        }
    }
    if t.ballooned.is_some_and(|b| b > max) {
        return Some(format!("the balloon holds more than the VM's {max}"));
    }
    // Per-CPU counters lag: the sum may exceed the total a little, never by much.
    let sum = t.free + t.file + t.anon + t.shmem;
    if sum > t.total + t.total.share(1, 16) + Bytes::mib(16) {
        return Some(format!("free, cache, anonymous and shared memory sum to {sum}, MemTotal is {}", t.total));
    }
    None
}

/// Counters of one boot never go back.
fn went_back(new: &Telemetry, old: &Telemetry) -> Option<String> {
    if new.at < old.at {
        return Some(format!("its clock went back by {}", old.at - new.at));
    }
    let (n, o) = (&new.counters, &old.counters);
    type Counter = (&'static str, fn(&Counters) -> Option<u64>);
    let pairs: [Counter; 6] = [
        ("allocstall", |c| c.alloc_stall),
        ("oom_kill", |c| c.oom_kill),
        ("pswpin", |c| c.swap_in),
        ("pgmajfault", |c| c.major_fault),
        ("balloon_inflate", |c| c.balloon_inflate),
        ("workingset_refault_file", |c| c.refault_file),
    ];
    for (name, get) in pairs {
        if let (Some(new), Some(old)) = (get(n), get(o))
            // vmstat sums per-CPU deltas and may read a few events less than before (mm/vmstat.c).
            && new.saturating_add(128) < old
        {
            return Some(format!("{name} went back from {old} to {new}"));
        }
    }
    if let (Some(new), Some(old)) = (new.memory_pressure, old.memory_pressure)
        && new.some + Micros(1) < old.some
    {
        return Some(format!("PSI went back from {} to {}", old.some, new.some));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> Telemetry {
        Telemetry {
            at: Micros::secs(10),
            total: Bytes::mib(469),
            free: Bytes::mib(100),
            available: Bytes::mib(200),
            giveable: Bytes::mib(200),
            ballooned: Some(Bytes::mib(112)),
            ..Telemetry::default()
        }
    }
    const MAX: Bytes = Bytes::mib(512);

    #[test]
    fn a_report_that_no_kernel_makes_is_not_believed() {
        let cases: [fn(&mut Telemetry); 5] = [
            |t| t.free = Bytes::mib(470),
            |t| t.total = Bytes::mib(513),
            |t| t.total = Bytes::ZERO,
            |t| t.giveable = Bytes::MAX,
            |t| (t.anon, t.file) = (Bytes::mib(300), Bytes::mib(300)),
        ];
        for (i, spoil) in cases.iter().enumerate() {
            let mut t = sound();
            spoil(&mut t);
            let mut trust = Trust::default();
            assert!(matches!(trust.judge(&t, None, MAX, None), Verdict::Unsound(_)), "case {i}");
            assert!(!trust.is_trusted());
        }
    }

    #[test]
    fn counters_that_go_back_are_not_believed() {
        let mut old = sound();
        old.counters.oom_kill = Some(1000);
        let mut new = sound();
        new.counters.oom_kill = Some(1);
        assert!(matches!(Trust::default().judge(&new, Some(&old), MAX, None), Verdict::Unsound(_)));
    }

    #[test]
    fn one_contradiction_is_a_moving_balloon_five_are_a_lie() {
        let mut trust = Trust::default();
        let lie = Telemetry { ballooned: Some(Bytes::ZERO), ..sound() };
        for _ in 0..4 {
            assert_eq!(trust.judge(&lie, None, MAX, Some(Bytes::mib(200))), Verdict::Sound);
        }
        assert!(matches!(trust.judge(&lie, None, MAX, Some(Bytes::mib(200))), Verdict::Unsound(_)));
    }

    #[test]
    fn trust_returns_after_thirty_sound_reports() {
        let mut trust = Trust::default();
        let wrong = Telemetry { free: Bytes::MAX, ..sound() };
        trust.judge(&wrong, None, MAX, None);
        for _ in 0..29 {
            assert_eq!(trust.judge(&sound(), None, MAX, Some(Bytes::mib(400))), Verdict::Sound);
        }
        assert_eq!(trust.judge(&sound(), None, MAX, Some(Bytes::mib(400))), Verdict::SoundAgain);
        assert!(trust.is_trusted());
    }
}
