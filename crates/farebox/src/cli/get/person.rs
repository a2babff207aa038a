//! Asking the person at the terminal, where the policy says `ask`.

use std::{future::Future, io::Write as _, pin::Pin, time::Duration};

use farebox_client::{Approve, Question};
use tokio::sync::oneshot;

/// An answer that takes longer is a no: the invoice doesn't wait for ever either.
const PATIENCE: Duration = Duration::from_secs(120);

/// The person who sees standard error and types into standard input.
pub(super) struct Person;

impl Approve for Person {
    fn ask(&self, question: Question) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        Box::pin(async move {
            let rule = question.rule.as_deref().unwrap_or("no rule allows it, or the seller is new");
            eprint!("{question}\n  paid to node {} ({rule})\nPay? [y/N] ", question.payee);
            _ = std::io::stderr().flush();
            // A thread of its own, which is left behind when nobody types: a runtime would wait for it at the end.
            let (answered, answer) = oneshot::channel();
            std::thread::spawn(move || {
                let mut line = String::new();
                let read = std::io::stdin().read_line(&mut line).is_ok();
                _ = answered.send(read && matches!(line.trim(), "y" | "Y" | "yes"));
            });
            matches!(tokio::time::timeout(PATIENCE, answer).await, Ok(Ok(true)))
        })
    }
}
