//! What an operator sees: counters, metrics, the live view, log lines, and what is said of a host before it is used.

#![cfg(target_os = "linux")]

#[path = "../common/mod.rs"]
mod common;

mod control;
mod log_disk;
mod log_safety;
mod metrics;
mod probe;
mod stall_warning;
mod top;
