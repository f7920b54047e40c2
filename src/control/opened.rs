//! What the control thread opens before a worker starts: its own, what a service manager has opened, or what the
//! process before has passed on.

use std::net::{SocketAddr, TcpListener as StdListener};

use log::info;
use mio::net::{TcpListener, UnixListener};
use signal_hook_mio::v1_0::Signals;

use super::pid_file::PidFile;
use super::socket::SocketFile;
use super::{RunError, event_loop, socket};
use crate::fleet::{Doors, Inherited};
use crate::plan::Plan;
use crate::session_log::SessionLog;
use crate::systemd::{self, Activated};
use crate::udp;
use crate::upgrade::Predecessor;

/// All of it.
pub(super) struct Opened {
    pub(super) signals: Signals,
    pub(super) pid_file: Option<PidFile>,
    pub(super) control: Option<(UnixListener, SocketFile)>,
    pub(super) metrics: Option<TcpListener>,
    pub(super) log: SessionLog,
    /// Listeners that are open already; the fleet binds the others.
    pub(super) doors: Doors,
    /// The same for datagrams.
    pub(super) datagrams: udp::doors::Doors,
}

impl Opened {
    /// Opens everything. In this order: what tells a second instance of the same configuration apart comes first, so
    /// that it stops before it touches anything of the first.
    ///
    /// # Errors
    /// What cannot be opened, named in the message; nothing is left behind.
    pub(super) fn of(plan: &Plan, mut predecessor: Option<&mut Predecessor>) -> Result<Self, RunError> {
        let signals = event_loop::catch_signals()?;
        // While this is the only thread: it takes variables out of the environment.
        let Activated { listeners, metrics: activated } = systemd::activated(plan).map_err(RunError::new)?;
        let pid_file = plan.pid_file.as_deref().map(|path| {
            let passed_on = predecessor.as_mut().and_then(|from| from.take_pid_file(path));
            passed_on.map_or_else(|| PidFile::create(path), |file| PidFile::inherit(path, file))
        });
        let pid_file = pid_file.transpose()?;
        let control = plan.control.as_deref().map(|path| {
            let passed_on = predecessor.as_mut().and_then(|from| from.take_control(path));
            passed_on.map_or_else(|| socket::bind(path), |control| socket::inherit(path, control))
        });
        let control = control.transpose()?;
        let metrics = plan.metrics.map(|address| {
            let passed_on = predecessor.as_mut().and_then(|from| from.take_metrics(address));
            metrics_listener(address, activated.or(passed_on))
        });
        let metrics = metrics.transpose()?;
        if !listeners.is_empty() {
            match listeners.len() {
                1 => info!("1 listener comes from the service manager"),
                many => info!("{many} listeners come from the service manager"),
            }
        }
        let lent = listeners.into_iter().map(|socket| Inherited { socket, lent: true });
        let (inherited, datagrams) =
            predecessor.map_or_else(Default::default, |from| (from.take_listeners(plan), from.take_datagrams(plan)));
        let datagrams = udp::doors::Doors::inherit(datagrams).map_err(|error| RunError::new(error.to_string()))?;
        let doors = Doors::inherit(inherited.into_iter().chain(lent).collect())
            .map_err(|error| RunError::new(error.to_string()))?;
        let log = SessionLog::open(plan)
            .map_err(|error| RunError::new(format!("session log: {error}; choose a file this user may write")))?;
        Ok(Self { signals, pid_file, control, metrics, log, doors, datagrams })
    }
}

fn metrics_listener(address: SocketAddr, open: Option<StdListener>) -> Result<TcpListener, RunError> {
    let Some(listener) = open else { return event_loop::bind_metrics(address) };
    let set = listener.set_nonblocking(true).map(|()| TcpListener::from_std(listener));
    set.map_err(|error| RunError::new(format!("metrics address {address}: {error}")))
}
