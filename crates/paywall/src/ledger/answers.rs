//! Answers kept for buyers who repeat a request under an idempotency key: answered once, charged once.
//!
//! A key belongs to one payment, and stands for one request: method, path and body. Its answer goes to the disk together
//! with its debit, so that neither is there without the other. What can't be replayed (too large, or no memory for it until
//! it is written) is refused when it is repeated, and not charged again.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use farebox_protocol::PaymentHash;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::time;

use super::{Ledger, Unavailable};
use crate::store::accounts::{AnswerKey, KeptAnswer, RequestDigest, StoredAnswer};

/// The largest body that is kept.
pub const ANSWER_BYTES_MAX: usize = 64 << 10;

/// What a key says about a request.
#[derive(Debug)]
pub enum Repeat {
    /// It is the first one: forward it, and keep its answer.
    First(FirstTime),
    /// It has been answered: answer this again, without charge.
    Replay(Arc<StoredAnswer>),
    /// The first one is still under way (409).
    UnderWay,
    /// The key was used for another request (422).
    Different,
    /// It has been answered and charged, but the answer could not be kept (409, without charge).
    NotKept,
}

/// The right to answer a request under a key. Dropped, it lets the next one try.
#[must_use]
pub struct FirstTime {
    ledger: Arc<Ledger>,
    key: AnswerKey,
    request: RequestDigest,
    kept: bool,
}

/// Keys under way, and answers that aren't on the disk yet.
pub(super) struct Answers {
    known: Mutex<HashMap<AnswerKey, Known>>,
    bytes: AtomicUsize,
    bytes_max: usize,
}

enum Known {
    UnderWay(RequestDigest),
    Unwritten(KeptAnswer),
}

impl Answers {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { known: Mutex::default(), bytes: AtomicUsize::new(0), bytes_max }
    }

    /// These are on the disk now.
    pub(super) fn written(&self, answers: &[KeptAnswer]) {
        if answers.is_empty() {
            return;
        }
        let mut known = self.known.lock();
        for answer in answers {
            known.remove(&answer.key);
            self.bytes.fetch_sub(size(answer.answer.as_deref()), Ordering::Relaxed);
        }
    }
}

impl Ledger {
    /// What a key says about a request: `digest` stands for its method, path and body.
    ///
    /// # Errors
    ///
    /// When the books can't tell.
    pub async fn begin_answer(
        self: &Arc<Self>,
        hash: &PaymentHash,
        key: &[u8],
        request: RequestDigest,
    ) -> Result<Repeat, Unavailable> {
        self.is_available()?;
        let key = AnswerKey::new(hash, key);
        {
            let mut known = self.answers.known.lock();
            match known.get(&key) {
                Some(Known::UnderWay(other)) if *other != request => return Ok(Repeat::Different),
                Some(Known::UnderWay(_)) => return Ok(Repeat::UnderWay),
                Some(Known::Unwritten(kept)) => return Ok(kept.repeat(request)),
                None => known.insert(key, Known::UnderWay(request)),
            };
        }
        // From here on others wait for this one, and if it is dropped they don't.
        let first = FirstTime { ledger: Arc::clone(self), key, request, kept: false };
        let patience = self.config.store_timeout;
        match time::timeout(patience, self.store.kept_answer(key, self.clock.now())).await {
            Ok(Ok(None)) => Ok(Repeat::First(first)),
            Ok(Ok(Some(kept))) => Ok(kept.repeat(request)),
            Ok(Err(error)) => Err(Unavailable::Store(error)),
            Err(_) => Err(Unavailable::TimedOut(patience)),
        }
    }
}

impl KeptAnswer {
    fn repeat(&self, request: RequestDigest) -> Repeat {
        match &self.answer {
            _ if self.request != request => Repeat::Different,
            Some(answer) => Repeat::Replay(Arc::clone(answer)),
            None => Repeat::NotKept,
        }
    }
}

impl FirstTime {
    /// The answer as it will be written, and is known from now on.
    pub(super) fn keep(mut self, answer: Option<StoredAnswer>) -> KeptAnswer {
        self.kept = true;
        let answers = &self.ledger.answers;
        let answer = answer.filter(|answer| answer.body.len() <= ANSWER_BYTES_MAX);
        let bytes = size(answer.as_ref());
        let before = answers.bytes.fetch_add(bytes, Ordering::Relaxed);
        let answer = match before.saturating_add(bytes) <= answers.bytes_max {
            true => answer,
            false => {
                answers.bytes.fetch_sub(bytes, Ordering::Relaxed);
                None
            }
        };
        let until = self.ledger.clock.now().saturating_add(self.ledger.config.answers_kept);
        let kept = KeptAnswer { key: self.key, request: self.request, answer: answer.map(Arc::new), until };
        answers.known.lock().insert(self.key, Known::Unwritten(kept.clone()));
        kept
    }
}

impl Drop for FirstTime {
    fn drop(&mut self) {
        if !self.kept {
            self.ledger.answers.known.lock().remove(&self.key);
        }
    }
}

impl std::fmt::Debug for FirstTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FirstTime").field("key", &self.key).finish_non_exhaustive()
    }
}

impl AnswerKey {
    /// The key of one payment.
    pub fn new(hash: &PaymentHash, key: &[u8]) -> Self {
        Self(Sha256::new().chain_update(hash.as_bytes()).chain_update(key).finalize().into())
    }
}

impl RequestDigest {
    /// Of a request's method, path with query, and the SHA-256 of its body.
    pub fn new(method: &str, path: &str, body: [u8; 32]) -> Self {
        let digest =
            Sha256::new().chain_update(body).chain_update(method).chain_update([0]).chain_update(path);
        Self(digest.finalize().into())
    }
}

fn size(answer: Option<&StoredAnswer>) -> usize {
    answer.map_or(0, |answer| answer.headers.len() + answer.body.len())
}
