//! `receipts`: signed receipts for buyers who ask for them.

use farebox_paywall::receipt::SellerName;
use serde::Deserialize;

use super::Written;

/// Signed receipts for buyers who ask for them, at `/.well-known/farebox/receipt` of any host and with the whole token. They say
/// what the books say of one purchase, and anybody can check them. They are signed with `receipt-key` in the state directory,
/// which is made at the start if there is none yet, and is the one of `farebox receipt`; its public half is at
/// `/.well-known/farebox/receipt-key`. Without this key receipts are only made by `farebox receipt make`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Receipts {
    /// Who sells, in words for the buyer: one line of up to 100 characters. It has no default, because a receipt that names nobody
    /// is of little use in anybody's books.
    pub(crate) seller: Written<SellerName>,
}
