//! The sensors on `/proc` as two kernels really write it: the test guest's 6.1 (Debian cloud, 512 MiB, balloon) and a
//! 6.18 host of 24 GiB. The figures were read off the captured files by eye.

use ballast_guest::sensors::{Sensors, Vmstat};
use ballast_protocol::{BalloonFeatures, Bytes, KiB, Micros, Pages};
use std::path::PathBuf;

fn open(kernel: &str) -> Sensors {
    let root: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/fixtures", kernel].iter().collect();
    Sensors::open(&root).expect("the fixture is captured whole")
}

fn kib(n: u64) -> Bytes {
    Bytes::from(KiB(n))
}

fn pages(n: u64) -> Bytes {
    Bytes::from(Pages(n))
}

#[test]
fn a_6_1_cloud_guest() {
    let mut sensors = open("6.1-cloud-guest");
    let m = sensors.meminfo().unwrap();
    assert_eq!((m.total, m.free, m.available), (kib(480_272), kib(446_948), Some(kib(446_912))));
    assert_eq!(sensors.free().unwrap(), m.free, "a captured tree has no sysinfo");
    let w = sensors.watermarks().unwrap();
    assert_eq!((w.min, w.low, w.high), (pages(681), pages(850), pages(1_019)));
    assert_eq!(sensors.balloon, Some(BalloonFeatures { deflate_on_oom: true, free_page_reporting: false }));
    assert_eq!(sensors.lru_gen, Some(0));
    let c = sensors.capabilities(true);
    assert!(c.psi && !c.cgroup2 && !c.reclaim && !c.absorber, "what the tree lacks is never simulated");
    let Vmstat { counters, .. } = sensors.vmstat().unwrap();
    assert_eq!((counters.balloon_inflate, counters.oom_kill, counters.alloc_stall), (Some(0), Some(0), Some(0)));
}

#[test]
fn a_6_18_host_with_other_zones_and_lines() {
    let mut sensors = open("6.18");
    let m = sensors.meminfo().unwrap();
    assert_eq!(m.total, kib(24_684_092));
    assert!(m.giveable() <= m.available.unwrap());
    let w = sensors.watermarks().unwrap();
    assert_eq!((w.min, w.low, w.high), (pages(16_926), pages(21_148), pages(25_370)));
    assert_eq!(sensors.balloon, None);
    assert_eq!(sensors.lru_gen, None);
    let t = sensors.telemetry(Micros(5), w).unwrap();
    assert_eq!((t.at, t.total, t.watermarks), (Micros(5), m.total, w));
    assert!(t.memory_pressure.is_some() && t.io_pressure.is_some());
    assert!(t.counters.refault_file.is_some() && t.counters.scan_direct.is_some());
}
