//! Experiments: every arm under every load, in turn, round after round.

pub mod action;
pub mod arm;
pub mod bench;
pub mod capacity;
pub mod case;
pub mod engine;
pub mod file;
pub mod host;
pub mod load;
pub mod progress;
mod routes;
pub mod table;

use std::collections::BTreeSet;
use std::path::Path;

use action::{Action, Pass};
use arm::Arm;
use bench::Bench;
use case::Case;
use progress::Progress;

use crate::load::Load;
use crate::plan::runner::{Failed, Runner, now};
use crate::plan::stop;
use crate::plan::trace::Trace;
use crate::results::{Goal, Kind, Missing, Results, Round, Settings};
use crate::topology::{self, links::Links};

/// How often a measurement is tried again, on clean ground, when its load failed.
const ATTEMPTS: u32 = 2;

/// What is measured.
#[derive(Debug, Clone)]
pub struct Experiment {
    /// The command, such as `ab`.
    pub name: String,
    /// One line for people.
    pub title: String,
    /// What the links are like.
    pub links: Links,
    /// What is compared.
    pub arms: Vec<Arm>,
    /// Under what.
    pub cases: Vec<Case>,
    /// What is to be reached.
    pub goals: Vec<Goal>,
    /// How often.
    pub rounds: u32,
    /// What was asked for.
    pub settings: Settings,
    /// What else is looked at in the first round, each in a pass of its own.
    pub passes: Vec<Pass>,
    /// What could not take part.
    pub missing: Vec<Missing>,
}

/// An experiment that is over.
#[derive(Debug)]
pub struct Finished {
    /// What it found, as far as it came.
    pub results: Results,
    /// Why it did not come to its end.
    pub failed: Option<Failed>,
}

fn take_back(runner: &mut Runner<Action>) {
    for failed in runner.back_to(0) {
        crate::tell!("lab: {}", not_taken_back(&failed));
    }
}

/// What a forwarder said that died under a load is often told only by the step back.
fn not_taken_back(failed: &Failed) -> String {
    format!("could not be taken back: {failed}")
}

impl Experiment {
    /// The steps that come before the first round, and again where the links are to be others.
    #[must_use]
    pub fn setup(links: &Links) -> Vec<Action> {
        topology::steps(links).into_iter().map(Action::Command).collect()
    }

    /// The links of a case.
    #[must_use]
    pub fn links_of(&self, case: &Case) -> Links {
        case.links.unwrap_or(self.links)
    }

    fn rounds_of(&self, case: &Case) -> u32 {
        case.rounds.unwrap_or(self.rounds)
    }

    fn measurements(&self) -> u64 {
        let of = |case: &Case| {
            let arms = self.arms.iter().filter(|arm| case.takes(arm)).count();
            u64::from(self.rounds_of(case)) * u64::try_from(arms).unwrap_or(u64::MAX)
        };
        self.cases.iter().map(of).sum()
    }

    /// The steps of one measurement. They are taken back right after it.
    #[must_use]
    pub fn measurement(&self, round: u32, arm: &Arm, load: &Load) -> Vec<Action> {
        let mut steps = vec![
            Action::Serve(load.clone()),
            Action::Start(arm.clone()),
            Action::Before,
            Action::Connect(arm.clone(), load.clone()),
            Action::Meter(arm.clone()),
            Action::Load(load.clone()),
            Action::Sample(load.clone()),
            Action::Holdings,
        ];
        if round == 1 && arm.kind != Kind::Limit {
            // A profile is no better for being short.
            let load = |pass| if pass == Pass::Profile { load.clone() } else { load::brief(load) };
            steps.extend(self.passes.iter().map(|pass| Action::Look(arm.clone(), load(*pass), *pass)));
        }
        steps
    }

    /// Measures. Call it inside, see [`topology::sandbox`].
    ///
    /// # Errors
    /// When the trace cannot be written.
    pub fn run(&self, spliced: &Path, out: &Path) -> std::io::Result<Finished> {
        let mut results = self.results(spliced);
        let mut runner = Runner::new(Bench::new(spliced, out), Trace::create(out)?);
        let mut progress = Progress::new(self.measurements());
        let failed = self.measure(&mut runner, &mut results, &mut progress);
        progress.finish();
        take_back(&mut runner);
        results.take_versions(std::mem::take(&mut runner.bench.versions));
        Ok(Finished { results, failed: failed.err() })
    }

