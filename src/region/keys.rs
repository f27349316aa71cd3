//! The keys of one call: from what the caller gave to what the backend sees.

use smallvec::SmallVec;

use crate::key::{AsKey, Key, KeyBuf, Scratch};
use crate::keymap::KeyMap;

/// Room for the digits and the mapped form of the key of a call.
pub(crate) struct Room(Scratch, KeyBuf);

impl Room {
    #[inline]
    pub(crate) fn new() -> Self {
        Room(Scratch::new(), KeyBuf::new())
    }

    /// The backend's form of a key.
    #[inline]
    pub(crate) fn map<'k>(&'k mut self, key: &'k impl AsKey, map: &impl KeyMap) -> Key<'k> {
        match key.as_borrowed_key() {
            Some(key) if map.keeps(key) => key,
            _ => map.map(key.as_key(&mut self.0), &mut self.1),
        }
    }
}

/// Room for the digits and the mapped forms of a call's keys. Keys that need neither are borrowed as they are.
pub(crate) struct KeyRoom(SmallVec<[(Scratch, KeyBuf); 1]>);

/// The keys of a call, as the backend sees them.
pub(crate) type Keys<'k> = SmallVec<[Key<'k>; 1]>;

impl KeyRoom {
    #[inline]
    pub(crate) fn new() -> Self {
        KeyRoom(SmallVec::new())
    }

    /// The backend's form of each key.
    #[inline]
    pub(crate) fn map_all<'k, K: AsKey>(&'k mut self, keys: &'k [K], map: &impl KeyMap) -> Keys<'k> {
        let kept = |key: &'k K| key.as_borrowed_key().filter(|key| map.keeps(*key));
        // The first one most often tells for all.
        match keys.first().and_then(kept) {
            None => self.map_into_room(keys, map),
            Some(first) if keys.len() == 1 => Keys::from_buf([first]),
            Some(_) => {
                let mut all = true;
                // A list whose length is known is filled without looking at its capacity for each key.
                let mapped = keys.iter().map(|key| {
                    let key = kept(key);
                    all &= key.is_some();
                    key.unwrap_or(Key::Plain(b""))
                });
                let mapped: Vec<_> = mapped.collect();
                if all { Keys::from_vec(mapped) } else { self.map_into_room(keys, map) }
            }
        }
    }

    fn map_into_room<'k, K: AsKey>(&'k mut self, keys: &'k [K], map: &impl KeyMap) -> Keys<'k> {
        self.0.resize_with(keys.len(), Default::default);
        keys.iter().zip(&mut self.0).map(|(key, (scratch, room))| map.map(key.as_key(scratch), room)).collect()
    }
}
