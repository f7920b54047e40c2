//! What a file or a command line said, with marks, and how it becomes a [`Plan`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::address::Lookup;
use super::check;
use super::error::{Fault, Mark, quoted};
use super::nets::{Lists, Written};
use super::options::{ForwardOptions, Overrides, ProcessOptions};
use super::value::Maybe;
use crate::plan::{
    Access, AccessFiles, Engine, Forward, Limits, Listen, LogPlan, NetFile, Pattern, Plan, Target, Transport, Udp,
};

/// Everything one file says.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) process: ProcessOptions,
    /// Where the user stands that the process becomes.
    pub(super) user: Option<Mark>,
    /// Options of forwards that do not set them themselves.
    pub(super) defaults: ForwardOptions,
    pub(super) allow: Vec<Pattern>,
    pub(super) deny: Vec<Pattern>,
    pub(super) allow_files: Vec<Written>,
    pub(super) deny_files: Vec<Written>,
    pub(super) forwards: Vec<DraftForward>,
}

/// One forward as written.
#[derive(Debug, Default)]
pub(super) struct DraftForward {
    pub(super) name: Option<(Mark, String)>,
    /// Each address as written, with what it stands for.
    pub(super) listen: Vec<(Mark, Transport, Vec<Listen>)>,
    pub(super) to: Vec<(Mark, Target)>,
    /// What the targets speak, as the first one that says so says it.
    pub(super) to_transport: Option<(Mark, Transport)>,
    pub(super) max_connections: Option<Maybe<u64>>,
    pub(super) max_per_source: Option<Maybe<u64>>,
    pub(super) options: ForwardOptions,
    pub(super) allow: Vec<Pattern>,
    pub(super) deny: Vec<Pattern>,
    pub(super) allow_files: Vec<Written>,
    pub(super) deny_files: Vec<Written>,
}

/// Where the parts of a forward stand, in the order of the plan.
#[derive(Debug)]
pub(super) struct Marks {
    pub(super) name: Mark,
    pub(super) listen: Vec<Mark>,
    pub(super) udp: Vec<Mark>,
    pub(super) targets: Vec<Mark>,
}

impl Draft {
    /// The plan, with every check across values made.
    pub(super) fn build(self, overrides: &Overrides, lookup: &Lookup) -> Result<Plan, Fault> {
        let process = overrides.process.clone().or(&self.process);
        self.check_user(overrides, &process, lookup)?;
        let global_allow: Arc<[Pattern]> = [self.allow, overrides.allow.clone()].concat().into();
        let global_deny: Arc<[Pattern]> = [self.deny, overrides.deny.clone()].concat().into();
        let mut lists = Lists::new(lookup);
        let argument =
            |name, paths: &[PathBuf]| paths.iter().map(|path| (Mark::Argument(name), path.clone())).collect();
        let more: [Vec<Written>; 2] =
            [argument("--allow-file", &overrides.allow_file), argument("--deny-file", &overrides.deny_file)];
        let [more_allow, more_deny] = more;
        let global_allow_files: Arc<[NetFile]> = lists.load(&[self.allow_files, more_allow].concat())?.into();
        let global_deny_files: Arc<[NetFile]> = lists.load(&[self.deny_files, more_deny].concat())?.into();
        let mut forwards = Vec::with_capacity(self.forwards.len());
        let mut marks = Vec::with_capacity(self.forwards.len());
        for draft in self.forwards {
            let options = overrides.forward.clone().or(&draft.options).or(&self.defaults);
            let access = Access {
                global_allow: Arc::clone(&global_allow),
                global_deny: Arc::clone(&global_deny),
                allow: draft.allow.clone(),
                deny: draft.deny.clone(),
                files: AccessFiles {
                    global_allow: Arc::clone(&global_allow_files),
                    global_deny: Arc::clone(&global_deny_files),
                    allow: lists.load(&draft.allow_files)?,
                    deny: lists.load(&draft.deny_files)?,
                },
            };
            let (forward, mark) = draft.build(&options, access);
            forwards.push(forward);
            marks.push(mark);
        }
        let (resolving, privileges) = (process.resolving(), process.privileges());
        let plan = Plan {
            workers: process.workers.and_then(|n| n.0),
            pin: process.pin.unwrap_or_default(),
            gather: process.gather.unwrap_or(true),
            scheduling: process.scheduling.unwrap_or_default(),
            spin: process.spin.and_then(|time| time.0),
            max_connections: process.max_connections.and_then(|n| n.0),
            max_connections_per_source: process.max_connections_per_source.and_then(|n| n.0),
            drain_delay: process.drain_delay.unwrap_or_default(),
            drain: process.drain_timeout.map_or(Some(Duration::from_secs(30)), |time| time.0),
            upgrade_drain: process.upgrade_drain_timeout.and_then(|time| time.0),
            control: process.control,
            metrics: process.metrics,
            log: LogPlan { format: process.log_format.unwrap_or_default(), file: process.log_file },
            resolving,
            pid_file: process.pid_file,
            privileges,
            forwards,
        };
        check::check(&plan, &marks, lookup)?;
        Ok(plan)
    }

