//! Dialling the host: AF_VSOCK from a privileged source port, or a Unix socket in tests.
//!
//! The host refuses source ports above 1023: only the guest's root can bind those below, so no other process of the
//! guest can speak for it. tokio-vsock cannot bind before it connects; nix can, safely, and its descriptor becomes a
//! tokio-vsock stream. Connecting to nobody takes the kernel 2 s, so it happens on a thread of its own.

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, bind, connect, socket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The highest source port that needs CAP_NET_BIND_SERVICE (`LAST_RESERVED_PORT` in `net/vmw_vsock/af_vsock.c`).
const TOP_PORT: u32 = 1023;
/// The lowest we try: leaves half of them to others.
const BOTTOM_PORT: u32 = 512;

/// Where the host agent listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A port of a CID; 2 is the host, 1 this same machine (`vsock_loopback`).
    Vsock {
        /// Context id.
        cid: u32,
        /// Port.
        port: u32,
    },
    /// A Unix socket: for development and tests on a machine without vsock.
    Unix(PathBuf),
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            _ => Err(format!("`{text}` is not unix:/path")),
        }
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Vsock { cid, port } => write!(f, "vsock cid {cid} port {port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Trying again is pointless until somebody mends it.
    #[error("cannot bind a vsock source port below 1024, which the host demands: run ballast-guest as root ({0})")]
    Unprivileged(Errno),
    /// All privileged ports are taken, or this kernel has no vsock (yet: the module may come later).
    #[error("cannot bind a vsock source port")]
    Bind(#[source] Errno),
    /// This kernel has no vsock, yet.
    #[error("this kernel has no vsock; load the module vmw_vsock_virtio_transport")]
    NoVsock(#[source] Errno),
    /// Nobody answers.
    #[error("nobody answers at {peer}")]
    Connect {
        /// Where.
        peer: Peer,
        /// Why.
        source: std::io::Error,
    },
}

/// A connected stream of either transport.
#[derive(Debug)]
pub enum Stream {
    /// AF_VSOCK.
    Vsock(tokio_vsock::VsockStream),
    /// A Unix socket.
    Unix(tokio::net::UnixStream),
}

/// Dials one peer again and again.
#[derive(Clone, Debug)]
pub struct Dialer {
    peer: Peer,
    /// The next source port: never the one just used, whose last connection the host may still believe alive.
    next_port: u32,
}

impl Dialer {
    /// Dials `peer`.
    #[must_use]
    pub fn new(peer: Peer) -> Self {
        Self { peer, next_port: TOP_PORT }
    }

    /// Who is dialled.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Connects once. Returns the dialer for the next attempt.
    ///
    /// # Errors
    /// No connection came about.
    pub async fn dial(mut self) -> (Self, Result<Stream, DialError>) {
        let result = match self.peer.clone() {
            Peer::Unix(path) => tokio::net::UnixStream::connect(&path)
                .await
                .map(Stream::Unix)
                .map_err(|source| DialError::Connect { peer: self.peer.clone(), source }),
            Peer::Vsock { cid, port } => {
                let first = self.next_port;
                let connected = tokio::task::spawn_blocking(move || connect_vsock(cid, port, first)).await;
                let (used, result) = connected.unwrap_or_else(|panic| {
                    let source = std::io::Error::other(panic);
                    (first, Err(DialError::Connect { peer: Peer::Vsock { cid, port }, source }))
                });
                self.next_port = below(used);
                result.and_then(|stream| {
                    let failed = |source| DialError::Connect { peer: self.peer.clone(), source };
                    tokio_vsock::VsockStream::new(stream).map(Stream::Vsock).map_err(failed)
                })
            }
        };
        (self, result)
    }
}

fn below(port: u32) -> u32 {
    if port <= BOTTOM_PORT { TOP_PORT } else { port - 1 }
}

/// Binds the first free privileged port from `port` down, wrapping once, and connects. Blocks up to 2 s.
fn connect_vsock(cid: u32, host_port: u32, mut port: u32) -> (u32, Result<vsock::VsockStream, DialError>) {
    let fd = match socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None) {
        Ok(fd) => fd,
        Err(e) => return (port, Err(DialError::NoVsock(e))),
    };
    for _ in BOTTOM_PORT..=TOP_PORT {
        match bind(fd.as_raw_fd(), &VsockAddr::new(vsock::VMADDR_CID_ANY, port)) {
            Ok(()) => {
                let peer = Peer::Vsock { cid, port: host_port };
                let result = connect(fd.as_raw_fd(), &VsockAddr::new(cid, host_port))
                    .map_err(|e| DialError::Connect { peer, source: e.into() })
                    .map(|()| vsock::VsockStream::from(fd));
                return (port, result);
            }
            Err(Errno::EADDRINUSE) => port = below(port),
            Err(e @ (Errno::EACCES | Errno::EPERM)) => return (port, Err(DialError::Unprivileged(e))),
            Err(e) => return (port, Err(DialError::Bind(e))),
        }
    }
    (port, Err(DialError::Bind(Errno::EADDRINUSE)))
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, b: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Vsock(s) => Pin::new(s).poll_read(cx, b),
            Self::Unix(s) => Pin::new(s).poll_read(cx, b),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, b: &[u8]) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Vsock(s) => Pin::new(s).poll_write(cx, b),
            Self::Unix(s) => Pin::new(s).poll_write(cx, b),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Vsock(s) => Pin::new(s).poll_flush(cx),
            Self::Unix(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Vsock(s) => Pin::new(s).poll_shutdown(cx),
            Self::Unix(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_ports_rotate_within_the_privileged_half() {
        let mut port = TOP_PORT;
        for _ in 0..5_000 {
            assert!((BOTTOM_PORT..=TOP_PORT).contains(&port));
            let next = below(port);
            assert_ne!(next, port);
            port = next;
        }
    }

    #[test]
    fn a_peer_is_a_unix_path_only() {
        assert_eq!("unix:/run/x".parse(), Ok(Peer::Unix("/run/x".into())));
        assert!("unix:".parse::<Peer>().is_err());
        assert!("tcp:1".parse::<Peer>().is_err());
    }
}
