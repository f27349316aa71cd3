//! [`Region`]: a cache of values, and the operations of its blocking callers.
//!
//! `asynchronous` has the operations of tasks, `builder` and `options` set a region up, `core`
//! decodes and judges entries, `create` is what happens on a miss, and `function` makes functions
//! cached.

#[cfg(feature = "tokio")]
mod asynchronous;
mod builder;
mod core;
pub(crate) mod create;
mod function;
mod keys;
mod options;
mod runner;
mod stats;

use std::fmt;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use self::core::{Core, Scope};
use self::create::caller::{AfterFirstRead, Caller};
use self::keys::{KeySpace, KeySpaces};
use self::options::CallOptions;
use self::runner::JobRunner;
use crate::backend::{Backend, BlockingBackend};
use crate::batch::Found;
use crate::buffer::Buffer;
use crate::codec::{Codec, Msgpack, Seconds};
use crate::error::{Error, GetError};
use crate::exec::{Blocking, Exec, poll_ready};
use crate::freshness::{Expiry, Invalidate, Invalidation, LocalInvalidation};
use crate::key::{AsKey, Key};
use crate::keymap::{Identity, KeyMap};
use crate::lock::{BlockingLock, LocalLock, Lock};
use crate::slice::Slice;
use crate::time::{Entry, Now};

pub use self::builder::RegionBuilder;
pub use self::function::{Function, FunctionMany, KeyArgs};
pub use self::options::{OnWaitTimeout, Options};
#[cfg(feature = "tokio")]
pub use self::runner::TaskJob;
pub use self::runner::ThreadJob;
pub use self::stats::Stats;

/// A read-through cache: where entries live (`B`), how values are encoded (`S`), how processes exclude
/// each other (`L`), how keys are mapped (`M`), and what has been invalidated (`I`).
///
/// A region is a handle, and its clones are the same region. All methods take `&self` and may be
/// called from many threads. [`get_or_create`](Region::get_or_create) is the method that most callers
/// need.
///
/// Handles with other options are derived by [`with_ttl`](Region::with_ttl),
/// [`with_stale_after`](Region::with_stale_after), [`with`](Region::with) and their like. They are of
/// the same type and share everything else; deriving one costs one reference count, so a service can keep it.
///
/// ```
/// use std::time::Duration;
///
/// use dogpile::{Memory, Region};
///
/// let region = Region::builder(Memory::new(64 << 20))
///     .stale_after(Duration::from_secs(3600))
///     .build()?;
///
/// let name: String = region.get_or_create("user-15|name", || load_name(15))?;
/// assert_eq!(name, "Ann");
/// assert_eq!(region.get::<String>("user-15|name")?.as_deref(), Some("Ann"));
/// # fn load_name(_: u64) -> Result<String, std::io::Error> { Ok("Ann".into()) }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Region<B, S = Msgpack<Seconds>, L = LocalLock, M = Identity, I = LocalInvalidation> {
    inner: Arc<RegionInner<B, S, L, M, I>>,
    options: CallOptions,
}

/// What all handles of a region share.
struct RegionInner<B, S, L, M, I> {
    backend: B,
    lock: L,
    core: Core<S, M, I>,
    thread_runner: JobRunner<ThreadJob>,
    #[cfg(feature = "tokio")]
    task_runner: JobRunner<TaskJob>,
}

impl<B> Region<B> {
    /// Starts to build a region over `backend`.
    ///
    /// ```
    /// use dogpile::{Memory, Region};
    ///
    /// let region = Region::builder(Memory::new(64 << 20)).build()?;
    /// # let _: Region<Memory> = region;
    /// # Ok::<(), dogpile::Error>(())
    /// ```
    pub fn builder(backend: B) -> RegionBuilder<B> {
        RegionBuilder::new(backend)
    }
}

