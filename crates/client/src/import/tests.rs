//! Files as the programs write them, made by hand; and files as nobody writes them.

use std::path::PathBuf;

use farebox_protocol::RootKey;
use proptest::prelude::*;

use super::*;
use crate::mint::Draft;

const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

struct Bought {
    draft: Draft,
    macaroon: Macaroon,
}

fn bought(number: u64) -> Bought {
    let draft = Draft::new(number, 100, NOW);
    let macaroon = draft.macaroon(&RootKey::from_bytes([3; 32]), &["services=weather:0".to_owned()]);
    Bought { draft, macaroon }
}

impl Bought {
    fn hash(&self) -> PaymentHash {
        self.draft.payment_hash()
    }

    fn preimage(&self) -> String {
        self.draft.preimage().expose_hex().to_string()
    }

    /// A token file as aperture's client writes it.
    fn file(&self, is_paid: bool) -> Vec<u8> {
        let macaroon = self.macaroon.to_bytes();
        let mut file = u32::try_from(macaroon.len()).unwrap().to_be_bytes().to_vec();
        file.extend(&macaroon);
        file.extend(self.hash().as_bytes());
        file.extend(if is_paid { *self.draft.preimage().expose_bytes() } else { [0; 32] });
        file.extend(100_000_u64.to_be_bytes());
        file.extend(7_u64.to_be_bytes());
        file.extend(1_699_999_999_500_000_000_i64.to_be_bytes());
        file
    }
}

struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

fn origin(text: &str) -> Origin {
    text.parse().unwrap()
}

/// What was found, in short, and why the rest wasn't.
fn told(haul: &Haul) -> (Vec<(String, PaymentHash, bool)>, Vec<String>) {
    let found = |found: &Found| (found.origin.to_string(), found.payment_hash, found.preimage.is_some());
    (haul.found.iter().map(found).collect(), haul.skipped.iter().map(|s| s.reason.to_string()).collect())
}

#[test]
fn lnget_keeps_a_directory_for_each_domain() {
    let store = Directory::new();
    let tokens = [bought(1), bought(2), bought(3), bought(4)];
    store.put("api.example.com/l402.token", tokens[0].file(true));
    store.put("localhost_8081/l402.token", tokens[1].file(true));
    store.put("odd_name.example/.domain", "shop.example:8443\n");
    store.put("odd_name.example/lsat.token", tokens[2].file(true));
    store.put("slow.example/l402.token.pending", tokens[3].file(false));
    store.put("empty.example/readme", "nothing");
    let haul = Program::Lnget.read(store.path(), None).unwrap();
    let want = [
        ("https://api.example.com".to_owned(), tokens[0].hash(), true),
        ("https://localhost:8081".to_owned(), tokens[1].hash(), true),
        ("https://shop.example:8443".to_owned(), tokens[2].hash(), true),
        ("https://slow.example".to_owned(), tokens[3].hash(), false),
    ];
    assert_eq!(told(&haul), (want.to_vec(), vec![]));
    let first = &haul.found[0];
    assert_eq!((first.amount, first.fee), (Some(Msat::new(100_000)), Some(Msat::new(7))));
    assert_eq!(first.bought_at, Some(Timestamp::from_secs(1_699_999_999)));
    assert_eq!(first.token, tokens[0].macaroon.to_base64());
    let pending = &haul.found[3];
    assert_eq!((pending.amount, pending.fee), (None, None), "nothing tells what it cost");

    // One server only, and by the scheme that is said.
    let local = origin("http://localhost:8081");
    let haul = Program::Lnget.read(store.path(), Some(&local)).unwrap();
    assert_eq!(told(&haul).0, [("http://localhost:8081".to_owned(), tokens[1].hash(), true)]);
    assert!(haul.skipped.iter().all(|s| matches!(s.reason, Unfit::OtherOrigin(_))));
}

#[test]
fn of_a_paid_token_and_its_pending_file_the_paid_one_counts() {
    let store = Directory::new();
    store.put("l402.token.pending", bought(1).file(false));
    store.put("l402.token", bought(1).file(true));
    let haul = Program::Aperture.read(store.path(), Some(&origin("https://a.example"))).unwrap();
    assert_eq!(told(&haul).0, [("https://a.example".to_owned(), bought(1).hash(), true)]);
}

