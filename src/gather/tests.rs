use super::*;

/// A view, what each session it holds costs and remembers, and the CPU time used.
type Simulated = (Gatherer, Vec<(u32, u8)>, u64);

/// Workers whose sessions cost a fixed share of a CPU each, and nothing else.
struct Host {
    board: Board,
    workers: Vec<Simulated>,
    now_us: u64,
    moved: usize,
}

impl Host {
    fn new(workers: usize, sessions: &[&[u32]]) -> Self {
        let one = |id: usize| {
            let held = sessions.get(id).map_or(Vec::new(), |s| s.iter().map(|cost| (*cost, 0)).collect());
            (Gatherer::new(id), held, 0)
        };
        Self {
            board: Board::new(workers, true, Scheduling::Auto, None),
            workers: (0..workers).map(one).collect(),
            now_us: 1,
            moved: 0,
        }
    }

    /// Lets time pass, a window at a time; every session is driven several times in each.
    fn run(&mut self, windows: usize) {
        for _ in 0..windows {
            self.now_us += WINDOW_US;
            for id in 0..self.workers.len() {
                let (gatherer, held, cpu_ns) = &mut self.workers[id];
                if held.is_empty() {
                    continue;
                }
                let cost: u64 = held.iter().map(|(cost, _)| u64::from(*cost)).sum();
                *cpu_ns += cost.min(1000) * WINDOW_US;
                gatherer.look(&self.board, self.now_us, *cpu_ns);
                for _ in 0..3 {
                    let (gatherer, held, _) = &mut self.workers[id];
                    let mut given = Vec::new();
                    held.retain_mut(|(cost, seen)| match gatherer.home_of(seen) {
                        Some(to) => {
                            given.push((to, *cost));
                            false
                        }
                        None => true,
                    });
                    self.moved += given.len();
                    given.into_iter().for_each(|(to, cost)| self.workers[to].1.push((cost, 0)));
                }
            }
        }
    }

    fn counts(&self) -> Vec<usize> {
        self.workers.iter().map(|w| w.1.len()).collect()
    }

    fn shares(&self) -> Vec<u32> {
        self.workers.iter().map(|w| w.1.iter().map(|s| s.0).sum()).collect()
    }
}

#[test]
fn few_sessions_gather_on_one_worker_and_stay() {
    let mut host = Host::new(4, &[&[20; 3], &[20; 3], &[20; 2], &[]]);
    host.run(20);
    assert_eq!(host.counts(), [8, 0, 0, 0]);
    host.run(1000);
    assert_eq!((host.counts(), host.moved), (vec![8, 0, 0, 0], 5));
}

#[test]
fn a_busy_worker_is_relieved_by_one_that_was_not_needed() {
    let mut host = Host::new(2, &[&[50; 30], &[]]);
    host.run(100);
    let shares = host.shares();
    assert!(shares.iter().all(|share| (500..=1000).contains(share)), "{shares:?}");
    let moved = host.moved;
    host.run(1000);
    assert_eq!(host.moved, moved, "nothing moves to and fro");
}

#[test]
fn all_workers_are_used_when_all_are_needed() {
    let mut host = Host::new(8, &[&[10; 560]]);
    host.run(600);
    assert_eq!(host.board.active(), 8);
    assert!(host.shares().iter().all(|share| *share <= 1000), "{:?}", host.shares());
    let moved = host.moved;
    host.run(1000);
    assert!(host.moved - moved <= 60, "{} moves in ten seconds without need", host.moved - moved);
}

#[test]
fn when_the_load_falls_fewer_workers_are_used() {
    let mut host = Host::new(4, &[&[50; 50]]);
    host.run(300);
    assert_eq!(host.board.active(), 4);
    for worker in &mut host.workers {
        worker.1.iter_mut().for_each(|session| session.0 = 2);
    }
    host.run(600);
    assert_eq!((host.board.active(), host.counts()), (1, vec![50, 0, 0, 0]));
}

#[test]
fn one_heavy_session_has_nowhere_better_to_be() {
    let mut host = Host::new(2, &[&[1000]]);
    host.run(500);
    assert_eq!((host.counts(), host.moved), (vec![1, 0], 0));
}

#[test]
fn without_gathering_all_workers_are_in_use() {
    let board = Board::new(3, false, Scheduling::Auto, None);
    let mut gatherer = Gatherer::new(2);
    gatherer.look(&board, WINDOW_US, 0);
    assert!(!board.gathers() && !gatherer.gives());
}

#[test]
fn a_reading_waits_for_sessions_on_their_way() {
    let transit = Transit::default();
    let mut readings = 0;
    transit.leaves();
    transit.while_nothing_moves(|| {
        readings += 1;
        if readings == 3 {
            transit.arrives();
        }
    });
    assert_eq!(readings, 4, "the reading in which it arrived may have missed it");
}

#[test]
fn what_a_sleeping_worker_posted_grows_stale() {
    let board = Board::new(2, true, Scheduling::Auto, None);
    board.post(1, 1000, 900);
    assert_eq!((board.share(1, 1000 + STALE_MS), board.share(1, 1001 + STALE_MS)), (900, 0));
}
