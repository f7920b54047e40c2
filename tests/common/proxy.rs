//! Headers of the PROXY protocol, and a forward that takes or sends them.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use super::peer::{Reserved, accept, backend, connect, end_of};
use super::spliced::{Launcher, Spliced};

pub(crate) const V1: &str = "PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n";
pub(crate) const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// A forward with a backend of the test's own.
pub(crate) struct Setup {
    pub(crate) spliced: Spliced,
    pub(crate) listen: Reserved,
    pub(crate) backend: TcpListener,
}

impl Setup {
    /// `options` are lines of the forward, `{}`-style.
    pub(crate) fn new(options: &str) -> Self {
        Self::with("", options)
    }

    pub(crate) fn with(top: &str, options: &str) -> Self {
        let (listen, backend) = (Reserved::loopback(), backend());
        let to = backend.local_addr().expect("bound");
        let text = format!(
            "workers: 2\n{top}\nforwards:\n  - {{ name: it, listen: \"{}\", to: \"{to}\", {options} }}\n",
            listen.address()
        );
        Self { spliced: Launcher::config(&text).start(), listen, backend }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        connect(self.listen.address())
    }

    pub(crate) fn accept(&self) -> TcpStream {
        accept(&self.backend)
    }

    /// A client that begins with these bytes, and the backend's end of its session.
    pub(crate) fn pair(&self, begin: &[u8]) -> (TcpStream, TcpStream) {
        let mut client = self.connect();
        client.write_all(begin).expect("a few bytes");
        (client, self.accept())
    }
}

/// Version 2 with a block of addresses and fields.
pub(crate) fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let len = u16::try_from(block.len()).expect("short").to_be_bytes();
    [&SIGNATURE[..], &[command, family], &len, block].concat()
}

/// From 192.0.2.7:40000 to 198.51.100.1:443, with these fields.
pub(crate) fn v2_tcp4(fields: &[u8]) -> Vec<u8> {
    let addresses = [192, 0, 2, 7, 198, 51, 100, 1, 0x9c, 0x40, 0x01, 0xbb];
    v2(0x21, 0x11, &[&addresses, fields].concat())
}

/// A client of another address, by version 1.
pub(crate) fn from(client: &str) -> String {
    format!("PROXY TCP4 {client} 198.51.100.1 40000 443\r\n")
}

pub(crate) fn read(mut stream: &TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).expect("so many bytes");
    bytes
}

pub(crate) fn read_to_end(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("a clean end");
    bytes
}

/// The end of the other side's sending, then of ours.
pub(crate) fn end(client: &TcpStream, server: &TcpStream) {
    client.shutdown(Shutdown::Write).expect("half-close");
    assert_eq!(end_of(server), Ok(()));
    server.shutdown(Shutdown::Write).expect("half-close");
    assert_eq!(end_of(client), Ok(()));
}
