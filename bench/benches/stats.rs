//! Counting: what a counter with one writer saves over a shared one.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use spliced::stats::{Counter, Histogram};

/// `stats/<what>`.
fn stats(c: &mut Criterion) {
    let mut group = c.benchmark_group("stats");
    group.bench_function("counter-add", |b| {
        let counter = Counter::default();
        b.iter(|| black_box(&counter).add(black_box(1448)));
        assert_ne!(counter.get(), 0, "it has counted");
    });
    group.bench_function("atomic-fetch-add", |b| {
        let shared = AtomicU64::new(0);
        b.iter(|| black_box(&shared).fetch_add(black_box(1448), Ordering::Relaxed));
        assert_ne!(shared.into_inner(), 0, "it has counted");
    });
    group.bench_function("histogram-record", |b| {
        let histogram = Histogram::default();
        b.iter(|| black_box(&histogram).record(black_box(Duration::from_micros(1234))));
    });
}

criterion_group!(
    name = benches;
    config = Criterion::default()
        .sample_size(50)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(1));
    targets = stats
);
criterion_main!(benches);
