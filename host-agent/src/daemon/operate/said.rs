//! What operators said, in the daemon's time; and the same in wall-clock time, as a file keeps it across a restart.

use ballast_planner::{Hold, Reservation, VmName};
use ballast_protocol::{Bytes, Micros};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::SystemTime;

/// Grows when the meaning of the file changes.
const FORMAT: u32 = 1;

/// What operators said and have not taken back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::daemon) struct Said {
    /// VMs held, also such as are away just now.
    pub holds: BTreeMap<VmName, Hold>,
    /// Room reserved.
    pub reservations: BTreeMap<VmName, Reservation>,
    /// VMs exempt by hand, and by whom.
    pub exempt: BTreeMap<VmName, String>,
    /// A dry run or not, by hand; `None`: as configured.
    pub dry_run: Option<bool>,
    /// Why this is a dry run that nobody asked for, until somebody says whether it is to be one.
    pub lost: Option<String>,
}

/// The file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    /// The wall clock when this was written. A clock that was set back since must not prolong anything.
    #[serde(default)]
    written: Option<String>,
    holds: BTreeMap<VmName, KeptHold>,
    reservations: BTreeMap<VmName, KeptReservation>,
    exempt: BTreeMap<VmName, String>,
    /// Only ever that it is one: a daemon that was told not to act must not begin to by being restarted, and one that
    /// was told to act is asked again by its configuration.
    dry_run: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lost: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptHold {
    size: Bytes,
    until: Option<String>,
    by: String,
    reason: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptReservation {
    size: Bytes,
    until: String,
}

/// Between the daemon's clock and everybody else's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clocks {
    /// The daemon's clock.
    pub now: Micros,
    /// The wall clock at that moment.
    pub wall: SystemTime,
}

impl Clocks {
    fn written(self, until: Micros) -> String {
        // The end of what can be written is as good as any time that far.
        let at = self.wall.checked_add((until - self.now).duration()).unwrap_or(self.wall);
        humantime::format_rfc3339_millis(at).to_string()
    }

    /// What was `written` then, now. At most what was left then is left. `None`: it has passed.
    fn read(self, until: &str, written: Option<SystemTime>) -> Result<Option<Micros>, String> {
        let at = time(until)?;
        let then = self.wall.max(written.unwrap_or(self.wall));
        let left = at.duration_since(then).ok().filter(|left| !left.is_zero());
        Ok(left.map(|left| self.now + Micros::from_duration(left)))
    }
}

fn time(text: &str) -> Result<SystemTime, String> {
    humantime::parse_rfc3339(text).map_err(|e| format!("`{text}` is not a time: {e}"))
}

impl Said {
    /// Forgets what has run out.
    pub fn expire(&mut self, now: Micros) {
        self.holds.retain(|_, hold| hold.until.is_none_or(|until| until > now));
        self.reservations.retain(|_, reservation| reservation.until > now);
    }

    pub(super) fn write(&self, clocks: Clocks) -> serde_json::Result<Vec<u8>> {
        let holds = self.holds.iter().map(|(vm, hold)| {
            let Hold { size, until, by, reason } = hold.clone();
            (vm.clone(), KeptHold { size, until: until.map(|u| clocks.written(u)), by, reason })
        });
        let reservations = self.reservations.iter().map(|(name, reservation)| {
            let until = clocks.written(reservation.until);
            (name.clone(), KeptReservation { size: reservation.size, until })
        });
        serde_json::to_vec_pretty(&File {
            format: FORMAT,
            written: Some(clocks.written(clocks.now)),
            holds: holds.collect(),
            reservations: reservations.collect(),
            exempt: self.exempt.clone(),
            dry_run: self.dry_run.unwrap_or_default(),
            lost: self.lost.clone(),
        })
    }

