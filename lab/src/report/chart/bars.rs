//! Horizontal bars: name and number above, the bar below at full width, so that a telephone shows them whole.

use super::scale::Scale;
use super::{class_of, kind_title, label, percent};
use crate::report::metric::{spread, tick as tick_text};
use crate::report::text::html as escape;
use crate::results::Kind;

/// Height of a row in pixels: text, bar, gap.
const ROW: usize = 40;
/// Baseline of the text, top and height of the bar within a row.
const TEXT: usize = 14;
const BAR: usize = 20;
const THICK: usize = 12;
/// Height of the heading of a kind, and of the axis below.
const HEADING: usize = 28;
const AXIS: usize = 24;

/// One bar a row with whiskers from the smallest to the greatest round.
#[derive(Debug)]
pub(in crate::report) struct Bars {
    pub(in crate::report) unit: &'static str,
    /// Name and value of the arm the others are compared with, drawn as a line across.
    pub(in crate::report) reference: Option<(String, f64)>,
    /// Sorted by kind.
    pub(in crate::report) rows: Vec<Bar>,
}

/// One row.
#[derive(Debug)]
pub(in crate::report) struct Bar {
    pub(in crate::report) name: String,
    pub(in crate::report) kind: Kind,
    pub(in crate::report) median: f64,
    pub(in crate::report) min: f64,
    pub(in crate::report) max: f64,
    /// A mark behind the name, such as a dagger.
    pub(in crate::report) mark: &'static str,
}

impl Bars {
    pub(super) fn legend(&self) -> String {
        let Some((name, value)) = &self.reference else { return String::new() };
        let text = format!("{} at {}", escape(name), escape(&spread(*value, *value, *value, self.unit)));
        let whisker = "<li><i class=\"swatch whisker-swatch\"></i>smallest to greatest round</li>";
        format!("<ul class=\"legend\"><li><i class=\"swatch reference-swatch\"></i>{text}</li>{whisker}</ul>\n")
    }

    /// Height in pixels and the marks.
    pub(super) fn svg(&self) -> (usize, String) {
        let scale = Scale::from_zero(self.rows.iter().map(|row| row.max.max(row.median)).fold(0.0, f64::max));
        // Words come last, so that neither grid nor reference runs through them.
        let (mut y, mut marks, mut words) = (0, String::new(), String::new());
        let mut kind = None;
        for row in &self.rows {
            if kind != Some(row.kind) {
                kind = Some(row.kind);
                words.push_str(&heading(&mut y, row.kind));
            }
            marks.push_str(&self.bar(row, y, &scale));
            words.push_str(&words_of(&row.name, row.mark, &self.value(row), y));
            y += ROW;
        }
        let grid = axis(&scale, y, self.unit);
        (y + AXIS, grid + &marks + &words)
    }

    fn value(&self, row: &Bar) -> String {
        spread(row.median, row.min, row.max, self.unit)
    }

    fn bar(&self, row: &Bar, y: usize, scale: &Scale) -> String {
        let (bar, middle) = (y + BAR, y + BAR + THICK / 2);
        let mut out = format!(
            "<g><title>{}: {}</title>\n<rect class=\"{}\" x=\"0\" y=\"{bar}\" width=\"{}\" height=\"{THICK}\" rx=\"2\"/>\n",
            escape(&row.name),
            escape(&self.value(row)),
            class_of(row.kind),
            percent(scale.place(row.median)),
        );
        if row.max > row.min {
            let (low, high) = (percent(scale.place(row.min)), percent(scale.place(row.max)));
            for (x1, x2, y1, y2) in [
                (&low, &high, middle, middle),
                (&low, &low, middle - 4, middle + 4),
                (&high, &high, middle - 4, middle + 4),
            ] {
                out.push_str(&format!("<line class=\"whisker\" x1=\"{x1}\" x2=\"{x2}\" y1=\"{y1}\" y2=\"{y2}\"/>"));
            }
        }
        if let Some((_, value)) = &self.reference {
            // Only beside the bar: a line through the words above it could not be read.
            let x = percent(scale.place(*value));
            let (from, to) = (y + TEXT + 4, y + ROW + 1);
            out.push_str(&format!("<line class=\"reference\" x1=\"{x}\" x2=\"{x}\" y1=\"{from}\" y2=\"{to}\"/>"));
        }
        out + "</g>\n"
    }
}

/// Name and value above a bar.
fn words_of(name: &str, mark: &str, value: &str, y: usize) -> String {
    format!(
        "<text class=\"name\" x=\"0\" y=\"{0}\">{1}{2}</text><text class=\"value\" x=\"100%\" y=\"{0}\">{3}</text>\n",
        y + TEXT,
        label(name),
        escape(mark),
        escape(value),
    )
}

fn heading(y: &mut usize, kind: Kind) -> String {
    let text = format!("<text class=\"kind\" x=\"0\" y=\"{}\">{}</text>\n", *y + 18, kind_title(kind));
    *y += HEADING;
    text
}

