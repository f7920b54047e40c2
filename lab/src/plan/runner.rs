//! Takes the steps of a plan one by one and, when it is over for whatever reason, back again in reverse order.

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use super::stop;
use super::trace::{self, Entry, Phase, Status, Trace};

/// Hidden from users: `N:error`, `N:stop` or `N:exit` makes step N fail, asks the lab to stop there, or ends it there
/// without taking anything back; `N:wait` says so and waits there to be stopped or killed.
const FAULT: &str = "SPLICED_LAB_FAULT";

/// One thing a plan does. Plain data, so that a plan can be shown, and taken back after its maker is gone.
pub trait Step: Clone {
    /// What the steps work on.
    type Bench;
    /// What it is for, in a few words.
    fn name(&self) -> String;
    /// The command line, or what else will be tried.
    fn tried(&self) -> String;
    /// Takes it.
    ///
    /// # Errors
    /// Why it was not taken; then nothing of it may be left.
    fn take(&self, bench: &mut Self::Bench) -> Result<Outcome, StepError>;
    /// Takes it back; `None` where there is nothing to take back.
    fn take_back(&self, bench: &mut Self::Bench) -> Option<Result<Outcome, StepError>>;
}

/// What a step that was taken left to say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Exit status of the program it ran, if any.
    pub exit: Option<i32>,
    /// What that said, or what was found.
    pub output: String,
}

impl Outcome {
    /// An outcome with only text.
    pub fn said(output: impl Into<String>) -> Self {
        Self { exit: None, output: output.into() }
    }
}

/// Why a step was not taken.
#[derive(Debug)]
pub struct StepError {
    /// Exit status of the program it ran, if it came to that.
    pub exit: Option<i32>,
    /// What went wrong.
    pub error: io::Error,
}

impl From<io::Error> for StepError {
    fn from(error: io::Error) -> Self {
        Self { exit: None, error }
    }
}

/// A step that failed, as told to the user.
#[derive(Debug)]
pub struct Failed {
    /// Its number, from 1.
    pub step: u64,
    /// What it was for.
    pub name: String,
    /// What was tried.
    pub tried: String,
    /// What went wrong.
    pub error: io::Error,
}

impl Failed {
    /// Whether the lab was asked to stop, rather than anything having gone wrong.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.error.kind() == io::ErrorKind::Interrupted && stop::requested()
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {} ({}) failed: {}; tried: {}", self.step, self.name, self.error, self.tried)
    }
}

impl std::error::Error for Failed {}

/// What to do to the lab at a step, for tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Error,
    Stop,
    Exit,
    Wait,
}

/// Said by the fault that waits.
pub const WAITING: &str = "lab: waiting to be ended";

/// Runs steps. Dropping it takes back what is still taken.
#[derive(Debug)]
pub struct Runner<S: Step> {
    /// What the steps work on.
    pub bench: S::Bench,
    trace: Trace,
    taken: Vec<(u64, S)>,
    count: u64,
    fault: Option<(u64, Fault)>,
}

impl<S: Step> Runner<S> {
    /// Nothing taken yet.
    pub fn new(bench: S::Bench, trace: Trace) -> Self {
        Self { bench, trace, taken: Vec::new(), count: 0, fault: fault_wished() }
    }

    /// How many steps would be taken back now; for [`Runner::back_to`].
    #[must_use]
    pub fn depth(&self) -> usize {
        self.taken.len()
    }

