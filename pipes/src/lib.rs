//! Pipes for splice(2): owned, pooled and budgeted.
