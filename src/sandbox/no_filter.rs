//! Where no list of system calls has been written: nothing is filtered, and that is said.

use std::convert::Infallible;

use seccompiler::BpfProgram;

use super::Role;

/// Filters nobody can make.
#[derive(Debug)]
pub(super) struct Filters {
    /// Never there.
    pub(super) control: BpfProgram,
    never: Infallible,
}

impl Filters {
    /// Always fails.
    pub(super) fn compile() -> Result<Self, String> {
        Err(format!("none was written for {}", std::env::consts::ARCH))
    }

    /// Cannot be called.
    pub(super) fn of(&self, _role: Role) -> &BpfProgram {
        match self.never {}
    }
}
