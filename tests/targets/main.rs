//! Which target a session gets: shares, health, retries, commands, names that change, and circles back to ourselves.

#![cfg(target_os = "linux")]

#[path = "../common/mod.rs"]
mod common;

mod balance;
mod command;
mod health;
mod loops;
mod loops_names;
mod names;
mod names_flood;
mod own_fault;
mod retry;

#[test]
#[ignore = "a target of the other tests"]
fn target() {
    common::target::serve();
}
