//! One run of the real iperf3.
//!
//! It gets so many bytes to send, and a deadline. At the deadline it is asked to end (SIGTERM), upon which it says
//! what it has measured so far: a guest that is too slow for its bytes is a measurement, a guest that answers nothing
//! is a problem. What is not gone then is killed; and it dies with this process, however that ends (`setpriv`).

use super::Plan;
use ballast_planner::{ServiceMode, ServiceSample};
use ballast_protocol::{Bytes, Micros};
use rustix::process::{Pid, Signal};
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::{Duration, timeout};

/// A virtual machine on this host answers in milliseconds, also when it thrashes.
const CONNECT_MS: u32 = 1_000;
/// How much longer than planned a probe may take: a guest that thrashes is four to six times slower (FACTS section 9).
const OVERTIME: Duration = Duration::from_secs(4);
/// To say what was measured, once asked to end.
const GRACE: Duration = Duration::from_millis(500);
/// What iperf3 says of a probe of ten seconds is below 100 KiB.
const LONGEST_ANSWER: u64 = 1 << 20;
/// Of what it says, an error quotes so much.
const QUOTED: usize = 120;

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// For the planner.
    pub sample: ServiceSample,
    /// Bytes sent.
    pub traffic: Bytes,
}

/// Why a probe found nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// There is no such program.
    #[error(
        "iperf3 is not installed: install the package `iperf3` (apt install iperf3); until then no service level is measured"
    )]
    NotInstalled,
    /// It cannot be started.
    #[error("iperf3 cannot be started by setpriv (package util-linux): {0}")]
    Start(String),
    /// Nobody listens.
    #[error("no iperf3 server at {0} ({1}): start `iperf3 -s -p {port}` in the VM, or correct `service`", port = .0.port())]
    NoServer(SocketAddr, String),
    /// Somebody else is being served.
    #[error("the iperf3 server at {0} is busy with another client; give the prober a server of its own")]
    Busy(SocketAddr),
    /// Somebody listens and does not answer.
    #[error("the server at {0} accepts connections and answers nothing for {1:?}: is it iperf3?")]
    Hung(SocketAddr, Duration),
    /// iperf3 says that something else went wrong.
    #[error("iperf3 to {0} failed: {1}")]
    Failed(SocketAddr, String),
    /// What iperf3 says is not its JSON.
    #[error("iperf3 to {0} said something that is not its JSON: {1}")]
    Garbage(SocketAddr, String),
}

/// Where the program is.
pub(super) fn find(configured: Option<&PathBuf>) -> Option<PathBuf> {
    match configured {
        Some(path) => path.exists().then(|| path.clone()),
        None => {
            let path = std::env::var_os("PATH")?;
            std::env::split_paths(&path).map(|folder| folder.join("iperf3")).find(|file| file.is_file())
        }
    }
}

fn arguments(plan: &Plan) -> Vec<String> {
    let mut args = vec!["-J".to_owned(), "-c".to_owned(), plan.service.ip().to_string()];
    let connect = CONNECT_MS.to_string();
    let (port, bytes) = (plan.service.port().to_string(), plan.bytes.0.to_string());
    // Round trips are looked at ten times a second.
    for (flag, value) in [("-p", port), ("-n", bytes), ("-i", "0.1".to_owned()), ("--connect-timeout", connect)] {
        args.extend([flag.to_owned(), value]);
    }
    if let Some(rate) = plan.rate {
        args.extend(["-b".to_owned(), rate.to_string()]);
    }
    args
}

/// Runs it.
///
/// # Errors
/// Nothing was measured.
pub(super) async fn probe(program: &PathBuf, plan: &Plan) -> Result<Measured, Problem> {
    let patience = plan.length.duration() + OVERTIME;
    let start = |e: std::io::Error| Problem::Start(e.to_string());
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(arguments(plan));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(start)?;
    let pid = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let answer = async {
        let (mut said, mut complaint) = (Vec::new(), Vec::new());
        if let (Some(out), Some(err)) = (out, err) {
            let (mut out, mut err) = (out.take(LONGEST_ANSWER), err.take(LONGEST_ANSWER));
            let read = tokio::join!(out.read_to_end(&mut said), err.read_to_end(&mut complaint));
            read.0.and(read.1)?;
        }
        Ok((said, complaint))
    };
    tokio::pin!(answer);
    let (said, complaint) = match timeout(patience, &mut answer).await {
        Ok(answer) => answer.map_err(start)?,
        Err(_) => {
            if let Some(pid) = pid {
                // It may just have ended.
                let _ = rustix::process::kill_process(pid, Signal::TERM);
            }
            let hung = |_| Problem::Hung(plan.service, patience);
            timeout(GRACE, &mut answer).await.map_err(hung)?.map_err(start)?
        }
    };
    // Either it has ended, or it said all that is read of it.
    let _ = child.start_kill();
    let _ = child.wait().await;
    if said.is_empty() {
        return Err(Problem::Start(quote(&complaint)));
    }
    read(&said, plan, patience)
}

