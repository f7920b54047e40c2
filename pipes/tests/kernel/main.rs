//! What this crate relies on in the kernel, on real TCP sockets over loopback. One module per verb.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "clippy lets tests unwrap, but not the functions they share")]

mod drain;
mod ends;
mod fill;
mod net;
