//! `farebox get` as a program: what it prints where, how it ends, what it pays. The wallet door is the real one, the
//! wallet behind it a double that keeps books and moves no money.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

#[path = "get/flags.rs"]
mod flags;
#[path = "get/large.rs"]
mod large;
#[path = "get/resume.rs"]
mod resume;
#[path = "../../client/tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;

use farebox_lightning::clock::SystemClock;
use farebox_lightning::door::{self, DoorConfig};
use farebox_lightning::outgoing::{Outgoing, OutgoingConfig, sqlite::SqliteIntents};
use farebox_lightning::phoenixd::Secret;
use support::shop::{Asked, Till, status};
use support::{Mood, NoReceive, Shop, WalletDouble, World};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// A buyer with a wallet door of its own.
struct Buyer {
    world: World,
    wallet_url: String,
    _door: JoinSet<()>,
}

impl Buyer {
    async fn new() -> Self {
        Self::in_mood(Mood::Prompt).await
    }

    async fn in_mood(mood: Mood) -> Self {
        let world = World::new();
        let wallet = Arc::new(WalletDouble::new(world.net.clone()).in_mood(mood));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listen = listener.local_addr().unwrap();
        let intents = SqliteIntents::open(&world.directory.path().join("door.sqlite")).unwrap();
        let clock = Arc::new(SystemClock);
        let outgoing = Outgoing::new(wallet, Arc::new(intents), clock.clone(), OutgoingConfig::default());
        let config = DoorConfig::new(listen, Secret::new("password"));
        let router = door::router(Arc::new(NoReceive), outgoing, clock, config);
        let mut door = JoinSet::new();
        door.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { world, wallet_url: format!("http://{listen}"), _door: door }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.world.directory.path().join(name)
    }

    /// Runs `farebox get` with these arguments, and with a wallet.
    async fn get(&self, arguments: &[&str]) -> Output {
        self.run(arguments, &[("FAREBOX_WALLET_URL", &self.wallet_url)], b"").await
    }

    async fn run(&self, arguments: &[&str], environment: &[(&str, &str)], input: &[u8]) -> Output {
        self.farebox(&[&["get"], arguments].concat(), environment, input).await
    }

    async fn farebox(&self, arguments: &[&str], environment: &[(&str, &str)], input: &[u8]) -> Output {
        let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_farebox"))
            .args(arguments)
            .env_clear()
            .env("HOME", self.world.directory.path())
            .env("FAREBOX_WALLET_PASSWORD", "password")
            .env("NO_PROXY", "*")
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input).await.unwrap();
        drop(stdin);
        child.wait_with_output().await.unwrap()
    }

    fn payments(&self) -> usize {
        self.world.net.payments().len()
    }
}

fn exit(output: &Output) -> i32 {
    output.status.code().unwrap()
}

/// The line of JSON on standard error.
fn error(output: &Output) -> serde_json::Value {
    let text = String::from_utf8_lossy(&output.stderr);
    serde_json::from_str(text.lines().last().unwrap_or_default())
        .unwrap_or_else(|_| panic!("no JSON: {text}"))
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

fn sells(body: &'static str) -> impl Fn(&Till, &Asked) -> axum::response::Response {
    move |till, asked| match till.paid(&asked.headers) {
        Some(_) => till.serve(body),
        None => till.challenge("svc", 100),
    }
}

#[tokio::test]
async fn the_body_goes_to_standard_output_byte_for_byte_and_a_second_call_pays_nothing() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, sells("a\0b\r\nno newline at the end")).await;
    for _ in 0..2 {
        let output = buyer.get(&[&shop.url("/")]).await;
        assert_eq!(exit(&output), 0, "{output:?}");
        assert_eq!(output.stdout, b"a\0b\r\nno newline at the end");
    }
    assert_eq!(buyer.payments(), 1);
    assert!(buyer.path(".local/share/farebox/journal.sqlite").exists());
}

#[tokio::test]
async fn json_tells_what_was_paid_and_holds_the_body() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, sells("goods")).await;
    let told = json(&buyer.get(&["--json", &shop.url("/?key=hidden")]).await);
    assert_eq!(told["url"], shop.url("/"));
    assert_eq!((&told["status"], &told["body"], &told["paid"]), (&200.into(), &"goods".into(), &true.into()));
    assert_eq!(told["payment"]["amount_msat"], 100_000);
    assert_eq!(told["payment"]["service"], "svc");

    let again = json(&buyer.get(&["--json", &shop.url("/")]).await);
    assert_eq!((&again["paid"], &again["credential"]), (&false.into(), &told["payment"]["payment_hash"]));
}

