//! `allow_file` and `deny_file`: lists of networks in files of their own, however long, read at the start and at a reload
//! and at no other time.

#![cfg(target_os = "linux")]

use crate::common;

use std::fs;
use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::deadline::until;
use common::peer::{Echo, Reserved, backend, echoes, with_deadlines};
use common::spliced::{Launcher, Spliced};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use socket2::{Domain, Socket, Type};
use std::time::Duration;
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(10);

/// Lists in a directory that has nothing else to do with the program.
struct Lists {
    directory: TempDir,
}

impl Lists {
    fn new() -> Self {
        Self { directory: TempDir::with_prefix("spliced-lists-").expect("a temporary directory") }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).expect("our own directory");
        path
    }
}

/// A hundred thousand networks that touch nothing of 127.0.0.0/8 but what is added.
fn long(more: &str) -> String {
    let nets = (0..100_000u32).map(|i| format!("{}/28\n", Ipv4Addr::from_bits(0x8000_0000 + i * 9_000)));
    nets.chain([more.to_owned()]).collect()
}

/// Whether a client with that address is served; `false` is a reset.
fn is_served(source: [u8; 4], to: SocketAddr) -> bool {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((source, 0)).into()).expect("all of 127.0.0.0/8 is ours");
    match socket.connect(&to.into()) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::ConnectionReset => return false,
        Err(e) => panic!("connect to {to}: {e}"),
    }
    let stream: TcpStream = with_deadlines(socket.into());
    echoes(&stream, 7, SOON)
}

fn config(listen: &Reserved, echo: &Echo, top: &str, options: &str) -> String {
    format!(
        "workers: 2\n{top}\nforwards:\n  - {{ name: it, listen: \"{}\", to: \"{}\", {options} }}\n",
        listen.address(),
        echo.address()
    )
}

fn check(arguments: &[&str], file: &Path) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_spliced"))
        .args(["check", "--config"])
        .arg(file)
        .args(arguments)
        .output()
        .expect("the program runs");
    (
        output.status.code(),
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat(),
    )
}

fn against(spliced: &Spliced) -> String {
    let control = spliced.control().to_str().expect("UTF-8");
    let (code, said) = check(&["--against", control], &spliced.config());
    assert_eq!(code, Some(0), "{said}");
    said
}

#[test]
fn a_list_of_a_hundred_thousand_is_read_again_at_a_reload_and_only_then() {
    let (lists, listen, echo) = (Lists::new(), Reserved::loopback(), Echo::start(backend()));
    let deny = lists.write("deny", &long("127.0.0.2\n127.1.0.0/16 # both ends belong to it\n"));
    let text = config(&listen, &echo, &format!("deny_file: {}", deny.display()), "engine: auto");
    let spliced = Launcher::config(&text).start();
    for (source, served) in [
        ([127, 0, 0, 1], true),
        ([127, 0, 0, 2], false),
        ([127, 0, 0, 3], true),
        ([127, 0, 255, 255], true),
        ([127, 1, 0, 0], false),
        ([127, 1, 255, 255], false),
        ([127, 2, 0, 0], true),
    ] {
        assert_eq!(is_served(source, listen.address()), served, "{source:?}");
    }
    spliced.ended("denied", 3);
    assert!(against(&spliced).starts_with("= 1 unchanged"), "nothing has changed yet");
    // Another list under the same name.
    lists.write("deny", &long("127.0.0.3\n"));
    assert!(is_served([127, 0, 0, 3], listen.address()) && !is_served([127, 0, 0, 2], listen.address()));
    let expected = format!("~ deny_file {} (100002 networks, ", deny.display());
    let said = against(&spliced);
    assert!(said.contains(&expected) && said.contains(" -> ") && said.contains("(100001 networks, "), "{said}");
    let (code, said) = spliced.reload();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(&expected), "{said}");
    assert!(!is_served([127, 0, 0, 3], listen.address()) && is_served([127, 0, 0, 2], listen.address()));
    // The same by the signal.
    lists.write("deny", "127.0.0.4\n");
    spliced.signal(Signal::SIGHUP);
    until("the signal has been followed", SOON, || is_served([127, 0, 0, 3], listen.address()));
    assert!(!is_served([127, 0, 0, 4], listen.address()));
    // A mistake changes nothing and is told with its place.
    lists.write("deny", "127.0.0.5\n\n  127.0.0.256 # too much\n");
    let (code, said) = spliced.reload();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains(&format!("{}:3:3: found \"127.0.0.256\"; allowed: ", deny.display())), "{said}");
    assert!(is_served([127, 0, 0, 5], listen.address()) && !is_served([127, 0, 0, 4], listen.address()));
    spliced.finish();
}

#[test]
fn of_the_process_and_of_a_forward_to_allow_and_to_deny() {
    let (lists, listen, echo) = (Lists::new(), Reserved::loopback(), Echo::start(backend()));
    let all = lists.write("all", "127.0.0.0/8\n");
    let one = lists.write("one", "# no one else\n127.0.1.0/24\n");
    let two = lists.write("two", "127.0.2.0/24\n");
    let out = lists.write("out", "127.0.2.9\n127.0.3.9\n");
    let text = config(
        &listen,
        &echo,
        &format!("allow_file: {}", all.display()),
        &format!(
            "allow: [127.0.3.0/24], allow_file: [{}, {}], deny_file: {}",
            one.display(),
            two.display(),
            out.display()
        ),
    );
    let spliced = Launcher::config(&text).start();
    for (source, served) in [
        ([127, 0, 0, 1], false),
        ([127, 0, 1, 1], true),
        ([127, 0, 2, 1], true),
        ([127, 0, 3, 1], true),
        ([127, 0, 2, 9], false),
        ([127, 0, 3, 9], false),
    ] {
        assert_eq!(is_served(source, listen.address()), served, "{source:?}");
    }
    spliced.ended("not_allowed", 1);
    spliced.ended("denied", 2);
    // A list that is there and holds nothing allows nobody.
    lists.write("all", "# nobody\n");
    assert_eq!(spliced.reload().0, Some(0));
    assert!(!is_served([127, 0, 1, 1], listen.address()));
    spliced.finish();
    let spliced = Launcher::forward(listen.address(), echo.address())
        .option("--deny-file", &out)
        .option("--deny-file", &one)
        .start();
    assert!(!is_served([127, 0, 1, 1], listen.address()) && !is_served([127, 0, 3, 9], listen.address()));
    assert!(is_served([127, 0, 2, 1], listen.address()));
    spliced.finish();
}