/// Grid lines behind the bars and the numbers below them.
fn axis(scale: &Scale, bottom: usize, unit: &str) -> String {
    let mut out = String::new();
    let last = scale.ticks().len().saturating_sub(1);
    for (at, tick) in scale.ticks().iter().enumerate() {
        let x = percent(scale.place(*tick));
        let anchor = if at == 0 {
            "start"
        } else if at == last {
            "end"
        } else {
            "middle"
        };
        let text = tick_text(*tick, unit);
        out.push_str(&format!(
            "<line class=\"grid\" x1=\"{x}\" x2=\"{x}\" y1=\"{HEADING}\" y2=\"{bottom}\"/>\
             <text class=\"tick\" x=\"{x}\" y=\"{}\" text-anchor=\"{anchor}\">{}</text>\n",
            bottom + 16,
            escape(&text)
        ));
    }
    out
}

/// One bar a row, cut into two shares of a whole; the second is hatched as well as coloured.
#[derive(Debug)]
pub(in crate::report) struct Stack {
    pub(in crate::report) parts: [&'static str; 2],
    pub(in crate::report) rows: Vec<StackRow>,
}

/// One row of shares.
#[derive(Debug)]
pub(in crate::report) struct StackRow {
    pub(in crate::report) name: String,
    /// Share of the first part, 0 to 1.
    pub(in crate::report) first: f64,
}

impl Stack {
    pub(super) fn legend(&self) -> String {
        let item = |(class, part): (&str, &str)| format!("<li><i class=\"swatch {class}\"></i>{}</li>", escape(part));
        let items: String = ["first", "second"].into_iter().zip(self.parts).map(item).collect();
        format!("<ul class=\"legend\">{items}</ul>\n")
    }

    /// Height in pixels and the marks; `id` names the hatching.
    pub(super) fn svg(&self, id: &str) -> (usize, String) {
        let mut out = format!(
            "<defs><pattern id=\"{id}-h\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" \
             patternTransform=\"rotate(45)\"><rect class=\"second\" width=\"6\" height=\"6\"/>\
             <line class=\"hatch\" x1=\"0\" y1=\"0\" x2=\"0\" y2=\"6\"/></pattern></defs>\n"
        );
        for (at, row) in self.rows.iter().enumerate() {
            let y = at * ROW;
            let first = if row.first.is_finite() { row.first.clamp(0.0, 1.0) } else { 0.0 };
            let text = self.shares(first);
            let (bar, split) = (y + BAR, percent(first));
            out.push_str(&format!(
                "<g><title>{}: {}</title>\n\
                 <rect class=\"first\" x=\"0\" y=\"{bar}\" width=\"{split}\" height=\"{THICK}\"/>\
                 <rect fill=\"url(#{id}-h)\" x=\"{split}\" y=\"{bar}\" width=\"{}\" height=\"{THICK}\"/></g>\n{}",
                escape(&row.name),
                escape(&text),
                percent(1.0 - first),
                words_of(&row.name, "", &text, y),
            ));
        }
        (self.rows.len() * ROW, out)
    }

    /// Both shares in words.
    fn shares(&self, first: f64) -> String {
        let [a, b] = self.parts;
        format!("{} {a}, {} {b}", share(first), share(1.0 - first))
    }
}

/// A share as people read it: nothing that is there is written as 0 %, nothing that is missing as 100 %.
pub(in crate::report) fn share(share: f64) -> String {
    match share * 100.0 {
        p if p <= 0.0 => "0 %".into(),
        p if p < 0.1 => "< 0.1 %".into(),
        p if p >= 100.0 => "100 %".into(),
        p if p > 99.9 => "> 99.9 %".into(),
        p => format!("{p:.1} %"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(name: &str, kind: Kind, median: f64, min: f64, max: f64) -> Bar {
        Bar { name: name.into(), kind, median, min, max, mark: "" }
    }

    #[test]
    fn a_bar_is_as_long_as_its_median_and_the_whisker_spans_the_rounds() {
        let rows = vec![bar("splice", Kind::Engine, 5.0, 4.0, 8.0), bar("oi", Kind::Peer, 10.0, 10.0, 10.0)];
        let (height, svg) = Bars { unit: "Gbit/s", reference: None, rows }.svg();
        assert_eq!(height, 2 * (ROW + HEADING) + AXIS);
        assert!(svg.contains("width=\"50.00%\"") && svg.contains("width=\"100.00%\""), "{svg}");
        assert!(svg.contains("x1=\"40.00%\" x2=\"80.00%\""), "{svg}");
        assert_eq!(svg.matches("class=\"whisker\"").count(), 3, "one round has no whisker");
        assert_eq!(svg.matches("class=\"kind\"").count(), 2);
    }

    #[test]
    fn shares_add_up_and_never_hide_a_rest() {
        let rows =
            vec![StackRow { name: "auto".into(), first: 0.75 }, StackRow { name: "odd".into(), first: f64::NAN }];
        let (_, svg) = Stack { parts: ["spliced", "copied"], rows }.svg("c1");
        assert!(
            svg.contains("width=\"75.00%\"") && svg.contains("x=\"75.00%\"") && svg.contains("width=\"25.00%\""),
            "{svg}"
        );
        assert!(svg.contains("75.0 % spliced, 25.0 % copied"), "{svg}");
        assert_eq!(
            (share(0.0), share(0.000_01), share(0.999_99), share(1.0)),
            ("0 %".into(), "< 0.1 %".into(), "> 99.9 %".into(), "100 %".into())
        );
    }
}