#[tokio::test]
async fn a_file_appears_only_when_it_is_complete() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, sells("goods")).await;
    let file = buyer.path("out.bin");
    let output = buyer.get(&["-o", file.to_str().unwrap(), &shop.url("/")]).await;
    assert_eq!((exit(&output), output.stdout.len()), (0, 0), "{output:?}");
    assert_eq!(std::fs::read(&file).unwrap(), b"goods");

    let failing = Shop::with(&buyer.world.net, |_, _| status(500)).await;
    let output = buyer.get(&["--fail", "-o", file.to_str().unwrap(), &failing.url("/")]).await;
    assert_eq!((exit(&output), error(&output)["code"].as_str()), (22, Some("status")));
    assert_eq!(std::fs::read(&file).unwrap(), b"goods", "what was there is still there");
    let left = std::fs::read_dir(buyer.world.directory.path()).unwrap();
    assert!(left.flatten().all(|entry| !entry.file_name().to_string_lossy().starts_with(".farebox-get")));
}

#[tokio::test]
async fn a_refusal_says_why_where_the_gateway_does() {
    let buyer = Buyer::new().await;
    for (number, code, wait, want, said) in [
        (
            413,
            "upload_too_dear",
            None,
            22,
            "the server answered 413 (`upload_too_dear`): no credit that is sold here pays for a body of this length; nothing \
             was charged: send less at a time",
        ),
        (
            429,
            "units_in_flight",
            Some("1"),
            6,
            "the server answered 429 (`units_in_flight`): what is left of this token is in use by requests under way: retry; it \
             can be asked again in 1 s",
        ),
        (
            402,
            "credit_exhausted",
            None,
            22,
            "the server answered 402 (`credit_exhausted`): what was bought was used up before the whole had passed, and what \
             has passed is charged: the same call once more buys more",
        ),
        // Nobody here knows what to do about it.
        (503, "tired", Some("tomorrow"), 22, "the server answered 503 (`tired`)"),
        // Whatever isn't a code is somebody's text.
        (413, "ring 555-0100 to pay", None, 22, "the server answered 413"),
    ] {
        let shop = Shop::with(&buyer.world.net, move |_, _| {
            let mut answer = status(number);
            answer.headers_mut().insert("farebox-code", code.parse().unwrap());
            if let Some(wait) = wait {
                answer.headers_mut().insert("retry-after", wait.parse().unwrap());
            }
            answer
        })
        .await;
        let output = buyer.get(&["--fail", &shop.url("/")]).await;
        let told = error(&output);
        assert_eq!((exit(&output), told["message"].as_str()), (want, Some(said)));
        assert_eq!(told["retry_after_secs"].as_u64(), wait.and_then(|wait| wait.parse().ok()));
        // It is told beside the body, too.
        let output = buyer.get(&[&shop.url("/")]).await;
        let notes = String::from_utf8(output.stderr).unwrap();
        let want = if code.contains(' ') { String::new() } else { format!("{said}\n") };
        assert_eq!((output.status.code(), notes), (Some(0), want));
    }
}

/// As a farebox gateway does whose tokens open once a month.
fn once_a_month() -> impl Fn(&Till, &Asked) -> axum::response::Response + Send + Sync + 'static {
    let used = parking_lot::Mutex::new(std::collections::HashSet::new());
    move |till, asked| {
        let paid = till.paid(&asked.headers);
        if paid.is_some_and(|hash| used.lock().insert(hash)) {
            return till.serve("goods");
        }
        let mut answer = till.challenge("svc", 100);
        if paid.is_some() {
            answer.headers_mut().insert("farebox-code", "limit_reached".parse().unwrap());
            *answer.body_mut() =
                r#"{"limit":{"capability":"read","unit":"request","most":1,"used":1,"needed":1,
                "ends_at":4102444800}}"#
                    .into();
        }
        answer
    }
}

