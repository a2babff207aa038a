//! Ways to break the disk of a running process, and to mend it; and the process in which that is done, since what it does to
//! itself would happen to the tests beside it too. The gateway's tests use it as well.
//!
//! The process is the test `the_child` of the module that this one lies in.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Names the books to another process.
const BOOKS: &str = "FAREBOX_TEST_BOOKS";
/// Tells the child what becomes of its disk.
const FAULT: &str = "FAREBOX_TEST_FAULT";

/// Runs the child, whose disk will fail in this way, and passes on what it tells. Its temporary files lie where its books do.
pub(crate) fn run(fault: &str) {
    let dir = tempfile::tempdir().unwrap();
    let mut child = match fault {
        // Who writes beyond the limit is killed, unless it was ignored before the program began.
        "too large" => begin("sh", &["-c", "trap '' XFSZ; exec \"$@\"", "sh"]),
        "full" => {
            let mount = "mount -t tmpfs -o size=3m none \"$TMPDIR\" && exec \"$@\"";
            begin("unshare", &["--map-root-user", "--mount", "sh", "-c", mount, "sh"])
        }
        _ => begin("env", &[]),
    };
    child
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &beside("the_child"), "--ignored", "--nocapture"])
        .env("TMPDIR", dir.path())
        .env(BOOKS, dir.path().join("books.sqlite"))
        .env(FAULT, fault);
    let done = child.output().unwrap();
    let told = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{told}{}", String::from_utf8_lossy(&done.stderr));
    println!("{}", told.lines().find(|line| line.starts_with(fault)).expect("the child has run"));
}

/// A program that starts what is behind its arguments.
fn begin(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// What the child is to do, and where its books may lie.
pub(crate) fn told() -> (String, PathBuf) {
    let told = |name| std::env::var(name).expect("started by its test");
    (told(FAULT), told(BOOKS).into())
}

/// The whole name of a test in the module around this one.
fn beside(test: &str) -> String {
    let (_, here) = module_path!().split_once("::").expect("it is a module of a program");
    format!("{}{test}", here.strip_suffix("broken").expect("it is called so"))
}

/// What becomes of the disk, until it is dropped.
pub(crate) enum Broken {
    TooLarge(Rlimit),
    Held(Child),
    Full(PathBuf),
    Unchangeable(Vec<PathBuf>),
}

impl Broken {
    /// Breaks it, in the way that is called so.
    pub(crate) fn begin(fault: &str, books: &Path) -> Self {
        match fault {
            "too large" => {
                let before = getrlimit(Resource::Fsize);
                // Less than the log is long already.
                setrlimit(Resource::Fsize, Rlimit { current: Some(4_096), ..before }).unwrap();
                Self::TooLarge(before)
            }
            "held" => {
                let mut child = Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", &beside("broken::the_holder"), "--ignored", "--nocapture"])
                    .env(BOOKS, books)
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()
                    .unwrap();
                let told = child.stdout.take().unwrap();
                let mut lines = BufReader::new(told).lines();
                assert!(lines.any(|line| line.unwrap() == "held"));
                Self::Held(child)
            }
            "full" => {
                let filler = books.with_file_name("filler");
                let mut file = File::create(&filler).unwrap();
                for size in [4_096, 1] {
                    while file.write(&[7; 4_096][..size]).is_ok_and(|written| written > 0) {}
                }
                Self::Full(filler)
            }
            "unchangeable" => {
                let files = ["", "-wal"].map(|end| PathBuf::from(format!("{}{end}", books.display())));
                change(&files, "+i");
                Self::Unchangeable(files.into())
            }
            other => panic!("{other}"),
        }
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        match self {
            Self::TooLarge(before) => setrlimit(Resource::Fsize, *before).unwrap(),
            Self::Held(child) => {
                drop(child.stdin.take());
                child.wait().unwrap();
            }
            Self::Full(filler) => fs::remove_file(filler).unwrap(),
            Self::Unchangeable(files) => change(files, "-i"),
        }
    }
}

fn change(files: &[PathBuf], how: &str) {
    assert!(Command::new("chattr").arg(how).args(files).status().unwrap().success());
}

#[test]
#[ignore = "the process that holds the books in the test above, until nobody tells it anything any more"]
fn the_holder() {
    let books = rusqlite::Connection::open(std::env::var_os(BOOKS).expect("started by its test")).unwrap();
    books.busy_timeout(Duration::from_secs(60)).unwrap();
    books.execute_batch("BEGIN EXCLUSIVE").unwrap();
    println!("\nheld");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}
