//! How large the groups get in which charges go to the disk: what a crash loses, and what `unwritten_max` leaves room for.

use super::*;

const ACCOUNTS: u8 = 64;

/// The highest of these rates is what two cores answer by HTTP, and more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "proof: run by `cargo xtask prove groups`"]
async fn what_waits_to_be_written_stays_below_what_may_wait() {
    for per_second in [1_000, 10_000, 40_000] {
        let (most, groups) = charge(per_second, Duration::from_secs(10)).await;
        println!("{per_second} requests a second: {groups} groups, at most {most} unwritten at any time");
        assert!(most < LedgerConfig::new().unwritten_max, "requests would be refused");
    }
}

/// Charges so many requests a second; how many were unwritten at most, and in how many groups all were written.
async fn charge(per_second: u64, during: Duration) -> (usize, u64) {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(SqliteStore::open(&dir.path().join("books.sqlite")).unwrap());
    let accounts: Arc<dyn Accounts> = store.clone();
    let config = LedgerConfig { unwritten_max: usize::MAX, ..LedgerConfig::new() };
    let ledger = Ledger::open(config, accounts, Arc::new(ManualClock::new(START))).await.unwrap();
    for number in 0..ACCOUNTS {
        drop(ledger.reserve(presentation(number), requests(1 << 40), NonZeroU64::MIN).await.unwrap());
    }
    let stop = CancellationToken::new();
    let buyers = async {
        let (begun, mut done, mut most) = (time::Instant::now(), 0, 0);
        while begun.elapsed() < during {
            let due = u64::try_from(begun.elapsed().as_micros()).unwrap() * per_second / 1_000_000;
            for turn in done..due {
                let number = u8::try_from(turn % u64::from(ACCOUNTS)).unwrap();
                ledger.reserve_at_once(&hash(number), NonZeroU64::MIN).expect("in memory").unwrap().commit(1);
            }
            done = due;
            most = most.max(ledger.health().unwritten);
            time::sleep(Duration::from_millis(1)).await;
        }
        stop.cancel();
        (most, done)
    };
    let ((), (most, done)) = tokio::join!(ledger.run(&stop), buyers);
    let mut written = 0;
    for number in 0..ACCOUNTS {
        let account = Accounts::account(&*store, hash(number)).await.unwrap();
        written += account.unwrap().balance.spent();
    }
    assert_eq!(written, done, "none is lost by an end in order");
    (most, store.epochs(1).await.unwrap()[0].groups)
}
