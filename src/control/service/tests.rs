use std::os::unix::net::UnixStream as Client;

use mio::{Events, Poll};

use super::*;

const FIRST: usize = 7;

/// Echoes a request that ends with a line feed, and says how much of it there was.
fn echo(request: &[u8]) -> Answer {
    if request.ends_with(b"\n") { Answer::Reply(request.to_vec()) } else { Answer::More }
}

/// A request whose answer comes later.
fn later(request: &[u8]) -> Answer {
    if request.ends_with(b"\n") { Answer::Later } else { Answer::More }
}

#[test]
fn an_answer_may_come_later_and_all_who_wait_get_it() {
    let mut bench = Bench { answer: later, ..Bench::new() };
    let mut clients = [bench.connect(), bench.connect()];
    clients.iter_mut().for_each(|client| client.write_all(b"x\n").unwrap());
    let mut third = bench.connect();
    third.write_all(b"not complete").unwrap();
    bench.turn();
    assert_eq!(bench.open(), 3);
    // Longer than others may take.
    bench.tick(Instant::now() + TIME_LIMIT + Duration::from_secs(1));
    assert_eq!(bench.open(), 2);
    bench.service.resolve(b"done\n", bench.poll.registry());
    for mut client in clients {
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "done\n");
    }
    bench.turn();
    assert_eq!(bench.open(), 0);
}

struct Bench {
    poll: Poll,
    service: Service<UnixListener>,
    path: std::path::PathBuf,
    answer: fn(&[u8]) -> Answer,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let poll = Poll::new().unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        let service = Service::new("test", listener, poll.registry(), FIRST).unwrap();
        Self { poll, service, path, answer: echo, _dir: dir }
    }

    fn connect(&self) -> Client {
        let client = Client::connect(&self.path).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        client
    }

    /// Handles the events that are there, and waits for nothing.
    fn turn(&mut self) {
        let mut events = Events::with_capacity(256);
        let answer = self.answer;
        loop {
            self.poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
            if events.is_empty() {
                return;
            }
            for event in &events {
                assert!(self.service.owns(event.token()));
                self.service.ready(event.token(), self.poll.registry(), Instant::now(), &mut |r| answer(r));
            }
        }
    }

    fn tick(&mut self, now: Instant) {
        let answer = self.answer;
        self.service.tick(self.poll.registry(), now, &mut |r| answer(r));
    }

    fn open(&self) -> usize {
        self.service.connections.len()
    }
}

fn read_all(client: &mut Client) -> Vec<u8> {
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_request_in_pieces_is_answered_and_the_connection_closed() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    for piece in [&b"he"[..], b"llo", b"\n"] {
        client.write_all(piece).unwrap();
        bench.turn();
    }
    assert_eq!(read_all(&mut client), b"hello\n");
    drop(client);
    bench.turn();
    assert_eq!(bench.open(), 0);
    assert_eq!(bench.service.next_tick(), None, "nothing to wake up for");
}

#[test]
fn a_slow_client_is_cut_off() {
    let mut bench = Bench::new();
    let mut slow = bench.connect();
    slow.write_all(b"hel").unwrap();
    let start = Instant::now();
    bench.turn();
    let due = bench.service.next_tick().unwrap();
    assert!(due >= start + TIME_LIMIT && due <= Instant::now() + TIME_LIMIT);
    // A byte now and then does not extend its time.
    slow.write_all(b"l").unwrap();
    bench.turn();
    assert_eq!(bench.service.next_tick(), Some(due));
    bench.tick(due - Duration::from_millis(1));
    assert_eq!(bench.open(), 1);
    bench.tick(due);
    assert_eq!(bench.open(), 0);
    assert_eq!(read_all(&mut slow), b"");
}

#[test]
fn a_client_that_does_not_read_its_answer_is_cut_off() {
    let mut bench = Bench::new();
    bench.answer = |_| Answer::Reply(vec![b'x'; 8 << 20]);
    let mut client = bench.connect();
    client.write_all(b"\n").unwrap();
    bench.turn();
    assert_eq!(bench.open(), 1);
    bench.tick(Instant::now() + TIME_LIMIT);
    assert_eq!(bench.open(), 0);
    assert!(read_all(&mut client).len() < 8 << 20);
}

#[test]
fn a_long_answer_arrives_whole_though_the_client_sends_on() {
    let mut bench = Bench::new();
    bench.answer = |request| if request.is_empty() { Answer::More } else { Answer::Reply(vec![b'x'; 4 << 20]) };
    let mut client = bench.connect();
    client.write_all(&[b'a'; 10_000]).unwrap();
    client.set_nonblocking(true).unwrap();
    assert_eq!(read_while(&mut bench, &mut client, 0), 4 << 20);
}

#[test]
fn an_endless_request_is_cut_off() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    client.write_all(&[b'a'; MAX_REQUEST]).unwrap();
    bench.turn();
    assert_eq!(bench.open(), 0);
    assert_eq!(read_all(&mut client), b"");
}

