//! Least privilege: once its listeners are bound, a process keeps no right that it does not need; and where a kernel or
//! a container refuses to take them, it forwards all the same.

#![cfg(target_os = "linux")]

use crate::common;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::Command;

use common::cannot_run;
use common::deadline::{LONG, eventually, until};
use common::netns::{Netns, with_namespaces};
use common::pattern::exchange;
use common::peer::{Reserved, accept, backend, connect};
use common::process::{Thread, filters_around_us};
use common::spliced::{Launcher, Outcome, Spliced, can_inject, ordinary_user};
use nix::sys::signal::Signal;
use nix::unistd::Uid;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
/// `CAP_NET_BIND_SERVICE` and `CAP_SYS_RESOURCE` of include/uapi/linux/capability.h.
const BIND: u64 = 1 << 10;
const RESOURCE: u64 = 1 << 24;

/// Only root has something to give up.
fn is_root() -> bool {
    let root = Uid::effective().is_root();
    if !root {
        cannot_run("only root may become another user");
    }
    root
}

/// Whether this kernel has Landlock.
fn has_landlock() -> bool {
    let parts = spliced::sandbox::support();
    let found =
        parts.iter().any(|part| part.name == "landlock" && matches!(part.state, spliced::sandbox::State::On(_)));
    if !found {
        cannot_run(&format!("no Landlock here: {parts:?}"));
    }
    found
}

/// A forward to a backend.
struct Way {
    port: Reserved,
    backend: TcpListener,
}

impl Way {
    fn new() -> Self {
        Self { port: Reserved::loopback(), backend: backend() }
    }

    fn to(&self) -> SocketAddr {
        self.backend.local_addr().expect("bound")
    }

    fn launcher(&self) -> Launcher<'static> {
        Launcher::forward(self.port.address(), self.to()).option("--engine", "splice")
    }

    fn config(&self, lines: &str) -> Launcher<'static> {
        let (listen, to) = (self.port.address(), self.to());
        Launcher::config(&format!("{lines}\nforwards: [{{ listen: \"{listen}\", to: \"{to}\", engine: splice }}]\n"))
    }

    /// Bytes both ways at once, whole.
    fn forwards(&self, len: u64) {
        let client = connect(self.port.address());
        exchange(&client, &accept(&self.backend), len, len);
    }
}

/// The threads, once each has taken its own filter on top of the main thread's.
fn threads(spliced: &Spliced, filters: u32) -> Vec<Thread> {
    let around = filters_around_us();
    eventually("every thread has confined itself", LONG, || {
        let threads = spliced.process().threads();
        let settled = |thread: &Thread| {
            let wanted = if thread.name == "main" { filters.min(1) } else { filters };
            // Linux before 5.9 does not count them.
            thread.field("Seccomp_filters") == (around + wanted).to_string()
        };
        if threads.len() > 2 && threads.iter().all(settled) { Ok(threads) } else { Err(format!("{threads:?}")) }
    })
}

fn assert_confined(thread: &Thread) {
    assert_eq!((thread.field("NoNewPrivs"), thread.field("Seccomp")), ("1", "2"), "{}", thread.name);
}

fn assert_powerless(thread: &Thread) {
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(thread.capabilities(set), 0, "{set} of {}", thread.name);
    }
}

fn fails(outcome: &Outcome, code: i32, texts: &[&str]) {
    assert_eq!(outcome.code, Some(code), "exit code; it wrote: {}", outcome.text);
    for part in texts {
        assert!(outcome.text.contains(part), "no {part:?} in: {}", outcome.text);
    }
    assert!(!outcome.text.contains("panicked") && !outcome.text.contains("ready:"), "{}", outcome.text);
}

