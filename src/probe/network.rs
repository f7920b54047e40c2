//! Ports, queues, buffers, time-wait, connection tracking.

use super::Finding;
use super::limits::raise;
use super::system::System;
use crate::sys::FastOpen;

/// What spliced asks listen(2) for unless told otherwise.
const BACKLOG: u64 = 4096;
/// The kernel's own range has 28,232 ports; with fewer a busy backend runs out of them.
const PORTS: u64 = 28_000;
/// Seconds a closed connection keeps its port (`TCP_TIMEWAIT_LEN` in `include/net/tcp.h`).
const TIME_WAIT: u64 = 60;
/// Bytes in flight that carry 1 Gbit/s over a round trip of 32 ms.
const BUFFER: u64 = 4 << 20;

pub(super) fn findings(system: &System) -> Vec<Finding> {
    vec![
        ports(system),
        backlog(system),
        syn_backlog(system),
        buffers(system),
        time_wait(system),
        conntrack(system),
        fast_open(system),
    ]
}

fn unknown(check: &'static str, what: &str) -> Finding {
    Finding::warn(check, format!("{what} cannot be read"), "run it where /proc/sys/net is mounted")
}

/// Ports of connections to backends: one each per target and source address.
fn port_count(system: &System) -> Option<u64> {
    let range = system.sysctl("net.ipv4.ip_local_port_range")?;
    let (first, last) = (range.first()?, range.get(1)?);
    Some((last + 1).saturating_sub(*first))
}

fn ports(system: &System) -> Finding {
    const CHECK: &str = "ports";
    const NAME: &str = "net.ipv4.ip_local_port_range";
    let Some(count) = port_count(system) else { return unknown(CHECK, NAME) };
    let found = format!("{count} ports in {NAME}: so many sessions to one target from one source address");
    if count < PORTS { Finding::warn(CHECK, found, raise(NAME, "\"1024 65535\"")) } else { Finding::ok(CHECK, found) }
}

/// Nothing is wrong with a host without it: only who configures `fast_open` needs more.
fn fast_open(system: &System) -> Finding {
    const CHECK: &str = "fast open";
    const NAME: &str = "net.ipv4.tcp_fastopen";
    let Some([bits]) = system.sysctl(NAME).as_deref().map(<[u64; 1]>::try_from).and_then(Result::ok) else {
        return unknown(CHECK, NAME);
    };
    let found = match FastOpen::of(bits as u32).shortfall() {
        None => format!("{NAME} is {bits}: for listeners and for connections to targets"),
        Some(shortfall) => format!("{shortfall} (needed with fast_open alone)"),
    };
    Finding::ok(CHECK, found)
}

fn backlog(system: &System) -> Finding {
    const CHECK: &str = "backlog";
    const NAME: &str = "net.core.somaxconn";
    match system.sysctl(NAME).as_deref() {
        Some([n]) if *n < BACKLOG => {
            let found = format!("{NAME} is {n}, a listener asks for {BACKLOG}: a burst of clients is dropped sooner");
            Finding::warn(CHECK, found, raise(NAME, BACKLOG))
        }
        Some([n]) => Finding::ok(CHECK, format!("{NAME} is {n}")),
        _ => unknown(CHECK, NAME),
    }
}

fn syn_backlog(system: &System) -> Finding {
    const CHECK: &str = "syn backlog";
    const NAME: &str = "net.ipv4.tcp_max_syn_backlog";
    let (queue, cookies) = (system.sysctl(NAME), system.sysctl("net.ipv4.tcp_syncookies"));
    let (Some([queue]), Some([cookies])) = (queue.as_deref(), cookies.as_deref()) else { return unknown(CHECK, NAME) };
    let found = format!("{NAME} is {queue}, tcp_syncookies is {cookies}");
    match (queue, cookies) {
        (_, 0) => Finding::warn(
            CHECK,
            format!("{found}: a flood of SYNs shuts clients out"),
            raise("net.ipv4.tcp_syncookies", 1),
        ),
        (0..1024, _) => Finding::warn(CHECK, found, raise(NAME, BACKLOG)),
        _ => Finding::ok(CHECK, found),
    }
}