    /// Takes every step in order, up to the first that fails.
    ///
    /// # Errors
    /// The step that failed. What was taken before it stays taken.
    pub fn take_all<'a>(&mut self, steps: impl IntoIterator<Item = &'a S>) -> Result<(), Failed>
    where
        S: 'a,
    {
        steps.into_iter().try_for_each(|step| self.take(step).map(drop))
    }

    /// Takes one step and says what it said.
    ///
    /// # Errors
    /// The step, when it failed or the lab was asked to stop.
    pub fn take(&mut self, step: &S) -> Result<String, Failed> {
        self.count += 1;
        let number = self.count;
        let (began, started) = (Instant::now(), now());
        let result = stop::check()
            .map_err(StepError::from)
            .and_then(|()| self.inject(number))
            .and_then(|()| step.take(&mut self.bench));
        let (status, exit, output) = match &result {
            Ok(outcome) => (Status::Ok, outcome.exit, outcome.output.clone()),
            Err(error) => (status_of(&error.error), error.exit, error.error.to_string()),
        };
        if result.is_ok() {
            self.taken.push((number, step.clone()));
        }
        let (name, tried) = (step.name(), step.tried());
        let entry = Entry {
            step: number,
            name: name.clone(),
            tried: tried.clone(),
            phase: Phase::Do,
            started,
            seconds: trace::seconds(began.elapsed()),
            status,
            exit,
            output,
        };
        let written = self.trace.write(&entry);
        let failed = |error| Failed { step: number, name, tried, error };
        match (result, written) {
            (Err(error), _) => Err(failed(error.error)),
            (Ok(_), Err(error)) => {
                Err(failed(io::Error::new(error.kind(), format!("cannot write the trace: {error}"))))
            }
            (Ok(outcome), Ok(())) => Ok(outcome.output),
        }
    }

    /// Takes back, last first, until `depth` steps are left. A step that cannot be taken back is said and does not
    /// keep the others.
    pub fn back_to(&mut self, depth: usize) -> Vec<Failed> {
        let mut failed = Vec::new();
        while self.taken.len() > depth {
            let Some((number, step)) = self.taken.pop() else { break };
            let (began, started) = (Instant::now(), now());
            let Some(result) = step.take_back(&mut self.bench) else { continue };
            let (status, exit, output) = match &result {
                Ok(outcome) => (Status::Ok, outcome.exit, outcome.output.clone()),
                Err(error) => (Status::Failed, error.exit, error.error.to_string()),
            };
            let entry = Entry {
                step: number,
                name: step.name(),
                tried: step.tried(),
                phase: Phase::Undo,
                started,
                seconds: trace::seconds(began.elapsed()),
                status,
                exit,
                output,
            };
            // Going back goes on whatever becomes of the trace.
            let _ = self.trace.write(&entry);
            if let Err(error) = result {
                failed.push(Failed { step: number, name: entry.name, tried: entry.tried, error: error.error });
            }
        }
        failed
    }

    /// Leaves everything as it is: nothing is taken back any more.
    pub fn keep(&mut self) {
        self.taken.clear();
    }

    fn inject(&self, number: u64) -> Result<(), StepError> {
        let Some((_, fault)) = self.fault.filter(|(at, _)| *at == number) else { return Ok(()) };
        match fault {
            Fault::Error => Err(io::Error::other(format!("a fault was wished for at step {number}")).into()),
            Fault::Exit => std::process::exit(70),
            Fault::Stop => {
                stop::request();
                Ok(stop::check()?)
            }
            Fault::Wait => {
                crate::tell!("{WAITING}");
                let nothing = || Ok(None::<()>);
                stop::wait(Duration::from_secs(60), nothing)?;
                Err(io::Error::other("nobody ended the lab").into())
            }
        }
    }
}

impl<S: Step> Drop for Runner<S> {
    fn drop(&mut self) {
        for failed in self.back_to(0) {
            crate::tell!("lab: could not be taken back: {failed}");
        }
    }
}

fn fault_wished() -> Option<(u64, Fault)> {
    let text = std::env::var(FAULT).ok()?;
    let (number, fault) = text.split_once(':')?;
    let fault = match fault {
        "error" => Fault::Error,
        "stop" => Fault::Stop,
        "exit" => Fault::Exit,
        "wait" => Fault::Wait,
        _ => return None,
    };
    Some((number.parse().ok()?, fault))
}

fn status_of(error: &io::Error) -> Status {
    if error.kind() == io::ErrorKind::Interrupted && stop::requested() { Status::Stopped } else { Status::Failed }
}

/// The time of day, RFC 3339 in UTC.
#[must_use]
pub fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone)]
    struct Push(u32);

    impl Step for Push {
        type Bench = Vec<u32>;

        fn name(&self) -> String {
            format!("push {}", self.0)
        }

        fn tried(&self) -> String {
            self.name()
        }

        fn take(&self, bench: &mut Vec<u32>) -> Result<Outcome, StepError> {
            if self.0 == 13 {
                return Err(io::Error::other("thirteen").into());
            }
            bench.push(self.0);
            Ok(Outcome::default())
        }

        fn take_back(&self, bench: &mut Vec<u32>) -> Option<Result<Outcome, StepError>> {
            assert_eq!(bench.pop(), Some(self.0), "last first");
            (self.0 != 2).then(|| Err(io::Error::other("stuck").into()))
        }
    }

    #[test]
    fn a_failing_step_names_itself_and_all_goes_back() {
        let directory = tempfile::tempdir().unwrap();
        let mut runner = Runner::new(Vec::new(), Trace::create(directory.path()).unwrap());
        runner.take_all(&[Push(1), Push(2)]).unwrap();
        let depth = runner.depth();
        let failed = runner.take_all(&[Push(3), Push(13), Push(4)]).unwrap_err();
        assert_eq!(failed.to_string(), "step 4 (push 13) failed: thirteen; tried: push 13");
        assert_eq!(runner.bench, [1, 2, 3]);
        assert_eq!(runner.back_to(depth).len(), 1, "a step that is stuck is said");
        assert_eq!(runner.bench, [1, 2]);
        assert_eq!(runner.back_to(0).len(), 1, "and keeps no other");
        assert!(runner.bench.is_empty());
        let text = std::fs::read_to_string(directory.path().join(trace::FILE)).unwrap();
        let entries: Vec<Entry> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let told: Vec<_> = entries.iter().map(|entry| (entry.step, entry.phase, entry.status)).collect();
        let (ok, bad) = (Status::Ok, Status::Failed);
        assert_eq!(
            told,
            [
                (1, Phase::Do, ok),
                (2, Phase::Do, ok),
                (3, Phase::Do, ok),
                (4, Phase::Do, bad),
                (3, Phase::Undo, bad),
                (1, Phase::Undo, bad),
            ]
        );
    }
}
