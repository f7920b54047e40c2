//! Steps that are traced and undone.
