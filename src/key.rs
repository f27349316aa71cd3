//! Cache keys: Redis string keys and fields of Redis hashes, built without allocation.

use std::fmt;
use std::hash::{Hash, Hasher};

use smallvec::SmallVec;

/// The borrowed key of a cache entry: a Redis string key, or a field of a Redis hash.
///
/// Keys are bytes. Text, integers (as decimal digits) and pairs of them are converted by [`AsKey`].
/// To own a key, use [`KeyBuf`].
///
/// As long as the server stores a hash as a listpack, a field takes a fraction of the memory of a
/// separate key. [`Bucketed`](crate::Bucketed) turns plain keys into such fields.
///
/// ```
/// use dogpile::Key;
///
/// assert_eq!(Key::from("user-15"), Key::Plain(b"user-15"));
/// assert_eq!(Key::from(("user-15", "posts")), Key::Field { hash: b"user-15", field: b"posts" });
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key<'a> {
    /// A Redis string key. The empty key is valid, as it is in Redis.
    Plain(&'a [u8]),
    /// One field of a Redis hash.
    Field {
        /// The Redis key of the hash.
        hash: &'a [u8],
        /// The name of the field inside the hash.
        field: &'a [u8],
    },
}

impl<'a> Key<'a> {
    /// Returns the Redis key that the server addresses: the plain key, or the key of the hash.
    ///
    /// In a cluster, this key determines the slot.
    ///
    /// ```
    /// use dogpile::Key;
    ///
    /// assert_eq!(Key::from("user-15").server_key(), b"user-15");
    /// assert_eq!(Key::from(("users", "15")).server_key(), b"users");
    /// ```
    #[must_use]
    pub fn server_key(self) -> &'a [u8] {
        match self {
            Key::Plain(key) => key,
            Key::Field { hash, .. } => hash,
        }
    }

    /// Copies the key into a [`KeyBuf`], which owns its bytes.
    ///
    /// # Cost
    ///
    /// Allocates only if the key is longer than [`KeyBuf::INLINE`] bytes.
    ///
    /// ```
    /// use dogpile::{Key, KeyBuf};
    ///
    /// assert_eq!(Key::from("user-15").to_buf(), KeyBuf::new().text("user-15"));
    /// ```
    #[must_use]
    pub fn to_buf(self) -> KeyBuf {
        let mut buf = KeyBuf::new();
        buf.set(self);
        buf
    }
}

/// Formats a plain key as text and a field as `hash,field`; escapes all but printable ASCII.
impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Plain(key) => write!(f, "{}", key.escape_ascii()),
            Key::Field { hash, field } => write!(f, "{},{}", hash.escape_ascii(), field.escape_ascii()),
        }
    }
}

impl fmt::Debug for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Plain(key) => write!(f, "Plain(\"{}\")", key.escape_ascii()),
            Key::Field { hash, field } => {
                write!(f, "Field(\"{}\", \"{}\")", hash.escape_ascii(), field.escape_ascii())
            }
        }
    }
}

impl<'a> From<&'a str> for Key<'a> {
    fn from(key: &'a str) -> Self {
        Key::Plain(key.as_bytes())
    }
}

impl<'a> From<&'a [u8]> for Key<'a> {
    fn from(key: &'a [u8]) -> Self {
        Key::Plain(key)
    }
}

impl<'a, H: AsRef<[u8]> + ?Sized, F: AsRef<[u8]> + ?Sized> From<(&'a H, &'a F)> for Key<'a> {
    fn from((hash, field): (&'a H, &'a F)) -> Self {
        Key::Field { hash: hash.as_ref(), field: field.as_ref() }
    }
}

impl<'a> From<&'a KeyBuf> for Key<'a> {
    fn from(key: &'a KeyBuf) -> Self {
        key.as_key()
    }
}

/// Stack space in which [`AsKey`] writes the digits of the integers in a key.
///
/// The caller provides it so that converting an integer to a key does not allocate. Its contents
/// are unspecified.
///
/// ```
/// use dogpile::keymap::Scratch;
/// use dogpile::{AsKey, Key};
///
/// let mut scratch = Scratch::new();
/// assert_eq!(15_u64.as_key(&mut scratch), Key::from("15"));
/// ```
#[derive(Debug, Default)]
pub struct Scratch {
    first: Digits,
    second: Digits,
}

