//! The predicted curve, size against loss of service, for people: whoever is to trust a model wants to see what it says.
//!
//! In a terminal by ratatui's chart, in a file as SVG by plotters. Both show the same: the median, the band up to the
//! 95 % quantile that decides, the budget, and where the VM is now.

use plotters::prelude::*;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::symbols::Marker;
use ratatui::text::Line;
use ratatui::widgets::{Axis, Chart, Dataset, GraphType, Widget};
use serde::{Deserialize, Serialize};

/// What a model says of one VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// The VM.
    pub vm: String,
    /// Which model.
    pub model: String,
    /// What the VM keeps now, MiB.
    pub kept_mib: f64,
    /// The loss that is allowed, 0 to 1.
    pub budget: f64,
    /// By size, ascending.
    pub points: Vec<CurvePoint>,
}

/// What is expected at one size.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// The size, MiB.
    pub mib: f64,
    /// The loss of service in the horizon, 0 to 1: half of all outcomes are no worse.
    pub median: f64,
    /// 95 of 100 are no worse, by the model.
    pub q95: f64,
    /// The same after calibration on what came of earlier predictions for this VM: this one decides.
    pub calibrated: f64,
    /// The probability of pressure in the horizon.
    pub pressure: f64,
}

/// Columns and lines of the terminal's plot.
const PLOT: (u16, u16) = (78, 20);
/// Pixels of the SVG.
const PICTURE: (u32, u32) = (800, 420);
/// A curve without any loss still needs a scale.
const LEAST_SCALE: f64 = 0.02;

impl Curve {
    fn sizes(&self) -> Option<(f64, f64)> {
        let (first, last) = (self.points.first()?.mib, self.points.last()?.mib);
        (last > first).then_some((first, last))
    }

    /// The highest loss shown, in percent.
    fn scale(&self) -> f64 {
        let most = self.points.iter().map(|p| p.calibrated.max(p.q95).max(p.median));
        100.0 * most.fold(self.budget.max(LEAST_SCALE), f64::max) * 1.05
    }

    fn line(&self, of: impl Fn(&CurvePoint) -> f64) -> Vec<(f64, f64)> {
        self.points.iter().map(|p| (p.mib, 100.0 * of(p))).collect()
    }

