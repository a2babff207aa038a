//! What is logged: one line for each request, and never a secret, at any level. A process of its own, since a log belongs
//! to a whole process.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

use std::{
    fmt::{Debug, Write as _},
    sync::Arc,
};

use farebox_paywall::receipt::ReceiptKey;
use parking_lot::Mutex;
use support::{Rig, ask, get, request, service, upstream::Upstream, within};
use tracing::field::{Field, Visit};
use tracing_subscriber::{Layer, layer::Context, prelude::*};

/// Keeps each event as one line.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}

impl<S: tracing::Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut line = Line(event.metadata().target().to_owned());
        event.record(&mut line);
        self.0.lock().push(line.0);
    }
}

impl Lines {
    fn of(&self, target: &str) -> Vec<String> {
        self.0.lock().iter().filter(|line| line.starts_with(target)).cloned().collect()
    }
}

#[tokio::test]
async fn each_request_is_one_line_and_no_line_holds_a_secret() {
    let lines = Lines::default();
    tracing_subscriber::registry().with(lines.clone()).init();
    let upstream = Upstream::echo().await;
    let config = support::config(vec![service("weather", &upstream.url())]);
    let rig = Rig::signing(config, ReceiptKey::from_seed(&[7; 32])).await;
    let credential = rig.buy("/x?key=hush-hush").await;
    let paid = [("authorization", credential.as_str()), ("x-forwarded-for", "6.6.6.6")];
    assert_eq!(get(rig.addr, "/a/../x?key=hush-hush", &paid).await.status(), 200);
    // A credential that is refused, too, and one that reaches an upstream that is gone.
    let spoilt = credential.replace("L402 ", "L402 AA");
    assert_eq!(get(rig.addr, "/x", &[("authorization", &spoilt)]).await.status(), 402);
    upstream.kill().await;
    assert_eq!(get(rig.addr, "/x", &paid).await.status(), 502);
    let by_http2 = request("GET", "http://localhost/x?key=hush-hush", &paid);
    within(support::http2(rig.addr).await.send_request(by_http2)).await.unwrap();
    rig.metric("farebox_requests_total{service=\"weather\",code=\"upstream_unreachable\",class=\"5xx\"} 2")
        .await;
    let receipt = request("POST", "/.well-known/farebox/receipt?hush-hush", &paid);
    assert_eq!(ask(rig.addr, receipt).await.headers()["farebox-code"], "receipt_not_booked");
    rig.metric("farebox_requests_total{service=\"\",code=\"desk\",class=\"4xx\"} 1").await;

    let access = lines.of("farebox::access");
    assert_eq!(access.len(), 6, "{access:#?}");
    let plain = |text: &str| {
        let (head, bytes) = text.split_once(" bytes=").unwrap();
        (head.to_owned(), bytes.contains("complete=true"))
    };
    let (head, is_complete) = plain(&access[1]);
    assert_eq!(
        head,
        "farebox::access client=127.0.0.1 method=GET path=\"/x\" service=\"weather\" status=200 code=\"pass\""
    );
    assert!(is_complete, "{access:#?}");
    assert!(access[0].contains("status=402 code=\"payment_required\""), "{access:#?}");
    assert!(access[3].contains("status=502 code=\"upstream_unreachable\""), "{access:#?}");
    let asked = "method=POST path=\"/.well-known/farebox/receipt\" service=\"\" status=404 code=\"desk\"";
    assert!(access[5].contains(asked), "{access:#?}");
    let warned = lines.of("farebox_gateway");
    assert!(warned.iter().any(|line| line.contains("an upstream failed")), "{warned:#?}");

    let (token, preimage) = credential.trim_start_matches("L402 ").split_once(':').unwrap();
    // The libraries' lines, too: somebody may ask for everything.
    for line in lines.of("") {
        for secret in [token, preimage, "hush-hush"] {
            assert!(!line.contains(secret), "{line}");
        }
    }
}
