//! Snapshots for whoever looks at the page: taken once a second, for all of them together, and only while there is one.

use super::{Shown, look};
use crate::daemon::Event;
use crate::metrics::{self, Depth};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{self, Sse};
use axum::response::{IntoResponse, Response};
use ballast_protocol::Micros;
use futures_util::stream;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::MissedTickBehavior;

/// Pages at a time.
const PAGES: usize = 16;
const EVERY: Duration = Duration::from_secs(1);
/// Each snapshot repeats what happened in so long a time: a page that missed some of them misses nothing.
const AGAIN: Micros = Micros::secs(5);
/// How soon a page that lost its connection comes back.
const RETRY: Duration = Duration::from_secs(2);

/// The latest snapshot, as JSON; empty before the first.
#[derive(Debug)]
pub struct Live {
    latest: watch::Sender<Arc<str>>,
    wanted: Notify,
}

impl Live {
    /// Starts the task that looks. It ends with the daemon.
    pub fn start(events: mpsc::Sender<Event>) -> Arc<Self> {
        let live = Arc::new(Self { latest: watch::Sender::new("".into()), wanted: Notify::new() });
        tokio::spawn(run(Arc::clone(&live), events));
        live
    }
}

async fn run(live: Arc<Live>, events: mpsc::Sender<Event>) {
    loop {
        live.wanted.notified().await;
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while live.latest.receiver_count() > 0 {
            ticks.tick().await;
            let Some(text) = text(&events, Depth::Marks(AGAIN)).await else { return };
            live.latest.send_replace(text.into());
        }
    }
}

/// `None`: the daemon ends.
async fn text(events: &mpsc::Sender<Event>, depth: Depth) -> Option<String> {
    let snapshot = look(events, depth).await?;
    let json = tokio::task::spawn_blocking(move || metrics::json(&snapshot)).await;
    // Neither can happen but by a mistake of ours, and a page without news says so by itself.
    Some(json.ok().and_then(Result::ok).unwrap_or_default())
}

/// What happened lately at once, and then a snapshot a second.
pub async fn events(State(shown): State<Shown>) -> Response {
    if shown.live.latest.receiver_count() >= PAGES {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many pages are open\n").into_response();
    }
    let mut latest = shown.live.latest.subscribe();
    // What is left from an earlier listener is old.
    latest.mark_unchanged();
    let Some(first) = text(&shown.events, Depth::All).await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    shown.live.wanted.notify_one();
    let snapshots = stream::unfold((Some(first), latest), |(first, mut latest)| async move {
        let text = match first {
            Some(text) => text,
            // The sender lives as long as the server.
            None => {
                latest.changed().await.ok()?;
                latest.borrow_and_update().to_string()
            }
        };
        Some((Ok::<_, Infallible>(sse::Event::default().data(text).retry(RETRY)), (None, latest)))
    });
    Sse::new(snapshots).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Metrics, Snapshot};
    use ballast_planner::LawName;
    use tokio::time::timeout;

    fn nothing() -> Snapshot {
        Snapshot {
            at: Micros::ZERO,
            started: 0.0,
            law: LawName::Ballast,
            dry_run: false,
            host: None,
            hypervisors: Vec::new(),
            waiting: 0,
            queue: 0,
            vms: Vec::new(),
            latencies: Metrics::default().latencies(),
            marks: Vec::new(),
            past: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_asked_unless_somebody_listens() {
        let (events, mut asked) = mpsc::channel(4);
        let live = Live::start(events);
        assert!(timeout(Duration::from_secs(60), asked.recv()).await.is_err());
        let page = live.latest.subscribe();
        live.wanted.notify_one();
        for _ in 0..3 {
            let asked = timeout(EVERY * 2, asked.recv()).await.unwrap();
            let Some(Event::Look { depth: Depth::Marks(AGAIN), reply }) = asked else { panic!("{asked:?}") };
            assert!(reply.send(Box::new(nothing())).is_ok());
        }
        drop(page);
        // One may be under way.
        let _ = timeout(EVERY * 2, asked.recv()).await;
        assert!(timeout(Duration::from_secs(60), asked.recv()).await.is_err());
    }
}
