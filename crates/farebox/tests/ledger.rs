//! The books as commands: `farebox ledger` and `farebox receipt`, on books that the store itself has made.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

#[path = "cli/common.rs"]
#[expect(dead_code, reason = "what other tests of commands need")]
mod common;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use common::Ran;
use farebox_lightning::{Cursor, Settlement};
use farebox_paywall::{
    ledger::law::Refund,
    store::{
        Arrival, Presentation, Revocation, Sold, Store,
        accounts::{Accounts, Allotment, Debit, EpochId, Group, RefundId, RefundOf, RefundOrder},
        sqlite::SqliteStore,
    },
};
use farebox_protocol::{IdentifierHash, Msat, PaymentHash, Preimage, Timestamp, TokenId};
use serde_json::Value;

/// 2026-11-20 00:00:00 UTC.
const DAY: u64 = 1_795_132_800;

/// A seller's machine.
struct Shop {
    dir: tempfile::TempDir,
    store: Option<SqliteStore>,
    epoch: EpochId,
}

fn preimage(number: u8) -> Preimage {
    Preimage::from_bytes([number; 32])
}

fn hash(number: u8) -> PaymentHash {
    preimage(number).payment_hash()
}

fn token_id(number: u8) -> TokenId {
    TokenId::from_bytes([number + 100; 32])
}

