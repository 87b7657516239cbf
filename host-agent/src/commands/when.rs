//! Points in time as people write them, in the time zone of this machine.

use anyhow::{Result, anyhow, bail};
use ballast_protocol::Micros;
use jiff::civil::{DateTime, Time};
use jiff::{Timestamp, Zoned};

/// How long it is from `now` to `text`: a time of today, a date and time, or either with an offset from UTC.
///
/// # Errors
/// It is none of these, or past.
pub fn left(text: &str, now: &Zoned) -> Result<Micros> {
    let text = text.trim();
    let zone = now.time_zone();
    let at = if let Ok(at) = text.parse::<Timestamp>() {
        at
    } else if let Ok(at) = text.parse::<DateTime>() {
        at.to_zoned(zone.clone())?.timestamp()
    } else if let Ok(time) = text.parse::<Time>() {
        now.date().to_datetime(time).to_zoned(zone.clone())?.timestamp()
    } else {
        return Err(anyhow!(
            "`{text}` is not a time; write for example 14:30, \"2026-11-22 14:30\" or 2026-11-22T14:30:00Z, or say \
             --within 2h"
        ));
    };
    let left = at.as_microsecond() - now.timestamp().as_microsecond();
    match u64::try_from(left) {
        Ok(left) if left > 0 => Ok(Micros(left)),
        _ => {
            let (past, tomorrow) = (at.to_zoned(zone.clone()), now.tomorrow()?);
            bail!(
                "{} is past; for tomorrow write \"{} {}\"",
                past.strftime("%Y-%m-%d %H:%M"),
                tomorrow.strftime("%Y-%m-%d"),
                past.strftime("%H:%M")
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::tz::{TimeZone, offset};

    /// 12:00:00 on a Saturday, two hours ahead of UTC.
    fn noon() -> Zoned {
        jiff::civil::date(2026, 11, 21).at(12, 0, 0, 0).to_zoned(TimeZone::fixed(offset(2))).unwrap()
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, minutes) in [
            ("14:30", 150),
            ("12:00:30", 0),
            ("2026-11-21 12:45", 45),
            ("2026-11-22T12:00:00", 24 * 60),
            ("2026-11-21T10:30:00Z", 30),
            ("2026-11-21 12:30:00+02:00", 30),
        ] {
            assert_eq!(left(text, &noon()).unwrap().0 / 60_000_000, minutes, "{text}");
        }
    }

    #[test]
    fn what_is_past_or_no_time_is_refused_with_the_mend() {
        for (text, problem) in [
            ("11:59", "2026-11-21 11:59 is past; for tomorrow write \"2026-11-22 11:59\""),
            ("2026-11-20 08:00", "2026-11-20 08:00 is past; for tomorrow write \"2026-11-22 08:00\""),
            ("12:00", "is past"),
            ("soon", "`soon` is not a time; write for example 14:30"),
            ("25:00", "`25:00` is not a time"),
            ("2h", "say --within 2h"),
        ] {
            let error = left(text, &noon()).unwrap_err().to_string();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }
}
