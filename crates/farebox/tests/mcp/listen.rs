//! The other ways in: the socket and HTTP.

use std::{
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::Stdio,
};

use serde_json::{Value, json};
use tokio::{process::Child, time::timeout};

use crate::{
    agent::{Agent, SOON},
    door::{Buyer, names, sells},
    support::Shop,
};

/// A process that waits for agents, and its log.
struct Listening {
    child: Child,
    log: std::path::PathBuf,
}

impl Listening {
    async fn start(buyer: &Buyer, arguments: &[&str]) -> Self {
        let log = buyer.path("listening");
        let child = buyer
            .farebox(&[&["mcp"], arguments].concat())
            .env("FAREBOX_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut listening = Self { child, log };
        listening.said("waiting for agents").await;
        listening
    }

    /// The line of the log with this in it.
    async fn said(&mut self, what: &str) -> Value {
        let line = async {
            loop {
                let log = std::fs::read_to_string(&self.log).unwrap();
                if let Some(line) = log.lines().find(|line| line.contains(what)) {
                    return serde_json::from_str(line).unwrap();
                }
                assert!(self.child.try_wait().unwrap().is_none(), "it has ended: {log}");
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, line).await.unwrap()
    }

    async fn end(mut self) -> String {
        let pid = rustix::process::Pid::from_raw(self.child.id().unwrap().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(timeout(SOON, self.child.wait()).await.expect("it doesn't end").unwrap().success());
        std::fs::read_to_string(&self.log).unwrap()
    }
}

/// An agent at the socket, which has nothing but the path.
async fn at(buyer: &Buyer, socket: &str) -> Agent {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_farebox"));
    command.args(["mcp", "--connect", socket]).env_clear().kill_on_drop(true);
    let mut agent = Agent::connect(buyer, command);
    agent.begin().await;
    agent
}

#[tokio::test]
async fn agents_at_the_socket_share_what_is_bought_and_need_nothing_of_their_own() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, sells("goods")).await;
    let path = buyer.path("mcp.sock");
    let socket = format!("unix:{}", path.display());
    let mut listening = Listening::start(&buyer, &["--listen", &socket]).await;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    let (mut one, mut other) = (at(&buyer, &socket).await, at(&buyer, &socket).await);
    assert_eq!(one.fetch(&shop.url("/")).await["payment"]["paid"], true);
    assert_eq!(other.fetch(&shop.url("/")).await["payment"]["paid"], false);
    assert_eq!(buyer.payments(), 1);
    let uid = u64::from(rustix::process::geteuid().as_raw());
    assert_eq!(listening.said("an agent has connected\"").await["uid"], uid);
    let notes = other.call("farebox_budget", json!({})).await["notes"].to_string();
    assert!(notes.contains("as the same user") || notes.contains("as root"), "{notes}");
    // The bridge hands over what was asked before its input ends.
    one.begin_call("farebox_budget", json!({})).await;
    one.end(&buyer).await;

    let second = buyer.run(&["mcp", "--listen", &socket]).await;
    assert_eq!(second.status.code(), Some(1), "the socket is taken: {second:?}");
    other.end(&buyer).await;
    listening.child.kill().await.unwrap();
    assert!(path.exists(), "killed, it leaves its socket behind");
    let listening = Listening::start(&buyer, &["--listen", &socket]).await;
    listening.end().await;
    assert!(!path.exists());

    std::fs::write(&path, "precious").unwrap();
    assert_eq!(buyer.run(&["mcp", "--listen", &socket]).await.status.code(), Some(1));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    assert_eq!(buyer.run(&["mcp", "--connect", &socket]).await.status.code(), Some(1));
}

#[tokio::test]
async fn a_socket_for_a_group_does_not_stand_where_the_group_could_put_another() {
    let buyer = Buyer::new().await;
    let directory = buyer.path("shared");
    std::fs::create_dir(&directory).unwrap();
    let mode = |mode| std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(mode)).unwrap();
    let group = std::fs::metadata(&directory).unwrap().gid().to_string();
    let socket = format!("unix:{}", directory.join("mcp.sock").display());
    let arguments = ["--listen", &socket, "--group", &group];
    mode(0o770);
    let refused = timeout(SOON, buyer.run(&[&["mcp"], &arguments[..]].concat())).await.unwrap();
    assert!(String::from_utf8(refused.stderr).unwrap().contains("chmod g-w"), "{:?}", refused.status);
    assert_eq!(names(&directory), [""; 0]);
    mode(0o750);
    let listening = Listening::start(&buyer, &arguments).await;
    let facts = std::fs::metadata(directory.join("mcp.sock")).unwrap();
    assert_eq!((facts.mode() & 0o777, facts.gid().to_string()), (0o660, group));
    listening.end().await;
}

