//! The agent's Unix socket: `need BYTES` and `status`, one line each, answered by one line.
//!
//! ```text
//!   client --"need 2147483648"--> task --Ask::Need--> the loop     a task per connection; the loop owns the leases
//!          <--"granted ..."-------     <--reply------              the lease ends when the client closes
//! ```
//!
//! Any user may ask (mode 0666), so everything is bounded: connections, the length of a line, the time to send it.

use crate::{clock, log};
use ballast_protocol::{Bytes, Micros};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Leases at a time.
pub const MAX_LEASES: usize = 64;
/// Connections at a time: every lease, and room for `status`.
const MAX_CONNECTIONS: usize = MAX_LEASES + 8;
/// The longest request: `need 18446744073709551615` and a line end.
const MAX_LINE: usize = 64;
/// How long a client may take to send its line.
const LINE_TIME: Micros = Micros::secs(5);

/// What a connection asks of the loop.
#[derive(Debug)]
pub enum Ask {
    /// A lease.
    Need {
        /// The connection.
        client: u64,
        /// How much.
        size: Bytes,
        /// Where the one-line answer goes.
        reply: oneshot::Sender<String>,
    },
    /// The connection closed: its lease is over.
    Gone {
        /// The connection.
        client: u64,
    },
    /// The agent's state, as one line of JSON.
    Status {
        /// Where it goes.
        reply: oneshot::Sender<String>,
    },
}

/// Binds the socket, replacing a stale one.
///
/// # Errors
/// The socket cannot be made, or another agent answers on it.
pub fn bind(path: &Path) -> std::io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(std::io::Error::new(std::io::ErrorKind::AddrInUse, "another ballast-guest answers on it"));
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Accepts for ever.
pub async fn accept(listener: UnixListener, asks: mpsc::Sender<Ask>) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut next = 0u64;
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: waiting is all that helps.
            tokio::time::sleep(Micros::millis(100).duration()).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            log!(Debug, "a client was turned away: {MAX_CONNECTIONS} are connected");
            continue;
        };
        next += 1;
        let (client, asks) = (next, asks.clone());
        tokio::spawn(async move {
            serve(stream, client, &asks).await;
            drop(permit);
        });
    }
}

async fn serve(mut stream: UnixStream, client: u64, asks: &mpsc::Sender<Ask>) {
    let Some(line) = read_line(&mut stream).await else { return };
    let (reply, answer) = oneshot::channel();
    let mut words = line.split_ascii_whitespace();
    let ask = match (words.next(), words.next(), words.next()) {
        (Some("status"), None, None) => Ask::Status { reply },
        (Some("need"), Some(size), None) => match size.parse() {
            Ok(bytes) => Ask::Need { client, size: Bytes(bytes), reply },
            Err(_) => return say(&mut stream, "error the size is not a number of bytes").await,
        },
        _ => return say(&mut stream, "error the request is neither `need BYTES` nor `status`").await,
    };
    let leases = matches!(ask, Ask::Need { .. });
    if asks.send(ask).await.is_err() {
        return;
    }
    if !leases {
        if let Ok(text) = answer.await {
            say(&mut stream, &text).await;
        }
        return;
    }
    // While the memory is on its way the client may give up; afterwards its end ends the lease.
    let granted = tokio::select! {
        text = answer => match text {
            Ok(text) => {
                say(&mut stream, &text).await;
                text.starts_with("granted")
            }
            Err(_) => false,
        },
        () = closed(&mut stream) => false,
    };
    if granted {
        closed(&mut stream).await;
    }
    // The loop ends only with the process.
    let _ = asks.send(Ask::Gone { client }).await;
}

/// One line within [`LINE_TIME`] and [`MAX_LINE`].
async fn read_line(stream: &mut UnixStream) -> Option<String> {
    let mut line = [0; MAX_LINE];
    let mut filled = 0;
    let started = clock::now();
    loop {
        let left = LINE_TIME - (clock::now() - started);
        let count = tokio::time::timeout(left.duration(), stream.read(&mut line[filled..])).await.ok()?.ok()?;
        if count == 0 {
            return None;
        }
        filled += count;
        if let Some(end) = line[..filled].iter().position(|b| *b == b'\n') {
            return std::str::from_utf8(&line[..end]).ok().map(str::to_owned);
        }
        if filled == MAX_LINE {
            say(stream, "error the line is too long").await;
            return None;
        }
    }
}

async fn say(stream: &mut UnixStream, text: &str) {
    // A client that is gone is told nothing.
    let _ = stream.write_all(format!("{text}\n").as_bytes()).await;
}

/// Resolves when the client has closed; what it still says is ignored.
async fn closed(stream: &mut UnixStream) {
    let mut ignored = [0; 64];
    while matches!(stream.read(&mut ignored).await, Ok(1..)) {}
}