fn buffers(system: &System) -> Finding {
    const CHECK: &str = "buffers";
    let (read, write) = (system.sysctl("net.ipv4.tcp_rmem"), system.sysctl("net.ipv4.tcp_wmem"));
    let (Some([.., read]), Some([.., write])) = (read.as_deref(), write.as_deref()) else {
        return unknown(CHECK, "net.ipv4.tcp_rmem or tcp_wmem");
    };
    let found = format!("tcp_rmem up to {read}, tcp_wmem up to {write}");
    if system.sysctl("net.ipv4.tcp_moderate_rcvbuf").as_deref() == Some(&[0]) {
        let found = format!("{found}, but tcp_moderate_rcvbuf is 0: receive buffers never grow");
        return Finding::warn(CHECK, found, raise("net.ipv4.tcp_moderate_rcvbuf", 1));
    }
    let low = [
        ("net.ipv4.tcp_rmem", *read, "\"4096 131072 6291456\""),
        ("net.ipv4.tcp_wmem", *write, "\"4096 16384 4194304\""),
    ];
    let mends: Vec<String> =
        low.iter().filter(|(_, most, _)| *most < BUFFER).map(|(name, _, value)| raise(name, value)).collect();
    if mends.is_empty() {
        return Finding::ok(CHECK, found);
    }
    let rate = *read.min(write) as f64 * 8.0 / 0.1 / 1e6;
    Finding::warn(
        CHECK,
        format!("{found}: at most {rate:.0} Mbit/s a session over a round trip of 100 ms"),
        mends.join("; "),
    )
}

/// Whichever side closes first keeps the port for a minute; a forwarder connects, so this is its ports.
fn time_wait(system: &System) -> Finding {
    const CHECK: &str = "time-wait";
    let (reuse, most) = (system.sysctl("net.ipv4.tcp_tw_reuse"), system.sysctl("net.ipv4.tcp_max_tw_buckets"));
    let (Some([reuse]), Some([most])) = (reuse.as_deref(), most.as_deref()) else {
        return unknown(CHECK, "net.ipv4.tcp_tw_reuse or tcp_max_tw_buckets");
    };
    let waiting = waiting(system);
    let now = waiting.map_or(String::new(), |n| format!(", {n} now"));
    let found = format!("tcp_tw_reuse is {reuse}, tcp_max_tw_buckets is {most}{now}");
    let ports = port_count(system).unwrap_or(PORTS);
    match (*reuse, waiting.unwrap_or(0)) {
        (_, n) if n >= most / 10 * 9 => {
            let found = format!("{found}: connections leave time-wait early, and late packets may reach new ones");
            Finding::warn(CHECK, found, raise("net.ipv4.tcp_max_tw_buckets", most.saturating_mul(2).max(262_144)))
        }
        (1, _) => Finding::ok(CHECK, found),
        // 2, the kernel's default, is 1 for loopback only.
        (reuse, n) if reuse == 0 || n > ports / 2 => {
            let rate = ports / TIME_WAIT;
            let found = format!("{found}: beyond about {rate} new sessions a second to one target, ports run out");
            Finding::warn(CHECK, found, raise("net.ipv4.tcp_tw_reuse", 1))
        }
        _ => Finding::ok(CHECK, found),
    }
}

/// Connections in time-wait in this network namespace.
fn waiting(system: &System) -> Option<u64> {
    let text = system.text("proc/net/sockstat")?;
    let mut words = text.lines().find_map(|line| line.strip_prefix("TCP:"))?.split_whitespace();
    words.find(|word| *word == "tw")?;
    words.next()?.parse().ok()
}

