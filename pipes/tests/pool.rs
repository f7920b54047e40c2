//! Any order of taking, filling, draining and giving back keeps the pool's promises.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "clippy lets tests unwrap, but not the functions they share")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use pipes::{Limits, NoPipe, Pipe, PipeBudget, PipePool, min_pipe_size};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Get,
    Put(prop::sample::Index),
    Fill(prop::sample::Index, u16),
    Drain(prop::sample::Index),
    ReadOut(prop::sample::Index),
    Clear,
}

fn step() -> impl Strategy<Value = Step> {
    let which = any::<prop::sample::Index>;
    prop_oneof![
        6 => Just(Step::Get),
        4 => which().prop_map(Step::Put),
        3 => (which(), 1..2000_u16).prop_map(|(i, n)| Step::Fill(i, n)),
        2 => which().prop_map(Step::Drain),
        1 => which().prop_map(Step::ReadOut),
        1 => Just(Step::Clear),
    ]
}

/// The pool under test, what is taken from it, and a local connection in front of and behind the pipes.
struct World {
    pool: PipePool,
    held: Vec<(Pipe, Vec<u8>)>,
    source: (UnixStream, UnixStream),
    target: (UnixStream, UnixStream),
    next: u8,
}

impl World {
    /// Limits of an ordinary user with `pages` pages, three quarters of which are the pool's.
    fn new(pages: u64, descriptors: u64) -> Self {
        let limits = Limits { user_pages: Some(pages), max_size: Some(1 << 20), descriptors, ..Limits::read() };
        let (source, target) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        for end in [&source.0, &source.1, &target.0, &target.1] {
            end.set_nonblocking(true).unwrap();
        }
        let pool = PipeBudget::from_limits(&limits, None, 1).pool();
        Self { pool, held: Vec::new(), source, target, next: 0 }
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Get => self.get(),
            Step::Clear => {
                let pooled = self.pool.pooled();
                assert_eq!(self.pool.clear(), pooled);
                assert_eq!(self.pool.pooled(), 0);
            }
            _ if self.held.is_empty() => {}
            Step::Put(i) => {
                let (pipe, bytes) = self.held.swap_remove(i.index(self.held.len()));
                let (before, dirty) = (self.pool.pooled(), !bytes.is_empty());
                self.pool.put(pipe);
                assert!(!dirty || self.pool.pooled() == before, "a dirty pipe was pooled");
            }
            Step::Fill(i, n) => self.fill(i.index(self.held.len()), usize::from(*n)),
            Step::Drain(i) => self.drain(i.index(self.held.len())),
            Step::ReadOut(i) => {
                let (pipe, bytes) = i.get_mut(&mut self.held);
                assert_eq!(pipe.read_out().unwrap(), std::mem::take(bytes));
            }
        }
    }

    fn get(&mut self) {
        match self.pool.get() {
            Ok(mut pipe) => {
                assert!(pipe.is_empty() && pipe.size() >= min_pipe_size());
                // Not only by its own count: an empty source finds an empty pipe, so nothing else comes out of it.
                assert!(pipe.fill_from(&self.source.1, 1).is_err());
                self.held.push((pipe, Vec::new()));
            }
            Err(refused) => {
                assert_eq!(refused, NoPipe::Budget);
                assert_eq!(self.pool.pooled(), 0, "refused while a pipe was pooled");
            }
        }
    }

    fn fill(&mut self, i: usize, len: usize) {
        let (pipe, bytes) = &mut self.held[i];
        if !pipe.is_empty() {
            return;
        }
        let sent: Vec<u8> = (0..len).map(|i| self.next.wrapping_add(i as u8)).collect();
        self.next = self.next.wrapping_add(101);
        self.source.0.write_all(&sent).unwrap();
        assert_eq!(pipe.fill_from(&self.source.1, len).unwrap(), len);
        *bytes = sent;
    }

    fn drain(&mut self, i: usize) {
        let (pipe, bytes) = &mut self.held[i];
        let n = pipe.drain_into(&self.target.0).unwrap();
        let mut got = vec![0; n];
        self.target.1.read_exact(&mut got).unwrap();
        assert_eq!(got, bytes.drain(..n).collect::<Vec<u8>>());
    }

    fn check(&self) {
        assert_eq!(self.pool.in_use(), self.held.len());
        assert!(self.pool.in_use() + self.pool.pooled() <= self.pool.limit());
        for (pipe, bytes) in &self.held {
            assert_eq!(pipe.pending(), bytes.len());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_keeps_the_counts_and_the_bytes(
        pages in prop::sample::select(vec![10_u64, 64, 200, 700, 16_384]),
        descriptors in prop::sample::select(vec![0_u64, 8, 40, 1000]),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut world = World::new(pages, descriptors);
        for step in &steps {
            world.apply(step);
            world.check();
        }
        let limit = world.pool.limit();
        for (pipe, _) in world.held.drain(..) {
            world.pool.put(pipe);
        }
        prop_assert_eq!(world.pool.in_use(), 0);
        prop_assert!(world.pool.pooled() <= limit);
    }
}
