//! One check of one address: connect, and where it is asked for say something and wait for the answer.

use std::io::{self, ErrorKind, Read, Write};
use std::net::IpAddr;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use crate::netns;
use crate::plan::{Check, Egress};
use crate::proxy;
use crate::sys;
use crate::upstream::Endpoint;

/// An answer may be so long until it has what is expected.
const MOST_ANSWER: usize = 64 * 1024;

/// A check under way.
#[derive(Debug)]
pub(super) struct Probe {
    stream: TcpStream,
    step: Step,
    /// What is said: a PROXY header where targets get one, then what the check says.
    says: Vec<u8>,
}

#[derive(Debug)]
enum Step {
    Connecting,
    /// So many bytes are said.
    Saying(usize),
    /// What has come.
    Hearing(Vec<u8>),
}

/// Whether an error is this host's lack of something rather than the target's.
pub(super) fn is_ours(error: &io::Error) -> bool {
    let ours = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|number| ours.contains(&number))
}

impl Probe {
    /// Begins to connect.
    ///
    /// # Errors
    /// What socket(2), bind(2), connect(2) and epoll_ctl(2) report.
    pub(super) fn begin(
        endpoint: &Endpoint,
        check: &Check,
        (sources, egress): (&[IpAddr], &Egress),
        registry: &Registry,
        token: Token,
    ) -> io::Result<Self> {
        let address = endpoint.place().with_port(check.port.unwrap_or(endpoint.ports().first));
        let socket = netns::stream(egress.netns.as_deref(), address, false)?;
        if let Some(ip) = address.ip() {
            sys::set_egress(&socket, &Egress { transparent: false, ..egress.clone() }, ip.is_ipv6())?;
        }
        let is_ipv4 = address.ip().map(|ip| ip.is_ipv4());
        if let Some(source) = sources.iter().find(|source| Some(source.is_ipv4()) == is_ipv4) {
            sys::bind_source(&socket, *source)?;
        }
        match socket.connect(&address.to_sock_addr()?) {
            // Its queue is full: it listens, and that is all a connect without more would say.
            Err(e) if address.is_unix() && e.kind() == ErrorKind::WouldBlock => {
                return Err(io::Error::new(e.kind(), "its queue is full"));
            }
            Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => return Err(e),
            _ => {}
        }
        let mut stream = TcpStream::from_std(socket.into());
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        let header = egress.send_proxy.map(proxy::local).unwrap_or_default();
        let says = [header, check.send.as_bytes()].concat();
        Ok(Self { stream, step: Step::Connecting, says })
    }

    /// What has not happened, should its time be over now.
    pub(super) fn waits_for(&self) -> &'static str {
        match self.step {
            Step::Connecting => "no connection",
            Step::Saying(_) => "not all sent",
            Step::Hearing(_) => "not the expected answer",
        }
    }

    /// Goes on as far as the socket allows; what it came to, once it is over.
    pub(super) fn advance(&mut self, check: &Check) -> Option<Result<(), String>> {
        match self.go_on(check) {
            Ok(()) => Some(Ok(())),
            Err(e) if e.kind() == ErrorKind::WouldBlock => None,
            Err(e) => Some(Err(e.to_string())),
        }
    }

    fn go_on(&mut self, check: &Check) -> io::Result<()> {
        let mut chunk = [0; 4096];
        loop {
            match &mut self.step {
                Step::Connecting => {
                    if let Some(error) = self.stream.take_error()? {
                        return Err(error);
                    }
                    match self.stream.peer_addr() {
                        Err(e) if e.kind() == ErrorKind::NotConnected => return Err(ErrorKind::WouldBlock.into()),
                        result => _ = result?,
                    }
                    self.step = Step::Saying(0);
                }
                Step::Saying(said) if *said < self.says.len() => match self.stream.write(&self.says[*said..]) {
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    result => *said += result?,
                },
                Step::Saying(_) if check.expect.is_empty() => return Ok(()),
                Step::Saying(_) => self.step = Step::Hearing(Vec::new()),
                Step::Hearing(heard) => {
                    let n = match self.stream.read(&mut chunk) {
                        Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                        result => result?,
                    };
                    // What was looked through before can only hold the beginning of it.
                    let seen = heard.len().saturating_sub(check.expect.len());
                    heard.extend_from_slice(&chunk[..n]);
                    if contains(&heard[seen..], check.expect.as_bytes()) {
                        return Ok(());
                    }
                    if n == 0 || heard.len() > MOST_ANSWER {
                        let begin: String = String::from_utf8_lossy(heard).chars().take(40).collect();
                        return Err(io::Error::other(format!("the answer was {begin:?}, without {:?}", check.expect)));
                    }
                }
            }
        }
    }
}

/// Whether an answer has what is expected. Nothing is in everything: a reload may take back what an answer is asked for
/// while that is on its way.
pub(super) fn contains(heard: &[u8], expected: &[u8]) -> bool {
    expected.is_empty() || heard.windows(expected.len()).any(|window| window == expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_found_wherever_it_is() {
        assert!(contains(b"HTTP/1.1 200 OK", b"200") && contains(b"+PONG", b"+PONG"));
        assert!(!contains(b"+PON", b"+PONG") && !contains(b"", b"x"));
        assert!(contains(b"+PONG", b"") && contains(b"", b""));
    }
}
