//! Rubbish without end from a name server: it costs its time to answer and no more, and the next server is asked.

#![cfg(target_os = "linux")]

use crate::common;

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use common::deadline::{LONG, until};
use common::dns::{Says, Scripted};
use common::peer::Reserved;
use common::spliced::Launcher;

/// Sends rubbish, from the first question on until it is dropped, to everyone who has asked.
struct Flood {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Flood {
    fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let address = socket.local_addr().expect("bound");
        socket.set_nonblocking(true).expect("our own socket");
        let stop = Arc::new(AtomicBool::new(false));
        let clients = Arc::new(Mutex::new(Vec::new()));
        let sender = || {
            let (socket, stop, clients) =
                (socket.try_clone().expect("a descriptor"), Arc::clone(&stop), Arc::clone(&clients));
            thread::spawn(move || send(&socket, &stop, &clients))
        };
        // One that waits for a CPU leaves no pause.
        Self { address, threads: (0..4).map(|_| sender()).collect(), stop }
    }
}

fn send(socket: &UdpSocket, stop: &AtomicBool, clients: &Mutex<Vec<SocketAddr>>) {
    // It takes longer to read than to send: there is always another one.
    let record = [&[0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4][..], &[127, 0, 0, 66]].concat();
    let rubbish = [&[0xff, 0xff, 0x81, 0x80, 0, 0, 1, 0, 0, 0, 0, 0][..], &record.repeat(256)].concat();
    let mut buffer = [0; 512];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((_, client)) = socket.recv_from(&mut buffer) {
            clients.lock().expect("no panic while held").push(client);
        }
        let known = clients.lock().expect("no panic while held").clone();
        for client in known {
            // One that has gone says so by an error.
            let _ = socket.send_to(&rubbish, client);
        }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

#[test]
fn a_server_that_sends_rubbish_without_end_is_given_up_and_the_next_is_asked() {
    let flood = Flood::start();
    let good = Scripted::start(Says::Addresses(vec![[127, 0, 0, 2].into()], 60));
    let port = Reserved::loopback();
    let text = format!(
        "workers: 1\nresolvers: [\"{}\", \"{}\"]\nforwards: [{{ listen: \"{}\", to: \"web.example:9\" }}]\n",
        flood.address,
        good.address(),
        port.address()
    );
    let mut spliced = Launcher::config(&text).start();
    until("the second server was asked", LONG, || {
        spliced.stats().0["names"][0]["addresses"].as_array().is_some_and(|all| all.len() == 1)
    });
    assert!(spliced.logged("panicked").is_empty());
    spliced.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(spliced.wait(LONG).code(), Some(0), "also while rubbish comes");
    drop(flood);
}
