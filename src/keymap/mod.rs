//! Mapping of the keys that callers use to the keys that the server stores.
//!
//! [`Identity`], [`Prefix`], [`Digest`] and [`Bucketed`] are maps; your own implement [`KeyMap`].
//! [`KeyPart`], [`Scratch`] and [`Digits`] convert values to keys without allocation.

mod bucketed;

use crate::key::{Key, KeyBuf, hex};

pub use self::bucketed::Bucketed;
pub use crate::key::{Digits, KeyPart, Scratch};

/// A mapping of a region's keys to the keys that the server stores.
///
/// A region applies it to entries and to the locks on them. The mapping must be injective:
/// different keys must have different images.
///
/// A pair of maps is a map that applies the left one first.
///
/// ```
/// use dogpile::keymap::{Digest, Prefix};
/// use dogpile::{Key, KeyBuf, KeyMap};
///
/// let map = (Prefix::new("shop:"), Digest::from_length(40));
/// let mut buffer = KeyBuf::new();
/// assert_eq!(map.map(Key::from("user-15"), &mut buffer), Key::from("shop:user-15"));
/// ```
///
/// A map of your own, which gives each tenant a namespace:
///
/// ```
/// use std::fmt::Write;
/// use dogpile::{Key, KeyBuf, KeyMap, Memory, Region};
///
/// struct Tenant(u32);
///
/// impl KeyMap for Tenant {
///     fn map<'k>(&self, key: Key<'k>, buffer: &'k mut KeyBuf) -> Key<'k> {
///         buffer.clear();
///         write!(buffer, "tenant-{}:", self.0).expect("a KeyBuf accepts all text");
///         buffer.push(key.server_key());
///         if let Key::Field { field, .. } = key {
///             buffer.begin_field();
///             buffer.push(field);
///         }
///         buffer.as_key()
///     }
/// }
///
/// let region = Region::builder(Memory::new(1 << 20)).keys(Tenant(7)).build()?;
/// region.set("user-15", &15_u64)?; // stored as tenant-7:user-15
/// # Ok::<(), dogpile::Error>(())
/// ```
pub trait KeyMap: Send + Sync {
    /// Returns the key that the server stores for `key`.
    ///
    /// The result borrows from `key`, or from `buffer` if a new key has to be built. The contents
    /// of `buffer` are unspecified when it is passed in, so an implementation that writes to it
    /// first clears it.
    fn map<'k>(&self, key: Key<'k>, buffer: &'k mut KeyBuf) -> Key<'k>;

    /// Returns `true` if [`map`](KeyMap::map) would return `key` unchanged.
    ///
    /// The region then skips `map` and its buffer. The default implementation returns `false`,
    /// which is always correct.
    ///
    /// ```
    /// use dogpile::keymap::{Digest, Prefix};
    /// use dogpile::{Key, KeyMap};
    ///
    /// assert!(Digest::from_length(40).keeps(Key::from("user-15")));
    /// assert!(!Prefix::new("shop:").keeps(Key::from("user-15")));
    /// ```
    #[inline]
    fn keeps(&self, key: Key<'_>) -> bool {
        let _ = key;
        false
    }

    /// Returns the recommended maximum size, in bytes, of an entry under an already mapped key.
    ///
    /// Larger entries are stored as well. The region counts them in
    /// [`Stats::oversized`](crate::Stats::oversized) and logs a warning for the first one. The
    /// default implementation returns `usize::MAX`.
    ///
    /// ```
    /// use dogpile::{Bucketed, Key, KeyMap};
    ///
    /// // Of the 64 bytes of a listpack element, 4 are reserved for a timestamp.
    /// assert_eq!(Bucketed::new(256).longest_entry(Key::from(("user|#3", "232"))), 60);
    /// ```
    fn longest_entry(&self, mapped: Key<'_>) -> usize {
        let _ = mapped;
        usize::MAX
    }
}

/// The default map, which leaves every key unchanged.
#[derive(Clone, Copy, Debug, Default)]
pub struct Identity;

impl KeyMap for Identity {
    #[inline]
    fn map<'k>(&self, key: Key<'k>, _: &'k mut KeyBuf) -> Key<'k> {
        key
    }

    #[inline]
    fn keeps(&self, _: Key<'_>) -> bool {
        true
    }
}

/// A map that prepends a prefix to every key; for a field, to the name of its hash.
///
/// ```
/// use dogpile::keymap::Prefix;
/// use dogpile::{Key, KeyBuf, KeyMap};
///
/// let (map, mut buffer) = (Prefix::new("shop:"), KeyBuf::new());
/// assert_eq!(map.map(Key::from(("users", "15")), &mut buffer), Key::from(("shop:users", "15")));
/// ```
#[derive(Clone, Debug)]
pub struct Prefix(Box<[u8]>);

impl Prefix {
    /// Creates a map that prepends `prefix` to every key.
    #[must_use]
    pub fn new(prefix: impl AsRef<[u8]>) -> Self {
        Prefix(prefix.as_ref().into())
    }
}

impl KeyMap for Prefix {
    #[inline]
    fn map<'k>(&self, key: Key<'k>, buffer: &'k mut KeyBuf) -> Key<'k> {
        buffer.clear();
        buffer.push(&self.0);
        buffer.push(key.server_key());
        if let Key::Field { field, .. } = key {
            buffer.begin_field();
            buffer.push(field);
        }
        buffer.as_key()
    }
}

