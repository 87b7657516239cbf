//! What is done with forecasts: which one is believed, what follows from it, and what became of it.
//!
//! ```text
//!   forecast --sanitised--> corrected by what this VM's earlier ones were worth --> smallest size within the budget
//!                                                   ^                                      |
//!                 10 s later: what was really lost -'          headroom = that size - what is used, within bounds
//! ```
//! The model moves the headroom: never under half of what the operator set nor under what the law of survival asks for, never above
//! a quarter of the VM. And what is kept for a guest because it asked it back soon is kept only as far as the model asks for it. When and
//! how anything is taken, what is undone and when nothing is taken at all stays with the law and the guard, so that a model can
//! cost memory but no promise (promise P8).
//!
//! A guest that is helped loses little at sizes at which one that is not helped loses much, and a model is right about each in its own
//! way. So what is known of a VM's forecasts is kept for both, and neither earns the other's trust: not a dry run that of the
//! orders that follow it, nor a quiet host that of a full one.
//!
//! The law stands alone whenever a forecast is missing, late or flawed, was never tried on this VM, misses too often or has just
//! been wrong, does not know (its 99 % quantile is far above its 95 %), or finds no size good enough: then memory is not
//! what decides.

use crate::VmSettings;
use crate::conformal::{Calibration, Correction, pooled};
use crate::event::VmName;
use crate::features::HORIZON;
use crate::fleet::Vm;
use crate::forecast::{Flaw, Forecast, Mode, STALE, Said};
use crate::history::{History, WHOLE};
use crate::ratio::Ratio;
use crate::{Planner, SELF_DEFLATION, forecast};
use ballast_protocol::{Bytes, Micros};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fmt;

/// Forecasts are judged this often: their horizons overlap, and more of them would tell the same five times.
pub const JUDGED_EVERY: Micros = Micros::secs(2);
/// Those whose outcome is not known yet, at most.
const FLYING: usize = 8;
/// Outcomes that must be known before a VM's forecasts are used: with the first horizon, 30 s. What the calibration begins with
/// covers the rest.
const TRIAL: u64 = 8;
/// So much more probable may pressure be than with all of the memory, in millionths: one horizon in four may need an undoing, as
/// long as its loss is within the budget. Recorded guests that were helped had pressure in 15 % of horizons with 26 to 77 MiB above
/// their need, and lost 0.5 % (95 % quantile); with one in twenty, pressure decided and the budget never did.
const PRESSURE: u32 = 250_000;
/// When the 99 % quantile is above that with all of the memory by so many budgets, the model does not know.
const WIDE: u32 = 10;
/// What all of the memory would lose as well is not the balloon's: the budget is for what a size loses beyond that. But when
/// that is more than so many budgets, memory is not what decides, and a difference of two large losses says little.
const ANYWAY: u32 = 5;
/// A forecast lowers the headroom by an eighth of the way at a time: one that is wrong once moves little.
const EASE: (u64, u64) = (7, 8);
/// What is kept because it returns comes down by half of the way: the law takes it in steps of its own.
const EASE_HOME: (u64, u64) = (1, 2);
/// Nothing is believed for so long after a miss that hurt, doubled each time up to [`LONGEST_REST`].
const FIRST_REST: Micros = Micros::secs(60);
const LONGEST_REST: Micros = Micros::secs(600);

/// Whether a VM's last forecast is worth anything, and if not, why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// There is none.
    #[default]
    Silent,
    /// It is.
    Good,
    /// Too few outcomes are known of this VM.
    Untried,
    /// Too many outcomes were missed lately.
    Miscovered,
    /// It was wrong, and that hurt.
    Wrong,
    /// It does not know.
    Wide,
    /// It finds no size within the budget.
    Hopeless,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Silent => "there is none",
            Self::Good => "it is good enough to be used",
            Self::Untried => "it has not been tried on this VM for long enough",
            Self::Miscovered => "too many outcomes were worse than it had said",
            Self::Wrong => "it was wrong lately, and that hurt",
            Self::Wide => "it is not sure",
            Self::Hopeless => "it finds no size within the budget",
        })
    }
}

/// A forecast whose outcome is not known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Flying {
    made: Micros,
    /// What the VM was to keep.
    size: Bytes,
    half: u32,
    most: u32,
    bound: u32,
    /// More than this hurts.
    allowed: u32,
}

