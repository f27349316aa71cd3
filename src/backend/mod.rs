//! Where entries live: [`Memory`], [`Redis`], a [`Driver`] over the `redis` crate, or a backend of your own.

#[cfg(feature = "driver")]
mod driver;
#[cfg(feature = "memory")]
mod memory;
mod pool;
mod redis;
mod resp;

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use crate::error::Error;
use crate::key::Key;

#[cfg(feature = "driver")]
pub use self::driver::Driver;
#[cfg(feature = "memory")]
pub use self::memory::Memory;
pub use self::redis::{Redis, RedisBuilder};
pub use self::resp::{Access, Exchange};

/// Where entries live. Entries are bytes; what they mean is the codec's business.
///
/// A wrapper that logs, counts or delays is a type that holds a backend and is one. Keys arrive as the region's
/// [`KeyMap`](crate::KeyMap) made them.
///
/// ```
/// use std::time::Duration;
/// use bytes::Bytes;
/// use dogpile::{Backend, Batch, Error, Key, Memory, Region};
///
/// /// Writes down what is deleted.
/// struct Audited<B>(B);
///
/// impl<B: Backend> Backend for Audited<B> {
///     fn get(&self, key: Key<'_>) -> Result<Option<Bytes>, Error> {
///         self.0.get(key)
///     }
///     fn get_many(&self, keys: &[Key<'_>], found: &mut Vec<Option<Bytes>>) -> Result<(), Error> {
///         self.0.get_many(keys, found)
///     }
///     fn set(&self, key: Key<'_>, entry: &[u8], ttl: Option<Duration>) -> Result<(), Error> {
///         self.0.set(key, entry, ttl)
///     }
///     fn set_many(&self, batch: &Batch, ttl: Option<Duration>) -> Result<(), Error> {
///         self.0.set_many(batch, ttl)
///     }
///     fn delete_many(&self, keys: &[Key<'_>]) -> Result<(), Error> {
///         println!("deleting {keys:?}");
///         self.0.delete_many(keys)
///     }
/// }
///
/// let region = Region::builder(Audited(Memory::new(1 << 20))).build()?;
/// region.delete("user-15")?;
/// # Ok::<(), dogpile::Error>(())
/// ```
pub trait Backend: Send + Sync {
    /// The entry of `key`, `None` where there is none. One round trip.
    ///
    /// # Errors
    /// When the backend cannot tell. [`ErrorKind::WrongType`](crate::ErrorKind::WrongType) counts as a miss.
    fn get(&self, key: Key<'_>) -> Result<Option<Bytes>, Error>;

    /// The entries of `keys`, in their order, duplicates kept: afterwards `found` has as many members as `keys`. What
    /// it held before is dropped, its memory reused. One round trip, whatever the keys.
    ///
    /// # Errors
    /// When the backend cannot tell for all of them. `found` then means nothing.
    fn get_many(&self, keys: &[Key<'_>], found: &mut Vec<Option<Bytes>>) -> Result<(), Error>;

    /// Stores an entry, for `ttl` if one is given (at least a millisecond), in place of whatever was there.
    ///
    /// # Errors
    /// When it may not have been stored.
    fn set(&self, key: Key<'_>, entry: &[u8], ttl: Option<Duration>) -> Result<(), Error>;

    /// Stores many entries; of duplicates the last. One round trip.
    ///
    /// # Errors
    /// When some may not have been stored.
    fn set_many(&self, batch: &Batch, ttl: Option<Duration>) -> Result<(), Error>;

    /// Deletes many entries; those that are not there do not matter. One round trip, none for no keys.
    ///
    /// # Errors
    /// When some may not have been deleted.
    fn delete_many(&self, keys: &[Key<'_>]) -> Result<(), Error>;
}

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

/// A backend whose server can hold leases, for [`RedisLock`](crate::RedisLock).
///
/// A lease is a key that holds its owner's token and expires by itself. What a miss needs together is one operation
/// here, and one round trip.
pub trait Leases: Backend + Clone + 'static {
    /// Takes each lease that nobody has, and reads the entries after that: for each, whether the lease is ours now, and
    /// the entry. One round trip.
    ///
    /// # Errors
    /// When the server cannot tell; some leases may then be held until they expire.
    fn lease(&self, wanted: &[Lease<'_>], life: Duration) -> Result<Vec<(bool, Option<Bytes>)>, Error>;

    /// Releases each lease that its token still holds, and says of each whether it did. One round trip.
    ///
    /// # Errors
    /// When the server cannot tell; the leases then end when they expire.
    fn release(&self, held: &[Lease<'_>]) -> Result<Vec<bool>, Error>;

    /// Stores the entries of `batch`, one for each lease, and releases the leases; says of each whether its token
    /// still held it. With `only_if_held` nothing is stored under a lease that is not; store and release are then
    /// atomic. One round trip.
    ///
    /// # Errors
    /// When some may not have been stored.
    fn set_and_release(
        &self,
        held: &[Lease<'_>],
        batch: &Batch,
        ttl: Option<Duration>,
        only_if_held: bool,
    ) -> Result<Vec<bool>, Error>;

    /// Whether anybody holds the lease of this Redis key.
    ///
    /// # Errors
    /// When the server cannot tell.
    fn is_leased(&self, lock: &[u8]) -> Result<bool, Error>;
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
