//! What a sample's name means: its label, its unit, which way is better, and how its numbers are written.

/// Which way a number is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Better {
    /// More is better, such as throughput.
    Higher,
    /// Less is better, such as CPU.
    Lower,
}

impl Better {
    /// Whether `a` is better than `b`.
    pub(super) fn prefers(self, a: f64, b: f64) -> bool {
        match self {
            Self::Higher => a > b,
            Self::Lower => a < b,
        }
    }

    /// For a chart's caption.
    pub(super) fn hint(self) -> &'static str {
        match self {
            Self::Higher => "longer is better",
            Self::Lower => "shorter is better",
        }
    }
}

/// One kind of sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Metric {
    /// The name in `results.json`.
    pub(super) name: &'static str,
    /// What people read.
    pub(super) label: &'static str,
    /// Unit after the number; `bytes` is written in KiB, MiB and so on.
    pub(super) unit: &'static str,
    /// Which way is better.
    pub(super) better: Better,
}

const fn metric(name: &'static str, label: &'static str, unit: &'static str, better: Better) -> Metric {
    Metric { name, label, unit, better }
}

/// A table of its own for each load that has one of these samples. The first two are drawn as charts.
pub(super) struct Group {
    /// Heading of the table.
    pub(super) title: &'static str,
    /// How to read it.
    pub(super) hint: &'static str,
    /// Columns, in order.
    pub(super) metrics: &'static [Metric],
    /// How many of them, from the first, get a chart and ratios.
    pub(super) compared: usize,
}

use Better::{Higher, Lower};

/// Every group, in the order of the report.
pub(super) const GROUPS: &[Group] = &[
    Group {
        title: "Throughput and CPU",
        hint: "CPU of the forwarder counts all its threads and child processes, the machine's all processes of the run \
               and the kernel's. Where client, server and forwarder share the cores, CPU per byte says more than throughput.",
        metrics: &[
            metric("gbit_per_second", "Throughput", "Gbit/s", Higher),
            metric("forwarder_cpu_seconds_per_gb", "Forwarder CPU", "s/GB", Lower),
            metric("machine_cpu_seconds_per_gb", "Machine CPU", "s/GB", Lower),
            metric("slowest_stream_share", "Slowest stream", "of the median", Higher),
        ],
        compared: 2,
    },
    Group {
        title: "Exchanges",
        hint: "One exchange is a request and its reply on an open connection.",
        metrics: &[
            metric("exchanges_per_second", "Exchanges", "/s", Higher),
            metric("cpu_us_per_exchange", "Forwarder CPU", "µs each", Lower),
        ],
        compared: 2,
    },
    Group {
        title: "Connections",
        hint: "One connection is connect, request, reply and close.",
        metrics: &[
            metric("connections_per_second", "Connections", "/s", Higher),
            metric("cpu_us_per_connection", "Forwarder CPU", "µs each", Lower),
        ],
        compared: 2,
    },
    Group {
        title: "Streams of small chunks",
        hint: "Time to the first byte of a stream, and the gap between two chunks as the reader sees it.",
        metrics: &[
            metric("first_byte_us_p50", "First byte p50", "µs", Lower),
            metric("first_byte_us_p99", "First byte p99", "µs", Lower),
            metric("gap_us_p50", "Gap p50", "µs", Lower),
            metric("gap_us_p99", "Gap p99", "µs", Lower),
            metric("delay_us_p99", "Delay p99", "µs", Lower),
            metric("cpu_share_per_1000_streams", "Forwarder CPUs", "per 1,000 streams", Lower),
        ],
        compared: 2,
    },
    Group {
        title: "What a session holds",
        hint: "Pages and descriptors of the forwarder, and memory of the kernel for all three sides, by the session held.",
        metrics: &[
            metric("user_bytes_per_session", "User memory each", "bytes", Lower),
            metric("kernel_bytes_per_session", "Kernel memory each", "bytes", Lower),
            metric("descriptors_per_session", "Descriptors each", "", Lower),
            metric("pipes_per_session", "Pipes each", "", Lower),
            metric("cpu_us_per_session_second", "Forwarder CPU each", "µs/s", Lower),
            metric("start_rss_bytes", "Resident at the start", "bytes", Lower),
        ],
        compared: 1,
    },
    Group {
        title: "Memory and descriptors",
        hint: "Of the forwarder while the load ran; kernel memory is that of its sockets and pipes.",
        metrics: &[
            metric("rss_bytes", "Resident memory", "bytes", Lower),
            metric("kernel_bytes", "Kernel memory", "bytes", Lower),
            metric("descriptors", "Descriptors", "", Lower),
            metric("pipes", "Pipes", "", Lower),
            metric("pipes_over_budget", "Pipes beyond the budget", "", Lower),
        ],
        compared: 0,
    },
    Group {
        title: "Kernel and processor",
        hint: "Cycles and instructions only where the hardware counts them; context switches only where no thread or \
               process of the forwarder ended meanwhile, whose own cannot be read.",
        metrics: &[
            metric("syscalls_per_gb", "System calls", "/GB", Lower),
            metric("context_switches_per_gb", "Context switches", "/GB", Lower),
            metric("retransmits", "Retransmits", "", Lower),
            metric("cycles_per_byte", "Cycles", "/byte", Lower),
            metric("instructions_per_byte", "Instructions", "/byte", Lower),
        ],
        compared: 0,
    },
];

