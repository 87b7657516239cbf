//! Where guests arrive: two kinds of vsock behind one listener.
//!
//! ```text
//!   AF_VSOCK       one socket for all guests      the peer's CID names the VM; only ports below 1024 are let in
//!   hybrid vsock   one Unix socket for each VM    the path names the VM: <vsock>_<port>
//!        \                /
//!         Listener::accept() -> (Peer, Stream)
//! ```
//!
//! A guest is hostile until proven otherwise, and this is the first thing it touches. On AF_VSOCK an unprivileged
//! process in the guest cannot bind a source port below 1024 (vsock(7)), so a low port proves that the guest's root
//! calls. Hybrid vsock does not pass the port on: there any process of the guest can call, and the rule of one session
//! per VM is what protects the agent that came first. Connections are counted per VM: a VM that floods is slowed
//! down (hybrid) or hung up on (AF_VSOCK, where all share one queue), and no other VM notices.

mod hybrid;
mod pace;
mod stream;

pub use stream::Stream;

use crate::config;
use crate::socket::Waits;
use ballast_planner::VmName;
use ballast_protocol::{HostMessage, MAX_FRAME, Refusal, encode};
use pace::Pace;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener};

/// Source ports from here on can be bound by anybody (vsock(7), LAST_RESERVED_PORT).
const FIRST_UNPRIVILEGED_PORT: u32 = 1024;
/// Connections accepted and not yet taken by the daemon.
const WAITING: usize = 64;
/// Farewells under way at a time; more peers than that are hung up on without a word.
const FAREWELLS: usize = 16;
/// How long a refused peer may take to read why.
const FAREWELL: Duration = Duration::from_millis(500);
/// After a failed accept (no file descriptors left, for example), so that it does not become a busy loop.
const BREATHER: Duration = Duration::from_millis(100);

/// Who called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// The path says so.
    Vm(VmName),
    /// The VM with this CID; whoever knows the VMs knows which.
    Cid(u32),
}

/// A transport that cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another daemon serves this VM.
    #[error("VM `{vm}`: somebody listens on {path} already; another ballast-host runs on the same VMs, stop it first")]
    Occupied {
        /// The VM.
        vm: VmName,
        /// The socket.
        path: PathBuf,
    },
    /// Something else is in the way.
    #[error("VM `{vm}`: {path} is there and is no socket; move it away")]
    InTheWay {
        /// The VM.
        vm: VmName,
        /// The file.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("VM `{vm}`: cannot listen on {path} (while trying to {doing})")]
    Hybrid {
        /// The VM.
        vm: VmName,
        /// The socket.
        path: PathBuf,
        /// The step that failed.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
    /// AF_VSOCK does not work here.
    #[error(
        "cannot listen on AF_VSOCK port {port}; `modprobe vhost_vsock`, or set `vsock = false` under [daemon] and give \
         each VM the path of its hybrid vsock"
    )]
    Vsock {
        /// The port.
        port: u32,
        /// Why.
        source: io::Error,
    },
}

/// Accepts the agents of all VMs. Removes its socket files when dropped.
#[derive(Debug)]
pub struct Listener {
    port: u32,
    arrivals: mpsc::Receiver<(Peer, Stream)>,
    /// Kept so that `accept` never sees the end of the channel, and for VMs that are added later.
    sender: mpsc::Sender<(Peer, Stream)>,
    hybrid: BTreeMap<VmName, hybrid::Socket>,
    /// The AF_VSOCK task; aborted when dropped.
    _tasks: JoinSet<()>,
    refuser: Refuser,
}

