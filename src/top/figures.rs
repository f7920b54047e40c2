//! Figures for people.

/// Bits a second of bytes a second, three digits and a unit of 1000.
pub(super) fn bits(bytes: f64) -> String {
    scaled(bytes * 8.0, &["", "k", "M", "G", "T", "P"])
}

/// A number of things a second.
pub(super) fn count(rate: f64) -> String {
    scaled(rate, &["", "k", "M", "G"])
}

fn scaled(mut value: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = match value {
        v if v == 0.0 || v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.digits$}{}", units[unit])
}

/// A part as percent.
pub(super) fn share(part: Option<f64>) -> String {
    part.map_or("–".to_owned(), |part| format!("{:.0}%", part * 100.0))
}

/// Median and 99th percentile, in seconds.
pub(super) fn pair(times: Option<(f64, f64)>) -> String {
    times.map_or("–".to_owned(), |(p50, p99)| format!("{}/{}", time(p50), time(p99)))
}

/// A time of seconds with its unit.
pub(super) fn time(seconds: f64) -> String {
    match seconds {
        s if s < 0.999_5e-3 => format!("{:.0}µs", s * 1e6),
        s if s < 9.95e-3 => format!("{:.1}ms", s * 1e3),
        s if s < 0.999_5 => format!("{:.0}ms", s * 1e3),
        s if s < 99.5 => format!("{s:.1}s"),
        s => format!("{s:.0}s"),
    }
}

/// `42s`, `5m 03s`, `1h 02m`, `3d 04h`.
pub(super) fn time_up(seconds: f64) -> String {
    let s = seconds.max(0.0) as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m {:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h {:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d {:02}h", s / 86_400, s / 3600 % 24),
    }
}
