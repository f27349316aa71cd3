//! [`Bucketed`]: plain keys become fields of small hashes, which take a tenth of the memory.

use super::KeyMap;
use crate::key::{Key, KeyBuf};
use crate::redis::ServerInfo;

/// Plain keys become fields of small hashes that the server keeps as listpacks, so that an entry costs its bytes and
/// three or four more instead of a key's seventy.
///
/// | key | becomes | |
/// |---|---|---|
/// | ends with a number: `user\|1000` | field `232` of `user\|#3`, at a width of 256 | number / width, number % width |
/// | anything else: `user-15\|posts` | field `user-15\|posts` of `##4711` | by hash, into as many buckets as [`others`](Bucketed::others) says |
/// | is a field already | stays what it is | `#` is put behind a hash's name that looks like one of ours |
/// | is long | stays a plain key | a field over the server's limit would cost the whole bucket its saving |
///
/// A number ends a key where no letter stands before it, and no zero: not in `page7` or `x-007`. It has up to 19 digits.
/// Numbers should lie close together, as ids do: a bucket with few fields saves little. Where they do not,
/// [`by_name`](Bucketed::by_name) treats them like anything else.
///
/// All who share a cache must bucket alike, with the same width and number of buckets. Both are thus best stated, or read
/// from the same server when each program starts. A TTL of the hash is that of its whole bucket: with
/// [`HashExpiry::Stamped`](crate::HashExpiry::Stamped) or [`PerField`](crate::HashExpiry::PerField) each entry has its
/// own. A [`Prefix`](super::Prefix) stands best behind it, `(Bucketed::new(256), Prefix::new("shop:"))`, so that each
/// region has buckets of its own.
///
/// ```
/// use dogpile::{Bucketed, Key, KeyBuf, KeyMap};
///
/// let map = Bucketed::new(256).others(10_000);
/// let mut room = KeyBuf::new();
/// assert_eq!(map.map(Key::from("user|1000"), &mut room), Key::from(("user|#3", "232")));
/// assert_eq!(map.original(Key::from(("user|#3", "232"))), Some(KeyBuf::from("user|1000")));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bucketed {
    /// Of buckets for numbers.
    width: Option<u32>,
    /// For other keys.
    buckets: Option<u32>,
    /// How many bytes the server takes in a listpack, in a field and in an entry.
    most: usize,
}

/// Between what a bucket's keys have in common and its number.
const MARK: u8 = b'#';

/// Wider buckets save 2 % more memory, and their entries cost the server twice the time: they are searched one by one.
/// (Redis 7.0, HGET and HSET: width 128 1.1 and 1.7 µs, 256 1.6 and 2.0, 512 2.4 and 2.9; 1.1 M entries: 14.1, 13.6 and
/// 13.3 MB.)
const WIDEST: u32 = 256;

/// What servers take in a listpack unless they are told otherwise.
const MOST: usize = 64;

/// What a stamp may take of an entry's room.
const STAMP: usize = 4;

impl Bucketed {
    /// Buckets of so many numbers, at least one; other keys stay as they are. The server's `hash-max-listpack-entries`
    /// must not be smaller: 128 in Redis's configuration file, 512 without one.
    #[must_use]
    pub fn new(width: u32) -> Self {
        Bucketed { width: Some(width.max(1)), buckets: None, most: MOST }
    }

    /// So many buckets for all keys, at least one, by FNV-1a; numbers at their ends mean nothing. For ids that lie far apart,
    /// and names. There should be a bucket for each hundred of keys that there will be.
    #[must_use]
    pub fn by_name(buckets: u32) -> Self {
        Bucketed { width: None, buckets: Some(buckets.max(1)), most: MOST }
    }

    /// Buckets as wide as the server keeps as listpacks, up to 256. Programs that share a cache must be told the same by
    /// their servers.
    #[must_use]
    pub fn for_server(server: &ServerInfo) -> Self {
        let most = usize::try_from(server.max_listpack_value).unwrap_or(usize::MAX);
        Bucketed::new(server.max_listpack_entries.min(WIDEST)).max_bytes(most)
    }

    /// Also puts keys that end with no number into buckets, so many in all, as [`by_name`](Bucketed::by_name) does.
    #[must_use]
    pub fn others(mut self, buckets: u32) -> Self {
        self.buckets = Some(buckets.max(1));
        self
    }

