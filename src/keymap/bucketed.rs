//! [`Bucketed`]: a key map that packs plain keys into small hashes to save server memory.

use super::KeyMap;
use crate::key::{Key, KeyBuf};
use crate::redis::ServerInfo;

/// A key map that stores plain keys as fields of small hashes, in a tenth of the memory.
///
/// The server stores a small hash as a listpack. An entry then takes the size of its bytes and
/// three or four bytes of overhead, while a separate key has an overhead of about seventy bytes.
///
/// | Key | Example | Mapped to |
/// |---|---|---|
/// | ends with a number | `user\|1000` | field `232` (1000 % 256) of the hash `user\|#3` (1000 / 256) |
/// | any other | `user-15\|posts` | field `user-15\|posts` of the hash `##4711` |
/// | any other, but long | | unchanged |
/// | a field of a hash | `users,15` | unchanged |
///
/// Keys without a number at the end are distributed by their hash value, into as many buckets as
/// [`others`](Bucketed::others) sets; without that setting they stay unchanged. They also stay
/// unchanged if they are longer than [`max_bytes`](Bucketed::max_bytes), because a field above the
/// server's limit converts the whole bucket from a listpack to a hash table. If the hash of a field
/// has a name that looks like the name of a bucket, `#` is appended to the name, so that it does
/// not collide with a bucket.
///
/// # Numbers
///
/// A key ends with a number if the number has at most 19 digits, no leading zeros, and no letter
/// directly in front of it. `page7` and `x-007` do not end with a number.
///
/// Numbers should be close together, as sequential ids are, because a bucket with few fields saves
/// little. If they are far apart, use [`by_name`](Bucketed::by_name), which does not treat numbers
/// specially.
///
/// # Sharing a cache
///
/// All processes that share a cache must use the same width and the same number of buckets. Set
/// both explicitly, or let each process read the width from the same server with
/// [`for_server`](Bucketed::for_server).
///
/// To give each region its own buckets, chain a [`Prefix`](super::Prefix) after this map:
/// `(Bucketed::new(256), Prefix::new("shop:"))`.
///
/// # TTL
///
/// A TTL of the hash applies to the whole bucket. With
/// [`HashTtl::Stamped`](crate::HashTtl::Stamped) or
/// [`HashTtl::PerField`](crate::HashTtl::PerField), each entry has its own TTL.
///
/// ```
/// use dogpile::{Bucketed, Key, KeyBuf, KeyMap};
///
/// let map = Bucketed::new(256).others(10_000);
/// let mut buffer = KeyBuf::new();
/// assert_eq!(map.map(Key::from("user|1000"), &mut buffer), Key::from(("user|#3", "232")));
/// assert_eq!(map.original(Key::from(("user|#3", "232"))), Some(KeyBuf::from("user|1000")));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bucketed {
    /// The width of the buckets for keys that end with a number.
    width: Option<u32>,
    /// The number of buckets for other keys.
    buckets: Option<u32>,
    /// The longest field, and the largest entry, that the server stores in a listpack, in bytes.
    max_bytes: usize,
}

/// Separates the common part of a bucket's keys from the number of the bucket.
const MARK: u8 = b'#';

/// The widest bucket that [`Bucketed::for_server`] picks.
///
/// The server searches a listpack element by element: wider buckets save 2 % more memory, and
/// access to their entries takes up to twice as long. Measured with Redis 7.0: HGET and HSET take
/// 1.1 and 1.7 µs at a width of 128, 1.6 and 2.0 µs at 256, 2.4 and 2.9 µs at 512; 1.1 M entries
/// take 14.1, 13.6 and 13.3 MB.
const MAX_WIDTH: u32 = 256;

/// The server's default of `hash-max-listpack-value`.
const DEFAULT_MAX_BYTES: usize = 64;

/// The most bytes that [`HashTtl::Stamped`](crate::HashTtl::Stamped) adds to an entry.
const STAMP: usize = 4;

