//! The network laboratory of spliced: namespaces, peers, interleaved experiments.
//!
//! In reading order: a command line ([`cli`]) becomes one of the [`commands`]; it makes a [`topology`], whose
//! [`place`]s it runs a [`plan`] in, most often an [`experiment`]: forwarders ([`peers`]) under [`load`], watched by
//! [`sample`]. What is found are [`results`], and the [`report`] shows them.

pub mod cli;
pub mod commands;
pub mod experiment;
pub mod goals;
pub mod load;
pub mod peers;
pub mod place;
pub mod plan;
pub mod process;
pub mod profile;
pub mod report;
pub mod results;
pub mod sample;
pub mod tools;
pub mod topology;
