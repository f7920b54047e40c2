//! Any text to the parser of this format.
#![no_main]

mod check;

use libfuzzer_sys::fuzz_target;
use spliced::config::Format;

fuzz_target!(|text: &str| check::check(Format::Toml, text));
