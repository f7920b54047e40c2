//! Prints the tables of `bench/results`: `cargo run -p bench --bin table -- DIRECTORY...`, one directory per round.

use std::path::Path;
use std::process::ExitCode;

use bench::table::{self, Round};

fn main() -> ExitCode {
    let homes: Vec<_> = std::env::args_os().skip(1).collect();
    if homes.is_empty() {
        eprintln!("usage: table DIRECTORY...: what CRITERION_HOME was in each round; see bench/README.md");
        return ExitCode::from(2);
    }
    let rounds: Result<Vec<Round>, _> = homes.iter().map(|home| table::read_round(Path::new(home))).collect();
    match rounds {
        Ok(rounds) => {
            let (pumps, others) = (table::pumps(&rounds), table::others(&rounds));
            println!("{} rounds\n\n{pumps}\n{others}", rounds.len());
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}
