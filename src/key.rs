//! Keys: a Redis key or a field of a Redis hash, and the ways to build one without allocating.

use std::fmt;
use std::hash::{Hash, Hasher};

use smallvec::SmallVec;

/// The name of an entry: a Redis string key, or a field of a Redis hash.
///
/// A field costs a fraction of the memory of a key of its own, as long as its hash stays a listpack.
/// Keys are bytes; text, integers (as decimal digits) and pairs of them become keys through [`AsKey`].
///
/// ```
/// use dogpile::Key;
///
/// assert_eq!(Key::from("user-15"), Key::Plain(b"user-15"));
/// assert_eq!(Key::from(("user-15", "posts")), Key::Field { hash: b"user-15", field: b"posts" });
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key<'a> {
    /// A Redis string key. Redis allows the empty key, and so do we.
    Plain(&'a [u8]),
    /// One field of a Redis hash.
    Field {
        /// The Redis key of the hash.
        hash: &'a [u8],
        /// The field's name inside the hash.
        field: &'a [u8],
    },
}

impl<'a> Key<'a> {
    /// The key that the server sees: the key itself, or that of the hash.
    #[must_use]
    pub fn server_key(self) -> &'a [u8] {
        match self {
            Key::Plain(key) => key,
            Key::Field { hash, .. } => hash,
        }
    }

    /// Copies the key into a buffer that owns it. Allocates only beyond [`KeyBuf::INLINE`] bytes.
    #[must_use]
    pub fn to_buf(self) -> KeyBuf {
        let mut buf = KeyBuf::new();
        buf.set(self);
        buf
    }
}

/// Shows the key as text, bytes outside of printable ASCII escaped, a field as `hash,field`.
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

/// Room for the digits of the integers in a key, so that [`AsKey`] needs no allocation.
#[derive(Debug, Default)]
pub struct Scratch {
    first: Digits,
    second: Digits,
}

impl Scratch {
    /// An empty scratch; costs nothing.
    #[inline]
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

/// Room for the digits of one integer.
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

/// What can be used as a key: text, bytes, integers, pairs of these (a field of a hash), [`Key`] and [`KeyBuf`].
///
/// Text and bytes are borrowed as they are, integers are written in decimal into `scratch`; nothing allocates.
///
/// ```
/// use dogpile::{AsKey, Key, Scratch};
///
/// let mut scratch = Scratch::new();
/// assert_eq!((15_u64, "posts").as_key(&mut scratch), Key::Field { hash: b"15", field: b"posts" });
/// ```
pub trait AsKey {
    /// This value as a key, borrowed from itself or from `scratch`.
    fn as_key<'k>(&'k self, scratch: &'k mut Scratch) -> Key<'k>;

    /// The same key, if it can be borrowed without any scratch: many keys then need no room. `None`, the default, is
    /// never wrong.
    #[inline]
    fn as_borrowed_key(&self) -> Option<Key<'_>> {
        None
    }
}

/// What can be the hash or the field of a key: text, bytes and integers. Each of these is a plain key by itself.
pub trait KeyPart {
    /// This value as bytes, borrowed from itself or written into `digits`.
    fn as_part<'k>(&'k self, digits: &'k mut Digits) -> &'k [u8];

    /// The same bytes, if they can be borrowed without any digits. `None`, the default, is never wrong.
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

// Each is a part, and by itself a plain key: text and bytes are borrowed, integers need digits.
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
                #[allow(unused_variables)] // by integers
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

/// A byte as two hex digits, as they stand in digests and tokens.
pub(crate) fn hex(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]
}

/// A key that owns its bytes, and the buffer to build one in: up to [`KeyBuf::INLINE`] bytes without allocating.
///
/// Text and integers are appended; [`KeyBuf::next_field`] ends the hash's name and begins the field's.
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
    /// Where the field begins; `None` in a plain key.
    field_at: Option<u32>,
}

impl KeyBuf {
    /// How many bytes a key may have, hash and field together, before its buffer allocates.
    pub const INLINE: usize = 64;

