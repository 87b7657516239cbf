//! `ballast-host top`: all VMs on one screen, once a second, for whoever watches a host while something happens on it.
//!
//! ```text
//!   feed (a thread) --status, explanation, once a second--> App --draw--> terminal
//!        ^                                                   |
//!        '------- which VM to explain, asks of the operator -'   <--keys-- terminal
//! ```
//!
//! The daemon is asked in a thread of its own, so that keys are answered while it hangs or is gone. The terminal is
//! given back however this ends: by a key, a signal, an error or a panic.

mod app;
mod draw;
mod feed;
mod hold;
mod keys;
mod order;
#[cfg(test)]
mod tests;

use app::App;
use feed::Feed;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a key may wait for what the daemon said.
const TICK: Duration = Duration::from_millis(100);

/// Why there is nothing to see.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    /// Output or input is a file or a pipe.
    #[error("`top` draws on a terminal and this is none; `ballast-host status --json` is for programs")]
    NoTerminal,
    /// The terminal.
    #[error("the terminal")]
    Terminal(#[from] std::io::Error),
}

/// Runs until the operator has seen enough.
///
/// # Errors
/// There is no terminal, or it fails.
pub fn run(socket: &Path) -> Result<(), TopError> {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return Err(TopError::NoTerminal);
    }
    let feed = Feed::start(PathBuf::from(socket))?;
    // Gives the terminal back before a panic is printed.
    let mut terminal = ratatui::try_init()?;
    let begun = Instant::now();
    let mut app = App::default();
    let ended = loop {
        while let Some(news) = feed.news() {
            app.learn(begun.elapsed(), news);
        }
        if app.is_over() {
            break Ok(());
        }
        if let Err(error) = terminal.draw(|frame| draw::draw(frame, &mut app, begun.elapsed())) {
            break Err(error);
        }
        match next_key() {
            // A resize needs nothing but the next drawing.
            Ok(None) => {}
            Ok(Some(key)) => {
                if let Some(wish) = keys::press(&mut app, key) {
                    feed.tell(wish);
                }
            }
            Err(error) => break Err(error),
        }
    };
    ratatui::restore();
    Ok(ended?)
}

fn next_key() -> std::io::Result<Option<event::KeyEvent>> {
    if !event::poll(TICK)? {
        return Ok(None);
    }
    match event::read()? {
        Event::Key(key) if key.kind == KeyEventKind::Press => Ok(Some(key)),
        _ => Ok(None),
    }
}
