//! From a request to facts: reads its credentials, checks each token against each secret, and judges caveats.
//!
//! The work is bounded before anything is trusted: so many tokens, each with so many caveats, each under at most three
//! secrets. Nothing here fetches or waits, and what isn't examined counts as the worst it could be.

use farebox_protocol::{
    Identifier, Macaroon, Preimage, Presented as Read, TOKENS_MAX, Timestamp,
    caveat::{Asked, Judged, judge},
};

use super::Paywall;
use crate::{
    Code, Request, Service,
    decide::{Candidate, Facts, Gate, Key, Presented, Vouched},
    keyring::KeyState,
    store::Sold,
};

/// What was found out about a request.
pub(super) struct Examined {
    gate: Gate,
    malformed: Option<Code>,
    candidates: [Candidate; TOKENS_MAX],
    tokens: [Option<Token>; TOKENS_MAX],
    len: usize,
}

/// A token of ours.
#[derive(Clone, Copy)]
pub(super) struct Token {
    pub(super) identifier: Identifier,
    /// When the secret that signed it was withdrawn, where it was.
    withdrawn: Option<Timestamp>,
    judged: Option<Judged>,
}

impl Paywall {
    pub(super) fn examine(&self, request: &Request<'_>, now: Timestamp) -> Examined {
        let gate = if request.service.is_free(request.path) { Gate::Free } else { Gate::Priced };
        let mut examined = Examined {
            gate,
            malformed: None,
            candidates: [Candidate::UNEXAMINED; TOKENS_MAX],
            tokens: [None; TOKENS_MAX],
            len: 0,
        };
        if gate == Gate::Free {
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
        for (index, (macaroon, preimage)) in shown.take(TOKENS_MAX).enumerate() {
            if let Some((candidate, token)) = self.examine_token(macaroon, preimage, request, now) {
                examined.candidates[index] = candidate;
                examined.tokens[index] = Some(token);
            }
            examined.len = index + 1;
        }
        examined
    }

    /// `None` when no secret of ours explains the token.
    fn examine_token(
        &self,
        macaroon: &Macaroon,
        preimage: &Preimage,
        request: &Request<'_>,
        now: Timestamp,
    ) -> Option<(Candidate, Token)> {
        let identifier = macaroon.identifier().ok()?;
        let entry = self.keyring.entries().iter().find(|entry| {
            macaroon.verify(&entry.secret.root_key(self.config.network, &identifier)).is_ok()
        })?;
        let (key, withdrawn) = match entry.state {
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
        };
        let judged = judge(macaroon, &asked);
        let candidate = Candidate {
            key,
            preimage_holds: preimage.pays(&identifier.payment_hash),
            revoked: self.revoked.contains(|| identifier.hash()),
            caveats: judged.as_ref().copied().map_err(Code::from),
        };
        Some((candidate, Token { identifier, withdrawn, judged: judged.ok() }))
    }
}

impl Examined {
    pub(super) fn facts(&self, request: &Request<'_>, now: Timestamp) -> Facts<'_> {
        let presented = match self.malformed {
            Some(code) => Presented::Malformed(code),
            None if self.len == 0 => Presented::Nothing,
            None => Presented::Tokens(&self.candidates[..self.len]),
        };
        Facts { gate: self.gate, presented, tier: request.service.tier, now }
    }

    pub(super) fn candidate_mut(&mut self, index: usize) -> &mut Candidate {
        &mut self.candidates[index]
    }

    pub(super) fn token(&self, index: usize) -> &Token {
        self.tokens[index].as_ref().expect("only a token that a secret explains is forwarded or looked up")
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
