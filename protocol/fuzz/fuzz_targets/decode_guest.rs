//! What a hostile guest can send, one payload at a time.
#![no_main]

use ballast_protocol::{GuestMessage, MAX_FRAME, PREFIX, decode, encode};

libfuzzer_sys::fuzz_target!(|payload: &[u8]| {
    let Ok(message) = decode::<GuestMessage>(payload) else { return };
    if let GuestMessage::Hello(hello) = &message {
        for (text, limit) in [(hello.agent.as_str(), 32), (hello.kernel.as_str(), 64)] {
            assert!(text.len() <= limit && !text.chars().any(char::is_control), "{text:?}");
        }
    }
    // What was read can be written again, no longer than it came, and is then the same.
    let mut buffer = [0; MAX_FRAME];
    let frame = encode(&message, &mut buffer).expect("a decoded message fits a frame");
    assert!(frame.len() <= PREFIX + payload.len());
    assert_eq!(decode::<GuestMessage>(&frame[PREFIX..]).as_ref(), Ok(&message));
});
