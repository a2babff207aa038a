//! Questions about a purchase to who sold it, at a path of the seller's own. They buy nothing: whatever is answered is the
//! answer, also where it asks for money or leads elsewhere.

use bytes::Bytes;
use farebox_protocol::PaymentHash;
use http::{Method, StatusCode};

use super::{Engine, Fault, FetchError, Hop, Money, RequestError, Shared};
use crate::http::beginning;
use crate::purchase::{Refusal, Stop};
use crate::{Origin, Pass};

/// What a seller has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SellerAnswer {
    /// Who was asked.
    pub origin: Origin,
    /// The status of the answer.
    pub status: StatusCode,
    /// The beginning of its body.
    pub body: Bytes,
}

impl Engine {
    /// Asks who sold it about a purchase, at `path` and without a body, and shows the credential that was bought with this
    /// payment. At most `bytes_max` bytes of the answer are read. `None`: the payment has bought no credential.
    ///
    /// # Errors
    ///
    /// When the journal can't be read, the seller can't be reached, or the credential would go there in the clear.
    pub async fn ask_seller(
        &self,
        payment: PaymentHash,
        method: Method,
        path: &str,
        bytes_max: usize,
    ) -> Result<Option<SellerAnswer>, FetchError> {
        let Some(pass) = self.credential(payment).await? else { return Ok(None) };
        let answered = self.0.ask_seller(&pass, method, path, bytes_max).await;
        answered.map(Some).map_err(|fault| FetchError::new(fault, Money::None))
    }
}

impl Shared {
    async fn ask_seller(
        &self,
        pass: &Pass,
        method: Method,
        path: &str,
        bytes_max: usize,
    ) -> Result<SellerAnswer, Fault> {
        let origin = pass.scope.origin.clone();
        if origin.is_in_the_clear() && !self.may_go_in_the_clear(&origin) {
            return Err(Stop::from(Refusal::InTheClear(origin)).into());
        }
        let request =
            http::Request::builder().method(method).uri(format!("{origin}{path}")).body(Bytes::new());
        let hop = Hop::of(request.map_err(|_| RequestError::Address)?)?;
        // A path that doesn't begin as one could name another host, and the credential is on its way there.
        if hop.origin != origin {
            return Err(RequestError::Address.into());
        }
        let response = self.http.send(&hop, Some(pass)).await?;
        let status = response.status();
        Ok(SellerAnswer { origin, status, body: beginning(response, bytes_max).await })
    }
}
