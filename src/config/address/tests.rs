use proptest::prelude::*;

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn listens() {
    let lookup = Lookup::fixed();
    let one = |address: &str, first, last| {
        Ok((Transport::Tcp, vec![Listen { local: Local::Ip(ip(address)), ports: Ports { first, last } }]))
    };
    assert_eq!(listen("0.0.0.0:9000", &lookup), one("0.0.0.0", 9000, 9000));
    assert_eq!(listen("[::]:9000", &lookup), one("::", 9000, 9000));
    assert_eq!(listen("[::1]:9000-9010", &lookup), one("::1", 9000, 9010));
    assert_eq!(listen("localhost:1-65535", &lookup), one("127.0.0.1", 1, 65535));
    assert_eq!(listen("[::ffff:10.0.0.1]:80", &lookup), one("10.0.0.1", 80, 80));
    assert_eq!(listen("tcp:0.0.0.0:53", &lookup), one("0.0.0.0", 53, 53));
    let udp = one("::", 53, 54).map(|(_, listens)| (Transport::Udp, listens));
    assert_eq!(listen("udp:[::]:53-54", &lookup), udp);
    for (text, part) in [
        ("9000", "without a port"),
        ("", "without a port"),
        (":9000", "0.0.0.0:9000"),
        ("*:9000", "[::]:9000"),
        ("10.0.0.1:0", "found port 0 in \"10.0.0.1:0\";"),
        ("10.0.0.1:70000", "found port 70000 in \"10.0.0.1:70000\";"),
        ("10.0.0.1:", "found \"\" in \"10.0.0.1:\"; allowed: a port"),
        ("10.0.0.1:+80", "found \"+80\""),
        ("10.0.0.1:9010-9000", "last below the first"),
        ("10.0.0.1:1-2-3", "found \"2-3\""),
        ("10.0.0.256:80", "is no address"),
        ("10.0.0:80", "is no address"),
        ("::1:80", "without brackets"),
        ("[::1]", "without a port"),
        ("[::1:80", "allowed"),
        ("[10.0.0.1]:80", "brackets without an IPv6"),
        ("[fe80::1%eth0]:80", "zone"),
        ("unix:tmp/x", "neither an absolute path nor @"),
        ("unix:", "neither an absolute path nor @"),
        ("unix:@", "without a name"),
        ("unix:/tmp/", "without a name"),
        ("unix:/a\u{7}", "control character"),
        ("udp:unix:/tmp/x", "neither for datagrams"),
        ("udp:10.0.0.1", "without a port"),
        ("udp:tcp:10.0.0.1:53", "without brackets"),
        ("nowhere.invalid:80", "has no address"),
        ("a b:80", "is no address"),
        ("-a:80", "is no address"),
    ] {
        let message = listen(text, &lookup).unwrap_err();
        assert!(message.contains(part) && message.contains("; allowed: "), "{text}: {message}");
    }
}

#[test]
fn unix_sockets_have_a_path_or_a_name() {
    for text in ["unix:/run/web.sock", "unix:@web", "unix:/run/a b:80"] {
        let (transport, listens) = listen(text, &Lookup::fixed()).unwrap();
        assert_eq!(transport, Transport::Tcp);
        assert_eq!(listens.iter().map(ToString::to_string).collect::<Vec<_>>(), [text]);
        let (transport, host, ports) = target(text).unwrap();
        assert_eq!(transport, None);
        assert_eq!((host.clone(), ports), (Host::Unix(UnixName::new(&text[5..]).unwrap()), Ports::NONE));
    }
    let long = format!("unix:/{}", "x".repeat(107));
    assert!(listen(&long, &Lookup::fixed()).unwrap_err().contains("108 bytes, and 107 is the most"));
}

#[test]
fn targets_keep_names() {
    assert_eq!(target("DB.example.:5432"), Ok((None, Host::Name("db.example.".into()), Ports::one(5432))));
    assert_eq!(target("[fd00::2]:1"), Ok((None, Host::Ip(ip("fd00::2")), Ports::one(1))));
    assert_eq!(target("udp:ns:53"), Ok((Some(Transport::Udp), Host::Name("ns".into()), Ports::one(53))));
    let service = Host::Service("_web._tcp.example".into());
    assert_eq!(target("srv:_Web._tcp.example"), Ok((None, service, Ports::BY_RECORD)));
    for bad in ["srv:", "srv:10.0.0.1", "srv:_web._tcp.example:80", "srv:::1"] {
        assert!(target(bad).unwrap_err().contains("; allowed: the name of a service"), "{bad}");
    }
}

#[test]
fn patterns() {
    let net = |text: &str| Ok(Pattern::Net(text.parse().unwrap()));
    let text = |text: &str| Ok(Pattern::Text(text.to_owned()));
    assert_eq!(pattern("10.0.0.1"), net("10.0.0.1/32"));
    assert_eq!(pattern("10.1.2.3/8"), net("10.0.0.0/8"));
    assert_eq!(pattern("[::1]"), net("::1/128"));
    assert_eq!(pattern("FD00::/8"), net("fd00::/8"));
    assert_eq!(pattern("192.168.*.1?"), text("192.168.*.1?"));
    assert_eq!(pattern("2001:618:*:E43F"), text("2001:618:*:e43f"));
    assert_eq!(pattern("::ffff:10.*"), text("10.*"));
    assert_eq!(pattern("*"), text("*"));
    for bad in ["", "10.0.0", "10.0.0.0/33", "host*", "10.0.0.1 ", "localhost", "1[*]"] {
        assert!(pattern(bad).is_err(), "{bad}");
    }
}

#[test]
fn services() {
    let services = Services::parse("ssh\t22/tcp\nhttp 80/tcp www # web\ntftp 69/udp\nbad x/tcp\n# all 1/tcp\n");
    assert_eq!(services.port("www", Transport::Tcp), Some(80));
    assert_eq!(services.port("ssh", Transport::Tcp), Some(22));
    assert_eq!(services.port("tftp", Transport::Udp), Some(69));
    assert_eq!(services.port("ssh", Transport::Udp), None);
    for unknown in ["tftp", "bad", "all", "web", ""] {
        assert_eq!(services.port(unknown, Transport::Tcp), None, "{unknown}");
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in any::<String>(), near in "[\\[\\]0-9a-f:.*?/%-]{0,24}") {
        for text in [text, near] {
            let _ = (listen(&text, &Lookup::fixed()), target(&text), pattern(&text), ports(&text));
        }
    }
}
