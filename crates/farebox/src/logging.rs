//! The log: to standard error, as text on a terminal and as JSON lines elsewhere. What a level shows is set by
//! `FAREBOX_LOG`, in the words of `tracing_subscriber` (`debug`, `farebox_gateway=debug,info`).

use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, filter::ParseError};

/// What is shown of others' parts unless it is asked for by name. `h2` warns of frames that a client need not send, and a
/// client can send them as fast as it likes: the log is not theirs to fill. `rmcp` logs what agents ask and are told.
const OF_OTHERS: &str = "h2=error,rmcp=warn";

/// Starts the log for the life of the process.
///
/// A filter that can't be read stops the start: the alternative is a silence that looks like health.
pub(crate) fn start(default: &str) -> anyhow::Result<()> {
    let filter = match std::env::var("FAREBOX_LOG") {
        Ok(text) if !text.is_empty() => filter(&text).map_err(|error| {
            anyhow::anyhow!("`FAREBOX_LOG` cannot be read: {error}; write a level, like `info` or `debug`")
        })?,
        _ => filter(default)?,
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    if io::stderr().is_terminal() {
        builder.with_target(false).init();
    } else {
        builder.json().flatten_event(true).init();
    }
    Ok(())
}

/// What comes later, and names the same part, counts.
fn filter(text: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().parse(format!("{OF_OTHERS},{text}"))
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use tracing::{Event, Subscriber};
    use tracing_subscriber::{Layer, layer::Context, prelude::*};

    use super::*;

    /// Counts what the filter lets through.
    struct Count(Arc<AtomicUsize>);

    impl<S: Subscriber> Layer<S> for Count {
        fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[track_caller]
    fn check(text: &str, shown: usize) {
        let count = Arc::new(AtomicUsize::new(0));
        let log = tracing_subscriber::registry().with(filter(text).unwrap()).with(Count(count.clone()));
        tracing::subscriber::with_default(log, || {
            tracing::warn!(target: "h2::proto::ping_pong", "an odd frame");
            tracing::info!(target: "farebox_gateway", "a request");
        });
        assert_eq!(count.load(Ordering::SeqCst), shown, "{text}");
    }

    #[test]
    fn what_clients_can_repeat_at_will_is_shown_to_who_asks_for_it_only() {
        check("info", 1);
        check("debug", 1);
        check("error", 0);
        check("info,h2=warn", 2);
        check("h2=warn", 1);
    }

    #[test]
    fn a_filter_that_cannot_be_read_is_an_error() {
        assert!(filter("info=loud").is_err());
    }
}
