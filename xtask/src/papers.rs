//! Keeps ARCHITECTURE.md true: every module of every crate stands in it, and every invariant names a test that exists.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use regex::Regex;

use crate::suites::root;

/// Fails with a list of all that is missing.
pub(crate) fn check() -> Result<()> {
    let path = root().join("ARCHITECTURE.md");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let mut missing = modules(&text)?;
    missing.extend(invariants(&text)?);
    if !missing.is_empty() {
        bail!("ARCHITECTURE.md is not true:\n  {}", missing.join("\n  "));
    }
    println!("ARCHITECTURE.md: every module is on the map, every invariant has its test");
    Ok(())
}

/// Modules that the map doesn't name. A module is named by its path below the crate's `src`, like `store/sqlite`.
fn modules(text: &str) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    for entry in fs::read_dir(root().join("crates"))? {
        let krate = entry?.path();
        let name = krate.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let section = section(text, &format!("### {name}"));
        let source = krate.join("src");
        for file in rust_files(&source)? {
            let module = file.strip_prefix(&source)?.with_extension("").to_string_lossy().into_owned();
            let is_root = matches!(module.as_str(), "lib" | "main");
            if !is_root && !section.contains(&format!("`{module}`")) {
                missing.push(format!("crate {name}: module `{module}` is not on the map (under `### {name}`)"));
            }
        }
    }
    Ok(missing)
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
