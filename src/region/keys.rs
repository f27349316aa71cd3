//! The keys of one call: from what the caller gave to what the backend sees.

use smallvec::SmallVec;

use crate::key::{AsKey, Key, KeyBuf, Scratch};
use crate::keymap::KeyMap;

/// Room for the digits and the mapped forms of a call's keys. Keys that need neither are borrowed as they are.
pub(super) struct KeyRoom(SmallVec<[(Scratch, KeyBuf); 1]>);

/// The keys of a call, as the backend sees them.
pub(super) type Keys<'k> = SmallVec<[Key<'k>; 1]>;

impl KeyRoom {
    #[inline]
    pub(super) fn new() -> Self {
        KeyRoom(SmallVec::new())
    }

    /// The backend's form of each key.
    #[inline]
    pub(super) fn map_all<'k, K: AsKey>(&'k mut self, keys: &'k [K], map: &impl KeyMap) -> Keys<'k> {
        let borrowed = |key: &'k K| key.as_borrowed_key().filter(|key| map.keeps(*key));
        match keys {
            [key] => borrowed(key).map(|key| Keys::from_buf([key])),
            // Two passes: a list of known length is filled without looking at its capacity for each.
            keys if keys.iter().all(|key| borrowed(key).is_some()) => {
                let keys: Vec<_> = keys.iter().map(|key| borrowed(key).unwrap_or(Key::Plain(b""))).collect();
                Some(Keys::from_vec(keys))
            }
            _ => None,
        }
        .unwrap_or_else(|| self.map_into_room(keys, map))
    }

    fn map_into_room<'k, K: AsKey>(&'k mut self, keys: &'k [K], map: &impl KeyMap) -> Keys<'k> {
        self.0.resize_with(keys.len(), Default::default);
        keys.iter().zip(&mut self.0).map(|(key, (scratch, room))| map.map(key.as_key(scratch), room)).collect()
    }
}
