//! Asks the daemon, in a thread of its own: one that hangs must not hold up the keys.

use crate::control::{self, Done, Explained, HoldRequest, Status};
use axum::http::Method;
use ballast_planner::VmName;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep_until};

/// How often the daemon is asked.
const EVERY: Duration = Duration::from_secs(1);

/// What comes from outside.
#[derive(Debug)]
pub(super) enum News {
    /// The daemon as it stands, or why it does not say.
    Status(Result<Box<Status>, String>),
    /// The VM that was asked for.
    Explained(Result<Box<Explained>, String>),
    /// What came of a hold.
    Held(Result<String, String>),
    /// Somebody ends this process.
    Stop,
}

/// What the operator wishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// One VM's explanation with each status; `None`: no more.
    Explain(Option<VmName>),
    /// A VM is to keep a size.
    Hold(VmName, HoldRequest),
}

/// The thread's two ends.
#[derive(Debug)]
pub(super) struct Feed {
    news: Receiver<News>,
    wishes: UnboundedSender<Wish>,
}

impl Feed {
    /// Begins to ask.
    pub fn start(socket: PathBuf) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (sender, news) = channel();
        let (wishes, inbox) = unbounded_channel();
        std::thread::Builder::new()
            .name("feed".to_owned())
            .spawn(move || runtime.block_on(ask(&socket, &sender, inbox)))?;
        Ok(Self { news, wishes })
    }

    /// What has come meanwhile.
    pub fn news(&self) -> Option<News> {
        self.news.try_recv().ok()
    }

    pub fn tell(&self, wish: Wish) {
        // The thread ends only with this.
        let _ = self.wishes.send(wish);
    }
}

/// Until nobody listens any more.
async fn ask(socket: &Path, news: &Sender<News>, mut wishes: UnboundedReceiver<Wish>) {
    use tokio::signal::unix::{SignalKind, signal};
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::hangup()));
    let (Ok(mut terminate), Ok(mut hangup)) = signals else {
        // Without them a signal would leave the terminal as it is.
        let _ = news.send(News::Stop);
        return;
    };
    let mut explain: Option<VmName> = None;
    let mut next = Instant::now();
    loop {
        tokio::select! {
            _ = terminate.recv() => drop(news.send(News::Stop)),
            _ = hangup.recv() => drop(news.send(News::Stop)),
            wish = wishes.recv() => match wish {
                None => return,
                Some(Wish::Explain(vm)) => {
                    explain = vm;
                    if let Some(vm) = &explain
                        && news.send(explained(socket, vm).await).is_err()
                    {
                        return;
                    }
                }
                Some(Wish::Hold(vm, request)) => {
                    if news.send(News::Held(hold(socket, &vm, &request).await)).is_err() {
                        return;
                    }
                    next = Instant::now();
                }
            },
            () = sleep_until(next) => {
                next = Instant::now() + EVERY;
                let status = control::ask(socket, "/v1/status").await.map(Box::new).map_err(|e| crate::chain(&e));
                if news.send(News::Status(status)).is_err() {
                    return;
                }
                if let Some(vm) = &explain
                    && news.send(explained(socket, vm).await).is_err()
                {
                    return;
                }
            }
        }
    }
}

async fn explained(socket: &Path, vm: &VmName) -> News {
    News::Explained(control::ask(socket, &url(vm)).await.map(Box::new).map_err(|e| crate::chain(&e)))
}

async fn hold(socket: &Path, vm: &VmName, request: &HoldRequest) -> Result<String, String> {
    let said: Result<Done, _> = control::tell(socket, Method::PUT, &format!("{}/hold", url(vm)), Some(request)).await;
    said.map(|said| std::iter::once(said.done).chain(said.notes).collect::<Vec<_>>().join("; "))
        .map_err(|e| crate::chain(&e))
}

fn url(vm: &VmName) -> String {
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    format!("/v1/vms/{}", utf8_percent_encode(&vm.0, NON_ALPHANUMERIC))
}
