//! grpc-go's interoperability client and server with the gateway between them: every standard call, bought first.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

use std::{
    collections::BTreeSet,
    process::{Command, Output, Stdio},
    time::Duration,
};

use farebox_protocol::Macaroon;
use farebox_tests::{Authority, Challenge, InteropServer, Program, Seller, net, peers};
use futures_util::future::join_all;
use http::HeaderMap;
use regex::Regex;
use tokio::time::{Instant, timeout};

const FAREBOX: &str = env!("CARGO_BIN_EXE_farebox");
/// How long one case may take. They take milliseconds; out-of-band metrics, two seconds.
const CASE_MAX: Duration = Duration::from_secs(60);

/// One call, or a conversation of several: its name, and the flags that it needs.
type Case = (&'static str, &'static [&'static str]);

const CASES: &[Case] = &[
    ("empty_unary", &[]),
    ("large_unary", &[]),
    ("client_streaming", &[]),
    ("server_streaming", &[]),
    ("ping_pong", &[]),
    ("empty_stream", &[]),
    ("timeout_on_sleeping_server", &[]),
    ("cancel_after_begin", &[]),
    ("cancel_after_first_response", &[]),
    ("status_code_and_message", &[]),
    ("special_status_message", &[]),
    ("custom_metadata", &[]),
    ("unimplemented_method", &[]),
    ("unimplemented_service", &[]),
    ("rpc_soak", SOAK),
    ("channel_soak", SOAK),
    ("orca_per_rpc", LOAD_REPORTS),
    ("orca_oob", LOAD_REPORTS),
];

/// That something is slow is not what is judged here.
const SOAK: &[&str] = &[
    "-soak_iterations=30",
    "-soak_num_threads=3",
    "-soak_per_iteration_max_acceptable_latency_ms=30000",
    "-soak_overall_timeout_seconds=60",
];

/// The cases about load reports want the client to have this policy.
const LOAD_REPORTS: &[&str] =
    &[r#"-service_config_json={"loadBalancingConfig":[{"test_backend_metrics_load_balancer":{}}]}"#];

/// What the client knows besides, and why it can't be asked here.
const LEFT_OUT: &[(&str, &str)] = &[
    ("compute_engine_creds", "the credentials of a cloud"),
    ("service_account_creds", "the credentials of a cloud"),
    ("jwt_token_creds", "the credentials of a cloud"),
    ("per_rpc_creds", "the credentials of a cloud"),
    ("oauth2_auth_token", "the credentials of a cloud"),
    ("google_default_credentials", "the credentials of a cloud"),
    ("compute_engine_channel_credentials", "the credentials of a cloud"),
    ("pick_first_unary", "the server names itself only under xDS: it fails without a gateway, too"),
];

/// A gateway before the server, in clear text and with TLS.
struct Stand {
    /// How it is called in what is printed: what the upstream speaks.
    name: &'static str,
    clear: Vec<String>,
    tls: Vec<String>,
    url: String,
    _parts: (InteropServer, Seller, Program),
}

impl Stand {
    fn new(name: &'static str, authority: &Authority) -> Self {
        let server = InteropServer::start((name == "tls").then_some(authority));
        let (cert, key) = (authority.cert(), authority.key());
        let tls = format!("{{ cert: {}, key: {} }}", cert.display(), key.display());
        let listen = format!("[\"127.0.0.1:0\", {{ addr: \"127.0.0.1:0\", tls: {tls} }}]");
        // The client asks for load reports by itself, and can't be told to pay there.
        let services = format!(
            "  - name: interop
    upstream: {}
    price: 10sat
    free-paths: [\"/xds.service.orca.v3.OpenRcaService/*\"]
",
            server.upstream()
        );
        let seller = Seller::with_services(FAREBOX, &listen, &services);
        let (program, addrs) = seller.serve_all();
        let to = |at: usize| {
            vec!["-server_host=127.0.0.1".to_owned(), format!("-server_port={}", addrs[at].port())]
        };
        let mut tls = to(1);
        tls.extend(["-use_tls", "-use_test_ca", "-server_host_override=localhost"].map(str::to_owned));
        tls.push(format!("-ca_file={}", authority.ca().display()));
        let url = format!("http://{}", addrs[0]);
        Self { name, clear: to(0), tls, url, _parts: (server, seller, program) }
    }

    /// What a call without payment is answered.
    async fn denial(&self) -> HeaderMap {
        let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
        let call = client
            .post(format!("{}/grpc.testing.TestService/EmptyCall", self.url))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            // An empty message: not compressed, no bytes.
            .body(vec![0; 5]);
        let response = call.send().await.unwrap();
        assert_eq!(response.status(), 200);
        response.headers().clone()
    }

    /// What paying for that opens, as the client wants to be told.
    async fn buy(&self) -> String {
        let authorization = Challenge::read(&self.denial().await).pay().await;
        format!("-additional_metadata=authorization:{authorization}")
    }
}

/// Runs the client.
async fn client(to: &[String], (case, flags): Case, more: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(peers("grpc").join("client"));
    command.args(to).arg(format!("-test_case={case}")).args(flags).args(more);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(CASE_MAX, command.output()).await;
    output.unwrap_or_else(|_| panic!("{case} hangs")).unwrap()
}

/// Runs all cases, one after the other: what has failed.
async fn run(stand: &Stand, front: &str, to: &[String], credential: &str) -> Vec<String> {
    let mut failed = Vec::new();
    for case in CASES {
        let begun = Instant::now();
        let output = client(to, *case, &[credential]).await;
        let outcome = if output.status.success() { "ok" } else { "FAILED" };
        let line = format!("{front:5} {:5} {:28} {outcome}", stand.name, case.0);
        println!("{line} {} ms", begun.elapsed().as_millis());
        if !output.status.success() {
            failed.push(format!("{line}: {}", String::from_utf8_lossy(&output.stderr)));
        }
    }
    failed
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: needs Go"]
async fn every_standard_call_passes_once_it_is_paid_in_clear_text_and_by_tls() {
    let authority = Authority::new();
    let (plain, tls) = (Stand::new("h2c", &authority), Stand::new("tls", &authority));
    let (for_plain, for_tls) = (plain.buy().await, tls.buy().await);
    let failed = join_all([
        run(&plain, "h2c", &plain.clear, &for_plain),
        run(&plain, "tls", &plain.tls, &for_plain),
        run(&tls, "h2c", &tls.clear, &for_tls),
        run(&tls, "tls", &tls.tls, &for_tls),
    ])
    .await
    .concat();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: needs Go"]
async fn the_client_is_denied_in_its_own_words_until_it_pays() {
    let authority = Authority::new();
    let stand = Stand::new("h2c", &authority);
    let said = client(&stand.clear, CASES[0], &[]).await;
    let log = String::from_utf8(said.stderr).unwrap();
    assert!(!said.status.success() && log.contains("code = Internal desc = payment required"), "{log}");

    let denial = stand.denial().await;
    assert_eq!(denial["grpc-status"], "13");
    let challenge = Challenge::read(&denial);
    let preimage = net().pay(&challenge.invoice).await;
    // As L402 clients for gRPC have it: the token in hexadecimal digits, with the preimage in a caveat.
    let token = Macaroon::from_base64(&challenge.token).unwrap();
    let token = token.attenuate(&format!("preimage={}", *preimage.expose_hex())).unwrap().to_hex();
    for credential in [format!("macaroon:{token}"), format!("grpc-metadata-macaroon:{token}")] {
        let said = client(&stand.clear, CASES[0], &[&format!("-additional_metadata={credential}")]).await;
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    }
}

#[test]
#[ignore = "live: needs Go"]
fn no_case_that_the_client_knows_is_forgotten() {
    let help = Command::new(peers("grpc").join("client")).arg("-help").output().unwrap();
    let help = String::from_utf8(help.stderr).unwrap();
    let listed = Regex::new(r"(?m)^\s+([a-z0-9_]+) ?: ").unwrap();
    let listed: BTreeSet<_> = listed.captures_iter(&help).map(|found| found[1].to_owned()).collect();
    assert!(listed.len() > 20, "the help has another form: {help}");
    let ours = CASES.iter().map(|(name, _)| name).chain(LEFT_OUT.iter().map(|(name, _)| name));
    let ours: BTreeSet<_> = ours.map(|name| (*name).to_owned()).collect();
    let forgotten: Vec<_> = listed.difference(&ours).collect();
    assert!(forgotten.is_empty(), "{forgotten:?}");
}
