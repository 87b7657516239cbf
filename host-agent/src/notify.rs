//! What the service manager is told (sd_notify(3)): ready, still alive, reloading, stopping, and the line that
//! `systemctl status` shows.
//!
//! The watchdog is fed by the daemon's own loop and nothing else. A loop that stands still serves no guest, and only a
//! restart helps: it moves no VM. Outside of systemd all of this does nothing.

use sd_notify::NotifyState;
use tokio::time::{Duration, Instant};

/// Speaks to the service manager, if there is one.
#[derive(Debug)]
pub struct Notifier {
    /// Half of the time that systemd waits, as sd_watchdog_enabled(3) advises; `None`: nobody waits.
    every: Option<Duration>,
    due: Instant,
    status: String,
    /// Whether the last message could not be sent: told once.
    deaf: bool,
}

impl Notifier {
    /// As the environment says: `NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`.
    #[must_use]
    pub fn from_environment() -> Self {
        let every = sd_notify::watchdog_enabled().map(|limit| limit / 2);
        Self { every, due: Instant::now(), status: String::new(), deaf: false }
    }

    /// The configuration is read again; [`Notifier::ready`] ends it.
    pub fn reloading(&mut self) {
        // Without the time, which cannot fail to be had on Linux, systemd would only show less.
        let at = NotifyState::monotonic_usec_now();
        self.tell(&at.map_or(vec![NotifyState::Reloading], |at| vec![NotifyState::Reloading, at]));
    }

    /// The daemon serves.
    pub fn ready(&mut self) {
        self.tell(&[NotifyState::Ready]);
    }

    /// The daemon's loop turns: to be called at every turn, also under a flood. Says so when it is time to.
    pub fn alive(&mut self) {
        let Some(every) = self.every else { return };
        let now = Instant::now();
        if now >= self.due {
            self.due = now + every;
            self.tell(&[NotifyState::Watchdog]);
        }
    }

    /// When [`Notifier::alive`] must be called at the latest; `None`: never.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.every.map(|_| self.due)
    }

    /// The line that `systemctl status` shows; sent when it has changed.
    pub fn status(&mut self, text: String) {
        if text != self.status {
            self.tell(&[NotifyState::Status(&text)]);
            self.status = text;
        }
    }

    /// The daemon drains.
    pub fn stopping(&mut self) {
        self.tell(&[NotifyState::Stopping]);
    }

    fn tell(&mut self, what: &[NotifyState<'_>]) {
        let error = sd_notify::notify(what).err();
        if let Some(error) = &error
            && !self.deaf
        {
            tracing::warn!(%error, "systemd cannot be told how the daemon is: it will be killed as hanging");
        }
        self.deaf = error.is_some();
    }
}
