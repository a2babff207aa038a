//! What is counted, and how the operator reads it. Which metrics there are stands in `table.rs`.
//!
//! Each gateway has its own, since tests run several in one process. What a request counts goes to plain atomics of its
//! service and worker, addressed by number: three relaxed additions, nothing looked up and nothing shared between cores.
//! What is rarer, or known elsewhere anyway, is asked for when the page is made.

mod instrument;
mod page;
mod reason;
mod table;

use std::{
    array,
    collections::BTreeMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use farebox_lightning::clock::{Clock as _, SystemClock};
use farebox_paywall::{
    NodeHealth, Paywall, Sales, ledger::law::Charged, refund::RefundHealth, store::accounts::Unit,
};
use farebox_protocol::Timestamp;
use http::StatusCode;
use parking_lot::Mutex;

pub(crate) use self::{
    instrument::{Counter, Gauge},
    page::Format,
    reason::Reason,
};
use self::{
    instrument::{Histogram, Times},
    page::Page,
    reason::failure_index,
};
use crate::{proxy::failure::Failure, services::Services, upstream::AddressStatus};

/// What one gateway counts.
pub(crate) struct Metrics {
    pub(crate) connections: Connections,
    /// WebSockets and the like that are open.
    pub(crate) tunnels: Gauge,
    pub(crate) panics: Counter,
    /// Requests for which no service was found.
    pub(crate) unmatched: Arc<ServiceMetrics>,
    /// By name. Those that neither a snapshot of the services nor a request holds any more are forgotten.
    services: Mutex<BTreeMap<Arc<str>, Weak<ServiceMetrics>>>,
    workers: usize,
    started: Timestamp,
}

/// Connections from clients.
#[derive(Clone, Default)]
pub(crate) struct Connections {
    pub(crate) open: Gauge,
    pub(crate) accepted: Counter,
    pub(crate) tls_failed: Counter,
    refused: [Counter; Refused::ALL.len()],
    flooded: [Counter; Flood::ALL.len()],
}

/// Why a connection was closed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Its client may not come in.
    Blocked,
    /// Its client has as many as one may have.
    TooMany,
    /// It did not begin with the PROXY header that it had to, or came from somebody who is not trusted with one.
    ProxyHeader,
}

/// What an HTTP/2 connection was closed over: the kind of frame that came last of too many that ask for nothing, or [`Abuse`],
/// what hyper has found to be too much.
///
/// [`Abuse`]: Self::Abuse
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flood {
    Data,
    Headers,
    Priority,
    RstStream,
    Settings,
    Ping,
    WindowUpdate,
    Continuation,
    /// Of a kind that nobody knows.
    Unknown,
    /// Requests taken back in one breath, heads without end or of no measure, broken rules, pieces of bodies too many and too small.
    Abuse,
}

/// What is counted for one service.
pub(crate) struct ServiceMetrics {
    name: Arc<str>,
    /// One for each worker.
    shards: Box<[Shard]>,
    upstream_errors: [AtomicU64; Failure::CODES.len()],
    /// By unit, in the order of [`UNITS`].
    counted: [Counted; UNITS.len()],
}

/// What was charged in units of one kind. Workers share it: whoever counts has locked an account before.
#[derive(Default)]
struct Counted {
    charged: Counter,
    let_off: Counter,
    units: Counter,
    written_off: Counter,
}

const UNITS: [Unit; 2] = [Unit::Request, Unit::Msat];

/// What one worker counts for one service. Aligned, so that no two workers write to the same cache line, or to neighbours
/// that are fetched together.
#[repr(align(128))]
struct Shard {
    /// By reason and class of status, 1xx to 5xx.
    requests: [[AtomicU64; CLASSES.len()]; Reason::COUNT],
    duration: Histogram,
    first_byte: Histogram,
}

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

