//! `ballast-guest need SIZE -- COMMAND`: the client of the agent's socket. A process of its own, without the agent's
//! privileges; what it runs inherits nothing from the agent.

use ballast_protocol::{Bytes, Micros};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// Why no lease, or no command.
#[derive(Debug, thiserror::Error)]
pub enum NeedError {
    /// Nobody listens.
    #[error("no agent answers on {}: is `ballast-guest run` running?", path.display())]
    NoAgent {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The agent went away before it answered.
    #[error("the agent went away")]
    Lost(#[source] std::io::Error),
    /// The memory will not be there.
    #[error("{0}")]
    Refused(String),
    /// The command cannot be run.
    #[error("cannot run {command}")]
    Command {
        /// Which.
        command: String,
        /// Why.
        source: std::io::Error,
    },
}

impl NeedError {
    /// The exit status, after env(1) and timeout(1): 124 refused, 125 no agent, 126 not runnable, 127 not found.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(_) => 124,
            Self::NoAgent { .. } | Self::Lost(_) => 125,
            Self::Command { source, .. } if source.kind() == std::io::ErrorKind::NotFound => 127,
            Self::Command { .. } => 126,
        }
    }
}

/// A granted lease; it ends when this is dropped.
#[derive(Debug)]
pub struct Lease {
    _connection: UnixStream,
}

/// Asks the agent at `socket` one thing and reads its one line.
///
/// # Errors
/// No agent, or it went away.
pub fn ask(socket: &Path, request: &str) -> Result<(UnixStream, String), NeedError> {
    let mut stream =
        UnixStream::connect(socket).map_err(|source| NeedError::NoAgent { path: socket.to_owned(), source })?;
    stream.write_all(format!("{request}\n").as_bytes()).map_err(NeedError::Lost)?;
    let mut line = String::new();
    let mut reader = BufReader::new(stream);
    if reader.read_line(&mut line).map_err(NeedError::Lost)? == 0 {
        return Err(NeedError::Lost(std::io::ErrorKind::UnexpectedEof.into()));
    }
    line.truncate(line.trim_end().len());
    Ok((reader.into_inner(), line))
}

/// Blocks until `size` is really there.
///
/// # Errors
/// No agent, or the memory will not be there.
pub fn lease(socket: &Path, size: Bytes) -> Result<Lease, NeedError> {
    let (stream, answer) = ask(socket, &format!("need {}", size.0))?;
    if answer.starts_with("granted ") { Ok(Lease { _connection: stream }) } else { Err(NeedError::Refused(answer)) }
}

/// Takes a lease, then runs `command` under it, or holds it for `hold`.
///
/// # Errors
/// No lease, or the command cannot be run.
pub fn need(
    socket: &Path,
    size: Bytes,
    hold: Option<Micros>,
    command: &[String],
) -> Result<Option<ExitStatus>, NeedError> {
    let lease = lease(socket, size)?;
    let status = match command {
        [] => {
            std::thread::sleep(hold.unwrap_or(Micros::ZERO).duration());
            None
        }
        [program, args @ ..] => {
            let status = Command::new(program).args(args).status();
            Some(status.map_err(|source| NeedError::Command { command: program.clone(), source })?)
        }
    };
    drop(lease);
    Ok(status)
}

/// `90s`, `5m`, `2h`, `500ms`.
///
/// # Errors
/// What is wrong, with an example.
pub fn parse_duration(text: &str) -> Result<Micros, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale: u64 = match unit {
        "ms" => 1_000,
        "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        _ => return Err(format!("`{text}` is not a duration: write for example 500ms, 90s, 5m or 2h")),
    };
    let number: u64 = number.parse().map_err(|_| format!("`{text}` has no number: write for example 90s"))?;
    number.checked_mul(scale).map(Micros).ok_or_else(|| format!("`{text}` is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("90s"), Ok(Micros::secs(90)));
        assert_eq!(parse_duration("500ms"), Ok(Micros::millis(500)));
        assert_eq!(parse_duration("2h"), Ok(Micros::secs(7_200)));
        for bad in ["90", "s", "1.5s", "-1s", "99999999999999h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn each_failure_has_its_own_status() {
        let absent = need(Path::new("/no/such/socket"), Bytes::mib(1), None, &[]).unwrap_err();
        assert_eq!(absent.exit_code(), 125);
        assert_eq!(NeedError::Refused("x".into()).exit_code(), 124);
    }
}
