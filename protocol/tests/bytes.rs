//! The encoding, pinned byte by byte: an accidental change of a type breaks a build here before it breaks a fleet
//! whose two ends are of different age.

use ballast_protocol::{FrameError, GuestMessage, HostMessage, MAX_FRAME, PREFIX, decode, encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

mod largest;
mod table;
use table::{Entry, guest, host};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn payload<M: Serialize>(message: &M) -> Vec<u8> {
    let mut buffer = [0; MAX_FRAME];
    encode(message, &mut buffer).expect("every message of the protocol fits a frame")[PREFIX..].to_vec()
}

fn check<M: Serialize + DeserializeOwned + PartialEq + Debug>(entries: &[Entry<M>]) {
    let mut wrong = Vec::new();
    for Entry { name, in_place, message, hex: pinned } in entries {
        assert!(in_place, "`{name}` stands under the pattern of another variant");
        let bytes = payload(message);
        if hex(&bytes) != *pinned {
            wrong.push(format!("{name}: encoded {}, pinned {pinned}", hex(&bytes)));
        }
        assert_eq!(decode::<M>(&bytes).as_ref(), Ok(message), "{name}");
    }
    assert!(wrong.is_empty(), "the wire changed:\n{}", wrong.join("\n"));
}

#[test]
fn every_guest_message_has_its_pinned_bytes() {
    check(&guest());
}

#[test]
fn every_host_message_has_its_pinned_bytes() {
    check(&host());
}

#[test]
fn a_frame_is_its_payload_after_a_little_endian_length() {
    let mut buffer = [0; MAX_FRAME];
    assert_eq!(encode(&GuestMessage::Withdraw { id: 3 }, &mut buffer), Ok(&[2, 0, 3, 3][..]));
}

/// Rules of postcard that another implementation must know and that no sample shows; SPEC.md, "Encoding".
#[test]
fn lenient_and_strict_decoding_is_as_specified() {
    let guest = decode::<GuestMessage>;
    let malformed = |payload: &[u8]| assert_eq!(guest(payload), Err(FrameError::Malformed(payload.len())));
    // An overlong varint is read, up to the longest its type can have.
    assert_eq!(guest(&[3, 0x83, 0x00]), Ok(GuestMessage::Withdraw { id: 3 }));
    assert_eq!(guest(&[0x83, 0x80, 0x00, 3]), Ok(GuestMessage::Withdraw { id: 3 }));
    // A u64 has at most ten bytes, the last at most 1; an enum's number is a u32: five bytes, the last at most 15.
    malformed(&[3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]);
    malformed(&[3, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00]);
    malformed(&[0x83, 0x80, 0x80, 0x80, 0x10, 3]);
    // Enum variants that do not exist, in the message and inside it.
    malformed(&[8, 3]);
    malformed(&[7, 2]);
    // A bool or an option is 0 or 1.
    malformed(&[5, 1, 1, 2]);
    malformed(&[4, 3, 3, 3, 2]);
    // A frame holds one message and nothing after it.
    assert_eq!(guest(&[3, 3, 0]), Err(FrameError::Trailing(1)));
    malformed(&[3]);
    malformed(&[]);
}

/// Text is bounded in bytes, valid UTF-8, and free of control characters, or the whole frame is malformed.
#[test]
fn text_outside_its_rules_is_refused() {
    let misbehaved = |length: u8, text: &[u8]| {
        // The length is a varint; above 127 it takes a second byte.
        let prefix = if length < 128 { vec![1, 4, length] } else { vec![1, 4, length, 1] };
        decode::<HostMessage>(&[&prefix[..], text].concat())
    };
    assert!(misbehaved(128, &[b'a'; 128]).is_ok());
    for (length, text) in [
        (129, &[b'a'; 129][..]),
        (4, b"a\x1b[m"),
        (2, b"a\n"),
        (1, b"\x00"),
        (1, b"\x7f"),
        (2, "\u{85}".as_bytes()),
        (2, b"\xc3\x28"),
        (1, b"\xff"),
        (5, b"abc"),
    ] {
        assert!(matches!(misbehaved(length, text), Err(FrameError::Malformed(_))), "{length} {text:?}");
    }
    let endless = [1, 4, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, b'a'];
    assert_eq!(decode::<HostMessage>(&endless), Err(FrameError::Malformed(endless.len())));
}

/// SPEC.md, "Sizes", carries the same figures.
#[test]
fn the_largest_of_every_message_fits_a_frame() {
    let guest: Vec<_> = largest::guest().iter().map(|(kind, m)| (*kind, payload(m).len())).collect();
    let host: Vec<_> = largest::host().iter().map(|(kind, m)| (*kind, payload(m).len())).collect();
    assert_eq!(
        guest,
        [
            ("Hello", 138),
            ("Telemetry", 344),
            ("Demand", 73),
            ("Withdraw", 11),
            ("Relief", 42),
            ("Reclaimed", 22),
            ("Pong", 41),
            ("Goodbye", 2)
        ]
    );
    assert_eq!(
        host,
        [("Welcome", 34), ("Refused", 132), ("Answer", 33), ("Reclaim", 21), ("Ping", 21), ("Goodbye", 1)]
    );
}
