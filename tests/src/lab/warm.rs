//! Free memory of the machine that costs what free memory of real hardware costs.
//!
//! A host that is itself a VM may report its free pages to its own host (virtio-balloon, feature bit 5), after two
//! seconds and in blocks of 128 KiB here. Whatever takes such a page afterwards waits for a second fault outside, which
//! has nothing to do with the guests that are compared: a burst took 1.4 or 1.8 times as long as a warm one, depending
//! on what else had just used and freed memory. So on such a machine, and only there, some free memory is used and
//! freed again and again, for all arms alike.

use memmap2::MmapMut;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// What a burst takes, and what the kernel takes beside it.
const SIZE: usize = 448 << 20;
const PAGE: usize = 4096;
/// Less than the kernel's delay before it reports (2 s, mm/page_reporting.c), with the time it takes itself.
const EVERY: Duration = Duration::from_millis(1_500);

/// Keeps free memory warm while it lives.
#[derive(Debug)]
pub struct Warm {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Warm {
    /// Starts, if this machine reports its free pages to a host of its own.
    pub fn where_needed() -> Option<Self> {
        if !reports_free_pages() {
            return None;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Ok(mut memory) = MmapMut::map_anon(SIZE) {
                    memory.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
                }
                thread::sleep(EVERY);
            }
        });
        Some(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Warm {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It only touches memory of its own; there is nothing to learn from how it ended.
            let _ = thread.join();
        }
    }
}

fn reports_free_pages() -> bool {
    let Ok(devices) = fs::read_dir("/sys/bus/virtio/devices") else { return false };
    devices.flatten().any(|device| {
        let read = |name| fs::read_to_string(device.path().join(name)).unwrap_or_default();
        read("device").trim() == "0x0005" && read("features").as_bytes().get(5) == Some(&b'1')
    })
}
