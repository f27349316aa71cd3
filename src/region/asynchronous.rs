//! The operations of callers that are tasks.

use crate::backend::AsyncBackend;
use crate::batch::Found;
use crate::buffer::Buffer;
use crate::codec::Codec;
use crate::error::{Error, GetError};
use crate::exec::Async;
use crate::freshness::Invalidation;
use crate::key::AsKey;
use crate::keymap::KeyMap;
use crate::lock::AsyncLock;
use crate::region::Region;
use crate::region::create::caller::AfterFirstRead;
use crate::region::keys::{KeySpace, KeySpaces};
use crate::slice::Slice;
use crate::time::{Entry, Now};

/// Operations for tasks (feature `tokio`).
///
/// Threads and tasks that want the same missing value wait for the same creator. Connections, locks and
/// timeouts need a tokio runtime with I/O and timers (`enable_all`). A task that calls a blocking method
/// of the region blocks its thread, and for ever if the creator that it waits for needs that thread.
///
/// # Cancel safety
/// Each future may be dropped at any time: locks are released, the next waiter is promoted, and the
/// connection stays usable. A future that reads or creates, and is neither polled nor dropped, keeps
/// other callers of its key waiting.
impl<B: AsyncBackend, S, L: AsyncLock<B>, M: KeyMap, I: Invalidation> Region<B, S, L, M, I> {
    /// Returns the value of `key`, or `None` if it is missing, stale, or cannot be decoded.
    ///
    /// A cached `None` of an `Option` is `Some(None)`.
    ///
    /// # Errors
    /// If the backend fails.
    ///
    /// # Cost
    /// One round trip, and no allocation except those of `V` itself.
    ///
    /// ```
    /// use dogpile::{Memory, Region};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), dogpile::Error> {
    /// let region = Region::builder(Memory::new(64 << 20)).build()?;
    /// region.set_async("user-15|name", &"Ann".to_string()).await?;
    /// assert_eq!(region.get_async::<String>("user-15|name").await?.as_deref(), Some("Ann"));
    /// # Ok(())
    /// # }
    /// ```
    // Each level of futures costs a hit about 25 instructions, so this one does everything.
    #[inline]
    pub async fn get_async<V>(&self, key: impl AsKey) -> Result<Option<V>, Error>
    where
        S: Codec<V>,
    {
        let (core, mut space) = (&self.inner.core, KeySpace::new());
        let read = self.inner.backend.get_async(space.map(&key, &core.map)).await;
        let entry = core.miss_if_wrong_type(read)?;
        Ok(entry.and_then(|entry| core.fresh(Slice::from(&entry), self.options.max_age, &Now::of(&core.clock))))
    }

    /// Returns the value of `key` with its time of creation, age and version, if it is fresh.
    ///
    /// # Errors
    /// If the backend fails.
    ///
    /// # Cost
    /// One round trip.
    ///
    /// ```
    /// use dogpile::{Memory, Region};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), dogpile::Error> {
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// region.set_async("k", &15_u64).await?;
    /// let entry = region.get_entry_async::<u64>("k").await?.unwrap();
    /// assert_eq!(entry.value, 15);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn get_entry_async<V>(&self, key: impl AsKey) -> Result<Option<Entry<V>>, Error>
    where
        S: Codec<V>,
    {
        let (core, mut space) = (&self.inner.core, KeySpace::new());
        let read = self.inner.backend.get_async(space.map(&key, &core.map)).await;
        Ok(core.fresh_entry(core.miss_if_wrong_type(read)?, self.options.max_age, &Now::of(&core.clock)))
    }

    /// Returns the values of `keys`, in their order, with duplicates.
    ///
    /// # Errors
    /// If the backend fails for any of them.
    ///
    /// # Cost
    /// One round trip whatever the keys, and none for no keys.
    ///
    /// ```
    /// use dogpile::{Memory, Region};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), dogpile::Error> {
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// region.set_many_async(&[("a", 1_u64), ("b", 2)]).await?;
    /// assert_eq!(region.get_many_async::<_, u64>(&["b", "c"]).await?, [Some(2), None]);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn get_many_async<K: AsKey, V>(&self, keys: &[K]) -> Result<Vec<Option<V>>, Error>
    where
        S: Codec<V>,
    {
        let (core, mut space, mut found) = (&self.inner.core, KeySpaces::new(), Found::new());
        self.inner.backend.get_many_async(&space.map_all(keys, &core.map), &mut found).await?;
        Ok(core.fresh_values(&found, self.options.max_age))
    }

