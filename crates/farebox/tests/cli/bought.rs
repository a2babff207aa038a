//! What a buyer holds, on the command line: brought in from another program, narrowed, taken elsewhere, and on the record.

use std::{fs, path::Path};

use farebox_protocol::{Identifier, Macaroon, MintSecret, Network, Preimage, TokenId};
use serde_json::Value;

use crate::common::{Ran, run, run_with_input};

fn preimage() -> Preimage {
    Preimage::from_bytes([7; 32])
}

fn token() -> Macaroon {
    let identifier =
        Identifier { payment_hash: preimage().payment_hash(), token_id: TokenId::from_bytes([9; 32]) };
    let key = MintSecret::from_bytes([1; 32]).root_key(Network::Regtest, &identifier);
    Macaroon::mint(&key, &identifier, &["services=weather:0".to_owned()])
}

/// A token file as lnget has it.
fn lnget(home: &Path, preimage: [u8; 32]) {
    let macaroon = token().to_bytes();
    let mut file = u32::try_from(macaroon.len()).unwrap().to_be_bytes().to_vec();
    file.extend(macaroon);
    file.extend(token().identifier().unwrap().payment_hash.as_bytes());
    file.extend(preimage);
    file.extend([0; 24]);
    let directory = home.join(".lnget/tokens/api.example.com");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("l402.token"), file).unwrap();
}

fn json(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

#[test]
fn a_token_of_another_program_is_brought_in_narrowed_and_taken_elsewhere() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let home = one.path();
    lnget(home, *preimage().expose_bytes());
    let hash = preimage().payment_hash().to_string();
    let secret = preimage().expose_hex().to_string();

    let planned = run(home, &["import", "lnget", "--dry-run"], &[]);
    assert_eq!(
        (planned.code, json(&planned)["imported"][0]["result"].as_str()),
        (0, Some("new")),
        "{planned:?}"
    );
    assert_eq!(json(&run(home, &["tokens", "list"], &[]))["tokens"], serde_json::json!([]));
    for want in ["new", "held"] {
        let ran = run(home, &["import", "lnget"], &[]);
        assert_eq!((ran.code, json(&ran)["imported"][0]["result"].as_str()), (0, Some(want)), "{ran:?}");
    }
    let held = &json(&run(home, &["tokens", "list"], &[]))["tokens"][0];
    assert_eq!((&held["origin"], &held["state"]), (&"https://api.example.com".into(), &"imported".into()));
    assert_eq!(held["source"], "lnget");

    let narrow = run(home, &["tokens", "attenuate", &hash, "--valid-for", "1h", "--caveat", "a=b"], &[]);
    let narrowed = json(&narrow);
    assert_eq!(narrow.code, 0, "{narrow:?}");
    assert_eq!(narrowed["added"][1], "a=b");
    let lent = narrowed["credential"].as_str().unwrap();
    assert!(lent.ends_with(&secret) && !lent.contains(&token().to_base64()), "{lent}");

    let whole = run(home, &["tokens", "export", &hash], &[]).stdout;
    assert_eq!(
        whole.trim(),
        format!("L402 {}:{secret}", token().to_base64()),
        "the one that is held stays as it is"
    );
    assert_eq!(run(home, &["tokens", "export", "--all", "-o", "t.json"], &[]).code, 0);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(home.join("t.json")).unwrap().permissions().mode() & 0o777, 0o600);
    }
    assert_eq!(
        run(home, &["tokens", "export", "--all", "-o", "t.json"], &[]).code,
        1,
        "nothing is written over"
    );
    let file = home.join("t.json").display().to_string();
    let ran = run(two.path(), &["tokens", "import", &file], &[]);
    assert_eq!((ran.code, json(&ran)["imported"][0]["result"].as_str()), (0, Some("new")), "{ran:?}");
    let ran =
        run_with_input(two.path(), &["tokens", "import", "-", "--origin", "https://api.example.com"], &whole);
    assert_eq!((ran.code, json(&ran)["imported"][0]["result"].as_str()), (0, Some("held")), "{ran:?}");

    for args in [
        &["receipts", "list"][..],
        &["--human", "receipts", "list"],
        &["receipts", "export"],
        &["purchases", "list"],
    ] {
        let ran = run(home, args, &[]);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(!ran.stdout.contains(&secret) && !ran.stdout.contains(&token().to_base64()), "{ran:?}");
    }
    let rows = run(home, &["receipts", "export", "--format", "csv"], &[]).stdout;
    assert!(rows.starts_with("number,at,event,") && rows.contains(",imported,"), "{rows}");
    let checked = json(&run(home, &["receipts", "verify"], &[]));
    let link = checked["link"].as_str().unwrap();
    assert_eq!(run(home, &["receipts", "verify", "--link", link], &[]).code, 0);
    assert_eq!(run(home, &["receipts", "verify", "--link", &"ab".repeat(32)], &[]).code, 1);
}

#[test]
fn what_does_not_hold_is_left_out_by_name_and_reason() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path();
    lnget(home, [8; 32]);
    let ran = run(home, &["import", "lnget"], &[]);
    assert_eq!(ran.code, 1);
    let skipped = &json(&ran)["skipped"][0];
    assert!(skipped["name"].as_str().unwrap().ends_with("api.example.com/l402.token"));
    assert_eq!(skipped["reason"], "its preimage is not of its payment");
    assert_eq!(json(&run(home, &["tokens", "list", "--all"], &[]))["tokens"], serde_json::json!([]));
    assert_eq!(run(home, &["import", "alby"], &[]).code, 2, "it keeps them in no usual place");
}
