//! The health checks of a plan: a thread of its own where there are some.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::names::Board;
use crate::upstream::{Checked, Checker, News};
use crate::worker::Message;

/// The thread that asks targets, while some plan has asked for checks.
#[derive(Debug, Default)]
pub(super) struct Checks(Option<Checker>);

/// A thread for a plan that is not in use yet; nothing where one runs already or none is needed.
#[derive(Debug)]
pub(super) struct Prepared(Option<Checker>);

impl Checks {
    /// Starts the thread where it is needed, with nobody to ask yet.
    pub(super) fn prepare(&self, needed: bool, board: &Arc<Mutex<Board>>) -> io::Result<Prepared> {
        if !needed || self.0.is_some() {
            return Ok(Prepared(None));
        }
        let board = Arc::clone(board);
        let tell = move |news: News| {
            let message = || match &news {
                News::Up => Message::RoomFree,
                News::End(endpoint) => Message::TargetDown(Arc::clone(endpoint)),
            };
            for peer in &board.lock().unwrap_or_else(PoisonError::into_inner).peers {
                // One that has ended needs no telling.
                let _ = peer.mailbox.post(message());
            }
        };
        Checker::start(tell).map(|checker| Prepared(Some(checker)))
    }

    /// Asks the targets of these forwards from now on.
    pub(super) fn commit(&mut self, prepared: Prepared, forwards: Vec<Checked>) {
        self.0 = prepared.0.or(self.0.take());
        if let Some(checker) = &self.0 {
            checker.check(forwards);
        }
    }
}
