//! How single values are written in the configuration: `10sat`, `5m`, `10MiB`, `10/min`.
//!
//! A number without its unit is refused everywhere: what it counts would be a guess.

use std::{
    collections::BTreeMap,
    fmt,
    marker::PhantomData,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    str::FromStr,
    time::Duration,
};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de};

/// A value that is written as a text, read by its own `FromStr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Written<T>(pub(crate) T);

impl<'de, T> Deserialize<'de> for Written<T>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(de::Error::custom)
    }
}

impl<T: FromStr> FromStr for Written<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        text.parse().map(Self)
    }
}

/// Reads what is left out or written. A key without a value is neither: whoever writes one means something by it.
pub(crate) fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Reads a list that narrows something: an empty one would leave everything open, which is said by leaving it out.
pub(crate) fn some<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    let list = Vec::deserialize(deserializer)?;
    if list.is_empty() {
        return Err(de::Error::custom("the list is empty; write at least one, or remove the key"));
    }
    Ok(list)
}

/// Reads a mapping that narrows something, by names: an empty one is left out, as an empty list is.
pub(crate) fn some_keys<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, T>, D::Error> {
    let map = BTreeMap::deserialize(deserializer)?;
    if map.is_empty() {
        return Err(de::Error::custom("the mapping is empty; write at least one entry, or remove the key"));
    }
    Ok(map)
}

/// Reads what is usually written as a text and, to say more, as a mapping.
///
/// An untagged enum would do it in a line, but its errors name neither the line nor the key.
pub(crate) fn text_or_map<'de, D, T, M>(
    deserializer: D,
    expecting: &'static str,
    of_text: fn(&str) -> Result<T, String>,
    of_map: fn(M) -> T,
) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    M: Deserialize<'de>,
{
    struct Either<T, M> {
        expecting: &'static str,
        of_text: fn(&str) -> Result<T, String>,
        of_map: fn(M) -> T,
        reads: PhantomData<M>,
    }

    impl<'de, T, M: Deserialize<'de>> de::Visitor<'de> for Either<T, M> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.expecting)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            (self.of_text)(text).map_err(E::custom)
        }

        fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            M::deserialize(de::value::MapAccessDeserializer::new(map)).map(self.of_map)
        }
    }

    deserializer.deserialize_any(Either { expecting, of_text, of_map, reads: PhantomData })
}

/// Reads a choice that is written as a mapping with one key. `expecting` says what there is to choose from.
///
/// Serde takes the first key, and leaves it to whoever holds the mapping whether there is one and whether more follow.
pub(crate) fn one_key<'de, A: de::MapAccess<'de>, T: Deserialize<'de>>(
    map: A,
    expecting: &dyn de::Expected,
) -> Result<T, A::Error> {
    /// The mapping, and whether anything stood in it.
    struct Keys<A> {
        map: A,
        is_empty: bool,
    }

    impl<'de, A: de::MapAccess<'de>> de::MapAccess<'de> for &mut Keys<A> {
        type Error = A::Error;

        fn next_key_seed<K: de::DeserializeSeed<'de>>(
            &mut self,
            seed: K,
        ) -> Result<Option<K::Value>, A::Error> {
            let key = self.map.next_key_seed(seed);
            self.is_empty = matches!(key, Ok(None));
            key
        }

        fn next_value_seed<V: de::DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
            self.map.next_value_seed(seed)
        }
    }

    /// A key that should not be there. It is refused where it is read, so that the error names its place.
    struct Another;

    impl<'de> Deserialize<'de> for Another {
        fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
            Err(de::Error::custom("only one of these may be chosen; remove the others"))
        }
    }

    let mut keys = Keys { map, is_empty: false };
    let chosen = T::deserialize(de::value::MapAccessDeserializer::new(&mut keys));
    if keys.is_empty {
        return Err(de::Error::custom(format!("write {expecting}")));
    }
    let chosen = chosen?;
    keys.map.next_key::<Another>()?;
    Ok(chosen)
}

