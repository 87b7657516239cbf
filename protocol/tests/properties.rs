//! What holds for every message and for every string of bytes, not only for the pinned ones.

use ballast_protocol::{
    Deframer, FrameError, GuestMessage, HostMessage, MAX_FRAME, MAX_PAYLOAD, PREFIX, decode, encode,
};
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::mem::discriminant;

mod arbitrary;
mod largest;

fn frame<M: Serialize>(message: &M) -> Vec<u8> {
    let mut buffer = [0; MAX_FRAME];
    encode(message, &mut buffer).expect("every message of the protocol fits a frame").to_vec()
}

/// Feeds `stream` in pieces of the given lengths (the last length repeats) and drains after each, as a reader does.
fn deframe<M: DeserializeOwned>(mut stream: &[u8], pieces: &[usize]) -> (Vec<M>, Option<FrameError>, bool) {
    let mut deframer = Deframer::default();
    let mut messages = Vec::new();
    let mut pieces = pieces.iter().copied().chain(std::iter::repeat(pieces.last().copied().unwrap_or(1)));
    while !stream.is_empty() {
        let space = deframer.space();
        assert!(!space.is_empty(), "no space after draining: a reader would take it for the end of the stream");
        let count = pieces.next().unwrap_or(1).clamp(1, space.len()).min(stream.len());
        space[..count].copy_from_slice(&stream[..count]);
        deframer.advance(count);
        stream = &stream[count..];
        loop {
            match deframer.next_frame() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Some(error), true),
            }
        }
    }
    (messages, None, deframer.is_midway())
}

fn round_trips<M: Serialize + DeserializeOwned + PartialEq + Debug>(
    messages: &[M],
    pieces: &[usize],
) -> Result<(), TestCaseError> {
    let stream: Vec<u8> = messages.iter().flat_map(frame).collect();
    let (read, error, midway) = deframe::<M>(&stream, pieces);
    prop_assert_eq!(error, None);
    prop_assert_eq!(&read[..], messages);
    prop_assert!(!midway);
    Ok(())
}

/// A message that decodes must survive its own encoding, and nothing in it may end up on a terminal unseen.
fn sound<M: Serialize + DeserializeOwned + PartialEq + Debug>(payload: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(message) = decode::<M>(payload) {
        let again = frame(&message);
        prop_assert!(again.len() <= PREFIX + payload.len(), "the shortest encoding is longer than what was read");
        prop_assert_eq!(decode::<M>(&again[PREFIX..]), Ok(message));
    }
    Ok(())
}

fn texts(guest: Option<GuestMessage>, host: Option<HostMessage>) -> Vec<String> {
    let mut texts = Vec::new();
    if let Some(GuestMessage::Hello(hello)) = guest {
        texts.extend([hello.agent.as_str().to_owned(), hello.kernel.as_str().to_owned()]);
    }
    if let Some(HostMessage::Refused(ballast_protocol::Refusal::Misbehaved(why))) = host {
        texts.push(why.as_str().to_owned());
    }
    texts
}

