//! What the node's owner should look at: for `farebox check --live`, in sentences that say what to do.

use super::{
    Lnd, Node,
    client::CallError,
    rpc::lnrpc::{ChannelBalanceRequest, GetInfoRequest},
};
use crate::Health;

impl Lnd {
    /// What could be better about the node, the most useful first. Asks it; takes a few deadlines at most. What the
    /// macaroon does not permit to see is left out.
    pub async fn advice(&self) -> Vec<String> {
        self.node.advice().await
    }
}

impl Node {
    async fn advice(&self) -> Vec<String> {
        if let Health::Down(why) = self.watch.health() {
            return vec![why];
        }
        let mut advice = vec![
            "in lnd.conf set `gc-canceled-invoices-on-the-fly=true` and `gc-canceled-invoices-on-startup=true`: \
             unpaid invoices then leave its database by themselves, also those that farebox no longer knows of; which \
             of them is set, lnd does not tell"
                .to_owned(),
        ];
        advice.extend(self.advice_on_permissions().await);
        advice.extend(self.advice_on_channels().await);
        advice
    }

    /// Tries what clearing up needs, on an invoice that can't exist.
    async fn advice_on_permissions(&self) -> Vec<String> {
        let nothing = farebox_protocol::PaymentHash::from_bytes([0; 32]);
        let tried = [self.delete_cancelled(nothing).await, self.cancel(nothing).await];
        let needed = tried.into_iter().filter_map(|outcome| match outcome {
            Err(error @ (CallError::NotPermitted(_) | CallError::Unimplemented(_))) => Some(error),
            _ => None,
        });
        needed.map(|error| format!("invoices that nobody pays may stay in lnd's database: {error}")).collect()
    }

    async fn advice_on_channels(&self) -> Vec<String> {
        let mut advice = Vec::new();
        if let Ok(request) = self.client.request(GetInfoRequest {}) {
            let mut lightning = self.client.lightning();
            let info = self.client.answer("lnrpc.Lightning/GetInfo", lightning.get_info(request)).await;
            if let Ok(info) = info
                && info.num_active_channels == 0
            {
                let away = info.num_inactive_channels;
                advice.push(format!(
                    "lnd has no active channel ({away} whose peer is away): nobody can pay it"
                ));
            }
        }
        if let Ok(request) = self.client.request(ChannelBalanceRequest {}) {
            let mut lightning = self.client.lightning();
            let balance = self
                .client
                .answer("lnrpc.Lightning/ChannelBalance", lightning.channel_balance(request))
                .await;
            if let Ok(balance) = balance {
                let inbound = balance.remote_balance.unwrap_or_default().sat;
                advice
                    .push(format!("lnd can receive at most {inbound} sat over its channels as they are now"));
            }
        }
        if !self.private_hints {
            advice.push(
                "if all of lnd's channels are private, set `private-hints: true`, or nobody finds a way to it".to_owned(),
            );
        }
        advice
    }
}
