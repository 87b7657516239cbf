//! The host's own memory, for laws that look at it: `/proc/meminfo` and `/proc/pressure/memory`.
//!
//! Read once a second and only while such a law rules (see [`ballast_planner::LawName::needs_host`]); with a
//! configured budget the planner knows the figures by itself.

use ballast_planner::{HostMemory, Ratio};
use ballast_protocol::{Bytes, KiB};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often it is read: the shortest published round is 2 s.
pub const EVERY: Duration = Duration::from_secs(1);

/// A figure that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file.
    #[error("{path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What is in it.
    #[error("{path} has no `{key}`")]
    Missing {
        /// Which file.
        path: PathBuf,
        /// Which line.
        key: &'static str,
    },
}

/// Reads the figures below `proc`, usually `/proc`.
///
/// # Errors
/// `meminfo` cannot be read or lacks MemTotal or MemAvailable (Linux before 3.14). A kernel without PSI is none.
pub fn read(proc: &Path) -> Result<HostMemory, Error> {
    let path = proc.join("meminfo");
    let meminfo = std::fs::read_to_string(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
    let figure = |key| size(&meminfo, key).ok_or_else(|| Error::Missing { path: path.clone(), key });
    let pressure = std::fs::read_to_string(proc.join("pressure/memory")).ok();
    Ok(HostMemory {
        total: figure("MemTotal")?,
        available: figure("MemAvailable")?,
        psi_some_avg10: pressure.as_deref().and_then(avg10),
    })
}

/// `MemTotal:       16316420 kB`
fn size(meminfo: &str, key: &str) -> Option<Bytes> {
    let value = meminfo.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    value.trim().strip_suffix("kB")?.trim().parse().ok().map(|n| KiB(n).into())
}

/// `some avg10=0.12 avg60=0.05 avg300=0.00 total=12345`
fn avg10(pressure: &str) -> Option<Ratio> {
    let some = pressure.lines().find_map(|l| l.strip_prefix("some "))?;
    let figure = some.split(' ').find_map(|w| w.strip_prefix("avg10="))?;
    format!("{figure}%").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proc(meminfo: &str, pressure: Option<&str>) -> tempfile::TempDir {
        let proc = tempfile::tempdir().unwrap();
        std::fs::write(proc.path().join("meminfo"), meminfo).unwrap();
        if let Some(text) = pressure {
            std::fs::create_dir(proc.path().join("pressure")).unwrap();
            std::fs::write(proc.path().join("pressure/memory"), text).unwrap();
        }
        proc
    }

    const MEMINFO: &str = "MemTotal:        2048 kB\nMemFree:         1 kB\nMemAvailable:    1024 kB\n";

    #[test]
    fn what_linux_says_is_read() {
        let text = "some avg10=0.12 avg60=0.50 avg300=0.00 total=1\nfull avg10=9.00 avg60=0.00 avg300=0.00 total=0\n";
        let memory = read(proc(MEMINFO, Some(text)).path()).unwrap();
        assert_eq!((memory.total, memory.available), (Bytes::mib(2), Bytes::mib(1)));
        assert_eq!(memory.psi_some_avg10, Some(Ratio::basis_points(12)));
    }

    #[test]
    fn a_kernel_without_psi_says_nothing_of_it() {
        for text in [None, Some(""), Some("some avg10=nonsense")] {
            assert_eq!(read(proc(MEMINFO, text).path()).unwrap().psi_some_avg10, None);
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let proc = proc("MemTotal: 5 kB\n", None);
        let text = read(proc.path()).unwrap_err().to_string();
        assert!(text.ends_with("meminfo has no `MemAvailable`"), "{text}");
        assert!(matches!(read(Path::new("/nowhere")), Err(Error::Read { .. })));
    }

    #[test]
    fn this_machine_can_be_read() {
        let memory = read(Path::new("/proc")).unwrap();
        assert!(memory.available > Bytes::ZERO && memory.available <= memory.total);
    }
}