#[test]
fn a_store_without_a_host_asks_for_one() {
    let store = Directory::new();
    store.put("mainnet/l402.token", bought(1).file(true));
    let haul = Program::Loop.read(store.path(), None).unwrap();
    assert_eq!(told(&haul), (vec![], vec![Unfit::NoOrigin.to_string()]));
    let haul = Program::Loop.read(store.path(), Some(&origin("https://loop.example"))).unwrap();
    assert_eq!(haul.found.len(), 1);
}

#[test]
fn a_token_file_that_does_not_hold_is_left_out_by_name_and_reason() {
    let good = bought(1).file(true);
    let length = bought(1).macaroon.to_bytes().len();
    let changed = |at: usize| {
        let mut file = good.clone();
        file[at] ^= 1;
        file
    };
    for (bytes, want) in [
        (vec![], "it is no token file: it is too short"),
        (good[..good.len() - 1].to_vec(), "it is no token file: its length is not what it says"),
        ([good.clone(), vec![0]].concat(), "it is no token file: its length is not what it says"),
        (vec![0xff; 200], "it is no token file: its length is not what it says"),
        (changed(6), "it is no token file: its macaroon can't be read"),
        (changed(4 + length + 40), "its preimage is not of its payment"),
        (changed(4 + length + 3), "its preimage is not of its payment"),
        (vec![0; 70_000], "it is no token file: it is too long"),
    ] {
        let store = Directory::new();
        let path = store.put("l402.token", bytes);
        let haul = Program::Aperture.read(store.path(), Some(&origin("https://a.example"))).unwrap();
        assert!(haul.found.is_empty(), "{want}");
        assert_eq!(haul.skipped.len(), 1);
        assert_eq!(
            (haul.skipped[0].name.as_str(), haul.skipped[0].reason.to_string()),
            (path.to_str().unwrap(), want.to_owned())
        );
    }
    // The token of one payment with the proof of another.
    let mut mixed = bought(2).file(true);
    let tail = mixed.len() - 88;
    mixed[tail..].copy_from_slice(&good[good.len() - 88..]);
    let store = Directory::new();
    store.put("l402.token", mixed);
    let haul = Program::Aperture.read(store.path(), Some(&origin("https://a.example"))).unwrap();
    assert_eq!(told(&haul).1, ["its token commits to another payment"]);
}

#[cfg(unix)]
#[test]
fn links_in_a_store_are_not_followed() {
    let (store, other) = (Directory::new(), Directory::new());
    let token = other.put("l402.token", bought(1).file(true));
    std::os::unix::fs::symlink(token, store.path().join("l402.token")).unwrap();
    let haul = Program::Aperture.read(store.path(), Some(&origin("https://a.example"))).unwrap();
    assert_eq!(told(&haul), (vec![], vec![Unfit::NotAFile.to_string()]));
}

#[test]
fn what_loop_prints_is_read_like_what_it_keeps() {
    let (paid, pending) = (bought(1), bought(2));
    let json = serde_json::json!([
        { "id": "x", "valid_until": "0", "base_macaroon": paid.macaroon.to_hex(), "payment_hash": paid.hash().to_string(),
          "payment_preimage": paid.preimage(), "amount_paid_msat": "100000", "routing_fee_paid_msat": 7,
          "time_created": "2023-11-14T22:13:19+00:00", "expired": false, "file_name": "l402.token" },
        { "base_macaroon": pending.macaroon.to_hex(), "payment_hash": pending.hash().to_string(),
          "payment_preimage": "0".repeat(64), "amount_paid_msat": 0, "time_created": "1700000000" },
        { "base_macaroon": "00", "payment_hash": "x" }, 7,
    ]);
    let store = Directory::new();
    let path = store.put("auth.json", json.to_string());
    let haul = Program::Loop.read(&path, Some(&origin("https://loop.example"))).unwrap();
    let (found, skipped) = told(&haul);
    assert_eq!(
        found.iter().map(|(_, hash, paid)| (*hash, *paid)).collect::<Vec<_>>(),
        [(paid.hash(), true), (pending.hash(), false)]
    );
    assert_eq!(skipped.len(), 2);
    assert_eq!(
        (haul.found[0].amount, haul.found[0].bought_at),
        (Some(Msat::new(100_000)), Some(Timestamp::from_secs(1_699_999_999)))
    );
    assert_eq!(haul.found[1].bought_at, Some(NOW));
}

fn database(store: &Directory, name: &str, sql: &str) -> PathBuf {
    let path = store.path().join(name);
    rusqlite::Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    path
}

