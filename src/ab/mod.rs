//! A/B comparison on one host.

use std::io;

use clap::Args;

/// Compare the engines on this host.
#[derive(Debug, Clone, Args)]
pub struct AbArgs {}

/// A child process of the comparison.
#[derive(Debug, Clone, Args)]
pub struct RoleArgs {}

/// Runs the comparison.
///
/// # Errors
/// Always: this build has none.
pub fn run(_: &AbArgs) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Runs one part of it.
///
/// # Errors
/// Always: this build has none.
pub fn run_role(_: &RoleArgs) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