impl Shop {
    /// A shop that has sold one of each: a pass (1), requests (2), credit (3), something unclaimed (4), and a pass that was
    /// paid twice and revoked (5).
    async fn open() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = "network: signet\nstate-dir: state\nlightning: { phoenixd: { url: http://127.0.0.1:1, \
                      password: { env: P } } }\nservices: [{ name: weather, upstream: http://127.0.0.1:1, price: 10sat }]\n";
        fs::write(dir.path().join("farebox.yaml"), config).unwrap();
        let state = dir.path().join("state");
        fs::create_dir(&state).unwrap();
        let store = SqliteStore::open(&state.join("books.sqlite")).unwrap();
        let epoch = store.begin_epoch(at(0)).await.unwrap();
        let shop = Self { dir, store: Some(store), epoch };
        shop.sell(1, "weather", "v1;offer=forever;msat=10000").await;
        shop.sell(2, "weather", "v1;offer=requests;count=100;msat=10000").await;
        shop.sell(3, "model", "v1;offer=credit;unit=msat;msat=20000").await;
        shop.pay(1, 1, 10_000, 1).await;
        shop.pay(2, 2, 10_000, 2).await;
        shop.pay(3, 3, 20_000, 86_400).await;
        shop.pay(4, 4, 7_000, 86_401).await;
        shop.sell(5, "weather", "v1;offer=forever;msat=10000").await;
        shop.pay(5, 5, 10_000, 86_402).await;
        shop.pay(6, 5, 10_000, 86_403).await;
        shop.charge(1, 2, "weather", 3, 3).await;
        shop.charge(2, 3, "model", 2, 5_000).await;
        let order = RefundOrder {
            id: RefundId([1; 16]),
            hash: hash(3),
            of: RefundOf::Credit,
            amount: Msat::new(4_000),
            at: at(90_000),
        };
        shop.store().begin_refund(order).await.unwrap();
        shop.store().end_refund(order.id, Refund::Paid, at(90_001)).await.unwrap();
        shop.revoke(5, "=HYPERLINK(\"http://x\"), \u{1b}[2J leaked").await;
        shop
    }

    fn store(&self) -> &SqliteStore {
        self.store.as_ref().unwrap()
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn books(&self) -> PathBuf {
        self.path().join("state/books.sqlite")
    }

    async fn sell(&self, number: u8, service: &str, terms: &str) {
        let sold = Sold {
            token_id: token_id(number),
            identifier_hash: IdentifierHash::from_bytes([number + 200; 32]),
            service: service.parse().unwrap(),
            tier: 0,
            terms: terms.parse().unwrap(),
            valid_until: None,
        };
        let presentation = Presentation { hash: hash(number), sold, at: at(10) };
        match Allotment::of(&presentation.sold.terms) {
            Some(allotment) => drop(self.store().open_account(presentation, allotment).await.unwrap()),
            None => drop(self.store().present(vec![presentation]).await.unwrap()),
        }
    }

    async fn pay(&self, cursor: u64, number: u8, msat: u64, secs: u64) {
        let (cursor, hash, amount) = (Cursor(cursor), hash(number), Msat::new(msat));
        let settlement = Settlement { cursor, hash, amount, at: at(secs), description: None };
        self.store().settle("node", vec![Arrival::from(settlement)], cursor).await.unwrap();
    }

    async fn charge(&self, group: u64, number: u8, service: &str, requests: u64, units: u64) {
        let service = service.parse().unwrap();
        let debits =
            vec![Debit { hash: hash(number), place: None, service, requests, units, written_off: 0 }];
        let group = Group {
            epoch: self.epoch,
            number: group,
            at: at(90_000),
            debits,
            uses: Vec::new(),
            answers: Vec::new(),
        };
        self.store().debit(Arc::new(group)).await.unwrap();
    }

    async fn revoke(&self, number: u8, reason: &str) {
        let identifier_hash = IdentifierHash::from_bytes([number + 200; 32]);
        let revocation = Revocation { identifier_hash, at: at(90_000), reason: reason.to_owned() };
        self.store().revoke(revocation).await.unwrap();
    }

    fn run(&self, args: &[&str]) -> Ran {
        common::run(self.path(), args, &[])
    }

    #[track_caller]
    fn works(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{args:?}: {}", ran.stdout);
        ran.stdout
    }

    /// What a command prints for programs, row by row.
    #[track_caller]
    fn rows(&self, args: &[&str]) -> Vec<Value> {
        self.works(args).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn at(secs: u64) -> Timestamp {
    Timestamp::from_secs(DAY + secs)
}

fn sum(rows: &[Value], name: &str) -> u64 {
    rows.iter().map(|row| row[name].as_u64().unwrap()).sum()
}

fn of(rows: &[Value], name: &str) -> Vec<String> {
    rows.iter().map(|row| row[name].as_str().unwrap_or("-").to_owned()).collect()
}

#[tokio::test]
async fn every_command_shows_examples() {
    for command in [
        &["ledger"][..],
        &["ledger", "list"],
        &["ledger", "show"],
        &["ledger", "report"],
        &["ledger", "export"],
        &["ledger", "verify"],
        &["receipt"],
        &["receipt", "make"],
        &["receipt", "verify"],
        &["receipt", "key"],
    ] {
        let ran = common::run(Path::new("."), &[command, &["--help"]].concat(), &[]);
        assert_eq!(ran.code, 0, "{command:?}");
        assert!(ran.stdout.contains("Examples:\n  "), "{command:?}: {}", ran.stdout);
    }
}

#[tokio::test]
async fn the_list_is_for_people_newest_first_and_for_programs_with_everything() {
    let shop = Shop::open().await;
    let shown = shop.works(&["ledger", "list", "--human"]);
    let lines: Vec<Vec<&str>> = shown.lines().map(|line| line.split("  ").map(str::trim).collect()).collect();
    assert_eq!(lines.len(), 6, "{shown}");
    let cells = |line: usize| lines[line].iter().filter(|cell| !cell.is_empty()).copied().collect::<Vec<_>>();
    assert_eq!(cells(0), ["WHEN", "HASH", "SERVICE", "OFFER", "PAID", "SPENT", "LEFT", "REFUNDED", "STATE"]);
    let short = hash(3).to_string()[..16].to_owned();
    assert_eq!(
        cells(3),
        [
            "2026-11-21 00:00:00 UTC",
            &short,
            "model",
            "offer=credit;unit=msat",
            "20 sat",
            "5 sat",
            "11 sat",
            "4 sat",
            "open, refunded"
        ],
        "{shown}"
    );
    let rows = shop.rows(&["ledger", "list"]);
    let newest: Vec<String> = [5, 4, 3, 2, 1].map(|number| hash(number).to_string()).into();
    assert_eq!(of(&rows, "payment_hash"), newest);
    assert_eq!(rows[3]["left"], 97);
    assert_eq!(rows[1]["states"], serde_json::json!(["unattributed"]));
    assert_eq!(rows[0]["revoked_reason"], "=HYPERLINK(\"http://x\"), \u{1b}[2J leaked");
}

#[tokio::test]
async fn the_list_can_be_narrowed_and_goes_on_where_it_ended() {
    let shop = Shop::open().await;
    let numbers = |args: &[&str]| of(&shop.rows(&[&["ledger", "list"], args].concat()), "payment_hash");
    let hashes = |numbers: &[u8]| numbers.iter().map(|number| hash(*number).to_string()).collect::<Vec<_>>();
    assert_eq!(numbers(&["--service", "model"]), hashes(&[3]));
    assert_eq!(numbers(&["--state", "revoked"]), hashes(&[5]));
    assert_eq!(numbers(&["--state", "unattributed"]), hashes(&[4]));
    assert_eq!(numbers(&["--until", "2026-11-21"]), hashes(&[2, 1]));
    assert_eq!(numbers(&["--since", "2026-11-21T00:00:01Z", "--service", "weather"]), hashes(&[5]));
    assert_eq!(numbers(&["--limit", "2"]), hashes(&[5, 4]));
    assert_eq!(numbers(&["--limit", "2", "--after", &hash(4).to_string()]), hashes(&[3, 2]));
    let page = shop.works(&["ledger", "list", "--human", "--limit", "2"]);
    assert!(page.contains(&format!("--after {}", &hash(4).to_string()[..16])), "{page}");
    assert_eq!(shop.works(&["ledger", "list", "--human", "--state", "short"]), "no purchase is like that\n");
}

#[tokio::test]
async fn a_flag_that_makes_no_sense_is_named() {
    let shop = Shop::open().await;
    for (args, code, want) in [
        (&["list", "--state", "gone"][..], 2, "`gone` is no state"),
        (&["list", "--since", "yesterday"], 2, "`yesterday` is no moment"),
        (&["list", "--service", "a b"], 2, "a b"),
        (&["list", "--limit", "0"], 2, "0 is not in"),
        (&["show", "5f3c"], 1, "no payment hash"),
        (&["show", "5f3c09aa"], 1, "no purchase"),
        (&["list", "--after", "5f3c09aa"], 1, "--after"),
        (&["list", "--books", "none.sqlite"], 1, "none.sqlite"),
        (&["list", "--state-dir", "elsewhere"], 1, "no state directory `elsewhere`"),
        (&["list", "--config", "other.yaml"], 1, "there is no `other.yaml`"),
    ] {
        let ran = shop.run(&[&["ledger"], args].concat());
        assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(want), "{args:?}: {}", ran.stderr);
    }
}

#[tokio::test]
async fn one_purchase_is_shown_with_all_that_belongs_to_it_and_drives_no_terminal() {
    let shop = Shop::open().await;
    let credit = shop.works(&["ledger", "show", &hash(3).to_string()[..10], "--human"]);
    for part in [
        "state            open, refunded\n",
        "offer            offer=credit;unit=msat for 20 sat\n",
        "paid             20 sat\n  2026-11-21 00:00:00 UTC  20 sat at node node\n",
        "account          20 sat sold, opened 2026-11-20 00:00:10 UTC\n",
        "  spent          5 sat in 2 charged requests, the last 2026-11-21 01:00:00 UTC\n",
        "  refunded       4 sat\n",
        "  left           11 sat\n",
        "refund           4 sat of credit, asked for 2026-11-21 01:00:00 UTC, paid 2026-11-21 01:00:01 UTC",
    ] {
        assert!(credit.contains(part), "{part} in {credit}");
    }
    // By the identifier hash, too.
    let revoked = shop.works(&["ledger", "show", &"cd".repeat(32), "--human"]);
    assert!(revoked.contains("paid             20 sat, 10 sat beyond the price\n"), "{revoked}");
    assert!(revoked.contains("revoked          2026-11-21 01:00:00 UTC =HYPERLINK"), "{revoked}");
    assert!(!revoked.contains('\u{1b}'), "{revoked}");
    let row = &shop.rows(&["ledger", "show", &hash(3).to_string()])[0];
    assert_eq!(
        (&row["settlements"][0]["amount_msat"], &row["refunds"][0]["state"]),
        (&20_000.into(), &"paid".into())
    );
}

#[tokio::test]
async fn everything_is_exported_as_csv_that_no_spreadsheet_runs() {
    let shop = Shop::open().await;
    let csv = shop.works(&["ledger", "export"]);
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines.len(), 6, "{csv}");
    assert!(lines[0].starts_with("payment_hash,service,tier,offer,price_msat,paid_msat,"), "{}", lines[0]);
    assert!(
        lines[1]
            .starts_with(&format!("{},weather,0,offer=forever,10000,10000,1,2026-11-20T00:00:01Z,", hash(1)))
    );
    assert!(lines[5].contains(",\"'=HYPERLINK(\"\"http://x\"\"), \u{1b}[2J leaked\","), "{}", lines[5]);
    let json = shop.rows(&["ledger", "export", "--json"]);
    assert_eq!(sum(&json, "paid_msat"), 67_000);
    let mut newest = shop.rows(&["ledger", "list"]);
    newest.reverse();
    assert_eq!(json, newest, "the rows of the list, oldest first");
    let some = shop.works(&["ledger", "export", "--service", "nobody"]);
    assert_eq!(some.lines().collect::<Vec<_>>(), [lines[0]], "names alone");
}

