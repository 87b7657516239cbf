//! Looking and asking: the hot path from a look at free memory to a demand, and the telemetry.

use super::session::Pace;
use super::{Agent, AgentError, AwaitedRelief};
use crate::demand::committed::{Hint, Promise};
use crate::demand::slack::{Detail, Look, Need};
use crate::log;
use ballast_protocol::{Bytes, Demand, GuestMessage, Micros, Pages, Relief, Source};

/// How long watermarks are believed; they change by sysctl, hot-plug, or with the balloon when MemTotal moves.
const WATERMARKS_KEPT: Micros = Micros::secs(60);
/// Free memory that moves by more than this since the last telemetry is news.
const NEWS: Bytes = Bytes::mib(4);
/// Telemetry stays busy so long after the last news.
const NEWS_LASTS: Micros = Micros::secs(2);
/// Between two looks at the balloon while waiting for its first MiB, and at slack while a lease waits.
const RELIEF_PERIOD: Micros = Micros::millis(2);
/// Between two looks at slack while a lease waits.
const LEASE_PERIOD: Micros = Micros::millis(10);
/// The first MiB, in the balloon's pages.
const FIRST_MIB: u64 = 256;
/// When no MiB has come by then, none will be measured.
const RELIEF_GIVEN_UP: Micros = Micros::secs(1);
/// Reliefs watched at a time; more demands than these in one second tell nothing new.
pub(super) const RELIEFS: usize = 8;
/// Between two readings of Committed_AS: at 160 to 330 us each under TCG (FACTS, section 6) this is 0.1 % of a CPU;
/// the start of a fall is read at once, which is when it matters.
const COMMITTED_IDLE: Micros = Micros::millis(400);
/// While memory is being used.
const COMMITTED_MOVING: Micros = Micros::millis(40);
/// While a hint stands: what was promised is asked for already, only its growth or its end is news. Every 40 ms cost a
/// burst under emulation 1.5 % of its time.
const COMMITTED_STANDING: Micros = Micros::millis(120);
/// Another demand raised within this is on its way still.
const ON_ITS_WAY: Micros = Micros::millis(100);
/// What a hint expects to last when nothing is being used yet.
const HINT_WITHIN: Micros = Micros::secs(1);

impl Agent {
    pub(super) fn tick(&mut self, now: Micros) -> Result<(), AgentError> {
        if let Some(event) = self.session.check(now) {
            self.on_link(now, event)?;
        }
        if now >= self.next_look {
            self.look(now)?;
        } else {
            self.absorb(now);
        }
        if now >= self.session.telemetry_due(self.pace(now), self.reported_at) {
            self.report(now)?;
        }
        Ok(())
    }

    pub(super) fn pace(&self, now: Micros) -> Pace {
        if !self.reliefs.is_empty() || self.balloon != self.reported.1 {
            Pace::Busy
        } else if self.book.pending() > Bytes::ZERO || now - self.news_at < NEWS_LASTS {
            // What is asked for and has come is being used: the planner does not take from it meanwhile.
            Pace::Moving
        } else {
            Pace::Idle
        }
    }

    /// The hot path: free memory, and what explains it when it falls.
    pub(super) fn look(&mut self, now: Micros) -> Result<(), AgentError> {
        let free = self.sensors.free()?;
        let wants = self.slack.wants_detail(free) || !self.reliefs.is_empty();
        let detail = if wants { Some(self.detail(now, free)?) } else { None };
        if free.0.abs_diff(self.reported.0.0) > NEWS.0 || self.balloon != self.reported.1 {
            self.news_at = now;
        }
        let need = self.slack.look(Look { at: now, free, detail });
        if self.slack.is_falling() {
            if let Some(job) = &self.job {
                job.stop.now();
            }
            // The size of what has begun to fall may stand in Committed_AS: ask for all of it in one demand.
            self.next_committed = self.next_committed.min(self.committed_at + self.committed_period());
        }
        // Never a wake-up of its own: under emulation a wake-up costs more than all it does.
        if now >= self.next_committed || need.is_some() {
            self.read_committed(now)?;
        }
        if let Some(need) = need.filter(|_| self.raised_at != Some(now)) {
            self.raise(now, Source::Slack, need, free);
        }
        self.check_reliefs(now);
        self.book.expire(now);
        self.settle_leases(now, free);
        self.absorb(now);
        self.next_look = now + self.slack.period(now);
        if !self.reliefs.is_empty() {
            self.next_look = self.next_look.min(now + RELIEF_PERIOD);
        } else if self.leases.is_waiting() {
            self.next_look = self.next_look.min(now + LEASE_PERIOD);
        } else if self.committed.is_standing() {
            self.next_look = self.next_look.min(now + COMMITTED_STANDING);
        }
        Ok(())
    }

