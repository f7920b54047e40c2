//! Charts as SVG, drawn to the width they get: places along the plot are percentages, text keeps its size.

mod bars;
mod lines;
mod scale;

pub(super) use bars::{Bar, Bars, Stack, StackRow, share};
pub(super) use lines::{Axis, Line, Lines, shapes};

use super::text::{cut, html as escape};
use crate::results::Kind;

/// Longest name inside a chart; the whole one is in the table and in the tooltip.
const LABEL_CHARS: usize = 20;

/// A chart with its words.
#[derive(Debug)]
pub(super) struct Chart {
    pub(super) title: String,
    /// One sentence for those who cannot see it, and for everybody below the title.
    pub(super) description: String,
    pub(super) drawing: Drawing,
}

/// What is drawn.
#[derive(Debug)]
pub(super) enum Drawing {
    /// One bar a row, with whiskers.
    Bars(Bars),
    /// One bar a row, cut into shares.
    Stack(Stack),
    /// Lines over an axis.
    Lines(Lines),
}

impl Chart {
    /// The figure; `id` is unique in the page.
    pub(super) fn figure(&self, id: &str) -> String {
        let (legend, (height, body), class) = match &self.drawing {
            Drawing::Bars(bars) => (bars.legend(), bars.svg(), "bars"),
            Drawing::Stack(stack) => (stack.legend(), stack.svg(id), "bars"),
            Drawing::Lines(lines) => (lines.legend(), lines.svg(), "lines"),
        };
        let (title, description) = (escape(&self.title), escape(&self.description));
        format!(
            "<figure>\n<figcaption><strong>{title}</strong><span>{description}</span></figcaption>\n{legend}\
             <svg class=\"chart {class}\" style=\"height:{height}px\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\">\n\
             <title id=\"{id}-t\">{title}</title>\n<desc id=\"{id}-d\">{description}</desc>\n{body}</svg>\n</figure>\n"
        )
    }
}

/// Class of what belongs to a kind.
fn class_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Engine => "engine",
        Kind::Peer => "peer",
        Kind::Limit => "limit",
    }
}

/// What a kind is called above its rows.
fn kind_title(kind: Kind) -> &'static str {
    match kind {
        Kind::Engine => "spliced, by engine",
        Kind::Peer => "other forwarders",
        Kind::Limit => "limits: no forwarder in user space",
    }
}

/// A name short enough for a chart, escaped.
fn label(name: &str) -> String {
    escape(&cut(name, LABEL_CHARS))
}

/// A share of the plot's width or height, 0 to 100, with two decimals.
fn percent(share: f64) -> String {
    let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    format!("{:.2}%", share * 100.0)
}