#[test]
fn a_header_brings_the_address_that_is_looked_for() {
    let (lists, listen, echo) = (Lists::new(), Reserved::loopback(), Echo::start(backend()));
    let deny = lists.write("deny", &long("192.0.2.0/24\n2001:db8::/32\n"));
    let text = config(&listen, &echo, "", &format!("deny_file: {}, accept_proxy: [127.0.0.1]", deny.display()));
    let spliced = Launcher::config(&text).start();
    for (client, family, served) in [
        ("192.0.2.255", "TCP4", false),
        ("192.0.3.0", "TCP4", true),
        ("2001:db8:ffff::1", "TCP6", false),
        ("2001:db9::", "TCP6", true),
        ("::ffff:192.0.2.1", "TCP6", false),
    ] {
        let mut stream = common::peer::connect(listen.address());
        write!(stream, "PROXY {family} {client} {client} 1 2\r\n").expect("a header");
        assert_eq!(echoes(&stream, 7, SOON), served, "{client}");
    }
    spliced.ended("denied", 3);
    spliced.finish();
}

#[test]
fn mistakes_have_their_place() {
    let lists = Lists::new();
    let bad = lists.write("bad", "10.0.0.0/8\n10.0.0.0/8 10.1.0.0/16\n");
    let binary = lists.directory.path().join("binary");
    fs::write(&binary, b"\xff\xfe").expect("our own directory");
    let large = lists.directory.path().join("large");
    fs::File::create(&large).and_then(|file| file.set_len((64 << 20) + 1)).expect("a file without blocks");
    let file = |value: &str| {
        lists.write(
            "config",
            &format!("workers: 1\ndeny_file: {value}\nforwards: [{{listen: \"127.0.0.1:1\", to: \"127.0.0.1:2\"}}]\n"),
        )
    };
    for (value, place, part) in [
        (
            bad.to_str().expect("UTF-8"),
            format!("{}:2:1: ", bad.display()),
            "found \"10.0.0.0/8 10.1.0.0/16\"; allowed: an address or a network a line",
        ),
        (
            "/nowhere/list",
            format!("{}:2:12: ", lists.directory.path().join("config").display()),
            "cannot be read (No such file",
        ),
        ("[]", String::new(), "forwards"),
        ("7", format!("{}:2:12: ", lists.directory.path().join("config").display()), "found 7; allowed: a file"),
        (
            binary.to_str().expect("UTF-8"),
            format!("{}:2:12: ", lists.directory.path().join("config").display()),
            "UTF-8",
        ),
        (
            large.to_str().expect("UTF-8"),
            format!("{}:2:12: ", lists.directory.path().join("config").display()),
            "more than 64MiB",
        ),
    ] {
        let (code, said) = check(&[], &file(value));
        let expected = if value == "[]" { Some(0) } else { Some(2) };
        assert_eq!(code, expected, "{said}");
        assert!(said.starts_with(&place) && said.contains(part), "{value}: {said}");
    }
    let outcome =
        Launcher::forward(SocketAddr::from(([127, 0, 0, 1], 1)), SocketAddr::from((IpAddr::from([127, 0, 0, 1]), 2)))
            .option("--allow-file", "/nowhere/list")
            .outcome();
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.text.contains("--allow-file: found \"/nowhere/list\""), "{}", outcome.text);
}

/// What is no regular file would hold up its reader, or say something else the next time: a list that comes out empty
/// would let everybody in.
#[test]
fn a_list_is_a_regular_file() {
    let (lists, port, echo) = (Lists::new(), Reserved::loopback(), Echo::start(backend()));
    let (fifo, socket) = (lists.directory.path().join("fifo"), lists.directory.path().join("socket"));
    mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR).expect("our own directory");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("our own directory");
    let list = lists.write("list", "127.0.0.9\n");
    let with = |list: &Path| config(&port, &echo, &format!("deny_file: {}", list.display()), "");
    let spliced = Launcher::config(&with(&list)).start();
    for (path, is) in [
        (fifo.as_path(), "a pipe"),
        (lists.directory.path(), "a directory"),
        (socket.as_path(), "a socket"),
        ("/dev/zero".as_ref(), "a device"),
    ] {
        let expected = format!(
            "found \"{}\", which cannot be read (it is {is}, and only a regular file can be read again: write what it \
             says into one); allowed: a file with an address or a network a line",
            path.display()
        );
        let (code, said) = check(&[], &lists.write("config", &with(path)));
        assert!(code == Some(2) && said.contains(&expected), "{said}");
        spliced.replace_config(&with(path));
        let (code, said) = spliced.reload();
        assert!(code != Some(0) && said.contains(&expected), "{said}");
        assert!(!is_served([127, 0, 0, 9], port.address()) && is_served([127, 0, 0, 8], port.address()));
    }
    spliced.reload_with(&with(&list));
}
