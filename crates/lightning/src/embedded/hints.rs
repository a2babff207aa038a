//! Route hints: how a payer finds a node whose channels are private. The choice among channels is LDK's
//! (`sort_and_filter_channels`), so that an invoice of ours can be paid wherever one of LDK's could.

use std::collections::BTreeMap;

use ldk_node::ChannelDetails;
use lightning::bitcoin::secp256k1::PublicKey;
use lightning::routing::router::{RouteHint, RouteHintHop};
use lightning::types::routing::RoutingFees;

/// More make the invoice longer without making it likelier to be paid.
const HINTS_MAX: usize = 3;
/// Confirmations after which the graph can be expected to know a public channel.
const CONFIRMATIONS_PUBLIC: u32 = 7;

/// One channel, as far as an invoice is concerned.
#[derive(Clone, Debug)]
struct Way {
    hop: RouteHintHop,
    inbound_msat: u64,
    usable: bool,
    public: bool,
}

/// What is known of the node's channels for making invoices: taken now and then, read for each invoice.
#[derive(Clone, Debug, Default)]
pub(super) struct Hints {
    ways: Vec<Way>,
}

impl Hints {
    /// From the node's channels. Empty when the graph leads to the node anyway.
    pub(super) fn of(channels: &[ChannelDetails]) -> Self {
        let mut ways = Vec::new();
        for channel in channels.iter().filter(|channel| channel.is_channel_ready) {
            let Some(hop) = hop(channel) else { continue };
            if channel.is_announced && channel.confirmations.is_none_or(|seen| seen >= CONFIRMATIONS_PUBLIC) {
                return Self::default();
            }
            ways.push(Way {
                hop,
                inbound_msat: channel.inbound_capacity_msat,
                usable: channel.is_usable,
                public: channel.is_announced,
            });
        }
        Self { ways }
    }

    /// The hints for an invoice of this amount.
    pub(super) fn for_amount(&self, msat: u64) -> Vec<RouteHint> {
        let mut best: BTreeMap<PublicKey, &Way> = BTreeMap::new();
        for way in &self.ways {
            let peer = best.entry(way.hop.src_node_id).or_insert(way);
            let now_public = way.public && !peer.public;
            if now_public || (way.public == peer.public && better(way, peer, msat)) {
                *peer = way;
            }
        }
        let any_public = self.ways.iter().any(|way| way.public);
        let enough = |way: &Way| way.inbound_msat >= msat;
        let any_enough = self.ways.iter().any(enough);
        let any_usable = self.ways.iter().any(|way| way.usable);
        let any_both = self.ways.iter().any(|way| way.usable && enough(way));
        let mut chosen: Vec<&Way> = best.into_values().collect();
        chosen.retain(|way| match () {
            // A private channel must not be told of beside a public one.
            () if any_public => way.public,
            () if any_both => enough(way) && way.usable,
            () if any_enough => enough(way),
            () if any_usable => way.usable,
            () => true,
        });
        // The smallest that suffices first, so that small payments don't use up the large channels.
        chosen.sort_by_key(|way| if any_both { way.inbound_msat } else { u64::MAX - way.inbound_msat });
        chosen.into_iter().take(HINTS_MAX).map(|way| RouteHint(vec![way.hop.clone()])).collect()
    }
}

/// Whether `way` serves a payment better than `other` of the same peer: the smaller of two that suffice, else the larger.
fn better(way: &Way, other: &Way, msat: u64) -> bool {
    // A tenth more than the amount, as the balance may move before the payment comes.
    let suffices = |way: &Way| u128::from(way.inbound_msat) * 100 >= u128::from(msat) * 110;
    match (suffices(way), suffices(other)) {
        (true, true) => way.inbound_msat <= other.inbound_msat,
        (true, false) => true,
        (false, true) => false,
        (false, false) => way.inbound_msat >= other.inbound_msat,
    }
}

/// The last hop to us over this channel; `None` while the peer hasn't said how it forwards.
fn hop(channel: &ChannelDetails) -> Option<RouteHintHop> {
    Some(RouteHintHop {
        src_node_id: channel.counterparty_node_id,
        short_channel_id: channel.inbound_scid_alias.or(channel.short_channel_id)?,
        fees: RoutingFees {
            base_msat: channel.counterparty_forwarding_info_fee_base_msat?,
            proportional_millionths: channel.counterparty_forwarding_info_fee_proportional_millionths?,
        },
        cltv_expiry_delta: channel.counterparty_forwarding_info_cltv_expiry_delta?,
        htlc_minimum_msat: Some(channel.inbound_htlc_minimum_msat),
        htlc_maximum_msat: channel.inbound_htlc_maximum_msat,
    })
}

#[cfg(test)]
mod tests {
    use lightning::bitcoin::secp256k1::{Secp256k1, SecretKey};

    use super::*;

    fn way(peer: u8, scid: u64, inbound_msat: u64, usable: bool, public: bool) -> Way {
        let secret = SecretKey::from_slice(&[peer; 32]).unwrap();
        let hop = RouteHintHop {
            src_node_id: PublicKey::from_secret_key(&Secp256k1::new(), &secret),
            short_channel_id: scid,
            fees: RoutingFees { base_msat: 1_000, proportional_millionths: 0 },
            cltv_expiry_delta: 72,
            htlc_minimum_msat: None,
            htlc_maximum_msat: None,
        };
        Way { hop, inbound_msat, usable, public }
    }

    #[track_caller]
    fn check(ways: &[Way], msat: u64, want: &[u64]) {
        let hints = Hints { ways: ways.to_vec() };
        let got: Vec<u64> = hints.for_amount(msat).iter().map(|hint| hint.0[0].short_channel_id).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn a_channel_that_can_take_the_amount_now_is_preferred() {
        let ways =
            [way(1, 1, 500, true, false), way(2, 2, 5_000, false, false), way(3, 3, 5_000, true, false)];
        check(&ways, 1_000, &[3]);
    }

    #[test]
    fn a_peer_that_is_away_is_better_than_nothing() {
        check(&[way(1, 1, 5_000, false, false)], 1_000, &[1]);
        check(&[way(1, 1, 500, false, false)], 1_000, &[1]);
    }

    #[test]
    fn the_smallest_channel_that_suffices_comes_first_and_three_are_enough() {
        let ways = [
            way(1, 1, 9_000, true, false),
            way(2, 2, 3_000, true, false),
            way(3, 3, 7_000, true, false),
            way(4, 4, 5_000, true, false),
        ];
        check(&ways, 1_000, &[2, 4, 3]);
    }

    #[test]
    fn one_channel_for_each_peer() {
        let ways =
            [way(1, 1, 9_000, true, false), way(1, 2, 2_000, true, false), way(1, 3, 500, true, false)];
        check(&ways, 1_000, &[2]);
        check(&ways, 20_000, &[1]);
    }

    #[test]
    fn a_private_channel_is_not_told_of_beside_a_young_public_one() {
        check(&[way(1, 1, 9_000, true, false), way(2, 2, 9_000, true, true)], 1_000, &[2]);
    }
}
