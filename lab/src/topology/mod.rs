//! Namespaces and links.
