//! The arms of a live A/B as `spliced stats` shows them to people.

use std::fmt::Write;

use serde::Deserialize;

use super::client::{Bytes, human, line};
use crate::ab::Table;

/// What the table shows of an arm; fields it does not know are left out.
#[derive(Debug, Deserialize)]
pub(super) struct Arm {
    name: String,
    share: u64,
    sessions: u64,
    bytes: Bytes,
    syscalls_per_gb: Option<f64>,
    cpu_seconds_per_gb: Option<f64>,
    cpu_ci95: Option<[f64; 2]>,
    first_byte_time: Times,
    session_time: Times,
}

#[derive(Debug, Deserialize)]
struct Times {
    mean_seconds: Option<f64>,
    mean_ci95: Option<[f64; 2]>,
}

/// Appends the table and the verdict; nothing where there are no arms.
pub(super) fn describe(out: &mut String, arms: &[Arm], verdict: Option<&str>) {
    if arms.is_empty() {
        return;
    }
    let mut table = Table::new([
        "arm",
        "share",
        "sessions",
        "bytes",
        "spliced",
        "calls/GB",
        "CPU s/GB (95 %)",
        "first byte",
        "session",
    ]);
    for arm in arms {
        let bytes = &arm.bytes;
        let spliced = bytes.client_to_backend.splice.saturating_add(bytes.backend_to_client.splice);
        let copied = bytes.client_to_backend.copy.saturating_add(bytes.backend_to_client.copy);
        let all = spliced.saturating_add(copied);
        table.row([
            // Arms are named by our own configuration reader, but whoever answers on the socket need not be us.
            arm.name.escape_debug().to_string(),
            arm.share.to_string(),
            arm.sessions.to_string(),
            human(all),
            if all > 0 { format!("{:.0} %", spliced as f64 / all as f64 * 100.0) } else { "–".to_owned() },
            arm.syscalls_per_gb.map_or("–".to_owned(), |calls| format!("{calls:.0}")),
            cpu(arm.cpu_seconds_per_gb, arm.cpu_ci95),
            mean(&arm.first_byte_time),
            mean(&arm.session_time),
        ]);
    }
    let _ = write!(out, "{table}");
    if let Some(verdict) = verdict {
        line(out, 2, "verdict", &verdict.escape_debug().to_string());
    }
}

fn cpu(seconds_per_gb: Option<f64>, ends: Option<[f64; 2]>) -> String {
    match (seconds_per_gb, ends) {
        (None, _) => "–".to_owned(),
        (Some(seconds), None) => format!("{seconds:.3}"),
        (Some(seconds), Some([low, high])) => format!("{seconds:.3} ({low:.3}–{high:.3})"),
    }
}

/// The mean, and how far its 95 % interval reaches.
fn mean(times: &Times) -> String {
    match (times.mean_seconds, times.mean_ci95) {
        (None, _) => "–".to_owned(),
        (Some(mean), Some([_, high])) if mean > 0.0 => format!("{} ±{:.0} %", time(mean), (high / mean - 1.0) * 100.0),
        (Some(mean), _) => time(mean),
    }
}

/// Three digits and a unit.
fn time(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s < 1e-3 => (s * 1e6, "µs"),
        s if s < 1.0 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits() {
        for (seconds, text) in [
            (0.0, "0.00 µs"),
            (12e-6, "12.0 µs"),
            (0.000_999, "999 µs"),
            (0.25, "250 ms"),
            (1.5, "1.50 s"),
            (3600.0, "3600 s"),
        ] {
            assert_eq!(time(seconds), text);
        }
    }

    #[test]
    fn what_is_not_known_is_a_dash() {
        assert_eq!(cpu(None, None), "–");
        assert_eq!(cpu(Some(0.5), None), "0.500");
        assert_eq!(cpu(Some(0.5), Some([0.4, 0.625])), "0.500 (0.400–0.625)");
        let shown = |mean_seconds, mean_ci95| mean(&Times { mean_seconds, mean_ci95 });
        assert_eq!(shown(None, None), "–");
        assert_eq!(shown(Some(0.0015), None), "1.50 ms");
        assert_eq!(shown(Some(2.0), Some([1.5, 2.5])), "2.00 s ±25 %");
    }
}
