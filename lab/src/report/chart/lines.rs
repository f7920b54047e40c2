//! Lines over an axis. Each line has a colour, a dash and a mark, so that it can be told without the colour.

use super::scale::Scale;
use super::{class_of, percent};
use crate::report::metric::tick as tick_text;
use crate::report::text::html as escape;
use crate::results::Kind;

/// Height of the plot in pixels; its margins are padding of the element.
const HEIGHT: usize = 300;
/// Colours and marks there are; lines past that share them but not the dash.
const COLOURS: usize = 8;
/// Most marks along one line, and how far apart they are where there are more points, as a share of the width.
const MARKS: usize = 12;
const APART: f64 = 0.09;

/// A chart of lines.
#[derive(Debug)]
pub(in crate::report) struct Lines {
    pub(in crate::report) x: Axis,
    /// Unit of the vertical axis.
    pub(in crate::report) y_unit: &'static str,
    pub(in crate::report) lines: Vec<Line>,
}

/// The horizontal axis.
#[derive(Debug)]
pub(in crate::report) enum Axis {
    /// Percentiles, stretched towards 100 so that the tail is seen; `x` is the share at or below, 0 to 1.
    Percentile,
    /// Any growing number, with its name.
    Number(String),
}

/// One line.
#[derive(Debug, Clone)]
pub(in crate::report) struct Line {
    pub(in crate::report) name: String,
    pub(in crate::report) kind: Kind,
    /// Ascending in x.
    pub(in crate::report) points: Vec<(f64, f64)>,
    /// Which colour and mark; the same arm has the same one in every chart.
    pub(in crate::report) slot: usize,
}

/// Where values of the horizontal axis lie.
enum Across {
    /// Up to so many nines.
    Nines(u32),
    Scale(Scale),
}

impl Across {
    fn of(axis: &Axis, lines: &[Line]) -> Self {
        let values: Vec<f64> = lines.iter().flat_map(|line| &line.points).map(|(x, _)| *x).collect();
        match axis {
            Axis::Number(_) => Self::Scale(Scale::growing(&values)),
            Axis::Percentile => {
                let most = values.iter().map(|share| nines(*share)).fold(0.0, f64::max);
                // Between 2 and 6, so that the cast is exact.
                Self::Nines(most.ceil().clamp(2.0, 6.0) as u32)
            }
        }
    }

    fn place(&self, x: f64) -> f64 {
        match self {
            Self::Nines(most) => (nines(x) / f64::from(*most)).clamp(0.0, 1.0),
            Self::Scale(scale) => scale.place(x),
        }
    }

    /// Place of each named value with its name.
    fn ticks(&self) -> Vec<(f64, String)> {
        match self {
            Self::Scale(scale) => scale.ticks().iter().map(|tick| (scale.place(*tick), tick_text(*tick, ""))).collect(),
            Self::Nines(most) => {
                const NAMES: [&str; 7] = ["0", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %", "99.9999 %"];
                let named = (0..=*most).zip(NAMES);
                named.map(|(n, name)| (f64::from(n) / f64::from(*most), name.to_owned())).collect()
            }
        }
    }

    fn is_logarithmic(&self) -> bool {
        matches!(self, Self::Scale(scale) if scale.is_logarithmic())
    }
}

/// How many nines a share has: 0.99 has two. Each takes the same room.
fn nines(share: f64) -> f64 {
    if share.is_nan() { 0.0 } else { -(1.0 - share).clamp(1e-12, 1.0).log10() }
}

impl Lines {
    pub(super) fn legend(&self) -> String {
        let item = |line: &Line| {
            let name = escape(&crate::report::text::name(&line.name));
            let key = format!(
                "<svg class=\"key\" width=\"34\" height=\"12\" aria-hidden=\"true\"><line class=\"line {} s{}\" x1=\"0\" y1=\"6\" \
                 x2=\"34\" y2=\"6\"/>{}</svg>",
                class_of(line.kind),
                line.slot % COLOURS,
                mark(line, "17", "6"),
            );
            format!("<li>{key}{name}</li>")
        };
        format!("<ul class=\"legend\">{}</ul>\n", self.lines.iter().map(item).collect::<String>())
    }

