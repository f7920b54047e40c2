//! `lab run FILE.yaml`: an experiment as people write it. Errors say where, what was found and what is allowed.

use std::path::Path;
use std::time::Duration;

use spliced::config::ConfigError;
use spliced::config::marked::{self, Fault, Node, Value, size};

mod forwarders;
mod goals;
mod loads;

use super::action::Pass;
use super::arm::Arm;
use super::case::Case;
use crate::cli::{SECONDS, seconds};
use crate::peers::Given;
use crate::results::{Goal, Missing};
use crate::topology::links::{self, Links, Loss, Rate};

const ROOT: &str = "a mapping with forwarders and load, such as `{forwarders: [auto, splice], load: [{kind: bulk}]}`";
const LOADS: &str = "a list of loads, each a mapping with kind";
const TITLE: &str = "1 to 200 visible characters";
const SAMPLES: &str = "a list of: syscalls, counters, profile";
const ROUNDS: &str = "a number from 1 to 1000";

/// An experiment from a file.
#[derive(Debug, Clone)]
pub struct Written {
    /// One line for people.
    pub title: String,
    /// What the links are like.
    pub links: Links,
    /// What is compared.
    pub arms: Vec<Arm>,
    /// What could not be found of it.
    pub missing: Vec<Missing>,
    /// Under what.
    pub cases: Vec<Case>,
    /// What is to be reached.
    pub goals: Vec<Goal>,
    /// How often.
    pub rounds: u32,
    /// What else is looked at.
    pub passes: Vec<Pass>,
}

/// Reads a file, `-` being standard input: its name for messages, and its text.
///
/// # Errors
/// When it cannot be read.
pub fn read(path: &Path) -> Result<(String, String), ConfigError> {
    marked::read(path)
}

/// Understands the text of a file called `name`; `given` says where peers are that it only names.
///
/// # Errors
/// `FILE:LINE:COLUMN: found …; allowed: …`.
pub fn parse(name: &str, text: &str, given: &[Given]) -> Result<Written, ConfigError> {
    marked::parse(text).and_then(|root| written(&root, given)).map_err(|fault| fault.in_file(name, text))
}

fn written(root: &Node, given: &[Given]) -> Result<Written, Fault> {
    let known = ["title", "rounds", "seconds", "topology", "forwarders", "load", "samples", "goals"];
    let entries = root.entries(ROOT, &known)?;
    let find = |name: &str| entries.iter().find(|(key, _)| key.text == name).map(|(_, node)| node);
    let needed = |name: &str| {
        find(name).ok_or_else(|| Fault::new(root.mark, format!("found no key \"{name}\"; allowed: {ROOT}")))
    };
    let or = |name: &str, default: Duration| find(name).map_or(Ok(default), |node| node.parse(seconds, SECONDS));
    let seconds = or("seconds", Duration::from_secs(3))?;
    let mut written = Written {
        title: "an experiment of our own".to_owned(),
        links: find("topology").map_or(Ok(Links::default()), topology)?,
        arms: Vec::new(),
        missing: Vec::new(),
        cases: Vec::new(),
        goals: Vec::new(),
        rounds: 3,
        passes: Vec::new(),
    };
    if let Some(node) = find("title") {
        written.title = node.text(title, TITLE)?;
    }
    if let Some(node) = find("rounds") {
        written.rounds = node.parse(|text| number(text, 1, 1000, ROUNDS), ROUNDS)?;
    }
    for node in find("samples").map_or(Ok(&[][..]), |node| node.items(SAMPLES))? {
        written.passes.push(node.text(pass, SAMPLES)?);
    }
    let names = forwarders::forwarders(needed("forwarders")?, given, &mut written)?;
    for node in needed("load")?.items(LOADS)? {
        let case = loads::case(node, seconds, &names)?;
        if let Some(name) = case.name.as_ref().filter(|_| written.cases.iter().any(|other| other.id() == case.id())) {
            return Err(Fault::new(node.mark, format!("found load {name:?} a second time; allowed: each name once")));
        }
        written.cases.push(case);
    }
    if written.cases.is_empty() {
        return Err(needed("load")?.wrong(LOADS));
    }
    if let Some(node) = find("goals") {
        let loads: Vec<&str> = written.cases.iter().map(Case::id).collect();
        written.goals = goals::goals(node, &loads, &names)?;
    }
    Ok(written)
}

fn pass(text: &str) -> Result<Pass, String> {
    match text {
        "syscalls" => Ok(Pass::Syscalls),
        "counters" => Ok(Pass::Counters),
        "profile" => Ok(Pass::Profile),
        _ => Err(found(text, SAMPLES)),
    }
}

