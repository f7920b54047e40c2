//! What a load has measured, by the names of samples.

use super::{BulkReport, Exchange, ExchangeReport, SATURATED, Stream, StreamReport, Window, cpus, iperf3, netperf};
use crate::results::{Latency, Samples};

/// What a window gave.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// What was measured.
    pub samples: Samples,
    /// Distribution of the time of an exchange, a connection, or a gap.
    pub latency: Option<Latency>,
    /// Bytes that arrived, for costs by the byte.
    pub bytes: u64,
    /// What else costs can be given by, such as `exchange`, and how many there were.
    pub pieces: Option<(&'static str, u64)>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

impl Outcome {
    fn add(&mut self, name: &str, value: f64) {
        self.samples.insert(name.to_owned(), value);
    }

    pub(super) fn of_iperf3(report: &iperf3::Report, settings: &iperf3::Settings) -> Self {
        let cpus = cpus();
        let mut outcome = Self { bytes: report.bytes, ..Self::default() };
        outcome.add("gbit_per_second", report.gbit_per_second());
        outcome.add("bytes", report.bytes as f64);
        outcome.add("generator_busy_share", report.busy_share(cpus));
        outcome.notes.extend(report.note(cpus));
        let directions = if settings.direction == iperf3::Direction::Both { 2.0 } else { 1.0 };
        if let Some(rate) = settings.rate.map(|rate| rate as f64 * directions / 1e9)
            && report.gbit_per_second() < 0.97 * rate
        {
            let reached = report.gbit_per_second();
            outcome
                .notes
                .push(format!("{reached:.2} of the offered {rate:.2} Gbit/s arrived: costs are not at that rate"));
        }
        outcome
    }

    pub(super) fn of_netperf(report: netperf::Report, settings: &netperf::Settings) -> Self {
        let count = report.latency.count;
        let (name, piece) = match settings.test {
            netperf::Test::Rr => ("exchanges_per_second", "exchange"),
            netperf::Test::Crr => ("connections_per_second", "connection"),
        };
        let bytes = count * u64::from(settings.request + settings.reply);
        let mut outcome =
            Self { bytes, pieces: Some((piece, count)), latency: Some(report.latency), ..Self::default() };
        outcome.add(name, report.per_second);
        outcome.notes.push("netperf gives no 99.9th percentile".to_owned());
        if !report.ended {
            let note = "netperf had its numbers and did not end: the forwarder passed no end of a connection on";
            outcome.notes.push(note.to_owned());
        }
        outcome
    }

    pub(super) fn of_exchange(report: ExchangeReport, piece: &'static str, load: Exchange) -> Self {
        let ExchangeReport { window, exchanges, latency } = report;
        let mut outcome = Self {
            bytes: exchanges * (load.request + load.reply) as u64,
            pieces: Some((piece, exchanges)),
            latency: Some(latency),
            ..Self::default()
        };
        let reached = exchanges as f64 / window.seconds;
        outcome.add(&format!("{piece}s_per_second"), reached);
        if let Some(offered) = load.rate.filter(|offered| reached < 0.97 * offered) {
            outcome.notes.push(format!(
                "{reached:.0} of the offered {offered:.0} exchanges a second came: costs are not at that rate"
            ));
        }
        outcome.window(&window);
        outcome
    }

    pub(super) fn of_bulk(report: &BulkReport) -> Self {
        let mut outcome = Self { bytes: report.bytes, ..Self::default() };
        outcome.add("gbit_per_second", report.bytes as f64 * 8.0 / report.window.seconds / 1e9);
        for (name, n) in [
            ("bytes", report.bytes),
            ("streams", report.streams),
            ("slowest_stream_bytes", report.slowest_bytes),
            ("median_stream_bytes", report.median_bytes),
        ] {
            outcome.add(name, n as f64);
        }
        if report.median_bytes > 0 {
            outcome.add("slowest_stream_share", report.slowest_bytes as f64 / report.median_bytes as f64);
        }
        outcome.window(&report.window);
        outcome
    }

    pub(super) fn of_stream(report: StreamReport, load: Stream) -> Self {
        let StreamReport { window, chunks, first_byte_cold_us, first_byte_warm, first_byte_loaded, gap, delay } =
            report;
        let mut outcome = Self {
            bytes: chunks * load.chunk as u64,
            pieces: Some(("chunk", chunks)),
            latency: Some(gap.clone()),
            ..Self::default()
        };
        for (name, value) in [
            ("chunks_per_second", chunks as f64 / window.seconds),
            ("first_byte_us_cold", first_byte_cold_us),
            ("first_byte_us_p50", first_byte_warm.p50_us),
            ("first_byte_us_p99", first_byte_warm.p99_us),
            ("first_byte_loaded_us_p50", first_byte_loaded.p50_us),
            ("first_byte_loaded_us_p99", first_byte_loaded.p99_us),
            ("gap_us_p50", gap.p50_us),
            ("gap_us_p99", gap.p99_us),
            ("delay_us_p50", delay.p50_us),
            ("delay_us_p99", delay.p99_us),
        ] {
            outcome.add(name, value);
        }
        let offered = load.streams as f64 * load.rate;
        if (chunks as f64 / window.seconds) < 0.97 * offered {
            let reached = chunks as f64 / window.seconds;
            outcome.notes.push(format!("{reached:.0} of the offered {offered:.0} chunks a second arrived"));
        }
        outcome.window(&window);
        outcome
    }

    /// What is said of the window itself.
    fn window(&mut self, window: &Window) {
        self.add("generator_busy_share", window.busy_share);
        if window.busy_share >= SATURATED {
            let percent = window.busy_share * 100.0;
            self.notes.push(format!("the load generator was at its own limit ({percent:.0} % busy)"));
        }
        if window.errors > 0 {
            self.add("load_errors", window.errors as f64);
            let first = window.first_errors.first().map_or("", String::as_str);
            self.notes.push(format!("{} connections broke, the first: {first}", window.errors));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generator_at_its_limit_and_broken_connections_are_told() {
        let window =
            Window { seconds: 2.0, busy_share: 0.97, errors: 3, first_errors: vec!["connection reset".to_owned()] };
        let report = ExchangeReport { window, exchanges: 1000, latency: Latency::default() };
        let load = Exchange { connections: 1, request: 64, reply: 64, rate: Some(600.0), seconds: 2.0 };
        let mut outcome = Outcome::of_exchange(report, "exchange", load);
        assert!(outcome.notes.remove(0).starts_with("500 of the offered 600 exchanges a second"), "{outcome:?}");
        assert_eq!(outcome.samples["exchanges_per_second"], 500.0);
        assert_eq!((outcome.bytes, outcome.pieces), (128_000, Some(("exchange", 1000))));
        assert!(outcome.notes[0].contains("97 %"), "{:?}", outcome.notes);
        assert!(outcome.notes[1].contains("3 connections broke, the first: connection reset"), "{:?}", outcome.notes);
    }

    #[test]
    fn a_rate_that_was_not_reached_is_told() {
        let report = iperf3::Report { bytes: 350_000_000, seconds: 1.0, cpus: 1.0, ..iperf3::Report::default() };
        let mut settings = iperf3::Settings {
            streams: 8,
            seconds: 1,
            direction: iperf3::Direction::Up,
            rate: Some(4_000_000_000),
            message: None,
        };
        let note = &Outcome::of_iperf3(&report, &settings).notes[0];
        assert!(note.contains("2.80 of the offered 4.00 Gbit/s"), "{note}");
        settings.rate = Some(2_800_000_000);
        assert_eq!(Outcome::of_iperf3(&report, &settings).notes, [""; 0]);
    }
}
