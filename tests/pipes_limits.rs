//! No pipe to be had: sessions live and copy, the reason is counted, and pipes are tried again later.

#![cfg(all(target_os = "linux", not(spliced_portable)))]

mod common;

use std::io::{BufRead, BufReader, Read};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use common::deadline::{LONG, until};
use common::path::Via;
use common::pattern::Pattern;
use common::peer::{Reserved, accept, backend, backend_with_small_buffers, connect};
use common::spliced::{Launcher, Spliced, can_inject, copy_for, ordinary_user};
use nix::fcntl::{FcntlArg, fcntl};
use nix::unistd::{Uid, pipe};

const MIB: u64 = 1 << 20;
/// What every stalled session has delivered before it stalls.
const READ: u64 = MIB / 2;

common::scenarios!(
    also_direct: [],
    engines: [more_stalled_sessions_than_pipes],
);

/// Held by every test here: they use up the pipe pages of a user, and where they are not root, that is the same one
/// for all of them.
static PAGES: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    PAGES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As a user to whom the kernel's limits apply: another one where the test is root, the test's own else.
fn as_ordinary_user<'a>(launcher: Launcher<'a>, port: &Reserved, uid: u32) -> Launcher<'a> {
    if !Uid::effective().is_root() {
        return launcher;
    }
    port.give_to(uid);
    launcher.user(uid)
}

/// Sends a stream through and checks it whole.
fn transfer(port: &Reserved, backend: &TcpListener, len: u64) {
    let client = connect(port.address());
    let server = accept(backend);
    let pattern = Pattern::new(len);
    thread::scope(|scope| {
        scope.spawn(|| {
            pattern.send(&client, 0, len).expect("send");
            client.shutdown(Shutdown::Write).expect("half-close");
        });
        pattern.expect_whole(&server, 0, len);
    });
}

/// Pipes are in use again: transfers until one has gone through a pipe.
fn spliced_again(spliced: &Spliced, port: &Reserved, backend: &TcpListener) {
    let before = spliced.stats().up().splice;
    until("pipes are tried again", LONG, || {
        transfer(port, backend, 2 * MIB);
        spliced.stats().up().splice > before
    });
}

/// Every direction that stalls with a pipe holds it; past the budget the others copy.
fn more_stalled_sessions_than_pipes(via: Via) {
    let Via::Engine(engine) = via else { return };
    let _alone = alone();
    let (port, backend) = (Reserved::loopback(), backend_with_small_buffers());
    let target = backend.local_addr().expect("bound");
    // Small buffers behind the pipes, so that little is enough to fill them.
    let launcher =
        Launcher::forward(port.address(), target).option("--engine", engine).option("--send-buffer", "32KiB");
    let spliced = as_ordinary_user(launcher, &port, ordinary_user()).start();
    let budget = spliced.stats().number("/pipes/budget");
    let count = budget + budget / 8 + 40;
    assert!(count <= 2000, "a budget of {budget} pipes is more than an ordinary user may have");
    let len = READ + MIB;
    let pattern = Pattern::new(1);
    let mut streams: Vec<(TcpStream, TcpStream)> = Vec::new();
    for _ in 0..count {
        let client = connect(port.address());
        let server = accept(&backend);
        // A burst that is read, so that `auto` has gone over to pipes when the reader stops.
        thread::scope(|scope| {
            scope.spawn(|| pattern.send(&client, 0, READ).expect("send"));
            pattern.expect(&server, 0, READ);
        });
        client.set_nonblocking(true).expect("non-blocking");
        streams.push((client, server));
    }
    let mut sent = vec![READ; streams.len()];
    let enough = |spliced: &Spliced| {
        let stats = spliced.stats();
        assert!(stats.pipes_in_use() <= budget, "{} pipes of {budget}", stats.pipes_in_use());
        !via.splices() || stats.fallbacks("budget_exhausted") > 0
    };
    until("the budget is used up and counted", LONG, || {
        for ((client, _), sent) in streams.iter().zip(&mut sent) {
            *sent += pattern.send_now(client, *sent, len);
        }
        enough(&spliced)
    });
    assert!(!via.splices() || spliced.stats().pipes_in_use() > 0);
    // Everybody reads again: all bytes arrive, those in pipes and those that were copied.
    thread::scope(|scope| {
        for ((client, server), sent) in streams.iter().zip(sent) {
            let pattern = &pattern;
            scope.spawn(move || {
                client.set_nonblocking(false).expect("blocking");
                thread::scope(|both| {
                    both.spawn(|| pattern.expect_whole(server, READ, len));
                    pattern.send(client, sent, len).expect("send the rest");
                    client.shutdown(Shutdown::Write).expect("half-close");
                });
            });
        }
    });
    drop(streams);
    spliced.ended("done", count);
    let stats = spliced.stats();
    assert_eq!(stats.up().all(), count * len);
    assert!(via.splices() || stats.up().splice == 0);
    if via.splices() {
        spliced_again(&spliced, &port, &backend);
    }
    spliced.finish();
}

