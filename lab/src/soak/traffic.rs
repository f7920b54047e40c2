//! The sessions of a soak: every byte compared at both ends, ends of every kind.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use socket2::SockRef;
use spliced::ab::pattern::Pattern;

/// Longest single read and write.
const STEP: usize = 128 << 10;
/// A session that stands still for so long, in both directions, has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest stream, in bytes; sizes are spread evenly over their magnitudes, so that most are small.
const LONGEST: u32 = 26;
/// Failures that are kept word for word.
const KEPT: usize = 20;
/// A kind, the seed, and how many bytes each way.
const HEADER: usize = 32;

/// What a session does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Bytes both ways at the same time, each way with its own FIN.
    Whole = 0,
    /// The backend answers only after the client's FIN.
    AfterFin = 1,
    /// The client sends a part and resets.
    ClientResets = 2,
    /// The backend sends a part and resets.
    BackendResets = 3,
}

/// One session.
#[derive(Debug, Clone, Copy)]
struct Order {
    kind: Kind,
    seed: u64,
    up: u64,
    down: u64,
}

/// What came of all sessions so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Sessions that were whole at the client, and at the backend.
    pub(super) whole: [AtomicU64; 2],
    /// Sessions that were reset on purpose and seen so at the other end.
    pub(super) resets: AtomicU64,
    /// Sessions that came out wrong.
    pub(super) failed: AtomicU64,
    /// Bytes that arrived and were compared, both ways.
    pub(super) bytes: AtomicU64,
    failures: Mutex<Vec<String>>,
}

/// The load: both ends.
#[derive(Debug)]
pub(super) struct Traffic {
    /// What came of it.
    pub(super) tally: Tally,
    pattern: Pattern,
    stop: AtomicBool,
    /// Connections the backend serves now.
    serving: AtomicU64,
    /// Percent of sessions that end with a reset.
    resets: u32,
    seed: u64,
}

impl Tally {
    fn fail(&self, what: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() < KEPT {
            failures.push(what);
        }
    }

