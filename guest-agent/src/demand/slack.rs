//! The fast path's judgement: when does the fall of free memory become a demand?
//!
//! ```text
//!   free  ----.                        used = what is neither free, nor file cache, nor in the balloon
//!              \   rate = d(used)/dt   slack = free - low watermark
//!   trip ------- \ - - - - - - - - -   rate * T_loop * 2 + base: what is used up while the host answers, twice
//!   base --------- \ - - - - - - - -
//!   low  ------------ kswapd wakes
//! ```
//!
//! The fall of free memory alone proves nothing: a read file and an inflating balloon use it up just as fast and take
//! no effort to undo. So the slope that counts is that of `used`, and the page counts behind it are asked for (49 us)
//! only while free memory moves.
//!
//! Pure: samples and time go in, demands come out.

use ballast_protocol::{Bytes, Micros, Shortfall, Verdict};

/// The shortest time between two looks. A look costs 2 us (`sysinfo`), the wake-up around it some 20 us: the floor
/// costs about 1 % of a CPU and is only held while something moves.
pub const PERIOD_MOVING: Micros = Micros::millis(2);
/// The longest time between two looks while memory begins to fall: two samples to each [`RATE_WINDOW`]. Looking every 2 ms cost
/// a guest with one emulated CPU a tenth of it during a burst; like this it costs a thirtieth.
pub const PERIOD_FALLING: Micros = Micros::millis(10);
/// The longest time between two looks at a fall whose rate is known: half of the time that slack would last at the
/// highest rate is never exceeded, which leaves a whole reaction's worth. Each wake-up under emulation costs the guest's
/// own work a refill of the address cache besides: looks every 10 ms made the lab's burst 12 % slower.
pub const PERIOD_KNOWN: Micros = Micros::millis(60);
/// Between two looks when slack is small but nothing has moved for [`STILL_AFTER`]: at the highest rate plausible this
/// loses 4.8 MiB of warning, and costs an eighth of [`PERIOD_MOVING`].
pub const PERIOD_STILL: Micros = Micros::millis(16);
/// The longest time between two looks.
pub const PERIOD_MAX: Micros = Micros::millis(250);
/// How long nothing must have moved for [`PERIOD_STILL`].
pub const STILL_AFTER: Micros = Micros::millis(500);
/// The highest rate at which a guest is expected to use memory before it has shown a higher one, per second. DESIGN
/// section 1: 100 to 240 MiB/s under TCG; on KVM about 1 GiB/s a core, which is learned from the first burst.
pub const PLAUSIBLE_RATE: Bytes = Bytes::mib(300);
/// No figure above this is believed, per second: faster than memory can be zeroed by one socket's cores.
const RATE_CEILING: Bytes = Bytes::mib(16 << 10);
/// From demand to the first MiB given, before it was measured. DESIGN: 64 MiB come within 50 ms of the order.
pub const LOOP_START: Micros = Micros::millis(60);
/// Learned reaction times are kept within these.
const LOOP_BOUNDS: (Micros, Micros) = (Micros::millis(10), Micros::millis(400));
/// What must be left when the given memory arrives; less in guests under 512 MiB.
const BASE: Bytes = Bytes::mib(16);
/// The span over which the rate is taken: long enough for several 2 MiB huge-page faults at 240 MiB/s.
const RATE_WINDOW: Micros = Micros::millis(20);
/// A slope over less than this is the noise of one huge-page fault.
const RATE_SPAN_MIN: Micros = Micros::millis(4);
/// Use that proves nothing: one huge page, one balloon chunk, the per-CPU drift of the page counters.
const NOISE: Bytes = Bytes::mib(2);
/// Page counts are asked for once free memory moved by this much since they were last read.
const ASK_AFTER: Bytes = Bytes(512 << 10);
/// A fall teaches its rate when it was this large and this long: shorter ones are steps, not rates.
const TEACHES: (Bytes, Micros) = (Bytes::mib(32), Micros::millis(100));
/// A fall is over when nothing was used for so long.
const FALL_ENDS: Micros = Micros::millis(100);
/// How far ahead a demand asks: the host gives eight times faster than it takes, and giving twice costs a loop.
const HORIZON: Micros = Micros::secs(1);
/// The smallest demand: 50 ms of deflation.
pub const SMALLEST: Bytes = Bytes::mib(64);
/// Demands that follow each other within this double.
const STREAK: Micros = Micros::secs(2);
/// No second demand while the first is on its way, for so long.
const PATIENCE: Micros = Micros::millis(100);
/// Even a shrinking slack is not reported more often.
const REPEAT_MIN: Micros = Micros::millis(10);
/// After a refusal nothing is asked for so long.
const REFUSED_WAIT: Micros = Micros::secs(1);

