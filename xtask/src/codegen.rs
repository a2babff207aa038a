//! Makes the Rust code for the protocols of other people's nodes from our own trimmed `.proto` files. The code is checked
//! in, so that building farebox needs neither `protoc` nor this; `--check` says whether it is up to date.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::suites::root;

/// One generated module for each package.
struct Package {
    name: &'static str,
    says: &'static str,
}

const PROTOS: &str = "crates/lightning/proto";
const MODULES: &str = "crates/lightning/src/lnd/rpc";
const PACKAGES: &[Package] = &[
    Package { name: "lnrpc", says: "lnd's main services, as far as farebox asks them" },
    Package { name: "invoicesrpc", says: "lnd's `invoicesrpc`: taking an invoice back" },
    Package { name: "routerrpc", says: "lnd's `routerrpc`: paying, and what became of a payment" },
];

/// Writes the modules, or with `check` fails when one is not what would be written.
pub(crate) fn run(check: bool) -> Result<()> {
    let protos = root().join(PROTOS);
    let files = PACKAGES.iter().map(|package| format!("{}.proto", package.name));
    let descriptors = protox::compile(files, [&protos])?;
    let out = root().join("target/codegen");
    fs::create_dir_all(&out).with_context(|| format!("cannot make `{}`", out.display()))?;
    let mut builder = tonic_prost_build::configure().out_dir(&out);
    for package in PACKAGES {
        // Only the tests' double of a node serves.
        builder = builder.server_mod_attribute(package.name, "#[cfg(test)]");
    }
    // It may be a secret, so it must not be in what `{:?}` prints of the message.
    builder = builder.skip_debug(["lnrpc.Invoice", "lnrpc.Payment"]);
    builder.compile_fds(descriptors).context("cannot generate")?;
    let mut stale = Vec::new();
    for Package { name, says } in PACKAGES {
        let code = fs::read_to_string(out.join(format!("{name}.rs")))?;
        let code = format!(
            "//! {says}.\n//!\n//! Made by `cargo xtask codegen` from `proto/{name}.proto`; don't edit it here.\n\n{code}"
        );
        // Who reads it should see why a lint is off there, as everywhere.
        let code = code
            .replace(
                "allow(non_camel_case_types)",
                "allow(non_camel_case_types, reason = \"named as in the .proto\")",
            )
            .replace(
                "clippy::let_unit_value,\n",
                "clippy::let_unit_value,\n        reason = \"as tonic writes it\"\n",
            );
        let path = root().join(MODULES).join(format!("{name}.rs"));
        if !check {
            fs::write(&path, code).with_context(|| format!("cannot write `{}`", path.display()))?;
        } else if fs::read_to_string(&path).unwrap_or_default() != code {
            stale.push(format!("{MODULES}/{name}.rs"));
        }
    }
    if !stale.is_empty() {
        bail!("not what its .proto says; run `cargo xtask codegen`:\n  {}", stale.join("\n  "));
    }
    Ok(())
}
