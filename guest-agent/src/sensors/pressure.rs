//! `/proc/pressure/*`: stall totals since boot. The averages beside them are seconds old and not read.

use super::file::{ProcFile, Scratch, SensorError, lines, number};
use ballast_protocol::{Micros, Pressure};
use std::path::Path;

/// Reads `some` and `full` totals; a kernel whose `cpu` file has no `full` line gives zero there.
#[must_use]
pub fn parse(text: &[u8]) -> Option<Pressure> {
    const TOTAL: &[u8] = b"total=";
    let mut pressure = Pressure::default();
    let mut any = false;
    for line in lines(text) {
        let Some(at) = line.windows(TOTAL.len()).position(|w| w == TOTAL) else { continue };
        let Some(total) = number(&line[at + TOTAL.len()..]).map(Micros) else { continue };
        if line.starts_with(b"some ") {
            pressure.some = total;
            any = true;
        } else if line.starts_with(b"full ") {
            pressure.full = total;
        }
    }
    any.then_some(pressure)
}

/// One open pressure file.
#[derive(Debug)]
pub struct PressureSensor(ProcFile);

impl PressureSensor {
    /// Opens `proc/pressure/<what>` (memory, io, cpu) or a cgroup's `memory.pressure`; `None` when this kernel lacks
    /// it or has it switched off.
    ///
    /// # Errors
    /// It is there and cannot be opened.
    pub fn open(root: &Path, relative: &str) -> Result<Option<Self>, SensorError> {
        Ok(ProcFile::open(root, relative)?.map(Self))
    }

    /// The totals now; `None` when PSI was switched off at boot (`psi=0` keeps the files and fails their reads).
    #[must_use]
    pub fn read(&self, scratch: &mut Scratch) -> Option<Pressure> {
        parse(self.0.read(scratch).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_read_and_averages_are_not() {
        let text =
            b"some avg10=1.53 avg60=0.87 avg300=0.32 total=1234567\nfull avg10=0.10 avg60=0.02 avg300=0.00 total=89\n";
        assert_eq!(parse(text), Some(Pressure { some: Micros(1_234_567), full: Micros(89) }));
        assert_eq!(parse(b"some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n").unwrap().full, Micros::ZERO);
        assert_eq!(parse(b""), None);
    }
}
