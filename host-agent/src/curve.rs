//! The predicted curve, size against loss of service, for people: whoever is to trust a model wants to see what it says.
//!
//! In a terminal by ratatui's chart, in a file as SVG by plotters. Both show the same: the median, the band up to the
//! 95 % quantile that decides, what is allowed, and where the VM is now.

use ballast_planner::{CurvePoint, VmStatus};
use ballast_protocol::Bytes;
use plotters::prelude::*;
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Rect};
use ratatui::style::Style;
use ratatui::symbols::Marker;
use ratatui::text::Line;
use ratatui::widgets::{Axis, Chart, Dataset, GraphType, LegendPosition, Widget};
use std::fmt::Write;

/// What is drawn.
struct Curve<'a> {
    vm: &'a str,
    model: &'a str,
    /// What the VM keeps now, MiB.
    kept: f64,
    /// The loss that is allowed, percent: the budget, and what all of the memory would lose as well.
    allowed: f64,
    /// By size, ascending: MiB, and percent.
    points: Vec<At>,
}

/// What is expected at one size, in percent of the next ten seconds.
#[derive(Clone, Copy)]
struct At {
    mib: f64,
    /// Half of all outcomes are no worse.
    median: f64,
    /// 95 of 100 are no worse, by the model.
    q95: f64,
    /// The same after correction by what came of earlier forecasts for this VM: this one decides.
    bound: f64,
    /// The probability of pressure.
    pressure: f64,
}

/// Columns and lines of the terminal's plot.
const PLOT: (u16, u16) = (78, 20);
/// Pixels of the SVG.
const PICTURE: (u32, u32) = (800, 420);
/// A curve without any loss still needs a scale.
const LEAST_SCALE: f64 = 2.0;

/// For a terminal, with a line for each size below it. `None`: nothing is predicted for this VM.
#[must_use]
pub fn text(vm: &VmStatus) -> Option<String> {
    let curve = Curve::of(vm)?;
    let sizes = curve.sizes()?;
    Some(curve.text(sizes))
}

/// As a picture.
///
/// # Errors
/// There is nothing to draw, or it cannot be drawn; for people.
pub fn svg(vm: &VmStatus) -> Result<String, String> {
    let curve = Curve::of(vm).and_then(|curve| Some((curve.sizes()?, curve)));
    let (sizes, curve) = curve.ok_or_else(|| format!("nothing is predicted for {}: see `explain {0}`", vm.name))?;
    let mut out = String::new();
    curve.draw(&mut out, sizes).map_err(|e| format!("the curve of {} cannot be drawn: {e}", vm.name))?;
    Ok(out)
}

fn percent(millionths: u32) -> f64 {
    f64::from(millionths) / 1e4
}

fn mib(size: Bytes) -> f64 {
    size.0 as f64 / f64::from(1 << 20)
}

impl<'a> Curve<'a> {
    fn of(vm: &'a VmStatus) -> Option<Self> {
        let forecast = vm.forecast.as_ref()?;
        let at = |p: &CurvePoint| At {
            mib: mib(p.size),
            median: percent(p.loss_ppm[0]),
            q95: percent(p.loss_ppm[2]),
            bound: percent(p.bound_ppm),
            pressure: percent(p.pressure_ppm),
        };
        Some(Self {
            vm: &vm.name.0,
            model: forecast.model.as_deref()?,
            kept: mib(vm.actual.unwrap_or(vm.target)),
            allowed: percent(forecast.allowed_ppm.unwrap_or(forecast.budget.millionths())),
            points: forecast.points.iter().map(at).collect(),
        })
    }

    fn sizes(&self) -> Option<(f64, f64)> {
        let (first, last) = (self.points.first()?.mib, self.points.last()?.mib);
        (last > first).then_some((first, last))
    }

    /// The highest loss shown, in percent.
    fn scale(&self) -> f64 {
        let most = self.points.iter().map(|p| p.bound.max(p.q95).max(p.median));
        most.fold(self.allowed.max(LEAST_SCALE), f64::max) * 1.05
    }

    fn line(&self, of: impl Fn(&At) -> f64) -> Vec<(f64, f64)> {
        self.points.iter().map(|p| (p.mib, of(p))).collect()
    }

    fn text(&self, (first, last): (f64, f64)) -> String {
        let scale = self.scale();
        let (median, q95, bound) = (self.line(|p| p.median), self.line(|p| p.q95), self.line(|p| p.bound));
        let allowed = [(first, self.allowed), (last, self.allowed)];
        let now = [(self.kept, 0.0), (self.kept, scale)];
        let set = |name: &'static str, data, marker| {
            Dataset::default().name(name).marker(marker).graph_type(GraphType::Line).data(data)
        };
        let sets = vec![
            set("allowed", &allowed[..], Marker::Dot),
            set("now", &now[..], Marker::Dot),
            set("50 %", &median, Marker::Braille),
            set("95 %", &q95, Marker::Braille),
            set("95 % corrected", &bound, Marker::Block),
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
        // The legend would be hidden where it takes more than a quarter of the height.
        let room = (Constraint::Percentage(50), Constraint::Percentage(60));
        let chart = Chart::new(sets).style(Style::default()).x_axis(x).y_axis(y);
        chart.legend_position(Some(LegendPosition::TopRight)).hidden_legend_constraints(room).render(area, &mut buffer);
        let mut out = format!("{}: what {} expects of the next 10 s at each size\n", self.vm, self.model);
        for row in 0..PLOT.1 {
            let cells: String = (0..PLOT.0).map(|column| buffer[(column, row)].symbol().to_owned()).collect();
            out.push_str(cells.trim_end());
            out.push('\n');
        }
        out.push_str("     MiB   50 %   95 %   corrected  pressure\n");
        for p in &self.points {
            let At { mib, median, q95, bound, pressure } = p;
            let _ = writeln!(out, "{mib:8.0} {median:6.2} {q95:6.2}  {bound:10.2}  {pressure:8.1}");
        }
        out
    }