/// The whole life as another user: bulk, a reload, a log rotation, a drain. Nothing of root is left in any thread.
#[test]
fn a_life_as_nobody() {
    if !is_root() {
        return;
    }
    let nobody = nix::unistd::User::from_name("nobody").expect("asked").expect("every host has nobody").uid;
    let way = Way::new();
    let names = Reserved::loopback();
    let text = format!("user: nobody\nworkers: 2\ndrain_timeout: 30s\nlog_format: json\nforwards:\n{}", {
        let (listen, to) = (way.port.address(), way.to());
        let name = format!("  - {{ listen: \"{}\", to: \"localhost:{}\" }}\n", names.address(), to.port());
        format!("  - {{ listen: \"{listen}\", to: \"{to}\", engine: splice }}\n{name}")
    });
    let launcher = Launcher::config(&text).place_of(nobody.as_raw());
    let directory = launcher.directory().to_owned();
    let (log, pid_file) = (directory.join("log"), directory.join("pid"));
    let mut spliced = launcher.option("--log-file", &log).option("--pid-file", &pid_file).start();

    let threads = threads(&spliced, 2);
    let found: Vec<&str> = threads.iter().map(|thread| thread.name.as_str()).collect();
    for name in ["main", "worker-0", "worker-1", "session-log", "resolver"] {
        assert!(found.contains(&name), "no thread {name} among {found:?}");
    }
    let ids = format!("{nobody} {nobody} {nobody} {nobody}");
    for thread in &threads {
        assert_confined(thread);
        assert_powerless(thread);
        assert_eq!(thread.capabilities("CapBnd"), 0, "{}", thread.name);
        assert_eq!(thread.field("Uid"), ids, "{}", thread.name);
        assert!(!thread.field("Groups").split(' ').any(|group| group == "0"), "groups {}", thread.field("Groups"));
    }
    let said = spliced.logged("sandbox: user nobody");
    assert!(said.len() == 1 && said[0].contains("capabilities none"), "{}", spliced.text());
    for path in [&log, &pid_file, &spliced.control().to_owned()] {
        assert_eq!(fs::metadata(path).expect("it is there").uid(), nobody.as_raw(), "{}", path.display());
    }
    assert_eq!(fs::metadata(spliced.control()).expect("there").permissions().mode() & 0o777, 0o600);

    way.forwards(24 * MIB + 7);
    let stats = spliced.stats_until("the session has ended", |stats| stats.open() == 0);
    assert!(!cfg!(not(spliced_portable)) || stats.up().splice == 24 * MIB + 7, "splice is let through: {}", stats.0);
    let client = connect(names.address());
    exchange(&client, &accept(&way.backend), MIB, MIB);

    spliced.signal(Signal::SIGHUP);
    until("the reload is in effect", LONG, || spliced.text().contains("configuration 2 is in effect"));
    way.forwards(MIB);

    let lines = |path: &std::path::Path| fs::read_to_string(path).expect("a log").lines().count();
    until("the sessions so far are logged", LONG, || lines(&log) == 3);
    fs::rename(&log, directory.join("log.1")).expect("our own directory");
    spliced.signal(Signal::SIGUSR1);
    until("the log is reopened", LONG, || !spliced.logged("reopened").is_empty());
    assert_eq!(fs::metadata(&log).expect("a new file").uid(), nobody.as_raw());

    let client = connect(way.port.address());
    let server = accept(&way.backend);
    spliced.stats_until("the session is open", |stats| stats.open() == 1);
    spliced.signal(Signal::SIGTERM);
    until("it drains", LONG, || !spliced.logged("draining: 1 session open").is_empty());
    exchange(&client, &server, 3 * MIB, 3 * MIB);
    drop((client, server));
    assert_eq!(spliced.wait(LONG).code(), Some(0));
    assert!(!spliced.control().exists() && !pid_file.exists(), "its files are gone");
    assert_eq!((lines(&directory.join("log.1")), lines(&log)), (3, 1), "a line for every session");
    assert!(spliced.logged("WARN").iter().all(|line| line.contains("reload")), "{}", spliced.text());
}

#[test]
fn root_without_a_user_keeps_no_capability_and_says_so() {
    if !is_root() {
        return;
    }
    let way = Way::new();
    let spliced = way.launcher().start();
    for thread in &threads(&spliced, 2) {
        assert_confined(thread);
        assert_powerless(thread);
        assert_eq!(thread.capabilities("CapBnd"), 0, "{}", thread.name);
    }
    assert_eq!(spliced.says("running as root: with user: NAME").len(), 1, "{}", spliced.text());
    way.forwards(8 * MIB);
    spliced.finish();
}

