//! Asking name servers: over UDP, from a port and with an id the kernel and a keyed hash choose, and over TCP where an
//! answer is too long for one packet.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::files::Settings;
use super::message::{self, Answer, Kind};

/// Once one family has addresses, how much longer the answer for the other is waited for.
const GRACE: Duration = Duration::from_secs(1);

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) text: String,
    /// No server has said anything.
    pub(super) is_silent: bool,
}

/// A question on its way.
struct Open<'a> {
    name: &'a str,
    kind: Kind,
    extended: bool,
    said: Option<Answer>,
    failure: Failure,
    /// Something came that was no answer to it.
    is_garbled: bool,
}

/// A question a server has been sent.
struct Sent {
    question: usize,
    socket: UdpSocket,
    id: u16,
}

/// Asks each server in turn, as often as the settings say, until every question has an answer. Questions are asked
/// side by side.
pub(super) fn ask(settings: &Settings, questions: &[(&str, Kind)]) -> Vec<Result<Answer, Failure>> {
    let mut open: Vec<Open<'_>> = questions.iter().map(|(name, kind)| Open::new(name, *kind)).collect();
    let all = settings.servers.iter();
    for server in (0..settings.attempts).flat_map(|_| all.clone()) {
        round(*server, settings.timeout, &mut open);
        // What one family has is worth more than what the other may have.
        if open.iter().all(|question| question.said.is_some()) || open.iter().any(Open::has_addresses) {
            break;
        }
    }
    open.into_iter().map(|question| question.said.ok_or(question.failure)).collect()
}

impl<'a> Open<'a> {
    fn new(name: &'a str, kind: Kind) -> Self {
        let failure = Failure { text: "no name server is known".to_owned(), is_silent: true };
        Self { name, kind, extended: true, said: None, failure, is_garbled: false }
    }

    fn has_addresses(&self) -> bool {
        matches!(self.said, Some(Answer::Addresses(..)))
    }

    fn note(&mut self, server: SocketAddr, why: impl std::fmt::Display) {
        self.failure.text = format!("{server}: {why}");
    }

    /// Takes what a server has said; false when it has to be asked again.
    fn take(&mut self, server: SocketAddr, answer: Answer) -> bool {
        self.failure.is_silent = false;
        match answer {
            Answer::NoExtension if std::mem::take(&mut self.extended) => return false,
            Answer::NoExtension => self.note(server, "FORMERR"),
            Answer::Refused(code) => self.note(server, code),
            Answer::Truncated => self.note(server, "a truncated answer over TCP"),
            answer => self.said = Some(answer),
        }
        true
    }
}

/// Asks one server what is still open.
fn round(server: SocketAddr, timeout: Duration, open: &mut [Open<'_>]) {
    let mut until = Instant::now() + timeout;
    let mut sent = Vec::new();
    for (question, asked) in open.iter_mut().enumerate().filter(|(_, asked)| asked.said.is_none()) {
        match send(server, asked) {
            Ok((socket, id)) => sent.push(Sent { question, socket, id }),
            Err(e) => asked.note(server, e),
        }
    }
    while !sent.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        let ready = match readable(&sent, left) {
            Ok(ready) => ready,
            Err(e) => return sent.iter().for_each(|sent| open[sent.question].note(server, &e)),
        };
        // From the last on, so that the places of the others stay.
        for at in ready.into_iter().rev() {
            let asked = &mut open[sent[at].question];
            if let Some(again) = receive(server, &sent[at], asked, until) {
                let done = sent.swap_remove(at);
                match again.then(|| send(server, asked)) {
                    Some(Ok((socket, id))) => sent.push(Sent { question: done.question, socket, id }),
                    Some(Err(e)) => asked.note(server, e),
                    None => {}
                }
            }
        }
        if open.iter().any(Open::has_addresses) {
            until = until.min(Instant::now() + GRACE);
        }
        // Also while rubbish keeps coming.
        if left.is_zero() {
            break;
        }
    }
    for sent in sent {
        let asked = &mut open[sent.question];
        if asked.failure.is_silent && !asked.is_garbled {
            asked.note(server, format!("no answer within {timeout:?}"));
        }
    }
}

fn send(server: SocketAddr, asked: &Open<'_>) -> io::Result<(UdpSocket, u16)> {
    let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "the name does not fit into a question");
    let id = random_id();
    let bytes = message::question(id, asked.name, asked.kind, asked.extended).ok_or_else(too_long)?;
    let any = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // A socket for each question: its port is as much a part of what an answer must match as the id.
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    // From here on the kernel takes datagrams of that server alone, and says when nobody is there.
    socket.connect(server)?;
    socket.set_nonblocking(true)?;
    socket.send(&bytes)?;
    Ok((socket, id))
}

/// Places of those that have something to read.
fn readable(sent: &[Sent], left: Duration) -> io::Result<Vec<usize>> {
    let mut polled: Vec<_> = sent.iter().map(|sent| PollFd::new(sent.socket.as_fd(), PollFlags::POLLIN)).collect();
    // Rounded up, so that the last look is not before the time.
    let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    match poll(&mut polled, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(e) => return Err(e.into()),
    }
    let is_ready = |polled: &PollFd<'_>| polled.any() == Some(true);
    Ok(polled.iter().enumerate().filter(|(_, polled)| is_ready(polled)).map(|(at, _)| at).collect())
}