#[test]
fn l402sdk_keeps_whole_addresses() {
    let (one, two) = (bought(1), bought(2));
    let url_safe = one.macaroon.to_base64().replace('+', "-").replace('/', "_").replace('=', "");
    let store = Directory::new();
    let sql = format!(
        "PRAGMA user_version = 1;
         CREATE TABLE l402_tokens (endpoint TEXT PRIMARY KEY, macaroon TEXT NOT NULL, preimage TEXT NOT NULL,
                                   created_at INTEGER NOT NULL, expires_at INTEGER);
         CREATE INDEX l402_expires ON l402_tokens (expires_at);
         INSERT INTO l402_tokens VALUES ('https://a.example/v1/x?key=secret', '{url_safe}', '{}', 1699999999, NULL);
         INSERT INTO l402_tokens VALUES ('http://b.example:8080/', 'not-a-macaroon', '{}', 1699999998, 1);
         INSERT INTO l402_tokens VALUES ('https://c.example/', '{}', 'zz', 1, NULL);
         INSERT INTO l402_tokens VALUES ('ftp://d.example/', 't', '{}', 1, NULL);
         INSERT INTO l402_tokens VALUES ('https://e.example/', 'a b', '{}', 1, NULL);
         INSERT INTO l402_tokens VALUES ('https://f.example/', '{}', '{}', 1, NULL);",
        one.preimage(), two.preimage(), one.macaroon.to_base64(), one.preimage(), one.preimage(),
        two.macaroon.to_base64(), one.preimage(),
    );
    let path = database(&store, "tokens.db", &sql);
    let before = fs::read(&path).unwrap();
    let haul = Program::L402sdk.read(&path, None).unwrap();
    let (mut found, mut skipped) = told(&haul);
    found.sort();
    skipped.sort();
    let mut want = vec![
        ("http://b.example:8080".to_owned(), two.hash(), true),
        ("https://a.example".to_owned(), one.hash(), true),
    ];
    want.sort();
    assert_eq!(found, want, "a token that nobody can read is kept as it is, like any other");
    assert_eq!(
        skipped,
        [
            "its preimage is not 64 hexadecimal digits".to_owned(),
            Unfit::Unsendable.to_string(),
            "its token commits to another payment".to_owned(),
            Unfit::BadOrigin.to_string(),
        ]
    );
    let path_of_one = haul.found.iter().find(|found| found.payment_hash == one.hash()).unwrap();
    assert_eq!(path_of_one.path.as_deref(), Some("/v1/x"));
    assert!(haul.found.iter().all(|found| !found.name.contains("secret")), "names have no query");
    // Nothing was changed, and nothing was made beside it.
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(fs::read_dir(store.path()).unwrap().count(), 1);
}

#[test]
fn what_is_still_in_the_log_of_a_database_is_read_too() {
    let store = Directory::new();
    let path = store.path().join("tokens.db");
    let writer = rusqlite::Connection::open(&path).unwrap();
    writer.pragma_update(None, "journal_mode", "wal").unwrap();
    writer
        .execute_batch(&format!(
            "CREATE TABLE l402_tokens (endpoint TEXT PRIMARY KEY, macaroon TEXT, preimage TEXT, created_at INTEGER, expires_at INTEGER);
             INSERT INTO l402_tokens VALUES ('https://a.example/', '{}', '{}', 1, NULL);",
            bought(1).macaroon.to_base64(),
            bought(1).preimage()
        ))
        .unwrap();
    let haul = Program::L402sdk.read(&path, None).unwrap();
    assert_eq!(haul.found.len(), 1);
    drop(writer);
}

#[test]
fn of_fewsats_credentials_for_one_address_the_newest_counts() {
    let (old, new, pending) = (bought(1), bought(2), bought(3));
    let store = Directory::new();
    let row = |url: &str, bought: &Bought, preimage: &str, at: &str| {
        format!(
            "INSERT INTO credentials (location, macaroon, preimage, invoice, created_at) VALUES ('{url}', '{}', '{preimage}', '{}', '{at}');",
            bought.macaroon.to_base64(),
            bought.draft.invoice().as_str()
        )
    };
    let sql = [
        "CREATE TABLE credentials (id INTEGER PRIMARY KEY, location TEXT, macaroon TEXT, preimage TEXT, invoice TEXT, created_at TIMESTAMP);".to_owned(),
        row("https://a.example/x", &old, &old.preimage(), "2023-11-14 22:13:19"),
        row("https://a.example/x", &new, &new.preimage(), "2023-11-15 22:13:19.123456"),
        row("https://a.example/y", &pending, "", "2023-11-14 22:13:19"),
    ];
    let path = database(&store, "credentials.db", &sql.concat());
    let haul = Program::Fewsats.read(&path, None).unwrap();
    let (found, skipped) = told(&haul);
    assert_eq!(skipped, [Unfit::Older.to_string()]);
    assert_eq!(
        found.iter().map(|(_, hash, paid)| (*hash, *paid)).collect::<Vec<_>>(),
        [(new.hash(), true), (pending.hash(), false)]
    );
    assert_eq!(haul.found[0].amount, Some(Msat::new(100_000)), "from the invoice");

    // The command keeps the last segment of an address, which names no host.
    let sql = sql.concat().replace("location", "external_id").replace("https://a.example/", "");
    let path = database(&store, "cli.db", &sql);
    assert_eq!(told(&Program::Fewsats.read(&path, None).unwrap()).0, []);
    assert_eq!(Program::Fewsats.read(&path, Some(&origin("https://a.example"))).unwrap().found.len(), 2);
}