/// The known metric of that name.
pub(super) fn find(name: &str) -> Option<&'static Metric> {
    GROUPS.iter().flat_map(|group| group.metrics).find(|metric| metric.name == name)
}

/// The unit of any sample, guessed from its name where the name is not known.
pub(super) fn unit_of(name: &str) -> &'static str {
    if let Some(metric) = find(name) {
        return metric.unit;
    }
    let ends = [
        ("bytes", "bytes"),
        ("_seconds", "s"),
        ("_per_second", "/s"),
        ("_per_gb", "/GB"),
        ("_us", "µs"),
        ("_ms", "ms"),
    ];
    ends.iter().find(|(end, _)| name.ends_with(end)).map_or("", |(_, unit)| unit)
}

/// A number with three significant digits, thousands separated; what is not a number is a dash.
pub(super) fn number(value: f64) -> String {
    written(value, decimals(value))
}

/// How many decimals three significant digits need; at most 9.
fn decimals(value: f64) -> usize {
    let size = value.abs();
    if size >= 100.0 || size == 0.0 || !size.is_finite() {
        return 0;
    }
    // Between -12 and 2 here, so that the cast is exact.
    let exponent = size.log10().floor().max(-12.0) as i32;
    usize::try_from(2 - exponent).unwrap_or(0).min(9)
}

fn written(value: f64, decimals: usize) -> String {
    if !value.is_finite() {
        return "–".into();
    }
    if value.abs() >= 1e15 || (value != 0.0 && value.abs() < 1e-9) {
        return format!("{value:.2e}");
    }
    let plain = format!("{value:.decimals$}");
    let (sign, digits) = plain.strip_prefix('-').map_or(("", plain.as_str()), |rest| ("−", rest));
    let (whole, fraction) = digits.split_once('.').map_or((digits, None), |(w, f)| (w, Some(f)));
    let mut text = String::from(sign);
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) && whole.len() > 4 {
            text.push(',');
        }
        text.push(digit);
    }
    if let Some(fraction) = fraction {
        text.push('.');
        text.push_str(fraction);
    }
    text
}

const PREFIXES: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/// The power of 1024 that suits a number of bytes, and its name.
pub(super) fn prefix(bytes: f64) -> (f64, &'static str) {
    let mut scale = 1.0;
    for name in &PREFIXES[..PREFIXES.len() - 1] {
        if bytes.abs() < 1024.0 * scale || !bytes.is_finite() {
            return (scale, name);
        }
        scale *= 1024.0;
    }
    (scale, PREFIXES[PREFIXES.len() - 1])
}

