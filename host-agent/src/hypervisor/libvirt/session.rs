//! One connection to libvirtd, and what is done on it. Owned by a runner's thread.

use super::domain_xml::{self, DomainXml};
use super::events_ffi::Registration;
use super::job_ffi;
use super::{BalloonStatistics, Error, Inbox, State, VmFacts};
use crate::hypervisor::age::Age;
use ballast_planner::VmName;
use ballast_protocol::{Bytes, KiB, Micros};
use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};
use virt::connect::Connect;
use virt::domain::{Domain, MemoryStat};
use virt::error::ErrorNumber;
use virt::sys;

/// Seconds between libvirt's questions whether libvirtd lives, and how many may stay unanswered: a libvirtd that hangs
/// is given up after 8 s. Calls have their own, shorter deadline.
const KEEPALIVE: (i32, u32) = (2, 3);
/// Seconds between the balloon driver's reports, when nobody has set it.
const STATISTICS_PERIOD: i32 = 1;

pub(super) struct Session {
    uri: String,
    connect: Connect,
    /// `None` while dropping, and when nobody listens.
    registration: Option<Registration>,
    /// A look-up by name is a round trip; so is the XML.
    domains: BTreeMap<VmName, Known>,
    /// What the last list said, until the worker takes it.
    listed: Option<Running>,
}

/// The VMs that run, each with libvirt's number for this run of it.
pub(super) type Running = BTreeMap<VmName, Option<u32>>;

struct Known {
    domain: Domain,
    has_balloon: bool,
    reporting: bool,
    age: Age,
}

impl Session {
    /// Opens a connection; also says which domains run, each with its number.
    pub fn open(uri: &str, number: u64, worker: &Inbox) -> Result<(Self, Running), String> {
        let mut session = Self::connect(uri)?;
        // Events first, the list afterwards: what happens in between is seen twice rather than never.
        let registration = Registration::new(&session.connect, number, worker);
        session.registration = Some(registration.map_err(|e| e.message().to_owned())?);
        session.keep_alive();
        session.names().map_err(|e| e.to_string())?;
        let running = session.listed.take().unwrap_or_default();
        Ok((session, running))
    }

    /// Opens a connection of which no events are wanted.
    pub fn unattended(uri: &str) -> Result<Self, String> {
        let session = Self::connect(uri)?;
        session.keep_alive();
        Ok(session)
    }

    fn connect(uri: &str) -> Result<Self, String> {
        let connect = Connect::open(Some(uri)).map_err(|e| e.message().to_owned())?;
        Ok(Self { uri: uri.to_owned(), connect, registration: None, domains: BTreeMap::new(), listed: None })
    }

    fn keep_alive(&self) {
        // Drivers without a daemon behind them have nothing to keep alive.
        if let Err(error) = self.connect.set_keep_alive(KEEPALIVE.0, KEEPALIVE.1) {
            tracing::debug!(uri = self.uri, error = error.message(), "no keepalive");
        }
    }

    /// What was known of a VM holds no longer: it started or stopped.
    pub fn forget(&mut self, vm: &VmName) {
        self.domains.remove(vm);
    }

    pub fn names(&mut self) -> Result<Vec<VmName>, Error> {
        let call = "virConnectListAllDomains";
        let domains = self.connect.list_all_domains(0).map_err(|e| self.error(call, &e, None))?;
        let mut all = BTreeMap::new();
        for domain in domains {
            let name = domain.get_name().map_err(|e| self.error(call, &e, None))?;
            all.insert(name.as_str().into(), domain.get_id());
        }
        let names = all.keys().cloned().collect();
        all.retain(|_, id| id.is_some());
        self.listed = Some(all);
        Ok(names)
    }

    /// Which VMs ran when they were listed, if they were listed since the last time.
    pub fn take_list(&mut self) -> Option<Running> {
        self.listed.take()
    }

    pub fn facts(&mut self, vm: &VmName) -> Result<VmFacts, Error> {
        self.describe(vm, true)
    }

    /// What libvirtd knows by itself of a VM whose QEMU does not answer.
    pub fn facts_of_hung(&mut self, vm: &VmName) -> Result<VmFacts, Error> {
        self.describe(vm, false)
    }

