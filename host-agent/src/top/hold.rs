//! What an operator types to hold a VM: its size, for how long, and why.

use crate::control::HoldRequest;
use ballast_planner::VmName;
use ballast_protocol::{Bytes, Micros};
use ratatui::crossterm::event::KeyCode;

/// What is asked for, in order.
pub(super) const FIELDS: [&str; 3] = ["size, like 512M", "for, like 10m; empty: until released", "reason"];

/// A hold that is being typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Form {
    pub vm: VmName,
    /// Which of [`FIELDS`] is being typed.
    pub field: usize,
    pub texts: [String; 3],
    /// What is wrong with it.
    pub problem: Option<String>,
}

/// What a key does to a form.
#[derive(Debug)]
pub(super) enum Typed {
    /// It goes on.
    More,
    /// The operator thinks better of it.
    Cancelled,
    /// It is complete.
    Request(HoldRequest),
}

impl Form {
    /// Begins with the size the VM has.
    pub fn new(vm: VmName, size: Option<Bytes>) -> Self {
        let size = size.map_or_else(String::new, |size| format!("{}M", size.as_mib()));
        Self { vm, field: 0, texts: [size, String::new(), String::new()], problem: None }
    }

    pub fn press(&mut self, code: KeyCode) -> Typed {
        self.problem = None;
        let last = FIELDS.len() - 1;
        match code {
            KeyCode::Esc => return Typed::Cancelled,
            KeyCode::Enter if self.field == last => match self.read() {
                Ok(request) => return Typed::Request(request),
                Err((field, problem)) => (self.field, self.problem) = (field, Some(problem)),
            },
            KeyCode::Enter | KeyCode::Tab | KeyCode::Down => self.field = (self.field + 1).min(last),
            KeyCode::BackTab | KeyCode::Up => self.field = self.field.saturating_sub(1),
            KeyCode::Backspace => drop(self.texts[self.field].pop()),
            KeyCode::Char(c) => self.texts[self.field].push(c),
            _ => {}
        }
        Typed::More
    }

    /// The request, or which field is wrong and how. What the daemon knows better it will say.
    fn read(&self) -> Result<HoldRequest, (usize, String)> {
        let [size, during, reason] = self.texts.each_ref().map(|text| text.trim());
        let size: Bytes = size.parse().map_err(|e: ballast_protocol::ParseBytesError| (0, e.to_string()))?;
        let during = match during {
            "" => None,
            text => Some(Micros::from_duration(
                humantime::parse_duration(text)
                    .map_err(|e| (1, format!("`{text}` is no time: {e}; write 10m or 2h")))?,
            )),
        };
        if reason.is_empty() {
            return Err((2, "say why: the next operator reads it".to_owned()));
        }
        Ok(HoldRequest { size, during, reason: reason.to_owned(), force: false })
    }
}
