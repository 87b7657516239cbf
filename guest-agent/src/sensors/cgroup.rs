//! cgroup v2 with the memory controller. A few files are all we need, so no library stands between.

use super::file::{ProcFile, Scratch, lines, number};
use ballast_protocol::Bytes;
use std::path::{Path, PathBuf};

/// The hierarchy, and what this kernel lets us do with it.
#[derive(Debug)]
pub struct Cgroups {
    dir: PathBuf,
    reclaim: bool,
}

impl Cgroups {
    /// Looks for the v2 mount with the memory controller: `/sys/fs/cgroup`, or `unified` below it on a hybrid system
    /// (where v1 usually has the controller, and this finds nothing).
    #[must_use]
    pub fn find(root: &Path, scratch: &mut Scratch) -> Option<Self> {
        for place in ["sys/fs/cgroup", "sys/fs/cgroup/unified"] {
            let dir = root.join(place);
            let Ok(Some(file)) = ProcFile::open(&dir, "cgroup.controllers") else { continue };
            let Ok(text) = file.read(scratch) else { continue };
            if text.split(u8::is_ascii_whitespace).any(|word| word == b"memory") {
                let reclaim = dir.join("memory.reclaim").exists();
                return Some(Self { dir, reclaim });
            }
        }
        None
    }

    /// Where it is mounted.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether the root has `memory.reclaim` (Linux 5.19).
    #[must_use]
    pub fn can_reclaim(&self) -> bool {
        self.reclaim
    }
}

/// `memory.current` or `memory.high`: a number, or `max`, which is [`Bytes::MAX`].
#[must_use]
pub fn limit(text: &[u8]) -> Option<Bytes> {
    if text.trim_ascii() == b"max" { Some(Bytes::MAX) } else { number(text).map(Bytes) }
}

/// The `high` line of `memory.events`: how often somebody of this group was held.
#[must_use]
pub fn high_events(text: &[u8]) -> Option<u64> {
    lines(text).find_map(|line| line.strip_prefix(b"high ").and_then(number))
}
