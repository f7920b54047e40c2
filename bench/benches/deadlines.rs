//! A worker's timers with one session, a thousand, and as many as a worker makes room for at once.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use spliced::deadline::{Deadlines, TICK_MS};

const KEYS: [usize; 3] = [1, 1_000, 8_000];
/// How far ahead timers are set, in milliseconds: within one turn of the wheel, and spread over it.
const SPREAD_MS: u64 = 60_000;

/// When `key` is due, counted from now: spread evenly, without an order in which neighbours share slots.
fn delay_ms(key: usize) -> u64 {
    1 + key as u64 * 7_919 % SPREAD_MS
}

fn wheel_of(keys: usize) -> Deadlines {
    let mut wheel = Deadlines::default();
    (0..keys).for_each(|key| wheel.set(key, delay_ms(key)));
    wheel
}

/// `deadlines/set/<keys>`: a timer that is set moves, as it does whenever a session has moved bytes.
fn set(c: &mut Criterion) {
    let mut group = c.benchmark_group("deadlines");
    for keys in KEYS {
        group.bench_function(BenchmarkId::new("set", keys), |b| {
            let (mut wheel, mut key, mut now) = (wheel_of(keys), 0, 0);
            b.iter(|| {
                wheel.set(black_box(key), now + delay_ms(key));
                key = if key + 1 == keys { 0 } else { key + 1 };
                now += 1;
            });
        });
    }
}

/// `deadlines/clear-set/<keys>`: a session ends and another takes its key.
fn clear_set(c: &mut Criterion) {
    let mut group = c.benchmark_group("deadlines");
    for keys in KEYS {
        group.bench_function(BenchmarkId::new("clear-set", keys), |b| {
            let (mut wheel, mut key) = (wheel_of(keys), 0);
            b.iter(|| {
                wheel.clear(black_box(key));
                wheel.set(key, delay_ms(key));
                key = if key + 1 == keys { 0 } else { key + 1 };
            });
        });
    }
}

/// `deadlines/next/<keys>`: asked once a turn, how long the poller may sleep.
fn next(c: &mut Criterion) {
    let mut group = c.benchmark_group("deadlines");
    for keys in KEYS {
        group.bench_function(BenchmarkId::new("next", keys), |b| {
            let wheel = wheel_of(keys);
            b.iter(|| black_box(&wheel).next_ms());
        });
    }
}

/// `deadlines/expire-none/<keys>`: a tick in which entries are met and none is due.
fn expire_none(c: &mut Criterion) {
    let mut group = c.benchmark_group("deadlines");
    for keys in KEYS {
        group.bench_function(BenchmarkId::new("expire-none", keys), |b| {
            // A whole number of turns of the wheel ahead of the clock: every tick meets its share of the entries.
            let (mut wheel, mut now, mut due) = (Deadlines::default(), 0, Vec::with_capacity(keys));
            (0..keys).for_each(|key| wheel.set(key, u64::MAX / 2 + delay_ms(key)));
            b.iter(|| {
                now += TICK_MS;
                wheel.expire(now, &mut due);
            });
            assert!(due.is_empty(), "nothing was due");
        });
    }
}

/// `deadlines/expire-all/<keys>`: all are due at once, as after a machine has slept; time for all of them together.
fn expire_all(c: &mut Criterion) {
    let mut group = c.benchmark_group("deadlines");
    for keys in KEYS {
        group.throughput(Throughput::Elements(keys as u64));
        group.bench_function(BenchmarkId::new("expire-all", keys), |b| {
            let (mut wheel, mut now, mut due) = (Deadlines::default(), 0, Vec::with_capacity(keys));
            b.iter_custom(|times| {
                let mut time = Duration::ZERO;
                for _ in 0..times {
                    (0..keys).for_each(|key| wheel.set(key, now + delay_ms(key)));
                    now += 2 * SPREAD_MS;
                    due.clear();
                    let start = Instant::now();
                    wheel.expire(now, &mut due);
                    time += start.elapsed();
                    assert_eq!(due.len(), keys, "every timer fires");
                }
                time
            });
        });
    }
}

criterion_group!(
    name = benches;
    config = Criterion::default()
        .sample_size(50)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(1));
    targets = set, clear_set, next, expire_none, expire_all
);
criterion_main!(benches);
