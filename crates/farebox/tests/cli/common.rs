//! Running the real binary.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

/// What a run of `farebox` left behind.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The command, in an environment that holds nothing of the person who runs the tests.
pub(crate) fn farebox(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_farebox"));
    command.current_dir(directory).env_clear().env("HOME", directory).stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub(crate) fn run(directory: &Path, args: &[&str], variables: &[(&str, &str)]) -> Ran {
    farebox(directory).args(args).envs(variables.iter().copied()).output().unwrap().into()
}

/// Runs it to its end with something to read.
pub(crate) fn run_with_input(directory: &Path, args: &[&str], input: &str) -> Ran {
    let mut child = farebox(directory)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap().into()
}
