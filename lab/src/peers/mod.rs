//! Other forwarders.
