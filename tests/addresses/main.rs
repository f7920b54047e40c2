//! Where connections come in and where they go: ports, unix sockets, devices, network namespaces, and several hosts behind
//! one address.

#![cfg(target_os = "linux")]

#[path = "../common/mod.rs"]
mod common;

mod listen_options;
mod ports;
mod scale_out;
mod to_netns;
mod unix_files;
mod unix_redis;
mod unix_sockets;
