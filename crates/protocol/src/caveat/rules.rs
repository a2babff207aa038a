//! The leaves of the caveat table: for each condition what its value looks like (`reads`), when a later value is at most
//! as wide as an earlier one (`narrows(before, now)`), and whether it allows a request (`holds`).
//!
//! `narrows` must be an order that `holds` respects: whatever `now` allows, `before` allows. The three get text and not
//! parsed values because a caveat is looked at once or twice in its life. No rule allocates.

use super::{Asked, CaveatRefusal, Judged, LIST_MAX};

/// The entries of a comma list that has one to [`LIST_MAX`] of them, none twice.
fn is_list(value: &str, entry: impl Fn(&str) -> bool) -> bool {
    value.split(',').take(LIST_MAX + 1).count() <= LIST_MAX
        && value
            .split(',')
            .enumerate()
            .all(|(index, item)| entry(item) && !value.split(',').take(index).any(|earlier| earlier == item))
}

fn is_subset(before: &str, now: &str) -> bool {
    now.split(',').all(|item| before.split(',').any(|earlier| earlier == item))
}

pub(super) mod services {
    use super::{Asked, CaveatRefusal, Judged, LIST_MAX};

    /// The entries of a list, each cut once: a holder may repeat the longest list as often as the token has room.
    struct Entries<'a> {
        listed: [(&'a str, u8); LIST_MAX],
        count: usize,
    }

    impl<'a> Entries<'a> {
        fn read(value: &'a str) -> Option<Self> {
            let mut entries = Self { listed: [("", 0); LIST_MAX], count: 0 };
            for item in value.split(',') {
                let (name, tier) = entry(item)?;
                if name.is_empty() || entries.tier(name).is_some() {
                    return None;
                }
                *entries.listed.get_mut(entries.count)? = (name, tier);
                entries.count += 1;
            }
            Some(entries)
        }

        fn listed(&self) -> &[(&'a str, u8)] {
            &self.listed[..self.count]
        }

        fn tier(&self, name: &str) -> Option<u8> {
            self.listed().iter().find(|(listed, _)| *listed == name).map(|(_, tier)| *tier)
        }
    }

    fn entry(item: &str) -> Option<(&str, u8)> {
        let (name, tier) = item.split_once(':')?;
        Some((name, u8::try_from(crate::terms::decimal(tier)?).ok()?))
    }

    pub(in super::super) fn reads(value: &str) -> bool {
        // Most tokens are for one service, which is no list to be kept while it is read.
        match value.contains(',') {
            false => entry(value).is_some_and(|(name, _)| !name.is_empty()),
            true => Entries::read(value).is_some(),
        }
    }

    pub(in super::super) fn narrows(before: &str, now: &str) -> bool {
        let (Some(before), Some(now)) = (Entries::read(before), Entries::read(now)) else { return false };
        now.listed().iter().all(|(name, now)| before.tier(name).is_some_and(|before| *now <= before))
    }

    pub(in super::super) fn holds(
        value: &str,
        asked: &Asked<'_>,
        judged: &mut Judged,
    ) -> Result<(), CaveatRefusal> {
        // It has been read, so no name is there twice.
        let mut entries = value.split(',').filter_map(entry);
        judged.tier = entries.find(|(name, _)| *name == asked.service.as_str()).map(|(_, tier)| tier);
        match judged.tier {
            Some(_) => Ok(()),
            None => Err(CaveatRefusal::OtherService { service: asked.service.clone() }),
        }
    }
}

/// Capabilities: the list of a service's, and what is said of a single one.
pub(super) mod capabilities {
    use super::{Asked, CaveatRefusal, Judged, is_list, is_subset};

    pub(in super::super) fn reads(value: &str) -> bool {
        value.is_empty() || is_list(value, |item| !item.is_empty())
    }

    pub(in super::super) fn narrows(before: &str, now: &str) -> bool {
        now.is_empty() || is_subset(before, now)
    }

    /// Every one that the request takes must be listed, and a request that takes none that anybody has named is no listed one.
    pub(in super::super) fn holds(
        value: &str,
        asked: &Asked<'_>,
        _: &mut Judged,
    ) -> Result<(), CaveatRefusal> {
        let Some(taken) = asked.capabilities else { return Ok(()) };
        let is_listed = |name: &&&str| value.split(',').any(|listed| listed == **name);
        match taken.iter().find(|name| !is_listed(name)) {
            None if !taken.is_empty() => Ok(()),
            missing => {
                let missing = missing.map(|name| (*name).to_owned());
                Err(CaveatRefusal::Capability { service: asked.service.clone(), missing })
            }
        }
    }
}

/// So much in a month. What has been used stands in the ledger, so the token is set aside until that has been asked.
pub(super) mod monthly {
    use super::{Asked, CaveatRefusal, Judged};
    use crate::terms::decimal;

    pub(in super::super) fn reads(value: &str) -> bool {
        decimal(value).is_some()
    }

    pub(in super::super) fn narrows(before: &str, now: &str) -> bool {
        matches!((decimal(before), decimal(now)), (Some(before), Some(now)) if now <= before)
    }

    pub(in super::super) fn holds(_: &str, _: &Asked<'_>, judged: &mut Judged) -> Result<(), CaveatRefusal> {
        judged.is_limited = true;
        Ok(())
    }
}

pub(super) mod bound {
    use super::{Asked, CaveatRefusal, Judged};
    use crate::bound::Parts;

    pub(in super::super) fn reads(value: &str) -> bool {
        Parts::read(value).is_some()
    }

    pub(in super::super) fn narrows(before: &str, now: &str) -> bool {
        matches!((Parts::read(before), Parts::read(now)), (Some(before), Some(now))
            if now.method == before.method && now.path == before.path && now.ceiling <= before.ceiling)
    }

    /// A price that isn't known is one that could be too high.
    pub(in super::super) fn holds(
        value: &str,
        asked: &Asked<'_>,
        _: &mut Judged,
    ) -> Result<(), CaveatRefusal> {
        let Some(Parts { method, ceiling, path }) = Parts::read(value) else {
            return Err(CaveatRefusal::OtherRequest);
        };
        if method != asked.method.as_str() || path != asked.path {
            return Err(CaveatRefusal::OtherRequest);
        }
        match asked.price {
            Some(price) if price <= ceiling => Ok(()),
            price => Err(CaveatRefusal::Ceiling { ceiling, price }),
        }
    }
}

pub(super) mod valid_until {
    use super::{Asked, CaveatRefusal, Judged};
    use crate::{Timestamp, terms::decimal};

    pub(in super::super) fn reads(value: &str) -> bool {
        decimal(value).is_some()
    }

    pub(in super::super) fn narrows(before: &str, now: &str) -> bool {
        matches!((decimal(before), decimal(now)), (Some(before), Some(now)) if now <= before)
    }

    pub(in super::super) fn holds(
        value: &str,
        asked: &Asked<'_>,
        judged: &mut Judged,
    ) -> Result<(), CaveatRefusal> {
        let valid_until = Timestamp::from_secs(decimal(value).unwrap_or(0));
        if asked.now >= valid_until {
            return Err(CaveatRefusal::Expired {
                service: asked.service.clone(),
                valid_until,
                now: asked.now,
            });
        }
        judged.valid_until = Some(judged.valid_until.map_or(valid_until, |other| other.min(valid_until)));
        Ok(())
    }
}

pub(super) mod terms {
    use super::{Asked, CaveatRefusal, Judged};
    use crate::Terms;

    pub(in super::super) fn reads(value: &str) -> bool {
        value.parse::<Terms>().is_ok()
    }

    pub(in super::super) fn holds(
        value: &str,
        _: &Asked<'_>,
        judged: &mut Judged,
    ) -> Result<(), CaveatRefusal> {
        judged.terms = value.parse().ok();
        Ok(())
    }
}

/// What stands before the terms was written by the mint: a holder can only add behind them.
pub(super) mod replaces {
    use super::{Asked, CaveatRefusal, Judged};
    use crate::IdentifierHash;

    pub(in super::super) fn reads(value: &str) -> bool {
        value.parse::<IdentifierHash>().is_ok() && !value.bytes().any(|b| b.is_ascii_uppercase())
    }

    /// A holder who could say this could end anybody's token.
    pub(in super::super) fn holds(
        value: &str,
        _: &Asked<'_>,
        judged: &mut Judged,
    ) -> Result<(), CaveatRefusal> {
        if judged.terms.is_some() {
            return Err(CaveatRefusal::Widened { condition: "farebox_replaces".to_owned() });
        }
        judged.replaces = value.parse().ok();
        Ok(())
    }
}

pub(super) mod method {
    use super::{Asked, CaveatRefusal, Judged, is_list, is_subset};

    pub(in super::super) fn reads(value: &str) -> bool {
        is_list(value, is_method)
    }

    pub(crate) fn is_method(text: &str) -> bool {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_uppercase() || b == b'-')
    }

    pub(in super::super) fn narrows(before: &str, now: &str) -> bool {
        is_subset(before, now)
    }

    pub(in super::super) fn holds(
        value: &str,
        asked: &Asked<'_>,
        _: &mut Judged,
    ) -> Result<(), CaveatRefusal> {
        match value.split(',').any(|method| method == asked.method.as_str()) {
            true => Ok(()),
            false => Err(CaveatRefusal::Method { method: asked.method.clone() }),
        }
    }
}

pub(super) mod path {
    use super::{Asked, CaveatRefusal, Judged};

