//! What each key does.

use super::app::{App, Place};
use super::feed::Wish;
use super::hold::{Form, Typed};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// Does what a key says; returns what the daemon must be asked for it.
pub(super) fn press(app: &mut App, key: KeyEvent) -> Option<Wish> {
    // In raw mode the terminal does not make a signal of it.
    if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) {
        app.end();
        return None;
    }
    app.said = None;
    match &mut app.place {
        Place::List => list(app, key.code),
        Place::Filter => {
            filter(app, key.code);
            None
        }
        Place::Explain(line) => {
            let line = *line;
            explain(app, line, key.code)
        }
        Place::Hold(form) => {
            let (typed, vm) = (form.press(key.code), form.vm.clone());
            let wish = match typed {
                Typed::More => return None,
                Typed::Cancelled => None,
                Typed::Request(request) => Some(Wish::Hold(vm, request)),
            };
            app.place = Place::List;
            wish
        }
    }
}

fn list(app: &mut App, code: KeyCode) -> Option<Wish> {
    let page = isize::try_from(app.page.max(1)).unwrap_or(isize::MAX);
    match code {
        KeyCode::Char('q') => app.end(),
        KeyCode::Char('s') => {
            app.column = app.column.next();
            app.sort();
        }
        KeyCode::Char('S') => {
            app.reversed = !app.reversed;
            app.sort();
        }
        KeyCode::Char('/') => app.place = Place::Filter,
        KeyCode::Esc => app.filter.clear(),
        KeyCode::Char('h') => {
            let vm = app.chosen()?;
            let size = app.rows.iter().find(|row| row.vm.name == vm).and_then(|row| row.vm.actual);
            app.selected = Some(vm.clone());
            app.place = Place::Hold(Form::new(vm, size));
        }
        KeyCode::Char('e') | KeyCode::Enter => {
            let vm = app.chosen()?;
            return Some(app.explain(Some(vm)));
        }
        KeyCode::Down | KeyCode::Char('j') => app.step(1),
        KeyCode::Up | KeyCode::Char('k') => app.step(-1),
        KeyCode::PageDown => app.step(page),
        KeyCode::PageUp => app.step(-page),
        KeyCode::Home => app.step(isize::MIN),
        KeyCode::End => app.step(isize::MAX),
        _ => {}
    }
    None
}

fn filter(app: &mut App, code: KeyCode) {
    match code {
        KeyCode::Enter => app.place = Place::List,
        KeyCode::Esc => {
            app.filter.clear();
            app.place = Place::List;
        }
        KeyCode::Backspace => drop(app.filter.pop()),
        KeyCode::Char(c) => app.filter.push(c),
        _ => {}
    }
}

fn explain(app: &mut App, line: u16, code: KeyCode) -> Option<Wish> {
    let page = u16::try_from(app.page.max(1)).unwrap_or(u16::MAX);
    let to = match code {
        KeyCode::Char('q' | 'e') | KeyCode::Esc | KeyCode::Enter => return Some(app.explain(None)),
        KeyCode::Down | KeyCode::Char('j') => line.saturating_add(1),
        KeyCode::Up | KeyCode::Char('k') => line.saturating_sub(1),
        KeyCode::PageDown => line.saturating_add(page),
        KeyCode::PageUp => line.saturating_sub(page),
        KeyCode::Home => 0,
        KeyCode::End => u16::MAX,
        _ => line,
    };
    app.place = Place::Explain(to);
    None
}
