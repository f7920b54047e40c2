//! Who the client is, to us and to the target: the PROXY protocol both ways, transparent connections, and who may connect.

#![cfg(target_os = "linux")]

#[path = "../common/mod.rs"]
mod common;

mod access_files;
mod proxy_peers;
mod proxy_protocol;
mod proxy_rules;
mod transparent;