impl Bucketed {
    /// Creates a map with buckets of `width` numbers, at least one; other keys stay unchanged.
    ///
    /// The width must not exceed the server's `hash-max-listpack-entries`, which is 128 in the
    /// configuration file that Redis ships, and 512 without a configuration file.
    #[must_use]
    pub fn new(width: u32) -> Self {
        Bucketed { width: Some(width.max(1)), buckets: None, max_bytes: DEFAULT_MAX_BYTES }
    }

    /// Creates a map that distributes all keys over `buckets` buckets, at least one, by hash value.
    ///
    /// The hash function is 64-bit FNV-1a.
    /// Numbers at the end of a key have no special meaning. Use it for names, and for ids that are
    /// far apart. Plan one bucket per hundred keys.
    ///
    /// ```
    /// use dogpile::{Bucketed, Key, KeyBuf, KeyMap};
    ///
    /// let (map, mut buffer) = (Bucketed::by_name(1_000), KeyBuf::new());
    /// assert_eq!(map.map(Key::from("foobar"), &mut buffer), Key::from(("##968", "foobar")));
    /// ```
    #[must_use]
    pub fn by_name(buckets: u32) -> Self {
        Bucketed { width: None, buckets: Some(buckets.max(1)), max_bytes: DEFAULT_MAX_BYTES }
    }

    /// Creates a map for the listpack limits of a server, with a width of at most 256.
    ///
    /// Processes that share a cache must get the same limits from their servers.
    ///
    /// ```no_run
    /// use dogpile::redis::ServerInfo;
    /// use dogpile::{Bucketed, Redis, Region};
    ///
    /// let redis = Redis::open("redis://127.0.0.1")?;
    /// let map = Bucketed::for_server(&ServerInfo::of(&redis)?);
    /// let region = Region::builder(redis).keys(map).build()?;
    /// # region.set("user|1000", &15_u64)?;
    /// # Ok::<(), dogpile::Error>(())
    /// ```
    #[must_use]
    pub fn for_server(server: &ServerInfo) -> Self {
        let max_bytes = usize::try_from(server.max_listpack_value).unwrap_or(usize::MAX);
        Bucketed::new(server.max_listpack_entries.min(MAX_WIDTH)).max_bytes(max_bytes)
    }

    /// Distributes keys that do not end with a number over `buckets` buckets, at least one.
    ///
    /// It does so by their FNV-1a hash, as [`by_name`](Bucketed::by_name) does for all keys.
    /// Without this setting, such keys stay unchanged.
    #[must_use]
    pub fn others(mut self, buckets: u32) -> Self {
        self.buckets = Some(buckets.max(1));
        self
    }

    /// Sets the server's `hash-max-listpack-value`, in bytes; at least 16, by default 64.
    ///
    /// Longer keys that do not end with a number stay plain keys. Larger entries are stored in
    /// their bucket all the same, and convert it from a listpack to a hash table.
    ///
    /// ```
    /// use dogpile::{Bucketed, Key, KeyBuf, KeyMap};
    ///
    /// let (long, mut buffer) = ("k".repeat(65), KeyBuf::new());
    /// let map = Bucketed::by_name(1_000);
    /// assert_eq!(map.map(Key::from(&*long), &mut buffer), Key::from(&*long));
    /// assert_ne!(map.max_bytes(65).map(Key::from(&*long), &mut buffer), Key::from(&*long));
    /// ```
    #[must_use]
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        // The name of a bucket of names fits in 16 bytes, so a plain key of such a name is always
        // mapped and cannot collide with the bucket.
        self.max_bytes = bytes.max(16);
        self
    }

    /// Returns the width of the buckets for numbers.
    ///
    /// It is `None` for a map created with [`by_name`](Bucketed::by_name).
    ///
    /// ```
    /// use dogpile::Bucketed;
    ///
    /// assert_eq!(Bucketed::new(256).width(), Some(256));
    /// assert_eq!(Bucketed::by_name(1_000).width(), None);
    /// ```
    #[must_use]
    pub fn width(&self) -> Option<u32> {
        self.width
    }

    /// Returns the key that is mapped to `key`, or `None` if no key is.
    ///
    /// Tools that scan the server use it to show the keys of the entries in a bucket.
    #[must_use]
    pub fn original(&self, key: Key<'_>) -> Option<KeyBuf> {
        let original = match key {
            Key::Plain(_) => key.to_buf(),
            Key::Field { hash, field } => match (parse_bucket(hash), self.width, decimal(field)) {
                (Some((head, number)), Some(width), Some(rest)) if rest < u64::from(width) => {
                    let number = number.checked_mul(width.into())?.checked_add(rest)?;
                    KeyBuf::new().bytes(head).int(number)
                }
                (Some(_), ..) => KeyBuf::from(field),
                (None, ..) => KeyBuf::from((strip_mark(hash), field)),
            },
        };
        let mut buffer = KeyBuf::new();
        (self.map(original.as_key(), &mut buffer) == key).then_some(original)
    }

    /// Returns the bucket and the field of a plain key, or `None` if the key stays plain.
    fn slot<'k>(&self, key: &'k [u8]) -> Option<BucketSlot<'k>> {
        if let Some(width) = self.width
            && let Some((head, number)) = split_id(key)
        {
            let width = u64::from(width);
            return Some(BucketSlot::Number { head, bucket: number / width, field: number % width });
        }
        let buckets = self.buckets?;
        (key.len() <= self.max_bytes).then(|| BucketSlot::Name { bucket: fnv(key) % u64::from(buckets), field: key })
    }
}

