//! Names as stats, metrics and people see them.

use std::fmt::Display;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::prometheus::Page;
use crate::ab::Table;
use crate::names::{Known, NameView};
use crate::plan::Host;

/// One name, or one service, of the targets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NameSnapshot {
    /// As it is configured, without a port.
    pub name: String,
    /// The addresses of the last good answer; those of a service with their ports.
    pub addresses: Vec<String>,
    /// How old that answer is.
    pub age_seconds: Option<f64>,
    /// Look-ups so far.
    pub lookups: u64,
    /// Those that failed.
    pub failures: u64,
    /// Why the last one failed, if it did.
    pub error: Option<String>,
    /// When it is looked up next; 0 while that is on its way.
    pub next_seconds: f64,
}

/// How each name stands.
pub(super) fn snapshots(known: &Known, now: Instant) -> Vec<NameSnapshot> {
    known.views().into_iter().map(|(host, view)| snapshot(&host, view, now)).collect()
}

fn snapshot(host: &Host, view: NameView, now: Instant) -> NameSnapshot {
    NameSnapshot {
        name: host.to_string(),
        addresses: view.places.iter().map(ToString::to_string).collect(),
        age_seconds: view.answered.map(|at| now.saturating_duration_since(at).as_secs_f64()),
        lookups: view.lookups,
        failures: view.failures,
        error: view.trouble,
        next_seconds: view.next.saturating_duration_since(now).as_secs_f64(),
    }
}

/// The metrics of all names.
pub(super) fn metrics(page: &mut Page, names: &[NameSnapshot]) {
    let mut family = |name: &'static str, kind: &str, help: &str, value: fn(&NameSnapshot) -> Option<f64>| {
        let mut samples = names.iter().filter_map(|of| Some((&of.name, value(of)?))).peekable();
        if samples.peek().is_some() {
            page.family(name, kind, help);
        }
        for (name, value) in samples {
            page.sample(&[("name", name as &dyn Display)], value);
        }
    };
    family("spliced_name_addresses", "gauge", "Addresses of the last good answer.", |n| Some(n.addresses.len() as f64));
    family("spliced_name_answer_age_seconds", "gauge", "Age of the last good answer.", |n| n.age_seconds);
    family("spliced_name_failing", "gauge", "1 while the last look-up failed.", |n| {
        Some(f64::from(u8::from(n.error.is_some())))
    });
    family("spliced_name_lookups_total", "counter", "Look-ups.", |n| Some(n.lookups as f64));
    family("spliced_name_lookup_failures_total", "counter", "Look-ups that failed.", |n| Some(n.failures as f64));
}

/// Appends the names for people, where there are some.
pub(super) fn describe(out: &mut String, names: &[NameSnapshot]) {
    if names.is_empty() {
        return;
    }
    let mut table = Table::new(["name", "addresses", "age", "look-ups", "failed", "next", "last failure"]);
    let time = |seconds: f64| format!("{:.1?}", Duration::try_from_secs_f64(seconds).unwrap_or_default());
    for name in names {
        let own = |text: &str| text.escape_debug().to_string();
        let some = name.addresses.iter().take(4).map(|address| own(address)).collect::<Vec<_>>().join(", ");
        let more = name.addresses.len().saturating_sub(4);
        table.row([
            own(&name.name),
            if more > 0 { format!("{some} and {more} more") } else { some },
            name.age_seconds.map_or_else(|| "-".to_owned(), time),
            name.lookups.to_string(),
            name.failures.to_string(),
            time(name.next_seconds),
            name.error.as_deref().map(own).unwrap_or_default(),
        ]);
    }
    out.push_str("\nnames\n");
    for line in table.to_string().lines() {
        out.push_str("  ");
        out.push_str(line);
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Place;

    #[test]
    fn a_name_that_fails_is_shown_with_its_last_answer() {
        let now = Instant::now();
        let view = NameView {
            places: vec![Place::of([10, 0, 0, 1].into())],
            answered: Some(now),
            lookups: 3,
            failures: 1,
            trouble: Some("10.0.0.53:53: SERVFAIL".to_owned()),
            next: now + Duration::from_secs(2),
        };
        let name = snapshot(&Host::Service("_a._tcp.example".to_owned()), view, now);
        assert_eq!((name.name.as_str(), name.age_seconds, name.next_seconds), ("srv:_a._tcp.example", Some(0.0), 2.0));
        let mut text = String::new();
        describe(&mut text, &[]);
        assert!(text.is_empty());
        describe(&mut text, std::slice::from_ref(&name));
        for part in ["srv:_a._tcp.example", "10.0.0.1", "SERVFAIL", "2.0s"] {
            assert!(text.contains(part), "{text}");
        }
        let mut page = Page::default();
        metrics(&mut page, &[name]);
        let line = "spliced_name_lookup_failures_total{name=\"srv:_a._tcp.example\"} 1\n";
        assert!(page.text().contains(line) && page.text().contains("spliced_name_failing"), "{}", page.text());
    }
}
