//! One direction of a session: fill, drain, finish.
//!
//! A [`Flow`] knows no event, no slab and no timer. It is driven through [`Transfer`], so that tests can drive it
//! with scripted results and the real program with sockets and pipes.
//!
//! Invariants, each with a test below:
//! 1. It fills only when nothing is held.
//! 2. It finishes only at the end of the source and when nothing is held.
//! 3. The end is passed on once.
//! 4. Whatever the outcome, [`Transfer::park`] is the last thing it calls.

use std::io;

/// What a flow does to the world.
pub trait Transfer {
    /// Whether the source may have bytes or an end. False saves the system call.
    fn may_fill(&self) -> bool;
    /// Takes bytes from the source; 0 is its end. Called only while nothing is held.
    ///
    /// # Errors
    /// `WouldBlock` when the source is dry, otherwise what the source reported.
    fn fill(&mut self) -> io::Result<usize>;
    /// Whether the target may take bytes. False saves the system call.
    fn may_drain(&self) -> bool;
    /// Gives held bytes to the target; how many it took.
    ///
    /// # Errors
    /// `WouldBlock` when the target is full, otherwise what the target reported.
    fn drain(&mut self) -> io::Result<usize>;
    /// Bytes filled and not yet drained.
    fn held(&self) -> usize;
    /// Tells the target that no more bytes will come.
    ///
    /// # Errors
    /// What the target reported.
    fn finish(&mut self) -> io::Result<()>;
    /// The flow stops for now: give back what is shared, keep only what is held.
    fn park(&mut self);
}

/// Where a flow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flow {
    /// Nothing is held: take from the source.
    #[default]
    Fill,
    /// Bytes are held: give them to the target.
    Drain,
    /// The source has ended and nothing is held: pass the end on.
    Finish,
    /// The end has been passed on.
    Done,
}

/// Why [`Flow::advance`] stopped.
#[derive(Debug)]
pub enum Progress {
    /// The source is dry or the target is full: wait for an event.
    Blocked,
    /// The budget is used up: others first, then go on without waiting for an event.
    Yield,
    /// The end has been passed on.
    Done,
    /// The source failed.
    SourceFailed(io::Error),
    /// The target failed; held bytes cannot be delivered any more.
    TargetFailed(io::Error),
}

impl Flow {
    /// Moves bytes until something stops it, at most about `budget` bytes: the fill that crosses it is still drained.
    pub fn advance<T: Transfer>(&mut self, io: &mut T, budget: usize) -> Progress {
        let progress = self.run(io, budget);
        io.park();
        progress
    }

