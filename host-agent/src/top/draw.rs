//! Draws it. Columns that a narrow terminal has no room for are left out, from the least urgent on.

use super::app::{App, Place, Row as Vm};
use super::hold::{FIELDS, Form};
use super::order::Column;
use crate::control::Status;
use crate::show;
use ballast_protocol::{Bytes, Micros};
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Cell, Paragraph, Row, Sparkline, Table, TableState};
use std::time::Duration;

const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const HEAD: Style = Style::new().add_modifier(Modifier::BOLD);
const BAD: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
const CHOSEN: Style = Style::new().add_modifier(Modifier::REVERSED);

/// A column: what it is called, how wide it is, and from which width of the terminal on it is shown.
struct Shown {
    column: Column,
    title: &'static str,
    width: u16,
    from: u16,
    cell: fn(&Vm) -> String,
}

/// In the order in which they stand.
const COLUMNS: [Shown; 7] = [
    Shown { column: Column::Size, title: "MiB", width: 7, from: 0, cell: |r| mib(r.vm.actual) },
    Shown { column: Column::Use, title: "use", width: 7, from: 0, cell: |r| mib(r.used()) },
    Shown { column: Column::Demand, title: "demand", width: 8, from: 40, cell: demand },
    Shown { column: Column::Floor, title: "floor", width: 7, from: 60, cell: |r| mib(r.vm.floor) },
    Shown { column: Column::Pressure, title: "psi", width: 5, from: 60, cell: pressure },
    Shown { column: Column::Service, title: "service", width: 9, from: 72, cell: |r| show::service(&r.vm) },
    Shown { column: Column::Last, title: "last decision", width: 0, from: 50, cell: last },
];

pub(super) fn draw(frame: &mut Frame<'_>, app: &mut App, at: Duration) {
    let area = frame.area();
    let [head, host, line, body, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(if area.height >= 16 { 2 } else { 0 }),
        Constraint::Min(0),
        Constraint::Length(foot_height(app)),
    ])
    .areas(area);
    frame.render_widget(header(app, at), head);
    frame.render_widget(budget(app), host);
    let chosen = app.chosen();
    match app.place {
        Place::List | Place::Filter | Place::Hold(_) => {
            history(frame, line, "all VMs", app.kept.make_contiguous());
            list(frame, body, app);
        }
        Place::Explain(at) => {
            if let Some(history_of) = chosen.and_then(|vm| app.kept_by.get_mut(&vm)) {
                history(frame, line, "this VM", history_of.make_contiguous());
            }
            explain(frame, body, app, at);
        }
    }
    frame.render_widget(footer(app), foot);
}

/// Who answers, or since when nobody does.
fn header(app: &App, at: Duration) -> Line<'static> {
    let name = app.status.as_ref().map_or_else(
        || format!("ballast-host top {}", env!("CARGO_PKG_VERSION")),
        |s| format!("ballast-host {} up {}, law {}, {} VMs{}", s.version, span(s.up), s.law, s.vms.len(), mode(s)),
    );
    match (&app.lost, &app.status) {
        (Some((since, why)), _) => {
            let gone = at.saturating_sub(*since).as_secs();
            Line::from(vec![Span::styled(format!("NO ANSWER for {gone} s: {why}  "), BAD), Span::styled(name, DIM)])
        }
        (None, Some(status)) => match wrong(status) {
            Some(wrong) => Line::from(vec![Span::styled(wrong, BAD), Span::styled(name, DIM)]),
            None => Line::styled(name, HEAD),
        },
        (None, None) => Line::styled("asking the daemon ...", DIM),
    }
}

/// The first of what waits for somebody to mend it; `status` has all of it.
fn wrong(status: &Status) -> Option<String> {
    let silent = status.hypervisors.iter().filter_map(|h| Some(format!("{}: {}", h.name, h.error.as_ref()?)));
    let mut all = silent.chain(status.problems.iter().cloned());
    let first = all.next()?;
    Some(match all.count() {
        0 => format!("WRONG: {first}  "),
        more => format!("WRONG, and {more} more in `status`: {first}  "),
    })
}

