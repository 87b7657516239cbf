//! What a wrong or hostile host can send, one payload at a time.
#![no_main]

use ballast_protocol::{HostMessage, MAX_FRAME, PREFIX, Refusal, decode, encode};

libfuzzer_sys::fuzz_target!(|payload: &[u8]| {
    let Ok(message) = decode::<HostMessage>(payload) else { return };
    if let HostMessage::Refused(Refusal::Misbehaved(why)) = &message {
        assert!(why.as_str().len() <= 128 && !why.as_str().chars().any(char::is_control), "{why:?}");
    }
    // What was read can be written again, no longer than it came, and is then the same.
    let mut buffer = [0; MAX_FRAME];
    let frame = encode(&message, &mut buffer).expect("a decoded message fits a frame");
    assert!(frame.len() <= PREFIX + payload.len());
    assert_eq!(decode::<HostMessage>(&frame[PREFIX..]).as_ref(), Ok(&message));
});
