//! What came out: medians, spreads, ratios and a sentence or two, as a table and as JSON.

mod show;

use std::collections::BTreeMap;

use serde::Serialize;

use super::arm::Arm;
use super::host::Host;
use super::measure::{BulkRound, Lane, Measured, PingRound, Settings};
use super::usage::{Paths, Usage};
use super::verdict::{notes, verdict};

/// The whole result.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Version of this program.
    pub version: &'static str,
    /// Where it was measured.
    pub host: Host,
    /// How.
    pub settings: Settings,
    /// True: a report exists only when every byte of every arm was right.
    pub verified: bool,
    /// Bulk bytes compared at the sink, all arms and rounds, warm-up included.
    pub verified_bytes: u64,
    /// Small exchanges compared at the client, all arms and rounds, warm-up included.
    pub verified_exchanges: u64,
    /// What was measured, in the order asked for.
    pub arms: Vec<ArmReport>,
    /// What was not.
    pub skipped: Vec<Skipped>,
    /// What a reader has to know to read the numbers.
    pub notes: Vec<String>,
    /// The result in sentences.
    pub verdict: Vec<String>,
}

/// An arm that could not be measured.
#[derive(Debug, Serialize)]
pub struct Skipped {
    /// Which.
    pub arm: String,
    /// Why.
    pub reason: String,
}

/// One arm.
#[derive(Debug, Serialize)]
pub struct ArmReport {
    /// Its name.
    pub arm: String,
    /// Bulk streams.
    pub bulk: Bulk,
    /// Small exchanges.
    pub exchanges: Exchanges,
    #[serde(skip)]
    pub(super) kind: Arm,
}

/// Bulk streams through one arm.
#[derive(Debug, Serialize)]
pub struct Bulk {
    /// Throughput at the sink.
    pub gbit_per_second: Spread,
    /// Forwarder's CPU time for each 10⁹ bytes.
    pub cpu_seconds_per_gb: Option<Spread>,
    /// Bytes the forwarder passed on in the measured time, by path.
    pub bytes: Option<Paths>,
    /// Raw values.
    pub rounds: Vec<BulkRound>,
}

/// Small exchanges through one arm.
#[derive(Debug, Serialize)]
pub struct Exchanges {
    /// Rate over all connections.
    pub exchanges_per_second: Spread,
    /// Forwarder's CPU time for each exchange.
    pub cpu_us_per_exchange: Option<Spread>,
    /// Median round trip.
    pub p50_us: Spread,
    /// 99th percentile of the round trip.
    pub p99_us: Spread,
    /// Bytes the forwarder passed on in the measured time, by path.
    pub bytes: Option<Paths>,
    /// Raw values.
    pub rounds: Vec<PingRound>,
}

/// The middle of several values and how far they lie apart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// Half of the values are not above it.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// `None` without values.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
        Some(Self { median, min, max })
    }
}

impl Report {
    /// Sums up what was measured.
    #[must_use]
    pub fn new(settings: Settings, measured: Measured) -> Self {
        let host = Host::here();
        let arms: Vec<ArmReport> = measured.lanes.into_iter().filter_map(ArmReport::new).collect();
        let rounds = || arms.iter().flat_map(|arm| &arm.bulk.rounds);
        let verified_bytes = rounds().map(|round| round.verified_bytes).sum();
        let pings = arms.iter().flat_map(|arm| &arm.exchanges.rounds);
        let verified_exchanges = pings.map(|round| round.verified_exchanges).sum();
        let busy = Spread::of(rounds().filter_map(|round| round.host_busy));
        let skipped = measured.skipped.into_iter().map(|(arm, reason)| Skipped { arm: arm.to_string(), reason });
        Self {
            version: env!("CARGO_PKG_VERSION"),
            notes: notes(&host, &arms, busy),
            verdict: verdict(&arms, &settings),
            host,
            settings,
            verified: true,
            verified_bytes,
            verified_exchanges,
            arms,
            skipped: skipped.collect(),
        }
    }
}

