//! What the steps of an experiment work on, and what they read from it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::action::Pass;
use super::arm::{Arm, Started};
use super::{engine, load};
use crate::load::{self as loads, Load, Ready, Server, Sessions};
use crate::place::Wiring;
use crate::plan::{about, stop};
use crate::profile::Recording;
use crate::results::{Kind, Point, Round, Samples};
use crate::sample::counters::Counters;
use crate::sample::descriptors::Descriptors;
use crate::sample::memory::{KernelMemory, UserMemory};
use crate::sample::syscalls::{Calls, Syscalls};
use crate::sample::{Meter, Tree};
use crate::topology;

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
    /// The load that is connected.
    pub ready: Option<Ready>,
    /// The window that is open.
    pub window: Option<Window>,
    /// What the last load did.
    pub done: Option<loads::Outcome>,
    /// What the forwarder held before the first connection.
    pub before: Holding,
    /// Sessions that are held.
    pub sessions: Option<Sessions>,
    /// Memory of the kernel before the first of them.
    pub kernel_before: KernelMemory,
    /// What was held at which number of sessions.
    pub points: Vec<Point>,
    /// What each arm that was started says of its version, where it does.
    pub versions: BTreeMap<String, Option<String>>,
    /// The round being measured.
    pub round: Round,
}

/// Something that looks at a forwarder.
#[derive(Debug)]
enum Looking {
    Syscalls(Syscalls),
    Counters(Counters),
    Profile(Recording),
}

/// What a forwarder and the kernel hold at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Holding {
    user: UserMemory,
    kernel: KernelMemory,
    descriptors: Descriptors,
}

impl Holding {
    /// Of a tree, now.
    pub(super) fn of(tree: &Tree) -> Self {
        Self { user: UserMemory::of(tree), kernel: KernelMemory::now(), descriptors: Descriptors::of(tree) }
    }

    /// What each of so many sessions added since `before`.
    #[expect(clippy::cast_precision_loss, reason = "a measurement")]
    fn per_session(&self, before: &Self, sessions: usize, samples: &mut Samples) {
        for (name, now, before) in [
            ("user_bytes_per_session", self.user.private_dirty, before.user.private_dirty),
            ("kernel_bytes_per_session", self.kernel.total(), before.kernel.total()),
            ("descriptors_per_session", self.descriptors.open, before.descriptors.open),
            ("pipes_per_session", self.descriptors.pipes, before.descriptors.pipes),
        ] {
            samples.insert(name.to_owned(), (now as f64 - before as f64) / sessions.max(1) as f64);
        }
        samples.insert("start_rss_bytes".to_owned(), before.user.rss as f64);
    }
}

/// Meters running.
#[derive(Debug)]
pub struct Window {
    meter: Meter,
    before: Option<engine::Counters>,
}

impl Bench {
    /// With nothing up.
    #[must_use]
    pub fn new(spliced: &Path, out: &Path) -> Self {
        Self {
            spliced: spliced.to_owned(),
            out: out.to_owned(),
            wiring: topology::wiring(),
            server: None,
            started: None,
            ready: None,
            window: None,
            done: None,
            before: Holding::default(),
            sessions: None,
            kernel_before: KernelMemory::default(),
            points: Vec::new(),
            versions: BTreeMap::new(),
            round: Round::default(),
        }
    }

    pub(super) fn tree(&self) -> Tree {
        self.started.as_ref().map_or_else(|| Tree::new([]), Started::tree)
    }

    /// Starts the meters.
    pub(super) fn open_window(&mut self, arm: &Arm) -> io::Result<()> {
        let before = self.counters()?;
        let meter = Meter::start(&self.tree(), arm.accounting(), &self.wiring)?;
        self.window = Some(Window { meter, before });
        Ok(())
    }

    fn counters(&self) -> io::Result<Option<engine::Counters>> {
        match &self.started {
            Some(Started::Engine(engine)) => engine.counters().map(Some),
            _ => Ok(None),
        }
    }

