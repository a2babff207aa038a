//! What is bought, for whom, within which limits.

use axum::response::IntoResponse as _;
use serde_json::json;

use crate::{
    agent::Agent,
    door::{Buyer, RULES, SECRET, names, sells},
    support::{Shop, shop::redirect},
};

#[tokio::test]
async fn an_agent_asks_the_price_buys_and_sees_what_it_cost() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, sells("goods")).await;
    let mut agent = Agent::start(&buyer, &[]).await;
    let id = agent.ask("tools/list", json!({})).await;
    let tools = agent.answer(id).await["result"]["tools"].clone();
    let names: Vec<_> = tools.as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "farebox_quote",
            "farebox_fetch",
            "farebox_resume",
            "farebox_budget",
            "farebox_receipts",
            "farebox_credentials",
            "farebox_approval_status",
        ]
    );

    let quote = agent.call("farebox_quote", json!({ "url": shop.url("/now?key=hidden") })).await;
    assert_eq!((&quote["status"], &quote["would_pay"]), (&402.into(), &true.into()), "{quote}");
    assert_eq!(
        (&quote["offers"][0]["amount_msat"], &quote["has_credential"]),
        (&100_000.into(), &false.into())
    );
    assert_eq!((buyer.payments(), shop.served()), (0, 0));

    let result = agent.result("farebox_fetch", json!({ "url": shop.url("/now?key=hidden") })).await;
    let told = &result["structuredContent"];
    assert_eq!(told["body"], json!({ "untrusted": true, "bytes": 5, "encoding": "utf-8", "data": "goods" }));
    assert_eq!((&told["payment"]["paid"], &told["payment"]["amount_msat"]), (&true.into(), &100_000.into()));
    assert_eq!(told["url"], shop.url("/now"), "the query stays out of it");
    // For hosts that pass on text only: what the server has sent stands apart, and is marked.
    assert!(!result["content"][0]["text"].as_str().unwrap().contains("goods"));
    assert_eq!(
        (&result["content"][1]["text"], &result["content"][1]["_meta"]["untrusted"]),
        (&"goods".into(), &true.into())
    );

    let again = agent.fetch(&shop.url("/now")).await;
    assert_eq!(
        (&again["payment"]["paid"], &again["credential"]),
        (&false.into(), &told["payment"]["payment_hash"])
    );
    assert_eq!(buyer.payments(), 1);

    let budget = agent.call("farebox_budget", json!({})).await;
    assert_eq!((&budget["policy"], &budget["budgets"][0]["spent_msat"]), (&"file".into(), &101_000.into()));
    let receipts = agent.call("farebox_receipts", json!({ "filter": { "state": "settled" } })).await;
    assert_eq!(receipts["receipts"][0]["payment_hash"], told["payment"]["receipt_id"]);
    assert_eq!((&receipts["receipts"][0]["path"], &receipts["next_cursor"]), (&"/now".into(), &json!(null)));
    let none = agent.call("farebox_receipts", json!({ "filter": { "state": "unknown" } })).await;
    assert_eq!(none["receipts"], json!([]));
    let held = agent.call("farebox_credentials", json!({ "filter": { "origin": shop.url("") } })).await;
    assert_eq!(held["credentials"][0]["state"], "in_use");
    agent.end(&buyer).await;
}

#[tokio::test]
async fn a_limit_of_the_agent_lowers_and_never_raises() {
    let buyer = Buyer::new().await;
    buyer.rules(&format!("{RULES}limits: {{ payment: 99sat }}\n"));
    let shop = Shop::with(&buyer.world.net, sells("goods")).await;
    let mut agent = Agent::start(&buyer, &[]).await;
    for sats in [0, 99, 100, 2_100_000_000_000_000_u64] {
        let told = agent.call("farebox_fetch", json!({ "url": shop.url("/"), "max_sats": sats })).await;
        assert_eq!(
            (&told["code"], &told["price_msat"]),
            (&"over_price_limit".into(), &100_000.into()),
            "{told}"
        );
        assert_eq!(told["money"], json!({ "state": "none" }));
    }
    assert_eq!(buyer.payments(), 0);
    // The rules of the next call are those that stand there by then.
    buyer.rules(RULES);
    let told = agent.call("farebox_fetch", json!({ "url": shop.url("/"), "max_sats": 99 })).await;
    assert_eq!(told["code"], "over_price_limit");
    let told = agent.call("farebox_fetch", json!({ "url": shop.url("/"), "max_sats": 100 })).await;
    assert_eq!((&told["status"], buyer.payments()), (&200.into(), 1), "{told}");
    agent.end(&buyer).await;
}

