//! The text of a page: families, samples, labels.

use std::fmt::{self, Display, Write};

use crate::stats::HistogramSnapshot;

/// A page in the making. Samples belong to the family that was begun last.
#[derive(Default)]
pub(in crate::control) struct Page {
    text: String,
    family: &'static str,
}

impl Page {
    /// What is on it.
    #[cfg(test)]
    pub(in crate::control) fn text(&self) -> &str {
        &self.text
    }

    /// The same, once nothing more comes.
    pub(super) fn into_text(self) -> String {
        self.text
    }

    /// Begins a metric family; the samples that follow belong to it.
    pub(in crate::control) fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.family = name;
        self.write(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    /// Adds a sample of the family.
    pub(in crate::control) fn sample(&mut self, labels: &[(&str, &dyn Display)], value: impl Display) {
        self.sample_of("", labels, value);
    }

    fn sample_of(&mut self, suffix: &str, labels: &[(&str, &dyn Display)], value: impl Display) {
        let (family, labels) = (self.family, Labels(labels));
        self.write(format_args!("{family}{suffix}{labels} {value}\n"));
    }

    /// Adds the samples of a histogram.
    pub(super) fn histogram(&mut self, labels: &[(&str, &dyn Display)], times: &HistogramSnapshot) {
        let mut count = 0;
        for (i, bucket) in times.buckets.iter().enumerate() {
            count += bucket;
            // The last bucket takes what no bound covers: it is the +Inf one, written below.
            if i + 1 < times.buckets.len() {
                let bound = (1u64 << i) as f64 / 1e6;
                self.sample_of("_bucket", &bounded(labels, &bound), count);
            }
        }
        self.sample_of("_bucket", &bounded(labels, &"+Inf"), count);
        self.sample_of("_sum", labels, times.sum_us as f64 / 1e6);
        self.sample_of("_count", labels, count);
    }

    fn write(&mut self, text: fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = self.text.write_fmt(text);
    }
}

/// A bucket's labels.
fn bounded<'a>(labels: &[(&'a str, &'a dyn Display)], bound: &'a dyn Display) -> Vec<(&'a str, &'a dyn Display)> {
    [labels, &[("le", bound)]].concat()
}

struct Labels<'a>(&'a [(&'a str, &'a dyn Display)]);

impl Display for Labels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        f.write_char('{')?;
        for (i, (name, value)) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma}{name}=\"")?;
            write!(Escaped(f), "{value}")?;
            f.write_char('"')?;
        }
        f.write_char('}')
    }
}

/// Escapes a label's value: backslash, quote and line feed, as the format asks.
struct Escaped<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '\\' => self.0.write_str("\\\\")?,
                '"' => self.0.write_str("\\\"")?,
                '\n' => self.0.write_str("\\n")?,
                c => self.0.write_char(c)?,
            }
        }
        Ok(())
    }
}
