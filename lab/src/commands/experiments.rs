//! The commands that compare: `ab`, `rr`, `crr`, `stream` and `run`.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use super::Error;
use super::prepare::Prepared;
use crate::cli::{AbArgs, Common, CrrArgs, ExchangeArgs, RrArgs, RunArgs, StreamArgs};
use crate::experiment::action::Pass;
use crate::experiment::arm::{self, Arm};
use crate::experiment::case::Case;
use crate::experiment::{Experiment, Finished, file, load, table};
use crate::load::{Load, iperf3, netperf};
use crate::plan::runner::Step;
use crate::plan::{about, stop};
use crate::report;
use crate::results::{Missing, Results, Settings};
use crate::tools;
use crate::topology::sandbox;

/// The copy of a file that was run, beside its results.
const PLAN_FILE: &str = "plan.yaml";

/// `lab ab`.
pub(super) fn ab(args: &AbArgs) -> Result<ExitCode, Error> {
    let way = load::direction(&args.way).unwrap_or(iperf3::Direction::Up);
    let bulk = |offered| load::bulk(args.streams, way, offered, args.common.seconds);
    let loads = std::iter::once(bulk(None)).chain(args.offered.map(|rate| bulk(Some(rate)))).collect();
    let title = format!("Bulk transfer, {} streams, {}", args.streams, args.way);
    compare("ab", title, &args.common, loads)
}

/// `lab rr`.
pub(super) fn rr(args: &RrArgs) -> Result<ExitCode, Error> {
    let ExchangeArgs { size, common, .. } = &args.exchange;
    let (size, seconds) = (size.unwrap_or(64), common.seconds);
    let own = |connections: &u32| load::exchanges(false, *connections, size, args.offered, seconds);
    let mut loads: Vec<Load> = args.streams.iter().map(own).collect();
    // netperf knows no pace.
    if args.offered.is_none() {
        loads.extend(by_netperf(&args.exchange, netperf::Test::Rr, 32));
    }
    compare("rr", format!("Exchanges of {size} bytes on open connections"), common, loads)
}

/// `lab crr`.
pub(super) fn crr(args: &CrrArgs) -> Result<ExitCode, Error> {
    let ExchangeArgs { size, common, .. } = &args.exchange;
    let size = size.unwrap_or(1);
    let mut loads = vec![load::exchanges(true, args.streams, size, None, common.seconds)];
    loads.extend(by_netperf(&args.exchange, netperf::Test::Crr, size));
    compare("crr", "Connect, request, response, close".to_owned(), common, loads)
}

/// The same by netperf, where it is installed and wanted.
fn by_netperf(args: &ExchangeArgs, test: netperf::Test, size: u32) -> Option<Load> {
    let wanted = !args.no_netperf && tools::NETPERF.find().is_ok();
    wanted.then(|| load::netperf(test, size, args.common.seconds))
}

/// `lab stream`.
pub(super) fn stream(args: &StreamArgs) -> Result<ExitCode, Error> {
    let StreamArgs { streams, chunks, size, common } = args;
    let load = load::streams(*streams, f64::from(*chunks), *size, common.seconds);
    let title = format!("{streams} streams of {chunks} chunks of {size} bytes a second");
    compare("stream", title, common, vec![load])
}

fn compare(name: &str, title: String, common: &Common, loads: Vec<Load>) -> Result<ExitCode, Error> {
    compare_with(name, title, common, loads, vec![Pass::Syscalls])
}

/// Runs every arm under every load; `passes` are looked at besides.
pub(super) fn compare_with(
    name: &str,
    title: String,
    common: &Common,
    loads: Vec<Load>,
    passes: Vec<Pass>,
) -> Result<ExitCode, Error> {
    let Begun { prepared, arms, missing } = match begin(common)? {
        Ok(begun) => begun,
        Err(ended) => return Ok(ended),
    };
    let experiment = Experiment {
        name: name.to_owned(),
        title,
        links: common.links.links(),
        settings: settings(common, &arms),
        arms,
        cases: loads.into_iter().map(Case::from).collect(),
        goals: Vec::new(),
        rounds: common.rounds,
        passes,
        missing,
    };
    conduct(&experiment, &prepared, common.files.json.as_deref())
}

/// What an experiment begins with inside.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) prepared: Prepared,
    pub(super) arms: Vec<Arm>,
    pub(super) missing: Vec<Missing>,
}

/// Goes inside. Outside, this is the end: how it ended inside.
pub(super) fn begin(common: &Common) -> Result<Result<Begun, ExitCode>, Error> {
    let choose = || arm::choose(&common.arms, &common.peers, &common.peer).map_err(Error::Wrong);
    if !sandbox::is_inside() {
        choose()?;
        return Prepared::outside(&common.files)?.run_inside().map(Err);
    }
    let prepared = Prepared::inside()?;
    settle()?;
    let (arms, missing) = choose()?;
    Ok(Ok(Begun { prepared, arms, missing }))
}

pub(super) fn settle() -> Result<(), Error> {
    stop::listen()?;
    sandbox::settle(true)?;
    // Each session is two descriptors of a forwarder; what the lab starts inherits this.
    let _ = spliced::sys::raise_descriptor_limit();
    Ok(())
}