#[tokio::test]
async fn an_exported_file_is_whole_private_and_replaces_nothing() {
    let shop = Shop::open().await;
    assert_eq!(shop.works(&["ledger", "export", "-o", "out.csv"]), "");
    let file = shop.path().join("out.csv");
    assert_eq!(fs::read_to_string(&file).unwrap(), shop.works(&["ledger", "export"]));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let again = shop.run(&["ledger", "export", "-o", "out.csv", "--format", "json"]);
    assert_eq!(again.code, 1);
    assert!(again.stderr.contains("`out.csv` is there already"), "{}", again.stderr);
    assert!(!shop.path().join("out.csv.part").exists());
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 6);
}

#[tokio::test]
async fn what_lies_where_an_export_is_drafted_is_neither_written_through_nor_taken_over() {
    let shop = Shop::open().await;
    let (draft, file) = (shop.path().join("out.csv.part"), shop.path().join("out.csv"));
    // Somebody else has made a file there that all can read.
    fs::write(&draft, "theirs").unwrap();
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o644)).unwrap();
    shop.works(&["ledger", "export", "-o", "out.csv"]);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    // Or a link to what we may write and they may not.
    let precious = shop.path().join("precious");
    fs::write(&precious, "ours").unwrap();
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink(&precious, &draft).unwrap();
    shop.works(&["ledger", "export", "-o", "out.csv"]);
    assert_eq!(fs::read_to_string(&precious).unwrap(), "ours");
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 6);
}

