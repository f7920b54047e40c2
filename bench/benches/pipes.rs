//! What a pipe costs: from the pool and back, and made and closed. Nothing in a build without splice.

#[cfg(all(target_os = "linux", not(spliced_portable)))]
mod on_linux {
    use bench::PIPES;
    use criterion::{BenchmarkId, Criterion};
    use spliced::sys::pipes::{Pipe, PipeBudget, PipePool};

    /// A pool, or none where this user may not have pipes of that size.
    fn pool_of(name: &str, size: usize) -> Option<PipePool> {
        let budget = PipeBudget::detect(Some(size), 1);
        if budget.size() < size {
            eprintln!("no pipes of {name} here: {budget}");
            return None;
        }
        Some(budget.pool())
    }

    /// `pipes/<what>/<size>`.
    pub(crate) fn pipes(c: &mut Criterion) {
        let mut group = c.benchmark_group("pipes");
        for (name, size) in PIPES {
            let Some(mut pool) = pool_of(name, size) else { continue };
            group.bench_function(BenchmarkId::new("get-put", name), |b| {
                b.iter(|| {
                    let pipe = pool.get().expect("a pipe within the budget");
                    pool.put(pipe);
                });
            });
            group.bench_function(BenchmarkId::new("new-close", name), |b| {
                b.iter(|| drop(Pipe::new(size).expect("a pipe within the budget")));
            });
        }
    }
}

#[cfg(all(target_os = "linux", not(spliced_portable)))]
criterion::criterion_group!(
    name = benches;
    config = criterion::Criterion::default()
        .sample_size(50)
        .warm_up_time(std::time::Duration::from_millis(500))
        .measurement_time(std::time::Duration::from_secs(1));
    targets = on_linux::pipes
);
#[cfg(all(target_os = "linux", not(spliced_portable)))]
criterion::criterion_main!(benches);

#[cfg(not(all(target_os = "linux", not(spliced_portable))))]
fn main() {}
