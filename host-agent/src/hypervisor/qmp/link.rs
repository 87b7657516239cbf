//! One monitor socket: calls with deadlines, replies matched by id, events passed on, reconnection.
//!
//! ```text
//!            connect, greeting, qmp_capabilities
//!   Absent ------------------------------------> Up: Started (or ConnectionBack, if it is the same QEMU)
//!     ^  |                                        |
//!     |  +-- nobody listens: Stopped if there     | end of the stream, or a reply nobody can read:
//!     |      was a VM; wait 20 ms to 1 s          v ConnectionLost
//!     +----------------------------------------- Absent
//! ```
//!
//! One thread reads the monitors of all VMs: each is a task on it that sleeps until QEMU says something. A thread for
//! each would cost a host of 1,000 VMs 1,000 stacks and as many timers of the scheduler for nothing.

use crate::hypervisor::{DEADLINE, Event, Events, What};
use ballast_planner::VmName;
use ballast_protocol::Bytes;
use rustix::net::{Shutdown, shutdown};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::{Builder, Handle};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

/// The longest line taken. The largest reply to our commands is a list of devices, about 60 bytes each.
const LONGEST_LINE: u64 = 1 << 20;
/// Most replies fit in; a thousand monitors have one each.
const READ_AHEAD: usize = 512;
/// Between attempts to connect: a restarted QEMU listens again within tens of milliseconds, and one that stays away
/// costs one failed connect a second.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// Why there is no reply.
#[derive(Debug)]
pub(super) enum CallError {
    /// Nobody listens: QEMU is not there.
    Off,
    /// There is no connection for another reason.
    Down(String),
    /// No reply in time.
    Deadline,
    /// QEMU says no.
    Refused { class: String, text: String },
}

type Reply = Result<Value, CallError>;

#[derive(Debug)]
pub(super) struct Link {
    shared: Arc<Shared>,
    reader: Option<AbortHandle>,
}

#[derive(Debug)]
struct Shared {
    vm: VmName,
    path: PathBuf,
    events: Events,
    state: Mutex<State>,
    /// `connection` has changed.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    connection: Connection,
    /// Counts connections.
    connected: u64,
    /// Counts events of changes.
    changes: u64,
    next_id: u64,
    waiting: BTreeMap<u64, SyncSender<Reply>>,
}

#[derive(Debug)]
enum Connection {
    /// The first attempt is under way.
    Pending,
    Up(OwnedWriteHalf),
    /// Nobody listens.
    Off,
    Down(String),
}

impl Link {
    pub fn new(vm: VmName, path: PathBuf, events: Events) -> Self {
        let state =
            State { connection: Connection::Pending, connected: 0, changes: 0, next_id: 1, waiting: BTreeMap::new() };
        let shared = Arc::new(Shared { vm, path, events, state: Mutex::new(state), changed: Condvar::new() });
        let reader = match readers() {
            Ok(readers) => {
                let shared = Arc::clone(&shared);
                Some(readers.spawn(async move { shared.run().await }).abort_handle())
            }
            Err(why) => {
                shared.lock().connection = Connection::Down(format!("no thread can be started: {why}"));
                None
            }
        };
        Self { shared, reader }
    }

    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Which connection this is; what was learned on another one may not hold.
    pub fn connection(&self) -> u64 {
        self.shared.lock().connected
    }

    /// How often QEMU has told that something about the machine is not as it was.
    pub fn changes(&self) -> u64 {
        self.shared.lock().changes
    }

    pub fn call(&self, command: &str, arguments: Option<Value>) -> Reply {
        let until = Instant::now() + DEADLINE;
        let (sender, receiver) = sync_channel(1);
        let id = {
            // Who calls right after the start waits for the first attempt rather than learn that there was none.
            let state = self.shared.lock();
            let pending = |s: &mut State| matches!(s.connection, Connection::Pending);
            let waited = self.shared.changed.wait_timeout_while(state, DEADLINE, pending);
            let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            let id = state.next_id;
            let mut line = match arguments {
                Some(arguments) => json!({ "execute": command, "arguments": arguments, "id": id }),
                None => json!({ "execute": command, "id": id }),
            }
            .to_string();
            line.push('\n');
            // One write, under the lock: two callers' lines must not mix.
            let written = match &state.connection {
                Connection::Up(stream) => stream.try_write(line.as_bytes()),
                Connection::Pending => return Err(CallError::Deadline),
                Connection::Off => return Err(CallError::Off),
                Connection::Down(why) => return Err(CallError::Down(why.clone())),
            };
            match written {
                Ok(count) if count == line.len() => {}
                // Hundreds of commands that nobody has read, and half a line may be out: nothing after it can be understood.
                Ok(_) => {
                    state.hang_up();
                    return Err(CallError::Deadline);
                }
                Err(e) => {
                    state.hang_up();
                    let full = e.kind() == io::ErrorKind::WouldBlock;
                    return Err(if full { CallError::Deadline } else { CallError::Down(e.to_string()) });
                }
            }
            state.next_id += 1;
            // The reader cannot look for it before the lock is free.
            state.waiting.insert(id, sender);
            id
        };
        match receiver.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(reply) => reply,
            Err(RecvTimeoutError::Timeout) => {
                self.shared.lock().waiting.remove(&id);
                Err(CallError::Deadline)
            }
            Err(RecvTimeoutError::Disconnected) => Err(CallError::Down("the connection ended before the reply".into())),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.abort();
        }
    }
}

