//! Whether the system allows as many sessions as the configuration does.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

use crate::plan::{Forward, Host, Plan};

/// Descriptors of the process that belong to no session, worker or listener: standard streams, log, signals, control
/// socket, metrics, a few of their clients, and those in reserve for them.
const FIXED: u64 = 48;
/// Descriptors of a worker: its poller, its waker, and two in reserve for backends.
const PER_WORKER: u64 = 4;
/// So many of all descriptors are for the control thread; of a small limit, an eighth.
const KEPT: usize = 16;

/// Descriptors by their number that sessions may have, of so many that the process may.
#[must_use]
pub fn for_sessions(allowed: usize) -> usize {
    allowed - KEPT.min(allowed / 8)
}

/// Whether one session fits beside what is open now and what so many workers still open. To be asked once the listeners
/// are open and before a worker is: otherwise the process would say that it is ready and never take a client.
///
/// # Errors
/// It does not: how many descriptors are allowed, how many are needed at least, and what to do.
pub fn check_room(plan: &Plan, allowed: u64, workers: usize) -> Result<(), String> {
    let allowed = usize::try_from(allowed).unwrap_or(usize::MAX);
    // A worker's reserve has the descriptor for the backend, and the client's is beyond these; but before a worker takes
    // another client it wants to see one in reach.
    let wanted = workers.saturating_mul(PER_WORKER as usize).saturating_add(of_threads(plan)).saturating_add(1);
    let end = for_sessions(allowed);
    // A new descriptor is the lowest number that is free, so trying says how many there are, whoever opened the others.
    let in_reach = |socket: &UnixDatagram| usize::try_from(socket.as_raw_fd()).is_ok_and(|number| number < end);
    let tried: Vec<UnixDatagram> = (0..wanted).map_while(|_| UnixDatagram::unbound().ok().filter(in_reach)).collect();
    let missing = wanted - tried.len();
    if missing == 0 {
        return Ok(());
    }
    let needed = (allowed..).find(|limit| for_sessions(*limit) >= end + missing).unwrap_or(usize::MAX);
    Err(format!(
        "{allowed} descriptors are allowed (ulimit -n, LimitNOFILE=), but at least {needed} are needed for the listeners, \
         {workers} workers and one session; raise the limit, which is best at 1024 or more, or use fewer workers (--workers)"
    ))
}

/// Descriptors of the threads that check targets and look up names: a poller, a waker, and one to ask with.
fn of_threads(plan: &Plan) -> usize {
    let has = |is: fn(&Forward) -> bool| usize::from(plan.forwards.iter().any(is));
    let checks = has(|forward| forward.balancing.check.is_some());
    let names =
        has(|forward| forward.targets.iter().any(|target| matches!(target.host, Host::Name(_) | Host::Service(_))));
    3 * checks + names
}

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

    #[test]
    fn a_share_is_kept_for_questions() {
        for (allowed, end) in [(0, 0), (7, 7), (16, 14), (64, 56), (128, 112), (1024, 1008)] {
            assert_eq!(for_sessions(allowed), end);
        }
    }
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
