//! The counters as Prometheus text, format 0.0.4.
//!
//! Written by hand: the client libraries own their counters or write OpenMetrics, and ours live in the workers.

mod page;

pub(super) use self::page::Page;
use super::snapshot::{NamedForward, Snapshot, WorkerSnapshot, WorkerState};
use super::{names, targets};
use crate::arms::ArmSnapshot;
use crate::stats::{ByName, Bytes, ForwardSnapshot, HistogramSnapshot};

/// The whole page.
#[must_use]
pub fn render(snapshot: &Snapshot) -> String {
    let mut page = Page::default();
    process(&mut page, snapshot);
    reloads(&mut page, snapshot);
    workers(&mut page, &snapshot.workers);
    forwards(&mut page, &snapshot.forwards);
    targets::metrics(&mut page, &snapshot.forwards);
    names::metrics(&mut page, &snapshot.names);
    arms(&mut page, &snapshot.forwards);
    page.into_text()
}

fn process(page: &mut Page, snapshot: &Snapshot) {
    page.family("spliced_build_info", "gauge", "The version that runs, always 1.");
    page.sample(&[("version", &snapshot.version)], 1);
    page.family("spliced_uptime_seconds", "gauge", "Time since the process began to serve.");
    page.sample(&[], snapshot.uptime_seconds);
    page.family(
        "spliced_draining",
        "gauge",
        "1 from the first SIGTERM on: not ready, about to take no new sessions or past that.",
    );
    page.sample(&[], u8::from(snapshot.draining));
    page.family("spliced_splice_available", "gauge", "0 in a portable build or once the kernel refused splice.");
    page.sample(&[], u8::from(snapshot.engine_available.splice));
    page.family("process_cpu_seconds_total", "counter", "CPU time of the process, user and system.");
    page.sample(&[], snapshot.cpu.user_seconds + snapshot.cpu.system_seconds);
    page.family("spliced_pipes", "gauge", "Pipes by state: in_use hold bytes, pooled wait for the next burst.");
    page.sample(&[("state", &"in_use")], snapshot.pipes.in_use);
    page.sample(&[("state", &"pooled")], snapshot.pipes.pooled);
    page.family("spliced_pipes_budget", "gauge", "Pipes the process may have.");
    page.sample(&[], snapshot.pipes.budget);
    page.family("spliced_pipe_size_bytes", "gauge", "Size of a pipe.");
    page.sample(&[], snapshot.pipes.size_bytes);
    page.family("spliced_sources", "gauge", "Sources that limits per source know.");
    page.sample(&[], snapshot.sources);
    page.family("spliced_log_dropped_total", "counter", "Session log lines lost: queue full, or not writable.");
    page.sample(&[("reason", &"queue_full")], snapshot.workers.iter().map(|w| w.log_dropped).sum::<u64>());
    page.sample(&[("reason", &"write_failed")], snapshot.log_lost);
}

/// Whether a worker's event loop turns.
fn is_up(state: WorkerState) -> bool {
    matches!(state, WorkerState::Running | WorkerState::Leaving)
}

fn reloads(page: &mut Page, snapshot: &Snapshot) {
    let reloads = &snapshot.reloads;
    page.family("spliced_reloads_total", "counter", "Changes of the configuration while running, by result.");
    page.sample(&[("result", &"ok")], reloads.ok);
    page.sample(&[("result", &"failed")], reloads.failed);
    page.family("spliced_config_generation", "gauge", "The configuration that runs: 1 is the one of the start.");
    page.sample(&[], reloads.generation);
    if let Some(at) = reloads.last_unix_seconds {
        page.family("spliced_last_reload_timestamp_seconds", "gauge", "When the last reload was, well or not.");
        page.sample(&[], at);
        page.family("spliced_last_reload_success", "gauge", "1 when the last reload took effect.");
        page.sample(&[], u8::from(reloads.last_ok == Some(true)));
    }
    page.family("spliced_worker_panics_total", "counter", "Workers that panicked.");
    page.sample(&[], snapshot.worker_panics);
    let help =
        "Panics of other threads: of health checks, name look-ups, the session log, network namespaces, reloads.";
    page.family("spliced_helper_panics_total", "counter", help);
    page.sample(&[], snapshot.helper_panics);
}

