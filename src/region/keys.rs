//! The keys of one call: from what the caller passes to what the backend gets.

use smallvec::SmallVec;

use crate::key::{AsKey, Key, KeyBuf, Scratch};
use crate::keymap::KeyMap;

/// Space for the digits and the mapped form of one key.
pub(crate) struct KeySpace(Scratch, KeyBuf);

impl KeySpace {
    #[inline]
    pub(crate) fn new() -> Self {
        KeySpace(Scratch::new(), KeyBuf::new())
    }

    /// Maps a key to the backend's form.
    #[inline]
    pub(crate) fn map<'k>(&'k mut self, key: &'k impl AsKey, map: &impl KeyMap) -> Key<'k> {
        match key.as_borrowed_key() {
            Some(key) if map.keeps(key) => key,
            _ => map.map(key.as_key(&mut self.0), &mut self.1),
        }
    }
}

/// Space for many keys. Keys that need none are borrowed as they are.
pub(crate) struct KeySpaces(SmallVec<[(Scratch, KeyBuf); 1]>);

/// The keys of a call in the backend's form.
pub(crate) type Keys<'k> = SmallVec<[Key<'k>; 1]>;

impl KeySpaces {
    #[inline]
    pub(crate) fn new() -> Self {
        KeySpaces(SmallVec::new())
    }

    /// Maps keys to the backend's form.
    #[inline]
    pub(crate) fn map_all<'k, K: AsKey>(&'k mut self, keys: &'k [K], map: &impl KeyMap) -> Keys<'k> {
        let kept = |key: &'k K| key.as_borrowed_key().filter(|key| map.keeps(*key));
        // The first key usually tells for all of them.
        match keys.first().and_then(kept) {
            None => self.map_into_space(keys, map),
            Some(first) if keys.len() == 1 => Keys::from_buf([first]),
            Some(_) => {
                let mut all = true;
                // A list of known length is filled without checking its capacity for each key.
                let mapped = keys.iter().map(|key| {
                    let key = kept(key);
                    all &= key.is_some();
                    key.unwrap_or(Key::Plain(b""))
                });
                let mapped: Vec<_> = mapped.collect();
                if all { Keys::from_vec(mapped) } else { self.map_into_space(keys, map) }
            }
        }
    }

    fn map_into_space<'k, K: AsKey>(&'k mut self, keys: &'k [K], map: &impl KeyMap) -> Keys<'k> {
        self.0.resize_with(keys.len(), Default::default);
        keys.iter().zip(&mut self.0).map(|(key, (scratch, space))| map.map(key.as_key(scratch), space)).collect()
    }
}
