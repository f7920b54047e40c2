//! Network namespaces without a name: nothing is left when the last descriptor closes, however the test ends.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::panic::resume_unwind;
use std::process::{Command, Stdio};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

use super::cannot_run;
use super::peer::{connect, connect_or_reset, end_of};

/// Set in a test that was started again inside a user namespace.
const INSIDE: &str = "SPLICED_TEST_INSIDE";

/// A network namespace of its own.
#[derive(Debug)]
pub(crate) struct Netns {
    handle: File,
}

/// Runs a test body that needs network namespaces: here, or else in a user namespace where the test is root. To be called
/// on the test's own thread, which has the test's name.
pub(crate) fn with_namespaces(body: impl FnOnce()) {
    let may = thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET)).join().expect("no panic");
    let Err(why) = may else { return body() };
    if std::env::var_os(INSIDE).is_some() {
        return cannot_run(&format!("no network namespace even as root of a user namespace: {why}"));
    }
    if !Command::new("unshare").args(["-Urn", "true"]).status().is_ok_and(|status| status.success()) {
        return cannot_run(&format!("no network namespace ({why}) and `unshare -Urn` is refused; run it as root"));
    }
    let test = thread::current();
    let name = test.name().expect("the thread of a test");
    let program = std::env::current_exe().expect("the test's own program");
    let output = Command::new("unshare")
        .arg("-Urn")
        .arg(program)
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .stderr(Stdio::inherit())
        .output()
        .expect("unshare was there a moment ago");
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(output.status.success(), "{name} failed inside the user namespace: {}", output.status);
    // A name that no test has would run none of them, and that is no failure.
    assert!(said.contains("test result: ok. 1 passed;"), "{name} did not run inside the user namespace");
}

impl Netns {
    /// A new one with loopback up.
    pub(crate) fn new() -> Self {
        let handle = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        })
        .join()
        .expect("no panic")
        .expect("a network namespace");
        let namespace = Self { handle };
        namespace.command("ip", ["link", "set", "lo", "up"]);
        namespace
    }

    /// Runs `step` on a thread inside; sockets and processes made there stay there.
    pub(crate) fn enter<T: Send>(&self, step: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.handle, CloneFlags::CLONE_NEWNET).expect("the namespace lets us in");
                step()
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Runs a program inside to its end, which must be a success.
    pub(crate) fn command<A: AsRef<OsStr> + Sync>(&self, program: &str, arguments: impl IntoIterator<Item = A> + Send) {
        let arguments: Vec<_> = arguments.into_iter().map(|a| a.as_ref().to_owned()).collect();
        let output = self.enter(|| Command::new(program).args(&arguments).output());
        let output = output.unwrap_or_else(|e| panic!("{program} is needed for this test: {e}"));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{program} {arguments:?}: {}: {text}", output.status);
    }

    /// As [`Self::command`], from one line.
    pub(crate) fn line(&self, line: &str) {
        let mut words = line.split(' ');
        let program = words.next().expect("a program");
        self.command(program, words);
    }

    /// Loads rules for nft, one command a line.
    pub(crate) fn nft(&self, rules: &[&str]) {
        for rule in rules {
            self.command("nft", [rule]);
        }
    }

    /// A listening socket inside.
    pub(crate) fn listen(&self, address: SocketAddr) -> TcpListener {
        self.enter(|| TcpListener::bind(address)).expect("a free address in a namespace of our own")
    }

    /// A connection from inside.
    pub(crate) fn connect(&self, to: SocketAddr) -> TcpStream {
        self.enter(|| connect(to))
    }

    /// A connection from inside that is reset, be it before connect(2) has told of its success.
    pub(crate) fn is_turned_away(&self, from: SocketAddr) {
        if let Some(stream) = self.enter(|| connect_or_reset(from)) {
            assert_eq!(end_of(&stream), Err(ErrorKind::ConnectionReset));
        }
    }

    /// A path other programs can open.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.handle.as_raw_fd())
    }
}

/// One end of a link: where it is, its name there, its address and the length of the prefix.
pub(crate) type LinkEnd<'a> = (&'a Netns, &'a str, IpAddr, u8);

/// A pair of virtual devices between two namespaces, up and addressed.
pub(crate) fn link(a: LinkEnd<'_>, b: LinkEnd<'_>) {
    a.0.line(&format!("ip link add {} type veth peer name {} netns {}", a.1, b.1, b.0.path()));
    for (namespace, device, address, prefix) in [a, b] {
        namespace.line(&format!("ip address add {address}/{prefix} dev {device}"));
        namespace.line(&format!("ip link set {device} up"));
    }
}

/// Takes segmentation and receive offloads from a device, so that packets are as small as the link's.
pub(crate) fn offloads_off(namespace: &Netns, device: &str) {
    namespace.line(&format!("ethtool -K {device} tso off gso off gro off"));
}

/// The founding topology: client — forwarder — server, each in its own namespace.
#[derive(Debug)]
pub(crate) struct Chain {
    /// 10.0.1.2.
    pub(crate) client: Netns,
    /// 10.0.1.1 towards the client (`to_client`), 10.0.0.1 towards the server (`to_server`).
    pub(crate) forwarder: Netns,
    /// 10.0.0.2.
    pub(crate) server: Netns,
}

impl Chain {
    /// Where the forwarder listens.
    pub(crate) const FRONT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 1, 1)), 9000);
    /// Where the server listens.
    pub(crate) const BACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)), 9001);

    /// Three namespaces, two links.
    pub(crate) fn new(offloads: bool) -> Self {
        let chain = Self { client: Netns::new(), forwarder: Netns::new(), server: Netns::new() };
        let ip = |last_two: [u8; 2]| IpAddr::from([10, 0, last_two[0], last_two[1]]);
        link((&chain.client, "eth0", ip([1, 2]), 24), (&chain.forwarder, "to_client", ip([1, 1]), 24));
        link((&chain.server, "eth0", ip([0, 2]), 24), (&chain.forwarder, "to_server", ip([0, 1]), 24));
        if !offloads {
            offloads_off(&chain.client, "eth0");
            offloads_off(&chain.forwarder, "to_client");
            offloads_off(&chain.forwarder, "to_server");
            offloads_off(&chain.server, "eth0");
        }
        chain
    }

    /// Lets the kernel of the forwarder's namespace route between client and server: the way with nothing in between.
    pub(crate) fn route(&self) {
        self.forwarder
            .enter(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1"))
            .expect("a namespace of our own may forward");
        self.client.line("ip route add default via 10.0.1.1");
        self.server.line("ip route add default via 10.0.0.1");
    }
}
