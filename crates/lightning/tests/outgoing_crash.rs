//! Kills the process at every place where `outgoing` can be killed, starts it again, and counts what was paid.
//!
//! The victim is this test binary itself, run once more as a child. Its wallet is a fake whose memory is a file: each
//! payment adds a line, so a second payment of the same hash would show.
#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod fakes;

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::Arc,
    time::Duration,
};

use fakes::{NOW, hash, preimage, request};
use farebox_lightning::{
    Outcome, Pay, PayError, PayFacts, PayRequest,
    clock::ManualClock,
    outgoing::{FAILPOINTS, Intents as _, Outgoing, OutgoingConfig, State, sqlite::SqliteIntents},
};
use farebox_protocol::{Msat, PaymentHash};
use futures_util::future::{BoxFuture, FutureExt as _};

/// What the wallet of one story does.
const STORIES: &[&str] = &["pays", "pays-and-breaks-off", "refuses", "breaks-off"];

/// A wallet whose book is a file: it is written before the payment is made, so that "not found" is a proof.
struct FileWallet {
    book: PathBuf,
    story: String,
}

impl FileWallet {
    fn paid(&self) -> bool {
        lines(&self.book) > 0
    }

    fn settled() -> Outcome {
        Outcome::Settled { preimage: preimage(1), fee: Msat::new(7) }
    }
}

fn lines(book: &Path) -> usize {
    fs::read_to_string(book).unwrap_or_default().lines().count()
}

impl Pay for FileWallet {
    fn facts(&self) -> PayFacts {
        PayFacts { proves_unsent: true, ..fakes::facts() }
    }

    fn pay(&self, request: PayRequest) -> BoxFuture<'_, Result<Outcome, PayError>> {
        let broken = Err(PayError::Unavailable("the connection broke".to_owned()));
        let answer = match self.story.as_str() {
            "refuses" => Ok(Outcome::Failed("no route".to_owned())),
            "breaks-off" => broken,
            story => {
                let mut book = fs::OpenOptions::new().append(true).create(true).open(&self.book).unwrap();
                writeln!(book, "{}", request.invoice.payment_hash()).unwrap();
                book.sync_all().unwrap();
                if story == "pays" { Ok(Self::settled()) } else { broken }
            }
        };
        async { answer }.boxed()
    }

    fn lookup(&self, _: PaymentHash) -> BoxFuture<'_, Result<Outcome, PayError>> {
        let answer = if self.paid() { Self::settled() } else { Outcome::NotFound };
        async { Ok(answer) }.boxed()
    }

    fn balance(&self) -> BoxFuture<'_, Result<Msat, PayError>> {
        async { Ok(Msat::ZERO) }.boxed()
    }
}

/// The victim: a program that starts, resumes, and wants `invoice(1)` paid. Does nothing when run as a test.
#[test]
fn victim() {
    let (Ok(dir), Ok(story)) = (std::env::var("VICTIM_DIR"), std::env::var("VICTIM_STORY")) else { return };
    let dir = PathBuf::from(dir);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let wallet = Arc::new(FileWallet { book: dir.join("book"), story });
        let intents = Arc::new(SqliteIntents::open(&dir.join("journal.sqlite")).unwrap());
        let config = OutgoingConfig {
            retry_first: Duration::from_millis(1),
            retry_max: Duration::from_millis(2),
            empty_lookups_max: 3,
            ..OutgoingConfig::default()
        };
        let outgoing = Outgoing::new(wallet, intents, Arc::new(ManualClock::new(NOW)), config);
        outgoing.resume().await.unwrap();
        outgoing.pay(request(1)).await.unwrap();
        outgoing.wait(hash(1)).await.unwrap();
        assert!(outgoing.stop(Duration::from_secs(10)).await);
    });
}

fn run_victim(dir: &Path, story: &str, failpoint: Option<&str>) -> ExitStatus {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["victim", "--exact", "--quiet"]).env("VICTIM_DIR", dir).env("VICTIM_STORY", story);
    command.env_remove("FAREBOX_FAILPOINT").stdout(std::process::Stdio::null());
    if let Some(failpoint) = failpoint {
        command.env("FAREBOX_FAILPOINT", failpoint);
    }
    command.status().unwrap()
}

/// Dies at `first`, starts again and dies at `second`, and then is left alone. Returns at which it really died.
fn check(story: &str, first: &'static str, second: Option<&'static str>) -> Vec<&'static str> {
    let dir = tempfile::tempdir().unwrap();
    let mut died = Vec::new();
    for failpoint in std::iter::once(first).chain(second) {
        if !run_victim(dir.path(), story, Some(failpoint)).success() {
            died.push(failpoint);
        }
    }
    assert!(
        run_victim(dir.path(), story, None).success(),
        "{story}: left alone after {died:?}, it must succeed"
    );
    let intents = SqliteIntents::open(&dir.path().join("journal.sqlite")).unwrap();
    let row = intents.find(&hash(1)).unwrap().unwrap();
    let paid = lines(&dir.path().join("book"));
    match (&row.state, paid) {
        (State::Settled { preimage, .. }, 1) => assert!(preimage.pays(&hash(1))),
        (State::Failed(_), 0) if !story.starts_with("pays") => {}
        (state, paid) => panic!("{story}: died at {died:?}, paid {paid} times, the row says {state:?}"),
    }
    died
}

#[test]
fn killed_anywhere_it_pays_at_most_once_and_recovers_the_proof() {
    let mut died = BTreeSet::new();
    for story in STORIES {
        for failpoint in FAILPOINTS {
            died.extend(check(story, failpoint, None));
        }
    }
    let missed: Vec<_> = FAILPOINTS.iter().filter(|name| !died.contains(*name)).collect();
    assert!(missed.is_empty(), "no story comes past {missed:?}");
}

#[test]
fn killed_again_while_it_recovers_it_pays_at_most_once() {
    for first in
        ["outgoing-after-sent", "outgoing-before-pay", "outgoing-after-pay", "outgoing-before-settle"]
    {
        for second in FAILPOINTS {
            check("pays", first, Some(second));
        }
    }
}
