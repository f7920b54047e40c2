//! Where commands run, and the addresses between those places.

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A user of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Name.
    pub name: String,
    /// Number.
    pub uid: u32,
    /// Number of the user's group.
    pub gid: u32,
}

impl User {
    /// The user of that name.
    ///
    /// # Errors
    /// That this host has none.
    pub fn named(name: &str) -> Result<Self, String> {
        let found =
            nix::unistd::User::from_name(name).map_err(|error| format!("cannot look up user {name:?}: {error}"))?;
        let found = found.ok_or_else(|| format!("found {name:?}; allowed: a user of this host, such as nobody"))?;
        Ok(Self { name: name.to_owned(), uid: found.uid.as_raw(), gid: found.gid.as_raw() })
    }
}

/// Where a command runs: behind a prefix such as `ip netns exec ns_client`, or right here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// Name for people and traces, such as `ns_client`; `here` without a prefix.
    pub name: String,
    /// Words in front of every command; empty for the place of the lab itself.
    pub prefix: Vec<OsString>,
}

impl Place {
    /// The place of the lab itself.
    #[must_use]
    pub fn here() -> Self {
        Self { name: "here".to_owned(), prefix: Vec::new() }
    }

    /// A named network namespace.
    #[must_use]
    pub fn namespace(name: &str) -> Self {
        Self { name: name.to_owned(), prefix: ["ip", "netns", "exec", name].map(OsString::from).into() }
    }

    /// The same place, as an ordinary user with no rights of root left.
    #[must_use]
    pub fn as_user(&self, user: &User) -> Self {
        let (uid, gid) = (format!("--reuid={}", user.uid), format!("--regid={}", user.gid));
        let words = ["setpriv", &uid, &gid, "--clear-groups", "--no-new-privs", "--"];
        let prefix = self.prefix.iter().cloned().chain(words.map(OsString::from)).collect();
        Self { name: self.name.clone(), prefix }
    }

    /// A command that runs `program` there, in a process group of its own: Ctrl-C reaches the lab alone, which then
    /// ends what it started in order. The prefix execs, so the process id is the program's.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = match self.prefix.split_first() {
            None => Command::new(program),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
        };
        command.process_group(0);
        command
    }
}

/// One address that a forwarder takes connections on, and where their bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where the server listens.
    pub to: SocketAddr,
}

/// The places and addresses of one topology.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wiring {
    /// Where load comes from.
    pub client: Place,
    /// Where the forwarder runs.
    pub forwarder: Place,
    /// Where the servers run.
    pub server: Place,
    /// Where the forwarder takes connections: 10.0.1.1:9000.
    pub listen: SocketAddr,
    /// Where the server does: 10.0.0.2:9001.
    pub server_addr: SocketAddr,
    /// Where the load connects: `listen` behind a forwarder, `server_addr` when nothing is in between.
    pub target: SocketAddr,
    /// Pairs to forward beside `listen` → `server_addr`, each with the same port on both sides: netperf's control
    /// and data connection, whose port the server tells the client.
    pub more: Vec<Forward>,
}

impl Wiring {
    /// Port of netperf's control connection, the same on both sides.
    pub const NETPERF_CONTROL: u16 = 9002;
    /// Port of netperf's data connection, the same on both sides.
    pub const NETPERF_DATA: u16 = 9003;

    /// Every pair a forwarder has to forward, the main one first.
    #[must_use]
    pub fn forwards(&self) -> Vec<Forward> {
        let mut all = vec![Forward { listen: self.listen, to: self.server_addr }];
        all.extend(&self.more);
        all
    }

    /// The same places with nothing in between: the load connects to the server's own address.
    #[must_use]
    pub fn direct(&self) -> Self {
        Self { target: self.server_addr, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_stands_behind_its_prefix() {
        let command = Place::namespace("ns_client").command("iperf3");
        let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
        assert_eq!(words, ["ip", "netns", "exec", "ns_client", "iperf3"]);
        assert_eq!(Place::here().command("iperf3").get_program(), "iperf3");
        let root = User::named("root").unwrap();
        let place = Place::namespace("x").as_user(&root);
        assert_eq!(place.prefix[4..7], ["setpriv", "--reuid=0", "--regid=0"]);
        assert!(User::named("no such user").is_err());
    }
}