/// One look at free memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// When.
    pub at: Micros,
    /// Free memory.
    pub free: Bytes,
    /// What explains it, when [`SlackWatch::wants_detail`] asked.
    pub detail: Option<Detail>,
}

/// Page counts that tell use from cache and balloon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// Page cache with a file behind it.
    pub file: Bytes,
    /// The clean and inactive part of it, which the kernel drops without effort.
    pub droppable: Bytes,
    /// What the balloon holds.
    pub ballooned: Bytes,
}

/// What should be asked of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// How much more.
    pub size: Bytes,
    /// The first sample that showed it.
    pub sign: Micros,
    /// How long the slack lasts at this rate.
    pub within: Micros,
}

/// A demand that is on its way.
#[derive(Clone, Copy, Debug)]
struct Outstanding {
    raised: Micros,
    slack: Bytes,
    ballooned: Bytes,
    /// Once answered: when, and how much is to come.
    granted: Option<(Micros, Bytes)>,
    /// What the balloon still held when it was last seen to deflate, and when that was: as long as memory comes, the
    /// demand is being met.
    left: Bytes,
    came_at: Micros,
}

/// A continuous rise of use.
#[derive(Clone, Copy, Debug)]
struct Fall {
    /// The last look before it.
    began: Micros,
    /// Use then.
    from: i64,
    /// The first look that saw it: a quarter of a second later where nothing had moved, and it may be a moment old.
    noticed: Micros,
    /// Use then.
    then: i64,
    /// Use and time of the highest sample.
    top: i64,
    top_at: Micros,
    /// The first sample below the trip line.
    sign: Option<Micros>,
}

/// Samples kept for the slope: [`RATE_WINDOW`] at the fastest period, and as much again.
const KEPT: usize = 20;

/// Watches slack. See the module's documentation.
#[derive(Debug)]
pub struct SlackWatch {
    low: Bytes,
    total: Bytes,
    loop_time: Micros,
    highest_rate: Bytes,
    detail: Detail,
    free_at_detail: Option<Bytes>,
    samples: [(Micros, i64); KEPT],
    count: usize,
    fall: Option<Fall>,
    slack: Bytes,
    rate: Bytes,
    moved_at: Micros,
    free_then: Bytes,
    outstanding: Option<Outstanding>,
    last_raised: Option<Micros>,
    streak: u32,
    quiet_until: Micros,
}

impl SlackWatch {
    /// Watches a guest of `total` bytes whose low watermarks sum up to `low`.
    #[must_use]
    pub fn new(low: Bytes, total: Bytes) -> Self {
        Self {
            low,
            total,
            loop_time: LOOP_START,
            highest_rate: PLAUSIBLE_RATE,
            detail: Detail::default(),
            free_at_detail: None,
            samples: [(Micros::ZERO, 0); KEPT],
            count: 0,
            fall: None,
            slack: Bytes::MAX,
            rate: Bytes::ZERO,
            moved_at: Micros::ZERO,
            free_then: Bytes::ZERO,
            outstanding: None,
            last_raised: None,
            streak: 0,
            quiet_until: Micros::ZERO,
        }
    }

    /// The watermarks or the total changed.
    pub fn set_limits(&mut self, low: Bytes, total: Bytes) {
        (self.low, self.total) = (low, total);
    }

    /// Free memory above the low watermarks at the last look.
    #[must_use]
    pub fn slack(&self) -> Bytes {
        self.slack
    }

    /// How fast memory is being used, per second.
    #[must_use]
    pub fn rate(&self) -> Bytes {
        self.rate
    }

    /// The reaction time that is reckoned with.
    #[must_use]
    pub fn loop_time(&self) -> Micros {
        self.loop_time
    }

    /// Whether memory is being used up right now.
    #[must_use]
    pub fn is_falling(&self) -> bool {
        self.fall.is_some_and(|f| f.top - f.from >= NOISE.0 as i64)
    }

    /// What must be left at any time.
    #[must_use]
    pub fn base(&self) -> Bytes {
        BASE.min(self.total.share(1, 32))
    }

    /// The slack below which a fall at `rate` becomes a demand.
    #[must_use]
    pub fn trip(&self, rate: Bytes) -> Bytes {
        rate.share(2 * self.loop_time.0, 1_000_000) + self.base()
    }

    /// Whether the next [`Look`] needs its detail: free memory moved since it was last read. A rise needs it as well:
    /// what the balloon gave would otherwise look like use when the next fall is explained.
    #[must_use]
    pub fn wants_detail(&self, free: Bytes) -> bool {
        self.free_at_detail.is_none_or(|then| free.0.abs_diff(then.0) >= ASK_AFTER.0)
            || (self.fall.is_some() && free < self.free_then)
            || self.outstanding.is_some()
            || free < self.low + self.base()
    }

