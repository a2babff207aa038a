//! What many rows cost: a start, the verification of a token, and a debit, beside the same with hardly any.
//!
//! The shop with the many and the one with the few are open at once and are asked in turn, so that whatever else the machine
//! does falls on both. When it is opened, the books are on the disk alone; when it is asked, the machine has them in memory.

use std::{
    hint::black_box,
    num::NonZeroU64,
    path::{Path, PathBuf},
    process::Command,
};

use farebox_lightning::clock::ManualClock;
use farebox_protocol::{Credential, Identifier, IdentifierHash, Scheme, TokenId};
use sha2::{Digest, Sha256};

use super::*;
use crate::{
    Service,
    ledger::Reservation,
    store::{
        Sold,
        accounts::{Accounts, Allotment, Debit, EpochId, Group, Place, Unit},
    },
    testing::Node,
};

/// How many rows stand for none: there must be some to debit.
const FEW: u64 = 2_000;
const ROUNDS: u64 = 101;
/// How much dearer the many rows may make anything.
const RATIO_MAX: f64 = 1.3;
const START_MAX: Duration = Duration::from_secs(2);

#[tokio::test]
#[ignore = "proof: run by `cargo xtask prove rows`, which says how many"]
async fn neither_a_start_nor_a_token_nor_a_debit_takes_longer_with_many_rows() {
    let count = |name, usual: u64| std::env::var(name).map_or(usual, |count| count.parse().unwrap());
    let purchases = count("FAREBOX_PROVE_PURCHASES", 100_000);
    let revocations = count("FAREBOX_PROVE_REVOCATIONS", 10_000);
    let mut few = Loaded::open(FEW, 0).await;
    let mut many = Loaded::open(purchases, revocations).await;
    println!("{purchases} purchases, {revocations} revocations: {} MiB", many.bytes >> 20);
    println!("start: {:?} instead of {:?}", many.start, few.start);
    many.remember();
    assert_eq!(many.paywall.health().revoked_tokens as u64, revocations);

    macro_rules! in_turn {
        ($what:expr, $round:ident, $shop:ident => $once:expr) => {{
            let (mut of_few, mut of_many) = (Vec::new(), Vec::new());
            for $round in 0..ROUNDS {
                let $shop = &mut few;
                let begun = time::Instant::now();
                $once;
                of_few.push(begun.elapsed());
                let $shop = &mut many;
                let begun = time::Instant::now();
                $once;
                of_many.push(begun.elapsed());
            }
            let (few, many) = (median(of_few), median(of_many));
            let ratio = many.as_secs_f64() / few.as_secs_f64();
            println!("{}: {ratio:.2} times ({many:?} instead of {few:?})", $what);
            ($what, ratio)
        }};
    }
    let tokens: Vec<_> = (0..256).map(pass).collect();
    let strangers: Vec<Vec<_>> =
        (1..=ROUNDS).map(|round| (round << 8..round << 8 | 255).map(pass).collect()).collect();
    let mut strangers = strangers.iter().flat_map(|tokens| [tokens, tokens]);
    // What reads leaves of the trees is told and not judged: an account's first use, and groups of debits, which no request
    // waits for. Where there are few rows a handful of pages has them all.
    in_turn!("reading 16 accounts for their first use", round, shop => shop.first_use(round).await);
    in_turn!("100 debits on the disk, of the newest purchases", round, shop => {
        shop.debit(100, round * 700, Among::Newest).await;
    });
    in_turn!("100 debits on the disk, of any purchases", round, shop => {
        shop.debit(100, round * 700, Among::All).await;
    });
    let ratios = [
        in_turn!("verifying 256 passes", _round, shop => shop.verify(&tokens).await),
        in_turn!("verifying 256 passes for the first time", _round, shop => {
            shop.verify(strangers.next().expect("for each")).await;
        }),
        in_turn!("taking 256 units from accounts at work", _round, shop => shop.take().await),
        in_turn!("a debit on the disk", round, shop => shop.debit(1, round * 7, Among::All).await),
    ];
    assert!(many.start <= START_MAX, "a start took {:?}", many.start);
    assert!(ratios.iter().all(|(_, ratio)| *ratio <= RATIO_MAX), "more than {RATIO_MAX} times as long");
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort();
    all[all.len() / 2]
}

