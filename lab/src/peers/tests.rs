use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::place::Place;

/// Forwards on this host to a server that need not be there; the port is free as long as the socket lives.
fn wiring() -> (Wiring, std::net::TcpListener) {
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let here = Place::here;
    let server_addr = server.local_addr().unwrap();
    let wiring = Wiring {
        client: here(),
        forwarder: here(),
        server: here(),
        listen: free,
        server_addr,
        target: free,
        more: Vec::new(),
    };
    (wiring, server)
}

fn script(directory: &Path, text: &str) -> String {
    let path = directory.join("peer.sh");
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_string_lossy().into_owned()
}

#[test]
fn commands_of_users_are_read() {
    let given: Given = "mine='/opt/my peer' {listen} --to {target}".parse().unwrap();
    assert_eq!((given.name.as_str(), given.words.len(), given.is_template()), ("mine", 4, true));
    let given: Given = "haproxy=taskset -c 0 /opt/haproxy".parse().unwrap();
    assert!(!given.is_template());
    for bad in
        ["", "haproxy", "=x", "haproxy=", "a/b=x {listen} {target}", "mine=x", "mine=x {listen}", "dnat=x", "x='"]
    {
        let error = bad.parse::<Given>().unwrap_err();
        assert!(!error.is_empty(), "{bad:?}");
    }
}

#[test]
fn what_is_missing_says_how_to_get_it() {
    let given = ["realm=/no/such/realm".parse().unwrap()];
    let missing = find("realm", &given).unwrap_err();
    assert!(missing.how.contains("/no/such/realm"), "{missing:?}");
    let missing = find("nothing-known", &[]).unwrap_err();
    assert!(missing.how.contains("haproxy") && missing.how.contains("{listen}"), "{missing:?}");
    for (name, how) in [("oi", "cargo install"), ("redir", "apt install")] {
        if let Err(missing) = find(name, &[]) {
            assert!(missing.how.contains(how), "{missing:?}");
        }
    }
    let (found, missing) = find_all(&given);
    assert_eq!(found.len() + missing.len(), names().len());
    assert!(found.iter().any(|peer| peer.name == "direct"));
}

#[test]
fn commands_of_users_are_run_where_the_forwarder_runs_and_nowhere_else() {
    let directory = tempfile::tempdir().unwrap();
    let ran = directory.path().join("ran");
    let program = script(directory.path(), &format!("echo \"in $PLACE: $*\" | tee -a {}", ran.display()));
    let place = Place { name: "elsewhere".to_owned(), prefix: ["env", "PLACE=there"].map(Into::into).into() };
    for given in [format!("nginx={program} x"), format!("haproxy={program} {{listen}} {{target}}")] {
        let given: Given = given.parse().unwrap();
        let peer = find(&given.name, std::slice::from_ref(&given)).unwrap();
        assert!(!ran.exists(), "{} was run to find out about it", given.name);
        let words = if given.is_template() { "" } else { "x " };
        assert_eq!(peer.version(&place).unwrap(), format!("in there: {words}-v"));
        fs::remove_file(&ran).unwrap();
    }
}

#[test]
fn one_that_dies_at_start_says_its_last_words() {
    let directory = tempfile::tempdir().unwrap();
    let program = script(directory.path(), "echo 'reading configuration'; echo 'bind: no such port' >&2; exit 4");
    let (wiring, _server) = wiring();
    for given in [format!("haproxy={program}"), format!("mine={program} {{listen}} {{target}}")] {
        let given: Given = given.parse().unwrap();
        let peer = find(&given.name, std::slice::from_ref(&given)).unwrap();
        let error = peer.start(&wiring, directory.path()).unwrap_err().to_string();
        for part in [peer.name.as_str(), "exit status: 4", "bind: no such port"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(directory.path().join(&peer.name).join("command.txt").is_file());
    }
    let kept = fs::read_to_string(directory.path().join("haproxy/haproxy.cfg")).unwrap();
    assert!(kept.contains("option splice-auto") && kept.contains(&format!("bind {}", wiring.listen)), "{kept}");
}

#[test]
fn placeholders_are_filled() {
    let directory = tempfile::tempdir().unwrap();
    let program = script(directory.path(), "echo \"$@\"; exit 1");
    let (wiring, _server) = wiring();
    let given: Given =
        format!("mine={program} {{listen_ip}}/{{listen_port}} {{to}} {{target_port}} {{cores}}").parse().unwrap();
    let error = find("mine", &[given]).unwrap().start(&wiring, directory.path()).unwrap_err().to_string();
    let (listen, to) = (wiring.listen, wiring.server_addr);
    assert!(error.contains(&format!("{}/{} {to} {} ", listen.ip(), listen.port(), to.port())), "{error}");
}
