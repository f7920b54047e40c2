//! /etc/resolv.conf and /etc/hosts, read as the C library does: a line it does not know is skipped, not refused.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

pub(super) const RESOLV_CONF: &str = "/etc/resolv.conf";
pub(super) const HOSTS: &str = "/etc/hosts";

/// Bytes read of either file.
const MOST_BYTES: u64 = 4 << 20;
/// As many servers as the C library asks (MAXNS in resolv.h).
const MOST_SERVERS: usize = 3;
/// Its bounds of the options (RES_MAXNDOTS, RES_MAXRETRANS, RES_MAXRETRY).
const MOST_DOTS: usize = 15;
const LONGEST_TIMEOUT: u64 = 30;
const MOST_ATTEMPTS: u32 = 5;

/// Whom to ask, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) servers: Vec<SocketAddr>,
    pub(super) search: Vec<String>,
    pub(super) dots: usize,
    pub(super) timeout: Duration,
    pub(super) attempts: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { servers: Vec::new(), search: Vec::new(), dots: 1, timeout: Duration::from_secs(5), attempts: 2 }
    }
}

/// The text of a file, as far as it is text.
pub(super) fn text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MOST_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl Settings {
    /// resolv.conf(5).
    pub(super) fn parse(text: &str) -> Self {
        let mut settings = Self::default();
        for line in text.lines().filter(|line| !line.starts_with(['#', ';'])) {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") if settings.servers.len() < MOST_SERVERS => {
                    let address = words.next().and_then(server);
                    settings.servers.extend(address.map(|ip| SocketAddr::new(ip, 53)));
                }
                // The last one counts, and a domain is a list of one.
                Some("search") => settings.search = words.map(domain).filter(|d| !d.is_empty()).collect(),
                Some("domain") => settings.search = words.take(1).map(domain).collect(),
                Some("options") => words.for_each(|word| settings.option(word)),
                _ => {}
            }
        }
        settings
    }

    fn option(&mut self, word: &str) {
        let Some((name, value)) = word.split_once(':') else { return };
        let Ok(value) = value.parse::<u64>() else { return };
        match name {
            "ndots" => self.dots = usize::try_from(value).unwrap_or(MOST_DOTS).min(MOST_DOTS),
            "timeout" => self.timeout = Duration::from_secs(value.clamp(1, LONGEST_TIMEOUT)),
            "attempts" => self.attempts = u32::try_from(value).unwrap_or(MOST_ATTEMPTS).clamp(1, MOST_ATTEMPTS),
            _ => {}
        }
    }

    /// The names to ask for, in order: a name with few dots goes through the search list first.
    pub(super) fn candidates(&self, name: &str) -> Vec<String> {
        if let Some(absolute) = name.strip_suffix('.') {
            return vec![absolute.to_owned()];
        }
        let searched = self.search.iter().map(|domain| format!("{name}.{domain}"));
        let own = std::iter::once(name.to_owned());
        if name.matches('.').count() >= self.dots {
            own.chain(searched).collect()
        } else {
            searched.chain(own).collect()
        }
    }
}

/// An address, without its zone: a link-local server is not asked.
fn server(text: &str) -> Option<IpAddr> {
    text.parse().ok()
}

fn domain(text: &str) -> String {
    text.trim_end_matches('.').to_ascii_lowercase()
}

/// The addresses a name has in the text of a hosts file (hosts(5)), each once.
pub(super) fn hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_ascii_whitespace();
        let Some(Ok(ip)) = words.next().map(str::parse::<IpAddr>) else { continue };
        let ip = ip.to_canonical();
        if words.any(|word| word.strip_suffix('.').unwrap_or(word).eq_ignore_ascii_case(name)) && !found.contains(&ip) {
            found.push(ip);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_resolv_conf_of_every_kind() {
        let text = "# a comment\n; another\nnameserver 10.0.0.53\nnameserver ::1 # own\nnameserver fe80::1%eth0\n\
                    domain old.example\nsearch a.example. B.example\nsortlist 10.0.0.0\n\
                    options ndots:2 timeout:1 attempts:99 rotate edns0 use-vc ndots:x\nnameserver 10.0.0.54\nnameserver 10.0.0.55\n";
        let settings = Settings::parse(text);
        let servers: Vec<String> = settings.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.0.0.53:53", "[::1]:53", "10.0.0.54:53"]);
        assert_eq!(settings.search, ["a.example", "b.example"]);
        assert_eq!((settings.dots, settings.timeout, settings.attempts), (2, Duration::from_secs(1), 5));
        assert_eq!(settings.candidates("db"), ["db.a.example", "db.b.example", "db"]);
        assert_eq!(settings.candidates("x.y.z"), ["x.y.z", "x.y.z.a.example", "x.y.z.b.example"]);
        assert_eq!(settings.candidates("db."), ["db"]);
        assert_eq!(Settings::parse(""), Settings::default());
    }

    #[test]
    fn a_hosts_file() {
        let text = "127.0.0.1 localhost\n::1 localhost ip6-localhost # comment\n10.0.0.1\tDB.example db db2 # not: dbx\n\
                    ::ffff:10.0.0.1 db\nnonsense db\n10.0.0.2 db";
        let ips = |name: &str| hosts(text, name).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(ips("localhost"), ["127.0.0.1", "::1"]);
        assert_eq!(ips("db"), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(ips("db.EXAMPLE."), ["10.0.0.1"]);
        assert!(ips("dbx").is_empty() && ips("").is_empty());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<String>(), near in "(nameserver|search|domain|options) [a-z0-9:. %#-]{0,20}\n?") {
            for text in [text, near] {
                let _ = (Settings::parse(&text).candidates(&text), hosts(&text, "a"));
            }
        }
    }
}