fn workers(page: &mut Page, workers: &[WorkerSnapshot]) {
    page.family("spliced_worker_busy_seconds_total", "counter", "CPU time of the worker's thread.");
    for w in workers {
        page.sample(&[("worker", &w.id)], w.busy_seconds);
    }
    let mut each = |name, kind, help, value: fn(&WorkerSnapshot) -> u64| {
        page.family(name, kind, help);
        for w in workers {
            page.sample(&[("worker", &w.id)], value(w));
        }
    };
    each("spliced_worker_up", "gauge", "1 while the worker's event loop runs.", |w| is_up(w.state).into());
    each("spliced_worker_turns_total", "counter", "Turns of the worker's event loop.", |w| w.turns);
    let help = "1 while the scheduler takes the worker as a batch job.";
    each("spliced_worker_batch", "gauge", help, |w| w.batch.into());
    each("spliced_worker_sessions_open", "gauge", "Sessions the worker holds.", |w| w.sessions_open);
    let help = "Accepted sessions the worker gave to another one.";
    each("spliced_handed_over_total", "counter", help, |w| w.handed_over);
    let help = "Sessions the worker gave to another one while bytes moved.";
    each("spliced_sessions_moved_total", "counter", help, |w| w.moved);
    let help = "1 while the worker does not accept for want of descriptors, slots or tokens of a connection rate.";
    each("spliced_accept_paused", "gauge", help, |w| w.accept_paused.into());
    let help = "Times accepting was paused for want of descriptors, slots or tokens.";
    each("spliced_accept_pauses_total", "counter", help, |w| w.accept_pauses);
}

fn forwards(page: &mut Page, forwards: &[NamedForward]) {
    let each = |page: &mut Page, name, kind, help, value: fn(&ForwardSnapshot) -> u64| {
        page.family(name, kind, help);
        for f in forwards {
            page.sample(&[("forward", &f.name)], value(&f.counters));
        }
    };
    let by_name = |page: &mut Page, name, help, label, counts: fn(&ForwardSnapshot) -> &ByName| {
        page.family(name, "counter", help);
        for f in forwards {
            for (kind, count) in counts(&f.counters) {
                page.sample(&[("forward", &f.name), (label, kind)], count);
            }
        }
    };
    each(page, "spliced_sessions_open", "gauge", "Sessions open now.", |c| c.sessions_open);
    let help = "Connections taken from the listeners, refused ones too.";
    each(page, "spliced_sessions_accepted_total", "counter", help, |c| c.sessions_accepted);
    by_name(page, "spliced_session_ends_total", "Sessions ended, by reason.", "reason", |c| &c.ends);
    page.family("spliced_bytes_total", "counter", "Bytes delivered, by direction and by the path they took.");
    for f in forwards {
        for (direction, path, bytes) in by_path(&f.counters.bytes) {
            page.sample(&[("forward", &f.name), ("direction", &direction), ("path", &path)], bytes);
        }
    }
    let help = "Times bytes were copied that should have been spliced, by reason.";
    by_name(page, "spliced_fallbacks_total", help, "reason", |c| &c.fallbacks);
    let help = "Attempts to connect after another had failed.";
    each(page, "spliced_connect_retries_total", "counter", help, |c| c.retries);
    let help = "Times a direction waited for bytes of its rate.";
    each(page, "spliced_rate_waits_total", "counter", help, |c| c.rate_waits);
    page.family("spliced_proxy_headers_total", "counter", "PROXY headers accepted from clients and sent to backends.");
    for f in forwards {
        page.sample(&[("forward", &f.name), ("direction", &"received")], f.counters.proxy_received);
        page.sample(&[("forward", &f.name), ("direction", &"sent")], f.counters.proxy_sent);
    }
    let help = "Times bytes waited too long, by the side that took none.";
    by_name(page, "spliced_stalls_total", help, "side", |c| &c.stalls);
    let help = "Directions of sessions whose bytes wait too long now.";
    each(page, "spliced_stalled", "gauge", help, |c| c.stalled);
    datagrams(page, forwards);
    times(page, forwards);
}

fn times(page: &mut Page, forwards: &[NamedForward]) {
    let mut each = |name, help, times: fn(&ForwardSnapshot) -> &HistogramSnapshot| {
        page.family(name, "histogram", help);
        for f in forwards {
            page.histogram(&[("forward", &f.name)], times(&f.counters));
        }
    };
    let help = "From the first connect call to the connected backend.";
    each("spliced_connect_seconds", help, |c| &c.connect_time);
    each("spliced_first_byte_seconds", "From accept to the backend's first byte.", |c| &c.first_byte_time);
    each("spliced_session_seconds", "From accept to the end of the session.", |c| &c.session_time);
}

