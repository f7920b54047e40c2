//! A changed configuration takes effect while sessions go on: all of it or nothing, and only what is different changes.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failing step fails the test, in its helpers as well")]

use crate::common;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use common::deadline::{LONG, eventually, until};
use common::peer::{Echo, Reserved, accept, backend, connect, echoes, metrics_address};
use common::spliced::{Launcher, Spliced};
use common::stats::Stats;
use common::strace::{Injection, can_attach};
use nix::sys::signal::Signal;

/// A forward as YAML in one line.
fn forward(name: &str, listen: &Reserved, to: SocketAddr, more: &str) -> String {
    format!("  - {{ name: {name}, listen: \"{}\", to: \"{to}\"{more} }}\n", listen.address())
}

fn config(lines: &str, forwards: &[String]) -> String {
    format!("workers: 2\n{lines}\nforwards:\n{}", forwards.concat())
}

fn start(text: &str) -> Spliced {
    Launcher::config(text).start()
}

fn generation(spliced: &Spliced) -> u64 {
    spliced.stats().number("/reloads/generation")
}

/// A byte each way, to see that a session lives.
fn ping((client, server): &mut (TcpStream, TcpStream)) {
    client.write_all(b"?").expect("the client writes");
    server.read_exact(&mut [0]).expect("the backend reads");
    server.write_all(b"!").expect("the backend writes");
    client.read_exact(&mut [0]).expect("the client reads");
}

fn session(listen: &Reserved, backend: &TcpListener) -> (TcpStream, TcpStream) {
    let client = connect(listen.address());
    (client, accept(backend))
}

fn refused(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, LONG).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
}

/// Inodes of its sockets that listen on an address.
fn listening(spliced: &Spliced, address: SocketAddr) -> Vec<String> {
    let SocketAddr::V4(address) = address else { panic!("{address} is no IPv4 address") };
    let wanted = format!("{:08X}:{:04X}", u32::from_le_bytes(address.ip().octets()), address.port());
    let table = fs::read_to_string(format!("/proc/{}/net/tcp", spliced.process().0)).expect("the process runs");
    let own = spliced.process().descriptors().sockets;
    let inode = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let listens = fields.get(1) == Some(&wanted.as_str()) && fields.get(3) == Some(&"0A");
        fields.get(9).filter(|inode| listens && own.contains(&inode.parse().unwrap_or(0))).map(|i| (*i).to_owned())
    };
    let mut inodes: Vec<String> = table.lines().skip(1).filter_map(inode).collect();
    inodes.sort_unstable();
    inodes
}

#[test]
fn a_changed_target_is_for_new_sessions_and_the_listener_stays() {
    let (port, other, old, new) = (Reserved::loopback(), Reserved::loopback(), backend(), backend());
    let (was, is) = (old.local_addr().unwrap(), new.local_addr().unwrap());
    let same = forward("same", &other, was, "");
    let spliced = start(&config("", &[forward("web", &port, was, ""), same.clone()]));
    let mut before = session(&port, &old);
    ping(&mut before);
    let sockets = listening(&spliced, port.address());
    assert_eq!(sockets.len(), 2, "one for each worker");

    let changed = forward("web", &port, is, ", engine: copy, idle_timeout: 1h");
    let said = spliced.reload_with(&config("", &[changed, same]));
    let expected =
        format!("~ forward \"web\": to {was} -> {is}, engine auto -> copy, idle_timeout none -> 1h\n= 1 unchanged\n");
    assert_eq!(said, expected);
    assert!(!spliced.says("configuration 2 is in effect").is_empty());
    assert!(!spliced.says("idle_timeout none -> 1h").is_empty(), "the log has it too");

    let mut after = session(&port, &new);
    ping(&mut after);
    ping(&mut before);
    assert_eq!(listening(&spliced, port.address()), sockets, "the same sockets");
    drop((before, after));
    spliced.ended("done", 2);
    spliced.finish();
}

#[test]
fn forwards_come_and_go_and_their_sessions_stay() {
    come_and_go("sandbox: auto");
}

/// What a listener that is given up does depends on no privilege.
#[test]
fn forwards_come_and_go_without_a_sandbox() {
    come_and_go("sandbox: off");
}

