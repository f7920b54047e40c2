//! Datagrams: flows, limits, failures of targets, circles, streams of datagrams, and what the counters say of them.

#![cfg(target_os = "linux")]

#[path = "../common/mod.rs"]
mod common;

mod buffers;
mod egress;
mod failover;
mod flows;
mod limits;
mod loops;
mod streams;
mod tiny;
mod watched;
