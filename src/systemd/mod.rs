//! What a service manager and this process tell each other: sockets it has opened for us, and how we are.
//!
//! Both follow systemd's published protocols (sd_listen_fds(3), sd_notify(3)), which other managers speak too. Without
//! their environment variables nothing here does anything.

mod activation;
mod notify;

pub use self::activation::{Activated, activated};
pub use self::notify::{Facts, Notifier, WorkerTurns};
