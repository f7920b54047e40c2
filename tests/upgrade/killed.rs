//! Killed with SIGKILL, at rest or in the middle of an upgrade, either process or both: whoever is left serves, and a start
//! on the same address serves at once.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failing step fails the test, in its helpers as well")]

use crate::common;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use common::deadline::{LONG, eventually, until};
use common::netns::{Netns, with_namespaces};
use common::pattern::{Pattern, Random};
use common::peer::{Echo, accept, echoes};
use common::spliced::{Launcher, ordinary_user};
use common::upgraded::{Installed, Upgraded, one_connection};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use tempfile::TempDir;

/// A port of our own below 1024, so that no reservation of the test's is in the way.
const FRONT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 80);

/// One configuration that is started again and again at the same place.
struct Site<'a> {
    namespace: &'a Netns,
    installed: Installed,
    place: TempDir,
    user: Option<u32>,
    to: SocketAddr,
}

impl<'a> Site<'a> {
    fn new(namespace: &'a Netns, to: SocketAddr) -> Self {
        let place = tempfile::tempdir().unwrap();
        // Root of a user namespace has one user alone.
        let real_root = fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.contains("4294967295"));
        let user = real_root.then(ordinary_user);
        if let Some(uid) = user {
            std::os::unix::fs::chown(place.path(), Some(uid), Some(uid)).unwrap();
        }
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let site = Self { namespace, installed: Installed::new(), place, user, to };
        site.write_config();
        site
    }

    fn config(&self) -> PathBuf {
        self.place.path().join("spliced.yaml")
    }

    fn control(&self) -> PathBuf {
        self.place.path().join("control.sock")
    }

    fn text(&self) -> String {
        let (control, pid_file) = (self.control(), self.place.path().join("pid"));
        let (control, pid_file) = (control.display(), pid_file.display());
        let user = self.user.map_or_else(String::new, |uid| format!("user: \"{uid}:{uid}\"\n"));
        format!(
            "{user}workers: 2\nlog_file: /dev/null\ncontrol: {control}\npid_file: {pid_file}\nforwards: [{{ listen: \
             \"{FRONT}\", to: \"{}\" }}]\n",
            self.to
        )
    }

    fn write_config(&self) {
        let _ = fs::remove_file(self.config());
        fs::write(self.config(), self.text()).unwrap();
    }

    /// A new process hangs on this in place of the file, until [`Self::feed`]. It has taken what it is given by then.
    fn hold_config(&self) {
        fs::remove_file(self.config()).unwrap();
        mkfifo(&self.config(), Mode::from_bits_truncate(0o644)).unwrap();
    }

    /// Waits until somebody hangs and returns the other end.
    fn held(&self) -> fs::File {
        let mut open = fs::OpenOptions::new();
        let open = open.write(true).custom_flags(nix::libc::O_NONBLOCK);
        eventually("a reader hangs", LONG, || open.open(self.config()).map_err(|e| e.to_string()))
    }

    /// Lets whoever hangs have the text, and puts the file back.
    fn feed(&self, mut fifo: fs::File) {
        fifo.write_all(self.text().as_bytes()).unwrap();
        drop(fifo);
        self.write_config();
    }

    /// Starts it as a service manager would; what it wrote when it ends instead.
    fn start(&self) -> Result<Upgraded, String> {
        let launcher = Launcher::file(&self.config()).inside(self.namespace).program(&self.installed.path()).group();
        let mut spliced = launcher.try_start_at(&self.control())?;
        spliced.note_rest();
        Ok(Upgraded::of(spliced))
    }

    fn connection(&self) -> Result<(), String> {
        self.namespace.enter(|| one_connection(FRONT, 7))
    }
}

fn kill_now(pid: u32) {
    // It may be gone already: it is then as dead as it is to be.
    let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL);
}

/// A byte each way.
fn lives(mut client: &TcpStream, mut server: &TcpStream) {
    client.write_all(b"?").unwrap();
    server.read_exact(&mut [0]).unwrap();
    server.write_all(b"!").unwrap();
    client.read_exact(&mut [0]).unwrap();
}

