//! Stands in for the crate `pipes` where there is no splice: a [`Pipe`] cannot exist, and the compiler knows.

use std::convert::Infallible;
use std::io;

/// A pipe nobody can make.
#[derive(Debug)]
pub struct Pipe(Infallible);

/// Why there is no pipe.
#[derive(Debug)]
pub enum NoPipe {
    /// Never said here.
    Descriptors(Infallible),
    /// Always said here.
    Budget,
    /// Never said here.
    Other(Infallible),
}

/// A pool that is always empty.
#[derive(Debug)]
pub struct PipePool;

/// Limits nobody needs to know.
#[derive(Debug)]
pub struct Limits;

impl Limits {
    /// Reads nothing.
    #[must_use]
    pub fn read() -> Self {
        Self
    }
}

/// A budget of nothing.
#[derive(Debug, Clone)]
pub struct PipeBudget;

impl Pipe {
    /// Cannot be called.
    ///
    /// # Errors
    /// None.
    pub fn fill_from<S>(&mut self, _source: S, _len: usize) -> io::Result<usize> {
        match self.0 {}
    }

    /// Cannot be called.
    ///
    /// # Errors
    /// None.
    pub fn drain_into<T>(&mut self, _target: T) -> io::Result<usize> {
        match self.0 {}
    }

    /// Cannot be called.
    ///
    /// # Errors
    /// None.
    pub fn read_out(&mut self) -> io::Result<Vec<u8>> {
        match self.0 {}
    }

    /// Cannot be called.
    #[must_use]
    pub fn pending(&self) -> usize {
        match self.0 {}
    }

    /// Cannot be called.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self.0 {}
    }
}

impl PipePool {
    /// Never gives a pipe.
    ///
    /// # Errors
    /// Always [`NoPipe::Budget`].
    pub fn get(&mut self) -> Result<Pipe, NoPipe> {
        Err(NoPipe::Budget)
    }

    /// Cannot be called.
    pub fn put(&mut self, pipe: Pipe) {
        match pipe.0 {}
    }

    /// There is no pipe that could leave.
    pub fn release(&mut self, pipe: &Pipe) {
        match pipe.0 {}
    }

    /// There is no pipe that could come.
    pub fn adopt(&mut self, pipe: &Pipe) {
        match pipe.0 {}
    }

    /// A share of nothing is like any other.
    pub fn share_anew(&mut self, _budget: &PipeBudget) {}

    /// Closes nothing.
    pub fn trim(&mut self) -> usize {
        0
    }

    /// Closes nothing.
    pub fn clear(&mut self) -> usize {
        0
    }

    /// 0.
    #[must_use]
    pub fn in_use(&self) -> usize {
        0
    }

    /// 0.
    #[must_use]
    pub fn pooled(&self) -> usize {
        0
    }

    /// 0.
    #[must_use]
    pub fn limit(&self) -> usize {
        0
    }

    /// 0.
    #[must_use]
    pub fn size(&self) -> usize {
        0
    }
}

impl PipeBudget {
    /// A budget of nothing.
    #[must_use]
    pub fn detect(_wanted: Option<usize>, _workers: usize) -> Self {
        Self
    }

    /// A budget of nothing.
    #[must_use]
    pub fn from_limits(_limits: &Limits, _wanted: Option<usize>, _workers: usize) -> Self {
        Self
    }

    /// An empty pool.
    #[must_use]
    pub fn pool(&self) -> PipePool {
        PipePool
    }
}

impl std::fmt::Display for PipeBudget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("none in this build: every session copies")
    }
}