/// Which purchases are debited.
#[derive(Clone, Copy)]
enum Among {
    All,
    /// As many as there are where there are few.
    Newest,
}

/// A paywall over books with so many rows.
struct Loaded {
    paywall: Arc<Paywall>,
    store: Arc<SqliteStore>,
    /// A ledger that nobody else writes for.
    epoch: EpochId,
    groups: u64,
    purchases: u64,
    start: Duration,
    bytes: u64,
    service: Service,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Loaded {
    async fn open(purchases: u64, revocations: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("books.sqlite");
        fill(&path, purchases, revocations);
        let bytes = std::fs::metadata(&path).unwrap().len();
        let clock = Arc::new(ManualClock::new(START));
        let node = Arc::new(Node::new(Arc::clone(&clock), "02aa"));
        let begun = time::Instant::now();
        let store = Arc::new(SqliteStore::open(&path).unwrap());
        let open = Paywall::open(config(), Keyring::single(secret()), node, store.clone(), clock);
        let paywall = open.await.unwrap();
        let start = begun.elapsed();
        let epoch = store.epochs(1).await.unwrap()[0].id;
        let service = weather();
        Self { paywall, store, epoch, groups: 0, purchases, start, bytes, service, path, _dir: dir }
    }

    /// Reads the books once, so that the machine has them in memory, as it has after a day of work.
    fn remember(&self) {
        std::io::copy(&mut std::fs::File::open(&self.path).unwrap(), &mut std::io::sink()).unwrap();
    }

    async fn verify(&self, tokens: &[HeaderMap]) {
        for headers in tokens {
            let client = IpAddr::from([192, 0, 2, 1]);
            let request = Request {
                service: &self.service,
                method: &Method::GET,
                path: "/forecast",
                client,
                headers,
                query: None,
                grpc: false,
            };
            assert_eq!(black_box(self.paywall.admit(&request).await).code(), Code::Pass);
        }
    }

    /// In memory, and written by nobody.
    async fn take(&self) {
        for number in 0..256 {
            let row = 1 + number * (FEW / 256);
            let reserved = match self.paywall.ledger().reserve_at_once(&hash(row), NonZeroU64::MIN) {
                Some(reserved) => reserved.unwrap(),
                None => self.reserve(row).await,
            };
            // A commit does no more, and would add up what nobody writes here.
            reserved.release();
        }
    }

    async fn first_use(&self, round: u64) {
        for number in 0..16 {
            self.reserve(self.spread(round * 16 + number + 10_000)).await.release();
        }
    }

    async fn reserve(&self, row: u64) -> Reservation {
        let credit = Allotment { unit: Unit::Msat, units: 1_000 };
        let reserved = self.paywall.ledger().reserve(presentation(row), credit, NonZeroU64::MIN);
        reserved.await.unwrap().reservation
    }

    /// A row, anywhere among all of them.
    fn spread(&self, number: u64) -> u64 {
        1 + number * 982_451_653 % self.purchases
    }

    async fn debit(&mut self, debits: u64, first: u64, among: Among) {
        self.groups += 1;
        let service: ServiceName = "weather".parse().unwrap();
        let debits = (first..first + debits).map(|number| {
            let row = match among {
                Among::All => self.spread(number),
                Among::Newest => self.purchases - self.spread(number) % FEW,
            };
            // Who charges has read the account before.
            let place = Some(Place(row));
            Debit { hash: hash(row), place, service: service.clone(), requests: 1, units: 1, written_off: 0 }
        });
        let group = Group {
            epoch: self.epoch,
            number: self.groups,
            at: START,
            debits: debits.collect(),
            uses: vec![],
            answers: vec![],
        };
        let debited = self.store.debit(Arc::new(group)).await.unwrap();
        assert_eq!((debited.missing, debited.excess), (0, 0));
    }
}

/// Spread as hashes are.
fn digest(number: u64) -> [u8; 32] {
    Sha256::digest(number.to_le_bytes()).into()
}

fn hash(row: u64) -> PaymentHash {
    PaymentHash::from_bytes(digest(row))
}

fn presentation(row: u64) -> Presentation {
    let sold = Sold {
        token_id: TokenId::from_bytes(digest(row)),
        identifier_hash: IdentifierHash::from_bytes(digest(row)),
        service: "weather".parse().unwrap(),
        tier: 0,
        terms: Terms { offer: Offer::Credit, price: Msat::new(1_000) },
        valid_until: None,
    };
    Presentation { hash: hash(row), sold, at: START }
}

/// A pass that has been paid for; its purchase is none of those on the books, which nobody asks for it.
fn pass(number: u64) -> HeaderMap {
    let preimage = Preimage::from_bytes(digest(!number));
    let identifier =
        Identifier { payment_hash: preimage.payment_hash(), token_id: TokenId::from_bytes(digest(number)) };
    let caveats = ["services=weather:0".to_owned(), "farebox_terms=v1;offer=forever;msat=10000".to_owned()];
    let token = Macaroon::mint(&secret().root_key(Network::Regtest, &identifier), &identifier, &caveats);
    let shown = Credential { tokens: vec![token], preimage }.header_value(Scheme::L402);
    [(header::AUTHORIZATION, HeaderValue::from_str(&shown).unwrap())].into_iter().collect()
}

/// Books with so many settled purchases of credit, each with its payment and account, and so many revocations.
fn fill(path: &Path, purchases: u64, revocations: u64) {
    drop(SqliteStore::open(path).unwrap());
    let books = rusqlite::Connection::open(path).unwrap();
    // Hashes come in no order: an index that isn't in memory would be read and written again for each of them.
    books
        .execute_batch(
            "PRAGMA synchronous = OFF; PRAGMA journal_mode = OFF; PRAGMA cache_size = -4000000; BEGIN",
        )
        .unwrap();
    // Made at the end, they are sorted once, as when older books are brought up to date.
    let indexes: Vec<(String, String)> = {
        let mut some = books
            .prepare("SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL")
            .unwrap();
        let indexes = some.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        indexes.collect::<Result<_, _>>().unwrap()
    };
    for (name, _) in &indexes {
        books.execute_batch(&format!("DROP INDEX {name}")).unwrap();
    }
    let fill = |sql: &str, rows: u64| {
        let mut insert = books.prepare(sql).unwrap();
        for row in 1..=rows {
            insert.execute(rusqlite::params![row, digest(row)]).unwrap();
        }
    };
    fill(
        "INSERT INTO purchase (seq, hash, token_id, identifier_hash, service, tier, terms, price_msat, presented_at,
             paid_msat, payments, settled_at)
         VALUES (?1, ?2, ?2, ?2, 'weather', 0, 'v1;offer=credit;unit=msat;msat=1000', 1000, 1, 1000, 1, 1)",
        purchases,
    );
    fill("INSERT INTO settlement VALUES ('02aa', ?1, ?2, 1000, 1)", purchases);
    fill(
        "INSERT INTO account (purchase, unit, sold, opened_at) SELECT ?1, 'msat', 1000, 1 WHERE ?2 <> ''",
        purchases,
    );
    fill("INSERT INTO revocation (seq, identifier_hash, at, reason) VALUES (?1, ?2, 1, 'lost')", revocations);
    let begun = time::Instant::now();
    for (_, sql) in &indexes {
        books.execute_batch(sql).unwrap();
    }
    println!("{} indexes over {purchases} purchases took {:?} to make", indexes.len(), begun.elapsed());
    books.execute_batch("COMMIT; PRAGMA journal_mode = WAL").unwrap();
    drop(books);
    forget(path);
}

/// Takes the file out of the machine's memory, as far as there is a program for it.
fn forget(path: &Path) {
    let file = format!("of={}", path.display());
    let arguments = [file.as_str(), "oflag=nocache", "conv=notrunc,fdatasync", "count=0"];
    if !Command::new("dd").args(arguments).status().is_ok_and(|done| done.success()) {
        println!("the file may be in the machine's memory: there is no `dd` that takes it out");
    }
}