/// What a VM's forecasts were worth while it was helped, or while it was not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Known {
    calibration: Calibration,
    /// After a miss that hurt.
    not_before: Micros,
    rest: Micros,
}

impl Default for Known {
    fn default() -> Self {
        Self { calibration: Calibration::default(), not_before: Micros::ZERO, rest: FIRST_REST }
    }
}

/// What forecasts have come to for one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Foresight {
    last: Option<Forecast>,
    /// Whose outcomes the calibration knows.
    model: String,
    standing: Standing,
    said: Option<Said>,
    /// What it may lose by that, with what it would lose anyway, in millionths.
    allowed: u32,
    /// What the forecasts leave the VM.
    headroom: Bytes,
    /// Up to which size what returns is kept.
    home: Bytes,
    flying: VecDeque<Flying>,
    /// Of the time when it is helped, or of the time when it is not...
    known: Known,
    /// ...whichever it is now...
    answered: bool,
    /// ...since then.
    turned: Micros,
    /// Of the other, if there was any.
    aside: Option<Box<Known>>,
    /// Where the other begins.
    start: Correction,
    /// By [`Calibration::correction`].
    correction: Correction,
    refused: u64,
    flaw: Option<Flaw>,
}

impl Default for Foresight {
    fn default() -> Self {
        Self {
            last: None,
            model: String::new(),
            standing: Standing::Silent,
            said: None,
            allowed: 0,
            headroom: Bytes::ZERO,
            home: Bytes::ZERO,
            flying: VecDeque::new(),
            known: Known::default(),
            answered: false,
            turned: Micros::ZERO,
            aside: None,
            start: Correction::NONE,
            correction: Correction::NONE,
            refused: 0,
            flaw: None,
        }
    }
}

/// What the law makes of a forecast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreseen {
    /// The headroom.
    pub headroom: Bytes,
    /// What the model said.
    pub said: Said,
}

/// What bounds a forecast.
struct Terms {
    /// What the guest uses.
    used: Bytes,
    /// The law's own headroom, and the bounds of a foreseen one.
    own: Bytes,
    least: Bytes,
    most: Bytes,
    /// In millionths.
    budget: u32,
    /// Since when anything is known of the guest.
    since: Micros,
}

impl Foresight {
    fn is_fresh(&self, at: Micros) -> bool {
        self.last.as_ref().is_some_and(|f| at < f.made + STALE)
    }

    /// What is known of another model says nothing of this one; what other VMs know of it does.
    fn begin(&mut self, model: &str, answered: bool, starts: [Correction; 2]) {
        self.interrupt();
        self.model = model.to_owned();
        if self.answered != answered {
            self.swap();
        }
        (self.answered, self.start) = (answered, starts[usize::from(!answered)]);
        self.known.calibration = Calibration::beginning_with(starts[usize::from(answered)]);
        if let Some(aside) = &mut self.aside {
            aside.calibration = Calibration::beginning_with(self.start);
        }
        self.correction = self.known.calibration.correction();
    }

    fn swap(&mut self) {
        self.known.calibration.set_aside();
        let start = self.start;
        let other = self.aside.get_or_insert_with(|| {
            Box::new(Known { calibration: Calibration::beginning_with(start), ..Known::default() })
        });
        std::mem::swap(&mut self.known, other);
    }

    /// The VM is helped from now on, or not any more: what was said before was said of something else.
    pub(crate) fn turn(&mut self, at: Micros, answered: bool) {
        if self.answered != answered {
            self.interrupt();
            self.swap();
            (self.answered, self.turned) = (answered, at);
            self.correction = self.known.calibration.correction();
        }
    }

    /// What a quantile is corrected to where something is decided by it. What is known is known of the sizes that the VM had: they may
    /// say that the model is too hopeful of smaller ones, too, but not that it is too careful.
    fn bound(&self, half: u32, most: u32) -> u32 {
        self.correction.max(Correction::NONE).bound(half, most)
    }

    fn refuse(&mut self, flaw: Flaw) {
        (self.last, self.said, self.standing) = (None, None, Standing::Silent);
        self.refused += 1;
        self.flaw = Some(flaw);
    }