#[derive(Deserialize)]
struct Said {
    end: End,
    error: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct End {
    sum_sent: Option<Sum>,
    sum_received: Option<Sum>,
    streams: Vec<StreamEnd>,
}

#[derive(Deserialize)]
struct Sum {
    seconds: f64,
    bytes: u64,
    bits_per_second: f64,
    retransmits: Option<u64>,
}

#[derive(Deserialize)]
struct StreamEnd {
    sender: Option<Sender>,
}

#[derive(Deserialize)]
struct Sender {
    mean_rtt: Option<u64>,
}

/// What it said, understood.
fn read(said: &[u8], plan: &Plan, patience: Duration) -> Result<Measured, Problem> {
    let to = plan.service;
    let said: Said = serde_json::from_slice(said).map_err(|_| Problem::Garbage(to, quote(said)))?;
    let sent = said.end.sum_sent.filter(|s| s.bytes > 0 && s.seconds > 0.0);
    // A run that was ended early has no figure of the receiver's.
    let received = said.end.sum_received.filter(|s| s.bytes > 0 && s.seconds > 0.0);
    match (said.error, sent) {
        (Some(error), _) if error.starts_with("unable to connect") => {
            let why = error.rsplit(": ").next().unwrap_or_default();
            Err(Problem::NoServer(to, why.to_owned()))
        }
        (Some(error), _) if error.contains("busy") => Err(Problem::Busy(to)),
        (Some(error), None) if error.starts_with("interrupt") => Err(Problem::Hung(to, patience)),
        (Some(error), _) if !error.starts_with("interrupt") => Err(Problem::Failed(to, quote(error.as_bytes()))),
        (None, None) => Err(Problem::Failed(to, "nothing was sent".to_owned())),
        (_, Some(sent)) => {
            let rate = received.as_ref().map_or(sent.bits_per_second, |r| r.bits_per_second);
            let stream = said.end.streams.first().and_then(|s| s.sender.as_ref());
            Ok(Measured {
                sample: ServiceSample {
                    mode: plan.mode(),
                    // Saturates, and no figure is below zero.
                    throughput: rate as u64,
                    retransmits: sent.retransmits,
                    rtt: stream.and_then(|s| s.mean_rtt).map(Micros),
                    duration: Micros((sent.seconds * 1e6) as u64),
                },
                traffic: Bytes(sent.bytes),
            })
        }
        (Some(_), None) => Err(Problem::Hung(to, patience)),
    }
}

impl Plan {
    fn mode(&self) -> ServiceMode {
        if self.rate.is_some() { ServiceMode::RateLimited } else { ServiceMode::Unlimited }
    }
}

/// Printable and short: it may come from a guest.
fn quote(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let clean: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(QUOTED).collect();
    format!("`{clean}`")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ballast_planner::VmName;

    fn plan(rate: Option<u64>) -> Plan {
        Plan {
            vm: VmName::from("web"),
            service: "10.77.0.1:5201".parse().unwrap(),
            bytes: Bytes::mib(32),
            rate,
            length: Micros::millis(200),
            why: None,
        }
    }

    fn said(text: &str) -> Result<Measured, String> {
        read(text.as_bytes(), &plan(None), Duration::from_secs(4)).map_err(|p| p.to_string())
    }

    /// All of these were captured from iperf3 3.12.
    #[test]
    fn what_iperf3_says_is_understood() {
        let whole = said(include_str!("../../tests/iperf3/unlimited.json")).unwrap();
        assert_eq!((whole.sample.throughput, whole.traffic), (18_349_032_680, Bytes(33_554_432)));
        assert_eq!((whole.sample.retransmits, whole.sample.mode), (Some(0), ServiceMode::Unlimited));

        let limited = include_str!("../../tests/iperf3/rate-limited.json");
        let limited = read(limited.as_bytes(), &plan(Some(50_000_000)), Duration::from_secs(4)).unwrap().sample;
        assert_eq!((limited.mode, limited.rtt), (ServiceMode::RateLimited, Some(Micros(41))));

        let early = said(include_str!("../../tests/iperf3/interrupted.json")).unwrap();
        assert_eq!((early.sample.throughput, early.sample.retransmits), (17_448_377_292, Some(6)));
        assert_eq!(early.sample.duration, Micros(997_592));
    }

    #[test]
    fn what_goes_wrong_is_named_with_address_and_mend() {
        let refused = include_str!("../../tests/iperf3/refused.json");
        let cases = [
            (
                refused,
                "no iperf3 server at 10.77.0.1:5201 (Connection refused): start `iperf3 -s -p 5201` in the VM, or \
                 correct `service`",
            ),
            (
                include_str!("../../tests/iperf3/busy.json"),
                "the iperf3 server at 10.77.0.1:5201 is busy with another client; give the prober a server of its own",
            ),
            (
                include_str!("../../tests/iperf3/hung.json"),
                "the server at 10.77.0.1:5201 accepts connections and answers nothing for 4s: is it iperf3?",
            ),
            (
                include_str!("../../tests/iperf3/garbage.json"),
                "iperf3 to 10.77.0.1:5201 failed: `received an unknown control message`",
            ),
            ("<html>\n\x1b[2Jno", "iperf3 to 10.77.0.1:5201 said something that is not its JSON: `<html>  [2Jno`"),
            ("{}", "iperf3 to 10.77.0.1:5201 said something that is not its JSON: `{}`"),
            ("{\"end\": {}}", "iperf3 to 10.77.0.1:5201 failed: nothing was sent"),
        ];
        for (text, expected) in cases {
            assert_eq!(said(text).unwrap_err(), expected);
        }
    }
}
