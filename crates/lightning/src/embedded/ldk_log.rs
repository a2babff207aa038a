//! LDK's log, into `tracing` under the target `ldk`, two levels quieter than LDK thinks and without secrets.
//!
//! LDK writes invoices at Info and preimages at Debug. Neither may reach a log at any level here.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ldk_node::logger::{LogLevel, LogRecord, LogWriter};

/// Says of every payment to an invoice that we minted that `ldk-node` has no record of it, which is the point.
const HARMLESS: &str = "couldn't be found in store";

/// LDK's last words: it can't write its store any more, and its background task panics. Nothing else tells.
const LAST_WORDS: &str = "Failed to process events";

/// Writes LDK's messages into `tracing`, and listens for the one that is its last.
#[derive(Debug)]
pub(super) struct LdkLog {
    /// Set when LDK has given up.
    pub(super) dead: Arc<AtomicBool>,
}

impl LogWriter for LdkLog {
    fn log(&self, record: LogRecord<'_>) {
        if record.level == LogLevel::Error && record.args.to_string().starts_with(LAST_WORDS) {
            self.dead.store(true, Ordering::Release);
        }
        macro_rules! write_at {
            ($level:ident) => {
                if tracing::enabled!(target: "ldk", tracing::Level::$level) {
                    let text = record.args.to_string();
                    if !text.contains(HARMLESS) {
                        let module = record.module_path;
                        tracing::event!(target: "ldk", tracing::Level::$level, module, "{}", redact(&text));
                    }
                }
            };
        }
        match record.level {
            // LDK's errors are mostly about peers and routes; what matters to us comes back as an error of the call.
            LogLevel::Error | LogLevel::Warn => write_at!(WARN),
            LogLevel::Info => write_at!(DEBUG),
            LogLevel::Debug => write_at!(TRACE),
            LogLevel::Trace | LogLevel::Gossip => {}
        }
    }
}

/// Cuts a message where a preimage or an invoice begins.
fn redact(text: &str) -> Cow<'_, str> {
    let lower = text.to_ascii_lowercase();
    let secret = ["preimage", "lnbc", "lntb", "invoice: ln"].iter().filter_map(|word| lower.find(word)).min();
    match secret {
        Some(at) => Cow::Owned(format!("{}[..]", &text[..at])),
        None => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(level: LogLevel, text: &str) -> bool {
        let log = LdkLog { dead: Arc::default() };
        log.log(LogRecord { level, args: format_args!("{text}"), module_path: "ldk_node", line: 1 });
        log.dead.load(Ordering::Acquire)
    }

    #[test]
    fn a_node_that_has_given_up_is_known_to_be_dead() {
        assert!(log(LogLevel::Error, "Failed to process events: disk full"));
        assert!(!log(LogLevel::Error, "Failed to find route"));
    }

    #[test]
    fn a_message_ends_where_a_preimage_or_an_invoice_begins() {
        assert_eq!(redact("Claiming HTLC id 3 with preimage 0707"), "Claiming HTLC id 3 with [..]");
        assert_eq!(redact("Invoice created: lnbcrt10u1pabc"), "Invoice created: [..]");
        assert_eq!(redact("Paying LNTB10U1P"), "Paying [..]");
        assert_eq!(redact("Connected to peer"), "Connected to peer");
    }
}