    fn draw(&self, out: &mut String, (first, last): (f64, f64)) -> Result<(), Box<dyn std::error::Error>> {
        let scale = self.scale();
        let root = SVGBackend::with_string(out, PICTURE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(12)
            .caption(
                format!("{}: loss of service expected in the next 10 s ({})", self.vm, self.model),
                ("sans-serif", 16),
            )
            .x_label_area_size(36)
            .y_label_area_size(52)
            .build_cartesian_2d(first..last, 0.0..scale)?;
        chart.configure_mesh().x_desc("MiB kept").y_desc("% of service lost").light_line_style(WHITE).draw()?;
        let band: Vec<(f64, f64)> =
            self.line(|p| p.median).into_iter().chain(self.line(|p| p.bound).into_iter().rev()).collect();
        chart
            .draw_series(std::iter::once(Polygon::new(band, BLUE.mix(0.15))))?
            .label("50 to 95 %, corrected")
            .legend(|(x, y)| Rectangle::new([(x, y - 5), (x + 16, y + 5)], BLUE.mix(0.15).filled()));
        let lines = [("50 %", self.line(|p| p.median), BLUE), ("95 %, the model's", self.line(|p| p.q95), MAGENTA)];
        for (name, line, colour) in lines {
            chart
                .draw_series(LineSeries::new(line, colour.stroke_width(2)))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        }
        let allowed = self.allowed;
        chart
            .draw_series(LineSeries::new([(first, allowed), (last, allowed)], RED.stroke_width(1)))?
            .label("allowed")
            .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], RED));
        if (first..=last).contains(&self.kept) {
            chart
                .draw_series(LineSeries::new([(self.kept, 0.0), (self.kept, scale)], BLACK.stroke_width(1)))?
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
    use ballast_planner::{Facts, ForecastStatus, Input, Mode, Planner, Ratio, VmName, VmSettings};
    use ballast_protocol::Micros;

    fn vm(points: Vec<CurvePoint>) -> VmStatus {
        let mut planner = Planner::new();
        let vm = VmName::from("web");
        let size = Bytes::mib(240);
        let facts = Facts { max: size, actual: size, running: true, balloon: true, deflate_on_oom: Some(true) };
        planner.handle(Micros::ZERO, Input::Vm { vm: vm.clone(), facts, settings: VmSettings::default() });
        let mut status = VmStatus::of(&vm, planner.vm(&vm).unwrap(), Micros::secs(1));
        status.forecast = Some(ForecastStatus {
            mode: Mode::Shadow,
            used: false,
            standing: "good".to_owned(),
            model: Some("network 1".to_owned()),
            age: None,
            budget: Ratio::percent(1),
            allowed_ppm: Some(14_000),
            size: None,
            headroom: None,
            coverage: None,
            judged: 0,
            missed: 0,
            refused: 0,
            points,
        });
        status
    }

    fn falling(loss: u32) -> VmStatus {
        let point = |i: u32| CurvePoint {
            size: Bytes::mib(100 + 20 * u64::from(i)),
            loss_ppm: [1, 3, 4, 6].map(|q| q * loss * (15 - i)),
            bound_ppm: 5 * loss * (15 - i),
            pressure_ppm: loss * (15 - i),
        };
        vm((0..16).map(point).collect())
    }

    #[test]
    fn a_terminal_shows_the_curve_and_its_figures() {
        let text = text(&falling(4_000)).unwrap();
        assert!(text.starts_with("web: what network 1 expects"), "{text}");
        let figures = text.lines().filter(|l| l.split_whitespace().filter_map(|w| w.parse::<f64>().ok()).count() == 5);
        assert_eq!(figures.count(), 16, "{text}");
        // The corrected curve falls from the left to the right.
        let columns: Vec<usize> = text.lines().filter_map(|row| row.chars().position(|c| c == '█')).collect();
        assert!(columns.len() > 5 && columns.is_sorted(), "{columns:?}\n{text}");
    }

    #[test]
    fn a_picture_has_both_lines_and_what_is_allowed() {
        let svg = svg(&falling(4_000)).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        for text in ["allowed", "kept now", "MiB kept", "50 %"] {
            assert!(svg.contains(text), "{text}");
        }
    }

    #[test]
    fn nothing_predicted_is_said() {
        let nothing = vm(Vec::new());
        assert_eq!(text(&nothing), None);
        assert_eq!(svg(&nothing), Err("nothing is predicted for web: see `explain web`".to_owned()));
        assert!(text(&falling(0)).is_some_and(|t| t.contains("now")) && svg(&falling(0)).is_ok());
    }
}
