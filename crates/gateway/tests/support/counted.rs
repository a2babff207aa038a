//! What the tests of counted tokens share: services that sell them, buyers, and what is left of a purchase.

use std::{num::NonZeroU64, sync::Arc, time::Duration};

use farebox_gateway::ServiceRoute;
use farebox_paywall::{
    ledger::law::Balance,
    price::{Cost, Meter, PerMillion, Rates, TokenRates},
};
use farebox_protocol::{Credential, Msat, Offer, OfferedChallenge, PaymentHash, Scheme};
use http::{Request, Response, header};
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;

use super::{Rig, get, http1, http2, service, within};

/// What somebody has bought.
#[derive(Clone, Debug)]
pub struct Bought {
    /// The value of `Authorization`.
    pub credential: String,
    pub hash: PaymentHash,
}

impl Bought {
    pub fn header(&self) -> (&str, &str) {
        ("authorization", &self.credential)
    }
}

/// A service that sells so many requests.
pub fn requests(url: &str, count: u64) -> ServiceRoute {
    let mut route = service("api", url);
    route.service.offer = Offer::Requests(NonZeroU64::new(count).unwrap());
    route
}

/// A service that sells credit, and takes this much from it.
pub fn credit(url: &str, msat: u64, cost: Cost) -> ServiceRoute {
    let mut route = service("api", url);
    route.service.offer = Offer::Credit;
    route.service.price = Msat::new(msat);
    route.service.costs.otherwise = Some(Arc::new(cost));
    route
}

/// What a meter says, with so much set aside before.
pub fn metered(reserve: u64, meter: Meter) -> Cost {
    Cost::Metered { reserve: Msat::new(reserve), base: Msat::ZERO, meter }
}

/// A thousand msat for a thousand units of input, twice that for output, told by the answer.
pub fn usage() -> Meter {
    let rates = TokenRates { input: PerMillion(1_000_000), output: PerMillion(2_000_000) };
    Meter::Usage { shape: Arc::default(), rates: Rates { otherwise: Some(rates), ..Rates::default() } }
}

impl Rig {
    pub async fn purchase(&self, path: &str) -> Bought {
        let challenge = get(self.addr, path, &[]).await;
        assert_eq!(challenge.status(), 402, "{challenge:?}");
        let values = challenge.headers().get_all(header::WWW_AUTHENTICATE);
        let macaroon = OfferedChallenge::read_all(values.iter().map(|value| value.as_bytes()))
            .remove(0)
            .macaroon()
            .unwrap();
        let hash = macaroon.identifier().unwrap().payment_hash;
        let credential = Credential { tokens: vec![macaroon], preimage: self.node.pay(&hash) };
        Bought { credential: credential.header_value(Scheme::L402).to_string(), hash }
    }

    /// Waits until nothing is reserved of a purchase any more, and says what became of it.
    pub async fn settled(&self, bought: &Bought) -> Balance {
        within(async {
            loop {
                match self.paywall.ledger().balance(&bought.hash) {
                    Some(balance) if balance.reserved() == 0 => return balance,
                    _ => tokio::time::sleep(Duration::from_millis(2)).await,
                }
            }
        })
        .await
    }

    /// What has been spent of a purchase, once nothing is reserved.
    pub async fn spent(&self, bought: &Bought) -> u64 {
        self.settled(bought).await.spent()
    }

    /// Sends a request by this version of HTTP, on a connection of its own.
    pub async fn send(
        &self,
        version: u8,
        mut request: Request<BoxBody<bytes::Bytes, hyper::Error>>,
    ) -> Response<Incoming> {
        within(async {
            if version == 1 {
                return http1(self.addr).await.send_request(request).await.unwrap();
            }
            *request.uri_mut() = format!("http://localhost{}", request.uri()).parse().unwrap();
            http2(self.addr).await.send_request(request).await.unwrap()
        })
        .await
    }
}
