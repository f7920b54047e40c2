//! Signals of the process go to its main thread, which alone may act on them: the system calls of others are filtered,
//! and what their handlers cannot pass on would be lost.

#![cfg(target_os = "linux")]

use crate::common;

use common::peer::{Reserved, backend};
use common::spliced::Launcher;

/// HUP, INT, USR1, USR2, TERM and CHLD as bits of the sets that proc(5) shows.
const OURS: u64 = 1 << 0 | 1 << 1 | 1 << 9 | 1 << 11 | 1 << 14 | 1 << 16;

#[test]
fn only_the_main_thread_takes_signals() {
    let (port, target) = (Reserved::loopback(), backend());
    let config = format!(
        "workers: 2\nforwards:\n  - {{ name: a, listen: \"{}\", to: [\"{}\", \"localhost:9\"], check: {{ interval: 1s }} }}\n",
        port.address(),
        target.local_addr().expect("bound")
    );
    let spliced = Launcher::config(&config).start();
    let blocked: Vec<_> = spliced
        .process()
        .threads()
        .into_iter()
        .map(|thread| (thread.name.clone(), u64::from_str_radix(thread.field("SigBlk"), 16).expect("a set") & OURS))
        .collect();
    let (main, others): (Vec<_>, Vec<_>) = blocked.iter().partition(|(name, _)| name == "main" || name == "spliced");
    assert!(matches!(main[..], [(_, 0)]), "{blocked:?}");
    assert!(others.iter().all(|(_, set)| *set == OURS), "{blocked:?}");
    for name in ["worker-0", "worker-1", "session-log", "checks", "resolver"] {
        assert!(others.iter().any(|(of, _)| of == name), "{name} in {blocked:?}");
    }
    spliced.finish();
}
