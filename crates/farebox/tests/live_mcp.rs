//! Agents that are not ours, and agents that run as another user: the official MCP SDK buys over real Lightning from the demo,
//! and a second uid gets through the socket what it is allowed, and nothing past it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use farebox_tests::{Program, Scripts};
use serde_json::Value;
use tempfile::TempDir;

const FAREBOX: &str = env!("CARGO_BIN_EXE_farebox");

/// The user that the agent runs as: `nobody` on every system that there is, and nobody's in any case.
const AGENT: u32 = 65_534;

const RULES: &str = "\
private-targets: allow
otherwise: allow
rules:
  - { name: not there, when: { path: [/dear] }, then: deny }
";

/// The demo, which sells over a simulated chain, and a person who buys there.
struct Market {
    home: TempDir,
    ready: Value,
    _demo: Program,
}

impl Market {
    fn open() -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut demo =
            Program::start(Command::new(FAREBOX).args(["demo", "--json"]).env("TMPDIR", home.path()));
        let ready = demo.event();
        // The story's own purchase: its node has then paid before.
        let (_, _, answer) = (demo.event(), demo.event(), demo.event());
        assert_eq!(answer["status"], 200);
        let market = Self { home, ready, _demo: demo };
        market.begin_anew();
        market
    }

    /// Rules, and nothing bought yet.
    fn begin_anew(&self) {
        _ = fs::remove_dir_all(self.path(".local"));
        let policy = self.path(".config/farebox/policy.yaml");
        fs::create_dir_all(policy.parent().unwrap()).unwrap();
        fs::write(policy, RULES).unwrap();
    }

    fn text(&self, key: &str) -> &str {
        self.ready[key].as_str().unwrap()
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.text("gateway"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// What the person's commands find in their environment.
    fn of_the_person<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("HOME", self.home.path())
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_DATA_HOME")
            .env("FAREBOX_WALLET_URL", self.text("wallet_url"))
            .env("FAREBOX_WALLET_PASSWORD", self.text("wallet_password"))
            .env("FAREBOX_LOG", "info")
    }

    /// `farebox mcp --listen` with these arguments: the process, and the line of its log that says that it waits.
    fn listen(&self, arguments: &[&str]) -> (Listening, Value) {
        let log = self.path("listening");
        let mut command = Command::new(FAREBOX);
        self.of_the_person(command.arg("mcp").args(arguments));
        command.stdin(Stdio::null()).stderr(fs::File::create(&log).unwrap());
        let mut child = Listening(command.spawn().unwrap());
        loop {
            let text = fs::read_to_string(&log).unwrap();
            if let Some(line) = text.lines().find(|line| line.contains("waiting for agents")) {
                return (child, serde_json::from_str(line).unwrap());
            }
            assert!(child.0.try_wait().unwrap().is_none(), "it has ended: {text}");
            std::thread::yield_now();
        }
    }
}

struct Listening(std::process::Child);

