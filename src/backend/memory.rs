//! [`Memory`]: entries in this process, bounded by weight.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quick_cache::sync::{Cache, DefaultLifecycle, EntryAction, EntryResult};
use quick_cache::{Equivalent, OptionsBuilder, Weighter};

#[cfg(feature = "tokio")]
use crate::backend::AsyncBackend;
use crate::backend::Backend;
use crate::batch::{Batch, Found};
use crate::error::{Error, ErrorKind};
use crate::key::{Key, KeyBuf};
use crate::time::{Clock, Timestamp};

/// Entries in this process, bounded by weight; needs no server.
///
/// Built on [`quick_cache`] (S3-FIFO eviction, sharded). An entry weighs its bytes, its key's bytes and
/// [`Memory::OVERHEAD`]. Entries whose TTL is over are not found any more; their room is taken by the next eviction, or
/// when they are asked for. A hit allocates nothing and shares the entry's memory; a write copies the entry once, into
/// the memory of the one it replaces when that is large enough and nobody holds it.
///
/// Fields of a hash are entries of their own here: the TTL is each entry's own, and there is no hash to delete.
///
/// ```
/// use dogpile::{Memory, Region};
///
/// let region = Region::builder(Memory::new(64 << 20)).build()?;
/// region.set("user-15", &15_u64)?;
/// assert_eq!(region.get::<u64>("user-15")?, Some(15));
/// # Ok::<(), dogpile::Error>(())
/// ```
pub struct Memory {
    cache: Cache<KeyBuf, Stored, ByBytes, ahash::RandomState>,
    clock: Clock,
}

#[derive(Clone)]
struct Stored {
    entry: Bytes,
    expires: Option<Timestamp>,
}

/// Weighs an entry by the memory it takes.
#[derive(Clone)]
struct ByBytes;

impl Weighter<KeyBuf, Stored> for ByBytes {
    fn weight(&self, key: &KeyBuf, stored: &Stored) -> u64 {
        key.len() as u64 + stored.entry.len() as u64 + Memory::OVERHEAD
    }
}

/// A borrowed key that finds the owned one.
struct Lookup<'a>(Key<'a>);

impl Hash for Lookup<'_> {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl Equivalent<KeyBuf> for Lookup<'_> {
    #[inline]
    fn equivalent(&self, key: &KeyBuf) -> bool {
        self.0 == key.as_key()
    }
}

impl Memory {
    /// What an entry weighs besides its bytes and its key's: the tables and headers around them.
    pub const OVERHEAD: u64 = 200;

    /// A cache that holds entries of `max_weight` bytes together, keys and overhead included.
    ///
    /// It has a shard for each 4 MiB, at least one and at most 64. An entry may weigh nine tenths of a shard; a larger
    /// one is refused as [`ErrorKind::TooLarge`].
    #[must_use]
    pub fn new(max_weight: u64) -> Self {
        Self::with_clock(max_weight, Clock::system())
    }

    /// The same, with the TTLs measured by another clock.
    #[must_use]
    pub fn with_clock(max_weight: u64, clock: Clock) -> Self {
        // The number only sizes the tables at the start; they grow.
        let entries = usize::try_from(max_weight / (Self::OVERHEAD + 100)).unwrap_or(usize::MAX).clamp(16, 1 << 16);
        // The largest entry is what one shard holds, so their number comes from the weight, and not from the machine.
        let shards = usize::try_from(max_weight >> 22).unwrap_or(usize::MAX).clamp(1, 64);
        let options = OptionsBuilder::new()
            .estimated_items_capacity(entries)
            .weight_capacity(max_weight)
            .shards(shards)
            .build()
            .expect("all that it needs is given");
        let hasher = ahash::RandomState::default();
        Memory { cache: Cache::with_options(options, ByBytes, hasher, DefaultLifecycle::default()), clock }
    }

    /// How many entries there are, those included whose TTL is over and whose room was not yet needed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }

    /// What the entries weigh together, in bytes.
    #[must_use]
    pub fn weight(&self) -> u64 {
        self.cache.weight()
    }

    /// Removes all entries.
    pub fn clear(&self) {
        self.cache.clear();
    }

    #[inline]
    fn find(&self, key: Key<'_>) -> Option<Bytes> {
        let stored = self.cache.get(&Lookup(key))?;
        match stored.expires {
            Some(expires) if expires <= self.clock.now() => {
                // Another entry may have taken its place meanwhile.
                self.cache.remove_if(&Lookup(key), |now| now.expires == Some(expires));
                None
            }
            _ => Some(stored.entry),
        }
    }

    fn store(&self, key: Key<'_>, entry: &[u8], ttl: Option<Duration>) -> Result<(), Error> {
        let key = key.to_buf();
        let size = key.len() + entry.len();
        if size > self.max_entry() {
            let message = format!("writing {key}: {size} bytes are over the limit of {}", self.max_entry());
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        let expires = ttl.map(|ttl| self.clock.now().plus(ttl));
        // An entry that gets no larger is replaced in place; a larger one goes through the door, where others make
        // room.
        let replace = |_: &KeyBuf, stored: &mut Stored| {
            let fits = entry.len() <= stored.entry.len();
            if fits {
                let old = std::mem::take(&mut stored.entry);
                *stored = Stored { entry: copy_into(old, entry), expires };
            }
            EntryAction::Retain(fits)
        };
        // Where there is none, `entry` would keep a place for it, which allocates; and what is put in such a place may
        // be evicted before anything else, so it is given up.
        let replaced = self.cache.contains_key(&Lookup(key.as_key()))
            && matches!(self.cache.entry(&key, None, replace), EntryResult::Retained(true));
        if !replaced {
            self.cache.insert(key, Stored { entry: copy_into(Bytes::new(), entry), expires });
        }
        Ok(())
    }
}

/// A copy of `entry`, in the memory of `old` where that can be reused.
fn copy_into(old: Bytes, entry: &[u8]) -> Bytes {
    let mut room = match old.try_into_mut() {
        // Memory much larger than the entry would weigh more than was accounted for.
        Ok(old) if old.capacity() >= entry.len() && old.capacity() <= 2 * entry.len() + 16 => old,
        _ => {
            let mut room = BytesMut::with_capacity(entry.len());
            // Shared from the beginning; otherwise the first hit would allocate the count of its owners.
            drop(room.split_off(room.capacity()));
            room
        }
    };
    room.clear();
    room.extend_from_slice(entry);
    room.freeze()
}

impl Backend for Memory {
    #[inline]
    fn get(&self, key: Key<'_>) -> Result<Option<Bytes>, Error> {
        Ok(self.find(key))
    }

