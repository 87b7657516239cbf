//! The cheap version: what a VM's interface carries, by the kernel's counters.
//!
//! `/proc/net/dev` and not `/sys/class/net`: the latter shows the network namespace of whoever mounted it, the former
//! that of the reader.

use super::Target;
use ballast_planner::{ServiceMode, ServiceSample, VmName};
use ballast_protocol::Micros;
use std::collections::{BTreeMap, BTreeSet};

/// Short enough that a fall is seen before the next probe, long enough to be an average.
const EVERY: Micros = Micros::secs(5);
/// What a probe leaves of such an interval is used from here on.
const LEAST: Micros = Micros::secs(1);
/// Less traffic than this, bits per second, is idle chatter and not worth a line in the journal.
const CHATTER: u64 = 1_000_000;
const FILE: &str = "/proc/net/dev";

/// The counters of all VMs that have an interface.
#[derive(Debug)]
pub(super) struct Counters {
    interfaces: BTreeMap<VmName, String>,
    last: BTreeMap<VmName, (Micros, [u64; 2])>,
    /// VMs whose last figure was handed on, so that its fall to nothing is, too.
    spoke: BTreeSet<VmName>,
    missing: BTreeSet<VmName>,
    next: Micros,
}

impl Counters {
    pub(super) fn new(targets: &[Target], now: Micros) -> Self {
        let interfaces: BTreeMap<_, _> =
            targets.iter().filter_map(|t| Some((t.vm.clone(), t.interface.clone()?))).collect();
        let next = if interfaces.is_empty() { Micros::MAX } else { now };
        Self { interfaces, last: BTreeMap::new(), spoke: BTreeSet::new(), missing: BTreeSet::new(), next }
    }

    pub(super) fn next(&self) -> Micros {
        self.next
    }

    /// What the interface of a VM carried until now: a probe of it begins.
    pub(super) fn until_probe(&mut self, vm: &VmName, now: Micros) -> Vec<(VmName, ServiceSample)> {
        if self.last.get(vm).is_none_or(|(then, _)| now < *then + LEAST) {
            return Vec::new();
        }
        self.next = now;
        self.read(now)
    }

    /// A probe's own traffic must not count as the VM's.
    pub(super) fn probed(&mut self, vm: &VmName, now: Micros) {
        self.last.remove(vm);
        if self.interfaces.contains_key(vm) {
            // Begins a new interval right after the probe.
            self.next = self.next.min(now);
        }
    }

    /// What the interfaces carried since the last time, if it is time.
    pub(super) fn read(&mut self, now: Micros) -> Vec<(VmName, ServiceSample)> {
        if now < self.next {
            return Vec::new();
        }
        self.next = now + EVERY;
        let text = std::fs::read_to_string(FILE).unwrap_or_else(|error| {
            tracing::warn!(%error, "{FILE} cannot be read: the interfaces' counters are not known");
            String::new()
        });
        self.compare(now, &parse(&text))
    }

    fn compare(&mut self, now: Micros, counts: &BTreeMap<&str, [u64; 2]>) -> Vec<(VmName, ServiceSample)> {
        let mut samples = Vec::new();
        for (vm, interface) in &self.interfaces {
            let Some(new) = counts.get(interface.as_str()) else {
                self.last.remove(vm);
                if self.missing.insert(vm.clone()) {
                    tracing::warn!(%vm, "VM {vm}: this host has no network interface `{interface}`; correct `interface`");
                }
                continue;
            };
            self.missing.remove(vm);
            let Some((then, old)) = self.last.insert(vm.clone(), (now, *new)) else { continue };
            let duration = now - then;
            // The busier direction. A counter that went back belongs to a new interface of the same name.
            let bytes = [0, 1].map(|i| new[i].saturating_sub(old[i])).into_iter().max().unwrap_or(0);
            let bits = u128::from(bytes) * 8 * 1_000_000 / u128::from(duration.0.max(1));
            let throughput = u64::try_from(bits).unwrap_or(u64::MAX);
            let speaks = throughput >= CHATTER;
            if speaks || self.spoke.contains(vm) {
                let mode = ServiceMode::Passive;
                samples.push((vm.clone(), ServiceSample { mode, throughput, retransmits: None, rtt: None, duration }));
            }
            match speaks {
                true => self.spoke.insert(vm.clone()),
                false => self.spoke.remove(vm),
            };
        }
        samples
    }
}

/// Bytes received and sent by interface: fields 1 and 9 after the name (proc(5)).
fn parse(text: &str) -> BTreeMap<&str, [u64; 2]> {
    let line = |line: &'_ str| -> Option<[u64; 2]> {
        let mut fields = line.split_ascii_whitespace();
        let received = fields.next()?.parse().ok()?;
        Some([received, fields.nth(7)?.parse().ok()?])
    };
    text.lines().filter_map(|l| l.split_once(':')).filter_map(|(name, l)| Some((name.trim(), line(l)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:   10216     116    0    0    0     0          0         0    10216     116    0    0    0     0       0          0
  tap2: 1000000    9999    0    0    0     0          0         0 26000000    8888    0    0    0     0       0          0
";

    fn counters() -> Counters {
        let target = |vm: &str, interface: &str| Target {
            vm: VmName::from(vm),
            service: None,
            interface: Some(interface.to_owned()),
        };
        Counters::new(&[target("web", "tap2"), target("db", "tap9")], Micros::ZERO)
    }

    #[test]
    fn the_busier_direction_counts() {
        let mut counters = counters();
        let then = parse(DEV);
        assert_eq!(then["tap2"], [1_000_000, 26_000_000]);
        assert_eq!(counters.compare(Micros::secs(1), &then), []);
        let text = DEV.replace("1000000 ", "2000000 ").replace("26000000", "38500000");
        let samples = counters.compare(Micros::secs(6), &parse(&text));
        assert_eq!(samples.len(), 1, "and an interface that is not there is left out");
        assert_eq!((samples[0].1.throughput, samples[0].1.duration), (20_000_000, Micros::secs(5)));
        // Its end is told once.
        assert_eq!(counters.compare(Micros::secs(11), &parse(&text))[0].1.throughput, 0);
        assert_eq!(counters.compare(Micros::secs(16), &parse(&text)), []);
    }

    #[test]
    fn a_probe_of_ours_is_left_out_and_a_new_interface_is_no_fall() {
        let mut counters = counters();
        counters.compare(Micros::secs(1), &parse(DEV));
        counters.probed(&VmName::from("web"), Micros::secs(3));
        assert_eq!(counters.next(), Micros::ZERO);
        let much = DEV.replace("26000000", "99000000");
        assert_eq!(counters.compare(Micros::secs(3), &parse(&much)), []);
        assert_eq!(counters.compare(Micros::secs(8), &parse(DEV)), [], "it went back");
    }
}
