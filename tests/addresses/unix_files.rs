//! The files of unix listeners: made with the mode and owner asked for, taken from the dead and not from the living,
//! removed at the end, and kept for whoever takes over.

#![cfg(target_os = "linux")]

use crate::common;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use common::deadline::{LONG, until};
use common::spliced::{Launcher, Spliced, ordinary_user};
use common::unix::{Address, accept, echoes, with_deadlines};
use common::upgraded::Installed;
use nix::sys::signal::Signal;
use socket2::Socket;
use tempfile::TempDir;

/// A backend and a place for listeners.
struct Place {
    directory: TempDir,
    backend: Socket,
    back: Address,
}

impl Place {
    fn new() -> Self {
        let directory = TempDir::with_prefix("spliced-files-").expect("a temporary directory");
        let back = Address::file(&directory.path().join("back"));
        Self { backend: back.listen(64), back, directory }
    }

    fn at(&self, name: &str) -> Address {
        Address::file(&self.directory.path().join(name))
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// Forwards from these names to the backend.
    fn config(&self, listens: &[&Address], lines: &str) -> String {
        let forward = |listen: &&Address| format!("- {{listen: \"{}\", to: \"{}\"}}\n", listen.text, self.back.text);
        format!("{lines}\nforwards:\n{}", listens.iter().map(forward).collect::<String>())
    }

    fn serves(&self, front: &Address) {
        let client = front.connect();
        echoes(&client, &accept(&self.backend));
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").permissions().mode() & 0o7777
}

#[test]
fn mode_and_owner_are_those_asked_for() {
    let place = Place::new();
    let front = place.at("front");
    let uid = ordinary_user();
    let is_root = nix::unistd::geteuid().is_root();
    let owner = if is_root { format!("unix_owner: \"{uid}:{}\"", uid + 1) } else { String::new() };
    let spliced = Launcher::config(&place.config(&[&front], &format!("unix_mode: 0620\n{owner}"))).start();
    let file = fs::metadata(place.path("front")).expect("it is there");
    assert!(file.file_type().is_socket());
    assert_eq!(mode(&place.path("front")), 0o620);
    if is_root {
        assert_eq!((file.uid(), file.gid()), (uid, uid + 1));
    }
    place.serves(&front);
    spliced.finish();

    // A reload sets another mode, and keeps the socket. That of a file given away is its owner's to change.
    let spliced = Launcher::config(&place.config(&[&front], "unix_mode: 0620")).start();
    let found = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino())).expect("it is there");
    let before = found(&place.path("front"));
    spliced.reload_with(&place.config(&[&front], "unix_mode: 0600"));
    assert_eq!((mode(&place.path("front")), found(&place.path("front"))), (0o600, before));
    place.serves(&front);
    spliced.finish();
}

#[test]
fn a_dead_socket_is_replaced_and_ours_is_removed_at_the_end() {
    let place = Place::new();
    let front = place.at("front");
    drop(front.listen(1));
    assert!(place.path("front").exists() && !front.answers());
    let spliced = Launcher::config(&place.config(&[&front], "")).start();
    place.serves(&front);
    spliced.finish();
    assert!(!place.path("front").exists(), "a clean end removes it");

    // A killed process leaves it, and the next one takes its place.
    let mut killed = Launcher::config(&place.config(&[&front], "")).start();
    killed.signal(Signal::SIGKILL);
    killed.wait(LONG);
    assert!(place.path("front").exists());
    let spliced = Launcher::config(&place.config(&[&front], "")).start();
    place.serves(&front);
    spliced.finish();
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let place = Place::new();
    fs::write(place.path("file"), "precious").expect("a file");
    std::os::unix::fs::symlink("/dev/null", place.path("link")).expect("a link");
    let alive = place.at("alive");
    let listener = alive.listen(8);
    for (name, why) in [
        ("file", "a file that is no socket is in its place"),
        ("link", "a link that is no socket is in its place"),
        ("alive", "another process answers on it"),
    ] {
        let front = place.at(name);
        let outcome = Launcher::config(&place.config(&[&front], "")).outcome();
        assert_eq!(outcome.code, Some(1), "{}", outcome.text);
        let expected = format!("cannot listen on {} for forward \"{}\": {why}", front.text, front.text);
        assert!(outcome.text.contains(&expected), "{}", outcome.text);
    }
    assert_eq!(fs::read(place.path("file")).expect("still there"), b"precious");
    with_deadlines(&listener);
    assert!(alive.answers(), "it was only asked");

    let outcome = Launcher::config(&place.config(&[&place.at("no/such")], "")).outcome();
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.text.contains("create the directory"), "{}", outcome.text);

    // The same for an abstract name that is taken.
    let name = Address::named("taken");
    let _taken = name.listen(1);
    let outcome = Launcher::config(&place.config(&[&name], "")).outcome();
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.text.contains("another process has that name"), "{}", outcome.text);
}

