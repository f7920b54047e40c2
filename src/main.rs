//! Command line of spliced.
fn main() {}
