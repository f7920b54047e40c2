//! Another program for a running process: whoever is killed when, wherever the program is, as whomever it runs, no
//! connection is lost.

#![cfg(target_os = "linux")]

#[path = "../common/mod.rs"]
mod common;

mod killed;
mod places;
mod sandbox;
mod storm;
mod takeover;