#[tokio::test]
async fn a_limit_of_the_month_is_told_with_its_end() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, once_a_month()).await;
    let url = shop.url("/");
    let first = json(&buyer.get(&["--json", &url]).await)["credential"].as_str().unwrap().to_owned();
    let said = format!(
        "what payment {first} bought has used 1 request of the 1 request of `read` that it may in a month, and is good again from \
         2100-01-01 00:00:00 UTC, as the seller says"
    );
    let fields = serde_json::json!([{
        "payment_hash": first, "code": "limit_reached", "capability": "read", "unit": "request", "most": 1, "used": 1,
        "needed": 1, "ends_at": 4_102_444_800_u64,
    }]);
    for limit in [&["--max-cost", "99sat"][..], &["--no-pay"]] {
        let told = error(&buyer.get(&[limit, &[url.as_str()]].concat()).await);
        assert!(told["message"].as_str().unwrap().ends_with(&said), "{told}");
        assert_eq!((&told["shortfalls"], &told["reason"]), (&fields, &"limit_reached".into()));
    }
    // Where another is bought, it is told why.
    let output = buyer.get(&[&url]).await;
    assert!(String::from_utf8(output.stderr).unwrap().starts_with(&format!("{said}\npaid ")));
    assert_eq!(buyer.payments(), 2);
}

#[tokio::test]
async fn a_file_that_cannot_be_written_is_found_out_before_anything_is_paid() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, sells("goods")).await;
    for file in [buyer.path("no/such/directory"), buyer.path("")] {
        let output = buyer.get(&["-o", file.to_str().unwrap(), &shop.url("/")]).await;
        assert_eq!((exit(&output), error(&output)["code"].as_str()), (1, Some("output")), "{output:?}");
    }
    assert_eq!((buyer.payments(), shop.requests()), (0, 0));
}

#[cfg(unix)]
#[tokio::test]
async fn a_file_that_only_its_owner_may_read_stays_so_when_it_is_replaced() {
    use std::os::unix::fs::PermissionsExt as _;
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, sells("goods")).await;
    let file = buyer.path("out.bin");
    std::fs::write(&file, "old").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(exit(&buyer.get(&["-o", file.to_str().unwrap(), &shop.url("/")]).await), 0);
    assert_eq!(std::fs::read(&file).unwrap(), b"goods");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_price_above_the_limit_is_refused_in_words_a_program_can_read() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, sells("goods")).await;
    let output = buyer.get(&["--max-cost", "99sat", &shop.url("/?key=hidden")]).await;
    assert_eq!(exit(&output), 7);
    let error = error(&output);
    assert_eq!(error["code"], "over_price_limit");
    assert_eq!(error["exit_code"], 7);
    assert_eq!(error["money"], serde_json::json!({ "state": "none" }));
    assert!(!error.to_string().contains("hidden"));
    assert_eq!(buyer.payments(), 0);
}

#[tokio::test]
async fn a_policy_is_kept_to_and_explains_itself() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, sells("goods")).await;
    let explained = |label: &'static str| {
        let url = shop.url("/now");
        let buyer = &buyer;
        async move { json(&buyer.farebox(&["policy", "check", "--label", label, &url], &[], b"").await) }
    };
    assert_eq!(explained("reader").await["no_file"], true);

    assert_eq!(exit(&buyer.farebox(&["policy", "init"], &[], b"").await), 0);
    let policy = buyer.path(".config/farebox/policy.yaml");
    assert_eq!(exit(&buyer.farebox(&["policy", "init"], &[], b"").await), 1, "a policy is never overwritten");
    // Nobody can be asked here, and the template asks.
    let output = buyer.get(&[&shop.url("/now")]).await;
    assert_eq!((exit(&output), error(&output)["code"].as_str()), (9, Some("approval_needed")));

    let rules = "
rules:
  - { name: readers, when: { label: [reader] }, then: allow, limits: { day: 150sat } }
  - { name: not there, when: { path: [/dear] }, then: deny }
";
    std::fs::write(&policy, rules).unwrap();
    let output = buyer.get(&["--label", "reader", &shop.url("/dear")]).await;
    assert_eq!((exit(&output), error(&output)["code"].as_str()), (7, Some("denied")));
    assert_eq!(exit(&buyer.get(&["--label", "reader", &shop.url("/now")]).await), 0);
    assert_eq!(buyer.payments(), 1);

    let explained = explained("reader").await;
    assert_eq!((&explained["verdict"], &explained["rule"]), (&"allow".into(), &"readers".into()));
    // 100 sat and a fee of 1 sat are spent.
    let of_rule =
        explained["budgets"].as_array().unwrap().iter().find(|row| row["rule"] == "readers").unwrap();
    assert_eq!((&of_rule["spent_msat"], &of_rule["left_msat"]), (&101_000.into(), &49_000.into()));

    std::fs::write(&policy, "rules: [{ name: a, then: alow }]").unwrap();
    let output = buyer.get(&[&shop.url("/now")]).await;
    assert_eq!(exit(&output), 2, "nothing is paid by a policy that isn't understood");
    assert!(
        error(&output)["message"].as_str().unwrap().contains("in line 1: unknown variant `alow`"),
        "{output:?}"
    );
}

