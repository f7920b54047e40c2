//! `spliced check --against`: what a reload would change, without changing it.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::client::{answered, ask};
use crate::config;
use crate::plan::Plan;

/// The lines a reload of that instance would give with this plan. `instance` is a process id or the path of a control
/// socket.
///
/// # Errors
/// Nobody answers, or there is no such process with a control socket.
pub fn against_command(instance: &str, plan: &Plan) -> io::Result<String> {
    let control = match instance.parse::<u32>() {
        Ok(pid) => control_of(pid)?,
        Err(_) => instance.into(),
    };
    let answer = answered(&control, &ask(&control, "plan")?)?;
    let unknown = |what: &str| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{}: answer not understood: {what}", control.display()))
    };
    let text = answer.get("plan").and_then(Value::as_str).ok_or_else(|| unknown("no plan in it"))?;
    let running = config::parse_running("the running plan", text);
    let running = running.map_err(|error| unknown(&error.to_string()))?;
    Ok(config::diff(&running, plan).to_string())
}

/// The control socket of a process: of its unix sockets, the one that answers us.
#[cfg(target_os = "linux")]
fn control_of(pid: u32) -> io::Result<PathBuf> {
    use std::collections::HashSet;
    use std::fs;
    let explain = |error: io::Error| {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => "; there is no such process",
            io::ErrorKind::PermissionDenied => "; only the user who runs it may ask",
            _ => "",
        };
        io::Error::new(error.kind(), format!("process {pid}: {error}{hint}"))
    };
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).map_err(explain)?;
    let inode = |link: &Path| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned());
    let own: HashSet<String> =
        entries.flatten().filter_map(|entry| inode(&fs::read_link(entry.path()).ok()?)).collect();
    // Num RefCount Protocol Flags Type St Inode Path; flag 00010000 is a socket that listens (unix(7), proc(5)).
    let table = fs::read_to_string(format!("/proc/{pid}/net/unix")).map_err(explain)?;
    let listening = table.lines().skip(1).filter_map(|line| {
        let mut words = line.split_whitespace();
        let (flags, inode) = (words.nth(3)?, words.nth(2)?);
        let path = line.split_once(inode)?.1.trim_start();
        (flags == "00010000" && own.contains(inode) && !path.is_empty()).then(|| path.to_owned())
    });
    // A path that was given relative to a directory is still relative to it.
    let path = listening.map(|path| Path::new(&format!("/proc/{pid}/cwd")).join(path)).next();
    path.ok_or_else(|| {
        let text = format!("process {pid} has no control socket; start it with --control PATH");
        io::Error::new(io::ErrorKind::NotFound, text)
    })
}

#[cfg(not(target_os = "linux"))]
fn control_of(pid: u32) -> io::Result<PathBuf> {
    let text = format!("the control socket of process {pid} cannot be found on this system; give its path instead");
    Err(io::Error::new(io::ErrorKind::Unsupported, text))
}
