//! `farebox serve` and `farebox node` as processes: what they print, what they answer, how they end.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use farebox_protocol::{
    Credential, Identifier, Macaroon, MintSecret, Msat, Network, Offer, Preimage, Sale, Scheme, Terms,
    TokenId,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::common::{farebox, run};

/// A running farebox, ended with the test.
struct Running {
    child: Child,
    /// What it said when it was ready.
    listening: Value,
}

impl Running {
    /// Starts it and waits until it says where it listens.
    fn start(directory: &Path, args: &[&str]) -> Self {
        let log = fs::File::create(directory.join("log")).unwrap();
        let mut child = farebox(directory).args(args).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let listening = serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("{line}{}", fs::read_to_string(directory.join("log")).unwrap()));
        Self { child, listening }
    }

    fn addr(&self) -> SocketAddr {
        self.listening["listen"][0].as_str().unwrap().parse().unwrap()
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args(["-s", signal, &self.child.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// Asks it to stop and tells its exit code.
    fn stop(mut self, signal: &str) -> i32 {
        self.signal(signal);
        self.child.wait().unwrap().code().unwrap_or(-1)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Most have ended already, and that they have is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An answer, as the bytes that came.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

fn get(addr: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_lowercase(), body: body.to_owned() }
}

/// An API that answers every request with the request's own head. It ends with the process.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = String::new();
            for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                match line {
                    Ok(line) if !line.is_empty() => head.push_str(&(line + "\n")),
                    _ => break,
                }
            }
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{head}",
                head.len()
            );
            // A gateway that has hung up is its own business.
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    addr
}

/// An address at which nobody listens: not one that was free a moment ago, which another test may have by now.
fn nobody() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 1))
}

/// A directory with a configuration whose node is down.
fn configured() -> TempDir {
    let directory = TempDir::new().unwrap();
    let text = format!(
        "\
network: regtest
listen: [127.0.0.1:0]
ops: 127.0.0.1:0
lightning:
  phoenixd:
    url: http://{}
    password:
      text: hunter2
limits:
  workers: 1
services:
  - name: weather
    upstream: http://{}
    price: 10sat
    free-paths: [/health]
    headers:
      x-api-key:
        file: api-key
",
        nobody(),
        upstream()
    );
    fs::write(directory.path().join("farebox.yaml"), text).unwrap();
    fs::write(directory.path().join("api-key"), "the operator's\n").unwrap();
    directory
}

/// What a buyer would hold who has paid the gateway in this directory.
fn bought(directory: &Path) -> Credential {
    let text = fs::read_to_string(directory.join("farebox-state/mint-secret")).unwrap();
    let secret = MintSecret::from_hex(text.trim()).unwrap();
    let preimage = Preimage::from_bytes([7; 32]);
    let identifier =
        Identifier { payment_hash: preimage.payment_hash(), token_id: TokenId::from_bytes([9; 32]) };
    let terms = Terms { offer: Offer::Forever, price: Msat::new(10_000) };
    let service = "weather".parse().unwrap();
    let sale = Sale {
        service,
        tier: 0,
        terms,
        valid_until: None,
        capabilities: None,
        monthly: Vec::new(),
        bound: None,
        replaces: None,
    };
    let key = secret.root_key(Network::Regtest, &identifier);
    let token = Macaroon::mint(&key, &identifier, &sale.caveats().unwrap());
    Credential { tokens: vec![token], preimage }
}

#[test]
fn a_gateway_whose_node_is_down_serves_what_was_paid_for_and_sells_nothing() {
    let directory = configured();
    let running = Running::start(directory.path(), &["serve"]);
    let addr = running.addr();

    let unpaid = get(addr, "/forecast", &[]);
    assert_eq!(unpaid.status, 503, "{}", unpaid.body);
    assert!(unpaid.head.contains("retry-after: "), "{}", unpaid.head);

    let free = get(addr, "/health", &[]);
    assert_eq!(free.status, 200);
    assert!(free.body.contains("x-api-key: the operator's\n"), "{}", free.body);

    let header = bought(directory.path()).header_value(Scheme::L402);
    let paid = get(addr, "/forecast", &[("authorization", &header)]);
    assert_eq!(paid.status, 200, "{}", paid.body);
    assert!(!paid.body.to_lowercase().contains("authorization"), "{}", paid.body);

    assert_eq!(running.stop("TERM"), 0);
    let log = fs::read_to_string(directory.path().join("log")).unwrap();
    assert!(!log.contains("hunter2") && !log.contains("0707"), "{log}");
}

