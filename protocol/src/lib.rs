//! What Ballast's guest agent and host agent say to each other.
//!
//! ```text
//!   guest agent                                   host agent
//!     Hello          ------------------------------>   version, what this guest can do
//!                    <------------------------------   Welcome | Refused
//!     Telemetry      ------------------------------>   raw counters; a newer one replaces an older one
//!     Demand         ------------------------------>   memory about to be used; never dropped
//!                    <------------------------------   Answer: granted, partly, refused and why
//!     Relief         ------------------------------>   when the memory was really there
//!                    <------------------------------   Reclaim: drop this much cold page cache
//!     Reclaimed      ------------------------------>
//!                    <------------------------------   Ping
//!     Pong           ------------------------------>   aligns the clocks, proves life
//! ```
//!
//! This crate holds types, their encoding and nothing else: no I/O, no clock. `SPEC.md` beside it is the written
//! specification; `tests/bytes.rs` pins the encoding byte by byte. Messages carry raw counters and never rates:
//! rates are derived by whoever has two samples.
//!
//! The guest is hostile by assumption. Every string and list is bounded when decoding, a frame is at most
//! [`MAX_FRAME`] bytes, and decoding never allocates more than the text in the frame that was received, which is
//! at most 128 bytes (`tests/allocation.rs`).
//!
//! One side of a conversation, without a socket:
//!
//! ```
//! use ballast_protocol::{Deframer, GuestMessage, MAX_FRAME, encode};
//!
//! let mut buffer = [0; MAX_FRAME];
//! let mut wire = &*encode(&GuestMessage::Withdraw { id: 3 }, &mut buffer)?;
//!
//! let mut deframer = Deframer::default();
//! let count = std::io::Read::read(&mut wire, deframer.space())?;
//! deframer.advance(count);
//! while let Some(message) = deframer.next_frame::<GuestMessage>()? {
//!     assert_eq!(message, GuestMessage::Withdraw { id: 3 });
//! }
//! // Had the stream ended inside a frame, this would tell.
//! assert!(!deframer.is_midway());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod frame;
mod message;
mod units;

pub use frame::{Deframer, FrameError, MAX_FRAME, MAX_PAYLOAD, PREFIX, decode, encode};
pub use message::{
    Answer, BalloonFeatures, Capabilities, Counters, Demand, Farewell, GuestMessage, Hello, HostMessage, Limited, Ping,
    Pong, Pressure, Reclaim, Reclaimed, Refusal, Relief, Shortfall, Source, Telemetry, TooLong, Verdict, Watermarks,
    Welcome,
};
pub use units::{Bytes, KiB, Micros, Pages, ParseBytesError};

/// The oldest protocol version that this crate still speaks.
pub const OLDEST_VERSION: u16 = 1;
/// The protocol version that this crate speaks best.
pub const VERSION: u16 = 1;
/// The port the host agent listens on: AF_VSOCK port, and the suffix of a hybrid-vsock socket path (`<path>_<port>`).
///
/// Unassigned by any registry (vsock has none); high enough not to need privileges on the host, which rarely
/// matters because the daemon runs as root.
pub const DEFAULT_PORT: u32 = 9150;

/// The version two sides can talk in: the newest that both know, or `None`.
///
/// ```
/// use ballast_protocol::negotiate;
/// assert_eq!(negotiate((1, 3), (2, 5)), Some(3));
/// assert_eq!(negotiate((1, 1), (2, 5)), None);
/// ```
#[must_use]
pub fn negotiate(ours: (u16, u16), theirs: (u16, u16)) -> Option<u16> {
    let newest = ours.1.min(theirs.1);
    (newest >= ours.0 && newest >= theirs.0 && ours.0 <= ours.1 && theirs.0 <= theirs.1).then_some(newest)
}
