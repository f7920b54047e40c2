//! The control thread: brings everything up, answers people and machines, and takes it down in order.
//!
//! It owns what no worker needs: signals, the pid file, the control socket, the metrics endpoint and the drain. It is
//! one mio loop on the main thread; nothing here is on the data path, and no client of it gets a thread or an
//! unbounded buffer.

mod against;
mod arms_table;
mod client;
mod event_loop;
mod metrics;
mod names;
mod opened;
mod pid_file;
pub mod prometheus;
mod reload;
mod service;
pub mod snapshot;
mod socket;
mod targets;

use std::fmt;
use std::sync::Arc;

use log::info;

pub use against::against_command;
pub use client::{DEFAULT_CONTROL, reload_command, stats_command, upgrade_command};
pub(crate) use client::{ask, human};
pub use reload::Source;
pub use targets::{Action, target_command};

use crate::plan::{Forward, Plan};
use crate::sandbox;
use crate::upgrade::Predecessor;
use event_loop::EventLoop;
use opened::Opened;

/// Why the process cannot run, in words for the user.
#[derive(Debug)]
pub struct RunError {
    message: String,
}

impl RunError {
    fn new(message: String) -> Self {
        Self { message }
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for RunError {}

/// Forwards until a signal ends it: what `spliced forward` and `spliced run` do on the main thread.
///
/// Everything that can fail is opened before the first session is taken; on an error nothing is left behind.
/// SIGTERM and SIGINT drain and return `Ok`, the second one ends at once, SIGUSR1 reopens the session log, SIGHUP reads
/// the configuration again where it has a `source`, SIGUSR2 starts the program again to take over. With a `predecessor`
/// this process takes over from that one.
///
/// Once the listeners are bound the process gives up what it does not need: see [`crate::sandbox`].
///
/// # Errors
/// An address, file or socket that cannot be opened, named in the message; or threads panicked again and again.
pub fn run(plan: Plan, source: Option<Source>, mut predecessor: Option<Predecessor>) -> Result<(), RunError> {
    let plan = Arc::new(plan);
    let config = source.as_ref().map(|source| source.path.as_path());
    sandbox::prepare(&plan, config).map_err(|error| RunError::new(error.to_string()))?;
    let opened = Opened::of(&plan, predecessor.as_mut())?;
    let mut event_loop = EventLoop::start(&plan, source, opened)?;
    for forward in &plan.forwards {
        announce(forward);
    }
    if let Some(path) = &plan.control {
        info!("control socket {}", path.display());
    }
    if let Some(address) = plan.metrics {
        info!("metrics on http://{address}/metrics");
    }
    let turn = predecessor.map(Predecessor::take_over).transpose().map_err(RunError::new)?;
    if turn.is_some() {
        event_loop.take_files_over();
    }
    event_loop.begin();
    if let Some(turn) = turn {
        turn.begun();
    }
    info!("ready: {}", event_loop.describe());

    let result = event_loop.run();
    // Sockets and files go before the last words, so that a successor started on seeing them finds the place free.
    drop(event_loop);
    if result.is_ok() {
        info!("stopped");
    }
    result
}

fn announce(forward: &Forward) {
    let targets: Vec<_> = forward.written_targets().collect();
    let targets = targets.join(", ");
    for listen in forward.listeners() {
        info!("listening on {listen}, forward {:?}, to {targets}, engine {}", forward.name, forward.engine_text());
    }
}