/// A map that replaces long keys with the 40 hex digits of their SHA-1 digest.
///
/// It is compatible with `sha1_mangle_key` and `length_conditional_mangler` of Python's
/// `dogpile.cache`. For a field, the name of the hash and the name of the field are mapped
/// independently of each other.
///
/// ```
/// use dogpile::keymap::Digest;
/// use dogpile::{Key, KeyBuf, KeyMap};
///
/// let (key, mut buffer) = (Key::from("some_key"), KeyBuf::new());
/// assert_eq!(Digest::from_length(9).map(key, &mut buffer), key);
///
/// let digest = Key::from("53def077a4264bd3183d4eb21b1f56f883e1b572");
/// assert_eq!(Digest::from_length(8).map(key, &mut buffer), digest);
/// assert_eq!(Digest::always().map(key, &mut buffer), digest);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Digest {
    min_length: usize,
}

impl Digest {
    /// Creates a map that replaces every key.
    #[must_use]
    pub fn always() -> Self {
        Digest { min_length: 0 }
    }

    /// Creates a map that replaces keys of at least `characters` characters.
    ///
    /// Characters are Unicode code points, as `length_conditional_mangler` counts them. If a key is
    /// not valid UTF-8, its bytes are counted instead.
    #[must_use]
    pub fn from_length(characters: usize) -> Self {
        Digest { min_length: characters }
    }

    #[inline]
    fn is_short(self, part: &[u8]) -> bool {
        // A text never has more characters than bytes, so short keys are not decoded.
        part.len() < self.min_length || str::from_utf8(part).is_ok_and(|text| text.chars().count() < self.min_length)
    }

    fn push(self, part: &[u8], buffer: &mut KeyBuf) {
        if self.is_short(part) {
            buffer.push(part);
            return;
        }
        for byte in sha1_smol::Sha1::from(part).digest().bytes() {
            buffer.push(&hex(byte));
        }
    }
}

impl KeyMap for Digest {
    fn map<'k>(&self, key: Key<'k>, buffer: &'k mut KeyBuf) -> Key<'k> {
        if self.keeps(key) {
            return key;
        }
        buffer.clear();
        self.push(key.server_key(), buffer);
        if let Key::Field { field, .. } = key {
            buffer.begin_field();
            self.push(field, buffer);
        }
        buffer.as_key()
    }

    #[inline]
    fn keeps(&self, key: Key<'_>) -> bool {
        self.is_short(key.server_key()) && !matches!(key, Key::Field { field, .. } if !self.is_short(field))
    }
}

impl<A: KeyMap, B: KeyMap> KeyMap for (A, B) {
    fn map<'k>(&self, key: Key<'k>, buffer: &'k mut KeyBuf) -> Key<'k> {
        // The second map may borrow from the output of the first one, so each needs its own buffer.
        let (mut first, mut second) = (KeyBuf::new(), KeyBuf::new());
        buffer.set(self.1.map(self.0.map(key, &mut first), &mut second));
        buffer.as_key()
    }

    #[inline]
    fn keeps(&self, key: Key<'_>) -> bool {
        self.0.keeps(key) && self.1.keeps(key)
    }

    fn longest_entry(&self, mapped: Key<'_>) -> usize {
        self.0.longest_entry(mapped).min(self.1.longest_entry(mapped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(map: &impl KeyMap, key: Key<'_>) -> String {
        let mut buffer = KeyBuf::from("previous contents");
        let mapped = map.map(key, &mut buffer);
        assert_eq!(map.keeps(key), mapped == key, "{key:?}");
        mapped.to_string()
    }

    #[test]
    fn prepends_the_prefix_to_the_server_key() {
        let map = Prefix::new("p:");
        assert_eq!(mapped(&map, Key::from("k")), "p:k");
        assert_eq!(mapped(&map, Key::from(("h", "f"))), "p:h,f");
        assert_eq!(mapped(&Identity, Key::from("k")), "k");
    }

    #[test]
    fn digests_match_dogpile_cache() {
        // hashlib.sha1(b"some_key").hexdigest()
        let some_key = "53def077a4264bd3183d4eb21b1f56f883e1b572";
        assert_eq!(mapped(&Digest::always(), Key::from("some_key")), some_key);
        assert_eq!(mapped(&Digest::from_length(8), Key::from("some_key")), some_key);
        assert_eq!(mapped(&Digest::from_length(9), Key::from("some_key")), "some_key");
        assert_eq!(mapped(&Digest::from_length(8), Key::from(("h", "some_key"))), format!("h,{some_key}"));
        assert_eq!(mapped(&Digest::from_length(9), Key::from(("h", "some_key"))), "h,some_key");
        // Code points are counted, as in Python, or bytes if the key is not UTF-8.
        assert_eq!(mapped(&Digest::from_length(9), Key::from("éééééééé")), r"\xc3\xa9".repeat(8));
        assert_eq!(mapped(&Digest::from_length(8), Key::from("éééééééé")).len(), 40);
        assert_eq!(mapped(&Digest::from_length(8), Key::Plain(&[0xff; 8])).len(), 40);
    }

    #[test]
    fn chains_maps_from_left_to_right() {
        assert_eq!(mapped(&(Prefix::new("b"), Prefix::new("a")), Key::from("c")), "abc");
        assert_eq!(mapped(&(Prefix::new("some_"), Digest::from_length(8)), Key::from("key")).len(), 40);
        assert_eq!(mapped(&(Identity, Identity), Key::from(("h", "f"))), "h,f");
    }
}
