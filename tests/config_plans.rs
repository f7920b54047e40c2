//! What a good configuration of each format becomes.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use proptest::prelude::*;
use spliced::address::UnixName;
use spliced::config::{Format, ForwardOptions, Lookup, Maybe, Overrides, parse, parse_as, render};
use spliced::plan::{
    AcceptProxy, Access, Arm, Balance, Balancing, Check, Confinement, Egress, Engine, Forward, Health, Host, Keep,
    Limits, Listen, ListenOptions, Local, LogFormat, LogPlan, OnDown, Pattern, Pin, Plan, Ports, Privileges, Rate,
    Resolve, Resolving, RunAs, Scheduling, Target, TcpOptions, Timeouts, Udp, WhenFull,
};
use spliced::proxy::Version;

fn plan(text: &str) -> Plan {
    parse("FILE", text, &Overrides::default(), &Lookup::fixed()).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn listens(forward: &Forward) -> Vec<String> {
    forward.listen.iter().map(ToString::to_string).collect()
}

fn targets(forward: &Forward) -> Vec<String> {
    forward.targets.iter().map(ToString::to_string).collect()
}

fn net(text: &str) -> Pattern {
    Pattern::Net(text.parse().expect("a network"))
}

fn text(text: &str) -> Pattern {
    Pattern::Text(text.to_owned())
}

#[test]
fn yaml_defaults() {
    let plan = plan("forwards: [{listen: \"localhost:9000\", to: \"DB:9001\"}]");
    let forward = Forward {
        name: "127.0.0.1:9000".to_owned(),
        listen: vec![Listen { local: Local::Ip(IpAddr::from([127, 0, 0, 1])), ports: Ports::one(9000) }],
        targets: vec![Target::new(Host::Name("db".to_owned()), Ports::one(9001))],
        balancing: Balancing::default(),
        engine: Engine::Auto,
        arms: Vec::new(),
        copy_buffer: 65536,
        pipe_size: None,
        max_connections: None,
        limits: Limits::default(),
        timeouts: Timeouts::default(),
        stall_warning: Some(Forward::STALL_WARNING),
        tcp: TcpOptions::default(),
        listen_options: ListenOptions::default(),
        sources: Vec::new(),
        udp: Default::default(),
        egress: Egress::default(),
        accept_proxy: None,
        access: Access::default(),
    };
    let expected = Plan {
        workers: None,
        pin: Pin::Auto,
        gather: true,
        scheduling: Scheduling::Auto,
        spin: None,
        max_connections: None,
        max_connections_per_source: None,
        drain_delay: Duration::ZERO,
        drain: Some(Duration::from_secs(30)),
        upgrade_drain: None,
        control: None,
        metrics: None,
        log: LogPlan::default(),
        resolving: Resolving::default(),
        pid_file: None,
        privileges: Default::default(),
        forwards: vec![forward],
    };
    assert_eq!(plan, expected);
}

#[test]
fn a_forward_goes_before_the_top_level() {
    let plan = plan(
        "engine: copy\nmax_connections: 10\ndrain_delay: 15s\ntimeouts: {connect: 1s, idle: 2s, drain: none, upgrade_drain: 1h}\nallow: 10.*\n\
         forwards:\n- listen: [127.0.0.1:1, \"[::1]:1\"]\n  to: [a:1, {address: b:2, weight: 7}]\n  engine: splice\n\
         \x20 max_connections: 5\n  idle_timeout: none\n  deny: [10.0.0.1, fd00::/8]\n- {listen: \"127.0.0.1:2\", to: \"c:1\"}\n",
    );
    let [first, second] = plan.forwards.as_slice() else { panic!("two forwards") };
    assert_eq!((plan.max_connections, plan.drain), (Some(10), None));
    assert_eq!((plan.drain_delay, plan.upgrade_drain), (Duration::from_secs(15), Some(Duration::from_secs(3600))));
    assert_eq!((first.engine, second.engine), (Engine::Splice, Engine::Copy));
    assert_eq!((first.max_connections, second.max_connections), (Some(5), None));
    assert_eq!((first.timeouts.connect, first.timeouts.idle), (Some(Duration::from_secs(1)), None));
    assert_eq!(second.timeouts.idle, Some(Duration::from_secs(2)));
    assert_eq!(listens(first), ["127.0.0.1:1", "[::1]:1"]);
    assert_eq!(first.targets[1].weight, 7);
    assert_eq!(&*first.access.global_allow, [text("10.*")]);
    assert_eq!(first.access.deny, [net("10.0.0.1/32"), net("fd00::/8")]);
    assert_eq!((first.name.as_str(), second.name.as_str()), ("127.0.0.1:1", "127.0.0.1:2"));
}

#[test]
fn the_command_line_has_the_last_word() {
    let mut overrides = Overrides { allow: vec![text("*")], ..Overrides::default() };
    overrides.forward = ForwardOptions {
        engine: Some(Engine::Copy.into()),
        idle_timeout: Some(Maybe(None)),
        ..ForwardOptions::default()
    };
    overrides.process.workers = Some(Maybe(Some(2)));
    let file = "engine: splice\nworkers: 7\nidle_timeout: 5s\nconnect_timeout: 1s\nallow: [10.*]\n\
                forwards: [{listen: \"127.0.0.1:1\", to: \"a:1\", engine: splice}]\n";
    let plan = parse("FILE", file, &overrides, &Lookup::fixed()).expect("valid");
    let forward = &plan.forwards[0];
    assert_eq!(plan.workers, Some(2));
    assert_eq!(forward.engine, Engine::Copy);
    assert_eq!((forward.timeouts.idle, forward.timeouts.connect), (None, Some(Duration::from_secs(1))));
    assert_eq!(&*forward.access.global_allow, [text("10.*"), text("*")]);
}

#[test]
fn json_is_yaml_and_marks_at_the_start_do_not_matter() {
    let json = plan("{\"forwards\":[{\"listen\":\"127.0.0.1:1\",\"to\":\"a:1\"}],\"workers\":3}");
    assert_eq!(json.workers, Some(3));
    let windows = plan("---\r\nworkers: 3\r\nforwards:\r\n- listen: 127.0.0.1:1\r\n  to: a:1\r\n");
    assert_eq!(windows, json);
    let anchors = plan("workers: 3\nforwards:\n- {listen: &a \"127.0.0.1:1\", to: \"a:1\", name: *a}\n");
    assert_eq!(anchors, json);
}

#[test]
fn rinetd_lines() {
    let plan = plan(
        "# comment\r\nallow 10.*\ndeny 10.0.0.1?\n\n  0.0.0.0\t8080/tcp 192.168.1.2 80#tight comment\n\
         0 www [fd00::1] ssh/tcp [timeout=1200, src = fd00::2] # trailing\ndeny FE80:*\n\
         ::1 1 db.example.net 2[src=10.0.0.1,timeout=5]\nallow 2001:db8::1\nlocalhost 3 10.0.0.1 3\n\
         LogFile \"/var/log/a b.log\" # c\npidlogfile /run/x.pid#y\n",
    );
    let forwards: Vec<_> =
        plan.forwards.iter().map(|f| (listens(f).concat(), targets(f).concat(), f.sources.clone())).collect();
    let ip = |text: &str| vec![text.parse::<IpAddr>().expect("an address")];
    let expected = [
        ("0.0.0.0:8080", "192.168.1.2:80", vec![]),
        ("0.0.0.0:80", "[fd00::1]:22", ip("fd00::2")),
        ("[::1]:1", "db.example.net:2", ip("10.0.0.1")),
        ("127.0.0.1:3", "10.0.0.1:3", vec![]),
    ];
    assert_eq!(forwards, expected.map(|(listen, to, source)| (listen.to_owned(), to.to_owned(), source)));
    let access: Vec<_> = plan.forwards.iter().map(|f| (f.access.allow.clone(), f.access.deny.clone())).collect();
    let nothing = Vec::new;
    let expected = [
        (nothing(), nothing()),
        (nothing(), vec![text("fe80:*")]),
        (vec![net("2001:db8::1/128")], nothing()),
        (nothing(), nothing()),
    ];
    assert_eq!(access, expected);
    assert_eq!(&*plan.forwards[3].access.global_allow, [text("10.*")]);
    assert_eq!(&*plan.forwards[3].access.global_deny, [text("10.0.0.1?")]);
    let file = Some(PathBuf::from("/var/log/a b.log"));
    assert_eq!(plan.log, LogPlan { format: LogFormat::Rinetd, file });
    assert_eq!(plan.pid_file, Some(PathBuf::from("/run/x.pid#y")));
}

#[test]
fn oi_lines_and_log_formats() {
    let one = plan("10.0.1.1 9000 10.0.0.2 9001");
    assert_eq!(listens(&one.forwards[0]), ["10.0.1.1:9000"]);
    assert_eq!(targets(&one.forwards[0]), ["10.0.0.2:9001"]);
    assert_eq!(one.log, LogPlan::default());
    let rules = plan("ALLOW 10.0.0.0/8\nDeny 10.0.*.1\n0 1 10.0.0.2 1\nlogcommon\nlogfile x\n");
    assert_eq!(&*rules.forwards[0].access.global_allow, [net("10.0.0.0/8")]);
    assert_eq!(&*rules.forwards[0].access.global_deny, [text("10.0.*.1")]);
    assert_eq!(rules.log, LogPlan { format: LogFormat::Common, file: Some(PathBuf::from("x")) });
}

#[test]
fn oi_toml() {
    let plan = plan(
        "log_file = \"/l\"\npid_file = \"/p\"\nglobal_rules = [{type = \"Allow\", pattern = \"10.0.*.*\"}]\n\
         [[forwarding_rules]]\nbind_address = \"0.0.0.0\"\nbind_port = 1\nconnect_address = \"a.b\"\nconnect_port = 2\n\
         protocol = \"tcp\"\ntimeout = 72\nsource_address = \"10.0.0.1\"\n\
         rules = [{type = \"deny\", pattern = \"10.0.0.1\"}, {type = \"allow\", pattern = \"10.0.0.0/8\"}]\n\
         [[forwarding_rules]]\nbind_address = \"[::1]\"\nbind_port = 2\nconnect_address = \"fd00::1\"\nconnect_port = 3\n",
    );
    assert_eq!(plan.log, LogPlan { format: LogFormat::Rinetd, file: Some(PathBuf::from("/l")) });
    assert_eq!(plan.pid_file, Some(PathBuf::from("/p")));
    let [first, second] = plan.forwards.as_slice() else { panic!("two rules") };
    assert_eq!((listens(first), targets(first)), (vec!["0.0.0.0:1".to_owned()], vec!["a.b:2".to_owned()]));
    assert_eq!((listens(second), targets(second)), (vec!["[::1]:2".to_owned()], vec!["[fd00::1]:3".to_owned()]));
    assert_eq!(first.sources, [IpAddr::from([10, 0, 0, 1])]);
    assert_eq!(first.access.allow, [net("10.0.0.0/8")]);
    assert_eq!(first.access.deny, [net("10.0.0.1/32")]);
    assert_eq!(&*second.access.global_allow, [text("10.0.*.*")]);
}

/// Any plan a file can describe, as far as one forward's values do not depend on another's.
fn plans() -> impl Strategy<Value = Plan> {
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

fn forward() -> impl Strategy<Value = Forward> {
    let time = || proptest::option::of((1u64..100_000_000).prop_map(Duration::from_millis));
    let buffer = || proptest::option::of(1024usize..=1 << 30);
    let ports = (1u16..60000, 0u16..3).prop_map(|(first, more)| Ports { first, last: first + more });
    let host = prop_oneof![
        any::<IpAddr>().prop_map(|ip| Host::Ip(ip.to_canonical())),
        "[a-z][a-z0-9_]{0,8}(\\.[a-z]{1,8})?\\.?".prop_map(Host::Name),
        "_[a-z]{1,8}\\._tcp\\.[a-z]{1,8}".prop_map(Host::Service)
    ];
    let most = proptest::option::of(1u64..=1_000_000_000);
    let slow = proptest::option::of((1000u64..=86_400_000).prop_map(Duration::from_millis));
    let target = (host, 1u16.., 1u16..=256, any::<bool>(), most, slow).prop_map(
        |(host, port, weight, backup, max_connections, slow_start)| {
            let service = matches!(host, Host::Service(_));
            let (ports, max) = (if service { Ports::BY_RECORD } else { Ports::one(port) }, max_connections);
            Target { weight, backup, max_connections: max, slow_start, ..Target::new(host, ports) }
        },
    );
    let targets = proptest::collection::vec(target, 1..4).prop_map(|mut targets| {
        let mut seen = Vec::new();
        targets.retain(|target| {
            !seen.contains(&target.to_string()) && {
                seen.push(target.to_string());
                true
            }
        });
        targets
    });
    let tcp = (proptest::option::of(1u64..=32767), time(), buffer(), buffer(), 1u32..=1_000_000);
    (
        ("[^\\s\\p{Cc}]{1,9}", ports, targets, balancing()),
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
                        v6_only: tcp.4 % 4 < 2,
                        netns: tcp.4.is_multiple_of(9).then(|| "/proc/1/ns/net".to_owned()),
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

proptest! {
    #[test]
    fn a_rendered_plan_reads_back(plan in plans()) {
        let text = render(&plan);
        let read = parse("FILE", &text, &Overrides::default(), &Lookup::fixed());
        let read = read.map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?;
        prop_assert_eq!(read, plan, "{}", text);
    }

    #[test]
    fn no_text_panics_or_gets_more_than_a_line(
        any in any::<String>(),
        yaml in "(forwards|listen|to|timeouts|allow|[-?:,{}\\[\\]&*!|>'\"#a0\n ]| - |: ){0,60}",
        lines in "(allow|logfile|0|\\[::1\\]|[a0:.#\\[\\]=,\"/ \n]|src=){0,60}",
        toml in "(\\[\\[forwarding_rules\\]\\]\n|bind_port|rules|type|[=a0\\[\\]{}.,\"'\n ]){0,60}",
    ) {
        for text in [any, yaml, lines, toml] {
            for format in [Format::Yaml, Format::Lines, Format::Toml] {
                if let Err(error) = parse_as(format, "FILE", &text, &Overrides::default(), &Lookup::fixed()) {
                    prop_assert_eq!(error.to_string().lines().count(), 1);
                    let (_, line, column) = error.place.expect("every error in a file has a place");
                    prop_assert!(line >= 1 && column >= 1 && line <= text.split('\n').count() + 1, "{}:{}", line, column);
                }
            }
        }
    }
}
