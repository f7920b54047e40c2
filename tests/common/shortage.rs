//! A process that has run out of descriptors, with clients it cannot take.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::deadline::{LONG, until};
use super::peer::{connect, echoes};

/// What the line says.
pub(crate) const NO_MORE: &str = " descriptors are allowed (ulimit -n";

/// Sessions of a process that has 64 descriptors, as many as fit, and clients that wait in the queue.
#[derive(Debug)]
pub(crate) struct UsedUp {
    /// Those whose byte has come back.
    pub(crate) served: Vec<TcpStream>,
    /// Those that have sent one, in the order they came.
    pub(crate) waiting: Vec<TcpStream>,
}

impl UsedUp {
    /// Connects until so many wait. Pooled pipes have been given up by then: descriptors have run out for good.
    pub(crate) fn with_waiting(count: usize, front: SocketAddr) -> Self {
        let (mut served, mut waiting): (Vec<TcpStream>, Vec<TcpStream>) = Default::default();
        while waiting.len() < count {
            let client = connect(front);
            let within = if waiting.is_empty() { Duration::from_secs(1) } else { Duration::from_millis(10) };
            if echoes(&client, 1, within) {
                served.push(client)
            } else {
                waiting.push(client)
            }
            assert!(served.len() < 60, "64 descriptors were never used up");
        }
        assert!(served.len() >= 10, "{} sessions are few for 64 descriptors", served.len());
        Self { served, waiting }
    }

    /// Ends some sessions.
    pub(crate) fn relieve(&mut self, sessions: usize) {
        self.served.truncate(self.served.len() - sessions);
    }

    /// Whether a waiting client has been served.
    pub(crate) fn is_one_answered(&self) -> bool {
        self.waiting.iter().any(answered)
    }

    /// Ends one session after the other until every waiting client has been served.
    pub(crate) fn serve_all(&mut self) {
        until("every queued client is served", LONG, || {
            self.served.pop();
            self.waiting.retain(|client| !answered(client));
            self.waiting.is_empty()
        });
    }
}

/// The byte sent while waiting has come back; it stays to be seen again.
fn answered(client: &TcpStream) -> bool {
    client.set_read_timeout(Some(Duration::from_millis(1))).expect("a short deadline");
    client.peek(&mut [0]).is_ok_and(|n| n == 1)
}
