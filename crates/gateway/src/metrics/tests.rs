//! The table, and the reference page made from it: `UPDATE_EXPECT=1 cargo test -p farebox-gateway --lib metrics`. That the
//! numbers are right is tested with real traffic, in `tests/metrics.rs`.

use std::{collections::HashSet, fmt::Write as _, thread};

use expect_test::expect_file;
use farebox_paywall::Code;

use super::{
    table::{ALL, Family, Kind},
    *,
};

const INTRODUCTION: &str = "\
# Metrics

The operations listener (`ops` in the [configuration](config.md)) serves them at `/metrics`, in the text format that \
Prometheus reads, and as OpenMetrics to those who ask for it.

The values of labels come from the configuration and from fixed sets of words, never from a request, so there are only so many. \
Money is in millisatoshi, times in seconds. Counters begin anew with each start of the process; those of a service that is no longer \
configured disappear with its last request.

<!-- Made from the table in the code: `UPDATE_EXPECT=1 cargo test -p farebox-gateway --lib metrics`. -->

| metric | kind | labels | what it says |
|---|---|---|---|
";

const CODES: &str = "
## `code`

Why a request was answered as it was: the same word as in the body of the answer, in its `farebox-code` header and in the access \
log. `class` is that of the HTTP status, `1xx` to `5xx`; gRPC has its own status beside it, and 200 here.

The paywall's:

| code | what the client is told |
|---|---|
";

#[test]
fn the_reference_says_what_the_table_says() {
    let mut text = INTRODUCTION.to_owned();
    for Family { name, kind, labels, help } in ALL {
        let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        writeln!(text, "| `{name}` | {kind} | {labels} | {help} |").unwrap();
    }
    text.push_str(CODES);
    for code in Code::ALL {
        writeln!(text, "| `{code}` | {} |", code.detail()).unwrap();
    }
    let failures = Failure::CODES.map(|code| format!("`{code}`")).join(", ");
    writeln!(
        text,
        "\nThe gateway's own: {failures}. And `{}`, where the seller was asked for money back or a receipt, and `{}`, where the client went away before",
        Reason::Desk.as_str(),
        Reason::ClientGone.as_str()
    )
    .unwrap();
    text.push_str("anything was decided.\n");
    let refusals = Refused::ALL.map(|why| format!("`{}`", why.as_str())).join(", ");
    writeln!(text, "\n## `reason`\n\nWhy a connection was closed at once: {refusals}.").unwrap();
    let floods = Flood::ALL.map(|flood| format!("`{}`", flood.as_str())).join(", ");
    writeln!(
        text,
        "\n## `kind`\n\nThe kind of frame that came last where a client had sent too many: {floods}."
    )
    .unwrap();
    text.push_str("`abuse` is what HTTP/2 itself counts: requests taken back in one breath, heads without end, broken rules.\n");
    expect_file!["../../../../docs/reference/metrics.md"].assert_eq(&text);
}

#[test]
fn the_table_follows_the_conventions() {
    let names: HashSet<_> = ALL.iter().map(|family| family.name).collect();
    assert_eq!(names.len(), ALL.len(), "each name once");
    let families: HashSet<_> = ALL.iter().map(|family| family.name.trim_end_matches("_total")).collect();
    assert_eq!(families.len(), ALL.len(), "OpenMetrics knows a counter without its `_total`");
    for Family { name, kind, labels, help } in ALL {
        assert!(name.starts_with("farebox_") || *name == "process_start_time_seconds", "{name}");
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
        assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
        assert_eq!(name.ends_with("_seconds") && *kind != Kind::Gauge, *kind == Kind::Histogram, "{name}");
        assert!(labels.iter().all(|label| !["le", "quantile", "job", "instance"].contains(label)), "{name}");
        assert!(!help.contains(['\\', '\n', '|']) && !help.ends_with('.'), "{name}");
    }
}

#[test]
fn reasons_for_refusing_a_connection_count_apart() {
    let connections = Connections::default();
    for (times, why) in Refused::ALL.into_iter().enumerate() {
        (0..times).for_each(|_| connections.refused(why));
    }
    let counts = connections.refused.each_ref().map(Counter::get);
    assert_eq!(counts.to_vec(), (0..Refused::ALL.len() as u64).collect::<Vec<_>>());
}

#[test]
fn floods_of_each_kind_count_apart() {
    let connections = Connections::default();
    for (times, flood) in Flood::ALL.into_iter().enumerate() {
        (0..times).for_each(|_| connections.flooded(flood));
    }
    let counts = connections.flooded.each_ref().map(Counter::get);
    assert_eq!(counts.to_vec(), (0..Flood::ALL.len() as u64).collect::<Vec<_>>());
}

#[test]
fn nothing_is_lost_when_all_workers_count_at_once() {
    const WORKERS: usize = 4;
    let metrics = Metrics::new(WORKERS);
    let service = metrics.service("api");
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            let service = &service;
            scope.spawn(move || {
                for _ in 0..10_000 {
                    service.answered(
                        worker,
                        Reason::Decided(Code::Pass),
                        StatusCode::OK,
                        Duration::from_millis(1),
                    );
                    service.upstream_failed("upstream_failed");
                }
            });
        }
    });
    let counted: Vec<_> = service.requests().collect();
    assert_eq!(counted, [(Reason::Decided(Code::Pass), "2xx", 40_000)]);
    let times = service.times(|shard| &shard.duration);
    assert_eq!((times.count(), times.sum_micros), (40_000, 40_000_000));
    let failed = failure_index("upstream_failed");
    assert_eq!(service.upstream_errors[failed].load(Relaxed), 40_000);
}

#[test]
fn a_service_keeps_its_counts_for_as_long_as_anybody_holds_them() {
    let metrics = Metrics::new(1);
    let count = || metrics.service("api").requests().map(|(.., count)| count).sum::<u64>();
    let held = metrics.service("api");
    held.answered(0, Reason::ClientGone, StatusCode::OK, Duration::ZERO);
    assert_eq!(count(), 1);
    drop(held);
    assert_eq!(count(), 0, "and is forgotten then");
    for number in 0..100 {
        drop(metrics.service(&format!("service-{number}")));
    }
    assert!(metrics.services.lock().len() <= 1);
}
