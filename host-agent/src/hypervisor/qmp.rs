//! QEMUs that no libvirt manages, by the QEMU Machine Protocol.
//!
//! ```text
//!   caller --command, id--> socket             one VM: one socket
//!   caller <--reply by id-- reader <-- socket  one thread reads the sockets of all VMs
//!   daemon <----Event------ reader             the same thread reconnects when a QEMU has gone
//! ```
//!
//! A client of our own: we need a dozen commands, a deadline on each, bounded replies, reconnection, and an order that
//! is on its way in tens of microseconds; what the crates for QMP offer is the whole schema, generated, and none of
//! these. The protocol is one JSON object a line (QEMU, docs/interop/qmp-spec).
//!
//! QEMU serves one client at a time on a monitor: a second daemon gets no greeting, which is reported as such.

mod link;

use super::age::Age;
use super::{BalloonStatistics, Error, Events, Hypervisor, State, VmFacts};
use ballast_planner::VmName;
use ballast_protocol::{Bytes, Micros};
use link::Link;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// How often the guest's driver is to report, when nobody has set it: as often as anything without an agent is judged.
const STATISTICS_PERIOD: u64 = 1;
/// How long a VM's devices are remembered, when no event says that they changed: QEMU has none for plugging one. Asking
/// for all of them each time would be six commands more for each VM every few seconds.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Where user-made devices live in QEMU's object tree: with an id, and without.
const PERIPHERALS: [&str; 2] = ["/machine/peripheral", "/machine/peripheral-anon"];

/// One QEMU.
#[derive(Debug)]
pub struct Qmp {
    name: VmName,
    link: Link,
    known: Mutex<Known>,
}

/// What need not be asked again while the connection stands.
#[derive(Debug, Default)]
struct Known {
    /// The connection it was learned on.
    connection: u64,
    /// The balloon device whose statistics are on.
    reporting: Option<String>,
    /// QEMU was asked to tell of migrations.
    tells_migration: bool,
    age: Age,
    /// What the machine is made of, when that was asked, and after how many changes.
    made_of: Option<(Instant, u64, MadeOf)>,
}

#[derive(Debug, Default)]
struct Devices {
    balloon: Option<String>,
    vsock: Option<String>,
}

/// What a machine is made of.
#[derive(Clone, Debug)]
struct MadeOf {
    uuid: Option<String>,
    has_balloon: bool,
    deflate_on_oom: Option<bool>,
    free_page_reporting: Option<bool>,
    cid: Option<u32>,
}

impl Hypervisor for Qmp {
    /// The one VM, or none while it is off.
    fn vms(&self) -> Result<Vec<VmFacts>, Error> {
        match self.facts(&self.name) {
            Ok(facts) => Ok(vec![facts]),
            Err(Error::Off(_)) => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }

    fn facts(&self, vm: &VmName) -> Result<VmFacts, Error> {
        self.check(vm)?;
        let status = self.call("query-status", None)?;
        let running = status.get("running").and_then(Value::as_bool).unwrap_or(false);
        let memory = self.call("query-memory-size-summary", None)?;
        let base = Bytes(self.number("query-memory-size-summary", &memory, "base-memory")?);
        let plugged = Bytes(memory.get("plugged-memory").and_then(Value::as_u64).unwrap_or(0));
        let migrating = self.migrating()? || status.get("status").and_then(Value::as_str) == Some("inmigrate");
        let max = base + plugged;
        let MadeOf { uuid, has_balloon, deflate_on_oom, free_page_reporting, cid } = self.made_of()?;
        let actual = if has_balloon {
            // A balloon that is not there any more: the next look asks for the devices anew.
            self.actual().inspect_err(|_| self.known().made_of = None)?
        } else {
            max
        };
        Ok(VmFacts {
            name: self.name.clone(),
            uuid,
            state: if running { State::Running } else { State::Paused },
            max,
            actual,
            has_balloon,
            deflate_on_oom,
            free_page_reporting,
            cid,
            min_guarantee: None,
            migrating,
            metadata: Ok(Vec::new()),
        })
    }

    fn balloon(&self, vm: &VmName) -> Result<Bytes, Error> {
        self.check(vm)?;
        self.actual()
    }

    fn order(&self, vm: &VmName, keep: Bytes) -> Result<(), Error> {
        self.check(vm)?;
        self.call("balloon", Some(json!({ "value": keep.0 }))).map(drop)
    }

    fn statistics(&self, vm: &VmName) -> Result<BalloonStatistics, Error> {
        self.check(vm)?;
        let path = self.reporting_balloon()?;
        let reply = self.property(&path, "guest-stats")?;
        let mut known = self.known();
        Ok(read_statistics(&reply, |stamp| known.age.of(stamp, SystemTime::now(), Instant::now())))
    }
}

impl Qmp {
    /// Connects to a VM's monitor socket, now or when it appears, for as long as this lives. Does not wait.
    #[must_use]
    pub fn new(name: VmName, socket: PathBuf, events: Events) -> Self {
        Self { link: Link::new(name.clone(), socket, events), name, known: Mutex::default() }
    }

