//! What Prometheus does to a daemon: `GET /metrics`, again and again.

use anyhow::{Context, Result, bail};
use ballast_protocol::{Bytes, Micros};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Shorter than anybody's in earnest.
const EVERY: Duration = Duration::from_secs(1);
/// Prometheus' own default.
const PATIENCE: Duration = Duration::from_secs(10);

/// Scrapes of a daemon.
#[derive(Clone, Debug, Default)]
pub struct Scrapes {
    /// How long each took, microseconds.
    pub took_us: Vec<u64>,
    /// The text of the last.
    pub text: String,
}

impl Scrapes {
    /// Scrapes once a second for so long, at least once.
    ///
    /// # Errors
    /// One fails.
    pub fn take(address: SocketAddr, length: Duration) -> Result<Self> {
        let begun = Instant::now();
        let mut all = Self::default();
        loop {
            let asked = Instant::now();
            all.text = get(address).with_context(|| format!("scrape {} of {address}", all.took_us.len() + 1))?;
            all.took_us.push(Micros::from_duration(asked.elapsed()).0);
            let left = length.saturating_sub(begun.elapsed());
            std::thread::sleep(left.min(EVERY.saturating_sub(asked.elapsed())));
            if begun.elapsed() >= length {
                return Ok(all);
            }
        }
    }

    /// How much the last was.
    #[must_use]
    pub fn size(&self) -> Bytes {
        Bytes(self.text.len() as u64)
    }
}

fn get(address: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // An answer to HTTP/1.0 is not cut into chunks.
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no HTTP")?;
    if head.split(' ').nth(1) != Some("200") {
        bail!("{head}\n{body}");
    }
    Ok(body.to_owned())
}