fn come_and_go(lines: &str) {
    let (first, second, back) = (Reserved::loopback(), Reserved::loopback(), backend());
    let to = back.local_addr().unwrap();
    let (a, b) = (forward("a", &first, to, ""), forward("b", &second, to, ""));
    let mut spliced = start(&config(lines, std::slice::from_ref(&a)));
    assert!(refused(second.address()));
    let said = spliced.reload_with(&config(lines, &[a, b.clone()]));
    assert_eq!(said, format!("+ forward \"b\" listen {} to {to} engine auto\n= 1 unchanged\n", second.address()));
    // It serves when the command returns.
    let mut kept = session(&second, &back);
    ping(&mut kept);
    let mut cut = session(&first, &back);

    let said = spliced.reload_with(&config(lines, &[b]));
    assert!(said.starts_with(&format!("- forward \"a\" listen {} to {to} engine auto\n", first.address())), "{said}");
    // It serves nobody any more when the command returns.
    assert!(refused(first.address()));
    until("the listener is closed", LONG, || listening(&spliced, first.address()).is_empty());
    assert!(refused(first.address()));
    ping(&mut cut);
    ping(&mut kept);
    let stats = spliced.stats();
    assert_eq!(stats.0.pointer("/forwards/1/name").unwrap(), "a");
    assert_eq!(stats.0.pointer("/forwards/1/removed").unwrap(), true);
    drop(cut);
    let gone = |stats: &Stats| stats.0["forwards"].as_array().is_some_and(|all| all.len() == 1);
    let stats = spliced.stats_until("the forward is gone with its last session", gone);
    assert_eq!((stats.number("/total/sessions_accepted"), stats.ends("done")), (2, 1), "nothing is uncounted");
    drop(kept);
    spliced.ended("done", 2);
    // As many listeners as at the start, on another address.
    spliced.note_rest();
    spliced.finish();
}

/// Who waits in the queue of a listener that is removed was promised a connection by the kernel.
#[test]
fn the_queue_of_a_removed_listener_is_served() {
    let (port, other, echo) = (Reserved::loopback(), Reserved::loopback(), Echo::start(backend()));
    let full = forward("full", &port, echo.address(), ", max_connections: 1");
    let stays = forward("stays", &other, echo.address(), "");
    let mut spliced = start(&config("", &[full, stays.clone()]));
    let holder = connect(port.address());
    assert!(echoes(&holder, 1, LONG));
    let waiting: Vec<_> = (0..8).map(|_| connect(port.address())).collect();
    spliced.reload_with(&config("", &[stays]));
    assert!(echoes(&holder, 2, LONG));
    drop(holder);
    // In whatever order the workers take them, each makes room for the next.
    let waiting: Vec<_> = waiting.into_iter().map(|c| std::thread::spawn(move || echoes(&c, 3, LONG))).collect();
    for client in waiting {
        assert!(client.join().unwrap(), "a connection that was made is served");
    }
    until("the listener is closed", LONG, || listening(&spliced, port.address()).is_empty());
    spliced.ended("done", 9);
    // Two listeners less.
    spliced.note_rest();
    spliced.finish();
}

/// One of several new addresses is taken: none of them is opened, and nothing else changes either.
#[test]
fn all_or_nothing() {
    let (port, free, taken, echo) = (Reserved::loopback(), Reserved::loopback(), backend(), Echo::start(backend()));
    let old = config("", &[forward("web", &port, echo.address(), "")]);
    let spliced = start(&old);
    let client = connect(port.address());
    let taken = taken.local_addr().unwrap();
    let more = [
        forward("web", &port, taken, ""),
        forward("free", &free, echo.address(), ""),
        format!("  - {{ name: taken, listen: \"{taken}\", to: \"{}\" }}\n", echo.address()),
    ];
    spliced.replace_config(&config("", &more).replace("workers: 2", "workers: 4"));
    let threads = spliced.process().threads().len();
    let (code, said) = spliced.reload();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("nothing has changed") && said.contains(&taken.to_string()), "{said}");
    assert!(refused(free.address()));
    assert!(echoes(&client, 1, LONG) && echoes(&connect(port.address()), 2, LONG), "the old target serves");
    let stats = spliced.stats();
    assert_eq!(stats.0["workers"].as_array().unwrap().len(), 2);
    assert_eq!((stats.number("/reloads/failed"), stats.number("/reloads/generation")), (1, 1));
    until("no thread is left over", LONG, || spliced.process().threads().len() == threads);
    // And then it can be mended.
    let said = spliced.reload_with(&config("", &more[1..2]));
    assert!(said.contains("+ forward \"free\""), "{said}");
    drop(client);
    spliced.ended("done", 2);
}

