//! A text about all VMs that many may ask for: made once, for all who ask meanwhile and a moment longer.
//!
//! A look at all VMs is work for the daemon's task, and waits in the same queue as demands. So whoever asks, and however
//! often: one look is under way at a time, and the next begins when this one's text is old. A task of its own asks,
//! because a client that asks and hangs up at once would begin another look each time.

use super::look;
use crate::daemon::Event;
use crate::metrics::{Depth, Snapshot};
use axum::body::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Duration, Instant, sleep_until};

/// What a snapshot is made into; the error is for people.
pub type Rendered = Result<Bytes, String>;

type Render = fn(&Snapshot) -> Result<String, String>;

/// The asking end. All clones share one text.
#[derive(Clone, Debug)]
pub struct Shared(mpsc::Sender<oneshot::Sender<Rendered>>);

impl Shared {
    /// Starts the task that looks, at most once in the time that a text is kept. It ends with the daemon.
    pub fn start(events: mpsc::Sender<Event>, depth: Depth, keep: Duration, render: Render) -> Self {
        let (ask, asked) = mpsc::channel(1);
        tokio::spawn(run(events, depth, keep, render, asked));
        Self(ask)
    }

    /// The text, as old as it is kept at most; `None`: the daemon ends.
    pub async fn text(&self) -> Option<Rendered> {
        let (reply, answer) = oneshot::channel();
        self.0.send(reply).await.ok()?;
        answer.await.ok()
    }
}

async fn run(
    events: mpsc::Sender<Event>,
    depth: Depth,
    keep: Duration,
    render: Render,
    mut asked: mpsc::Receiver<oneshot::Sender<Rendered>>,
) {
    while let Some(first) = asked.recv().await {
        let Some(snapshot) = look(&events, depth).await else { return };
        // A thousand VMs are 50,000 lines: not on a thread that sessions wait for.
        let rendered = tokio::task::spawn_blocking(move || render(&snapshot)).await;
        let text = rendered.unwrap_or_else(|panic| Err(panic.to_string())).map(|mut text| {
            text.shrink_to_fit();
            Bytes::from(text)
        });
        let until = Instant::now() + keep;
        // Whoever asked may have gone.
        let _ = first.send(text.clone());
        loop {
            tokio::select! {
                biased;
                () = sleep_until(until) => break,
                next = asked.recv() => match next {
                    Some(next) => drop(next.send(text.clone())),
                    None => return,
                },
            }
        }
    }
}
