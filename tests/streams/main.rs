//! What becomes of one stream: every byte in order, the end or the reset as it came, whichever engine moves it, whatever the
//! kernel refuses, and however long a side or the process itself stands still.

#![cfg(target_os = "linux")]

#[path = "../common/mod.rs"]
mod common;

mod bytes;
mod clock;
mod connect;
mod half_close;
mod interrupted;
mod live_ab;
mod reset;
mod segments;
mod splice_refused;
mod stopped;
mod urgent;
mod vanished;