    /// Reads the meters and says the main numbers.
    pub(super) fn sample(&mut self, load: &Load) -> io::Result<String> {
        let nothing = |what| io::Error::other(format!("there is no {what} to read"));
        let window = self.window.take().ok_or_else(|| nothing("window"))?;
        let used = window.meter.finish()?;
        let after = self.counters()?;
        let done = self.done.take().ok_or_else(|| nothing("load"))?;
        let mut samples = Samples::new();
        used.samples(&mut samples);
        used.per_gb(done.bytes, &mut samples);
        if let Some((what, pieces)) = done.pieces {
            used.per(what, pieces, &mut samples);
        }
        if let Load::Stream(stream) = load {
            #[expect(clippy::cast_precision_loss, reason = "a measurement")]
            let share = used.forwarder.seconds() / used.seconds / (stream.streams as f64 / 1000.0);
            samples.insert("cpu_share_per_1000_streams".to_owned(), share);
        }
        if let Load::Hold(hold) = load {
            Holding::of(&self.tree()).per_session(&self.before, hold.sessions, &mut samples);
            #[expect(clippy::cast_precision_loss, reason = "a measurement")]
            let cpu = used.forwarder.seconds() * 1e6 / used.seconds / hold.sessions.max(1) as f64;
            samples.insert("cpu_us_per_session_second".to_owned(), cpu);
        }
        if let (Some(before), Some(after)) = (window.before, after) {
            #[expect(clippy::cast_precision_loss, reason = "a measurement")]
            let mut add = |name: &str, value: u64| samples.insert(name.to_owned(), value as f64);
            add("spliced_bytes", after.spliced - before.spliced);
            add("copied_bytes", after.copied - before.copied);
            samples.insert("forwarder_cpu_seconds_by_itself".to_owned(), after.cpu_seconds - before.cpu_seconds);
        }
        if self.round.kind == Kind::Limit {
            // Nothing in user space forwards: that its cost is 0 is no measurement.
            samples.retain(|name, _| !is_forwarders(name));
        }
        samples.extend(done.samples);
        self.round.samples.extend(samples);
        self.round.latency = done.latency;
        self.round.notes.extend(done.notes);
        self.round.notes.extend(used.note());
        Ok(load::headline(load, &self.round))
    }

    /// Looks at the forwarder during a load of its own. Where it cannot be done, the round says so: its other numbers
    /// stand.
    pub(super) fn look(&mut self, arm: &Arm, load: &Load, pass: Pass) -> io::Result<String> {
        self.look_at(arm, load, pass).or_else(|error| {
            stop::check()?;
            self.round.notes.push(format!("could not {}: {error}", pass.name()));
            Ok(error.to_string())
        })
    }