impl Scratch {
    /// Creates a scratch space on the stack, without initializing its bytes.
    #[inline]
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

/// Stack space for the digits of one integer, used by [`KeyPart`].
///
/// Create one with `Digits::default()`.
pub struct Digits(itoa::Buffer);

impl fmt::Debug for Digits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digits")
    }
}

impl Default for Digits {
    #[inline]
    fn default() -> Self {
        Digits(itoa::Buffer::new())
    }
}

/// A type that can be used as a cache key: text, bytes, integers, pairs, [`Key`] and [`KeyBuf`].
///
/// Text and bytes are borrowed as they are, and integers are written in decimal. A pair of such
/// values is a field of a hash: the first value names the hash, the second one the field. No
/// conversion allocates.
///
/// ```
/// use dogpile::{AsKey, Key};
/// use dogpile::keymap::Scratch;
///
/// let mut scratch = Scratch::new();
/// assert_eq!((15_u64, "posts").as_key(&mut scratch), Key::Field { hash: b"15", field: b"posts" });
/// ```
pub trait AsKey {
    /// Returns this value as a key that borrows from the value or from `scratch`.
    ///
    /// ```
    /// use dogpile::keymap::Scratch;
    /// use dogpile::{AsKey, Key};
    ///
    /// let mut scratch = Scratch::new();
    /// assert_eq!("user-15".as_key(&mut scratch), Key::Plain(b"user-15"));
    /// assert_eq!((-3_i32).as_key(&mut scratch), Key::Plain(b"-3"));
    /// ```
    fn as_key<'k>(&'k self, scratch: &'k mut Scratch) -> Key<'k>;

    /// Returns the same key as [`as_key`](AsKey::as_key) if no scratch space is needed for it.
    ///
    /// Batch operations call it to avoid one [`Scratch`] per key. The default implementation
    /// returns `None`, which is always correct.
    ///
    /// ```
    /// use dogpile::{AsKey, Key};
    ///
    /// assert_eq!("user-15".as_borrowed_key(), Some(Key::Plain(b"user-15")));
    /// assert_eq!(15_u64.as_borrowed_key(), None);
    /// ```
    #[inline]
    fn as_borrowed_key(&self) -> Option<Key<'_>> {
        None
    }
}

/// A type that can name the hash or the field of a key: text, bytes and integers.
///
/// A pair of `KeyPart`s implements [`AsKey`]. Each type that implements `KeyPart` in this crate is
/// also a plain key.
///
/// ```
/// use dogpile::keymap::{Digits, KeyPart, Scratch};
/// use dogpile::{AsKey, Key};
///
/// struct UserId(u64);
///
/// impl KeyPart for UserId {
///     fn as_part<'k>(&'k self, digits: &'k mut Digits) -> &'k [u8] {
///         self.0.as_part(digits)
///     }
/// }
///
/// let mut scratch = Scratch::new();
/// assert_eq!(("users", UserId(15)).as_key(&mut scratch), Key::from(("users", "15")));
/// ```
pub trait KeyPart {
    /// Returns this value as bytes that are borrowed from the value or written into `digits`.
    fn as_part<'k>(&'k self, digits: &'k mut Digits) -> &'k [u8];

    /// Returns the same bytes as [`as_part`](KeyPart::as_part) if it needs no digits for them.
    ///
    /// The default implementation returns `None`, which is always correct.
    ///
    /// ```
    /// use dogpile::keymap::KeyPart;
    ///
    /// assert_eq!("users".as_borrowed_part(), Some(&b"users"[..]));
    /// assert_eq!(15_u64.as_borrowed_part(), None);
    /// ```
    #[inline]
    fn as_borrowed_part(&self) -> Option<&[u8]> {
        None
    }
}

impl<H: KeyPart, F: KeyPart> AsKey for (H, F) {
    #[inline]
    fn as_key<'k>(&'k self, scratch: &'k mut Scratch) -> Key<'k> {
        Key::Field { hash: self.0.as_part(&mut scratch.first), field: self.1.as_part(&mut scratch.second) }
    }

    #[inline]
    fn as_borrowed_key(&self) -> Option<Key<'_>> {
        Some(Key::Field { hash: self.0.as_borrowed_part()?, field: self.1.as_borrowed_part()? })
    }
}

