//! What an invoice's description says, so that a seller whose node is paid for other things too recognises its own sales.
//!
//! A label is a sentence for the payer's wallet and, at its end, a tag for the seller's books:
//!
//! `weather: access for 1 hour [farebox:1;duration;secs=3600;10000;AAECAwQFBgc7o4ULSHoW2vdj]`
//!
//! The tag says the offer (its canonical text without `offer=`), the price in millisatoshi, and 18 bytes in base64url: a
//! nonce of 8 and the first 10 of `HMAC-SHA256(label key, nonce || service || 00 || offer text || 00 || price in 8 bytes,
//! big-endian)`. The service is what stands before the first `: `; the words after it are for people and are not signed.
//! `label key = HMAC-SHA256(mint secret, "farebox invoice label v1" 00 || network name || 00)`, so that no label holds on
//! another network or for another seller. Invoices outlive the version that made them: this spelling never changes its
//! meaning, and a new one would get a new number.
//!
//! **What a label proves.** Others who use the same node write descriptions of their own and can't make a label, but they
//! can copy one: descriptions stand in invoices, which strangers read. Whoever may make invoices on the node can so have
//! money of *theirs* taken for a sale of ours. It opens nothing, since access takes a token and a token is bound to its
//! payment hash; it takes nothing from us; and it stays a claim on the books, which no token ever comes to confirm.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::Mac;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::{Msat, Offer, ServiceName, key::keyed, terms::decimal};

/// The longest description that fits into an invoice, in bytes. What is longer is no label.
pub const DESCRIPTION_BYTES_MAX: usize = 639;

const OPEN: &str = " [farebox:1;";
const CLOSE: char = ']';
/// What every offer's text begins with: left out, since some nodes take 128 characters only.
const OFFER: &str = "offer=";
const NONCE_LEN: usize = 8;
const MAC_LEN: usize = 10;

/// Signs and recognises labels. Leaked, others who use the node can pass their money off as a sale, and no more.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct LabelKey([u8; 32]);

/// What is sold by an invoice, as its description says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Label {
    /// The service.
    pub service: ServiceName,
    /// What one payment buys.
    pub offer: Offer,
    /// What the invoice asks for.
    pub price: Msat,
}

impl LabelKey {
    /// The key made of these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    fn mac(&self, label: &Label, offer: &str, nonce: [u8; NONCE_LEN]) -> crate::key::HmacSha256 {
        // No name and no offer's text has a zero byte, so no two labels are the same message.
        keyed(&self.0)
            .chain_update(nonce)
            .chain_update(label.service.as_str())
            .chain_update([0])
            .chain_update(offer)
            .chain_update([0])
            .chain_update(label.price.get().to_be_bytes())
    }
}

impl Label {
    /// The whole description: the name of the service, these words (what it buys, for people), and the tag. The nonce is
    /// random, a new one for each invoice. Words that would make it too long for an invoice are cut.
    pub fn write(&self, words: &str, nonce: [u8; 8], key: &LabelKey) -> String {
        let offer = self.offer.to_string();
        let mut sealed = [0; NONCE_LEN + MAC_LEN];
        sealed[..NONCE_LEN].copy_from_slice(&nonce);
        let mac = key.mac(self, &offer, nonce).finalize().into_bytes();
        sealed[NONCE_LEN..].copy_from_slice(&mac[..MAC_LEN]);

        let offer = offer.strip_prefix(OFFER).unwrap_or(&offer);
        let tag = format!("{OPEN}{offer};{};{}{CLOSE}", self.price.get(), URL_SAFE_NO_PAD.encode(sealed));
        let mut text = format!("{}: {words}", self.service);
        while text.len() + tag.len() > DESCRIPTION_BYTES_MAX {
            text.pop();
        }
        text + &tag
    }

    /// What this description says, if one of these keys has signed it. Anything at all may be given.
    pub fn read<'k>(description: &str, keys: impl IntoIterator<Item = &'k LabelKey>) -> Option<Self> {
        if description.len() > DESCRIPTION_BYTES_MAX {
            return None;
        }
        let (text, tag) = description.strip_suffix(CLOSE)?.rsplit_once(OPEN)?;
        let (rest, sealed) = tag.rsplit_once(';')?;
        let (offer, price) = rest.rsplit_once(';')?;
        let offer = format!("{OFFER}{offer}");
        let label = Self {
            service: text.split_once(": ")?.0.parse().ok()?,
            offer: offer.parse().ok()?,
            price: Msat::new(decimal(price)?),
        };
        let sealed: [u8; NONCE_LEN + MAC_LEN] = URL_SAFE_NO_PAD.decode(sealed).ok()?.try_into().ok()?;
        let (nonce, mac) = sealed.split_first_chunk::<NONCE_LEN>()?;
        // In constant time: `==` stops at the first wrong byte, which tells a guesser how far they got.
        let holds = |key: &LabelKey| key.mac(&label, &offer, *nonce).verify_truncated_left(mac).is_ok();
        keys.into_iter().any(holds).then_some(label)
    }
}

impl fmt::Debug for LabelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LabelKey(..)")
    }
}
