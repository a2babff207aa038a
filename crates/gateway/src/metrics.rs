//! What is counted: requests by service, code and class of status, durations, connections.
//!
//! Each gateway has a registry of its own and installs none globally, since tests run several in one process. Labels
//! come from the configuration and from fixed sets of words, never from a request, so their number is bounded. Handles
//! for what every paid request counts are made once per snapshot; everything rarer is looked up when it happens.

use std::{sync::Arc, time::Duration};

use farebox_paywall::Code;
use http::StatusCode;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

const REQUESTS: &str = "farebox_requests_total";
const DURATION: &str = "farebox_request_duration_seconds";
const UPSTREAM_ERRORS: &str = "farebox_upstream_errors_total";
const CONNECTIONS: &str = "farebox_connections";
const CONNECTIONS_ALL: &str = "farebox_connections_total";
const PANICS: &str = "farebox_panics_total";

/// From a millisecond, which is a quick answer, to ten minutes, which is a long stream.
const BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0];

const META: Metadata<'static> = Metadata::new("farebox", Level::INFO, None);

/// The registry of one gateway.
#[derive(Clone)]
pub(crate) struct Metrics {
    recorder: Arc<PrometheusRecorder>,
    text: PrometheusHandle,
    pub(crate) connections: Connections,
    pub(crate) panics: Counter,
    /// Requests for which no service was found.
    pub(crate) unmatched: ServiceMetrics,
}

/// Connections from clients.
#[derive(Clone)]
pub(crate) struct Connections {
    pub(crate) open: Gauge,
    pub(crate) accepted: Counter,
}

/// What is counted for one service.
#[derive(Clone)]
pub(crate) struct ServiceMetrics {
    recorder: Arc<PrometheusRecorder>,
    name: Arc<str>,
    /// What is forwarded, paid and free, by class of status, 1xx to 5xx.
    forwarded: [(&'static str, [Counter; 5]); 2],
    duration: Histogram,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Full(DURATION.to_owned()), &BUCKETS)
            .expect("the list of buckets isn't empty")
            .build_recorder();
        describe(&recorder);
        let text = recorder.handle();
        let recorder = Arc::new(recorder);
        let connections = Connections {
            open: recorder.register_gauge(&Key::from_static_name(CONNECTIONS), &META),
            accepted: recorder.register_counter(&Key::from_static_name(CONNECTIONS_ALL), &META),
        };
        let panics = recorder.register_counter(&Key::from_static_name(PANICS), &META);
        let unmatched = ServiceMetrics::new(&recorder, "");
        Self { recorder, text, connections, panics, unmatched }
    }

    /// Handles for one service; the same ones if it had some before.
    pub(crate) fn service(&self, name: &str) -> ServiceMetrics {
        ServiceMetrics::new(&self.recorder, name)
    }

    /// Everything, as Prometheus reads it.
    pub(crate) fn render(&self) -> String {
        self.text.render()
    }

    /// Moves what histograms have collected into their buckets. Until then each sample takes up memory, so the gateway
    /// calls this regularly, whether anybody reads the metrics or not.
    pub(crate) fn settle(&self) {
        self.text.run_upkeep();
    }
}

impl ServiceMetrics {
    fn new(recorder: &Arc<PrometheusRecorder>, name: &str) -> Self {
        let name: Arc<str> = name.into();
        let forwarded = [Code::Pass, Code::Free].map(|code| {
            (code.as_str(), CLASSES.map(|class| requests(recorder, &name, code.as_str(), class)))
        });
        let key = Key::from_parts(DURATION, vec![Label::new("service", name.clone())]);
        let duration = recorder.register_histogram(&key, &META);
        Self { recorder: recorder.clone(), name, forwarded, duration }
    }

    /// A request has been answered, for the reason `code`.
    pub(crate) fn answered(&self, code: &'static str, status: StatusCode, took: Duration) {
        let class = usize::from(status.as_u16() / 100).clamp(1, 5) - 1;
        match self.forwarded.iter().find(|(forwarded, _)| *forwarded == code) {
            Some((_, counters)) => counters[class].increment(1),
            None => requests(&self.recorder, &self.name, code, CLASSES[class]).increment(1),
        }
        self.duration.record(took.as_secs_f64());
    }

    /// The upstream failed, for the reason `code`.
    pub(crate) fn upstream_failed(&self, code: &'static str) {
        let labels = vec![Label::new("service", self.name.clone()), Label::from_static_parts("code", code)];
        self.recorder.register_counter(&Key::from_parts(UPSTREAM_ERRORS, labels), &META).increment(1);
    }
}

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

fn requests(
    recorder: &PrometheusRecorder,
    service: &Arc<str>,
    code: &'static str,
    class: &'static str,
) -> Counter {
    let labels = vec![
        Label::new("service", service.clone()),
        Label::from_static_parts("code", code),
        Label::from_static_parts("class", class),
    ];
    recorder.register_counter(&Key::from_parts(REQUESTS, labels), &META)
}

fn describe(recorder: &PrometheusRecorder) {
    let counter = |name: &'static str, text: &'static str| {
        recorder.describe_counter(KeyName::from_const_str(name), None, text.into());
    };
    counter(REQUESTS, "Requests answered, by service, reason and class of status");
    counter(UPSTREAM_ERRORS, "Requests that an upstream failed to answer, by service and reason");
    counter(CONNECTIONS_ALL, "Connections accepted from clients");
    counter(PANICS, "Requests answered 500 because of a defect in the gateway");
    recorder.describe_gauge(
        KeyName::from_const_str(CONNECTIONS),
        None,
        "Connections open from clients".into(),
    );
    recorder.describe_histogram(
        KeyName::from_const_str(DURATION),
        None,
        "From the head of a request to the last byte of its answer".into(),
    );
}