#[tokio::test]
async fn the_report_has_revenue_and_use_by_service_and_day() {
    let shop = Shop::open().await;
    let rows = shop.rows(&["ledger", "report"]);
    let told: Vec<String> = rows
        .iter()
        .map(|row| {
            let text = |name: &str| row[name].as_str().unwrap_or("-").to_owned();
            let number = |name: &str| row[name].as_u64().unwrap();
            let amounts = ["paid_msat", "surplus_msat", "refunded_msat", "requests", "used_msat"].map(number);
            format!("{} {} {amounts:?}", text("day"), text("service"))
        })
        .collect();
    assert_eq!(
        told,
        [
            "2026-11-20 weather [20000, 0, 0, 0, 0]",
            "2026-11-21 - [7000, 0, 0, 0, 0]",
            "2026-11-21 model [20000, 0, 4000, 2, 5000]",
            "2026-11-21 weather [20000, 10000, 0, 3, 0]",
        ]
    );
    let months = shop.rows(&["ledger", "report", "--by", "month"]);
    assert_eq!(of(&months, "day"), ["2026-11", "2026-11", "2026-11"]);
    assert_eq!(sum(&months, "paid_msat"), 67_000);
    assert_eq!(shop.rows(&["ledger", "report", "--until", "2026-11-21"]).len(), 1);
    let table = shop.works(&["ledger", "report", "--by", "total", "--human"]);
    let last: Vec<&str> = table.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(
        last,
        ["sum", "6", "67", "sat", "10", "sat", "4", "sat", "5", "5", "sat", "0", "sat"],
        "{table}"
    );
    let csv = shop.works(&["ledger", "report", "--format", "csv"]);
    assert_eq!(csv.lines().nth(2), Some("2026-11-21,,1,7000,0,0,0,0,0,0"));
}

