//! Line plots as SVG that follow the reader's theme: colours are drawn as numbers that stand for names, and the names of
//! CSS variables are put in their place, as the lab's report does.

use super::escaped;
use plotters::prelude::*;

/// Drawn pixels, twice the nominal size, because plotters rounds to whole ones.
const SIZE: (u32, u32) = (1000, 680);
/// Light and dark, in the order of the table of scores; from the palette of Okabe and Ito.
const COLORS: [(&str, &str); 6] = [
    ("#d1410c", "#ff8150"),
    ("#64707d", "#a3adba"),
    ("#0072b2", "#5aaeea"),
    ("#946600", "#dcae45"),
    ("#00856a", "#38c9a2"),
    ("#aa4499", "#e58bd6"),
];
/// What a guide is drawn with, and text.
const MUTED: usize = 90;

/// One axis.
pub struct Axis {
    /// What it is.
    pub words: &'static str,
    /// Where it begins.
    pub low: f64,
    /// Where it ends.
    pub high: f64,
    /// How its numbers are written.
    pub show: fn(f64) -> String,
}

impl Axis {
    /// Of parts of a whole.
    pub fn percent(words: &'static str, low: f64, high: f64) -> Self {
        Self { words, low, high, show: |v| format!("{:.0} %", v * 100.0) }
    }
}

/// One line.
pub struct Line {
    name: String,
    color: usize,
    width: u32,
    /// Its points.
    pub points: Vec<(f64, f64)>,
}

impl Line {
    /// The line of the predictor at `place` in the table; without a name it is not in the key.
    pub fn of(place: usize, name: &str, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.to_owned(), color: place % COLORS.len(), width: if place == 0 { 5 } else { 3 }, points }
    }

    /// A thin line to compare with.
    pub fn guide(points: Vec<(f64, f64)>) -> Self {
        Self { name: String::new(), color: MUTED, width: 1, points }
    }
}

/// Blue is the place in the palette.
fn color(place: usize) -> RGBColor {
    RGBColor(1, 0, u8::try_from(place).unwrap_or(u8::MAX))
}

/// The variables of all colours, light and dark.
pub fn css() -> String {
    let list = |of: fn(&(&'static str, &'static str)) -> &'static str| {
        COLORS.iter().enumerate().map(|(i, c)| format!("--s{i}:{};", of(c))).collect::<String>()
    };
    format!(":root{{{}}}\n@media (prefers-color-scheme:dark){{:root{{{}}}}}\n", list(|c| c.0), list(|c| c.1))
}

/// A figure: title, plot, key.
///
/// # Errors
/// None that a reader could cause: it is drawn into memory.
pub fn draw(title: &str, x: Axis, y: Axis, lines: &[Line]) -> Result<String, Box<dyn std::error::Error>> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(16)
            .x_label_area_size(72)
            .y_label_area_size(110)
            .build_cartesian_2d(x.low..x.high, y.low..y.high)?;
        let text = ("sans-serif", 30).into_font().color(&color(MUTED));
        chart
            .configure_mesh()
            .disable_mesh()
            .axis_style(ShapeStyle { color: color(MUTED).to_rgba(), filled: false, stroke_width: 1 })
            .label_style(text.clone())
            .axis_desc_style(text)
            .x_labels(6)
            .y_labels(6)
            .x_label_formatter(&|v: &f64| (x.show)(*v))
            .y_label_formatter(&|v: &f64| (y.show)(*v))
            .x_desc(x.words)
            .y_desc(y.words)
            .draw()?;
        // The first is the one to be seen: it comes last.
        for line in lines.iter().rev() {
            let style = ShapeStyle { color: color(line.color).to_rgba(), filled: false, stroke_width: line.width };
            chart.draw_series(LineSeries::new(line.points.iter().copied(), style))?;
        }
        root.present()?;
    }
    let mut body = svg.split_once('>').map_or("", |(_, body)| body).to_owned();
    for place in (0..COLORS.len()).chain([MUTED]) {
        let RGBColor(r, g, b) = color(place);
        let name = if place == MUTED { "var(--muted)".to_owned() } else { format!("var(--s{place})") };
        body = body.replace(&format!("#{r:02X}{g:02X}{b:02X}"), &name);
    }
    let key: String = lines
        .iter()
        .filter(|l| !l.name.is_empty())
        .map(|l| format!("<li style=\"color:var(--s{})\">{}</li>", l.color, escaped(&l.name)))
        .collect();
    let title = escaped(title);
    Ok(format!(
        "<figure><figcaption>{title}</figcaption><svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{title}\">{body}<ul \
         class=\"key\">{key}</ul></figure>\n",
        SIZE.0, SIZE.1
    ))
}
