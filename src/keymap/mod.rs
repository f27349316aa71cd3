//! From the keys that callers use to those that the server sees: prefixes, digests, and maps of your own.

mod bucketed;

use crate::key::{Key, KeyBuf, hex};

pub use self::bucketed::Bucketed;

/// How a region's keys become the server's. It applies to entries and to the locks on them.
///
/// Maps are chained as pairs, the left one first. Different keys must stay different.
///
/// ```
/// use dogpile::{Digest, Key, KeyBuf, KeyMap, Prefix};
///
/// let map = (Prefix::new("shop:"), Digest::from_length(40));
/// let mut room = KeyBuf::new();
/// assert_eq!(map.map(Key::from("user-15"), &mut room), Key::from("shop:user-15"));
/// ```
pub trait KeyMap: Send + Sync {
    /// The server's key for `key`, borrowed from `key` or built in `room`, whatever that held before.
    fn map<'k>(&self, key: Key<'k>, room: &'k mut KeyBuf) -> Key<'k>;

    /// Whether [`map`](KeyMap::map) returns `key` as it is: it is then not called, and needs no room. `false`, the
    /// default, is never wrong.
    #[inline]
    fn keeps(&self, key: Key<'_>) -> bool {
        let _ = key;
        false
    }

    /// The largest entry, in bytes, that should be stored under a key, as it was mapped. Larger ones are stored too, counted
    /// in [`Stats::oversized`](crate::Stats::oversized), and the first of a region is warned of. Default: of any size.
    fn longest_entry(&self, mapped: Key<'_>) -> usize {
        let _ = mapped;
        usize::MAX
    }
}

/// Keys as they are. The default; costs nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unmapped;

impl KeyMap for Unmapped {
    #[inline]
    fn map<'k>(&self, key: Key<'k>, _: &'k mut KeyBuf) -> Key<'k> {
        key
    }

    #[inline]
    fn keeps(&self, _: Key<'_>) -> bool {
        true
    }
}

/// Puts a prefix before every key: before the hash's name where the key is a field.
#[derive(Clone, Debug)]
pub struct Prefix(Box<[u8]>);

impl Prefix {
    /// A map that puts `prefix` before every key.
    #[must_use]
    pub fn new(prefix: impl AsRef<[u8]>) -> Self {
        Prefix(prefix.as_ref().into())
    }
}

impl KeyMap for Prefix {
    #[inline]
    fn map<'k>(&self, key: Key<'k>, room: &'k mut KeyBuf) -> Key<'k> {
        room.clear();
        room.push(&self.0);
        room.push(key.server_key());
        if let Key::Field { field, .. } = key {
            room.begin_field();
            room.push(field);
        }
        room.as_key()
    }
}

/// Replaces long keys by the 40 hex digits of their SHA-1, as `sha1_mangle_key` and `length_conditional_mangler` of
/// `dogpile.cache` do. Of a field, the hash's name and the field are replaced each by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Digest {
    from: usize,
}

impl Digest {
    /// Replaces every key.
    #[must_use]
    pub fn always() -> Self {
        Digest { from: 0 }
    }

    /// Replaces keys of at least so many characters, as `length_conditional_mangler` counts them; of so many bytes, where
    /// they are not UTF-8.
    #[must_use]
    pub fn from_length(characters: usize) -> Self {
        Digest { from: characters }
    }

    #[inline]
    fn is_short(self, part: &[u8]) -> bool {
        // There are no more characters than bytes.
        part.len() < self.from || str::from_utf8(part).is_ok_and(|text| text.chars().count() < self.from)
    }

    fn push(self, part: &[u8], room: &mut KeyBuf) {
        if self.is_short(part) {
            room.push(part);
            return;
        }
        for byte in sha1_smol::Sha1::from(part).digest().bytes() {
            room.push(&hex(byte));
        }
    }
}

impl KeyMap for Digest {
    fn map<'k>(&self, key: Key<'k>, room: &'k mut KeyBuf) -> Key<'k> {
        if self.keeps(key) {
            return key;
        }
        room.clear();
        self.push(key.server_key(), room);
        if let Key::Field { field, .. } = key {
            room.begin_field();
            self.push(field, room);
        }
        room.as_key()
    }

    #[inline]
    fn keeps(&self, key: Key<'_>) -> bool {
        self.is_short(key.server_key()) && !matches!(key, Key::Field { field, .. } if !self.is_short(field))
    }
}

impl<A: KeyMap, B: KeyMap> KeyMap for (A, B) {
    fn map<'k>(&self, key: Key<'k>, room: &'k mut KeyBuf) -> Key<'k> {
        // The second map may still read what the first one wrote, so each has room of its own.
        let (mut first, mut second) = (KeyBuf::new(), KeyBuf::new());
        room.set(self.1.map(self.0.map(key, &mut first), &mut second));
        room.as_key()
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
        let mut room = KeyBuf::from("what was there before");
        let mapped = map.map(key, &mut room);
        assert_eq!(map.keeps(key), mapped == key, "{key:?}");
        mapped.to_string()
    }

    #[test]
    fn prefixes() {
        let map = Prefix::new("p:");
        assert_eq!(mapped(&map, Key::from("k")), "p:k");
        assert_eq!(mapped(&map, Key::from(("h", "f"))), "p:h,f");
        assert_eq!(mapped(&Unmapped, Key::from("k")), "k");
    }

    #[test]
    fn digests_are_those_of_the_reference() {
        // hashlib.sha1(b"some_key").hexdigest()
        let some_key = "53def077a4264bd3183d4eb21b1f56f883e1b572";
        assert_eq!(mapped(&Digest::always(), Key::from("some_key")), some_key);
        assert_eq!(mapped(&Digest::from_length(8), Key::from("some_key")), some_key);
        assert_eq!(mapped(&Digest::from_length(9), Key::from("some_key")), "some_key");
        assert_eq!(mapped(&Digest::from_length(8), Key::from(("h", "some_key"))), format!("h,{some_key}"));
        assert_eq!(mapped(&Digest::from_length(9), Key::from(("h", "some_key"))), "h,some_key");
        // Characters, as Python counts them; bytes where there are none.
        assert_eq!(mapped(&Digest::from_length(9), Key::from("éééééééé")), r"\xc3\xa9".repeat(8));
        assert_eq!(mapped(&Digest::from_length(8), Key::from("éééééééé")).len(), 40);
        assert_eq!(mapped(&Digest::from_length(8), Key::Plain(&[0xff; 8])).len(), 40);
    }

    #[test]
    fn maps_are_chained_from_left_to_right() {
        assert_eq!(mapped(&(Prefix::new("b"), Prefix::new("a")), Key::from("c")), "abc");
        assert_eq!(mapped(&(Prefix::new("some_"), Digest::from_length(8)), Key::from("key")).len(), 40);
        assert_eq!(mapped(&(Unmapped, Unmapped), Key::from(("h", "f"))), "h,f");
    }
}