/// Families that would be empty are left out.
fn datagrams(page: &mut Page, forwards: &[NamedForward]) {
    let some: Vec<_> = forwards.iter().filter(|f| f.has_datagrams()).collect();
    if some.is_empty() {
        return;
    }
    page.family("spliced_datagrams_total", "counter", "Datagrams passed on, by direction.");
    for f in &some {
        let of = &f.counters.datagrams;
        for (direction, count) in
            [("client_to_backend", of.client_to_backend), ("backend_to_client", of.backend_to_client)]
        {
            page.sample(&[("forward", &f.name), ("direction", &direction)], count);
        }
    }
    page.family("spliced_datagram_drops_total", "counter", "Datagrams not passed on, by cause.");
    for f in &some {
        for (cause, count) in &f.counters.datagrams.drops {
            page.sample(&[("forward", &f.name), ("cause", cause)], count);
        }
    }
    page.family("spliced_datagram_syscalls_total", "counter", "System calls that received or sent datagrams.");
    for f in &some {
        page.sample(&[("forward", &f.name), ("call", &"receive")], f.counters.datagrams.receives);
        page.sample(&[("forward", &f.name), ("call", &"send")], f.counters.datagrams.sends);
    }
    page.family("spliced_datagrams_joined_total", "counter", "Datagrams that came or left joined to others as one.");
    for f in &some {
        page.sample(&[("forward", &f.name), ("way", &"in")], f.counters.datagrams.joined);
        page.sample(&[("forward", &f.name), ("way", &"out")], f.counters.datagrams.segmented);
    }
}

/// Direction, path and bytes.
fn by_path(bytes: &Bytes) -> [(&'static str, &'static str, u64); 4] {
    let (up, down) = (bytes.client_to_backend, bytes.backend_to_client);
    [
        ("client_to_backend", "splice", up.splice),
        ("client_to_backend", "copy", up.copy),
        ("backend_to_client", "splice", down.splice),
        ("backend_to_client", "copy", down.copy),
    ]
}

/// Arms of live A/Bs; families that would be empty are left out.
fn arms(page: &mut Page, forwards: &[NamedForward]) {
    let arms: Vec<_> = forwards.iter().flat_map(|f| f.arms.iter().map(move |arm| (&f.name, arm))).collect();
    if arms.is_empty() {
        return;
    }
    let of = |name: &'static str, kind, help, value: fn(&ArmSnapshot) -> f64, page: &mut Page| {
        page.family(name, kind, help);
        for (forward, arm) in &arms {
            page.sample(&[("forward", forward), ("arm", &arm.name)], value(arm));
        }
    };
    of("spliced_arm_sessions_open", "gauge", "Sessions of the arm open now.", |arm| arm.open as f64, page);
    of("spliced_arm_sessions_total", "counter", "Sessions dealt to the arm.", |arm| arm.sessions as f64, page);
    page.family("spliced_arm_bytes_total", "counter", "Bytes the arm delivered, by direction and path.");
    for (forward, arm) in &arms {
        for (direction, path, bytes) in by_path(&arm.bytes) {
            page.sample(&[("forward", forward), ("arm", &arm.name), ("direction", &direction), ("path", &path)], bytes);
        }
    }
    let help = "System calls that moved bytes of the arm or tried to: recv, send, splice, shutdown.";
    of("spliced_arm_syscalls_total", "counter", help, |arm| arm.syscalls as f64, page);
    let help = "Turns of the arm's sessions whose CPU time was measured.";
    of("spliced_arm_measured_turns_total", "counter", help, |arm| arm.measured.turns as f64, page);
    let help = "Bytes delivered in measured turns.";
    of("spliced_arm_measured_bytes_total", "counter", help, |arm| arm.measured.bytes as f64, page);
    let help = "CPU time of measured turns; by their bytes it is the CPU time per byte.";
    of("spliced_arm_measured_cpu_seconds_total", "counter", help, |arm| arm.measured.cpu_seconds, page);
    page.family("spliced_arm_first_byte_seconds", "histogram", "From accept to the backend's first byte.");
    for (forward, arm) in &arms {
        page.histogram(&[("forward", forward), ("arm", &arm.name)], &arm.first_byte_time.histogram);
    }
    page.family("spliced_arm_session_seconds", "histogram", "From accept to the end of the session.");
    for (forward, arm) in &arms {
        page.histogram(&[("forward", forward), ("arm", &arm.name)], &arm.session_time.histogram);
    }
}

#[cfg(test)]
mod tests;
