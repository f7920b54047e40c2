//! Micro-benchmarks of spliced live in `benches`.
