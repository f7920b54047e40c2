//! A new process takes over from a running one without a connection being lost.
//!
//! The running process starts the program again, at the path and with the arguments it was started with itself, and
//! passes the new process every descriptor that clients know: listeners with the connections that wait in them, control
//! socket, metrics listener, pid file. Both then hold the *same* sockets (one open file description each), so that there
//! is no moment without a listener and no queue that is thrown away.
//!
//! ```text
//! running process                               new process
//! start, SPLICED_UPGRADE=protocol  ───────────► read the configuration
//! Hello, Listeners …, Control, …, End  ───────► open what it was not given, prepare the workers
//!                                     ◄───────  GivesUp …, Ready
//! Go  ────────────────────────────────────────► accept
//!                                     ◄───────  Begun
//! stop accepting, finish the sessions, exit 0
//! ```
//!
//! Until `Begun` the running process accepts, and until `Go` the new one touches nothing that is visible outside: one that
//! exits, says nothing in time or says something else is killed, and the running one goes on. The channel is the
//! new process's standard input ([`crate::sys::channel`]): so it is inherited without a moment in which another child
//! could inherit it too, and taken without unsafe code. The real one is passed along, as is standard error, which until
//! then is a pipe: what a new process that fails says there becomes the reason in our log.
//!
//! When the running process dies in between, the new one sees the channel end and serves with what it has.

mod last_words;
mod predecessor;
mod program;
mod protocol;
mod successor;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use socket2::Socket;

pub use self::predecessor::{Control, Predecessor, Turn};
pub use self::program::Program;
pub use self::protocol::Ready;
pub use self::successor::{Former, Progress, Successor};

/// How long a new process may take from its start until it is ready.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Descriptors that one process hands to the next.
#[derive(Debug, Default)]
pub struct Estate {
    /// Every listener of every worker, sockets for datagrams too, and whether a service manager has lent it.
    pub listeners: Vec<(Arc<Socket>, bool)>,
    /// The control socket with the device and inode of its file.
    pub control: Option<(OwnedFd, u64, u64)>,
    /// The listener of the metrics endpoint.
    pub metrics: Option<OwnedFd>,
    /// The locked pid file: its lock belongs to the open file, and so to both.
    pub pid_file: Option<OwnedFd>,
}
