//! The balloon device as the guest's own driver negotiated it, and whether pages are aged by MGLRU.
//!
//! virtio device ids and feature bits: virtio 1.2, section 5.5 (memory balloon). The `features` attribute is 64
//! characters, bit 0 first (`drivers/virtio/virtio.c`, `features_show`).

use super::file::{ProcFile, Scratch};
use ballast_protocol::BalloonFeatures;
use std::path::Path;

/// Virtio device id of a memory balloon.
const BALLOON: &[u8] = b"0x0005";
/// VIRTIO_BALLOON_F_DEFLATE_ON_OOM.
const DEFLATE_ON_OOM: usize = 2;
/// VIRTIO_BALLOON_F_REPORTING.
const REPORTING: usize = 5;

/// Looks for a balloon that a driver has claimed; `None` when there is none.
#[must_use]
pub fn find(root: &Path, scratch: &mut Scratch) -> Option<BalloonFeatures> {
    let devices = std::fs::read_dir(root.join("sys/bus/virtio/devices")).ok()?;
    for device in devices.flatten() {
        let dir = device.path();
        let Ok(Some(id)) = ProcFile::open(&dir, "device") else { continue };
        if !id.read(scratch).is_ok_and(|text| text.trim_ascii() == BALLOON) {
            continue;
        }
        let Ok(Some(features)) = ProcFile::open(&dir, "features") else { continue };
        if let Ok(bits) = features.read(scratch) {
            let has = |bit: usize| bits.get(bit) == Some(&b'1');
            return Some(BalloonFeatures { deflate_on_oom: has(DEFLATE_ON_OOM), free_page_reporting: has(REPORTING) });
        }
    }
    None
}

/// Whether the multi-generational LRU is there, and the mask of its enabled parts (`/sys/kernel/mm/lru_gen/enabled`,
/// for example `0x0007`).
#[must_use]
pub fn lru_gen(root: &Path, scratch: &mut Scratch) -> Option<u64> {
    let file = ProcFile::open(root, "sys/kernel/mm/lru_gen/enabled").ok()??;
    let text = file.read(scratch).ok()?;
    let hex = std::str::from_utf8(text).ok()?.trim().strip_prefix("0x")?;
    u64::from_str_radix(hex, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(root: &Path, name: &str, id: &str, features: &str) {
        let dir = root.join("sys/bus/virtio/devices").join(name);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("device"), format!("{id}\n")).unwrap();
        std::fs::write(dir.join("features"), format!("{features}\n")).unwrap();
    }

    #[test]
    fn the_balloon_is_found_among_other_devices() {
        let dir = tempfile::tempdir().unwrap();
        let mut scratch = Scratch::default();
        assert_eq!(find(dir.path(), &mut scratch), None);
        device(dir.path(), "virtio0", "0x0001", "1111111111111111111111111111111111111111111111111111111111111111");
        assert_eq!(find(dir.path(), &mut scratch), None);
        device(dir.path(), "virtio1", "0x0005", "0110010000000000000000000000110010000000000000000000000000000000");
        let both = BalloonFeatures { deflate_on_oom: true, free_page_reporting: true };
        assert_eq!(find(dir.path(), &mut scratch), Some(both));
        device(dir.path(), "virtio1", "0x0005", "0100000000000000000000000000110010000000000000000000000000000000");
        assert_eq!(find(dir.path(), &mut scratch), Some(BalloonFeatures::default()));
    }

    #[test]
    fn page_aging_is_read_as_hexadecimal() {
        let dir = tempfile::tempdir().unwrap();
        let mut scratch = Scratch::default();
        assert_eq!(lru_gen(dir.path(), &mut scratch), None);
        std::fs::create_dir_all(dir.path().join("sys/kernel/mm/lru_gen")).unwrap();
        std::fs::write(dir.path().join("sys/kernel/mm/lru_gen/enabled"), "0x0007\n").unwrap();
        assert_eq!(lru_gen(dir.path(), &mut scratch), Some(7));
    }
}
