//! One line to stderr. A logging framework would be a fifth of the binary's size budget.
//!
//! `BALLAST_LOG` is `error`, `warn`, `info` (the default) or `debug`. Lines begin with the kernel's priority (`<6>`)
//! when `JOURNAL_STREAM` says that systemd reads them (sd-daemon(3)).

use std::sync::OnceLock;

/// How important a line is; the numbers are syslog's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something does not work.
    Error = 3,
    /// Something is not as it should be.
    Warn = 4,
    /// What an operator wants to read.
    Info = 6,
    /// What a developer wants to read.
    Debug = 7,
}

struct Sink {
    most: Level,
    journal: bool,
}

fn sink() -> &'static Sink {
    static SINK: OnceLock<Sink> = OnceLock::new();
    SINK.get_or_init(|| Sink {
        most: match std::env::var("BALLAST_LOG").as_deref() {
            Ok("error") => Level::Error,
            Ok("warn") => Level::Warn,
            Ok("debug") => Level::Debug,
            _ => Level::Info,
        },
        journal: std::env::var_os("JOURNAL_STREAM").is_some(),
    })
}

/// Whether lines of this level are written: lets callers on the hot path skip making them.
#[must_use]
pub fn enabled(level: Level) -> bool {
    level <= sink().most
}

/// Writes one line; a closed stderr is nobody's problem.
pub fn line(level: Level, text: std::fmt::Arguments<'_>) {
    use std::io::Write;
    let mut out = std::io::stderr().lock();
    let result =
        if sink().journal { writeln!(out, "<{}>{text}", level as u8) } else { writeln!(out, "ballast-guest: {text}") };
    drop(result);
}

/// `log!(Info, "connected to {peer}")`.
#[macro_export]
macro_rules! log {
    ($level:ident, $($text:tt)*) => {
        if $crate::log::enabled($crate::log::Level::$level) {
            $crate::log::line($crate::log::Level::$level, format_args!($($text)*));
        }
    };
}

/// An error with all its causes, for one line.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(e) = cause {
            write!(f, ": {e}")?;
            cause = e.source();
        }
        Ok(())
    }
}
