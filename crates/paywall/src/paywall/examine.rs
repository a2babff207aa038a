//! From a request to facts: reads its credentials, checks each token against each secret, and judges caveats.
//!
//! The work is bounded before anything is trusted: so many tokens, each with so many caveats, each under at most three
//! secrets. Nothing here fetches or waits, and what isn't examined counts as the worst it could be. A proof that held lately
//! is taken from memory ([`known`](super::known)); all else is the same then.

use std::sync::Arc;

use farebox_protocol::{
    Identifier, IdentifierHash, Macaroon, Presented as Read, TOKENS_MAX, Timestamp,
    caveat::{Asked, CaveatRefusal, Judged, check_capabilities, judge},
    is_one_credential,
};
use smallvec::SmallVec;

use super::{
    Paywall,
    count::{Limit, Short, limits},
    known::{Proven, alone, ends_in_preimage},
};
use crate::{
    Bill, Code, Request, Service,
    decide::{Candidate, Facts, Freebie, Gate, Key, Ledger, Presented, Vouched},
    forward::Names,
    keyring::KeyState,
    ledger::month::Reached,
    respond::may_mint,
    store::Sold,
};

/// What was found out about a request.
pub(super) struct Examined {
    gate: Gate,
    pub(super) freebie: Freebie,
    /// The tier that the request needs.
    pub(super) tier: u8,
    malformed: Option<Code>,
    /// Mostly one, whose room is all that is moved about then.
    candidates: SmallVec<[Candidate; 1]>,
    /// Beside each candidate the token that it is; `None` stands for one that no secret of ours explains.
    tokens: SmallVec<[Option<Token>; 1]>,
    /// The proof of the only token there is, when it held.
    pub(super) proven: Option<Arc<Proven>>,
    /// What was set aside for the request, and of which token. Dropped with this, it is given back.
    pub(super) bill: Option<(usize, Box<Bill>)>,
    /// What was missing of the first token of which too little is left.
    pub(super) short: Option<Short>,
    /// The limits by the month of each token that has some, beside its place; `None` where they aren't understood.
    limits: Vec<(usize, Option<Vec<Limit>>)>,
    /// The first limit by the month that leaves too little.
    pub(super) reached: Option<Box<Reached>>,
}

/// What doesn't depend on the request: which token it is, and which secret of ours explains its signature.
#[derive(Clone, Copy)]
pub(super) struct Explained {
    pub(super) identifier: Identifier,
    /// Its place in the keyring.
    pub(super) secret: usize,
    /// What it would be revoked by, where that is known already.
    hash: Option<IdentifierHash>,
}

/// A token of ours.
#[derive(Clone, Copy)]
pub(super) struct Token {
    pub(super) identifier: Identifier,
    /// When the secret that signed it was withdrawn, where it was.
    withdrawn: Option<Timestamp>,
    pub(super) judged: Option<Judged>,
}

impl Paywall {
    pub(super) fn examine(&self, request: &Request<'_>, now: Timestamp) -> Examined {
        let gate = match request.service {
            service if service.is_free(request.path) => Gate::Free,
            service if service.sells_nothing(request.path) => Gate::Closed,
            _ => Gate::Priced,
        };
        // What can't be sold for this method isn't given, either: a HEAD that counted nothing would be had without end, and
        // one that counted would use up what a GET is for.
        let is_given = request.service.freebies.is_some() && may_mint(request.method);
        let taken = request.service.taken(request.method, request.path);
        let mut examined = Examined {
            gate,
            freebie: if is_given { Freebie::Unasked } else { Freebie::None },
            tier: request.service.tier_for(&taken),
            malformed: None,
            candidates: SmallVec::new(),
            tokens: SmallVec::new(),
            proven: None,
            bill: None,
            short: None,
            limits: Vec::new(),
            reached: None,
        };
        if gate == Gate::Free {
            return examined;
        }
        let alone = alone(request.headers);
        if let Some(proven) = alone.and_then(|value| self.known.find(value.as_bytes())) {
            let Proven { identifier, secret, .. } = *proven;
            let explained = Explained { identifier, secret, hash: Some(proven.identifier_hash) };
            let judge =
                |asked: &Asked<'_>| understood(proven.judge(asked)?, &proven.macaroon, request.service);
            examined.push(Some(self.weigh(judge, explained, true, request, &taken, now)));
            examined.note_limits(&proven.macaroon, &taken);
            examined.proven = Some(proven);
            return examined;
        }
        let credentials = match Read::read(request.headers) {
            Read::Nothing => return examined,
            Read::Malformed(error) => {
                examined.malformed = Some(error.into());
                return examined;
            }
            Read::Credentials(credentials) => credentials,
        };
        let shown = credentials.iter().flat_map(|shown| {
            let preimage = &shown.preimage;
            shown.tokens.iter().map(move |token| (token, preimage))
        });
        let mut last = None;
        for (macaroon, preimage) in shown.take(TOKENS_MAX) {
            let explained = self.explain(macaroon);
            let holds = explained.is_some_and(|of| preimage.pays(&of.identifier.payment_hash));
            let judge = |asked: &Asked<'_>| understood(judge(macaroon, asked)?, macaroon, request.service);
            examined.push(explained.map(|of| self.weigh(judge, of, holds, request, &taken, now)));
            examined.note_limits(macaroon, &taken);
            last = explained.filter(|_| holds).map(|of| (of, macaroon));
        }
        // Only where the credential is that value: it may as well stand in the gRPC metadata beside somebody else's, or be
        // folded with something in one line, whose end anybody could foresee then.
        let source = alone.filter(|value| is_one_credential(value) && ends_in_preimage(value));
        if let (Some(value), 1, Some((of, macaroon))) = (source, examined.tokens.len(), last) {
            let proven = Arc::new(Proven::new(macaroon.clone(), of.identifier, of.secret));
            self.known.remember(value.as_bytes(), proven.clone());
            examined.proven = Some(proven);
        }
        examined
    }