fn topology(node: &Node) -> Result<Links, Fault> {
    let mut links = Links::default();
    for (key, node) in
        node.entries("a mapping of mtu, offloads, rate and loss", &["mtu", "offloads", "rate", "loss"])?
    {
        match key.text.as_str() {
            "mtu" => links.mtu = Some(node.parse(links::mtu, links::MTU)?),
            // To some on and off are booleans.
            "offloads" => {
                links.offloads = match node.value {
                    Value::Bool(on) => on,
                    _ => node.text(links::offloads, links::OFFLOADS)?,
                }
            }
            "rate" => links.rate = Some(node.text(Rate::parse, links::RATE)?),
            _ => links.loss = Some(node.parse(Loss::parse, links::LOSS)?),
        }
    }
    Ok(links)
}

const ARM_NAME: &str = "1 to 40 letters, digits, - . and _, and no file of the results";

/// Names become names of files.
fn arm_name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let fits = (1..=40).contains(&text.len())
        && text.chars().all(plain)
        && !text.starts_with('.')
        && !crate::peers::is_taken(text);
    if fits { Ok(text.to_owned()) } else { Err(found(text, ARM_NAME)) }
}

fn title(text: &str) -> Result<String, String> {
    let fits = (1..=200).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    if fits { Ok(text.to_owned()) } else { Err(found(text, TITLE)) }
}

/// One of the words listed.
fn word(text: &str, words: &str) -> Result<String, String> {
    if words.split(", ").any(|word| word == text) { Ok(text.to_owned()) } else { Err(found(text, words)) }
}

fn number(text: &str, least: u32, most: u32, allowed: &str) -> Result<u32, String> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let value = text.parse().ok().filter(|value| digits && (least..=most).contains(value));
    value.ok_or_else(|| found(text, allowed))
}

fn bytes(text: &str, least: u64, most: u64, allowed: &str) -> Result<u64, String> {
    size(text, least, most, allowed).map(|bytes| bytes as u64)
}