    /// Between two readings of Committed_AS.
    fn committed_period(&self) -> Micros {
        if self.committed.is_standing() {
            COMMITTED_STANDING
        } else if self.slack.is_falling() {
            COMMITTED_MOVING
        } else {
            COMMITTED_IDLE
        }
    }

    fn absorb(&mut self, now: Micros) {
        let ample = self.slack.trip(self.slack.highest_rate());
        if let Some(absorber) = &mut self.absorber {
            absorber.update(now, self.slack.slack(), ample + ample);
        }
    }

    fn detail(&mut self, now: Micros, free: Bytes) -> Result<Detail, AgentError> {
        let v = self.sensors.vmstat()?;
        self.balloon = (v.counters.balloon_inflate.unwrap_or(0), v.counters.balloon_deflate.unwrap_or(0));
        if self.edges.stalled(v.counters.alloc_stall, v.counters.scan_direct) {
            self.late_sign(now, Source::Stall, free);
        }
        Ok(Detail { file: v.file, droppable: v.droppable, ballooned: v.ballooned().unwrap_or(Bytes::ZERO) })
    }

    /// The trigger thread saw something.
    pub(super) fn on_sign(&mut self, now: Micros, source: Source) -> Result<(), AgentError> {
        if source == Source::Cgroup
            && let Some(absorber) = &mut self.absorber
        {
            absorber.held(now);
        }
        self.look(now)?;
        let free = self.sensors.free()?;
        self.late_sign(now, source, free);
        Ok(())
    }

    fn late_sign(&mut self, now: Micros, source: Source, free: Bytes) {
        let recent = self.raised_at.is_some_and(|then| now - then < ON_ITS_WAY);
        let on_its_way = recent || self.book.is_asking();
        let slack = free - self.watermarks.low;
        if let Some(size) = self.edges.sign(now, source, slack, self.total, on_its_way) {
            self.raise(now, source, Need { size, sign: now, within: ON_ITS_WAY }, free);
        }
    }

    fn read_committed(&mut self, now: Micros) -> Result<(), AgentError> {
        let m = self.sensors.meminfo()?;
        self.resident = m.resident();
        self.committed_at = now;
        let slack = m.free - self.watermarks.low;
        let promise = Promise { at: now, committed: m.committed, resident: self.resident, slack };
        let hint = self.committed.sample(promise);
        if let Some(Hint::Raise(_) | Hint::Over) = hint
            && let Some(id) = self.book.standing(Source::Committed)
        {
            self.withdraw(id);
        }
        if let Some(Hint::Raise(size)) = hint {
            // It will all be used: what must be left afterwards comes on top.
            let size = (size + self.slack.base() + self.slack.base()).min(self.total);
            let need = Need { size, sign: now, within: HINT_WITHIN };
            self.raise(now, Source::Committed, need, m.free);
        }
        self.next_committed = now + self.committed_period();
        Ok(())
    }