    /// The first failures, word for word.
    #[must_use]
    pub(super) fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Traffic {
    /// Nothing runs yet. `resets` percent of the sessions will end with a reset.
    #[must_use]
    pub(super) fn new(resets: u32, seed: u64) -> Self {
        let stop = AtomicBool::new(false);
        Self { tally: Tally::default(), pattern: Pattern::new(STEP), stop, serving: AtomicU64::new(0), resets, seed }
    }

    /// Asks both ends to stop; sessions that are open end first.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The backend: serves until [`Self::stop`] and the last session has ended.
    pub(super) fn serve(&self, listener: &TcpListener) {
        // On Linux accept(2) obeys SO_RCVTIMEO: it wakes up from time to time to see whether it is to stop.
        let _ = SockRef::from(listener).set_read_timeout(Some(Duration::from_millis(100)));
        thread::scope(|scope| {
            while !self.stopped() || self.serving.load(Ordering::Relaxed) > 0 {
                let Ok((stream, _)) = listener.accept() else { continue };
                self.serving.fetch_add(1, Ordering::Relaxed);
                scope.spawn(move || {
                    if let Err(what) = self.serve_one(&stream) {
                        self.tally.fail(format!("at the backend: {what}"));
                    }
                    self.serving.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
    }

    /// One client: session after session until [`Self::stop`].
    pub(super) fn call(&self, front: SocketAddr, client: u64) {
        let mut random = self.seed ^ client.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        while !self.stopped() {
            let order = self.order(&mut random);
            if let Err(what) = self.call_one(front, order) {
                self.tally.fail(format!("at the client, {order:?}: {what}"));
                // A forwarder that is gone is not asked a million times.
                thread::sleep(Duration::from_millis(10));
            }
        }
    }

    fn order(&self, random: &mut u64) -> Order {
        let mut below = |bound: u64| next(random) % bound;
        let kind = match below(100) {
            n if n < u64::from(self.resets) => [Kind::ClientResets, Kind::BackendResets][usize::from(n % 2 == 0)],
            n if n % 8 == 0 => Kind::AfterFin,
            _ => Kind::Whole,
        };
        let mut size = || {
            let magnitude = below(u64::from(LONGEST) + 1);
            below((1 << magnitude) + 1)
        };
        let (up, down) = (size(), size());
        Order { kind, seed: below(u64::MAX), up, down }
    }

    fn call_one(&self, front: SocketAddr, order: Order) -> Result<(), String> {
        let mut stream = TcpStream::connect(front).map_err(|e| format!("connect: {e}"))?;
        prepare(&stream).map_err(|e| format!("a socket option: {e}"))?;
        stream.write_all(&order.header()).map_err(|e| format!("the first bytes: {e}"))?;
        match order.kind {
            Kind::Whole | Kind::AfterFin => {
                self.both_ways(&stream, (order.seed, order.up), (!order.seed, order.down), true)?;
                self.tally.whole[0].fetch_add(1, Ordering::Relaxed);
            }
            Kind::ClientResets => {
                self.send(&stream, order.seed, order.up / 2, &AtomicU64::new(0)).map_err(|e| format!("send: {e}"))?;
                reset(stream);
            }
            Kind::BackendResets => {
                self.expect_reset(&stream, !order.seed, order.down)?;
            }
        }
        Ok(())
    }

    fn serve_one(&self, mut stream: &TcpStream) -> Result<(), String> {
        prepare(stream).map_err(|e| format!("a socket option: {e}"))?;
        let mut header = [0; HEADER];
        match stream.read_exact(&mut header) {
            Ok(()) => {}
            // A client that resets at once leaves nothing to read.
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(e) => return Err(format!("the first bytes: {e}")),
        }
        let order = Order::read(header)?;
        let fail = |what| format!("{order:?}: {what}");
        match order.kind {
            Kind::Whole => self.both_ways(stream, (!order.seed, order.down), (order.seed, order.up), true),
            Kind::AfterFin => self.both_ways(stream, (!order.seed, order.down), (order.seed, order.up), false),
            Kind::ClientResets => return self.expect_reset(stream, order.seed, order.up).map_err(fail),
            Kind::BackendResets => {
                self.send(stream, !order.seed, order.down / 2, &AtomicU64::new(0))
                    .map_err(|e| fail(format!("send: {e}")))?;
                let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
                return Ok(());
            }
        }
        .map_err(fail)?;
        self.tally.whole[1].fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Sends one stream and its FIN, receives the other to its FIN; `at_once`, or the sending after the receiving.
    fn both_ways(
        &self,
        stream: &TcpStream,
        out: (u64, u64),
        incoming: (u64, u64),
        at_once: bool,
    ) -> Result<(), String> {
        let moved = AtomicU64::new(0);
        let send = || {
            self.send(stream, out.0, out.1, &moved).map_err(|e| format!("send: {e}"))?;
            stream.shutdown(Shutdown::Write).map_err(|e| format!("FIN: {e}"))
        };
        let receive = || match self.receive(stream, incoming.0, &moved)? {
            (n, None) if n == incoming.1 => Ok(()),
            (n, None) => Err(format!("a FIN after {n} of {} bytes", incoming.1)),
            (n, Some(e)) => Err(format!("after {n} of {} bytes: {e}", incoming.1)),
        };
        if !at_once {
            receive()?;
            return send();
        }
        thread::scope(|scope| {
            let sent = scope.spawn(send);
            let received = receive();
            if received.is_err() {
                // Nobody reads any more: the other thread must not wait for it.
                let _ = stream.shutdown(Shutdown::Both);
            }
            received.and(sent.join().unwrap_or_else(|_| Err("sending panicked".to_owned())))
        })
    }

    fn expect_reset(&self, stream: &TcpStream, seed: u64, at_most: u64) -> Result<(), String> {
        match self.receive(stream, seed, &AtomicU64::new(0))? {
            (_, Some(e)) if e.kind() == ErrorKind::ConnectionReset => {
                self.tally.resets.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            (n, Some(e)) => Err(format!("a reset was to come, after {n} of {at_most} bytes came: {e}")),
            (n, None) => Err(format!("a reset was to come, after {n} of {at_most} bytes came a FIN")),
        }
    }

    /// `moved` goes up with what was sent.
    fn send(&self, mut stream: &TcpStream, seed: u64, len: u64, moved: &AtomicU64) -> io::Result<()> {
        let mut place = 0;
        while place < len {
            let step = usize::try_from(len - place).unwrap_or(STEP).min(STEP);
            stream.write_all(self.pattern.bytes(seed, place, step))?;
            place += step as u64;
            moved.store(place, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Compares what comes until the stream ends, with a FIN or an error. While the other direction has `moved`, nothing
    /// need come: on a slow host a long request takes longer than anybody's patience.
    fn receive(
        &self,
        mut stream: &TcpStream,
        seed: u64,
        moved: &AtomicU64,
    ) -> Result<(u64, Option<io::Error>), String> {
        let (mut place, mut buffer) = (0, vec![0; STEP]);
        let mut moved_before = moved.load(Ordering::Relaxed);
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return Ok((place, None)),
                Ok(n) => {
                    self.pattern.verify(seed, place, &buffer[..n]).map_err(|wrong| wrong.to_string())?;
                    place += n as u64;
                    self.tally.bytes.fetch_add(n as u64, Ordering::Relaxed);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    let moved_now = moved.load(Ordering::Relaxed);
                    if std::mem::replace(&mut moved_before, moved_now) == moved_now {
                        return Ok((place, Some(e)));
                    }
                }
                Err(e) => return Ok((place, Some(e))),
            }
        }
    }
}

impl Order {
    fn header(self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        for (place, value) in header.chunks_exact_mut(8).zip([self.kind as u64, self.seed, self.up, self.down]) {
            place.copy_from_slice(&value.to_le_bytes());
        }
        header
    }

    fn read(header: [u8; HEADER]) -> Result<Self, String> {
        let mut values =
            header.chunks_exact(8).map(|word| word.iter().rev().fold(0, |sum, b| sum << 8 | u64::from(*b)));
        let mut value = || values.next().unwrap_or(0);
        let kind = value();
        let kinds = [Kind::Whole, Kind::AfterFin, Kind::ClientResets, Kind::BackendResets];
        let kind =
            kinds.into_iter().find(|k| *k as u64 == kind).ok_or_else(|| format!("no kind of session: {kind}"))?;
        Ok(Self { kind, seed: value(), up: value(), down: value() })
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)
}

fn reset(stream: TcpStream) {
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}

/// splitmix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn an_order_reads_back() {
        let traffic = Traffic::new(20, 1);
        let mut random = 5;
        for _ in 0..200 {
            let order = traffic.order(&mut random);
            assert_eq!(format!("{:?}", Order::read(order.header()).unwrap()), format!("{order:?}"));
        }
        assert!(Order::read([0xff; HEADER]).is_err());
    }

    #[test]
    fn with_nothing_in_between_every_session_is_as_ordered() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let front = listener.local_addr().unwrap();
        let traffic = Traffic::new(20, 7);
        thread::scope(|scope| {
            scope.spawn(|| traffic.serve(&listener));
            scope.spawn(|| traffic.call(front, 0));
            let begun = std::time::Instant::now();
            while traffic.tally.whole[1].load(Ordering::Relaxed) < 30
                || traffic.tally.resets.load(Ordering::Relaxed) < 3
            {
                assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", traffic.tally);
                thread::sleep(Duration::from_millis(5));
            }
            traffic.stop();
        });
        assert_eq!(traffic.tally.failures(), [""; 0]);
    }

    #[test]
    fn a_stream_that_is_cut_is_a_failure() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let front = listener.local_addr().unwrap();
        let traffic = Traffic::new(0, 7);
        thread::scope(|scope| {
            // A backend that closes early.
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                stream.read_exact(&mut [0; HEADER]).unwrap();
                stream.write_all(traffic.pattern.bytes(!3, 0, 10)).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
            });
            let order = Order { kind: Kind::Whole, seed: 3, up: 0, down: 11 };
            let what = traffic.call_one(front, order).unwrap_err();
            assert!(what.contains("a FIN after 10 of 11 bytes"), "{what}");
        });
    }
}