/// Frames whose text matters, to be damaged: mutations of arbitrary messages would seldom hit a string.
fn with_text() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        arbitrary::guest().prop_filter("has text", |m| matches!(m, GuestMessage::Hello(_))).prop_map(|m| frame(&m)),
        Just(frame(&HostMessage::Refused(ballast_protocol::Refusal::Misbehaved(ballast_protocol::Limited::cut(
            "a frame of 5000 bytes is announced"
        ))))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn guest_messages_round_trip_in_any_pieces(
        messages in proptest::collection::vec(arbitrary::guest(), 1..20),
        pieces in proptest::collection::vec(1usize..600, 1..20),
    ) {
        round_trips(&messages, &pieces)?;
        round_trips(&messages, &[1])?;
        round_trips(&messages, &[MAX_FRAME])?;
    }

    #[test]
    fn host_messages_round_trip_in_any_pieces(
        messages in proptest::collection::vec(arbitrary::host(), 1..20),
        pieces in proptest::collection::vec(1usize..600, 1..20),
    ) {
        round_trips(&messages, &pieces)?;
        round_trips(&messages, &[1])?;
        round_trips(&messages, &[MAX_FRAME])?;
    }

    #[test]
    fn no_message_is_larger_than_the_largest(guest in arbitrary::guest(), host in arbitrary::host()) {
        let (_, most) = largest::guest().into_iter().find(|(_, m)| discriminant(m) == discriminant(&guest)).unwrap();
        prop_assert!(frame(&guest).len() <= frame(&most).len(), "{guest:?}");
        let (_, most) = largest::host().into_iter().find(|(_, m)| discriminant(m) == discriminant(&host)).unwrap();
        prop_assert!(frame(&host).len() <= frame(&most).len(), "{host:?}");
    }

    #[test]
    fn arbitrary_payloads_never_panic(payload in proptest::collection::vec(any::<u8>(), 0..MAX_PAYLOAD + 1)) {
        sound::<GuestMessage>(&payload)?;
        sound::<HostMessage>(&payload)?;
    }

    /// Small first bytes reach a variant, which uniform bytes seldom do.
    #[test]
    fn arbitrary_payloads_behind_a_real_variant_never_panic(
        variant in 0u8..9,
        rest in proptest::collection::vec(prop_oneof![0u8..4, any::<u8>()], 0..300),
    ) {
        let payload = [&[variant][..], &rest].concat();
        sound::<GuestMessage>(&payload)?;
        sound::<HostMessage>(&payload)?;
    }

    #[test]
    fn arbitrary_streams_never_panic_nor_fill_the_deframer(
        stream in proptest::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..3 * MAX_FRAME),
        piece in 1usize..MAX_FRAME + 1,
    ) {
        // `deframe` asserts that there is always space.
        deframe::<GuestMessage>(&stream, &[piece]);
        deframe::<HostMessage>(&stream, &[piece]);
    }

    #[test]
    fn a_damaged_frame_is_refused_or_sound(
        mut frame in with_text(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        for (at, byte) in damage {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        let payload = &frame[PREFIX..];
        sound::<GuestMessage>(payload)?;
        sound::<HostMessage>(payload)?;
        for text in texts(decode(payload).ok(), decode(payload).ok()) {
            prop_assert!(!text.chars().any(char::is_control), "{text:?}");
            prop_assert!(text.len() <= 128);
        }
    }

    #[test]
    fn a_truncated_stream_ends_midway_and_a_truncated_payload_is_malformed(
        message in arbitrary::guest(),
        cut in any::<prop::sample::Index>(),
    ) {
        let whole = frame(&message);
        let cut = cut.index(whole.len());
        let (read, error, midway) = deframe::<GuestMessage>(&whole[..cut], &[7]);
        prop_assert_eq!((read.len(), error, midway), (0, None, cut > 0));
        if cut > PREFIX {
            let payload = &whole[PREFIX..cut];
            prop_assert_eq!(decode::<GuestMessage>(payload), Err(FrameError::Malformed(payload.len())));
        }
    }

    #[test]
    fn garbage_after_a_message_is_trailing(
        message in arbitrary::guest(),
        garbage in proptest::collection::vec(any::<u8>(), 1..50),
    ) {
        let mut bytes = frame(&message);
        bytes.extend(&garbage);
        let length = u16::try_from(bytes.len() - PREFIX).unwrap();
        bytes[..PREFIX].copy_from_slice(&length.to_le_bytes());
        let (read, error, _) = deframe::<GuestMessage>(&bytes, &[MAX_FRAME]);
        prop_assert_eq!((read.len(), error), (0, Some(FrameError::Trailing(garbage.len()))));
    }

    /// The length alone condemns: no byte of the payload need arrive.
    #[test]
    fn an_oversized_or_empty_frame_is_refused_by_its_prefix(length in MAX_PAYLOAD + 1..=usize::from(u16::MAX)) {
        let prefix = u16::try_from(length).unwrap().to_le_bytes();
        prop_assert_eq!(deframe::<GuestMessage>(&prefix, &[1]).1, Some(FrameError::Oversized(length)));
        prop_assert_eq!(deframe::<GuestMessage>(&[0, 0], &[1]).1, Some(FrameError::Empty));
    }
}

#[test]
fn a_frame_of_the_largest_size_passes_the_deframer_and_one_more_byte_does_not() {
    let mut stream = vec![0; MAX_FRAME];
    stream[..PREFIX].copy_from_slice(&u16::try_from(MAX_PAYLOAD).unwrap().to_le_bytes());
    // A Withdraw and then padding: the whole frame was taken in before its content was judged.
    stream[PREFIX..PREFIX + 2].copy_from_slice(&[3, 3]);
    let expected = Some(FrameError::Trailing(MAX_PAYLOAD - 2));
    assert_eq!(deframe::<GuestMessage>(&stream, &[1]).1, expected);
    assert_eq!(deframe::<GuestMessage>(&stream, &[MAX_FRAME]).1, expected);
    stream[..PREFIX].copy_from_slice(&u16::try_from(MAX_PAYLOAD + 1).unwrap().to_le_bytes());
    assert_eq!(deframe::<GuestMessage>(&stream, &[1]).1, Some(FrameError::Oversized(MAX_PAYLOAD + 1)));
}
