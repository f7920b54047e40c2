//! What runs out: connections, sources, local ports and descriptors. Who is over a limit waits or is told so, by the right
//! name, and is served as soon as there is room. Rates are in `limits_rates.rs` and pipes in `pipes_limits.rs`, for they want
//! a process of their own.

#![cfg(target_os = "linux")]

#[path = "../common/mod.rs"]
mod common;

mod connections;
mod descriptors;
mod descriptors_few;
mod readme;
mod source_ports;
mod storm;
