//! What a user types or writes → [`Plan`].
//!
//! In reading order: `mod` finds out which format a text has, `yaml`, `lines` and `toml` each read one into a draft,
//! `draft` merges the draft with the command line, `check` looks across values, `render` writes a plan as YAML, `diff`
//! tells two plans apart.
//!
//! Every error is one line: `FILE:LINE:COLUMN: what was found; what is allowed`.

mod address;
mod check;
mod client;
mod defaults;
mod depth;
mod diff;
mod draft;
mod engine;
mod error;
mod limit;
mod lines;
mod names;
mod nets;
mod node;
mod options;
mod regular;
mod render;
mod running;
mod source;
mod target;
mod toml;
mod tree;
mod value;
mod yaml;

use std::path::Path;

pub use address::Lookup;
pub use diff::{Diff, diff, keep_fixed};
pub use engine::{ArmOption, EngineOption};
pub use error::ConfigError;
pub use limit::Sources;
pub use names::Resolvers;
pub use options::{ForwardOptions, Overrides, ProcessOptions};
pub use render::render;
pub use running::{parse_running, render_running};
pub use source::MOST_BYTES;
pub(crate) use target::weight_or_default;
pub use value::Maybe;
pub(crate) use value::{Size, size};

use crate::plan::{Plan, Target};
use draft::{Draft, DraftForward};
use error::{Fault, Mark};

/// YAML whose values know where they stand, for other files of ours whose errors should be as exact.
pub mod marked {
    pub use super::error::{Fault, Mark};
    pub use super::node::{Key, Node, Value};
    pub use super::source::read;
    pub use super::tree::parse;
    pub use super::value::size;
}

/// The format of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Our own YAML.
    Yaml,
    /// Lines of rinetd or oi.
    Lines,
    /// oi's TOML.
    Toml,
}

/// Reads a file, `-` being standard input, in whatever format it is.
///
/// # Errors
/// When the file cannot be read or is no valid configuration; nothing has been started or changed.
pub fn load(path: &Path, overrides: &Overrides) -> Result<Plan, ConfigError> {
    let (name, text) = source::read(path)?;
    parse(&name, &text, overrides, &Lookup::host())
}

/// The same for a process that runs, which reads its file again.
///
/// # Errors
/// As [`load`], but for a user that is not there: who the process is does not change any more. Also a file that is no
/// regular one: a pipe that the start has read says nothing a second time.
pub fn load_again(path: &Path, overrides: &Overrides) -> Result<Plan, ConfigError> {
    let (name, text) = source::read_again(path)?;
    parse(&name, &text, overrides, &Lookup::running())
}

/// A plan of one forward from the command line alone.
///
/// # Errors
/// When an address is wrong or the forward leads back to itself.
pub fn from_args(listen: &str, target: &str, overrides: &Overrides) -> Result<Plan, ConfigError> {
    plan_of_args(listen, target, overrides, &Lookup::host()).map_err(|fault| fault.in_file("command line", ""))
}

/// Turns a file of any format into our YAML.
///
/// # Errors
/// As [`load`].
pub fn convert(path: &Path) -> Result<String, ConfigError> {
    load(path, &Overrides::default()).map(|plan| render(&plan))
}

/// Reads a text in whatever format it is; `name` stands for the file in errors.
///
/// # Errors
/// When the text is no valid configuration.
pub fn parse(name: &str, text: &str, overrides: &Overrides, lookup: &Lookup) -> Result<Plan, ConfigError> {
    parse_as(source::format_of(text), name, text, overrides, lookup)
}

/// Reads a text in a format that is known.
///
/// # Errors
/// When the text is no valid configuration of that format.
pub fn parse_as(
    format: Format,
    name: &str,
    text: &str,
    overrides: &Overrides,
    lookup: &Lookup,
) -> Result<Plan, ConfigError> {
    let plan = || {
        source::refuse_unreadable(text)?;
        let draft = match format {
            Format::Yaml => yaml::read(text, lookup)?,
            Format::Lines => lines::read(text, lookup)?,
            Format::Toml => toml::read(text, lookup)?,
        };
        draft.build(overrides, lookup)
    };
    plan().map_err(|fault: Fault| fault.in_file(name, text))
}

fn plan_of_args(listen: &str, target: &str, overrides: &Overrides, lookup: &Lookup) -> Result<Plan, Fault> {
    let (at_listen, at_target) = (Mark::Argument("LISTEN"), Mark::Argument("TARGET"));
    let (spoken, listens) = address::listen(listen, lookup).map_err(|message| Fault::new(at_listen, message))?;
    let (transport, host, ports) = address::target(target).map_err(|message| Fault::new(at_target, message))?;
    let mut forward = DraftForward { listen: vec![(at_listen, spoken, listens)], ..DraftForward::default() };
    forward.push_target(at_target, transport, Target::new(host, ports))?;
    Draft { forwards: vec![forward], ..Draft::default() }.build(overrides, lookup)
}