/// A forwarded session is two connections, and each is an entry.
fn conntrack(system: &System) -> Finding {
    const CHECK: &str = "conntrack";
    const MAX: &str = "net.netfilter.nf_conntrack_max";
    let most = system.sysctl(MAX).and_then(|n| n.first().copied());
    let Some(most) = most.filter(|most| *most > 0) else { return Finding::ok(CHECK, "not loaded") };
    let used = system.sysctl("net.netfilter.nf_conntrack_count").and_then(|n| n.first().copied()).unwrap_or(0);
    let found = format!("loaded, {used} of {most} entries used; a session takes 2");
    let double = raise(MAX, most.saturating_mul(2).max(262_144));
    match () {
        () if used >= most / 10 * 9 => {
            Finding::fail(CHECK, format!("{found}: new connections are dropped when it is full"), double)
        }
        () if used >= most / 2 || most < 65536 => Finding::warn(CHECK, found, double),
        () => Finding::ok(CHECK, found),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::system::tests::of;
    use super::*;

    const GOOD: &[(&str, &str)] = &[
        ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n"),
        ("proc/sys/net/core/somaxconn", "4096\n"),
        ("proc/sys/net/ipv4/tcp_max_syn_backlog", "2048\n"),
        ("proc/sys/net/ipv4/tcp_syncookies", "1\n"),
        ("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t6291456\n"),
        ("proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t4194304\n"),
        ("proc/sys/net/ipv4/tcp_moderate_rcvbuf", "1\n"),
        ("proc/sys/net/ipv4/tcp_tw_reuse", "2\n"),
        ("proc/sys/net/ipv4/tcp_max_tw_buckets", "131072\n"),
        ("proc/net/sockstat", "sockets: used 18\nTCP: inuse 1 orphan 0 tw 7 alloc 1 mem 64\n"),
        ("proc/sys/net/ipv4/tcp_fastopen", "1\n"),
        ("proc/sys/net/netfilter/nf_conntrack_max", "262144\n"),
        ("proc/sys/net/netfilter/nf_conntrack_count", "12\n"),
    ];

    /// What is found when one file says something else.
    fn with(name: &str, text: &str) -> Vec<Finding> {
        let files: Vec<_> = GOOD.iter().filter(|file| file.0 != name).copied().chain([(name, text)]).collect();
        let (_directory, system) = of(&files);
        findings(&system)
    }

    #[test]
    fn the_kernels_own_settings_pass() {
        let found = with("proc/none", "");
        assert!(found.iter().all(|finding| finding.status == Status::Ok), "{found:#?}");
        assert!(found[4].found.ends_with(", 7 now"), "{}", found[4].found);
        assert!(found[6].found.contains("targets only"), "{}", found[6].found);
    }

    #[test]
    fn every_setting_is_looked_at_and_mended_by_name() {
        for (name, text, check, status, mend) in [
            (
                "ipv4/ip_local_port_range",
                "50000 50099",
                "ports",
                Status::Warn,
                "net.ipv4.ip_local_port_range=\"1024 65535\"",
            ),
            ("core/somaxconn", "128", "backlog", Status::Warn, "net.core.somaxconn=4096"),
            ("ipv4/tcp_max_syn_backlog", "128", "syn backlog", Status::Warn, "net.ipv4.tcp_max_syn_backlog=4096"),
            ("ipv4/tcp_syncookies", "0", "syn backlog", Status::Warn, "net.ipv4.tcp_syncookies=1"),
            (
                "ipv4/tcp_rmem",
                "4096 131072 212992",
                "buffers",
                Status::Warn,
                "net.ipv4.tcp_rmem=\"4096 131072 6291456\"",
            ),
            ("ipv4/tcp_wmem", "4096 16384 212992", "buffers", Status::Warn, "net.ipv4.tcp_wmem=\"4096 16384 4194304\""),
            ("ipv4/tcp_moderate_rcvbuf", "0", "buffers", Status::Warn, "net.ipv4.tcp_moderate_rcvbuf=1"),
            ("ipv4/tcp_tw_reuse", "0", "time-wait", Status::Warn, "net.ipv4.tcp_tw_reuse=1"),
            ("ipv4/tcp_max_tw_buckets", "7", "time-wait", Status::Warn, "net.ipv4.tcp_max_tw_buckets=262144"),
            ("netfilter/nf_conntrack_max", "13", "conntrack", Status::Fail, "net.netfilter.nf_conntrack_max=262144"),
            (
                "netfilter/nf_conntrack_count",
                "140000",
                "conntrack",
                Status::Warn,
                "net.netfilter.nf_conntrack_max=524288",
            ),
        ] {
            let found = with(&format!("proc/sys/net/{name}"), text);
            let bad: Vec<_> = found.iter().filter(|finding| finding.status != Status::Ok).collect();
            let [bad] = bad[..] else { panic!("{name}: {found:#?}") };
            assert_eq!((bad.check, bad.status), (check, status), "{name}");
            assert_eq!(bad.mend.as_deref(), Some(format!("sysctl -w {mend}").as_str()), "{name}");
        }
    }

    #[test]
    fn ports_in_time_wait_are_counted_against_the_range() {
        let sockstat = "TCP: inuse 1 orphan 0 tw 20000 alloc 1 mem 64";
        let found = with("proc/net/sockstat", sockstat);
        assert_eq!(
            (found[4].status, found[4].mend.as_deref()),
            (Status::Warn, Some("sysctl -w net.ipv4.tcp_tw_reuse=1"))
        );
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        let (_directory, system) = of(&[]);
        let found = findings(&system);
        let unread = found.iter().filter(|finding| finding.found.ends_with("cannot be read")).count();
        assert_eq!((unread, found[5].found.as_str()), (6, "not loaded"));
    }
}