    fn get_many(&self, keys: &[Key<'_>], found: &mut Found) -> Result<(), Error> {
        found.reset(keys.len());
        for (index, key) in keys.iter().enumerate() {
            if let Some(entry) = self.find(*key) {
                found.put(index, entry);
            }
        }
        Ok(())
    }

    fn set(&self, key: Key<'_>, entry: &[u8], ttl: Option<Duration>) -> Result<(), Error> {
        self.store(key, entry, ttl)
    }

    fn set_many(&self, batch: &Batch, ttl: Option<Duration>) -> Result<(), Error> {
        batch.iter().try_for_each(|(key, entry)| self.store(key, entry, ttl))
    }

    fn max_entry(&self) -> usize {
        // Less than the part of a shard that entries get into, key and overhead included.
        usize::try_from(self.cache.shard_capacity() / 10 * 9).unwrap_or(usize::MAX).saturating_sub(1024)
    }

    fn delete_many(&self, keys: &[Key<'_>]) -> Result<(), Error> {
        for key in keys {
            self.cache.remove(&Lookup(*key));
        }
        Ok(())
    }
}

/// Waits for nothing: its futures are ready at once.
#[cfg(feature = "tokio")]
impl AsyncBackend for Memory {
    async fn get_async(&self, key: Key<'_>) -> Result<Option<Bytes>, Error> {
        self.get(key)
    }

    async fn get_many_async(&self, keys: &[Key<'_>], found: &mut Found) -> Result<(), Error> {
        self.get_many(keys, found)
    }

    async fn set_async(&self, key: Key<'_>, entry: &[u8], ttl: Option<Duration>) -> Result<(), Error> {
        self.set(key, entry, ttl)
    }

    async fn set_many_async(&self, batch: &Batch, ttl: Option<Duration>) -> Result<(), Error> {
        self.set_many(batch, ttl)
    }

    fn max_entry_async(&self) -> usize {
        self.max_entry()
    }

    async fn delete_many_async(&self, keys: &[Key<'_>]) -> Result<(), Error> {
        self.delete_many(keys)
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("entries", &self.len())
            .field("weight", &self.weight())
            .field("max_weight", &self.cache.capacity())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key<'_> = Key::Plain(b"k");

    #[test]
    fn an_entry_lives_for_its_ttl() {
        let clock = Clock::manual(Timestamp::from_secs(1_000));
        let memory = Memory::with_clock(1 << 20, clock.clone());
        memory.set(KEY, b"v", Some(Duration::from_secs(5))).unwrap();
        clock.advance(Duration::from_millis(4_999));
        assert_eq!(memory.get(KEY).unwrap().unwrap(), "v");
        clock.advance(Duration::from_millis(1));
        assert_eq!(memory.get(KEY).unwrap(), None);
        assert_eq!(memory.len(), 0, "an expired entry goes when it is asked for");
        memory.set(KEY, b"v", None).unwrap();
        clock.advance(Duration::from_secs(1 << 40));
        assert_eq!(memory.get(KEY).unwrap().unwrap(), "v");
    }

    #[test]
    fn the_weight_stays_bounded() {
        let memory = Memory::new(1 << 20);
        for at in 0..10_000_u32 {
            memory.set(Key::Plain(&at.to_le_bytes()), &[7; 1000], None).unwrap();
            assert!(memory.weight() <= 1 << 20);
        }
        assert!(memory.len() > 100, "{memory:?}");
        assert_eq!(memory.set(KEY, &vec![0; 2 << 20], None).unwrap_err().kind(), ErrorKind::TooLarge);
        // Entries that grow in place make room as others do.
        for at in 0..10_000_u32 {
            memory.set(Key::Plain(&at.to_le_bytes()), b"small", None).unwrap();
            memory.set(Key::Plain(&at.to_le_bytes()), &[7; 100_000], None).unwrap();
            assert!(memory.weight() <= 1 << 20, "{memory:?}");
        }
        let largest = vec![7; memory.max_entry() - 1];
        memory.set(KEY, &largest, None).unwrap();
        assert_eq!(memory.get(KEY).unwrap().unwrap(), largest, "what is not refused is kept");
        memory.clear();
        assert!(memory.is_empty());
    }

    #[test]
    fn an_entry_that_somebody_holds_is_not_written_over() {
        let memory = Memory::new(1 << 20);
        memory.set(KEY, b"first", None).unwrap();
        let held = memory.get(KEY).unwrap().unwrap();
        memory.set(KEY, b"other", None).unwrap();
        assert_eq!((&held[..], &memory.get(KEY).unwrap().unwrap()[..]), (&b"first"[..], &b"other"[..]));
        for size in [0, 1, 5, 100, 7, 100_000, 1] {
            memory.set(KEY, &vec![1; size], None).unwrap();
            assert_eq!(memory.get(KEY).unwrap().unwrap().len(), size);
        }
    }
}