/// The host's memory.
fn budget(app: &App) -> Line<'static> {
    let Some(status) = &app.status else { return Line::default() };
    let kept: Bytes = status.vms.iter().filter_map(|vm| vm.actual).sum();
    let most: Bytes = status.vms.iter().map(|vm| vm.max).sum();
    let mut text = String::new();
    if let Some(host) = &status.host {
        text += &format!("host {}: {} free", host.total, host.available);
    }
    if let Some(pool) = &status.pool {
        text += &format!(", reserve {}, bursts {}", pool.reserve, pool.burst_reserve);
        if pool.reserved > Bytes::ZERO {
            text += &format!(", reserved {}", pool.reserved);
        }
    }
    if !text.is_empty() {
        text += "; ";
    }
    text += &format!("VMs keep {kept} of {most}");
    match status.pool.as_ref().map(|pool| pool.short).filter(|short| *short > Bytes::ZERO) {
        Some(short) => Line::from(vec![Span::styled(format!("HOST SHORT BY {short}  "), BAD), Span::raw(text)]),
        None => Line::raw(text),
    }
}

/// The last minutes, newest at the right.
fn history(frame: &mut Frame<'_>, area: Rect, what: &str, kept: &[u64]) {
    if area.height == 0 {
        return;
    }
    let shown = &kept[kept.len().saturating_sub(area.width.saturating_sub(12).into())..];
    // From half the least on: what moves is a small part of what is kept.
    let least = shown.iter().min().copied().unwrap_or(0) / 2;
    let bars: Vec<u64> = shown.iter().map(|kept| kept - least).collect();
    let [label, graph] = Layout::horizontal([Constraint::Length(12), Constraint::Min(0)]).areas(area);
    let newest = shown.last().map_or_else(String::new, |kept| Bytes::mib(*kept).to_string());
    frame.render_widget(Paragraph::new(vec![Line::raw(what.to_owned()), Line::raw(newest)]), label);
    frame.render_widget(Sparkline::default().data(bars).style(Style::new().fg(Color::Cyan)), graph);
}

fn list(frame: &mut Frame<'_>, area: Rect, app: &mut App) {
    let shown: Vec<&Shown> = COLUMNS.iter().filter(|c| area.width >= c.from).collect();
    let title = |column: Column, text: &str| {
        let arrow = match (app.column == column, app.reversed) {
            (true, false) => "▼",
            (true, true) => "▲",
            (false, _) => "",
        };
        format!("{text}{arrow}")
    };
    let cell = |column: &Shown, text: String| {
        let alignment = if column.width == 0 { Alignment::Left } else { Alignment::Right };
        Cell::from(Text::from(text).alignment(alignment))
    };
    let mut titles = vec![Cell::from(title(Column::Name, "VM"))];
    titles.extend(shown.iter().map(|c| cell(c, title(c.column, c.title))));
    let rows = app.listed().into_iter().map(|vm| {
        let mut cells = vec![Cell::from(vm.vm.name.0.clone())];
        cells.extend(shown.iter().map(|c| cell(c, (c.cell)(vm))));
        Row::new(cells).style(style(vm, app.lost.is_some()))
    });
    let name = Constraint::Length(if area.width >= 100 { 24 } else { 14 });
    let widths = std::iter::once(name).chain(shown.iter().map(|c| match c.width {
        0 => Constraint::Min(10),
        width => Constraint::Length(width),
    }));
    let table = Table::new(rows, widths).header(Row::new(titles).style(HEAD)).row_highlight_style(CHOSEN);
    let mut state = TableState::new().with_offset(app.offset).with_selected(app.position());
    frame.render_stateful_widget(table, area, &mut state);
    app.offset = state.offset();
    app.page = area.height.saturating_sub(1).into();
}

/// What needs somebody's eyes.
fn style(vm: &Vm, old: bool) -> Style {
    let short = vm.vm.service.is_some_and(|s| s.short);
    if old {
        DIM
    } else if short || vm.pressure.is_some_and(|p| p > 0) || !vm.vm.trusted {
        Style::new().fg(Color::Red)
    } else if vm.vm.want.is_some() || vm.vm.pending.is_some_and(|p| p > Bytes::ZERO) {
        Style::new().fg(Color::Yellow)
    } else if vm.vm.running {
        Style::new()
    } else {
        DIM
    }
}