#[tokio::test]
async fn a_person_agrees_with_a_secret_apart_from_the_program_that_buys() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, sells("goods")).await;
    let (secret, other) = (buyer.path("secret"), buyer.path("other"));
    std::fs::write(&secret, "correct horse\n").unwrap();
    std::fs::write(&other, "a wrong horse\n").unwrap();
    let file = secret.to_str().unwrap();
    assert_eq!(exit(&buyer.farebox(&["policy", "init", "--secret-file", file], &[], b"").await), 0);
    assert!(!std::fs::read_to_string(buyer.path(".config/farebox/policy.yaml")).unwrap().contains("horse"));

    let output = buyer.get(&[&shop.url("/now")]).await;
    let refused = error(&output);
    let id = refused["approval"].as_str().unwrap();
    assert_eq!((exit(&output), &refused["code"]), (9, &"approval_needed".into()));
    assert!(
        refused["message"].as_str().unwrap().ends_with(&format!("`farebox approve {id}`, then ask again"))
    );
    let waiting = json(&buyer.farebox(&["approve"], &[], b"").await);
    assert_eq!(waiting["waiting"][0]["id"], id);

    let wrong = ["approve", id, "--secret-file", other.to_str().unwrap()];
    assert_eq!(exit(&buyer.farebox(&wrong, &[], b"").await), 1);
    assert_eq!(exit(&buyer.farebox(&["approve", id], &[], b"correct horse\n").await), 1, "a pipe is nobody");
    assert_eq!(exit(&buyer.get(&[&shop.url("/now")]).await), 9);
    let agreed = json(&buyer.farebox(&["approve", id, "--secret-file", file], &[], b"").await);
    assert_eq!((&agreed["approved"], &agreed["price_max_msat"]), (&true.into(), &100_000.into()));
    assert_eq!(agreed["fee_max_msat"], waiting["waiting"][0]["fee_worst_msat"]);
    assert_eq!(buyer.get(&[&shop.url("/now")]).await.stdout, b"goods");
    assert_eq!(buyer.payments(), 1);

    let budget = json(&buyer.farebox(&["budget"], &[], b"").await);
    assert_eq!(budget["budgets"][0]["spent_msat"], 101_000);
    assert_eq!(budget["overruns"], serde_json::json!([]));
    let unknown = "00".repeat(32);
    assert_eq!(exit(&buyer.farebox(&["budget", "--acknowledge", &unknown], &[], b"").await), 1);
}

#[tokio::test]
async fn a_wallet_is_named_in_a_file_and_tells_what_it_can_do() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, sells("goods")).await;
    let wallet = buyer.path(".config/farebox/wallet.yaml");
    std::fs::create_dir_all(wallet.parent().unwrap()).unwrap();
    std::fs::write(buyer.path("word"), "password\n").unwrap();
    let settings = format!(
        "phoenixd: {{ url: '{}', password: {{ file: {} }} }}\n",
        buyer.wallet_url,
        buyer.path("word").display()
    );
    std::fs::write(&wallet, settings).unwrap();
    let mut checked = json(&buyer.farebox(&["wallet", "check"], &[], b"").await);
    assert_eq!((&checked["kind"], &checked["network"]), (&"phoenixd".into(), &"regtest".into()));
    assert_eq!(checked["returns_preimages"], "unknown");
    let output = buyer.farebox(&["get", &shop.url("/now")], &[], b"").await;
    assert_eq!((exit(&output), buyer.payments()), (0, 1), "{output:?}");
    checked = json(&buyer.farebox(&["wallet", "check"], &[], b"").await);
    assert_eq!(checked["returns_preimages"], "yes");

    // A flag counts before a variable, whichever is which.
    let elsewhere = [("FAREBOX_WALLET_URL", "http://127.0.0.1:1")];
    let flag = ["wallet", "check", "--wallet", wallet.to_str().unwrap()];
    assert_eq!(exit(&buyer.farebox(&flag, &elsewhere, b"").await), 0);
    let flag = ["wallet", "check", "--wallet-url", &buyer.wallet_url];
    assert_eq!(exit(&buyer.farebox(&flag, &[("FAREBOX_WALLET", "/nowhere")], b"").await), 0);

    std::fs::write(&wallet, "phoenix: { url: x }").unwrap();
    let output = buyer.farebox(&["wallet", "check"], &[], b"").await;
    assert_eq!(exit(&output), 1);
    // What was bought needs no wallet; what is to be bought says what is wrong with it.
    assert_eq!(buyer.farebox(&["get", &shop.url("/now")], &[], b"").await.stdout, b"goods");
    let both = ["wallet", "check", "--wallet", "x", "--wallet-url", "http://127.0.0.1:1"];
    let output = buyer.farebox(&both, &[], b"").await;
    assert!(
        exit(&output) == 1 && String::from_utf8_lossy(&output.stderr).contains("two wallets"),
        "{output:?}"
    );
    std::fs::remove_file(&wallet).unwrap();
    assert_eq!(exit(&buyer.farebox(&["wallet", "check"], &[], b"").await), 1);
}

