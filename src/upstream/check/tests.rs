//! What is told around a panic.

use socket2::{Domain, Socket, Type};

use super::*;
use crate::config::{Lookup, Overrides, parse};
use crate::upstream::Upstreams;

/// A target nobody listens at, checked often, and the list its [`Checker`] gets.
fn refused() -> (Socket, Upstreams, Checked) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let text = format!(
        "forwards:\n  - listen: '127.0.0.1:80'\n    to: '{address}'\n    on_down: end\n    \
         check: {{ interval: 100ms, timeout: 100ms, fall: 1 }}\n"
    );
    let forward = parse("test", &text, &Overrides::default(), &Lookup::fixed()).unwrap().forwards.remove(0);
    let targets = Arc::new(Targets::new("test", Instant::now()));
    targets.update(&forward);
    let upstreams = Upstreams::new(&forward, &targets);
    let (transport, balancing) = (forward.checked_by(), forward.balancing);
    let (check, on_down) = (balancing.check.unwrap(), balancing.on_down);
    (socket, upstreams, Checked { targets, check, transport, on_down, sources: Vec::new(), egress: forward.egress })
}

#[test]
fn news_that_a_panic_has_lost_are_told_again() {
    let (_socket, _upstreams, checked) = refused();
    let (say, said) = channel();
    let is_first = std::cell::Cell::new(true);
    let checker = Checker::start(move |news| {
        assert!(!is_first.replace(false), "asked to");
        let _ = say.send(news);
    })
    .unwrap();
    checker.check(vec![checked]);
    let limit = Duration::from_secs(10);
    assert!(matches!(said.recv_timeout(limit).unwrap(), News::Up));
    let News::End(endpoint) = said.recv_timeout(limit).unwrap() else { panic!("its sessions are to end") };
    assert!(endpoint.is_down());
    drop(checker);
    assert!(said.recv_timeout(limit).is_err(), "the thread has ended, and said no more");
}