fn explain(frame: &mut Frame<'_>, area: Rect, app: &mut App, at: u16) {
    app.page = area.height.into();
    let text = match &app.explained {
        None => "asking the daemon ...".to_owned(),
        Some(Ok(explained)) => show::explain(explained),
        Some(Err(why)) => why.clone(),
    };
    let lines = u16::try_from(text.lines().count()).unwrap_or(u16::MAX);
    let at = at.min(lines.saturating_sub(area.height));
    app.place = Place::Explain(at);
    frame.render_widget(Paragraph::new(text).scroll((at, 0)), area);
}

fn foot_height(app: &App) -> u16 {
    if matches!(app.place, Place::Hold(_)) { 5 } else { 1 }
}

fn footer(app: &App) -> Text<'static> {
    match (&app.place, &app.said) {
        (Place::Hold(form), _) => asked(form),
        (_, Some(Ok(done))) => Text::styled(done.clone(), HEAD),
        (_, Some(Err(problem))) => Text::styled(problem.clone(), BAD),
        (_, None) => keys(app).into(),
    }
}

/// The form for a hold.
fn asked(form: &Form) -> Text<'static> {
    let mut lines = vec![Line::styled(format!("hold {} (Enter: next, Esc: do not)", form.vm), HEAD)];
    for (n, (field, text)) in FIELDS.iter().zip(&form.texts).enumerate() {
        let (cursor, style) = if n == form.field { ("_", HEAD) } else { ("", Style::new()) };
        lines.push(Line::styled(format!("  {field}: {text}{cursor}"), style));
    }
    lines.push(Line::styled(form.problem.clone().unwrap_or_default(), BAD));
    lines.into()
}

fn keys(app: &App) -> Line<'static> {
    match app.place {
        Place::Hold(_) => Line::default(),
        Place::Filter => Line::raw(format!("names with: {}_   Enter keeps it, Esc forgets it", app.filter)),
        Place::Explain(_) => Line::styled("Esc back   up, down, PgUp, PgDn", DIM),
        Place::List if app.filter.is_empty() => {
            Line::styled("q quit  s sort  / filter  e explain  h hold  S turn the order", DIM)
        }
        Place::List => Line::styled(format!("names with `{}`, Esc shows all   q quit   e explain", app.filter), HEAD),
    }
}

fn mode(status: &Status) -> &'static str {
    if status.dry_run { ", DRY RUN: nothing is ordered" } else { "" }
}

/// A time in the two units that matter.
fn span(time: Micros) -> String {
    match time.0 / 1_000_000 {
        s @ 0..60 => format!("{s} s"),
        s @ 60..3_600 => format!("{} min {} s", s / 60, s % 60),
        s @ 3_600..86_400 => format!("{} h {} min", s / 3_600, s / 60 % 60),
        s => format!("{} d {} h", s / 86_400, s / 3_600 % 24),
    }
}

fn mib(size: Option<Bytes>) -> String {
    size.map_or_else(|| "-".to_owned(), |s| s.as_mib().to_string())
}

/// What the guest has asked for and not used yet; and, when the host has no more, the size it waits for.
fn demand(row: &Vm) -> String {
    let pending = mib(row.vm.pending.filter(|pending| *pending > Bytes::ZERO));
    row.vm.want.map_or_else(|| pending.clone(), |want| format!("{pending}/{}", want.as_mib()))
}

fn pressure(row: &Vm) -> String {
    row.pressure.map_or_else(|| "-".to_owned(), |percent| format!("{percent} %"))
}

/// An operator's hold, else the last move and why, else why there was none.
fn last(row: &Vm) -> String {
    if let Some(hold) = &row.vm.hold {
        return format!("held at {} by {}: {}", hold.size, hold.by, hold.reason);
    }
    match &row.vm.last {
        Some((ago, to, why)) => format!("{why}; {} ago, to {to}", span(*ago)),
        None => row.vm.holding.clone(),
    }
}
