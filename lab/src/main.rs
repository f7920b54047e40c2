//! The network laboratory of spliced.
fn main() {}
