//! An agent that wants more than it may have.

use serde_json::{Value, json};

use crate::{
    agent::Agent,
    door::{Buyer, names, sells},
    support::Shop,
};

#[tokio::test]
async fn nonsense_is_refused_and_the_session_goes_on() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, sells("goods")).await;
    let files = buyer.path("files");
    std::fs::create_dir_all(files.join("below")).unwrap();
    std::fs::write(buyer.path("precious"), "old").unwrap();
    std::os::unix::fs::symlink(buyer.path("precious"), files.join("link")).unwrap();
    std::os::unix::fs::symlink(buyer.world.directory.path(), files.join("out")).unwrap();
    let mut agent = Agent::start(&buyer, &["--files", files.to_str().unwrap()]).await;
    let url = shop.url("/");
    let fetch = |name: &str, value: Value| json!({ "url": url, name: value });
    let header = |name: &str, value: &str| json!({ "url": url, "headers": { name: value } });
    let many: serde_json::Map<_, _> = (0..10_000).map(|number| (format!("x-{number}"), "1".into())).collect();
    let calls = [
        ("invalid_arguments", fetch("max_sats", json!(-1))),
        ("invalid_arguments", fetch("max_sats", json!(u64::MAX))),
        ("invalid_arguments", fetch("max_sats", json!(1e300))),
        ("invalid_arguments", fetch("max_sats", json!(99.5))),
        ("invalid_arguments", fetch("max_sats", json!("1000000"))),
        ("invalid_arguments", fetch("max_sats", json!({ "$gt": 0 }))),
        ("invalid_arguments", fetch("maxsats", json!(1))),
        ("invalid_arguments", fetch("confirmed", json!(true))),
        ("invalid_arguments", fetch("policy", json!("allow"))),
        ("invalid_arguments", fetch("headers", json!(["Authorization: x"]))),
        ("invalid_arguments", fetch("method", json!("CONNECT"))),
        ("invalid_arguments", fetch("method", json!("GET / HTTP/1.1\r\nX: y"))),
        ("invalid_arguments", fetch("idempotency_key", json!("a\r\nb"))),
        ("invalid_arguments", fetch("idempotency_key", json!(""))),
        ("invalid_arguments", fetch("body_base64", json!("*"))),
        ("invalid_arguments", json!({})),
        ("invalid_arguments", json!({ "url": ["http://a"] })),
        ("header_refused", header("Authorization", "L402 a:b")),
        ("header_refused", header("pRoXy-AuThOrIzAtIoN", "Basic a")),
        ("header_refused", header("Cookie", "a=b")),
        ("header_refused", header("Grpc-Metadata-Macaroon", "00")),
        ("header_refused", header("Host", "other.example")),
        ("header_refused", header("Transfer-Encoding", "chunked")),
        ("header_refused", header("X", "a\r\nAuthorization: L402 a:b")),
        ("header_refused", header("X\r\nAuthorization", "L402 a:b")),
        ("header_refused", fetch("headers", many.into())),
        ("address", json!({ "url": "" })),
        ("address", json!({ "url": "file:///etc/passwd" })),
        ("address", json!({ "url": "http://a:b@127.0.0.1/" })),
        ("address", json!({ "url": format!("{url}\r\nX: y") })),
        ("address", json!({ "url": format!("{url}{}", "a".repeat(100_000)) })),
        ("address", json!({ "url": "http://256.256.256.256/" })),
        ("save_to_refused", fetch("save_to", json!("../precious"))),
        ("save_to_refused", fetch("save_to", json!("below/../../precious"))),
        ("save_to_refused", fetch("save_to", json!(buyer.path("precious")))),
        ("save_to_refused", fetch("save_to", json!("out/precious"))),
        ("save_to_refused", fetch("save_to", json!("a\0b"))),
        ("save_to_refused", fetch("save_to", json!(""))),
        ("file_exists", fetch("save_to", json!("link"))),
        ("file_exists", fetch("save_to", json!("below"))),
    ];
    for (code, arguments) in calls {
        let shown = arguments.to_string().chars().take(100).collect::<String>();
        let result = agent.result("farebox_fetch", arguments).await;
        let told = &result["structuredContent"];
        assert_eq!((&told["code"], &result["isError"]), (&code.into(), &true.into()), "{shown}: {told}");
        assert_eq!((&told["retryable"], &told["money"]["state"]), (&false.into(), &"none".into()), "{shown}");
        assert!(told["message"].as_str().unwrap().len() < 2_000);
    }
    let told = agent.call("farebox_quote", json!({ "url": url, "method": "POST" })).await;
    assert_eq!(told["code"], "method_acts");
    assert_eq!((shop.requests(), buyer.payments()), (0, 0), "not one of them was sent");
    assert_eq!(std::fs::read(buyer.path("precious")).unwrap(), b"old");
    assert_eq!(names(&files), ["below", "link", "out"]);

    for tool in ["farebox_approve", "farebox_pay", "config_show", "", "farebox_fetch "] {
        let id = agent.begin_call(tool, json!({})).await;
        let error = agent.answer(id).await["error"].take();
        let message = error["message"].as_str().unwrap_or_else(|| panic!("there is no `{tool}`"));
        assert!(message.contains("`farebox_quote`"), "it isn't told what there is: {message}");
    }
    agent.end(&buyer).await;
}

