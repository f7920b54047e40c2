//! Targets as commands change them and as stats, metrics and people see them.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::client::{answered, ask, print};
use super::prometheus::Page;
use super::snapshot::NamedForward;
use crate::ab::Table;
use crate::plan::OnDown;
use crate::upstream::{Admin, Command, Endpoint, State, TargetView, Targets};

/// One address of a target.
#[derive(Debug, Clone, Serialize)]
pub struct TargetSnapshot {
    /// As it is configured.
    pub target: String,
    /// The address, where there is one: a name may have none yet, or several.
    pub address: Option<String>,
    /// How it stands; `null` while a name has no address.
    pub state: Option<State>,
    /// Its share, by command or as configured.
    pub weight: u16,
    /// Used only while no other can be.
    pub backup: bool,
    /// Its name has it no more: it takes no new sessions, and is gone with its last one.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
    /// Sessions it has, those that are connecting included.
    pub sessions_open: u64,
    /// Sessions it may have.
    pub max_connections: Option<u64>,
    /// Attempts to connect.
    pub connects: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Times it was left out for failing.
    pub ejections: u64,
    /// Checks made.
    pub checks: u64,
    /// Checks that failed.
    pub checks_failed: u64,
}

/// A command about a target, as it goes over the control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) forward: String,
    pub(super) target: String,
    pub(super) action: Action,
}

/// What to do with a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It takes no new sessions.
    Drain,
    /// It takes no new sessions and is not checked; what becomes of its sessions `on_down` says.
    Disable,
    /// It takes sessions again.
    Enable,
    /// It gets another share; `None` the configured one.
    Weight(Option<u16>),
}

impl Action {
    pub(super) fn command(self) -> Command {
        match self {
            Self::Drain => Command::Admin(Admin::Drain),
            Self::Disable => Command::Admin(Admin::Disabled),
            Self::Enable => Command::Admin(Admin::Enabled),
            Self::Weight(weight) => Command::Weight(weight),
        }
    }

    /// What has become of the target, for the log.
    pub(super) fn describe(self, on_down: OnDown) -> String {
        match (self, on_down) {
            (Self::Drain, _) => "takes no new sessions: drained by command".to_owned(),
            (Self::Disable, OnDown::Keep) => "takes no new sessions: disabled by command".to_owned(),
            (Self::Disable, OnDown::End) => "is disabled by command, its sessions end".to_owned(),
            (Self::Enable, _) => "takes sessions: enabled by command".to_owned(),
            (Self::Weight(Some(weight)), _) => format!("has weight {weight} by command"),
            (Self::Weight(None), _) => "has its configured weight again".to_owned(),
        }
    }
}

/// Every address of every target of a forward.
pub(super) fn snapshots(targets: &Targets) -> Vec<TargetSnapshot> {
    let now_ms = targets.now_ms();
    let views = targets.views();
    views.iter().flat_map(|view| snapshots_of(view, now_ms)).collect()
}

fn snapshots_of(view: &TargetView, now_ms: u64) -> Vec<TargetSnapshot> {
    let target = &view.target;
    let one = |endpoint: Option<&Endpoint>| {
        let (connects, failures) = endpoint.map_or((0, 0), Endpoint::connects);
        let (checks, checks_failed) = endpoint.map_or((0, 0), Endpoint::checks);
        TargetSnapshot {
            target: target.to_string(),
            address: endpoint.map(Endpoint::address),
            state: endpoint.map(|endpoint| endpoint.state(now_ms)),
            weight: view.weight.or(endpoint.and_then(Endpoint::own_weight)).unwrap_or(target.weight),
            backup: target.backup || endpoint.is_some_and(Endpoint::is_backup),
            gone: endpoint.is_some_and(|endpoint| !endpoint.is_current()),
            sessions_open: endpoint.map_or(0, Endpoint::open),
            max_connections: target.max_connections,
            connects,
            failures,
            ejections: endpoint.map_or(0, Endpoint::ejections),
            checks,
            checks_failed,
        }
    };
    if view.endpoints.is_empty() {
        return vec![one(None)];
    }
    view.endpoints.iter().map(|endpoint| one(Some(endpoint))).collect()
}