impl<B: Backend, S, L: Lock<B>, M: KeyMap, I: Invalidation> Region<B, S, L, M, I> {
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
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// region.set("user-15|name", &"Ann".to_string())?;
    /// assert_eq!(region.get::<String>("user-15|name")?.as_deref(), Some("Ann"));
    /// assert_eq!(region.get::<String>("user-16|name")?, None);
    /// # Ok::<(), dogpile::Error>(())
    /// ```
    #[inline]
    pub fn get<V>(&self, key: impl AsKey) -> Result<Option<V>, Error>
    where
        S: Codec<V>,
    {
        let (core, mut space) = (&self.inner.core, KeySpace::new());
        let read = self.inner.backend.get(space.map(&key, &core.map));
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
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// region.set("k", &15_u64)?;
    /// let entry = region.get_entry::<u64>("k")?.unwrap();
    /// assert_eq!(entry.value, 15);
    /// assert!(entry.age.unwrap().as_secs() < 5);
    /// # Ok::<(), dogpile::Error>(())
    /// ```
    pub fn get_entry<V>(&self, key: impl AsKey) -> Result<Option<Entry<V>>, Error>
    where
        S: Codec<V>,
    {
        let (core, mut space) = (&self.inner.core, KeySpace::new());
        let now = Now::of(&core.clock);
        let entry = core.miss_if_wrong_type(self.inner.backend.get(space.map(&key, &core.map)))?;
        Ok(core.fresh_entry(entry, self.options.max_age, &now))
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
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// region.set_many(&[("a", 1_u64), ("b", 2)])?;
    /// assert_eq!(region.get_many::<_, u64>(&["b", "c", "a"])?, [Some(2), None, Some(1)]);
    /// # Ok::<(), dogpile::Error>(())
    /// ```
    pub fn get_many<K: AsKey, V>(&self, keys: &[K]) -> Result<Vec<Option<V>>, Error>
    where
        S: Codec<V>,
    {
        let (core, mut space, mut found) = (&self.inner.core, KeySpaces::new(), Found::new());
        self.inner.backend.get_many(&space.map_all(keys, &core.map), &mut found)?;
        Ok(core.fresh_values(&found, self.options.max_age))
    }

    /// Stores a value, in place of whatever the key held.
    ///
    /// # Errors
    /// If the value cannot be encoded or the backend fails.
    ///
    /// # Cost
    /// One round trip. No allocation once the buffers are warm, for entries of at most 32 KiB (in
    /// [`Memory`](crate::Memory): of at most the size of the entry that is replaced).
    ///
    /// ```
    /// use dogpile::{Memory, Region};
    ///
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// region.set(("users", 15), &"Ann".to_string())?;
    /// # Ok::<(), dogpile::Error>(())
    /// ```
    pub fn set<V>(&self, key: impl AsKey, value: &V) -> Result<(), Error>
    where
        S: Codec<V>,
    {
        let (core, mut space) = (&self.inner.core, KeySpace::new());
        let key = space.map(&key, &core.map);
        let mut entry = Buffer::take();
        core.encode(key, value, &mut entry)?;
        let stored = self.inner.backend.set(key, &entry, self.options.ttl);
        core.wrote(key);
        stored
    }

    /// Stores many values. Of duplicate keys the last one wins.
    ///
    /// # Errors
    /// If a value cannot be encoded: nothing is stored then. If the backend fails: some values may have
    /// been stored.
    ///
    /// # Cost
    /// One round trip, and none for no entries.
    ///
    /// ```
    /// use dogpile::{Memory, Region};
    ///
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// region.set_many(&[("a", 1_u64), ("b", 2)])?;
    /// # Ok::<(), dogpile::Error>(())
    /// ```
    pub fn set_many<K: AsKey, V>(&self, entries: &[(K, V)]) -> Result<(), Error>
    where
        S: Codec<V>,
    {
        self.set_all(entries.iter().map(|(key, value)| (key, value)))
    }

    fn set_all<'v, K: AsKey + 'v, V: 'v>(&self, entries: impl Iterator<Item = (&'v K, &'v V)>) -> Result<(), Error>
    where
        S: Codec<V>,
    {
        let core = &self.inner.core;
        let batch = core.encode_all(entries)?;
        let stored = self.inner.backend.set_many(&batch, self.options.ttl);
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
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// region.set("k", &15_u64)?;
    /// region.delete("k")?;
    /// assert_eq!(region.get::<u64>("k")?, None);
    /// # Ok::<(), dogpile::Error>(())
    /// ```
    pub fn delete(&self, key: impl AsKey) -> Result<(), Error> {
        self.delete_many(&[key])
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
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// region.delete_many(&["a", "b"])?;
    /// # Ok::<(), dogpile::Error>(())
    /// ```
    pub fn delete_many<K: AsKey>(&self, keys: &[K]) -> Result<(), Error> {
        let mut space = KeySpaces::new();
        self.inner.backend.delete_many(&space.map_all(keys, &self.inner.core.map))
    }

    /// Returns the value of `key`, and creates it with `create` if it is missing.
    ///
    /// Of all concurrent callers one runs its creator: of all threads and tasks of the region, and of
    /// all processes with a [`RedisLock`](crate::RedisLock). If the value is missing, the others wait
    /// for it. If it is stale, they get the stale value at once (stale-while-revalidate). If `create`
    /// fails or panics, the lock is released and the creator of the next waiter runs.
    ///
    /// If the backend cannot be reached, `create` runs all the same, once per key at a time in this
    /// region, and its value is returned ([`RegionBuilder::fail_closed`] makes that an error). A value
    /// that cannot be encoded is returned and not shared: waiters create theirs one after the other.
    ///
    /// `create` may get and create other keys of the region. If keys need each other in a circle, their
    /// creators wait for each other until the [`wait_timeout`](RegionBuilder::wait_timeout). Only direct
    /// recursion on the same thread, a creator that asks for its own key, is detected.
    ///
    /// # Errors
    /// [`GetError::Create`] with the error of `create`. [`GetError::Cache`] if the wait times out, if
    /// `create` asks for the key that it is creating, and, if the region fails closed, if the backend
    /// fails.
    ///
    /// # Cost
    /// A hit takes one round trip. A miss takes two with [`LocalLock`] (read, store), unless other
    /// callers create at the same time, and three with `RedisLock` (read; lock and read again; store and
    /// release), or two with [`RedisLock::lease_on_miss`](crate::RedisLock::lease_on_miss). Concurrent
    /// callers of one process share one read of a key that was not found recently.
    ///
    /// ```
    /// use dogpile::{Memory, Region};
    ///
    /// let region = Region::builder(Memory::new(64 << 20)).build()?;
    /// let rate: f64 = region.get_or_create("rate|EUR|USD", || fetch_rate("EUR", "USD"))?;
    /// assert_eq!(rate, 1.08);
    /// # fn fetch_rate(_: &str, _: &str) -> Result<f64, std::io::Error> { Ok(1.08) }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn get_or_create<V: 'static, E>(
        &self,
        key: impl AsKey,
        create: impl FnOnce() -> Result<V, E>,
    ) -> Result<V, GetError<E>>
    where
        S: Codec<V>,
    {
        let (core, mut space) = (&self.inner.core, KeySpace::new());
        let key = space.map(&key, &core.map);
        let hash = core.flights.hash(key);
        if !core.flights.was_found(hash) {
            return self.read_or_create(key, hash, create);
        }
        let read = core.begin_own_read(hash, L::ONLY_THIS_REGION);
        match self.scope().fresh_or(self.inner.backend.get(key)) {
            Ok(fresh) => Ok(fresh),
            Err(not_fresh) => self.create_one(key, AfterFirstRead::Read(read, not_fresh), create),
        }
    }

    /// Gets or creates a key that was not found recently. Out of line, to keep the hit short.
    #[cold]
    fn read_or_create<V: 'static, E>(
        &self,
        key: Key<'_>,
        hash: u64,
        create: impl FnOnce() -> Result<V, E>,
    ) -> Result<V, GetError<E>>
    where
        S: Codec<V>,
    {
        let (backend, lock) = (BlockingBackend(&self.inner.backend), BlockingLock(&self.inner.lock));
        let caller = self.caller(Blocking, &backend, &lock);
        match poll_ready(caller.read_shared(key, hash)) {
            Ok(fresh) => Ok(fresh),
            Err(after) => poll_ready(caller.create_one(key, after, || ready(create()))),
        }
    }

    #[cold]
    fn create_one<V: 'static, E>(
        &self,
        key: Key<'_>,
        after: AfterFirstRead<'_, V, L::Guard>,
        create: impl FnOnce() -> Result<V, E>,
    ) -> Result<V, GetError<E>>
    where
        S: Codec<V>,
    {
        let (backend, lock) = (BlockingBackend(&self.inner.backend), BlockingLock(&self.inner.lock));
        poll_ready(self.caller(Blocking, &backend, &lock).create_one(key, after, || ready(create())))
    }

    /// Returns the values of `keys`, in their order, and creates those that are missing.
    ///
    /// `create` gets the keys that this caller must create, each once, in the order in which they were
    /// asked for, and returns their values in that order. Values that other callers create are waited
    /// for; if their creators fail, `create` runs again with those keys.
    ///
    /// # Errors
    /// As [`get_or_create`](Region::get_or_create), and if `create` returns another number of values
    /// than it got keys.
    ///
    /// # Cost
    /// The round trips of [`get_or_create`](Region::get_or_create), for all keys together.
    ///
    /// ```
    /// use dogpile::{Memory, Region};
    ///
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// region.set(2, &20_u64)?;
    /// let values: Vec<u64> = region.get_or_create_many(&[1, 2, 3, 1], |missing| {
    ///     assert_eq!(missing, [&1, &3]);
    ///     Ok::<_, std::io::Error>(missing.iter().map(|key| **key as u64 * 10).collect())
    /// })?;
    /// assert_eq!(values, [10, 20, 30, 10]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn get_or_create_many<K: AsKey, V: Clone + 'static, E>(
        &self,
        keys: &[K],
        mut create: impl FnMut(&[&K]) -> Result<Vec<V>, E>,
    ) -> Result<Vec<V>, GetError<E>>
    where
        S: Codec<V>,
    {
        self.create_many(keys, keys, |missing| create(missing))
    }

