//! What becomes of threads that panic.
//!
//! A worker is replaced, see [`Fleet::reap`](crate::fleet::Fleet::reap). The threads beside them, which look up names,
//! check targets, write the session log and make sockets in other namespaces, go on: they have what nobody could give
//! to another one, such as the end of a channel or a namespace the process may not enter any more. However often they
//! panic, sessions are worth more than what they do, so they never give up and never end the process. The control thread
//! tells and counts it either way.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use mio::Waker;

/// So many failed workers …
const MOST: usize = 5;
/// … in this time are no accident: the process gives up.
const WINDOW: Duration = Duration::from_secs(60);
/// From a helper's panic to its next try: the first time, and at the most.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);
/// So long without a panic makes the next one the first again.
const CALM: Duration = Duration::from_secs(60);

/// When workers failed lately.
#[derive(Debug, Default)]
pub struct Recent(VecDeque<Instant>);

impl Recent {
    /// One has.
    pub fn note(&mut self, now: Instant) {
        self.0.push_back(now);
        self.0.retain(|at| now.saturating_duration_since(*at) < WINDOW);
    }

    /// Whether going on is no answer.
    #[must_use]
    pub fn are_too_many(&self) -> bool {
        self.0.len() >= MOST
    }
}

/// A thread beside the workers has panicked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panicked {
    /// Its name.
    pub thread: String,
    /// What it said.
    pub why: String,
    /// What that means for the process.
    pub then: &'static str,
}

/// What the control thread has not heard of yet, and how it is woken. Threads begin before there is a control thread's
/// loop, and some in places that know nothing of it.
static NEWS: Mutex<News> = Mutex::new(News { panicked: Vec::new(), waker: None });

struct News {
    panicked: Vec<Panicked>,
    waker: Option<Arc<Waker>>,
}

fn news() -> MutexGuard<'static, News> {
    NEWS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Wakes this one when a thread has panicked.
pub fn wake(waker: &Arc<Waker>) {
    news().waker = Some(Arc::clone(waker));
}

/// Those that have panicked since the last call.
#[must_use]
pub fn take() -> Vec<Panicked> {
    std::mem::take(&mut news().panicked)
}

/// Those of the threads with this name, for tests beside others that panic as well.
#[cfg(test)]
pub fn take_of(thread: &str) -> Vec<Panicked> {
    news().panicked.extract_if(.., |panicked| panicked.thread == thread).collect()
}

/// Tells the control thread that this one has panicked.
pub fn tell(why: String, then: &'static str) {
    let thread = thread::current().name().unwrap_or("without a name").to_owned();
    let mut news = news();
    news.panicked.push(Panicked { thread, why, then });
    if let Some(Err(e)) = news.waker.as_ref().map(|waker| waker.wake()) {
        log::debug!("cannot wake the control thread: {e}");
    }
}

/// What a thread beside the workers does.
pub trait Helper {
    /// Its work, until it is told to end. After a panic or an error, which count as the same, it is called again, with
    /// true: whatever it holds may be halfway then.
    ///
    /// # Errors
    /// Why it cannot go on as it is.
    fn work(&mut self, again: bool) -> Result<(), String>;

    /// Lets that time pass before the next try, but no more of it once the thread is told to end. False: there is no
    /// next try.
    fn pause(&mut self, time: Duration) -> bool;
}

/// Does a thread's work until it is told to end. Each panic is told, and the work taken up again after a pause that
/// grows, so that one that comes at every try costs next to nothing.
pub fn go_on(helper: &mut impl Helper) {
    let (mut pauses, mut again) = (Pauses::default(), false);
    while let Err(why) = caught(|| helper.work(again)).and_then(|result| result) {
        tell(why, "it goes on with what it had, and so do sessions");
        let time = pauses.next(Instant::now());
        if !caught(|| helper.pause(time)).unwrap_or(true) {
            return;
        }
        again = true;
    }
}

/// From tries that failed to the next ones.
#[derive(Debug, Default)]
struct Pauses {
    /// When the last one failed, and what the pause was.
    last: Option<(Instant, Duration)>,
}

impl Pauses {
    fn next(&mut self, now: Instant) -> Duration {
        let recent = self.last.filter(|(at, _)| now.saturating_duration_since(*at) < CALM);
        let pause = recent.map_or(SHORTEST, |(_, pause)| (pause * 2).min(LONGEST));
        self.last = Some((now, pause));
        pause
    }
}

/// What a step comes to, or what it said when it panicked.
///
/// # Errors
/// The panic's message.
pub fn caught<T>(step: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(step)).map_err(|payload| message(&*payload))
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied().map(str::to_owned);
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_within_a_minute_are_too_many() {
        let (begun, mut recent) = (Instant::now(), Recent::default());
        for n in 0..20 {
            recent.note(begun + n * Duration::from_secs(16));
            assert!(!recent.are_too_many(), "four in any minute");
        }
        (0..4).for_each(|_| recent.note(begun + 19 * Duration::from_secs(16)));
        assert!(recent.are_too_many());
    }

    #[test]
    fn pauses_grow_until_there_is_calm() {
        let (mut now, mut pauses) = (Instant::now(), Pauses::default());
        let mut next = |after: u64| {
            now += Duration::from_secs(after);
            u64::try_from(pauses.next(now).as_millis()).unwrap()
        };
        let grown: Vec<u64> = (0..9).map(|_| next(1)).collect();
        assert_eq!(grown, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(next(59), 10_000, "not a minute yet");
        assert_eq!((next(60), next(1)), (100, 200));
    }

    /// Fails a number of times; told to end in a pause or by then.
    #[derive(Default)]
    struct Failing {
        again: Vec<bool>,
        failures: usize,
        pauses: Vec<Duration>,
        ends_after: Option<usize>,
    }

    impl Helper for Failing {
        fn work(&mut self, again: bool) -> Result<(), String> {
            self.again.push(again);
            match self.again.len() {
                n if n > self.failures => Ok(()),
                n if n % 2 == 0 => Err(format!("number {n}")),
                n => panic!("number {n}"),
            }
        }

        fn pause(&mut self, time: Duration) -> bool {
            self.pauses.push(time);
            self.ends_after != Some(self.pauses.len())
        }
    }

    #[test]
    fn work_goes_on_however_often_it_panics() {
        let mut helper = Failing { failures: 50, ..Failing::default() };
        go_on(&mut helper);
        assert_eq!((helper.again.len(), helper.again.iter().position(|again| *again)), (51, Some(1)));
        assert_eq!((helper.pauses.len(), helper.pauses[..2].to_vec()), (50, vec![SHORTEST, SHORTEST * 2]));
        let mut ending = Failing { failures: 50, ends_after: Some(2), ..Failing::default() };
        go_on(&mut ending);
        assert_eq!(ending.again.len(), 2, "told to end, it does not try again");
        let said: Vec<String> = take_of(thread::current().name().unwrap()).into_iter().map(|p| p.why).collect();
        let expected: Vec<String> = (1..=50).chain(1..=2).map(|n| format!("number {n}")).collect();
        assert_eq!(said, expected);
    }
}
