//! [`Memory`]: a backend that stores entries in this process, bounded by their total weight.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quick_cache::sync::{Cache, DefaultLifecycle, EntryAction, EntryResult};
use quick_cache::{Equivalent, OptionsBuilder, Weighter};

use crate::backend::AsyncBackend;
use crate::backend::Backend;
use crate::batch::{Batch, Found};
use crate::error::{Error, ErrorKind};
use crate::key::{Key, KeyBuf};
use crate::time::{Clock, Timestamp};

/// A backend that stores entries in this process, bounded by their total weight.
///
/// It is built on [`quick_cache`], a sharded cache with S3-FIFO eviction. The weight of an entry is
/// the length of the entry, the length of its key, and [`Memory::OVERHEAD`].
///
/// An entry is not returned after its TTL has elapsed. Its memory is freed when it is next read, or
/// when it is evicted.
///
/// A field of a hash is a separate entry with its own TTL, and a hash cannot be deleted as a whole.
///
/// # Cost
///
/// A hit does not allocate; it shares the memory of the entry. A write copies the entry once. If
/// the previous entry of the key is large enough and no reader holds it, its memory is reused.
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

/// Weighs an entry by the memory that it takes.
#[derive(Clone)]
struct ByBytes;

impl Weighter<KeyBuf, Stored> for ByBytes {
    fn weight(&self, key: &KeyBuf, stored: &Stored) -> u64 {
        key.len() as u64 + stored.entry.len() as u64 + Memory::OVERHEAD
    }
}

/// A borrowed key that is equivalent to the owned key in the cache.
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
    /// The weight of an entry in addition to its bytes and its key, for tables and headers.
    pub const OVERHEAD: u64 = 200;

    /// Creates a cache of at most `max_weight` bytes, including keys and overhead.
    ///
    /// It has one shard per 4 MiB, at least one and at most 64. An entry can weigh up to nine
    /// tenths of a shard; storing a larger entry fails with [`ErrorKind::TooLarge`].
    #[must_use]
    pub fn new(max_weight: u64) -> Self {
        Self::with_clock(max_weight, Clock::system())
    }

    /// Creates a cache of at most `max_weight` bytes that measures TTLs with `clock`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use dogpile::{Clock, Memory, Region, Timestamp};
    ///
    /// let clock = Clock::manual(Timestamp::from_secs(1_000));
    /// let memory = Memory::with_clock(64 << 20, clock.clone());
    /// let region =
    ///     Region::builder(memory).clock(clock.clone()).ttl(Duration::from_secs(60)).build()?;
    /// region.set("user-15", &15_u64)?;
    /// clock.advance(Duration::from_secs(60));
    /// assert_eq!(region.get::<u64>("user-15")?, None);
    /// # Ok::<(), dogpile::Error>(())
    /// ```
    #[must_use]
    pub fn with_clock(max_weight: u64, clock: Clock) -> Self {
        // Only the initial size of the tables, which grow as needed.
        let entries = usize::try_from(max_weight / (Self::OVERHEAD + 100)).unwrap_or(usize::MAX).clamp(16, 1 << 16);
        // A shard limits the size of an entry, so the number of shards depends on the weight, not
        // on the machine.
        let shards = usize::try_from(max_weight >> 22).unwrap_or(usize::MAX).clamp(1, 64);
        let options = OptionsBuilder::new()
            .estimated_items_capacity(entries)
            .weight_capacity(max_weight)
            .shards(shards)
            .build()
            .expect("all required options are set");
        let hasher = ahash::RandomState::default();
        Memory { cache: Cache::with_options(options, ByBytes, hasher, DefaultLifecycle::default()), clock }
    }

    /// Returns the number of entries, including expired ones that are not removed yet.
    ///
    /// ```
    /// use dogpile::{Backend, Key, Memory};
    ///
    /// let memory = Memory::new(64 << 20);
    /// memory.set(Key::from("user-15"), b"entry", None)?;
    /// assert_eq!(memory.len(), 1);
    /// # Ok::<(), dogpile::Error>(())
    /// ```
    #[must_use]
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// Returns `true` if the cache has no entries.
    ///
    /// ```
    /// use dogpile::Memory;
    ///
    /// assert!(Memory::new(64 << 20).is_empty());
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }

    /// Returns the total weight of the entries, in bytes.
    ///
    /// ```
    /// use dogpile::{Backend, Key, Memory};
    ///
    /// let memory = Memory::new(64 << 20);
    /// memory.set(Key::from("user-15"), b"entry", None)?;
    /// assert_eq!(memory.weight(), 7 + 5 + Memory::OVERHEAD);
    /// # Ok::<(), dogpile::Error>(())
    /// ```
    #[must_use]
    pub fn weight(&self) -> u64 {
        self.cache.weight()
    }

    /// Removes all entries.
    ///
    /// ```
    /// use dogpile::{Backend, Key, Memory};
    ///
    /// let memory = Memory::new(64 << 20);
    /// memory.set(Key::from("user-15"), b"entry", None)?;
    /// memory.clear();
    /// assert!(memory.is_empty());
    /// # Ok::<(), dogpile::Error>(())
    /// ```
    pub fn clear(&self) {
        self.cache.clear();
    }

    #[inline]
    fn find(&self, key: Key<'_>) -> Option<Bytes> {
        let stored = self.cache.get(&Lookup(key))?;
        match stored.expires {
            Some(expires) if expires <= self.clock.now() => {
                // Another thread may have replaced the entry since; that one must stay.
                self.cache.remove_if(&Lookup(key), |now| now.expires == Some(expires));
                None
            }
            _ => Some(stored.entry),
        }
    }

    fn store(&self, key: Key<'_>, entry: &[u8], ttl: Option<Duration>) -> Result<(), Error> {
        let key = key.to_buf();
        let size = key.len() + entry.len();
        if size > Backend::max_entry(self) {
            let message = format!("writing {key}: {size} bytes exceed the limit of {}", Backend::max_entry(self));
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        let expires = ttl.map(|ttl| self.clock.now().plus(ttl));
        // An entry that does not grow is replaced in place. One that grows is inserted again, which
        // evicts others.
        let replace = |_: &KeyBuf, stored: &mut Stored| {
            let fits = entry.len() <= stored.entry.len();
            if fits {
                let old = std::mem::take(&mut stored.entry);
                *stored = Stored { entry: copy_into(old, entry), expires };
            }
            EntryAction::Retain(fits)
        };
        // For a missing key, `entry` would allocate a placeholder, and an entry that is stored in a
        // placeholder may be evicted before all others. So `entry` is called for existing keys
        // only.
        let replaced = self.cache.contains_key(&Lookup(key.as_key()))
            && matches!(self.cache.entry(&key, None, replace), EntryResult::Retained(true));
        if !replaced {
            self.cache.insert(key, Stored { entry: copy_into(Bytes::new(), entry), expires });
        }
        Ok(())
    }
}