    /// Asks the host. Without a session nobody can answer: the judges find the same again when one stands.
    fn raise(&mut self, now: Micros, source: Source, need: Need, free: Bytes) -> Option<u64> {
        if !self.session.is_up() {
            return None;
        }
        let ballooned = self.sensors.balloon.map(|_| self.ballooned());
        let Need { size, sign, within } = need;
        let demand = Demand { id: 0, source, size, sign, sent: now, within, free, ballooned };
        let demand = self.book.raise(demand)?;
        self.session.say(&GuestMessage::Demand(demand));
        log!(Debug, "demand {} {source:?}: {size}, {free} free, rate {}/s", demand.id, self.slack.rate());
        if source != Source::Reserve {
            self.raised_at = Some(now);
            self.slack.on_its_way(now);
        }
        if let Some(job) = &self.job {
            job.stop.now();
        }
        if ballooned.is_some() && self.reliefs.len() < RELIEFS {
            let relief = Relief { id: demand.id, sign, answered: Micros::ZERO, first_mib: None };
            self.reliefs.push(AwaitedRelief { relief, source, sent: now, deflated_at_sign: self.balloon.1 });
        }
        Some(demand.id)
    }

    pub(super) fn ballooned(&self) -> Bytes {
        Pages(self.balloon.0.saturating_sub(self.balloon.1)).into()
    }

    fn check_reliefs(&mut self, now: Micros) {
        let deflated = self.balloon.1;
        let (slack, session, book) = (&mut self.slack, &mut self.session, &mut self.book);
        self.reliefs.retain_mut(|awaited| {
            let came = deflated >= awaited.deflated_at_sign + FIRST_MIB;
            if came && awaited.relief.first_mib.is_none() {
                awaited.relief.first_mib = Some(now);
                slack.learn_loop(now - awaited.sent);
            }
            let answered = awaited.relief.answered > Micros::ZERO;
            let over = now - awaited.sent >= RELIEF_GIVEN_UP;
            let done = over || (answered && came);
            if done && answered {
                session.say(&GuestMessage::Relief(awaited.relief));
                if !matches!(awaited.source, Source::Reserve | Source::Committed) {
                    book.close(awaited.relief.id);
                }
            }
            !done
        });
    }

    fn settle_leases(&mut self, now: Micros, free: Bytes) {
        if !self.leases.is_waiting() {
            return;
        }
        let (slack, resident) = (free - self.watermarks.low, self.resident);
        let mut leases = std::mem::take(&mut self.leases);
        leases.settle(now, slack, resident, |missing, old| {
            if let Some(old) = old {
                self.withdraw(old);
            }
            let need = Need { size: missing, sign: now, within: HINT_WITHIN };
            self.raise(now, Source::Reserve, need, free)
        });
        self.leases = leases;
    }

    fn report(&mut self, now: Micros) -> Result<(), AgentError> {
        if now - self.watermarks_at >= WATERMARKS_KEPT {
            self.read_limits(now)?;
        }
        let mut telemetry = self.sensors.telemetry(now, self.watermarks)?;
        if telemetry.total != self.total {
            self.read_limits(now)?;
            telemetry.watermarks = self.watermarks;
        }
        let resident = telemetry.anon + telemetry.shmem + (telemetry.swap_total - telemetry.swap_free);
        let promised = self.leases.untouched(resident);
        telemetry.pending = self.book.pending() + promised;
        telemetry.giveable = telemetry.giveable - promised;
        let c = telemetry.counters;
        self.balloon = (c.balloon_inflate.unwrap_or(0), c.balloon_deflate.unwrap_or(0));
        if self.balloon != self.reported.1 {
            self.news_at = now;
        }
        self.reported = (telemetry.free, self.balloon);
        self.reported_at = now;
        self.session.report(now, telemetry);
        Ok(())
    }

    fn read_limits(&mut self, now: Micros) -> Result<(), AgentError> {
        self.watermarks = self.sensors.watermarks()?;
        self.total = self.sensors.meminfo()?.total;
        self.watermarks_at = now;
        self.slack.set_limits(self.watermarks.low, self.total);
        Ok(())
    }
}
