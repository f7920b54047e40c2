//! TCP counters of network namespaces.

use std::collections::BTreeMap;
use std::io;

use crate::place::Place;
use crate::results::Samples;

/// Files that hold the counters; see `Documentation/networking/snmp_counter.rst` of the kernel.
const FILES: [&str; 2] = ["/proc/net/snmp", "/proc/net/netstat"];
/// Counters beside retransmits that tell of trouble, and the names of their samples.
const TROUBLE: [(&str, &str); 5] = [
    ("TcpExt.TCPTimeouts", "tcp_timeouts"),
    ("TcpExt.TCPSynRetrans", "tcp_syn_retransmits"),
    ("TcpExt.ListenOverflows", "listen_overflows"),
    ("TcpExt.ListenDrops", "listen_drops"),
    ("Tcp.AttemptFails", "connect_failures"),
];

/// Counters of one or more namespaces, such as `Tcp.RetransSegs`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TcpCounters(BTreeMap<String, i64>);

impl TcpCounters {
    /// The sum over these places, now.
    ///
    /// # Errors
    /// A place where the counters cannot be read.
    pub fn of<'a>(places: impl IntoIterator<Item = &'a Place>) -> io::Result<Self> {
        let mut sum = Self::default();
        for place in places {
            sum.add(&read(place)?);
        }
        Ok(sum)
    }

    /// One counter; 0 where the kernel has none of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// What was counted since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self(self.0.iter().map(|(name, n)| (name.clone(), n - earlier.get(name))).collect())
    }

    /// Adds `retransmits` (segments sent again), always, and signs of trouble where there are any.
    pub fn samples(&self, samples: &mut Samples) {
        samples.insert("retransmits".to_owned(), self.get("Tcp.RetransSegs") as f64);
        for (counter, name) in TROUBLE {
            if self.get(counter) > 0 {
                samples.insert(name.to_owned(), self.get(counter) as f64);
            }
        }
    }

    /// Two lines for each group, one of names and one of numbers: `Tcp: RetransSegs …` and `Tcp: 12 …`.
    fn add(&mut self, text: &str) {
        let mut lines = text.lines();
        while let (Some(names), Some(numbers)) = (lines.next(), lines.next()) {
            let (mut names, mut numbers) = (names.split_whitespace(), numbers.split_whitespace());
            let group = names.next();
            if group.is_none() || group != numbers.next() {
                continue;
            }
            let group = group.unwrap_or_default().trim_end_matches(':');
            for (name, number) in names.zip(numbers) {
                if let Ok(number) = number.parse::<i64>() {
                    *self.0.entry(format!("{group}.{name}")).or_default() += number;
                }
            }
        }
    }
}

fn read(place: &Place) -> io::Result<String> {
    let failed = |why: String| io::Error::other(format!("cannot read TCP counters in {}: {why}", place.name));
    let output = place.command("cat").args(FILES).output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SNMP: &str = "\
Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens AttemptFails EstabResets CurrEstab InSegs OutSegs RetransSegs InErrs OutRsts InCsumErrors
Tcp: 1 200 120000 -1 52 33 2 4 6 13001 14002 17 0 11 0
Udp: InDatagrams NoPorts
Udp: 12 0
TcpExt: SyncookiesSent ListenOverflows ListenDrops TCPTimeouts
TcpExt: 0 3 3 0
";

    #[test]
    fn names_meet_their_numbers() {
        let mut counters = TcpCounters::default();
        counters.add(SNMP);
        assert_eq!(counters.get("Tcp.RetransSegs"), 17);
        assert_eq!(counters.get("Tcp.MaxConn"), -1);
        assert_eq!(counters.get("TcpExt.ListenDrops"), 3);
        assert_eq!(counters.get("Tcp.NoSuchCounter"), 0);
        counters.add(SNMP);
        assert_eq!(counters.get("Tcp.RetransSegs"), 34, "namespaces add up");
        counters.add("Tcp: A B\nUdp: 1 2\nTcp:");
        assert_eq!(counters.get("Tcp.A"), 0);
    }

    #[test]
    fn samples_say_what_went_wrong_since() {
        let (mut before, mut after) = (TcpCounters::default(), TcpCounters::default());
        before.add(SNMP);
        after.add(&SNMP.replace("14002 17 ", "15000 20 ").replace(" 0 3 3 0", " 0 3 9 0"));
        let mut samples = Samples::new();
        after.since(&before).samples(&mut samples);
        assert_eq!(samples["retransmits"], 3.0);
        assert_eq!(samples["listen_drops"], 6.0);
        assert!(!samples.contains_key("listen_overflows"), "none since");
    }

    #[test]
    fn this_kernel_has_the_counters() {
        let here = TcpCounters::of([&Place::here()]).unwrap();
        for name in ["Tcp.RetransSegs", "Tcp.AttemptFails", "TcpExt.TCPTimeouts", "TcpExt.ListenDrops"] {
            assert!(here.0.contains_key(name), "{name}");
        }
        let nowhere = Place { name: "nowhere".into(), prefix: vec!["/no/such/ip".into()] };
        assert!(TcpCounters::of([&nowhere]).unwrap_err().to_string().contains("nowhere"));
    }
}
