//! What becomes of threads that panic.
//!
//! A worker is replaced, see [`Fleet::reap`](crate::fleet::Fleet::reap). The threads beside them, which look up names,
//! check targets, write the session log and make sockets in other namespaces, go on: they have what nobody could give
//! to another one, such as the end of a channel or a namespace the process may not enter any more. The control thread
//! tells and counts it either way.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use mio::Waker;

/// So many failed threads …
const MOST: usize = 5;
/// … in this time are no accident: the process gives up.
const WINDOW: Duration = Duration::from_secs(60);

/// When threads failed lately.
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

/// A thread that has panicked and goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panicked {
    /// Its name.
    pub thread: String,
    /// What it said.
    pub why: String,
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

/// Does a thread's work until that ends well. After a panic, or an error, it is told and done again, with true: then
/// whatever the work holds may be halfway. A thread that fails again and again ends: so does the process.
pub fn go_on(mut work: impl FnMut(bool) -> Result<(), String>) {
    let mut recent = Recent::default();
    let mut again = false;
    while let Err(why) = caught(|| work(again)).and_then(|result| result) {
        let mut news = news();
        news.panicked.push(Panicked { thread: thread::current().name().unwrap_or("without a name").to_owned(), why });
        if let Some(Err(e)) = news.waker.as_ref().map(|waker| waker.wake()) {
            log::debug!("cannot wake the control thread: {e}");
        }
        drop(news);
        recent.note(Instant::now());
        if recent.are_too_many() {
            return;
        }
        again = true;
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
    fn work_goes_on_after_a_panic_and_not_for_ever() {
        let (mut done, mut begun) = (Vec::new(), 0);
        go_on(|again| {
            begun += 1;
            done.push(again);
            if begun < 3 { panic!("number {begun}") } else { Ok(()) }
        });
        assert_eq!(done, [false, true, true]);
        let mut tries = 0;
        go_on(|_| {
            tries += 1;
            Err("of no use".to_owned())
        });
        assert_eq!(tries, MOST);
        let own = thread::current().name().map(str::to_owned);
        let said: Vec<String> = take().into_iter().filter(|p| Some(&p.thread) == own.as_ref()).map(|p| p.why).collect();
        assert_eq!(said, ["number 1", "number 2", "of no use", "of no use", "of no use", "of no use", "of no use"]);
    }
}