    /// The user the process is to become is there.
    fn check_user(&self, overrides: &Overrides, process: &ProcessOptions, lookup: &Lookup) -> Result<(), Fault> {
        let mark = match overrides.process.user {
            Some(_) => Some(Mark::Argument("--user")),
            None => self.user,
        };
        let (Some(user), Some(mark)) = (&process.user, mark) else { return Ok(()) };
        let fault = |why| Fault::new(mark, format!("found {}, but {why}", quoted(&user.to_string())));
        (lookup.user)(user).map_err(fault)
    }
}

impl DraftForward {
    /// Adds a target. What it speaks, where it says so, the others have to speak too.
    pub(super) fn push_target(
        &mut self,
        mark: Mark,
        transport: Option<Transport>,
        target: Target,
    ) -> Result<(), Fault> {
        match (self.to_transport, transport) {
            (None, Some(transport)) if self.to.is_empty() => self.to_transport = Some((mark, transport)),
            (before, now) if before.map(|(_, transport)| transport) == now => {}
            _ => {
                let message = "found targets of which only some say tcp: or udp:, or not all the same; allowed: \
                               the same before all targets of a forward, or nothing";
                return Err(Fault::new(mark, message));
            }
        }
        self.to.push((mark, target));
        Ok(())
    }

    fn build(self, options: &ForwardOptions, access: Access) -> (Forward, Marks) {
        let mut listens = [(Vec::new(), Vec::new()), (Vec::new(), Vec::new())];
        let mut first = None;
        for (mark, transport, all) in self.listen {
            first = first.or_else(|| all.first().map(|listen| (mark, transport.scheme(), listen.clone())));
            let (marks, list) = &mut listens[usize::from(transport == Transport::Udp)];
            marks.extend(all.iter().map(|_| mark));
            list.extend(all);
        }
        let [(listen_marks, listen), (udp_marks, udp_listen)] = listens;
        // What goes without saying is not said.
        let spoken = [(&listen, Transport::Tcp), (&udp_listen, Transport::Udp)];
        let others = |transport| spoken.iter().any(|(list, spoken)| *spoken != transport && !list.is_empty());
        let to_transport = self.to_transport.map(|(_, transport)| transport).filter(|to| others(*to));
        let (target_marks, targets): (Vec<Mark>, Vec<Target>) = self.to.into_iter().unzip();
        let (name_mark, name) = match self.name {
            Some(named) => named,
            None => first
                .map(|(mark, scheme, listen)| (mark, format!("{scheme}{listen}")))
                .expect("every reader refuses a forward without a listener"),
        };
        let copy_buffer = options.copy_buffer.unwrap_or(64 << 10);
        let (engine, arms) = options.engine.clone().unwrap_or_else(|| Engine::default().into()).resolve(copy_buffer);
        let forward = Forward {
            name,
            listen,
            targets,
            balancing: options.balancing(),
            engine,
            arms,
            copy_buffer,
            pipe_size: options.pipe_size.and_then(|size| size.0),
            max_connections: self.max_connections.and_then(|n| n.0),
            limits: Limits { max_per_source: self.max_per_source.and_then(|n| n.0), ..options.limits() },
            timeouts: options.timeouts(),
            stall_warning: options.stall_warning.map_or(Some(Forward::STALL_WARNING), |time| time.0),
            tcp: options.tcp(),
            listen_options: options.listen(),
            sources: options.source.clone().unwrap_or_default().0,
            udp: Udp {
                listen: udp_listen,
                timeout: options.udp_timeout.unwrap_or(Udp::TIMEOUT),
                responses: options.udp_responses.and_then(|n| n.0),
                targets: to_transport,
            },
            egress: options.egress(),
            accept_proxy: options.accept_proxy.clone().and_then(|accept| accept.0),
            access,
        };
        (forward, Marks { name: name_mark, listen: listen_marks, udp: udp_marks, targets: target_marks })
    }
}

/// The fault of a file without a single forward.
pub(super) fn nothing_to_forward(at: Mark, how: &str) -> Fault {
    Fault::new(at, format!("found no forward; allowed: at least one, such as {how}"))
}

/// Joins access rules in the order they were written into allow and deny lists.
pub(super) fn push_rule(allow: &mut Vec<Pattern>, deny: &mut Vec<Pattern>, is_allow: bool, pattern: Pattern) {
    if is_allow { allow.push(pattern) } else { deny.push(pattern) }
}
