//! The steps of an experiment.

use std::io;
use std::path::PathBuf;

use super::arm::{Arm, Started};
use super::engine::Counters;
use super::load::{Done, Load, Server};
use crate::place::Wiring;
use crate::plan::CommandStep;
use crate::plan::runner::{Outcome, Step, StepError};
use crate::results::{Round, Samples};
use crate::sample::{self, Meter, Tree};

/// What the steps of an experiment work on.
#[derive(Debug)]
pub struct Bench {
    /// The forwarder to measure.
    pub spliced: PathBuf,
    /// Where results go.
    pub out: PathBuf,
    /// The topology.
    pub wiring: Wiring,
    /// The server that is up.
    pub server: Option<Server>,
    /// The arm that is up.
    pub started: Option<Started>,
    /// The window that is open.
    pub window: Option<Window>,
    /// What the last load did.
    pub done: Option<Done>,
    /// The round being measured.
    pub round: Round,
}

/// Meters running.
#[derive(Debug)]
pub struct Window {
    meter: Meter,
    before: Option<Counters>,
}

/// One step.
#[derive(Debug, Clone)]
pub enum Action {
    /// A program is run to its end.
    Command(CommandStep),
    /// The server of a load is started, and listens when the step is done.
    Serve(Load),
    /// The forwarder of an arm is started, and is ready when the step is done.
    Start(Arm),
    /// Meters are started.
    Meter(Arm),
    /// Load is made until it ends.
    Load(Arm, Load),
    /// Meters are read.
    Sample(Load),
    /// Memory and descriptors are looked at.
    Holdings,
    /// System calls are counted by name during another, short load, for counting slows the forwarder.
    Syscalls(Arm, Load),
}

impl Step for Action {
    type Bench = Bench;

    fn name(&self) -> String {
        match self {
            Self::Command(step) => step.name.clone(),
            Self::Start(arm) => format!("start {}", arm.name),
            Self::Meter(arm) => format!("start the meters of {}", arm.name),
            Self::Load(arm, load) => format!("load {} with {}", arm.name, load.name()),
            Self::Sample(load) => format!("read the meters of {}", load.name()),
            Self::Serve(load) => format!("start the server of {}", load.name()),
            Self::Holdings => "look at memory and descriptors".to_owned(),
            Self::Syscalls(arm, _) => format!("count the system calls of {}", arm.name),
        }
    }

    fn tried(&self) -> String {
        match self {
            Self::Command(step) => step.tried(),
            Self::Start(arm) => arm.tried(),
            Self::Meter(_) | Self::Sample(_) => "process times and /proc".to_owned(),
            Self::Serve(load) | Self::Load(_, load) => load.tried(),
            Self::Holdings => "/proc of its processes".to_owned(),
            Self::Syscalls(_, load) => format!("strace -c -f under {}", load.tried()),
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
                let started = arm.start(&bench.spliced, &bench.wiring, &bench.out)?;
                let pids = started.tree().roots;
                bench.started = Some(started);
                Ok(Outcome::said(format!("processes {pids:?}")))
            }
            Self::Meter(arm) => {
                let before = bench.counters()?;
                let meter = Meter::start(&bench.tree(), arm.accounting(), &bench.wiring)?;
                bench.window = Some(Window { meter, before });
                Ok(Outcome::default())
            }
            Self::Load(arm, load) => {
                let done = load.run(&arm.wiring(&bench.wiring), &bench.out.join(&arm.name))?;
                // A forwarder that died under the load has not measured anything.
                if let Some(started) = &mut bench.started {
                    started.check()?;
                }
                let said = done.to_string();
                bench.done = Some(done);
                Ok(Outcome::said(said))
            }
            Self::Sample(load) => bench.sample(load).map(Outcome::said).map_err(StepError::from),
            Self::Holdings => {
                bench.holdings();
                Ok(Outcome::default())
            }
            Self::Syscalls(arm, load) => bench.syscalls(arm, load).map(Outcome::said).map_err(StepError::from),
        }
    }

    fn take_back(&self, bench: &mut Bench) -> Option<Result<Outcome, StepError>> {
        match self {
            Self::Command(step) => step.back.as_ref().map(|line| line.run_through()),
            Self::Start(_) => {
                let started = bench.started.take()?;
                Some(started.stop().map(|()| Outcome::default()).map_err(StepError::from))
            }
            Self::Meter(_) => bench.window.take().map(|_| Ok(Outcome::said("the window was not read"))),
            Self::Serve(_) => {
                let server = bench.server.take()?;
                Some(server.stop().map(|()| Outcome::default()).map_err(StepError::from))
            }
            Self::Load(..) | Self::Sample(_) | Self::Holdings | Self::Syscalls(..) => None,
        }
    }
}

impl Bench {
    fn tree(&self) -> Tree {
        self.started.as_ref().map_or_else(|| Tree::new([]), Started::tree)
    }

    fn counters(&self) -> io::Result<Option<Counters>> {
        match &self.started {
            Some(Started::Engine(engine)) => engine.counters().map(Some),
            _ => Ok(None),
        }
    }

    /// Reads the meters and says the main numbers.
    fn sample(&mut self, load: &Load) -> io::Result<String> {
        let nothing = |what| io::Error::other(format!("there is no {what} to read"));
        let window = self.window.take().ok_or_else(|| nothing("window"))?;
        let used = window.meter.finish()?;
        let after = self.counters()?;
        let done = self.done.take().ok_or_else(|| nothing("load"))?;
        let mut samples = Samples::new();
        used.samples(&mut samples);
        load.costs(&used, &done, &mut samples);
        if let (Some(before), Some(after)) = (window.before, after) {
            #[expect(clippy::cast_precision_loss, reason = "a measurement")]
            let mut add = |name: &str, value: u64| samples.insert(name.to_owned(), value as f64);
            add("spliced_bytes", after.spliced - before.spliced);
            add("copied_bytes", after.copied - before.copied);
            add("pipes", after.pipes);
        }
        samples.extend(done.samples);
        self.round.samples.extend(samples);
        self.round.latency = done.latency;
        self.round.notes.extend(done.notes);
        Ok(load.headline(&self.round.samples))
    }

    /// Counts system calls under a load of its own. Where it cannot be done, the round says so: its other numbers
    /// stand.
    fn syscalls(&mut self, arm: &Arm, load: &Load) -> io::Result<String> {
        let directory = self.out.join(&arm.name);
        let counting = match sample::syscalls::Syscalls::attach(&self.tree(), &directory) {
            Ok(counting) => counting,
            Err(error) => {
                self.round.notes.push(format!("system calls were not counted: {error}"));
                return Ok(error.to_string());
            }
        };
        let done = load.run(&arm.wiring(&self.wiring), &directory)?;
        let calls = counting.detach()?;
        let total = calls.total();
        #[expect(clippy::cast_precision_loss, reason = "a measurement")]
        if done.bytes > 0 {
            self.round.samples.insert("syscalls_per_gb".to_owned(), total as f64 / (done.bytes as f64 / 1e9));
        }
        self.round.syscalls = calls.calls;
        Ok(format!("{total} calls for {done}"))
    }

    fn holdings(&mut self) {
        let tree = self.tree();
        sample::memory::UserMemory::of(&tree).samples(&mut self.round.samples);
        sample::descriptors::Descriptors::of(&tree).samples(&mut self.round.samples);
    }
}