    /// A path as a request could have it after normalisation. Where this and the gateway's own normal form differ, the
    /// caveat matches nothing: a narrower token, never a wider one.
    pub(crate) fn reads(value: &str) -> bool {
        is_normal(value)
            && value.bytes().all(|b| b.is_ascii_graphic() && !b"\"#<>?[\\]^`{|}".contains(&b))
            && value.split('%').skip(1).all(is_needed_escape)
    }

    /// Whether what follows a `%` is an upper-case escape of a byte that has to be escaped, and isn't a separator.
    fn is_needed_escape(rest: &str) -> bool {
        let Some(digits) = rest
            .get(..2)
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b)))
        else {
            return false;
        };
        u8::from_str_radix(digits, 16).is_ok_and(|byte| {
            !byte.is_ascii_alphanumeric() && !byte.is_ascii_control() && !b"-._~/\\".contains(&byte)
        })
    }

    /// Absolute, with no segment empty (but the last) or made of dots, and nothing that some server takes for a `/`.
    fn is_normal(path: &str) -> bool {
        let Some(rest) = path.strip_prefix('/') else { return false };
        let mut segments = rest.split('/').peekable();
        while let Some(segment) = segments.next() {
            if matches!(segment, "." | "..") || (segment.is_empty() && segments.peek().is_some()) {
                return false;
            }
        }
        !path.contains('\\')
            && !path
                .split('%')
                .skip(1)
                .filter_map(|rest| rest.get(..2))
                .any(|digits| ["2e", "2f", "5c"].iter().any(|bad| bad.eq_ignore_ascii_case(digits)))
    }

    /// Whether `path` is `prefix` or below it, by whole segments.
    fn within(prefix: &str, path: &str) -> bool {
        path.strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || prefix.ends_with('/') || rest.starts_with('/'))
    }

    pub(in super::super) fn narrows(before: &str, now: &str) -> bool {
        within(before, now)
    }

    pub(in super::super) fn holds(
        value: &str,
        asked: &Asked<'_>,
        _: &mut Judged,
    ) -> Result<(), CaveatRefusal> {
        // The caller has normalised the path; one that isn't normal all the same must not climb out of its prefix.
        if is_normal(asked.path) && within(value, asked.path) { Ok(()) } else { Err(CaveatRefusal::Path) }
    }
}

