//! Fault plans: every system call the data path makes fails, one after the other, while bytes move. They arrive, or the
//! session ends as a reset with a counted reason; never is a cut stream closed as if it were complete. Sessions of
//! another worker, and the process itself, do not notice; nothing spins and nothing is lost afterwards.
//!
//! `SPLICED_SEED` repeats a run. `SPLICED_FAULTS=TEXT` runs only plans whose text contains it.

#![cfg(target_os = "linux")]

#[path = "../common/mod.rs"]
mod common;
mod load;
mod plan;

use std::net::{SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::deadline::{LONG, eventually, throughout};
use common::path::Via;
use common::pattern::Random;
use common::peer::{Reserved, backend, connect, echoes};
use common::spliced::{Launcher, Spliced};
use common::stats::Stats;
use common::strace::{Injection, can_attach};
use load::{Backend, Fate, Order};
use plan::{Load, Outcome, Plan};

const MIB: u64 = 1 << 20;
/// How long sessions go on in the hope that the fault is met.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Plans that run at once: most of their time they wait.
const AT_ONCE: usize = 4;

/// What came of the sessions that ran while the calls failed.
#[derive(Debug, Default)]
struct Tally {
    /// Ended broken, those their client reset not counted.
    broken: AtomicU64,
    /// Reset by their client.
    reset: AtomicU64,
}

impl Tally {
    fn count(&self, fate: Result<Fate, String>) {
        match fate {
            Ok(Fate::Whole) => {}
            Ok(Fate::Broken(_)) => _ = self.broken.fetch_add(1, Ordering::Relaxed),
            Err(why) => panic!("{why}"),
        }
    }
}

/// Sessions while the calls fail: one that was open before, and rounds of new ones until the fault has been met.
fn under_faults(plan: &Plan, injection: &Injection, front: SocketAddr, backend: &Backend, open: TcpStream) -> Tally {
    let (tally, number, start) = (Tally::default(), AtomicU64::new(1), Instant::now());
    thread::scope(|scope| {
        let transfer = scope.spawn(|| {
            // A reader that waits keeps a pipe full, so that other sessions need pipes of their own.
            let gate = || {
                while plan.call == "pipe2" && injection.met() == 0 && start.elapsed() < PATIENCE {
                    thread::park_timeout(Duration::from_millis(5));
                }
            };
            let down = if plan.call == "pipe2" { 16 * MIB } else { 3 * MIB + 7 };
            tally.count(Order::new(0, 3 * MIB + 5, down).run_on(&open, backend, gate));
            drop(open);
        });
        for round in 0..if plan.load == Load::Transfer { 0 } else { u64::MAX } {
            thread::scope(|scope| {
                for (up, down) in [(1, 100_000), (300_000, 1), (70_001, 70_000)] {
                    let order = Order::new(number.fetch_add(1, Ordering::Relaxed), up, down);
                    let tally = &tally;
                    scope.spawn(move || tally.count(order.run(front, backend)));
                }
                if plan.load == Load::All {
                    Order::new(number.fetch_add(1, Ordering::Relaxed), 80_000, 40_000).run_and_reset(front);
                    tally.reset.fetch_add(1, Ordering::Relaxed);
                }
            });
            if round > 0 && (injection.met() > 0 || start.elapsed() > PATIENCE) {
                break;
            }
        }
        transfer.join().unwrap_or_else(|panic| resume_unwind(panic));
    });
    tally
}

/// One byte after the other there and back through the worker without faults; how many.
fn bystander_rounds(bystander: &TcpStream, stop: &AtomicBool) -> usize {
    let mut rounds = 0;
    loop {
        assert!(echoes(bystander, rounds as u8, LONG), "the session of the other worker failed after {rounds} bytes");
        rounds += 1;
        if stop.load(Ordering::Relaxed) {
            return rounds;
        }
    }
}

/// Waits until every session but the bystander's has ended, and returns how many did not end well.
fn ended_badly(spliced: &Spliced) -> (u64, Stats) {
    let ended = |stats: &Stats| -> u64 {
        let ends = stats.0["total"]["ends"].as_object().expect("ends");
        ends.values().filter_map(serde_json::Value::as_u64).sum()
    };
    // A session that is no longer open is counted as ended a moment later.
    let stats = spliced.stats_until("only the bystander is open, all others have ended", |stats| {
        stats.open() == 1 && stats.number("/total/sessions_accepted") == ended(stats) + 1
    });
    (ended(&stats) - stats.ends("done"), stats)
}

/// The workers of a reading.
fn workers(stats: &Stats) -> &[serde_json::Value] {
    stats.0["workers"].as_array().expect("workers")
}

/// A process with two workers, one session in each: the bystander, and one that will meet the faults.
struct Stage {
    backend: Backend,
    front: SocketAddr,
    spliced: Spliced,
    bystander: TcpStream,
    /// The thread of the worker that holds the other session.
    thread: u32,
    _port: Reserved,
}

impl Stage {
    fn set(via: Via) -> (Self, TcpStream) {
        let Via::Engine(engine) = via else { panic!("a plan has an engine") };
        let (backend, port) = (Backend::start(backend()), Reserved::loopback());
        let front = port.address();
        let spliced = Launcher::forward(front, backend.address())
            .option("--engine", engine)
            .option("--workers", "2")
            .option("--pin", "off")
            .option("--gather", "off")
            .start();
        let bystander = load::echo(front);
        // The sum and the workers are not counted at one moment: the worker itself must say so.
        let holder = eventually("a worker holds the bystander", LONG, || {
            let stats = spliced.stats();
            let holder = workers(&stats).iter().position(|worker| worker["sessions_open"] == 1);
            holder.ok_or_else(|| format!("the counters are {}", stats.0))
        });
        // New sessions go to the worker with fewer.
        let open = connect(front);
        spliced.stats_until("each worker holds one", |stats| {
            workers(stats).iter().all(|worker| worker["sessions_open"] == 1)
        });
        let thread = spliced.process().thread_named(&format!("worker-{}", 1 - holder));
        (Self { backend, front, spliced, bystander, thread, _port: port }, open)
    }

    /// The faults have left no trace: no spin, the next sessions are whole, and all is given back.
    fn clear(self) {
        let process = self.spliced.process();
        let before = process.cpu();
        throughout("no spin", Duration::from_millis(200), || {
            let used = process.cpu() - before;
            if used <= Duration::from_millis(10) { Ok(()) } else { Err(format!("{used:?} of CPU time")) }
        });
        for number in 1000..1004 {
            let fate = Order::new(number, 200_000, 200_000).run(self.front, &self.backend);
            assert_eq!(fate, Ok(Fate::Whole), "after the faults");
        }
        drop(self.bystander);
        assert_eq!(self.backend.faults(), [""; 0], "what the backend saw");
        self.spliced.finish();
    }
}

/// Runs one plan to its end; how often its fault was met.
fn run(plan: &Plan) -> usize {
    let (stage, open) = Stage::set(plan.via);
    let injection = Injection::attach(stage.thread, &plan.faults()).unwrap_or_else(|why| panic!("strace: {why}"));
    let quiet = AtomicBool::new(false);
    let (tally, rounds) = thread::scope(|scope| {
        let steady = scope.spawn(|| if plan.is_quiet() { 0 } else { bystander_rounds(&stage.bystander, &quiet) });
        let faults = || under_faults(plan, &injection, stage.front, &stage.backend, open);
        let tally = catch_unwind(AssertUnwindSafe(faults));
        quiet.store(true, Ordering::Relaxed);
        let rounds = steady.join().unwrap_or_else(|panic| resume_unwind(panic));
        (tally.unwrap_or_else(|panic| resume_unwind(panic)), rounds)
    });
    assert!(rounds > 0 || plan.is_quiet(), "the session of the other worker stood still");
    let (broken, reset) = (tally.broken.into_inner(), tally.reset.into_inner());
    let (badly, stats) = ended_badly(&stage.spliced);
    let met = injection.detach();
    assert_eq!(bystander_rounds(&stage.bystander, &AtomicBool::new(true)), 1, "the session of the other worker");
    let ends = stats.0["total"]["ends"].to_string();
    assert!(plan.outcome == Outcome::MayEnd || broken == 0, "{broken} sessions broke: {ends}");
    // A client that resets before its connection was taken leaves nothing to count.
    assert!((broken..=broken + reset).contains(&badly), "{broken} broke and {reset} were reset, counted are: {ends}");
    stage.clear();
    met
}

/// On a busy machine a run may pass without the call that could fail: then it is run again, unless the call is a rare one.
fn run_until_met(plan: &Plan) -> usize {
    let tries = if plan.is_certain() { 4 } else { 1 };
    let met = (0..tries).map(|_| run(plan)).find(|met| *met > 0).unwrap_or(0);
    assert!(met > 0 || !plan.is_certain(), "the fault was never met");
    met
}

/// Runs plans, a few at once; fails with all that failed.
fn run_all(plans: &[Plan]) {
    if !can_attach() {
        return;
    }
    let filter = std::env::var("SPLICED_FAULTS").unwrap_or_default();
    let plans: Vec<&Plan> = plans.iter().filter(|plan| plan.to_string().contains(&filter)).collect();
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(plan) = plans.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let start = Instant::now();
                    let result = catch_unwind(AssertUnwindSafe(|| run_until_met(plan)));
                    let text = match &result {
                        Ok(met) => format!("met {met} times"),
                        Err(panic) => format!("FAILED: {}", why(panic.as_ref())),
                    };
                    // Shown when the test fails, and with --nocapture.
                    println!("{plan}: {text} ({:.1?})", start.elapsed());
                    if result.is_err() {
                        failures.lock().expect("no panic while held").push(format!("{plan}: {text}"));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no panic while held");
    assert!(failures.is_empty(), "{} of {} plans failed:\n{}", failures.len(), plans.len(), failures.join("\n"));
}

fn why(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
    text.unwrap_or("a panic").to_owned()
}

/// Every call with every engine, one plan of each, another choice with every seed.
#[test]
fn one_fault_of_every_call() {
    run_all(&Plan::sample(&mut Random::new(31)));
}

/// Every error of every call with every engine: some five minutes.
#[test]
#[ignore = "takes some five minutes: cargo test --test faults -- --ignored --nocapture"]
fn the_full_matrix() {
    run_all(&Plan::all(&mut Random::new(31)));
}