#[tokio::test]
async fn a_limit_of_the_month_is_told_as_the_sellers_word() {
    let buyer = Buyer::new().await;
    buyer.rules(RULES);
    // Everything that is paid for is used up, once it has been served.
    let used = parking_lot::Mutex::new(std::collections::HashSet::new());
    let shop = Shop::with(&buyer.world.net, move |till, asked| {
        let paid = till.paid(&asked.headers);
        if paid.is_some_and(|hash| used.lock().insert(hash)) {
            return till.serve("goods");
        }
        let mut answer = till.challenge("svc", 100);
        if paid.is_some() {
            answer.headers_mut().insert("farebox-code", "limit_reached".parse().unwrap());
            let limit = json!({ "capability": "read", "unit": "msat", "most": 9, "used": 8, "needed": 2, "ends_at": 4_102_444_800_u64 });
            *answer.body_mut() = json!({ "limit": limit }).to_string().into();
        }
        answer
    })
    .await;
    let mut agent = Agent::start(&buyer, &[]).await;
    let first = agent.call("farebox_fetch", json!({ "url": shop.url("/") })).await;
    assert_eq!(first["status"], 200, "{first}");
    let dear = agent.call("farebox_fetch", json!({ "url": shop.url("/"), "max_sats": 1 })).await;
    assert_eq!(
        (&dear["code"], &dear["server_code"]["untrusted"]),
        (&"over_price_limit".into(), &true.into())
    );
    let again = agent.call("farebox_fetch", json!({ "url": shop.url("/") })).await;
    assert_eq!(again["payment"]["paid"], true, "{again}");
    for told in [&dear["shortfalls"], &again["shortfalls"]] {
        let limit = &told["values"][0];
        assert_eq!(
            (&told["untrusted"], &limit["ends_at"]),
            (&true.into(), &4_102_444_800_u64.into()),
            "{told}"
        );
        assert_eq!(limit["payment_hash"], first["payment"]["payment_hash"]);
    }
    agent.end(&buyer).await;
}

#[tokio::test]
async fn rules_that_are_broken_exposed_or_gone_allow_nothing() {
    use std::os::unix::fs::PermissionsExt as _;
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, sells("goods")).await;
    let mut agent = Agent::start(&buyer, &[]).await;
    assert_eq!(agent.fetch(&shop.url("/")).await["status"], 200);
    let requests = shop.requests();
    let policy = buyer.policy();
    let breaks: [&dyn Fn(); 4] = [
        &|| buyer.rules("rules: [{ name: a, then: alow }]"),
        &|| std::fs::set_permissions(&policy, std::fs::Permissions::from_mode(0o666)).unwrap(),
        &|| std::fs::remove_file(&policy).unwrap(),
        &|| std::os::unix::fs::symlink("nowhere", &policy).unwrap(),
    ];
    for (number, breaks) in breaks.iter().enumerate() {
        breaks();
        // It doesn't even call a server on this machine, which the rules had allowed.
        let told = agent.fetch(&shop.url("/")).await;
        assert_eq!(
            (&told["code"], shop.requests()),
            (&"private_target".into(), requests),
            "{number}: {told}"
        );
        let budget = agent.call("farebox_budget", json!({})).await;
        assert_eq!(
            (&budget["policy"], &budget["payment_max_msat"]),
            (&"unreadable".into(), &0.into()),
            "{number}"
        );
    }
    std::fs::remove_file(&policy).unwrap();
    buyer.rules(RULES);
    assert_eq!(agent.fetch(&shop.url("/again")).await["status"], 200);
    agent.end(&buyer).await;
}