    /// An empty plain key.
    #[inline]
    #[must_use]
    pub fn new() -> Self {
        KeyBuf { bytes: SmallVec::new(), field_at: None }
    }

    /// Appends text.
    #[must_use]
    pub fn text(mut self, text: &str) -> Self {
        self.push(text.as_bytes());
        self
    }

    /// Appends bytes.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.push(bytes);
        self
    }

    /// Appends an integer in decimal.
    #[must_use]
    pub fn int(mut self, int: impl itoa::Integer) -> Self {
        self.push(itoa::Buffer::new().format(int).as_bytes());
        self
    }

    /// Ends the name of the hash: what is appended from here on is the field. Called again, it changes nothing.
    #[must_use]
    pub fn next_field(mut self) -> Self {
        self.begin_field();
        self
    }

    /// The key that was built.
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

    /// Empties the key and keeps its memory.
    #[inline]
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.field_at = None;
    }

    /// Appends bytes in place.
    #[inline]
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Ends the name of the hash in place; see [`KeyBuf::next_field`].
    ///
    /// # Panics
    /// When the hash's name has 4 GiB or more, eight times of what a server accepts.
    pub fn begin_field(&mut self) {
        let at = u32::try_from(self.bytes.len()).expect("a hash's name is shorter than 4 GiB");
        self.field_at.get_or_insert(at);
    }

    /// Becomes a copy of `key`.
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

    /// How many bytes the key has, hash and field together.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether the key has no bytes.
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

// Two buffers are the same key when they show the same `Key`, so that maps can be searched by a borrowed one.
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

    fn seen<K: AsKey>(key: K) -> String {
        format!("{:?}", key.as_key(&mut Scratch::new()))
    }

    #[test]
    fn everything_that_is_a_key() {
        assert_eq!(seen("a"), r#"Plain("a")"#);
        assert_eq!(seen(String::from("a")), r#"Plain("a")"#);
        assert_eq!(seen(b"a\xff"), r#"Plain("a\xff")"#);
        assert_eq!(seen(vec![b'a']), r#"Plain("a")"#);
        assert_eq!(seen(bytes::Bytes::from_static(b"a")), r#"Plain("a")"#);
        assert_eq!(seen(-15_i64), r#"Plain("-15")"#);
        assert_eq!(seen(u128::MAX), r#"Plain("340282366920938463463374607431768211455")"#);
        assert_eq!(seen((1_u8, 2_i32)), r#"Field("1", "2")"#);
        let pair = &("h", 2_i32);
        assert_eq!(seen(pair), r#"Field("h", "2")"#);
        let twice: &&(&str, i32) = &pair;
        assert_eq!(seen(twice), r#"Field("h", "2")"#);
        assert_eq!(seen(bytestring::ByteString::from("a")), r#"Plain("a")"#);
        assert_eq!(seen((std::borrow::Cow::from("h"), Box::<str>::from("f"))), r#"Field("h", "f")"#);
        assert_eq!(seen(Key::Plain(b"")), r#"Plain("")"#);
        assert_eq!(seen(KeyBuf::from(("h", "f"))), r#"Field("h", "f")"#);
    }

    #[test]
    fn a_buffer_is_found_by_the_key_it_holds() {
        let mut keys = std::collections::HashSet::new();
        keys.insert(KeyBuf::from("ab"));
        assert!(keys.contains(&KeyBuf::new().text("a").text("b")));
        assert!(!keys.contains(&KeyBuf::from(("a", "b"))), "a field is not the plain key of the same bytes");
        assert_ne!(KeyBuf::from(("a", "bc")), KeyBuf::from(("ab", "c")));
        assert_ne!(KeyBuf::from(("ab", "")), KeyBuf::from("ab"));
    }

    #[test]
    fn a_field_begins_once() {
        let key = KeyBuf::new().text("h").next_field().text("f").next_field().text("g");
        assert_eq!(key.as_key(), Key::Field { hash: b"h", field: b"fg" });
        let mut again = key;
        again.set(Key::Plain(b"p"));
        assert_eq!(again.as_key(), Key::Plain(b"p"));
    }
}
