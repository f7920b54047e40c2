//! Options with what they are where nobody says otherwise.

use super::options::{ForwardOptions, ProcessOptions};
use crate::plan::{Balancing, Egress, Health, Limits, ListenOptions, Privileges, Resolving, TcpOptions, Timeouts};

impl ProcessOptions {
    pub(super) fn resolving(&self) -> Resolving {
        let default = Resolving::default();
        Resolving {
            how: self.resolve.unwrap_or_default(),
            servers: self.resolvers.clone().map_or_else(Vec::new, |servers| servers.0),
            interval: self.resolve_interval.and_then(|time| time.0),
            least: self.resolve_min.unwrap_or(default.least),
            most: self.resolve_max.unwrap_or(default.most),
        }
    }

    pub(super) fn privileges(&self) -> Privileges {
        Privileges {
            user: self.user.clone(),
            keep: self.keep_capabilities.unwrap_or_default(),
            sandbox: self.sandbox.unwrap_or_default(),
        }
    }
}

impl ForwardOptions {
    pub(super) fn balancing(&self) -> Balancing {
        Balancing {
            balance: self.balance.unwrap_or_default(),
            retries: self.retries.and_then(|n| n.0),
            attempt_timeout: self.connect_attempt_timeout.and_then(|time| time.0),
            attempt_delay: self.connect_attempt_delay.map_or(Some(Balancing::ATTEMPT_DELAY), |time| time.0),
            health: self.health.map_or(Some(Health::default()), |health| health.0),
            check: self.check.clone().and_then(|check| check.0),
            on_down: self.on_down.unwrap_or_default(),
        }
    }

    /// Without the limit that only a forward itself can say.
    pub(super) fn limits(&self) -> Limits {
        Limits {
            max_per_source: None,
            when_full: self.when_full.unwrap_or_default(),
            connection_rate: self.connection_rate.and_then(|rate| rate.0),
            connection_rate_per_source: self.connection_rate_per_source.and_then(|rate| rate.0),
            rate: self.rate.and_then(|rate| rate.0),
            rate_per_source: self.rate_per_source.and_then(|rate| rate.0),
        }
    }

    pub(super) fn timeouts(&self) -> Timeouts {
        let default = Timeouts::default();
        Timeouts {
            connect: self.connect_timeout.map_or(default.connect, |time| time.0),
            idle: self.idle_timeout.map_or(default.idle, |time| time.0),
            half_closed: self.half_closed_timeout.map_or(default.half_closed, |time| time.0),
        }
    }

    pub(super) fn tcp(&self) -> TcpOptions {
        let default = TcpOptions::default();
        TcpOptions {
            keepalive: self.keepalive.map_or(default.keepalive, |time| time.0),
            user_timeout: self.user_timeout.map_or(default.user_timeout, |time| time.0),
            receive_buffer: self.receive_buffer.map_or(default.receive_buffer, |size| size.0),
            send_buffer: self.send_buffer.map_or(default.send_buffer, |size| size.0),
            dscp: self.dscp.and_then(|dscp| dscp.0),
            backlog: self.backlog.unwrap_or(default.backlog),
            fast_open: self.fast_open.and_then(|queue| queue.0),
            mptcp: self.mptcp.unwrap_or(default.mptcp),
        }
    }

    pub(super) fn listen(&self) -> ListenOptions {
        ListenOptions {
            v6_only: self.v6only.unwrap_or(true),
            device: self.device.clone().and_then(|device| device.0),
            netns: self.netns.clone().and_then(|netns| netns.0),
            unix_mode: self.unix_mode.and_then(|mode| mode.0),
            unix_owner: self.unix_owner.clone().and_then(|owner| owner.0),
        }
    }

    pub(super) fn egress(&self) -> Egress {
        Egress {
            send_proxy: self.send_proxy.and_then(|version| version.0),
            transparent: self.transparent.unwrap_or_default(),
            mark: self.mark.and_then(|mark| mark.0),
            device: self.bind_device.clone().and_then(|device| device.0),
            netns: self.to_netns.clone().and_then(|netns| netns.0),
        }
    }
}
