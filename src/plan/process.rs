//! What is one for the whole process: its workers' CPUs, its rights, its log.

use std::fmt;
use std::path::PathBuf;

/// Whether workers are bound to CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Pin {
    /// Bound when the affinity mask has a CPU for each worker.
    #[default]
    Auto,
    /// Bound; more workers than CPUs share them in turn.
    On,
    /// Left to the scheduler.
    Off,
}

/// How the kernel's scheduler takes a worker thread (sched(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Scheduling {
    /// `SCHED_BATCH` while it mostly moves streams, `SCHED_OTHER` otherwise.
    #[default]
    Auto,
    /// Always `SCHED_BATCH`.
    Batch,
    /// As the process was started.
    Normal,
}

/// What a process keeps of its rights once its listeners are bound.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Privileges {
    /// Who the process becomes; `None` stays who started it.
    pub user: Option<RunAs>,
    /// Capabilities that stay.
    pub keep: Keep,
    /// How far the process confines itself.
    pub sandbox: Confinement,
}

/// A user and a group as written: names, or numbers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RunAs {
    /// Name or number of the user.
    pub user: String,
    /// Name or number of the group; `None` is the user's own.
    pub group: Option<String>,
}

/// Capabilities that stay, as far as the process has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Keep {
    /// `CAP_NET_BIND_SERVICE`, so that a reload can add low ports; `None` keeps it where a port of the plan is low.
    pub bind: Option<bool>,
    /// `CAP_NET_ADMIN`, so that connections to targets can come from the client's address or have a mark; `None` keeps
    /// it where a forward of the plan asks for that.
    pub net: Option<bool>,
    /// `CAP_SYS_RESOURCE`, so that `fs.pipe-user-pages-soft` and `fs.pipe-max-size` do not bound the pipes.
    pub pipes: bool,
}

/// How far a process confines itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Confinement {
    /// As far as the kernel can; what it cannot is logged.
    #[default]
    Auto,
    /// All parts or no start, and only the TCP ports of the plan.
    Strict,
    /// Not at all.
    Off,
}

/// The session log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogPlan {
    /// Shape of a line.
    pub format: LogFormat,
    /// Where lines go; `None` is standard error.
    pub file: Option<PathBuf>,
}

/// Shape of a session's log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum LogFormat {
    /// `key=value` pairs for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
    /// rinetd's tab-separated log.
    Rinetd,
    /// The common log format as rinetd writes it.
    Common,
}

impl fmt::Display for RunAs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.user)?;
        self.group.iter().try_for_each(|group| write!(f, ":{group}"))
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (self.bind.is_none() || self.net.is_none(), "auto"),
            (self.bind == Some(true), "net_bind_service"),
            (self.net == Some(true), "net_admin"),
            (self.pipes, "sys_resource"),
        ];
        let names: Vec<&str> = names.into_iter().filter(|(is_kept, _)| *is_kept).map(|(_, name)| name).collect();
        f.write_str(if names.is_empty() { "none".to_owned() } else { names.join(",") }.as_str())
    }
}

impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Strict => "strict",
            Self::Off => "off",
        })
    }
}