/// Whatever is in the file's place, the process goes on with what it has and says why.
#[test]
fn a_bad_file_leaves_the_old_one_running() {
    let (port, echo) = (Reserved::loopback(), Echo::start(backend()));
    let good = config("", &[forward("web", &port, echo.address(), "")]);
    let spliced = start(&good);
    let file = spliced.config();
    let name = file.display();
    let client = connect(port.address());
    let mut failed = 0;
    let mut fails = |expected: &str| {
        let (code, said) = spliced.reload();
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(expected), "no {expected:?} in {said}");
        spliced.signal(Signal::SIGHUP);
        failed += 2;
        until("the signal's failure is counted", LONG, || spliced.stats().number("/reloads/failed") == failed);
        eventually("the log says why", LONG, || {
            let lines = spliced.logged("reload failed, nothing has changed: ");
            let said = lines.iter().filter(|line| line.contains(expected)).count();
            if said == 2 { Ok(()) } else { Err(format!("{lines:?}")) }
        });
        assert!(echoes(&client, 1, LONG), "the session goes on");
        assert!(echoes(&connect(port.address()), 2, LONG), "new ones too");
    };
    spliced.replace_config(&good.replace("workers: 2", "workers: many"));
    fails(&format!("{name}:1:10: "));
    spliced.replace_config("forwards: [");
    fails("while parsing a flow sequence at line 1 column 11");
    fs::remove_file(&file).unwrap();
    fails("cannot be read (No such file or directory");
    fs::create_dir(&file).unwrap();
    fails("found a directory");
    fs::remove_dir(&file).unwrap();
    std::os::unix::fs::symlink("spliced.yaml", &file).unwrap();
    fails("cannot be read (Too many levels");
    spliced.replace_config(&good);
    assert_eq!(spliced.reload(), (Some(0), "= 1 unchanged\n".to_owned()));
    let stats = spliced.stats();
    assert_eq!((stats.number("/reloads/ok"), stats.number("/reloads/generation")), (1, 2));
    drop(client);
    spliced.finish();
}

/// Reading hangs, as on a file system that is gone: nothing else does.
#[test]
fn a_file_that_hangs_holds_up_nothing() {
    if !can_attach() {
        return;
    }
    let (port, echo) = (Reserved::loopback(), Echo::start(backend()));
    let good = config("", &[forward("web", &port, echo.address(), "")]);
    let mut spliced = start(&good);
    let hang = |spliced: &Spliced| {
        Injection::attach_all(spliced.process().0, &["openat:delay_enter=1000000000:when=1"])
            .unwrap_or_else(|why| panic!("strace: {why}"))
    };
    let hanging = hang(&spliced);
    spliced.signal(Signal::SIGHUP);
    until("a thread reads the file", LONG, || thread_named(&spliced, "reload"));
    for _ in 0..3 {
        assert_eq!(generation(&spliced), 1);
        assert!(echoes(&connect(port.address()), 1, LONG));
    }
    // What was asked for meanwhile is done once more when the first reading has ended.
    spliced.signal(Signal::SIGHUP);
    spliced.replace_config(&good.replace("name: web", "name: other"));
    assert!(thread_named(&spliced, "reload"));
    drop(hanging);
    spliced.stats_until("the file is read again", |stats| stats.number("/reloads/generation") == 2);
    assert_eq!(spliced.stats().0.pointer("/forwards/0/name").unwrap(), "other");
    let hanging = hang(&spliced);
    spliced.signal(Signal::SIGHUP);
    until("a thread reads the file", LONG, || thread_named(&spliced, "reload"));
    spliced.signal(Signal::SIGTERM);
    until("the end does not wait for the file", LONG, || !spliced.logged("stopped").is_empty());
    // strace itself keeps what it holds up.
    drop(hanging);
    assert_eq!(spliced.wait(LONG).code(), Some(0));
}