/// The runtime whose one thread reads all monitors, for as long as the process lives.
fn readers() -> Result<&'static Handle, &'static str> {
    static READERS: OnceLock<Result<Handle, String>> = OnceLock::new();
    let start = || -> io::Result<Handle> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let handle = runtime.handle().clone();
        let forever = move || runtime.block_on(std::future::pending::<()>());
        std::thread::Builder::new().name("qmp".to_owned()).spawn(forever)?;
        Ok(handle)
    };
    READERS.get_or_init(|| start().map_err(|e| e.to_string())).as_ref().map_err(String::as_str)
}

impl State {
    /// Makes the reader see the end of the stream.
    fn hang_up(&self) {
        if let Connection::Up(stream) = &self.connection {
            // Fails only when it is closed already.
            let _ = shutdown(stream.as_ref(), Shutdown::Both);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, what: What) {
        // Fails only when the daemon has gone, and then nobody wants to know.
        let _ = self.events.send(Event { vm: self.vm.clone(), what });
    }

    async fn run(&self) {
        let mut pause = FIRST_PAUSE;
        // The process behind the last connection, until it is known to be gone.
        let mut last_peer = None;
        loop {
            match self.connect().await {
                Ok((reader, writer, peer)) => {
                    pause = FIRST_PAUSE;
                    self.install(writer);
                    match last_peer.replace(peer) {
                        Some(last) if last == peer => self.tell(What::ConnectionBack),
                        Some(_) => {
                            self.tell(What::Stopped);
                            self.tell(What::Started);
                        }
                        None => self.tell(What::Started),
                    }
                    let why = self.read_until_end(reader).await;
                    tracing::debug!(vm = %self.vm, why, "the monitor is gone");
                    self.close(Connection::Down(why.clone()));
                    self.tell(What::ConnectionLost(why));
                }
                Err(e) => {
                    let absent = matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
                    self.close(if absent { Connection::Off } else { Connection::Down(e.to_string()) });
                    if absent && last_peer.take().is_some() {
                        self.tell(What::Stopped);
                    }
                    sleep(pause).await;
                    pause = (pause * 2).min(LAST_PAUSE);
                }
            }
        }
    }

    /// A stream that speaks QMP, for reading and for writing, and the process at its other end.
    async fn connect(&self) -> io::Result<(Reader, OwnedWriteHalf, Option<i32>)> {
        let late = |what: &'static str| move |_| io::Error::new(io::ErrorKind::TimedOut, what);
        let stream = timeout(DEADLINE, UnixStream::connect(&self.path)).await.map_err(late("it does not accept"))??;
        let peer = stream.peer_cred()?.pid();
        let (reader, writer) = stream.into_split();
        let mut reader = BufReader::with_capacity(READ_AHEAD, reader);
        let greeting = timeout(DEADLINE, read_line(&mut reader)).await.map_err(late(
            "it gives no greeting: another client holds this monitor (a second daemon?), or QEMU hangs",
        ))??;
        if greeting.get("QMP").is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it does not speak QMP; is this the right socket?"));
        }
        // A buffer that nothing was written to takes these few bytes.
        writer.try_write(b"{\"execute\":\"qmp_capabilities\",\"id\":0}\n")?;
        loop {
            let line = timeout(DEADLINE, read_line(&mut reader)).await.map_err(late("it does not negotiate"))??;
            if line.get("return").is_some() {
                return Ok((reader, writer, peer));
            }
            if let Some(error) = line.get("error") {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it refuses to negotiate: {error}")));
            }
        }
    }