impl Metrics {
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            connections: Connections::default(),
            tunnels: Gauge::default(),
            panics: Counter::default(),
            unmatched: Arc::new(ServiceMetrics::new("", workers)),
            services: Mutex::default(),
            workers,
            started: SystemClock.now(),
        }
    }

    /// What is counted for one service; the same as before if there was one of that name.
    pub(crate) fn service(&self, name: &str) -> Arc<ServiceMetrics> {
        let mut services = self.services.lock();
        services.retain(|_, service| service.strong_count() > 0);
        if let Some(known) = services.get(name).and_then(Weak::upgrade) {
            return known;
        }
        let service = Arc::new(ServiceMetrics::new(name, self.workers));
        services.insert(service.name.clone(), Arc::downgrade(&service));
        service
    }

    /// The whole page.
    pub(crate) fn render(
        &self,
        services: &Services,
        paywall: &Paywall,
        refunds: Option<RefundHealth>,
        format: Format,
    ) -> String {
        let mut page = Page::new(format);
        self.requests(&mut page);
        self.counted(&mut page);
        upstreams(&mut page, services);
        self.connections(&mut page);
        sales(&mut page, paywall);
        page.family(&table::REFUNDS_OPEN).value(refunds.map_or(0, |refunds| refunds.open));
        page.family(&table::REFUNDS_STUCK).value(refunds.map_or(0, |refunds| refunds.stuck));
        self.process(&mut page);
        page.finish()
    }

    fn requests(&self, page: &mut Page) {
        let known: Vec<_> = self.services.lock().values().filter_map(Weak::upgrade).collect();
        let services = || [&self.unmatched].into_iter().chain(&known);
        let mut requests = page.family(&table::REQUESTS);
        for service in services() {
            for (reason, class, count) in service.requests() {
                requests.labelled(&[&service.name, reason.as_str(), class], count);
            }
        }
        let mut duration = page.family(&table::DURATION);
        for service in services() {
            duration.times(&[&service.name], &service.times(|shard| &shard.duration));
        }
        let mut first_byte = page.family(&table::FIRST_BYTE);
        for service in &known {
            first_byte.times(&[&service.name], &service.times(|shard| &shard.first_byte));
        }
        let mut errors = page.family(&table::UPSTREAM_ERRORS);
        for service in &known {
            for (code, count) in Failure::CODES.into_iter().zip(&service.upstream_errors) {
                let count = count.load(Relaxed);
                if count > 0 {
                    errors.labelled(&[&service.name, code], count);
                }
            }
        }
    }

    fn counted(&self, page: &mut Page) {
        let known: Vec<_> = self.services.lock().values().filter_map(Weak::upgrade).collect();
        let mut counter = |family, value: fn(&Counted) -> &Counter| {
            let mut samples = page.family(family);
            for service in &known {
                // Most services are sold in units of one kind at most.
                let used = UNITS.iter().zip(&service.counted).filter(|(_, counted)| !counted.is_zero());
                for (unit, counted) in used {
                    samples.labelled(&[&service.name, unit.as_str()], value(counted).get());
                }
            }
        };
        counter(&table::CHARGED, |counted| &counted.charged);
        counter(&table::LET_OFF, |counted| &counted.let_off);
        counter(&table::UNITS_CHARGED, |counted| &counted.units);
        counter(&table::UNITS_WRITTEN_OFF, |counted| &counted.written_off);
    }

    fn connections(&self, page: &mut Page) {
        let Connections { open, accepted, tls_failed, refused, flooded } = &self.connections;
        page.family(&table::CONNECTIONS).value(open.get());
        page.family(&table::CONNECTIONS_ACCEPTED).value(accepted.get());
        let mut refusals = page.family(&table::CONNECTIONS_REFUSED);
        for (reason, count) in Refused::ALL.into_iter().zip(refused) {
            refusals.labelled(&[reason.as_str()], count.get());
        }
        let mut floods = page.family(&table::CONNECTIONS_FLOODED);
        for (flood, count) in Flood::ALL.into_iter().zip(flooded) {
            floods.labelled(&[flood.as_str()], count.get());
        }
        page.family(&table::TLS_FAILED).value(tls_failed.get());
        page.family(&table::TUNNELS).value(self.tunnels.get());
    }

    fn process(&self, page: &mut Page) {
        page.family(&table::PANICS).value(self.panics.get());
        page.family(&table::WORKERS).value(self.workers);
        page.family(&table::BUILD).labelled(&[env!("CARGO_PKG_VERSION")], 1);
        page.family(&table::STARTED).value(self.started.secs());
    }
}