    /// Gets or creates many values. `create` gets those of `items` whose keys are missing.
    fn create_many<K: AsKey, T, V: Clone + 'static, E>(
        &self,
        keys: &[K],
        items: &[T],
        mut create: impl FnMut(&[&T]) -> Result<Vec<V>, E>,
    ) -> Result<Vec<V>, GetError<E>>
    where
        S: Codec<V>,
    {
        let (backend, lock) = (BlockingBackend(&self.inner.backend), BlockingLock(&self.inner.lock));
        let caller = self.caller(Blocking, &backend, &lock);
        poll_ready(caller.create_many(keys, items, |missing| ready(create(&missing))))
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
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// assert!(!region.is_locked("k")?);
    /// # Ok::<(), dogpile::Error>(())
    /// ```
    pub fn is_locked(&self, key: impl AsKey) -> Result<bool, Error> {
        let (core, mut space) = (&self.inner.core, KeySpace::new());
        let key = space.map(&key, &core.map);
        Ok(core.flights.is_loading(key) || self.inner.lock.is_locked(&self.inner.backend, key)?)
    }
}

impl<B, S, L, M, I> Region<B, S, L, M, I> {
    /// Derives a handle with other options.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use dogpile::{Memory, Options, Region};
    ///
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// let short = region.with(&Options { ttl: Some(Duration::from_secs(5)), ..region.options().clone() });
    /// short.set("k", &15_u64)?;
    /// assert_eq!(region.get::<u64>("k")?, Some(15), "the handles share their entries");
    /// # Ok::<(), dogpile::Error>(())
    /// ```
    #[must_use]
    pub fn with(&self, options: &Options) -> Self {
        self.derive(self.options.with(options.clone()))
    }

