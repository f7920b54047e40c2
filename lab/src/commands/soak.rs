//! `lab soak`.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use super::prepare::Prepared;
use super::{Error, FAILED, experiments};
use crate::cli::SoakArgs;
use crate::plan::about;
use crate::report;
use crate::soak::{Soak, Soaked};
use crate::topology::sandbox;

/// Runs it inside, on loopback.
pub(super) fn soak(args: &SoakArgs) -> Result<ExitCode, Error> {
    if !sandbox::is_inside() {
        return Prepared::outside(&args.files)?.run_inside();
    }
    let prepared = Prepared::inside()?;
    experiments::settle()?;
    loopback()?;
    let soak = Soak {
        time: args.hours.unwrap_or(args.seconds),
        clients: args.sessions,
        reload_every: args.reload_every,
        resets: args.resets,
        engine: args.engine.clone(),
        seed: args.seed,
    };
    let Soaked { results, text, fine } = soak.run(&prepared.spliced, &prepared.out, sandbox::scratch())?;
    report::write(&prepared.out, &results)?;
    let told = format!("{text}results: {}", prepared.out.display());
    if args.files.json.as_deref() == Some(Path::new("-")) {
        crate::tell!("{told}")
    } else {
        crate::show!("{told}")
    }
    if let Some(path) = &args.files.json {
        let json = serde_json::to_string_pretty(&results).map_err(std::io::Error::other)?;
        if path == Path::new("-") {
            crate::show!("{json}");
        } else {
            std::fs::write(path, json).map_err(about("write", path))?;
        }
    }
    Ok(ExitCode::from(if fine { 0 } else { FAILED }))
}

/// Brings the loopback device of the new network namespace up, and lets a busy run have all its ports.
fn loopback() -> Result<(), Error> {
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => return Err(Error::Failed(format!("ip link set lo up: {status}"))),
        Err(error) => return Err(Error::Failed(format!("ip is needed (apt install iproute2): {error}"))),
    }
    // Short sessions leave many ports in TIME_WAIT. Where it cannot be set, connects fail when they run out, and say so.
    let _ = std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "10000 65000");
    let _ = std::fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1");
    Ok(())
}

/// Reads a time in hours.
///
/// # Errors
/// What was found and what is allowed.
pub fn hours(text: &str) -> Result<Duration, String> {
    let hours = text.parse::<f64>().ok().filter(|hours| (0.001..=1000.0).contains(hours));
    hours
        .map(|hours| Duration::from_secs_f64(hours * 3600.0))
        .ok_or_else(|| format!("found {text:?}; allowed: hours from 0.001 to 1000"))
}
