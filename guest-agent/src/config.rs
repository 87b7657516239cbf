//! The configuration file, and how the command line overrides it.
//!
//! Unknown keys and wrong values are refused with their line; a missing default file is an empty one.

use crate::agent::Settings;
use crate::link::Peer;
use ballast_protocol::DEFAULT_PORT;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Where the file is looked for unless said otherwise.
pub const DEFAULT_PATH: &str = "/etc/ballast/guest.toml";
/// Where the socket is unless said otherwise.
pub const DEFAULT_SOCKET: &str = "/run/ballast/guest.sock";
/// VMADDR_CID_HOST.
const HOST_CID: u32 = 2;
/// systemd's slices and Kubernetes': where workloads live; those that exist are managed.
const WORKLOADS: [&str; 4] = ["system.slice", "user.slice", "machine.slice", "kubepods.slice"];

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be; the text shows the line.
    #[error("{}: {problem}", path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// Where and what, as the parser says it.
        problem: String,
    },
    /// A cgroup that is not one.
    #[error("`{0}` is no cgroup below the cgroup mount: write for example system.slice")]
    Workload(String),
}

/// What file or command line say; each may leave anything out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The host agent's vsock port.
    pub port: Option<u32>,
    /// The host agent's CID.
    pub cid: Option<u32>,
    /// Whether the absorber is on.
    pub absorber: Option<bool>,
    /// The workload cgroups.
    pub workloads: Option<Vec<String>>,
    /// The Unix socket.
    pub socket: Option<PathBuf>,
}

impl Config {
    /// Reads `path`; without one [`DEFAULT_PATH`], which may be missing.
    ///
    /// # Errors
    /// The file cannot be read, or holds what it should not.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let (path, must) = (path.unwrap_or(Path::new(DEFAULT_PATH)), path.is_some());
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !must => return Ok(Self::default()),
            Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
        };
        toml::from_str(&text)
            .map_err(|e| ConfigError::Parse { path: path.to_owned(), problem: e.to_string().trim_end().to_owned() })
    }

    /// What `over` says wins.
    #[must_use]
    pub fn overridden_by(self, over: Self) -> Self {
        Self {
            port: over.port.or(self.port),
            cid: over.cid.or(self.cid),
            absorber: over.absorber.or(self.absorber),
            workloads: over.workloads.or(self.workloads),
            socket: over.socket.or(self.socket),
        }
    }

    /// Fills in the defaults.
    ///
    /// # Errors
    /// A workload that leads out of the cgroup mount.
    pub fn settings(self, root: PathBuf, peer: Option<Peer>) -> Result<Settings, ConfigError> {
        let (cid, port) = (self.cid.unwrap_or(HOST_CID), self.port.unwrap_or(DEFAULT_PORT));
        let workloads = self.workloads.unwrap_or_else(|| WORKLOADS.map(str::to_owned).to_vec());
        let inside = |name: &String| !name.is_empty() && name.split('/').all(|part| !matches!(part, "" | "." | ".."));
        if let Some(bad) = workloads.iter().find(|name| !inside(name)) {
            return Err(ConfigError::Workload(bad.clone()));
        }
        Ok(Settings {
            root,
            peer: peer.unwrap_or(Peer::Vsock { cid, port }),
            socket: self.socket.unwrap_or_else(|| DEFAULT_SOCKET.into()),
            absorber: self.absorber.unwrap_or(false),
            workloads,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::load(Some(file.path()))
    }

    #[test]
    fn the_command_line_wins_over_the_file_and_the_file_over_the_defaults() {
        let file = load("port = 7\nabsorber = true\nworkloads = [\"a.slice\", \"b.slice/c\"]\n").unwrap();
        let settings =
            file.overridden_by(Config { port: Some(8), ..Config::default() }).settings("/".into(), None).unwrap();
        assert_eq!(settings.peer, Peer::Vsock { cid: 2, port: 8 });
        assert!(settings.absorber);
        assert_eq!(settings.workloads, ["a.slice", "b.slice/c"]);
        assert_eq!(settings.socket, Path::new(DEFAULT_SOCKET));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, problem) in
            [("port = 7\nprot = 8\n", "prot"), ("\nport = \"seven\"\n", "line 2"), ("port = -1\n", "port")]
        {
            let message = load(text).unwrap_err().to_string();
            assert!(message.contains(problem) && message.contains("line"), "{message}");
        }
        assert!(matches!(Config::load(Some(Path::new("/no/such"))), Err(ConfigError::Read { .. })));
        for bad in ["../etc", "", "/abs", "a//b"] {
            let config = Config { workloads: Some(vec![bad.to_owned()]), ..Config::default() };
            assert!(config.settings("/".into(), None).is_err(), "{bad}");
        }
    }
}
