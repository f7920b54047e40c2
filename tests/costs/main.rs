//! What a session and a worker cost while nothing moves, and while something does: descriptors, pipes, memory, CPU time and
//! the scheduler's favour.

#![cfg(target_os = "linux")]

#[path = "../common/mod.rs"]
mod common;

mod idle;
mod scheduling;
mod spin;
mod stalled_reader;