pub(super) fn settings(common: &Common, arms: &[Arm]) -> Settings {
    let links = common.links.links();
    let or = |text: Option<String>, default: &str| json!(text.unwrap_or_else(|| default.to_owned()));
    let names: Vec<&str> = arms.iter().map(|arm| arm.name.as_str()).collect();
    [
        ("rounds", json!(common.rounds)),
        ("seconds", json!(common.seconds.as_secs_f64())),
        ("mtu", or(links.mtu.map(|mtu| mtu.to_string()), "1500")),
        ("offloads", json!(if links.offloads { "on" } else { "off" })),
        ("rate", or(links.rate.map(|rate| rate.to_string()), "none")),
        ("loss", or(links.loss.map(|loss| loss.to_string()), "none")),
        ("arms", json!(names.join(" "))),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// `lab run FILE.yaml`.
pub(super) fn run(args: &RunArgs) -> Result<ExitCode, Error> {
    let wrong = |error: spliced::config::ConfigError| Error::Wrong(error.to_string());
    if !sandbox::is_inside() {
        let (name, text) = file::read(&args.file).map_err(wrong)?;
        let written = chosen(args, &name, &text)?;
        if args.check {
            crate::show!("{}", steps(&experiment(written, &name)).trim_end());
            return Ok(ExitCode::SUCCESS);
        }
        let prepared = Prepared::outside(&args.files)?;
        let copy = prepared.out.join(PLAN_FILE);
        fs::write(&copy, text).map_err(about("write", &copy))?;
        return prepared.run_inside();
    }
    let prepared = Prepared::inside()?;
    settle()?;
    let (_, text) = file::read(&prepared.out.join(PLAN_FILE)).map_err(wrong)?;
    let name = args.file.to_string_lossy();
    let experiment = experiment(chosen(args, &name, &text)?, &name);
    conduct(&experiment, &prepared, args.files.json.as_deref())
}

/// What the file says, as far as the command line does not say otherwise.
fn chosen(args: &RunArgs, name: &str, text: &str) -> Result<file::Written, Error> {
    let wrong = |error: spliced::config::ConfigError| Error::Wrong(error.to_string());
    let mut written = file::parse(name, text, &args.peer).map_err(wrong)?;
    let known: Vec<&str> = written.cases.iter().map(Case::id).collect();
    if let Some(unknown) = args.only.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(Error::Wrong(format!("--only {unknown}: found no such load; allowed: {}", known.join(", "))));
    }
    written.cases.retain(|case| args.only.is_empty() || args.only.iter().any(|name| name == case.id()));
    written.rounds = args.rounds.unwrap_or(written.rounds);
    for case in &mut written.cases {
        case.rounds = args.rounds.or(case.rounds);
        if let Some(seconds) = args.seconds {
            case.load = load::lasting(&case.load, seconds);
        }
    }
    Ok(written)
}

fn experiment(written: file::Written, name: &str) -> Experiment {
    let links = serde_json::to_value(written.links).unwrap_or_default();
    let settings = [("file", json!(name)), ("rounds", json!(written.rounds)), ("links", links)];
    Experiment {
        name: "run".to_owned(),
        title: written.title,
        links: written.links,
        arms: written.arms,
        cases: written.cases,
        goals: written.goals,
        rounds: written.rounds,
        settings: settings.map(|(name, value)| (name.to_owned(), value)).into(),
        passes: written.passes,
        missing: written.missing,
    }
}

/// Every step that would be taken, once.
fn steps(experiment: &Experiment) -> String {
    let mut text = String::new();
    let mut up = None;
    for case in &experiment.cases {
        let links = experiment.links_of(case);
        let setup = if up == Some(links) { Vec::new() } else { Experiment::setup(&links) };
        up = Some(links);
        let arms = experiment.arms.iter().filter(|arm| case.takes(arm));
        let measured = arms.flat_map(|arm| experiment.measurement(1, arm, &case.load));
        for step in setup.into_iter().chain(measured) {
            text.push_str(&format!("{}: {}\n", step.name(), step.tried()));
        }
    }
    text
}

/// Runs an experiment to its end.
fn conduct(experiment: &Experiment, prepared: &Prepared, json: Option<&Path>) -> Result<ExitCode, Error> {
    let finished = experiment.run(&prepared.spliced, &prepared.out)?;
    show(finished, prepared, json, |results| table::tables(results, &experiment.cases))
}

/// Writes and shows what was found, as far as it came.
pub(super) fn show(
    finished: Finished,
    prepared: &Prepared,
    json: Option<&Path>,
    text: impl Fn(&Results) -> String,
) -> Result<ExitCode, Error> {
    let Finished { mut results, failed } = finished;
    if let Some(failed) = &failed {
        let how = if failed.stopped() { "it was stopped".to_owned() } else { failed.to_string() };
        results.missing.push(Missing { name: "the rest of the experiment".to_owned(), how });
    }
    if failed.is_none() || !results.rounds.is_empty() {
        report::write(&prepared.out, &results)?;
        let told = format!("{}\nresults: {}", text(&results), prepared.out.display());
        // JSON on standard output stands alone there.
        if json == Some(Path::new("-")) { crate::tell!("{told}") } else { crate::show!("{told}") }
    }
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&results).map_err(std::io::Error::other)?;
        if path == Path::new("-") {
            let mut stdout = std::io::stdout().lock();
            let written = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
            written.map_err(about("write", Path::new("standard output")))?;
        } else {
            fs::write(path, text).map_err(about("write", path))?;
        }
    }
    match failed {
        Some(failed) => Err(failed.into()),
        None if results.rounds.iter().all(|round| round.error.is_some()) => {
            Err(Error::Failed("every measurement failed; see above and trace.jsonl".to_owned()))
        }
        None => Ok(ExitCode::SUCCESS),
    }
}
