//! Plans of every kind.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use proptest::prelude::*;
use spliced::address::UnixName;
use spliced::plan::{
    AcceptProxy, Access, Arm, Balance, Balancing, Check, Confinement, Egress, Engine, Forward, Health, Host, Keep,
    Limits, Listen, ListenOptions, Local, LogFormat, LogPlan, OnDown, Pattern, Pin, Plan, Ports, Privileges, Rate,
    Resolve, Resolving, RunAs, Scheduling, Target, TcpOptions, Timeouts, Udp, WhenFull,
};
use spliced::proxy::Version;

/// Any plan a file can describe, as far as one forward's values do not depend on another's.
pub(crate) fn plans() -> impl Strategy<Value = Plan> {
    let process = (
        (
            proptest::option::of(1usize..=1024),
            prop_oneof![Just(Pin::Auto), Just(Pin::On), Just(Pin::Off)],
            any::<bool>(),
            prop_oneof![Just(Scheduling::Auto), Just(Scheduling::Batch), Just(Scheduling::Normal)],
            proptest::option::of((1u64..=10_000).prop_map(Duration::from_micros)),
        ),
        (
            proptest::option::of(1u64..=1_000_000_000),
            proptest::option::of(1u64..=1_000_000_000),
            proptest::option::of(0u64..1_000_000_000),
        ),
        (path(), path(), path(), proptest::option::of(1u16..), privileges(), resolving()),
        prop_oneof![Just(LogFormat::Text), Just(LogFormat::Json), Just(LogFormat::Rinetd), Just(LogFormat::Common)],
        (patterns(), patterns(), proptest::collection::vec(forward(), 1..4)),
    );
    process.prop_map(
        |(
            (workers, pin, gather, scheduling, spin),
            (most, most_per_source, drain),
            (control, file, pid_file, metrics, privileges, resolving),
            format,
            (allow, deny, mut all),
        )| {
            for (number, forward) in (0u8..).zip(&mut all) {
                forward.name.push_str(&number.to_string());
                for listen in forward.listen.iter_mut().chain(&mut forward.udp.listen) {
                    listen.local = Local::Ip(IpAddr::from([10, 9, 0, number]));
                }
                // A unix socket is for streams alone.
                if forward.udp.listen.is_empty() && forward.udp.targets.is_none() && forward.egress.netns.is_none() {
                    let name = UnixName::new(&format!("/run/a b/{number}")).expect("a name");
                    forward.listen.push(Listen { local: Local::Unix(name), ports: Ports::NONE });
                    let name = UnixName::new(&format!("@{}\"{number}", forward.name)).expect("a name");
                    forward.targets.push(Target { weight: 3, ..Target::new(Host::Unix(name), Ports::NONE) });
                }
                forward.access.global_allow = allow.clone().into();
                forward.access.global_deny = deny.clone().into();
            }
            Plan {
                workers,
                pin,
                gather,
                scheduling,
                spin,
                max_connections: most,
                max_connections_per_source: most_per_source,
                drain_delay: Duration::from_millis(drain.unwrap_or(0) / 3),
                drain: drain.map(Duration::from_millis),
                upgrade_drain: drain.map(|ms| Duration::from_millis(ms / 2)),
                control,
                metrics: metrics.map(|port| ([127, 0, 0, 1], port).into()),
                log: LogPlan { format, file },
                resolving,
                pid_file,
                privileges,
                forwards: all,
            }
        },
    )
}

fn resolving() -> impl Strategy<Value = Resolving> {
    let how = prop_oneof![Just(Resolve::Dns), Just(Resolve::System)];
    let server = (any::<IpAddr>(), 1u16..).prop_filter_map("a name server", |(ip, port)| {
        let ip = ip.to_canonical();
        (!ip.is_unspecified() && !ip.is_multicast()).then(|| SocketAddr::new(ip, port))
    });
    let servers = proptest::collection::hash_set(server, 0..3).prop_map(|all| all.into_iter().collect());
    let time = || (100u64..=86_400_000).prop_map(Duration::from_millis);
    (how, servers, proptest::option::of(time()), time(), time())
        .prop_map(|(how, servers, interval, least, most)| Resolving { how, servers, interval, least, most })
}