    /// How many bytes a field and an entry may have in a listpack (`hash-max-listpack-value`), at least 16. Longer keys are
    /// not put into buckets; longer entries are, and make a hash table of theirs. Default: 64.
    #[must_use]
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        // No name of a bucket of names is longer, so no key stays plain that is one.
        self.most = bytes.max(16);
        self
    }

    /// How many numbers a bucket has, if numbers are divided.
    #[must_use]
    pub fn width(&self) -> Option<u32> {
        self.width
    }

    /// The key that becomes this one, if there is one.
    #[must_use]
    pub fn original(&self, key: Key<'_>) -> Option<KeyBuf> {
        let original = match key {
            Key::Plain(_) => key.to_buf(),
            Key::Field { hash, field } => match (bucket(hash), self.width, decimal(field)) {
                (Some((head, number)), Some(width), Some(rest)) if rest < u64::from(width) => {
                    let number = number.checked_mul(width.into())?.checked_add(rest)?;
                    KeyBuf::new().bytes(head).int(number)
                }
                (Some(_), ..) => KeyBuf::from(field),
                (None, ..) => KeyBuf::from((strip_mark(hash), field)),
            },
        };
        let mut room = KeyBuf::new();
        (self.map(original.as_key(), &mut room) == key).then_some(original)
    }

    /// Where a plain key goes, unless it stays.
    fn place<'k>(&self, key: &'k [u8]) -> Option<Place<'k>> {
        if let Some(width) = self.width
            && let Some((head, number)) = numbered(key)
        {
            let width = u64::from(width);
            return Some(Place::Number { head, bucket: number / width, field: number % width });
        }
        let buckets = self.buckets?;
        (key.len() <= self.most).then(|| Place::Name { bucket: fnv(key) % u64::from(buckets), field: key })
    }
}