    /// A demand was answered `at` this time.
    pub fn answered(&mut self, at: Micros, verdict: Verdict) {
        match verdict {
            Verdict::Granted { size, .. } | Verdict::Partly { size, .. } => {
                if let Some(o) = &mut self.outstanding {
                    o.granted = Some((at, size));
                }
                if let Verdict::Partly { why: Shortfall::AtMaximum, .. } = verdict {
                    self.quiet_until = at + REFUSED_WAIT;
                }
            }
            Verdict::Refused(_) => {
                self.outstanding = None;
                self.quiet_until = at + REFUSED_WAIT;
            }
        }
    }

    /// Another source's demand was raised: what it brings is on its way for this judge too.
    pub fn on_its_way(&mut self, at: Micros) {
        self.outstanding.get_or_insert(Outstanding {
            raised: at,
            slack: self.slack,
            ballooned: self.detail.ballooned,
            granted: None,
            left: self.detail.ballooned,
            came_at: at,
        });
    }

    /// The highest rate seen or plausible, per second.
    #[must_use]
    pub fn highest_rate(&self) -> Bytes {
        self.highest_rate
    }

    /// The host has gone, or is new: nothing is on its way, and nothing was refused.
    pub fn forget_host(&mut self) {
        self.outstanding = None;
        self.quiet_until = Micros::ZERO;
    }

    /// It took `took` from a demand to the first MiB: rises at once, falls slowly.
    pub fn learn_loop(&mut self, took: Micros) {
        let next = if took > self.loop_time { took } else { self.loop_time - Micros((self.loop_time - took).0 / 3) };
        self.loop_time = next.clamp(LOOP_BOUNDS.0, LOOP_BOUNDS.1);
    }

    /// Takes one look and says what to ask for, if anything.
    pub fn look(&mut self, look: Look) -> Option<Need> {
        if look.free.0.abs_diff(self.free_then.0) >= ASK_AFTER.0 / 2 {
            self.moved_at = look.at;
        }
        self.free_then = look.free;
        if let Some(detail) = look.detail {
            self.detail = detail;
            self.free_at_detail = Some(look.free);
        }
        self.slack = look.free - self.low;
        let used = -(signed(look.free) + signed(self.detail.file) + signed(self.detail.ballooned));
        self.remember(look.at, used);
        self.follow_fall(look.at, used);
        self.rate = self.measure_rate(look.at, used);
        self.settle(look.at);
        self.judge(look.at)
    }

    /// How long slack lasts at the highest rate known. Half of the trip line may be spent between two looks: what is
    /// left still covers one reaction.
    fn until_trip(&self) -> Micros {
        let spare = self.slack - self.trip(self.highest_rate).share(1, 2);
        span(spare, self.highest_rate)
    }

    /// How long until the next look must be taken.
    #[must_use]
    pub fn period(&self, now: Micros) -> Micros {
        if now < self.quiet_until {
            // What is refused anyway need not be seen early; free memory is still followed for telemetry.
            return Micros::millis(20);
        }
        let until_trip = self.until_trip();
        if self.outstanding.is_some() || self.fall.is_some_and(|f| now - f.noticed < TEACHES.1) {
            // No more than what the rate is measured from.
            return Micros(until_trip.0 / 8).clamp(PERIOD_MOVING, PERIOD_FALLING);
        }
        if self.fall.is_some() {
            return Micros(until_trip.0 / 2).clamp(PERIOD_MOVING, PERIOD_KNOWN);
        }
        let floor = if now - self.moved_at >= STILL_AFTER { PERIOD_STILL } else { PERIOD_MOVING };
        until_trip.clamp(floor, PERIOD_MAX)
    }

    fn remember(&mut self, at: Micros, used: i64) {
        self.samples.copy_within(0..KEPT - 1, 1);
        self.samples[0] = (at, used);
        self.count = (self.count + 1).min(KEPT);
    }

    fn follow_fall(&mut self, at: Micros, used: i64) {
        let before = if self.count > 1 { self.samples[1] } else { (at, used) };
        match &mut self.fall {
            Some(fall) => {
                if used > fall.top {
                    (fall.top, fall.top_at) = (used, at);
                }
                let given_back = fall.top - used;
                if given_back * 4 > (fall.top - fall.from) * 3 || at - fall.top_at >= FALL_ENDS {
                    self.fall = None;
                }
            }
            None if used > before.1 => {
                self.fall = Some(Fall {
                    began: before.0,
                    from: before.1,
                    noticed: at,
                    then: used,
                    top: used,
                    top_at: at,
                    sign: None,
                });
            }
            None => {}
        }
    }

