#![doc = "Any input to `check::dns`."]
#![no_main]
#![allow(dead_code, reason = "one target of several")]

mod check;

libfuzzer_sys::fuzz_target!(|input: &[u8]| check::dns(input));