    fn describe(&mut self, vm: &VmName, answers: bool) -> Result<VmFacts, Error> {
        self.on(vm, "virDomainGetXMLDesc", |this, vm| {
            let domain = this.known(vm)?.domain.clone();
            let failed = |this: &Self, e| this.error("virDomainGetXMLDesc", &e, Some(vm));
            let (code, reason) = domain.get_state().map_err(|e| failed(this, e))?;
            let state = match code {
                sys::VIR_DOMAIN_SHUTOFF => State::Off,
                sys::VIR_DOMAIN_CRASHED if !domain.is_active().map_err(|e| failed(this, e))? => State::Off,
                _ if !answers => State::Hung,
                sys::VIR_DOMAIN_PAUSED | sys::VIR_DOMAIN_PMSUSPENDED | sys::VIR_DOMAIN_CRASHED => State::Paused,
                // Also one that is shutting down: it still uses memory.
                _ => State::Running,
            };
            // One that arrives answers nothing that needs its monitor, and does not say so for 30 s.
            let arrives = is_held(code, reason);
            let migrating = match state {
                State::Off => false,
                State::Hung => arrives,
                _ => arrives || this.is_busy(vm, &domain)?,
            };
            let xml = this.xml(vm, &domain)?;
            let actual = match state {
                State::Off => xml.current,
                State::Hung if xml.has_balloon => xml.current,
                _ if arrives => xml.current,
                _ if !xml.has_balloon => xml.memory,
                _ => find(&this.stats(vm, &domain)?, sys::VIR_DOMAIN_MEMORY_STAT_ACTUAL_BALLOON).unwrap_or(xml.current),
            };
            let uuid = domain.get_uuid_string().map_err(|e| failed(this, e))?;
            Ok(VmFacts {
                name: vm.clone(),
                uuid: Some(uuid.to_ascii_lowercase()),
                state,
                max: xml.memory,
                actual,
                has_balloon: xml.has_balloon,
                deflate_on_oom: xml.has_balloon.then_some(xml.deflate_on_oom),
                free_page_reporting: xml.has_balloon.then_some(xml.free_page_reporting),
                cid: xml.cid,
                min_guarantee: xml.min_guarantee,
                migrating,
                metadata: xml.metadata,
            })
        })
    }

    pub fn balloon(&mut self, vm: &VmName) -> Result<Bytes, Error> {
        self.on(vm, "virDomainMemoryStats", |this, vm| {
            let domain = this.with_balloon(vm)?;
            let stats = this.stats(vm, &domain)?;
            find(&stats, sys::VIR_DOMAIN_MEMORY_STAT_ACTUAL_BALLOON).ok_or_else(|| Error::Malformed {
                whom: this.whom(Some(vm)),
                call: "virDomainMemoryStats",
                why: "it has no balloon size (tag 6)".into(),
            })
        })
    }

    pub fn order(&mut self, vm: &VmName, keep: Bytes) -> Result<(), Error> {
        self.on(vm, "virDomainSetMemoryFlags", |this, vm| {
            let domain = this.with_balloon(vm)?;
            if this.is_busy(vm, &domain)? {
                return Err(Error::Refused {
                    whom: this.whom(Some(vm)),
                    call: "virDomainSetMemoryFlags",
                    why: "it is being migrated, saved or snapshotted".into(),
                });
            }
            // Not `set_memory`, which swallows errors (FACTS.md, section 2).
            match domain.set_memory_flags(keep.as_kib().0, sys::VIR_DOMAIN_MEM_LIVE) {
                Ok(_) => Ok(()),
                Err(e) => Err(this.error("virDomainSetMemoryFlags", &e, Some(vm))),
            }
        })
    }