/// Asks over HTTP: the status, and the body.
async fn post(url: &str, headers: &[(&str, &str)], message: &Value) -> (u16, String) {
    let mut request = reqwest::Client::new()
        .post(url)
        .header("accept", "application/json, text/event-stream")
        .header("content-type", "application/json")
        .body(message.to_string());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test]
async fn over_http_only_who_knows_the_secret_and_no_web_page_gets_in() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, sells("goods")).await;
    let mut listening = Listening::start(&buyer, &["--listen", "127.0.0.1:0"]).await;
    let told = listening.said("waiting for agents").await;
    let (url, file) = (told["url"].as_str().unwrap().to_owned(), told["secret"].as_str().unwrap().to_owned());
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let secret = std::fs::read_to_string(Path::new(&file)).unwrap().trim().to_owned();
    let bearer = format!("Bearer {secret}");
    let call = json!({
        "jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": { "name": "farebox_fetch", "arguments": { "url": shop.url("/") } },
    });
    let (status, body) = post(&url, &[("authorization", &bearer)], &call).await;
    assert!(status == 200 && body.contains("goods"), "{status}: {body}");

    let wrong = format!("Bearer {}", "0".repeat(secret.len()));
    for (headers, wanted) in [
        (vec![], 401),
        (vec![("authorization", "Bearer")], 401),
        (vec![("authorization", "Bearer ")], 401),
        (vec![("authorization", &*wrong)], 401),
        (vec![("authorization", &*secret)], 401),
        (vec![("authorization", &bearer), ("host", "rebound.example")], 403),
        (vec![("authorization", &bearer), ("origin", "https://web.example")], 403),
        (vec![("authorization", &bearer), ("origin", "http://127.0.0.1")], 403),
        (vec![("authorization", &bearer), ("origin", "null")], 403),
    ] {
        let (status, body) = post(&url, &headers, &call).await;
        assert_eq!(status, wanted, "{headers:?}: {body}");
    }
    let long = json!({ "jsonrpc": "2.0", "id": 1, "method": "x".repeat(5 << 20) });
    assert_eq!(post(&url, &[("authorization", &bearer)], &long).await.0, 413);
    assert_eq!(buyer.payments(), 1);
    assert!(!listening.end().await.contains(&secret), "the secret is in its file only");
}

#[tokio::test]
async fn it_listens_to_this_machine_only_unless_told() {
    let buyer = Buyer::new().await;
    for (arguments, why) in [
        (&["--listen", "0.0.0.0:0"][..], "--allow-remote"),
        (&["--listen", "0.0.0.0:0", "--allow-remote"], "--host"),
        (&["--listen", "nowhere"], "unix:PATH"),
        (&["--connect", "127.0.0.1:1"], "unix:PATH"),
        (&["--group", "no-such-group"], "no-such-group"),
        (&["--files", "/no/such/directory"], "/no/such/directory"),
    ] {
        let output = buyer.run(&[&["mcp"], arguments].concat()).await;
        assert!(!output.status.success(), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(why), "{output:?}");
    }
    let secret = buyer.path("exposed");
    std::fs::write(&secret, "0".repeat(64)).unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o644)).unwrap();
    let output =
        buyer.run(&["mcp", "--listen", "127.0.0.1:0", "--secret-file", secret.to_str().unwrap()]).await;
    assert!(String::from_utf8_lossy(&output.stderr).contains("chmod 600"), "{output:?}");
}