impl ArmReport {
    fn new(lane: Lane) -> Option<Self> {
        let (bulk, ping) = (lane.bulk, lane.ping);
        Some(Self {
            arm: lane.arm.to_string(),
            kind: lane.arm,
            bulk: Bulk {
                gbit_per_second: Spread::of(bulk.iter().map(|r| r.gbit_per_second))?,
                cpu_seconds_per_gb: Spread::of(bulk.iter().filter_map(|r| r.cpu_seconds_per_gb)),
                bytes: paths(bulk.iter().map(|r| r.forwarder.as_ref())),
                rounds: bulk,
            },
            exchanges: Exchanges {
                exchanges_per_second: Spread::of(ping.iter().map(|r| r.exchanges_per_second))?,
                cpu_us_per_exchange: Spread::of(ping.iter().filter_map(|r| r.cpu_us_per_exchange)),
                p50_us: Spread::of(ping.iter().map(|r| r.latency.p50_us))?,
                p99_us: Spread::of(ping.iter().map(|r| r.latency.p99_us))?,
                bytes: paths(ping.iter().map(|r| r.forwarder.as_ref())),
                rounds: ping,
            },
        })
    }

    fn bulk_cpu(&self) -> Option<f64> {
        self.bulk.cpu_seconds_per_gb.map(|spread| spread.median)
    }

    fn ping_cpu(&self) -> Option<f64> {
        self.exchanges.cpu_us_per_exchange.map(|spread| spread.median)
    }

    /// Fallbacks in all measured windows.
    pub(super) fn fallbacks(&self) -> BTreeMap<&str, u64> {
        let bulk = self.bulk.rounds.iter().filter_map(|round| round.forwarder.as_ref());
        let ping = self.exchanges.rounds.iter().filter_map(|round| round.forwarder.as_ref());
        let mut sum = BTreeMap::new();
        for (reason, n) in bulk.chain(ping).flat_map(|usage| &usage.fallbacks) {
            *sum.entry(reason.as_str()).or_default() += n;
        }
        sum
    }
}

fn paths<'a>(usages: impl Iterator<Item = Option<&'a Usage>>) -> Option<Paths> {
    usages
        .flatten()
        .map(|usage| usage.bytes)
        .reduce(|a, b| Paths { splice: a.splice + b.splice, copy: a.copy + b.copy })
}

#[cfg(test)]
mod tests {
    use super::super::pinger::Latency;
    use super::super::verdict::BASE;
    use super::*;

    fn settings() -> Settings {
        Settings {
            rounds: 3,
            seconds: 0.5,
            warm_up_seconds: 0.1,
            streams: 4,
            message_bytes: 128 << 10,
            connections: 16,
            exchange_bytes: 64,
            arms: Vec::new(),
        }
    }

    /// A lane of three rounds around the given costs; `splice` is the share of spliced bytes in percent.
    fn lane(arm: Arm, cpu: Option<(f64, f64)>, splice: u64) -> Lane {
        let mut lane = Lane::new(arm, None);
        for (round, spread) in [1.0, 0.98, 1.02].into_iter().enumerate() {
            let usage = |cpu_seconds| Usage {
                cpu_seconds,
                cpu_source: "getrusage",
                bytes: Paths { splice: splice * 1_000_000, copy: (100 - splice) * 1_000_000 },
                bytes_to_backend: 100_000_000,
                fallbacks: if splice == 50 {
                    BTreeMap::from([("budget_exhausted".into(), 2)])
                } else {
                    BTreeMap::new()
                },
            };
            lane.bulk.push(BulkRound {
                seconds: 0.5,
                bytes: 100_000_000,
                gbit_per_second: 8.0 + round as f64,
                cpu_seconds_per_gb: cpu.map(|(bulk, _)| bulk * spread),
                forwarder: cpu.map(|_| usage(0.05)),
                host_busy: Some(0.97),
                verified_bytes: 500_000_000,
            });
            lane.ping.push(PingRound {
                seconds: 0.5,
                exchanges: 10_000,
                exchanges_per_second: 20_000.0,
                cpu_us_per_exchange: cpu.map(|(_, ping)| ping * spread),
                latency: Latency { count: 10_000, p50_us: 100.0, p99_us: 900.0, max_us: 1000.0 },
                forwarder: cpu.map(|_| usage(0.01)),
                host_busy: None,
                verified_exchanges: 12_000,
            });
        }
        lane
    }