    pub fn statistics(&mut self, vm: &VmName) -> Result<BalloonStatistics, Error> {
        self.on(vm, "virDomainMemoryStats", |this, vm| {
            let domain = this.with_balloon(vm)?;
            if !this.known(vm)?.reporting {
                if this.xml(vm, &domain)?.statistics_period == 0 {
                    let set = domain.set_memory_stats_period(STATISTICS_PERIOD, sys::VIR_DOMAIN_MEM_LIVE);
                    set.map_err(|e| this.error("virDomainSetMemoryStatsPeriod", &e, Some(vm)))?;
                }
                this.known(vm)?.reporting = true;
            }
            let stats = this.stats(vm, &domain)?;
            let age = &mut this.known(vm)?.age;
            Ok(read_statistics(&stats, |stamp| age.of(stamp, SystemTime::now(), Instant::now())))
        })
    }

    /// Does something with a domain; once more with a fresh look-up when libvirt does not know the old one any more
    /// (a transient domain that was made anew under its name).
    fn on<T>(
        &mut self,
        vm: &VmName,
        call: &'static str,
        mut act: impl FnMut(&mut Self, &VmName) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if vm.0.contains('\0') {
            // The wrapper panics on those.
            return Err(Error::UnknownVm(vm.clone()));
        }
        let was_known = self.domains.contains_key(vm);
        let result = match act(self, vm) {
            Err(Error::UnknownVm(_)) if was_known => {
                self.forget(vm);
                act(self, vm)
            }
            result => result,
        };
        match result {
            // libvirt says "operation invalid" to everything that needs a running domain, in many words.
            Err(Error::Refused { .. }) if !self.is_active(vm) => Err(Error::Off(vm.clone())),
            Err(e) if !self.connect.is_alive().unwrap_or(false) => {
                Err(Error::Unreachable { whom: self.whom(None), why: format!("{call}: {e}") })
            }
            result => result,
        }
    }

    /// Whether a VM runs, of which nothing else may be known. When that cannot be told, the error that led here is the
    /// better one, and who may run keeps its memory.
    pub fn is_active(&self, vm: &VmName) -> bool {
        match Domain::lookup_by_name(&self.connect, &vm.0) {
            Ok(domain) => domain.is_active().unwrap_or(true),
            Err(error) => error.code() != ErrorNumber::NoDomain,
        }
    }

    fn known(&mut self, vm: &VmName) -> Result<&mut Known, Error> {
        if !self.domains.contains_key(vm) {
            let found = Domain::lookup_by_name(&self.connect, &vm.0);
            let domain = found.map_err(|e| self.error("virDomainLookupByName", &e, Some(vm)))?;
            let has_balloon = self.xml(vm, &domain)?.has_balloon;
            self.domains.insert(vm.clone(), Known { domain, has_balloon, reporting: false, age: Age::default() });
        }
        self.domains.get_mut(vm).ok_or_else(|| Error::UnknownVm(vm.clone()))
    }

    fn with_balloon(&mut self, vm: &VmName) -> Result<Domain, Error> {
        let known = self.known(vm)?;
        if known.has_balloon { Ok(known.domain.clone()) } else { Err(Error::NoBalloon(vm.clone())) }
    }

    fn xml(&self, vm: &VmName, domain: &Domain) -> Result<DomainXml, Error> {
        let call = "virDomainGetXMLDesc";
        let xml = domain.get_xml_desc(0).map_err(|e| self.error(call, &e, Some(vm)))?;
        domain_xml::read(&xml).map_err(|why| Error::Malformed { whom: self.whom(Some(vm)), call, why })
    }

    fn is_busy(&self, vm: &VmName, domain: &Domain) -> Result<bool, Error> {
        job_ffi::is_busy(domain).map_err(|e| self.error("virDomainGetJobStats", &e, Some(vm)))
    }

    fn stats(&self, vm: &VmName, domain: &Domain) -> Result<Vec<MemoryStat>, Error> {
        domain.memory_stats(0).map_err(|e| self.error("virDomainMemoryStats", &e, Some(vm)))
    }

    fn whom(&self, vm: Option<&VmName>) -> String {
        match vm {
            Some(vm) => format!("libvirt ({}), asked about VM `{vm}`,", self.uri),
            None => format!("libvirt ({})", self.uri),
        }
    }

