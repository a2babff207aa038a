//! An agent: speaks JSON-RPC over the standard input and output of `farebox mcp`, and keeps all that it was told.

use std::{collections::HashMap, path::PathBuf, process::Stdio, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout},
    time::timeout,
};

use crate::door::{Buyer, PASSWORD, SECRET};

/// How long anything may take. It takes milliseconds.
pub(crate) const SOON: Duration = Duration::from_secs(60);

pub(crate) struct Agent {
    pub(crate) child: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
    next: u64,
    early: HashMap<u64, Value>,
    said: String,
    log: PathBuf,
}

impl Agent {
    /// Starts `farebox mcp` with these arguments and begins a session.
    pub(crate) async fn start(buyer: &Buyer, arguments: &[&str]) -> Self {
        let mut agent = Self::connect(buyer, buyer.farebox(&[&["mcp"], arguments].concat()));
        agent.begin().await;
        agent
    }

    pub(crate) fn connect(buyer: &Buyer, mut command: tokio::process::Command) -> Self {
        let mut random = [0; 8];
        getrandom::fill(&mut random).unwrap();
        let log = buyer.path(&format!("log-{}", hex::encode(random)));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, input, output, next: 0, early: HashMap::new(), said: String::new(), log }
    }

    pub(crate) async fn begin(&mut self) {
        let client = json!({ "name": "a test", "version": "1" });
        let hello = json!({ "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client });
        let id = self.ask("initialize", hello).await;
        let told = self.answer(id).await;
        assert_eq!(told["result"]["serverInfo"]["name"], "farebox", "{told}");
        self.send(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await;
    }

    pub(crate) async fn send(&mut self, message: &Value) {
        self.send_raw(&message.to_string()).await;
    }

    pub(crate) async fn send_raw(&mut self, line: &str) {
        let input = self.input.as_mut().unwrap();
        input.write_all(line.as_bytes()).await.unwrap();
        input.write_all(b"\n").await.unwrap();
        input.flush().await.unwrap();
    }

    pub(crate) async fn ask(&mut self, method: &str, params: Value) -> u64 {
        self.next += 1;
        let id = self.next;
        self.send(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })).await;
        id
    }

    /// Calls a tool and leaves the answer for later.
    pub(crate) async fn begin_call(&mut self, tool: &str, arguments: Value) -> u64 {
        self.ask("tools/call", json!({ "name": tool, "arguments": arguments })).await
    }

    pub(crate) async fn answer(&mut self, id: u64) -> Value {
        loop {
            if let Some(answer) = self.early.remove(&id) {
                return answer;
            }
            let line = timeout(SOON, self.output.next_line()).await.expect("no answer").unwrap();
            let line = line.unwrap_or_else(|| panic!("it has ended: {}", self.log()));
            self.said.push_str(&line);
            let message: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line}"));
            if let Some(id) = message["id"].as_u64() {
                self.early.insert(id, message);
            }
        }
    }

    /// The next answer to any call that has not been taken yet.
    pub(crate) async fn any_answer(&mut self) -> Value {
        if let Some(&id) = self.early.keys().next() {
            return self.answer(id).await;
        }
        let line = timeout(SOON, self.output.next_line()).await.expect("no answer").unwrap().unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// Calls a tool: the whole result.
    pub(crate) async fn result(&mut self, tool: &str, arguments: Value) -> Value {
        let id = self.begin_call(tool, arguments).await;
        let mut answer = self.answer(id).await;
        assert!(answer["error"].is_null(), "{answer}");
        answer["result"].take()
    }

    /// Calls a tool: its fields.
    pub(crate) async fn call(&mut self, tool: &str, arguments: Value) -> Value {
        self.result(tool, arguments).await["structuredContent"].take()
    }

    pub(crate) async fn fetch(&mut self, url: &str) -> Value {
        self.call("farebox_fetch", json!({ "url": url })).await
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Ends the session: all that was said and logged, in which there is no secret.
    pub(crate) async fn end(mut self, buyer: &Buyer) -> String {
        drop(self.input.take());
        while let Some(line) = timeout(SOON, self.output.next_line()).await.expect("no end").unwrap() {
            self.said.push_str(&line);
        }
        let status = timeout(SOON, self.child.wait()).await.expect("it doesn't end").unwrap();
        assert!(status.success(), "{}", self.log());
        let all = format!("{}\n{}", self.said, self.log());
        for secret in buyer.preimages().iter().map(String::as_str).chain([PASSWORD, SECRET]) {
            assert!(!all.contains(secret), "a secret in {all}");
        }
        all
    }
}
