//! What came out: medians, spreads, ratios and a sentence or two, as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::format_size;
use super::forwarder::{Arm, Paths, Usage};
use super::host::Host;
use super::measure::{BulkRound, Lane, Measured, PingRound, Settings};
use super::table::Table;

/// What the ratios are relative to.
const BASE: Arm = Arm::Copy(64 << 10);
/// Share of busy CPUs from which on the host is the limit.
const SATURATED: f64 = 0.9;
/// Share of its bytes the splice arm has to move by splice to go without a note.
const SPLICED: f64 = 0.99;

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
    kind: Arm,
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

    fn show(self, decimals: usize) -> String {
        let Self { median, min, max } = self;
        if min < max {
            format!("{median:.decimals$} ({min:.decimals$}–{max:.decimals$})")
        } else {
            format!("{median:.decimals$}")
        }
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
    fn fallbacks(&self) -> BTreeMap<&str, u64> {
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

fn notes(host: &Host, arms: &[ArmReport], busy: Option<Spread>) -> Vec<String> {
    let mut notes = Vec::new();
    if host.cpus == 1 {
        notes.push(
            "This host has 1 CPU, which source, sink and forwarder share: only CPU per byte compares the arms.".into(),
        );
    } else if let Some(busy) = busy.filter(|busy| busy.median >= SATURATED) {
        notes.push(format!(
            "Source and sink run on this host too and its CPUs were {:.0} % busy: throughput is the host's limit, \
             CPU per byte is the number to read.",
            busy.median * 100.0
        ));
    }
    for arm in arms {
        let fallbacks: Vec<String> = arm.fallbacks().iter().map(|(reason, n)| format!("{reason} {n}")).collect();
        let share = arm.bulk.bytes.and_then(splice_share);
        let fell_back = if fallbacks.is_empty() { String::new() } else { format!(" ({})", fallbacks.join(", ")) };
        match (arm.kind, share) {
            (Arm::Splice, Some(share)) if share < SPLICED => {
                notes.push(format!("splice moved only {:.1} % of the bulk bytes by splice{fell_back}.", share * 100.0));
            }
            _ if !fallbacks.is_empty() => notes.push(format!("{} fell back to copying{fell_back}.", arm.arm)),
            _ => {}
        }
    }
    notes
}

fn verdict(arms: &[ArmReport], settings: &Settings) -> Vec<String> {
    let mut sentences = Vec::new();
    let bulk = compared(arms, ArmReport::bulk_cpu);
    if !bulk.is_empty() {
        sentences.push(format!("CPU per byte: {}.", bulk.join("; ")));
    }
    let ping = compared(arms, ArmReport::ping_cpu);
    if !ping.is_empty() {
        let size = format_size(settings.exchange_bytes as usize);
        let size = if size.ends_with('B') { size } else { format!("{size}-byte") };
        sentences.push(format!("CPU per {size} exchange: {}.", ping.join("; ")));
    }
    sentences
}

/// Splice against copy 64 KiB, and `auto` against the better of all others, by one cost.
fn compared(arms: &[ArmReport], cost: fn(&ArmReport) -> Option<f64>) -> Vec<String> {
    let of = |kind: Arm| arms.iter().find(|arm| arm.kind == kind).and_then(cost);
    let mut said = Vec::new();
    if let (Some(splice), Some(base)) = (of(Arm::Splice), of(BASE)) {
        said.push(format!("splice needs {} of {BASE}'s", ratio(splice, base)));
    }
    let others = arms.iter().filter(|arm| arm.kind != Arm::Auto);
    let best = others.filter_map(|arm| Some((arm, cost(arm)?))).min_by(|a, b| a.1.total_cmp(&b.1));
    if let (Some(auto), Some((arm, best))) = (of(Arm::Auto), best) {
        let percent = (auto / best - 1.0) * 100.0;
        said.push(match percent {
            p if p.abs() < 0.5 => format!("auto is level with the best fixed engine ({})", arm.arm),
            p if p < 0.0 => format!("auto is {:.0} % below the best fixed engine ({})", -p, arm.arm),
            p if p <= 5.0 => format!("auto is within {:.0} % of the best fixed engine ({})", p.ceil(), arm.arm),
            p => format!("auto needs {p:.0} % more than the best fixed engine ({})", arm.arm),
        });
    }
    said
}

fn ratio(value: f64, base: f64) -> String {
    format!("{:.2}×", value / base)
}

/// Part of the bytes that went through a pipe, 0 to 1.
fn splice_share(bytes: Paths) -> Option<f64> {
    (bytes.total() > 0).then(|| bytes.splice as f64 / bytes.total() as f64)
}

fn dash<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "–".to_owned(), show)
}