#[tokio::test]
async fn private_servers_are_called_only_where_the_person_has_allowed_it() {
    let buyer = Buyer::new().await;
    buyer.rules("otherwise: allow\n");
    let shop = Shop::with(&buyer.world.net, sells("goods")).await;
    let mut agent = Agent::start(&buyer, &[]).await;
    for tool in ["farebox_fetch", "farebox_quote"] {
        for url in [shop.url("/"), "http://169.254.169.254/latest".to_owned(), "http://[::1]:1/".to_owned()] {
            let told = agent.call(tool, json!({ "url": url })).await;
            assert_eq!(told["code"], "private_target", "{told}");
        }
    }
    assert_eq!(shop.requests(), 0);
    agent.end(&buyer).await;
}

#[tokio::test]
async fn a_person_agrees_elsewhere_and_the_agent_sees_it() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, sells("goods")).await;
    let secret = buyer.path("secret");
    let file = secret.to_str().unwrap();
    std::fs::remove_file(buyer.policy()).unwrap();
    assert!(buyer.run(&["policy", "init", "--secret-file", file]).await.status.success());
    let rules = std::fs::read_to_string(buyer.policy()).unwrap();
    buyer.rules(&format!("{rules}\nprivate-targets: allow\n"));

    let mut agent = Agent::start(&buyer, &["--label", "research"]).await;
    let told = agent.fetch(&shop.url("/now")).await;
    assert_eq!(told["code"], "approval_needed", "{told}");
    let id = told["approval"]["id"].as_str().unwrap().to_owned();
    assert_eq!(told["approval"]["command"], format!("farebox approve {id}"));
    let status = json!({ "id": id });
    assert_eq!(agent.call("farebox_approval_status", status.clone()).await["state"], "pending");

    let approve = buyer.run(&["approve", &id, "--secret-file", file]).await;
    assert!(approve.status.success(), "{approve:?}");
    let told = agent.call("farebox_approval_status", status.clone()).await;
    assert_eq!((&told["state"], &told["price_max_msat"]), (&"approved".into(), &100_000.into()));
    assert_eq!(agent.fetch(&shop.url("/now")).await["status"], 200);
    let told = agent.call("farebox_approval_status", status).await;
    assert!(told["state"] == "approved" && told["payment_hash"].is_string(), "used: {told}");

    let other = Shop::with(&buyer.world.net, sells("other")).await;
    let id = agent.fetch(&other.url("/")).await["approval"]["id"].as_str().unwrap().to_owned();
    assert!(buyer.run(&["approve", &id, "--deny"]).await.status.success());
    assert_eq!(agent.call("farebox_approval_status", json!({ "id": id })).await["state"], "denied");
    let told = agent.call("farebox_approval_status", json!({ "id": "ffffffffff" })).await;
    assert_eq!(told["code"], "no_such_approval");
    assert_eq!(buyer.payments(), 1);
    let all = agent.end(&buyer).await;
    assert!(!all.contains(SECRET));
}

#[tokio::test]
async fn of_thirty_two_calls_at_once_one_pays() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, sells("goods")).await;
    let mut agent = Agent::start(&buyer, &[]).await;
    let mut calls = Vec::new();
    for _ in 0..32 {
        calls.push(agent.begin_call("farebox_fetch", json!({ "url": shop.url("/") })).await);
    }
    let mut paid = 0;
    for call in calls {
        let told = agent.answer(call).await;
        let told = &told["result"]["structuredContent"];
        assert_eq!(told["body"]["data"], "goods", "{told}");
        paid += usize::from(told["payment"]["paid"] == true);
    }
    assert_eq!((paid, buyer.payments()), (1, 1));
    agent.end(&buyer).await;
}

