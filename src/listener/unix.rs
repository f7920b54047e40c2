//! Listening on unix sockets.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{Gid, Uid, fchownat};
use socket2::{Domain, Socket, Type};

use super::backlog;
use crate::address::{Address, UnixName};
use crate::plan::{Forward, ListenOptions};
use crate::sandbox;
use crate::socket_file::{self, Obstacle, SocketFile};
use crate::sys;

/// Looks whether a name is free, or its file left behind by a dead process.
pub(super) fn probe(name: UnixName) -> io::Result<()> {
    match name.path() {
        Some(path) => look(path, false),
        // bind(2) tells, and gives it back at once.
        None => Socket::new(Domain::UNIX, Type::STREAM, None)?.bind(&Address::Unix(name).to_sock_addr()?),
    }
}

/// Listens; a socket nobody answers on is replaced.
pub(super) fn claim(name: UnixName, forward: &Forward) -> io::Result<(Socket, Option<SocketFile>)> {
    let address = Address::Unix(name);
    let Some(path) = name.path() else {
        let socket = sys::stream(address, false)?;
        sys::set_options(&socket, address, &forward.tcp)?;
        socket.bind(&address.to_sock_addr()?)?;
        socket.listen(backlog(forward))?;
        return Ok((socket, None));
    };
    let lock = path.parent().and_then(socket_file::lock_directory);
    look(path, true)?;
    let (socket, file) = socket_file::bind(path, forward.listen_options.unix_mode)?;
    sys::set_options(&socket, address, &forward.tcp)?;
    own(path, &forward.listen_options)?;
    socket.listen(backlog(forward))?;
    drop(lock);
    Ok((socket, Some(file)))
}

/// Brings the file of a socket that listens already to what a forward wants of it.
pub(crate) fn set_file(path: &Path, options: &ListenOptions) -> io::Result<()> {
    own(path, options)?;
    options.unix_mode.map_or(Ok(()), |mode| socket_file::set_mode(path, mode))
}

/// Gives the file to its owner. A mode that was set stays: chown(2) takes only set-id bits, which a socket has not.
fn own(path: &Path, options: &ListenOptions) -> io::Result<()> {
    let Some(owner) = &options.unix_owner else { return sandbox::give_path(path) };
    let (uid, gid) = sandbox::find_user(owner)?;
    let failed = |error: nix::Error| {
        let kind = io::Error::from(error).kind();
        io::Error::new(kind, format!("cannot give the socket to {owner}: {error}; only root may (unix_owner)"))
    };
    let found = fs::symlink_metadata(path)?;
    if (found.uid(), found.gid()) == (uid, gid) {
        return Ok(());
    }
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    fchownat(AT_FDCWD, path, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed)
}

fn look(path: &Path, remove: bool) -> io::Result<()> {
    let taken = |why: &str| Err(io::Error::new(io::ErrorKind::AddrInUse, why.to_owned()));
    match socket_file::look(path, remove)? {
        Ok(()) => Ok(()),
        Err(Obstacle::NoSocket) => {
            let what =
                if fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink()) { "a link" } else { "a file" };
            taken(&format!("{what} that is no socket is in its place"))
        }
        Err(Obstacle::Answers) => taken("another process answers on it"),
        Err(Obstacle::Busy) => taken("another process holds it, and its queue is full"),
        Err(Obstacle::Stuck(error)) => {
            Err(io::Error::new(error.kind(), format!("left behind by a dead process and cannot be removed: {error}")))
        }
        Err(Obstacle::Unknown(error)) => {
            Err(io::Error::new(error.kind(), format!("a socket is in its place that cannot be asked: {error}")))
        }
    }
}

/// What can be done about an error, beside what the error says.
pub(super) fn advice(name: UnixName, error: &io::Error) -> String {
    let Some(path) = name.path() else {
        return match error.kind() {
            io::ErrorKind::AddrInUse => "another process has that name; stop it or choose another name".to_owned(),
            _ => "check the name".to_owned(),
        };
    };
    let directory = path.parent().unwrap_or(path).display();
    match error.kind() {
        io::ErrorKind::AddrInUse => "stop it, remove it or choose another path".to_owned(),
        io::ErrorKind::NotFound => format!("create the directory {directory}, or choose another path"),
        io::ErrorKind::PermissionDenied => format!(
            "this user may not make a socket in {directory}; in a running process, also the sandbox (sandbox: auto) \
             limits it to the directories of the unix sockets it was started with"
        ),
        _ => format!("check {}", path.display()),
    }
}
