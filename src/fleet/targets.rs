//! Targets changed while running: every worker that has sessions to end or waiting ones to look again is told.

use std::sync::Arc;

use super::Fleet;
use crate::plan::OnDown;
use crate::upstream::{Admin, Command, Endpoint, Targets};
use crate::worker::Message;

impl Fleet {
    /// Does to a target what a command says; the targets of its forward, and what the forward does with the sessions of a
    /// target that is down.
    ///
    /// # Errors
    /// There is no such forward or target: those there are.
    pub fn command_target(&self, forward: &str, target: &str, command: Command) -> Result<(&Targets, OnDown), String> {
        let views = || self.forwards().filter(|view| !view.removed);
        let Some(view) = views().find(|view| view.forward.name == forward) else {
            let names: Vec<String> = views().map(|view| format!("{:?}", view.forward.name)).collect();
            return Err(format!("there is no forward {forward:?}; the forwards: {}", names.join(", ")));
        };
        let endpoints = view.targets.command(target, command)?;
        let on_down = view.forward.balancing.on_down;
        if command == Command::Admin(Admin::Disabled) && on_down == OnDown::End {
            endpoints.iter().for_each(|endpoint| self.end_sessions_of(endpoint));
        }
        // Those that wait for room may have some elsewhere now.
        self.tell(|| Message::RoomFree);
        Ok((view.targets, on_down))
    }

    fn end_sessions_of(&self, endpoint: &Arc<Endpoint>) {
        self.tell(|| Message::TargetDown(Arc::clone(endpoint)));
    }
}