/// The variable that turns `holder` from nothing into a process that holds pipe pages.
const HOLDER: &str = "SPLICED_TEST_HOLDS_PIPES";

/// No test of its own: started as another user by the next one, it takes all pipe pages that user may have, says so
/// and holds them until its standard input ends.
#[test]
fn holder() {
    if std::env::var_os(HOLDER).is_none() {
        return;
    }
    let mut pipes: Vec<(OwnedFd, OwnedFd)> = Vec::new();
    loop {
        let pair = pipe().expect("descriptors for pipes");
        let grown = fcntl(&pair.0, FcntlArg::F_SETPIPE_SZ(1 << 20));
        let size = fcntl(&pair.0, FcntlArg::F_GETPIPE_SZ).expect("a size");
        pipes.push(pair);
        if grown.is_err() && size < 65_536 {
            break;
        }
    }
    println!("\nholding");
    std::io::stdin().read_to_end(&mut Vec::new()).expect("standard input ends");
}

/// A running [`holder`].
struct Holder {
    child: Child,
    /// Standard output, which must stay open for the test runner's last words.
    output: BufReader<ChildStdout>,
}

impl Holder {
    /// Gives the pages back.
    fn let_go(mut self) {
        drop(self.child.stdin.take());
        self.output.read_to_end(&mut Vec::new()).expect("its output ends");
        assert!(self.child.wait().expect("our own child").success(), "the holder failed");
    }
}

/// Starts [`holder`] as a user, or as the test's own where that is not root, and waits until that user has no pipe page left.
fn hold_all_pages(uid: u32) -> Holder {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let program = std::env::current_exe().expect("the test's own program");
    let mut command = if Uid::effective().is_root() {
        // It may lie where another user cannot read.
        let mut command = Command::new(copy_for(uid, &program, directory.path()));
        command.uid(uid).gid(uid);
        command
    } else {
        Command::new(program)
    };
    command.args(["--exact", "holder", "--nocapture"]).env(HOLDER, "1").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("the test's own program starts");
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    while line.trim_end() != "holding" {
        line.clear();
        assert!(output.read_line(&mut line).expect("text") > 0, "the holder ended");
    }
    Holder { child, output }
}

/// `fs.pipe-user-pages-soft` is reached by other processes of the user: new pipes have two slots.
#[test]
fn shrunken_pipes_are_not_used() {
    let _alone = alone();
    let uid = ordinary_user();
    let (port, backend) = (Reserved::loopback(), backend());
    let launcher = Launcher::forward(port.address(), backend.local_addr().expect("bound"))
        .option("--engine", "splice")
        .option("--pipe-size", "1MiB");
    let holder = hold_all_pages(uid);
    let spliced = as_ordinary_user(launcher, &port, uid).start();
    transfer(&port, &backend, 8 * MIB);
    let stats = spliced.stats_until("the session has ended", |stats| stats.open() == 0);
    assert_eq!((stats.up().splice, stats.up().copy), (0, 8 * MIB), "bytes by path without a usable pipe");
    assert!(stats.fallbacks("budget_exhausted") > 0, "the reason is counted: {}", stats.0);
    holder.let_go();
    spliced_again(&spliced, &port, &backend);
    spliced.finish();
}

/// pipe2 never succeeds: everything is copied, and counted as what it is.
#[test]
fn no_descriptors_for_pipes() {
    if !can_inject() {
        return;
    }
    let _alone = alone();
    for errno in ["EMFILE", "ENFILE"] {
        let (port, backend) = (Reserved::loopback(), backend());
        let spliced = Launcher::forward(port.address(), backend.local_addr().expect("bound"))
            .option("--engine", "splice")
            .inject(&[&format!("pipe2:error={errno}")])
            .start();
        transfer(&port, &backend, 8 * MIB);
        let stats = spliced.stats_until("the session has ended", |stats| stats.open() == 0);
        assert_eq!((stats.up().splice, stats.up().copy), (0, 8 * MIB), "{errno}: bytes by path");
        assert!(stats.fallbacks("no_descriptors") > 0, "{errno}: the reason is counted: {}", stats.0);
        spliced.finish();
    }
}

/// pipe2 fails for a while only.
#[test]
fn pipes_are_tried_again() {
    if !can_inject() {
        return;
    }
    let _alone = alone();
    let (port, backend) = (Reserved::loopback(), backend());
    let spliced = Launcher::forward(port.address(), backend.local_addr().expect("bound"))
        .option("--engine", "splice")
        .inject(&["pipe2:error=EMFILE:when=1..3"])
        .start();
    spliced_again(&spliced, &port, &backend);
    spliced.finish();
}