#[tokio::test]
async fn what_was_bought_is_listed_taken_elsewhere_and_given_up() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, sells("goods")).await;
    assert_eq!(exit(&buyer.get(&[&shop.url("/now?secret=1")]).await), 0);
    let list = json(&buyer.farebox(&["purchases", "list"], &[], b"").await);
    let bought = &list["purchases"][0];
    assert_eq!((&bought["state"], &bought["path"]), (&"honoured".into(), &"/now".into()));
    let hash = bought["payment_hash"].as_str().unwrap();
    assert_eq!(json(&buyer.farebox(&["purchases", "show", hash], &[], b"").await)["amount_msat"], 100_000);
    assert_eq!(
        json(&buyer.farebox(&["purchases", "list", "--unserved"], &[], b"").await)["purchases"],
        serde_json::json!([])
    );

    let exported = buyer.farebox(&["tokens", "export", hash], &[], b"").await;
    let credential = String::from_utf8(exported.stdout).unwrap();
    let answer = reqwest::Client::new()
        .get(shop.url("/now"))
        .header("authorization", credential.trim())
        .send()
        .await
        .unwrap();
    assert_eq!(answer.text().await.unwrap(), "goods");
    let (_, preimage) = credential.trim().rsplit_once(':').unwrap();
    for told in [&["tokens", "list"][..], &["tokens", "show", hash], &["--human", "tokens", "list", "--all"]]
    {
        let output = buyer.farebox(told, &[], b"").await;
        assert!(exit(&output) == 0 && !String::from_utf8(output.stdout).unwrap().contains(preimage));
    }

    assert_eq!(exit(&buyer.farebox(&["tokens", "forget", hash], &[], b"").await), 0);
    assert_eq!(exit(&buyer.farebox(&["tokens", "forget", hash], &[], b"").await), 1);
    let list = json(&buyer.farebox(&["tokens", "list"], &[], b"").await);
    assert_eq!(list["tokens"], serde_json::json!([]));
    assert_eq!(exit(&buyer.get(&[&shop.url("/now")]).await), 0);
    assert_eq!(buyer.payments(), 2, "what was given up is not shown");
    assert_eq!(exit(&buyer.farebox(&["purchases", "write-off", hash], &[], b"").await), 1);
    let resumed = ["purchases", "resume", "--wallet-url", &buyer.wallet_url];
    assert_eq!(json(&buyer.farebox(&resumed, &[], b"").await)["more"], 0);
}

#[tokio::test]
async fn a_dry_run_tells_the_price_and_buys_nothing() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, sells("goods")).await;
    let output = buyer.get(&["--dry-run", &shop.url("/")]).await;
    assert_eq!(exit(&output), 10);
    let told = json(&output);
    assert_eq!((&told["would_pay"], &told["offer"]["amount_msat"]), (&true.into(), &100_000.into()));
    assert_eq!((buyer.payments(), shop.served()), (0, 0));
    // A wallet that can't be reached is no hindrance: it isn't used.
    let environment = [("FAREBOX_WALLET_URL", "http://127.0.0.1:1")];
    assert_eq!(exit(&buyer.run(&["--dry-run", &shop.url("/")], &environment, b"").await), 10);
}

#[tokio::test]
async fn no_pay_uses_what_has_been_bought_and_buys_nothing() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, sells("goods")).await;
    let output = buyer.get(&["--no-pay", &shop.url("/")]).await;
    assert_eq!((exit(&output), error(&output)["code"].as_str()), (7, Some("no_wallet")));
    let message = error(&output)["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with("--no-pay: this costs ") && !message.contains("wallet"), "{message}");
    assert_eq!(buyer.payments(), 0);
    assert_eq!(exit(&buyer.get(&[&shop.url("/")]).await), 0);
    assert_eq!(buyer.get(&["--no-pay", &shop.url("/")]).await.stdout, b"goods");
}