fn inside(step: impl FnOnce(&Site<'_>, TcpListener)) {
    with_namespaces(|| {
        let namespace = Netns::new();
        let backend = namespace.listen((Ipv4Addr::LOCALHOST, 9001).into());
        step(&Site::new(&namespace, backend.local_addr().unwrap()), backend);
    });
}

/// With sessions in every state, so that their sockets are left behind on the address.
#[test]
fn killed_at_work() {
    inside(|site, backend| {
        let mut left = Vec::new();
        for turn in 0..5 {
            let mut upgraded = site.start().unwrap_or_else(|why| panic!("start {turn}: {why}"));
            let (idle, its_server) = (site.namespace.connect(FRONT), accept(&backend));
            lives(&idle, &its_server);
            // One whose bytes nobody reads, and one that is half closed.
            let (full, full_server) = (site.namespace.connect(FRONT), accept(&backend));
            Pattern::new(1).send(&full, 0, 100_000).unwrap();
            let (half, half_server) = (site.namespace.connect(FRONT), accept(&backend));
            half_server.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!((&half).read(&mut [0]).unwrap(), 0);
            kill_now(upgraded.pid());
            let pid = upgraded.pid();
            assert_eq!(upgraded.exit_code(pid, LONG), None);
            assert!(site.control().exists(), "it had no time to tidy up");
            left.push([idle, its_server, full, full_server, half, half_server]);
        }
        let upgraded = site.start().unwrap();
        let (client, server) = (site.namespace.connect(FRONT), accept(&backend));
        lives(&client, &server);
        drop((client, server, left));
        upgraded.spliced.stats_until("all is over", |stats| stats.open() == 0);
    });
}

/// The new one, before it is ready: nothing has changed.
#[test]
fn the_new_one_is_killed_before_it_is_ready() {
    inside(|site, backend| {
        let mut upgraded = site.start().unwrap();
        let (client, server) = (site.namespace.connect(FRONT), accept(&backend));
        site.hold_config();
        let pid = upgraded.pid();
        upgraded.signal(pid, Signal::SIGUSR2);
        let child = eventually("it is started", LONG, || upgraded.children(pid).pop().ok_or("no child".to_owned()));
        kill_now(child.parse().unwrap());
        let says = |upgraded: &Upgraded| {
            upgraded.spliced.logged("no upgrade: it did not become ready; it ended with signal: 9")
        };
        until("it says so", LONG, || says(&upgraded).len() == 1);
        lives(&client, &server);
        site.write_config();
        assert_eq!(upgraded.stats().number("/pid"), u64::from(pid));
        let after = upgraded.upgrade();
        assert_eq!(upgraded.stats().number("/pid"), u64::from(after));
        lives(&client, &server);
    });
}

/// The old one, while the new one is on its way: that one goes on alone, and serves who waits in the queues.
#[test]
fn the_old_one_is_killed_while_the_new_one_starts() {
    inside(|site, backend| {
        let mut upgraded = site.start().unwrap();
        site.hold_config();
        let old = upgraded.pid();
        upgraded.signal(old, Signal::SIGUSR2);
        let fifo = site.held();
        kill_now(old);
        assert_eq!(upgraded.exit_code(old, LONG), None);
        let waiting: Vec<TcpStream> = (0..20).map(|_| site.namespace.connect(FRONT)).collect();
        site.feed(fifo);
        let echo = Echo::start(backend);
        for client in waiting {
            assert!(echoes(&client, 9, LONG), "one that waited is served");
        }
        upgraded.replaced();
        until("it says so", LONG, || !upgraded.spliced.logged("is gone; going on in its place").is_empty());
        // It is the service: another start is turned away, and the next upgrade works.
        let why = site.start().unwrap_err();
        assert!(why.contains("running instance"), "{why}");
        upgraded.upgrade();
        site.connection().unwrap();
        drop(echo);
        upgraded.finish();
        assert_eq!(fs::read_dir(site.place.path()).unwrap().count(), 1, "the configuration alone is left");
    });
}

/// The new one, after it has taken over: the old one's session goes on, and a start serves at once beside it.
#[test]
fn the_new_one_is_killed_while_the_old_one_drains() {
    inside(|site, backend| {
        let mut upgraded = site.start().unwrap();
        let (client, server) = (site.namespace.connect(FRONT), accept(&backend));
        let new = upgraded.upgrade();
        kill_now(new);
        let said = || {
            upgraded
                .spliced
                .logged(&format!("process {new}, which took over from this one, is gone: it ended with signal: 9"))
        };
        until("the old one says so", LONG, || said().len() == 1);
        assert!(site.connection().unwrap_err().contains("refused"), "no listener is left that nobody accepts from");
        let again = site.start().unwrap();
        let (another, its_server) = (site.namespace.connect(FRONT), accept(&backend));
        lives(&another, &its_server);
        lives(&client, &server);
        drop((client, server));
        let first = upgraded.spliced.process().0;
        assert_eq!(upgraded.exit_code(first, LONG), Some(0));
        assert!(site.control().exists(), "the file is another's");
        lives(&another, &its_server);
        drop((another, its_server));
        again.finish();
    });
}

/// At any moment of an upgrade, either of them or both. Afterwards there is an answer at once, or from a new start.
#[test]
fn killed_at_any_moment_of_an_upgrade() {
    inside(|site, backend| {
        let echo = Echo::start(backend);
        let mut random = Random::new(42);
        let (mut survived, mut restarted) = (0, 0);
        for turn in 0..24 {
            let mut started = vec![site.start().unwrap_or_else(|why| panic!("start {turn}: {why}"))];
            site.connection().unwrap();
            let old = started[0].pid();
            let begin = Instant::now();
            started[0].signal(old, Signal::SIGUSR2);
            // An upgrade takes some 10 ms.
            let pause = Duration::from_micros(random.below(15_000));
            while begin.elapsed() < pause {
                thread::yield_now();
            }
            let children = read_children(old);
            match turn % 3 {
                0 => kill_now(old),
                1 => children.iter().for_each(|pid| kill_now(*pid)),
                // All of a process group at once, one forked this moment included.
                _ => killpg(Pid::from_raw(i32::try_from(old).unwrap()), Signal::SIGKILL).unwrap(),
            }
            eventually(&format!("turn {turn}: somebody serves after {pause:?}"), LONG, || {
                // In a row: a new process that is killed when it has just said that it began leaves the old one to accept
                // a few, until it reads that.
                let Err(why) = (0..20).try_for_each(|_| site.connection().map(drop)) else { return Ok(()) };
                // As a service manager does, which is turned away for as long as somebody is on the way.
                match site.start() {
                    Ok(another) => started.push(another),
                    Err(said) if said.contains("running instance") => {}
                    Err(said) => panic!("turn {turn}: a start failed: {said}"),
                }
                Err(why)
            });
            if started.len() == 1 {
                survived += 1
            } else {
                restarted += 1
            }
            // Ends what is left of them all.
            drop(started);
        }
        println!("{survived} times somebody was left, {restarted} times it was started again");
        assert!(survived > 0 && restarted > 0, "{survived}, {restarted}");
        drop(echo);
    });
}

/// The children of a process that may be gone.
fn read_children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(Path::new(&format!("/proc/{pid}/task/{pid}/children"))).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}