/// The bucket and the field of a plain key.
enum BucketSlot<'k> {
    Number { head: &'k [u8], bucket: u64, field: u64 },
    Name { bucket: u64, field: &'k [u8] },
}

impl KeyMap for Bucketed {
    fn map<'k>(&self, key: Key<'k>, buffer: &'k mut KeyBuf) -> Key<'k> {
        let mut digits = itoa::Buffer::new();
        let mut bucket = |buffer: &mut KeyBuf, head: &[u8], number: u64| {
            buffer.clear();
            buffer.push(head);
            buffer.push(&[MARK]);
            buffer.push(digits.format(number).as_bytes());
            buffer.begin_field();
        };
        match key {
            Key::Field { hash, field } if looks_like_bucket(hash) => {
                buffer.clear();
                buffer.push(hash);
                buffer.push(&[MARK]);
                buffer.begin_field();
                buffer.push(field);
            }
            Key::Field { .. } => return key,
            Key::Plain(plain) => match self.slot(plain) {
                None => return key,
                Some(BucketSlot::Number { head, bucket: number, field }) => {
                    bucket(buffer, head, number);
                    buffer.push(itoa::Buffer::new().format(field).as_bytes());
                }
                Some(BucketSlot::Name { bucket: number, field }) => {
                    bucket(buffer, &[MARK], number);
                    buffer.push(field);
                }
            },
        }
        buffer.as_key()
    }

    #[inline]
    fn keeps(&self, key: Key<'_>) -> bool {
        match key {
            // This is checked for each call, so it is only an approximation: most keys with a digit
            // at the end are mapped, and `map` decides about the others.
            Key::Plain(key) => self.buckets.is_none() && !key.last().is_some_and(u8::is_ascii_digit),
            Key::Field { hash, .. } => !looks_like_bucket(hash),
        }
    }

    /// Reserves space for the timestamp that `HashTtl::Stamped` adds to an entry.
    fn longest_entry(&self, key: Key<'_>) -> usize {
        match key {
            Key::Field { hash, .. } if parse_bucket(hash).is_some() => self.max_bytes.saturating_sub(STAMP),
            _ => usize::MAX,
        }
    }
}

/// Splits a key that ends with an id into the part before the id, and the id.
fn split_id(key: &[u8]) -> Option<(&[u8], u64)> {
    let (head, number) = split_number(key)?;
    // Digits after a letter (or any non-ASCII byte) are part of a name, such as a number in hex.
    let is_name = head.last().is_some_and(|byte| byte.is_ascii_alphabetic() || !byte.is_ascii());
    (!is_name).then_some((head, number))
}

/// Splits off the decimal number at the end of `bytes`.
///
/// The number must be written as `map` writes numbers, so that mapping is reversible: at most 19
/// digits, no leading zeros.
fn split_number(bytes: &[u8]) -> Option<(&[u8], u64)> {
    let (mut number, mut unit, mut at) = (0_u64, 1_u64, bytes.len());
    while let Some(digit @ b'0'..=b'9') = at.checked_sub(1).map(|before| bytes[before]) {
        number = number.checked_add(u64::from(digit - b'0').checked_mul(unit)?)?;
        unit = unit.checked_mul(10)?;
        at -= 1;
    }
    let is_canonical = at < bytes.len() && (bytes[at] != b'0' || at + 1 == bytes.len());
    is_canonical.then_some((&bytes[..at], number))
}

/// Parses a field that is nothing but a number.
fn decimal(field: &[u8]) -> Option<u64> {
    split_number(field).filter(|(before, _)| before.is_empty()).map(|(_, number)| number)
}

/// Splits the name of a bucket into the common part of its keys, and its number.
fn parse_bucket(hash: &[u8]) -> Option<(&[u8], u64)> {
    let (head, number) = split_number(hash)?;
    Some((head.strip_suffix(&[MARK])?, number))
}

/// Returns `true` if a caller's hash is named like a bucket, with or without marks appended.
///
/// `map` appends one more mark to such names, so that they never collide with a bucket.
fn looks_like_bucket(hash: &[u8]) -> bool {
    // Checking the last byte first rules out most names.
    matches!(hash.last(), Some(b'0'..=b'9' | &MARK)) && {
        let marks = hash.iter().rev().take_while(|&&byte| byte == MARK).count();
        parse_bucket(&hash[..hash.len() - marks]).is_some()
    }
}

fn strip_mark(hash: &[u8]) -> &[u8] {
    if looks_like_bucket(hash) { &hash[..hash.len() - 1] } else { hash }
}

/// The 64-bit FNV-1a hash, which is easy to reproduce in other languages.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(map: Bucketed, key: Key<'_>) -> String {
        let mut buffer = KeyBuf::from("previous contents");
        let mapped = map.map(key, &mut buffer);
        assert!(!map.keeps(key) || mapped == key, "{key:?}");
        assert_eq!(map.original(mapped), Some(key.to_buf()), "{key:?}");
        format!("{mapped:?}")
    }

    fn plain(key: &str) -> String {
        mapped(Bucketed::new(128), Key::from(key))
    }

    #[test]
    fn divides_numbers_into_bucket_and_field() {
        assert_eq!(plain("0"), r##"Field("#0", "0")"##);
        assert_eq!(plain("128"), r##"Field("#1", "0")"##);
        assert_eq!(plain("foo|1000"), r##"Field("foo|#7", "104")"##);
        assert_eq!(plain("foo|-1"), r##"Field("foo|-#0", "1")"##);
        assert_eq!(plain("#17"), r###"Field("##0", "17")"###);
        assert_eq!(plain("9999999999999999999"), r##"Field("#78124999999999999", "127")"##);
        assert_eq!(mapped(Bucketed::new(0), Key::from("5")), r##"Field("#5", "0")"##);
    }

    #[test]
    fn leaves_keys_without_a_number_unchanged() {
        for key in ["", "foo", "page7", "é7", "x-007", "00", "10000000000000000000", "user-15|posts", "#"] {
            assert_eq!(plain(key), format!("{:?}", Key::from(key)));
        }
    }

    #[test]
    fn distributes_other_keys_by_hash() {
        let map = Bucketed::new(128).others(1000);
        // The published test vector of 64-bit FNV-1a.
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
    fn fields_never_collide_with_buckets() {
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
    fn finds_no_original_for_keys_that_map_never_returns() {
        let map = Bucketed::new(128).others(10);
        for (hash, field) in [("h#7", "128"), ("h#7", "x"), ("h#7", "05"), ("page#1", "5"), ("##3", "foo|5")] {
            assert_eq!(map.original(Key::from((hash, field))), None, "{hash} {field}");
        }
        assert_eq!(map.original(Key::from("foo|5")), None);
        assert_eq!(map.original(Key::from(("#9999999999999999999", "5"))), None);
    }
}