#[tokio::test]
async fn a_wrong_address_of_the_wallet_is_told_with_where_it_came_from() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, sells("goods")).await;
    let url = shop.url("/");
    let variable = |value| [("FAREBOX_WALLET_URL", value)];
    for (arguments, variables, named) in [
        (&[url.as_str()][..], &variable("nonsense")[..], "in FAREBOX_WALLET_URL: "),
        (&["--wallet-url", "nonsense", &url], &variable("http://127.0.0.1:1"), "in --wallet-url: "),
        (&[url.as_str()], &variable(""), "; name one with --wallet or --wallet-url"),
    ] {
        let output = buyer.run(arguments, variables, b"").await;
        assert_eq!(exit(&output), 7);
        assert!(error(&output)["message"].as_str().unwrap().contains(named), "{output:?}");
    }
}

#[tokio::test]
async fn a_wallet_that_is_away_is_told_only_when_there_is_something_to_pay() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, sells("goods")).await;
    let environment = [("FAREBOX_WALLET_URL", "http://127.0.0.1:1")];
    let url = shop.url("/");
    let output = buyer.run(&[&url], &environment, b"").await;
    assert_eq!(exit(&output), 7);
    assert!(error(&output)["message"].as_str().unwrap().contains("127.0.0.1:1"), "{output:?}");
    assert_eq!(exit(&buyer.get(&[&url]).await), 0);
    assert_eq!(buyer.run(&[&url], &environment, b"").await.stdout, b"goods");
}

#[tokio::test]
async fn a_body_comes_from_standard_input_and_headers_keep_their_commas() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, |till, asked| {
        assert_eq!((asked.method.as_str(), &asked.body[..]), ("POST", &b"\xff\0question"[..]));
        assert_eq!(asked.headers["accept"], "a, b");
        sells("answer")(till, asked)
    })
    .await;
    let environment = [("FAREBOX_WALLET_URL", buyer.wallet_url.as_str())];
    let output =
        buyer.run(&["-d", "-", "-H", "Accept: a, b", &shop.url("/")], &environment, b"\xff\0question").await;
    assert_eq!(output.stdout, b"answer", "{output:?}");
}

#[tokio::test]
async fn a_payment_that_fails_ends_with_three_and_costs_nothing() {
    let buyer = Buyer::in_mood(Mood::Stranded).await;
    let shop = Shop::with(&buyer.world.net, sells("goods")).await;
    let output = buyer.get(&[&shop.url("/")]).await;
    assert_eq!((exit(&output), &error(&output)["money"]["state"]), (3, &"none".into()), "{output:?}");
}

#[tokio::test]
async fn a_credential_that_is_refused_ends_with_five_and_is_not_bought_twice() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, |till, _| till.challenge("svc", 100)).await;
    for _ in 0..2 {
        let output = buyer.get(&[&shop.url("/")]).await;
        assert_eq!((exit(&output), error(&output)["code"].as_str()), (5, Some("credential_rejected")));
    }
    assert_eq!(buyer.payments(), 1);
}

#[tokio::test]
async fn nothing_that_is_printed_holds_a_secret() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, sells("goods")).await;
    let environment = [("FAREBOX_WALLET_URL", buyer.wallet_url.as_str()), ("FAREBOX_LOG", "trace")];
    let output = buyer.run(&["--json", &shop.url("/")], &environment, b"").await;
    assert_eq!(exit(&output), 0, "{output:?}");
    let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    for preimage in preimages(buyer.world.net.path()) {
        assert!(!printed.contains(&preimage), "a preimage in {printed}");
    }
}

fn preimages(net: &Path) -> Vec<String> {
    let files = std::fs::read_dir(net.join("invoices")).unwrap();
    files.flatten().map(|file| std::fs::read_to_string(file.path()).unwrap()).collect()
}

#[tokio::test]
async fn nonsense_on_the_command_line_ends_with_two() {
    let buyer = Buyer::new().await;
    for arguments in [
        &["ftp://example.com/"][..],
        &["--max-cost", "100", "http://127.0.0.1/"],
        &["-H", "nonsense", "http://127.0.0.1/"],
        &[],
    ] {
        assert_eq!(exit(&buyer.get(arguments).await), 2, "{arguments:?}");
    }
}
