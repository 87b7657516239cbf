//! What systemd is told (sd_notify(3)): ready, alive, stopping; one line in a datagram each. Outside of systemd nothing.
//!
//! Fed by the agent's one loop, which wakes up for it twice in the time that systemd waits. A crate for it would
//! allocate and open a socket for each line; this must also work while the guest is dying.

use crate::log;
use ballast_protocol::Micros;
use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Speaks to systemd, if it started the agent.
#[derive(Debug)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
    /// Half of the time that systemd waits; `None`: it does not.
    every: Option<Micros>,
    due: Micros,
}

impl Notifier {
    /// As the environment says: `NOTIFY_SOCKET`, `WATCHDOG_USEC`, and `WATCHDOG_PID`, whom it is meant for.
    #[must_use]
    pub fn from_environment() -> Self {
        let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let meant = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let limit = number("WATCHDOG_USEC").filter(|_| meant).map(Micros);
        Self::new(std::env::var_os("NOTIFY_SOCKET").as_deref(), limit)
    }

    /// Speaks to the socket at `address`, a path or `@` and an abstract name; systemd waits `limit` for a sign of life.
    #[must_use]
    pub fn new(address: Option<&OsStr>, limit: Option<Micros>) -> Self {
        let socket = address.and_then(|address| match connect(address) {
            Ok(socket) => Some(socket),
            Err(e) => {
                log!(Warn, "systemd cannot be told that the agent runs, at {}: {e}", address.display());
                None
            }
        });
        let every = limit.filter(|_| socket.is_some()).map(|limit| Micros(limit.0 / 2));
        Self { socket, every, due: Micros::ZERO }
    }

    /// The agent serves.
    pub fn ready(&self) {
        self.tell(b"READY=1");
    }

    /// The loop turns: to be called at every turn. Says so when it is time to.
    pub fn alive(&mut self, now: Micros) {
        if let Some(every) = self.every
            && now >= self.due
        {
            self.due = now + every;
            self.tell(b"WATCHDOG=1");
        }
    }

    /// When [`Notifier::alive`] must be called at the latest.
    #[must_use]
    pub fn due(&self) -> Micros {
        if self.every.is_some() { self.due } else { Micros::MAX }
    }

    /// The agent is about to end.
    pub fn stopping(&self) {
        self.tell(b"STOPPING=1");
    }

    /// A line that is lost is made up for by the next; a systemd that listens to none restarts the agent, and the
    /// journal then says why.
    fn tell(&self, line: &[u8]) {
        if let Some(socket) = &self.socket
            && let Err(e) = socket.send(line)
        {
            log!(Debug, "systemd was not told {}: {e}", line.escape_ascii());
        }
    }
}

fn connect(address: &OsStr) -> std::io::Result<UnixDatagram> {
    let address = match address.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(address)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    // A systemd that is busy must not hold up the loop.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> Option<String> {
        let mut line = [0; 64];
        socket.set_nonblocking(true).unwrap();
        socket.recv(&mut line).ok().map(|n| String::from_utf8_lossy(&line[..n]).into_owned())
    }

    #[test]
    fn signs_of_life_come_twice_in_the_time_that_systemd_waits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        let mut notifier = Notifier::new(Some(path.as_os_str()), Some(Micros::secs(60)));
        notifier.ready();
        assert_eq!(heard(&systemd).as_deref(), Some("READY=1"));
        let mut now = Micros::secs(100);
        for _ in 0..3 {
            notifier.alive(now);
            assert_eq!(heard(&systemd).as_deref(), Some("WATCHDOG=1"));
            notifier.alive(now + Micros::secs(29));
            assert_eq!(heard(&systemd), None, "too early");
            assert_eq!(notifier.due(), now + Micros::secs(30));
            now = notifier.due();
        }
        notifier.stopping();
        assert_eq!(heard(&systemd).as_deref(), Some("STOPPING=1"));
        // A reader that has gone is no reason to fail.
        drop(systemd);
        notifier.alive(now);
    }

    #[test]
    fn an_abstract_name_is_reached_and_without_systemd_there_is_nothing_to_wake_up_for() {
        let name = format!("ballast-notify-test-{}", std::process::id());
        let systemd = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let notifier = Notifier::new(Some(OsStr::new(&format!("@{name}"))), None);
        notifier.ready();
        assert_eq!(heard(&systemd).as_deref(), Some("READY=1"));
        assert_eq!(notifier.due(), Micros::MAX);
        let absent = Notifier::new(Some(OsStr::new("/no/such/socket")), Some(Micros::secs(1)));
        assert_eq!((absent.due(), Notifier::new(None, None).due()), (Micros::MAX, Micros::MAX));
    }
}
