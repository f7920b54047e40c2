//! How sessions are dealt to targets, and what becomes of targets that fail.

use std::fmt;
use std::time::Duration;

/// How the sessions of one forward are dealt to its targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balancing {
    /// Which target a session begins with.
    pub balance: Balance,
    /// How many other addresses are tried when connecting fails; `None` tries each address once.
    pub retries: Option<u32>,
    /// How long one address may take to answer; `None` shares what is left of the connect timeout.
    pub attempt_timeout: Option<Duration>,
    /// How long one family of a name is waited for before the other is tried beside it (RFC 8305); `None` does not.
    pub attempt_delay: Option<Duration>,
    /// When a target that fails is left out for a while; `None` never.
    pub health: Option<Health>,
    /// How targets are asked whether they work; `None` not at all.
    pub check: Option<Check>,
    /// What becomes of the sessions of a target that checks have found down, or that was disabled.
    pub on_down: OnDown,
}

/// Which target a session begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Balance {
    /// Each in turn, by weight.
    #[default]
    RoundRobin,
    /// The one with the fewest open sessions for its weight.
    LeastConnections,
    /// Always the same for one client address, as long as it is available.
    SourceHash,
    /// Of two chosen at random by weight, the one with fewer open sessions for its weight.
    RandomTwo,
}

/// Passive health: what connecting tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Health {
    /// Failures to connect in a row that eject a target: 1 to 1000.
    pub fails: u32,
    /// How long it is left out the first time; each time without a success in between twice as long.
    pub eject: Duration,
    /// The longest it is left out.
    pub eject_max: Duration,
}

/// Active health: what is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Check {
    /// Sent once the connection stands; empty sends nothing.
    pub send: String,
    /// What the answer must contain; empty asks for none.
    pub expect: String,
    /// From one check of an address to the next, give or take a tenth.
    pub interval: Duration,
    /// How long a check may take, connecting included.
    pub timeout: Duration,
    /// Good checks in a row that bring a target back.
    pub rise: u32,
    /// Failed checks in a row that take it out.
    pub fall: u32,
    /// Another port than that of the target.
    pub port: Option<u16>,
}

/// What becomes of the sessions of a target that is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OnDown {
    /// They go on as long as they can.
    #[default]
    Keep,
    /// They are reset.
    End,
}

impl Balancing {
    /// `attempt_delay` where nobody says otherwise (RFC 8305, 5).
    pub const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
}

impl Default for Balancing {
    fn default() -> Self {
        Self {
            balance: Balance::default(),
            retries: None,
            attempt_timeout: None,
            attempt_delay: Some(Self::ATTEMPT_DELAY),
            health: Some(Health::default()),
            check: None,
            on_down: OnDown::default(),
        }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self { fails: 3, eject: Duration::from_secs(10), eject_max: Duration::from_secs(300) }
    }
}

impl Default for Check {
    fn default() -> Self {
        Self {
            send: String::new(),
            expect: String::new(),
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            port: None,
        }
    }
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RoundRobin => "round_robin",
            Self::LeastConnections => "least_connections",
            Self::SourceHash => "source_hash",
            Self::RandomTwo => "random_two",
        })
    }
}

impl fmt::Display for OnDown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Keep => "keep",
            Self::End => "end",
        })
    }
}
