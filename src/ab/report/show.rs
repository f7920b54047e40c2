//! A result as people read it: two tables and a few sentences.

use std::fmt;

use super::{ArmReport, Report, Skipped, Spread};
use crate::ab::table::Table;
use crate::ab::usage::Paths;
use crate::ab::verdict::BASE;
use crate::config::Size;

impl Spread {
    pub(super) fn show(self, decimals: usize) -> String {
        let Self { median, min, max } = self;
        if min < max {
            format!("{median:.decimals$} ({min:.decimals$}–{max:.decimals$})")
        } else {
            format!("{median:.decimals$}")
        }
    }
}

fn ratio(value: f64, base: f64) -> String {
    format!("{:.2}×", value / base)
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
            let share = arm.bulk.bytes.and_then(Paths::splice_share);
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
                dash(of.bytes.and_then(Paths::splice_share), |share| format!("{:.1} %", share * 100.0)),
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
        let message = Size(settings.message_bytes).to_string();
        writeln!(f, "\nBulk: {}, writes of {message}", plural(settings.streams as usize, "stream"))?;
        write!(f, "{}", self.bulk_table())?;
        let exchange = Size(settings.exchange_bytes as usize).to_string();
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
