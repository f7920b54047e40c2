//! The control socket: a unix socket only its owner may use. One line in, one JSON object out.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;

use mio::net::UnixListener;
use serde_json::json;

use super::RunError;
use super::service::{Answer, MAX_REQUEST};
use super::snapshot::Snapshot;
use super::targets::{self, Request, TargetSnapshot};
use crate::sandbox;
use crate::socket_file::{self, Obstacle, SocketFile};
use crate::upgrade::Control;

/// Connections the kernel queues before the control thread takes them.
const BACKLOG: i32 = 64;

/// Binds the control socket with mode 0600. A socket nobody answers on is replaced.
///
/// # Errors
/// When a running instance answers on it, something else is in its place, or it cannot be made.
pub(super) fn bind(path: &Path) -> Result<(UnixListener, SocketFile), RunError> {
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Err(failed(path, "it names no file")),
    };
    if !parent.is_dir() {
        let parent = parent.display();
        return Err(failed(path, &format!("the directory {parent} does not exist; create it or choose another path")));
    }
    refuse_open_directory(path, parent)?;
    // Two instances that start together must not each find the other's socket dead and replace it.
    let lock = socket_file::lock_directory(parent);
    clear_place(path)?;
    let (listener, file) = listen(path).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => failed(path, &format!("{error}; choose a path this user may write")),
        io::ErrorKind::InvalidInput => failed(path, "the path is too long for a unix socket; choose a shorter one"),
        _ => failed(path, &error.to_string()),
    })?;
    drop(lock);
    Ok((UnixListener::from_std(listener), file))
}

/// A socket another process has passed on, whose file is at `path` and that process's until [`SocketFile::take_over`].
///
/// # Errors
/// What fcntl(2) reports.
pub(super) fn inherit(path: &Path, control: Control) -> Result<(UnixListener, SocketFile), RunError> {
    let Control { listener, device, inode } = control;
    listener.set_nonblocking(true).map_err(|error| failed(path, &error.to_string()))?;
    Ok((UnixListener::from_std(listener), SocketFile::new(path, device, inode)))
}

fn failed(path: &Path, why: &str) -> RunError {
    RunError::new(format!("control socket {}: {why}", path.display()))
}

/// Whoever may write a directory may put a socket of their own in the place of ours, and answer in our name.
fn refuse_open_directory(path: &Path, parent: &Path) -> Result<(), RunError> {
    let mode = fs::metadata(parent).map_or(0, |found| found.permissions().mode());
    let (everybody_writes, sticky) = (mode & 0o002 != 0, mode & 0o1000 != 0);
    if everybody_writes && !sticky {
        let parent = parent.display();
        let why = format!(
            "everybody may write {parent} (mode {:04o}) and put another socket in its place; \
             chmod o-w {parent}, or choose another path",
            mode & 0o7777
        );
        return Err(failed(path, &why));
    }
    Ok(())
}

/// Removes a dead socket at `path`; anything else there is an error.
fn clear_place(path: &Path) -> Result<(), RunError> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() && !sandbox::may_own(found.uid()) => {
            let why = format!("a socket of user {} is in its place; choose another path, or remove it", found.uid());
            return Err(failed(path, &why));
        }
        _ => {}
    }
    let looked = socket_file::look(path, true).map_err(|error| failed(path, &error.to_string()))?;
    looked.map_err(|obstacle| match obstacle {
        Obstacle::NoSocket => {
            failed(path, "something that is no socket is in its place; remove it or choose another path")
        }
        Obstacle::Answers => {
            failed(path, "a running instance answers on it; stop that one or choose another path with --control")
        }
        Obstacle::Busy => {
            failed(path, "a running instance holds it (its queue is full); stop that one or choose another path")
        }
        Obstacle::Stuck(error) => {
            failed(path, &format!("left behind by a dead process and cannot be removed: {error}"))
        }
        Obstacle::Unknown(error) => failed(path, &format!("a socket is in its place that cannot be asked: {error}")),
    })
}

fn listen(path: &Path) -> io::Result<(StdListener, SocketFile)> {
    let (socket, file) = socket_file::bind(path, Some(0o600))?;
    sandbox::give_path(path)?;
    socket.listen(BACKLOG)?;
    Ok((socket.into(), file))
}

/// What the control socket gives access to.
pub(super) trait Instance {
    /// All counters.
    fn stats(&self) -> Snapshot;
    /// The plan that runs, as YAML.
    fn plan(&self) -> String;
    /// Asks for a reload; its result is the answer to all who asked. Otherwise why there is none now.
    fn reload(&self) -> Result<(), String>;
    /// Changes a target; how the targets of its forward stand then.
    fn target(&self, request: &Request) -> Result<Vec<TargetSnapshot>, String>;
    /// Asks for an upgrade; its result is the answer to who asked. Otherwise why there is none now.
    fn upgrade(&self) -> Result<(), String>;
}