#[tokio::test]
async fn a_call_that_is_cancelled_abandons_no_payment() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, sells("goods")).await;
    let mut agent = Agent::start(&buyer, &[]).await;
    let held = buyer.wallet.gate.acquire_many(1_000).await.unwrap();
    let call = agent.begin_call("farebox_fetch", json!({ "url": shop.url("/") })).await;
    let open = json!({ "filter": { "state": "unknown" } });
    let asked = || buyer.wallet.asked.load(std::sync::atomic::Ordering::SeqCst);
    while asked() == 0 {
        tokio::task::yield_now().await;
    }
    let params = json!({ "requestId": call, "reason": "changed my mind" });
    agent.send(&json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": params })).await;
    let under_way = agent.call("farebox_receipts", open).await;
    let payment = under_way["receipts"][0]["payment_hash"].as_str().unwrap().to_owned();
    drop(held);
    let told = agent.call("farebox_resume", json!({ "payment": payment })).await;
    assert_eq!((&told["payment"]["state"], buyer.payments()), (&"settled".into(), 1), "{told}");
    let told = agent.fetch(&shop.url("/")).await;
    assert_eq!((&told["body"]["data"], &told["payment"]["paid"]), (&"goods".into(), &false.into()));
    assert_eq!(buyer.payments(), 1);
    let told = agent.call("farebox_resume", json!({ "payment": "00".repeat(32) })).await;
    assert_eq!(told["code"], "no_such_payment");
    agent.end(&buyer).await;
}

#[tokio::test]
async fn the_same_call_under_one_key_is_made_once() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, |till, asked| {
        assert_eq!(asked.headers["idempotency-key"], "order-1");
        sells("goods")(till, asked)
    })
    .await;
    let mut agent = Agent::start(&buyer, &[]).await;
    let order = |body: &str| json!({ "url": shop.url("/"), "method": "POST", "body": body, "idempotency_key": "order-1" });
    let mut calls = Vec::new();
    for _ in 0..8 {
        calls.push(agent.begin_call("farebox_fetch", order("one")).await);
    }
    let mut told = Vec::new();
    for call in calls {
        told.push(agent.answer(call).await["result"].clone());
    }
    assert!(told.iter().all(|result| *result == told[0] && result["isError"] == false), "{told:?}");
    assert_eq!((shop.served(), buyer.payments()), (1, 1));
    assert_eq!(agent.call("farebox_fetch", order("two")).await["code"], "idempotency_conflict");
    agent.end(&buyer).await;
}

#[tokio::test]
async fn a_body_comes_whole_as_text_or_base64_or_file_and_is_never_cut() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, |till, asked| match (till.paid(&asked.headers), &*asked.path) {
        (None, _) => till.challenge("svc", 100),
        (Some(_), "/binary") => b"\xff\0\r\n".as_slice().into_response(),
        (Some(_), "/long") => "x".repeat(3_000_000).into_response(),
        (Some(_), "/longer") => "x".repeat(3_000_001).into_response(),
        (Some(_), _) => ().into_response(),
    })
    .await;
    std::fs::create_dir_all(buyer.path("files/below")).unwrap();
    let files = buyer.path("files");
    let mut agent =
        Agent::start(&buyer, &["--files", files.to_str().unwrap(), "--file-max", "3000000"]).await;
    let told = agent.fetch(&shop.url("/binary")).await;
    assert_eq!((&told["body"]["encoding"], &told["body"]["data"]), (&"base64".into(), &"/wANCg==".into()));

    let told = agent.fetch(&shop.url("/long")).await;
    assert_eq!((&told["code"], &told["body"]), (&"body_too_large".into(), &json!(null)), "{told}");
    let save = json!({ "url": shop.url("/long"), "save_to": "below/long.txt" });
    let told = agent.call("farebox_fetch", save.clone()).await;
    assert_eq!(told["body"], json!({ "untrusted": true, "bytes": 3_000_000, "file": "below/long.txt" }));
    assert_eq!(std::fs::metadata(files.join("below/long.txt")).unwrap().len(), 3_000_000);
    assert_eq!(agent.call("farebox_fetch", save).await["code"], "file_exists");
    let longer = json!({ "url": shop.url("/longer"), "save_to": "below/longer" });
    assert_eq!(agent.call("farebox_fetch", longer).await["code"], "body_too_large");
    assert_eq!((names(&files.join("below")), buyer.payments()), (vec!["long.txt".to_owned()], 1));
    agent.end(&buyer).await;

    let mut agent = Agent::start(&buyer, &[]).await;
    let told = agent.call("farebox_fetch", json!({ "url": shop.url("/"), "save_to": "a" })).await;
    assert_eq!(told["code"], "save_to_refused");
    agent.end(&buyer).await;
}