/// A start that fails takes the sockets it has made away again.
#[test]
fn a_start_that_fails_leaves_nothing() {
    let place = Place::new();
    let (first, taken) = (place.at("first"), place.at("second"));
    fs::write(place.path("second"), "").expect("a file");
    let outcome = Launcher::config(&place.config(&[&first, &taken], "")).outcome();
    assert_eq!(outcome.code, Some(1), "{}", outcome.text);
    assert!(!place.path("first").exists());
}

/// Under the default sandbox, and as another user where root starts it: listeners come and go, sessions stay.
#[test]
fn a_reload_adds_and_removes_sockets() {
    let place = Place::new();
    let (one, two) = (place.at("one"), place.at("two"));
    let mut launcher = Launcher::config(&place.config(&[&one], "sandbox: auto"));
    if nix::unistd::geteuid().is_root() {
        let uid = ordinary_user();
        for directory in [place.directory.path(), launcher.directory()] {
            std::os::unix::fs::chown(directory, Some(uid), Some(uid)).expect("root gives its directory away");
        }
        std::os::unix::fs::chown(place.path("back"), Some(uid), Some(uid)).expect("and the backend");
        launcher = launcher.option("--user", format!("{uid}:{uid}"));
    }
    let mut spliced = launcher.start();
    let client = one.connect();
    let server = accept(&place.backend);
    echoes(&client, &server);

    spliced.reload_with(&place.config(&[&one, &two], "sandbox: auto"));
    place.serves(&two);
    echoes(&client, &server);
    spliced.reload_with(&place.config(&[&two], "sandbox: auto"));
    assert!(!place.path("one").exists(), "nobody finds it any more");
    echoes(&client, &server);
    place.serves(&two);
    // At once again, though the old socket may still be closing.
    spliced.reload_with(&place.config(&[&one, &two], "sandbox: auto"));
    place.serves(&one);
    drop((client, server));
    // Directories the process has not known from its start are out of its reach, and nothing changes.
    let other = Place::new();
    if confined(&spliced) {
        spliced.replace_config(&place.config(&[&one, &two, &other.at("front")], "sandbox: auto"));
        let (code, said) = spliced.reload();
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("sandbox: auto") && said.contains("directories"), "{said}");
    }
    place.serves(&two);
    spliced.signal(Signal::SIGTERM);
    assert_eq!(spliced.wait(LONG).code(), Some(0));
    assert!(!place.path("one").exists() && !place.path("two").exists(), "a clean end removes both");
}

fn confined(spliced: &Spliced) -> bool {
    spliced.logged("sandbox: ").iter().any(|line| line.contains("landlock ABI"))
}

/// An upgrade keeps socket and file: no connect is refused, the file stays the same, and the last process removes it.
#[test]
fn an_upgrade_keeps_the_socket_and_its_file() {
    let place = Place::new();
    let (front, name) = (place.at("front"), Address::named("upgrade"));
    let installed = Installed::new();
    let mut running = installed.start(Launcher::config(&place.config(&[&front, &name], "")));
    let inode = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    let before = inode(&place.path("front"));
    let client = front.connect();
    let server = accept(&place.backend);
    running.upgrade();
    assert_eq!(inode(&place.path("front")), before, "the same file");
    place.serves(&front);
    place.serves(&name);
    echoes(&client, &server);
    drop((client, server));
    let first = running.spliced.process();
    until("the first process ends", LONG, || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", first.0));
        stat.map_or(true, |stat| stat.contains(") Z "))
    });
    assert_eq!(inode(&place.path("front")), before, "the end of the first process leaves it");
    place.serves(&front);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(running.pid()).expect("a process number"));
    nix::sys::signal::kill(pid, Signal::SIGTERM).expect("it runs");
    until("the file is removed", LONG, || !place.path("front").exists());
}

/// Nobody may connect between the making of the file and the setting of its mode.
#[test]
fn a_client_without_the_right_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        return common::cannot_run("only root can become another user to try");
    }
    let place = Place::new();
    fs::set_permissions(place.directory.path(), fs::Permissions::from_mode(0o755)).expect("our own");
    let front = place.at("front");
    let spliced = Launcher::config(&place.config(&[&front], "unix_mode: 0600")).start();
    // Rights to files go by the thread's own user for them (setfsuid(2)), which takes its rights as root away too.
    let user = nix::unistd::Uid::from_raw(ordinary_user());
    let try_it = || {
        std::thread::scope(|scope| {
            let stranger = scope.spawn(|| {
                nix::unistd::setfsuid(user);
                std::os::unix::net::UnixStream::connect(place.path("front"))
            });
            stranger.join().expect("it only connects").map_err(|e| e.kind())
        })
    };
    assert_eq!(try_it().err(), Some(std::io::ErrorKind::PermissionDenied));
    spliced.reload_with(&place.config(&[&front], "unix_mode: 0666"));
    drop(try_it().expect("everybody may connect now"));
    drop(accept(&place.backend));
    until("that session ends", Duration::from_secs(20), || spliced.stats().open() == 0);
    spliced.finish();
}