/// Where a plain key goes.
enum Place<'k> {
    Number { head: &'k [u8], bucket: u64, field: u64 },
    Name { bucket: u64, field: &'k [u8] },
}

impl KeyMap for Bucketed {
    fn map<'k>(&self, key: Key<'k>, room: &'k mut KeyBuf) -> Key<'k> {
        let mut digits = itoa::Buffer::new();
        let mut bucket = |room: &mut KeyBuf, head: &[u8], number: u64| {
            room.clear();
            room.push(head);
            room.push(&[MARK]);
            room.push(digits.format(number).as_bytes());
            room.begin_field();
        };
        match key {
            Key::Field { hash, field } if looks_like_ours(hash) => {
                room.clear();
                room.push(hash);
                room.push(&[MARK]);
                room.begin_field();
                room.push(field);
            }
            Key::Field { .. } => return key,
            Key::Plain(plain) => match self.place(plain) {
                None => return key,
                Some(Place::Number { head, bucket: number, field }) => {
                    bucket(room, head, number);
                    room.push(itoa::Buffer::new().format(field).as_bytes());
                }
                Some(Place::Name { bucket: number, field }) => {
                    bucket(room, &[MARK], number);
                    room.push(field);
                }
            },
        }
        room.as_key()
    }

    #[inline]
    fn keeps(&self, key: Key<'_>) -> bool {
        match key {
            // At a glance: what ends with a digit is most often not kept.
            Key::Plain(key) => self.buckets.is_none() && !key.last().is_some_and(u8::is_ascii_digit),
            Key::Field { hash, .. } => !looks_like_ours(hash),
        }
    }

    /// A little less than fits, so that it fits with a stamp too.
    fn longest_entry(&self, key: Key<'_>) -> usize {
        match key {
            Key::Field { hash, .. } if bucket(hash).is_some() => self.most.saturating_sub(STAMP),
            _ => usize::MAX,
        }
    }
}

/// The number that a key ends with, and what stands before it.
fn numbered(key: &[u8]) -> Option<(&[u8], u64)> {
    let (head, number) = split_number(key)?;
    // What stands before tells an id from the end of a name, such as one in hex.
    let is_name = head.last().is_some_and(|byte| byte.is_ascii_alphabetic() || !byte.is_ascii());
    (!is_name).then_some((head, number))
}

/// The number at the end, and what stands before it. Only a number as it is written by us, of up to 19 digits and none of
/// them a zero before others.
fn split_number(bytes: &[u8]) -> Option<(&[u8], u64)> {
    let (mut number, mut unit, mut at) = (0_u64, 1_u64, bytes.len());
    while let Some(digit @ b'0'..=b'9') = at.checked_sub(1).map(|before| bytes[before]) {
        number = number.checked_add(u64::from(digit - b'0').checked_mul(unit)?)?;
        unit = unit.checked_mul(10)?;
        at -= 1;
    }
    let is_written_so = at < bytes.len() && (bytes[at] != b'0' || at + 1 == bytes.len());
    is_written_so.then_some((&bytes[..at], number))
}

/// What is a number and nothing else.
fn decimal(field: &[u8]) -> Option<u64> {
    split_number(field).filter(|(before, _)| before.is_empty()).map(|(_, number)| number)
}

/// What the keys of a bucket have in common, and its number.
fn bucket(hash: &[u8]) -> Option<(&[u8], u64)> {
    let (head, number) = split_number(hash)?;
    Some((head.strip_suffix(&[MARK])?, number))
}

/// Whether a hash of the caller's own is named like a bucket, or like such a hash as we name it.
fn looks_like_ours(hash: &[u8]) -> bool {
    // Most hashes end otherwise.
    matches!(hash.last(), Some(b'0'..=b'9' | &MARK)) && {
        let marks = hash.iter().rev().take_while(|&&byte| byte == MARK).count();
        bucket(&hash[..hash.len() - marks]).is_some()
    }
}

fn strip_mark(hash: &[u8]) -> &[u8] {
    if looks_like_ours(hash) { &hash[..hash.len() - 1] } else { hash }
}

/// FNV-1a of 64 bits: short, and the same in every language.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(map: Bucketed, key: Key<'_>) -> String {
        let mut room = KeyBuf::from("what was there before");
        let mapped = map.map(key, &mut room);
        assert!(!map.keeps(key) || mapped == key, "{key:?}");
        assert_eq!(map.original(mapped), Some(key.to_buf()), "{key:?}");
        format!("{mapped:?}")
    }

    fn plain(key: &str) -> String {
        mapped(Bucketed::new(128), Key::from(key))
    }

    #[test]
    fn numbers_go_by_division() {
        assert_eq!(plain("0"), r##"Field("#0", "0")"##);
        assert_eq!(plain("128"), r##"Field("#1", "0")"##);
        assert_eq!(plain("foo|1000"), r##"Field("foo|#7", "104")"##);
        assert_eq!(plain("foo|-1"), r##"Field("foo|-#0", "1")"##);
        assert_eq!(plain("#17"), r###"Field("##0", "17")"###);
        assert_eq!(plain("9999999999999999999"), r##"Field("#78124999999999999", "127")"##);
        assert_eq!(mapped(Bucketed::new(0), Key::from("5")), r##"Field("#5", "0")"##);
    }

    #[test]
    fn other_keys_stay() {
        for key in ["", "foo", "page7", "é7", "x-007", "00", "10000000000000000000", "user-15|posts", "#"] {
            assert_eq!(plain(key), format!("{:?}", Key::from(key)));
        }
    }

    #[test]
    fn other_keys_go_by_hash() {
        let map = Bucketed::new(128).others(1000);
        // FNV-1a of 64 bits, by any other implementation: 0x85944171f73967e8.
        assert_eq!(fnv(b"foobar"), 0x8594_4171_f739_67e8);
        assert_eq!(mapped(map, Key::from("foobar")), r###"Field("##968", "foobar")"###);
        assert_eq!(mapped(map, Key::from("")), format!(r###"Field("##{}", "")"###, 0xcbf2_9ce4_8422_2325_u64 % 1000));
        assert_eq!(mapped(map, Key::from("x-007")).len(), r###"Field("##123", "x-007")"###.len());
        let long = "k".repeat(65);
        assert_eq!(mapped(map, Key::from(&*long)), format!("{:?}", Key::from(&*long)));
        assert_ne!(mapped(map.max_bytes(65), Key::from(&*long)), format!("{:?}", Key::from(&*long)));
        let by_name = Bucketed::by_name(1000);
        assert_eq!(mapped(by_name, Key::from("foobar")), mapped(map, Key::from("foobar")));
        assert!(mapped(by_name, Key::from("foo|1000")).ends_with(r#", "foo|1000")"#));
        assert!(mapped(by_name, Key::from("7")).ends_with(r#", "7")"#));
    }

    #[test]
    fn fields_stay_and_never_meet_ours() {
        let map = Bucketed::new(128).others(10);
        let field = |hash: &str| mapped(map, Key::from((hash, "5")));
        for hash in ["", "h", "h7", "#", "##", "h#x", "h#07", "#h"] {
            assert_eq!(field(hash), format!("{:?}", Key::from((hash, "5"))));
        }
        assert_eq!(field("h#7"), r##"Field("h#7#", "5")"##);
        assert_eq!(field("h#7#"), r###"Field("h#7##", "5")"###);
        assert_eq!(field("##3"), r###"Field("##3#", "5")"###);
    }

    #[test]
    fn not_everything_has_an_original() {
        let map = Bucketed::new(128).others(10);
        for (hash, field) in [("h#7", "128"), ("h#7", "x"), ("h#7", "05"), ("page#1", "5"), ("##3", "foo|5")] {
            assert_eq!(map.original(Key::from((hash, field))), None, "{hash} {field}");
        }
        assert_eq!(map.original(Key::from("foo|5")), None);
        assert_eq!(map.original(Key::from(("#9999999999999999999", "5"))), None);
    }
}
