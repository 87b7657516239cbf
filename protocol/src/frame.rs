//! Frames: a two-byte little-endian length, then that many bytes of postcard. At most 4096 bytes with the prefix.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest frame, prefix included. Below one page, so that a frame never spans three vsock packets.
pub const MAX_FRAME: usize = 4096;
/// Bytes of the length prefix.
pub const PREFIX: usize = 2;
/// The largest payload.
pub const MAX_PAYLOAD: usize = MAX_FRAME - PREFIX;

/// A frame that cannot be made or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The prefix announces more than [`MAX_PAYLOAD`].
    #[error("a frame of {0} bytes is announced, {MAX_PAYLOAD} are allowed")]
    Oversized(usize),
    /// The prefix announces nothing.
    #[error("an empty frame")]
    Empty,
    /// The payload is not a message.
    #[error("a payload of {0} bytes is not a message")]
    Malformed(usize),
    /// The payload is a message, with bytes left over.
    #[error("{0} bytes follow the message in its frame")]
    Trailing(usize),
}

/// Writes `message` into `buffer` as one frame and returns the frame. Allocates nothing.
///
/// ```
/// use ballast_protocol::{Bytes, HostMessage, MAX_FRAME, Reclaim, encode};
///
/// let mut buffer = [0; MAX_FRAME];
/// let order = HostMessage::Reclaim(Reclaim { id: 1, size: Bytes::mib(64) });
/// let frame = encode(&order, &mut buffer)?;
/// // Six bytes follow: variant 3, id 1, and 64 MiB as a varint of four bytes.
/// assert_eq!(frame, [6, 0, 3, 1, 0x80, 0x80, 0x80, 0x20]);
/// # Ok::<(), ballast_protocol::FrameError>(())
/// ```
///
/// # Errors
/// [`FrameError::Oversized`] when it does not fit; no message of this crate with bounded fields does that.
pub fn encode<'a, M: Serialize>(message: &M, buffer: &'a mut [u8; MAX_FRAME]) -> Result<&'a [u8], FrameError> {
    let (prefix, payload) = buffer.split_at_mut(PREFIX);
    let used = postcard::to_slice(message, payload).map_err(|_| FrameError::Oversized(MAX_PAYLOAD + 1))?.len();
    // At most MAX_PAYLOAD, which fits.
    prefix.copy_from_slice(&(used as u16).to_le_bytes());
    Ok(&buffer[..PREFIX + used])
}

/// Reads one message from one payload (a frame without its prefix).
///
/// ```
/// use ballast_protocol::{FrameError, GuestMessage, decode};
///
/// assert_eq!(decode(&[3, 3]), Ok(GuestMessage::Withdraw { id: 3 }));
/// assert_eq!(decode::<GuestMessage>(&[3, 3, 0]), Err(FrameError::Trailing(1)));
/// assert_eq!(decode::<GuestMessage>(&[200]), Err(FrameError::Malformed(1)));
/// ```
///
/// # Errors
/// The payload is no message, or more than one.
pub fn decode<M: DeserializeOwned>(payload: &[u8]) -> Result<M, FrameError> {
    match postcard::take_from_bytes(payload) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(FrameError::Trailing(rest.len())),
        Err(_) => Err(FrameError::Malformed(payload.len())),
    }
}

/// Collects the bytes of a stream and hands out frames. Holds at most one largest frame's worth; never grows.
///
/// The reader's loop is always the same: fill [`Deframer::space`], tell how much came, drain.
///
/// ```
/// use ballast_protocol::{Deframer, FrameError, GuestMessage};
///
/// let mut deframer = Deframer::default();
/// // Two frames arrive in two pieces, cut where nobody would cut them.
/// for piece in [&[2u8, 0, 3, 3, 2][..], &[0, 3, 4]] {
///     deframer.space()[..piece.len()].copy_from_slice(piece);
///     deframer.advance(piece.len());
///     while let Some(message) = deframer.next_frame::<GuestMessage>()? {
///         println!("{message:?}");
///     }
/// }
/// assert!(!deframer.is_midway());
///
/// // A broken stream stays broken: the session must end.
/// deframer.space()[..2].copy_from_slice(&[0xff, 0xff]);
/// deframer.advance(2);
/// assert_eq!(deframer.next_frame::<GuestMessage>(), Err(FrameError::Oversized(65_535)));
/// # Ok::<(), FrameError>(())
/// ```
#[derive(Debug)]
pub struct Deframer {
    buffer: Box<[u8; MAX_FRAME]>,
    filled: usize,
    /// Bytes of the frame last handed out, to be removed before the next.
    spent: usize,
}

impl Default for Deframer {
    fn default() -> Self {
        Self { buffer: Box::new([0; MAX_FRAME]), filled: 0, spent: 0 }
    }
}

impl Deframer {
    /// Where the next bytes of the stream go; tell with [`Deframer::advance`] how many came. Never empty as long
    /// as [`Deframer::next_frame`] was called until it returned `None`.
    pub fn space(&mut self) -> &mut [u8] {
        self.discard();
        &mut self.buffer[self.filled..]
    }

    /// `count` bytes were written to [`Deframer::space`].
    pub fn advance(&mut self, count: usize) {
        self.filled = (self.filled + count).min(MAX_FRAME);
    }

    /// The next whole message, if it is there.
    ///
    /// # Errors
    /// The stream is broken; there is no way to find the next frame, so the session must end.
    pub fn next_frame<M: DeserializeOwned>(&mut self) -> Result<Option<M>, FrameError> {
        self.discard();
        if self.filled < PREFIX {
            return Ok(None);
        }
        let length = usize::from(u16::from_le_bytes([self.buffer[0], self.buffer[1]]));
        if length == 0 {
            return Err(FrameError::Empty);
        }
        if length > MAX_PAYLOAD {
            return Err(FrameError::Oversized(length));
        }
        if self.filled < PREFIX + length {
            return Ok(None);
        }
        self.spent = PREFIX + length;
        decode(&self.buffer[PREFIX..PREFIX + length]).map(Some)
    }

    /// Whether a frame has begun and is not whole: an end of the stream now is a truncation.
    #[must_use]
    pub fn is_midway(&self) -> bool {
        self.filled > self.spent
    }

    fn discard(&mut self) {
        self.buffer.copy_within(self.spent..self.filled, 0);
        self.filled -= self.spent;
        self.spent = 0;
    }
}