#[test]
fn health_is_where_it_says() {
    let directory = configured();
    let running = Running::start(directory.path(), &["serve"]);
    let ops = running.listening["ops"].as_str().unwrap().strip_prefix("http://").unwrap();
    assert_eq!(get(ops.parse().unwrap(), "/healthz", &[]).status, 200);
    // Alive, but with a node that is down not ready to sell.
    assert_eq!(get(ops.parse().unwrap(), "/readyz", &[]).status, 503);
    assert_eq!(running.stop("INT"), 0);
}

#[test]
fn a_hang_up_ends_nothing_and_the_log_says_what_to_do() {
    let directory = configured();
    let running = Running::start(directory.path(), &["serve"]);
    running.signal("HUP");
    // Each look costs a request, which shows besides that it goes on serving.
    let told = (0..2_000).any(|_| {
        assert_eq!(get(running.addr(), "/health", &[]).status, 200);
        fs::read_to_string(directory.path().join("log")).unwrap().contains("SIGHUP is passed over")
    });
    assert!(told);
    assert_eq!(running.stop("TERM"), 0);
}

#[test]
fn receipts_are_signed_where_that_is_configured_and_with_the_key_of_the_command_line() {
    const KEY: &str = "/.well-known/farebox/receipt-key";
    let directory = configured();
    let running = Running::start(directory.path(), &["serve"]);
    let none = get(running.addr(), KEY, &[]);
    assert_eq!(none.status, 404, "{}", none.body);
    assert!(none.head.contains("farebox-code: receipts_not_offered"), "{}", none.head);
    assert_eq!(running.stop("TERM"), 0);
    let kept = directory.path().join("farebox-state/receipt-key");
    assert!(!kept.exists(), "nobody has asked for a key");

    let file = directory.path().join("farebox.yaml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text}receipts:\n  seller: Weather Inc.\n")).unwrap();
    let running = Running::start(directory.path(), &["serve"]);
    let published = get(running.addr(), KEY, &[]);
    assert_eq!(published.status, 200, "{}", published.body);
    let own = run(directory.path(), &["--human", "receipt", "key"], &[]);
    assert_eq!(own.stdout, published.body);
    assert_eq!(running.stop("TERM"), 0);
    let secret = fs::read_to_string(&kept).unwrap();
    let log = fs::read_to_string(directory.path().join("log")).unwrap();
    assert!(log.contains(own.stdout.trim()) && !log.contains(secret.trim()), "{log}");
}