/// Answers one request: `stats`, `plan`, `reload`, `target`, `upgrade`, or an error object.
pub(super) fn answer(request: &[u8], instance: &dyn Instance) -> Answer {
    let Some(end) = request.iter().position(|byte| *byte == b'\n') else {
        if request.len() < MAX_REQUEST {
            return Answer::More;
        }
        return reply(&json!({ "error": format!("a request is one line of at most {MAX_REQUEST} bytes") }));
    };
    match request[..end].trim_ascii() {
        b"stats" => reply(&instance.stats()),
        b"plan" => reply(&json!({ "plan": instance.plan() })),
        b"reload" => later(instance.reload()),
        b"upgrade" => later(instance.upgrade()),
        line if line.starts_with(b"target ") => {
            let changed = targets::parse(&line[b"target ".len()..]).and_then(|request| instance.target(&request));
            changed.map_or_else(|why| reply(&json!({ "error": why })), |all| reply(&json!({ "targets": all })))
        }
        other => {
            let shown: String = String::from_utf8_lossy(other).chars().take(40).collect();
            reply(
                &json!({ "error": format!("unknown command {shown:?}; known: plan, reload, stats, target, upgrade") }),
            )
        }
    }
}

fn later(asked: Result<(), String>) -> Answer {
    asked.map_or_else(|why| reply(&json!({ "error": why })), |()| Answer::Later)
}

fn reply(value: &impl serde::Serialize) -> Answer {
    Answer::Reply(line(value))
}

/// An answer: one object on one line.
pub(super) fn line(value: &impl serde::Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec(value)
        .unwrap_or_else(|error| json!({ "error": format!("cannot write the answer: {error}") }).to_string().into());
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::tests::{plan, snapshot, stats};
    use super::*;

    struct Running;

    impl Instance for Running {
        fn stats(&self) -> Snapshot {
            snapshot(&plan("web"), &stats())
        }
        fn plan(&self) -> String {
            "workers: 2\n".to_owned()
        }
        fn reload(&self) -> Result<(), String> {
            Ok(())
        }

        fn target(&self, request: &Request) -> Result<Vec<TargetSnapshot>, String> {
            Err(format!("no target {}", request.target))
        }

        fn upgrade(&self) -> Result<(), String> {
            Err("not now".to_owned())
        }
    }

    fn ask(request: &[u8]) -> Answer {
        answer(request, &Running)
    }

    fn json(answer: Answer) -> serde_json::Value {
        let Answer::Reply(text) = answer else { panic!("no reply") };
        assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 1, "one object, one line");
        serde_json::from_slice(&text).unwrap()
    }

    #[test]
    fn stats_is_answered_and_anything_else_is_an_error_object() {
        assert_eq!(json(ask(b"stats\n"))["total"]["sessions_accepted"], 55);
        assert_eq!(json(ask(b"  stats \r\nmore"))["total"]["sessions_accepted"], 55);
        assert_eq!(ask(b"stat"), Answer::More);
        assert_eq!(json(ask(b"plan\n"))["plan"], "workers: 2\n");
        assert_eq!(ask(b"reload\n"), Answer::Later);
        let request = br#"target {"forward":"a b","target":"c","action":{"weight":null}}"#;
        assert_eq!(json(ask(&[request, &b"\n"[..]].concat()))["error"], "no target c");
        assert!(json(ask(b"target web drain\n"))["error"].as_str().unwrap().contains("such as {"));
        let error = json(ask(b"st\x1b[31m\xffop\n"));
        assert!(error["error"].as_str().unwrap().contains("unknown command"), "{error}");
        assert!(json(ask(&[b'x'; MAX_REQUEST]))["error"].is_string());
    }

    #[test]
    fn the_socket_is_private_and_goes_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let (_listener, file) = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        drop(StdListener::bind(&path).unwrap());
        assert!(path.exists());
        let (_listener, _file) = bind(&path).unwrap();
        let error = bind(&path).unwrap_err().to_string();
        assert!(error.contains("a running instance answers"), "{error}");
        assert!(std::os::unix::net::UnixStream::connect(&path).is_ok(), "the first one still answers");
    }

    #[test]
    fn a_replaced_socket_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let (_listener, file) = bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _other = StdListener::bind(&path).unwrap();
        drop(file);
        assert!(path.exists());
    }

    #[test]
    fn bad_places_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing/control.sock");
        let error = bind(&path).unwrap_err().to_string();
        assert!(error.contains("missing does not exist"), "{error}");
        let path = dir.path().join("file");
        fs::write(&path, "precious").unwrap();
        assert!(bind(&path).unwrap_err().to_string().contains("no socket"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        assert!(bind(&dir.path().join("file/control.sock")).is_err());
        let open = dir.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        let error = bind(&open.join("control.sock")).unwrap_err().to_string();
        assert!(error.contains("everybody may write") && error.contains("0777"), "{error}");
        fs::set_permissions(&open, fs::Permissions::from_mode(0o1777)).unwrap();
        assert!(bind(&open.join("control.sock")).is_ok(), "as in /tmp, nobody removes what is another's");
        let path = dir.path().join("x".repeat(200));
        let error = bind(&path).unwrap_err().to_string();
        assert!(error.contains("too long"), "{error}");
    }
}
