//! Stands between a guest's vsock device and the host agent, and counts the bytes.

use anyhow::{Context, Result};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

/// Bytes that passed; the proxy lives as long as the process.
#[derive(Debug, Default)]
pub struct Count {
    to_host: AtomicU64,
    to_guest: AtomicU64,
}

impl Count {
    /// Both ways.
    pub fn total(&self) -> u64 {
        self.to_host.load(Relaxed) + self.to_guest.load(Relaxed)
    }
}

/// Listens at `near`, where the guest's connections arrive, and passes them on to `far`, where the host agent listens.
pub fn start(near: &Path, far: PathBuf) -> Result<Arc<Count>> {
    let listener = UnixListener::bind(near).with_context(|| near.display().to_string())?;
    let count = Arc::new(Count::default());
    let shared = Arc::clone(&count);
    thread::spawn(move || {
        for guest in listener.incoming().map_while(Result::ok) {
            // While the host agent is not there the guest is closed, and dials again.
            let Ok(host) = UnixStream::connect(&far) else { continue };
            let (Ok(guest_reader), Ok(host_reader)) = (guest.try_clone(), host.try_clone()) else { continue };
            let (up, down) = (Arc::clone(&shared), Arc::clone(&shared));
            thread::spawn(move || pass(guest_reader, host, &up.to_host));
            thread::spawn(move || pass(host_reader, guest, &down.to_guest));
        }
    });
    Ok(count)
}

fn pass(mut from: UnixStream, mut to: UnixStream, count: &AtomicU64) {
    let mut buffer = [0; 4096];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                count.fetch_add(read as u64, Relaxed);
                if to.write_all(&buffer[..read]).is_err() {
                    break;
                }
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    // The other direction ends with this one.
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
