//! A part of something, in millionths: no floating-point figure enters a decision or a snapshot, so that a replay
//! gives the same bytes on every machine (promise P7).

use ballast_protocol::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

const WHOLE: u32 = 1_000_000;

/// A ratio from 0 upwards, in millionths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ratio(u32);

impl Ratio {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// All of it.
    pub const WHOLE: Self = Self(WHOLE);

    /// So many hundredths.
    #[must_use]
    pub const fn percent(n: u32) -> Self {
        Self(n.saturating_mul(WHOLE / 100))
    }

    /// So many hundredths of a hundredth.
    #[must_use]
    pub const fn basis_points(n: u32) -> Self {
        Self(n.saturating_mul(WHOLE / 10_000))
    }

    /// `part` of `whole`, rounded down; nothing has no parts.
    #[must_use]
    pub fn millionths_of(part: u64, whole: u64) -> Self {
        Self::between(Bytes(part), Bytes(whole))
    }

    /// In millionths.
    #[must_use]
    pub const fn millionths(self) -> u32 {
        self.0
    }

    /// How much of `whole` is `part`, rounded down, 4,294 times at most; nothing has no parts.
    #[must_use]
    pub fn between(part: Bytes, whole: Bytes) -> Self {
        Self(u32::try_from(part.share(u64::from(WHOLE), whole.0).0).unwrap_or(u32::MAX))
    }

    /// This part of `size`, rounded down.
    #[must_use]
    pub const fn of(self, size: Bytes) -> Bytes {
        size.share(self.0 as u64, WHOLE as u64)
    }

    /// `self` times `part` over `whole`, rounded down.
    #[must_use]
    pub fn scaled(self, part: Self, whole: Self) -> Self {
        Self(u32::try_from(Bytes(self.0.into()).share(part.0.into(), whole.0.into()).0).unwrap_or(u32::MAX))
    }

    /// What is left of it without `other`, nothing at least.
    #[must_use]
    pub const fn less(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = f64::from(self.0) / f64::from(WHOLE / 100);
        f.pad(&if self.0.is_multiple_of(WHOLE / 100) { format!("{percent:.0} %") } else { format!("{percent:.2} %") })
    }
}

/// A text that is no ratio.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseRatioError(String);

impl fmt::Display for ParseRatioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not a percentage from 0% to 100%; write for example 20% or 0.25%", self.0)
    }
}

impl std::error::Error for ParseRatioError {}

impl FromStr for Ratio {
    type Err = ParseRatioError;

    /// `20%`, `0.25 %`: with at most four digits after the point, from 0 % to 100 %.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let read = || {
            let number = text.trim().strip_suffix('%')?.trim_end();
            let (whole, part) = number.split_once('.').unwrap_or((number, ""));
            if part.len() > 4 || !whole.chars().chain(part.chars()).all(|c| c.is_ascii_digit()) {
                return None;
            }
            let millionths = whole.parse::<u32>().ok()?.checked_mul(WHOLE / 100)?;
            let part = if part.is_empty() { 0 } else { format!("{part:0<4}").parse::<u32>().ok()? };
            Some(Self(millionths.checked_add(part)?)).filter(|r| *r <= Self::WHOLE)
        };
        read().ok_or_else(|| ParseRatioError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_read_exactly_or_refused() {
        for (text, millionths) in [("20%", 200_000), ("0.25%", 2_500), ("100 %", 1_000_000), ("0.0001%", 1)] {
            assert_eq!(text.parse(), Ok(Ratio(millionths)), "{text}");
        }
        for text in ["20", "-1%", "101%", "100.0001%", "0.00001%", "%", "1e1%", "NaN%", "+5%", "99999999999%"] {
            assert!(text.parse::<Ratio>().is_err(), "{text}");
        }
    }

    #[test]
    fn nothing_overflows() {
        assert_eq!(Ratio::between(Bytes::MAX, Bytes(1)), Ratio(u32::MAX));
        assert_eq!(Ratio::between(Bytes::mib(1), Bytes::ZERO), Ratio::ZERO);
        assert_eq!(Ratio::percent(50).of(Bytes::MAX), Bytes(u64::MAX / 2));
        assert_eq!(Ratio::percent(20).scaled(Ratio::percent(15), Ratio::percent(20)), Ratio::percent(15));
        assert_eq!(
            (Ratio::basis_points(25).to_string(), Ratio::percent(20).to_string()),
            ("0.25 %".into(), "20 %".into())
        );
    }
}
