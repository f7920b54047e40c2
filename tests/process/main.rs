//! The process itself from its start to its end: signals, rights, draining, a worker that panics, and the service manager.

#![cfg(target_os = "linux")]

#[path = "../common/mod.rs"]
mod common;

mod drain_delay;
mod helper_panic;
mod life;
mod sandbox;
mod shutdown;
mod signals;
mod systemd;
mod worker_panic;