/// A start reads from a pipe whatever comes; a reload would wait for ever, or find nothing.
#[test]
fn a_pipe_is_read_at_the_start_and_refused_at_a_reload() {
    let (port, echo) = (Reserved::loopback(), Echo::start(backend()));
    let dir = tempfile::tempdir().unwrap();
    let (fifo, control) = (dir.path().join("fifo"), dir.path().join("control"));
    let text = config(&format!("control: {}", control.display()), &[forward("web", &port, echo.address(), "")]);
    let said = "a regular file can be read again: write what it says into one";
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let writer = std::thread::spawn({
        let (fifo, text) = (fifo.clone(), text.clone());
        move || fs::write(fifo, text)
    });
    let spliced = Launcher::file(&fifo).start_at(&control);
    writer.join().unwrap().unwrap();
    let (code, answer) = spliced.reload();
    assert!(code != Some(0) && answer.contains("(it is a pipe, and only ") && answer.contains(said), "{answer}");
    fs::remove_file(&fifo).unwrap();
    fs::create_dir(&fifo).unwrap();
    let (code, answer) = spliced.reload();
    assert!(code != Some(0) && answer.contains("found a directory; allowed: a text file"), "{answer}");
    fs::remove_dir(&fifo).unwrap();
    fs::write(&fifo, &text).unwrap();
    let (code, answer) = spliced.reload();
    assert_eq!(code, Some(0), "{answer}");
    drop(spliced);
    // As a shell passes what `<(…)` says.
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(text.as_bytes()).unwrap();
    drop(writer);
    let spliced = Launcher::file("/dev/stdin".as_ref()).standard_input(reader.into()).start_at(&control);
    let (code, answer) = spliced.reload();
    assert!(code != Some(0) && answer.contains(said), "{answer}");
    assert!(echoes(&connect(port.address()), 1, LONG));
}

fn thread_named(spliced: &Spliced, name: &str) -> bool {
    let tasks = fs::read_dir(format!("/proc/{}/task", spliced.process().0)).unwrap();
    let comm = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    tasks.flatten().any(|task| comm(task).trim() == name)
}

#[test]
fn metrics_and_log_move() {
    let (port, echo) = (Reserved::loopback(), Echo::start(backend()));
    let (one, two) = (metrics_address(), metrics_address());
    let dir = tempfile::tempdir().unwrap();
    let log = |name: &str| dir.path().join(name);
    let text = |metrics: SocketAddr, log: &Path| {
        let lines = format!("metrics: {metrics}\nlog_file: {}\nlog_format: json", log.display());
        config(&lines, &[forward("web", &port, echo.address(), "")])
    };
    let spliced = start(&text(one, &log("one")));
    let client = connect(port.address());
    assert!(echoes(&client, 1, LONG));
    spliced.reload_with(&text(two, &log("two")));
    until("the old endpoint is closed", LONG, || refused(one));
    let page = get(two, "/metrics");
    assert!(page.contains("spliced_reloads_total{result=\"ok\"} 1"), "{page}");
    assert!(page.contains("spliced_config_generation 2"), "{page}");
    drop(client);
    let logged = || fs::read_to_string(log("two")).unwrap_or_default();
    until("the session is in the new file", LONG, || logged().contains("\"reason\":\"done\""));
    assert_eq!(fs::read_to_string(log("one")).unwrap(), "");

    // A log that cannot be opened changes nothing, not even the metrics address.
    spliced.replace_config(&text(one, Path::new("/nonexistent/log")));
    let (code, said) = spliced.reload();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("/nonexistent/log"), "{said}");
    assert!(refused(one) && get(two, "/readyz").contains("ready"));
    let page = get(two, "/metrics");
    assert!(page.contains("spliced_reloads_total{result=\"failed\"} 1"), "{page}");
    assert!(page.contains("spliced_last_reload_success 0"), "{page}");
    spliced.finish();
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = connect(address);
    stream.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn workers_come_and_go_and_no_session_is_cut() {
    let (port, back) = (Reserved::loopback(), backend());
    let text = |workers: usize, more: &str| {
        let forward = forward("web", &port, back.local_addr().unwrap(), "");
        config(more, &[forward]).replace("workers: 2", &format!("workers: {workers}"))
    };
    for gather in ["gather: off", "gather: on"] {
        let mut spliced = start(&text(4, gather));
        let mut sessions: Vec<_> = (0..16).map(|_| session(&port, &back)).collect();
        for workers in [1, 3, 2, 6, 1, 4] {
            spliced.reload_with(&text(workers, gather));
            sessions.iter_mut().for_each(ping);
            sessions.extend((0..4).map(|_| session(&port, &back)));
        }
        sessions.iter_mut().for_each(ping);
        let running = |stats: &Stats| {
            let workers = stats.0["workers"].as_array().unwrap();
            workers.len() == 4 && workers.iter().all(|worker| worker["state"] == "running")
        };
        drop(sessions);
        let stats = spliced.stats_until("those that were to leave have left", running);
        assert_eq!(stats.number("/total/sessions_accepted"), 40);
        spliced.ended("done", 40);
        spliced.note_rest();
        spliced.finish();
    }
}