    fn report(lanes: Vec<Lane>, skipped: Vec<(Arm, String)>) -> Report {
        Report::new(settings(), Measured { lanes, skipped })
    }

    #[test]
    fn medians_of_odd_and_even_numbers() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread { median: 2.0, min: 1.0, max: 3.0 }.show(1), "2.0 (1.0–3.0)");
        assert_eq!(Spread { median: 2.0, min: 2.0, max: 2.0 }.show(0), "2");
    }

    #[test]
    fn the_table_has_ratios_to_copy_64_kib() {
        let lanes = vec![
            lane(Arm::Direct, None, 0),
            lane(Arm::Splice, Some((0.62, 33.0)), 100),
            lane(BASE, Some((1.0, 30.0)), 0),
            lane(Arm::Auto, Some((0.635, 30.0)), 100),
        ];
        let report = report(lanes, Vec::new());
        let text = report.to_string();
        let line = |arm: &str| -> Vec<&str> {
            text.lines().filter(|line| line.split_whitespace().next() == Some(arm)).collect()
        };
        assert!(line("splice")[0].contains("0.620 (0.608–0.632)  0.62×  100.0 %    0.0 %"), "{text}");
        assert!(line("copy-64KiB")[0].contains("1.00×") && line("splice")[1].contains("1.10×"), "{text}");
        assert!(line("direct")[0].contains("9.00 (8.00–10.00)  1.00×"), "{text}");
        assert!(text.contains("Verified: 6.0 GB and 144000 exchanges"), "{text}");
        assert!(text.contains("97 % busy"), "{text}");
        assert_eq!(
            report.verdict,
            [
                "Bulk: splice needs 0.62 × the CPU per byte of copy-64KiB; auto is within 3 % of splice, the better one.",
                "Ping-pong: splice needs 1.10 × the CPU per 64-byte exchange of copy-64KiB; \
                 auto is level with copy-64KiB, the better one.",
            ]
        );
    }

    #[test]
    fn splice_that_was_not_splice_is_told() {
        let report = report(vec![lane(Arm::Splice, Some((0.8, 30.0)), 50)], vec![(Arm::Auto, "why".into())]);
        let told = "splice moved only 50.0 % of the bulk bytes by splice (budget_exhausted 12).";
        assert!(report.notes.iter().any(|note| note == told), "{:?}", report.notes);
        assert!(report.to_string().contains("Skipped: auto, why."));
        assert!(report.verdict.is_empty(), "nothing to compare with: {:?}", report.verdict);
    }

    #[test]
    fn json_has_every_round() {
        let report = report(vec![lane(Arm::Direct, None, 0), lane(BASE, Some((1.0, 30.0)), 0)], Vec::new());
        let json = serde_json::to_value(&report).expect("serializes");
        assert_eq!(json["arms"][1]["arm"], "copy-64KiB");
        assert_eq!(json["arms"][1]["bulk"]["rounds"].as_array().map(Vec::len), Some(3));
        assert_eq!(json["arms"][1]["bulk"]["cpu_seconds_per_gb"]["median"], 1.0);
        assert!(json["arms"][0]["bulk"]["cpu_seconds_per_gb"].is_null());
        assert_eq!(json["settings"]["streams"], 4);
        assert!(json["host"]["cpus"].as_u64() > Some(0));
    }
}