impl<K: AsKey + ?Sized> AsKey for &K {
    #[inline]
    fn as_key<'k>(&'k self, scratch: &'k mut Scratch) -> Key<'k> {
        (**self).as_key(scratch)
    }

    #[inline]
    fn as_borrowed_key(&self) -> Option<Key<'_>> {
        (**self).as_borrowed_key()
    }
}

impl AsKey for Key<'_> {
    #[inline]
    fn as_key<'k>(&'k self, _: &'k mut Scratch) -> Key<'k> {
        *self
    }

    #[inline]
    fn as_borrowed_key(&self) -> Option<Key<'_>> {
        Some(*self)
    }
}

impl AsKey for KeyBuf {
    #[inline]
    fn as_key<'k>(&'k self, _: &'k mut Scratch) -> Key<'k> {
        KeyBuf::as_key(self)
    }

    #[inline]
    fn as_borrowed_key(&self) -> Option<Key<'_>> {
        Some(KeyBuf::as_key(self))
    }
}

impl<P: KeyPart + ?Sized> KeyPart for &P {
    #[inline]
    fn as_part<'k>(&'k self, digits: &'k mut Digits) -> &'k [u8] {
        (**self).as_part(digits)
    }

    #[inline]
    fn as_borrowed_part(&self) -> Option<&[u8]> {
        (**self).as_borrowed_part()
    }
}

// Implements `KeyPart` for a type, and `AsKey` as a plain key.
macro_rules! parts {
    ($(($($generics:tt)*) $type:ty, |$part:ident, $digits:ident| $bytes:expr, $borrowed:expr;)+) => {$(
        impl<$($generics)*> KeyPart for $type {
            #[inline]
            fn as_part<'k>(&'k self, $digits: &'k mut Digits) -> &'k [u8] {
                let $part = self;
                $bytes
            }

            #[inline]
            fn as_borrowed_part(&self) -> Option<&[u8]> {
                #[allow(unused_variables)] // for integers
                let $part = self;
                $borrowed
            }
        }

        impl<$($generics)*> AsKey for $type {
            #[inline]
            fn as_key<'k>(&'k self, scratch: &'k mut Scratch) -> Key<'k> {
                Key::Plain(self.as_part(&mut scratch.first))
            }

            #[inline]
            fn as_borrowed_key(&self) -> Option<Key<'_>> {
                self.as_borrowed_part().map(Key::Plain)
            }
        }
    )+};
}

macro_rules! borrowed_parts {
    ($(($($generics:tt)*) $type:ty, |$part:ident| $bytes:expr;)+) => {
        parts! { $(($($generics)*) $type, |$part, _digits| $bytes, Some($bytes);)+ }
    };
}

macro_rules! integer_parts {
    ($($type:ty)+) => {
        parts! { $(() $type, |int, digits| digits.0.format(*int).as_bytes(), None;)+ }
    };
}

borrowed_parts! {
    () str, |text| text.as_bytes();
    () String, |text| text.as_bytes();
    () Box<str>, |text| text.as_bytes();
    () std::borrow::Cow<'_, str>, |text| text.as_bytes();
    () bytestring::ByteString, |text| text.as_bytes();
    () [u8], |bytes| bytes;
    () Vec<u8>, |bytes| bytes;
    () bytes::Bytes, |bytes| bytes;
    (const N: usize) [u8; N], |bytes| bytes;
}

integer_parts!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize);

/// Formats a byte as two lowercase hex digits, as used in digests and tokens.
pub(crate) fn hex(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]
}

/// An owned key and its builder, which stores up to [`KeyBuf::INLINE`] bytes without allocating.
///
/// Text, bytes and integers are appended. [`KeyBuf::next_field`] ends the name of the hash and
/// starts the name of the field. Comparison, hashing and formatting are those of the [`Key`] that
/// the buffer holds.
///
/// ```
/// use dogpile::{Key, KeyBuf};
///
/// let posts = KeyBuf::new().text("user-").int(15).text("|posts");
/// assert_eq!(posts.as_key(), Key::Plain(b"user-15|posts"));
///
/// let post = KeyBuf::new().text("user-").int(15).next_field().int(7);
/// assert_eq!(post.as_key(), Key::Field { hash: b"user-15", field: b"7" });
///
/// use std::fmt::Write;
/// let mut key = KeyBuf::new();
/// write!(key, "user-{}", 15)?;
/// assert_eq!(key.as_key(), Key::Plain(b"user-15"));
/// # Ok::<(), std::fmt::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct KeyBuf {
    bytes: SmallVec<[u8; KeyBuf::INLINE]>,
    /// The offset at which the field starts; `None` for a plain key.
    field_at: Option<u32>,
}

