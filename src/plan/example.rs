//! A small plan for unit tests, who change what they are about.

use std::net::IpAddr;

use super::{
    Access, Balancing, Egress, Engine, Forward, Host, Limits, Listen, ListenOptions, Local, LogPlan, Pin, Plan, Ports,
    Privileges, Resolving, Scheduling, Target, TcpOptions, Timeouts, Udp,
};

/// One forward with defaults.
pub(crate) fn forward(name: &str, listen: (impl Into<IpAddr>, Ports), target: (Host, Ports)) -> Forward {
    Forward {
        name: name.to_owned(),
        listen: vec![Listen { local: Local::Ip(listen.0.into()), ports: listen.1 }],
        targets: vec![Target::new(target.0, target.1)],
        balancing: Balancing::default(),
        engine: Engine::Auto,
        arms: Vec::new(),
        copy_buffer: 64 * 1024,
        pipe_size: None,
        max_connections: None,
        limits: Limits::default(),
        timeouts: Timeouts::default(),
        stall_warning: None,
        tcp: TcpOptions::default(),
        listen_options: ListenOptions::default(),
        sources: Vec::new(),
        udp: Udp::default(),
        egress: Egress::default(),
        accept_proxy: None,
        access: Access::default(),
    }
}

/// A process with that forward, workers that are bound to no CPU and sessions that stay where they began.
pub(crate) fn plan(forward: Forward) -> Plan {
    Plan {
        workers: Some(1),
        pin: Pin::Off,
        gather: false,
        scheduling: Scheduling::Auto,
        spin: None,
        max_connections: None,
        max_connections_per_source: None,
        drain_delay: std::time::Duration::ZERO,
        drain: None,
        upgrade_drain: None,
        control: None,
        metrics: None,
        log: LogPlan::default(),
        resolving: Resolving::default(),
        pid_file: None,
        privileges: Privileges::default(),
        forwards: vec![forward],
    }
}
