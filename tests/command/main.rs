//! The command line, configurations and documents: what is understood, what a mistake gets, and that what is written down
//! or packaged runs as it stands there.

#[cfg(target_os = "linux")]
#[path = "../common/mod.rs"]
mod common;

mod config_cli;
mod config_errors;
mod config_plans;
#[cfg(target_os = "linux")]
mod corpus;
mod documents;
mod kubernetes;
mod manual;
mod packaging;
mod usage;
