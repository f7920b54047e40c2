//! How names are looked up, as people write it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::error::{Fault, found, quoted};
use super::node::{Node, Value};
use super::value::{Maybe, time};
use crate::plan::Resolve;

pub(super) const RESOLVE: &str = "dns, system";
pub(super) const RESOLVE_INTERVAL: &str = "ttl, or a time from 100ms to 1d, such as 10s";
pub(super) const RESOLVE_BOUND: &str = "a time from 100ms to 1d, such as 1s or 1h";
pub(super) const RESOLVERS: &str =
    "none, or addresses of name servers such as 10.0.0.53 or [::1]:5353, several with commas";

const DAY_MS: u64 = 24 * 3_600_000;
/// Name servers of one process.
const MOST_SERVERS: usize = 16;

/// Name servers; empty takes those of the system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolvers(pub Vec<SocketAddr>);

pub(super) fn resolve(text: &str) -> Result<Resolve, String> {
    match text {
        "dns" => Ok(Resolve::Dns),
        "system" => Ok(Resolve::System),
        _ => Err(found(text, RESOLVE)),
    }
}

pub(super) fn resolve_interval(text: &str) -> Result<Maybe<Duration>, String> {
    if text == "ttl" {
        return Ok(Maybe(None));
    }
    time(text, 100, DAY_MS, RESOLVE_INTERVAL).map(|time| Maybe(Some(time)))
}

pub(super) fn resolve_bound(text: &str) -> Result<Duration, String> {
    time(text, 100, DAY_MS, RESOLVE_BOUND)
}

pub(super) fn resolvers(text: &str) -> Result<Resolvers, String> {
    let mut all = Resolvers::default();
    if text != "none" {
        text.split(',').try_for_each(|part| all.add(part.trim()))?;
    }
    Ok(all)
}

/// One server or a list of them, each error where its item stands.
pub(super) fn resolver_list(node: &Node) -> Result<Resolvers, Fault> {
    let Value::List(items) = &node.value else { return node.parse(resolvers, RESOLVERS) };
    let mut all = Resolvers::default();
    items.iter().try_for_each(|item| item.parse(|text| all.add(text), RESOLVERS))?;
    Ok(all)
}

impl Resolvers {
    fn add(&mut self, text: &str) -> Result<(), String> {
        let address = match text.parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip, 53),
            Err(_) => text.parse().map_err(|_| found(text, RESOLVERS))?,
        };
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        if address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast() {
            return Err(found(text, RESOLVERS));
        }
        if self.0.contains(&address) {
            return Err(format!("found {} a second time; allowed: each name server once", quoted(text)));
        }
        if self.0.len() == MOST_SERVERS {
            return Err(format!("found more than {MOST_SERVERS} name servers; allowed: at most {MOST_SERVERS}"));
        }
        self.0.push(address);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_with_and_without_a_port() {
        let all = resolvers("10.0.0.53, [::1]:5353,fd00::53").unwrap();
        let all: Vec<String> = all.0.iter().map(ToString::to_string).collect();
        assert_eq!(all, ["10.0.0.53:53", "[::1]:5353", "[fd00::53]:53"]);
        assert_eq!(resolvers("none"), Ok(Resolvers::default()));
        for bad in ["", "ns.example", "10.0.0.53:0", "0.0.0.0", "10.0.0.1,10.0.0.1:53", "1.1.1.1:99999", "224.0.0.1"] {
            assert!(resolvers(bad).unwrap_err().contains("; allowed: "), "{bad}");
        }
        let many: Vec<String> = (0..17).map(|n| format!("10.0.0.{n}")).collect();
        assert!(resolvers(&many.join(",")).unwrap_err().contains("at most 16"));
    }

    #[test]
    fn times() {
        assert_eq!(resolve_interval("ttl"), Ok(Maybe(None)));
        assert_eq!(resolve_interval("10s"), Ok(Maybe(Some(Duration::from_secs(10)))));
        assert_eq!(resolve("system"), Ok(Resolve::System));
        assert!(resolve_interval("0s").is_err() && resolve_bound("2d").is_err() && resolve("getaddrinfo").is_err());
    }
}
