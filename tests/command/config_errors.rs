//! What a wrong configuration gets: one line with the place, what was found and what is allowed.

use spliced::config::{Lookup, Overrides, parse};

/// Checks the place and a part of the message of each text's error.
fn check(table: &[(&str, (usize, usize), &str)]) {
    for (text, place, part) in table {
        let error = parse("FILE", text, &Overrides::default(), &Lookup::fixed())
            .expect_err(&format!("must be refused:\n{text}"));
        let line = error.to_string();
        assert_eq!(error.place, Some(("FILE".to_owned(), place.0, place.1)), "{line}\n{text}");
        assert!(line.contains(part), "{line:?} lacks {part:?}\n{text}");
        assert!(line.contains("; allowed: "), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(line.starts_with(&format!("FILE:{}:{}: found ", place.0, place.1)), "{line}");
    }
}

/// A good forward, for texts whose fault is elsewhere.
const GOOD: &str = "forwards: [{listen: \"127.0.0.1:9000\", to: \"10.0.0.2:9001\"}]\n";

fn yaml_with(line: &str) -> String {
    format!("{GOOD}{line}\n")
}

#[test]
fn yaml_shape() {
    check(&[
        ("", (1, 1), "empty"),
        ("# nothing\n\n", (1, 1), "empty"),
        ("- 1\n- 2\n", (1, 1), "found a list"),
        ("workers: 2\n", (1, 1), "no key \"forwards\""),
        ("forwards: []\n", (1, 11), "found no forward"),
        ("forwards:\n", (1, 10), "found nothing"),
        ("forwards: 3\n", (1, 11), "found 3"),
        ("forwards:\n  - 127.0.0.1:9000\n", (2, 5), "found \"127.0.0.1:9000\""),
        ("forwards:\n  listen: x\n", (2, 3), "found a mapping"),
        ("forwards:\n  - to: 10.0.0.2:1\n", (2, 5), "without listen"),
        ("forwards:\n  - listen: 127.0.0.1:1\n", (2, 5), "without to"),
        ("forwards:\n  - listen: []\n    to: 10.0.0.2:1\n", (2, 5), "without listen"),
        ("forwards:\n- {listen: [], to: []}\n", (2, 3), "without listen"),
        ("engine: [copy]\nforwards: []\n", (1, 9), "found a list; allowed: auto, splice, copy"),
        ("engine:\nforwards: []\n", (1, 8), "found nothing; allowed: auto, splice, copy"),
        ("forwards: [\n", (2, 1), "not YAML"),
        ("a: b: c\n", (1, 5), "not YAML"),
        ("a: *nobody\n", (1, 4), "unknown anchor"),
        ("a: \"open\n", (2, 1), "not YAML"),
        ("a: !tag b\n", (1, 4), "tag"),
        ("? [a]\n: b\n", (1, 3), "list as a key"),
        ("{? {a: b} : b}\n", (1, 4), "mapping as a key"),
        ("\tforwards: []\n", (1, 1), "not YAML"),
        ("forwards: []\n---\nforwards: []\n", (3, 1), "second YAML document"),
        ("a: \u{1}\n", (1, 4), "U+0001"),
        ("# \u{2028}\n\r# é\r\r\nä: [ö,\n  é é: b,\u{2028} c]\n", (3, 1), "unknown key \"ä\""),
        // libyaml ends the comment at U+2028; the line that is told is the editor's.
        ("# \u{2028}é\r\nä: é\n", (2, 2), "not YAML"),
        ("ü: \u{0}\n", (1, 4), "U+0000"),
        ("a:\n  b: \u{9b}\n", (2, 6), "U+009B"),
    ]);
}

#[test]
fn yaml_keys() {
    check(&[
        ("forward: []\n", (1, 1), "found unknown key \"forward\" (did you mean \"forwards\"?); allowed: workers, pin"),
        (&yaml_with("engin: copy"), (2, 1), "did you mean \"engine\""),
        (&yaml_with("zzz: copy"), (2, 1), "unknown key \"zzz\"; allowed"),
        (&yaml_with("forwards: []"), (2, 1), "key \"forwards\" a second time"),
        (&yaml_with("3: 4"), (2, 1), "unknown key \"3\""),
        (&yaml_with("<<: {engine: copy}"), (2, 1), "unknown key \"<<\""),
        (
            &yaml_with("timeouts: {conect: 5s}"),
            (2, 12),
            "did you mean \"connect\"?); allowed: connect, connect_attempt, idle",
        ),
        (&yaml_with("timeouts: [5s]"), (2, 11), "found a list"),
        (&yaml_with("timeouts: {idle: 5s, idle: 6s}"), (2, 22), "second time"),
        (&yaml_with("connect_timeout: 5s\ntimeouts: {connect: 6s}"), (3, 12), "connect_timeout set a second time"),
        ("forwards:\n  - listen: 127.0.0.1:1\n    to: a:1\n    workers: 2\n", (4, 5), "belongs to the top level"),
        ("forwards:\n  - listen: 127.0.0.1:1\n    to: a:1\n    lisen: x\n", (4, 5), "did you mean \"listen\""),
        ("forwards:\n  - listen: 127.0.0.1:1\n    to: a:1\n    timeouts: {drain: 5s}\n", (4, 16), "\"drain\""),
        ("forwards:\n  - listen: 127.0.0.1:1\n    to: {adress: \"a:1\"}\n", (3, 10), "did you mean \"address\""),
        ("forwards:\n  - listen: 127.0.0.1:1\n    to: {weight: 2}\n", (3, 9), "without address"),
        (&yaml_with("health: {fail: 2}"), (2, 10), "did you mean \"fails\"?); allowed: fails, eject, eject_max"),
        (&yaml_with("check: {intervall: 2s}"), (2, 9), "did you mean \"interval\"?); allowed: send, expect, interval"),
        (&yaml_with("check: {rise: 1, rise: 2}"), (2, 18), "a second time"),
    ]);
}

#[test]
fn yaml_values() {
    for (line, column, part) in [
        ("engine: turbo", 9, "\"turbo\"; allowed: auto, splice, copy"),
        ("engine: \"ab:splice=1\"", 9, "found a single arm in \"ab:splice=1\"; allowed: 2 to 16 different arms"),
        ("engine: ab:splice=1,splice=2", 9, "found arm \"splice\" a second time"),
        ("engine: ab:splice=1,copy-5GiB=2", 9, "found arm \"copy-5GiB\""),
        ("engine: ab:splice=1,copy=2000", 9, "found share \"2000\""),
        ("engine: 5", 9, "\"5\"; allowed: auto, splice, copy"),
        ("engine: true", 9, "found true"),
        ("pin: true", 6, "found true; allowed: auto, on, off"),
        ("workers: 0", 10, "1 to 1024"),
        ("workers: 1025", 10, "1 to 1024"),
        ("workers: -1", 10, "1 to 1024"),
        ("workers: 1.0", 10, "1 to 1024"),
        ("workers: 99999999999999999999999999999", 10, "1 to 1024"),
        ("copy_buffer: 512", 14, "1KiB to 16MiB"),
        ("copy_buffer: 64KB", 14, "write 64KiB"),
        ("copy_buffer: {a: b}", 14, "found a mapping; allowed: a size"),
        ("pipe_size: 4KiB", 12, "64KiB to 1GiB"),
        ("connect_timeout: 5", 18, "without a unit"),
        ("timeouts: { idle: 5, drain: none }", 19, "without a unit"),
        ("timeouts: { drain: forever }", 20, "allowed: none, or a time"),
        ("keepalive: 100ms", 12, "whole seconds"),
        ("max_connections: 0", 18, "1 to 1000000000"),
        ("backlog: 0", 10, "1 to 1000000"),
        ("fast_open: 0", 12, "on, off, or a number from 1 to 65535"),
        ("mptcp: both", 8, "on, off"),
        ("v6only: maybe", 9, "on, off"),
        ("device: a-name-far-too-long", 9, "a network device"),
        ("device: a/b", 9, "a network device"),
        ("netns: a/b", 8, "a name of `ip netns`"),
        ("unix_mode: 0o620", 12, "in octal"),
        ("unix_mode: 0880", 12, "in octal"),
        ("unix_mode: 1666", 12, "in octal"),
        ("unix_mode: 0440", 12, "let the owner write"),
        ("unix_owner: \"a b\"", 13, "none, a user"),
        ("metrics: 9464", 10, "ADDRESS:PORT"),
        ("metrics: 127.0.0.1:0", 10, "ADDRESS:PORT"),
        ("control: [5]", 10, "found a list; allowed: a path"),
        ("resolve: libc", 10, "dns, system"),
        ("resolve_interval: 1ms", 19, "ttl, or a time from 100ms"),
        ("resolve_min: none", 14, "a time from 100ms to 1d"),
        ("resolve_max: 2d", 14, "a time from 100ms to 1d"),
        ("resolvers: ns.example", 12, "[::1]:5353"),
        ("resolvers: [10.0.0.53, 10.0.0.53]", 24, "each name server once"),
        ("connect_attempt_delay: 1ms", 24, "from 10ms to 1h"),
        ("source: host", 9, "addresses of this host"),
        ("source: [10.0.0.1, host]", 20, "addresses of this host"),
        ("source: [10.0.0.1, 10.0.0.1]", 20, "each address once"),
        ("when_full: wait", 12, "queue, refuse"),
        ("balance: rr", 10, "\"rr\"; allowed: round_robin, least_connections, source_hash, random_two"),
        ("balance: [round_robin]", 10, "found a list"),
        ("retries: none", 10, "allowed: all, or a number from 0 to 1000"),
        ("retries: 1001", 10, "from 0 to 1000"),
        ("connect_attempt_timeout: 0s", 26, "allowed: auto, or a time"),
        ("health: maybe", 9, "\"maybe\"; allowed: none, or fails (1 to 1000)"),
        ("health: [3]", 9, "found a list; allowed: none, or fails"),
        ("health: {fails: 0}", 17, "\"0\"; allowed: none, or fails (1 to 1000)"),
        ("health: {eject: 10}", 17, "without a unit"),
        ("health: {eject: 10m}", 9, "found eject 10m above eject_max 5m"),
        ("check: http", 8, "\"http\"; allowed: none, connect, or interval"),
        ("check: true", 8, "found true"),
        ("check: {timeout: 2h}", 18, "10ms to 1h"),
        ("check: {fall: 101}", 15, "1 to 100"),
        ("check: {port: 0}", 15, "\"0\""),
        ("check: {send: \"\"}", 15, "text of 1 to 1024 bytes"),
        ("check: {expect: [a]}", 17, "found a list; allowed: text"),
        ("on_down: cut", 10, "\"cut\"; allowed: keep, end"),
        ("connection_rate: 10/m", 18, "connections per second"),
        ("rate: 10Mbit/s", 7, "counts bits"),
        ("rate_per_source: 10MB/s", 18, "write 10MiB"),
        ("max_connections_per_source: 0", 29, "1 to 1000000000"),
        ("log_format: xml", 13, "text, json, rinetd, common"),
        ("allow: [10.0.0.0/33]", 9, "a network"),
        ("allow: {}", 8, "found a mapping"),
        ("deny: [10.*, localhost]", 14, "found \"localhost\""),
        ("pid_file: \"\"", 11, "found \"\""),
    ] {
        check(&[(&yaml_with(line), (2, column), part)]);
    }
}

#[test]
fn yaml_addresses() {
    let forward = |listen: &str, to: &str| format!("forwards:\n  - name: web\n    listen: {listen}\n    to: {to}\n");
    for (listen, to, place, part) in [
        ("127.0.0.1:0", "a:1", (3, 13), "found port 0 in \"127.0.0.1:0\"; allowed: a port from 1 to 65535"),
        ("127.0.0.1:70000", "a:1", (3, 13), "found port 70000"),
        ("[\"0.0.0.0:1\", \"[::]:0\"]", "a:1", (3, 27), "found port 0"),
        ("127.0.0.1", "a:1", (3, 13), "without a port"),
        ("9000", "a:1", (3, 13), "without a port"),
        ("127.0.0.256:1", "a:1", (3, 13), "no address"),
        ("\":9000\"", "a:1", (3, 13), "write 0.0.0.0:9000"),
        ("\"*:9000\"", "a:1", (3, 13), "write 0.0.0.0:9000"),
        ("::1:9000", "a:1", (3, 13), "without brackets"),
        ("unix:run/x", "a:1", (3, 13), "neither an absolute path nor @ with a name"),
        ("udp:unix:/run/x", "a:1", (3, 13), "neither for datagrams"),
        ("udp:127.0.0.1:1", "unix:/run/x", (4, 9), "for a listener of datagrams"),
        ("udp:127.0.0.1", "a:1", (3, 13), "without a port"),
        ("udp:127.0.0.1:0", "a:1", (3, 13), "found port 0"),
        ("[\"udp:0.0.0.0:1\", \"udp:127.0.0.1:1\"]", "a:1", (3, 31), "listens on udp:0.0.0.0:1 already"),
        ("udp:127.0.0.1:1", "127.0.0.1:1", (4, 9), "leads back to its own listener udp:127.0.0.1:1"),
        ("udp:127.0.0.1:1", "[\"a:1\", \"udp:b:1\"]", (4, 17), "only some say tcp: or udp:"),
        ("nowhere.example:1", "a:1", (3, 13), "has no address"),
        ("127.0.0.1:1", "10.0.0.2:0", (4, 9), "found port 0"),
        ("127.0.0.1:1", "10.0.0.2:65536", (4, 9), "found port 65536"),
        ("127.0.0.1:1", "unix:@", (4, 9), "a unix socket without a name"),
        ("127.0.0.1:1", "[a:1, \"b c:2\"]", (4, 15), "no address"),
        ("127.0.0.1:1", "[a:1, {address: b, weight: 1}]", (4, 25), "without a port"),
        ("127.0.0.1:1", "[a:1, {address: \"b:1\", weight: 257}]", (4, 40), "1 to 256"),
        ("127.0.0.1:1", "[a:1, {address: \"b:1\", weight: 0}]", (4, 40), "1 to 256"),
        ("127.0.0.1:1", "{to: \"a:1\", address: \"a:1\"}", (4, 21), "address set a second time"),
        ("127.0.0.1:1", "{to: \"a:1\", backup: maybe}", (4, 29), "\"maybe\"; allowed: true, false"),
        ("127.0.0.1:1", "{to: \"a:1\", max_connections: 0}", (4, 38), "1 to 1000000000"),
        ("127.0.0.1:1", "{to: \"a:1\", slow_start: 10}", (4, 33), "without a unit"),
        ("127.0.0.1:1", "{to: \"a:1\", slow_start: 100ms}", (4, 33), "from 1s to 1d"),
        (
            "127.0.0.1:1",
            "[a:1, b:1, {to: \"a:1\", weight: 2}]",
            (4, 25),
            "target \"a:1\" a second time; allowed: each once",
        ),
        ("127.0.0.1:1", "srv:_web._tcp.example:80", (4, 9), "the name of a service without a port"),
        ("127.0.0.1:1", "[a:1, {srv: 10.0.0.1}]", (4, 21), "the name of a service without a port"),
        ("127.0.0.1:1", "{srv: a.example, to: \"a:1\"}", (4, 26), "to set a second time"),
        ("127.0.0.1:1", "[[a:1]]", (4, 10), "found a list"),
        ("127.0.0.1:1-10", "a:1-9", (4, 9), "a target of 9 ports"),
        ("127.0.0.1:1", "[b:1, a:1-9]", (4, 15), "a target of 9 ports"),
        ("127.0.0.1:10-1", "a:1", (3, 13), "last below the first"),
    ] {
        check(&[(&forward(listen, to), place, part)]);
    }
    check(&[
        ("forwards: [{listen: \"127.0.0.1:1\", to: \"a:1\", name: \"a\\tb\"}]\n", (1, 53), "visible characters"),
        ("forwards: [{listen: \"127.0.0.1:1\", to: \"a:1\", name: 7}]\n", (1, 53), "found 7"),
    ]);
}

#[test]
fn datagrams_have_no_stream_around_them() {
    for (key, found) in [
        ("accept_proxy: [10.0.0.0/8]", "found accept_proxy"),
        ("send_proxy: v2", "found send_proxy"),
        ("transparent: on", "found transparent"),
        ("netns: other", "found netns"),
        ("v6only: off", "found v6only: off"),
        ("check: connect", "found a check of targets that take datagrams without send or expect"),
    ] {
        let text = format!("forwards:\n- {{listen: \"udp:127.0.0.1:1\", to: \"10.0.0.2:1\", {key}}}\n");
        check(&[(&text, (2, 12), found)]);
    }
}

#[test]
fn one_listener_twice() {
    let two = |first: &str, second: &str| {
        format!(
            "forwards:\n- {{name: a, listen: \"{first}\", to: \"x:1\"}}\n- {{name: b, listen: \"{second}\", to: \"x:1\"}}\n"
        )
    };
    for (first, second) in [
        ("127.0.0.1:9000", "127.0.0.1:9000"),
        ("0.0.0.0:9000", "127.0.0.1:9000"),
        ("127.0.0.1:9000", "0.0.0.0:9000"),
        ("127.0.0.1:9000", "localhost:9000"),
        ("127.0.0.1:9000", "[::ffff:127.0.0.1]:9000"),
        ("[::]:9000", "[::1]:9000"),
        ("[fd00::1]:9000", "[::]:8000-9000"),
        ("10.0.0.1:9000-9010", "10.0.0.1:9010-9020"),
        ("10.0.0.1:9005", "0.0.0.0:9000-9010"),
    ] {
        check(&[(&two(first, second), (3, 21), "but forward \"a\" listens on")]);
    }
    for (first, second) in [
        ("127.0.0.1:9000", "127.0.0.2:9000"),
        ("0.0.0.0:9000", "[::]:9000"),
        ("0.0.0.0:9000", "127.0.0.1:9001"),
        ("10.0.0.1:9000-9010", "10.0.0.1:9011-9020"),
    ] {
        parse("FILE", &two(first, second), &Overrides::default(), &Lookup::fixed()).expect("no overlap");
    }
    check(&[
        (
            "forwards:\n- listen: [\"127.0.0.1:1\", \"127.0.0.1:1\"]\n  to: x:1\n",
            (2, 27),
            "listens on 127.0.0.1:1 already",
        ),
        ("metrics: 127.0.0.1:1\nforwards:\n- {listen: \"0.0.0.0:1\", to: \"x:1\"}\n", (3, 12), "address of metrics"),
        (
            "forwards:\n- {name: a, listen: \"127.0.0.1:1\", to: \"x:1\"}\n- {name: a, listen: \"127.0.0.1:2\", to: \"x:1\"}\n",
            (3, 10),
            "name \"a\" for a second forward",
        ),
        (
            "forwards:\n- {listen: \"127.0.0.1:1-65535\", to: \"x:1\"}\n- {listen: \"127.0.0.2:1-2\", to: \"x:1\"}\n",
            (3, 12),
            "more than 65536 listening ports",
        ),
        (
            "forwards:\n- {listen: \"127.0.0.1:1\", to: [\"x:1\", \"[::1]:1\"], source: 127.0.0.1}\n",
            (2, 39),
            "both IPv4 or both IPv6",
        ),
    ]);
    let many = format!("forwards:\n- listen: 127.0.0.1:1\n  to:\n{}", "  - x:1\n".repeat(257));
    check(&[(&many, (260, 5), "more than 256 targets")]);
}

#[test]
fn loops() {
    let one = |listen: &str, to: &str| format!("forwards:\n- {{listen: \"{listen}\", to: [\"x:1\", \"{to}\"]}}\n");
    for (listen, to) in [
        ("127.0.0.1:9000", "127.0.0.1:9000"),
        ("127.0.0.1:9000", "0.0.0.0:9000"),
        ("0.0.0.0:9000", "127.0.0.1:9000"),
        ("0.0.0.0:9000", "127.8.9.1:9000"),
        ("0.0.0.0:9000", "10.0.1.1:9000"),
        ("0.0.0.0:9000", "localhost:9000"),
        ("[::]:9000", "[::1]:9000"),
        ("127.0.0.1:9000-9010", "127.0.0.1:9005"),
        ("127.0.0.1:9000-9010", "127.0.0.1:9000-9010"),
    ] {
        let text = one(listen, to);
        check(&[(&text, (2, text.lines().nth(1).unwrap().rfind(&format!("\"{to}")).unwrap() + 1), "found a loop")]);
    }
    for (listen, to) in [
        ("127.0.0.1:9000", "127.0.0.2:9000"),
        ("127.0.0.1:9000", "127.0.0.1:9001"),
        ("0.0.0.0:9000", "10.0.0.2:9000"),
        ("0.0.0.0:9000", "other.example:9000"),
        ("[::]:9000", "127.0.0.1:9000"),
        // Each port leads one further, and the last one out of the range.
        ("127.0.0.1:9000-9010", "127.0.0.1:9001-9011"),
    ] {
        parse("FILE", &one(listen, to), &Overrides::default(), &Lookup::fixed()).expect("no loop");
    }
}

#[test]
fn loops_through_several_forwards() {
    let chain = |last: &str| {
        format!(
            "forwards:\n- {{name: a, listen: \"0.0.0.0:1\", to: \"127.0.0.1:2\"}}\n\
             - {{name: b, listen: \"127.0.0.1:2\", to: \"localhost:3\"}}\n- {{name: c, listen: \"127.0.0.1:3\", to: \"{last}\"}}\n"
        )
    };
    check(&[
        (&chain("10.0.1.1:1"), (4, 40), "\"a\" → \"b\" → \"c\" leads back to listener 0.0.0.0:1"),
        (&chain("127.0.0.1:2"), (4, 40), "\"b\" → \"c\" leads back to listener 127.0.0.1:2"),
    ]);
    parse("FILE", &chain("10.0.0.2:1"), &Overrides::default(), &Lookup::fixed()).expect("the chain ends outside");
}

#[test]
fn lines() {
    check(&[
        ("10.0.1.1 9000 10.0.0.2\n", (1, 1), "BIND PORT HOST PORT"),
        ("# c\n\n  nonsense\n", (3, 3), "found \"nonsense\""),
        ("10.0.1.1 9000 10.0.0.2 9001\nfoo\n", (2, 1), "found \"foo\""),
        ("10.0.1.1 0 10.0.0.2 9001\n", (1, 10), "found port 0"),
        ("10.0.1.1 9000 10.0.0.2 70000\n", (1, 24), "found port 70000"),
        ("10.0.1.1 9000 10.0.0.2 9001 extra\n", (1, 29), "found \"extra\"; allowed: nothing more"),
        ("10.0.1.300 9000 10.0.0.2 9001\n", (1, 1), "no address"),
        ("10.0.1.1 9000 10.0.0 9001\n", (1, 15), "no address"),
        ("10.0.1.1 9000-9001 10.0.0.2 9001\n", (1, 10), "one port"),
        ("10.0.1.1 9000/sctp 10.0.0.2 9001\n", (1, 10), "PORT/udp"),
        ("10.0.1.1 ssh/udp 10.0.0.2 9001\n", (1, 10), "no UDP service"),
        ("0 80/udp 127.0.0.1 80/udp\n", (1, 10), "found a loop"),
        ("10.0.1.1 80/udp 10.0.0.2 80/udp [timeout=0]\n", (1, 42), "whole seconds"),
        ("10.0.1.1 nosuch 10.0.0.2 9001\n", (1, 10), "no TCP service"),
        ("10.0.1.1 tftp 10.0.0.2 9001\n", (1, 10), "no TCP service"),
        ("nowhere.example 80 10.0.0.2 80\n", (1, 1), "has no address"),
        ("10.0.1.1 80 10.0.0.2 80 [timeout=x]\n", (1, 34), "whole seconds"),
        ("10.0.1.1 80 10.0.0.2 80 [speed=1]\n", (1, 26), "timeout=SECONDS, src=ADDRESS"),
        ("10.0.1.1 80 10.0.0.2 80 [timeout=1\n", (1, 35), "a comma or ]"),
        ("10.0.1.1 80 10.0.0.2 80 [src=10.0.0]\n", (1, 30), "no address"),
        ("allow\n", (1, 6), "a network"),
        ("allow 10.0.0\n", (1, 7), "found \"10.0.0\""),
        ("deny 10.* 11.*\n", (1, 11), "nothing more after a pattern"),
        ("logfile\n", (1, 8), "logfile PATH"),
        ("logfile \"open\n", (1, 9), "a closing quote"),
        ("logcommon yes\n", (1, 11), "nothing more"),
        ("allow 10.*\n", (1, 1), "found no forward"),
        ("10.0.1.1 80 10.0.0.2 80\n10.0.1.1 80 10.0.0.3 80\n", (2, 1), "listens on 10.0.1.1:80 already"),
        ("0 80 127.0.0.1 80\n", (1, 6), "found a loop"),
    ]);
}

#[test]
fn toml() {
    let rule = "[[forwarding_rules]]\nbind_address = \"127.0.0.1\"\nbind_port = 1\nconnect_address = \"10.0.0.2\"\n";
    let good = format!("{rule}connect_port = 2\n");
    let with = |line: &str| format!("{good}{line}\n");
    check(&[
        ("log_file = \"x\"\n", (1, 1), "no forwarding_rules"),
        ("forwarding_rules = []\n", (1, 20), "found no forward"),
        ("forwarding_rules = 3\n", (1, 20), "found 3; allowed: a list of tables"),
        ("forwarding_rules = [3]\n", (1, 21), "found 3; allowed: a table"),
        ("a = \n", (1, 5), "not TOML"),
        ("a = 1\na = 2\n", (2, 1), "not TOML"),
        ("log_fil = \"x\"\n", (1, 1), "did you mean \"log_file\""),
        ("log_format = \"json\"\n", (1, 14), "rinetd, common"),
        ("log_file = 1979-05-27\n", (1, 12), "found a date"),
        (rule, (1, 1), "without connect_port"),
        (&with("connect_prot = 3"), (6, 1), "did you mean \"connect_port\""),
        (&with("protocol = \"sctp\""), (6, 12), "allowed: tcp, udp, udptotcp, tcptoudp"),
        (&with("timeout = \"x\""), (6, 11), "whole seconds"),
        (&with("source_address = 3"), (6, 18), "found 3"),
        (&with("rules = [{ type = \"permit\", pattern = \"*\" }]"), (6, 19), "allow, deny"),
        (&with("rules = [{ type = \"allow\", pattern = \"x\" }]"), (6, 38), "a network"),
        (&with("rules = [{ type = \"allow\" }]"), (6, 10), "without type and pattern"),
        (&good.replace("= 1", "= 0"), (3, 13), "found port 0"),
        (&good.replace("= 1", "= 70000"), (3, 13), "found port 70000"),
        (&good.replace("= 1", "= 0x10"), (3, 13), "found \"0x10\""),
        (&good.replace("= 1", "= -1"), (3, 13), "one port"),
        (&good.replace("= 1", "= 1.5"), (3, 13), "found \"1.5\""),
        (&good.replace("= 1", "= true"), (3, 13), "found true"),
        (&good.replace("\"10.0.0.2\"", "10"), (4, 19), "found 10"),
        (&good.replace("10.0.0.2", "10.0.0"), (4, 19), "no address"),
        (&format!("{good}{good}"), (7, 16), "listens on 127.0.0.1:1 already"),
    ]);
}

#[test]
fn yaml_who_the_client_is() {
    let with = |line: &str| format!("{GOOD}{line}\n");
    let texts = [
        (with("send_proxy: v3"), (2, 13), "found \"v3\"; allowed: v1, v2, off"),
        (with("accept_proxy: []"), (2, 15), "found an empty list"),
        (with("accept_proxy: [10.0.0.0/8, 10.*]"), (2, 28), "found \"10.*\"; allowed: an address or a network"),
        (with("accept_proxy: [10.0.0.1, 10.0.0.1]"), (2, 26), "a second time"),
        (with("accept_proxy: 10.0.0.0/40"), (2, 15), "found \"10.0.0.0/40\""),
        (with("accept_proxy: {timeout: 1s}"), (2, 15), "without from"),
        (with("accept_proxy: {from: ['::/0'], timeout: 0s}"), (2, 41), "allowed: a time from 1ms to 10m"),
        (with("accept_proxy: {from: ['::/0'], required: maybe}"), (2, 42), "allowed: true, false"),
        (with("accept_proxy: {form: ['::/0']}"), (2, 16), "did you mean \"from\""),
        (with("accept_proxy: true"), (2, 15), "found true"),
        (with("mark: 0"), (2, 7), "found \"0\"; allowed: none, or a number from 1"),
        (with("dscp: 64"), (2, 7), "found \"64\"; allowed: none, a number from 0 to 63"),
        (with("bind_device: a/b"), (2, 14), "found \"a/b\"; allowed: none, or the name of a network device"),
        (with("to_netns: a/b"), (2, 11), "found \"a/b\"; allowed: none, a name of `ip netns`"),
        (with("transparent: maybe"), (2, 14), "found \"maybe\"; allowed: on, off"),
        (with("transparent: on\nsource: 10.0.0.1"), (1, 21), "transparent together with source"),
    ];
    check(&texts.iter().map(|(text, place, part)| (text.as_str(), *place, *part)).collect::<Vec<_>>());
}