    fn accept(&mut self, at: Micros, forecast: Forecast, terms: &Terms) {
        let forecast = match forecast.sanitised(at) {
            Ok(forecast) if forecast.made < terms.since.max(self.turned) => return self.refuse(Flaw::Time),
            Ok(forecast) => forecast,
            Err(flaw) => return self.refuse(flaw),
        };
        let all = forecast.points.last().map_or(Bytes::MAX, |p| p.size);
        let stood = self.standing == Standing::Good && self.is_fresh(at);
        let (before, home) = if stood { (self.headroom, self.home) } else { (terms.own, all) };
        let bound = |half, most| self.bound(half, most);
        // With all of the memory. What was seen of this VM may well say that it would lose less.
        let (mut anyway, mut unlikely, mut pressure) = (0, 0, 0);
        if let Some(all) = forecast.points.last() {
            let (half, most) = all.half_and_most();
            (anyway, unlikely, pressure) = (self.correction.bound(half, most), all.loss_ppm[3], all.pressure_ppm);
        }
        let allowed = terms.budget.saturating_add(anyway);
        let found = forecast.smallest(|p| {
            let (half, most) = p.half_and_most();
            anyway <= terms.budget.saturating_mul(ANYWAY)
                && bound(half, most) <= allowed
                && p.pressure_ppm <= pressure.saturating_add(PRESSURE)
        });
        let said = found.map(|p| {
            let (half, most) = p.half_and_most();
            Said { size: p.size, loss_ppm: bound(half, most) }
        });
        (self.allowed, self.said) = (allowed, said);
        self.standing = match found {
            _ if self.known.calibration.judged() < TRIAL => Standing::Untried,
            _ if self.known.calibration.is_off() => Standing::Miscovered,
            _ if at < self.known.not_before => Standing::Wrong,
            None => Standing::Hopeless,
            Some(p) if p.loss_ppm[3] > unlikely.saturating_add(terms.budget.saturating_mul(WIDE)) => Standing::Wide,
            Some(_) => Standing::Good,
        };
        if let Some(said) = self.said {
            let wanted = (said.size - terms.used).max(terms.least).min(terms.most);
            let above = (before - wanted).share(EASE.0, EASE.1);
            self.headroom = if above < Bytes::mib(1) { wanted } else { wanted + above };
            self.home = said.size + (home - said.size).share(EASE_HOME.0, EASE_HOME.1);
        }
        self.last = Some(forecast);
        self.flaw = None;
    }

    /// The last forecast will be judged by what becomes of the VM at this size.
    fn expect(&mut self, at: Micros, size: Bytes) {
        let Some(forecast) = self.last.as_ref().filter(|f| at < f.made + STALE) else { return };
        let due = self.flying.back().is_none_or(|last| forecast.made >= last.made + JUDGED_EVERY);
        if !due || self.flying.len() >= FLYING {
            return;
        }
        if let Some(point) = forecast.at(size) {
            let (half, most) = point.half_and_most();
            let bound = self.correction.bound(half, most);
            let allowed = self.allowed;
            self.flying.push_back(Flying { made: forecast.made, size, half, most, bound, allowed });
        }
    }

    /// The VM is to keep so much: what was said of much more says nothing any more.
    pub fn moved(&mut self, size: Bytes) {
        self.flying.retain(|f| f.size <= size + SELF_DEFLATION);
    }

    /// What was known of the guest is not comparable with what comes. How right forecasts were stays.
    pub fn interrupt(&mut self) {
        (self.last, self.said, self.standing) = (None, None, Standing::Silent);
        self.flying.clear();
    }

    /// What was really lost.
    pub fn judge(&mut self, at: Micros, history: &History) {
        while let Some(f) = self.flying.pop_front_if(|f| at >= f.made + HORIZON) {
            // When nobody looked, nothing is learnt.
            let Some(happened) = history.happened(f.made, f.made + HORIZON) else { continue };
            let calibration = &mut self.known.calibration;
            let missed = calibration.judge(f.half, f.most, f.bound, happened.loss);
            self.correction = calibration.correction();
            if missed && happened.loss > f.allowed {
                self.wrong(at);
            }
        }
    }

    /// What was done because of a forecast hurt.
    pub fn wrong(&mut self, at: Micros) {
        let known = &mut self.known;
        if at >= known.not_before + LONGEST_REST {
            known.rest = FIRST_REST;
        }
        // Forecasts of one moment are wrong together.
        if at >= known.not_before {
            known.not_before = at + known.rest;
            known.rest = (known.rest + known.rest).min(LONGEST_REST);
        }
        if self.standing == Standing::Good {
            self.standing = Standing::Wrong;
        }
    }

