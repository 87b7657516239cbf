//! Which version two agents of different age speak. SPEC.md, "Versions".

use ballast_protocol::{OLDEST_VERSION, VERSION, negotiate};

#[test]
fn the_newest_version_both_know_is_chosen() {
    for (ours, theirs, chosen) in [
        ((1, 1), (1, 1), Some(1)),
        ((1, 3), (1, 3), Some(3)),
        // A newer peer that still speaks ours, and the reverse.
        ((1, 1), (1, 9), Some(1)),
        ((1, 9), (1, 1), Some(1)),
        // Ranges that overlap in part, or in one version only.
        ((1, 3), (2, 5), Some(3)),
        ((3, 5), (1, 3), Some(3)),
        ((1, 9), (4, 6), Some(6)),
        // Nothing in common.
        ((1, 1), (2, 5), None),
        ((4, 9), (1, 3), None),
        // A range that is upside down is a lie and never matches.
        ((1, 5), (5, 1), None),
        ((5, 1), (1, 5), None),
        ((3, 2), (3, 2), None),
        ((1, 9), (4, 3), None),
        // The ends of the range of numbers.
        ((0, u16::MAX), (0, u16::MAX), Some(u16::MAX)),
        ((0, 0), (0, 0), Some(0)),
        ((u16::MAX, u16::MAX), (0, u16::MAX - 1), None),
    ] {
        assert_eq!(negotiate(ours, theirs), chosen, "{ours:?} with {theirs:?}");
        assert_eq!(negotiate(theirs, ours), chosen, "{theirs:?} with {ours:?}: both sides must come to the same");
    }
}

#[test]
fn this_crate_speaks_with_itself() {
    assert_eq!(negotiate((OLDEST_VERSION, VERSION), (OLDEST_VERSION, VERSION)), Some(VERSION));
}
