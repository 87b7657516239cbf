//! One look for all plots, in light and in dark.
//!
//! Plotters writes colours as numbers. Every ink here is a number that stands for a name, and [`finish`] puts CSS
//! variables in their place, so that a plot follows the reader's theme as its text does. Plots are drawn at twice
//! their nominal size, because plotters rounds to whole pixels.

use anyhow::Result;
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Drawn pixels per nominal one.
pub const SCALE: i32 = 2;

/// What things are drawn with, by role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ink {
    /// Text.
    Text = 1,
    /// Text that explains.
    Muted,
    /// Lines of a grid.
    Grid,
    /// Background.
    Page,
    /// Limits.
    Bad,
    /// Phases.
    Shade,
}

const ROLES: [(Ink, &str); 6] = [
    (Ink::Text, "text"),
    (Ink::Muted, "muted"),
    (Ink::Grid, "grid"),
    (Ink::Page, "page"),
    (Ink::Bad, "bad"),
    (Ink::Shade, "shade"),
];

/// Arm, colour in light, colour in dark. From the palettes of Okabe and Ito and of Paul Tol, which differ for
/// colour-blind readers too, shifted until each has a contrast of 3 with its background.
const ARMS: [(&str, &str, &str); 12] = [
    ("static", "#64707d", "#a3adba"),
    ("ballast", "#d1410c", "#ff8150"),
    ("predictive", "#3b6e00", "#8fd14f"),
    ("fixed", "#0072b2", "#5aaeea"),
    ("deflate-on-oom", "#946600", "#dcae45"),
    ("free-page-reporting", "#00856a", "#38c9a2"),
    ("threshold", "#aa4499", "#e58bd6"),
    ("mom", "#40309a", "#a99bff"),
    ("proxmox", "#1a8ac4", "#80d0ff"),
    ("headroom", "#882255", "#ef83ae"),
    ("drs", "#6b7a1e", "#c0cf5a"),
    ("cgroup", "#7a4a2b", "#d3a583"),
];
/// An arm that has no colour of its own, as `fixed@256`.
const OTHER: usize = ARMS.len();
const ARM: u8 = 100;

impl Ink {
    /// The number that stands for it.
    #[must_use]
    pub const fn color(self) -> RGBColor {
        RGBColor(1, 0, self as u8)
    }
}

fn place(arm: &str) -> usize {
    ARMS.iter().position(|(name, ..)| *name == arm).unwrap_or(OTHER)
}

/// The same colour for an arm in every plot.
#[must_use]
pub fn arm(arm: &str) -> RGBColor {
    RGBColor(1, 0, ARM + place(arm) as u8)
}

/// The same for HTML.
#[must_use]
pub fn arm_css(arm: &str) -> String {
    format!("var(--arm{})", place(arm))
}

/// The variables of all arms, light and dark.
#[must_use]
pub fn css() -> String {
    let list = |color: fn(&(&str, &'static str, &'static str)) -> &'static str, other: &str| {
        let arms = ARMS.iter().enumerate().map(|(i, arm)| format!("--arm{i}:{};", color(arm)));
        arms.chain([format!("--arm{OTHER}:{other};")]).collect::<String>()
    };
    let light = list(|a| a.1, "#555");
    let dark = list(|a| a.2, "#bbb");
    format!(":root{{{light}}}\n@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n")
}

/// Text of a nominal size.
#[must_use]
pub fn text<'a>(size: i32, color: RGBColor, h: HPos, v: VPos) -> TextStyle<'a> {
    // The backend divides by 1.24, which is what a font's size is to its height.
    let size = f64::from(size * SCALE) * 1.24;
    TextStyle { font: ("sans-serif", size).into_font(), color: color.to_backend_color(), pos: Pos::new(h, v) }
}

/// How wide a text of a nominal size is about, drawn pixels: an average letter of a sans-serif font is 0.56 of its size.
#[must_use]
pub fn width(text: &str, size: i32) -> i32 {
    (text.chars().count() as f64 * f64::from(size * SCALE) * 0.56) as i32
}

/// A line's style, of a nominal width in tenths.
#[must_use]
pub fn line(color: RGBColor, tenths: u32) -> ShapeStyle {
    ShapeStyle { color: color.to_rgba(), filled: false, stroke_width: (tenths * SCALE as u32).div_ceil(10) }
}

