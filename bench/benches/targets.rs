//! Where a session goes: asked once per accepted connection, with what is taken and given back for it.

use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use spliced::config::{Lookup, Overrides, parse};
use spliced::upstream::{Ask, Pick, Targets, Upstreams};

fn upstreams(balance: &str, targets: usize) -> Upstreams {
    let list: Vec<_> = (0..targets).map(|i| format!("'10.0.{}.{}:80'", i / 250, i % 250)).collect();
    let to = list.join(", ");
    let text = format!("balance: {balance}\nforwards: [{{ listen: '127.0.0.1:80', to: [{to}] }}]\n");
    let plan = parse("bench", &text, &Overrides::default(), &Lookup::fixed()).expect("a good configuration");
    let shared = Arc::new(Targets::new("bench", Instant::now()));
    shared.update(&plan.forwards[0]);
    Upstreams::new(&plan.forwards[0], &shared)
}

/// `targets/<balance>/<targets>`: one choice, its hold of the target, and the end of it.
fn targets(c: &mut Criterion) {
    let mut group = c.benchmark_group("targets");
    for balance in ["round_robin", "least_connections", "source_hash", "random_two"] {
        for count in [1, 4, 256] {
            let mut upstreams = upstreams(balance, count);
            group.bench_function(BenchmarkId::new(balance, count), |b| {
                let mut client = 0u32;
                b.iter(|| {
                    client = client.wrapping_add(1);
                    let client = IpAddr::from(black_box(client).to_be_bytes());
                    let client = SocketAddr::new(client, 0).into();
                    let ask = Ask { client, port_offset: 0, tried: &[], rival_of: None, now_ms: 1 };
                    assert!(matches!(black_box(upstreams.choose(&ask)), Pick::To { .. }));
                });
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
    targets = targets
);
criterion_main!(benches);