/// Copies `entry`, into the memory of `old` if that can be reused.
fn copy_into(old: Bytes, entry: &[u8]) -> Bytes {
    let mut buffer = match old.try_into_mut() {
        // Memory that is much larger than the entry is not reused, because only the entry is
        // weighed.
        Ok(old) if old.capacity() >= entry.len() && old.capacity() <= 2 * entry.len() + 16 => old,
        _ => {
            let mut buffer = BytesMut::with_capacity(entry.len());
            // Splitting makes the buffer shared. Otherwise the first hit would allocate the
            // reference count.
            drop(buffer.split_off(buffer.capacity()));
            buffer
        }
    };
    buffer.clear();
    buffer.extend_from_slice(entry);
    buffer.freeze()
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
        // Leave a margin below the capacity of a shard, in which key and overhead count, too.
        usize::try_from(self.cache.shard_capacity() / 10 * 9).unwrap_or(usize::MAX).saturating_sub(1024)
    }

    fn delete_many(&self, keys: &[Key<'_>]) -> Result<(), Error> {
        for key in keys {
            self.cache.remove(&Lookup(*key));
        }
        Ok(())
    }
}

/// All futures are ready at the first poll.
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

    fn max_entry(&self) -> usize {
        Backend::max_entry(self)
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
    fn entries_expire_after_their_ttl() {
        let clock = Clock::manual(Timestamp::from_secs(1_000));
        let memory = Memory::with_clock(1 << 20, clock.clone());
        memory.set(KEY, b"v", Some(Duration::from_secs(5))).unwrap();
        clock.advance(Duration::from_millis(4_999));
        assert_eq!(memory.get(KEY).unwrap().unwrap(), "v");
        clock.advance(Duration::from_millis(1));
        assert_eq!(memory.get(KEY).unwrap(), None);
        assert_eq!(memory.len(), 0, "reading an expired entry removes it");
        memory.set(KEY, b"v", None).unwrap();
        clock.advance(Duration::from_secs(1 << 40));
        assert_eq!(memory.get(KEY).unwrap().unwrap(), "v");
    }

    #[test]
    fn total_weight_stays_within_the_limit() {
        let memory = Memory::new(1 << 20);
        for at in 0..10_000_u32 {
            memory.set(Key::Plain(&at.to_le_bytes()), &[7; 1000], None).unwrap();
            assert!(memory.weight() <= 1 << 20);
        }
        assert!(memory.len() > 100, "{memory:?}");
        assert_eq!(memory.set(KEY, &vec![0; 2 << 20], None).unwrap_err().kind(), ErrorKind::TooLarge);
        // Entries that grow evict others, as new entries do.
        for at in 0..10_000_u32 {
            memory.set(Key::Plain(&at.to_le_bytes()), b"small", None).unwrap();
            memory.set(Key::Plain(&at.to_le_bytes()), &[7; 100_000], None).unwrap();
            assert!(memory.weight() <= 1 << 20, "{memory:?}");
        }
        let largest = vec![7; Backend::max_entry(&memory) - 1];
        memory.set(KEY, &largest, None).unwrap();
        assert_eq!(memory.get(KEY).unwrap().unwrap(), largest, "an accepted entry is stored");
        memory.clear();
        assert!(memory.is_empty());
    }

    #[test]
    fn does_not_overwrite_an_entry_that_a_reader_holds() {
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