    /// Opens the link for callers.
    fn install(&self, stream: OwnedWriteHalf) {
        let mut state = self.lock();
        state.connected += 1;
        state.connection = Connection::Up(stream);
        self.changed.notify_all();
    }

    fn close(&self, connection: Connection) {
        let mut state = self.lock();
        state.connection = connection;
        // Dropping the senders tells the callers.
        state.waiting.clear();
        self.changed.notify_all();
    }

    /// Delivers replies and events; returns why the stream ended.
    async fn read_until_end(&self, mut reader: Reader) -> String {
        loop {
            let line = match read_line(&mut reader).await {
                Ok(line) => line,
                Err(e) => return e.to_string(),
            };
            if let Some(event) = line.get("event").and_then(Value::as_str) {
                if let Some(what) = happening(event, line.get("data")) {
                    if what == What::Changed {
                        self.lock().changes += 1;
                    }
                    self.tell(what);
                }
            } else if let Some(id) = line.get("id").and_then(Value::as_u64) {
                // Nobody waits any more when the deadline has passed.
                let Some(sender) = self.lock().waiting.remove(&id) else { continue };
                let _ = sender.try_send(reply(line));
            }
        }
    }
}

fn reply(mut line: Value) -> Reply {
    if let Some(error) = line.get("error") {
        let text = |key| error.get(key).and_then(Value::as_str).unwrap_or("(no reason given)").to_owned();
        return Err(CallError::Refused { class: text("class"), text: text("desc") });
    }
    Ok(line.get_mut("return").map(Value::take).unwrap_or_default())
}

/// What an event means (QEMU, qapi/run-state.json and qapi/machine.json); `None`: nothing to us.
fn happening(event: &str, data: Option<&Value>) -> Option<What> {
    match event {
        "STOP" => Some(What::Paused),
        "RESUME" => Some(What::Resumed),
        "RESET" => Some(What::Reset),
        "BALLOON_CHANGE" => Some(What::BalloonMoved(Bytes(data?.get("actual")?.as_u64()?))),
        "MIGRATION" if is_migrating(data?.get("status")?.as_str()?) => Some(What::Migrates),
        // A DIMM was plugged, or virtio-mem resized; QEMU has no word for plugging a device, only for what the guest does.
        "MIGRATION" | "MEMORY_DEVICE_SIZE_CHANGE" | "ACPI_DEVICE_OST" | "DEVICE_DELETED" => Some(What::Changed),
        // SHUTDOWN is not the end: the socket's is, and with -no-shutdown the process stays.
        _ => None,
    }
}

type Reader = BufReader<OwnedReadHalf>;

/// Whether a migration of this status is under way (QEMU, qapi/migration.json). All others are its end, or "none".
pub(super) fn is_migrating(status: &str) -> bool {
    !matches!(status, "none" | "completed" | "failed" | "cancelled")
}

async fn read_line(reader: &mut Reader) -> io::Result<Value> {
    let mut line = Vec::new();
    reader.take(LONGEST_LINE).read_until(b'\n', &mut line).await?;
    if line.last() != Some(&b'\n') {
        return Err(if line.len() as u64 == LONGEST_LINE {
            io::Error::new(io::ErrorKind::InvalidData, format!("a reply is longer than {LONGEST_LINE} bytes"))
        } else {
            io::Error::new(io::ErrorKind::UnexpectedEof, "QEMU closed the monitor")
        });
    }
    serde_json::from_slice(&line)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("a reply is not JSON: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_mean_what_qemu_documents() {
        let status = |s: &str| happening("MIGRATION", Some(&json!({ "status": s })));
        for under_way in ["setup", "active", "postcopy-active", "pre-switchover", "device", "cancelling", "wait-unplug"]
        {
            assert_eq!(status(under_way), Some(What::Migrates), "{under_way}");
        }
        for over in ["completed", "failed", "cancelled", "none"] {
            assert_eq!(status(over), Some(What::Changed), "{over}");
        }
        assert_eq!(happening("MIGRATION", None), None);
        assert_eq!(happening("ACPI_DEVICE_OST", Some(&json!({}))), Some(What::Changed));
        assert_eq!(happening("BALLOON_CHANGE", Some(&json!({ "actual": 5 }))), Some(What::BalloonMoved(Bytes(5))));
        assert_eq!(happening("BALLOON_CHANGE", Some(&json!({ "actual": -5 }))), None);
        assert_eq!(happening("STOP", None), Some(What::Paused));
        assert_eq!(happening("SHUTDOWN", None), None);
    }
}