    /// Derives a handle with another hard expiry; `None` for none.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use dogpile::{Memory, Region};
    ///
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// region.with_ttl(Duration::from_secs(5)).set("k", &15_u64)?;
    /// # Ok::<(), dogpile::Error>(())
    /// ```
    #[must_use]
    pub fn with_ttl(&self, ttl: impl Into<Option<Duration>>) -> Self {
        self.with(&Options { ttl: ttl.into(), ..self.options().clone() })
    }

    /// Derives a handle with another soft expiry: what is stale for it may be fresh for others.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use dogpile::{Memory, Region};
    ///
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// region.set("k", &15_u64)?;
    /// assert_eq!(region.with_stale_after(Duration::ZERO).get::<u64>("k")?.is_some(), false);
    /// assert_eq!(region.get::<u64>("k")?, Some(15));
    /// # Ok::<(), dogpile::Error>(())
    /// ```
    #[must_use]
    pub fn with_stale_after(&self, age: impl Into<Expiry>) -> Self {
        self.with(&Options { stale_after: age.into(), ignore_expiry: false, ..self.options().clone() })
    }

    /// Derives a handle whose calls wait at most so long for others; `None` for no limit, and zero for
    /// no wait at all.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use dogpile::{Memory, Region};
    ///
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// let impatient = region.with_wait_timeout(Duration::from_millis(100));
    /// assert_eq!(impatient.get_or_create("k", || Ok::<_, std::io::Error>(15_u64))?, 15);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn with_wait_timeout(&self, at_most: impl Into<Option<Duration>>) -> Self {
        self.with(&Options { wait_timeout: at_most.into(), ..self.options().clone() })
    }

    /// Derives a handle for which entries of any age are fresh, invalidated ones too.
    ///
    /// ```
    /// use dogpile::{Invalidate, Memory, Region};
    ///
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// region.set("k", &15_u64)?;
    /// region.invalidate(Invalidate::Hard);
    /// assert_eq!(region.get::<u64>("k")?, None);
    /// assert_eq!(region.ignoring_expiry().get::<u64>("k")?, Some(15));
    /// # Ok::<(), dogpile::Error>(())
    /// ```
    #[must_use]
    pub fn ignoring_expiry(&self) -> Self {
        self.with(&Options { ignore_expiry: true, ..self.options().clone() })
    }

    /// Derives a handle that stores created values of type `V` only if `predicate` holds.
    ///
    /// A value that is not stored is still returned, and shared with the callers that wait for it.
    /// Values of other types, and values that [`set`](Region::set) writes, are always stored. Another
    /// predicate replaces this one.
    ///
    /// ```
    /// use dogpile::{Memory, Region};
    ///
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// let found_only = region.store_if(|name: &Option<String>| name.is_some());
    /// let name: Option<String> = found_only.get_or_create("user-15|name", || Ok::<_, std::io::Error>(None))?;
    /// assert_eq!(name, None);
    /// assert_eq!(region.get::<Option<String>>("user-15|name")?, None, "it was not stored");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn store_if<V: 'static>(&self, predicate: impl Fn(&V) -> bool + Send + Sync + 'static) -> Self {
        self.derive(self.options.store_if(predicate))
    }

    /// Returns the options of this handle.
    #[must_use]
    pub fn options(&self) -> &Options {
        self.options.as_options()
    }

    fn derive(&self, options: CallOptions) -> Self {
        Region { inner: Arc::clone(&self.inner), options }
    }

    /// Returns the counters of what has happened since the region was built.
    ///
    /// ```
    /// use dogpile::{Memory, Region};
    ///
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// region.get_or_create("k", || Ok::<_, std::io::Error>(15_u64))?;
    /// assert_eq!(region.stats().creations, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.inner.core.counters.read()
    }

    /// Returns the backend.
    #[must_use]
    pub fn backend(&self) -> &B {
        &self.inner.backend
    }

    /// Returns what has been invalidated.
    #[must_use]
    pub fn invalidation(&self) -> &I {
        &self.inner.core.invalidation
    }

    #[inline]
    fn scope(&self) -> Scope<'_, S, M, I> {
        Scope { core: &self.inner.core, options: &self.options }
    }

    fn caller<'r, X: Exec, B2, L2>(&'r self, exec: X, backend: &'r B2, lock: &'r L2) -> Caller<'r, X, B2, L2, S, M, I> {
        Caller { exec, backend, lock, scope: self.scope() }
    }
}

impl<B, S, L, M, I: Invalidation> Region<B, S, L, M, I> {
    /// Makes everything that was created until now stale or invalid, as far as the region's
    /// [`Invalidation`] reaches.
    ///
    /// Entries in a [`Bare`](crate::codec::Bare) envelope have no time of creation and stay as they are.
    ///
    /// ```
    /// use dogpile::{Invalidate, Memory, Region};
    ///
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// region.set("k", &15_u64)?;
    /// region.invalidate(Invalidate::Hard);
    /// assert_eq!(region.get::<u64>("k")?, None);
    /// # Ok::<(), dogpile::Error>(())
    /// ```
    pub fn invalidate(&self, how: Invalidate) {
        self.inner.core.invalidation.invalidate(self.inner.core.clock.now(), how);
    }
}

impl<B, S, L, M, I> Clone for Region<B, S, L, M, I> {
    fn clone(&self) -> Self {
        self.derive(self.options.clone())
    }
}

impl<B: fmt::Debug, S, L, M, I> fmt::Debug for Region<B, S, L, M, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("backend", &self.inner.backend)
            .field("options", self.options())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
