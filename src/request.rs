//! What a backend is asked to do, as plain data: many entries at once, leases, when hashes expire.

use std::ops::Range;

use crate::key::Key;

/// A lease that is wanted or held, and the entry it is for.
#[derive(Clone, Copy, Debug)]
pub struct Lease<'a> {
    /// The Redis key of the lease.
    pub lock: &'a [u8],
    /// Who holds it: other than any other attempt's.
    pub token: &'a [u8],
    /// The entry that whoever holds the lease creates.
    pub key: Key<'a>,
}

/// When the TTL of a Redis hash is set. It is one for all its fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HashExpiry {
    /// Hashes never get a TTL.
    Never,
    /// A hash that has no TTL gets one with the next write: its first field starts the clock for all. The default.
    /// Needs Redis 7.0 or Valkey.
    #[default]
    OnCreate,
    /// Every write starts the clock of the whole hash anew.
    Always,
}

/// Entries to store together: one buffer and the places in it, reused from batch to batch.
///
/// ```
/// use dogpile::{Batch, Key};
///
/// let mut batch = Batch::new();
/// batch.push(Key::from("a"), |out| out.extend_from_slice(b"1"));
/// batch.push(Key::from(("h", "f")), |out| out.extend_from_slice(b"2"));
/// assert_eq!(batch.len(), 2);
/// assert_eq!((batch.key(1), batch.entry(1)), (Key::from(("h", "f")), &b"2"[..]));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    places: Vec<Place>,
}

/// Where a member's parts stand in a batch's buffer, one behind the other.
#[derive(Clone, Debug)]
struct Place {
    start: usize,
    /// Where the field begins; `None` for a plain key.
    field: Option<usize>,
    entry: Range<usize>,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what `write` appends to the buffer as the entry of `key`.
    pub fn push(&mut self, key: Key<'_>, write: impl FnOnce(&mut Vec<u8>)) {
        let written: Result<(), std::convert::Infallible> = self.try_push(key, |out| {
            write(out);
            Ok(())
        });
        let Ok(()) = written;
    }

    /// Adds what `write` appends to the buffer as the entry of `key`, or nothing if it fails.
    ///
    /// # Errors
    /// What `write` failed with.
    pub fn try_push<E>(&mut self, key: Key<'_>, write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<(), E> {
        let start = self.bytes.len();
        let field = match key {
            Key::Plain(key) => {
                self.bytes.extend_from_slice(key);
                None
            }
            Key::Field { hash, field } => {
                self.bytes.extend_from_slice(hash);
                let at = self.bytes.len();
                self.bytes.extend_from_slice(field);
                Some(at)
            }
        };
        let entry = self.bytes.len();
        if let Err(error) = write(&mut self.bytes) {
            self.bytes.truncate(start);
            return Err(error);
        }
        // A `write` that cut the buffer short wrote an empty entry.
        self.bytes.resize(self.bytes.len().max(entry), 0);
        self.places.push(Place { start, field, entry: entry..self.bytes.len() });
        Ok(())
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The key of the entry at `index`.
    ///
    /// # Panics
    /// When there are not so many.
    #[must_use]
    pub fn key(&self, index: usize) -> Key<'_> {
        let Place { start, field, ref entry } = self.places[index];
        match field {
            None => Key::Plain(&self.bytes[start..entry.start]),
            Some(at) => Key::Field { hash: &self.bytes[start..at], field: &self.bytes[at..entry.start] },
        }
    }

    /// The bytes of the entry at `index`.
    ///
    /// # Panics
    /// When there are not so many.
    #[must_use]
    pub fn entry(&self, index: usize) -> &[u8] {
        &self.bytes[self.places[index].entry.clone()]
    }

    /// All keys and entries.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (Key<'_>, &[u8])> {
        (0..self.len()).map(|index| (self.key(index), self.entry(index)))
    }

    /// Removes all entries but the first `len`.
    pub fn truncate(&mut self, len: usize) {
        if let Some(first_gone) = self.places.get(len) {
            self.bytes.truncate(first_gone.start);
            self.places.truncate(len);
        }
    }

    /// Removes all entries and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.places.clear();
    }
}