#[test]
fn a_database_that_is_none_or_wants_work_done_is_refused() {
    let store = Directory::new();
    let endless = "CREATE VIEW l402_tokens AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
                   SELECT 'https://a.example' endpoint, 'm' macaroon, 'p' preimage, i created_at, i expires_at FROM n;";
    let columns = "endpoint TEXT, preimage TEXT, created_at INTEGER, expires_at INTEGER";
    let computed = format!(
        "CREATE TABLE l402_tokens ({columns}, macaroon TEXT AS (substr(hex(zeroblob(300000000)), 1, 8)) VIRTUAL);
         INSERT INTO l402_tokens VALUES ('https://a.example', '', 1, 1);"
    );
    let made_up = "CREATE VIRTUAL TABLE l402_tokens USING fts5 (endpoint, macaroon, preimage, created_at);";
    for (name, path) in [
        ("a view", database(&store, "view.db", endless)),
        ("a computed column", database(&store, "computed.db", &computed)),
        ("a virtual table", database(&store, "virtual.db", made_up)),
        ("no table", database(&store, "empty.db", "CREATE TABLE other (a);")),
        ("other columns", database(&store, "columns.db", "CREATE TABLE l402_tokens (a);")),
        ("no database", store.put("text.db", "SQLite format 3 or not")),
        ("a directory", store.path().to_owned()),
        ("nothing", store.path().join("missing")),
    ] {
        assert!(Program::L402sdk.read(&path, None).is_err(), "{name}");
    }
}

#[test]
fn alby_keeps_credentials_in_three_shapes() {
    let (one, two, three) = (bought(1), bought(2), bought(3));
    let token = |bought: &Bought| bought.macaroon.to_base64();
    let store = serde_json::json!({
        "https://a.example/x?k=1": format!("{{\"token\":\"{}\",\"preimage\":\"{}\"}}", token(&one), one.preimage()),
        "https://b.example/": { "token": token(&two), "preimage": two.preimage() },
        "other setting": "dark",
    });
    let list = serde_json::json!([
        { "header": "Authorization", "value": format!("LSAT {}:{}", token(&one), one.preimage()) },
        { "scheme": "l402", "header": "Authorization", "token": token(&three), "authScheme": "LSAT" },
        { "scheme": "mpp", "header": "Authorization", "challenge": {} },
        { "scheme": "x402", "header": "x-payment", "value": "abc" },
        "nonsense",
    ]);
    let files = Directory::new();
    let haul = Program::Alby.read(&files.put("store.json", store.to_string()), None).unwrap();
    let (mut found, skipped) = told(&haul);
    found.sort();
    let mut want = vec![
        ("https://a.example".to_owned(), one.hash(), true),
        ("https://b.example".to_owned(), two.hash(), true),
    ];
    want.sort();
    assert_eq!((found, skipped.len()), (want, 1));

    let here = origin("https://c.example");
    let haul = Program::Alby.read(&files.put("list.json", list.to_string()), Some(&here)).unwrap();
    let (found, skipped) = told(&haul);
    assert_eq!(
        found.iter().map(|(_, hash, paid)| (*hash, *paid)).collect::<Vec<_>>(),
        [(one.hash(), true), (three.hash(), false)]
    );
    assert_eq!(skipped.len(), 3);
    assert_eq!(haul.found[0].scheme, Scheme::Lsat);
    let alone = files.put("one.json", list[0].to_string());
    assert_eq!(Program::Alby.read(&alone, Some(&here)).unwrap().found.len(), 1);
}

