//! Socket activation: listeners a service manager has opened before it starts us.
//!
//! The manager keeps them while we are stopped, so a restart refuses nobody. They are found by address, because that is
//! what both configurations name; a socket no forward listens on is an error, or clients would wait in it for ever.

use std::collections::HashSet;
use std::env;
use std::net::TcpListener;

use listenfd::ListenFd;
use socket2::Socket;

use crate::address::Address;
use crate::plan::{Forward, Plan};

/// Configured addresses an error names at most.
const NAMED: usize = 8;

/// Listening sockets a service manager has passed on.
#[derive(Debug, Default)]
pub struct Activated {
    /// Those of forwards.
    pub listeners: Vec<Socket>,
    /// That of the metrics endpoint.
    pub metrics: Option<TcpListener>,
}

/// Takes the sockets that `LISTEN_FDS` tells of, and the variable with them. To be called while the process has one
/// thread.
///
/// # Errors
/// A descriptor that is no listening TCP socket, or one whose address the plan does not name; in words for the user.
pub fn activated(plan: &Plan) -> Result<Activated, String> {
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut passed = ListenFd::from_env();
    let mut listeners = Vec::new();
    let mut names = names.split(':');
    for index in 0..passed.len() {
        let name = names.next().unwrap_or_default();
        let wrong = |why: &str| {
            format!(
                "socket activation: number {} ({name:?}) {why}; a socket unit for spliced has ListenStream=ADDRESS:PORT or a path \
                 and Accept=no",
                index + 1
            )
        };
        let listener: Socket = match (passed.take_tcp_listener(index), passed.take_unix_listener(index)) {
            (Ok(Some(listener)), _) => listener.into(),
            (_, Ok(Some(listener))) => listener.into(),
            (Ok(None), _) => continue,
            (Err(error), _) => return Err(wrong(&format!("cannot be used: {error}"))),
        };
        if !listens(&listener) {
            return Err(wrong("does not listen"));
        }
        let address = listener.local_addr().map_err(|error| wrong(&format!("has no address: {error}")))?;
        let address = Address::of(&address).ok_or_else(|| wrong("has no address a forward could listen on"))?;
        listeners.push((address, name.to_owned(), listener));
    }
    sort_out(plan, listeners)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn listens(listener: &Socket) -> bool {
    listener.is_listener().unwrap_or(false)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn listens(_: &Socket) -> bool {
    true
}

fn sort_out(plan: &Plan, listeners: Vec<(Address, String, Socket)>) -> Result<Activated, String> {
    let mut activated = Activated::default();
    if listeners.is_empty() {
        return Ok(activated);
    }
    let wanted: HashSet<Address> =
        plan.forwards.iter().flat_map(Forward::addresses).map(|(address, _)| address).collect();
    for (address, name, listener) in listeners {
        if wanted.contains(&address) {
            activated.listeners.push(listener);
        } else if address.socket().is_some_and(|at| plan.metrics == Some(at)) && activated.metrics.is_none() {
            activated.metrics = Some(listener.into());
        } else {
            return Err(mismatch(plan, address, &name));
        }
    }
    Ok(activated)
}

fn mismatch(plan: &Plan, address: Address, name: &str) -> String {
    let mut configured: Vec<String> = plan.forwards.iter().flat_map(|f| &f.listen).map(ToString::to_string).collect();
    let more = configured.len().saturating_sub(NAMED);
    configured.truncate(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let both = if address.ip().is_some_and(|ip| ip.is_ipv6() && ip.is_unspecified()) {
        "; ListenStream=PORT alone means [::]:PORT, for IPv4 write 0.0.0.0:PORT"
    } else {
        ""
    };
    format!(
        "socket activation passes {address} ({name:?}), and no forward listens there; configured: {}{more}. Write the \
         same address in ListenStream= of the socket unit and in the configuration{both}",
        configured.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn plan(listen: &str) -> Plan {
        config::from_args(listen, "127.0.0.1:1", &config::Overrides::default()).unwrap()
    }

    fn open() -> (Address, String, Socket) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        (listener.local_addr().unwrap().into(), "web".to_owned(), listener.into())
    }

    #[test]
    fn sockets_are_matched_by_address() {
        let (one, metrics) = (open(), open());
        let plan = Plan { metrics: metrics.0.socket(), ..plan(&one.0.to_string()) };
        let address = one.0;
        let activated = sort_out(&plan, vec![metrics, one]).unwrap();
        assert_eq!(activated.listeners.len(), 1);
        assert_eq!(activated.listeners[0].local_addr().unwrap().as_socket(), address.socket());
        assert!(activated.metrics.is_some());
    }

    #[test]
    fn a_socket_nobody_asked_for_is_named_beside_what_is_configured() {
        let stranger = open();
        let address = stranger.0.to_string();
        let error = sort_out(&plan("127.0.0.1:4"), vec![stranger]).unwrap_err();
        for part in [address.as_str(), "\"web\"", "127.0.0.1:4"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn no_variables_no_sockets() {
        let activated = activated(&plan("127.0.0.1:4")).unwrap();
        assert!(activated.listeners.is_empty() && activated.metrics.is_none());
    }
}