impl KeyBuf {
    /// The number of bytes, hash and field together, that a key holds without allocating.
    pub const INLINE: usize = 64;

    /// Creates an empty plain key. Does not allocate.
    #[inline]
    #[must_use]
    pub fn new() -> Self {
        KeyBuf { bytes: SmallVec::new(), field_at: None }
    }

    /// Appends text and returns the key, for chained calls.
    #[must_use]
    pub fn text(mut self, text: &str) -> Self {
        self.push(text.as_bytes());
        self
    }

    /// Appends bytes and returns the key, for chained calls.
    ///
    /// ```
    /// use dogpile::{Key, KeyBuf};
    ///
    /// assert_eq!(KeyBuf::new().text("id-").bytes(&[0xff]).as_key(), Key::Plain(b"id-\xff"));
    /// ```
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.push(bytes);
        self
    }

    /// Appends an integer in decimal and returns the key, for chained calls.
    #[must_use]
    pub fn int(mut self, int: impl itoa::Integer) -> Self {
        self.push(itoa::Buffer::new().format(int).as_bytes());
        self
    }

    /// Ends the name of the hash; everything appended from here on belongs to the field.
    ///
    /// Only the first call has an effect. To do the same in place, use
    /// [`begin_field`](KeyBuf::begin_field).
    ///
    /// # Panics
    ///
    /// If the name of the hash has 4 GiB or more, eight times the size that a server accepts.
    #[must_use]
    pub fn next_field(mut self) -> Self {
        self.begin_field();
        self
    }

    /// Returns the key that was built, borrowed from this buffer.
    #[inline]
    #[must_use]
    pub fn as_key(&self) -> Key<'_> {
        match self.field_at {
            None => Key::Plain(&self.bytes),
            Some(at) => {
                let (hash, field) = self.bytes.split_at(at as usize);
                Key::Field { hash, field }
            }
        }
    }

    /// Resets the buffer to an empty plain key and keeps its allocation.
    ///
    /// ```
    /// use dogpile::{Key, KeyBuf};
    ///
    /// let mut key = KeyBuf::from(("users", "15"));
    /// key.clear();
    /// assert_eq!(key.as_key(), Key::Plain(b""));
    /// ```
    #[inline]
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.field_at = None;
    }

    /// Appends bytes in place.
    ///
    /// ```
    /// use dogpile::{Key, KeyBuf};
    ///
    /// let mut key = KeyBuf::new();
    /// key.push(b"users");
    /// key.begin_field();
    /// key.push(b"15");
    /// assert_eq!(key.as_key(), Key::from(("users", "15")));
    /// ```
    #[inline]
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Ends the name of the hash in place; everything appended from here on belongs to the field.
    ///
    /// Only the first call has an effect. For chained calls, use
    /// [`next_field`](KeyBuf::next_field).
    ///
    /// # Panics
    ///
    /// If the name of the hash has 4 GiB or more, eight times the size that a server accepts.
    ///
    /// ```
    /// use dogpile::{Key, KeyBuf};
    ///
    /// let mut key = KeyBuf::new();
    /// key.push(b"users");
    /// key.begin_field();
    /// assert_eq!(key.as_key(), Key::from(("users", "")));
    /// ```
    pub fn begin_field(&mut self) {
        let at = u32::try_from(self.bytes.len()).expect("the name of a hash is shorter than 4 GiB");
        self.field_at.get_or_insert(at);
    }

    /// Replaces the contents with a copy of `key` and keeps the allocation.
    ///
    /// ```
    /// use dogpile::{Key, KeyBuf};
    ///
    /// let mut key = KeyBuf::from("user-15");
    /// key.set(Key::from(("users", "16")));
    /// assert_eq!(key.as_key(), Key::from(("users", "16")));
    /// ```
    #[inline]
    pub fn set(&mut self, key: Key<'_>) {
        self.clear();
        match key {
            Key::Plain(key) => self.push(key),
            Key::Field { hash, field } => {
                self.push(hash);
                self.begin_field();
                self.push(field);
            }
        }
    }

    /// Returns the length of the key in bytes, hash and field together.
    ///
    /// ```
    /// use dogpile::KeyBuf;
    ///
    /// assert_eq!(KeyBuf::from(("users", "15")).len(), 7);
    /// ```
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns `true` if the key has no bytes, in the hash as well as in the field.
    ///
    /// ```
    /// use dogpile::KeyBuf;
    ///
    /// assert!(KeyBuf::new().is_empty());
    /// assert!(!KeyBuf::from("user-15").is_empty());
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

