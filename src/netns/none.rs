//! Systems without network namespaces.

use std::io;

use socket2::Socket;

fn none<T>(name: &str) -> io::Result<T> {
    let text = format!("network namespace {name}: there are none on this system; leave netns and to_netns out");
    Err(io::Error::new(io::ErrorKind::Unsupported, text))
}

pub(crate) fn threads() -> usize {
    0
}

pub(super) fn stock(name: &str) -> io::Result<()> {
    none(name)
}

pub(super) fn take(name: &str, _: bool) -> io::Result<Socket> {
    none(name)
}

pub(crate) fn run<T>(name: &str, _: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    none(name)
}