    fn check(&self, vm: &VmName) -> Result<(), Error> {
        if *vm == self.name { Ok(()) } else { Err(Error::UnknownVm(vm.clone())) }
    }

    fn call(&self, command: &'static str, arguments: Option<Value>) -> Result<Value, Error> {
        self.link.call(command, arguments).map_err(|e| match e {
            link::CallError::Off => Error::Off(self.name.clone()),
            link::CallError::Down(why) => Error::Unreachable { whom: self.whom(), why },
            link::CallError::Deadline => Error::Deadline { whom: self.whom(), call: command },
            // "DeviceNotActive" is what QEMU says to balloon commands, and to nothing else we use.
            link::CallError::Refused { class, .. } if class == "DeviceNotActive" => Error::NoBalloon(self.name.clone()),
            link::CallError::Refused { text, .. } => Error::Refused { whom: self.whom(), call: command, why: text },
        })
    }

    fn whom(&self) -> String {
        format!("the monitor of VM `{}` ({})", self.name, self.link.path().display())
    }

    /// A number in a reply.
    fn number(&self, call: &'static str, reply: &Value, key: &'static str) -> Result<u64, Error> {
        reply.get(key).and_then(Value::as_u64).ok_or_else(|| Error::Malformed {
            whom: self.whom(),
            call,
            why: format!("it has no number `{key}`"),
        })
    }

    fn actual(&self) -> Result<Bytes, Error> {
        let reply = self.call("query-balloon", None)?;
        self.number("query-balloon", &reply, "actual").map(Bytes)
    }

