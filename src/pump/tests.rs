//! A lane between real sockets, fill by fill.

#![cfg(all(target_os = "linux", not(spliced_portable)))]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;
use crate::plan::Engine;
use crate::stats::Bytes;
use crate::sys::pipes::PipeBudget;

/// A direction with a peer at either end.
struct Rig {
    pump: Pump,
    pumps: Pumps,
    source: Socket,
    target: Socket,
    ready: [Ready; 2],
    bytes: Bytes,
    stats: ForwardStats,
    sender: TcpStream,
    receiver: TcpStream,
}

fn connection() -> (TcpStream, Socket) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let own = Socket::from(listener.accept().unwrap().0);
    peer.set_nodelay(true).unwrap();
    own.set_nonblocking(true).unwrap();
    own.set_out_of_band_inline(true).unwrap();
    (peer, own)
}

impl Rig {
    fn new(engine: Engine) -> Self {
        let ((sender, source), (receiver, target)) = (connection(), connection());
        receiver.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let pumps = Pumps::new(65536, vec![PipeBudget::detect(None, 1).pool()], Arc::new(AtomicBool::new(false)));
        let open = Ready { readable: true, writable: true, ..Ready::default() };
        Self {
            pump: Pump::new(Choice::new(engine)),
            pumps,
            source,
            target,
            ready: [open; 2],
            bytes: Bytes::default(),
            stats: ForwardStats::default(),
            sender,
            receiver,
        }
    }

    fn lane(&mut self) -> Lane<'_> {
        let [source_ready, target_ready] = &mut self.ready;
        Lane {
            pump: &mut self.pump,
            pumps: &mut self.pumps,
            source: &self.source,
            target: &self.target,
            source_ready,
            target_ready,
            bytes: &mut self.bytes.client_to_backend,
            stats: &self.stats,
            direction: Direction::Up,
            copy_buffer: 65536,
            pool: 0,
            last: false,
            allowance: usize::MAX,
            calls: 0,
        }
    }

    /// Sends and moves that many bytes within the present turn.
    fn pass(&mut self, bytes: &[u8]) {
        self.sender.write_all(bytes).unwrap();
        self.wait_for(PollFlags::POLLIN);
        self.ready[0].readable = true;
        let mut lane = self.lane();
        assert_eq!(lane.fill().unwrap(), bytes.len());
        assert_eq!(lane.drain().unwrap(), bytes.len());
    }

    fn park(&mut self) {
        self.lane().park();
    }

    fn wait_for(&self, what: PollFlags) {
        let until = Instant::now() + Duration::from_secs(20);
        let seen = || {
            let mut fds = [PollFd::new(self.source.as_fd(), what)];
            poll(&mut fds, PollTimeout::from(100u16)).unwrap();
            fds[0].revents().unwrap().contains(what)
        };
        while !seen() {
            assert!(Instant::now() < until, "not within 20 s: {what:?}");
        }
    }

    fn path(&self) -> (bool, bool) {
        let PathBytes { splice, copy } = self.bytes.client_to_backend;
        (splice > 0, copy > 0)
    }
}

/// A pipe that is only dropped would count as in use for ever, until the pool gives no more.
#[test]
fn a_pipe_goes_back_when_auto_turns_to_copy_within_a_turn() {
    let mut rig = Rig::new(Engine::Auto);
    while !rig.pump.choice.wants_splice() {
        rig.pass(&[1; 40_000]);
    }
    while rig.pump.choice.wants_splice() {
        rig.pass(b"small");
    }
    rig.pass(b"copied in the same turn");
    assert_eq!(rig.path(), (true, true));
    rig.park();
    assert_eq!(rig.pumps.pipes()[0], 0, "no pipe is in use once the direction holds nothing");
}

/// Another worker may have found out in the middle of this one's turn.
#[test]
fn a_pipe_goes_back_when_splice_is_turned_off_within_a_turn() {
    let mut rig = Rig::new(Engine::Splice);
    rig.pass(b"spliced");
    rig.pumps.splice_off.store(true, Ordering::Relaxed);
    rig.pass(b"copied");
    assert_eq!(rig.path(), (true, true));
    rig.park();
    assert_eq!(rig.pumps.pipes()[0], 0);
}

/// splice answers 0 in front of an urgent byte once the peer has ended its half: no byte may be lost to that.
#[test]
fn an_end_behind_an_urgent_byte_overtakes_nothing() {
    for urgent in [true, false] {
        let mut rig = Rig::new(Engine::Splice);
        rig.sender.write_all(b"abc").unwrap();
        socket2::SockRef::from(&rig.sender).send_out_of_band(b"!").unwrap();
        rig.sender.write_all(b"def").unwrap();
        rig.sender.shutdown(Shutdown::Write).unwrap();
        // With our own half ended too, poll(2) tells when the other end's FIN is there.
        rig.source.shutdown(Shutdown::Write).unwrap();
        rig.wait_for(PollFlags::POLLIN | PollFlags::POLLPRI | PollFlags::POLLHUP);
        // Also when the poller has not told yet: the byte may come after its look.
        rig.ready[0].urgent = urgent;
        rig.ready[0].read_closed = true;
        let mut flow = crate::flow::Flow::default();
        let progress = flow.advance(&mut rig.lane(), usize::MAX);
        assert!(matches!(progress, crate::flow::Progress::Done), "{progress:?}");
        let mut got = Vec::new();
        rig.receiver.read_to_end(&mut got).unwrap();
        assert_eq!(String::from_utf8_lossy(&got), "abc!def", "urgent known: {urgent}");
        assert_eq!(rig.pumps.pipes()[0], 0);
    }
}