    /// What to show; `None`: there never was a forecast.
    #[must_use]
    pub fn status(&self, at: Micros, settings: &VmSettings, on: bool) -> Option<ForecastStatus> {
        let [judged, missed] = [Calibration::judged, Calibration::missed].map(|of| {
            let aside = self.aside.as_ref().map_or(0, |aside| of(&aside.calibration));
            of(&self.known.calibration) + aside
        });
        if self.last.is_none() && self.refused == 0 && judged == 0 {
            return None;
        }
        let last = self.last.as_ref();
        let point = |p: &crate::forecast::Point| {
            let (half, most) = p.half_and_most();
            let bound_ppm = self.bound(half, most);
            CurvePoint { size: p.size, loss_ppm: p.loss_ppm, bound_ppm, pressure_ppm: p.pressure_ppm }
        };
        let standing = match (self.flaw, last) {
            (Some(flaw), _) => format!("the last one was refused: {flaw}"),
            (None, Some(_)) if !self.is_fresh(at) => "the last one is too old".to_owned(),
            (None, _) => self.standing.to_string(),
        };
        Some(ForecastStatus {
            mode: settings.predictor,
            used: on,
            standing,
            model: last.map(|f| f.model.clone()),
            age: last.map(|f| at - f.made),
            budget: settings.loss_budget,
            allowed_ppm: last.map(|_| self.allowed),
            size: self.said.filter(|_| self.is_fresh(at)).map(|s| s.size),
            headroom: (self.standing == Standing::Good && self.is_fresh(at)).then_some(self.headroom),
            coverage: self.known.calibration.coverage(),
            judged,
            missed,
            refused: self.refused,
            points: last.map_or_else(Vec::new, |f| f.points.iter().map(point).collect()),
        })
    }
}

/// Forecasts of a VM, for people and programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForecastStatus {
    /// What may be done with them.
    pub mode: Mode,
    /// The headroom is the last one's now.
    pub used: bool,
    /// What the last one is worth, for people.
    pub standing: String,
    /// Who made it; `None`: there is none.
    pub model: Option<String>,
    /// How old its features are.
    pub age: Option<Micros>,
    /// What the VM may lose for want of memory.
    pub budget: Ratio,
    /// That with what all of its memory would lose as well, in millionths: sizes whose corrected quantile is within it are good
    /// enough. `None`: there is no forecast.
    pub allowed_ppm: Option<u32>,
    /// The smallest size within that budget.
    pub size: Option<Bytes>,
    /// The headroom that follows; `None`: it is not good enough.
    pub headroom: Option<Bytes>,
    /// The part of the last 64 outcomes that stayed within the 95 % quantile, as corrected then, while the VM was helped, or was
    /// not, as it is now.
    pub coverage: Option<Ratio>,
    /// Forecasts whose outcome is known.
    pub judged: u64,
    /// Those of them whose outcome was worse than the corrected 95 % quantile.
    pub missed: u64,
    /// Forecasts that could not be used at all.
    pub refused: u64,
    /// What it says, by size.
    pub points: Vec<CurvePoint>,
}

/// What a forecast says of one size, and what it is corrected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// If the VM keeps this...
    pub size: Bytes,
    /// ...so much of the next ten seconds is lost, by [`crate::QUANTILES`], in millionths...
    pub loss_ppm: [u32; 4],
    /// ...the 95 % quantile corrected by what was seen of this VM...
    pub bound_ppm: u32,
    /// ...and pressure has this probability, in millionths.
    pub pressure_ppm: u32,
}

impl Planner {
    /// A model said something.
    pub(crate) fn foresee(&mut self, at: Micros, name: &VmName, mut forecast: Forecast) {
        forecast.model = forecast::name(&forecast.model);
        let helps = self.helps(at);
        let Some(vm) = self.vms.get(name) else { return };
        let answered = vm.is_answered(at, helps);
        // Once for each model: with a thousand VMs it takes a few milliseconds.
        let new = vm.settings.predictor != Mode::Off && forecast.model != vm.foresight.model;
        let starts = new.then(|| {
            [false, true].map(|answered| {
                let all = self.vms.values().map(|vm| &vm.foresight);
                let same = all.filter(|f| f.model == forecast.model && f.answered == answered);
                pooled(same.map(|f| &f.known.calibration)).unwrap_or(forecast.start)
            })
        });
        let Some(vm) = self.vms.get_mut(name) else { return };
        if vm.settings.predictor == Mode::Off {
            vm.foresight = Foresight::default();
            return;
        }
        if let Some(starts) = starts {
            vm.foresight.begin(&forecast.model, answered, starts);
        }
        vm.foresight.turn(at, answered);
        let terms = vm.terms(answered);
        match terms.filter(|_| vm.is_predictable(at)) {
            Some(terms) => vm.foresight.accept(at, forecast, &terms),
            None => vm.foresight.refuse(Flaw::Blind),
        }
    }

