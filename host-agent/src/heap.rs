//! What the daemon's heap keeps. glibc has eight arenas for each CPU, and one that has been grown by a text about a thousand VMs
//! (2.5 MiB, and as much again in pieces on the way) stays so; which arena that is changes with the thread that makes
//! the text. With the defaults a fleet of 1,000 that is scraped once a second takes 124 KiB for each VM, with these settings 63 (`make fleet`).
//!
//! The third and last module of this crate where `unsafe` is allowed, after libvirt's two: there is no other way to say so from inside.
#![allow(unsafe_code)]

/// One arena for all threads: what one frees the next one uses, and none of them allocates much. Large blocks are mapped by
/// themselves and go back at once, for good: by default that bound grows with each block (mallopt(3)).
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    for (what, value) in
        [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, 128 << 10), (libc::M_TRIM_THRESHOLD, 128 << 10)]
    {
        // SAFETY: it takes two numbers, and is called before there is a second thread.
        unsafe { libc::mallopt(what, value) };
    }
}
