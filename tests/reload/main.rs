//! Another configuration for a running process: all of it or nothing, and nobody notices but those it is about.

#![cfg(target_os = "linux")]

#[path = "../common/mod.rs"]
mod common;

mod changes;
mod checks;
mod storm;
mod unharmed;
