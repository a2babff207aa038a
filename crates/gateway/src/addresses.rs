//! Sets of addresses: who may come in, and which proxies are believed.
//!
//! Lists may be long (whole countries, whole clouds), and they are asked for each connection and each request, so they are
//! made into ranges once and searched, not walked through. An IPv4 address written as IPv6 (`::ffff:1.2.3.4`, as sockets
//! for both report it) is the IPv4 address, in a list as on a connection; a network of IPv6 addresses holds no others.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use crate::config::ClientLists;

/// A set of addresses: ranges in order, of which no two overlap.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

/// [`ClientLists`], ready to be asked.
#[derive(Debug, Default)]
pub(crate) struct Welcome {
    allow: Addresses,
    block: Addresses,
}

impl Addresses {
    pub(crate) fn new(nets: &[IpNet]) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for net in nets {
            match canonical(net) {
                IpNet::V4(net) => v4.push((u32::from(net.network()), u32::from(net.broadcast()))),
                IpNet::V6(net) => v6.push((u128::from(net.network()), u128::from(net.broadcast()))),
            }
        }
        Self { v4: merged(v4), v6: merged(v6) }
    }

    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        match ip.to_canonical() {
            IpAddr::V4(ip) => holds(&self.v4, u32::from(ip)),
            IpAddr::V6(ip) => holds(&self.v6, u128::from(ip)),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

impl Welcome {
    pub(crate) fn new(lists: &ClientLists) -> Self {
        Self { allow: Addresses::new(&lists.allow), block: Addresses::new(&lists.block) }
    }

    /// Whether this client may come in. Who is blocked may not, whoever else says so.
    pub(crate) fn is_for(&self, ip: IpAddr) -> bool {
        (self.allow.is_empty() || self.allow.contains(ip)) && !self.block.contains(ip)
    }
}

/// A network in the one form that addresses are compared in.
pub(crate) fn canonical(net: &IpNet) -> IpNet {
    let net = net.trunc();
    let IpNet::V6(v6) = net else { return net };
    let mapped = v6.network().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
    mapped.and_then(|(ip, length)| Ipv4Net::new(ip, length).ok()).map_or(net, IpNet::V4)
}

fn merged<T: Ord + Copy>(mut ranges: Vec<(T, T)>) -> Box<[(T, T)]> {
    ranges.sort_unstable();
    ranges.dedup_by(|next, range| {
        let overlaps = next.0 <= range.1;
        if overlaps {
            range.1 = range.1.max(next.1);
        }
        overlaps
    });
    ranges.into()
}

fn holds<T: Ord + Copy>(ranges: &[(T, T)], wanted: T) -> bool {
    let after = ranges.partition_point(|(begin, _)| *begin <= wanted);
    after > 0 && wanted <= ranges[after - 1].1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[track_caller]
    fn check(allow: &[&str], block: &[&str], client: &str, want: bool) {
        let welcome = Welcome::new(&ClientLists { allow: nets(allow), block: nets(block) });
        assert_eq!(welcome.is_for(client.parse().unwrap()), want, "{client}");
    }

    #[test]
    fn everybody_is_welcome_where_nobody_is_named() {
        check(&[], &[], "1.2.3.4", true);
        check(&[], &[], "2001:db8::1", true);
    }

    #[test]
    fn who_is_blocked_stays_out_and_who_is_not_allowed_as_well() {
        check(&["10.0.0.0/8"], &[], "10.1.2.3", true);
        check(&["10.0.0.0/8"], &[], "11.0.0.0", false);
        check(&["10.0.0.0/8"], &[], "9.255.255.255", false);
        check(&["10.0.0.0/8"], &[], "::1", false);
        check(&["10.0.0.0/8"], &["10.1.0.0/16"], "10.1.0.0", false);
        check(&["10.1.0.0/16"], &["10.0.0.0/8"], "10.1.0.0", false);
        check(&[], &["0.0.0.0/0"], "1.2.3.4", false);
        check(&[], &["0.0.0.0/0"], "::1", true);
        check(&["2001:db8::/32"], &[], "2001:db8:ffff::1", true);
    }

    #[test]
    fn an_ipv4_address_is_the_same_however_it_is_written() {
        check(&["1.2.3.0/24"], &[], "::ffff:1.2.3.4", true);
        check(&["::ffff:1.2.3.0/120"], &[], "1.2.3.4", true);
        check(&["::ffff:1.2.3.0/120"], &[], "1.2.4.4", false);
        check(&[], &["::ffff:1.2.3.4/128"], "1.2.3.4", false);
        check(&[], &["::ffff:0:0/96"], "9.9.9.9", false);
        check(&[], &["::/0"], "9.9.9.9", true);
        assert_eq!(canonical(&"::ffff:10.0.0.1/104".parse().unwrap()).to_string(), "10.0.0.0/8");
        assert_eq!(canonical(&"10.0.0.1/8".parse().unwrap()).to_string(), "10.0.0.0/8");
    }

    #[test]
    fn a_hundred_thousand_networks_are_searched_like_a_few() {
        // Every second /24 of 10.0.0.0/8 and what follows, some of them twice and inside each other.
        let mut list: Vec<IpNet> = (0..100_000_u32)
            .map(|at| Ipv4Net::new((0x0a00_0000 + (at << 9)).into(), 24).unwrap().into())
            .collect();
        list.extend(nets(&["10.0.0.0/30", "10.0.2.0/24", "10.0.0.0/23"]));
        list.reverse();
        let set = Addresses::new(&list);
        for (ip, want) in [
            ("10.0.0.9", true),
            ("10.0.1.9", true),
            ("10.0.3.9", false),
            ("10.0.4.0", true),
            ("10.0.4.255", true),
        ] {
            assert_eq!(set.contains(ip.parse().unwrap()), want, "{ip}");
        }
        for at in (0..100_000_u32).step_by(97).skip(1) {
            assert!(set.contains(IpAddr::V4((0x0a00_0000 + (at << 9) + 7).into())));
            assert!(!set.contains(IpAddr::V4((0x0a00_0000 + (at << 9) + 256 + 7).into())));
        }
    }
}
