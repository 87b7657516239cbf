//! A stream in pieces: how it is cut must not change what is read, and the buffer must never be full after draining.
#![no_main]

use ballast_protocol::{Deframer, FrameError, GuestMessage, MAX_FRAME};

/// Reads the whole stream in pieces of `piece` bytes: the messages, and how it ended.
fn read(mut stream: &[u8], piece: usize) -> (Vec<GuestMessage>, Option<FrameError>, bool) {
    let mut deframer = Deframer::default();
    let mut messages = Vec::new();
    while !stream.is_empty() {
        let space = deframer.space();
        assert!(!space.is_empty());
        let count = piece.min(space.len()).min(stream.len());
        space[..count].copy_from_slice(&stream[..count]);
        deframer.advance(count);
        stream = &stream[count..];
        loop {
            match deframer.next_frame() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Some(error), false),
            }
        }
    }
    (messages, None, deframer.is_midway())
}

// The first byte chooses the length of the pieces, the rest is the stream.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((piece, stream)) = data.split_first() else { return };
    let whole = read(stream, MAX_FRAME);
    assert_eq!(read(stream, 1 + usize::from(*piece)), whole);
    assert_eq!(read(stream, 1), whole);
});
