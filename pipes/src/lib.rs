//! Pipes for splice(2): owned, pooled and budgeted.
#![cfg(target_os = "linux")]

mod budget;
mod limits;
mod pipe;
mod pool;

pub use budget::PipeBudget;
pub use limits::Limits;
pub use pipe::{MAX_FILL, NoPipe, Pipe, min_pipe_size};
pub use pool::PipePool;