impl Drop for Listening {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// What an agent must have seen that was allowed to buy at one address and not at the other.
fn check(told: &Value) {
    println!("{told:#}");
    let tools = told["tools"].as_object().unwrap();
    assert_eq!(
        (tools.len(), &tools["farebox_quote"], &tools["farebox_fetch"]),
        (7, &true.into(), &false.into())
    );
    assert_eq!((&told["quote"]["status"], &told["quote"]["would_pay"]), (&402.into(), &true.into()));
    let price = &told["quote"]["offers"][0]["amount_msat"];
    let refused = &told["too_dear_for_the_agent"];
    assert_eq!((&refused["code"], &refused["price_msat"]), (&"over_price_limit".into(), price));
    let payment = &told["fetched"]["payment"];
    assert_eq!((&payment["paid"], &payment["amount_msat"]), (&true.into(), price));
    let body = &told["fetched"]["body"];
    assert!(body["untrusted"] == true && body["data"].as_str().unwrap().contains("sunrise"), "{body}");
    assert_eq!(told["again"]["payment"]["paid"], false);
    assert_eq!((&told["forbidden"]["code"], &told["forbidden"]["failed"]), (&"denied".into(), &true.into()));
    assert_eq!(
        told["confirmed"]["code"], "invalid_arguments",
        "nothing that an agent says counts as consent"
    );
    assert_eq!(told["receipts"]["receipts"].as_array().unwrap().len(), 1);
    let spent = told["budget"]["budgets"][0]["spent_msat"].as_u64().unwrap();
    assert!(spent >= price.as_u64().unwrap());
}

#[test]
#[ignore = "live: needs Python"]
fn the_official_sdk_buys_within_the_policy_and_not_beyond_it() {
    let scripts = Scripts::install("mcp");
    let market = Market::open();
    let (url, dear) = (market.url("/v1/sun?lat=52.52&lon=13.40"), market.url("/dear"));

    let mut agent = scripts.command("agent.py");
    agent.args(["stdio", &url, &dear, FAREBOX, "mcp"]);
    check(&json(&output(market.of_the_person(&mut agent))));

    market.begin_anew();
    let (_listening, told) = market.listen(&["--listen", "127.0.0.1:0"]);
    let mut agent = scripts.command("agent.py");
    agent.args(["http", &url, &dear, told["url"].as_str().unwrap(), told["secret"].as_str().unwrap()]);
    check(&json(&output(&mut agent)));
}

#[test]
#[ignore = "live: needs root, and Python"]
fn an_agent_that_runs_as_another_user_gets_what_is_allowed_and_nothing_else() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this starts programs as another user, which only root can; it was not run"
    );
    let scripts = Scripts::install("mcp");
    let market = Market::open();
    // What two users share is a directory that both can reach; the home is the person's alone.
    fs::set_permissions(market.home.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let shared = tempfile::tempdir().unwrap();
    fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = shared.path().join("farebox");
    fs::copy(FAREBOX, &program).unwrap();
    let files = shared.path().join("files");
    fs::create_dir(&files).unwrap();
    fs::set_permissions(&files, fs::Permissions::from_mode(0o755)).unwrap();
    let socket = format!("unix:{}", shared.path().join("mcp.sock").display());
    let group = AGENT.to_string();
    let (_listening, _) =
        market.listen(&["--listen", &socket, "--group", &group, "--files", files.to_str().unwrap()]);

    let as_agent = |program: &Path, arguments: &[&str]| {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .env("HOME", "/nonexistent")
            .current_dir("/")
            .uid(AGENT)
            .gid(AGENT);
        output(&mut command)
    };

    // It gets what it is allowed, by the SDK, through the bridge that it starts itself.
    let (url, dear) = (market.url("/v1/sun?lat=52.52&lon=13.40"), market.url("/dear"));
    let mut bridge = scripts.command("agent.py");
    bridge.args(["stdio", &url, &dear]);
    bridge.args(["setpriv", "--reuid", &group, "--regid", &group, "--clear-groups", "--"]);
    bridge.arg(&program).args(["mcp", "--connect", &socket]);
    let told = json(&output(&mut bridge));
    check(&told);
    assert_eq!(told["budget"]["notes"], serde_json::json!([]), "nothing to warn of: it is another user");
    let log = fs::read_to_string(market.path("listening")).unwrap();
    assert!(log.contains(&format!("\"uid\":{AGENT}")), "{log}");

    // The same program, told where the person's things are, gets at none of them.
    let (policy, journal) =
        (market.path(".config/farebox/policy.yaml"), market.path(".local/share/farebox/journal.sqlite"));
    assert!(journal.exists());
    let (policy, journal) = (policy.to_str().unwrap(), journal.to_str().unwrap());
    let person_files = ["--policy", policy, "--journal", journal];
    let before = fs::read(policy).unwrap();
    for arguments in [
        &["approve"][..],
        &["approve", "0000000000", "--secret-file", "/dev/null"],
        &["purchases", "list"],
        &["tokens", "list"],
        &["budget"],
        &["policy", "init"],
        &["policy", "check", &url],
        &["mcp", "--listen", &socket],
    ] {
        let refused = as_agent(&program, &[arguments, &person_files].concat());
        assert!(!refused.status.success(), "{arguments:?}: {refused:?}");
        println!("{arguments:?}: {}", String::from_utf8_lossy(&refused.stderr).trim());
    }
    for (tool, arguments) in [
        ("cat", &[policy][..]),
        ("cat", &[journal]),
        ("cp", &["/dev/null", policy]),
        ("rm", &["-f", policy]),
        ("mv", &["-f", "/dev/null", policy]),
        ("rm", &["-rf", market.home.path().to_str().unwrap()]),
        ("rm", &["-f", shared.path().join("mcp.sock").to_str().unwrap()]),
    ] {
        let refused = as_agent(Path::new(tool), arguments);
        assert!(!refused.status.success(), "{tool} {arguments:?}: {refused:?}");
    }
    assert_eq!(fs::read(policy).unwrap(), before);

    // A third user isn't even let in.
    let mut stranger = Command::new(&program);
    stranger.args(["mcp", "--connect", &socket]).env_clear().uid(AGENT - 1).gid(AGENT - 1);
    assert!(!output(&mut stranger).status.success());
}
