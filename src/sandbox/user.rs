//! The user a process becomes.

use std::io;

use nix::errno::Errno;
use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid, getgid, getuid, setgroups, setresgid, setresuid};

use crate::plan::RunAs;

/// A user and a group by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: Uid,
    pub(super) gid: Gid,
}

/// Looks the names up on this host; numbers need no entry there.
///
/// # Errors
/// A name this host does not know, or a number of a user without an entry and without a group.
pub(super) fn find(run_as: &RunAs) -> io::Result<Identity> {
    let failed = |why: String| io::Error::new(io::ErrorKind::NotFound, format!("user {run_as}: {why}"));
    let asked = |errno: Errno| failed(format!("cannot look it up: {errno}; write numbers, such as 65534:65534"));
    let user = match run_as.user.parse() {
        Ok(number) => User::from_uid(Uid::from_raw(number)).map_err(asked)?.map(|user| (user.uid, user.gid)),
        Err(_) => User::from_name(&run_as.user).map_err(asked)?.map(|user| (user.uid, user.gid)),
    };
    let number = run_as.user.parse().map(Uid::from_raw).ok();
    let Some(uid) = user.map(|(uid, _)| uid).or(number) else {
        let name = &run_as.user;
        return Err(failed(format!("this host knows no user {name:?}; create it: useradd --system {name}")));
    };
    let gid = match &run_as.group {
        None => match user {
            Some((_, gid)) => gid,
            None => return Err(failed("this host has no entry for it, so name a group too, such as 1000:1000".into())),
        },
        Some(group) => match group.parse() {
            Ok(number) => Gid::from_raw(number),
            Err(_) => match Group::from_name(group).map_err(asked)? {
                Some(group) => group.gid,
                None => {
                    let why = format!("this host knows no group {group:?}; create it: groupadd --system {group}");
                    return Err(failed(why));
                }
            },
        },
    };
    Ok(Identity { uid, gid })
}

/// Becomes that user for good: real, effective and saved ids, and no group but its own. Nothing to do, and so also no
/// error, where the process is that user already.
///
/// # Errors
/// The process may not: it was not started by root.
pub(super) fn become_user(to: Identity) -> io::Result<()> {
    if (getuid(), geteuid(), getgid(), getegid()) == (to.uid, to.uid, to.gid, to.gid) && !to.uid.is_root() {
        return Ok(());
    }
    let failed = |what: &str, errno: Errno| {
        let advice = match errno {
            Errno::EPERM => "only root may become another user: start it as root, or leave user out",
            // Our own filter, inherited from the process before.
            Errno::ENOSYS => {
                "a confined process stays who it is: stop it and start spliced anew as root, or keep the user"
            }
            _ => "check the user",
        };
        let text = format!("cannot become user {}, group {}: {what}: {errno}; {advice}", to.uid, to.gid);
        io::Error::new(io::Error::from(errno).kind(), text)
    };
    setgroups(&[to.gid]).map_err(|errno| failed("setgroups", errno))?;
    setresgid(to.gid, to.gid, to.gid).map_err(|errno| failed("setresgid", errno))?;
    setresuid(to.uid, to.uid, to.uid).map_err(|errno| failed("setresuid", errno))
}

/// `nobody (65534:65534)`, or `65534:65534` without an entry.
pub(super) fn describe() -> String {
    let (uid, gid) = (geteuid(), getegid());
    match User::from_uid(uid) {
        Ok(Some(user)) => format!("{} ({uid}:{gid})", user.name),
        _ => format!("{uid}:{gid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_as(user: &str, group: Option<&str>) -> RunAs {
        RunAs { user: user.to_owned(), group: group.map(str::to_owned) }
    }

    #[test]
    fn names_and_numbers_are_found() {
        let root = Identity { uid: Uid::from_raw(0), gid: Gid::from_raw(0) };
        assert_eq!(find(&run_as("root", None)).unwrap(), root);
        assert_eq!(find(&run_as("0", None)).unwrap(), root);
        assert_eq!(find(&run_as("root", Some("7"))).unwrap().gid, Gid::from_raw(7));
        let unknown = find(&run_as("4000000000", Some("4000000001"))).unwrap();
        assert_eq!((unknown.uid.as_raw(), unknown.gid.as_raw()), (4_000_000_000, 4_000_000_001));
    }

    #[test]
    fn what_the_host_does_not_know_is_named() {
        let error = find(&run_as("no-such-user", None)).unwrap_err().to_string();
        assert!(error.contains("no-such-user") && error.contains("useradd"), "{error}");
        let error = find(&run_as("root", Some("no-such-group"))).unwrap_err().to_string();
        assert!(error.contains("no group \"no-such-group\""), "{error}");
        let error = find(&run_as("4000000000", None)).unwrap_err().to_string();
        assert!(error.contains("name a group"), "{error}");
    }
}