fn privileges() -> impl Strategy<Value = Privileges> {
    let name = || "[a-z0-9_.][a-z0-9_.-]{0,20}";
    let user = proptest::option::of((name(), proptest::option::of(name())));
    let keep = (proptest::option::of(any::<bool>()), any::<bool>());
    let sandbox = prop_oneof![Just(Confinement::Auto), Just(Confinement::Strict), Just(Confinement::Off)];
    (user, keep, sandbox).prop_map(|(user, (bind, pipes), sandbox)| Privileges {
        user: user.map(|(user, group)| RunAs { user, group }),
        keep: Keep { bind, net: if bind.is_none() { None } else { Some(pipes) }, pipes },
        sandbox,
    })
}

fn path() -> impl Strategy<Value = Option<PathBuf>> {
    proptest::option::of("[^\\p{Cc}]{1,20}".prop_map(PathBuf::from))
}

fn patterns() -> impl Strategy<Value = Vec<Pattern>> {
    let net = (any::<IpAddr>(), 0u8..=32).prop_map(|(ip, prefix)| {
        Pattern::Net(ipnet::IpNet::new(ip.to_canonical(), prefix).expect("a prefix that fits both").trunc())
    });
    let host = any::<IpAddr>().prop_map(|ip| Pattern::Net(ip.to_canonical().into()));
    proptest::collection::vec(
        prop_oneof![net, host, "[0-9a-f.]{0,8}[*?][0-9a-f.*?]{0,8}".prop_map(Pattern::Text)],
        0..3,
    )
}

/// What an arm's name says about its buffer.
fn own_buffer(arm: &str) -> Option<usize> {
    arm.strip_prefix("copy-").map(|kib| kib.trim_end_matches("KiB").parse::<usize>().expect("a number") << 10)
}

/// No arms, or several with the forward's copy buffer where their name has none.
fn arms() -> impl Strategy<Value = Vec<Arm>> {
    let kinds = vec![
        ("splice".to_owned(), Engine::Splice),
        ("auto".to_owned(), Engine::Auto),
        ("copy".to_owned(), Engine::Copy),
        ("copy-1KiB".to_owned(), Engine::Copy),
        ("copy-1000KiB".to_owned(), Engine::Copy),
    ];
    let chosen = proptest::sample::subsequence(kinds, 2..=5).prop_shuffle();
    let several = (chosen, proptest::collection::vec(1u32..=1000, 5)).prop_map(|(kinds, shares)| {
        let arm = |((name, engine), share)| Arm { name, engine, copy_buffer: 0, share };
        kinds.into_iter().zip(shares).map(arm).collect()
    });
    prop_oneof![Just(Vec::new()), several]
}

/// Limits of a forward, and its source addresses.
fn limits() -> impl Strategy<Value = (Limits, Vec<IpAddr>)> {
    let connections = || proptest::option::of((1u64..=1_000_000, 1u64..=86_400));
    let connections = move || connections().prop_map(|rate| rate.map(|(per_second, burst)| Rate { per_second, burst }));
    let bytes = || proptest::option::of((1u64 << 10..=1 << 40, 0u64..1 << 30));
    let bytes = move || {
        bytes().prop_map(|rate| rate.map(|(per_second, more)| Rate { per_second, burst: per_second / 10 + more }))
    };
    let most = proptest::option::of(1u64..=1_000_000_000);
    let when_full = prop_oneof![Just(WhenFull::Queue), Just(WhenFull::Refuse)];
    // Of both families, so that every target has one of its own.
    let sources =
        prop_oneof![Just(vec![]), Just(vec!["10.0.0.1", "fd00::1"]), Just(vec!["10.0.0.1", "::1", "10.0.0.2"])];
    (most, when_full, (connections(), connections()), (bytes(), bytes()), sources).prop_map(
        |(max_per_source, when_full, connections, bytes, sources)| {
            let limits = Limits {
                max_per_source,
                when_full,
                connection_rate: connections.0,
                connection_rate_per_source: connections.1,
                rate: bytes.0,
                rate_per_source: bytes.1,
            };
            (limits, sources.into_iter().map(|ip| ip.parse().expect("an address")).collect())
        },
    )
}

/// Of a forward, beside its egress.
#[derive(Debug, Clone)]
struct Options {
    dscp: Option<u8>,
    transparent: bool,
}

