use proptest::prelude::*;

use super::*;

#[test]
fn sizes() {
    for (text, bytes) in
        [("1024", 1024), ("64KiB", 65536), ("64K", 65536), ("64k", 65536), ("1mib", 1 << 20), ("2048B", 2048)]
    {
        assert_eq!(copy_buffer(text), Ok(bytes), "{text}");
    }
    for text in ["", "K", "1023", "17MiB", "64KB", "64 KiB", "-1", "+5000", "1.5MiB", "99999999999999999999G", "1e6"] {
        assert!(copy_buffer(text).is_err(), "{text}");
    }
    assert!(copy_buffer("64kb").unwrap_err().contains("write 64KiB"));
    assert_eq!(pipe_size("auto"), Ok(Maybe(None)));
    assert!(pipe_size("63KiB").is_err());
    assert_eq!(pipe_size("1GiB"), Ok(Maybe(Some(1 << 30))));
}

#[test]
fn times() {
    let ms = |ms| Ok(Maybe(Some(Duration::from_millis(ms))));
    for (text, expected) in
        [("250ms", 250), ("5s", 5000), ("10m", 600_000), ("1h", 3_600_000), ("365d", 31_536_000_000)]
    {
        assert_eq!(timeout(text), ms(expected), "{text}");
    }
    assert_eq!(timeout("none"), Ok(Maybe(None)));
    assert_eq!(drain("0s"), ms(0));
    assert_eq!(drain_delay("0s"), Ok(Duration::ZERO));
    assert!(drain_delay("none").is_err());
    for text in ["", "0s", "5", "5 s", "-5s", "1.5s", "366d", "5S", "off", "18446744073709551616ms"] {
        assert!(timeout(text).is_err(), "{text}");
    }
    assert!(timeout("5").unwrap_err().contains("without a unit"));
    assert!(keepalive("1500ms").is_err());
    assert!(keepalive("32768s").is_err());
}

#[test]
fn words_and_numbers() {
    assert!(engine("Splice").unwrap_err().contains("allowed: auto, splice, copy"));
    assert_eq!(workers("auto"), Ok(Maybe(None)));
    assert_eq!(workers("1024"), Ok(Maybe(Some(1024))));
    for bad in ["0", "1025", "", "two", "+1"] {
        assert!(workers(bad).is_err(), "{bad}");
    }
    assert!(weight("0").is_err() && weight("257").is_err());
    assert!(metrics("127.0.0.1:0").is_err());
    assert!(metrics("9464").is_err());
    assert!(source("0.0.0.0").is_err());
    assert!(name("").is_err() && name("a\tb").is_err());
}

#[test]
fn users_and_capabilities() {
    for text in ["nobody", "65534", "spliced:adm", "0:0"] {
        assert_eq!(user(text).unwrap().to_string(), text);
    }
    for bad in ["", ":", "a:", ":b", "a:b:c", "a b", "-a", "a\n"] {
        assert!(user(bad).is_err(), "{bad:?}");
    }
    for text in [
        "auto",
        "none",
        "net_admin",
        "net_bind_service",
        "sys_resource",
        "net_bind_service,sys_resource",
        "auto,sys_resource",
        "auto,net_admin",
        "auto,net_bind_service",
        "net_bind_service,net_admin,sys_resource",
    ] {
        assert_eq!(keep_capabilities(text).unwrap().to_string(), text);
    }
    for bad in ["", "all", "none,sys_resource", "net_bind_service,", "CAP_NET_BIND_SERVICE"] {
        assert!(keep_capabilities(bad).is_err(), "{bad:?}");
    }
    assert_eq!(sandbox("off"), Ok(Confinement::Off));
    assert!(sandbox("on").unwrap_err().contains("auto, strict, off"));
}

proptest! {
    #[test]
    fn every_size_is_read_back(bytes in 1usize << 10..=16 << 20) {
        prop_assert_eq!(copy_buffer(&Size(bytes).to_string()), Ok(bytes));
    }

    #[test]
    fn every_time_is_read_back(ms in 0u64..=YEAR_MS) {
        let time = Duration::from_millis(ms);
        prop_assert_eq!(drain(&Time(time).to_string()), Ok(Maybe(Some(time))));
    }

    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = (copy_buffer(&text), timeout(&text), workers(&text), engine(&text), metrics(&text));
    }
}
