//! Ways to break the disk of a running process, and to mend it. The gateway's tests use it too.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Names the books to another process.
pub(crate) const BOOKS: &str = "FAREBOX_TEST_BOOKS";

/// What becomes of the disk, until it is dropped.
pub(crate) enum Broken {
    TooLarge(Rlimit),
    Held(Child),
    Full(PathBuf),
    Unchangeable(Vec<PathBuf>),
}

impl Broken {
    /// Breaks it, in the way that is called so. The holder is the name of a test: see below.
    pub(crate) fn begin(fault: &str, books: &Path, holder: &str) -> Self {
        match fault {
            "too large" => {
                let before = getrlimit(Resource::Fsize);
                // Less than the log is long already.
                setrlimit(Resource::Fsize, Rlimit { current: Some(4_096), ..before }).unwrap();
                Self::TooLarge(before)
            }
            "held" => {
                let mut child = Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", holder, "--ignored", "--nocapture"])
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