    fn run<T: Transfer>(&mut self, io: &mut T, budget: usize) -> Progress {
        let mut moved = 0;
        loop {
            match self {
                Self::Fill => {
                    debug_assert_eq!(io.held(), 0, "fill only when nothing is held");
                    if !io.may_fill() {
                        return Progress::Blocked;
                    }
                    if moved >= budget {
                        return Progress::Yield;
                    }
                    match io.fill() {
                        Ok(0) => *self = Self::Finish,
                        Ok(n) => {
                            moved += n;
                            *self = Self::Drain;
                        }
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Progress::Blocked,
                        Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                        Err(e) => return Progress::SourceFailed(e),
                    }
                }
                Self::Drain => {
                    debug_assert_ne!(io.held(), 0, "drain only when something is held");
                    if !io.may_drain() {
                        return Progress::Blocked;
                    }
                    match io.drain() {
                        Ok(0) => return Progress::TargetFailed(io::ErrorKind::WriteZero.into()),
                        Ok(_) if io.held() == 0 => *self = Self::Fill,
                        Ok(_) => {}
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Progress::Blocked,
                        Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                        Err(e) => return Progress::TargetFailed(e),
                    }
                }
                Self::Finish => {
                    debug_assert_eq!(io.held(), 0, "the end overtakes no byte");
                    *self = Self::Done;
                    if let Err(e) = io.finish() {
                        return Progress::TargetFailed(e);
                    }
                }
                Self::Done => return Progress::Done,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One result of the kernel.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Answer {
        Some,
        Zero,
        Again,
        Interrupted,
        Reset,
    }
    const ANSWERS: [Answer; 5] = [Answer::Some, Answer::Zero, Answer::Again, Answer::Interrupted, Answer::Reset];

    /// Answers fills and drains from one script, in the order they are asked, and checks the invariants.
    #[derive(Default)]
    struct Scripted {
        script: Vec<Answer>,
        at: usize,
        filled: usize,
        drained: usize,
        ended: bool,
        finished: usize,
        parked: bool,
    }

    impl Scripted {
        fn answer(&mut self) -> io::Result<usize> {
            self.parked = false;
            let answer = self.script.get(self.at).copied().unwrap_or(Answer::Again);
            self.at += 1;
            match answer {
                Answer::Some => Ok(3),
                Answer::Zero => Ok(0),
                Answer::Again => Err(io::ErrorKind::WouldBlock.into()),
                Answer::Interrupted => Err(io::ErrorKind::Interrupted.into()),
                Answer::Reset => Err(io::ErrorKind::ConnectionReset.into()),
            }
        }
    }

    impl Transfer for Scripted {
        fn may_fill(&self) -> bool {
            true
        }
        fn fill(&mut self) -> io::Result<usize> {
            assert_eq!(self.held(), 0, "filled while something is held");
            assert!(!self.ended, "filled after the end");
            // A fill takes 4 bytes where a drain takes 3: partial drains happen by themselves.
            let n = self.answer()?;
            self.ended = n == 0;
            self.filled += n.min(1) * 4;
            Ok(n.min(1) * 4)
        }
        fn may_drain(&self) -> bool {
            true
        }
        fn drain(&mut self) -> io::Result<usize> {
            assert_ne!(self.held(), 0, "drained while nothing is held");
            let n = self.answer()?.min(self.held());
            self.drained += n;
            Ok(n)
        }
        fn held(&self) -> usize {
            self.filled - self.drained
        }
        fn finish(&mut self) -> io::Result<()> {
            self.parked = false;
            assert!(self.ended && self.held() == 0, "finished before everything was delivered");
            self.finished += 1;
            Ok(())
        }
        fn park(&mut self) {
            self.parked = true;
        }
    }

    /// Runs one script to its end, advancing again after every block, as events would.
    fn play(script: Vec<Answer>, budget: usize) {
        let length = script.len();
        let mut io = Scripted { script, ..Scripted::default() };
        let mut flow = Flow::default();
        while io.at <= length {
            let before = io.at;
            let progress = flow.advance(&mut io, budget);
            assert!(io.parked, "park is the last call");
            assert_eq!(flow == Flow::Done, io.finished == 1, "the end is passed on exactly once");
            assert_eq!(flow == Flow::Drain, io.held() > 0, "the state says whether bytes are held");
            match progress {
                Progress::Done => {
                    assert_eq!(io.finished, 1);
                    assert_eq!(io.filled, io.drained);
                    assert!(matches!(flow.advance(&mut io, budget), Progress::Done));
                    assert_eq!(io.finished, 1);
                    return;
                }
                Progress::SourceFailed(_) => {
                    assert_eq!(io.held(), 0);
                    assert_eq!(io.finished, 0, "an error is no end");
                    return;
                }
                Progress::TargetFailed(e) => {
                    assert!(io.held() > 0);
                    assert_eq!(io.finished, 0);
                    assert!(matches!(e.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::WriteZero));
                    return;
                }
                Progress::Blocked => assert!(io.at > before, "blocked without asking"),
                Progress::Yield => assert_eq!(io.held(), 0, "yields only between fills"),
            }
        }
    }

    #[test]
    fn every_script_up_to_length_6_keeps_the_invariants() {
        let mut scripts = vec![Vec::new()];
        for _ in 0..6 {
            scripts = scripts
                .iter()
                .flat_map(|script| {
                    ANSWERS.iter().map(move |answer| {
                        let mut longer: Vec<Answer> = script.clone();
                        longer.push(*answer);
                        longer
                    })
                })
                .collect();
            for script in &scripts {
                play(script.clone(), usize::MAX);
                play(script.clone(), 4);
            }
        }
        assert_eq!(scripts.len(), 5usize.pow(6));
    }

    #[test]
    fn a_budget_yields_between_fills() {
        let mut io = Scripted { script: vec![Answer::Some; 30], ..Scripted::default() };
        let mut flow = Flow::default();
        assert!(matches!(flow.advance(&mut io, 8), Progress::Yield));
        assert_eq!((io.filled, io.held()), (8, 0));
    }
}