pub(super) mod client {
    use std::net::IpAddr;

    use ipnet::IpNet;

    use super::{Asked, CaveatRefusal, Judged, is_list};
    use crate::terms::decimal;

    fn network(text: &str) -> Option<IpNet> {
        let network = match text.split_once('/') {
            Some((address, prefix)) => {
                let prefix = u8::try_from(decimal(prefix)?).ok()?;
                IpNet::new(address.parse().ok()?, prefix).ok()?
            }
            None => IpNet::from(text.parse::<IpAddr>().ok()?),
        };
        // Bits below the prefix: did the holder mean the host or its network?
        (network == network.trunc()).then_some(network)
    }

    fn networks(value: &str) -> impl Iterator<Item = IpNet> {
        value.split(',').filter_map(network)
    }

    pub(in super::super) fn reads(value: &str) -> bool {
        is_list(value, |item| network(item).is_some())
    }

    pub(in super::super) fn narrows(before: &str, now: &str) -> bool {
        networks(now).all(|inner| networks(before).any(|outer| outer.contains(&inner)))
    }

    pub(in super::super) fn holds(
        value: &str,
        asked: &Asked<'_>,
        _: &mut Judged,
    ) -> Result<(), CaveatRefusal> {
        // An IPv4 client of a dual-stack socket comes as `::ffff:a.b.c.d`.
        let client = asked.client.ok_or(CaveatRefusal::Client)?.to_canonical();
        match networks(value).any(|network| network.contains(&client)) {
            true => Ok(()),
            false => Err(CaveatRefusal::Client),
        }
    }
}

pub(super) mod preimage {
    use super::{Asked, CaveatRefusal, Judged};

    pub(in super::super) fn reads(value: &str) -> bool {
        crate::hex32(value).is_ok()
    }

    pub(in super::super) fn narrows(before: &str, now: &str) -> bool {
        before.eq_ignore_ascii_case(now)
    }

    /// The credential's reader takes it out and its hash is compared: there is nothing left to judge.
    pub(in super::super) fn holds(_: &str, _: &Asked<'_>, _: &mut Judged) -> Result<(), CaveatRefusal> {
        Ok(())
    }
}
