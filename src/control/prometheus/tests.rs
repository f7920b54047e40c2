use super::super::snapshot::tests::{plan, snapshot, stats, trial};
use super::*;

fn page(name: &str) -> String {
    render(&snapshot(&plan(name), &stats()))
}

#[test]
fn samples_carry_the_counters() {
    let page = page("web");
    for line in [
        r#"spliced_sessions_open{forward="web"} 11"#,
        r#"spliced_sessions_accepted_total{forward="web"} 55"#,
        r#"spliced_session_ends_total{forward="web",reason="done"} 44"#,
        r#"spliced_bytes_total{forward="web",direction="client_to_backend",path="splice"} 1100"#,
        r#"spliced_bytes_total{forward="web",direction="backend_to_client",path="copy"} 77"#,
        r#"spliced_pipes{state="in_use"} 11"#,
        r#"spliced_pipes_budget 128"#,
        r#"spliced_reloads_total{result="ok"} 3"#,
        r#"spliced_reloads_total{result="failed"} 1"#,
        r#"spliced_config_generation 4"#,
        r#"spliced_last_reload_timestamp_seconds 1.5"#,
        r#"spliced_last_reload_success 1"#,
        r#"spliced_worker_panics_total 2"#,
        r#"spliced_helper_panics_total 3"#,
        r#"spliced_worker_busy_seconds_total{worker="1"} 5"#,
        r#"spliced_worker_up{worker="1"} 0"#,
        r#"spliced_worker_batch{worker="0"} 1"#,
        r#"spliced_worker_batch{worker="1"} 0"#,
        r#"spliced_log_dropped_total{reason="write_failed"} 2"#,
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is missing in\n{page}");
    }
}

#[test]
fn histograms_are_cumulative_and_in_seconds() {
    let page = page("web");
    // 3 µs is below 4 µs, 30 µs below 32 µs.
    for line in [
        r#"spliced_connect_seconds_bucket{forward="web",le="0.000001"} 0"#,
        r#"spliced_connect_seconds_bucket{forward="web",le="0.000004"} 1"#,
        r#"spliced_connect_seconds_bucket{forward="web",le="0.000016"} 1"#,
        r#"spliced_connect_seconds_bucket{forward="web",le="0.000032"} 2"#,
        r#"spliced_connect_seconds_bucket{forward="web",le="1073.741824"} 2"#,
        r#"spliced_connect_seconds_bucket{forward="web",le="+Inf"} 2"#,
        r#"spliced_connect_seconds_sum{forward="web"} 0.000033"#,
        r#"spliced_connect_seconds_count{forward="web"} 2"#,
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is missing in\n{page}");
    }
}

#[test]
fn every_family_is_described_once_and_every_sample_has_a_number() {
    well_formed(&page("web"));
}

fn well_formed(page: &str) {
    let mut families = std::collections::HashSet::new();
    let mut current = "";
    for line in page.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            current = help.split(' ').next().unwrap();
            assert!(families.insert(current), "{current} twice");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            assert!(kind.starts_with(&format!("{current} ")), "{line}");
        } else {
            assert!(line.starts_with(current), "{line} is not of {current}");
            let (_, value) = line.rsplit_once(' ').unwrap();
            value.parse::<f64>().unwrap();
        }
    }
}

#[test]
fn arms_have_a_label_of_their_own() {
    let (plan, stats) = trial();
    let page = render(&snapshot(&plan, &stats));
    for line in [
        r#"spliced_arm_sessions_open{forward="web",arm="copy-64KiB"} 2"#,
        r#"spliced_arm_sessions_total{forward="web",arm="splice"} 2"#,
        r#"spliced_arm_bytes_total{forward="web",arm="splice",direction="client_to_backend",path="splice"} 2000000"#,
        r#"spliced_arm_syscalls_total{forward="web",arm="copy-64KiB"} 40"#,
        r#"spliced_arm_measured_turns_total{forward="web",arm="splice"} 2"#,
        r#"spliced_arm_measured_bytes_total{forward="web",arm="splice"} 2000000"#,
        r#"spliced_arm_measured_cpu_seconds_total{forward="web",arm="splice"} 0.001"#,
        r#"spliced_arm_first_byte_seconds_bucket{forward="web",arm="splice",le="0.000004"} 2"#,
        r#"spliced_arm_session_seconds_count{forward="web",arm="splice"} 0"#,
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is missing in\n{page}");
    }
    well_formed(&page);
    assert!(!self::page("web").contains("spliced_arm_"), "no family without samples");
}

#[test]
fn label_values_are_escaped() {
    let page = page("a\"b\\c\nd");
    assert!(page.contains(r#"spliced_sessions_open{forward="a\"b\\c\nd"} 11"#), "{page}");
}
