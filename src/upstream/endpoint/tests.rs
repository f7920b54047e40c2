use super::*;

fn endpoint() -> Arc<Endpoint> {
    let ip = Place::Ip(IpAddr::from([10, 0, 0, 1]));
    Arc::new(Endpoint::new(0, &"web".into(), "10.0.0.1:80", ip, Ports::one(80)))
}

#[test]
fn each_ejection_is_twice_as_long_until_it_answers() {
    let endpoint = endpoint();
    let health = Health { fails: 2, eject: Duration::from_secs(1), eject_max: Duration::from_secs(5) };
    assert!(!endpoint.fail(Some(&health)) && endpoint.fail(Some(&health)));
    let mut now_ms = 0;
    for seconds in [1, 2, 4, 5, 5] {
        assert_eq!(endpoint.eject(&health, now_ms), Some(Duration::from_secs(seconds)));
        assert_eq!(endpoint.state(now_ms), State::Ejected);
        assert_eq!(endpoint.eject(&health, now_ms), None, "it is out already");
        now_ms += seconds * 1000;
        assert_eq!(endpoint.state(now_ms), State::Up);
        assert!(endpoint.fail(Some(&health)), "one more failure is enough");
    }
    assert!(endpoint.answers() && !endpoint.answers());
    assert!(!endpoint.fail(Some(&health)));
    assert_eq!(endpoint.eject(&health, now_ms), Some(Duration::from_secs(1)));
    assert_eq!((endpoint.connects(), endpoint.ejections()), ((0, 8), 6));
}

#[test]
fn a_limit_is_exact_and_given_back() {
    let endpoint = endpoint();
    let held: Vec<Lease> = (0..5).filter_map(|_| endpoint.hold(Some(3))).collect();
    assert_eq!((held.len(), endpoint.open()), (3, 3));
    drop(held);
    assert_eq!((endpoint.open(), endpoint.connects().0), (0, 3));
}

#[test]
fn commands_go_before_checks_and_checks_before_failures() {
    let endpoint = endpoint();
    endpoint.eject(&Health::default(), 0);
    assert_eq!(endpoint.state(1), State::Ejected);
    endpoint.set_down(true, 0);
    assert_eq!(endpoint.state(1), State::Down);
    endpoint.command(Admin::Drain, Some(7), 0);
    assert_eq!((endpoint.state(1), endpoint.weight()), (State::Drain, Some(7)));
    endpoint.command(Admin::Disabled, None, 0);
    assert_eq!((endpoint.state(1), endpoint.weight()), (State::Disabled, None));
    endpoint.command(Admin::Enabled, None, 5);
    assert_eq!((endpoint.state(1), endpoint.back_ms()), (State::Down, 5));
    endpoint.set_down(false, 9);
    assert_eq!((endpoint.state(1), endpoint.back_ms()), (State::Up, 9), "a good check ends an ejection too");
}
