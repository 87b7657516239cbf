//! One unit inside, others only at the edge, all as types.
//!
//! The kernel speaks KiB in `/proc/meminfo`, pages in `/proc/vmstat` and `/proc/zoneinfo`; libvirt KiB; QMP bytes.
//! Each is turned into [`Bytes`] where it is read. Time is [`Micros`] everywhere: as an instant it counts from an
//! origin that the holder names (guest boot, daemon start), as a span it is just long.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::{Add, AddAssign, Sub};
use std::str::FromStr;

/// A number of bytes. Arithmetic saturates: a hostile or wrong figure must never wrap into a plausible one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// A number of KiB, as `/proc/meminfo` and libvirt count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct KiB(pub u64);

/// A number of 4 KiB pages, as `/proc/vmstat`, `/proc/zoneinfo` and virtio-balloon count on x86_64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pages(pub u64);

/// Microseconds: an instant since an origin that the holder names, or a span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Micros(pub u64);

impl Bytes {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// The largest number there is.
    pub const MAX: Self = Self(u64::MAX);

    /// So many MiB.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n.saturating_mul(1 << 20))
    }

    /// Whole MiB, rounded down.
    #[must_use]
    pub const fn as_mib(self) -> u64 {
        self.0 >> 20
    }

    /// MiB with a fraction, for people and plots.
    #[must_use]
    pub fn mib_f64(self) -> f64 {
        self.0 as f64 / f64::from(1u32 << 20)
    }

    /// Whole KiB, rounded down: what libvirt takes.
    #[must_use]
    pub const fn as_kib(self) -> KiB {
        KiB(self.0 >> 10)
    }

    /// The share `numerator / denominator`, rounded down, without overflow; a zero denominator gives zero.
    #[must_use]
    pub const fn share(self, numerator: u64, denominator: u64) -> Self {
        if denominator == 0 {
            return Self::ZERO;
        }
        let exact = self.0 as u128 * numerator as u128 / denominator as u128;
        if exact > u64::MAX as u128 { Self::MAX } else { Self(exact as u64) }
    }

    /// Rounded down to a multiple of `step` bytes (`step` 0 leaves it alone).
    #[must_use]
    pub const fn round_down(self, step: Self) -> Self {
        if step.0 == 0 { self } else { Self(self.0 - self.0 % step.0) }
    }
}

impl Micros {
    /// The origin, or no time at all.
    pub const ZERO: Self = Self(0);
    /// The end of time.
    pub const MAX: Self = Self(u64::MAX);

    /// So many milliseconds.
    #[must_use]
    pub const fn millis(n: u64) -> Self {
        Self(n.saturating_mul(1_000))
    }

    /// So many seconds.
    #[must_use]
    pub const fn secs(n: u64) -> Self {
        Self(n.saturating_mul(1_000_000))
    }

    /// Milliseconds with a fraction, for people and plots.
    #[must_use]
    pub fn millis_f64(self) -> f64 {
        self.0 as f64 / 1e3
    }

    /// Seconds with a fraction, for people and rates.
    #[must_use]
    pub fn secs_f64(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// As the standard library's span.
    #[must_use]
    pub const fn duration(self) -> std::time::Duration {
        std::time::Duration::from_micros(self.0)
    }

    /// From the standard library's span, saturating.
    #[must_use]
    pub fn from_duration(d: std::time::Duration) -> Self {
        Self(u64::try_from(d.as_micros()).unwrap_or(u64::MAX))
    }
}

macro_rules! saturating {
    ($($t:ident),*) => {$(
        impl Add for $t {
            type Output = Self;
            fn add(self, o: Self) -> Self { Self(self.0.saturating_add(o.0)) }
        }
        /// Saturates at zero.
        impl Sub for $t {
            type Output = Self;
            fn sub(self, o: Self) -> Self { Self(self.0.saturating_sub(o.0)) }
        }
        impl AddAssign for $t {
            fn add_assign(&mut self, o: Self) { *self = *self + o; }
        }
        impl std::iter::Sum for $t {
            fn sum<I: Iterator<Item = Self>>(i: I) -> Self { i.fold(Self(0), Add::add) }
        }
    )*};
}
saturating!(Bytes, Micros);

impl From<KiB> for Bytes {
    fn from(k: KiB) -> Self {
        Self(k.0.saturating_mul(1 << 10))
    }
}

impl From<Pages> for Bytes {
    fn from(p: Pages) -> Self {
        Self(p.0.saturating_mul(1 << 12))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 4] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        for (size, name) in UNITS {
            if self.0 >= size {
                let text = if self.0.is_multiple_of(size) {
                    (self.0 / size).to_string()
                } else {
                    format!("{:.1}", self.0 as f64 / size as f64)
                };
                return f.pad(&format!("{text} {name}"));
            }
        }
        f.pad(&format!("{} B", self.0))
    }
}

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            us @ 0..1_000 => format!("{us} us"),
            us @ 1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
            us => format!("{:.1} s", us as f64 / 1e6),
        };
        f.pad(&text)
    }
}

