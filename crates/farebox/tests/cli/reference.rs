//! The manual of the configuration file, made from the doc comments of the structs that read it.
//!
//! `UPDATE_EXPECT=1 cargo test -p farebox --test cli` writes it anew; without that, a manual that doesn't say what
//! the code says fails the build.

use std::{collections::BTreeSet, fs, path::Path};

use expect_test::expect_file;

/// A key of the file.
struct Key {
    name: String,
    doc: String,
    required: bool,
}

/// A struct that reads a mapping, or an enum whose variant is chosen by a key.
struct Mapping {
    name: String,
    doc: String,
    keys: Vec<Key>,
    is_choice: bool,
}

/// Which struct reads the mapping at which key, by source file.
const SECTIONS: [(&str, &str, &str); 38] = [
    ("", FILE, "File"),
    ("lightning", LIGHTNING, "LightningConfig"),
    ("lightning.lnd", LIGHTNING, "LndSettings"),
    ("lightning.lnd.tls-cert", LIGHTNING, "TlsCert"),
    ("lightning.lnd.macaroon", LIGHTNING, "Password"),
    ("lightning.phoenixd", LIGHTNING, "PhoenixdSettings"),
    ("lightning.phoenixd.password", LIGHTNING, "Password"),
    ("lightning.embedded", LIGHTNING, "EmbeddedSettings"),
    ("lightning.embedded.chain", LIGHTNING, "ChainSettings"),
    ("lightning.embedded.chain.bitcoind", LIGHTNING, "BitcoindSettings"),
    ("listen[]", LISTEN, "ListenMap"),
    ("listen[].tls", LISTEN, "TlsMap"),
    ("listen[].tls.more-certificates[]", LISTEN, "CertificateFiles"),
    ("clients", LISTEN, "Clients"),
    ("ops", FILE, "OpsMap"),
    ("mint-secrets[]", FILE, "MintSecretEntry"),
    ("minting", FILE, "Minting"),
    ("refunds", REFUNDS, "Refunds"),
    ("receipts", RECEIPTS, "Receipts"),
    ("limits", FILE, "Limits"),
    ("services[]", SERVICE, "Service"),
    ("services[].monthly.NAME", OFFER, "MonthlyMost"),
    ("services[].offers[]", OFFER, "NamedOffer"),
    ("services[].cost", COST, "Meter"),
    ("services[].cost.bytes", COST, "ByteCost"),
    ("services[].cost.usage", COST, "UsageCost"),
    ("services[].cost.usage.models.NAME", COST, "ModelRates"),
    ("services[].cost.header", COST, "HeaderCost"),
    ("services[].costs[]", COST, "RouteCost"),
    ("services[].capabilities[]", OFFER, "Capability"),
    ("services[].tiers[]", OFFER, "Tier"),
    ("services[].upstream", UPSTREAM, "UpstreamMap"),
    ("services[].upstream.health", UPSTREAM, "Health"),
    ("services[].freebie", SERVICE, "FreebieMap"),
    ("services[].rewrite", SERVICE, "Rewrite"),
    ("services[].rate-limits[]", SERVICE, "RateLimit"),
    ("services[].clients", LISTEN, "Clients"),
    ("services[].headers.NAME", SERVICE, "InFile"),
];

const FILE: &str = "crates/farebox/src/config/file.rs";
const LISTEN: &str = "crates/farebox/src/config/file/listen.rs";
const SERVICE: &str = "crates/farebox/src/config/file/service.rs";
const OFFER: &str = "crates/farebox/src/config/file/offer.rs";
const COST: &str = "crates/farebox/src/config/file/cost.rs";
const UPSTREAM: &str = "crates/farebox/src/config/file/upstream.rs";
const RECEIPTS: &str = "crates/farebox/src/config/file/receipts.rs";
const REFUNDS: &str = "crates/farebox/src/config/file/refunds.rs";
const LIGHTNING: &str = "crates/lightning/src/config.rs";

const INTRODUCTION: &str = "\
# The configuration file

farebox is told what to sell in one YAML file, `farebox.yaml`. It is strict: a key or value that isn't known stops the \
start, with its line and what was probably meant. `farebox check` says the same without starting anything. A whole file to \
start from is [`farebox.example.yaml`](../farebox.example.yaml).

In values, `${NAME}` is the environment variable `NAME`, `${NAME:-text}` the same with a default, and `$$` a dollar sign; a \
variable that isn't set and has no default stops the start. Times are written `500ms`, `10s`, `5m`, `1h`, `30d`; sizes `512B`, \
`64KiB`, `10MiB`; rates `100/s`, `10/min`; amounts `10sat`, `1500msat`, and for many small things `300sat/1M`, `500msat/MB`. Paths are relative to \
the file.

<!-- Made from the doc comments in the code: `UPDATE_EXPECT=1 cargo test -p farebox --test cli`. -->
";

fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The types of a source file that derive `Deserialize` and document their fields or variants.
fn mappings(source: &str) -> Vec<Mapping> {
    let mut found: Vec<Mapping> = Vec::new();
    let (mut doc, mut reads, mut inside) = (String::new(), false, false);
    // Whether the type as a whole, and whether the next field, has a default.
    let (mut all_default, mut has_default) = (false, false);
    for line in source.lines() {
        let code = line.trim();
        if let Some(text) = code.strip_prefix("///") {
            doc.push_str(text);
        } else if code.starts_with("#[derive(") {
            (reads, all_default) = (code.contains("Deserialize"), false);
        } else if code.starts_with("#[serde(") {
            *(if inside { &mut has_default } else { &mut all_default }) = code.contains("default");
        } else if code.starts_with("#[") {
        } else if let (true, Some((name, is_choice))) = (reads && !inside, type_name(code)) {
            found.push(Mapping { name, doc: std::mem::take(&mut doc), keys: Vec::new(), is_choice });
            inside = true;
        } else if inside && code == "}" {
            (inside, reads) = (false, false);
        } else if inside && !doc.is_empty() {
            let mapping = found.last_mut().unwrap();
            let name = if mapping.is_choice { variant_key(code) } else { field_key(code) };
            let required = !all_default && !has_default && !mapping.is_choice;
            mapping.keys.push(Key { name, doc: std::mem::take(&mut doc), required });
            has_default = false;
        } else {
            doc.clear();
        }
    }
    // Enums of bare words are explained where they are used.
    found.retain(|mapping| !mapping.keys.is_empty());
    found
}

fn type_name(code: &str) -> Option<(String, bool)> {
    let (before, name) = code.strip_suffix(" {")?.rsplit_once(' ')?;
    let is_choice = before.ends_with("enum");
    (is_choice || before.ends_with("struct")).then(|| (name.to_owned(), is_choice))
}

/// `pub(crate) free_paths: Vec<…>,` is the key `free-paths`.
fn field_key(code: &str) -> String {
    let (field, _) = code.split_once(": ").unwrap();
    field.rsplit(' ').next().unwrap().replace('_', "-")
}

/// `Esplora(String),` is the key `esplora`.
fn variant_key(code: &str) -> String {
    code.split(['(', ',']).next().unwrap().to_lowercase()
}

fn sections() -> Vec<(&'static str, Mapping)> {
    let section = |(at, file, name): (&'static str, &str, &str)| {
        let source = fs::read_to_string(workspace().join(file)).unwrap();
        let found = mappings(&source).into_iter().find(|mapping| mapping.name == name);
        (at, found.unwrap_or_else(|| panic!("{file} has no `{name}` that reads a mapping")))
    };
    SECTIONS.into_iter().map(section).collect()
}

#[test]
fn the_manual_says_what_the_code_says() {
    let mut text = INTRODUCTION.to_owned();
    for (at, mapping) in sections() {
        let title = if at.is_empty() { "The whole file".to_owned() } else { format!("`{at}`") };
        text.push_str(&format!("\n## {title}\n\n{}\n", mapping.doc.trim()));
        for key in &mapping.keys {
            let required = if key.required { " (required)" } else { "" };
            text.push_str(&format!("\n**`{}`**{required}: {}\n", key.name, key.doc.trim()));
        }
    }
    expect_file![workspace().join("docs/reference/config.md")].assert_eq(&text);
}

#[test]
fn every_key_is_explained_and_those_with_a_default_name_it() {
    for (at, mapping) in sections() {
        assert!(!mapping.keys.is_empty(), "{at} has no keys");
        for key in mapping.keys {
            assert!(!key.doc.is_empty(), "{at}.{} is not explained", key.name);
            // What is one of several has no default, and a section's defaults are those of its keys.
            let has_section =
                SECTIONS.iter().any(|(section, ..)| section.rsplit('.').next() == Some(&key.name));
            let told = key.doc.contains("Default: ") || key.doc.contains("Needed unless");
            let needs_none = key.required || mapping.is_choice || has_section;
            assert!(needs_none || told, "{at}.{} doesn't name its default", key.name);
        }
    }
}

#[test]
fn every_struct_that_reads_the_file_has_its_section() {
    for file in [FILE, LISTEN, SERVICE, OFFER, COST, UPSTREAM, LIGHTNING] {
        let described: BTreeSet<&str> =
            SECTIONS.iter().filter(|(_, in_file, _)| *in_file == file).map(|(_, _, name)| *name).collect();
        for mapping in mappings(&fs::read_to_string(workspace().join(file)).unwrap()) {
            // Choices that are single words, or one word and one value, are explained with their key.
            if mapping.name == "SecretFrom" {
                continue;
            }
            assert!(described.contains(mapping.name.as_str()), "`{}` of {file} has no section", mapping.name);
        }
    }
}

#[test]
fn the_example_is_good_and_shows_every_key() {
    let path = workspace().join("docs/farebox.example.yaml");
    let ran =
        crate::common::run(&workspace().join("docs"), &["check", "--human", "farebox.example.yaml"], &[]);
    assert_eq!(ran.code, 0, "{}", ran.stdout);
    let example = fs::read_to_string(path).unwrap();
    // The other ways to have a node stand in comments.
    for (at, mapping) in sections() {
        for key in mapping.keys {
            assert!(
                example.contains(&format!("{}:", key.name)),
                "the example doesn't show {at}.{}",
                key.name
            );
        }
    }
}
