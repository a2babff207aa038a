//! What the operator reads: the numbers after known traffic, and how many of them there can be.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

use std::{collections::HashMap, num::NonZeroU32, time::Duration};

use farebox_paywall::{LimitBy, Rate, RateLimit};
use futures_util::{StreamExt, stream};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use support::{
    Rig, ask, body, free, get, http2, request, service,
    upstream::{Recorder, Upstream},
    within,
};

fn at_most(by: LimitBy, count: u32) -> RateLimit {
    let rate = Rate { count: NonZeroU32::new(count).unwrap(), per: Duration::from_secs(3_600) };
    RateLimit { by, rate, burst: None, paths: Vec::new() }
}

/// The samples of a page by name and labels.
fn samples(page: &str) -> HashMap<&str, f64> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name, value.parse().unwrap())
        })
        .collect()
}

#[tokio::test]
async fn after_known_traffic_the_numbers_are_exactly_those() {
    let upstream = Upstream::echo().await;
    let broken = Recorder::answering(b"what?\r\n\r\n").await;
    let mut limited = service("api", &upstream.url());
    limited.matcher.path_prefixes.push("/api".parse().unwrap());
    limited.service.rate_limits.push(at_most(LimitBy::Token, 3));
    let mut nonsense = free("broken", &broken.url());
    nonsense.matcher.path_prefixes.push("/broken".parse().unwrap());
    let rig = Rig::new(vec![limited, nonsense]).await;

    let credential = rig.buy("/api").await;
    let paid = [("authorization", credential.as_str())];
    for want in [200, 200, 200, 429, 429] {
        assert_eq!(get(rig.addr, "/api", &paid).await.status(), want);
    }
    assert_eq!(ask(rig.addr, request("HEAD", "/api", &[])).await.status(), 402);
    assert_eq!(get(rig.addr, "/broken", &[]).await.status(), 502);
    assert_eq!(get(rig.addr, "/nothing", &[]).await.status(), 404);

    rig.metric(r#"farebox_requests_total{service="",code="no_service",class="4xx"} 1"#).await;
    rig.metric("farebox_connections 0").await;
    let (_, page) = rig.ops("/metrics").await;
    let samples = samples(&page);
    let requests: Vec<_> = page.lines().filter(|line| line.starts_with("farebox_requests_total")).collect();
    assert_eq!(
        requests,
        [
            r#"farebox_requests_total{service="",code="no_service",class="4xx"} 1"#,
            r#"farebox_requests_total{service="api",code="pass",class="2xx"} 3"#,
            r#"farebox_requests_total{service="api",code="payment_required",class="4xx"} 2"#,
            r#"farebox_requests_total{service="api",code="rate_limited",class="4xx"} 2"#,
            r#"farebox_requests_total{service="broken",code="upstream_failed",class="5xx"} 1"#,
        ]
    );
    for (name, want) in [
        (r#"farebox_request_duration_seconds_count{service="api"}"#, 7.0),
        (r#"farebox_request_duration_seconds_bucket{service="api",le="+Inf"}"#, 7.0),
        (r#"farebox_upstream_first_byte_seconds_count{service="api"}"#, 3.0),
        (r#"farebox_upstream_first_byte_seconds_count{service="broken"}"#, 0.0),
        (r#"farebox_upstream_errors_total{service="broken",code="upstream_failed"}"#, 1.0),
        ("farebox_connections_accepted_total", 9.0),
        (r#"farebox_connections_refused_total{reason="blocked"}"#, 0.0),
        ("farebox_tls_handshakes_failed_total", 0.0),
        ("farebox_tunnels", 0.0),
        (r#"farebox_challenges_total{service="api"}"#, 1.0),
        ("farebox_settlements_total", 0.0),
        ("farebox_freebies_overflowed_total", 0.0),
        ("farebox_rate_limits_overflowed_total", 0.0),
        ("farebox_node_up", 1.0),
        (r#"farebox_backend_up{backend="node"}"#, 1.0),
        (r#"farebox_backend_settlements_failing{backend="node"}"#, 0.0),
        (r#"farebox_payments_of_others_total{backend="node"}"#, 0.0),
        (r#"farebox_invoices_ready{backend="node"}"#, 0.0),
        ("farebox_settlements_contradicted_total", 0.0),
        (r#"farebox_trouble{task="settling"}"#, 0.0),
        ("farebox_panics_total", 0.0),
        ("farebox_workers", 2.0),
    ] {
        assert_eq!(samples.get(name), Some(&want), "{name}\n{page}");
    }
    let address = format!(r#"{{service="api",upstream="{}"}}"#, upstream.url());
    assert_eq!(samples[format!("farebox_upstream_requests_in_flight{address}").as_str()], 0.0);
    assert_eq!(samples[format!("farebox_upstream_ejected{address}").as_str()], 0.0);
    let kept = samples[format!("farebox_upstream_connections{address}").as_str()];
    assert!((1.0..=2.0).contains(&kept), "one for each worker that was asked: {kept}");
    let took = samples[r#"farebox_request_duration_seconds_sum{service="api"}"#];
    assert!(took > 0.0 && took < 60.0, "{took}");
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(samples[format!("farebox_build_info{{version=\"{version}\"}}").as_str()], 1.0);
    assert!(samples["process_start_time_seconds"] > 1_700_000_000.0);
}

#[tokio::test]
async fn counts_outlive_a_change_of_the_services() {
    let upstream = Upstream::echo().await;
    let mut limited = free("api", &upstream.url());
    limited.service.rate_limits.push(at_most(LimitBy::Client, 2));
    let rig = Rig::new(vec![limited.clone()]).await;
    assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
    rig.reload.services(vec![limited.clone()]).unwrap();
    assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
    rig.reload.services(vec![limited]).unwrap();
    assert_eq!(get(rig.addr, "/", &[]).await.status(), 429, "the limit's count as well");
    rig.metric(r#"farebox_requests_total{service="api",code="free",class="2xx"} 2"#).await;
    rig.reload.services(vec![free("other", &upstream.url())]).unwrap();
    rig.metric(r#"farebox_request_duration_seconds_count{service="other"} 0"#).await;
    assert!(!rig.ops("/metrics").await.1.contains(r#"service="api",code"#), "what is gone is gone");
}

#[tokio::test]
async fn who_comes_too_often_is_told_so_in_the_manner_of_the_asker() {
    let upstream = Upstream::echo().await;
    let mut limited = free("api", &upstream.url());
    limited.service.rate_limits.push(at_most(LimitBy::Client, 1));
    limited.cors = farebox_gateway::Cors::default();
    let rig = Rig::new(vec![limited]).await;
    let preflight = [("origin", "https://app.example"), ("access-control-request-method", "GET")];
    for _ in 0..3 {
        assert!(
            ask(rig.addr, request("OPTIONS", "/", &preflight)).await.status().is_success(),
            "not counted"
        );
    }
    assert_eq!(ask(rig.addr, request("HEAD", "/", &[])).await.status(), 200);
    let origin = [("origin", "https://app.example")];
    let refused = get(rig.addr, "/", &origin).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers()["farebox-code"], "rate_limited");
    assert_eq!(refused.headers()["cache-control"], "no-store");
    assert_eq!(refused.headers()["content-type"], "application/problem+json");
    assert_eq!(refused.headers().get_all("access-control-allow-origin").iter().count(), 1);
    let wait: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((3_000..=3_600).contains(&wait), "{wait}");

    let refused =
        ask(rig.addr, request("POST", "/pkg.Service/Method", &[("content-type", "application/grpc")])).await;
    assert_eq!(refused.status(), 200);
    assert_eq!(refused.headers()["grpc-status"], "8");
    assert_eq!(refused.headers()["content-type"], "application/grpc");
    assert!(refused.headers().contains_key("retry-after"));
    assert!(refused.body().is_empty());
    rig.metric(r#"farebox_requests_total{service="api",code="rate_limited",class="4xx"} 1"#).await;
    rig.metric(r#"farebox_requests_total{service="api",code="rate_limited",class="2xx"} 1"#).await;
}

#[tokio::test]
async fn no_request_can_make_a_new_metric_however_odd() {
    let upstream = Upstream::echo().await;
    let rig = Rig::new(vec![service("api", &upstream.url())]).await;
    let connection = http2(rig.addr).await;
    let odd = |number: usize| {
        let method = ["GET", "HEAD", "BREW", "get", "OPTIONS", "TRACE", "X-1"][number % 7];
        let path = [format!("/p{number}?q={number}"), format!("/a/../{number}"), format!("/%zz{number}")];
        let request = Request::builder()
            .method(method)
            .uri(format!("http://h{number}.example{}", path[number % 3]))
            .header("authorization", format!("L402 {number}:{number:064x}"))
            .header("x-forwarded-for", format!("10.0.{}.{}", number / 256 % 256, number % 256))
            .header("origin", format!("https://{number}.example"))
            .body(body(""))
            .unwrap();
        let mut connection = connection.clone();
        async move {
            let response = within(connection.send_request(request)).await.unwrap();
            drop(response.into_body().collect().await.unwrap());
        }
    };
    let send = async |from: usize, to: usize| {
        stream::iter((from..to).map(odd)).for_each_concurrent(50, |answered| answered).await;
    };
    let names =
        |page: String| -> Vec<String> { samples(&page).keys().map(|name| (*name).to_owned()).collect() };
    send(0, 1_000).await;
    let before = names(rig.ops("/metrics").await.1);
    send(1_000, 10_000).await;
    let (_, page) = rig.ops("/metrics").await;
    let mut new = names(page.clone());
    new.retain(|name| !before.contains(name));
    assert!(new.is_empty(), "{new:?}");
    assert!(before.len() < 200, "{}", before.len());
    for told in ["example", "10.0.", "/p", "BREW"] {
        assert!(!page.contains(told), "{told}");
    }
    let answered = samples(&page)
        .iter()
        .filter(|(name, _)| name.starts_with("farebox_request_duration_seconds_count"))
        .map(|(_, count)| count)
        .sum::<f64>();
    assert_eq!(answered, 10_000.0);
}

#[tokio::test]
async fn the_page_has_every_metric_of_the_reference_in_its_order_and_in_both_formats() {
    let upstream = Upstream::echo().await;
    let rig = Rig::new(vec![free("api", &upstream.url())]).await;
    let reference = include_str!("../../../docs/reference/metrics.md");
    let documented: Vec<_> = reference
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
        .filter(|(name, _)| name.starts_with("farebox_") || name.starts_with("process_"))
        .map(|(name, rest)| format!("{name} {}", rest.split(' ').next().unwrap()))
        .collect();
    let types = |page: &str| -> Vec<String> {
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")).map(str::to_owned).collect()
    };
    let plain = get(rig.ops, "/metrics", &[]).await;
    assert_eq!(plain.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!(types(std::str::from_utf8(plain.body()).unwrap()), documented);

    let open = get(rig.ops, "/metrics", &[("accept", "application/openmetrics-text; version=1.0.0")]).await;
    assert!(open.headers()["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    let page = std::str::from_utf8(open.body()).unwrap();
    let without_total: Vec<_> = documented.iter().map(|name| name.replace("_total ", " ")).collect();
    assert_eq!(types(page), without_total);
    assert!(page.ends_with("\n# EOF\n"));
}
