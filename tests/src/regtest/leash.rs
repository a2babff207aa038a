//! A program that cannot outlive the test that started it, whether that returns, panics or is killed.
//!
//! Destructors alone don't do: what all tests of a process share is never dropped, and a killed process drops nothing. So a
//! small shell stands between, reading from a pipe that only we hold: when the pipe closes, however it came to that, the
//! shell kills the program.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

/// Runs its arguments with all output on standard error, tells the process id, then waits for the name of a signal, for
/// the end of the pipe, or for the end of the program.
const LEASH: &str = r#"
exec 3<&0
"$@" </dev/null >&2 3<&- & child=$!
echo "$child"
exec >&-
{ read -r how <&3 || how=KILL; kill -s "$how" "$child"; } 2>/dev/null & reader=$!
wait "$child"; code=$?
kill "$reader" 2>/dev/null
exit "$code"
"#;

/// Removes a directory at the end of the pipe. Programs that are just being killed may still write to it. It outlives
/// what ends them all: Ctrl-C goes to everybody at the terminal, and so does the signal of a `timeout`.
const BROOM: &str =
    r#"trap '' INT TERM HUP; read -r _; until rm -rf "$1" 2>/dev/null && [ ! -e "$1" ]; do :; done"#;

/// A running program.
pub(super) struct Leash {
    shell: Child,
    /// Ours alone: Rust hands no descriptor on to other children.
    pipe: Option<ChildStdin>,
    pid: u32,
}

impl Leash {
    /// Starts a program, in `home`, with its output added to the file `log`.
    pub(super) fn start(program: &Path, arguments: &[String], home: &Path, log: &Path) -> Self {
        let log = File::options().create(true).append(true).open(log).unwrap();
        let mut shell = shell(LEASH);
        shell.arg(program).args(arguments).current_dir(home).env("HOME", home);
        let mut shell = shell.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let pipe = shell.stdin.take();
        let mut line = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { shell, pipe, pid: line.trim().parse().unwrap() }
    }

    /// The program's process id.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether the program has ended by itself.
    pub(super) fn has_ended(&mut self) -> bool {
        self.shell.try_wait().unwrap().is_some()
    }

    /// Asks the program to end, and waits until it has.
    pub(super) async fn end(mut self) {
        // Refused only where the program has ended already.
        let _ = self.pipe.take().unwrap().write_all(b"TERM\n");
        tokio::task::spawn_blocking(move || self.shell.wait()).await.unwrap().unwrap();
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        drop(self.pipe.take());
        let _ = self.shell.wait();
    }
}

/// A temporary directory that goes when its owner does, even one that is killed.
pub(super) struct Den {
    path: PathBuf,
    broom: Child,
}

impl Den {
    /// Makes one.
    pub(super) fn new() -> Self {
        let path = tempfile::Builder::new().prefix("regtest").tempdir().unwrap().keep();
        let broom = shell(BROOM).arg(&path).spawn().unwrap();
        Self { path, broom }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Den {
    fn drop(&mut self) {
        drop(self.broom.stdin.take());
        let _ = self.broom.wait();
    }
}

fn shell(script: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "leash"]).stdin(Stdio::piped());
    shell
}

/// The end of a log, under a heading, for whoever has to find out why a test failed.
pub(super) fn tail(log: &Path) -> String {
    const LINES: usize = 40;
    let text = fs::read_to_string(log).unwrap_or_else(|error| error.to_string());
    let lines: Vec<_> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(LINES)..].join("\n");
    format!("--- the last lines of {}\n{last}\n", log.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(pid: u32) -> bool {
        Path::new("/proc").join(pid.to_string()).exists()
    }

    fn start(den: &Den, script: &str) -> Leash {
        let arguments = ["-c".to_owned(), script.to_owned()];
        Leash::start(Path::new("sh"), &arguments, den.path(), &den.path().join("log"))
    }

    #[test]
    fn a_program_ends_with_its_owner_and_its_directory_too() {
        let den = Den::new();
        let mut leash = start(&den, "echo begun; exec sleep 1000");
        let pid = leash.pid();
        assert!(runs(pid) && !leash.has_ended());
        while !tail(&den.path().join("log")).contains("begun") {}
        drop(leash);
        assert!(!runs(pid));
        let path = den.path().to_owned();
        drop(den);
        assert!(!path.exists());
    }

    #[test]
    fn the_directory_goes_even_if_everybody_is_told_to_end() {
        let den = Den::new();
        // Before it has said so it would end like any other: the bits of HUP, INT and TERM.
        let status = format!("/proc/{}/status", den.broom.id());
        let ignored = || {
            let status = fs::read_to_string(&status).unwrap();
            let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
            u64::from_str_radix(mask, 16).unwrap()
        };
        while ignored() & 0x4003 != 0x4003 {}
        for signal in ["-INT", "-TERM", "-HUP"] {
            let told = Command::new("kill").args([signal, &den.broom.id().to_string()]).status();
            assert!(told.unwrap().success());
        }
        let path = den.path().to_owned();
        drop(den);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_program_that_is_asked_to_end_may_say_goodbye() {
        let den = Den::new();
        let leash = start(&den, "trap 'echo goodbye; exit' TERM; echo begun; while :; do sleep 0.01; done");
        let log = den.path().join("log");
        while !tail(&log).contains("begun") {}
        leash.end().await;
        assert!(tail(&log).contains("goodbye"));
    }

    #[test]
    fn a_program_that_ends_by_itself_is_noticed() {
        let den = Den::new();
        let mut leash = start(&den, "echo 'address already in use'; exit 1");
        while !leash.has_ended() {}
        assert!(tail(&den.path().join("log")).contains("address already in use"));
    }
}