    fn look_at(&mut self, arm: &Arm, load: &Load, pass: Pass) -> io::Result<String> {
        // Beside the files of the measurement, not over them.
        let directory = self.directory(arm)?.join("passes");
        std::fs::create_dir_all(&directory).map_err(about("make the directory", &directory))?;
        let tree = self.tree();
        let looking = match pass {
            Pass::Syscalls => Looking::Syscalls(Syscalls::attach(&tree, &directory)?),
            Pass::Counters => Looking::Counters(Counters::attach(&tree, &directory)?),
            Pass::Profile => Looking::Profile(Recording::start(&tree, &directory)?),
        };
        let done = load.prepare(&arm.wiring(&self.wiring), &directory)?.run()?;
        match looking {
            Looking::Syscalls(syscalls) => Ok(self.count(syscalls.detach()?, done.bytes)),
            Looking::Counters(counters) => {
                let counted = counters.detach()?;
                counted.samples(done.bytes, &mut self.round.samples);
                self.round.notes.extend(counted.note());
                Ok(format!("{:?}", counted.counts))
            }
            Looking::Profile(recording) => {
                let profile = recording.finish(&format!("{}, {}", arm.name, load::describe(load)))?;
                let top = profile.top.iter().take(8);
                let top = top.map(|function| format!("{} {:.0} %", function.name, function.itself * 100.0));
                let top = Vec::from_iter(top).join(", ");
                let svg = profile.svg.display();
                self.round.notes.push(format!("time by {}: {top}; flame graph: {svg}", profile.event));
                Ok(top)
            }
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a measurement")]
    fn count(&mut self, calls: Calls, bytes: u64) -> String {
        let total = calls.total();
        if bytes > 0 {
            self.round.samples.insert("syscalls_per_gb".to_owned(), total as f64 / (bytes as f64 / 1e9));
        }
        self.round.syscalls = calls.calls;
        format!("{total} calls for {bytes} bytes")
    }

    /// Holds more sessions and keeps what that costs as a point.
    #[expect(clippy::cast_precision_loss, reason = "a measurement")]
    pub(super) fn grow(&mut self, total: u32) -> io::Result<String> {
        let sessions = self.sessions.as_mut().ok_or_else(|| io::Error::other("no sessions are held"))?;
        if let Some(limit) = sessions.limit() {
            return Ok(format!("left out: {limit}"));
        }
        let held = sessions.grow(total as usize)?;
        if let Some(started) = &mut self.started {
            started.check()?;
        }
        let tree = self.tree();
        let mut values = Samples::new();
        if self.round.kind != Kind::Limit {
            UserMemory::of(&tree).samples(&mut values);
            Descriptors::of(&tree).samples(&mut values);
        }
        let (now, before) = (KernelMemory::now(), self.kernel_before);
        for (name, now, before) in [
            ("kernel_bytes", now.total(), before.total()),
            ("kernel_slab_bytes", now.slab, before.slab),
            ("kernel_tcp_bytes", now.tcp, before.tcp),
        ] {
            values.insert(name.to_owned(), now.saturating_sub(before) as f64);
        }
        if held.open < u64::from(total) {
            let note = format!("{} of {total} sessions could be held: {}", held.open, held.why());
            self.round.notes.push(note);
        }
        let said = format!("{} sessions, {values:?}", held.open);
        self.points.push(Point { x: held.open as f64, values });
        Ok(said)
    }

    /// Where files of an arm go.
    pub(super) fn directory(&self, arm: &Arm) -> io::Result<PathBuf> {
        let directory = self.out.join(&arm.name);
        std::fs::create_dir_all(&directory).map_err(about("make the directory", &directory))?;
        Ok(directory)
    }

    pub(super) fn holdings(&mut self) -> io::Result<()> {
        if self.round.kind == Kind::Limit {
            return Ok(());
        }
        let tree = self.tree();
        UserMemory::of(&tree).samples(&mut self.round.samples);
        Descriptors::of(&tree).samples(&mut self.round.samples);
        if let Some(counters) = self.counters()? {
            #[expect(clippy::cast_precision_loss, reason = "a measurement")]
            let over = counters.pipes.saturating_sub(counters.pipe_budget) as f64;
            self.round.samples.insert("pipes_over_budget".to_owned(), over);
        }
        Ok(())
    }
}

/// Whether a sample is of the forwarder alone. Memory of the kernel is that of all three sides.
fn is_forwarders(sample: &str) -> bool {
    let held = sample.ends_with("_per_session") && !sample.starts_with("kernel_");
    let spent = sample.starts_with("forwarder_") || sample.starts_with("cpu_");
    held || spent || ["start_rss_bytes", "context_switches_per_gb"].contains(&sample)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_holds_is_measured_without_a_forwarder_too() {
        for sample in ["forwarder_cpu_seconds_per_gb", "cpu_us_per_exchange", "pipes_per_session", "start_rss_bytes"] {
            assert!(is_forwarders(sample), "{sample}");
        }
        for sample in ["kernel_bytes_per_session", "machine_cpu_seconds_per_gb", "gbit_per_second"] {
            assert!(!is_forwarders(sample), "{sample}");
        }
    }
}
