//! The farebox program as a real process, which ends with its owner.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, ChildStdout, Command, Stdio},
};

use serde_json::Value;

/// A running farebox that tells what happens in JSON lines on standard output.
pub struct Program {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Program {
    /// Starts a command that has its arguments and environment already.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    /// The next line, as JSON. Panics with whatever else is printed if the program ends instead.
    pub fn event(&mut self) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| {
            let ended = self.child.try_wait();
            panic!("expected a line of JSON, got `{line}` ({error}); the program: {ended:?}")
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it as `kill -9` does: nothing is flushed or said.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end, as Ctrl-C does, and waits: its exit code and the rest of what it said.
    pub fn interrupt(mut self) -> (Option<i32>, String) {
        let asked = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().unwrap();
        assert!(asked.success());
        self.end()
    }

    /// Waits until it ends by itself: its exit code and the rest of what it said.
    pub fn end(&mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Already ended in most tests; a test that failed halfway must leave nothing behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
