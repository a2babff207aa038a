//! A disk that really fails under a ledger at work: the kernel refuses to write, another process holds the file, no room is
//! left. What was served meanwhile is charged when it is over, once, and nothing is served that could not be charged.
//!
//! Each story is a process of its own.

use std::sync::atomic::{AtomicBool, AtomicU64};

use super::*;

mod broken;

use broken::{Broken, run};

const TOKENS: u8 = 5;
const SOLD: u64 = 1 << 40;

#[test]
fn a_kernel_that_refuses_to_write_costs_nobody_a_unit() {
    run("too large");
}

#[test]
fn another_process_that_holds_the_books_costs_nobody_a_unit() {
    run("held");
}

#[test]
#[ignore = "proof: run by `cargo xtask prove disk`; mounts a small file system"]
fn a_file_system_that_is_full_costs_nobody_a_unit() {
    run("full");
}

#[test]
#[ignore = "proof: run by `cargo xtask prove disk`; the superuser alone can make a file unchangeable"]
fn a_file_that_can_not_be_changed_any_more_costs_nobody_a_unit() {
    run("unchangeable");
}

/// What buyers have had, and what they were refused.
#[derive(Default)]
struct Served {
    units: [AtomicU64; TOKENS as usize],
    refused: AtomicU64,
    over: AtomicBool,
}

impl Served {
    fn all(&self) -> u64 {
        self.units.iter().map(|units| units.load(Ordering::SeqCst)).sum()
    }

    /// Uses tokens until it is told that it's over. Each use takes a while, as requests do.
    async fn buy(&self, ledger: &Arc<Ledger>, first: u8) {
        for number in (0..TOKENS).cycle().skip(usize::from(first)) {
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            match ledger.reserve(presentation(number), requests(SOLD), NonZeroU64::MIN).await {
                Ok(reserved) => {
                    time::sleep(Duration::from_millis(1)).await;
                    reserved.reservation.commit(1);
                    self.units[usize::from(number)].fetch_add(1, Ordering::SeqCst);
                }
                Err(Refused::Unavailable(_)) => {
                    self.refused.fetch_add(1, Ordering::SeqCst);
                    time::sleep(Duration::from_millis(5)).await;
                }
                Err(refused) => panic!("{refused}"),
            }
        }
    }
}

#[tokio::test]
#[ignore = "the process whose disk fails, started by the tests above"]
async fn the_child() {
    let (fault, path) = broken::told();
    let store: Arc<dyn Accounts> = Arc::new(SqliteStore::open(&path).unwrap());
    let config = LedgerConfig { store_timeout: Duration::from_millis(500), ..LedgerConfig::new() };
    let ledger = Ledger::open(config, store, Arc::new(ManualClock::new(START))).await.unwrap();
    let (served, stop) = (Served::default(), CancellationToken::new());
    let story = async {
        for _ in 0..2 {
            let before = served.all();
            until(|| served.all() >= before + 300).await;
            let broken = Broken::begin(&fault, &path);
            until(|| ledger.health().writing.is_some()).await;
            let trouble = ledger.health().writing.unwrap();
            // What was under way is served and charged; nothing new is.
            let refused = served.refused.load(Ordering::SeqCst);
            until(|| served.refused.load(Ordering::SeqCst) >= refused + 20).await;
            let during = served.all();
            until(|| served.refused.load(Ordering::SeqCst) >= refused + 60).await;
            assert_eq!(served.all(), during);
            let waiting = ledger.health().unwritten;
            assert!(waiting > 0);
            let mended = time::Instant::now();
            drop(broken);
            until(|| served.all() > during && ledger.health().writing.is_none()).await;
            println!("\n{fault}: {trouble}; {waiting} waited, served again after {:?}", mended.elapsed());
        }
        served.over.store(true, Ordering::SeqCst);
    };
    let buy = futures_util::future::join_all((0..8).map(|first| served.buy(&ledger, first)));
    let sold = async {
        tokio::join!(story, buy);
        stop.cancel();
    };
    time::timeout(Duration::from_secs(120), async { tokio::join!(ledger.run(&stop), sold) }).await.unwrap();
    assert_eq!(ledger.close().await, 0);
    drop(ledger);

    let store = SqliteStore::open(&path).unwrap();
    for (number, served) in (0..).zip(&served.units) {
        let account = Accounts::account(&store, hash(number)).await.unwrap().unwrap();
        assert_eq!(account.balance.spent(), served.load(Ordering::SeqCst), "{number}");
    }
    let audit = store.audit().await.unwrap();
    assert_eq!(audit.breaches, [""; 0]);
    assert!(audit.epochs[0].ended_at.is_some());
}

async fn until(so: impl Fn() -> bool) {
    while !so() {
        time::sleep(Duration::from_millis(5)).await;
    }
}
