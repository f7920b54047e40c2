//! Whether the system allows as many sessions as the configuration does.

use crate::plan::Plan;

/// Descriptors of the process that belong to no session, worker or listener: standard streams, log, signals, control
/// socket, metrics, a few of their clients, and those in reserve for them.
const FIXED: u64 = 48;
/// Descriptors of a worker: its poller, its waker, and two in reserve for backends.
const PER_WORKER: u64 = 4;

/// What to say at start when fewer descriptors are allowed than `max_connections` needs, with the numbers; `None` when
/// they are enough, or when no number of sessions was asked for.
///
/// A session needs two descriptors, one for each socket, and a pipe another two; without a pipe it copies, so pipes are
/// no reason to say anything.
#[must_use]
pub fn shortfall(plan: &Plan, allowed: u64, workers: usize, listeners: usize) -> Option<String> {
    let of_forwards = || plan.forwards.iter().map(|forward| forward.max_connections).sum::<Option<u64>>();
    let wanted = plan.max_connections.or_else(of_forwards)?;
    let own = FIXED + PER_WORKER * workers as u64 + listeners as u64;
    let needed = wanted.saturating_mul(2).saturating_add(own);
    if needed <= allowed {
        return None;
    }
    let fit = allowed.saturating_sub(own) / 2;
    Some(format!(
        "max_connections of {wanted} needs {needed} descriptors (2 for each session, {own} others), but {allowed} are \
         allowed: about {fit} sessions fit, further clients wait. Raise the limit (ulimit -n, LimitNOFILE=), or lower \
         max_connections"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Lookup, Overrides, parse};

    fn plan(lines: &str, of_first: &str, of_second: &str) -> Plan {
        let text = format!(
            "{lines}\nforwards:\n- {{listen: \"127.0.0.1:1\", to: \"10.0.0.1:1\"{of_first}}}\n\
             - {{listen: \"127.0.0.1:2\", to: \"10.0.0.1:1\"{of_second}}}\n"
        );
        parse("FILE", &text, &Overrides::default(), &Lookup::fixed()).unwrap()
    }

    #[test]
    fn is_said_with_numbers() {
        let said = shortfall(&plan("max_connections: 1000", "", ""), 1024, 2, 4).unwrap();
        assert!(said.contains("max_connections of 1000 needs 2060 descriptors"), "{said}");
        assert!(said.contains("1024 are allowed: about 482 sessions fit"), "{said}");
        let most = ", max_connections: 500";
        assert!(shortfall(&plan("", most, most), 1024, 2, 4).is_some(), "all forwards together");
    }

    #[test]
    fn is_not_said_without_need() {
        assert_eq!(shortfall(&plan("max_connections: 1000", "", ""), 2060, 2, 4), None);
        assert_eq!(shortfall(&plan("", "", ""), 64, 2, 4), None);
        assert_eq!(shortfall(&plan("", ", max_connections: 500", ""), 64, 2, 4), None, "the other has no limit");
    }
}