#[tokio::test]
async fn list_report_audit_and_receipts_count_the_same_money_whatever_is_revoked() {
    let shop = Shop::open().await;
    for revoked in [1, 2, 3] {
        let paid = |args: &[&str]| sum(&shop.rows(args), "paid_msat");
        assert_eq!(paid(&["ledger", "list"]), 67_000);
        assert_eq!(paid(&["ledger", "report"]), 67_000);
        assert_eq!(paid(&["ledger", "verify"]), 67_000);
        let receipts: u64 = [1, 2, 3, 5]
            .map(|number| {
                let receipt = shop.works(&["receipt", "make", &hash(number).to_string()]);
                let line =
                    receipt.lines().find_map(|line| line.strip_prefix("paid-msat: ")).unwrap().to_owned();
                line.parse::<u64>().unwrap()
            })
            .iter()
            .sum();
        // Of what nobody has claimed there is no receipt.
        assert_eq!(receipts, 67_000 - 7_000);
        shop.revoke(revoked, "").await;
    }
    assert_eq!(shop.rows(&["ledger", "list", "--state", "revoked"]).len(), 4);
}

#[tokio::test]
async fn verify_tells_where_the_money_is_and_how_the_last_life_of_the_ledger_ended() {
    let mut shop = Shop::open().await;
    let running = shop.works(&["ledger", "verify", "--human"]);
    for part in [
        "purchases        5, 2 of them with an account\n",
        "paid             67 sat\n= passes         20 sat\n+ spent          5300 msat\n+ left           20700 msat\n",
        "+ refunded       4 sat\n+ surplus        10 sat\n+ unattributed   7 sat\n",
        "runs: 2 groups of charges written, the last 2026-11-21 01:00:00 UTC\n",
        "Every law holds.",
    ] {
        assert!(running.contains(part), "{part} in {running}");
    }

    // Cut off: the epoch has no end, and nobody has the books.
    shop.store = None;
    let report = &shop.rows(&["ledger", "verify"])[0];
    assert_eq!((&report["ok"], &report["running"]), (&true.into(), &false.into()));
    assert_eq!(
        (&report["epochs"][0]["state"], &report["epochs"][0]["groups"]),
        (&"cut-off".into(), &2.into())
    );
    let cut = shop.works(&["ledger", "verify", "--human"]);
    assert!(cut.contains("was CUT OFF: 2 groups") && cut.contains("the buyers have it still"), "{cut}");

    // The next life begins, and ends in order.
    let store = SqliteStore::open(&shop.books()).unwrap();
    let epoch = store.begin_epoch(at(100_000)).await.unwrap();
    store.end_epoch(epoch, at(100_001)).await.unwrap();
    drop(store);
    let report = &shop.rows(&["ledger", "verify"])[0];
    let states = [0, 1].map(|at| report["epochs"][at]["state"].as_str().unwrap());
    assert_eq!(states, ["in-order", "cut-off"]);
    assert_eq!(
        (&report["epochs"][0]["lost_max"], &report["epochs"][1]["lost_max"]),
        (&0.into(), &16_384.into())
    );
}