#[test]
fn what_is_kept_is_kept_where_it_is_needed_alone() {
    if !is_root() {
        return;
    }
    // A container's root may have less.
    let own = common::process::Process(std::process::id()).threads()[0].capabilities("CapPrm");
    let way = Way::new();
    let spliced = way.launcher().option("--keep-capabilities", "net_bind_service,sys_resource").start();
    for thread in &threads(&spliced, 2) {
        let kept = match thread.name.as_str() {
            "main" => BIND | RESOURCE,
            name if name.starts_with("worker-") => RESOURCE,
            _ => 0,
        };
        assert_eq!(thread.capabilities("CapEff"), kept & own, "{}", thread.name);
        assert_eq!(thread.capabilities("CapPrm"), kept & own, "{}", thread.name);
        assert_eq!(thread.capabilities("CapBnd"), (BIND | RESOURCE) & own, "{}", thread.name);
    }
    way.forwards(8 * MIB);
    spliced.finish();
}

#[test]
fn a_low_port_keeps_the_right_to_bind_another() {
    with_namespaces(|| {
        let namespace = Netns::new();
        let low = SocketAddr::from(([127, 0, 0, 1], 80));
        let backend = namespace.listen(([127, 0, 0, 1], 0).into());
        let to = backend.local_addr().expect("bound");
        // Root of a user namespace has one user alone.
        let real_root = fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.contains("4294967295"));
        let mut launcher = Launcher::forward(low, to).inside(&namespace);
        let uid = ordinary_user();
        if real_root {
            launcher = launcher.place_of(uid).option("--user", format!("{uid}:{uid}"));
        }
        let spliced = launcher.start();
        for thread in &threads(&spliced, 2) {
            let kept = if thread.name == "main" { BIND } else { 0 };
            // Ambient as well: a newer executable that is started in its place keeps it.
            for set in ["CapEff", "CapPrm", "CapAmb"] {
                assert_eq!(thread.capabilities(set), kept, "{set} of {}", thread.name);
            }
            if real_root {
                assert_eq!(thread.field("Uid").split(' ').next(), Some(uid.to_string().as_str()));
            }
        }
        let client = namespace.connect(low);
        exchange(&client, &accept(&backend), MIB, MIB);
        drop(client);
        spliced.finish();
    });
}

/// Further sockets of an address, such as a reload with more workers opens, must be of the user the first ones are of.
#[test]
fn the_listeners_belong_to_the_user() {
    if !is_root() {
        return;
    }
    let (way, uid) = (Way::new(), ordinary_user());
    let spliced = way.launcher().place_of(uid).option("--user", format!("{uid}:{uid}")).start();
    way.port.give_to(uid);
    let beside = || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        std::os::unix::fs::fchown(&socket, Some(uid), None).expect("the socket takes a new owner");
        socket.set_reuse_address(true).expect("SO_REUSEADDR");
        socket.set_reuse_port(true).expect("SO_REUSEPORT");
        socket.bind(&way.port.address().into()).and_then(|()| socket.listen(1))
    };
    beside().expect("a socket of that user shares the address");
    way.port.give_to(0);
    spliced.finish();
}

#[test]
fn an_ordinary_user_confines_itself_too() {
    let way = Way::new();
    let launcher = if Uid::effective().is_root() {
        let uid = ordinary_user();
        way.port.give_to(uid);
        way.launcher().user(uid)
    } else {
        way.launcher()
    };
    let spliced = launcher.start();
    for thread in &threads(&spliced, 2) {
        assert_confined(thread);
        assert_powerless(thread);
    }
    assert!(spliced.logged("running as root").is_empty());
    way.forwards(8 * MIB);
    spliced.finish();
}

#[test]
fn off_is_off() {
    let way = Way::new();
    let spliced = way.launcher().option("--sandbox", "off").start();
    let own = common::process::Process(std::process::id()).threads();
    for thread in &threads(&spliced, 0) {
        assert_eq!(thread.field("NoNewPrivs"), own[0].field("NoNewPrivs"));
        assert_eq!(thread.field("CapEff"), own[0].field("CapEff"), "as it was started");
    }
    assert_eq!(spliced.says("sandbox: off").len(), 1, "{}", spliced.text());
    way.forwards(MIB);
    spliced.finish();
}

