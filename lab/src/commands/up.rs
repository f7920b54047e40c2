//! `lab up`, `lab down`, `lab status`: the topology for people to use by hand.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use super::Error;
use crate::cli::UpArgs;
use crate::place::Place;
use crate::plan::command::CommandLine;
use crate::plan::runner::{Runner, now};
use crate::plan::stop;
use crate::plan::trace::Trace;
use crate::topology::state::{Kept, State, started};
use crate::topology::{self, NAMESPACES, sandbox};

/// Said by the process inside once everything is there.
const READY: &str = "ready";
/// How long the process that keeps the namespaces may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes the topology.
pub(super) fn up(args: &UpArgs) -> Result<(), Error> {
    if sandbox::is_inside() {
        return hold(args);
    }
    if let Some(state) = State::load()? {
        if is_up(&state) {
            let message = "the lab is already up (since {}); see `lab status`, and `lab down` to take it down";
            return Err(Error::Failed(message.replace("{}", &state.since)));
        }
        // Of a lab that did not outlive a restart of the machine only this file is left.
        State::forget()?;
    }
    stop::listen()?;
    let state = if geteuid().is_root() { up_named(args)? } else { up_held(args)? };
    crate::show!("the lab is up");
    explain(&state);
    Ok(())
}

fn state(kept: Kept, args: &UpArgs) -> State {
    let namespaces = NAMESPACES.map(str::to_owned).into();
    State { kept, namespaces, links: args.links.links(), since: now() }
}

/// As root: namespaces with names.
fn up_named(args: &UpArgs) -> Result<State, Error> {
    if let Some(name) = NAMESPACES.iter().find(|name| named(name)) {
        return Err(Error::Failed(format!(
            "the namespace {name} is there already, and no lab left it; remove it with `ip netns delete {name}`"
        )));
    }
    let state = state(Kept::Named, args);
    state.announce(&State::path())?;
    let mut runner = Runner::new((), Trace::none());
    match runner.take_all(&topology::steps(&args.links.links())) {
        Ok(()) => runner.keep(),
        Err(failed) => {
            // Dropped while the file still tells of it.
            drop(runner);
            State::forget()?;
            return Err(failed.into());
        }
    }
    Ok(state)
}

fn named(name: &str) -> bool {
    Path::new("/run/netns").join(name).exists()
}

/// As an ordinary user: a process that stays keeps them in a user namespace.
fn up_held(args: &UpArgs) -> Result<State, Error> {
    let path = State::path();
    let mut child = sandbox::spawn_inside(Stdio::null(), Stdio::piped(), &[])?;
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut said)?;
    }
    let begun = started(child.id());
    match begun {
        Some(started) if said.trim() == READY => {
            let state = state(Kept::Process { pid: child.id(), started }, args);
            if let Err(error) = state.announce(&path) {
                end_holder(child.id(), started)?;
                return Err(error.into());
            }
            Ok(state)
        }
        _ => {
            // It has said why on standard error.
            let _ = child.kill();
            let _ = child.wait();
            Err(Error::Failed("the lab could not be brought up in a user namespace".to_owned()))
        }
    }
}

/// The process that keeps the namespaces, until it is told to end.
fn hold(args: &UpArgs) -> Result<(), Error> {
    stop::listen()?;
    sandbox::settle(false)?;
    let mut runner = Runner::new((), Trace::none());
    runner.take_all(&topology::steps(&args.links.links()))?;
    writeln!(io::stdout(), "{READY}")?;
    // Nobody may wait for the end of our output, or read what we might say.
    let null = fs::File::options().read(true).write(true).open("/dev/null")?;
    for result in [nix::unistd::dup2_stdout(&null), nix::unistd::dup2_stderr(&null)] {
        result.map_err(io::Error::from)?;
    }
    let nothing = || Ok(None::<()>);
    while stop::wait(Duration::from_secs(3600), nothing).is_ok() {}
    Ok(())
}

