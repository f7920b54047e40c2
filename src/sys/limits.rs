//! The limit on descriptors.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The present soft limit.
#[must_use]
pub fn descriptor_limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft)
}

/// Raises the soft limit to the hard one; returns both as they are now. Where that is refused the old soft limit
/// stays, and the caller says what it means.
#[must_use]
pub fn raise_descriptor_limit() -> (u64, u64) {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return (1024, 1024) };
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() {
        return (hard, hard);
    }
    (soft, hard)
}
