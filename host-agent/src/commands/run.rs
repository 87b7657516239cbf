//! `ballast-host run`: the daemon in the foreground.

use anyhow::{Context, Result};
use ballast_host::config::Config;
use ballast_host::daemon::Daemon;
use ballast_host::{heap, logs};
use std::path::Path;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Calls to hypervisors under way at a time. Each has a thread, and tokio keeps as many as were ever busy at once, 20 KiB
/// each: with its default of 512, a daemon that adopts 1,000 VMs when it starts has 512 for good. A call takes 0.1 ms; one
/// to a QEMU that hangs takes 2 s, once in 3 s, so that it needs 190 of them at once to keep the others waiting.
const CALLS: usize = 128;

/// Runs until SIGTERM or Ctrl-C; `check`: only reads the configuration.
pub fn run(config: &Path, check: bool) -> Result<ExitCode> {
    if check {
        let config = Config::load(config)?;
        println!("{}: ok, {} VMs named", config.file.display(), config.vms.len());
        return Ok(ExitCode::SUCCESS);
    }
    // One table that is wrong must not leave the other VMs without their daemon, say after a crash.
    let config = Config::examine_to_start(config)?;
    heap::keep_little();
    logs::start();
    raise_file_limit();
    // Two workers: one for the daemon's task, one for sessions, so that a burst of reports never delays a decision.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(CALLS)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        };
        let daemon = Daemon::start(config).await?;
        // In a task of its own: the thread that blocks on the runtime is none of its workers.
        tokio::spawn(daemon.run(stop)).await.context("the daemon's task")?;
        anyhow::Ok(())
    })?;
    // A hypervisor call that hangs must not keep the daemon alive.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    Ok(ExitCode::SUCCESS)
}

/// A VM takes three descriptors: its agent's socket and session, and its monitor. The soft limit is 1,024 on most systems;
/// the hard one is what we are allowed.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit on open files stays low: a few hundred VMs are the most");
    }
}