impl Listener {
    /// Listens on AF_VSOCK if that is wanted, and for no VM on hybrid vsock yet. Must be called on a runtime.
    ///
    /// # Errors
    /// AF_VSOCK cannot be had.
    pub fn bind(daemon: &config::Daemon) -> Result<Self, Error> {
        let (sender, arrivals) = mpsc::channel(WAITING);
        let refuser = Refuser { slots: Arc::new(Semaphore::new(FAREWELLS)) };
        let mut tasks = JoinSet::new();
        let port = daemon.port;
        if daemon.vsock {
            let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))
                .map_err(|source| Error::Vsock { port, source })?;
            tasks.spawn(accept_vsock(listener, sender.clone(), refuser.clone()));
        }
        Ok(Self { port, arrivals, sender, hybrid: BTreeMap::new(), _tasks: tasks, refuser })
    }

    /// Listens for one more VM, whose hybrid vsock has this path (without `_<port>`). Replaces an earlier path.
    ///
    /// # Errors
    /// The socket cannot be had.
    pub async fn add(&mut self, vm: VmName, path: PathBuf) -> Result<(), Error> {
        let waits = if self.hybrid.values().all(|socket| socket.was_locked) { Waits::Yes } else { Waits::No };
        self.listen(vm, path, waits).await
    }

    /// As [`Self::add`], for whoever tries it again and again and has no time to wait.
    ///
    /// # Errors
    /// The socket cannot be had.
    pub async fn add_at_once(&mut self, vm: VmName, path: PathBuf) -> Result<(), Error> {
        self.listen(vm, path, Waits::No).await
    }

    async fn listen(&mut self, vm: VmName, path: PathBuf, waits: Waits) -> Result<(), Error> {
        self.hybrid.remove(&vm);
        let socket = hybrid::Socket::bind(vm.clone(), &path, self.port, waits, self.sender.clone()).await?;
        self.hybrid.insert(vm, socket);
        Ok(())
    }

    /// Stops listening for a VM on hybrid vsock. A VM that never did is no mistake.
    pub fn remove(&mut self, vm: &VmName) {
        self.hybrid.remove(vm);
    }

    /// The next connection. May be dropped and called again without losing one.
    pub async fn accept(&mut self) -> (Peer, Stream) {
        loop {
            // `None` cannot come, because `self.sender` lives; waiting for ever would be the right answer to it.
            match self.arrivals.recv().await {
                Some(arrival) => return arrival,
                None => std::future::pending::<()>().await,
            }
        }
    }

    /// For whoever finds out later that a peer must not stay.
    #[must_use]
    pub fn refuser(&self) -> Refuser {
        self.refuser.clone()
    }
}

/// Tells peers why they may not stay, and hangs up.
#[derive(Clone, Debug)]
pub struct Refuser {
    slots: Arc<Semaphore>,
}

impl Refuser {
    /// Tells a peer why, in the background, within half a second; when many are being told already, hangs up at once.
    /// Must be called on a runtime.
    pub fn refuse(&self, mut stream: Stream, why: Refusal) {
        let Ok(slot) = self.slots.clone().try_acquire_owned() else { return };
        tokio::spawn(async move {
            let farewell = async {
                let mut buffer = [0; MAX_FRAME];
                let Ok(frame) = encode(&HostMessage::Refused(why), &mut buffer) else { return };
                if stream.write_all(frame).await.is_err() || stream.shutdown().await.is_err() {
                    return;
                }
                // A close with unread input is a reset, which may overtake the words just written.
                let mut sink = [0; 256];
                while matches!(stream.read(&mut sink).await, Ok(1..)) {}
            };
            // Too slow is the peer's loss.
            let _ = tokio::time::timeout(FAREWELL, farewell).await;
            drop(slot);
        });
    }
}

async fn accept_vsock(listener: VsockListener, arrivals: mpsc::Sender<(Peer, Stream)>, refuser: Refuser) {
    let mut paces: BTreeMap<u32, Pace> = BTreeMap::new();
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept on AF_VSOCK");
                tokio::time::sleep(BREATHER).await;
                continue;
            }
        };
        let (cid, port) = (address.cid(), address.port());
        // A CID that has been quiet long enough is as good as new: the table holds who called in the last seconds.
        paces.retain(|_, pace| !pace.is_rested());
        if !paces.entry(cid).or_default().try_take() {
            tracing::debug!(cid, "calls too often: hung up");
            continue;
        }
        let stream = Stream::Vsock(stream);
        match admit(cid, port) {
            Ok(peer) => {
                // The daemon is behind: better to hang up than to hold every other VM's call.
                if arrivals.try_send((peer, stream)).is_err() {
                    tracing::warn!(cid, "too many connections wait: hung up");
                }
            }
            Err(why) => {
                tracing::info!(cid, port, ?why, "refused");
                refuser.refuse(stream, why);
            }
        }
    }
}

/// Whether somebody who calls from there may come in.
fn admit(cid: u32, port: u32) -> Result<Peer, Refusal> {
    if port >= FIRST_UNPRIVILEGED_PORT { Err(Refusal::Unprivileged) } else { Ok(Peer::Cid(cid)) }
}

#[cfg(test)]
mod tests;