/// Reads what is usually written as a number above zero and, to say more, as a mapping.
pub(crate) fn count_or_map<'de, D, T, M>(
    deserializer: D,
    expecting: &'static str,
    of_count: fn(NonZeroU32) -> T,
    of_map: fn(M) -> T,
) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    M: Deserialize<'de>,
{
    struct Either<T, M> {
        expecting: &'static str,
        of_count: fn(NonZeroU32) -> T,
        of_map: fn(M) -> T,
        reads: PhantomData<M>,
    }

    impl<'de, T, M: Deserialize<'de>> de::Visitor<'de> for Either<T, M> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.expecting)
        }

        fn visit_u64<E: de::Error>(self, count: u64) -> Result<T, E> {
            let count = u32::try_from(count).ok().and_then(NonZeroU32::new);
            count.map(self.of_count).ok_or_else(|| E::custom(format!("write {}", self.expecting)))
        }

        fn visit_i64<E: de::Error>(self, count: i64) -> Result<T, E> {
            self.visit_u64(u64::try_from(count).unwrap_or_default())
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            // Where a variable stood, it is a text by now.
            self.visit_u64(text.parse().unwrap_or_default())
        }

        fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            M::deserialize(de::value::MapAccessDeserializer::new(map)).map(self.of_map)
        }
    }

    deserializer.deserialize_any(Either { expecting, of_count, of_map, reads: PhantomData })
}

/// What is usually one, written alone, or a list of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OneOrMore<T>(pub(crate) Vec<T>);

impl<'de, T: FromStr + Deserialize<'de>> Deserialize<'de> for OneOrMore<T>
where
    T::Err: fmt::Display,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<T>(PhantomData<T>);

        impl<'de, T: FromStr + Deserialize<'de>> de::Visitor<'de> for Reader<T>
        where
            T::Err: fmt::Display,
        {
            type Value = OneOrMore<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, or a list of texts")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<OneOrMore<T>, E> {
                text.parse().map(|one| OneOrMore(vec![one])).map_err(E::custom)
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, list: A) -> Result<OneOrMore<T>, A::Error> {
                some(de::value::SeqAccessDeserializer::new(list)).map(OneOrMore)
            }
        }

        deserializer.deserialize_any(Reader(PhantomData))
    }
}

/// An IP address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address(pub(crate) SocketAddr);

/// A text that is no address and port.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is not an address; write an IP address and a port, like `127.0.0.1:8402`, `0.0.0.0:443` or `[::1]:8402`"
)]
pub(crate) struct NotAnAddress(String);

impl FromStr for Address {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        text.parse().map(Self).map_err(|_| NotAnAddress(text.to_owned()))
    }
}

/// A network, or a single address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addresses(pub(crate) IpNet);

/// A text that is no network.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not an address or network; write one, like `192.0.2.1` or `10.0.0.0/8`")]
pub(crate) struct NotAddresses(String);

impl FromStr for Addresses {
    type Err = NotAddresses;

    fn from_str(text: &str) -> Result<Self, NotAddresses> {
        let single = text.parse::<IpAddr>().map(IpNet::from);
        let network = single.or_else(|_| text.parse::<IpNet>());
        network.map(|network| Self(network.trunc())).map_err(|_| NotAddresses(text.to_owned()))
    }
}

/// A length of time: `500ms`, `10s`, `5m`, `1h`, `30d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span(pub(crate) Duration);

/// More than anybody means, and little enough to be added to any moment.
const SPAN_MAX: Duration = Duration::from_secs(1_000 * 366 * 86_400);

/// A text that is no length of time.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is not a length of time; write a whole number and a unit, like `500ms`, `10s`, `5m`, `1h` or `30d`"
)]
pub(crate) struct NotASpan(String);

impl FromStr for Span {
    type Err = NotASpan;

    fn from_str(text: &str) -> Result<Self, NotASpan> {
        let wrong = || NotASpan(text.to_owned());
        let (number, unit) = number_and_unit(text).ok_or_else(wrong)?;
        let secs = |each: u64| number.checked_mul(each).map(Duration::from_secs).ok_or_else(wrong);
        let span = match unit {
            "ms" => Duration::from_millis(number),
            "s" => secs(1)?,
            "m" | "min" => secs(60)?,
            "h" => secs(3_600)?,
            "d" => secs(86_400)?,
            _ => return Err(wrong()),
        };
        if span > SPAN_MAX { Err(wrong()) } else { Ok(Self(span)) }
    }
}

impl fmt::Display for Span {
    /// The largest unit that leaves no rest.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secs = self.0.as_secs();
        if self.0.subsec_millis() > 0 {
            return write!(f, "{}ms", self.0.as_millis());
        }
        let units = [(86_400, "d"), (3_600, "h"), (60, "m")];
        let (each, unit) =
            units.into_iter().find(|(each, _)| secs > 0 && secs.is_multiple_of(*each)).unwrap_or((1, "s"));
        write!(f, "{}{unit}", secs / each)
    }
}