    /// Stores a value, in place of whatever the key held.
    ///
    /// # Errors
    /// If the value cannot be encoded or the backend fails.
    ///
    /// # Cancel safety
    /// If the future is dropped, the value may have been stored.
    ///
    /// # Cost
    /// One round trip. No allocation once the buffers are warm, for entries of at most 32 KiB.
    ///
    /// ```
    /// use dogpile::{Memory, Region};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), dogpile::Error> {
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// region.set_async(("users", 15), &"Ann".to_string()).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn set_async<V>(&self, key: impl AsKey, value: &V) -> Result<(), Error>
    where
        S: Codec<V>,
    {
        let (core, mut space) = (&self.inner.core, KeySpace::new());
        let key = space.map(&key, &core.map);
        let mut entry = Buffer::take();
        core.encode(key, value, &mut entry)?;
        let stored = self.inner.backend.set_async(key, &entry, self.options.ttl).await;
        core.wrote(key);
        stored
    }

    /// Stores many values. Of duplicate keys the last one wins.
    ///
    /// # Errors
    /// If a value cannot be encoded: nothing is stored then. If the backend fails: some values may have
    /// been stored.
    ///
    /// # Cancel safety
    /// If the future is dropped, some values may have been stored.
    ///
    /// # Cost
    /// One round trip, and none for no entries.
    ///
    /// ```
    /// use dogpile::{Memory, Region};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), dogpile::Error> {
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// region.set_many_async(&[("a", 1_u64), ("b", 2)]).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn set_many_async<K: AsKey, V>(&self, entries: &[(K, V)]) -> Result<(), Error>
    where
        S: Codec<V>,
    {
        self.set_all_async(entries.iter().map(|(key, value)| (key, value))).await
    }