#[test]
fn a_host_that_would_lead_elsewhere_is_none() {
    for domain in [
        "a.example/x",
        "user@a.example",
        "a.example?x",
        "",
        "a b",
        "a\u{e9}.example",
        "[::1",
        "a.example:99999",
    ] {
        let store = Directory::new();
        store.put("x/.domain", domain);
        store.put("x/l402.token", bought(1).file(true));
        let haul = Program::Lnget.read(store.path(), None).unwrap();
        assert_eq!(told(&haul), (vec![], vec![Unfit::BadOrigin.to_string()]), "{domain}");
    }
}

#[test]
fn moments_are_read_as_they_are_written() {
    for (text, want) in [
        ("0", Some(0)),
        ("1970-01-01T00:00:00Z", Some(0)),
        ("2000-02-29T00:00:00Z", Some(951_782_400)),
        ("2023-11-14T22:13:20.123456789Z", Some(1_700_000_000)),
        ("2023-11-14 22:13:20", Some(1_700_000_000)),
        ("2023-11-15T00:13:20+02:00", Some(1_700_000_000)),
        ("2023-11-14T17:13:20.5-05:00", Some(1_700_000_000)),
        ("2023-13-14T22:13:20Z", None),
        ("2023-11-14", None),
        ("1969-12-31T23:59:59Z", None),
        ("yesterday", None),
        ("", None),
    ] {
        assert_eq!(moment_of(text).map(Timestamp::secs), want, "{text}");
    }
}

#[test]
fn nothing_that_is_said_of_a_find_holds_its_secret() {
    let store = Directory::new();
    store.put("l402.token", bought(1).file(true));
    let haul = Program::Aperture.read(store.path(), Some(&origin("https://a.example"))).unwrap();
    let text = format!("{haul:?}");
    assert!(
        !text.contains(&bought(1).preimage()) && !text.contains(&bought(1).macaroon.to_base64()),
        "{text}"
    );
    let json = store.put("bad.json", format!("{{\"a\": \"{}", bought(1).preimage()));
    for program in [Program::Alby, Program::Loop, Program::Farebox] {
        let error = program.read(&json, None).unwrap_err();
        assert!(!format!("{error:?}").contains(&bought(1).preimage()), "{error:?}");
    }
}

proptest! {
    #[test]
    fn no_token_file_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), at in 0_usize..400, to in any::<u8>()) {
        _ = aperture::parse(&bytes, String::new(), Place::Unknown).is_ok();
        // Near to a good one, too.
        let mut near = bought(1).file(true);
        let at = at % near.len();
        near[at] = to;
        let mut sieve = Sieve { origin: None, haul: Haul::default() };
        if let Ok(entry) = aperture::parse(&near, String::new(), Place::Host("a.example".to_owned())) {
            sieve.take(entry);
        }
        // What is let through has its proof.
        for found in &sieve.haul.found {
            prop_assert!(found.preimage.as_ref().is_none_or(|preimage| preimage.pays(&found.payment_hash)));
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,200}", key in "[a-z_]{1,12}") {
        let value = serde_json::json!({ key.clone(): text, "token": text, "preimage": text, "header": text, "value": text });
        for text in [text.clone(), value.to_string(), serde_json::json!([value]).to_string(), serde_json::json!({ text: value }).to_string()] {
            let format = Program::Alby.format(Path::new("x"));
            let mut sieve = Sieve { origin: None, haul: Haul::default() };
            _ = json::read_alby(&text, &format, &mut sieve);
            _ = json::read_loop(&text, &format, &mut sieve);
            _ = json::read_own(&text, &format, &mut sieve);
            _ = moment_of(&text);
        }
    }

}

proptest! {
    // Each case makes a database.
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn no_bytes_in_a_database_make_it_panic(at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let store = Directory::new();
        let path = database(&store, "t.db", &format!(
            "CREATE TABLE l402_tokens (endpoint TEXT PRIMARY KEY, macaroon TEXT, preimage TEXT, created_at INTEGER, expires_at INTEGER);
             INSERT INTO l402_tokens VALUES ('https://a.example/', '{}', '{}', 1, NULL);",
            bought(1).macaroon.to_base64(), bought(1).preimage()));
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = to;
        fs::write(&path, bytes).unwrap();
        if let Ok(haul) = Program::L402sdk.read(&path, None) {
            for found in &haul.found {
                prop_assert!(found.preimage.as_ref().is_none_or(|preimage| preimage.pays(&found.payment_hash)));
            }
        }
    }
}