/// A plot while it is drawn.
pub type Root<'b> = DrawingArea<SVGBackend<'b>, Shift>;
/// Its axes.
pub type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// A logarithmic axis on a linear one of decimal logarithms, with lines at 1, 2 and 5: plotters' own has none but
/// powers of ten, which on less than two decades is one line.
///
/// # Errors
/// None that a reader could cause: it is drawn into memory.
pub fn log_lines(root: &Root<'_>, chart: &mut Chart<'_, '_>, size: i32, words: impl Fn(f64) -> String) -> Result<()> {
    let (x, y) = (chart.x_range(), chart.y_range());
    let decades = y.end - y.start;
    let steps: &[f64] = if decades > 3.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    for exponent in y.start.floor() as i32..=y.end.ceil() as i32 {
        for step in steps {
            let value = step * 10f64.powi(exponent);
            let at = value.log10();
            if !(y.start..=y.end).contains(&at) {
                continue;
            }
            chart.draw_series([PathElement::new(vec![(x.start, at), (x.end, at)], line(Ink::Grid.color(), 10))])?;
            let (left, middle) = chart.backend_coord(&(x.start, at));
            let style = text(size, Ink::Muted.color(), HPos::Right, VPos::Center);
            root.draw(&Text::new(words(value), (left - 6 * SCALE, middle), style))?;
        }
    }
    Ok(())
}

/// For text and attributes of HTML and SVG.
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            // Not allowed in a page, whatever a guest wrote into its results.
            c if c.is_control() && !matches!(c, '\n' | '\t') => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}

/// Something small and invisible to point at, that explains itself.
#[must_use]
pub fn hint((x, y): (i32, i32), radius: i32, words: &str) -> String {
    format!(
        "<circle class=\"hint\" cx=\"{x}\" cy=\"{y}\" r=\"{}\"><title>{}</title></circle>",
        radius * SCALE,
        escaped(words)
    )
}

/// Makes a plot part of the page: themed, scalable, with words for those who cannot see it, and hints on top.
#[must_use]
pub fn finish(svg: &str, words: &str, hints: &str) -> String {
    let mut svg = svg.to_owned();
    for (ink, name) in ROLES {
        svg = svg.replace(&number(ink.color()), &format!("var(--{name})"));
    }
    for i in 0..=OTHER {
        svg = svg.replace(&number(RGBColor(1, 0, ARM + i as u8)), &format!("var(--arm{i})"));
    }
    svg =
        svg.replace(" font-family=\"sans-serif\"", "").replace(" opacity=\"1\"", "").replace(" stroke-width=\"1\"", "");
    svg = svg.replace(">\n", ">").replace("\n<", "<").replace(" \"/>", "\"/>");
    // The backend's own head has a size in pixels and a name space that HTML does not need.
    let (head, body) = svg.split_once('>').unwrap_or_default();
    let view = head.split("viewBox=").nth(1).and_then(|v| v.split('"').nth(1)).unwrap_or_default();
    let body = body.strip_suffix("</svg>").unwrap_or(body);
    format!("<svg viewBox=\"{view}\" role=\"img\" aria-label=\"{}\">{body}{hints}</svg>\n", escaped(words))
}

fn number(RGBColor(r, g, b): RGBColor) -> String {
    format!("#{r:02X}{g:02X}{b:02X}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Relative luminance, as in WCAG 2.
    fn luminance(color: &str) -> f64 {
        let part = |i: usize| {
            let v = f64::from(u8::from_str_radix(&color[i..i + 2], 16).unwrap()) / 255.0;
            if v <= 0.04045 { v / 12.92 } else { ((v + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5)
    }

    fn contrast(a: &str, b: &str) -> f64 {
        let (a, b) = (luminance(a), luminance(b));
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    }

    #[test]
    fn every_arm_stands_out_from_its_background() {
        for (name, light, dark) in ARMS {
            assert!(contrast(light, "#ffffff") >= 3.0, "{name} {light}");
            assert!(contrast(dark, "#14171c") >= 4.5, "{name} {dark}");
        }
    }

    #[test]
    fn plots_have_names_of_colours_and_no_size() {
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, (200, 100)).into_drawing_area();
            root.draw(&Circle::new((5, 5), 3, arm("ballast").filled())).unwrap();
            root.draw(&Text::new("a < b", (9, 9), text(11, Ink::Text.color(), HPos::Left, VPos::Top))).unwrap();
            root.present().unwrap();
        }
        let svg = finish(&svg, "one & two", &hint((5, 5), 4, "<here>"));
        assert!(svg.starts_with("<svg viewBox=\"0 0 200 100\" role=\"img\" aria-label=\"one &amp; two\">"), "{svg}");
        assert!(svg.contains("fill=\"var(--arm1)\"") && svg.contains("fill=\"var(--text)\""), "{svg}");
        assert!(svg.contains("a &lt; b</text>") && svg.contains("<title>&lt;here&gt;</title></circle></svg>"), "{svg}");
        assert!(!svg.contains("#01") && !svg.contains("http"), "{svg}");
    }

    #[test]
    fn odd_letters_do_no_harm() {
        assert_eq!(escaped("<a href=\"x\">\u{1b}&\n"), "&lt;a href=&quot;x&quot;&gt; &amp;\n");
    }
}