impl fmt::Write for KeyBuf {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}

impl<'a, K: Into<Key<'a>>> From<K> for KeyBuf {
    fn from(key: K) -> Self {
        key.into().to_buf()
    }
}

// Equality, order and hash are those of the borrowed `Key`, so that a map of `KeyBuf` can be
// searched with a `Key`.
impl PartialEq for KeyBuf {
    fn eq(&self, other: &Self) -> bool {
        self.as_key() == other.as_key()
    }
}

impl Eq for KeyBuf {}

impl PartialOrd for KeyBuf {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for KeyBuf {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_key().cmp(&other.as_key())
    }
}

impl Hash for KeyBuf {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_key().hash(state);
    }
}

impl fmt::Debug for KeyBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_key().fmt(f)
    }
}

impl fmt::Display for KeyBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_key().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn debug_of<K: AsKey>(key: K) -> String {
        format!("{:?}", key.as_key(&mut Scratch::new()))
    }

    #[test]
    fn converts_every_key_type() {
        assert_eq!(debug_of("a"), r#"Plain("a")"#);
        assert_eq!(debug_of(String::from("a")), r#"Plain("a")"#);
        assert_eq!(debug_of(b"a\xff"), r#"Plain("a\xff")"#);
        assert_eq!(debug_of(vec![b'a']), r#"Plain("a")"#);
        assert_eq!(debug_of(bytes::Bytes::from_static(b"a")), r#"Plain("a")"#);
        assert_eq!(debug_of(-15_i64), r#"Plain("-15")"#);
        assert_eq!(debug_of(u128::MAX), r#"Plain("340282366920938463463374607431768211455")"#);
        assert_eq!(debug_of((1_u8, 2_i32)), r#"Field("1", "2")"#);
        let pair = &("h", 2_i32);
        assert_eq!(debug_of(pair), r#"Field("h", "2")"#);
        let twice: &&(&str, i32) = &pair;
        assert_eq!(debug_of(twice), r#"Field("h", "2")"#);
        assert_eq!(debug_of(bytestring::ByteString::from("a")), r#"Plain("a")"#);
        assert_eq!(debug_of((std::borrow::Cow::from("h"), Box::<str>::from("f"))), r#"Field("h", "f")"#);
        assert_eq!(debug_of(Key::Plain(b"")), r#"Plain("")"#);
        assert_eq!(debug_of(KeyBuf::from(("h", "f"))), r#"Field("h", "f")"#);
    }

    #[test]
    fn hashes_and_compares_as_the_borrowed_key() {
        let mut keys = std::collections::HashSet::new();
        keys.insert(KeyBuf::from("ab"));
        assert!(keys.contains(&KeyBuf::new().text("a").text("b")));
        assert!(!keys.contains(&KeyBuf::from(("a", "b"))), "a field differs from a plain key of the same bytes");
        assert_ne!(KeyBuf::from(("a", "bc")), KeyBuf::from(("ab", "c")));
        assert_ne!(KeyBuf::from(("ab", "")), KeyBuf::from("ab"));
    }

    #[test]
    fn begins_the_field_only_once() {
        let key = KeyBuf::new().text("h").next_field().text("f").next_field().text("g");
        assert_eq!(key.as_key(), Key::Field { hash: b"h", field: b"fg" });
        let mut reused = key;
        reused.set(Key::Plain(b"p"));
        assert_eq!(reused.as_key(), Key::Plain(b"p"));
    }
}
