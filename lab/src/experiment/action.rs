//! The steps of an experiment.

use std::io;
use std::path::Path;

use super::arm::Arm;
use super::bench::{Bench, Holding};
use super::load;
use crate::load::{HoldKind, Load, Sessions};
use crate::plan::CommandStep;
use crate::plan::runner::{Outcome, Step, StepError};
use crate::results::Kind;
use crate::sample::memory::KernelMemory;
use crate::strays;
use crate::topology::{self, sandbox};

/// One step.
#[derive(Debug, Clone)]
pub enum Action {
    /// A program is run to its end.
    Command(CommandStep),
    /// The server of a load is started, and listens when the step is done.
    Serve(Load),
    /// The forwarder of an arm is started, and is ready when the step is done.
    Start(Arm),
    /// Memory and descriptors before the first connection.
    Before,
    /// The load gets ready: its connections are made where they stay.
    Connect(Arm, Load),
    /// Meters are started.
    Meter(Arm),
    /// Load is made until it ends.
    Load(Load),
    /// Meters are read.
    Sample(Load),
    /// Memory and descriptors are looked at.
    Holdings,
    /// Something is looked at during a load of its own, for looking slows the forwarder.
    Look(Arm, Load, Pass),
    /// Both ends of sessions that are only held are started.
    Hold(Arm, HoldKind),
    /// Their number is brought up to this, and what the forwarder holds for them is read.
    Grow(u32),
}

/// What is looked at in a pass of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// System calls by name, by strace.
    Syscalls,
    /// Cycles, instructions and software counters, by perf.
    Counters,
    /// Where the time goes, by perf, as a flame graph.
    Profile,
}

impl Pass {
    /// In a few words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Syscalls => "count the system calls",
            Self::Counters => "count cycles and events",
            Self::Profile => "record the profile",
        }
    }
}

/// The name of a kind of held sessions in results.
#[must_use]
pub fn hold_name(kind: HoldKind) -> &'static str {
    match kind {
        HoldKind::Idle => "idle",
        HoldKind::Stalled => "stalled",
    }
}

/// Ends what a forwarder left behind outside of its process group, as a daemon does: it would hold the port of the next.
/// Once an arm has ended nobody else is in the forwarder's namespace.
fn sweep() {
    if sandbox::is_inside() {
        strays::end_all(&Path::new("/run/netns").join(topology::FORWARDER));
    }
}

impl Step for Action {
    type Bench = Bench;

    fn name(&self) -> String {
        match self {
            Self::Command(step) => step.name.clone(),
            Self::Start(arm) => format!("start {}", arm.name),
            Self::Meter(arm) => format!("start the meters of {}", arm.name),
            Self::Connect(arm, load) => format!("connect {} through {}", load::name(load), arm.name),
            Self::Load(load) => format!("load {}", load::name(load)),
            Self::Sample(load) => format!("read the meters of {}", load::name(load)),
            Self::Serve(load) => format!("start the server of {}", load::name(load)),
            Self::Before => "look at memory before the first connection".to_owned(),
            Self::Holdings => "look at memory and descriptors".to_owned(),
            Self::Look(arm, _, pass) => format!("{} of {}", pass.name(), arm.name),
            Self::Hold(arm, kind) => format!("hold {} sessions through {}", hold_name(*kind), arm.name),
            Self::Grow(total) => format!("grow to {total} sessions"),
        }
    }

    fn tried(&self) -> String {
        match self {
            Self::Command(step) => step.tried(),
            Self::Start(arm) => arm.tried(),
            Self::Meter(_) | Self::Sample(_) => "process times and /proc".to_owned(),
            Self::Serve(load) | Self::Connect(_, load) | Self::Load(load) => load::describe(load),
            Self::Before | Self::Holdings => "/proc of its processes".to_owned(),
            Self::Look(_, load, Pass::Syscalls) => format!("strace -c -f under {}", load::describe(load)),
            Self::Look(_, load, Pass::Counters) => format!("perf stat under {}", load::describe(load)),
            Self::Look(_, load, Pass::Profile) => format!("perf record under {}", load::describe(load)),
            Self::Hold(..) | Self::Grow(_) => "sessions of our own, and /proc".to_owned(),
        }
    }

    fn take(&self, bench: &mut Bench) -> Result<Outcome, StepError> {
        match self {
            Self::Command(step) => step.line.run(),
            Self::Serve(load) => {
                bench.server = Some(load.serve(&bench.wiring, &bench.out)?);
                Ok(Outcome::default())
            }
            Self::Start(arm) => {
                let started = arm.start(&bench.spliced, &bench.wiring, &bench.out);
                let started = started.inspect_err(|_| sweep())?;
                let pids = started.tree().roots;
                if !bench.versions.contains_key(&arm.name) {
                    bench.versions.insert(arm.name.clone(), arm.version(&bench.wiring));
                }
                bench.started = Some(started);
                Ok(Outcome::said(format!("processes {pids:?}")))
            }
            Self::Meter(arm) => {
                bench.open_window(arm)?;
                Ok(Outcome::default())
            }
            Self::Connect(arm, load) => {
                let directory = bench.directory(arm)?;
                bench.ready = Some(load.prepare(&arm.wiring(&bench.wiring), &directory)?);
                Ok(Outcome::default())
            }
            Self::Load(_) => {
                let ready = bench.ready.as_mut().ok_or_else(|| io::Error::other("no load is connected"))?;
                let done = ready.run();
                // A forwarder that died under the load has not measured anything, and that is why the load broke.
                if let Some(started) = &mut bench.started {
                    started.check()?;
                }
                let done = done?;
                let said = format!("{} bytes, {:?}", done.bytes, done.samples);
                bench.done = Some(done);
                Ok(Outcome::said(said))
            }
            Self::Sample(load) => bench.sample(load).map(Outcome::said).map_err(StepError::from),
            Self::Before => {
                bench.before = Holding::of(&bench.tree());
                Ok(Outcome::default())
            }
            Self::Holdings => {
                bench.holdings()?;
                Ok(Outcome::default())
            }
            Self::Look(arm, load, pass) => bench.look(arm, load, *pass).map(Outcome::said).map_err(StepError::from),
            Self::Hold(arm, kind) => {
                bench.sessions = Some(Sessions::start(&arm.wiring(&bench.wiring), *kind, arm.kind != Kind::Limit)?);
                bench.kernel_before = KernelMemory::now();
                Ok(Outcome::default())
            }
            Self::Grow(total) => bench.grow(*total).map(Outcome::said).map_err(StepError::from),
        }
    }

    fn take_back(&self, bench: &mut Bench) -> Option<Result<Outcome, StepError>> {
        match self {
            Self::Command(step) => step.back.as_ref().map(|line| line.run_through()),
            Self::Start(_) => {
                let started = bench.started.take()?;
                let stopped = started.stop();
                sweep();
                Some(stopped.map(|()| Outcome::default()).map_err(StepError::from))
            }
            Self::Meter(_) => bench.window.take().map(|_| Ok(Outcome::said("the window was not read"))),
            Self::Serve(_) => {
                let server = bench.server.take()?;
                Some(server.stop().map(|()| Outcome::default()).map_err(StepError::from))
            }
            Self::Connect(..) => bench.ready.take().map(|_| Ok(Outcome::default())),
            Self::Hold(..) => bench.sessions.take().map(|_| Ok(Outcome::default())),
            Self::Load(_) | Self::Sample(_) | Self::Before | Self::Holdings | Self::Look(..) | Self::Grow(_) => None,
        }
    }
}