    /// Reads what [`Self::write`] wrote, without what has run out since.
    pub(super) fn read(text: &[u8], clocks: Clocks) -> Result<Self, String> {
        let file: File = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        if file.format != FORMAT {
            return Err(format!("format {}, this program reads {FORMAT}", file.format));
        }
        let written = file.written.as_deref().map(time).transpose()?;
        let (exempt, dry_run) = (file.exempt, file.dry_run.then_some(true));
        let mut said = Self { exempt, dry_run, lost: file.lost, ..Self::default() };
        for (vm, KeptHold { size, until, by, reason }) in file.holds {
            let until = match until {
                None => None,
                Some(text) => match clocks.read(&text, written)? {
                    None => continue,
                    until => until,
                },
            };
            said.holds.insert(vm, Hold { size, until, by, reason });
        }
        for (name, KeptReservation { size, until }) in file.reservations {
            if let Some(until) = clocks.read(&until, written)? {
                said.reservations.insert(name.clone(), Reservation { name, size, until });
            }
        }
        Ok(said)
    }

    /// From a file that [`Self::read`] cannot make sense of, what a daemon must not act without: which VMs are exempt, and
    /// whether it may act at all. `None`: not even that.
    pub(super) fn salvage(text: &[u8]) -> Option<Self> {
        let file: Value = serde_json::from_slice(text).ok()?;
        let by = |by: &Value| by.as_str().unwrap_or("an operator").to_owned();
        let exempt = file.get("exempt")?.as_object()?;
        let exempt = exempt.iter().map(|(vm, who)| (VmName(vm.clone()), by(who))).collect();
        let dry_run = file.get("dry_run")?.as_bool()?;
        let lost = file.get("lost").and_then(Value::as_str).map(str::to_owned);
        Some(Self { exempt, dry_run: dry_run.then_some(true), lost, ..Self::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn said() -> Said {
        let hold = |until| Hold { size: Bytes::mib(256), until, by: "alice".into(), reason: "a \"backup\"".into() };
        let db = VmName::from("db");
        Said {
            holds: [(VmName::from("web"), hold(Some(Micros::secs(100)))), (VmName::from("mail"), hold(None))].into(),
            reservations: [(db.clone(), Reservation { name: db, size: Bytes::mib(4096), until: Micros::secs(50) })]
                .into(),
            exempt: [(VmName::from("old"), "bob".to_owned())].into(),
            dry_run: Some(true),
            lost: Some("a dry run, because".to_owned()),
        }
    }

    /// Written when the daemon's clock stood at 10 s, at 1,000,000 s since 1970.
    fn file() -> (Vec<u8>, SystemTime) {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        (said().write(Clocks { now: Micros::secs(10), wall }).unwrap(), wall)
    }

    #[test]
    fn a_restart_keeps_what_was_said_and_its_end_in_wall_clock_time() {
        let (file, wall) = file();
        // Thirty seconds later, on a daemon whose clock begins anew: 60 and 10 s are left.
        let read = Said::read(&file, Clocks { now: Micros::secs(1), wall: wall + Duration::from_secs(30) }).unwrap();
        assert_eq!(read.holds[&VmName::from("web")].until, Some(Micros::secs(61)));
        assert_eq!(read.reservations[&VmName::from("db")].until, Micros::secs(11));
        assert_eq!(
            (&read.holds[&VmName::from("mail")], &read.exempt),
            (&said().holds[&VmName::from("mail")], &said().exempt)
        );
        assert_eq!((read.dry_run, read.lost), (Some(true), said().lost));
    }

    #[test]
    fn what_ran_out_meanwhile_is_gone() {
        let (file, wall) = file();
        let read = Said::read(&file, Clocks { now: Micros::ZERO, wall: wall + Duration::from_secs(90) }).unwrap();
        assert_eq!(read.holds.keys().map(|n| n.0.as_str()).collect::<Vec<_>>(), ["mail"]);
        assert!(read.reservations.is_empty());
        let mut said = said();
        said.expire(Micros::secs(50));
        assert_eq!((said.holds.len(), said.reservations.len()), (2, 0));
    }

    #[test]
    fn a_clock_that_was_set_prolongs_nothing() {
        let (file, wall) = file();
        let at = |wall| Said::read(&file, Clocks { now: Micros::secs(1), wall }).unwrap();
        let until =
            |said: &Said| (said.holds[&VmName::from("web")].until, said.reservations[&VmName::from("db")].until);
        // 90 and 40 s were left when it was written: so they are on a clock of before, be it by a second or by years.
        for back in [1, 999_999] {
            let read = at(wall - Duration::from_secs(back));
            assert_eq!(until(&read), (Some(Micros::secs(91)), Micros::secs(41)), "{back} s back");
        }
        // Far ahead: it has run out, and what has no end has none.
        let read = at(wall + Duration::from_secs(3_000_000_000));
        assert_eq!((read.holds.len(), read.reservations.len(), read.exempt.len()), (1, 0, 1));
        // As the program before this one wrote it.
        let mut old: Value = serde_json::from_slice(&file).unwrap();
        old.as_object_mut().unwrap().remove("written").unwrap();
        let clocks = Clocks { now: Micros::secs(1), wall: wall + Duration::from_secs(30) };
        let read = Said::read(old.to_string().as_bytes(), clocks).unwrap();
        assert_eq!(until(&read), (Some(Micros::secs(61)), Micros::secs(11)));
    }

    #[test]
    fn from_a_file_of_another_format_what_forbids_is_taken() {
        let clocks = Clocks { now: Micros::ZERO, wall: SystemTime::UNIX_EPOCH };
        let (file, _) = file();
        let mut other: Value = serde_json::from_slice(&file).unwrap();
        other["format"] = 2.into();
        other["holds"] = 7.into();
        other["exempt"]["web"] = true.into();
        other["news"] = "of another version".into();
        let salvage = |file: &Value| Said::salvage(file.to_string().as_bytes());
        assert!(Said::read(other.to_string().as_bytes(), clocks).is_err());
        let salvaged = salvage(&other).unwrap();
        let by = |vm: &str| salvaged.exempt[&VmName::from(vm)].as_str();
        assert_eq!((by("old"), by("web"), salvaged.exempt.len()), ("bob", "an operator", 2));
        assert_eq!((salvaged.dry_run, salvaged.lost, salvaged.holds.len()), (Some(true), said().lost, 0));
        other["dry_run"] = false.into();
        assert_eq!(salvage(&other).unwrap().dry_run, None);
        // Not to be guessed.
        for (key, wrong) in [("dry_run", Value::from("no")), ("exempt", Value::from(3)), ("exempt", Value::Null)] {
            let mut odd = other.clone();
            odd[key] = wrong;
            assert_eq!(salvage(&odd), None, "{key}");
        }
        assert_eq!(Said::salvage(&file[..file.len() / 2]), None);
        assert_eq!(Said::salvage(b""), None);
    }

    #[test]
    fn a_run_for_real_is_not_kept() {
        let said = Said { dry_run: Some(false), ..Said::default() };
        let clocks = Clocks { now: Micros::ZERO, wall: SystemTime::UNIX_EPOCH };
        assert_eq!(Said::read(&said.write(clocks).unwrap(), clocks).unwrap().dry_run, None);
    }

    #[test]
    fn a_file_that_makes_no_sense_is_an_error_that_says_where() {
        let clocks = Clocks { now: Micros::ZERO, wall: SystemTime::UNIX_EPOCH };
        let (file, _) = file();
        let text = String::from_utf8(file).unwrap();
        for (wrong, problem) in [
            (text[..text.len() / 2].to_owned(), "EOF"),
            (text.replace("\"format\": 1", "\"format\": 9"), "format 9, this program reads 1"),
            (text.replace("1970-01-12T", "soon "), "is not a time"),
            (text.replace("\"dry_run\"", "\"wet_run\""), "unknown field `wet_run`"),
        ] {
            let error = Said::read(wrong.as_bytes(), clocks).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }
}