/// A size that cannot be read: the text, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a memory size: {problem}; write for example 256MiB, 2G or 1.5GiB")]
pub struct ParseBytesError {
    text: String,
    problem: &'static str,
}

impl FromStr for Bytes {
    type Err = ParseBytesError;

    /// `512MiB`, `512M`, `2G`, `1.5GiB`, `4096B`. As in QEMU, libvirt's XML and systemd, K, M, G and T are powers
    /// of 1024; a bare number is refused, because the tools around us disagree on what it means.
    fn from_str(text: &str) -> Result<Self, ParseBytesError> {
        let fail = |problem| ParseBytesError { text: text.to_owned(), problem };
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let shift = match unit.trim().to_ascii_lowercase().as_str() {
            "" => return Err(fail("it has no unit")),
            "b" => 0,
            "k" | "kib" => 10,
            "m" | "mib" => 20,
            "g" | "gib" => 30,
            "t" | "tib" => 40,
            "kb" | "mb" | "gb" | "tb" => return Err(fail("decimal units are not used for memory")),
            _ => return Err(fail("the unit is unknown")),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let whole: u64 = whole.parse().map_err(|_| fail("the number is missing or too large"))?;
        let scaled = whole.checked_mul(1 << shift).ok_or_else(|| fail("it is too large"))?;
        if number.contains('.') {
            if fraction.is_empty() || fraction.len() > 9 || fraction.contains('.') {
                return Err(fail("the fraction is malformed"));
            }
            let digits: u64 = fraction.parse().map_err(|_| fail("the fraction is malformed"))?;
            let part = u128::from(digits) * (1u128 << shift) / 10u128.pow(fraction.len() as u32);
            return scaled.checked_add(part as u64).map(Self).ok_or_else(|| fail("it is too large"));
        }
        Ok(Self(scaled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_operators_write_them() {
        for (text, bytes) in [
            ("512MiB", 512 << 20),
            ("512M", 512 << 20),
            ("2G", 2 << 30),
            (" 1.5GiB ", 3 << 29),
            ("4096B", 4096),
            ("64 k", 64 << 10),
            ("1t", 1 << 40),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn a_wrong_size_is_refused_with_a_reason_and_an_example() {
        for (text, problem) in [
            ("512", "no unit"),
            ("512MB", "decimal"),
            ("512 parsecs", "unknown"),
            ("GiB", "missing"),
            ("1..5G", "malformed"),
            ("-1G", "unknown"),
            ("99999999999999T", "too large"),
        ] {
            let message = text.parse::<Bytes>().expect_err(text).to_string();
            assert!(message.contains(problem) && message.contains("256MiB"), "{text}: {message}");
        }
    }

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Bytes(3) - Bytes(5), Bytes::ZERO);
        assert_eq!(Bytes::MAX + Bytes(5), Bytes::MAX);
        assert_eq!(Bytes::MAX.share(3, 2), Bytes::MAX);
        assert_eq!(Bytes(10).share(1, 0), Bytes::ZERO);
        assert_eq!(Bytes::from(Pages(u64::MAX)), Bytes::MAX);
    }

    #[test]
    fn people_read_round_figures() {
        assert_eq!(Bytes::mib(512).to_string(), "512 MiB");
        assert_eq!(Bytes(1536 << 10).to_string(), "1.5 MiB");
        assert_eq!(Micros(1500).to_string(), "1.5 ms");
    }
}
