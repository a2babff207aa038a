//! Credentials whose proofs held lately, so that the same bytes needn't be proved again with each request.
//!
//! Remembered is only what follows from those bytes and the keyring: which token and preimage they are, that the preimage
//! pays, and which secret explains the signature. None of it can change: a paywall keeps its keyring for life, and another
//! one begins with no memory. What can change (the time, revocations, what a request asks for, whether a leaked secret's
//! token is vouched for) is asked with every request, by the same code whether the proof is remembered or not. What the
//! caveats say follows from them and the question; the last answer stands where the very same is asked again within the
//! second.
//!
//! Only proofs that held are remembered, so it takes a purchase to put anything here. Memory is bounded, a newcomer takes an
//! older one's place, and each thread has places of its own, so that no worker waits for another. What is kept is as secret
//! as the credential: it shows nothing of itself and is wiped when it goes.

use std::{
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use farebox_protocol::{
    Identifier, IdentifierHash, Macaroon, Msat, ServiceName, Timestamp,
    caveat::{Asked, CaveatRefusal, Judged, judge},
};
use http::{HeaderMap, HeaderValue, Method, header::AUTHORIZATION};
use parking_lot::Mutex;
use zeroize::Zeroizing;

use crate::forward::Names;

/// How many threads have places of their own; more than these share.
const SHARDS: usize = 32;
/// The places of one thread. Full of the longest credentials they take up 2 MiB, of usual ones a third of that.
const PLACES: usize = 1_024;
/// How many neighbouring places may hold one credential.
const WAYS: usize = 4;
/// How many bytes of a credential tell its place: the 64 digits of a preimage, and the last 11 bytes of a signature in base64.
const HASHED_MAX: usize = 80;
/// Longer credentials are proved each time. Twice as long as one with a handful of caveats.
const CREDENTIAL_BYTES_MAX: usize = 1_024;

/// See the module.
pub(super) struct Known {
    shards: [Mutex<Shard>; SHARDS],
    /// Keyed at random: nobody can aim at the place of another, and bytes are compared with a secret only where 64 bits that
    /// nobody can foresee agree already.
    hasher: RandomState,
}

/// The places of one thread; none before the first is needed.
#[derive(Default)]
struct Shard {
    places: Vec<Option<Place>>,
    /// Which neighbour makes room next.
    turn: usize,
}

struct Place {
    hash: u64,
    credential: Zeroizing<Vec<u8>>,
    proven: Arc<Proven>,
}

/// A token whose signature and preimage hold.
pub(super) struct Proven {
    pub(super) macaroon: Macaroon,
    pub(super) identifier: Identifier,
    /// What it would be revoked by.
    pub(super) identifier_hash: IdentifierHash,
    /// The place in the keyring of the secret that explains the signature.
    pub(super) secret: usize,
    /// What the upstream is told of it.
    pub(super) names: Arc<Names>,
    verdict: Mutex<Option<Verdict>>,
}

/// What its caveats said last, and to what question: all of [`Asked`], the second included.
struct Verdict {
    service: ServiceName,
    method: Method,
    path: String,
    client: Option<IpAddr>,
    now: Timestamp,
    strict: bool,
    enforces_capabilities: bool,
    price: Option<Msat>,
    cost: Option<Msat>,
    judged: Judged,
}

impl Proven {
    pub(super) fn new(macaroon: Macaroon, identifier: Identifier, secret: usize) -> Self {
        let names = Arc::new(Names::of_credential_alone(&identifier));
        let identifier_hash = identifier.hash();
        Self { macaroon, identifier, identifier_hash, secret, names, verdict: Mutex::default() }
    }

    /// Whether its caveats allow a request, as [`judge`] says.
    pub(super) fn judge(&self, asked: &Asked<'_>) -> Result<Judged, CaveatRefusal> {
        let mut verdict = self.verdict.lock();
        if let Some(verdict) = verdict.as_ref().filter(|verdict| verdict.answers(asked)) {
            return Ok(verdict.judged);
        }
        let judged = judge(&self.macaroon, asked)?;
        // The room for the path is kept.
        let path = verdict.take().map(|old| old.path);
        *verdict = Verdict::of(asked, judged, path.unwrap_or_default());
        Ok(judged)
    }
}

impl Verdict {
    /// None for a request that takes capabilities, which would have to be kept as well.
    fn of(asked: &Asked<'_>, judged: Judged, mut room: String) -> Option<Self> {
        // Whatever is asked besides one day must be compared, too: then this doesn't compile.
        let Asked { service, method, path, client, now, strict, capabilities, price, cost } = *asked;
        if capabilities.is_some_and(|taken| !taken.is_empty()) {
            return None;
        }
        path.clone_into(&mut room);
        Some(Self {
            service: service.clone(),
            method: method.clone(),
            path: room,
            client,
            now,
            strict,
            enforces_capabilities: capabilities.is_some(),
            price,
            cost,
            judged,
        })
    }

    fn answers(&self, asked: &Asked<'_>) -> bool {
        let Asked { service, method, path, client, now, strict, capabilities, price, cost } = *asked;
        self.now == now
            && self.path == path
            && self.method == *method
            && self.service == *service
            && self.client == client
            && self.strict == strict
            && self.enforces_capabilities == capabilities.is_some()
            && capabilities.is_none_or(<[&str]>::is_empty)
            && self.price == price
            && self.cost == cost
    }
}

impl Known {
    pub(super) fn new() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()), hasher: RandomState::new() }
    }

    /// The proof of these very bytes, if it has been found to hold and isn't forgotten.
    pub(super) fn find(&self, credential: &[u8]) -> Option<Arc<Proven>> {
        let hash = self.hash(credential);
        let shard = self.shard().lock();
        let neighbours = shard.places.get(neighbourhood(hash))?;
        let place = neighbours
            .iter()
            .flatten()
            .find(|place| place.hash == hash && place.credential.as_slice() == credential)?;
        Some(place.proven.clone())
    }

    /// Remembers a proof that held.
    pub(super) fn remember(&self, credential: &[u8], proven: Arc<Proven>) {
        if credential.len() > CREDENTIAL_BYTES_MAX {
            return;
        }
        let hash = self.hash(credential);
        let place = Place { hash, credential: Zeroizing::new(credential.to_vec()), proven };
        let mut shard = self.shard().lock();
        if shard.places.is_empty() {
            shard.places.resize_with(PLACES, || None);
        }
        shard.turn = (shard.turn + 1) % WAYS;
        let turn = shard.turn;
        let neighbours = &mut shard.places[neighbourhood(hash)];
        let at = neighbours.iter().position(Option::is_none).unwrap_or(turn);
        neighbours[at] = Some(place);
    }

    /// Of the end only: there stand the signature and the preimage, so no two tokens that were found to hold share it.
    fn hash(&self, credential: &[u8]) -> u64 {
        self.hasher.hash_one(&credential[credential.len().saturating_sub(HASHED_MAX)..])
    }

    fn shard(&self) -> &Mutex<Shard> {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static THREAD: usize = THREADS.fetch_add(1, Ordering::Relaxed);
        }
        &self.shards[THREAD.with(|thread| thread % SHARDS)]
    }
}

/// The one value of `Authorization`, where there is one and no other. If it names a credential, nothing else of the request
/// is read as one; if it doesn't, what was read elsewhere says nothing about it.
pub(super) fn alone(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    values.next().filter(|_| values.next().is_none())
}

/// Whether a value ends in the digits of a preimage, which nobody can foresee. What stands behind them (padding, say) would
/// take their part in telling the place.
pub(super) fn ends_in_preimage(value: &HeaderValue) -> bool {
    const DIGITS: usize = 64;
    match value.as_bytes().split_last_chunk::<DIGITS>() {
        Some((before, digits)) => before.ends_with(b":") && digits.iter().all(u8::is_ascii_hexdigit),
        None => false,
    }
}

fn neighbourhood(hash: u64) -> std::ops::Range<usize> {
    let first = usize::try_from(hash % (PLACES / WAYS) as u64).unwrap_or_default() * WAYS;
    first..first + WAYS
}

#[cfg(test)]
mod tests;
