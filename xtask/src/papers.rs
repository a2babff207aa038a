//! Keeps ARCHITECTURE.md true: its map is made from the headers of the modules, and every invariant names a test that
//! exists.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use regex::Regex;

use crate::suites::root;

const BEGIN: &str =
    "<!-- map: made by `cargo xtask papers --write` from the first sentence of each module -->\n";
const END: &str = "<!-- end of map -->\n";

/// In the order of the arrows between them.
const CRATES: &[&str] = &["protocol", "lightning", "paywall", "gateway", "client", "farebox"];

/// Fails with a list of all that is not true; with `write`, makes the map anew first.
pub(crate) fn check(write: bool) -> Result<()> {
    let path = root().join("ARCHITECTURE.md");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let (before, rest) = text.split_once(BEGIN).context("ARCHITECTURE.md has no place for the map")?;
    let (map, after) = rest.split_once(END).context("ARCHITECTURE.md has no end of the map")?;
    let (fresh, mut missing) = fresh_map()?;
    if write {
        fs::write(&path, format!("{before}{BEGIN}{fresh}{END}{after}"))?;
    } else if map != fresh {
        missing.push("the map is not that of the source; run `cargo xtask papers --write`".to_owned());
    }
    missing.extend(invariants(&text)?);
    if !missing.is_empty() {
        bail!("ARCHITECTURE.md is not true:\n  {}", missing.join("\n  "));
    }
    println!("ARCHITECTURE.md: every module is on the map, every invariant has its test");
    Ok(())
}

/// Every module of every crate with the first sentence of its header, and those that have no header.
fn fresh_map() -> Result<(String, Vec<String>)> {
    let mut map = String::new();
    let mut headless = Vec::new();
    for krate in CRATES {
        map.push_str(&format!("\n### {krate}\n\n| module | what it is for |\n|---|---|\n"));
        let source = root().join("crates").join(krate).join("src");
        for file in rust_files(&source)? {
            let module = file.strip_prefix(&source)?.with_extension("").to_string_lossy().into_owned();
            if matches!(module.as_str(), "lib" | "main") || module.ends_with("tests") {
                continue;
            }
            match first_sentence(&fs::read_to_string(&file)?) {
                Some(sentence) => map.push_str(&format!("| `{module}` | {sentence} |\n")),
                None => headless.push(format!("crate {krate}: module `{module}` has no header")),
            }
        }
    }
    map.push('\n');
    Ok((map, headless))
}

/// The first sentence of a module's header, in one line and without links.
fn first_sentence(source: &str) -> Option<String> {
    let header =
        source.lines().map_while(|line| line.strip_prefix("//!")).take_while(|line| !line.trim().is_empty());
    let text = header.map(str::trim).collect::<Vec<_>>().join(" ");
    let end = text.find(". ").unwrap_or_else(|| text.trim_end_matches('.').len());
    let links = Regex::new(r"\[(`[^`]*`)\](\([^)]*\))?").ok()?;
    let sentence = links.replace_all(&text[..end], "$1").replace('|', "\\|");
    (!sentence.is_empty()).then_some(sentence)
}

/// Invariants without a test, or with one that doesn't exist. An invariant's line ends in `guarded by: test, test`.
fn invariants(text: &str) -> Result<Vec<String>> {
    let mut sources = String::new();
    for dir in ["crates", "tests"] {
        for file in rust_files(&root().join(dir))? {
            sources.push_str(&fs::read_to_string(file)?);
        }
    }
    let numbered = Regex::new(r"(?m)^\d+\. ")?;
    let quoted = Regex::new(r"`([a-z0-9_]+)`")?;
    let section = section(text, "## Invariants");
    let mut missing = Vec::new();
    let starts: Vec<usize> = numbered.find_iter(section).map(|found| found.start()).collect();
    if starts.is_empty() {
        missing.push("there are no invariants under `## Invariants`".to_owned());
    }
    for (index, start) in starts.iter().enumerate() {
        let item = &section[*start..starts.get(index + 1).copied().unwrap_or(section.len())];
        let title: String = item.chars().take(60).collect();
        let Some((_, guards)) = item.split_once("Guarded by") else {
            missing.push(format!("invariant \"{title}…\" names no test (`Guarded by`)"));
            continue;
        };
        let names: Vec<&str> = quoted.captures_iter(guards).map(|found| found.extract::<1>().1[0]).collect();
        if names.is_empty() {
            missing.push(format!("invariant \"{title}…\" names no test"));
        }
        for name in names {
            if !sources.contains(&format!("fn {name}(")) {
                missing.push(format!("invariant \"{title}…\" names the test `{name}`, which does not exist"));
            }
        }
    }
    Ok(missing)
}

/// The text from a heading to the next one of the same or a higher level.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let level = heading.bytes().take_while(|byte| *byte == b'#').count();
    let mut start = None;
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let hashes = line.bytes().take_while(|byte| *byte == b'#').count();
        match start {
            None if line.trim_end() == heading => start = Some(offset),
            Some(from) if hashes > 0 && hashes <= level => return &text[from..offset],
            _ => {}
        }
        offset += line.len();
    }
    start.map_or("", |from| &text[from..])
}

fn rust_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list `{}`", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
