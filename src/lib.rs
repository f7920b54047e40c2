//! spliced forwards TCP, unix sockets and UDP: an event loop per core moves the bytes of streams socket → pipe → socket.
//!
//! `README.md` has the modules in reading order, the way of one byte, and the invariants they keep.

pub mod ab;
pub mod address;
pub mod arms;
pub mod cli;
pub mod config;
pub mod control;
pub mod deadline;
pub mod fleet;
pub mod flow;
pub mod gather;
pub mod limits;
pub mod listener;
pub mod manual;
pub mod names;
mod netns;
pub mod panics;
pub mod plan;
pub mod probe;
pub mod proxy;
pub mod pump;
pub mod sandbox;
pub mod scheduling;
pub mod session;
pub mod session_log;
mod socket_file;
pub mod stats;
pub mod sys;
pub mod systemd;
pub mod top;
pub mod udp;
pub mod upgrade;
pub mod upstream;
pub mod worker;