#[tokio::test]
async fn an_answer_that_repeats_the_credential_is_kept_back() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, |till, asked| match (till.paid(&asked.headers), &*asked.path) {
        (None, _) => till.challenge("svc", 100),
        (Some(_), "/body") => format!("you sent {:?}", asked.headers["authorization"]).into_response(),
        (Some(_), "/header") => {
            ([("x-echo", asked.headers["authorization"].clone())], "fine").into_response()
        }
        (Some(_), "/name") => {
            let preimage = asked.headers["authorization"].to_str().unwrap().rsplit_once(':').unwrap().1;
            ([(format!("x-{preimage}"), "1")], "fine").into_response()
        }
        (Some(_), "/cookie") => ([("set-cookie", "id=canary")], "fine").into_response(),
        (Some(_), _) => redirect(302, "/cookie"),
    })
    .await;
    let files = buyer.path("files");
    std::fs::create_dir(&files).unwrap();
    let mut agent = Agent::start(&buyer, &["--files", files.to_str().unwrap()]).await;
    let told = agent.fetch(&shop.url("/body")).await;
    assert_eq!(
        (&told["code"], &told["money"]["state"]),
        (&"credential_repeated".into(), &"spent".into()),
        "{told}"
    );
    let told = agent.call("farebox_fetch", json!({ "url": shop.url("/body"), "save_to": "a" })).await;
    assert_eq!(told["code"], "credential_repeated");
    assert_eq!(names(&files), [""; 0]);
    let told = agent.fetch(&shop.url("/header")).await;
    assert_eq!(
        (&told["headers"]["omitted"], &told["headers"]["values"]["x-echo"]),
        (&1.into(), &json!(null))
    );
    assert_eq!(agent.fetch(&shop.url("/name")).await["headers"]["omitted"], 1);
    assert_eq!(agent.fetch(&shop.url("/around")).await["body"]["data"], "fine");
    assert!(!agent.end(&buyer).await.contains("id=canary"));
}

#[tokio::test]
async fn a_server_that_repeats_the_credential_elsewhere_is_kept_back_too() {
    let buyer = Buyer::new().await;
    let other = Shop::with(&buyer.world.net, |_, _| "fine".into_response()).await;
    let (there, in_body) = (other.url("/"), other.url("/behind"));
    let shop = Shop::with(&buyer.world.net, move |till, asked| {
        let Some(_) = till.paid(&asked.headers) else { return till.challenge("svc", 100) };
        let shown = asked.headers["authorization"].to_str().unwrap();
        let preimage = shown.rsplit_once(':').unwrap().1;
        match &*asked.path {
            "/in-path" => redirect(302, &format!("{there}{preimage}")),
            _ => redirect(302, &in_body),
        }
    })
    .await;
    let mut agent = Agent::start(&buyer, &[]).await;
    for _ in 0..2 {
        let told = agent.fetch(&shop.url("/in-path")).await;
        assert_eq!(told["code"], "credential_repeated", "{told}");
    }
    assert_eq!(agent.fetch(&shop.url("/")).await["body"]["data"], "fine");
    let said = agent.end(&buyer).await;
    assert!(said.contains("fine"));
}
