//! What a listener tells of its connections: metrics with a closed set of
//! labels, and log lines at a bounded rate.

use std::net::SocketAddr;

use opentelemetry::{
    KeyValue,
    metrics::{Counter, UpDownCounter},
};

use crate::telemetry::Throttle;
use crate::telemetry::label;

/// Why a connection wasn't taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The listener holds as many as it may.
    Connections,
    /// The peer has as many as it may.
    ConnectionsOfPeer,
    /// As many handshakes are under way as may, in all or of one address.
    Handshakes,
    /// The handshake took too long.
    Late,
    /// The peer's certificate isn't good, or missing.
    Certificate,
    /// The handshake failed otherwise.
    Handshake,
}

impl Refusal {
    const COUNT: usize = 6;

    /// The limit that is reached, for people.
    pub(super) fn setting(self) -> &'static str {
        match self {
            Self::Connections => "`limits.connections` is reached",
            Self::ConnectionsOfPeer => "`limits.connections_per_peer` is reached",
            Self::Handshakes => "`limits.handshakes` is reached",
            Self::Late => "`limits.handshake_timeout` is over",
            Self::Certificate | Self::Handshake => "the handshake failed",
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::ConnectionsOfPeer => "connections_per_peer",
            Self::Handshakes => "handshakes",
            Self::Late => "handshake_timeout",
            Self::Certificate => "certificate",
            Self::Handshake => "handshake",
        }
    }
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The peer closed it, or broke the protocol, or fell silent.
    Peer,
    /// Its peer was awaited for too long, or had to make room before it said anything;
    /// over HTTP/1.1.
    Silent,
    /// It had no request for long.
    Idle,
    /// What it was trusted by is no longer valid.
    Expired,
    /// The peer cancelled too many of its requests.
    Resets,
    /// The listener stops.
    Drain,
    /// The listener stops, and waited long enough.
    Cut,
}

impl Ending {
    fn as_str(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Silent => "silent",
            Self::Idle => "idle",
            Self::Expired => "expired",
            Self::Resets => "resets",
            Self::Drain => "drain",
            Self::Cut => "cut",
        }
    }
}

/// The instruments of one listener.
pub(super) struct Ledger {
    /// For the log: the identity on a mesh port, else what the port is.
    me: String,
    /// For the metrics: the service.
    service: KeyValue,
    connections: UpDownCounter<i64>,
    silent: UpDownCounter<i64>,
    closed: Counter<u64>,
    refused: Counter<u64>,
    cancelled: Counter<u64>,
    lines: [Throttle; Refusal::COUNT],
    failing: Throttle,
    abuse: Throttle,
}

impl Ledger {
    /// A ledger of `service`, which the log calls `me`.
    pub(super) fn new(service: String, me: String) -> Self {
        let meter = opentelemetry::global::meter("omnibridge");
        Self {
            service: label("service", service),
            me,
            connections: meter
                .i64_up_down_counter("omni.server.connections")
                .with_description("Connections that are open, handshakes apart")
                .build(),
            silent: meter
                .i64_up_down_counter("omni.server.silent")
                .with_description("Connections over HTTP/1.1 that have said nothing yet")
                .build(),
            closed: meter
                .u64_counter("omni.server.closed")
                .with_description("Connections that ended, by why")
                .build(),
            refused: meter
                .u64_counter("omni.server.refused")
                .with_description("Connections that weren't taken, by why")
                .build(),
            cancelled: meter
                .u64_counter("omni.server.cancelled")
                .with_description("Requests that their callers cancelled")
                .build(),
            lines: std::array::from_fn(|_| Throttle::new()),
            failing: Throttle::new(),
            abuse: Throttle::new(),
        }
    }

    /// A connection is open as long as the answer lives.
    pub(super) fn opened(&self, address: SocketAddr) -> Opened<'_> {
        self.connections.add(1, std::slice::from_ref(&self.service));
        Opened { ledger: self, address, ending: Ending::Cut }
    }

    /// So many connections more have said nothing yet.
    pub(super) fn silent(&self, more: i64) {
        self.silent.add(more, std::slice::from_ref(&self.service));
    }

    pub(super) fn cancelled(&self) {
        self.cancelled.add(1, std::slice::from_ref(&self.service));
    }

    pub(super) fn refused(&self, address: SocketAddr, refusal: Refusal, why: &str) {
        let reason = refusal.as_str();
        self.refused.add(1, &[self.service.clone(), label("reason", reason)]);
        let Some(more) = self.lines[refusal as usize].admit() else { return };
        match refusal {
            Refusal::Late | Refusal::Certificate | Refusal::Handshake => {
                tracing::warn!(me = %self.me, %address, why, more, "handshake refused");
            }
            _ => tracing::warn!(me = %self.me, %address, why, more, "connection refused"),
        }
    }

    pub(super) fn cannot_accept(&self, why: &std::io::Error) {
        if let Some(more) = self.failing.admit() {
            tracing::warn!(me = %self.me, %why, more, "can't accept connections");
        }
    }
}

/// A connection that is open; cut off unless it ended otherwise.
pub(super) struct Opened<'l> {
    ledger: &'l Ledger,
    address: SocketAddr,
    ending: Ending,
}

impl Opened<'_> {
    pub(super) fn ended(mut self, ending: Ending) {
        self.ending = ending;
    }
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        let Self { ledger, address, ending } = self;
        let reason = ending.as_str();
        ledger.connections.add(-1, std::slice::from_ref(&ledger.service));
        ledger.closed.add(1, &[ledger.service.clone(), label("reason", reason)]);
        tracing::debug!(me = %ledger.me, %address, reason, "connection ended");
        if *ending == Ending::Resets
            && let Some(more) = ledger.abuse.admit()
        {
            let why = "most of its requests were cancelled at once: `limits.resets`";
            tracing::warn!(me = %ledger.me, %address, why, more, "connection closed");
        }
    }
}