    fn error(&self, call: &'static str, error: &virt::error::Error, vm: Option<&VmName>) -> Error {
        match (error.code(), vm) {
            (ErrorNumber::NoDomain, Some(vm)) => Error::UnknownVm(vm.clone()),
            _ => Error::Refused { whom: self.whom(vm), call, why: error.message().to_owned() },
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Each holds a reference to the connection, which closes with the last one.
        self.domains.clear();
        self.registration = None;
        if let Err(error) = self.connect.close() {
            tracing::debug!(error = error.message(), "closing libvirt");
        }
    }
}

/// Whether a domain stands still for something that libvirt does with it: it arrives or leaves, starts, is saved, dumped
/// or snapshotted.
fn is_held(state: sys::virDomainState, reason: i32) -> bool {
    state == sys::VIR_DOMAIN_PAUSED
        && matches!(
            reason as sys::virDomainPausedReason,
            sys::VIR_DOMAIN_PAUSED_MIGRATION
                | sys::VIR_DOMAIN_PAUSED_SAVE
                | sys::VIR_DOMAIN_PAUSED_DUMP
                | sys::VIR_DOMAIN_PAUSED_SNAPSHOT
                | sys::VIR_DOMAIN_PAUSED_STARTING_UP
                | sys::VIR_DOMAIN_PAUSED_POSTCOPY
        )
}

fn value(stats: &[MemoryStat], tag: sys::virDomainMemoryStatTags) -> Option<u64> {
    // -1, possibly divided by 1024 on its way, is how a driver says that it does not know.
    stats.iter().find(|s| s.tag == tag).map(|s| s.val).filter(|v| *v < u64::MAX >> 10)
}

fn find(stats: &[MemoryStat], tag: sys::virDomainMemoryStatTags) -> Option<Bytes> {
    value(stats, tag).map(|kib| KiB(kib).into())
}

fn read_statistics(stats: &[MemoryStat], age: impl FnOnce(u64) -> Option<Micros>) -> BalloonStatistics {
    let size = |tag| find(stats, tag);
    BalloonStatistics {
        total: size(sys::VIR_DOMAIN_MEMORY_STAT_AVAILABLE),
        free: size(sys::VIR_DOMAIN_MEMORY_STAT_UNUSED),
        available: size(sys::VIR_DOMAIN_MEMORY_STAT_USABLE),
        caches: size(sys::VIR_DOMAIN_MEMORY_STAT_DISK_CACHES),
        swap_in: size(sys::VIR_DOMAIN_MEMORY_STAT_SWAP_IN),
        swap_out: size(sys::VIR_DOMAIN_MEMORY_STAT_SWAP_OUT),
        major_faults: value(stats, sys::VIR_DOMAIN_MEMORY_STAT_MAJOR_FAULT),
        minor_faults: value(stats, sys::VIR_DOMAIN_MEMORY_STAT_MINOR_FAULT),
        age: value(stats, sys::VIR_DOMAIN_MEMORY_STAT_LAST_UPDATE).and_then(age),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_mean_what_libvirt_documents() {
        let stats: Vec<_> = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 99), (8, 9), (9, 10), (77, 1)]
            .map(|(tag, val)| MemoryStat { tag, val })
            .into();
        let s = read_statistics(&stats, |stamp| Some(Micros::secs(14 - stamp)));
        assert_eq!((s.swap_in, s.swap_out), (Some(KiB(1).into()), Some(KiB(2).into())));
        assert_eq!((s.major_faults, s.minor_faults), (Some(3), Some(4)));
        assert_eq!((s.free, s.total, s.available), (Some(KiB(5).into()), Some(KiB(6).into()), Some(KiB(9).into())));
        assert_eq!((s.caches, s.age), (None, Some(Micros::secs(4))));
        assert_eq!(find(&stats, sys::VIR_DOMAIN_MEMORY_STAT_ACTUAL_BALLOON), Some(KiB(7).into()));
    }

    #[test]
    fn what_a_driver_does_not_know_is_none() {
        let stats = [MemoryStat { tag: 4, val: u64::MAX }, MemoryStat { tag: 5, val: u64::MAX >> 10 }];
        assert_eq!(read_statistics(&stats, |_| unreachable!("it has no stamp")), BalloonStatistics::default());
    }
}