    /// The slope of use over the rate window; the mean of the fall when that is higher, so that a pause for one huge
    /// page does not hide a burst.
    fn measure_rate(&mut self, at: Micros, used: i64) -> Bytes {
        let Some(fall) = self.fall else { return Bytes::ZERO };
        let samples = &self.samples[..self.count];
        let in_window = samples.iter().rposition(|(t, _)| at - *t <= RATE_WINDOW).unwrap_or(0);
        let oldest = if at - samples[in_window].0 < RATE_SPAN_MIN {
            samples.get(in_window + 1).unwrap_or(&samples[in_window])
        } else {
            &samples[in_window]
        };
        let recent = per_second(used - oldest.1, at - oldest.0);
        let mean_since = |when: Micros, used: i64| {
            if at - when >= RATE_SPAN_MIN { per_second(fall.top - used, at - when) } else { Bytes::ZERO }
        };
        // Since it was noticed: before that it may have stood still.
        let since_noticed = mean_since(fall.noticed, fall.then);
        let mean = mean_since(fall.began, fall.from).max(since_noticed);
        if fall.top - fall.then >= signed(TEACHES.0) && at - fall.noticed >= TEACHES.1 {
            // A quarter more: the next one may be faster than the mean of this.
            self.highest_rate = self.highest_rate.max(since_noticed.share(5, 4)).min(RATE_CEILING);
        }
        recent.max(mean).min(self.highest_rate)
    }

    /// Forgets a demand whose memory has come, or that nobody answers.
    fn settle(&mut self, at: Micros) {
        if let Some(o) = &mut self.outstanding {
            if self.detail.ballooned + NOISE <= o.left {
                (o.left, o.came_at) = (self.detail.ballooned, at);
            }
            let since = o.granted.map_or(o.raised, |(t, _)| t).max(o.came_at);
            let come = o.granted.is_some_and(|(_, size)| self.detail.ballooned + size <= o.ballooned);
            if come || at - since >= PATIENCE {
                self.outstanding = None;
            }
        }
    }

    fn judge(&mut self, at: Micros) -> Option<Need> {
        let trip = self.trip(self.rate);
        let in_danger = self.rate > Bytes::ZERO && self.slack < trip;
        let shrinking = self.outstanding.is_none_or(|o| {
            at - o.raised >= REPEAT_MIN && self.slack < o.slack.share(1, 2) && self.slack < trip.share(1, 2)
        });
        if let Some(fall) = &mut self.fall {
            // What an earlier demand is about to mend is no sign of the next.
            fall.sign = if in_danger && shrinking { fall.sign.or(Some(at)) } else { None };
        }
        if at < self.quiet_until || !shrinking {
            return None;
        }
        let proof = NOISE.max(self.slack.share(1, 16));
        let falling = self.fall.filter(|f| in_danger && f.top - f.from >= signed(proof));
        // Standing low with nothing to drop: no fall is needed to know that the next page will hurt.
        let starved = self.slack < self.base() && self.slack + self.detail.droppable < self.base() + self.base();
        if falling.is_none() && !starved {
            return None;
        }
        Some(self.raise(at, falling.and_then(|f| f.sign).unwrap_or(at), trip))
    }

    fn raise(&mut self, at: Micros, sign: Micros, trip: Bytes) -> Need {
        self.streak = match self.last_raised {
            Some(last) if at - last < STREAK => (self.streak + 1).min(6),
            _ => 0,
        };
        self.last_raised = Some(at);
        let ahead = self.rate.share(HORIZON.0, 1_000_000) + (trip - self.slack);
        let size = ahead.max(SMALLEST).share(1 << self.streak, 1).min(self.total.max(SMALLEST));
        self.outstanding = None;
        self.on_its_way(at);
        Need { size, sign, within: span(self.slack, self.rate.max(Bytes::mib(1))) }
    }
}

/// Signed, so that differences have a direction; bounded (64 PiB) so that sums and multiples of a few cannot overflow.
fn signed(b: Bytes) -> i64 {
    b.0.min(1 << 56) as i64
}

/// `bytes` in `over`, per second; a fall is nothing.
fn per_second(bytes: i64, over: Micros) -> Bytes {
    match u64::try_from(bytes) {
        Ok(bytes) if over > Micros::ZERO => Bytes(bytes).share(1_000_000, over.0),
        _ => Bytes::ZERO,
    }
}

/// How long `bytes` last at `rate` per second.
fn span(bytes: Bytes, rate: Bytes) -> Micros {
    Micros(bytes.share(1_000_000, rate.0.max(1)).0)
}