#[tokio::test]
async fn messages_that_are_none_or_too_long_are_passed_over() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, sells("goods")).await;
    let mut agent = Agent::start(&buyer, &[]).await;
    let long = format!(
        r#"{{"jsonrpc":"2.0","id":7777,"method":"tools/call","params":{{"name":"farebox_fetch","arguments":{{"url":"{}","body":"{}"}}}}}}"#,
        shop.url("/"),
        "x".repeat(5 << 20)
    );
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for line in
        [&*long, &deep, "", "{", "null", "[]", "\u{0}", r#"{"jsonrpc":"1.0"}"#, r#"{"jsonrpc":"2.0","id":1}"#]
    {
        agent.send_raw(line).await;
    }
    let told = agent.fetch(&shop.url("/")).await;
    assert_eq!((&told["status"], shop.requests(), buyer.payments()), (&200.into(), 2, 1), "{told}");
    agent.end(&buyer).await;
}

#[tokio::test]
async fn a_message_that_is_too_long_is_answered_with_an_error() {
    let buyer = Buyer::new().await;
    let mut agent = Agent::start(&buyer, &[]).await;
    for bytes in [4 << 20, 9 << 20] {
        // What comes before the limit would be a message of its own.
        agent.send_raw(&format!(r#"{{"jsonrpc":"2.0","id":7,"method":"ping"}}{}"#, " ".repeat(bytes))).await;
        let told = agent.any_answer().await;
        assert_eq!((&told["id"], &told["error"]["code"]), (&json!(null), &json!(-32600)), "{told}");
    }
    agent.send_raw(&format!(r#"{{"jsonrpc":"2.0","id":8,"method":"ping"}}{}"#, " ".repeat(4_000_000))).await;
    assert_eq!(agent.any_answer().await["id"], 8);
    assert!(agent.call("farebox_budget", json!({})).await["notes"].is_array());
    agent.end(&buyer).await;
}

#[tokio::test]
async fn whoever_could_go_round_the_rules_is_told_of() {
    let buyer = Buyer::new().await;
    let mut agent = Agent::start(&buyer, &[]).await;
    let notes = agent.call("farebox_budget", json!({})).await["notes"].to_string();
    assert!(notes.contains("can write") && notes.contains("change the policy"), "{notes}");
    assert!(notes.contains("FAREBOX_WALLET_PASSWORD"), "{notes}");
    let all = agent.end(&buyer).await;
    assert!(all.contains("run the agent as another user"), "{all}");
}

/// A server that takes connections and never says a word.
async fn silence() -> (tokio::net::TcpListener, String) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

#[tokio::test]
async fn calls_that_hang_keep_nobody_from_looking_and_too_many_are_refused() {
    let buyer = Buyer::new().await;
    let (_silent, url) = silence().await;
    let mut agent = Agent::start(&buyer, &[]).await;
    for _ in 0..400 {
        agent.begin_call("farebox_fetch", json!({ "url": url })).await;
    }
    assert!(agent.call("farebox_budget", json!({})).await["notes"].is_array());
    let refused = agent.any_answer().await;
    assert_eq!(refused["result"]["structuredContent"]["code"], "busy", "{refused}");
}

#[tokio::test]
async fn a_wallet_that_is_silent_keeps_nobody_from_looking() {
    let buyer = Buyer::new().await;
    let (silent, url) = silence().await;
    let mut command = buyer.farebox(&["mcp"]);
    command.env("FAREBOX_WALLET_URL", &url);
    let mut agent = Agent::connect(&buyer, command);
    agent.begin().await;
    agent.begin_call("farebox_fetch", json!({ "url": url })).await;
    let _asked = silent.accept().await.unwrap();
    // The wallet is waited for much longer.
    let look = agent.call("farebox_budget", json!({}));
    let told = tokio::time::timeout(std::time::Duration::from_secs(10), look).await;
    assert!(told.expect("it waits for the wallet")["notes"].is_array());
}
