//! Ctrl-C: nothing is left behind.
//!
//! Processes die with this one (they ask the kernel to), network namespaces with their last process, guest memory has no
//! name. What is left are folders under `/tmp` and cgroups; those of this process are removed here, and whatever a SIGKILL
//! leaves, the next run sweeps.

use crate::children;
use crate::lab::restrict;
use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

/// From now on SIGINT, SIGTERM and SIGHUP remove what this process has made, and end it with status 130.
///
/// # Errors
/// A handler is there already.
pub fn tidy_up_on_signals() -> Result<()> {
    ctrlc::set_handler(|| {
        // First the children: a QEMU that is still writing its log would make the folder again.
        for pid in children::living().into_iter().filter_map(|pid| Pid::from_raw(pid as i32)) {
            let _ = kill_process(pid, Signal::KILL);
        }
        children::remove_own_folders();
        restrict::remove_left(true);
        eprintln!("interrupted; complete blocks are kept, the same command goes on with the rest");
        std::process::exit(130);
    })
    .context("signal handler")
}
