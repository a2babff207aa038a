//! A gateway that is killed as soon as an answer has arrived: its buyer has had at least what the books charge, and what they
//! miss is what was under way to the disk just then.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

use axum::Router;
use farebox_paywall::store::{
    Page,
    accounts::{Account, Accounts},
    sqlite::SqliteStore,
};
use futures_util::future::join_all;
use http_body_util::BodyExt;
use parking_lot::Mutex;
use support::{Rig, config, counted::requests, http1, request, upstream::Upstream, within};

#[tokio::test]
async fn killed_right_after_an_answer_the_books_charge_no_more_than_was_asked_for() {
    for (clients, answers) in [(1, 1), (1, 40), (8, 400)] {
        let dir = tempfile::tempdir().unwrap();
        let gateway = Gateway::start(dir.path());
        let (asked, answered) = (AtomicU64::new(0), AtomicU64::new(0));
        let buyers = (0..clients).map(|_| gateway.use_up(&asked, &answered, answers));
        within(join_all(buyers)).await;
        gateway.child.lock().wait().unwrap();
        let (asked, answered) = (asked.into_inner(), answered.into_inner());
        assert!(answered >= answers, "it ended by itself");

        let account = account(dir.path()).await;
        // The first use is on the disk before its request is forwarded, so there is an account in any case.
        let spent = account.map_or(0, |account| account.balance.spent());
        assert!(spent <= asked, "{spent} of {asked}");
        println!("{answered} of {asked} answered, {spent} charged");
    }
}

/// The one account on the books, which are whole and say that they were cut off.
async fn account(dir: &Path) -> Option<Account> {
    let books = std::fs::read_dir(dir).unwrap().find_map(|entry| {
        let books = entry.unwrap().path().join("books.sqlite");
        books.exists().then_some(books)
    });
    let store = SqliteStore::open(&books.expect("the gateway has made books")).unwrap();
    let audit = store.audit().await.unwrap();
    assert_eq!(audit.breaches, [""; 0]);
    assert_eq!(audit.epochs[0].ended_at, None, "it was cut off");
    Accounts::accounts(&store, Page { after: None, rows_max: 2 }).await.unwrap().pop()
}

/// A gateway in a process of its own.
struct Gateway {
    child: Mutex<Child>,
    addr: SocketAddr,
    credential: String,
}

impl Gateway {
    fn start(dir: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_child", "--ignored", "--nocapture"])
            .env("TMPDIR", dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = lines.find_map(|line| line.unwrap().strip_prefix("ready ").map(str::to_owned)).unwrap();
        let (addr, credential) = ready.split_once(' ').unwrap();
        Self { addr: addr.parse().unwrap(), credential: credential.to_owned(), child: Mutex::new(child) }
    }

    /// Sends one request after the other, and kills the gateway when so many answers have come to all.
    async fn use_up(&self, asked: &AtomicU64, answered: &AtomicU64, answers: u64) {
        let mut connection = http1(self.addr).await;
        loop {
            asked.fetch_add(1, SeqCst);
            let request = request("GET", "/", &[("authorization", &self.credential)]);
            let Ok(answer) = connection.send_request(request).await else { return };
            assert_eq!(answer.status(), 200);
            let Ok(_) = answer.into_body().collect().await else { return };
            if answered.fetch_add(1, SeqCst) + 1 == answers {
                self.child.lock().kill().unwrap();
            }
        }
    }
}

/// Not left behind, whatever fails.
impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.lock().kill();
        let _ = self.child.lock().wait();
    }
}

#[tokio::test]
#[ignore = "the gateway that the test above kills"]
async fn the_child() {
    let upstream = Upstream::serve(Router::new().fallback(async || "well")).await;
    let rig = Rig::counting(config(vec![requests(&upstream.url(), 1 << 40)])).await;
    println!("\nready {} {}", rig.addr, rig.purchase("/").await.credential);
    std::future::pending::<()>().await
}