/// Reads one datagram. `None` waits for another, otherwise the question is done with this server, or is to be sent again.
fn receive(server: SocketAddr, sent: &Sent, asked: &mut Open<'_>, until: Instant) -> Option<bool> {
    let mut buffer = [0; 4096];
    let read = match sent.socket.recv(&mut buffer) {
        Ok(read) => read,
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return None,
        Err(e) => {
            asked.note(server, e);
            return Some(false);
        }
    };
    let answer = match message::answer(&buffer[..read], sent.id, asked.name, asked.kind) {
        Ok(Answer::Truncated) => by_tcp(server, asked, until),
        Ok(answer) => Ok(answer),
        // Somebody may be guessing: the answer itself may still come.
        Err(why) => {
            asked.note(server, format!("what it sends cannot be used: {why}"));
            asked.is_garbled = true;
            return None;
        }
    };
    match answer {
        Ok(answer) => Some(!asked.take(server, answer)),
        Err(e) => {
            asked.note(server, format!("over TCP, for an answer longer than a packet: {e}"));
            asked.failure.is_silent = false;
            Some(false)
        }
    }
}

fn by_tcp(server: SocketAddr, asked: &Open<'_>, until: Instant) -> io::Result<Answer> {
    let left = || {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::Error::from(io::ErrorKind::TimedOut)) } else { Ok(left) }
    };
    let id = random_id();
    let bytes = message::question(id, asked.name, asked.kind, asked.extended).unwrap_or_default();
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut stream = TcpStream::connect_timeout(&server, left()?)?;
    stream.set_write_timeout(Some(left()?))?;
    // In one segment: some servers read no further (RFC 7766, 8).
    stream.write_all(&[&length.to_be_bytes(), bytes.as_slice()].concat())?;
    let mut read = |buffer: &mut [u8]| {
        let mut filled = 0;
        while filled < buffer.len() {
            stream.set_read_timeout(Some(left()?))?;
            match stream.read(&mut buffer[filled..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => filled += read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    };
    let mut length = [0; 2];
    read(&mut length)?;
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
    read(&mut bytes)?;
    message::answer(&bytes, id, asked.name, asked.kind).map_err(io::Error::other)
}

/// A number nobody can guess: the hash's key is random.
#[expect(clippy::cast_possible_truncation, reason = "any 16 bits of it will do")]
fn random_id() -> u16 {
    RandomState::new().hash_one(Instant::now()) as u16
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn settings(servers: Vec<SocketAddr>, timeout_ms: u64, attempts: u32) -> Settings {
        Settings { servers, timeout: Duration::from_millis(timeout_ms), attempts, ..Settings::default() }
    }

    fn server() -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    #[test]
    fn a_server_that_is_silent_costs_its_time_and_the_next_is_asked() {
        let ((_silent, first), (second, address)) = (server(), server());
        let answers = thread::spawn(move || {
            let mut buffer = [0; 512];
            let (read, client) = second.recv_from(&mut buffer).unwrap();
            // The question itself as an answer without a record: what is not asked for is ignored before that.
            second.send_to(b"garbage", client).unwrap();
            buffer[2] |= 0x80;
            second.send_to(&buffer[..read], client).unwrap();
        });
        let begun = Instant::now();
        let said = ask(&settings(vec![first, address], 300, 1), &[("a.example", Kind::V4)]);
        assert_eq!(said, [Ok(Answer::Empty)]);
        assert!(begun.elapsed() >= Duration::from_millis(300));
        answers.join().unwrap();
    }

    #[test]
    fn nobody_there_is_said_at_once() {
        let (gone, address) = server();
        drop(gone);
        let begun = Instant::now();
        let said = ask(&settings(vec![address], 10_000, 2), &[("a.example", Kind::V4), ("a.example", Kind::V6)]);
        assert!(
            said.iter().all(|said| said.as_ref().is_err_and(|e| e.is_silent && e.text.contains("refused"))),
            "{said:?}"
        );
        assert!(begun.elapsed() < Duration::from_secs(10));
        assert!(ask(&Settings::default(), &[("a.example", Kind::V4)])[0].is_err());
    }

    #[test]
    fn a_truncated_answer_is_asked_for_over_tcp() {
        // The port of the one may be somebody's for the other.
        let both = || {
            let (udp, address) = server();
            std::net::TcpListener::bind(address).ok().map(|tcp| (udp, tcp, address))
        };
        let (udp, tcp, address) = (0..100).find_map(|_| both()).unwrap();
        let answers = thread::spawn(move || {
            let mut buffer = [0; 512];
            let (read, client) = udp.recv_from(&mut buffer).unwrap();
            buffer[2] |= 0x82;
            udp.send_to(&buffer[..read], client).unwrap();
            let (mut stream, _) = tcp.accept().unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut question).unwrap();
            // NXDOMAIN.
            (question[2], question[3]) = (question[2] | 0x80, question[3] | 3);
            // In pieces.
            for byte in length.iter().chain(&question) {
                stream.write_all(&[*byte]).unwrap();
            }
        });
        let said = ask(&settings(vec![address], 5_000, 1), &[("a.example", Kind::Service)]);
        assert_eq!(said, [Ok(Answer::NoName)]);
        answers.join().unwrap();
    }

    #[test]
    fn ids_are_no_series() {
        let ids: std::collections::HashSet<u16> = (0..100).map(|_| random_id()).collect();
        assert!(ids.len() > 90, "{ids:?}");
    }
}