    /// The last forecast will be judged by the size that the VM has after all that it led to.
    pub(crate) fn expect(&mut self, at: Micros, name: &VmName) {
        self.with(name, |vm| vm.foresight.expect(at, vm.aim));
    }
}

impl Vm {
    fn terms(&self, answered: bool) -> Option<Terms> {
        let own = self.reactive.headroom(self);
        Some(Terms {
            used: self.used()?,
            own,
            least: self.reactive.survival().max(self.settings.headroom.share(1, 2)).min(own),
            // Where not all is given that is asked for, a forecast may save, and not ask.
            most: if answered { own.max(self.max().share(1, 4)) } else { own },
            budget: self.settings.loss_budget.millionths().min(WHOLE),
            since: self.history.since()?,
        })
    }

    /// What a model says, if that is to be followed now.
    #[must_use]
    pub fn foreseen(&self, at: Micros) -> Option<Foreseen> {
        let f = &self.foresight;
        let followed = self.settings.predictor == Mode::On && f.standing == Standing::Good && f.is_fresh(at);
        f.said.filter(|_| followed).map(|said| Foreseen { headroom: f.headroom, said })
    }

    /// Until when that is so at most.
    pub(crate) fn foreseen_until(&self, at: Micros) -> Option<Micros> {
        self.foreseen(at)?;
        self.foresight.last.as_ref().map(|f| f.made + STALE)
    }

    /// What is kept for it because it comes back, and until when. Whether that is worth it is the model's to say, where it is
    /// followed.
    pub(crate) fn returning(&self, at: Micros) -> Option<(Bytes, Micros)> {
        let (level, until) = self.reactive.returning(at)?;
        Some((self.foreseen(at).map_or(level, |_| level.min(self.foresight.home)), until))
    }

    /// The free memory above the low watermark that this VM is left with when it is quiet.
    #[must_use]
    pub fn headroom(&self, at: Micros) -> Bytes {
        self.foreseen(at).map_or_else(|| self.reactive.headroom(self), |f| f.headroom)
    }

    /// What was taken hurt: if that was because of a forecast, none is believed for a while.
    pub(crate) fn blame_forecast(&mut self, at: Micros) {
        if self.foreseen(at).is_some() {
            self.foresight.wrong(at);
        }
    }

    /// What was known of the guest is not comparable with what comes.
    pub(crate) fn forget_past(&mut self) {
        self.history.begin();
        self.foresight.interrupt();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformal::SCORES;
    use crate::features::SIZES;
    use crate::forecast::Point;
    use crate::history::MOST_BYTES;

    /// A thousand VMs are to be predicted on any host.
    #[test]
    fn what_is_remembered_of_a_vm_for_its_forecasts_is_less_than_four_kib() {
        let heap = SIZES * size_of::<Point>() + FLYING * size_of::<Flying>() + SCORES * size_of::<i32>();
        let all = heap + size_of::<Foresight>() + MOST_BYTES;
        assert!(all < 4 << 10, "{all} bytes");
    }

    #[test]
    fn a_miss_that_hurts_again_soon_costs_more_and_none_for_ten_minutes_makes_it_cheap_again() {
        let mut f = Foresight::default();
        let mut rests = Vec::new();
        let mut at = Micros::secs(1_000);
        for pause in [0, 1, 1, 1, 1, 1, 700] {
            at = at.max(f.known.not_before) + Micros::secs(pause);
            f.wrong(at);
            // Others of the same moment change nothing.
            f.wrong(at + Micros(1));
            rests.push((f.known.not_before - at).0 / 1_000_000);
        }
        assert_eq!(rests, [60, 120, 240, 480, 600, 600, 60]);
    }
}