/// A value with its unit.
pub(super) fn with_unit(value: f64, unit: &str) -> String {
    if !value.is_finite() {
        return "–".into();
    }
    match unit {
        "bytes" => {
            let (scale, name) = prefix(value);
            format!("{} {name}", number(value / scale))
        }
        "" => number(value),
        _ if unit.starts_with('/') => format!("{}{unit}", number(value)),
        _ => format!("{} {unit}", number(value)),
    }
}

/// A value on an axis: no zeros behind the point; of units only that of bytes.
pub(super) fn tick(value: f64, unit: &str) -> String {
    let (scale, name) = if unit == "bytes" { prefix(value) } else { (1.0, "") };
    let text = number(value / scale);
    let short = if text.contains('.') && !text.contains('e') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        &text
    };
    if name.is_empty() { short.to_owned() } else { format!("{short} {name}") }
}

/// `median (min–max)` in the decimals of the median, with the unit behind; the range is left out where there is none.
pub(super) fn spread(median: f64, low: f64, high: f64, unit: &str) -> String {
    let (scale, name) = if unit == "bytes" { prefix(median) } else { (1.0, unit) };
    let places = decimals(median / scale);
    let write = |value: f64| written(value / scale, places);
    let space = if name.is_empty() || name.starts_with('/') { "" } else { " " };
    let value = write(median);
    if low == high || !low.is_finite() || !high.is_finite() {
        return format!("{value}{space}{name}");
    }
    format!("{value} ({}–{}){space}{name}", write(low), write(high))
}

/// A ratio, `0.64×`.
pub(super) fn times(ratio: f64) -> String {
    if ratio.is_finite() {
        format!("{}×", written(ratio, if ratio.abs() >= 100.0 { 0 } else { 2 }))
    } else {
        "–".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits_whatever_their_size() {
        let cases = [
            (0.0, "0"),
            (9.1234, "9.12"),
            (0.6449, "0.645"),
            (0.000_123_4, "0.000123"),
            (28.31, "28.3"),
            (152.4, "152"),
            (9999.0, "9999"),
            (12_431.0, "12,431"),
            (1_234_567.8, "1,234,568"),
            (-12_431.0, "−12,431"),
            (f64::NAN, "–"),
            (f64::INFINITY, "–"),
            (1e300, "1.00e300"),
            (1e-30, "1.00e-30"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text, "{value}");
        }
    }

    #[test]
    fn units_and_spreads() {
        assert_eq!(with_unit(6.0 * 1024.0 * 1024.0, "bytes"), "6.00 MiB");
        assert_eq!(with_unit(512.0, "bytes"), "512 B");
        assert_eq!(with_unit(f64::MAX, "bytes"), format!("{} PiB", number(f64::MAX / 1024f64.powi(5))));
        assert_eq!(with_unit(1234.0, "/GB"), "1234/GB");
        assert_eq!(spread(9.12, 8.9, 9.307, "Gbit/s"), "9.12 (8.90–9.31) Gbit/s");
        assert_eq!(spread(2048.0, 1024.0, 4096.0, "bytes"), "2.00 (1.00–4.00) KiB");
        assert_eq!(spread(5.0, 5.0, 5.0, ""), "5.00");
        assert_eq!(
            (tick(2.5, "s/GB"), tick(10.0, ""), tick(100.0, ""), tick(0.0, "")),
            ("2.5".into(), "10".into(), "100".into(), "0".into())
        );
        assert_eq!(tick(10.0 * 1024.0 * 1024.0, "bytes"), "10 MiB");
        assert_eq!(times(0.6449), "0.64×");
        assert_eq!(times(f64::NAN), "–");
    }

    #[test]
    fn a_sample_nobody_knows_still_has_a_unit() {
        assert_eq!(unit_of("gbit_per_second"), "Gbit/s");
        assert_eq!(unit_of("slab_bytes"), "bytes");
        assert_eq!(unit_of("wakeups_per_gb"), "/GB");
        assert_eq!(unit_of("mystery"), "");
    }
}
