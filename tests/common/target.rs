//! Targets that are processes of their own, so that they can be killed, stopped and started again; and clients that ask
//! them.
//!
//! A target answers every request of four bytes with its number and the same four bytes. It is the test's own program,
//! started again: the `main.rs` of a program that uses it has
//! `#[test] #[ignore] fn target() { common::target::serve(); }`.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use socket2::{Domain, Socket, Type};

use super::deadline::{LONG, eventually};
use super::peer::{Reserved, connect, with_deadlines};

/// Number and port of the target to be, in its environment.
const ROLE: &str = "SPLICED_TEST_TARGET";

/// The number of a target.
pub(crate) type Number = u8;

/// A target on 127.0.0.1 that is running or not.
#[derive(Debug)]
pub(crate) struct Target {
    number: Number,
    port: Reserved,
    child: Option<Child>,
}

/// Why a request was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The connection was closed or reset before the answer was whole.
    Cut,
    /// Nothing came in time.
    Late,
}

impl Target {
    /// One that does not run: its port refuses.
    pub(crate) fn down(number: Number) -> Self {
        Self { number, port: Reserved::loopback(), child: None }
    }

    /// One that runs.
    pub(crate) fn up(number: Number) -> Self {
        let mut target = Self::down(number);
        target.start();
        target
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Starts it and waits until it answers.
    pub(crate) fn start(&mut self) {
        let program = std::env::current_exe().expect("the test's own program");
        let child = Command::new(program)
            .args(["--exact", "target", "--ignored", "--nocapture"])
            .env(ROLE, format!("{} {}", self.number, self.address().port()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("the test's own program runs");
        self.child = Some(child);
        eventually("the target answers", LONG, || {
            let stream = TcpStream::connect(self.address()).map_err(|e| e.to_string())?;
            request(&with_deadlines(stream), LONG).map(|_| ()).map_err(|lost| format!("{lost:?}"))
        });
    }

    /// Ends it at once; its connections are reset.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Stops it, or lets it go on.
    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process number"));
        kill(pid, signal).expect("our own child");
        if signal == Signal::SIGSTOP {
            // It may still answer until the signal has reached all of its threads.
            let stopped = WaitStatus::Stopped(pid, signal);
            assert_eq!(waitpid(pid, Some(WaitPidFlag::WUNTRACED)), Ok(stopped));
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The life of a target: it ends when it is killed, or when the test has gone.
pub(crate) fn serve() {
    let role = std::env::var(ROLE).expect("started by a test as its target");
    let (number, port) = role.split_once(' ').expect("number and port");
    let (number, port): (Number, u16) = (number.parse().expect("a number"), port.parse().expect("a port"));
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("SO_REUSEADDR");
    socket.set_reuse_port(true).expect("SO_REUSEPORT");
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()).expect("the reserved port");
    socket.listen(4096).expect("listen");
    let parent = std::os::unix::process::parent_id();
    thread::spawn(move || {
        while std::os::unix::process::parent_id() == parent {
            thread::park_timeout(Duration::from_millis(200));
        }
        std::process::exit(0);
    });
    for stream in TcpListener::from(socket).incoming().flatten() {
        thread::spawn(move || answer(number, stream));
    }
}

fn answer(number: Number, mut stream: TcpStream) {
    let mut request = [0; 4];
    while stream.read_exact(&mut request).is_ok() {
        let [a, b, c, d] = request;
        if stream.write_all(&[number, a, b, c, d]).is_err() {
            return;
        }
    }
}

/// One request over a connection that stands, and who answered it.
pub(crate) fn request(mut stream: &TcpStream, within: Duration) -> Result<Number, Lost> {
    let lost = |e: std::io::Error| match e.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Lost::Late,
        _ => Lost::Cut,
    };
    stream.set_read_timeout(Some(within)).expect("a read deadline");
    stream.write_all(b"ping").map_err(lost)?;
    let mut reply = [0; 5];
    stream.read_exact(&mut reply).map_err(lost)?;
    assert_eq!(&reply[1..], b"ping", "the answer belongs to the request");
    Ok(reply[0])
}

/// One request over a connection of its own.
pub(crate) fn ask(address: SocketAddr) -> Result<Number, Lost> {
    let Ok(stream) = TcpStream::connect_timeout(&address, LONG) else { return Err(Lost::Cut) };
    request(&with_deadlines(stream), LONG)
}

/// A connection that has been answered and stays open, and by whom.
pub(crate) fn hold(address: SocketAddr) -> (TcpStream, Number) {
    let stream = connect(address);
    let number = request(&stream, LONG).unwrap_or_else(|lost| panic!("{lost:?}"));
    (stream, number)
}

/// How often each of the targets 0 to `N` is among these.
pub(crate) fn shares<const N: usize>(numbers: impl IntoIterator<Item = Number>) -> [usize; N] {
    let mut shares = [0; N];
    numbers.into_iter().for_each(|number| shares[usize::from(number)] += 1);
    shares
}

/// What clients that ask again and again have seen, in the order of time.
#[derive(Debug, Default)]
pub(crate) struct Seen(Mutex<Vec<(Instant, Result<Number, Lost>)>>);

impl Seen {
    /// Answers and losses since `from`.
    pub(crate) fn since(&self, from: Instant) -> Vec<Result<Number, Lost>> {
        self.0.lock().expect("no panic while held").iter().filter(|seen| seen.0 >= from).map(|seen| seen.1).collect()
    }

    /// Requests that were not answered.
    pub(crate) fn lost(&self) -> usize {
        self.0.lock().expect("no panic while held").iter().filter(|seen| seen.1.is_err()).count()
    }

    /// Waits until a target has answered so many requests from now on.
    pub(crate) fn answers(&self, number: Number, count: usize) {
        let from = Instant::now();
        eventually(&format!("target {number} answers {count} requests"), LONG, || {
            let got = self.since(from).into_iter().filter(|seen| *seen == Ok(number)).count();
            if got >= count { Ok(()) } else { Err(format!("{got} so far")) }
        });
    }
}

/// Runs `body` while so many clients ask again and again, each request over a connection of its own; each waits no
/// longer than `within` for an answer.
pub(crate) fn under_load<T>(address: SocketAddr, clients: usize, within: Duration, body: impl FnOnce(&Seen) -> T) -> T {
    let (seen, stop) = (Seen::default(), AtomicBool::new(false));
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let answer = match TcpStream::connect_timeout(&address, LONG) {
                        Ok(stream) => request(&with_deadlines(stream), within),
                        Err(_) => Err(Lost::Cut),
                    };
                    seen.0.lock().expect("no panic while held").push((begun, answer));
                    // Bounded, and the machine is shared with the targets.
                    thread::park_timeout(Duration::from_millis(2));
                }
            });
        }
        let _stop = Stop(&stop);
        body(&seen)
    })
}
