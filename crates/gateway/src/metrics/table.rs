//! Every metric there is: its name, its kind, its labels and what it says. `HELP` and `TYPE` lines and the reference page
//! (`docs/reference/metrics.md`) are made from this table.
//!
//! Names follow Prometheus: seconds, `_total` for what only grows. Money is in msat, as everywhere. The values of labels come
//! from the configuration and from fixed sets of words, never from a request, so their number is bounded.
//!
//! For those who come from aperture, which counts limits only:
//!
//! | aperture | here |
//! |---|---|
//! | `aperture_ratelimit_allowed_total` | `farebox_requests_total` with `code="pass"` or `"free"` |
//! | `aperture_ratelimit_denied_total` | `farebox_requests_total` with `code="rate_limited"` |
//! | `aperture_ratelimit_cache_size` | nothing: the memory is fixed |
//! | `aperture_ratelimit_evictions_total` | nothing is evicted; `farebox_rate_limits_overflowed_total` says when the memory is too small |
//! | `grpc_server_*`, `hashmail_*` | nothing: there is no mailbox server |

use std::fmt;

/// A metric, or one for each combination of its labels.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) labels: &'static [&'static str],
    pub(super) help: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        })
    }
}

/// The table: a constant for each family, and a list of them all in the order of the page.
macro_rules! table {
    ($($constant:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(pub(super) const $constant: Family =
            Family { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };)*
        /// All of them, in the order of the page.
        #[cfg(test)]
        pub(super) const ALL: &[&Family] = &[$(&$constant),*];
    };
}

table! {
    REQUESTS = Counter "farebox_requests_total" ["service", "code", "class"]
        "Requests answered, by service, reason and class of status. Combinations that have not occurred are left out. Where no service was found its name is empty";
    DURATION = Histogram "farebox_request_duration_seconds" ["service"]
        "From the head of a request to the last byte of its answer";
    FIRST_BYTE = Histogram "farebox_upstream_first_byte_seconds" ["service"]
        "From the head of a request to the head of the upstream's answer";
    UPSTREAM_ERRORS = Counter "farebox_upstream_errors_total" ["service", "code"]
        "Requests that an upstream failed to answer, by service and reason";
    CHARGED = Counter "farebox_charged_requests_total" ["service", "unit"]
        "Requests that were charged to what their tokens have left, by what that is counted in: `request`, or `msat` of credit. Those that were refused for want of units are in farebox_requests_total by their code";
    LET_OFF = Counter "farebox_uncharged_requests_total" ["service", "unit"]
        "Requests of such tokens that were forwarded and cost nothing, since the upstream failed or the buyer left before";
    UNITS_CHARGED = Counter "farebox_charged_units_total" ["service", "unit"]
        "What was charged for them";
    UNITS_WRITTEN_OFF = Counter "farebox_written_off_units_total" ["service", "unit"]
        "What they have used beyond all that their buyers had left: nobody pays for it. Raise the reserve where this grows";
    UPSTREAM_CONNECTIONS = Gauge "farebox_upstream_connections" ["service", "upstream"]
        "Connections to an upstream's address that are open, in use or kept";
    UPSTREAM_IN_FLIGHT = Gauge "farebox_upstream_requests_in_flight" ["service", "upstream"]
        "Requests given to an address whose answers have not been read to the end";
    UPSTREAM_EJECTED = Gauge "farebox_upstream_ejected" ["service", "upstream"]
        "Whether an address is left out for its failures: 1 or 0";

    CONNECTIONS = Gauge "farebox_connections" []
        "Connections from clients that are open";
    CONNECTIONS_ACCEPTED = Counter "farebox_connections_accepted_total" []
        "Connections from clients that were served";
    CONNECTIONS_REFUSED = Counter "farebox_connections_refused_total" ["reason"]
        "Connections from clients that were closed before anything was read or served";
    CONNECTIONS_FLOODED = Counter "farebox_connections_flooded_total" ["kind"]
        "HTTP/2 connections closed since their clients sent too much that asks for nothing, or took too much back";
    TLS_FAILED = Counter "farebox_tls_handshakes_failed_total" []
        "TLS handshakes with clients that came to nothing";
    TUNNELS = Gauge "farebox_tunnels" []
        "Connections and streams handed over to another protocol, such as WebSocket, that are open";

    CHALLENGES = Counter "farebox_challenges_total" ["service"]
        "Challenges made: a token and an invoice each, most of which are never paid";
    SALES = Counter "farebox_sales_total" ["service"]
        "Payments that have arrived and whose token has been presented";
    SOLD = Counter "farebox_sold_msat_total" ["service"]
        "Money that has arrived and whose token has been presented, surplus included";
    SURPLUS = Counter "farebox_surplus_msat_total" ["service"]
        "Money beyond the price: overpaid, or paid twice";
    SETTLED = Counter "farebox_settlements_total" []
        "Payments that have arrived and were booked";
    SETTLED_MSAT = Counter "farebox_settled_msat_total" []
        "Money that has arrived and was booked; what exceeds farebox_sold_msat_total waits for its token to be presented";
    CONFLICTING = Counter "farebox_settlements_conflicting_total" []
        "Payments that were not booked since the books hold others in their place: look into it";
    CONTRADICTED = Counter "farebox_settlements_contradicted_total" []
        "Payments whose invoice says something else than the token that was presented for them: the token counts; look into it";
    OTHERS = Counter "farebox_payments_of_others_total" ["backend"]
        "Payments that a Lightning node received for other purposes, and that were left alone. Some may be counted again after a break";
    PRESENTED = Counter "farebox_presentations_booked_total" []
        "First presentations of tokens that were booked";
    PRESENTED_DROPPED = Counter "farebox_presentations_dropped_total" []
        "Presentations that found the queue full or the store failing; they are booked when the token comes again";
    PRESENTED_QUEUED = Gauge "farebox_presentations_queued" []
        "First presentations waiting to be booked";
    REVOKED = Gauge "farebox_revoked_tokens" []
        "Revoked tokens that are known here";
    UNWRITTEN = Gauge "farebox_ledger_unwritten" []
        "Charges that are not on the disk yet: what a crash just now would lose, in the buyers' favour";
    ACCOUNTS = Gauge "farebox_ledger_accounts" []
        "Accounts of counted purchases that are kept in memory";
    FREEBIES_OVERFLOWED = Counter "farebox_freebies_overflowed_total" []
        "Requests that asked for a freebie of the allowance shared by all latecomers, since more networks had used some than there is room for";
    RATE_OVERFLOWED = Counter "farebox_rate_limits_overflowed_total" []
        "Requests counted in a budget shared by all latecomers, since more tokens or clients were limited at once than there is room for";

    NODE_UP = Gauge "farebox_node_up" []
        "Whether the Lightning node answers: 1 or 0. Without it nothing new is sold; what has been paid for works on";
    BACKEND_UP = Gauge "farebox_backend_up" ["backend"]
        "Whether this Lightning node answers: 1 or 0. New sales go on as long as one does";
    BACKEND_BEHIND = Gauge "farebox_backend_settlements_failing" ["backend"]
        "Whether the settlements of this Lightning node are not being booked: 1 or 0";
    READY = Gauge "farebox_invoices_ready" ["backend"]
        "Invoices made ahead that wait for a buyer (`minting.ready-invoices`)";
    TROUBLE = Gauge "farebox_trouble" ["task"]
        "Whether one of the paywall's tasks has been failing lately: 1 or 0";

    REFUNDS_OPEN = Gauge "farebox_refunds_open" []
        "Refunds that haven't ended; their money is set aside. 0 where no money is paid back";
    REFUNDS_STUCK = Gauge "farebox_refunds_stuck" []
        "Of those, the ones of which nobody finds out whether they were paid: say it with `farebox refund resolve`";

    PANICS = Counter "farebox_panics_total" []
        "Requests answered 500 because of a defect in the gateway";
    WORKERS = Gauge "farebox_workers" []
        "Threads that serve requests";
    BUILD = Gauge "farebox_build_info" ["version"]
        "Always 1; the label says which farebox this is";
    STARTED = Gauge "process_start_time_seconds" []
        "When this process began to serve, in seconds since 1970";
}