/// How the addresses of the services are doing that are configured now.
fn upstreams(page: &mut Page, services: &Services) {
    let mut gauge = |family, value: fn(&AddressStatus<'_>) -> usize| {
        let mut samples = page.family(family);
        for route in services.routes() {
            for address in route.upstream.status() {
                samples.labelled(&[route.config.service.name.as_str(), address.url], value(&address));
            }
        }
    };
    gauge(&table::UPSTREAM_CONNECTIONS, |address| address.connections);
    gauge(&table::UPSTREAM_IN_FLIGHT, |address| address.in_flight);
    gauge(&table::UPSTREAM_EJECTED, |address| usize::from(address.is_ejected));
}

/// What the paywall knows.
fn sales(page: &mut Page, paywall: &Paywall) {
    let sales = paywall.sales();
    let mut counter = |family, value: fn(&Sales) -> u64| {
        let mut samples = page.family(family);
        for (service, sales) in &sales {
            samples.labelled(&[service.as_str()], value(sales));
        }
    };
    counter(&table::CHALLENGES, |sales| sales.challenges);
    counter(&table::SALES, |sales| sales.purchases);
    counter(&table::SOLD, |sales| sales.paid.get());
    counter(&table::SURPLUS, |sales| sales.surplus.get());
    let health = paywall.health();
    let backends = |page: &mut Page, family, value: fn(&NodeHealth) -> u64| {
        let mut samples = page.family(family);
        for node in &health.nodes {
            samples.labelled(&[node.name.as_str()], value(node));
        }
    };
    page.family(&table::SETTLED).value(health.payments_booked);
    page.family(&table::SETTLED_MSAT).value(health.money_booked.get());
    page.family(&table::CONFLICTING).value(health.payments_conflicting);
    page.family(&table::CONTRADICTED).value(health.payments_contradicted);
    backends(page, &table::OTHERS, |node| node.payments_of_others);
    page.family(&table::PRESENTED).value(health.presentations_booked);
    page.family(&table::PRESENTED_DROPPED).value(health.presentations_dropped);
    page.family(&table::PRESENTED_QUEUED).value(health.presentations_queued);
    page.family(&table::REVOKED).value(health.revoked_tokens);
    page.family(&table::UNWRITTEN).value(health.ledger.unwritten);
    page.family(&table::ACCOUNTS).value(health.ledger.accounts);
    page.family(&table::FREEBIES_OVERFLOWED).value(health.freebies_overflowed);
    page.family(&table::RATE_OVERFLOWED).value(health.rate_limits_overflowed);
    let is_up = health.node == farebox_lightning::Health::Ready;
    page.family(&table::NODE_UP).value(u8::from(is_up));
    backends(page, &table::BACKEND_UP, |node| u64::from(node.node == farebox_lightning::Health::Ready));
    backends(page, &table::BACKEND_BEHIND, |node| u64::from(node.settling.is_some()));
    backends(page, &table::READY, |node| node.invoices_ready as u64);
    let mut trouble = page.family(&table::TROUBLE);
    for (task, why) in [
        ("minting", &health.minting),
        ("settling", &health.settling),
        ("presenting", &health.presenting),
        ("revoking", &health.revoking),
        ("keeping", &health.keeping),
        ("ledger", &health.ledger.writing),
    ] {
        trouble.labelled(&[task], u8::from(why.is_some()));
    }
}

