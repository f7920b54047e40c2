//! Why sessions end, bytes are copied and datagrams are dropped, by names that never change.

/// Makes an enum whose variants have fixed names in logs, JSON and metrics.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $name {
            /// Every variant, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The fixed name.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

named! {
    /// Why a session ended.
    EndReason {
        /// Both directions reached their end and everything was delivered.
        Done = "done",
        /// The client reset the connection.
        ResetByClient = "reset_by_client",
        /// The backend reset the connection.
        ResetByBackend = "reset_by_backend",
        /// Every target refused the connection.
        Refused = "refused",
        /// No target was reachable (no route, a local error).
        ConnectFailed = "connect_failed",
        /// No target answered within `timeouts.connect`.
        ConnectTimeout = "connect_timeout",
        /// Every target was drained or disabled by command.
        NoTarget = "no_target",
        /// The target's name has no address.
        Unresolved = "unresolved",
        /// The client stopped answering keepalive probes or acknowledging bytes.
        ClientVanished = "client_vanished",
        /// The backend stopped answering keepalive probes or acknowledging bytes.
        BackendVanished = "backend_vanished",
        /// No byte for `timeouts.idle`; a flow: no datagram for `udp_timeout`.
        Idle = "idle",
        /// No byte for `timeouts.half_closed` after one side had closed its half.
        HalfClosed = "half_closed",
        /// Its target was found down or was disabled, and `on_down` says end.
        TargetDown = "target_down",
        /// Cut at the end of the drain time, or by the second signal.
        Drain = "drain",
        /// A limit on open sessions refused it.
        Limit = "limit",
        /// A limit on new connections per second refused it.
        Rate = "rate",
        /// A deny rule matched.
        Denied = "denied",
        /// There are allow rules and none matched.
        NotAllowed = "not_allowed",
        /// It came from one of our own forwards in a circle.
        Loop = "loop",
        /// The header of the PROXY protocol did not come in time.
        ProxyTimeout = "proxy_timeout",
        /// The connection ended in, or before, its PROXY header.
        ProxyTruncated = "proxy_truncated",
        /// Its PROXY header was longer than is accepted.
        ProxyTooLong = "proxy_too_long",
        /// What came first was no PROXY header.
        ProxyInvalid = "proxy_invalid",
        /// The checksum of its PROXY header did not hold.
        ProxyChecksum = "proxy_checksum",
        /// A PROXY header was required, and it came from a source that may not send one.
        ProxyUnlisted = "proxy_unlisted",
        /// No descriptor for the connection to the backend within `timeouts.connect`.
        NoDescriptors = "no_descriptors",
        /// No local port was left for the connection to the backend, at any of the source addresses.
        NoPorts = "no_ports",
        /// The worker that held it panicked.
        WorkerPanic = "worker_panic",
        /// Something the kernel reported that none of the others covers.
        Error = "error",
    }
}

named! {
    /// Why bytes that should have been spliced were copied.
    Fallback {
        /// No pipe: `pipe2` said EMFILE or ENFILE.
        NoDescriptors = "no_descriptors",
        /// No pipe: the worker's share of the budget is in use, or a new pipe came out smaller than 64 KiB.
        Budget = "budget_exhausted",
        /// The kernel has no splice, or a filter forbids it (ENOSYS, EPERM): off for the whole process.
        Refused = "splice_refused",
        /// splice from this source is not supported (EINVAL, EBADF): this direction copies from now on.
        Source = "source_unsupported",
        /// splice to this target is not supported (EINVAL, EBADF): the pipe was read out, this direction copies from now on.
        Target = "target_unsupported",
        /// An urgent byte was stepped over with one `recv`.
        Urgent = "urgent",
    }
}

named! {
    /// A side of a session.
    Side {
        /// Who connected to us.
        Client = "client",
        /// Whom we connected to.
        Backend = "backend",
    }
}

named! {
    /// Why a datagram was not passed on.
    DropCause {
        /// A deny rule matched.
        Denied = "denied",
        /// There are allow rules and none matched.
        NotAllowed = "not_allowed",
        /// It would have begun a flow, and a limit on flows refused it.
        Limit = "limit",
        /// A limit on new flows or on bytes per second refused it.
        Rate = "rate",
        /// It would have begun a flow while the process ends.
        Drain = "drain",
        /// It came from one of our own forwards in a circle.
        Loop = "loop",
        /// No descriptor for a flow's socket.
        NoDescriptors = "no_descriptors",
        /// No local port was left for a flow's socket.
        NoPorts = "no_ports",
        /// The target's name has no address.
        Unresolved = "unresolved",
        /// The kernel had no room for it in the queue of our socket (`SO_RXQ_OVFL`), or its checksum was wrong. What came
        /// joined may count as one; the kernel tells with the next datagram that it has room for.
        Socket = "socket",
        /// The target is not there: a local error, or an ICMP error that an earlier datagram has brought.
        Unreachable = "unreachable",
        /// The kernel or the stream had no room for it.
        NoRoom = "no_room",
        /// Larger than what the way to the other side carries.
        TooLong = "too_long",
        /// Something the kernel reported that none of the others covers.
        Error = "error",
    }
}