fn identity() -> impl Strategy<Value = (Options, Egress, Option<AcceptProxy>)> {
    let version = proptest::option::of(prop_oneof![Just(Version::V1), Just(Version::V2)]);
    let device =
        proptest::option::of("[a-z0-9.@-]{0,12}[a-z0-9]".prop_filter("the word for none", |name| name != "none"));
    let egress = (version, proptest::option::of(1u32..), device).prop_map(|(send_proxy, mark, device)| Egress {
        send_proxy,
        mark,
        device,
        netns: None,
        transparent: false,
    });
    let from = proptest::collection::hash_set((any::<std::net::Ipv4Addr>(), 0u8..=32), 1..4);
    let accept = (from, 1u64..=600_000, any::<bool>()).prop_map(|(from, ms, required)| {
        let net = |(ip, len): (std::net::Ipv4Addr, u8)| IpNet::new(ip.into(), len).expect("a length").trunc();
        let mut from: Vec<IpNet> = from.into_iter().map(net).collect();
        from.sort_unstable();
        from.dedup();
        AcceptProxy { from, timeout: Duration::from_millis(ms), required }
    });
    let options =
        (proptest::option::of(0u8..64), any::<bool>()).prop_map(|(dscp, transparent)| Options { dscp, transparent });
    (options, egress, proptest::option::of(accept))
}

fn balancing() -> impl Strategy<Value = Balancing> {
    let ms = |least: u64, most: u64| (least..=most).prop_map(Duration::from_millis);
    let balance = prop_oneof![
        Just(Balance::RoundRobin),
        Just(Balance::LeastConnections),
        Just(Balance::SourceHash),
        Just(Balance::RandomTwo)
    ];
    let health = (1u32..=1000, ms(100, 10_000), ms(10_000, 86_400_000));
    let health = health.prop_map(|(fails, eject, eject_max)| Health { fails, eject, eject_max });
    let text = || prop_oneof![Just(String::new()), any::<String>().prop_map(|s| s.chars().take(200).collect())];
    let numbers = (1u32..=100, 1u32..=100, proptest::option::of(1u16..));
    let check = (text(), text(), ms(100, 86_400_000), ms(10, 3_600_000), numbers).prop_map(
        |(send, expect, interval, timeout, (rise, fall, port))| Check {
            send,
            expect,
            interval,
            timeout,
            rise,
            fall,
            port,
        },
    );
    (
        balance,
        proptest::option::of(0u32..=1000),
        (proptest::option::of(ms(1, 1_000_000)), proptest::option::of(ms(10, 3_600_000))),
        proptest::option::of(health),
        proptest::option::of(check),
        prop_oneof![Just(OnDown::Keep), Just(OnDown::End)],
    )
        .prop_map(|(balance, retries, (attempt_timeout, attempt_delay), health, check, on_down)| Balancing {
            balance,
            retries,
            attempt_timeout,
            attempt_delay,
            health,
            check,
            on_down,
        })
}

/// Whether there are listeners for datagrams, and how long flows live.
fn datagrams() -> impl Strategy<Value = (bool, Udp)> {
    let timeout = (1u64..100_000_000).prop_map(Duration::from_millis);
    (any::<bool>(), timeout, proptest::option::of(0u32..=1_000_000))
        .prop_map(|(has, timeout, responses)| (has, Udp { timeout, responses, ..Udp::default() }))
}

fn target() -> impl Strategy<Value = Target> {
    let host = prop_oneof![
        any::<IpAddr>().prop_map(|ip| Host::Ip(ip.to_canonical())),
        "[a-z][a-z0-9_]{0,8}(\\.[a-z]{1,8})?\\.?".prop_map(Host::Name),
        "_[a-z]{1,8}\\._tcp\\.[a-z]{1,8}".prop_map(Host::Service)
    ];
    let most = proptest::option::of(1u64..=1_000_000_000);
    let slow = proptest::option::of((1000u64..=86_400_000).prop_map(Duration::from_millis));
    (host, 1u16.., 1u16..=256, any::<bool>(), most, slow).prop_map(
        |(host, port, weight, backup, max_connections, slow_start)| {
            let service = matches!(host, Host::Service(_));
            let (ports, max) = (if service { Ports::BY_RECORD } else { Ports::one(port) }, max_connections);
            Target { weight, backup, max_connections: max, slow_start, ..Target::new(host, ports) }
        },
    )
}