#[test]
fn freebies_that_are_kept_are_still_used_up_after_a_restart() {
    let directory = configured();
    let file = directory.path().join("farebox.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let given =
        text.replace("    price: 10sat\n", "    price: 10sat\n    freebie: {requests: 1, keep: true}\n");
    fs::write(&file, given).unwrap();
    let running = Running::start(directory.path(), &["serve"]);
    let first = get(running.addr(), "/forecast", &[]);
    assert_eq!(first.status, 200, "{}", first.body);
    assert!(first.head.contains("farebox-code: freebie"), "{}", first.head);
    // The node is down, so that what isn't given can't be bought.
    assert_eq!(get(running.addr(), "/forecast", &[("x-forwarded-for", "203.0.113.9")]).status, 503);
    assert_eq!(running.stop("TERM"), 0);
    let again = Running::start(directory.path(), &["serve"]);
    assert_eq!(get(again.addr(), "/forecast", &[]).status, 503);
    assert_eq!(again.stop("TERM"), 0);
}

#[test]
fn a_token_revoked_while_the_gateway_runs_opens_nothing_any_more() {
    let directory = configured();
    let running = Running::start(directory.path(), &["serve"]);
    let credential = bought(directory.path());
    let header = credential.header_value(Scheme::L402);
    let asks = || get(running.addr(), "/forecast", &[("authorization", &header)]).status;
    assert_eq!(asks(), 200);

    let hash = credential.tokens[0].identifier().unwrap().hash().to_string();
    let ran = run(directory.path(), &["token", "revoke", &hash, "--reason", "leaked"], &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains(&hash));
    // The gateway reads the list of the revoked once a second; this ends as soon as it has.
    while asks() == 200 {
        thread::yield_now();
    }
    assert_eq!(running.stop("TERM"), 0);
}

#[test]
fn a_payment_hash_is_not_taken_for_an_identifier_hash() {
    let directory = configured();
    let running = Running::start(directory.path(), &["serve"]);
    let credential = bought(directory.path());
    let header = credential.header_value(Scheme::L402);
    let asks = || get(running.addr(), "/forecast", &[("authorization", &header)]).status;
    assert_eq!(asks(), 200);
    // A gateway writes what it has in hand into its books before it ends.
    assert_eq!(running.stop("TERM"), 0);

    let identifier = credential.tokens[0].identifier().unwrap();
    let (payment, right) = (identifier.payment_hash.to_string(), identifier.hash().to_string());
    let revoke = |hash: &str| run(directory.path(), &["token", "revoke", hash], &[]);
    let refused = revoke(&payment);
    assert_eq!((refused.code, refused.stdout.as_str()), (1, ""));
    assert!(refused.stderr.contains("is a payment hash") && refused.stderr.contains(&right), "{refused:?}");

    let known = revoke(&right);
    assert_eq!((known.code, known.stderr.as_str()), (0, ""));

    // What was never presented is in no books, and may be in the wrong hands all the same.
    let unknown = "ab".repeat(32);
    let noted = revoke(&unknown);
    assert_eq!(noted.code, 0, "{}", noted.stderr);
    assert!(noted.stdout.contains(&unknown) && noted.stderr.contains("not the payment hash"), "{noted:?}");
}

#[test]
fn revoking_in_a_state_directory_that_is_not_there_says_so() {
    let directory = TempDir::new().unwrap();
    let hash = "ab".repeat(32);
    let ran = run(directory.path(), &["token", "revoke", &hash, "--state-dir", "nowhere"], &[]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("there is no state directory `nowhere`"), "{}", ran.stderr);
}

#[test]
fn an_address_that_is_taken_is_told_with_how_to_choose_another() {
    let directory = configured();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let file = directory.path().join("farebox.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let listen = format!("listen: [{}]", taken.local_addr().unwrap());
    fs::write(&file, text.replace("listen: [127.0.0.1:0]", &listen)).unwrap();
    let ran = run(directory.path(), &["serve"], &[]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("choose another with --listen or --ops"), "{}", ran.stderr);
}

#[test]
fn what_is_in_the_state_directory_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = configured();
    let running = Running::start(directory.path(), &["serve"]);
    let state = directory.path().join("farebox-state");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    for entry in fs::read_dir(&state).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path) & 0o077, 0, "{}", path.display());
    }
    assert_eq!(running.stop("TERM"), 0);
}

#[test]
fn a_second_gateway_on_the_same_books_does_not_start() {
    let directory = configured();
    let running = Running::start(directory.path(), &["serve"]);
    let ran = run(directory.path(), &["serve"], &[]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("another running process"), "{}", ran.stderr);
    assert_eq!(running.stop("TERM"), 0);
}

#[test]
fn other_mint_secrets_than_before_stop_the_start_unless_the_tokens_are_abandoned() {
    let directory = configured();
    assert_eq!(Running::start(directory.path(), &["serve"]).stop("TERM"), 0);
    fs::remove_file(directory.path().join("farebox-state/mint-secret")).unwrap();
    let ran = run(directory.path(), &["serve"], &[]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("--abandon-sold-tokens"), "{}", ran.stderr);
    let abandoned = Running::start(directory.path(), &["serve", "--abandon-sold-tokens"]);
    assert_eq!(abandoned.stop("TERM"), 0);
}

