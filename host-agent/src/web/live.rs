//! Snapshots for whoever looks at the page: taken once a second, for all of them together, and only while there is one.

use super::shared::Shared;
use super::{Shown, look};
use crate::daemon::Event;
use crate::metrics::{self, Depth, Snapshot};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{self, Sse};
use axum::response::{IntoResponse, Response};
use ballast_protocol::Micros;
use futures_util::stream;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::time::MissedTickBehavior;

/// Pages at a time.
const PAGES: usize = 16;
const EVERY: Duration = Duration::from_secs(1);
/// Each snapshot repeats what happened in so long a time: a page that missed some of them misses nothing.
const AGAIN: Micros = Micros::secs(5);
/// How soon a page that lost its connection comes back.
const RETRY: Duration = Duration::from_secs(2);

/// What pages are told.
#[derive(Debug)]
pub struct Live {
    /// All that is remembered, for a page that opens.
    first: Shared,
    /// The latest snapshot, as JSON; empty before the first.
    latest: watch::Sender<Arc<str>>,
    wanted: Notify,
    pages: Arc<Semaphore>,
}

impl Live {
    /// Starts the task that looks. It ends with the daemon.
    pub fn start(events: mpsc::Sender<Event>) -> Arc<Self> {
        let json = |snapshot: &Snapshot| metrics::json(snapshot).map_err(|e| e.to_string());
        let live = Arc::new(Self {
            first: Shared::start(events.clone(), Depth::All, EVERY, json),
            latest: watch::Sender::new("".into()),
            wanted: Notify::new(),
            pages: Arc::new(Semaphore::new(PAGES)),
        });
        tokio::spawn(run(Arc::clone(&live), events));
        live
    }
}

async fn run(live: Arc<Live>, events: mpsc::Sender<Event>) {
    // One for all listeners: who comes and goes begins no look before its time.
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        live.wanted.notified().await;
        while live.latest.receiver_count() > 0 {
            ticks.tick().await;
            let Some(text) = text(&events).await else { return };
            live.latest.send_replace(text.into());
        }
    }
}

/// `None`: the daemon ends.
async fn text(events: &mpsc::Sender<Event>) -> Option<String> {
    let snapshot = look(events, Depth::Marks(AGAIN)).await?;
    let json = tokio::task::spawn_blocking(move || metrics::json(&snapshot)).await;
    // Neither can happen but by a mistake of ours, and a page without news says so by itself.
    Some(json.ok().and_then(Result::ok).unwrap_or_default())
}

/// What happened lately at once, and then a snapshot a second.
pub async fn events(State(shown): State<Shown>) -> Response {
    // Held as long as the page is.
    let Ok(place) = Arc::clone(&shown.live.pages).try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many pages are open\n").into_response();
    };
    let mut latest = shown.live.latest.subscribe();
    // What is left from an earlier listener is old.
    latest.mark_unchanged();
    let first = match shown.live.first.text().await {
        Some(Ok(first)) => first,
        Some(Err(error)) => return (StatusCode::INTERNAL_SERVER_ERROR, error).into_response(),
        None => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
    };
    shown.live.wanted.notify_one();
    let snapshots = stream::unfold((Some(first), latest, place), |(first, mut latest, place)| async move {
        let event = match first {
            Some(first) => sse::Event::default().data(String::from_utf8_lossy(&first)),
            // The sender lives as long as the server.
            None => {
                latest.changed().await.ok()?;
                sse::Event::default().data(&*latest.borrow_and_update())
            }
        };
        Some((Ok::<_, Infallible>(event.retry(RETRY)), (None, latest, place)))
    });
    Sse::new(snapshots).into_response()
}

#[cfg(test)]
mod tests {
    use super::super::tests::nothing;
    use super::*;
    use tokio::time::timeout;

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
        // As often as pages are opened and closed.
        let begun = tokio::time::Instant::now();
        drop(page);
        for _ in 0..10 {
            let page = live.latest.subscribe();
            live.wanted.notify_one();
            let asked = timeout(EVERY * 2, asked.recv()).await.unwrap();
            let Some(Event::Look { reply, .. }) = asked else { panic!("{asked:?}") };
            drop(page);
            assert!(reply.send(Box::new(nothing())).is_ok());
            // It sees that nobody listens.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(begun.elapsed() >= EVERY * 9, "{:?}", begun.elapsed());
        // One may be under way.
        let _ = timeout(EVERY * 2, asked.recv()).await;
        assert!(timeout(Duration::from_secs(60), asked.recv()).await.is_err());
    }
}