#[test]
fn when_full_who_does_not_read_the_answer_makes_room() {
    let mut bench = Bench::new();
    bench.answer = |request| if request.is_empty() { Answer::More } else { Answer::Reply(vec![b'x'; 1 << 20]) };
    let asks = |bench: &mut Bench| {
        let mut client = bench.connect();
        client.write_all(b"\n").unwrap();
        bench.turn();
        client
    };
    // The first one is the oldest, but it has read some a moment ago.
    let mut slow = asks(&mut bench);
    let mut stuck: Vec<_> = (1..MAX_CONNECTIONS).map(|_| asks(&mut bench)).collect();
    slow.set_nonblocking(true).unwrap();
    let (mut chunk, mut read) = (vec![0; 1 << 16], 0);
    while let Ok(n) = slow.read(&mut chunk) {
        read += n;
    }
    bench.turn();
    assert_eq!(bench.open(), MAX_CONNECTIONS);
    let mut honest = Vec::new();
    for _ in 0..3 {
        let mut client = asks(&mut bench);
        client.set_nonblocking(true).unwrap();
        honest.push(read_while(&mut bench, &mut client, 0));
    }
    assert_eq!(honest, [1 << 20; 3]);
    assert_eq!(read_while(&mut bench, &mut slow, read), 1 << 20, "who reads is not given up");
    assert!(read_all(&mut stuck[0]).len() < 1 << 20, "the first of the others went");
    drop(stuck);
    bench.turn();
    assert_eq!(bench.open(), 0);
}

#[test]
fn a_long_answer_that_is_read_slowly_outlives_idle_newcomers() {
    let mut bench = Bench::new();
    bench.answer = |request| if request.is_empty() { Answer::More } else { Answer::Reply(vec![b'x'; 4 << 20]) };
    let mut slow = bench.connect();
    slow.write_all(b"\n").unwrap();
    bench.turn();
    let (mut idle, mut read, mut chunk) = (Vec::new(), 0, [0; 1 << 14]);
    loop {
        match slow.read(&mut chunk).unwrap() {
            0 => break,
            n => read += n,
        }
        // Far more than there are places, and each of them newer than what it has read last.
        idle.extend((0..ACCEPT_BATCH / 2).map(|_| bench.connect()));
        bench.turn();
        idle.drain(..idle.len().saturating_sub(2 * MAX_CONNECTIONS));
    }
    assert_eq!(read, 4 << 20);
    assert_eq!(bench.open(), MAX_CONNECTIONS, "the newcomers make room for each other");
}

/// Reads to the end while the service turns; how much there was.
fn read_while(bench: &mut Bench, client: &mut Client, mut received: usize) -> usize {
    let mut chunk = vec![0; 1 << 16];
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        assert!(Instant::now() < deadline, "only {received} bytes arrived");
        bench.turn();
        match client.read(&mut chunk) {
            Ok(0) => return received,
            Ok(n) => received += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => panic!("after {received} bytes: {error}"),
        }
    }
}

#[test]
fn when_full_the_oldest_without_a_request_makes_room() {
    let mut bench = Bench::new();
    let mut held: Vec<_> = (0..MAX_CONNECTIONS)
        .map(|_| {
            let client = bench.connect();
            bench.turn();
            client
        })
        .collect();
    assert_eq!(bench.open(), MAX_CONNECTIONS);
    let mut late = bench.connect();
    late.write_all(b"late\n").unwrap();
    bench.turn();
    assert_eq!(read_all(&mut late), b"late\n");
    assert_eq!(read_all(&mut held.remove(0)), b"", "the oldest one went");
    held[0].write_all(b"next\n").unwrap();
    bench.turn();
    assert_eq!(read_all(&mut held[0]), b"next\n", "and nobody else");
    drop((held, late));
    bench.turn();
    assert_eq!(bench.open(), 0);
}

#[test]
fn whose_answer_is_still_to_come_is_not_given_up() {
    let mut bench = Bench::new();
    bench.answer = |request| if request.is_empty() { Answer::More } else { Answer::Later };
    let mut held: Vec<_> = (0..MAX_CONNECTIONS)
        .map(|_| {
            let mut client = bench.connect();
            client.write_all(b"\n").unwrap();
            bench.turn();
            client
        })
        .collect();
    let mut refused = bench.connect();
    bench.turn();
    assert_eq!(read_all(&mut refused), b"");
    bench.service.resolve(b"here", bench.poll.registry());
    bench.turn();
    for client in &mut held {
        assert_eq!(read_all(client), b"here");
    }
    assert_eq!(bench.open(), 0);
}

#[test]
fn a_storm_of_connections_is_taken_in_batches() {
    let mut bench = Bench::new();
    let clients: Vec<_> = (0..ACCEPT_BATCH + 10).map(|_| bench.connect()).collect();
    bench.turn();
    let again = bench.service.accept_again.expect("the batch was full, so there is a next one");
    drop(clients);
    bench.turn();
    let mut client = bench.connect();
    client.write_all(b"late\n").unwrap();
    bench.tick(again);
    bench.turn();
    assert_eq!(read_all(&mut client), b"late\n");
    assert_eq!(bench.service.accept_again, None);
}