    fn results(&self, spliced: &Path) -> Results {
        let tools: Vec<_> = self.cases.iter().flat_map(|case| load::tools(&case.load)).collect();
        Results {
            version: Results::VERSION,
            experiment: self.name.clone(),
            title: self.title.clone(),
            started: now(),
            host: host::host(),
            settings: self.settings.clone(),
            tools: host::versions(spliced, &tools),
            missing: self.missing.clone(),
            rounds: Vec::new(),
            series: Vec::new(),
            goals: self.goals.clone(),
        }
    }

    fn measure(
        &self,
        runner: &mut Runner<Action>,
        results: &mut Results,
        progress: &mut Progress,
    ) -> Result<(), Failed> {
        // Arms that could not be started are not tried in every round.
        let mut dead = BTreeSet::new();
        // Nor is a load they could not carry at all, which takes the longest to find out.
        let mut cannot = BTreeSet::new();
        let mut up = None;
        let last = self.cases.iter().map(|case| self.rounds_of(case)).max().unwrap_or(0);
        for number in 1..=last {
            for case in self.cases.iter().filter(|case| number <= self.rounds_of(case)) {
                let links = self.links_of(case);
                if up != Some(links) {
                    take_back(runner);
                    runner.take_all(&Self::setup(&links))?;
                    up = Some(links);
                }
                for arm in self.arms.iter().filter(|arm| case.takes(arm)) {
                    let what = format!("round {number}, {}, {}", case.id(), arm.name);
                    let key = (arm.name.clone(), case.describe());
                    if dead.contains(&arm.name) || cannot.contains(&key) {
                        progress.end(&format!("{what}: left out"));
                        continue;
                    }
                    progress.begin(&what);
                    let (round, started) = self.one(runner, number, arm, case)?;
                    let line = match &round.error {
                        None => load::headline(&case.load, &round),
                        Some(error) => error.clone(),
                    };
                    progress.end(&format!("{what}: {line}"));
                    if !started {
                        dead.insert(arm.name.clone());
                        let how = round.error.clone().unwrap_or_default();
                        results.missing.push(Missing { name: arm.name.clone(), how });
                    } else if round.error.is_some() {
                        cannot.insert(key);
                    }
                    results.rounds.push(round);
                }
            }
        }
        Ok(())
    }

    /// One measurement, and whether its forwarder could be started, as far as that was tried. Only the wish to stop is an error: another arm may do
    /// better.
    fn one(&self, runner: &mut Runner<Action>, number: u32, arm: &Arm, case: &Case) -> Result<(Round, bool), Failed> {
        let load = &case.load;
        let mut notes = Vec::new();
        for attempt in 1..=ATTEMPTS {
            runner.bench.round = Round {
                round: number,
                arm: arm.name.clone(),
                kind: arm.kind,
                load: load::name(load).to_owned(),
                settings: case.settings(),
                notes: notes.clone(),
                ..Round::default()
            };
            let depth = runner.depth();
            let result = runner.take_all(&self.measurement(number, arm, load));
            // The server was up, and the forwarder did not follow. Without a server nothing is known of the forwarder.
            let started = runner.depth() != depth + 1;
            let back = Vec::from_iter(runner.back_to(depth).iter().map(not_taken_back));
            let mut round = std::mem::take(&mut runner.bench.round);
            match result {
                Ok(()) => {
                    round.notes.extend(back);
                    return Ok((round, true));
                }
                Err(failed) if failed.stopped() || stop::requested() => return Err(failed),
                Err(failed) if !started || attempt == ATTEMPTS => {
                    round.error = Some(failed.to_string());
                    round.samples.clear();
                    round.notes.extend(back);
                    return Ok((round, started));
                }
                Err(failed) => {
                    notes.push(format!("tried again after: {failed}"));
                    notes.extend(back);
                }
            }
        }
        unreachable!("the last attempt returns")
    }
}
