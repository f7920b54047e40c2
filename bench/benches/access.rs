//! Who may connect: asked once per accepted connection.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use spliced::plan::{Access, Pattern};

/// A client that no rule below matches.
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 77));

/// So many deny rules of one kind; the client is admitted only after the last.
fn denying(rules: usize, rule: impl Fn(usize) -> String) -> Access {
    let pattern = |text: String| text.parse().map_or(Pattern::Text(text), Pattern::Net);
    Access { deny: (0..rules).map(|i| pattern(rule(i))).collect(), ..Access::default() }
}

/// `access/<kind of rule>/<rules>`.
fn access(c: &mut Criterion) {
    let mut group = c.benchmark_group("access");
    for rules in [0, 1, 100] {
        let networks = denying(rules, |i| format!("10.{i}.0.0/16"));
        let texts = denying(rules, |i| format!("192.0.2?{i}.*"));
        for (kind, access) in [("networks", networks), ("texts", texts)] {
            assert_eq!(access.deny.len(), rules);
            assert!(access.deny.iter().all(|p| matches!(p, Pattern::Net(_)) == (kind == "networks")));
            assert_eq!(access.refuses(CLIENT), None, "no rule matches");
            group.bench_function(BenchmarkId::new(kind, rules), |b| {
                b.iter(|| black_box(&access).refuses(black_box(CLIENT)));
            });
        }
    }
}

criterion_group!(
    name = benches;
    config = Criterion::default()
        .sample_size(50)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(1));
    targets = access
);
criterion_main!(benches);