impl Report {
    fn base(&self, value: fn(&ArmReport) -> Option<f64>) -> Option<f64> {
        self.arms.iter().find(|arm| arm.kind == BASE).and_then(value)
    }

    fn bulk_table(&self) -> Table {
        let base_rate = self.base(|arm| Some(arm.bulk.gbit_per_second.median));
        let base_cpu = self.base(ArmReport::bulk_cpu);
        let mut table = Table::new(["arm", "Gbit/s", "ratio", "CPU s/GB", "ratio", "spliced", "copied"]);
        for arm in &self.arms {
            let share = arm.bulk.bytes.and_then(splice_share);
            table.row([
                arm.arm.clone(),
                arm.bulk.gbit_per_second.show(2),
                dash(base_rate, |base| ratio(arm.bulk.gbit_per_second.median, base)),
                dash(arm.bulk.cpu_seconds_per_gb, |cpu| cpu.show(3)),
                dash(arm.bulk_cpu().zip(base_cpu), |(cpu, base)| ratio(cpu, base)),
                dash(share, |share| format!("{:.1} %", share * 100.0)),
                dash(share, |share| format!("{:.1} %", (1.0 - share) * 100.0)),
            ]);
        }
        table
    }

    fn ping_table(&self) -> Table {
        let base_cpu = self.base(ArmReport::ping_cpu);
        let mut table = Table::new(["arm", "exchanges/s", "CPU µs each", "ratio", "p50 µs", "p99 µs", "spliced"]);
        for arm in &self.arms {
            let of = &arm.exchanges;
            table.row([
                arm.arm.clone(),
                format!("{:.0}", of.exchanges_per_second.median),
                dash(of.cpu_us_per_exchange, |cpu| cpu.show(1)),
                dash(arm.ping_cpu().zip(base_cpu), |(cpu, base)| ratio(cpu, base)),
                of.p50_us.show(0),
                of.p99_us.show(0),
                dash(of.bytes.and_then(splice_share), |share| format!("{:.1} %", share * 100.0)),
            ]);
        }
        table
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, settings, .. } = self;
        let plural = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let cpus = plural(host.cpus, "CPU");
        writeln!(f, "spliced {} on {}, {}, {cpus}", self.version, host.kernel, host.machine)?;
        let rounds = plural(settings.rounds as usize, "round");
        writeln!(
            f,
            "{rounds} of {} s for each arm, interleaved: median (min–max); ratios to {BASE}",
            settings.seconds
        )?;
        let message = format_size(settings.message_bytes);
        writeln!(f, "\nBulk: {}, writes of {message}", plural(settings.streams as usize, "stream"))?;
        write!(f, "{}", self.bulk_table())?;
        let exchange = format_size(settings.exchange_bytes as usize);
        let bytes = if exchange.ends_with('B') { "" } else { " B" };
        let connections = plural(settings.connections as usize, "connection");
        writeln!(f, "\nPing-pong: {connections}, {exchange}{bytes} there and back")?;
        write!(f, "{}", self.ping_table())?;
        writeln!(f)?;
        let (gb, exchanges) = (self.verified_bytes as f64 / 1e9, self.verified_exchanges);
        writeln!(f, "Verified: {gb:.1} GB and {exchanges} exchanges, every byte as sent, every end clean.")?;
        for Skipped { arm, reason } in &self.skipped {
            writeln!(f, "Skipped: {arm}, {reason}.")?;
        }
        for note in &self.notes {
            writeln!(f, "Note: {note}")?;
        }
        for sentence in &self.verdict {
            writeln!(f, "{sentence}")?;
        }
        Ok(())
    }
}
