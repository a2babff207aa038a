//! LDK's log, into `tracing` under the target `ldk`, two levels quieter than LDK thinks and without secrets.
//!
//! LDK writes invoices at Info and preimages at Debug. Neither may reach a log at any level here.

use std::borrow::Cow;

use ldk_node::logger::{LogLevel, LogRecord, LogWriter};

/// Says of every payment to an invoice that we minted that `ldk-node` has no record of it, which is the point.
const HARMLESS: &str = "couldn't be found in store";

/// Writes LDK's messages into `tracing`.
#[derive(Debug)]
pub(super) struct LdkLog;

impl LogWriter for LdkLog {
    fn log(&self, record: LogRecord<'_>) {
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
    use super::redact;

    #[test]
    fn a_message_ends_where_a_preimage_or_an_invoice_begins() {
        assert_eq!(redact("Claiming HTLC id 3 with preimage 0707"), "Claiming HTLC id 3 with [..]");
        assert_eq!(redact("Invoice created: lnbcrt10u1pabc"), "Invoice created: [..]");
        assert_eq!(redact("Paying LNTB10U1P"), "Paying [..]");
        assert_eq!(redact("Connected to peer"), "Connected to peer");
    }
}