    /// Whether it is being migrated away (QEMU, qapi/migration.json). Asked once a connection, QEMU also tells when that
    /// begins and ends; asking changes nothing else about a migration.
    fn migrating(&self) -> Result<bool, Error> {
        let told = std::mem::replace(&mut self.known().tells_migration, true);
        if !told {
            let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
            match self.call("migrate-set-capabilities", Some(events)) {
                // While it migrates nothing can be set, and what is not told is asked.
                Ok(_) | Err(Error::Refused { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        match self.call("query-migrate", None) {
            Ok(reply) => Ok(reply.get("status").and_then(Value::as_str).is_some_and(link::is_migrating)),
            Err(Error::Refused { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn property(&self, path: &str, property: &str) -> Result<Value, Error> {
        self.call("qom-get", Some(json!({ "path": path, "property": property })))
    }

    /// A flag that older QEMUs may not have.
    fn flag(&self, path: &str, property: &str) -> Result<Option<bool>, Error> {
        match self.property(path, property) {
            Ok(value) => Ok(value.as_bool()),
            Err(Error::Refused { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn devices(&self) -> Result<Devices, Error> {
        let mut found = Devices::default();
        for parent in PERIPHERALS {
            let list = self.call("qom-list", Some(json!({ "path": parent })))?;
            for child in list.as_array().into_iter().flatten() {
                let (Some(name), Some(kind)) =
                    (child.get("name").and_then(Value::as_str), child.get("type").and_then(Value::as_str))
                else {
                    continue;
                };
                // The bus and the generation follow: -pci, -pci-transitional, -device, -ccw.
                if kind.starts_with("child<virtio-balloon-") {
                    found.balloon.get_or_insert(format!("{parent}/{name}"));
                } else if kind.starts_with("child<vhost-vsock-") {
                    found.vsock.get_or_insert(format!("{parent}/{name}"));
                }
            }
        }
        Ok(found)
    }

    /// What is known on the connection that stands.
    fn known(&self) -> MutexGuard<'_, Known> {
        let connection = self.link.connection();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.connection != connection {
            *known = Known { connection, age: known.age, ..Known::default() };
        }
        known
    }

    /// What the machine is made of, asked anew when that was long ago.
    fn made_of(&self) -> Result<MadeOf, Error> {
        let changes = self.link.changes();
        if let Some((asked, then, made_of)) = &self.known().made_of
            && asked.elapsed() < REMEMBERED
            && *then == changes
        {
            return Ok(made_of.clone());
        }
        let uuid = self.call("query-uuid", None)?;
        let uuid = uuid.get("UUID").and_then(Value::as_str).map(str::to_ascii_lowercase);
        let devices = self.devices()?;
        let (mut deflate_on_oom, mut free_page_reporting) = (None, None);
        if let Some(balloon) = &devices.balloon {
            deflate_on_oom = self.flag(balloon, "deflate-on-oom")?;
            free_page_reporting = self.flag(balloon, "free-page-reporting")?;
        }
        let cid = match &devices.vsock {
            Some(vsock) => self.property(vsock, "guest-cid")?.as_u64().and_then(|c| u32::try_from(c).ok()),
            None => None,
        };
        let made_of = MadeOf {
            // QEMU's way of saying that it was given none.
            uuid: uuid.filter(|u| u.chars().any(|c| c != '0' && c != '-')),
            has_balloon: devices.balloon.is_some(),
            deflate_on_oom,
            free_page_reporting,
            cid,
        };
        self.known().made_of = Some((Instant::now(), changes, made_of.clone()));
        Ok(made_of)
    }

    /// The balloon's path, its statistics switched on.
    fn reporting_balloon(&self) -> Result<String, Error> {
        if let Some(path) = &self.known().reporting {
            return Ok(path.clone());
        }
        let path = self.devices()?.balloon.ok_or_else(|| Error::NoBalloon(self.name.clone()))?;
        if self.property(&path, "guest-stats-polling-interval")?.as_u64().unwrap_or(0) == 0 {
            let arguments =
                json!({ "path": path, "property": "guest-stats-polling-interval", "value": STATISTICS_PERIOD });
            self.call("qom-set", Some(arguments))?;
        }
        self.known().reporting = Some(path.clone());
        Ok(path)
    }
}

/// `{"stats": {"stat-free-memory": n, ...}, "last-update": seconds since 1970, 0 for never}`. Drivers that leave a
/// tag out and drivers that send -1 for it (Windows) mean the same; tags we do not know are none of our business.
fn read_statistics(reply: &Value, age: impl FnOnce(u64) -> Option<Micros>) -> BalloonStatistics {
    let tag = |name: &str| reply.get("stats")?.get(name)?.as_u64().filter(|n| *n != u64::MAX);
    let size = |name| tag(name).map(Bytes);
    BalloonStatistics {
        total: size("stat-total-memory"),
        free: size("stat-free-memory"),
        available: size("stat-available-memory"),
        caches: size("stat-disk-caches"),
        swap_in: size("stat-swap-in"),
        swap_out: size("stat-swap-out"),
        major_faults: tag("stat-major-faults"),
        minor_faults: tag("stat-minor-faults"),
        age: reply.get("last-update").and_then(Value::as_u64).and_then(age),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(reply: &Value) -> BalloonStatistics {
        read_statistics(reply, |stamp| (stamp != 0).then(|| Micros::secs(1_003 - stamp)))
    }

    #[test]
    fn statistics_of_linux_are_read() {
        let reply = json!({"stats": {"stat-total-memory": 500, "stat-free-memory": 300, "stat-available-memory": 400,
            "stat-disk-caches": 50, "stat-swap-in": 0, "stat-swap-out": 1, "stat-major-faults": 7,
            "stat-minor-faults": 9, "stat-htlb-pgalloc": 0, "stat-from-the-future": 1}, "last-update": 1000});
        let s = read(&reply);
        assert_eq!((s.total, s.free, s.available), (Some(Bytes(500)), Some(Bytes(300)), Some(Bytes(400))));
        assert_eq!((s.swap_in, s.swap_out, s.caches), (Some(Bytes(0)), Some(Bytes(1)), Some(Bytes(50))));
        assert_eq!((s.major_faults, s.minor_faults), (Some(7), Some(9)));
        assert_eq!(s.age, Some(Micros::secs(3)));
    }

    #[test]
    fn what_windows_and_old_drivers_do_not_say_is_none() {
        let reply = json!({"stats": {"stat-total-memory": 500, "stat-free-memory": u64::MAX, "stat-swap-in": -1},
            "last-update": 1000});
        let s = read(&reply);
        assert_eq!((s.total, s.free, s.swap_in, s.available), (Some(Bytes(500)), None, None, None));
    }

    #[test]
    fn statistics_never_given_have_no_age() {
        assert_eq!(read(&json!({"stats": {}, "last-update": 0})), BalloonStatistics::default());
        assert_eq!(read(&json!("nonsense")), BalloonStatistics::default());
    }
}
