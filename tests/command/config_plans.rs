//! What a good configuration of each format becomes.

mod plans;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;
use spliced::config::{Format, ForwardOptions, Lookup, Maybe, Overrides, parse, parse_as, render};
use spliced::plan::{
    Access, Balancing, Egress, Engine, Forward, Host, Limits, Listen, ListenOptions, Local, LogFormat, LogPlan,
    Pattern, Pin, Plan, Ports, Resolving, Scheduling, Target, TcpOptions, Timeouts,
};

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

proptest! {
    #[test]
    fn a_rendered_plan_reads_back(plan in plans::plans()) {
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