fn found(text: &str, allowed: &str) -> String {
    let cut: String = text.chars().take(80).collect();
    format!("found {cut:?}; allowed: {allowed}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::load;
    use crate::results::Kind;

    const GOOD: &str = "\
title: small pipes
rounds: 2
seconds: 1
topology: {mtu: 9000, offloads: off, rate: 1gbit, loss: 0.1%}
forwarders:
  - copy-8K
  - {name: small, engine: splice, pipe_size: 64KiB, workers: 1, environment: {A: 1}}
  - {name: mine, command: 'sh -c true {listen} {target}'}
  - direct
load:
  - {kind: bulk, streams: 4, way: reverse, offered: 500mbit}
  - {kind: rr, connections: 32, size: 1KiB, seconds: 2}
samples: [syscalls]
";

    #[test]
    fn a_file_becomes_an_experiment() {
        let written = parse("x.yaml", GOOD, &[]).unwrap();
        let names: Vec<_> = written.arms.iter().map(|arm| arm.name.as_str()).collect();
        assert_eq!(names, ["copy-8K", "small", "mine", "direct"]);
        assert_eq!(written.links.loss, Some(Loss(1000)));
        assert!(!written.links.offloads && written.passes == [Pass::Syscalls]);
        assert_eq!(written.cases[1].load, load::exchanges(false, 32, 1024, None, Duration::from_secs(2)));
    }

    #[test]
    fn loads_have_settings_of_their_own_and_goals_are_for_each_load() {
        let text = "forwarders: [auto, splice, {name: mine, peer: direct}]\nload:\n\
                    - {name: a, kind: stream, streams: 10, size: 1KiB, offered: 8mbit}\n\
                    - {name: b, kind: idle, sessions: 7, rounds: 1, forwarders: [auto], topology: {offloads: off}}\n\
                    goals:\n- {name: G, load: [a, b], metric: x, of: auto, against: [splice, best_peer], at_most: 6KiB}\n";
        let written = parse("f", text, &[]).unwrap();
        assert_eq!(written.cases[0].load, load::streams(10, 8e6 / 8.0 / 1024.0 / 10.0, 1024, Duration::from_secs(3)));
        let case = &written.cases[1];
        assert_eq!((case.rounds, case.id(), case.links.map(|links| links.offloads)), (Some(1), "b", Some(false)));
        assert!(case.takes(&written.arms[0]) && !case.takes(&written.arms[1]));
        assert_eq!((written.arms[2].name.as_str(), written.arms[2].kind), ("mine", Kind::Limit));
        let goals: Vec<_> = written.goals.iter().map(|goal| (goal.load.as_str(), goal.at_most)).collect();
        assert_eq!(goals, [("a", Some(6144.0)), ("b", Some(6144.0))]);
        assert_eq!(written.goals[0].against, ["splice", "best_peer"]);
    }

    #[test]
    fn every_mistake_is_told_with_its_place() {
        let base = "forwarders: [splice]\nload: [{kind: bulk}]\n";
        assert!(parse("f", base, &[]).is_ok());
        for (text, expected) in [
            ("load: [{kind: bulk}]", "f:1:1: found no key \"forwarders\""),
            ("forwarders: []\nload: [{kind: bulk}]", "f:1:13: found a list"),
            ("forwarders: [splice]\nload: []", "f:2:7: found a list"),
            ("forwarders: [slice]\nload: [{kind: bulk}]", "f:1:14: found \"slice\"; allowed: copy-8K"),
            ("forwarders: [splice, splice]\nload: [{kind: bulk}]", "f:1:22: found forwarder \"splice\" a second time"),
            ("forwarders: [{engine: copy}]\nload: [{kind: bulk}]", "f:1:14: found a forwarder without name"),
            ("forwarders: [{name: ../x, engine: copy}]\nload: [{kind: bulk}]", "f:1:21: found \"../x\""),
            ("forwarders: [{name: x, engine: turbo}]\nload: [{kind: bulk}]", "f:1:32: found \"turbo\"; allowed: auto"),
            ("forwarders: [{name: x, engine: copy, command: a}]\nload: [{kind: bulk}]", "f:1:24: found engine beside"),
            (
                "forwarders: [{name: x, peer: realm, command: 'a {listen} {to}'}]\nload: [{kind: bulk}]",
                "f:1:30: found peer beside",
            ),
            ("forwarders: [{name: x, command: a}]\nload: [{kind: bulk}]", "f:1:33: found \"a\""),
            ("forwarders: [splice]\nload: [{kind: bulky}]", "f:2:15: found \"bulky\"; allowed: bulk, rr"),
            ("forwarders: [splice]\nload: [{streams: 3}]", "f:2:8: found a load without kind"),
            ("forwarders: [splice]\nload: [{kind: rr, streams: 3}]", "f:2:19: found unknown key \"streams\""),
            ("forwarders: [splice]\nload: [{kind: bulk, streams: 0}]", "f:2:30: found \"0\"; allowed: a number"),
            ("topology: {mtu: 20}\nforwarders: [splice]\nload: [{kind: bulk}]", "f:1:17: found \"20\"; allowed:"),
            ("topology: {delay: 20}\nforwarders: [splice]\nload: [{kind: bulk}]", "f:1:12: found unknown key"),
            ("samples: [all]\nforwarders: [splice]\nload: [{kind: bulk}]", "f:1:11: found \"all\""),
            ("rounds: many\nforwarders: [splice]\nload: [{kind: bulk}]", "f:1:9: found \"many\""),
            ("forwarders: [splice\nload: 1", "f:2:"),
            ("forwarders: [splice]\nload: [{kind: rr, forwarders: [auto]}]", "f:2:32: found \"auto\"; allowed: splice"),
            (
                "forwarders: [splice]\nload: [{kind: rr, name: a}, {kind: crr, name: a}]",
                "f:2:29: found load \"a\" a second",
            ),
            (
                "forwarders: [{name: x, engine: auto, user: no-such-user}]\nload: [{kind: rr}]",
                "f:1:44: found \"no-such-user\"",
            ),
            ("forwarders: [{name: x, peer: direct, user: root}]\nload: [{kind: rr}]", "f:1:44: found a user for x"),
            (
                "forwarders: [auto]\nload: [{kind: stream, offered: 1gbit, chunks_per_second: 3}]",
                "f:2:58: found chunks_per",
            ),
            (
                "forwarders: [auto]\nload: [{kind: rr}]\ngoals: [{name: G, load: crr, metric: x, of: auto, at_most: 1}]",
                "f:3:25: found \"crr\"",
            ),
            (
                "forwarders: [auto]\nload: [{kind: rr}]\ngoals: [{name: G, load: rr, metric: x, of: auto}]",
                "f:3:9: found a goal without at_",
            ),
        ] {
            let error = parse("f", text, &[]).map(drop).unwrap_err().to_string();
            assert!(error.starts_with(expected) && error.contains("; allowed: "), "{text}: {error}");
        }
    }
}
