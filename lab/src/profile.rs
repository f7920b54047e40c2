//! What one engine spends its time on.
