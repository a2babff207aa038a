//! The log: to standard error, as text on a terminal and as JSON lines elsewhere. What a level shows is set by
//! `FAREBOX_LOG`, in the words of `tracing_subscriber` (`debug`, `farebox_gateway=debug,info`).

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// Starts the log for the life of the process.
///
/// A filter that can't be read stops the start: the alternative is a silence that looks like health.
pub(crate) fn start(default: &str) -> anyhow::Result<()> {
    let filter = match std::env::var("FAREBOX_LOG") {
        Ok(text) if !text.is_empty() => EnvFilter::builder().parse(&text).map_err(|error| {
            anyhow::anyhow!("`FAREBOX_LOG` cannot be read: {error}; write a level, like `info` or `debug`")
        })?,
        _ => EnvFilter::new(default),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    if io::stderr().is_terminal() {
        builder.with_target(false).init();
    } else {
        builder.json().flatten_event(true).init();
    }
    Ok(())
}