#[test]
fn one_service_is_served_from_flags() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("password"), "hunter2").unwrap();
    let (upstream, node) = (format!("http://{}", upstream()), format!("http://{}", nobody()));
    let running = Running::start(
        directory.path(),
        &[
            &[
                "serve",
                "--upstream",
                &upstream,
                "--price",
                "10sat",
                "--duration",
                "1h",
                "--network",
                "regtest",
            ][..],
            &["--phoenixd", &node, "--phoenixd-password-file", "password"],
            &["--listen", "127.0.0.1:0", "--ops", "off"],
        ]
        .concat(),
    );
    assert_eq!(running.listening["ops"], Value::Null);
    assert_eq!(running.listening["services"][0]["price_msat"], 10_000);
    assert_eq!(get(running.addr(), "/", &[]).status, 503);
    assert_eq!(running.stop("TERM"), 0);
}

#[test]
fn requests_and_credit_are_sold_from_flags() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("password"), "hunter2").unwrap();
    let node = format!("http://{}", nobody());
    for (flags, want) in [
        (&["--requests", "1000"][..], "10 sat buys 1000 requests"),
        (&["--credit", "--cost", "500msat"], "10 sat buys as much credit"),
    ] {
        let base = ["serve", "--upstream", "http://127.0.0.1:1", "--price", "10sat", "--network", "regtest"];
        let node = ["--phoenixd", node.as_str(), "--phoenixd-password-file", "password"];
        let listen = ["--listen", "127.0.0.1:0", "--ops", "off"];
        let running = Running::start(directory.path(), &[&base[..], flags, &node, &listen].concat());
        assert_eq!(running.listening["services"][0]["price"], want);
        assert_eq!(running.stop("TERM"), 0);
    }
}

#[test]
fn flags_that_are_missing_or_wrong_are_explained() {
    let here = TempDir::new().unwrap();
    let base = ["serve", "--upstream", "http://127.0.0.1:1"];
    for (args, want) in [
        (&["serve"][..], "there is nothing to serve"),
        (&base[..], "--phoenixd URL --phoenixd-password-file FILE"),
        (&["--network", "regtest"], "--phoenixd URL --phoenixd-password-file FILE"),
        (
            &["--network", "regtets", "--esplora", "http://127.0.0.1:1"],
            "--network: `regtets` is not a network",
        ),
        (&["--network", "regtest", "--esplora", "http://127.0.0.1:1"], "--price: the price is missing"),
        (&["--network", "regtest", "--esplora", "nonsense", "--price", "1sat"], "--esplora: "),
        (
            &["--network", "regtest", "--esplora", "http://127.0.0.1:1", "--price", "10"],
            "--price: `10` is not an amount",
        ),
        (
            &["--network", "regtest", "--esplora", "http://127.0.0.1:1", "--price", "1sat", "--name", "a:b"],
            "--name: `a:b` cannot name a service",
        ),
        (&["--price", "10sat", "--credit"], "--cost <AMOUNT>"),
        (&["--price", "10sat", "--cost", "1sat"], "--credit"),
        (&["--price", "10sat", "--requests", "5", "--duration", "1h"], "cannot be used with"),
        (
            &[
                "--network",
                "regtest",
                "--esplora",
                "http://127.0.0.1:1",
                "--price",
                "1sat",
                "--requests",
                "0",
            ],
            "--requests: found `0`; write a whole number above zero",
        ),
        (
            &[
                "--network",
                "regtest",
                "--esplora",
                "http://127.0.0.1:1",
                "--price",
                "10sat",
                "--credit",
                "--cost",
                "1",
            ],
            "--cost: `1` is not an amount",
        ),
    ] {
        let args = if args[0] == "serve" { args.to_vec() } else { [&base, args].concat() };
        let ran = run(here.path(), &args, &[]);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(want), "{args:?}: {}", ran.stderr);
    }
}