    /// `None` when no secret of ours explains the token.
    pub(super) fn explain(&self, macaroon: &Macaroon) -> Option<Explained> {
        let identifier = macaroon.identifier().ok()?;
        let secret = self.keyring.entries().iter().position(|entry| {
            macaroon.verify(&entry.secret.root_key(self.config.network, &identifier)).is_ok()
        })?;
        Some(Explained { identifier, secret, hash: None })
    }

    /// What can be different for each request: its caveats, the time, whether it was revoked.
    fn weigh(
        &self,
        judge: impl FnOnce(&Asked<'_>) -> Result<Judged, CaveatRefusal>,
        Explained { identifier, secret, hash }: Explained,
        preimage_holds: bool,
        request: &Request<'_>,
        taken: &[&str],
        now: Timestamp,
    ) -> (Candidate, Token) {
        let (key, withdrawn) = match self.keyring.entries()[secret].state {
            KeyState::Live => (Key::Live, None),
            KeyState::SettledOnly { since } => (Key::SettledOnly(Vouched::Unasked), Some(since)),
        };
        let asked = Asked {
            service: &request.service.name,
            method: request.method,
            path: request.path,
            client: Some(request.client),
            now,
            strict: self.config.strict_caveats,
            capabilities: Some(taken),
            price: Some(request.service.price),
            cost: request.service.cost(request.method, request.path).map(|cost| cost.reserve()),
        };
        let judged = judge(&asked);
        let candidate = Candidate {
            key,
            preimage_holds,
            revoked: self.revoked.contains(|| hash.unwrap_or_else(|| identifier.hash())),
            caveats: judged.as_ref().copied().map_err(Code::from),
            settled: self.settlements.known(&identifier.payment_hash),
            ledger: Ledger::Unasked,
        };
        (candidate, Token { identifier, withdrawn, judged: judged.ok() })
    }
}

/// What was judged, unless a holder relies on a capability that the service hasn't.
fn understood(judged: Judged, macaroon: &Macaroon, service: &Service) -> Result<Judged, CaveatRefusal> {
    if judged.names_others {
        let capabilities = &service.menu.capabilities;
        let has = |name: &str| capabilities.iter().any(|each| each.name.as_str() == name);
        check_capabilities(macaroon, &service.name, has)?;
    }
    Ok(judged)
}

impl Examined {
    pub(super) fn facts(&self, now: Timestamp) -> Facts<'_> {
        let presented = match self.malformed {
            Some(code) => Presented::Malformed(code),
            None if self.candidates.is_empty() => Presented::Nothing,
            None => Presented::Tokens(&self.candidates),
        };
        Facts { gate: self.gate, presented, freebie: self.freebie, tier: self.tier, now }
    }

    /// Adds the next token; `None` stands for one that no secret of ours explains.
    fn push(&mut self, weighed: Option<(Candidate, Token)>) {
        let (candidate, token) =
            weighed.map_or((Candidate::UNEXAMINED, None), |(it, token)| (it, Some(token)));
        self.candidates.push(candidate);
        self.tokens.push(token);
    }

    /// Notes what the last token is limited to.
    fn note_limits(&mut self, macaroon: &Macaroon, taken: &[&str]) {
        let is_limited = |token: &Token| token.judged.is_some_and(|judged| judged.is_limited);
        if self.tokens.last().and_then(Option::as_ref).is_some_and(is_limited) {
            self.limits.push((self.tokens.len() - 1, limits(macaroon, taken)));
        }
    }

    /// What a token is limited to; `None` where that isn't known.
    pub(super) fn limits(&self, index: usize) -> Option<&[Limit]> {
        self.limits.iter().find(|(of, _)| *of == index)?.1.as_deref()
    }

    pub(super) fn candidate_mut(&mut self, index: usize) -> &mut Candidate {
        &mut self.candidates[index]
    }

    pub(super) fn token(&self, index: usize) -> &Token {
        self.tokens[index].as_ref().expect("only a token that a secret explains is forwarded or looked up")
    }

    #[cfg(test)]
    pub(super) fn is_explained(&self, index: usize) -> bool {
        self.tokens.get(index).is_some_and(Option::is_some)
    }

    /// What the upstream is told of this token.
    pub(super) fn names(&self, index: usize) -> Arc<Names> {
        match &self.proven {
            Some(proven) => proven.names.clone(),
            None => Arc::new(Names::of(&self.token(index).identifier)),
        }
    }

    /// When the secret of this token was withdrawn; long ago, where it wasn't.
    pub(super) fn withdrawn(&self, index: usize) -> Timestamp {
        self.token(index).withdrawn.unwrap_or_default()
    }

    pub(super) fn sold(&self, index: usize, service: &Service) -> Option<Sold> {
        self.token(index).sold(service)
    }
}

impl Token {
    /// What was sold, as the token says; `None` where it doesn't.
    pub(super) fn sold(&self, service: &Service) -> Option<Sold> {
        let judged = self.judged?;
        Some(Sold {
            token_id: self.identifier.token_id,
            identifier_hash: self.identifier.hash(),
            service: service.name.clone(),
            tier: judged.tier?,
            terms: judged.terms?,
            valid_until: judged.valid_until,
        })
    }
}