    /// For a terminal, with a line for each size below it.
    #[must_use]
    pub fn text(&self) -> String {
        let Some((first, last)) = self.sizes() else { return format!("{}: nothing is predicted\n", self.vm) };
        let scale = self.scale();
        let (median, q95, calibrated) = (self.line(|p| p.median), self.line(|p| p.q95), self.line(|p| p.calibrated));
        let budget = [(first, 100.0 * self.budget), (last, 100.0 * self.budget)];
        let now = [(self.kept_mib, 0.0), (self.kept_mib, scale)];
        let set = |name: &'static str, data, marker| {
            Dataset::default().name(name).marker(marker).graph_type(GraphType::Line).data(data)
        };
        let sets = vec![
            set("budget", &budget[..], Marker::Dot),
            set("now", &now[..], Marker::Dot),
            set("50 %", &median, Marker::Braille),
            set("95 %", &q95, Marker::Braille),
            set("95 % calibrated", &calibrated, Marker::Block),
        ];
        let label = |text: String| Line::from(text);
        let middle = f64::midpoint(first, last);
        let x = Axis::default()
            .title("MiB")
            .bounds([first, last])
            .labels([first, middle, last].map(|v| label(format!("{v:.0}"))).to_vec());
        let y = Axis::default()
            .title("% of service lost")
            .bounds([0.0, scale])
            .labels([0.0, scale / 2.0, scale].map(|v| label(format!("{v:.1}"))).to_vec());
        let area = Rect::new(0, 0, PLOT.0, PLOT.1);
        let mut buffer = Buffer::empty(area);
        Chart::new(sets).style(Style::default()).x_axis(x).y_axis(y).render(area, &mut buffer);
        let mut out = format!("{}: what {} expects of the next 10 s at each size\n", self.vm, self.model);
        for row in 0..PLOT.1 {
            let cells: String = (0..PLOT.0).map(|column| buffer[(column, row)].symbol().to_owned()).collect();
            out.push_str(cells.trim_end());
            out.push('\n');
        }
        out.push_str("     MiB   50 %   95 %  calibrated  pressure\n");
        for p in &self.points {
            let [a, b, c, d] = [p.median, p.q95, p.calibrated, p.pressure].map(|v| 100.0 * v);
            out.push_str(&format!("{:8.0} {a:6.2} {b:6.2}  {c:10.2}  {d:8.1}\n", p.mib));
        }
        out
    }

    /// As a picture.
    ///
    /// # Errors
    /// There is nothing to draw, or it cannot be drawn; for people.
    pub fn svg(&self) -> Result<String, String> {
        let (first, last) = self.sizes().ok_or_else(|| format!("nothing is predicted for {}", self.vm))?;
        let mut out = String::new();
        self.draw(&mut out, first, last).map_err(|e| format!("the curve of {} cannot be drawn: {e}", self.vm))?;
        Ok(out)
    }

    fn draw(&self, out: &mut String, first: f64, last: f64) -> Result<(), Box<dyn std::error::Error>> {
        let scale = self.scale();
        let root = SVGBackend::with_string(out, PICTURE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(12)
            .caption(format!("{}: loss of service expected in the next 10 s ({})", self.vm, self.model), ("sans-serif", 16))
            .x_label_area_size(36)
            .y_label_area_size(52)
            .build_cartesian_2d(first..last, 0.0..scale)?;
        chart.configure_mesh().x_desc("MiB kept").y_desc("% of service lost").light_line_style(WHITE).draw()?;
        let band: Vec<(f64, f64)> =
            self.line(|p| p.median).into_iter().chain(self.line(|p| p.calibrated).into_iter().rev()).collect();
        chart
            .draw_series(std::iter::once(Polygon::new(band, BLUE.mix(0.15))))?
            .label("50 to 95 %, calibrated")
            .legend(|(x, y)| Rectangle::new([(x, y - 5), (x + 16, y + 5)], BLUE.mix(0.15).filled()));
        let lines = [("50 %", self.line(|p| p.median), BLUE), ("95 %, the model's", self.line(|p| p.q95), MAGENTA)];
        for (name, line, colour) in lines {
            chart
                .draw_series(LineSeries::new(line, colour.stroke_width(2)))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        }
        let budget = 100.0 * self.budget;
        chart
            .draw_series(LineSeries::new([(first, budget), (last, budget)], RED.stroke_width(1)))?
            .label("budget")
            .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], RED));
        if (first..=last).contains(&self.kept_mib) {
            chart
                .draw_series(LineSeries::new([(self.kept_mib, 0.0), (self.kept_mib, scale)], BLACK.stroke_width(1)))?
                .label("kept now")
                .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], BLACK));
        }
        chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()?;
        root.present()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn falling() -> Curve {
        let point = |i: u32| {
            let loss = f64::from(15 - i) / 50.0;
            CurvePoint {
                mib: 100.0 + 20.0 * f64::from(i),
                median: loss / 4.0,
                q95: loss,
                calibrated: loss * 1.1,
                pressure: loss,
            }
        };
        let points = (0..16).map(point).collect();
        Curve { vm: "web".into(), model: "network 1".into(), kept_mib: 240.0, budget: 0.01, points }
    }

    #[test]
    fn a_terminal_shows_the_curve_and_its_figures() {
        let text = falling().text();
        assert!(text.starts_with("web: what network 1 expects"), "{text}");
        let figures = text.lines().filter(|l| l.split_whitespace().filter_map(|w| w.parse::<f64>().ok()).count() == 5);
        assert_eq!(figures.count(), 16, "{text}");
        // The calibrated curve falls from the left to the right.
        let column = |row: &str| row.chars().position(|c| c == '█');
        let columns: Vec<usize> = text.lines().take(21).filter_map(column).collect();
        assert!(columns.len() > 5 && columns.is_sorted(), "{columns:?}\n{text}");
    }

    #[test]
    fn a_picture_has_both_lines_and_the_budget() {
        let svg = falling().svg().unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        for text in ["budget", "kept now", "MiB kept", "50 %"] {
            assert!(svg.contains(text), "{text}");
        }
    }

    #[test]
    fn nothing_predicted_is_said() {
        let nothing = Curve { points: Vec::new(), ..falling() };
        assert_eq!(nothing.text(), "web: nothing is predicted\n");
        assert_eq!(nothing.svg(), Err("nothing is predicted for web".to_owned()));
        let flat = Curve { points: falling().points.into_iter().map(|p| CurvePoint { median: 0.0, q95: 0.0, calibrated: 0.0, ..p }).collect(), ..falling() };
        assert!(flat.svg().is_ok() && flat.text().contains("now"));
    }
}
