//! Live A/B: which arm a session gets, what each arm costs, and what may be said about it.
//!
//! Sessions are dealt to arms at random, so that whatever clients and backends do, they do it to all arms alike. Bytes,
//! system calls and times are counted for every session; CPU time, which is dear to read, for about one turn in
//! [`EVERY`]. What comes out of it is an estimate, and it is never told without its interval.

mod deal;
mod estimate;
mod report;
mod sample;

pub use deal::{ArmIndex, Random, deal};
pub use estimate::{Interval, Moments};
pub use report::{ArmSnapshot, Measured, TimesSnapshot, report};
pub use sample::{ArmStats, EVERY, Sampled, Sampler, Times};