/// From the outside: the C library asks for clone3(2), which the filter does not know, and gets by with clone(2).
#[test]
fn a_forbidden_call_fails_as_on_a_kernel_without_it() {
    if !can_inject() {
        return;
    }
    let asked = |sandbox: &str| {
        let way = Way::new();
        let trace = TempDir::new().expect("a temporary directory");
        let trace = trace.path().join("trace");
        let strace = ["strace", "-D", "-f", "-qq", "-e", "trace=clone3,openat2,execve", "-o"].map(Into::into);
        let wrapper: Vec<std::ffi::OsString> = strace.into_iter().chain([trace.clone().into()]).collect();
        let spliced = way.launcher().through(wrapper).option("--sandbox", sandbox).start();
        way.forwards(MIB);
        spliced.finish();
        fs::read_to_string(trace).expect("strace wrote")
    };
    if !asked("off").lines().any(|line| line.contains("clone3(") && !line.contains("ENOSYS")) {
        return cannot_run("this C library or kernel has no clone3 to be refused");
    }
    let calls = asked("auto");
    let clone3: Vec<&str> = calls.lines().filter(|line| line.contains("clone3(")).collect();
    assert!(!clone3.is_empty() && clone3.iter().all(|line| line.contains("ENOSYS")), "{calls}");
}

/// As root, whom no permission keeps from a file: only Landlock does.
#[test]
fn files_outside_of_the_plan_are_out_of_reach() {
    if !is_root() || !has_landlock() {
        return;
    }
    for (sandbox, reaches) in [("auto", false), ("off", true)] {
        let (way, inside, outside) = (Way::new(), TempDir::new().expect("one"), TempDir::new().expect("another"));
        let log = inside.path().join("log");
        let spliced = way.launcher().option("--log-file", &log).option("--sandbox", sandbox).start();
        fs::remove_file(&log).expect("our own directory");
        symlink(outside.path().join("stolen"), &log).expect("our own directory");
        spliced.signal(Signal::SIGUSR1);
        let line = if reaches { "reopened" } else { "Permission denied" };
        until("the log is reopened, or not", LONG, || !spliced.logged(line).is_empty());
        assert_eq!(outside.path().join("stolen").exists(), reaches, "sandbox {sandbox}");
        way.forwards(MIB);
        spliced.finish();
    }
}

/// A part that cannot be had is said once and left out; strict insists.
fn without(fault: &str, part: &str) {
    let way = Way::new();
    let spliced = way.launcher().inject(&[fault]).start();
    let said = spliced.logged(&format!("sandbox: {part} missing"));
    assert_eq!(said.len(), 1, "{}", spliced.text());
    assert!(said[0].contains("forwarding goes on"), "{said:?}");
    way.forwards(8 * MIB);
    spliced.finish();
    let outcome = way.launcher().inject(&[fault]).option("--sandbox", "strict").outcome();
    fails(&outcome, 1, &["sandbox strict", part, "use sandbox auto"]);
}

#[test]
fn no_filters_in_the_kernel() {
    if can_inject() {
        without("seccomp:error=EINVAL", "seccomp");
    }
}

#[test]
fn no_landlock_in_the_kernel() {
    if can_inject() {
        without("landlock_create_ruleset:error=ENOSYS", "landlock");
        without("landlock_create_ruleset:error=EOPNOTSUPP", "landlock");
    }
}

#[test]
fn landlock_refused() {
    if can_inject() && has_landlock() {
        without("landlock_restrict_self:error=E2BIG", "landlock");
    }
}

#[test]
fn strict_forwards() {
    if !has_landlock() {
        return;
    }
    let way = Way::new();
    let spliced = way.launcher().option("--sandbox", "strict").option("--source", "127.0.0.1").start();
    assert!(spliced.logged("sandbox: ")[0].contains("TCP ports"), "{}", spliced.text());
    way.forwards(8 * MIB);
    spliced.finish();
}

#[test]
fn users_that_cannot_be_are_named() {
    let way = Way::new();
    let outcome = way.launcher().option("--user", "no-such-user").outcome();
    fails(&outcome, 2, &["--user: found \"no-such-user\"", "this host knows no user", "useradd"]);
    let outcome = way.config("sandbox: auto\nuser: no-such-user").outcome();
    fails(&outcome, 2, &["spliced.yaml:2:7: found \"no-such-user\"", "this host knows no user", "useradd"]);
    let outcome = way.config("user: root:no-such-group").outcome();
    fails(&outcome, 2, &["spliced.yaml:1:7: found \"root:no-such-group\"", "no group \"no-such-group\"", "groupadd"]);
    let outcome = way.config("user: \"a b\"").outcome();
    fails(&outcome, 2, &["spliced.yaml:1:7:", "found \"a b\"", "allowed: a user"]);
    if is_root() {
        let uid = ordinary_user();
        way.port.give_to(uid);
        let outcome = way.launcher().user(uid).option("--user", "root").outcome();
        fails(&outcome, 1, &["cannot become user 0", "only root may become another user"]);
        way.port.give_to(0);
    }
    assert!(std::net::TcpStream::connect(way.port.address()).is_err(), "nobody listens");
}

