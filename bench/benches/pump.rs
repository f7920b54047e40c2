//! Moving one message from socket to socket: engine × message × pipe.

use std::time::Duration;

use bench::{COPY_BUFFER, Candidate, MESSAGES, Mover, engines};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use spliced::plan::Engine;

/// `pump/<message>/<engine>`: engines vary fastest, so that those that are compared run one after the other.
fn pump(c: &mut Criterion) {
    let mut group = c.benchmark_group("pump");
    for (message_name, size) in MESSAGES {
        let message: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        group.throughput(Throughput::Bytes(size as u64));
        for Candidate { name: engine_name, engine, pipe_size } in engines() {
            let id = BenchmarkId::new(message_name, &engine_name);
            let mut lane: Option<Mover> = None;
            group.bench_function(id, |b| {
                // Made only when the benchmark is selected, and once for all its samples.
                let mover = lane.get_or_insert_with(|| {
                    Mover::new(engine, pipe_size, COPY_BUFFER).unwrap_or_else(|e| panic!("{engine_name}: {e}"))
                });
                b.iter_custom(|times| {
                    let carry = |_| mover.carry(&message).unwrap_or_else(|e| panic!("{engine_name}: {e}"));
                    (0..times).map(carry).sum::<Duration>()
                });
            });
            let Some(mover) = lane else { continue };
            let bytes = mover.bytes();
            assert!(engine != Engine::Splice || bytes.copy == 0, "{engine_name} has copied: {bytes:?}");
            assert!(engine != Engine::Copy || bytes.splice == 0, "{engine_name} has spliced: {bytes:?}");
            if mover.room() < size {
                eprintln!("socket buffers of this host take {} bytes: {message_name} was moved in parts", mover.room());
            }
        }
    }
}

// The command line has the last word on all three.
criterion_group!(
    name = benches;
    config = Criterion::default()
        .sample_size(50)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = pump
);
criterion_main!(benches);