impl Connections {
    pub(crate) fn refused(&self, why: Refused) {
        self.refused[why as usize].increment(1);
    }

    pub(crate) fn flooded(&self, flood: Flood) {
        self.flooded[flood as usize].increment(1);
    }
}

impl Flood {
    /// All of them, in the order in which they are declared.
    pub(crate) const ALL: [Self; 10] = [
        Self::Data,
        Self::Headers,
        Self::Priority,
        Self::RstStream,
        Self::Settings,
        Self::Ping,
        Self::WindowUpdate,
        Self::Continuation,
        Self::Unknown,
        Self::Abuse,
    ];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Headers => "headers",
            Self::Priority => "priority",
            Self::RstStream => "rst_stream",
            Self::Settings => "settings",
            Self::Ping => "ping",
            Self::WindowUpdate => "window_update",
            Self::Continuation => "continuation",
            Self::Unknown => "unknown",
            Self::Abuse => "abuse",
        }
    }
}

impl Refused {
    /// All of them, in the order in which they are declared.
    pub(crate) const ALL: [Self; 3] = [Self::Blocked, Self::TooMany, Self::ProxyHeader];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Blocked => "blocked",
            Self::TooMany => "too_many",
            Self::ProxyHeader => "proxy_header",
        }
    }
}

impl ServiceMetrics {
    fn new(name: &str, workers: usize) -> Self {
        let shard = |_| Shard {
            requests: array::from_fn(|_| array::from_fn(|_| AtomicU64::new(0))),
            duration: Histogram::default(),
            first_byte: Histogram::default(),
        };
        Self {
            name: name.into(),
            shards: (0..workers).map(shard).collect(),
            upstream_errors: array::from_fn(|_| AtomicU64::new(0)),
            counted: array::from_fn(|_| Counted::default()),
        }
    }

    /// A request that is counted has come to its end.
    pub(crate) fn charged(&self, unit: Unit, charged: Charged) {
        let counted = &self.counted[usize::from(unit == Unit::Msat)];
        let is_charged = charged != Charged::default();
        if is_charged { &counted.charged } else { &counted.let_off }.increment(1);
        counted.units.increment(charged.spent);
        counted.written_off.increment(charged.written_off);
    }

    /// A worker has answered a request, for this reason.
    pub(crate) fn answered(&self, worker: usize, reason: Reason, status: StatusCode, took: Duration) {
        let class = usize::from(status.as_u16() / 100).clamp(1, CLASSES.len()) - 1;
        let shard = &self.shards[worker];
        shard.requests[reason.index()][class].fetch_add(1, Relaxed);
        shard.duration.record(took);
    }

    /// The upstream has begun to answer a request of this worker's.
    pub(crate) fn upstream_answered(&self, worker: usize, took: Duration) {
        self.shards[worker].first_byte.record(took);
    }

    /// The upstream failed, for the reason `code`.
    pub(crate) fn upstream_failed(&self, code: &'static str) {
        self.upstream_errors[failure_index(code)].fetch_add(1, Relaxed);
    }

    /// How many requests were answered for which reason, as far as any were.
    fn requests(&self) -> impl Iterator<Item = (Reason, &'static str, u64)> {
        Reason::all().flat_map(move |reason| {
            CLASSES.into_iter().enumerate().filter_map(move |(class, name)| {
                let place = |shard: &Shard| shard.requests[reason.index()][class].load(Relaxed);
                let count: u64 = self.shards.iter().map(place).sum();
                (count > 0).then_some((reason, name, count))
            })
        })
    }

    fn times(&self, of: impl Fn(&Shard) -> &Histogram) -> Times {
        let mut times = Times::default();
        self.shards.iter().for_each(|shard| of(shard).add_to(&mut times));
        times
    }
}

impl Counted {
    fn is_zero(&self) -> bool {
        self.charged.get() == 0 && self.let_off.get() == 0
    }
}

#[cfg(test)]
mod tests;
