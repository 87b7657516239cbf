//! A host agent that does what the test says, on a Unix socket; and the real agent binary pointed at it.

// Helpers of tests, outside the `#[test]` functions that clippy.toml exempts.
#![allow(clippy::unwrap_used)]

use ballast_protocol::{
    Answer, Bytes, GuestMessage, HostMessage, MAX_FRAME, Micros, Telemetry, VERSION, Verdict, Welcome, decode, encode,
};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// No step of these tests takes longer unless something is broken.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A captured tree that the test may change, a listening host, and the agent.
pub struct Bench {
    pub dir: tempfile::TempDir,
    listener: UnixListener,
    agent: Option<Child>,
}

/// One session, host side.
pub struct Host {
    stream: UnixStream,
}

impl Bench {
    /// Copies the fixture of `kernel` and starts the agent on it.
    pub fn start(kernel: &str, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(kernel), dir.path());
        for file in ["proc/meminfo", "proc/vmstat"] {
            let path = dir.path().join(file);
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(&path, text.lines().map(widen).collect::<String>()).unwrap();
        }
        let listener = UnixListener::bind(dir.path().join("host")).unwrap();
        let mut bench = Self { dir, listener, agent: None };
        bench.start_agent(args);
        bench
    }

    pub fn start_agent(&mut self, args: &[&str]) {
        let root = self.dir.path().to_str().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_ballast-guest"))
            .args(["run", "--root", root, "--connect", &format!("unix:{root}/host")])
            .args(["--socket", &format!("{root}/guest.sock")])
            .args(args)
            .env("BALLAST_LOG", "debug")
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        self.agent = Some(child);
    }

    /// The next connection, before any word.
    pub fn accept(&self) -> Host {
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Host { stream }
    }

    /// The next connection, welcomed; `silence` in milliseconds.
    pub fn welcome(&self, silence: u64) -> Host {
        let mut host = self.accept();
        assert!(matches!(host.read(), GuestMessage::Hello(_)));
        host.say(&HostMessage::Welcome(Welcome {
            version: VERSION,
            silence: Micros::millis(silence),
            idle_interval: Micros::millis(200),
            busy_interval: Micros::millis(50),
        }));
        host
    }

    /// Replaces the value of one line of the copied meminfo.
    pub fn set_meminfo(&self, key: &str, value: Bytes) {
        self.edit("proc/meminfo", |line| {
            line.starts_with(&format!("{key}:")).then(|| format!("{key}: {} kB", value.as_kib().0))
        });
    }

    /// Replaces the value of one line of the copied vmstat.
    pub fn set_vmstat(&self, key: &str, value: u64) {
        self.edit("proc/vmstat", |line| line.starts_with(&format!("{key} ")).then(|| format!("{key} {value}")));
    }

    fn edit(&self, file: &str, replace: impl Fn(&str) -> Option<String>) {
        let path = self.dir.path().join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        // One write in place, every line as wide as it was: the agent holds the file open, as it would a file of
        // /proc, and must never see half of a change.
        let text: String = text.lines().map(|l| widen(&replace(l).unwrap_or_else(|| l.to_owned()))).collect();
        std::fs::File::options().write(true).open(&path).unwrap().write_all_at(text.as_bytes(), 0).unwrap();
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("guest.sock")
    }

    /// Runs a client command of the agent's; its exit code and standard output.
    pub fn client(&self, command: &str, args: &[&str]) -> (i32, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_ballast-guest"))
            .args([command, "--socket", self.socket().to_str().unwrap()])
            .args(args)
            .output()
            .unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(self.agent.as_ref().unwrap());
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for the agent's end; its exit code, `None` for a signal.
    pub fn wait(&mut self) -> Option<i32> {
        let mut agent = self.agent.take().unwrap();
        until(|| agent.try_wait().unwrap()).code()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().unwrap();
            agent.wait().unwrap();
        }
    }
}

impl Host {
    pub fn say(&mut self, message: &HostMessage) {
        let mut buffer = [0; MAX_FRAME];
        self.stream.write_all(encode(message, &mut buffer).unwrap()).unwrap();
    }

    pub fn say_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next message; panics after [`PATIENCE`] or at the end of the session.
    pub fn read(&mut self) -> GuestMessage {
        let mut prefix = [0; 2];
        self.stream.read_exact(&mut prefix).expect("the guest said nothing");
        let mut payload = vec![0; usize::from(u16::from_le_bytes(prefix))];
        self.stream.read_exact(&mut payload).unwrap();
        decode(&payload).unwrap()
    }

    /// The first message that `pick` takes; others are skipped.
    pub fn find<T>(&mut self, mut pick: impl FnMut(GuestMessage) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < end, "the message did not come");
            if let Some(found) = pick(self.read()) {
                return found;
            }
        }
    }

    pub fn telemetry(&mut self) -> Telemetry {
        self.find(|m| if let GuestMessage::Telemetry(t) = m { Some(t) } else { None })
    }

    pub fn demand(&mut self) -> ballast_protocol::Demand {
        self.find(|m| if let GuestMessage::Demand(d) = m { Some(d) } else { None })
    }

    pub fn grant(&mut self, id: u64, size: Bytes) {
        let verdict = Verdict::Granted { size, hold: Micros::secs(5) };
        self.say(&HostMessage::Answer(Answer { id, verdict }));
    }

    /// Whether the guest closes the connection within [`PATIENCE`].
    pub fn is_closed(&mut self) -> bool {
        let mut sink = [0; MAX_FRAME];
        loop {
            match self.stream.read(&mut sink) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return true,
                Err(_) => return false,
            }
        }
    }
}

/// Polls until there is something.
pub fn until<T>(mut probe: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < end, "it did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A line of always the same width.
fn widen(line: &str) -> String {
    format!("{:<63}\n", line.trim_end())
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
