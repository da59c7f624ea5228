//! The limits of every server.

use std::time::Duration;

use serde::Deserialize;

use crate::Error;

/// Limits of every server. Of what is shared by all (handshakes, requests in
/// flight, watches, bytes of requests) no one party takes more than half, so
/// that one that misbehaves leaves room for the others.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsConfig {
    /// How many connections a listener holds at once.
    pub connections: usize,
    /// How many of them one peer holds: one identity on a mesh port, one
    /// address (of IPv6, one /64) elsewhere.
    pub connections_per_peer: usize,
    /// How many TLS handshakes are under way at once.
    pub handshakes: usize,
    /// How many requests one connection has in flight at once.
    pub streams: u32,
    /// How many unary requests a service handles at once; more are refused.
    pub in_flight: usize,
    /// How many streaming requests a service handles at once; more are refused.
    pub watches: usize,
    /// How many bytes one message may have, decompressed.
    pub message_bytes: usize,
    /// How many bytes the unary requests in flight may have together, as they
    /// came.
    pub request_bytes: usize,
    /// How many bytes all headers of one request may have together.
    pub header_bytes: u32,
    /// How many requests may be cancelled on a connection before they were
    /// looked at; one more closes it.
    pub pending_resets: usize,
    /// How many requests may be cancelled on a connection within a second of
    /// their beginning; more close it when they are more than half of all.
    pub resets: u32,
    /// How long a TLS handshake, the first bytes after it, or reading a
    /// request's headers may take.
    #[serde(with = "humantime_serde")]
    pub handshake_timeout: Duration,
    /// How long the body of a unary request may take to arrive.
    #[serde(with = "humantime_serde")]
    pub body_timeout: Duration,
    /// How long a unary call may take, from its headers to the last byte of its
    /// answer, whatever deadline the caller gave.
    #[serde(with = "humantime_serde")]
    pub unary_timeout: Duration,
    /// How long a connection over HTTP/1.1 may say nothing after it was opened.
    #[serde(with = "humantime_serde")]
    pub first_byte_timeout: Duration,
    /// How long a connection over HTTP/1.1 is kept for the next request, no longer than
    /// `idle_timeout`.
    #[serde(with = "humantime_serde")]
    pub keep_alive_timeout: Duration,
    /// How long a connection may be without a request before it is closed.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// How often a silent connection is asked for a sign of life.
    #[serde(with = "humantime_serde")]
    pub ping_interval: Duration,
    /// How long the sign of life may take.
    #[serde(with = "humantime_serde")]
    pub ping_timeout: Duration,
}

impl LimitsConfig {
    /// Refuses a limit that would let nothing through.
    pub(super) fn check(&self) -> Result<(), Error> {
        let counts = [
            ("limits.connections", self.connections),
            ("limits.connections_per_peer", self.connections_per_peer),
            ("limits.handshakes", self.handshakes),
            ("limits.streams", self.streams as usize),
            ("limits.in_flight", self.in_flight),
            ("limits.watches", self.watches),
            ("limits.message_bytes", self.message_bytes),
            ("limits.request_bytes", self.request_bytes),
            ("limits.header_bytes", self.header_bytes as usize),
        ];
        if let Some((key, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return Err(Error::setting(key, "0", "expected 1 or more"));
        }
        let times = [
            ("limits.handshake_timeout", self.handshake_timeout),
            ("limits.body_timeout", self.body_timeout),
            ("limits.first_byte_timeout", self.first_byte_timeout),
            ("limits.keep_alive_timeout", self.keep_alive_timeout),
            ("limits.unary_timeout", self.unary_timeout),
            ("limits.idle_timeout", self.idle_timeout),
            ("limits.ping_interval", self.ping_interval),
            ("limits.ping_timeout", self.ping_timeout),
        ];
        match times.into_iter().find(|(_, time)| *time < Duration::from_millis(10)) {
            Some((key, time)) => {
                Err(Error::setting(key, format!("{time:?}"), "expected 10ms or more"))
            }
            None => Ok(()),
        }
    }
}