/// Some, each once.
fn targets() -> impl Strategy<Value = Vec<Target>> {
    proptest::collection::vec(target(), 1..4).prop_map(|mut targets| {
        let mut seen = Vec::new();
        targets.retain(|target| {
            !seen.contains(&target.to_string()) && {
                seen.push(target.to_string());
                true
            }
        });
        targets
    })
}

fn forward() -> impl Strategy<Value = Forward> {
    let time = || proptest::option::of((1u64..100_000_000).prop_map(Duration::from_millis));
    let buffer = || proptest::option::of(1024usize..=1 << 30);
    let ports = (1u16..60000, 0u16..3).prop_map(|(first, more)| Ports { first, last: first + more });
    let tcp = (proptest::option::of(1u64..=32767), time(), buffer(), buffer(), 1u32..=1_000_000);
    (
        ("[^\\s\\p{Cc}]{1,9}", ports, targets(), balancing()),
        (prop_oneof![Just(Engine::Auto), Just(Engine::Splice), Just(Engine::Copy)], arms(), 1024usize..=16 << 20),
        (proptest::option::of(65536usize..=1 << 30), proptest::option::of(1u64..=1_000_000_000), limits()),
        (time(), time(), time()),
        tcp,
        (patterns(), patterns()),
        (identity(), datagrams()),
    )
        .prop_map(
            |(
                (name, ports, targets, balancing),
                (engine, arms, copy_buffer),
                (pipe_size, most, limits),
                times,
                tcp,
                (allow, deny),
                (identity, (has_udp, udp)),
            )| {
                let listen = vec![Listen { local: Local::Ip(IpAddr::from([0, 0, 0, 0])), ports }];
                let udp = Udp { listen: if has_udp { listen.clone() } else { Vec::new() }, ..udp };
                // What belongs to streams has no place beside datagrams.
                let (send_proxy, accept_proxy) =
                    if has_udp { (None, None) } else { (identity.1.send_proxy, identity.2) };
                let streams = udp.listen.is_empty() && udp.targets.is_none();
                let to_netns = (tcp.4.is_multiple_of(3) && streams).then(|| "blue 7".to_owned());
                let transparent = identity.0.transparent && limits.1.is_empty() && !has_udp;
                let check = if has_udp { None } else { balancing.check };
                Forward {
                    name,
                    listen,
                    targets,
                    balancing: Balancing { check, ..balancing },
                    engine: if arms.is_empty() { engine } else { Engine::Auto },
                    arms: arms
                        .into_iter()
                        .map(|arm| Arm { copy_buffer: own_buffer(&arm.name).unwrap_or(copy_buffer), ..arm })
                        .collect(),
                    copy_buffer,
                    pipe_size,
                    max_connections: most,
                    limits: limits.0,
                    timeouts: Timeouts { connect: times.0, idle: times.1, half_closed: times.2 },
                    tcp: TcpOptions {
                        keepalive: tcp.0.map(Duration::from_secs),
                        user_timeout: tcp.1,
                        receive_buffer: tcp.2,
                        send_buffer: tcp.3,
                        dscp: identity.0.dscp,
                        backlog: tcp.4,
                        fast_open: tcp.4.is_multiple_of(5).then_some(1 + tcp.4 % 65_535),
                        mptcp: tcp.4.is_multiple_of(7),
                    },
                    listen_options: ListenOptions {
                        v6_only: tcp.4 % 4 < 2 || has_udp,
                        netns: (tcp.4.is_multiple_of(9) && !has_udp).then(|| "/proc/1/ns/net".to_owned()),
                        device: tcp.4.is_multiple_of(6).then(|| "eth0.7".to_owned()),
                        unix_mode: tcp.4.is_multiple_of(2).then_some(tcp.4 & 0o777 | 0o200),
                        unix_owner: (tcp.4.is_multiple_of(3))
                            .then(|| RunAs { user: "redis".to_owned(), group: Some("7".to_owned()) }),
                    },
                    stall_warning: times.1,
                    egress: Egress { transparent, send_proxy, netns: to_netns, ..identity.1 },
                    sources: limits.1,
                    udp,
                    accept_proxy,
                    access: Access { allow, deny, ..Access::default() },
                }
            },
        )
}
