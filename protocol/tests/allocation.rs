//! A hostile peer must not be able to make this side allocate: whatever arrives, decoding takes no more memory than
//! the text it carries, which is bounded. A binary of its own, because the allocator is counted.
// Counting allocations needs `GlobalAlloc`, whose methods are unsafe; every one of them passes straight through.
#![allow(unsafe_code)]

use ballast_protocol::{Deframer, GuestMessage, HostMessage, MAX_FRAME, PREFIX, decode, encode};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;

mod arbitrary;

/// What a Hello's two strings (32 + 64 bytes) or a refusal's one (128) may take.
const BOUND: usize = 128;

struct Counting;

thread_local! {
    static LIVE: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every method hands its arguments to `System` unchanged; the counters are plain cells without destructors,
// so they neither allocate nor fail while a thread ends.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.get().saturating_add(layout.size());
        LIVE.set(live);
        PEAK.set(PEAK.get().max(live));
        // SAFETY: the caller keeps `GlobalAlloc`'s contract.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.set(LIVE.get().saturating_sub(layout.size()));
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes alive at once, over what was alive before, while `f` ran. `realloc` counts as both blocks at once.
fn peak<T>(f: impl FnOnce() -> T) -> usize {
    let before = LIVE.get();
    PEAK.set(before);
    black_box(f());
    PEAK.get() - before
}

#[test]
fn the_allocator_counts() {
    assert_eq!(peak(|| drop(Vec::<u8>::with_capacity(1000))), 1000);
    assert_eq!(peak(|| (Box::new([0u8; 64]), Box::new([0u8; 32]))), 96);
}

#[test]
fn decoding_never_allocates_past_the_bound() {
    let mut runner = TestRunner::deterministic();
    let noise = proptest::collection::vec(any::<u8>(), 0..MAX_FRAME);
    let near = (0u8..9, proptest::collection::vec(prop_oneof![0u8..4, any::<u8>()], 0..400))
        .prop_map(|(variant, rest)| [&[variant][..], &rest].concat());
    let guest = arbitrary::guest().prop_map(|m| encode(&m, &mut [0; MAX_FRAME]).expect("fits")[PREFIX..].to_vec());
    let host = arbitrary::host().prop_map(|m| encode(&m, &mut [0; MAX_FRAME]).expect("fits")[PREFIX..].to_vec());
    let payloads = prop_oneof![noise, near, guest, host];
    let mut most = (0, 0);
    for _ in 0..5_000 {
        let payload = payloads.new_tree(&mut runner).expect("no filter rejects").current();
        let guest = peak(|| decode::<GuestMessage>(&payload));
        let host = peak(|| decode::<HostMessage>(&payload));
        assert!(guest <= BOUND && host <= BOUND, "{guest} and {host} bytes for {payload:?}");
        most = (most.0.max(guest), most.1.max(host));
    }
    assert!(most.0 > 0 && most.1 > 0, "no message with text was among the payloads: the test measures nothing");
}

/// Lengths that announce more than there is are the classic way to make a decoder allocate.
#[test]
fn an_announced_length_is_not_believed() {
    for length in
        [[0xff, 0xff, 0xff, 0xff, 0x0f].as_slice(), &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]]
    {
        let hello = [&[0, 1, 1][..], length, b"text"].concat();
        assert_eq!(peak(|| decode::<GuestMessage>(&hello).expect_err("lies")), 0);
        let refused = [&[1, 4][..], length, b"text"].concat();
        assert_eq!(peak(|| decode::<HostMessage>(&refused).expect_err("lies")), 0);
    }
    // A true length, over the field's limit: refused before anything is copied.
    let long = [&[1, 4, 0xac, 0x02][..], &[b'x'; 300]].concat();
    assert_eq!(peak(|| decode::<HostMessage>(&long).expect_err("too long")), 0);
}

#[test]
fn a_deframer_allocates_its_buffer_once_and_encoding_nothing() {
    let mut buffer = [0; MAX_FRAME];
    let message = GuestMessage::Withdraw { id: 3 };
    assert_eq!(peak(|| encode(&message, &mut buffer).map(<[u8]>::len)), 0);
    let frame = encode(&message, &mut buffer).expect("fits").to_vec();
    let feed = |deframer: &mut Deframer| {
        for byte in frame.iter().cycle().take(frame.len() * 10_000) {
            deframer.space()[0] = *byte;
            deframer.advance(1);
            black_box(deframer.next_frame::<GuestMessage>().expect("valid frames"));
        }
    };
    assert_eq!(peak(|| feed(&mut Deframer::default())), MAX_FRAME);
}
