//! A real process on real books, killed in the middle of its work, again and again.
//!
//! What it loses is what waited to be written: the group under way, and the one that was being gathered. Both together are no
//! more than may wait, and one request more that was under way.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
};

use super::*;

/// Names the books to the child.
const BOOKS: &str = "FAREBOX_TEST_BOOKS";
const UNWRITTEN_MAX: usize = 64;
const SOLD: u64 = 1 << 40;
const TOKENS: u8 = 5;

/// For as long as `FAREBOX_PROVE_SECS` says; a handful of times without it.
#[tokio::test]
async fn killed_at_any_moment_it_loses_only_the_last_groups_and_never_to_the_buyer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("books.sqlite");
    let secs = std::env::var("FAREBOX_PROVE_SECS").map_or(0, |secs| secs.parse().unwrap());
    let end = time::Instant::now() + Duration::from_secs(secs);
    let mut booked = [0_u64; TOKENS as usize];
    let mut rounds = 0_u64;
    let mut lost_most = 0;
    while rounds < 4 || time::Instant::now() < end {
        rounds += 1;
        let served = kill_after(&path, 1 + rounds * 7_919 % 400);
        let store = SqliteStore::open(&path).unwrap();
        let mut lost = 0;
        for number in 0..TOKENS {
            let account = Accounts::account(&store, hash(number)).await.unwrap();
            let spent = account.map_or(0, |account| account.balance.spent());
            let before = &mut booked[usize::from(number)];
            // What was said to have been charged before this round is there; what was said in it may be missing.
            let served = *before + served[usize::from(number)];
            assert!(spent >= *before && spent <= served + 1, "{spent}, {before}, {served}");
            lost += served.saturating_sub(spent);
            *before = spent;
        }
        assert!(lost <= UNWRITTEN_MAX as u64 + 1, "{lost} were lost");
        lost_most = lost_most.max(lost);
        let audit = store.audit().await.unwrap();
        assert!(audit.breaches.is_empty(), "{:#?}", audit.breaches);
        assert_eq!(audit.epochs[0].ended_at, None, "it was cut off, and the books say so");
    }
    println!("{rounds} rounds, {booked:?} units, at most {lost_most} lost in one");
}

/// Runs the child until it has served so many requests; what it served, token by token.
fn kill_after(path: &Path, requests: u64) -> [u64; TOKENS as usize] {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "ledger::tests::killed::the_child", "--ignored", "--nocapture"])
        .env(BOOKS, path)
        .stdout(Stdio::piped())
        .spawn()
        .map(Killed)
        .unwrap();
    let mut served = [0; TOKENS as usize];
    let mut seen = 0;
    let told = BufReader::new(child.0.stdout.take().unwrap());
    for line in told.lines() {
        let line = line.unwrap();
        let Some(number) = line.strip_prefix("served ") else { continue };
        served[number.parse::<usize>().unwrap()] += 1;
        seen += 1;
        if seen == requests {
            // What is in the pipe already was said as well, and is read on.
            child.0.kill().unwrap();
        }
    }
    child.0.wait().unwrap();
    assert!(seen >= requests, "the child ended by itself");
    served
}

/// Not left behind, whatever fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
#[ignore = "the process that the test above kills"]
async fn the_child() {
    let path = std::env::var_os(BOOKS).expect("started by its test");
    let store: Arc<dyn Accounts> = Arc::new(SqliteStore::open(Path::new(&path)).unwrap());
    let config = LedgerConfig { unwritten_max: UNWRITTEN_MAX, ..LedgerConfig::new() };
    let ledger = Ledger::open(config, store, Arc::new(ManualClock::new(START))).await.unwrap();
    let never = CancellationToken::new();
    let serve = async {
        for turn in 0_u64.. {
            let number = u8::try_from(turn * 7 % u64::from(TOKENS)).unwrap();
            match ledger.reserve(presentation(number), requests(SOLD), NonZeroU64::MIN).await {
                Ok(reserved) => {
                    if turn.is_multiple_of(11) {
                        reserved.reservation.release();
                        continue;
                    }
                    reserved.reservation.commit(1);
                    let mut out = std::io::stdout().lock();
                    writeln!(out, "served {number}").and_then(|()| out.flush()).unwrap();
                }
                Err(Refused::Unavailable(Unavailable::NotWriting)) => {}
                Err(refused) => panic!("{refused}"),
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(ledger.run(&never), serve);
}