    pub(super) async fn set_all_async<'v, K: AsKey + 'v, V: 'v>(
        &self,
        entries: impl Iterator<Item = (&'v K, &'v V)>,
    ) -> Result<(), Error>
    where
        S: Codec<V>,
    {
        let core = &self.inner.core;
        let batch = core.encode_all(entries)?;
        let stored = self.inner.backend.set_many_async(&batch, self.options.ttl).await;
        core.wrote_all(&batch);
        stored
    }

    /// Deletes a value. It is no error if there is none.
    ///
    /// # Errors
    /// If the backend fails.
    ///
    /// # Cost
    /// One round trip.
    ///
    /// ```
    /// use dogpile::{Memory, Region};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), dogpile::Error> {
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// region.delete_async("k").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn delete_async(&self, key: impl AsKey) -> Result<(), Error> {
        self.delete_many_async(&[key]).await
    }

    /// Deletes many values.
    ///
    /// # Errors
    /// If the backend fails: some values may have been deleted.
    ///
    /// # Cost
    /// One round trip, and none for no keys.
    ///
    /// ```
    /// use dogpile::{Memory, Region};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), dogpile::Error> {
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// region.delete_many_async(&["a", "b"]).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn delete_many_async<K: AsKey>(&self, keys: &[K]) -> Result<(), Error> {
        let mut space = KeySpaces::new();
        self.inner.backend.delete_many_async(&space.map_all(keys, &self.inner.core.map)).await
    }

    /// Returns the value of `key`, and creates it with `create` if it is missing.
    ///
    /// Of all concurrent callers one runs its creator: of all threads and tasks of the region, and of
    /// all processes with a [`RedisLock`](crate::RedisLock). If the value is missing, the others wait
    /// for it. If it is stale, they get the stale value at once (stale-while-revalidate). If `create`
    /// fails or panics, the lock is released and the creator of the next waiter runs.
    ///
    /// If the backend cannot be reached, `create` runs all the same, once per key at a time in this
    /// region, and its value is returned ([`fail_closed`](crate::RegionBuilder::fail_closed) makes
    /// that an error).
    ///
    /// A creator that asks for its own key waits for itself until the
    /// [`wait_timeout`](crate::RegionBuilder::wait_timeout): in tasks that is not detected.
    ///
    /// # Errors
    /// [`GetError::Create`] with the error of `create`. [`GetError::Cache`] if the wait times out, and, if
    /// the region fails closed, if the backend fails.
    ///
    /// # Cancel safety
    /// Dropping the future drops `create`, if it runs, and promotes the next waiter.
    ///
    /// # Cost
    /// A hit takes one round trip; a miss two with [`LocalLock`](crate::LocalLock) and three with
    /// `RedisLock`, or two with [`lease_on_miss`](crate::RedisLock::lease_on_miss).
    ///
    /// ```
    /// use dogpile::{Memory, Region};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let region = Region::builder(Memory::new(64 << 20)).build()?;
    /// let name: String = region.get_or_create_async("user-15|name", async || load_name(15).await).await?;
    /// assert_eq!(name, "Ann");
    /// # Ok(())
    /// # }
    /// # async fn load_name(_: u64) -> Result<String, std::io::Error> { Ok("Ann".into()) }
    /// ```
    #[inline]
    pub async fn get_or_create_async<V: 'static, E, R>(
        &self,
        key: impl AsKey,
        create: impl FnOnce() -> R,
    ) -> Result<V, GetError<E>>
    where
        S: Codec<V>,
        R: Future<Output = Result<V, E>>,
    {
        let (core, mut space) = (&self.inner.core, KeySpace::new());
        let key = space.map(&key, &core.map);
        let hash = core.flights.hash(key);
        let caller = self.caller(Async, &self.inner.backend, &self.inner.lock);
        let after = if core.flights.was_found(hash) {
            let read = core.begin_own_read(hash, L::ONLY_THIS_REGION);
            match caller.scope.fresh_or(self.inner.backend.get_async(key).await) {
                Ok(fresh) => return Ok(fresh),
                Err(not_fresh) => AfterFirstRead::Read(read, not_fresh),
            }
        } else {
            match caller.read_shared(key, hash).await {
                Ok(fresh) => return Ok(fresh),
                Err(after) => after,
            }
        };
        caller.create_one(key, after, create).await
    }

    /// Returns the values of `keys`, in their order, and creates those that are missing.
    ///
    /// `create` gets the keys that this caller must create, each once, in the order in which they were
    /// asked for, and returns their values in that order. Values that other callers create are waited
    /// for; if their creators fail, `create` runs again with those keys.
    ///
    /// `create` may borrow from its surroundings, as in `async |missing| …`. If each call must own what
    /// it uses, clone it for each: `|missing| { let pool = pool.clone(); async move { … } }`.
    ///
    /// # Errors
    /// As [`get_or_create_async`](Region::get_or_create_async), and if `create` returns another number of
    /// values than it got keys.
    ///
    /// # Cost
    /// The round trips of [`get_or_create_async`](Region::get_or_create_async), for all keys together.
    ///
    /// ```
    /// use dogpile::{Memory, Region};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// region.set_async(2, &20_u64).await?;
    /// let create = async |missing: Vec<&i32>| {
    ///     assert_eq!(missing, [&1, &3]);
    ///     Ok::<_, std::io::Error>(missing.iter().map(|key| **key as u64 * 10).collect())
    /// };
    /// let values: Vec<u64> = region.get_or_create_many_async(&[1, 2, 3, 1], create).await?;
    /// assert_eq!(values, [10, 20, 30, 10]);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn get_or_create_many_async<'k, K: AsKey, V: Clone + 'static, E, R>(
        &self,
        keys: &'k [K],
        create: impl FnMut(Vec<&'k K>) -> R,
    ) -> Result<Vec<V>, GetError<E>>
    where
        S: Codec<V>,
        R: Future<Output = Result<Vec<V>, E>>,
    {
        self.caller(Async, &self.inner.backend, &self.inner.lock).create_many(keys, keys, create).await
    }

    /// Returns whether the value of `key` is being created: in this process, or, if the lock can tell, in
    /// another one.
    ///
    /// # Errors
    /// If the lock fails.
    ///
    /// # Cost
    /// One round trip with [`RedisLock`](crate::RedisLock), unless this process creates the value.
    ///
    /// ```
    /// use dogpile::{Memory, Region};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), dogpile::Error> {
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// assert!(!region.is_locked_async("k").await?);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn is_locked_async(&self, key: impl AsKey) -> Result<bool, Error> {
        let (core, mut space) = (&self.inner.core, KeySpace::new());
        let key = space.map(&key, &core.map);
        Ok(core.flights.is_loading(key) || self.inner.lock.is_locked_async(&self.inner.backend, key).await?)
    }
}