/// An upstream and a price are enough where a phoenixd runs. It doesn't answer here, which stops new sales only.
#[test]
fn the_phoenixd_of_this_machine_is_found_by_its_own_configuration() {
    let home = TempDir::new().unwrap();
    fs::create_dir(home.path().join(".phoenix")).unwrap();
    let conf = "http-password=never-shown-0123456789\nhttp-bind-port=1\n";
    fs::write(home.path().join(".phoenix/phoenix.conf"), conf).unwrap();
    let args =
        ["--upstream", "http://127.0.0.1:1", "--price", "10sat", "--listen", "127.0.0.1:0", "--ops", "off"];
    let running = Running::start(home.path(), &[&["serve"], &args[..]].concat());
    assert_eq!(running.listening["services"][0]["price"], "10 sat buys a pass for ever");
    assert_eq!(get(running.addr(), "/", &[]).status, 503);
    assert_eq!(running.stop("TERM"), 0);
}

#[test]
fn a_port_that_is_taken_is_named() {
    let directory = configured();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let file = directory.path().join("farebox.yaml");
    let text =
        fs::read_to_string(&file).unwrap().replace("listen: [127.0.0.1:0]", &format!("listen: [\"{addr}\"]"));
    fs::write(&file, text).unwrap();
    let ran = run(directory.path(), &["serve"], &[]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(ran.stderr.contains(&addr.to_string()), "{}", ran.stderr);
}

/// The embedded node, whose chain can't be reached.
#[cfg(feature = "embedded")]
#[test]
fn a_node_opens_its_wallet_to_its_password_although_the_chain_is_down() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = TempDir::new().unwrap();
    let chain = format!("http://{}", nobody());
    let args = ["node", "--network", "regtest", "--esplora", &chain, "--listen", "127.0.0.1:0"];
    let running = Running::start(directory.path(), &args);
    let url = running.listening["url"].as_str().unwrap().strip_prefix("http://").unwrap();
    let addr: SocketAddr = url.parse().unwrap();
    let file = directory.path().join("farebox-node/http-password");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let password = fs::read_to_string(&file).unwrap();

    assert_eq!(get(addr, "/getinfo", &[]).status, 401);
    let basic = format!("Basic {}", base64(&format!(":{}", password.trim())));
    let host = addr.to_string();
    let info = get(addr, "/getinfo", &[("authorization", &basic), ("x-for", &host)]);
    assert_eq!(info.status, 200, "{}", info.body);
    assert!(info.body.contains(running.listening["node_id"].as_str().unwrap()));
    assert_eq!(running.stop("TERM"), 0);

    // The next start keeps password and identity.
    let again = Running::start(directory.path(), &args);
    assert_eq!(fs::read_to_string(&file).unwrap(), password);
    assert!(info.body.contains(again.listening["node_id"].as_str().unwrap()));
    assert_eq!(again.stop("INT"), 0);
}

/// Standard base64; the tests need it once.
#[cfg(feature = "embedded")]
fn base64(text: &str) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = String::new();
    for chunk in text.as_bytes().chunks(3) {
        let word =
            chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..=chunk.len() {
            encoded.push(char::from(ALPHABET[(word >> (18 - 6 * digit) & 63) as usize]));
        }
        encoded.extend(std::iter::repeat_n('=', 3 - chunk.len()));
    }
    encoded
}

#[test]
fn every_address_of_a_service_is_told_when_it_is_served() {
    let directory = TempDir::new().unwrap();
    let text = format!(
        "\
network: regtest
listen: [127.0.0.1:0]
ops: off
lightning: {{ phoenixd: {{ url: \"http://{}\", password: {{ text: hunter2 }} }} }}
services:
  - name: weather
    upstream: {{ url: [\"http://127.0.0.1:1\", \"http://127.0.0.1:2\"] }}
    price: 10sat
",
        nobody()
    );
    fs::write(directory.path().join("farebox.yaml"), text).unwrap();
    let running = Running::start(directory.path(), &["serve"]);
    assert_eq!(running.listening["services"][0]["upstream"], "http://127.0.0.1:1, http://127.0.0.1:2");
    assert_eq!(running.stop("TERM"), 0);
}