    /// Height in pixels and the marks.
    pub(super) fn svg(&self) -> (usize, String) {
        let across = Across::of(&self.x, &self.lines);
        let up = self.up(&across);
        let mut out = self.grid(&across, &up);
        for line in &self.lines {
            let real = line.points.iter().filter(|(x, y)| x.is_finite() && y.is_finite());
            let places: Vec<(f64, f64)> = real.map(|(x, y)| (across.place(*x), 1.0 - up.place(*y))).collect();
            out.push_str(&draw(line, &places));
        }
        (HEIGHT, out)
    }

    /// The vertical axis. Growth over a linear axis is read from zero, where what grows in step is a straight line.
    fn up(&self, across: &Across) -> Scale {
        let values: Vec<f64> = self.lines.iter().flat_map(|line| &line.points).map(|(_, y)| *y).collect();
        let highest = values.iter().copied().filter(|y| y.is_finite()).fold(0.0, f64::max);
        match across {
            Across::Scale(scale) if !scale.is_logarithmic() && self.y_unit == "bytes" => {
                Scale::bytes_from_zero(highest)
            }
            Across::Scale(scale) if !scale.is_logarithmic() => Scale::from_zero(highest),
            _ => Scale::fitting(values),
        }
    }

    fn grid(&self, across: &Across, up: &Scale) -> String {
        let mut out = String::new();
        for tick in up.ticks() {
            let y = percent(1.0 - up.place(*tick));
            let text = tick_text(*tick, if self.y_unit == "bytes" { "bytes" } else { "" });
            out.push_str(&format!(
                "<line class=\"grid\" x1=\"0\" x2=\"100%\" y1=\"{y}\" y2=\"{y}\"/>\
                 <text class=\"tick up\" x=\"-6\" y=\"{y}\" dy=\"4\" text-anchor=\"end\">{}</text>\n",
                escape(&text)
            ));
        }
        for (place, text) in across.ticks() {
            let x = percent(place);
            out.push_str(&format!(
                "<line class=\"grid\" x1=\"{x}\" x2=\"{x}\" y1=\"0\" y2=\"100%\"/>\
                 <text class=\"tick\" x=\"{x}\" y=\"100%\" dy=\"18\" text-anchor=\"middle\">{}</text>\n",
                escape(&text)
            ));
        }
        let log = |yes: bool| if yes { ", logarithmic" } else { "" };
        let x_title = match &self.x {
            Axis::Percentile => "share of all that took no longer".into(),
            Axis::Number(name) => format!("{name}{}", log(across.is_logarithmic())),
        };
        let unit = if self.y_unit.is_empty() { "number" } else { self.y_unit };
        out.push_str(&format!(
            "<text class=\"axis\" x=\"100%\" y=\"100%\" dy=\"36\" text-anchor=\"end\">{}</text>\
             <text class=\"axis\" x=\"0\" y=\"0\" dx=\"-50\" dy=\"-12\">{}{}</text>\n",
            escape(&x_title),
            escape(unit),
            log(up.is_logarithmic()),
        ));
        out
    }
}

/// The line, stretched with the plot, and its marks, which are not.
fn draw(line: &Line, places: &[(f64, f64)]) -> String {
    let path: Vec<String> = places.iter().map(|(x, y)| format!("{:.2},{:.2}", x * 1000.0, y * 1000.0)).collect();
    let class = format!("{} s{}", class_of(line.kind), line.slot % COLOURS);
    let mut out = format!("<g><title>{}</title>\n", escape(&line.name));
    if path.len() > 1 {
        out.push_str(&format!(
            "<svg viewBox=\"0 0 1000 1000\" preserveAspectRatio=\"none\" width=\"100%\" height=\"100%\" overflow=\"visible\">\
             <polyline class=\"line {class}\" points=\"{}\"/></svg>\n",
            path.join(" ")
        ));
    }
    // Of many points only some are marked; lines that lie on each other carry their marks at different places.
    let (mut next, apart) = if places.len() > MARKS { (line.slot as f64 * 0.01, APART) } else { (0.0, 0.0) };
    for (x, y) in places {
        if *x >= next {
            next = x + apart;
            out.push_str(&mark(line, &percent(*x), &percent(*y)));
        }
    }
    out + "</g>\n"
}

/// The shape of a slot at a place; shapes are defined once in the page.
fn mark(line: &Line, x: &str, y: &str) -> String {
    let slot = line.slot % COLOURS;
    format!("<use class=\"mark {} s{slot}\" href=\"#m{slot}\" x=\"{x}\" y=\"{y}\"/>", class_of(line.kind))
}

/// The page's shapes, one for each slot.
pub(in crate::report) fn shapes() -> String {
    let shapes = [
        "<circle r=\"4\"/>",
        "<rect x=\"-3.5\" y=\"-3.5\" width=\"7\" height=\"7\"/>",
        "<path d=\"M0-5 4.5 3.5-4.5 3.5Z\"/>",
        "<path d=\"M0-5 5 0 0 5-5 0Z\"/>",
        "<path d=\"M0 5 4.5-3.5-4.5-3.5Z\"/>",
        "<path d=\"M-4-4 4 4M4-4-4 4\" fill=\"none\" stroke-width=\"2.5\"/>",
        "<path d=\"M0-5V5M-5 0H5\" fill=\"none\" stroke-width=\"2.5\"/>",
        "<path d=\"M-5-1.5H5V1.5H-5Z\"/>",
    ];
    let defined = shapes.iter().enumerate().map(|(slot, shape)| format!("<g id=\"m{slot}\">{shape}</g>"));
    format!(
        "<svg width=\"0\" height=\"0\" class=\"shapes\" aria-hidden=\"true\"><defs>{}</defs></svg>\n",
        defined.collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(points: Vec<(f64, f64)>) -> Line {
        Line { name: "a<b".into(), kind: Kind::Engine, points, slot: 9 }
    }

    #[test]
    fn each_nine_takes_the_same_room() {
        for (share, wanted) in
            [(0.0, 0.0), (0.9, 1.0), (0.99, 2.0), (0.999, 3.0), (1.0, 12.0), (2.0, 12.0), (-1.0, 0.0), (f64::NAN, 0.0)]
        {
            assert!((nines(share) - wanted).abs() < 1e-9, "{share}");
        }
        let across = Across::of(&Axis::Percentile, &[line(vec![(0.5, 1.0), (0.999_95, 2.0)])]);
        let names: Vec<String> = across.ticks().into_iter().map(|(_, name)| name).collect();
        assert_eq!(names.last().unwrap(), "99.999 %", "the slowest has its place on the axis");
        assert!((across.place(0.9) - 0.2).abs() < 1e-9);
    }

    #[test]
    fn a_line_goes_through_its_points_and_leaves_out_what_is_no_number() {
        let points = vec![(0.0, 0.0), (50.0, f64::NAN), (100.0, 10.0)];
        let chart = Lines { x: Axis::Number("sessions".into()), y_unit: "", lines: vec![line(points)] };
        let (_, svg) = chart.svg();
        assert!(svg.contains("points=\"0.00,1000.00 1000.00,0.00\""), "{svg}");
        assert_eq!(svg.matches("<use").count(), 2);
        assert!(svg.contains("#m1") && !svg.contains("a<b"), "{svg}");
        assert!(!svg.contains("NaN"));
    }

    #[test]
    fn one_point_is_a_mark_without_a_line() {
        let (_, svg) = Lines { x: Axis::Percentile, y_unit: "µs", lines: vec![line(vec![(0.5, 20.0)])] }.svg();
        assert!(!svg.contains("<polyline") && svg.matches("<use").count() == 1, "{svg}");
        let (_, svg) = Lines { x: Axis::Percentile, y_unit: "µs", lines: vec![line(Vec::new())] }.svg();
        assert!(!svg.contains("<polyline") && !svg.contains("<use"), "{svg}");
    }
}
