//! The commands that look closer: `capacity` and `profile`.

use std::process::ExitCode;

use serde_json::json;

use super::Error;
use super::experiments::{Begun, begin, compare_with, settings, show};
use crate::cli::{CapacityArgs, ProfileArgs};
use crate::experiment::action::Pass;
use crate::experiment::arm::Arm;
use crate::experiment::{Experiment, capacity, load};
use crate::load::{HoldKind, iperf3};

/// What `profile` looks at when no arm is named.
const PROFILED: &str = "auto";

/// `lab capacity`.
pub(super) fn capacity(args: &CapacityArgs) -> Result<ExitCode, Error> {
    let Begun { prepared, arms, mut missing } = match begin(&args.common)? {
        Ok(begun) => begun,
        Err(ended) => return Ok(ended),
    };
    let (more, not_installed) = capacity::with_allocators(&arms);
    missing.extend(not_installed);
    let arms: Vec<Arm> = arms.into_iter().chain(more).collect();
    let mut settings = settings(&args.common, &arms);
    // Of these the command line's defaults say something else than what is done.
    settings.remove("seconds");
    settings.insert("rounds".to_owned(), json!(1));
    settings.insert("idle".to_owned(), json!(args.streams));
    settings.insert("stalled".to_owned(), json!(args.stalled));
    let experiment = Experiment {
        name: "capacity".to_owned(),
        title: "What sessions hold as their number grows".to_owned(),
        links: args.common.links.links(),
        settings,
        arms,
        cases: Vec::new(),
        goals: Vec::new(),
        rounds: 1,
        passes: Vec::new(),
        missing,
    };
    let stops = vec![(HoldKind::Idle, args.streams.clone()), (HoldKind::Stalled, args.stalled.clone())];
    let finished = experiment.grow(&stops, &prepared.spliced, &prepared.out)?;
    show(finished, &prepared, args.common.files.json.as_deref(), capacity::text)
}

/// `lab profile`.
pub(super) fn profile(args: &ProfileArgs) -> Result<ExitCode, Error> {
    let mut common = args.common.clone();
    if common.arms.is_empty() {
        common.arms.push(PROFILED.to_owned());
    }
    let load = load::bulk(args.streams, iperf3::Direction::Up, None, common.seconds);
    let passes = vec![Pass::Counters, Pass::Syscalls, Pass::Profile];
    compare_with("profile", format!("Where {} spends its time", common.arms.join(" ")), &common, vec![load], passes)
}