/// The metrics of all targets.
pub(super) fn metrics(page: &mut Page, forwards: &[NamedForward]) {
    let all = || forwards.iter().flat_map(|f| f.targets.iter().map(move |target| (&f.name, target)));
    let mut family = |name: &'static str, kind: &str, help: &str, value: fn(&TargetSnapshot) -> u64| {
        page.family(name, kind, help);
        for (forward, target) in all() {
            let address = target.address.as_deref().unwrap_or("");
            page.sample(&[("forward", forward), ("target", &target.target), ("address", &address)], value(target));
        }
    };
    family("spliced_target_up", "gauge", "1 while the address takes new sessions.", |t| {
        u64::from(t.state == Some(State::Up) && !t.gone)
    });
    family("spliced_target_weight", "gauge", "Its share, by command or as configured.", |t| t.weight.into());
    family("spliced_target_sessions_open", "gauge", "Sessions it has, connecting ones too.", |t| t.sessions_open);
    family("spliced_target_connects_total", "counter", "Attempts to connect.", |t| t.connects);
    family("spliced_target_connect_failures_total", "counter", "Attempts that failed.", |t| t.failures);
    family("spliced_target_ejections_total", "counter", "Times it was left out for failing.", |t| t.ejections);
    family("spliced_target_checks_total", "counter", "Checks made.", |t| t.checks);
    family("spliced_target_check_failures_total", "counter", "Checks that failed.", |t| t.checks_failed);
    page.family("spliced_target_state", "gauge", "1 for the state the address is in.");
    for (forward, target) in all() {
        let address = target.address.as_deref().unwrap_or("");
        let labels: [(&str, &dyn std::fmt::Display); 4] = [
            ("forward", forward),
            ("target", &target.target),
            ("address", &address),
            ("state", &if target.gone { "GONE" } else { target.state.map_or("UNRESOLVED", State::name) }),
        ];
        page.sample(&labels, 1);
    }
}

/// Changes a target of the instance behind `control`, and prints how it stands then.
///
/// # Errors
/// When nobody answers on the socket, there is no such forward or target, or standard output fails.
pub fn target_command(control: &Path, forward: &str, target: &str, action: Action) -> io::Result<()> {
    let request = Request { forward: forward.to_owned(), target: target.to_owned(), action };
    let request = serde_json::to_string(&request).map_err(io::Error::other)?;
    let answer = answered(control, &ask(control, &format!("target {request}"))?)?;
    let rows = Vec::<Shown>::deserialize(&answer["targets"]).map_err(io::Error::other)?;
    print(&table(&rows))
}

/// The request of a line that begins with `target`, or what is wrong with it.
pub(super) fn parse(text: &[u8]) -> Result<Request, String> {
    let request = serde_json::from_slice(text).map_err(|error| {
        let example = json!(Request { forward: "web".into(), target: "10.0.0.2:80".into(), action: Action::Weight(Some(5)) });
        format!("{error}; a request is `target` and an object such as {example}, the action drain, disable, enable or weight")
    })?;
    match request {
        Request { action: Action::Weight(Some(weight)), .. } if !(1..=256).contains(&weight) => {
            Err(format!("found weight {weight}; allowed: 1 to 256"))
        }
        request => Ok(request),
    }
}

/// What people see of a target; fields it does not know are left out.
#[derive(Debug, Deserialize)]
pub(super) struct Shown {
    target: String,
    address: Option<String>,
    state: Option<String>,
    weight: u64,
    backup: bool,
    #[serde(default)]
    gone: bool,
    sessions_open: u64,
    max_connections: Option<u64>,
    connects: u64,
    failures: u64,
    ejections: u64,
    checks: u64,
    checks_failed: u64,
}

/// The targets for people.
pub(super) fn table(targets: &[Shown]) -> String {
    let mut table = Table::new(["target", "state", "weight", "open", "connects", "failed", "ejected", "checks"]);
    for target in targets {
        let own = |text: &str| text.escape_debug().to_string();
        let mut name = own(&target.target);
        if let Some(address) = target.address.as_ref().filter(|address| **address != target.target) {
            let _ = write!(name, " ({})", own(address));
        }
        if target.backup {
            name.push_str(" backup");
        }
        let most = target.max_connections.map_or_else(String::new, |most| format!("/{most}"));
        let failed =
            if target.checks_failed > 0 { format!(", {} failed", target.checks_failed) } else { String::new() };
        table.row([
            name,
            if target.gone { "GONE".to_owned() } else { own(target.state.as_deref().unwrap_or("UNRESOLVED")) },
            target.weight.to_string(),
            format!("{}{most}", target.sessions_open),
            target.connects.to_string(),
            target.failures.to_string(),
            target.ejections.to_string(),
            format!("{}{failed}", target.checks),
        ]);
    }
    table.to_string()
}

/// Appends the targets of a forward, where there is more to say than that there is one that works.
pub(super) fn describe(out: &mut String, targets: &[Shown]) {
    let plain =
        |target: &Shown| target.state.as_deref() == Some("UP") && !target.gone && target.checks + target.ejections == 0;
    if targets.len() > 1 || !targets.iter().all(plain) {
        for line in table(targets).lines() {
            let _ = writeln!(out, "  {line}");
        }
    }
}