#[test]
fn what_needs_a_restart_is_said_each_time_and_the_rest_is_done() {
    let (port, echo) = (Reserved::loopback(), Echo::start(backend()));
    let text = |lines: &str, more: &str| config(lines, &[forward("web", &port, echo.address(), more)]);
    let spliced = start(&text("pin: off", ""));
    spliced.replace_config(&text("pin: on", ", max_connections: 9"));
    for _ in 0..2 {
        let (code, said) = spliced.reload();
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("! pin off -> on needs a restart\n"), "{said}");
    }
    let (_, plan) = Command::new(env!("CARGO_BIN_EXE_spliced"))
        .args(["check", "--against"])
        .arg(spliced.control())
        .arg("--config")
        .arg(spliced.config())
        .output()
        .map(|output| (output.status, String::from_utf8_lossy(&output.stdout).into_owned()))
        .unwrap();
    assert_eq!(plan, "! pin off -> on needs a restart\n= 1 unchanged\n");
    spliced.finish();
}

#[test]
fn check_against_tells_what_a_reload_would_do_and_does_nothing() {
    let (port, echo) = (Reserved::loopback(), Echo::start(backend()));
    let web = forward("web", &port, echo.address(), "");
    let spliced = start(&config("", std::slice::from_ref(&web)));
    let added = forward("more", &Reserved::loopback(), echo.address(), "");
    spliced.replace_config(&config("drain_timeout: 7s", &[web, added]));
    let pid = spliced.process().0.to_string();
    let control = spliced.control().display().to_string();
    let against = |instance: &str| {
        let config = spliced.config();
        let output = Command::new(env!("CARGO_BIN_EXE_spliced"))
            .args(["check", "--config", config.to_str().unwrap(), "--against", instance])
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        (output.status.code(), text)
    };
    let (code, said) = against(&pid);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("~ drain_timeout 30s -> 7s\n+ forward \"more\" ") && said.ends_with("= 1 unchanged\n"),
        "{said}"
    );
    assert_eq!(against(&control), (Some(0), said.clone()));
    assert_eq!(generation(&spliced), 1, "nothing was done");
    assert_eq!(spliced.reload(), (Some(0), said));
    assert_eq!(against(&pid).1, "= 2 unchanged\n");
    let (code, said) = against("/nonexistent/control.sock");
    assert!(code == Some(1) && said.contains("is spliced running"), "{said}");
    let (code, said) = against("4194304");
    assert!(code == Some(1) && said.contains("process 4194304"), "{said}");
    spliced.replace_config("workers: [");
    assert_eq!(against(&pid).0, Some(2));
}

#[test]
fn without_a_file_there_is_nothing_to_reload() {
    let (port, echo) = (Reserved::loopback(), Echo::start(backend()));
    let spliced = Launcher::forward(port.address(), echo.address()).start();
    spliced.signal(Signal::SIGHUP);
    eventually("it says so", LONG, || spliced.logged("SIGHUP: ").pop().ok_or_else(|| spliced.text()));
    assert!(!spliced.says("started without a file").is_empty());
    let (code, said) = spliced.reload();
    assert!(code == Some(2) && said.contains("started without a file"), "{said}");
    assert!(echoes(&connect(port.address()), 1, LONG));
    spliced.finish();
}