/// Takes the topology down.
pub(super) fn down() -> Result<(), Error> {
    let Some(state) = State::load()? else {
        return Err(Error::Failed("no lab is up".to_owned()));
    };
    take_down(&state)?;
    State::forget()?;
    crate::show!("the lab is down");
    Ok(())
}

fn take_down(state: &State) -> Result<(), Error> {
    match state.kept {
        Kept::Named => delete_named(&state.namespaces),
        Kept::Process { pid, started: begun } => end_holder(pid, begun),
    }
}

fn delete_named(namespaces: &[String]) -> Result<(), Error> {
    let mut failed = Vec::new();
    for name in namespaces.iter().rev().filter(|name| named(name)) {
        let inside = CommandLine::of(&Place::here(), ["ip", "netns", "pids", name]).run_through();
        let inside = inside.map(|outcome| outcome.output.replace('\n', " ")).unwrap_or_default();
        if !inside.is_empty() {
            crate::tell!("lab: {name} lives on without its name until these processes in it end: {inside}");
        }
        if let Err(error) = CommandLine::of(&Place::here(), ["ip", "netns", "delete", name]).run_through() {
            failed.push(format!("ip netns delete {name}: {}", error.error));
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Error::Failed(failed.join("; "))) }
}

fn end_holder(pid: u32, begun: u64) -> Result<(), Error> {
    let alive = || started(pid) == Some(begun);
    if let (true, Ok(number)) = (alive(), i32::try_from(pid)) {
        kill(Pid::from_raw(number), Signal::SIGTERM)
            .map_err(|error| Error::Failed(format!("cannot end process {pid}, which keeps the lab: {error}")))?;
        let gone = stop::wait_through(PATIENCE, || Ok((!alive()).then_some(())))?;
        if gone.is_none() {
            let message = format!("process {pid}, which keeps the lab, did not end within {} s", PATIENCE.as_secs());
            return Err(Error::Failed(message));
        }
    }
    Ok(())
}

fn is_up(state: &State) -> bool {
    match state.kept {
        Kept::Named => state.namespaces.iter().any(|name| named(name)),
        Kept::Process { pid, started: begun } => started(pid) == Some(begun),
    }
}

/// Says what is up.
pub(super) fn status() -> Result<(), Error> {
    match State::load()? {
        None => crate::show!("no lab is up"),
        Some(state) if !is_up(&state) => {
            crate::show!("a lab was up since {}, and its namespaces are gone; `lab down` forgets it", state.since);
        }
        Some(state) => {
            crate::show!("the lab is up since {}", state.since);
            explain(&state);
        }
    }
    Ok(())
}

fn explain(state: &State) {
    let enter = match state.kept {
        Kept::Named => String::new(),
        Kept::Process { pid, .. } => format!("nsenter --preserve-credentials -U -m -p -n -t {pid} "),
    };
    let wiring = topology::wiring();
    let links = &state.links;
    let or = |value: Option<String>| value.unwrap_or_else(|| "default".to_owned());
    crate::show!(
        "  {} 10.0.1.2 -- 10.0.1.1 {} 10.0.0.1 -- 10.0.0.2 {}",
        wiring.client.name,
        wiring.forwarder.name,
        wiring.server.name
    );
    crate::show!(
        "  links: mtu {}, offloads {}, rate {}, loss {}",
        or(links.mtu.map(|mtu| mtu.to_string())),
        if links.offloads { "on" } else { "off" },
        links.rate.map_or_else(|| "any".to_owned(), |rate| rate.to_string()),
        links.loss.map_or_else(|| "none".to_owned(), |loss| loss.to_string()),
    );
    crate::show!("  server:    {enter}ip netns exec {} iperf3 -s -p {}", wiring.server.name, wiring.server_addr.port());
    crate::show!(
        "  forwarder: {enter}ip netns exec {} spliced forward {} {}",
        wiring.forwarder.name,
        wiring.listen,
        wiring.server_addr
    );
    crate::show!(
        "  client:    {enter}ip netns exec {} iperf3 -c {} -p {} -P 8",
        wiring.client.name,
        wiring.listen.ip(),
        wiring.listen.port()
    );
}
