//! Moving messages from socket to socket: engine × message × pipe, and messages of changing sizes.

use std::time::Duration;

use bench::{COPY_BUFFER, Candidate, MESSAGES, MIXES, Mover, engines, message, undisturbed};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use spliced::plan::Engine;

/// `pump/<message>/<engine>`: one message.
fn pump(c: &mut Criterion) {
    let mut group = c.benchmark_group("pump");
    for (name, size) in MESSAGES {
        engines_over(&mut group, name, &[size]);
    }
}

/// `mix/<messages>/<engine>`: all messages of the sequence, one after the other, each moved before the next is written.
fn mix(c: &mut Criterion) {
    let mut group = c.benchmark_group("mix");
    for (name, sizes) in MIXES {
        engines_over(&mut group, name, sizes);
    }
}

/// Engines vary fastest, so that those that are compared run one after the other.
fn engines_over(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, sizes: &[usize]) {
    let messages: Vec<Vec<u8>> = sizes.iter().map(|size| message(*size)).collect();
    group.throughput(Throughput::Bytes(sizes.iter().sum::<usize>() as u64));
    for Candidate { name: engine_name, engine, pipe_size } in engines() {
        let mut lane: Option<Mover> = None;
        group.bench_function(BenchmarkId::new(name, &engine_name), |b| {
            // Made only when the benchmark is selected, and once for all its samples.
            let mover = lane.get_or_insert_with(|| {
                Mover::new(engine, pipe_size, COPY_BUFFER).unwrap_or_else(|e| panic!("{engine_name}: {e}"))
            });
            b.iter_custom(|times| {
                let mut carry =
                    |message: &Vec<u8>| mover.carry(message).unwrap_or_else(|e| panic!("{engine_name}: {e}"));
                undisturbed((0..times).map(|_| messages.iter().map(&mut carry).sum()).collect())
            });
        });
        if let Some(mover) = lane {
            check(&mover, engine, &format!("{name}, {engine_name}"));
        }
    }
}

/// A number only counts if the bytes took the path it is named after.
fn check(mover: &Mover, engine: Engine, name: &str) {
    let bytes = mover.bytes();
    assert!(engine != Engine::Splice || bytes.copy == 0, "{name} has copied: {bytes:?}");
    assert!(engine != Engine::Copy || bytes.splice == 0, "{name} has spliced: {bytes:?}");
    if engine == Engine::Auto {
        eprintln!("{name}: {:.1} % of the bytes spliced", mover.spliced_percent());
    }
    if mover.parted_percent() > 1.0 {
        eprintln!("{name}: {:.1} % of the messages were moved in parts, see README.md", mover.parted_percent());
    }
}

// The command line has the last word on all three.
criterion_group!(
    name = benches;
    config = Criterion::default()
        .sample_size(50)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = pump, mix
);
criterion_main!(benches);
