//! The goals of a file.

use spliced::config::marked::{Fault, Node, size};

use super::found;
use crate::goals::BEST_PEER;
use crate::results::Goal;

const GOALS: &str = "a list of goals, each a mapping such as {name: fast, load: bulk, metric: gbit_per_second, of: auto, \
                     against: best_peer, at_least: 1.1}";
const KEYS: [&str; 8] = ["name", "load", "metric", "of", "against", "against_load", "at_least", "at_most"];
const NAME: &str = "1 to 40 visible characters";
const METRIC: &str = "the name of a sample in results.json, latency_us_p50 or latency_us_p99";
const BOUND: &str = "a number such as 0.85, or a size such as 6MiB";

/// Every goal; one that names several loads is one for each.
pub(super) fn goals(list: &Node, loads: &[&str], arms: &[String]) -> Result<Vec<Goal>, Fault> {
    let mut goals = Vec::new();
    for node in list.items(GOALS)? {
        goals.extend(one(node, loads, arms)?);
    }
    Ok(goals)
}

fn one(node: &Node, loads: &[&str], arms: &[String]) -> Result<Vec<Goal>, Fault> {
    let entries = node.entries(GOALS, &KEYS)?;
    let find = |name: &str| entries.iter().find(|(key, _)| key.text == name).map(|(_, node)| node);
    let needed = |name: &str| {
        find(name).ok_or_else(|| Fault::new(node.mark, format!("found a goal without {name}; allowed: {GOALS}")))
    };
    let known_loads = loads.join(", ");
    let load = |node: &Node| node.parse(|text| listed(text, loads, &known_loads), &known_loads);
    let arms: Vec<&str> = arms.iter().map(String::as_str).collect();
    let opponents = [&arms[..], &[BEST_PEER]].concat();
    let arm = |node: &Node, known: &[&str]| {
        let allowed = known.join(", ");
        node.text(|text| listed(text, known, &allowed), &allowed)
    };
    let opponent = |node: &Node| arm(node, &opponents);
    let bound = |name: &str| find(name).map(|node| node.parse(bound, BOUND)).transpose();
    let goal = Goal {
        name: needed("name")?.parse(|text| plain(text, NAME), NAME)?,
        load: String::new(),
        metric: needed("metric")?.text(|text| plain(text, METRIC), METRIC)?,
        of: arm(needed("of")?, &arms)?,
        against: find("against").map_or(&[][..], Node::one_or_many).iter().map(opponent).collect::<Result<_, _>>()?,
        against_load: find("against_load").map(load).transpose()?,
        at_least: bound("at_least")?,
        at_most: bound("at_most")?,
    };
    if goal.at_least.is_none() && goal.at_most.is_none() {
        return Err(Fault::new(node.mark, format!("found a goal without at_least and at_most; allowed: {GOALS}")));
    }
    let loads = needed("load")?.one_or_many().iter().map(load).collect::<Result<Vec<String>, Fault>>()?;
    Ok(loads.into_iter().map(|load| Goal { load, ..goal.clone() }).collect())
}

fn listed(text: &str, known: &[&str], allowed: &str) -> Result<String, String> {
    if known.contains(&text) { Ok(text.to_owned()) } else { Err(found(text, allowed)) }
}

fn plain(text: &str, allowed: &str) -> Result<String, String> {
    let fits = (1..=40).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    if fits { Ok(text.to_owned()) } else { Err(found(text, allowed)) }
}

fn bound(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
    #[expect(clippy::cast_precision_loss, reason = "a bound")]
    let bytes = || size(text, 1, 1 << 50, BOUND).map(|bytes| bytes as f64);
    number.map_or_else(bytes, Ok)
}
