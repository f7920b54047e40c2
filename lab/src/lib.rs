//! The network laboratory of spliced: namespaces, peers, interleaved experiments.
//!
//! In reading order: a command line ([`cli`]) becomes one of the [`commands`]; it makes a [`topology`], whose
//! [`place`]s it runs a [`plan`] in, most often an [`experiment`]: forwarders ([`peers`]) under [`load`], watched by
//! [`sample`]. What is found are [`results`], and the [`report`] shows them.

/// A line on standard error. That nobody reads it any more (`lab … 2>&1 | head`) is no reason to break off.
#[macro_export]
macro_rules! tell {
    ($($words:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{}\n", format_args!($($words)*)));
    }};
}

/// A line on standard output, as [`tell!`].
#[macro_export]
macro_rules! show {
    ($($words:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{}\n", format_args!($($words)*)));
    }};
}

pub mod cli;
pub mod commands;
pub mod experiment;
pub mod goals;
pub mod load;
mod output;
pub mod peers;
pub mod place;
pub mod plan;
pub mod process;
pub mod profile;
pub mod report;
pub mod results;
pub mod sample;
pub mod soak;
mod statistics;
pub mod strays;
pub mod tools;
pub mod topology;
