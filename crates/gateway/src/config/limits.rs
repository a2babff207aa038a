//! Bounds on what clients can take up: in size, in number and in time.

use std::time::Duration;

/// Bounds on size and number: what one stranger, or all together, can take up.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections open at once. Beyond it, one that asks for nothing is closed for each new one, the oldest first; if all
    /// are in use, new ones wait in the listener's queue. Default 10,000.
    pub connections_max: usize,
    /// Connections open at once from one client: one IPv4 address, or one IPv6 /64. Trusted proxies have no such limit.
    /// Beyond it, new ones are closed at once. Default 1,000.
    pub connections_per_client_max: usize,
    /// Bytes of request line and headers. Default 32 KiB.
    pub header_bytes_max: u32,
    /// Header lines in a request. Default 100.
    pub header_count_max: usize,
    /// HTTP/2 requests in flight on one connection. Default 128.
    pub http2_streams_max: u32,
    /// HTTP/2 requests that a client may reset before we have looked at them (rapid reset). Default 20.
    pub http2_pending_resets_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            connections_per_client_max: 1_000,
            header_bytes_max: 32 * 1024,
            header_count_max: 100,
            http2_streams_max: 128,
            http2_pending_resets_max: 20,
        }
    }
}

/// Bounds on time towards clients. None of them limits how long a request may take in all.
///
/// How long a request's body may be silent is not among them but the service's own matter
/// ([`UpstreamConfig::idle_timeout`](super::UpstreamConfig::idle_timeout)): an upload over a bad line, a stream of rare
/// messages and one that only holds a place look alike, and only who runs the service knows which it should bear. Nobody gets
/// that far who hasn't paid, or asks for what is free; what all of them can hold is bounded in number by [`Limits`].
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// From accepting a connection to the end of the TLS handshake. Default 10 s.
    pub handshake: Duration,
    /// From the first byte of a request to the end of its headers; also for the first bytes of a connection.
    /// Default 15 s.
    pub headers: Duration,
    /// How long a connection without a request is kept. Default 75 s.
    pub keep_alive: Duration,
    /// How long a client may take nothing of an answer that is waiting for it. Then its connection is closed, or over
    /// HTTP/2, if it takes other answers, just this one is cut. Default 60 s.
    pub write_stall: Duration,
    /// How long an upload whose answer has ended may get on no further before its bill is settled, where its service bears any
    /// silence (`idle_timeout` of none): for ever would keep what its buyer has left. Default 10 min.
    pub outlived: Duration,
    /// How long requests in flight may take to finish once the gateway was told to stop. Default 30 s.
    pub drain: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            headers: Duration::from_secs(15),
            keep_alive: Duration::from_secs(75),
            write_stall: Duration::from_secs(60),
            outlived: Duration::from_secs(600),
            drain: Duration::from_secs(30),
        }
    }
}
