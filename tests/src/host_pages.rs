//! Larger pages for shared guest memory, as long as somebody holds them.
//!
//! The vsock daemon needs guest memory that is shared, and for shared memory Linux gives 4 KiB pages unless told
//! otherwise: then every page that a balloon gives back costs its guest 3.9 us at the first touch, 300 ms for 300 MiB,
//! whoever gave it back and how. Private guest memory, what a host with the kernel's own vsock has, gets large pages
//! by default. 64 KiB pages make the two alike at a fifth of the cost; 2 MiB pages do not, because a balloon leaves
//! holes of 4 KiB and the host has to move memory before it has a whole one again (measured: stalls of 250 ms).
//!
//! `advise` concerns only memory whose owner asked by MADV_HUGEPAGE, as QEMU does. It is a setting of the whole host,
//! so it is set for as long as the guard lives and restored when this process ends, however it ends.

use std::fs;
use std::io::Write;
use std::process::{Child, Command, Stdio};

const SETTING: &str = "/sys/kernel/mm/transparent_hugepage/hugepages-64kB/shmem_enabled";

/// Shared memory whose owner asks for it is in 64 KiB pages while this lives.
#[derive(Debug)]
pub struct LargePages(Option<Child>);

impl LargePages {
    /// Sets it; `None` when this kernel (before 6.12) has no such setting, or this process may not change it.
    #[must_use]
    pub fn set() -> Option<Self> {
        let text = fs::read_to_string(SETTING).ok()?;
        let before = text.split_whitespace().find_map(|w| w.strip_prefix('[')?.strip_suffix(']'))?.to_owned();
        if before != "never" {
            // The operator has chosen; that is to be measured.
            return Some(Self(None));
        }
        // It reads until this process is gone: a pipe is closed however a process ends.
        let restore = format!("trap '' INT TERM HUP; cat >/dev/null; echo {before} >{SETTING}");
        let guard = Command::new("sh").args(["-c", &restore]).stdin(Stdio::piped()).spawn().ok()?;
        let guard = Self(Some(guard));
        fs::write(SETTING, "advise").ok()?;
        Some(guard)
    }
}

impl Drop for LargePages {
    fn drop(&mut self) {
        let Some(guard) = &mut self.0 else { return };
        if let Some(mut pipe) = guard.stdin.take() {
            // Closing it is the message; there is nothing to write.
            let _ = pipe.flush();
        }
        // It ends within milliseconds; its status says nothing that could be acted on here.
        let _ = guard.wait();
    }
}
