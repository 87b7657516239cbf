//! `/proc/zoneinfo`: the watermarks, summed over zones. "60 MiB free" of a 512 MiB guest means 35 usable: everything
//! counts from here. They change with memory hot-plug, with the balloon (`deflate-on-oom` off) and by sysctl only.

use super::file::{ProcFile, Scratch, SensorError, lines, number};
use ballast_protocol::{Bytes, Pages, Watermarks};
use std::path::Path;

/// Sums `min`, `low` and `high` over all zones; `None` when no zone has them.
#[must_use]
pub fn parse(text: &[u8]) -> Option<Watermarks> {
    let mut sums = Watermarks::default();
    let mut any = false;
    for line in lines(text) {
        let line = line.trim_ascii_start();
        let Some(space) = line.iter().position(|b| *b == b' ') else { continue };
        let sum = match &line[..space] {
            b"min" => &mut sums.min,
            b"low" => &mut sums.low,
            // The per-CPU lists below say `high:` with a colon (and `high_min:` since 6.7).
            b"high" => &mut sums.high,
            _ => continue,
        };
        if let Some(pages) = number(&line[space..]) {
            *sum += Bytes::from(Pages(pages));
            any = true;
        }
    }
    any.then_some(sums)
}

/// The open file.
#[derive(Debug)]
pub struct ZoneinfoSensor(ProcFile);

impl ZoneinfoSensor {
    /// Opens it; `None` when this kernel lacks it.
    ///
    /// # Errors
    /// It is there and cannot be opened.
    pub fn open(root: &Path) -> Result<Option<Self>, SensorError> {
        Ok(ProcFile::open(root, "proc/zoneinfo")?.map(Self))
    }

    /// The sums now.
    ///
    /// # Errors
    /// The file cannot be read, or has no zone.
    pub fn read(&self, scratch: &mut Scratch) -> Result<Watermarks, SensorError> {
        parse(self.0.read(scratch)?).ok_or_else(|| self.0.odd("has no zone with watermarks"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watermarks_are_summed_and_per_cpu_lists_ignored() {
        let text = b"Node 0, zone      DMA\n  pages free     3840\n        boost    0\n        min      64\n        low      80\n\
            \x20       high     96\n  pagesets\n    cpu: 0\n              count: 0\n              high:  7\n\
            Node 0, zone    DMA32\n        min      100\n        low      125\n        high     150\n";
        let w = parse(text).unwrap();
        assert_eq!((w.min, w.low, w.high), (Bytes(164 * 4096), Bytes(205 * 4096), Bytes(246 * 4096)));
    }

    #[test]
    fn a_file_without_zones_is_not_zero_watermarks() {
        assert_eq!(parse(b"Node 0, zone Movable\n  pages free 0\n"), None);
    }
}
