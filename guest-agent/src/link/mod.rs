//! The connection to the host agent.
//!
//! ```text
//!   agent --say()-->  out (never dropped) ---\
//!         --report()-> latest (replaced) ----+--> stream --> host      one poll() drives both directions,
//!         <--poll()--  deframer <-------------------------- host       so the one loop can select on it
//! ```
//!
//! Demands, withdrawals, reliefs and pongs queue up; of telemetry only the newest waits. Neither end trusts the other
//! to notice a dead line (the vsock daemon can die and leave streams hanging), so [`crate::agent`] keeps the deadlines.

mod dial;

pub use dial::{DialError, Dialer, Peer, Stream};

use ballast_protocol::{Deframer, FrameError, GuestMessage, HostMessage, MAX_FRAME, encode};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What may wait to be written. More means that the host reads nothing although it is alive; a new session is better.
const OUT_LIMIT: usize = 16 * MAX_FRAME;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The host closed the connection.
    #[error("the host closed the connection")]
    Closed,
    /// The host closed the connection within a message.
    #[error("the host closed the connection within a message")]
    Truncated,
    /// The connection broke.
    #[error("the connection broke")]
    Broken(#[from] std::io::Error),
    /// What came is not Ballast's protocol.
    #[error("the host sent no valid frame")]
    Frame(#[from] FrameError),
    /// The host does not read.
    #[error("the host does not read: {OUT_LIMIT} bytes wait")]
    Full,
}

/// A live connection.
#[derive(Debug)]
pub struct Link {
    stream: Stream,
    deframer: Deframer,
    out: Vec<u8>,
    written: usize,
    latest: Option<usize>,
    latest_frame: Box<[u8; MAX_FRAME]>,
    frame: Box<[u8; MAX_FRAME]>,
    sent: u64,
    received: u64,
}

impl Link {
    /// Wraps a connected stream.
    #[must_use]
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            deframer: Deframer::default(),
            out: Vec::with_capacity(OUT_LIMIT + MAX_FRAME),
            written: 0,
            latest: None,
            latest_frame: Box::new([0; MAX_FRAME]),
            frame: Box::new([0; MAX_FRAME]),
            sent: 0,
            received: 0,
        }
    }

    /// Queues a message that is never dropped, and tries to write it at once.
    ///
    /// # Errors
    /// The session is over.
    pub fn say(&mut self, message: &GuestMessage) -> Result<(), LinkError> {
        if self.out.len() - self.written > OUT_LIMIT {
            return Err(LinkError::Full);
        }
        let frame = encode(message, &mut self.frame)?;
        self.out.extend_from_slice(frame);
        Ok(())
    }

    /// Queues telemetry; one that waits already is replaced.
    ///
    /// # Errors
    /// The message does not fit a frame, which no telemetry does.
    pub fn report(&mut self, message: &GuestMessage) -> Result<(), LinkError> {
        self.latest = Some(encode(message, &mut self.latest_frame)?.len());
        Ok(())
    }

    /// Bytes written and read since the session began.
    #[must_use]
    pub fn traffic(&self) -> (u64, u64) {
        (self.sent, self.received)
    }

    /// Writes what waits and gives the next message. Cancel-safe.
    ///
    /// # Errors
    /// The session is over.
    pub async fn next(&mut self) -> Result<HostMessage, LinkError> {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    /// Writes all that waits.
    ///
    /// # Errors
    /// The session is over.
    pub async fn flush(&mut self) -> Result<(), LinkError> {
        std::future::poll_fn(|cx| self.poll_write(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<HostMessage, LinkError>> {
        if let Poll::Ready(Err(e)) = self.poll_write(cx) {
            return Poll::Ready(Err(e));
        }
        loop {
            if let Some(message) = self.deframer.next_frame()? {
                return Poll::Ready(Ok(message));
            }
            let midway = self.deframer.is_midway();
            let mut space = ReadBuf::new(self.deframer.space());
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut space))?;
            let count = space.filled().len();
            if count == 0 {
                return Poll::Ready(Err(if midway { LinkError::Truncated } else { LinkError::Closed }));
            }
            self.received += count as u64;
            self.deframer.advance(count);
        }
    }

    /// Ready when nothing is left to write.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        loop {
            if self.written == self.out.len() {
                self.out.clear();
                self.written = 0;
                let Some(length) = self.latest.take() else { return Poll::Ready(Ok(())) };
                self.out.extend_from_slice(&self.latest_frame[..length]);
            }
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.out[self.written..]))?;
            if count == 0 {
                return Poll::Ready(Err(LinkError::Closed));
            }
            self.written += count;
            self.sent += count as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ballast_protocol::{Micros, Ping, Pong, Telemetry, decode};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn telemetry(seq: u64) -> GuestMessage {
        GuestMessage::Telemetry(Telemetry { seq, ..Telemetry::default() })
    }

    async fn read_message(host: &mut tokio::net::UnixStream) -> GuestMessage {
        let length = host.read_u16_le().await.unwrap();
        let mut payload = vec![0; usize::from(length)];
        host.read_exact(&mut payload).await.unwrap();
        decode(&payload).unwrap()
    }

    #[tokio::test]
    async fn telemetry_that_waits_is_replaced_and_nothing_else_is() {
        let (guest, mut host) = tokio::net::UnixStream::pair().unwrap();
        let mut link = Link::new(Stream::Unix(guest));
        for seq in 0..5 {
            link.report(&telemetry(seq)).unwrap();
            link.say(&GuestMessage::Withdraw { id: seq }).unwrap();
        }
        link.flush().await.unwrap();
        for id in 0..5 {
            assert_eq!(read_message(&mut host).await, GuestMessage::Withdraw { id });
        }
        assert_eq!(read_message(&mut host).await, telemetry(4));
    }

    #[tokio::test]
    async fn messages_arrive_whole_and_a_cut_one_is_an_error() {
        let (guest, mut host) = tokio::net::UnixStream::pair().unwrap();
        let mut link = Link::new(Stream::Unix(guest));
        let ping = HostMessage::Ping(Ping { seq: 1, at: Micros(5) });
        let mut buffer = [0; MAX_FRAME];
        let frame = encode(&ping, &mut buffer).unwrap();
        host.write_all(frame).await.unwrap();
        host.write_all(&frame[..3]).await.unwrap();
        assert_eq!(link.next().await.unwrap(), ping);
        drop(host);
        assert!(matches!(link.next().await, Err(LinkError::Truncated)));
    }

    #[tokio::test]
    async fn a_host_that_never_reads_ends_the_session_instead_of_filling_memory() {
        let (guest, _host) = tokio::net::UnixStream::pair().unwrap();
        let mut link = Link::new(Stream::Unix(guest));
        let pong = GuestMessage::Pong(Pong { seq: 1, at: Micros(1), received: Micros(2), sent: Micros(3) });
        let result = (0..1_000_000).try_for_each(|_| link.say(&pong));
        assert!(matches!(result, Err(LinkError::Full)));
        assert!(link.out.capacity() <= 2 * (OUT_LIMIT + MAX_FRAME));
    }
}