#[tokio::test]
async fn broken_books_are_named_and_are_exit_code_1() {
    let mut shop = Shop::open().await;
    shop.store = None;
    let broken = rusqlite::Connection::open(shop.books()).unwrap();
    broken
        .execute_batch(
            "PRAGMA ignore_check_constraints = ON;
             UPDATE account SET spent = 21000 WHERE unit = 'msat';
             DELETE FROM settlement WHERE cursor = 1;",
        )
        .unwrap();
    drop(broken);
    let ran = shop.run(&["ledger", "verify", "--human"]);
    assert_eq!(ran.code, 1, "{}", ran.stdout);
    for part in [
        "BROKEN, in ",
        &format!("an account's parts fit into what was sold: not so of {}", hash(3)),
        &format!("payment by payment: not so of {}", hash(1)),
        "not so of the sum of the books",
    ] {
        assert!(ran.stdout.contains(part), "{part} in {}", ran.stdout);
    }
    let ran = shop.run(&["ledger", "verify"]);
    assert_eq!(ran.code, 1);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["ok"], false);
    let list = shop.run(&["ledger", "list"]);
    assert_eq!(list.code, 1);
    assert!(list.stderr.contains("`farebox ledger verify` says more"), "{}", list.stderr);
}

#[tokio::test]
async fn a_copy_of_the_books_can_be_looked_at_anywhere() {
    let mut shop = Shop::open().await;
    shop.store = None;
    let copy = tempfile::tempdir().unwrap();
    let file = copy.path().join("backup.sqlite");
    fs::copy(shop.books(), &file).unwrap();
    let ran = common::run(copy.path(), &["ledger", "verify", "--books", file.to_str().unwrap()], &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let ran = common::run(copy.path(), &["ledger", "list", "--books", "backup.sqlite", "--config", "x"], &[]);
    assert_eq!(ran.code, 2, "either the one or the other");
}

#[tokio::test]
async fn a_receipt_is_verified_offline_with_the_sellers_key() {
    let shop = Shop::open().await;
    let short = &hash(2).to_string()[..12];
    assert_eq!(shop.works(&["receipt", "make", short, "--seller", "Weather & Co", "-o", "receipt.txt"]), "");
    let text = fs::read_to_string(shop.path().join("receipt.txt")).unwrap();
    assert!(text.starts_with("farebox receipt v1\nseller: Weather & Co\nnetwork: signet\n"), "{text}");
    let key = shop.works(&["receipt", "key", "--human"]).trim().to_owned();
    let mode = fs::metadata(shop.path().join("state/receipt-key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // The buyer's machine has the receipt and nothing else.
    let buyer = tempfile::tempdir().unwrap();
    fs::write(buyer.path().join("receipt.txt"), &text).unwrap();
    let verify = |args: &[&str]| common::run(buyer.path(), &[&["receipt", "verify"], args].concat(), &[]);
    let ran = verify(&["receipt.txt", "--key", &key]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let row: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        (&row["is_sellers"], &row["paid_msat"], &row["left"]),
        (&true.into(), &10_000.into(), &97.into())
    );
    let person = verify(&["receipt.txt", "--human"]).stdout;
    assert!(person.contains("used          3 requests of 100 requests; 97 requests left"), "{person}");
    assert!(person.contains("Whether that is the seller, their key tells"), "{person}");
    let row: Value = serde_json::from_str(&verify(&["receipt.txt"]).stdout).unwrap();
    assert_eq!(row["is_sellers"], Value::Null, "nobody has said whose key it should be");

    let other = verify(&["receipt.txt", "--key", &"ab".repeat(32)]);
    assert_eq!((other.code, other.stdout.as_str()), (1, ""));
    assert!(other.stderr.contains(&format!("signed by `{key}`, not by")), "{}", other.stderr);
    fs::write(buyer.path().join("more.txt"), text.replace("paid-msat: 10000", "paid-msat: 90000")).unwrap();
    let changed = verify(&["more.txt", "--key", &key]);
    assert_eq!(changed.code, 1);
    assert!(changed.stderr.contains("the signature does not hold"), "{}", changed.stderr);
}

#[tokio::test]
async fn a_receipt_holds_nothing_that_opens_anything() {
    let shop = Shop::open().await;
    for number in [1, 2, 3, 5] {
        let receipt = shop.works(&["receipt", "make", &hash(number).to_string()]);
        assert!(receipt.contains(&hash(number).to_string()));
        let secret = fs::read_to_string(shop.path().join("state/receipt-key")).unwrap();
        for hidden in [preimage(number).expose_hex().as_str(), &token_id(number).to_string(), secret.trim()] {
            assert!(!receipt.contains(hidden), "{hidden} in {receipt}");
        }
    }
}

#[tokio::test]
async fn there_is_no_receipt_for_what_was_not_paid_or_not_claimed() {
    let shop = Shop::open().await;
    shop.sell(6, "weather", "v1;offer=forever;msat=10000").await;
    for (number, want) in [(6, "has not told of any money"), (4, "nobody has shown the token")] {
        let ran = shop.run(&["receipt", "make", &hash(number).to_string()]);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
        assert!(ran.stderr.contains(want), "{}", ran.stderr);
    }
    assert!(!shop.path().join("state/receipt-key").exists(), "no key is made for nothing");
    // Money of a test network must not pass for the other kind.
    let unnamed = shop.run(&["receipt", "make", &hash(1).to_string(), "--state-dir", "state"]);
    assert_eq!(unnamed.code, 2, "{}", unnamed.stderr);
    assert!(unnamed.stderr.contains("--network"), "{}", unnamed.stderr);
}

#[tokio::test]
async fn refunds_that_only_the_books_know_are_listed_shown_and_spoken_of() {
    let shop = Shop::open().await;
    let order = |id: u8, msat| RefundOrder {
        id: RefundId([id; 16]),
        hash: hash(3),
        of: RefundOf::Credit,
        amount: Msat::new(msat),
        at: at(90_000 + u64::from(id)),
    };
    shop.store().begin_refund(order(2, 1_000)).await.unwrap();
    // And one that these books missed: of 15 sat, 10 were there.
    let (paid_at, limit) = (Some(at(90_100)), Some(Msat::new(10_000)));
    shop.store().add_refund(order(3, 15_000), paid_at, limit).await.unwrap().unwrap();
    let (held, missed, ended) = ("02".repeat(16), "03".repeat(16), "01".repeat(16));

    let rows = shop.rows(&["refund", "list"]);
    assert_eq!(of(&rows, "id"), [missed.as_str(), &held]);
    assert_eq!(of(&rows, "state"), ["paid", "open"]);
    assert_eq!(
        (&rows[0]["booked_msat"], &rows[0]["missing_msat"]),
        (&Value::from(10_000), &Value::from(5_000))
    );
    assert_eq!((&rows[1]["is_orphan"], &rows[1]["amount_msat"]), (&Value::from(true), &Value::from(1_000)));
    assert_eq!(of(&shop.rows(&["refund", "list", "--all"]), "id"), [missed.as_str(), &held, &ended]);
    let shown = shop.works(&["refund", "show", &held, "--human"]);
    assert!(shown.contains("known to the books alone"), "{shown}");
    let shown = shop.works(&["refund", "show", &missed, "--human"]);
    assert!(shown.contains("5 sat of it isn't taken from its purchase"), "{shown}");
    let shown = shop.works(&["ledger", "show", &hash(3).to_string(), "--human"]);
    assert!(shown.contains("5 sat more had nothing to be taken from"), "{shown}");
    assert_eq!(shop.run(&["ledger", "verify"]).code, 0, "beside the law");

    let refused = |args: &[&str], why: &str| {
        let ran = shop.run(&[&["refund", "resolve"], args].concat());
        assert_ne!(ran.code, 0, "{args:?}");
        assert!(ran.stderr.contains(why), "{args:?}: {}", ran.stderr);
    };
    refused(&[&held, "--not-paid"], "there is no journal of refunds");
    // As a gateway's first start leaves it.
    fs::write(shop.path().join("state/refunds.sqlite"), b"").unwrap();
    refused(&[&held, "--paid", "--fee", "1sat"], "say no fee");
    refused(&[&ended, "--not-paid"], "has ended");
    refused(&[&"4e".repeat(16), "--not-paid"], "neither the journal of refunds nor the books know");
    shop.works(&["refund", "resolve", &held, "--not-paid", "--note", "asked"]);
    refused(&[&held, "--paid"], "the first word counts");
    let row = &shop.rows(&["refund", "show", &held])[0];
    assert_eq!(
        (&row["said"]["verdict"], &row["said"]["note"]),
        (&Value::from("not paid"), &Value::from("asked"))
    );
}