/// So many seconds.
pub(crate) const fn secs(secs: u64) -> Written<Span> {
    Written(Span(Duration::from_secs(secs)))
}

/// How long to wait: a length of time, or `never` to give up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    For(Span),
    Endless,
}

impl Patience {
    /// The limit, if there is one.
    pub(crate) fn limit(self) -> Option<Duration> {
        match self {
            Self::For(span) => Some(span.0),
            Self::Endless => None,
        }
    }
}

impl FromStr for Patience {
    type Err = NotASpan;

    fn from_str(text: &str) -> Result<Self, NotASpan> {
        if text == "never" { Ok(Self::Endless) } else { text.parse().map(Self::For) }
    }
}

/// A number of bytes: `512B`, `64KiB`, `10MiB`, `1GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(pub(crate) u64);

/// A text that is no number of bytes.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a size; write a whole number and a unit, like `512B`, `64KiB`, `10MiB` or `1GiB`")]
pub(crate) struct NotASize(String);

impl FromStr for Size {
    type Err = NotASize;

    fn from_str(text: &str) -> Result<Self, NotASize> {
        let wrong = || NotASize(text.to_owned());
        let (number, unit) = number_and_unit(text).ok_or_else(wrong)?;
        let each: u64 = match unit {
            "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return Err(wrong()),
        };
        number.checked_mul(each).map(Self).ok_or_else(wrong)
    }
}

/// So many in a time: `100/s`, `10/min`, `1000/h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PerTime {
    pub(crate) count: NonZeroU32,
    pub(crate) per: Duration,
}

impl PerTime {
    /// So many in so many seconds; a count of zero is taken for one.
    pub(crate) fn new(count: u32, secs: u64) -> Self {
        Self { count: NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN), per: Duration::from_secs(secs) }
    }
}

/// A text that is no frequency.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a rate; write how many in which time, like `100/s`, `10/min` or `1000/h`")]
pub(crate) struct NotARate(String);

impl FromStr for PerTime {
    type Err = NotARate;

    fn from_str(text: &str) -> Result<Self, NotARate> {
        let wrong = || NotARate(text.to_owned());
        let (count, unit) = text.split_once('/').ok_or_else(wrong)?;
        let count = count.trim().parse().map_err(|_| wrong())?;
        let secs = match unit.trim() {
            "s" => 1,
            "m" | "min" => 60,
            "h" => 3_600,
            _ => return Err(wrong()),
        };
        Ok(Self { count, per: Duration::from_secs(secs) })
    }
}

/// Splits `10 min` into 10 and `min`.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    Some((number.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_of_time_names_its_unit() {
        for (text, want) in
            [("500ms", 500), ("10s", 10_000), ("5m", 300_000), ("1 h", 3_600_000), ("30d", 2_592_000_000)]
        {
            assert_eq!(text.parse::<Span>().unwrap().0, Duration::from_millis(want), "{text}");
        }
        for text in
            ["10", "", "s", "-1s", "1.5h", "1w", "1h30m", "99999999999999999999s", "18446744073709551615s"]
        {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_length_of_time_is_shown_as_it_would_be_written() {
        for text in ["500ms", "10s", "5m", "1h", "30d", "90m", "0s"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_size_names_its_unit() {
        for (text, want) in
            [("512B", 512), ("64KiB", 65_536), ("10MiB", 10_485_760), ("1 GiB", 1_073_741_824)]
        {
            assert_eq!(text.parse::<Size>().unwrap().0, want, "{text}");
        }
        for text in ["10", "10MB", "10mib", "MiB", "-1B", "18446744073709551615GiB"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_rate_is_above_zero_and_names_its_time() {
        for (text, count, secs) in [("10/min", 10, 60), ("100/s", 100, 1), ("5 / h", 5, 3_600)] {
            let rate: PerTime = text.parse().unwrap();
            assert_eq!((rate.count.get(), rate.per.as_secs()), (count, secs), "{text}");
        }
        for text in ["0/s", "10", "10/day", "/s", "-1/s", "1.5/s"] {
            assert!(text.parse::<PerTime>().is_err(), "{text}");
        }
    }
}
