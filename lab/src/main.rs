//! The program: a command line becomes one command.

use std::process::ExitCode;

fn main() -> ExitCode {
    lab::commands::main()
}