/// What the user cannot reach is said at the start, and not when a reload fails a month later.
#[test]
fn files_the_user_cannot_reach_are_said() {
    if !is_root() {
        return;
    }
    let way = Way::new();
    let launcher = way.config("user: nobody");
    fs::set_permissions(launcher.directory(), fs::Permissions::from_mode(0o700)).expect("our own directory");
    let spliced = launcher.start();
    let said = spliced.logged("a reload will fail");
    assert!(said.len() == 1 && said[0].contains("nobody") && said[0].contains("spliced.yaml"), "{}", spliced.text());
    way.forwards(MIB);
    spliced.finish();
}

#[test]
fn check_shows_the_options() {
    let way = Way::new();
    let launcher = way.config("user: nobody:nogroup\nkeep_capabilities: none\nsandbox: strict");
    let file = launcher.directory().join("copy.yaml");
    let (listen, to) = (way.port.address(), way.to());
    fs::write(&file, format!("user: nobody:nogroup\nforwards: [{{ listen: \"{listen}\", to: \"{to}\" }}]\n"))
        .expect("a temporary file");
    let output = Command::new(env!("CARGO_BIN_EXE_spliced")).arg("check").arg("-c").arg(&file).output().expect("runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for line in ["user: \"nobody:nogroup\"", "keep_capabilities: auto", "sandbox: auto"] {
        assert!(text.lines().any(|found| found == line), "no {line:?} in {text}");
    }
}

/// The control socket is its owner's alone, and says so.
#[test]
fn others_may_not_ask_and_nobody_elses_place_is_taken() {
    if !is_root() {
        return;
    }
    let way = Way::new();
    let spliced = way.launcher().start();
    let uid = ordinary_user();
    let directory = TempDir::new().expect("a temporary directory");
    let program = common::spliced::copy_for(uid, env!("CARGO_BIN_EXE_spliced").as_ref(), directory.path());
    // The way to the socket is open, the socket is not.
    let above = spliced.control().parent().expect("a directory");
    fs::set_permissions(above, fs::Permissions::from_mode(0o755)).expect("our own directory");
    let mut ask = Command::new(program);
    let output = ask.args(["stats", "--control"]).arg(spliced.control()).uid(uid).gid(uid).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("only the user who runs spliced may ask"), "{text}");

    // A dead socket of somebody else is not ours to replace, and a place everybody may write is no place.
    let foreign = directory.path().join("foreign.sock");
    drop(UnixListener::bind(&foreign).expect("a socket"));
    std::os::unix::fs::chown(&foreign, Some(uid), Some(uid)).expect("root gives it away");
    let other = Way::new();
    let outcome = other.launcher().option("--control", &foreign).outcome();
    fails(&outcome, 1, &["foreign.sock", &format!("a socket of user {uid}"), "choose another path"]);
    assert!(foreign.exists(), "it was left alone");
    let open = directory.path().join("open");
    fs::create_dir(&open).expect("a directory");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).expect("our own directory");
    let outcome = other.launcher().option("--control", open.join("control.sock")).outcome();
    fails(&outcome, 1, &["everybody may write", "chmod o-w"]);

    way.forwards(MIB);
    spliced.finish();
}

/// The unit's settings, as the service manager's own scale has them: 0 is closed, 10 is open.
#[test]
fn the_unit_is_hardened() {
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/spliced.service");
    let arguments = ["security", "--offline=yes", "--threshold=15", "--no-pager", unit];
    match Command::new("systemd-analyze").args(arguments).output() {
        Err(e) => cannot_run(&format!("systemd-analyze is needed to rate the unit: {e}")),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success() && text.contains("Overall exposure level"), "{text}");
        }
    }
}
